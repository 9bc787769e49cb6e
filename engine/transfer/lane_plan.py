"""Which lanes a migration has: made of what the ends tell of themselves.

    source shards (or the one server)   ×   target shards (or the one server)

A lane is a pair whose slots meet, and brings the keys of those slots. Every lane has a link of its
own to its source: one source with three target shards is followed three times, and each time the
keys of one of them are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import EngineError, TransferFailed
from engine.model.cluster_topology import Topology, merge
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedEnd, PlannedLane, endpoint_of, whole
from engine.model.lane_route import Route
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet, slot_tag
from engine.transfer.checks.cluster import ask_topology
from engine.transfer.control_connections import Side
from engine.wire.control_connection import admin

# Of a node's id, in names.
_ID_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Deployment:
    """An end: what was named, and what it tells of its cluster; None: it is none."""

    endpoint: Endpoint
    info: ServerInfo
    told: Topology | None = None

    @property
    def ends(self) -> list[PlannedEnd]:
        """Its shards, or itself."""
        if self.told is None:
            return [PlannedEnd()]
        return [
            PlannedEnd(
                shard.primary.host,
                shard.primary.port,
                (shard.primary.id, *(each.id for each in shard.replicas)),
                shard.slots,
            )
            for shard in self.told.shards
        ]


@dataclass(frozen=True, slots=True)
class LaneEnds:
    """A lane's ends, as they are dialled, and its route."""

    source: Endpoint
    target: Endpoint
    route: Route


async def look(side: Side, endpoint: Endpoint, settings: TransferSettings) -> Deployment:
    """Ask an end what it is; of a cluster each primary that answers, for only those that take part
    in the move of a slot tell of it. Raises `LinkError`, `AuthError`, `ServerError`,
    `ProtocolFault`."""
    limit = settings.connect_timeout
    async with admin(endpoint.of_primary, timeout=limit, fault=side) as end:
        info = await end.info()
        told = await ask_topology(end) if info.mode == "cluster" else None
    if told is None:
        return Deployment(endpoint, info)

    async def view(host: str, port: int) -> Topology | None:
        try:
            at = endpoint.at(*settings.addresses.there(host, port))
            async with admin(at, timeout=limit, fault=side, straight=True) as end:
                found = await ask_topology(end)
            # It may be another cluster's by now, that has this address.
            return found if found.has_any(each.id for each in told.nodes) else None
        except EngineError:
            return None

    heads = [each.primary for each in told.shards if each.primary.id != told.me]
    views = await asyncio.gather(*(view(each.host, each.port) for each in heads))
    return Deployment(endpoint, info, merge([told, *(each for each in views if each is not None)]))


def plan(source: Deployment, target: Deployment) -> tuple[PlannedLane, ...]:
    """The lanes from one to the other; none where neither is a cluster: then there is one, without
    a name.

    Raises `TransferFailed` where a slot of a cluster has no node.
    """
    for each in (source, target):
        if each.told is None and each.endpoint.cluster is not None:
            raise TransferFailed(
                f"at least one server of {each.endpoint.address} is not a node of a cluster",
                remedy="Name nodes of one cluster, or one server alone.",
                fault="user",
            )
    if source.told is None and target.told is None:
        return ()
    for side, each in (("source", source), ("target", target)):
        if each.told is not None and (missing := each.told.missing):
            raise TransferFailed(
                f"no node of the {side}'s cluster has the slots {missing.words}",
                remedy="CLUSTER ADDSLOTSRANGE gives them to one.",
                fault="user",
            )
    pairs = [
        (one, other, slots)
        for one in source.ends
        for other in target.ends
        if (slots := one.slots & other.slots)
    ]
    names = _names([(one, other) for one, other, _ in pairs])
    return tuple(
        # The slot is one for all lanes to a shard, whoever made them: what another migration has
        # left there is found.
        PlannedLane(name, slots, one, other, _own_slot(other, target) if other.ids else -1)
        for name, (one, other, slots) in zip(names, pairs, strict=True)
    )


