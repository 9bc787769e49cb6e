"""Whether the source runs scripts whose writes it would not refuse behind the cut-over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import EngineError
from engine.model.settings import TransferSettings
from engine.transfer import scripts
from engine.transfer.checks.lineage import Member
from engine.transfer.checks.result import Check, passed, warned
from engine.wire.admin import Admin, admin

_REMEDY = (
    "If any of them write, stop the clients that run them before the cut-over: --fence hook with a "
    "command that does it, or --fence none once they have stopped."
)


async def check_scripts(
    source: Admin, line: Sequence[Member], settings: TransferSettings
) -> Check | None:
    """None where scripts are refused like other writes, or nothing is to be refused. `line` is the
    lineage of the source; what counts is the server at its head, which takes the writes. Raises
    `LinkError` of `source`."""
    name = "source-scripts"
    if settings.fence != "pause" or settings.until != "cut-over":
        return None
    if settings.source_after != "refuse":
        return None
    known = [member.info for member in line if member.info is not None]
    if not known or scripts.refused(known[-1]):
        return None
    if len(line) == 1 and not known[-1].primary:
        run = await scripts.ask(source)
    else:
        run = await _asked(line[-1], settings.connect_timeout)
    what = f"{known[-1].name} goes on running scripts (EVAL) that write once it is cut over"
    lost = "their writes would be acknowledged, and lost"
    if run is None:
        figure = f"{what}: {lost}; how many it has run is not known (INFO commandstats)"
        return warned(name, figure, _REMEDY)
    if run == 0:
        return passed(name, f"{what}, but it has run no script since its start")
    many = "1 script" if run == 1 else f"{run:,} scripts"
    return warned(name, f"{what}: {lost}; it has run {many} since its start", _REMEDY)


async def _asked(head: Member, timeout: float) -> int | None:
    """The same of a primary of the source; None where it cannot be asked, or is not the head."""
    if head.info is None or head.info.primary:
        return None
    with suppress(EngineError, TimeoutError):
        async with asyncio.timeout(timeout), admin(head.endpoint, timeout=timeout) as end:
            return await scripts.ask(end)
    return None
