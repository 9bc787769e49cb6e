"""The preflight where an end is a cluster: each cluster as a whole, and each check on every shard.

Source and target shards are paired so that each of them is in a pair, and every pair is looked at
as two servers are; what the pairs have found is put together, check by check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.errors import EngineError, UsageError
from engine.model import cluster_topology
from engine.model.cluster_shard import Place
from engine.model.cluster_topology import Node, Topology
from engine.model.endpoint import Endpoint
from engine.model.group_shards import GroupShard, shards_of
from engine.model.lane_plan import PlannedLane
from engine.model.server import ServerInfo
from engine.model.setting_conflicts import cluster_objection
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.transfer import lane_plan
from engine.transfer.checks import cluster as checks
from engine.transfer.checks.check_result import Check, Side, failed
from engine.transfer.checks.server_pair import check_memory
from engine.transfer.cluster_node import ClusterNode
from engine.transfer.lane_plan import Deployment, LaneEnds

# Pairs that are looked at beside each other.
_PAIRS_AT_ONCE = 4
_SHOWN = 3
_OUTCOMES = ("pass", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Paired:
    """What was found of two servers, and what they say of themselves."""

    checks: Sequence[Check]
    source: ServerInfo | None = None
    target: ServerInfo | None = None


Pair = Callable[[LaneEnds, TransferSettings], Awaitable[Paired]]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of both ends. `lanes`: those that a migration has; `shards`: of the target."""

    checks: Sequence[Check]
    lanes: tuple[PlannedLane, ...] = ()
    shards: tuple[GroupShard, ...] = ()


async def preflight_of_clusters(
    ends: Mapping[Side, Deployment], settings: TransferSettings, pair: Pair
) -> Found:
    """Look at both ends, of which one at least tells of a cluster. Raises nothing for what it
    finds."""
    # 1. Each cluster as a whole.
    clusters = {side: each for side, each in ends.items() if each.told is not None}
    surveys = dict(
        zip(
            clusters,
            await asyncio.gather(
                *(_survey(side, each, settings) for side, each in clusters.items())
            ),
            strict=True,
        )
    )
    found: list[Check] = []
    for side, survey in surveys.items():
        found += [checks.check_cluster(side, survey), checks.check_named(side, survey)]
        if (silent := checks.check_reachable(side, survey)) is not None:
            found.append(silent)
    told = {side: survey.told for side, survey in surveys.items()}
    if len(told) == len(ends) and (one := checks.check_apart(told)) is not None:
        found.append(one)
    if (objection := cluster_objection(settings)) is not None:
        found.append(
            failed(
                "following",
                f"no: {objection}; a migration from or to a cluster follows its source",
                "Leave the option out, or move from and to servers with cluster mode disabled.",
            )
        )
    shards: tuple[GroupShard, ...] = ()
    if "target" in told:
        shards = shards_of(told["target"], settings.addresses)
    if any(each.outcome == "fail" for each in found):
        return Found(found, shards=shards)
    # 2. Every shard.
    made = {
        side: replace(each, told=told[side]) if side in told else each
        for side, each in ends.items()
    }
    lanes = lane_plan.plan(made["source"], made["target"])
    routes = lane_plan.ends_of(lanes, made["source"].endpoint, made["target"].endpoint, settings)
    pairs = list(_paired(routes))
    limit = asyncio.Semaphore(_PAIRS_AT_ONCE)
    follows = replace(settings, source_type="replica")

    async def looked_at(each: LaneEnds) -> Paired:
        async with limit:
            return await pair(each, follows)

    looked = await asyncio.gather(*map(looked_at, pairs))
    left_out = {f"{side}-mode" for side in told}
    labelled = [
        (_label(check.name, each), check)
        for each, result in zip(pairs, looked, strict=True)
        for check in result.checks
        if check.name not in left_out
    ]
    found += _together(labelled)
    both = [(each, result) for each, result in zip(pairs, looked, strict=True)]
    sources = {each.source: result.source for each, result in both if result.source is not None}
    targets = {each.target: result.target for each, result in both if result.target is not None}
    if sources and targets:
        memory = check_memory(_sum(sources), _sum(targets), settings)
        found = [memory if check.name == memory.name else check for check in found]
    return Found(found, lanes, shards)


