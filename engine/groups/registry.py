"""The operator's side of the state: each operation one transaction.

The worker's side is `claimed`. What may be done, and when, is the table in `states`.
"""

from __future__ import annotations

import builtins
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exc, func, insert, select, update

from engine.errors import (
    InvalidReplicationGroupStateFault,
    ReplicationGroupAlreadyExistsFault,
    ReplicationGroupAlreadyUnderMigrationFault,
    ReplicationGroupNotFoundFault,
)
from engine.groups import disconnections, schema, verifications
from engine.groups.claimed_transfer import ClaimedTransfer
from engine.groups.lease import Witness, Worker, no_witness
from engine.groups.records import KILLED, EventRecord, GroupRecord, TransferRecord
from engine.groups.rows import (
    add_lanes,
    event_of,
    give_lease,
    group_by_id,
    group_of,
    groups,
    lock_lease,
    newest_transfer,
    newest_transfers,
    transfer_by_id,
    transfers_of,
    write_engine,
    write_event,
    write_shards,
    write_steering,
)
from engine.groups.states import (
    CUT_OVERS,
    ENDED,
    GroupStatus,
    Operation,
    Request,
    TransferStatus,
    check,
    move,
)
from engine.groups.store import Store
from engine.model.checkpoint import Checkpoint
from engine.model.clients_after_cut_over import SourceClients
from engine.model.endpoint import Endpoint
from engine.model.group_shards import GroupShard
from engine.model.lane_plan import PlannedLane
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.model.throttle import PAUSED, rate_words

_LEFT_KEYS = (
    "the migration before this one was not completed, and has left keys on the target, which was "
    "empty before it: test-migration (its check `leftovers`) says whether they are still there"
)
EVENTS_LIMIT = 1000
"""`list_events` returns the newest ones up to this many."""


