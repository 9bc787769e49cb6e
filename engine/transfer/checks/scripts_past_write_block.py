"""Whether the source runs scripts, or transactions, whose writes it would not refuse behind the
cut-over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import EngineError
from engine.model.calls_despite_write_block import Calls
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer import hold_source, scripts_behind_cut_over
from engine.transfer.checks.check_result import Check, passed, warned
from engine.transfer.checks.replication_chain import Member
from engine.wire.control_connection import Admin, admin

_STOP_THEM = (
    "stop their clients before the cut-over: --fence hook with a command that does it, "
    "or --fence none once they have stopped."
)
_ONCE = "clients are disconnected only once (--disconnect-for 0)"
_REMEDY = f"If any of them write, {_STOP_THEM}"
_PAUSE_REMEDY = (
    "Point clients to the target at the cut-over (--switch-hook); disconnect-clients --stop and "
    f"unblock-source have the source answer again. If reads have to go on there, {_STOP_THEM}"
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
    if not known or known[-1].capabilities.refuses_writes_of_scripts:
        return None
    if len(line) == 1 and not known[-1].primary:
        run, why = await scripts_behind_cut_over.ask(source), await hold_source.objection(source)
    else:
        run, why = await _asked(line[-1], settings.connect_timeout)
    if not hold_source.needed(known[-1]):
        why = "it has no CLIENT PAUSE"
    elif not why and not settings.disconnects_clients:
        why = _ONCE
    return _judged(name, known[-1], run, why)


def _judged(name: str, head: ServerInfo, run: Calls | None, why: str) -> Check:
    """`why` it cannot be paused; empty: it can."""
    what = f"{head.name} goes on running scripts (EVAL) that write once it is cut over"
    # Within a hold, however short, their clients are disconnected.
    transactions = not head.capabilities.refuses_exec and why not in ("", _ONCE)
    figure = "how many it has run is not known (INFO commandstats)"
    if run is not None:
        many = "1 script" if run.scripts == 1 else f"{run.scripts:,} scripts"
        figure = f"it has run {many} since its start"
    if run is not None and run.scripts == 0:
        figure = "it has run no script since its start"
        if not transactions:
            return passed(name, f"{what}, but {figure}")
        what = f"{head.name} still runs transactions (MULTI) that were begun before it is cut over"
    elif transactions:
        what += ", and transactions (MULTI) that were begun before"
    if not why:
        paused = (
            "it is kept from that by a pause, and answers no client, not even those that read, as "
            "long as clients are disconnected"
        )
        return warned(name, f"{what}: {paused}; {figure}", _PAUSE_REMEDY)
    lost = "their writes would be acknowledged, and lost"
    return warned(name, f"{what}: {lost}; {figure}; a longer pause is not possible: {why}", _REMEDY)


async def _asked(head: Member, timeout: float) -> tuple[Calls | None, str]:
    """What a primary of the source has run, and what speaks against holding it; None where it
    cannot be asked, or is not the head."""
    if head.info is None or head.info.primary:
        return None, "its primary cannot be asked"
    with suppress(EngineError, TimeoutError):
        async with asyncio.timeout(timeout), admin(head.endpoint, timeout=timeout) as end:
            return await scripts_behind_cut_over.ask(end), await hold_source.objection(end)
    return None, "its primary cannot be asked"
