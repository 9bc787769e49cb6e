"""Every migration of a state under one eye: the server's, for as long as it runs.

A worker that is killed is replaced (`worker_supervisor`), whatever started it. A migration that the
server finds at its start without a worker goes on: one that was stopped by a signal, as a machine
that shuts down sends it, and one whose worker went down with the machine. No other process is there
to resume it, for the API has no word for that. One that is stopped later stays so, and so does one
that has stopped because it needs a hand.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine import logs
from engine.errors import ApiFault, EngineError, StateError, TransferFailed
from engine.front import operations, response_shapes
from engine.front.worker_supervisor import Supervisor
from engine.groups.states import Request, TransferStatus

if TYPE_CHECKING:
    from engine.front.service_context import ServiceContext
    from engine.groups.records import GroupRecord, TransferRecord
    from engine.groups.registry import Registry

LOOK_SECONDS = 1.0
GUARD_SECONDS = 5.0
"""A process that disconnected clients and was killed is started again by its guard within this."""
AGAIN_SECONDS = 60.0
"""A cut-over that was refused is not asked for again by itself before this."""
_log = logs.logger(__name__)


class MigrationWatcher:
    """Looks after every migration of `services`; `on_replaced` is called for each worker
    replaced, `on_look` with what each look found."""

    def __init__(
        self,
        services: ServiceContext,
        *,
        on_replaced: Callable[[], None],
        on_look: Callable[[Sequence[tuple[GroupRecord, TransferRecord]]], None],
    ) -> None:
        self._services = services
        self._on_replaced = on_replaced
        self._on_look = on_look
        self._found: dict[int, float] | None = None
        """The transfers that were there at the start, with their workers' last heartbeats, until
        there is another one: a fresh heartbeat alone may be that of a worker that went down with
        the machine a moment ago."""
        self._supervisors: dict[int, Supervisor] = {}
        self._given_up: set[int] = set()
        self._asked: dict[int, float] = {}

    async def run(self) -> None:
        """Look each second, until cancelled."""
        while True:
            try:
                await self.look()
            except EngineError as error:
                # The state may be back in a moment; the transfers do not need us meanwhile.
                _log.warning("the state cannot be read: %s", error)
            except Exception as error:
                # Whatever it is: a watchman that is gone unnoticed is worse.
                _log.error("a bug: %s", type(error).__name__)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once at every migration. Raises `StateError`."""
        migrations = await self._services.state(lambda registry: registry.under_migration())
        self._on_look(migrations)
        await self._services.state(self._disconnect_clients)
        running = {transfer.id for _, transfer in migrations}
        if self._found is None:
            self._found = {transfer.id: transfer.lease.renewed_at for _, transfer in migrations}
            for _, transfer in migrations:
                extra = {"migration": transfer.group_id}
                _log.info("Found a migration in %s", transfer.progress.phase, extra=extra)
        for known in (self._supervisors, self._asked):
            for gone in set(known) - running:
                del known[gone]
        for group, transfer in migrations:
            of = {"source": transfer.source.address, "target": transfer.target.address}
            with logs.migration(group.id, **of):
                try:
                    await self._one(group, transfer)
                except ApiFault as fault:
                    _log.info("%s", fault)  # another process was faster
                except StateError:
                    raise
                except EngineError as error:
                    _log.error("%s", error)

    async def _one(self, group: GroupRecord, transfer: TransferRecord) -> None:
        assert self._found is not None
        if transfer.leased():
            if transfer.lease.renewed_at > self._found.get(transfer.id, 0.0):
                self._found.pop(transfer.id, None)
            self._supervisor(transfer).watch(transfer.progress)
            await self._cut_over(transfer)
        elif transfer.orphaned():
            await self._replace(transfer)
        elif transfer.id in self._found and _ours(transfer):
            del self._found[transfer.id]
            if response_shapes.needs_hand(transfer):
                # It needs a hand, and would stop again.
                return
            _log.info("The migration is resumed")
            await operations.resume(self._services, group.id)

    def _disconnect_clients(self, registry: Registry) -> None:
        """Start another process where the one that disconnects a source's clients was killed, or
        went down with the machine."""
        from engine.fleet.launcher import launcher
        from engine.groups import disconnections
        from engine.groups.lease import LAUNCH_SECONDS

        # The process's own guard is faster, and has its connection to the source.
        for group_id in disconnections.unattended(registry.store, patience=GUARD_SECONDS):
            given = self._services.given_credentials
            if launcher().disconnect_clients(
                registry, group_id, credentials=given, grace=LAUNCH_SECONDS
            ):
                extra = {"migration": group_id}
                _log.warning("Another process disconnects the source's clients", extra=extra)

    def _supervisor(self, transfer: TransferRecord) -> Supervisor:
        found = self._supervisors.get(transfer.id)
        if found is None:
            on_event = functools.partial(self._on_event, transfer.group_id)
            found = Supervisor(self._services, transfer.group_id, on_event)
            self._supervisors[transfer.id] = found
        return found

    def _on_event(self, group_id: str, message: str) -> None:
        self._on_replaced()

    async def _replace(self, transfer: TransferRecord) -> None:
        if transfer.id in self._given_up:
            return
        try:
            await self._supervisor(transfer).replace(transfer)
        except TransferFailed as failure:
            # It stays under migration, to be resumed or ended by the operator.
            self._given_up.add(transfer.id)
            message = failure.message
            await self._services.state(
                lambda registry: registry.add_event(transfer.group_id, message, level=logging.ERROR)
            )

    async def _cut_over(self, transfer: TransferRecord) -> None:
        """What AutoCutover asked for, as soon as it can be done."""
        if not transfer.settings_data.get("auto_cut_over") or not transfer.progress.can_complete:
            return
        if transfer.request is not Request.NONE or transfer.status is not TransferStatus.RUNNING:
            return
        now = time.monotonic()
        if now - self._asked.get(transfer.id, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        self._asked[transfer.id] = now
        _log.info("The migration is in sync: the server requests its cut-over (AutoCutover)")
        await self._services.state(
            lambda registry: registry.request(transfer.group_id, Request.COMPLETE)
        )


def _ours(transfer: TransferRecord) -> bool:
    """Whether a transfer without a worker was run where we start workers. (After a restart of the
    machine its worker cannot be looked up any more, and its silence is what tells.)"""
    from engine.fleet.launcher import launcher

    return transfer.worker is None or launcher().ours(transfer.worker)
