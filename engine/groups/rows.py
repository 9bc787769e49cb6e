"""Between the tables' rows and the records; queries that both sides of the state use."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select

from engine import logs
from engine.errors import ReplicationGroupNotFoundFault
from engine.groups import schema
from engine.groups.process import ProcessId
from engine.groups.records import START_GRACE, EventRecord, GroupRecord, TransferRecord
from engine.groups.states import Request, TransferStatus
from engine.model.message_text import tidied
from engine.model.progress import Progress
from engine.model.report import Report
from engine.model.source_clients import SourceClients

_log = logs.logger(__name__)
# Columns of disconnections beside those of transfers, by the names that they have there.
_CLIENTS = {
    "clients_ended": "ended",
    "clients_process": "process",
    "clients_heartbeat_at": "heartbeat_at",
}
# Parameters of one statement; SQLite's limit is higher.
_IDS_AT_ONCE = 500
EVENT_DAYS = 14
"""Events are kept for as long as ElastiCache keeps them."""


def group_of(row: Row[Any]) -> GroupRecord:
    """A row of replication_groups as a record."""
    return GroupRecord(**row._mapping)


def transfer_of(row: Row[Any]) -> TransferRecord:
    """A row of transfers as a record."""
    data = dict(row._mapping)
    data["status"] = TransferStatus(data["status"])
    data["request"] = Request(data["request"])
    data["source_urls"] = tuple(data["source_urls"])
    data["settings_data"] = data.pop("settings")
    data["progress"] = Progress.from_dict(data["progress"] or {})
    data["report"] = Report.from_dict(data["report"]) if data["report"] else None
    data["process"] = ProcessId.from_dict(data["process"]) if data["process"] else None
    clients, clients_row = data.pop("clients", None), [data.pop(each, None) for each in _CLIENTS]
    data["source_clients"] = None if clients is None else clients_of(clients, *clients_row)
    return TransferRecord(**data)


def clients_of(
    clients: dict[str, Any], ended: str, process: dict[str, Any] | None, heartbeat_at: float
) -> SourceClients:
    """What a row of disconnections tells, and whether a process sees to it."""
    # What is written there is when it was told.
    found = replace(SourceClients.from_dict(clients), unattended_since=None)
    if ended or attended(process, heartbeat_at, START_GRACE):
        return found
    # How many are there by now is not known.
    return replace(found, connected=None, unattended_since=heartbeat_at)


def attended(process: dict[str, Any] | None, heartbeat_at: float, grace: float) -> bool:
    """Whether a living process disconnects clients, or one is just starting, which takes `grace`
    seconds at the most."""
    age = time.time() - heartbeat_at
    if not process:
        return age < grace
    return ProcessId.from_dict(process).alive(age)


def event_of(row: Row[Any]) -> EventRecord:
    """A row of events as a record."""
    return EventRecord(**row._mapping)


def groups() -> Select[Any]:
    """Every group, as `group_of` reads them."""
    table, engines = schema.groups, schema.engines
    return select(table, engines.c.engine).outerjoin(engines, engines.c.group_id == table.c.id)


def write_engine(connection: Connection, group_id: str, engine: str) -> None:
    """Note what a group's servers run."""
    table = schema.engines
    connection.execute(delete(table).where(table.c.group_id == group_id))
    connection.execute(insert(table), {"group_id": group_id, "engine": engine})


def group_by_id(connection: Connection, group_id: str, *, lock: bool = False) -> GroupRecord:
    """The group, locked against other writers where the database has row locks (SQLite's write
    transactions exclude each other anyway). Raises `ReplicationGroupNotFoundFault`."""
    query = groups().where(schema.groups.c.id == group_id)
    if lock:
        query = query.with_for_update(of=schema.groups)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise ReplicationGroupNotFoundFault(f"ReplicationGroup {group_id} not found.")
    return group_of(row)


def newest_transfer(connection: Connection, group_id: str) -> TransferRecord | None:
    """The transfer that goes on, or else the last one that did."""
    return newest_transfers(connection, [group_id]).get(group_id)


def newest_transfers(connection: Connection, group_ids: Sequence[str]) -> dict[str, TransferRecord]:
    """The same of several groups, by group; those that never had one are left out."""
    table, clients = schema.transfers, schema.disconnections
    found: dict[str, TransferRecord] = {}
    for at in range(0, len(group_ids), _IDS_AT_ONCE):
        newest = (
            select(func.max(table.c.id))
            .where(table.c.group_id.in_(group_ids[at : at + _IDS_AT_ONCE]))
            .group_by(table.c.group_id)
        )
        query = (
            select(
                table,
                clients.c.clients,
                *(clients.c[column].label(name) for name, column in _CLIENTS.items()),
            )
            .outerjoin(clients, clients.c.transfer_id == table.c.id)
            .where(table.c.id.in_(newest))
        )
        for row in connection.execute(query):
            transfer = transfer_of(row)
            found[transfer.group_id] = transfer
    return found


def write_event(
    connection: Connection, group_id: str, message: str, *, level: int | None = logging.INFO
) -> None:
    """Note an event, in the log as well, and drop those that are too old.

    `level` is the log's; None: the log has it already.
    """
    now, message = time.time(), tidied(message)
    if level is not None:
        _log.log(level, message, extra={"migration": group_id, "event": True})
    connection.execute(insert(schema.events), {"group_id": group_id, "at": now, "message": message})
    oldest = now - EVENT_DAYS * 86400
    connection.execute(delete(schema.events).where(schema.events.c.at < oldest))