class Registry:
    """The groups of one state database. Safe to use from several threads.

    Every method raises `StateError` when the database fails.
    """

    def __init__(self, state: str | None = None, *, witness: Witness = no_witness) -> None:
        """Open the state that `state` names (see `Store`). `witness` tells which workers are known
        to have ended; of all others their leases alone tell."""
        self.store = Store(state, witness=witness)
        weakref.finalize(self, self.store.close)

    # --- Groups ---

    def register(
        self,
        group_id: str,
        primary: Endpoint,
        *,
        description: str = "",
        cluster_enabled: bool = False,
        engine: str | None = None,
    ) -> GroupRecord:
        """Add a group; the endpoint is kept without its password. `engine`: what its servers run,
        if that is known.

        Raises `ReplicationGroupAlreadyExistsFault`.
        """
        group = GroupRecord(
            id=group_id,
            description=description,
            status=GroupStatus.AVAILABLE.value,
            cluster_enabled=cluster_enabled,
            primary_url=primary.url,
            created_at=time.time(),
            engine=engine,
        )
        with self.store.write() as connection:
            table = schema.groups
            if connection.execute(select(table.c.id).where(table.c.id == group_id)).first():
                raise _exists(group_id)
            row = {column.name: getattr(group, column.name) for column in table.c}
            try:
                connection.execute(insert(table), row)
            except exc.IntegrityError:
                # Another process was faster (only where writers do not exclude each other).
                raise _exists(group_id) from None
            if engine is not None:
                write_engine(connection, group_id, engine)
            write_event(connection, group_id, f"registered, with primary {primary.address}")
        return group

    def note_engine(self, group_id: str, engine: str) -> None:
        """Note what the group's servers run, as they have told."""
        with self.store.write() as connection:
            if group_by_id(connection, group_id).engine != engine:
                write_engine(connection, group_id, engine)

    def note_shards(self, group_id: str, shards: Sequence[GroupShard]) -> None:
        """Note which shards the group has, as it has told; none: it is no cluster."""
        table = schema.groups
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            if group.shards != tuple(shards):
                write_shards(connection, group_id, shards)
            if shards and not group.cluster_enabled:
                mine = table.c.id == group_id
                connection.execute(update(table).where(mine).values(cluster_enabled=True))

    def get(self, group_id: str) -> tuple[GroupRecord, TransferRecord | None]:
        """The group, and its transfer that goes on (or the last one).

        Raises `ReplicationGroupNotFoundFault`.
        """
        with self.store.read() as connection:
            group = group_by_id(connection, group_id)
            verified = verifications.found(connection, [group_id]).get(group_id)
            return replace(group, verification=verified), newest_transfer(connection, group_id)

    def list(
        self, *, after: str = "", limit: int | None = 100
    ) -> tuple[list[tuple[GroupRecord, TransferRecord | None]], str | None]:
        """Up to `limit` groups by id (None: all), from the one after `after` on; and, if more are
        left, the id to go on after."""
        table = schema.groups
        query = groups().where(table.c.id > after).order_by(table.c.id)
        if limit is not None:
            query = query.limit(limit + 1)
        with self.store.read() as connection:
            found = [group_of(row) for row in connection.execute(query)]
            more = None
            if limit is not None and len(found) > limit:
                found, more = found[:limit], found[limit - 1].id
            ids = [group.id for group in found]
            newest = newest_transfers(connection, ids)
            verified = verifications.found(connection, ids)
        shown = [replace(group, verification=verified.get(group.id)) for group in found]
        return [(group, newest.get(group.id)) for group in shown], more

    def under_migration(self) -> builtins.list[tuple[GroupRecord, TransferRecord]]:
        """Every group that is under migration, with its transfer."""
        table = schema.groups
        query = groups().where(table.c.status == GroupStatus.MIGRATING).order_by(table.c.id)
        with self.store.read() as connection:
            found = [group_of(row) for row in connection.execute(query)]
            return [(group, _unfinished(connection, group.id)) for group in found]

    def ended(self) -> dict[str, int]:
        """How many migrations of the groups here ended as `done`, `failed` and `forced`."""
        status = schema.migrations.c.status
        query = select(status, func.count()).where(status.in_(ENDED)).group_by(status)
        with self.store.read() as connection:
            counts = {str(row[0]): int(row[1]) for row in connection.execute(query)}
        return {str(each): counts.get(each, 0) for each in sorted(ENDED)}

    def source_clients(self) -> dict[str, SourceClients]:
        """What was found of the clients of sources that were cut over from, by group."""
        return disconnections.found(self.store)

    def blocked_by(self, group_id: str) -> TransferRecord | None:
        """The group's last transfer that has left its source refusing writes; None: there is none.

        One that is stopped counts, if nothing goes on with the target as it is. Raises the faults
        of `Operation.UNBLOCK`.
        """
        table = schema.migrations
        query = select(table).where(table.c.group_id == group_id).order_by(table.c.id.desc())
        with self.store.read() as connection:
            group = group_by_id(connection, group_id)
            newest = newest_transfer(connection, group_id)
            if newest is not None and _blocked_in_vain(connection, newest):
                return newest
            check(Operation.UNBLOCK, group_id, group.status)
            found = transfers_of(connection, connection.execute(query))
        # One that found the write block in place has not set it; an earlier one may have.
        return next((each for each in found if each.report and each.report.sealed), None)

    def found_closed_by(self, group_id: str) -> TransferRecord | None:
        """The group's last transfer whose cut-over found its source refusing writes; None: none
        did. Raises `ReplicationGroupNotFoundFault`."""
        table = schema.migrations
        query = select(table).where(table.c.group_id == group_id).order_by(table.c.id.desc())
        with self.store.read() as connection:
            group_by_id(connection, group_id)
            found = transfers_of(connection, connection.execute(query))
        return next((each for each in found if each.report and each.report.closed_before), None)

    def check(self, operation: Operation, group_id: str) -> GroupRecord:
        """The group, if its status allows `operation`; else the table's fault."""
        group, _ = self.get(group_id)
        check(operation, group_id, group.status)
        return group

    def delete(self, group_id: str) -> GroupRecord:
        """Forget a group and its transfers, with the files of its verification (its events stay);
        returns what it was.

        Raises `ReplicationGroupNotFoundFault`, `InvalidReplicationGroupStateFault`.
        """
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            check(Operation.DELETE, group_id, group.status)
            connection.execute(delete(schema.groups).where(schema.groups.c.id == group_id))
            write_event(connection, group_id, "deleted")
        verifications.forget_files(self.store, group_id)
        return group

    # --- Migrations ---

    def begin_migration(
        self,
        group_id: str,
        sources: Sequence[Endpoint],
        settings: TransferSettings,
        *,
        lanes: Sequence[PlannedLane] = (),
        worker: Worker | None = None,
    ) -> TransferRecord:
        """Take the group from available to migrating, with a new transfer: of two processes that
        try, one does. `lanes`: those that it has where an end is a cluster. `worker` is the one
        that is going to claim it, if that is known already. Raises the faults of
        `Operation.START`."""
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            status = check(Operation.START, group_id, group.status)
            _set_status(connection, group, status)
            before = newest_transfer(connection, group_id)
            begun = _add_transfer(connection, group, sources, settings)
            lease = _add_lane(connection, begun, sources[0], worker)
            add_lanes(connection, begun, lease, lanes)
            named = ", ".join(source.address for source in sources)
            write_event(connection, group_id, f"migration from {named} started", of=begun)
            if before is not None and _left_keys(before):
                write_event(connection, group_id, _LEFT_KEYS, of=begun)
            return transfer_by_id(connection, begun)

    def resume_migration(
        self,
        group_id: str,
        *,
        worker: Worker | None = None,
        changes: Mapping[str, Any] | None = None,
        accept_source_loss: bool = False,
    ) -> TransferRecord:
        """Make the transfer of a stopped or dead worker ready for a new one (`worker`, if that is
        known already).

        `changes` are settings that are others from now on (`settings.CHANGEABLE`).
        `accept_source_loss`: a source that has lost data is followed all the same, and the target
        becomes what the source is now; this holds for the next full sync alone.

        Where a target came back older after its promotion, and the migration was stopped for that,
        this is the operator's word to bring it up to date again.

        Raises the faults of `Operation.RESUME`, `ReplicationGroupAlreadyUnderMigrationFault` while
        a living worker has it, and `UsageError` for changes that make no sense.
        """
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            check(Operation.RESUME, group_id, group.status)
            transfer = _unfinished(connection, group_id, lock=True)
            if transfer.leased():
                raise _held(transfer)
            _hand_on(connection, transfer, worker)
            write_event(connection, group_id, "migration resumed", of=transfer.id)
            if accept_source_loss:
                _accept_loss(connection, transfer)
            if transfer.status is TransferStatus.STOPPED:
                _accept_target(connection, transfer)
            values: dict[str, Any] = {}
            if changes:
                settings = replace(transfer.settings, **changes)
                values["settings"] = settings.to_dict()
                write_steering(connection, transfer.id, paused=transfer.paused, settings=settings)
            return _change(
                connection,
                transfer,
                **values,
                status=move(transfer.status, TransferStatus.PENDING),
                request=Request.NONE,
                refusal=KILLED if transfer.undecided else "",
            )

    def replace_worker(self, group_id: str, message: str) -> TransferRecord | None:
        """Make the transfer of a worker that was killed ready for a new one, with the event
        `message`.

        What the operator asked of the killed one is asked of the new one, but for a cut-over that
        had begun: it either completes or leads back, and is not begun again unasked. Which of the
        two it is the new worker finds out (`TransferRecord.undecided`). Returns None, and changes
        nothing, if there is no such transfer: it ended, was stopped, or lives.
        """
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            lock_lease(connection, group_id)
            transfer = newest_transfer(connection, group_id)
            if group.status != GroupStatus.MIGRATING or transfer is None:
                return None
            if not transfer.orphaned():
                return None
            _hand_on(connection, transfer, None)
            write_event(connection, group_id, message, of=transfer.id, level=logging.WARNING)
            return _change(
                connection,
                transfer,
                status=move(transfer.status, TransferStatus.PENDING),
                request=Request.NONE if transfer.broken_off else transfer.request,
                refusal=_refusal_behind(transfer),
            )

    def note_launch(self, transfer: TransferRecord, worker: Worker) -> None:
        """Remember the worker that was started for a transfer, until it claims it by itself."""
        with self.store.write() as connection:
            try:
                group_by_id(connection, transfer.group_id, lock=True)
            except ReplicationGroupNotFoundFault:
                return  # the worker has ended it already, and the group was deleted
            now = newest_transfer(connection, transfer.group_id)
            if now is None or now.id != transfer.id or now.status is not TransferStatus.PENDING:
                return
            if now.lease.term == transfer.lease.term:
                give_lease(connection, now.lease.id, now.lease.term, worker)

    def claim_transfer(self, group_id: str, worker: Worker) -> ClaimedTransfer:
        """Take the group's transfer for `worker`, over from a dead one if need be.

        Raises the faults of `Operation.RESUME`, and `ReplicationGroupAlreadyUnderMigrationFault`
        while another living worker has it.
        """
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            check(Operation.RESUME, group_id, group.status)
            transfer = _unfinished(connection, group_id, lock=True)
            other = transfer.worker is not None and transfer.worker != worker
            if other and transfer.leased():
                raise _held(transfer)
            # A pending one's term is the claimant's already: no other process has it yet.
            pending = transfer.status is TransferStatus.PENDING
            term = transfer.lease.term + (0 if pending else 1)
            give_lease(connection, transfer.lease.id, term, worker)
            _forget_progress(connection, transfer)
            claimed = _change(
                connection, transfer, status=move(transfer.status, TransferStatus.RUNNING)
            )
        return ClaimedTransfer(self.store, claimed)

    def request(self, group_id: str, request: Request) -> None:
        """Tell the worker of a group under migration what the operator wants.

        Raises the faults of `Operation.COMPLETE` and `Operation.STOP`.
        """
        operation = Operation.STOP if request is Request.STOP else Operation.COMPLETE
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            check(operation, group_id, group.status)
            transfer = _unfinished(connection, group_id)
            if transfer.paused and request in CUT_OVERS:
                raise InvalidReplicationGroupStateFault(
                    f"cannot {operation} replication group {group_id}: it is {PAUSED}."
                )
            _change(connection, transfer, request=request, refusal="")
            words = {
                Request.COMPLETE: "completion requested",
                Request.COMPLETE_UNVERIFIED: "completion without the comparison requested",
                Request.FORCE: f"abort requested (force): {_met_by_force(connection, transfer)}",
                Request.STOP: "stop requested",
            }
            write_event(connection, group_id, words[request], of=transfer.id)

    def set_rate(
        self, group_id: str, *, max_rate: int | None = None, max_key_rate: int | None = None
    ) -> TransferRecord:
        """At most this many bytes and keys a second are moved from now on (0: no bound; None: as
        before); its worker, and those that come, keep to it.

        Raises the faults of `Operation.STEER`, and `UsageError` for a rate that is none.
        """
        with self.store.write() as connection:
            transfer = _steered(connection, Operation.STEER, group_id)
            before = transfer.settings
            settings = replace(
                before,
                max_rate=before.max_rate if max_rate is None else max_rate,
                max_key_rate=before.max_key_rate if max_key_rate is None else max_key_rate,
            )
            write_steering(connection, transfer.id, paused=transfer.paused, settings=settings)
            words = f"rate set: {rate_words(settings.max_rate, settings.max_key_rate)}"
            write_event(connection, group_id, words, of=transfer.id)
            return _change(connection, transfer, settings=settings.to_dict())

    def pause(self, group_id: str, paused: bool) -> bool:
        """Pause the migration, or have it go on; whether that was not so before.

        Raises the faults of `Operation.PAUSE` and `Operation.CONTINUE`, and
        `InvalidReplicationGroupStateFault` for a pause while a cut-over is wanted or under way.
        """
        operation = Operation.PAUSE if paused else Operation.CONTINUE
        with self.store.write() as connection:
            transfer = _steered(connection, operation, group_id)
            if transfer.paused is paused:
                return False
            cuts_over = transfer.progress.phase is Phase.CUT_OVER and transfer.leased()
            if paused and (cuts_over or transfer.request in CUT_OVERS):
                raise InvalidReplicationGroupStateFault(
                    f"cannot {operation} replication group {group_id}: its cut-over is asked for, "
                    "or under way.",
                    remedy="Wait for its end.",
                )
            settings = transfer.settings
            write_steering(connection, transfer.id, paused=paused, settings=settings)
            words = "migration paused" if paused else "migration continued"
            write_event(connection, group_id, words, of=transfer.id)
            return True

    def end_without_worker(self, group_id: str, report: Report, message: str) -> bool:
        """End a transfer that no living worker has: the group becomes available again.

        Returns False, and changes nothing, if a living worker has it. Raises the faults of
        `Operation.FINISH`.
        """
        with self.store.write() as connection:
            group = group_by_id(connection, group_id, lock=True)
            status = check(Operation.FINISH, group_id, group.status)
            transfer = _unfinished(connection, group_id, lock=True)
            if transfer.leased():
                return False
            _end(connection, group, transfer, TransferStatus.FORCED, report, message)
            _set_status(connection, group, status)
        return True

    def note_write_block(self, transfer_id: int, report: Report) -> None:
        """A transfer that ended without a worker: what its abort has left at the source."""
        table = schema.migrations
        with self.store.write() as connection:
            connection.execute(
                update(table).where(table.c.id == transfer_id).values(report=report.to_dict())
            )

    def fail_start(self, transfer: TransferRecord, report: Report, message: str) -> None:
        """The worker of a transfer could not be started: the group becomes available again."""
        with self.store.write() as connection:
            group = group_by_id(connection, transfer.group_id, lock=True)
            status = check(Operation.FINISH, group.id, group.status)
            _end(connection, group, transfer, TransferStatus.FAILED, report, message)
            _set_status(connection, group, status)

    # --- Events ---

    def add_event(self, group_id: str, message: str, *, level: int = logging.INFO) -> None:
        """Note something that happened to a group, or to its migration that is not over."""
        table = schema.migrations
        of = select(table.c.id).where(table.c.group_id == group_id, table.c.status.not_in(ENDED))
        with self.store.write() as connection:
            going_on = connection.execute(of).scalar()
            write_event(connection, group_id, message, of=going_on, level=level)

    def page_events(
        self,
        group_id: str | None = None,
        *,
        since: float | None = None,
        until: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> tuple[Sequence[EventRecord], int | None]:
        """Up to `limit` events (of one group, or of all) between two times, both included, oldest
        first, from the one after the id `after` on; and, if more are left, the id to go on after.
        """
        table = schema.events
        query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit + 1)
        if group_id is not None:
            query = query.where(table.c.group_id == group_id)
        if since is not None:
            query = query.where(table.c.at >= since)
        if until is not None:
            query = query.where(table.c.at <= until)
        with self.store.read() as connection:
            found = [event_of(row) for row in connection.execute(query)]
        more = found[limit - 1].id if len(found) > limit else None
        return found[:limit], more

    def checkpoints(self, transfer: TransferRecord) -> dict[str, Checkpoint]:
        """The last one that a worker of this transfer has saved, of each lane that has one, by the
        lane's name; none before, and after its end."""
        with self.store.read() as connection:
            return _checkpoints_of(connection, transfer)

    def checkpoint_times(self) -> dict[int, float]:
        """When each transfer's checkpoint was written (seconds since the epoch), by its id: of the
        lane whose checkpoint is the oldest."""
        table, lanes = schema.checkpoints, schema.lanes
        query = (
            select(lanes.c.migration_id, func.min(table.c.saved_at))
            .join(lanes, lanes.c.id == table.c.lane_id)
            .group_by(lanes.c.migration_id)
        )
        with self.store.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def list_events(
        self, group_id: str | None = None, *, limit: int = EVENTS_LIMIT
    ) -> Sequence[EventRecord]:
        """The newest events (of one group, or of all), oldest first."""
        table = schema.events
        query = select(table).order_by(table.c.id.desc()).limit(limit)
        if group_id is not None:
            query = query.where(table.c.group_id == group_id)
        with self.store.read() as connection:
            return [event_of(row) for row in connection.execute(query)][::-1]