async def _survey(side: Side, end: Deployment, settings: TransferSettings) -> checks.Surveyed:
    """Ask every primary, and the nodes that were named."""
    told, endpoint, addresses = end.told, end.endpoint, settings.addresses
    assert told is not None
    named = checks.named_places(endpoint)
    primaries: dict[Place, bool] = {}
    heads: list[tuple[Node, Place]] = []
    for shard in told.shards:
        host, port = addresses.there(shard.primary.host, shard.primary.port)
        if host:
            primaries[host, port] = shard.primary.failing
            heads.append((shard.primary, (host, port)))
    places = list(dict.fromkeys([*primaries, *named]))

    async def ask(place: Place) -> tuple[Topology | EngineError, bool, SlotSet]:
        try:
            node = ClusterNode(endpoint.at(*place), side, settings.connect_timeout)
        except UsageError as error:
            return error, False, SlotSet()
        try:
            said = await node.ask()
            return said, node.refuses, SlotSet.of(node.under_way)
        finally:
            await node.close()

    answers = dict(zip(places, await asyncio.gather(*map(ask, places)), strict=True))
    views = [told]
    ids = {node.id for node in told.nodes}
    for said, _, _ in answers.values():
        # (One of another cluster is told of, and no part of this one.)
        if isinstance(said, Topology) and said.me in ids:
            views.append(said)
    moving = SlotSet()
    for _, _, slots in answers.values():
        moving |= slots
    return checks.Surveyed(
        cluster_topology.merge(views),
        {place: answers[place][0] for place in named},
        {
            place: error
            for place, failing in primaries.items()
            if not failing and isinstance(error := answers[place][0], EngineError)
        },
        [place for place in primaries if answers[place][1]],
        moving.words,
        [
            (node, place)
            for node, place in heads
            if isinstance(said := answers[place][0], Topology) and said.me != node.id
        ],
    )


def _paired(lanes: Sequence[LaneEnds]) -> Iterator[LaneEnds]:
    """Some of the lanes, so that each end is in one."""
    sources: set[Endpoint] = set()
    targets: set[Endpoint] = set()
    for each in lanes:
        if each.source not in sources or each.target not in targets:
            sources.add(each.source)
            targets.add(each.target)
            yield each


def _label(name: str, pair: LaneEnds) -> str:
    """Whose check it is."""
    if name.startswith("source-"):
        return pair.source.address
    if name.startswith("target-"):
        return pair.target.address
    return f"{pair.source.address} → {pair.target.address}"


def _together(found: Sequence[tuple[str, Check]]) -> Iterator[Check]:
    """One of each name: what is worst of it, and where that was found."""
    by_name: dict[str, dict[str, Check]] = {}
    for label, check in found:
        of_name = by_name.setdefault(check.name, {})
        before = of_name.get(label)
        if before is None or _rank(check) > _rank(before):
            of_name[label] = check
    for of_name in by_name.values():
        worst = max(of_name.values(), key=_rank)
        alike = {label: each for label, each in of_name.items() if each.outcome == worst.outcome}
        if len({each.figure for each in alike.values()}) == 1:
            whose = "" if len(alike) == len(of_name) else f"{', '.join([*alike][:_SHOWN])}: "
            yield replace(worst, figure=f"{whose}{worst.figure}")
        elif worst.outcome == "pass":
            label, first = next(iter(alike.items()))
            others = f"{label}; the same check passes on {len(alike) - 1} others"
            yield replace(first, figure=f"{first.figure} ({others})")
        else:
            shown = [f"{label}: {each.figure}" for label, each in [*alike.items()][:_SHOWN]]
            if more := len(alike) - len(shown):
                shown.append(f"and {more} more")
            remedies = dict.fromkeys(each.remedy for each in alike.values())
            yield replace(worst, figure="; ".join(shown), remedy=" ".join(remedies))


def _rank(check: Check) -> int:
    return _OUTCOMES.index(check.outcome)


def _sum(infos: Mapping[Endpoint, ServerInfo]) -> ServerInfo:
    """The memory of several servers as that of one; 0 where one does not tell."""
    known = list(infos.values())
    first = known[0]

    def total(name: str) -> int:
        values = [getattr(each, name) for each in known]
        return sum(values) if all(values) else 0

    return replace(
        first,
        used_memory=total("used_memory"),
        used_memory_dataset=total("used_memory_dataset"),
        maxmemory=total("maxmemory"),
        total_system_memory=max(each.total_system_memory for each in known),
        keyspace=tuple(entry for each in known for entry in each.keyspace),
    )
