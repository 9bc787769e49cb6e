"""Look before the leap: can this transfer run, and what should be known first?

A preflight moves nothing, and writes nothing to the source. On the target it writes the probe
alone, and only when the two are known to be different servers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from engine._native import key_slot
from engine.errors import EngineError, LinkError
from engine.model.cluster_topology import Topology
from engine.model.endpoint import Endpoint
from engine.model.lane_route import ONLY, Route
from engine.model.server import ServerInfo
from engine.model.setting_conflicts import followed_by_rules_objection, following_objection
from engine.model.settings import TransferSettings
from engine.transfer.async_helpers import all_cancelled
from engine.transfer.checks import cluster
from engine.transfer.checks.check_result import (
    Check,
    Outcome,
    Preflight,
    Side,
    failed,
    not_skipped,
    passed,
    skipped,
    warned,
)
from engine.transfer.checks.databases import (
    check_chosen,
    check_existing,
    check_free,
    check_room,
    moved_databases,
)
from engine.transfer.checks.differing_settings import check_hyperloglogs, check_script_effects
from engine.transfer.checks.endpoint import (
    FAR_SECONDS,
    check_server,
    check_users,
    greet,
    unreachable,
)
from engine.transfer.checks.functions_and_indexes import check_besides
from engine.transfer.checks.modules import ask_module_types, check_modules
from engine.transfer.checks.permission_keys import SampleKeys, sample_keys
from engine.transfer.checks.permissions import (
    FOLLOWING,
    Rights,
    check_comparison,
    check_following,
    check_rights,
    replica_objection,
)
from engine.transfer.checks.probe_write import check_clock, check_clocks, check_probe
from engine.transfer.checks.replication_chain import lineage
from engine.transfer.checks.required_commands import Way
from engine.transfer.checks.scripts_past_write_block import check_scripts
from engine.transfer.checks.server_pair import check_apart, check_eviction, check_memory, check_pair
from engine.transfer.checks.source_accepts_writes import check_writes
from engine.transfer.checks.spool import check_spool
from engine.transfer.checks.target_replicas import check_durability
from engine.transfer.checks.value_encodings import check_types
from engine.transfer.checks.value_limit import check_bulk_limit
from engine.transfer.cluster_preflight import Paired, preflight_of_clusters
from engine.transfer.graphs_in_parts import REMEDY as GRAPHS_REMEDY
from engine.transfer.graphs_in_parts import in_parts
from engine.transfer.lane_plan import Deployment, LaneEnds
from engine.transfer.leftovers import NAME as LEFTOVERS
from engine.transfer.leftovers import check_leftovers
from engine.wire import source_replica
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT, ask_bulk_limit
from engine.wire.control_connection import Admin, admin, all_of

if TYPE_CHECKING:
    from engine.sources.rdb_file import Survey

__all__ = ["Check", "Outcome", "Preflight", "preflight"]

T = TypeVar("T")
# Pairs of connections to ends far away.
_PAIRS_FAR = 8
_LOAD_IT_FIRST = (
    "A file is moved into a server with cluster mode disabled: load it into one, and move from "
    "that one into the cluster."
)


async def preflight(source: Endpoint, target: Endpoint, settings: TransferSettings) -> Preflight:
    """Run every check that can be run; a failed one does not stop the others, and one that
    `settings.skip_checks` names is a warning if it fails, unless lanes of a cluster cannot be
    planned like that.

    Bounded in time by `settings.connect_timeout` for connecting and for each reply; a file is read
    to its end. Raises nothing for what it finds: an unreachable server is a failed check.
    """
    source, target = settings.named("source", source), settings.named("target", target)
    source_replica.begin()
    source_replica.note(source, settings.named_nodes, settings.detached_nodes)
    if source.rdb_path is not None or source.aof_path is not None:
        found = await _preflight_of_file(source, target, settings)
    else:
        found = await _preflight_of_servers(source, target, settings)
    asked = settings.skip_checks
    told = not_skipped if found.unplanned else skipped
    checks = tuple(told(c) if c.name in asked else c for c in found.checks)
    return replace(found, checks=checks)


@dataclass(frozen=True, slots=True)
class _Met:
    """An end that was reached, or not, and what it says of itself."""

    checks: list[Check]
    end: Admin | None = None
    info: ServerInfo | None = None
    round_trip: float = 0.0
    told: Topology | None = None
    """Its cluster, where it is a node of one."""


_Result = Awaitable[Check | Iterable[Check] | None]
_Work = Callable[[Admin, Admin], _Result]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """How the source will be read, and keys of the kind that are moved."""

    way: Way
    keys: SampleKeys
    checks: list[Check]
    rights: Mapping[Side, Rights]
    """What the users may do of what following takes, as far as it was asked."""


_WorkOfWay = Callable[[Admin, Admin, _Chosen], _Result]


async def _preflight_of_servers(
    source: Endpoint, target: Endpoint, settings: TransferSettings
) -> Preflight:
    ends: dict[Side, Deployment] = {}

    async def pair(lane: LaneEnds, settings: TransferSettings) -> Paired:
        return await _preflight_of_pair(lane.source, lane.target, settings, lane.route)

    paired = await _preflight_of_pair(source, target, settings, None, ends)
    alone = [
        cluster.check_one_server(side, each.endpoint)
        for side, each in ends.items()
        if each.told is None and each.endpoint.cluster is not None
    ]
    if alone:
        return Preflight((*paired.checks, *alone), engine_of(paired.target), unplanned=True)
    if len(ends) < 2 or all(each.told is None for each in ends.values()):
        # (Of a cluster whose other end does not answer no lane is known.)
        unplanned = bool(ends) or source.cluster is not None or target.cluster is not None
        return Preflight(tuple(paired.checks), engine_of(paired.target), unplanned=unplanned)
    # 2. Clusters: what they are as a whole, and then each shard.
    found = await preflight_of_clusters(ends, settings, pair)
    of_clusters = {check.name for check in found.checks}
    checks = [check for check in paired.checks if check.name not in of_clusters]
    both = (*checks, *found.checks)
    engine = engine_of(paired.target)
    return Preflight(both, engine, found.lanes, found.shards, unplanned=not found.lanes)


async def _preflight_of_pair(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    route: Route | None,
    ends: dict[Side, Deployment] | None = None,
) -> Paired:
    """Look at two servers, which the lane of this route is to lead from and to. Where there is none
    yet, and one of them is a cluster's node, nothing more is asked than what they are, which is in
    `ends` then."""
    async with AsyncExitStack() as stack:
        # 1. Each end by itself.
        sides: tuple[tuple[Side, Endpoint], ...] = (("source", source), ("target", target))
        met = await asyncio.gather(
            *(_meet(side, endpoint, settings, stack) for side, endpoint in sides)
        )
        one, other = met
        checks = [*one.checks, *other.checks]
        if one.end is None or other.end is None or one.info is None or other.info is None:
            reached = {
                side: each.end for (side, _), each in zip(sides, met, strict=True) if each.end
            }
            known = {
                side: each.info for (side, _), each in zip(sides, met, strict=True) if each.info
            }
            chosen = await _choose_way(reached, known, settings)
            checks += [*chosen.checks, *await _check_rights(reached, known, settings, chosen)]
            checks += await _check_comparing(reached, known, settings, chosen)
            if ends is not None:
                for (side, at), each in zip(sides, met, strict=True):
                    if each.info is not None and each.told is not None:
                        ends[side] = Deployment(at, each.info, each.told)
            return Paired(checks, one.info, other.info)
        several = source.cluster is not None or target.cluster is not None
        are_nodes = one.told is not None or other.told is not None
        if route is None and (several or are_nodes):
            assert ends is not None
            ends["source"] = Deployment(source, one.info, one.told)
            ends["target"] = Deployment(target, other.info, other.told)
            return Paired(checks, one.info, other.info)
        far = max(one.round_trip, other.round_trip) >= FAR_SECONDS
        dialled = (source, one.end), (target, other.end)
        pairs = _Pairs(dialled, settings, stack, _PAIRS_FAR if far else 1)
        infos = one.info, other.info
        checks += await _check_both(source, target, infos, settings, pairs, checks, route or ONLY)
    return Paired(checks, one.info, other.info)


async def _check_both(
    source: Endpoint,
    target: Endpoint,
    both: tuple[ServerInfo, ServerInfo],
    settings: TransferSettings,
    pairs: _Pairs,
    before: Sequence[Check],
    route: Route,
) -> list[Check]:
    """The checks of two ends that have said what they are. Each of them asks for itself, as soon as
    what it depends on is known, and a pair of connections is free."""
    from_info, to_info = both
    infos: dict[Side, ServerInfo] = {"source": from_info, "target": to_info}
    moved = moved_databases(from_info, settings)
    limit = settings.connect_timeout
    tasks: list[asyncio.Future[Any]] = []

    def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        tasks.append(task := asyncio.create_task(work))
        return task

    def ask(work: _Work, name: str = "") -> asyncio.Task[list[Check]]:
        async def asked() -> list[Check]:
            async with pairs.free() as pair:
                return await _found(work(*pair), name)

        return begin(asked())

    def ask_behind(
        work: _WorkOfWay, *, only: Way | None = None, early: bool = True
    ) -> asyncio.Task[list[Check]]:
        """Of the way that is chosen; where it is another one than `only` nothing is asked. `early`:
        of the likely one first, beside the questions that decide; and once more if it is not that
        one."""

        async def asked(known: _Chosen) -> list[Check]:
            if only not in (None, known.way):
                return []
            async with pairs.free() as pair:
                return await _found(work(*pair, known))

        async def asked_early() -> list[Check]:
            await asyncio.wait({likely, chosen}, return_when=asyncio.FIRST_COMPLETED)
            known = likely.result() if likely.done() else await chosen
            found = await asked(known)
            sure = await chosen
            return found if sure.way == known.way else await asked(sure)

        async def asked_behind() -> list[Check]:
            return await asked(await chosen)

        return begin(asked_early() if early else asked_behind())

    likely: asyncio.Future[_Chosen] = asyncio.get_running_loop().create_future()

    async def choose() -> _Chosen:
        async with pairs.free() as (one, other):
            ends: dict[Side, Admin] = {"source": one, "target": other}
            return await _choose_way(ends, infos, settings, likely.set_result)

    async def rights(one: Admin, other: Admin, known: _Chosen) -> list[Check]:
        ends: dict[Side, Admin] = {"source": one, "target": other}
        return await _check_rights(ends, infos, settings, known)

    async def comparing(one: Admin, other: Admin, known: _Chosen) -> list[Check]:
        ends: dict[Side, Admin] = {"source": one, "target": other}
        return await _check_comparing(ends, infos, settings, known)

    async def large_graphs(one: Admin, _: Admin, __: _Chosen) -> Check | None:
        if settings.source_type != "replica" or not (why := await in_parts(one, from_info)):
            return None
        return failed("large-graphs", why, GRAPHS_REMEDY)

    async def by_rules(_: Admin, __: Admin, ___: _Chosen) -> Check | None:
        why = followed_by_rules_objection(settings, from_info.modules)
        remedy = "Use --source-type scan, or move everything."
        return None if why is None else failed(FOLLOWING, f"no: {why}", remedy)

    async def scripts(one: Admin, _: Admin, __: _Chosen) -> Check | None:
        return await check_scripts(one, (await lines)[0], settings)

    async def writes(one: Admin, _: Admin, __: _Chosen) -> Check | None:
        return await check_writes(one, (await lines)[0], limit)

    async def sample() -> SampleKeys:
        return (await chosen).keys

    async def probe() -> list[Check]:
        # Where both are of one replication it would be a write to the source. And nothing that is
        # found on the target is to be the probe.
        await asyncio.wait([lines, *in_target])
        if check_apart(*await lines).outcome != "pass" or not _may_be_tried(before, settings):
            return []
        async with pairs.free() as (_, other):
            probed = check_probe(other, from_info, to_info, sample, tag=route.tag)
            return await _found(probed, "probe")

    ends = (source, from_info), (target, to_info)
    lines = begin(_both(*(lineage(at, info, timeout=limit) for at, info in ends)))
    try:
        # 2. What both must be able to do, which depends on how the source will be read.
        chosen = begin(choose())
        # 3. What has to be asked for.
        types = ask(lambda one, _: check_types(one, from_info, to_info, moved), "value-types")
        modules = ask(lambda one, two: check_modules(one, two, both, moved), "modules")
        slot = key_slot(route.tag.encode())
        own_slot = slot if route.to_cluster else None
        if route.to_cluster:
            in_target = [
                ask(lambda _, two: cluster.check_free(two, slot, settings), "other-migration"),
                ask(lambda _, two: cluster.check_left(two, slot, settings), LEFTOVERS),
                ask(lambda one, _: cluster.check_hot_slot(one)),
            ]
        else:
            in_target = [
                ask(lambda _, two: check_free(two, settings), "other-migration"),
                ask(lambda one, two: check_leftovers(one, two, settings), LEFTOVERS),
            ]
        in_target.append(
            ask(
                lambda _, two: check_existing(two, to_info, moved, settings, slot=own_slot),
                "existing-keys",
            )
        )
        node = route.to_cluster
        room = ask(lambda _, two: check_room(two, moved, node=node), "databases")
        in_target.insert(0, room)
        if settings.databases is not None:
            about = ask(lambda one, _: check_chosen(one, from_info, moved), "chosen-databases")
            in_target.insert(0, about)
        in_target.append(ask(lambda _, two: check_durability(two, settings), "durability"))
        unlike = [
            ask(lambda one, two: check_hyperloglogs(one, two)),
            ask(lambda one, two: check_clocks(one, two), "clocks"),
            ask(
                lambda one, two: check_bulk_limit(one, two, from_info, to_info, settings),
                "value-limit",
            ),
        ]
        of_way = [
            ask_behind(rights, early=False),
            ask_behind(comparing),
            ask_behind(
                lambda one, two, known: check_following(one, two, from_info, settings, known.keys),
                only="replica",
            ),
        ]
        besides = ask_behind(
            lambda one, two, known: check_besides(one, two, to_info, settings, known.way)
        )
        of_source = [
            ask_behind(large_graphs, only="replica"),
            ask_behind(by_rules, only="replica"),
            ask_behind(scripts, only="replica"),
            ask_behind(writes),
            ask_behind(lambda one, _, __: check_script_effects(one, from_info), only="replica"),
        ]
        # 4. The one write.
        tried = begin(probe())
        await asyncio.gather(*tasks)
    finally:
        await all_cancelled(tasks)
    spool = [check_spool(settings)] if chosen.result().way == "replica" else []
    graphs, *others = of_source
    found = [
        chosen.result().checks,
        *(each.result() for each in of_way),
        [check_apart(*lines.result())],
        graphs.result(),
        spool,
        *(each.result() for each in others),
        # What they say of themselves, side by side.
        list(check_pair(from_info, to_info, settings)),
        *(each.result() for each in (types, modules, *in_target, besides, *unlike, tried)),
    ]
    return [check for each in found for check in each]


class _Pairs:
    """Connections to both ends, for checks that ask for themselves.

    `most` pairs are dialled, as they are needed: where each answer takes a while, checks ask beside
    each other. Between near ends one pair serves all of them, one after the other.
    """

    def __init__(
        self,
        first: tuple[tuple[Endpoint, Admin], tuple[Endpoint, Admin]],
        settings: TransferSettings,
        stack: AsyncExitStack,
        most: int,
    ) -> None:
        (self._source, one), (self._target, other) = first
        self._limit = settings.connect_timeout
        self._stack = stack
        self._idle: asyncio.Queue[tuple[Admin, Admin]] = asyncio.Queue()
        self._idle.put_nowait((one, other))
        self._more = most - 1

    @contextlib.asynccontextmanager
    async def free(self) -> AsyncIterator[tuple[Admin, Admin]]:
        """A pair that nothing else uses meanwhile."""
        pair = None
        if self._idle.empty() and self._more > 0:
            self._more -= 1
            # (One that cannot be dialled is done without: the server may take no more clients.)
            with suppress(EngineError):
                one, other = await all_of(
                    self._stack,
                    (
                        admin(self._source, timeout=self._limit, fault="source"),
                        admin(self._target, timeout=self._limit, fault="target"),
                    ),
                )
                pair = one, other
        if pair is None:
            pair = await self._idle.get()
        try:
            yield pair
        finally:
            self._idle.put_nowait(pair)


async def _now(check: Check) -> list[Check]:
    return [check]


async def _both(one: Awaitable[T], other: Awaitable[T]) -> tuple[T, T]:
    first, second = await asyncio.gather(one, other)
    return first, second


async def _found(work: Awaitable[Check | Iterable[Check] | None], name: str = "") -> list[Check]:
    """What a check has found. A server that fails it altogether is a finding too, called `name`;
    without a name it is none."""
    try:
        found = await work
    except EngineError as error:
        return [failed(name, error.message, error.remedy)] if name else []
    if found is None:
        return []
    return [found] if isinstance(found, Check) else list(found)


async def _preflight_of_file(
    source: Endpoint, target: Endpoint, settings: TransferSettings
) -> Preflight:
    """The same for a source that is a file: a snapshot, or an append-only file."""
    # What reads files: servers are asked without it.
    from engine.sources.aof_findings import AofSurvey
    from engine.transfer.checks.aof import (
        check_aof,
        check_commands,
        check_empty,
        check_open_tail,
        check_scripts_allowed,
    )
    from engine.transfer.checks.file import check_contents, check_file, moved_from

    checks: list[Check] = []
    aof = source.aof_path is not None
    async with AsyncExitStack() as stack:
        # 1. The target by itself. Commands come to it as those of a source that is followed.
        met = await _meet("target", target, settings, stack)
        end, info = met.end, met.info
        checks += met.checks
        if info is not None and info.mode == "cluster":
            checks = [each for each in checks if each.name != "target-mode"]
            checks.append(failed("target-mode", "cluster mode is enabled", _LOAD_IT_FIRST))
        if end is not None and info is not None:
            rights = check_rights("target", end, info, settings, "replica" if aof else "scan")
            await _guarded(checks, "target-permissions", rights)
            if aof:
                with suppress(EngineError):
                    checks.extend(await check_scripts_allowed(end, info))
        # 2. The file.
        limit = DEFAULT_BULK_LIMIT
        if end is not None:
            with suppress(EngineError):
                limit = await ask_bulk_limit(end) or limit
        about: list[Check]
        found: Survey | AofSurvey | None
        if aof:
            about, found = await check_aof(source, settings, value_limit=limit)
        else:
            rules = settings.key_rules
            about, found = await check_file(source, value_limit=limit, rules=rules)
        if end is not None:
            # A server that closes idle connections has, meanwhile; the next call dials again.
            with suppress(EngineError):
                await end.pipeline([("PING",)])
        if end is not None and isinstance(found, AofSurvey):
            with suppress(LinkError):
                about = await check_open_tail(end, found) or about
        checks.extend(about)
        types = None
        if found is not None and end is not None and info is not None:
            with suppress(EngineError):
                types = await ask_module_types(end, info)
        if isinstance(found, AofSurvey):
            checks.extend(check_commands(found, info, types))
        elif found is not None:
            checks.extend(check_contents(found, info, settings, types))
        if found is None or end is None or info is None:
            return Preflight(tuple(checks), engine_of(info))
        # 3. The one in the other.
        if isinstance(found, AofSurvey):
            moved = list(found.databases)
            if found.fields:
                with suppress(EngineError):
                    checks.extend(await check_scripts_allowed(end, info, fields=True))
            await _guarded(checks, "existing-keys", check_empty(end))
        else:
            moved = moved_from(found, settings)
            checks.append(check_memory(found.info, info, settings))
            existing = check_existing(end, info, moved, settings)
            await _guarded(checks, "existing-keys", existing)
        checks.append(check_eviction(info))
        await _guarded(checks, "databases", check_room(end, moved))
        await _guarded(checks, "other-migration", check_free(end, settings))
        await _guarded(checks, LEFTOVERS, check_leftovers(None, end, settings))
        await _guarded(checks, "clocks", check_clock(end))
        # 4. The one write.
        if _may_be_tried(checks, settings):
            await _guarded(checks, "probe", check_probe(end, found.info, info))
    return Preflight(tuple(checks), engine_of(info))


def _may_be_tried(checks: Sequence[Check], settings: TransferSettings) -> bool:
    """Whether the probe shows something: a target whose version is refused takes none, and its
    answer would be a second reason, with a remedy that does not help."""
    refused = any(each.name == "target-version" and each.outcome == "fail" for each in checks)
    return "probe" not in settings.skip_checks and not (
        refused and "target-version" not in settings.skip_checks
    )


def engine_of(info: ServerInfo | None) -> str:
    """What a server runs, in the word of the API; empty where it is neither, or did not tell."""
    return "" if info is None or info.fork else info.flavour


async def _meet(
    side: Side,
    endpoint: Endpoint,
    settings: TransferSettings,
    stack: AsyncExitStack,
) -> _Met:
    """Reach an end, and have it say what it is; the checks that this was."""
    checks: list[Check] = []
    try:
        end = await stack.enter_async_context(
            admin(endpoint, timeout=settings.connect_timeout, fault=side)
        )
        checks, round_trip, reply = await greet(side, end)
    except EngineError as error:
        return _Met(list(unreachable(side, endpoint, error)))
    try:
        # (What is refused is asked once more: a server that is busy may answer then.)
        info = end.info_in(reply) if isinstance(reply, bytes) else await end.info()
    except EngineError as error:
        checks.append(failed(f"{side}-version", error.message, error.remedy))
        return _Met(checks, end)
    if (users := check_users(side, endpoint, info)) is not None:
        checks[:] = [each for each in checks if each.name != users.name]
        checks.append(users)
    checks.extend(check_server(side, info, settings))
    if endpoint.from_replica and (chosen := source_replica.chosen_last(endpoint)) is not None:
        checks.append(passed("source-replica", chosen.words))
    told = None
    if info.mode == "cluster":
        try:
            told = await cluster.ask_topology(end)
        except EngineError as error:
            checks.append(failed(f"{side}-mode", error.message, error.remedy))
    return _Met(checks, end, info, round_trip, told)


async def _choose_way(
    ends: Mapping[Side, Admin],
    infos: Mapping[Side, ServerInfo],
    settings: TransferSettings,
    on_likely: Callable[[_Chosen], None] = lambda _: None,
) -> _Chosen:
    """The way that the transfer will choose. `on_likely`: told which one it is unless the users'
    rights speak against it, before these are asked for."""
    checks: list[Check] = []
    rights: dict[Side, Rights] = {}
    keys = SampleKeys()
    if "source" in infos:
        moved = moved_databases(infos["source"], settings)
        with suppress(EngineError):
            keys = await sample_keys(ends["source"], moved, settings)
    way: Way = "scan" if settings.source_type == "scan" else "replica"
    if way == "replica" and (objection := following_objection(settings)) is not None:
        way = "scan"
        checks.append(passed(FOLLOWING, f"no: {objection}; the source is scanned"))
    on_likely(_Chosen(way, keys, [], {}))
    if way == "replica" and settings.source_type == "auto":
        with suppress(EngineError):
            denied = await replica_objection(ends, infos, settings, keys, rights)
            if denied is None:
                checks.append(passed(FOLLOWING, "yes: the source is read as by a replica"))
            else:
                reason, remedy = denied
                way = "scan"
                figure = f"no: {reason}; the source is scanned, and later writes are not followed"
                checks.append(warned(FOLLOWING, figure, remedy))
    return _Chosen(way, keys, checks, rights if way == "replica" else {})


async def _check_rights(
    ends: Mapping[Side, Admin],
    infos: Mapping[Side, ServerInfo],
    settings: TransferSettings,
    chosen: _Chosen,
) -> list[Check]:
    """The rights that the way takes."""
    found = await asyncio.gather(
        *(
            _found(
                check_rights(
                    side,
                    ends[side],
                    info,
                    settings,
                    chosen.way,
                    chosen.keys,
                    chosen.rights.get(side),
                ),
                f"{side}-permissions",
            )
            for side, info in infos.items()
        )
    )
    return [check for each in found for check in each]


async def _check_comparing(
    ends: Mapping[Side, Admin],
    infos: Mapping[Side, ServerInfo],
    settings: TransferSettings,
    chosen: _Chosen,
) -> list[Check]:
    """Those that the comparison takes."""
    found = await asyncio.gather(
        *(
            _found(check_comparison(side, ends[side], info, settings, chosen.way, chosen.keys))
            for side, info in infos.items()
        )
    )
    return [check for each in found for check in each]


async def _guarded(checks: list[Check], name: str, check: Awaitable[Check]) -> None:
    """Add what `check` finds; a server that fails it altogether is a finding too."""
    try:
        checks.append(await check)
    except EngineError as error:
        checks.append(failed(name, error.message, error.remedy))
