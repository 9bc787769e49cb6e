"""Look before the leap: can this transfer run, and what should be known first?

A preflight moves nothing, and writes nothing to the source. On the target it writes the probe
alone, and only when the two are known to be different servers.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AsyncExitStack

from engine.errors import EngineError
from engine.model.endpoint import Endpoint
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks.databases import (
    check_chosen,
    check_existing,
    check_room,
    moved_databases,
)
from engine.transfer.checks.ends import check_server, greet, unreachable
from engine.transfer.checks.pair import check_apart, check_pair
from engine.transfer.checks.probe import check_bulk_limit, check_clocks, check_probe
from engine.transfer.checks.result import Check, Outcome, Preflight, Side, failed
from engine.transfer.checks.rights import check_rights
from engine.transfer.checks.types import check_types
from engine.wire.admin import Admin, admin

__all__ = ["Check", "Outcome", "Preflight", "preflight"]


async def preflight(source: Endpoint, target: Endpoint, settings: TransferSettings) -> Preflight:
    """Run every check that can be run; a failed one does not stop the others.

    Bounded in time by `settings.connect_timeout` for connecting and for each reply. Raises nothing
    for what it finds: an unreachable server is a failed check.
    """
    checks: list[Check] = []
    async with AsyncExitStack() as stack:
        # 1. Each end by itself.
        ends: dict[Side, Admin] = {}
        infos: dict[Side, ServerInfo] = {}
        sides: tuple[tuple[Side, Endpoint], ...] = (("source", source), ("target", target))
        for side, endpoint in sides:
            end = await _reach(side, endpoint, settings, stack, checks)
            if end is None:
                continue
            ends[side] = end
            info = await _inform(side, end, checks)
            if info is not None:
                infos[side] = info
                checks.extend(check_server(side, info, settings))
        # 2. What both must be able to do.
        for side, info in infos.items():
            rights = check_rights(side, ends[side], info, settings)
            await _guarded(checks, f"{side}-permissions", rights)
        if len(infos) < len(sides):
            return Preflight(tuple(checks))
        # 3. What they say of themselves, side by side.
        one, other = ends["source"], ends["target"]
        from_info, to_info = infos["source"], infos["target"]
        apart = check_apart(from_info, to_info, source, target)
        checks.append(apart)
        checks.extend(check_pair(from_info, to_info, settings))
        # 4. What has to be asked for.
        moved = moved_databases(from_info, settings)
        await _guarded(checks, "value-types", check_types(one, from_info, to_info, moved))
        if settings.databases is not None:
            await _guarded(checks, "chosen-databases", check_chosen(one, from_info, moved))
        await _guarded(checks, "databases", check_room(other, moved))
        checks.append(check_existing(to_info, moved, settings))
        await _guarded(checks, "clocks", check_clocks(one, other))
        await _guarded(checks, "value-limit", check_bulk_limit(one, other))
        # 5. The one write. Where both are of one replication it would be a write to the source.
        if apart.outcome == "pass":
            await _guarded(checks, "probe", check_probe(other, from_info, to_info))
    return Preflight(tuple(checks))


async def _reach(
    side: Side,
    endpoint: Endpoint,
    settings: TransferSettings,
    stack: AsyncExitStack,
    checks: list[Check],
) -> Admin | None:
    try:
        end = await stack.enter_async_context(
            admin(endpoint, timeout=settings.connect_timeout, fault=side)
        )
        checks.extend(await greet(side, end))
    except EngineError as error:
        checks.extend(unreachable(side, endpoint, error))
        return None
    return end


async def _inform(side: Side, end: Admin, checks: list[Check]) -> ServerInfo | None:
    try:
        return await end.info()
    except EngineError as error:
        checks.append(failed(f"{side}-version", error.message, error.remedy))
        return None


async def _guarded(checks: list[Check], name: str, check: Awaitable[Check]) -> None:
    """Add what `check` finds; a server that fails it altogether is a finding too."""
    try:
        checks.append(await check)
    except EngineError as error:
        checks.append(failed(name, error.message, error.remedy))
