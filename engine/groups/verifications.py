"""The verification of a group, in the state: its keys compared with those of a source.

A group has one row, of its newest verification. It is claimed by one process (`number` counts the
verifications, so that one that was replaced notices), and is over once it has a result.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from engine.errors import InvalidReplicationGroupStateFault
from engine.groups import schema
from engine.groups.lease import LAUNCH_SECONDS, Worker
from engine.groups.records import GroupRecord, VerificationRecord
from engine.groups.rows import attended, group_by_id, write_event
from engine.groups.store import Store
from engine.model.report_paths import ReportPaths

_TABLE = schema.verifications
# Parameters of one statement; SQLite's limit is higher.
_IDS_AT_ONCE = 500


def begin(store: Store, group_id: str, source_url: str, asked: Mapping[str, Any]) -> None:
    """Have the group verified against this source. Raises `ReplicationGroupNotFoundFault`,
    `InvalidReplicationGroupStateFault` while it is being verified, and `StateError`."""
    with store.write() as connection:
        group_by_id(connection, group_id, lock=True)
        row = _row(connection, group_id)
        if row is not None and _goes_on(connection, row):
            raise InvalidReplicationGroupStateFault(
                f"cannot verify replication group {group_id}: a verification of it is under way.",
                remedy="Wait for its end, or stop it.",
            )
        # (Without one before, what is in files is of a group that was deleted.)
        resumed = {"resume": False} if row is None else {}
        connection.execute(delete(_TABLE).where(_TABLE.c.group_id == group_id))
        connection.execute(
            insert(_TABLE).values(
                group_id=group_id,
                number=1 if row is None else row.number + 1,
                source_url=source_url,
                asked=dict(asked) | resumed,
                began_at=time.time(),
                ended_at=None,
                stop=False,
                process=None,
                heartbeat_at=schema.now(),
                progress={},
                result=None,
            )
        )
        write_event(connection, group_id, "verification started")


def stop(store: Store, group_id: str) -> bool:
    """Ask the process that verifies the group to stop; False: none does. Raises
    `ReplicationGroupNotFoundFault`, `StateError`."""
    with store.write() as connection:
        group_by_id(connection, group_id)
        row = _row(connection, group_id)
        if row is None or not _goes_on(connection, row):
            return False
        connection.execute(update(_TABLE).where(_TABLE.c.group_id == group_id).values(stop=True))
        return True


@dataclass(frozen=True, slots=True)
class Claimed:
    """A verification in the hands of this process. Every method raises `StateError` when the
    database fails."""

    store: Store
    group: GroupRecord
    source_url: str
    asked: Mapping[str, Any]
    number: int
    began_at: float
    process: Mapping[str, Any]

    def write(self, progress: Mapping[str, Any]) -> bool:
        """Keep how far it is; whether it is to go on."""
        values = {"progress": dict(progress), "heartbeat_at": schema.now()}
        with self.store.write() as connection:
            row = self._write(connection, values)
            return row is not None and not row.stop

    def end(self, result: Mapping[str, Any], event: str) -> None:
        """It is over, with an event, unless another one has replaced it."""
        values = {"result": dict(result), "ended_at": time.time()}
        with self.store.write() as connection:
            if self._write(connection, values) is not None:
                write_event(connection, self.group.id, event)

    def _write(self, connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
        row = _row(connection, self.group.id, lock=True)
        if row is None or row.ended_at is not None or not self._has(row):
            return None
        # (The row is ours until the transaction ends.)
        connection.execute(
            update(_TABLE).where(_TABLE.c.group_id == self.group.id).values(**values)
        )
        return row

    def _has(self, row: Row[Any]) -> bool:
        """Whether the row is its own: of a group that was deleted another one of its name may have
        one of the same number."""
        ours = (self.number, self.began_at, self.process)
        return (row.number, row.began_at, row.process) == ours


def claim(store: Store, group_id: str, worker: Worker) -> Claimed | None:
    """Take over the group's verification; None: there is none that no living process has. Raises
    `StateError`."""
    with store.write() as connection:
        row = _row(connection, group_id, lock=True)
        if row is None or row.ended_at is not None:
            return None
        if attended(connection, row.process, row.heartbeat_at, 0.0):
            return None
        process = worker.to_dict()
        connection.execute(
            update(_TABLE)
            .where(_TABLE.c.group_id == group_id)
            .values(process=process, heartbeat_at=schema.now())
        )
        group = group_by_id(connection, group_id)
        asked, number = row.asked, row.number
        return Claimed(store, group, row.source_url, asked, number, row.began_at, process)


def found(connection: Connection, group_ids: Sequence[str]) -> dict[str, VerificationRecord]:
    """The newest verification of each of these groups that has had one."""
    records = {}
    for at in range(0, len(group_ids), _IDS_AT_ONCE):
        query = select(_TABLE).where(_TABLE.c.group_id.in_(group_ids[at : at + _IDS_AT_ONCE]))
        for row in connection.execute(query):
            records[row.group_id] = VerificationRecord(
                source_url=row.source_url,
                asked=row.asked,
                began_at=row.began_at,
                ended_at=row.ended_at,
                progress=row.progress,
                result=row.result,
                goes_on=_goes_on(connection, row),
            )
    return records


def _goes_on(connection: Connection, row: Row[Any]) -> bool:
    if row.ended_at is not None:
        return False
    return attended(connection, row.process, row.heartbeat_at, LAUNCH_SECONDS)


def _row(connection: Connection, group_id: str, *, lock: bool = False) -> Row[Any] | None:
    """`lock`: no other transaction has it until ours ends."""
    query = select(_TABLE).where(_TABLE.c.group_id == group_id)
    if lock:
        query = query.with_for_update()
    return connection.execute(query).one_or_none()


def report_paths(store: Store, group_id: str) -> ReportPaths:
    """The files of a group's newest verification."""
    return ReportPaths(store.folder / f"verification-{group_id}.jsonl")


def forget_files(store: Store, group_id: str) -> None:
    """Remove what the verifications of a group that was deleted have left in files. They stay while
    a process has them, which notices that the group is gone."""
    paths = report_paths(store, group_id)
    # (They may be on another machine, where its processes ran.)
    with suppress(OSError), ExitStack() as stack:
        with suppress(FileNotFoundError):
            part = stack.enter_context(paths.part.open("rb"))
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for each in paths.all_files:
            each.unlink(missing_ok=True)