def _steered(connection: Connection, operation: Operation, group_id: str) -> TransferRecord:
    """The migration that the operator steers."""
    group = group_by_id(connection, group_id, lock=True)
    check(operation, group_id, group.status)
    return _unfinished(connection, group_id)


def _unfinished(connection: Connection, group_id: str, *, lock: bool = False) -> TransferRecord:
    """The migration of a group that is under migration; `lock` as `lock_lease` does."""
    if lock:
        lock_lease(connection, group_id)
    transfer = newest_transfer(connection, group_id)
    # A group becomes migrating in the transaction that adds its transfer.
    assert transfer is not None
    return transfer


def _refusal_behind(transfer: TransferRecord) -> str:
    """The refusal for the worker that is put in this one's place: it holds if that worker does not
    find the target open. Another one stays until the next word."""
    if transfer.undecided:
        return KILLED
    # Told, and over: the next worker's CONNECT does not put it in doubt again.
    return "" if transfer.refusal == KILLED else transfer.refusal


def _set_status(connection: Connection, group: GroupRecord, status: GroupStatus) -> None:
    table = schema.groups
    changed = connection.execute(
        update(table)
        .where(table.c.id == group.id, table.c.status == group.status)
        .values(status=status)
    )
    if changed.rowcount != 1:
        raise ReplicationGroupAlreadyUnderMigrationFault(
            f"replication group {group.id} was changed by another process at the same moment."
        )


