"""The worker's side of the state: one claimed transfer.

Every write renews the worker's lease first, and only within its term. A worker that was taken for
dead and replaced, or whose migration was aborted, changes nothing any more and gets `ClaimLost`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, delete, insert, select, update

from engine.errors import StateError
from engine.groups import disconnections, schema
from engine.groups.compiled_statements import Repeated
from engine.groups.lease import LEASE_SECONDS
from engine.groups.records import TransferRecord
from engine.groups.rows import group_by_id, keep_lanes, transfer_by_id, write_event
from engine.groups.states import CUT_OVERS, Operation, Request, TransferStatus, check, move
from engine.groups.store import Store
from engine.model.checkpoint import Checkpoint
from engine.model.lane_plan import PlannedLane
from engine.model.progress import Progress
from engine.model.report import Report
from engine.model.throttle import PAUSED, Steering


class ClaimLost(StateError):
    """The transfer belongs to another process now, or was ended."""


class ClaimedTransfer:
    """A transfer in the hands of this process. Safe to use from several threads.

    Every method raises `StateError` when the database fails, and `ClaimLost`.
    """

    def __init__(self, store: Store, record: TransferRecord) -> None:
        self.record = record
        self._store = store
        table, lease = schema.migrations, schema.leases
        mine = lease.c.id == record.lease.id, lease.c.term == record.lease.term
        request = select(table.c.request).where(table.c.id == lease.c.migration_id)
        # First in each transaction: the row's lock keeps the lease until the end of it.
        self._renewal = Repeated(
            update(lease)
            .where(*mine)
            .values(renewed_at=schema.now(), ends_at=schema.now() + LEASE_SECONDS)
            .returning(request.scalar_subquery())
        )
        self._request = Repeated(
            select(table.c.request).join(lease, lease.c.migration_id == table.c.id).where(*mine)
        )
        steering = schema.steering
        self._steering = Repeated(
            select(steering.c.paused, steering.c.max_rate, steering.c.max_key_rate).where(
                steering.c.migration_id == record.id
            )
        )
        self._progress = Repeated(
            update(schema.lanes)
            .where(schema.lanes.c.id == bindparam("lane"))
            .values(progress=bindparam("progress", type_=schema.lanes.c.progress.type))
        )

    def beat(
        self, progress: Progress | None, of_lanes: Mapping[str, Progress] | None = None
    ) -> Request:
        """Renew the lease, write down the `progress` of the whole if given, and that of each lane
        (by its name), and return what the operator wants."""
        with self._store.write() as connection:
            request = self._renew(connection)
            if progress is not None:
                self._note_progress(connection, progress, schema.LANE)
            self._note_lanes(connection, of_lanes)
            return request

    def read_request(self) -> Request:
        """What the operator wants, without writing anything."""
        with self._store.read() as connection:
            return self._found(self._request.execute(connection).one_or_none())

    def read_steering(self) -> Steering | None:
        """How fast data is to be moved, and whether that is paused; None: the operator has said
        nothing of it since the start."""
        with self._store.read() as connection:
            row = self._steering.execute(connection).one_or_none()
        if row is None:
            return None
        paused, max_rate, max_key_rate = row
        return Steering(max_rate, max_key_rate, PAUSED if paused else "")

    def refuse(self, reason: str) -> None:
        """The asked-for cut-over did not happen: keep why, and take the request for it off.

        A stop or an abort that was asked for meanwhile is still to be heard.
        """
        request = schema.migrations.c.request
        others = case((request.in_(CUT_OVERS), Request.NONE), else_=request)
        with self._store.write() as connection:
            self._change(connection, request=others, refusal=reason)

    def note_held_before(self, had_keys: bool) -> None:
        """Keep whether the target had keys before the first one of ours: after a resume it cannot
        be asked any more."""
        with self._store.write() as connection:
            self._change(connection, held_before=had_keys)

    def add_event(self, message: str) -> None:
        """Note something that happened, in the group's events; the caller has logged it."""
        with self._store.write() as connection:
            write_event(connection, self.record.group_id, message, of=self.record.id, level=None)

    def plan(self, lanes: Sequence[PlannedLane]) -> None:
        """Keep which lanes there are, before any of them begins: those that have a name in the
        state go on, and those that are not among them are over."""
        with self._store.write() as connection:
            self._renew(connection)
            keep_lanes(connection, self.record.id, self.record.lease.id, lanes)
            self.record = transfer_by_id(connection, self.record.id)

    def load_checkpoint(self, lane: str = schema.LANE) -> Checkpoint | None:
        """The last checkpoint of the lane that this transfer's workers have saved, None at the
        start."""
        table = schema.checkpoints
        query = select(table.c.checkpoint).where(table.c.lane_id == self._lane(lane))
        with self._store.read() as connection:
            data = connection.execute(query).scalar()
        return None if data is None else Checkpoint.from_dict(data)

    def save_checkpoint(self, checkpoint: Checkpoint, lane: str = schema.LANE) -> None:
        """Make the lane's position durable before returning."""
        table, lane_id = schema.checkpoints, self._lane(lane)
        values = {"checkpoint": checkpoint.to_dict(), "saved_at": time.time()}
        mine = table.c.lane_id == lane_id
        with self._store.write() as connection:
            self._renew(connection)
            if connection.execute(update(table).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(table), {"lane_id": lane_id, **values})

    def finish(
        self,
        status: TransferStatus,
        report: Report,
        progress: Progress,
        message: str,
        *,
        disconnect_for: float | None = None,
        of_lanes: Mapping[str, Progress] | None = None,
    ) -> None:
        """The transfer is over: report, event and the group's status in one transaction; what
        calls has logged `message`.

        After STOPPED the group stays under migration and keeps its checkpoint, to be resumed.
        `of_lanes`: the progress of each lane, by its name. `disconnect_for`: clients of the source
        are to be disconnected for so many seconds behind the cut-over; 0: they were once. None:
        nothing was cut over.
        """
        table = schema.checkpoints
        lanes = [each.id for each in self.record.lanes]
        with self._store.write() as connection:
            group = group_by_id(connection, self.record.group_id, lock=True)
            self._change(
                connection,
                status=move(TransferStatus.RUNNING, status),
                report=report.to_dict(),
                request=Request.NONE,
                changed_at=time.time(),
            )
            self._note_progress(connection, progress, schema.LANE)
            self._note_lanes(connection, of_lanes)
            if status is not TransferStatus.STOPPED:
                leaves = check(Operation.FINISH, group.id, group.status)
                connection.execute(
                    update(schema.groups)
                    .where(schema.groups.c.id == group.id)
                    .values(status=leaves)
                )
                connection.execute(delete(table).where(table.c.lane_id.in_(lanes)))
            if disconnect_for:
                disconnections.begin(connection, self.record.id, time.time() + disconnect_for)
            elif disconnect_for is not None and report.lets_scripts:
                disconnections.once(connection, self.record.id)
            write_event(connection, group.id, message, of=self.record.id, level=None)

    def _lane(self, name: str) -> int:
        return next(each.id for each in self.record.lanes if each.name == name)

    def _note_progress(self, connection: Connection, progress: Progress, lane: str) -> None:
        values = {"lane": self._lane(lane), "progress": progress.to_dict()}
        self._progress.execute(connection, values)

    def _note_lanes(self, connection: Connection, of_lanes: Mapping[str, Progress] | None) -> None:
        """A lane may be over since its progress was told: the lanes were planned anew."""
        names = {each.name for each in self.record.lanes}
        for lane, each in (of_lanes or {}).items():
            if lane in names:
                self._note_progress(connection, each, lane)

    def _change(self, connection: Connection, **values: Any) -> None:
        self._renew(connection)
        table = schema.migrations
        mine = table.c.id == self.record.id
        connection.execute(update(table).where(mine).values(values))

    def _renew(self, connection: Connection) -> Request:
        """Renew the lease, before anything else. Returns what the operator wants."""
        return self._found(self._renewal.execute(connection).one_or_none())

    def _found(self, row: Row[Any] | None) -> Request:
        if row is None:
            raise self._lost()
        return Request(row[0])

    def _lost(self) -> ClaimLost:
        return ClaimLost(
            f"the migration of {self.record.group_id} is no longer this process's: another one "
            "has taken it over, or it was ended"
        )