def ends_of(
    lanes: Sequence[PlannedLane], source: Endpoint, target: Endpoint, settings: TransferSettings
) -> list[LaneEnds]:
    """The lanes as they are run, in their order; `source` and `target` are the migration's ends,
    with credentials."""
    addresses = settings.addresses
    sources, targets = ([each.source for each in lanes], [each.target for each in lanes])
    led: set[tuple[str, ...]] = set()
    found = []
    for lane in lanes:
        route = Route(
            lane=lane.name,
            slots=lane.slots,
            from_cluster=bool(lane.source.ids),
            to_cluster=bool(lane.target.ids),
            tag=tag_of(lane),
            leads=lane.source.ids not in led,
            shared_source=sources.count(lane.source) > 1,
            shared_target=targets.count(lane.target) > 1,
            share=len(lane.slots) / len(lane.source.slots),
        )
        led.add(lane.source.ids)
        ends = (
            endpoint_of(lane.source, source, _distinct(sources), addresses),
            endpoint_of(lane.target, target, _distinct(targets), addresses),
        )
        found.append(LaneEnds(*ends, route))
    return found


def targets_of(
    lanes: Sequence[PlannedLane], target: Endpoint, settings: TransferSettings
) -> list[Endpoint]:
    """The target's servers, each once: the primaries of its shards, or itself."""
    ends = list(dict.fromkeys(each.target for each in lanes))
    return [endpoint_of(each, target, ends, settings.addresses) for each in ends] or [target]


def wholes(
    lanes: Sequence[PlannedLane], ends: Mapping[Side, Endpoint], settings: TransferSettings
) -> dict[Side, Endpoint]:
    """The migration's ends by any of the nodes that were known when its lanes were planned."""
    planned: dict[Side, list[PlannedEnd]] = {
        "source": [each.source for each in lanes],
        "target": [each.target for each in lanes],
    }
    return {
        side: whole(end, _distinct(planned[side]), settings.addresses) for side, end in ends.items()
    }


def tag_of(lane: PlannedLane) -> str:
    """The hash tag of the engine's own keys on the lane's target; empty: they have none."""
    return tag_in(lane.own_slot)


def tag_in(own_slot: int) -> str:
    """The same, by the slot that they are in; -1: the target is no cluster."""
    return slot_tag(own_slot) if own_slot >= 0 else ""


def _own_slot(end: PlannedEnd, target: Deployment) -> int:
    """The slot of a shard in which the engine's own keys are: the last one that stays there, for
    tools that move some of a shard's slots begin with the first."""
    moving = () if target.told is None else target.told.moves
    stays = end.slots - SlotSet.of(move.slot for move in moving)
    return (stays or end.slots).ranges[-1][1]


def unfit(lanes: Sequence[PlannedLane], source: Deployment, target: Deployment) -> Iterator[str]:
    """What has changed since the lanes were planned, so that they are not the way from one end to
    the other any more; a line each."""
    for side, now, ends in (
        ("source", source, [each.source for each in lanes]),
        ("target", target, [each.target for each in lanes]),
    ):
        planned = _distinct(ends)
        was = bool(planned[0].ids)
        if was != (now.told is not None):
            words = "was a cluster, and is a single server now"
            if not was:
                words = "was a single server, and is a cluster now"
            yield f"the {side} {words}"
            continue
        if now.told is None:
            continue
        known = {name for end in planned for name in end.ids}
        if not known & {node.id for node in now.told.nodes}:
            yield f"the {side} is another cluster now: it has none of the nodes that it had"


def _names(pairs: Sequence[tuple[PlannedEnd, PlannedEnd]]) -> list[str]:
    """`1a2b3c4d-5e6f7a8b`, by the ids of the primaries; of one alone where the other end is no
    cluster. Each is unique."""
    for length in (_ID_SHOWN, 2 * _ID_SHOWN):
        names = ["-".join(each.ids[0][:length] for each in pair if each.ids) for pair in pairs]
        if len(set(names)) == len(names):
            break
    return names


def _distinct(ends: Sequence[PlannedEnd]) -> list[PlannedEnd]:
    return list(dict.fromkeys(ends))
