"""A lane as it is planned, and kept in the state: from which shard of the source to which one of
the target, and with which slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.model.cluster_shard import AddressMap, ClusterShard, Place
from engine.model.endpoint import Endpoint
from engine.model.sentinel_group import node_address
from engine.model.slots import ALL_SLOTS, SlotSet

# So many nodes of a cluster are kept beside those that were named.
_SEEDS_MOST = 8


@dataclass(frozen=True, slots=True)
class PlannedEnd:
    """A lane's end. `ids` are those of the shard's nodes, none where the end is no cluster; then it
    is the migration's own, and nothing else has a meaning. `host`, `port`: where the shard's
    primary was; `slots`: those that it had."""

    host: str = ""
    port: int = 0
    ids: tuple[str, ...] = ()
    slots: SlotSet = ALL_SLOTS

    @property
    def address(self) -> str:
        """`host:port`, for people; the beginning of the primary's id where no address is known."""
        return node_address(self.host, self.port) if self.host else f"node {self.ids[0][:8]}"

    @property
    def words(self) -> str:
        """`host:port (slots)`, for people."""
        return f"{self.address} ({self.slots.words})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {
            "host": self.host,
            "port": self.port,
            "ids": list(self.ids),
            "slots": str(self.slots),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PlannedEnd:
        """Inverse of `to_dict`."""
        ids, slots = tuple(data["ids"]), SlotSet.parse(data["slots"])
        return cls(data["host"], data["port"], ids, slots)


@dataclass(frozen=True, slots=True)
class LeftKeys:
    """The engine's own keys of a lane that is over, or that has them in another slot by now: `lane`
    is its name, and `own_slot` where they were. A failover may bring back what was removed."""

    token: str
    lane: str
    own_slot: int


@dataclass(frozen=True, slots=True)
class PlannedLane:
    """`name` tells it from the others of its migration, and stays the same whatever becomes of the
    shards' primaries. `slots` are those that both ends had. `own_slot` is the one in which the
    engine's own keys are on the target, -1 where that is no cluster. `late`: it was planned when
    slots had moved, and other lanes brought their keys before. What those knew of the target in
    these slots: `held_before` and `had_keys`, as in `OnlineCheckpoint`. `left`: what is to be
    removed before the counts of keys say anything; of all lanes, kept with the first."""

    name: str
    slots: SlotSet
    source: PlannedEnd
    target: PlannedEnd
    own_slot: int = -1
    late: bool = False
    held_before: bool = False
    had_keys: bool = False
    left: tuple[LeftKeys, ...] = ()

    @property
    def title(self) -> str:
        """What people read for it, in events, the log, the API and on the page: where the primaries
        of its shards were when it was planned, `10.0.0.1:6379->10.0.1.1:6379`; that of one where
        the other end is no cluster."""
        return "->".join(each.address for each in (self.source, self.target) if each.ids)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {
            "name": self.name,
            "slots": str(self.slots),
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
            "own_slot": self.own_slot,
            "late": self.late,
            "held_before": self.held_before,
            "had_keys": self.had_keys,
            "left": [[each.token, each.lane, each.own_slot] for each in self.left],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PlannedLane:
        """Inverse of `to_dict`."""
        source, target = (PlannedEnd.from_dict(data[side]) for side in ("source", "target"))
        return cls(
            data["name"],
            SlotSet.parse(data["slots"]),
            source,
            target,
            data.get("own_slot", -1),
            late=data.get("late", False),
            held_before=data.get("held_before", False),
            had_keys=data.get("had_keys", False),
            left=tuple(LeftKeys(*each) for each in data.get("left", ())),
        )


def endpoint_of(
    end: PlannedEnd, named: Endpoint, ends: Sequence[PlannedEnd], addresses: AddressMap
) -> Endpoint:
    """The end as it is dialled: the present primary of its shard. `named` is the migration's end,
    with credentials; `ends` are those of all its lanes at this side, whose nodes tell of the
    cluster as well."""
    if not end.ids:
        return named
    host, port = addresses.there(end.host, end.port)
    known = tuple(sorted({name for each in ends for name in each.ids}))
    seeds = _seeds(named, ends, addresses)
    shard = ClusterShard(seeds, end.ids, end.slots, addresses, known)
    return replace(named.at(host, port), cluster=shard, from_replica=named.from_replica)


def whole(named: Endpoint, ends: Sequence[PlannedEnd], addresses: AddressMap) -> Endpoint:
    """A side of the migration by any of the nodes that were known of it."""
    if not ends[0].ids:
        return named
    seeds = _seeds(named, ends, addresses)
    shard = ClusterShard(seeds)
    return replace(named.at(*seeds[0]), cluster=shard, from_replica=named.from_replica)


def _seeds(named: Endpoint, ends: Sequence[PlannedEnd], addresses: AddressMap) -> tuple[Place, ...]:
    seeds: dict[Place, None] = {}
    if named.cluster is not None:
        seeds = dict.fromkeys(named.cluster.seeds)
    elif named.unix_path is None:
        seeds = {(named.host, named.port): None}
    named_first = len(seeds)
    for each in ends:
        if len(seeds) < named_first + _SEEDS_MOST:
            seeds[addresses.there(each.host, each.port)] = None
    return tuple(seeds)
