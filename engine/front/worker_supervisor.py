"""Replacing workers that are killed.

A worker that fails or is stopped says so in the state, and is left alone. One that is gone without
a last word was killed: by the kernel for its memory, by a person, by a bug in the core. A new one
goes on from the checkpoint. What killed it may kill the next one as well, so the pauses between
replacements grow, and a row of them without progress comes to an end.

Only a process that is known to have ended is replaced. One that is merely silent may wake up, and
whether it may be written off is for a person to say (resume-migration).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import EngineError, StateError, TransferFailed
from engine.front import response_shapes
from engine.model.backoff import Backoff
from engine.model.progress import Progress

if TYPE_CHECKING:
    from engine.front.service_context import ServiceContext
    from engine.groups.records import TransferRecord
    from engine.groups.registry import Registry

LIMIT = 20
"""So many workers in a row may be killed without progress."""
HEALTHY_SECONDS = 60.0
"""A worker that lived for so long begins a new row: one that follows an idle source, or waits for
the operator's word, makes no progress and is none the worse for it."""


class Supervisor:
    """Watches over the worker of one group's migration.

    `on_event` is told what happened, a sentence each; the group's events have it too.
    """

    def __init__(
        self, services: ServiceContext, group_id: str, on_event: Callable[[str], None] | None
    ) -> None:
        self._services = services
        self._group_id = group_id
        self._on_event = on_event
        self._pause = Backoff(0.0)
        self._in_a_row = 0
        self._due = self._replaced_at = 0.0
        self._furthest = (-1, -1)
        """The offset that was applied and the keys that were copied, at most."""

    def watch(self, progress: Progress) -> None:
        """Take note of how far the migration has come."""
        offset = -1 if progress.applied_offset is None else progress.applied_offset
        reached = (offset, progress.keys)
        further = any(now > then for now, then in zip(reached, self._furthest, strict=True))
        if further:
            self._begin_anew()
        self._furthest = (max(offset, self._furthest[0]), max(progress.keys, self._furthest[1]))

    async def replace(self, transfer: TransferRecord) -> None:
        """Start a new worker for an orphaned transfer, unless it is too soon.

        Raises `TransferFailed` after `LIMIT` of them in a row without progress.
        """
        now = time.monotonic()
        if now < self._due:
            return
        if now - self._replaced_at >= HEALTHY_SECONDS:
            self._begin_anew()
        if self._in_a_row >= LIMIT:
            raise TransferFailed(
                f"{LIMIT} workers in a row were killed without any progress: "
                f"{response_shapes.reason(transfer)}"
            )
        self._in_a_row += 1
        self._due, self._replaced_at = now + self._pause.delay(), now
        named = f" ({transfer.worker.words})" if transfer.worker is not None else ""
        message = f"the worker process{named} was killed: replaced, {self._in_a_row} of {LIMIT}"
        event = await self._services.state(lambda registry: self._replace(registry, message))
        if event is not None and self._on_event is not None:
            self._on_event(event)

    def _begin_anew(self) -> None:
        self._in_a_row = 0
        self._pause.progress()

    def _replace(self, registry: Registry, message: str) -> str | None:
        from engine.fleet.launcher import launcher

        transfer = registry.replace_worker(self._group_id, message)
        if transfer is None:
            return None  # it ended after all, or another one watches as well and was faster
        try:
            given = self._services.given_credentials
            launcher().launch(registry, transfer, credentials=given)
        except StateError:
            raise
        except EngineError as error:
            # What killed the worker (no memory, no processes left) may pass; the transfer is an
            # orphan again when its time to be claimed is over.
            registry.add_event(self._group_id, error.message)
            return error.message
        return message
