"""Look before the leap: can this transfer run, and what should be known first?

A preflight moves nothing, and writes nothing to the source. On the target it writes the probe
alone, and only when the two are known to be different servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from engine.errors import EngineError, LinkError
from engine.model.endpoint import Endpoint
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import (
    SIDES,
    Check,
    Outcome,
    Preflight,
    Side,
    failed,
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
from engine.transfer.checks.endpoint import check_server, check_users, greet, unreachable
from engine.transfer.checks.functions_and_indexes import check_besides
from engine.transfer.checks.modules import ask_module_types, check_modules
from engine.transfer.checks.permission_keys import SampleKeys, sample_keys
from engine.transfer.checks.permissions import (
    FOLLOWING,
    check_comparison,
    check_following,
    check_rights,
    replica_objection,
)
from engine.transfer.checks.probe_write import (
    ask_bulk_limit,
    check_bulk_limit,
    check_clock,
    check_clocks,
    check_probe,
)
from engine.transfer.checks.replication_chain import lineage
from engine.transfer.checks.required_commands import Way
from engine.transfer.checks.scripts import check_scripts
from engine.transfer.checks.server_pair import check_apart, check_eviction, check_memory, check_pair
from engine.transfer.checks.spool import check_spool
from engine.transfer.checks.value_encodings import check_types
from engine.transfer.graphs_in_parts import REMEDY as GRAPHS_REMEDY
from engine.transfer.graphs_in_parts import in_parts
from engine.transfer.leftovers import NAME as LEFTOVERS
from engine.transfer.leftovers import check_leftovers
from engine.wire.control_connection import Admin, admin

if TYPE_CHECKING:
    from engine.sources.rdb_file import Survey

__all__ = ["Check", "Outcome", "Preflight", "preflight"]


async def preflight(source: Endpoint, target: Endpoint, settings: TransferSettings) -> Preflight:
    """Run every check that can be run; a failed one does not stop the others, and one that
    `settings.skip_checks` names is a warning if it fails.

    Bounded in time by `settings.connect_timeout` for connecting and for each reply; a file is read
    to its end. Raises nothing for what it finds: an unreachable server is a failed check.
    """
    source, target = settings.named("source", source), settings.named("target", target)
    if source.rdb_path is not None or source.aof_path is not None:
        found = await _preflight_of_file(source, target, settings)
    else:
        found = await _preflight_of_server(source, target, settings)
    asked = settings.skip_checks
    checks = tuple(skipped(c) if c.name in asked else c for c in found.checks)
    return Preflight(checks, found.engine)


async def _preflight_of_server(
    source: Endpoint, target: Endpoint, settings: TransferSettings
) -> Preflight:
    checks: list[Check] = []
    async with AsyncExitStack() as stack:
        # 1. Each end by itself.
        ends: dict[Side, Admin] = {}
        infos: dict[Side, ServerInfo] = {}
        sides: tuple[tuple[Side, Endpoint], ...] = (("source", source), ("target", target))
        met = await asyncio.gather(
            *(_meet(side, endpoint, settings, stack) for side, endpoint in sides)
        )
        for (side, _), (end, info, found) in zip(sides, met, strict=True):
            checks += found
            if end is not None:
                ends[side] = end
            if info is not None:
                infos[side] = info
        # 2. What both must be able to do, which depends on how the source will be read.
        way, keys = await _check_rights(ends, infos, settings, checks)
        if len(infos) < len(sides):
            return Preflight(tuple(checks), engine_of(infos.get("target")))
        # 3. What they say of themselves, side by side.
        one, other = ends["source"], ends["target"]
        from_info, to_info = infos["source"], infos["target"]
        lines = await asyncio.gather(
            *(
                lineage(at, info, timeout=settings.connect_timeout)
                for at, info in ((source, from_info), (target, to_info))
            )
        )
        apart = check_apart(*lines)
        checks.append(apart)
        if way == "replica":
            if settings.source_type == "replica":
                with suppress(EngineError):
                    if why := await in_parts(one, from_info):
                        checks.append(failed("large-graphs", why, GRAPHS_REMEDY))
            checks.append(check_spool(settings))
            with suppress(EngineError):
                scripts = await check_scripts(one, lines[0], settings)
                if scripts is not None:
                    checks.append(scripts)
            with suppress(EngineError):
                effects = await check_script_effects(one, from_info)
                if effects is not None:
                    checks.append(effects)
        checks.extend(check_pair(from_info, to_info, settings))
        # 4. What has to be asked for.
        moved = moved_databases(from_info, settings)
        await _guarded(checks, "value-types", check_types(one, from_info, to_info, moved))
        modules = check_modules(one, other, (from_info, to_info), moved)
        await _guarded(checks, "modules", modules)
        if settings.databases is not None:
            await _guarded(checks, "chosen-databases", check_chosen(one, from_info, moved))
        await _guarded(checks, "databases", check_room(other, moved))
        await _guarded(checks, "other-migration", check_free(other, settings))
        await _guarded(checks, LEFTOVERS, check_leftovers(one, other, settings))
        existing = check_existing(other, to_info, moved, settings)
        await _guarded(checks, "existing-keys", existing)
        with suppress(EngineError):
            beside = await check_besides(one, other, to_info, settings, way)
            if beside is not None:
                checks.append(beside)
        with suppress(EngineError):
            hyperloglogs = await check_hyperloglogs(one, other)
            if hyperloglogs is not None:
                checks.append(hyperloglogs)
        await _guarded(checks, "clocks", check_clocks(one, other))
        await _guarded(checks, "value-limit", check_bulk_limit(one, other))
        # 5. The one write. Where both are of one replication it would be a write to the source.
        if apart.outcome == "pass" and _may_be_tried(checks, settings):
            probe = check_probe(other, from_info, to_info, keys)
            await _guarded(checks, "probe", probe)
    return Preflight(tuple(checks), engine_of(infos.get("target")))


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
        end, info, met = await _meet("target", target, settings, stack)
        checks += met
        if end is not None and info is not None:
            rights = check_rights("target", end, info, settings, "replica" if aof else "scan")
            await _guarded(checks, "target-permissions", rights)
            if aof:
                with suppress(EngineError):
                    checks.extend(await check_scripts_allowed(end, info))
        # 2. The file.
        limit = 512 << 20
        if end is not None:
            with suppress(EngineError):
                limit = await ask_bulk_limit(end) or limit
        about: list[Check]
        found: Survey | AofSurvey | None
        if aof:
            about, found = await check_aof(source, settings, value_limit=limit)
        else:
            about, found = await check_file(source, value_limit=limit)
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
) -> tuple[Admin | None, ServerInfo | None, list[Check]]:
    """Reach an end, and have it say what it is; the checks that this was."""
    checks: list[Check] = []
    try:
        end = await stack.enter_async_context(
            admin(endpoint, timeout=settings.connect_timeout, fault=side)
        )
        checks.extend(await greet(side, end))
    except EngineError as error:
        checks.extend(unreachable(side, endpoint, error))
        return None, None, checks
    try:
        info = await end.info()
    except EngineError as error:
        checks.append(failed(f"{side}-version", error.message, error.remedy))
        return end, None, checks
    if (users := check_users(side, endpoint, info)) is not None:
        checks[:] = [each for each in checks if each.name != users.name]
        checks.append(users)
    checks.extend(check_server(side, info, settings))
    return end, info, checks


async def _check_rights(
    ends: dict[Side, Admin],
    infos: dict[Side, ServerInfo],
    settings: TransferSettings,
    checks: list[Check],
) -> tuple[Way, SampleKeys]:
    """Choose the way as the transfer will, and look at the rights that it takes. Returns it, with
    keys of the kind that it moves."""
    keys = SampleKeys()
    if "source" in infos:
        moved = moved_databases(infos["source"], settings)
        with suppress(EngineError):
            keys = await sample_keys(ends["source"], moved, settings)
    way: Way = "scan" if settings.source_type == "scan" else "replica"
    if way == "replica" and (objection := settings.replica_objection()) is not None:
        way = "scan"
        checks.append(passed(FOLLOWING, f"no: {objection}; the source is scanned"))
    elif way == "replica" and settings.source_type == "auto":
        with suppress(EngineError):
            denied = await replica_objection(ends, infos, settings, keys)
            if denied is None:
                checks.append(passed(FOLLOWING, "yes: the source is read as by a replica"))
            else:
                reason, remedy = denied
                way = "scan"
                figure = f"no: {reason}; the source is scanned, and later writes are not followed"
                checks.append(warned(FOLLOWING, figure, remedy))

    async def rights_of(side: Side, info: ServerInfo) -> list[Check]:
        found: list[Check] = []
        rights = check_rights(side, ends[side], info, settings, way, keys)
        await _guarded(found, f"{side}-permissions", rights)
        with suppress(EngineError):
            comparison = await check_comparison(side, ends[side], info, settings, way, keys)
            if comparison is not None:
                found.append(comparison)
        return found

    for found in await asyncio.gather(*(rights_of(side, info) for side, info in infos.items())):
        checks += found
    if way == "replica" and len(infos) == len(SIDES):
        with suppress(EngineError):
            checks.extend(
                await check_following(
                    ends["source"], ends["target"], infos["source"], settings, keys
                )
            )
    return way, keys


async def _guarded(checks: list[Check], name: str, check: Awaitable[Check]) -> None:
    """Add what `check` finds; a server that fails it altogether is a finding too."""
    try:
        checks.append(await check)
    except EngineError as error:
        checks.append(failed(name, error.message, error.remedy))