def _add_transfer(
    connection: Connection,
    group: GroupRecord,
    sources: Sequence[Endpoint],
    settings: TransferSettings,
) -> int:
    now, table = time.time(), schema.migrations
    added = connection.execute(
        insert(table).returning(table.c.id),
        {
            "group_id": group.id,
            "status": TransferStatus.PENDING,
            "source_urls": [source.url for source in sources],
            "target_url": group.primary_url,
            "settings": settings.to_dict(),
            "changed_at": now,
            "created_at": now,
            "request": Request.NONE,
            "refusal": "",
            "events": 0,
        }
        | _unused_id(connection),
    )
    return int(added.scalar_one())


def _unused_id(connection: Connection) -> dict[str, int]:
    """The number of a migration that is to come, where the database would use one again: SQLite
    gives the highest one anew when its row was deleted, and events of that one are there still."""
    if connection.dialect.name != "sqlite":
        return {}
    highest = (schema.migrations.c.id, schema.events.c.migration_id)
    found = (connection.execute(select(func.max(each))).scalar() for each in highest)
    return {"id": 1 + max(each or 0 for each in found)}


def _add_lane(
    connection: Connection, transfer_id: int, source: Endpoint, worker: Worker | None
) -> int:
    """The one lane of a migration, or that of the whole, with its lease, whose number it gives."""
    table = schema.leases
    row = {"migration_id": transfer_id, "term": 1, "renewed_at": 0.0, "ends_at": 0.0}
    lease_id = connection.execute(insert(table).returning(table.c.id), row).scalar_one()
    give_lease(connection, lease_id, 1, worker)
    connection.execute(
        insert(schema.lanes),
        {
            "migration_id": transfer_id,
            "name": schema.LANE,
            "source_url": source.url,
            "shard": "",
            "slots": schema.ALL_SLOTS,
            "lease_id": lease_id,
        },
    )
    return int(lease_id)


