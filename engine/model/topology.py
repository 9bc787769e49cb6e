"""A cluster as one of its nodes tells it: shards, their slots, and what is wrong with it.

Two replies are put together. CLUSTER SLOTS has the addresses by which clients reach the nodes
(`cluster-preferred-endpoint-type`, announced and TLS ports); CLUSTER NODES has all nodes, those
that fail, and the slots that are being moved. Redis: cluster.c, `genClusterDescription` and
`clusterReplyMultiBulkSlots`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.model.sentinel_group import node_address
from engine.model.slots import ALL_SLOTS, SlotSet


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `host` is empty where the cluster tells no address by which it can be reached;
    `failing`: other nodes do not reach it."""

    id: str
    host: str
    port: int
    replica_of: str = ""
    failing: bool = False

    @property
    def address(self) -> str:
        """`host:port`, for people; the node's id where it has none."""
        return node_address(self.host, self.port) if self.host else f"node {self.id[:8]}"


@dataclass(frozen=True, slots=True)
class Shard:
    """A primary with slots, and its replicas."""

    primary: Node
    slots: SlotSet
    replicas: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """A slot that is being moved: `there` is the id of the node at the other side; `importing`: it
    comes to the node that was asked, else it goes away."""

    slot: int
    there: str
    importing: bool


@dataclass(frozen=True, slots=True)
class Topology:
    """`me` is the id of the node that was asked; `moves` are those that it takes part in."""

    me: str
    nodes: tuple[Node, ...]
    shards: tuple[Shard, ...]
    moves: tuple[Move, ...] = ()

    @property
    def covered(self) -> SlotSet:
        """The slots that a node has."""
        found = SlotSet()
        for shard in self.shards:
            found |= shard.slots
        return found

    @property
    def missing(self) -> SlotSet:
        """The slots that no node has."""
        return ALL_SLOTS - self.covered

    def node(self, name: str) -> Node | None:
        """The node of this id."""
        return next((node for node in self.nodes if node.id == name), None)

    def shard_of(self, slot: int) -> Shard | None:
        """The shard that has the slot."""
        return next((shard for shard in self.shards if slot in shard.slots), None)

    @property
    def problems(self) -> Iterator[str]:
        """What keeps its data from being moved as a whole, a line each."""
        if missing := self.missing:
            yield f"no node has the slots {missing.words}"
        for shard in self.shards:
            if shard.primary.failing:
                yield f"{shard.primary.address} is not reached by the other nodes ({shard.slots})"
            if not shard.primary.host:
                yield f"the cluster tells no address of {shard.primary.address} ({shard.slots})"
        for move in self.moves:
            node = self.node(move.there)
            other = node.address if node is not None else f"node {move.there[:8]}"
            way = f"from {other}" if move.importing else f"to {other}"
            yield f"the slot {move.slot} is being moved {way}"


def read(slots: Any, nodes: Any, asked: str) -> Topology:
    """The replies to CLUSTER SLOTS and CLUSTER NODES of one node, which was reached at the host
    `asked`: that stands for its own address where it does not know it.

    Raises `ValueError` for what is no such reply.
    """
    if not isinstance(nodes, bytes) or not isinstance(slots, list):
        raise ValueError("not a cluster's replies")
    places = _places(slots, asked)
    found: list[Node] = []
    owned: dict[str, SlotSet] = {}
    moves: list[Move] = []
    me = ""
    for line in nodes.decode("utf-8", "replace").splitlines():
        fields = line.split(" ")
        if len(fields) < 8:
            raise ValueError(f"not a line of CLUSTER NODES: {line[:80]!r}")
        name, address, flags = fields[0], fields[1], set(fields[2].split(","))
        if "noaddr" in flags or "handshake" in flags:
            continue
        if "myself" in flags:
            me = name
        host, port = places.get(name) or _bus_address(address, asked if "myself" in flags else "")
        failing = bool(flags & {"fail", "fail?"})
        above = fields[3] if fields[3] != "-" else ""
        found.append(Node(name, host, port, above, failing))
        ranges = []
        for part in fields[8:]:
            if part.startswith("["):
                moves.append(_move(part))
            elif part:
                first, _, last = part.partition("-")
                ranges.append((int(first), int(last or first)))
        if ranges:
            owned[name] = SlotSet(tuple(ranges))
    by_name = {node.id: node for node in found}
    shards = [
        Shard(by_name[name], of_node, tuple(node for node in found if node.replica_of == name))
        for name, of_node in owned.items()
    ]
    shards.sort(key=lambda shard: shard.slots.ranges)
    return Topology(me, tuple(found), tuple(shards), tuple(moves))


def _places(slots: list[Any], asked: str) -> dict[str, tuple[str, int]]:
    """By id: where clients reach a node; none before Redis 4.0, which tells no ids."""
    found = {}
    for _, _, *nodes in slots:
        for host, port, *more in nodes:
            if more:
                # None is the address that was dialled; "" a node that does not know its own; "?"
                # one without a name where names are to be told.
                text = asked if host in (None, b"") else host.decode()
                found[more[0].decode()] = ("" if text == "?" else text, int(port))
    return found


def _bus_address(text: str, asked: str) -> tuple[str, int]:
    """`ip:port@bus[,hostname…]` of CLUSTER NODES; `asked` for a node that does not know its ip."""
    host, _, port = text.partition(",")[0].partition("@")[0].rpartition(":")
    return host or asked, int(port)


def _move(text: str) -> Move:
    """`[93->-ID]` or `[93-<-ID]`."""
    inner = text.strip("[]")
    importing = "-<-" in inner
    slot, _, there = inner.partition("-<-" if importing else "->-")
    return Move(int(slot), there, importing)
