"""Waiting for a migration that a worker carries out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from engine.errors import (
    EngineError,
    Interrupted,
    ReplicationGroupNotUnderMigrationFault,
    TransferFailed,
    TransferStopped,
)
from engine.front import response_shapes, validate
from engine.front.faults_with_details import MigrationFailed
from engine.front.worker_supervisor import Supervisor
from engine.groups.states import GroupStatus, TransferStatus
from engine.model.joined_sentences import tidied
from engine.model.progress import Phase, Progress
from engine.model.report import Report

if TYPE_CHECKING:
    from engine.front.service_context import ServiceContext
    from engine.groups.records import TransferRecord

Until = Literal["in-sync", "copied", "available"]
"""What is waited for; "copied" is the older name of "in-sync"."""


async def wait(
    services: ServiceContext,
    group_id: str,
    until: Until,
    on_progress: Callable[[Progress], None] | None,
    poll: float,
    timeout: float | None,
    supervise: bool = False,
    on_event: Callable[[str], None] | None = None,
) -> Progress | Report:
    """Wait until a migration is in sync (its progress) or the group `available` (the report)."""
    group_id = validate.identifier(group_id)
    supervisor = Supervisor(services, group_id, on_event) if supervise else None
    deadline = None if timeout is None else time.monotonic() + timeout
    shown: Progress | None = None
    while True:
        group, transfer = await services.state(lambda registry: registry.get(group_id))
        if transfer is None:
            raise ReplicationGroupNotUnderMigrationFault(
                f"replication group {group_id} has never been under migration."
            )
        if on_progress is not None and transfer.progress != shown:
            shown = transfer.progress
            on_progress(shown)
        if group.status == GroupStatus.AVAILABLE:
            return _ended(transfer)
        if supervisor is not None:
            supervisor.watch(transfer.progress)
        if supervisor is not None and transfer.orphaned():
            await supervisor.replace(transfer)
        elif (reached := _reached(transfer, until)) is not None:
            return reached
        if deadline is not None and time.monotonic() >= deadline:
            raise EngineError(
                f"the migration of {group_id} is still in {transfer.progress.phase} after "
                f"{timeout:g} s",
                remedy="It goes on; wait again.",
            )
        await asyncio.sleep(poll)


def _ended(transfer: TransferRecord) -> Report:
    report = transfer.report or Report(status="failed", errors=("it left no report",))
    if report.status == "failed":
        reason = report.errors[0] if report.errors else "no reason is known"
        raise MigrationFailed(f"the migration of {transfer.group_id} failed: {reason}", report)
    return report


def _reached(transfer: TransferRecord, until: Until) -> Progress | None:
    """The progress if it is what is waited for; raises if it never will be by itself."""
    if response_shapes.needs_hand(transfer):
        raise TransferStopped(
            f"the migration of {transfer.group_id} {response_shapes.reason(transfer)}"
        )
    if transfer.status is TransferStatus.STOPPED:
        raise Interrupted(
            f"the migration of {transfer.group_id} was {response_shapes.reason(transfer)}"
        )
    if transfer.status is TransferStatus.DONE:
        # The group, which is available since, was read a moment before (by a database whose reads
        # see what others commit between them).
        return None
    if not transfer.leased():
        # Re-read by the caller's next poll would say the same: no process writes any more.
        raise TransferFailed(response_shapes.reason(transfer))
    progress = transfer.progress
    in_sync = progress.can_complete or progress.phase is Phase.CUT_OVER
    if until in ("in-sync", "copied") and in_sync:
        return progress
    if until == "available" and transfer.refused:
        raise TransferFailed(
            tidied(
                f"cut-over refused: {transfer.refused}; {transfer.group_id} stays under migration"
            ),
            remedy=f"Correct what it names and try complete-migration again; or abort with "
            f"{response_shapes.ABORT}.",
        )
    return None
