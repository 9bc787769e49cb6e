"""The worker's side of the state: one claimed transfer.

Every write is bound to the claim's `attempt`. A worker that was taken for dead and replaced, or
whose migration was aborted, changes nothing any more and gets `ClaimLost`.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, case, delete, insert, select, update

from engine.errors import StateError
from engine.groups import disconnections, schema
from engine.groups.records import TransferRecord
from engine.groups.rows import group_by_id, write_event
from engine.groups.states import CUT_OVERS, Operation, Request, TransferStatus, check, move
from engine.groups.store import Store
from engine.model.checkpoint import Checkpoint
from engine.model.progress import Progress
from engine.model.report import Report


class ClaimLost(StateError):
    """The transfer belongs to another process now, or was ended."""


class ClaimedTransfer:
    """A transfer in the hands of this process. Safe to use from several threads.

    Every method raises `StateError` when the database fails, and `ClaimLost`.
    """

    def __init__(self, store: Store, record: TransferRecord) -> None:
        self.record = record
        self._store = store

    def beat(self, progress: Progress | None) -> Request:
        """Show that the worker lives, write down `progress` if given, and return what the
        operator wants."""
        values: dict[str, Any] = {"heartbeat_at": time.time()}
        if progress is not None:
            values["progress"] = progress.to_dict()
        table = schema.transfers
        with self._store.write() as connection:
            row = connection.execute(
                self._mine(update(table)).values(values).returning(table.c.request)
            ).one_or_none()
            return Request(self._found(row))

    def read_request(self) -> Request:
        """What the operator wants, without writing anything."""
        table = schema.transfers
        with self._store.read() as connection:
            row = connection.execute(self._mine(select(table.c.request))).one_or_none()
            return Request(self._found(row))

    def refuse(self, reason: str) -> None:
        """The asked-for cut-over did not happen: keep why, and take the request for it off.

        A stop or an abort that was asked for meanwhile is still to be heard.
        """
        request = schema.transfers.c.request
        others = case((request.in_(CUT_OVERS), Request.NONE), else_=request)
        with self._store.write() as connection:
            self._change(connection, request=others, refusal=reason)

    def note_held_before(self, held: bool) -> None:
        """Keep whether the target had keys before the first one of ours: after a resume it cannot
        be asked any more."""
        with self._store.write() as connection:
            self._change(connection, held_before=held)

    def add_event(self, message: str) -> None:
        """Note something that happened, in the group's events; whoever calls has logged it."""
        with self._store.write() as connection:
            write_event(connection, self.record.group_id, message, level=None)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint saved by this transfer's workers, None at the start."""
        table = schema.checkpoints
        query = select(table.c.checkpoint).where(table.c.transfer_id == self.record.id)
        with self._store.read() as connection:
            data = connection.execute(query).scalar()
        return None if data is None else Checkpoint.from_dict(data)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Make `position` durable before returning."""
        table = schema.checkpoints
        values = {"checkpoint": checkpoint.to_dict(), "saved_at": time.time()}
        mine = table.c.transfer_id == self.record.id
        with self._store.write() as connection:
            self._change(connection, heartbeat_at=time.time())
            if connection.execute(update(table).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(table), {"transfer_id": self.record.id, **values})

    def finish(
        self,
        status: TransferStatus,
        report: Report,
        progress: Progress,
        message: str,
        *,
        disconnect_for: float | None = None,
    ) -> None:
        """The transfer is over: report, event and the group's status in one transaction; whoever
        calls has logged `message`.

        After STOPPED the group stays under migration and keeps its checkpoint, to be resumed.
        `disconnect_for`: clients of the source are to be disconnected for so many seconds behind
        the cut-over; 0: they were once. None: nothing was cut over.
        """
        table = schema.checkpoints
        with self._store.write() as connection:
            group = group_by_id(connection, self.record.group_id, lock=True)
            self._change(
                connection,
                status=move(TransferStatus.RUNNING, status),
                report=report.to_dict(),
                progress=progress.to_dict(),
                request=Request.NONE,
                changed_at=time.time(),
            )
            if status is not TransferStatus.STOPPED:
                leaves = check(Operation.FINISH, group.id, group.status)
                connection.execute(
                    update(schema.groups)
                    .where(schema.groups.c.id == group.id)
                    .values(status=leaves)
                )
                connection.execute(delete(table).where(table.c.transfer_id == self.record.id))
            if disconnect_for:
                disconnections.begin(connection, self.record.id, time.time() + disconnect_for)
            elif disconnect_for is not None and report.lets_scripts:
                disconnections.once(connection, self.record.id)
            write_event(connection, group.id, message, level=None)

    def _mine(self, statement: Any) -> Any:
        table = schema.transfers
        return statement.where(table.c.id == self.record.id, table.c.attempt == self.record.attempt)

    def _change(self, connection: Connection, **values: Any) -> None:
        changed = connection.execute(self._mine(update(schema.transfers)).values(values))
        if changed.rowcount != 1:
            raise self._lost()

    def _found(self, row: Any) -> str:
        if row is None:
            raise self._lost()
        return str(row[0])

    def _lost(self) -> ClaimLost:
        return ClaimLost(
            f"the migration of {self.record.group_id} is no longer this process's: another one "
            "has taken it over, or it was ended"
        )