def _hand_on(connection: Connection, transfer: TransferRecord, worker: Worker | None) -> None:
    """A new term: one that lives after all finds that its own is over."""
    give_lease(connection, transfer.lease.id, transfer.lease.term + 1, worker)
    _forget_progress(connection, transfer)


def _forget_progress(connection: Connection, transfer: TransferRecord) -> None:
    """The dead worker's last word on being ready is not the new one's."""
    table = schema.lanes
    mine = table.c.migration_id == transfer.id
    connection.execute(update(table).where(mine).values(progress=None))


def _change(connection: Connection, transfer: TransferRecord, **values: Any) -> TransferRecord:
    table = schema.migrations
    changed = {"changed_at": time.time(), **values}
    connection.execute(update(table).where(table.c.id == transfer.id).values(changed))
    return transfer_by_id(connection, transfer.id)


def _end(
    connection: Connection,
    group: GroupRecord,
    transfer: TransferRecord,
    status: TransferStatus,
    report: Report,
    message: str,
) -> None:
    # A worker that lives after all (on a machine that lost us) finds that it is no longer its.
    table = schema.leases
    mine = table.c.migration_id == transfer.id
    connection.execute(update(table).where(mine).values(term=table.c.term + 1))
    _change(
        connection,
        transfer,
        status=move(transfer.status, status),
        report=report.to_dict(),
        request=Request.NONE,
    )
    write_event(connection, group.id, message, of=transfer.id)


