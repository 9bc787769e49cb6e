"""A cluster as one of its nodes tells it: shards, their slots, and what is wrong with it.

Two replies are put together. CLUSTER SLOTS has the addresses by which clients reach the nodes
(`cluster-preferred-endpoint-type`, announced and TLS ports); CLUSTER NODES has all nodes, those
that fail, and the slots that are being moved. Redis: cluster.c, `genClusterDescription` and
`clusterReplyMultiBulkSlots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.model.sentinel_group import node_address
from engine.model.slots import ALL_SLOTS, SlotSet


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `host` is empty where the cluster tells no address by which it can be reached;
    `failing`: other nodes do not reach it. `epoch`: of two that claim a slot the one with the
    later configuration has it."""

    id: str
    host: str
    port: int
    replica_of: str = ""
    failing: bool = False
    epoch: int = 0

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

    def has_any(self, names: Iterable[str]) -> bool:
        """Whether one of the nodes of these ids is among its own. A node that was led to in place
        of one of these, and is of another cluster, knows none of them."""
        return not {node.id for node in self.nodes}.isdisjoint(names)

    def node(self, name: str) -> Node | None:
        """The node of this id."""
        return next((node for node in self.nodes if node.id == name), None)

    def shard_of(self, slot: int) -> Shard | None:
        """The shard that has the slot."""
        return next((shard for shard in self.shards if slot in shard.slots), None)

    def slots_of(self, name: str) -> SlotSet:
        """The slots of the node of this id; none of a replica."""
        return next((each.slots for each in self.shards if each.primary.id == name), SlotSet())

    @property
    def problems(self) -> Iterator[str]:
        """What keeps its data from being moved as a whole, a line each."""
        if missing := self.missing:
            yield f"no node has the slots {missing.words}"
        for shard in self.shards:
            if shard.primary.failing:
                yield f"{shard.primary.address} is not reached by the other nodes ({shard.slots})"
            if not shard.primary.host:
                yield f"the cluster announces no address of {shard.primary.address} ({shard.slots})"
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
        epoch = int(fields[6]) if fields[6].isdigit() else 0
        found.append(Node(name, host, port, above, failing, epoch))
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


def merge(told: Sequence[Topology]) -> Topology:
    """One cluster as several of its nodes tell it, one at least: a node counts by what it says of
    itself, and else by what those of the latest configuration say; a slot belongs to the latest
    configuration of those that claim it. `me` and addresses are as the first one has them."""
    if len(told) == 1:
        return told[0]
    nodes: dict[str, tuple[bool, int, Node]] = {}
    for each in told:
        for node in each.nodes:
            rank = (node.id == each.me, node.epoch)
            if node.id not in nodes or rank > nodes[node.id][:2]:
                nodes[node.id] = (*rank, node)
    claims: dict[str, tuple[bool, int, SlotSet]] = {}
    for each in told:
        for name in {shard.primary.id for shard in each.shards} | {each.me}:
            known = each.node(name)
            rank = (name == each.me, known.epoch if known is not None else 0)
            if name not in claims or rank > claims[name][:2]:
                claims[name] = (*rank, each.slots_of(name))
    taken, shards = SlotSet(), []
    for name, (_, _, slots) in sorted(claims.items(), key=lambda each: -each[1][1]):
        left = slots - taken
        taken |= left
        if not left or name not in nodes:
            continue
        primary = nodes[name][2]
        of_it = [node for _, _, node in nodes.values() if node.replica_of == name]
        # A node that is cut off calls all others failing.
        said = [node.failing for each in told for node in each.nodes if node.id == name != each.me]
        failing = 2 * sum(said) > len(said)
        shards.append(Shard(replace(primary, failing=failing), left, tuple(of_it)))
    shards.sort(key=lambda shard: shard.slots.ranges)
    moves = dict.fromkeys(move for each in told for move in each.moves)
    return Topology(
        told[0].me, tuple(node for _, _, node in nodes.values()), tuple(shards), tuple(moves)
    )


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
