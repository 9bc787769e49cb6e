"""The end of a claimed transfer that could not even run, or broke off with an error of ours."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from engine import logs
from engine.errors import EngineError
from engine.fleet.resource_usage import engine_use
from engine.fleet.state_thread import persist
from engine.groups.claimed_transfer import ClaimedTransfer
from engine.groups.states import TransferStatus
from engine.model.progress import Phase, Progress
from engine.model.report import Report

_log = logs.logger(__name__)


async def fail(claimed: ClaimedTransfer, error: Exception, progress: Progress) -> None:
    """Write down that a claimed transfer ended with `error`, foreseen or not.

    Never raises: the caller has an error to report already.
    """
    # The text of an unforeseen error may hold anything, a password included.
    reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}, a bug"
    _log.error("migration failed: %s", reason, extra={"event": True})
    report = Report(status="failed", errors=(reason,), engine=engine_use())
    ended = replace(progress, phase=Phase.FAILED, can_complete=False, reason=reason)
    with contextlib.suppress(EngineError):
        await asyncio.to_thread(
            persist,
            lambda: claimed.finish(
                TransferStatus.FAILED, report, ended, f"migration failed: {reason}"
            ),
        )