def _exists(group_id: str) -> ReplicationGroupAlreadyExistsFault:
    return ReplicationGroupAlreadyExistsFault(f"ReplicationGroup {group_id} already exists.")


def _left_keys(transfer: TransferRecord) -> bool:
    """Whether an ended transfer may have left keys in a target that was empty before it."""
    ended = transfer.status in (TransferStatus.FAILED, TransferStatus.FORCED)
    moved = transfer.report.keys if transfer.report is not None else 0
    return ended and moved > 0 and transfer.held_before is False


def _accept_loss(connection: Connection, transfer: TransferRecord) -> None:
    accepted = "the loss of data at the source is accepted (--accept-source-loss)"
    write_event(connection, transfer.group_id, accepted, of=transfer.id)
    for lane, found in _checkpoints_of(connection, transfer).items():
        if isinstance(found.position, OnlineCheckpoint):
            position = replace(found.position, loss_accepted=True)
            _replace_checkpoint(connection, transfer, lane, replace(found, position=position))
        elif found.file is None:
            # A cursor of the data that is gone: the source is read from its first key.
            connection.execute(delete(schema.checkpoints).where(_of_lane(transfer, lane)))


def _accept_target(connection: Connection, transfer: TransferRecord) -> None:
    accepted = False
    for lane, found in _checkpoints_of(connection, transfer).items():
        if isinstance(found.position, OnlineCheckpoint) and found.position.came_back:
            position = found.position.accepted()
            _replace_checkpoint(connection, transfer, lane, replace(found, position=position))
            accepted = True
    if accepted:
        again = "the target is updated again from the source"
        write_event(connection, transfer.group_id, again, of=transfer.id)


