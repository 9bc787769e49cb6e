"""A shard of a cluster, by whichever of its nodes is the primary by now.

    redis://[USER[:PASSWORD]@]HOST[:PORT],HOST[:PORT]…       nodes of one cluster

Which node that is the cluster itself tells, through any of its nodes (`wire.cluster_primary`). An
address that is announced there and cannot be reached from here is replaced by the one that the
operator has given for it (`AddressMap`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from engine.errors import UsageError
from engine.model.cluster_topology import Node, Shard, Topology
from engine.model.sentinel_group import node_address
from engine.model.slots import SlotSet

_PLACE = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]=]+))(?::(?P<port>\d{1,5}))?")
Place = tuple[str, int]
"""(host, port)."""


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Announced addresses, and how they are reached from here: (host, port or 0 for every one)
    pairs."""

    pairs: tuple[tuple[Place, Place], ...] = ()

    @classmethod
    def read(cls, texts: tuple[str, ...]) -> AddressMap:
        """`HOST[:PORT]=HOST[:PORT]` each. A side without a port is every port; then the other side
        has none either, or the ports are one. Raises `UsageError`."""
        pairs = []
        for text in texts:
            first, _, second = text.partition("=")
            one, other = _PLACE.fullmatch(first.strip()), _PLACE.fullmatch(second.strip())
            if one is None or other is None or bool(one["port"]) < bool(other["port"]):
                raise UsageError(
                    f"--address-map {text[:80]!r}: expected HOST:PORT=HOST:PORT, or HOST=HOST",
                    remedy="Left: what the cluster announces. Right: how it is reached from here.",
                )
            pairs.append((_place(one), _place(other)))
        return cls(tuple(pairs))

    def there(self, host: str, port: int) -> Place:
        """How a node that is announced so is reached; the first pair that fits counts."""
        for (name, number), (to, at) in self.pairs:
            if name.lower() == host.lower() and number in (0, port):
                return to, at or port
        return host, port


@dataclass(frozen=True, slots=True)
class ClusterShard:
    """`seeds`: nodes that tell of the cluster, as they are reached from here. `ids`: those of the
    shard's nodes when it was looked at; without any every node of the cluster will do. `slots`:
    those that it had then. `known`: the ids of all its cluster's nodes then, as far as they are
    known. An endpoint's host and port are its primary's then.
    """

    seeds: tuple[Place, ...]
    ids: tuple[str, ...] = ()
    slots: SlotSet = field(default_factory=SlotSet)
    addresses: AddressMap = AddressMap()
    known: tuple[str, ...] = ()

    def is_told_by(self, told: Topology, before: Topology | None) -> bool:
        """Whether this is told of its own cluster: by the nodes that it had when it was looked at,
        or when it was heard of `before`. True where none are known."""
        names = {*self.ids, *self.known}
        if before is not None:
            names.update(node.id for node in before.nodes)
        return not names or told.has_any(names)

    @property
    def address(self) -> str:
        """`host:port,host:port` of the seeds."""
        return ",".join(node_address(*each) for each in self.seeds)

    def place_of(self, node: Node) -> Place | None:
        """Where a node is reached; None: the cluster does not tell."""
        host, port = self.addresses.there(node.host, node.port)
        return (host, port) if host and 0 < port < 65536 else None

    def found(self, told: Topology) -> Node | None:
        """The shard's primary by what the cluster tells; None: none of its nodes is a primary.

        Of several (a node that has gone to another shard was its own once) one that has slots which
        the shard had counts first, then one that is reached, then the latest configuration.
        """
        heads = self._heads(told)
        primaries = [
            (bool(told.slots_of(node.id) & self.slots), not node.failing, node.epoch, node)
            for node in told.nodes
            if node.id in heads and not node.replica_of
        ]
        return max(primaries, key=lambda each: each[:3])[3] if primaries else None

    def members(self, told: Topology) -> set[str]:
        """The ids of its nodes by now: replicas that it was given since are among them, and those
        that another shard has are not."""
        heads = self._heads(told)
        return heads | {node.id for node in told.nodes if node.replica_of in heads}

    def _heads(self, told: Topology) -> set[str]:
        """Those that could be its primary. A primary whose slots were all the shard's is its own,
        by whichever id; one that has others beside them was another shard's before."""
        by_id = {node.id: node for node in told.nodes}
        found = {name for name in self.ids if name in by_id and not by_id[name].replica_of}
        for shard in told.shards:
            if not shard.slots - self.slots:
                found.add(shard.primary.id)
        return found


def of_shard(shard: Shard, seeds: tuple[Place, ...], addresses: AddressMap) -> ClusterShard:
    """The shard as it is now."""
    ids = (shard.primary.id, *(each.id for each in shard.replicas))
    return ClusterShard(seeds, ids, shard.slots, addresses)


def read_places(text: str, default_port: int) -> tuple[Place, ...]:
    """`HOST[:PORT],HOST[:PORT]…` of a URL. Hosts are not looked at closer. Raises `UsageError`."""
    found: list[Place] = []
    for part in text.split(","):
        match = _PLACE.fullmatch(part)
        if match is None:
            # Not repeated: a password with a comma in it has its rest here.
            raise UsageError(
                "a node of the cluster is not named as HOST:PORT",
                remedy="Expected redis://HOST:PORT,HOST:PORT. Write , in a password as %2C.",
            )
        host, port = _place(match)
        place = (host, port or default_port)
        if place in found:
            raise UsageError(f"the node {node_address(*place)} is named twice")
        found.append(place)
    return tuple(found)


def _place(match: re.Match[str]) -> Place:
    return match["v6"] or match["host"], int(match["port"] or 0)