def _blocked_in_vain(connection: Connection, transfer: TransferRecord) -> bool:
    """Whether a stopped transfer has left its source refusing writes, and the target is not
    promoted, or came back older: then the source may be let on."""
    stopped = transfer.status is TransferStatus.STOPPED
    if not stopped or transfer.report is None or not transfer.report.sealed:
        return False
    marks = _marks_of(connection, transfer)
    if not marks:
        return False
    if any(mark.came_back for mark in marks):
        return True
    return not any(mark.promoting or mark.opened for mark in marks)


def _met_by_force(connection: Connection, transfer: TransferRecord) -> str:
    """What an abort will do, by the checkpoint: the target may be open already."""
    marks = _marks_of(connection, transfer)
    if not any(mark.came_back for mark in marks):
        if any(mark.opened for mark in marks):
            sealed = any(mark.sealed for mark in marks)
            refuses = "; the source refuses writes, until unblock-source" if sealed else ""
            return f"the cut-over has happened, and the target is promoted{refuses}"
        if any(mark.promoting and not mark.timed for mark in marks):
            return (
                "the promotion was sent to the target, and the target is asked whether it happened"
            )
    return "no cut-over, and no fence stays at the source"


def _of_lane(transfer: TransferRecord, lane: str) -> ColumnElement[bool]:
    """The checkpoint of one of its lanes."""
    lane_id = next(each.id for each in transfer.lanes if each.name == lane)
    return schema.checkpoints.c.lane_id == lane_id


def _checkpoints_of(connection: Connection, transfer: TransferRecord) -> dict[str, Checkpoint]:
    names = {each.id: each.name for each in transfer.lanes}
    table = schema.checkpoints
    query = select(table.c.lane_id, table.c.checkpoint).where(table.c.lane_id.in_(names))
    rows = connection.execute(query.order_by(table.c.lane_id))
    return {names[row[0]]: Checkpoint.from_dict(row[1]) for row in rows}


def _marks_of(connection: Connection, transfer: TransferRecord) -> list[OnlineCheckpoint]:
    """What its lanes have done to both ends, where its source is followed."""
    found = _checkpoints_of(connection, transfer).values()
    positions = [each.position for each in found]
    return [each for each in positions if isinstance(each, OnlineCheckpoint)]


def _replace_checkpoint(
    connection: Connection, transfer: TransferRecord, lane: str, checkpoint: Checkpoint
) -> None:
    changed = update(schema.checkpoints).where(_of_lane(transfer, lane))
    connection.execute(changed.values(checkpoint=checkpoint.to_dict()))


def _held(transfer: TransferRecord) -> ReplicationGroupAlreadyUnderMigrationFault:
    worker = transfer.worker
    who = f"{worker.name} on {worker.host}" if worker else "a worker process that is just starting"
    return ReplicationGroupAlreadyUnderMigrationFault(
        f"replication group {transfer.group_id} is already under migration, by {who}."
    )
