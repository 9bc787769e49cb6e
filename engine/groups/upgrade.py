"""States that earlier versions have left, brought to the tables of this one.

A step takes a state from one version to the next, within the transaction of the process that opens
it first: all of it, or nothing. The tables of the earlier version are described here as that
version had them, and nowhere else.

A worker of the earlier version that still runs would find its tables gone in the middle of its
migration. It is told by what it has left in the state, as its own version would have judged it, and
the upgrade is refused with what to do. A process that disconnects clients goes on: the rows that it
writes are there as it knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
    update,
)

from engine.errors import StateError
from engine.groups import schema
from engine.groups.lease import LAUNCH_SECONDS, LEASE_SECONDS, Worker
from engine.groups.rows import known_ended, seconds_now

_JSON = JSON(none_as_null=True)
# Migrations that are moved at once.
_ROWS_AT_ONCE = 200
_NAMED_MOST = 3

# --- Version 1: a migration's worker, progress and checkpoint in its own row ---

_one = MetaData()
_transfers = Table(
    "transfers",
    _one,
    Column("id", Integer, primary_key=True),
    Column("group_id", String(40)),
    Column("status", String(20)),
    Column("attempt", Integer),
    Column("source_urls", _JSON),
    Column("target_url", Text),
    Column("settings", _JSON),
    Column("held_before", Boolean),
    Column("progress", _JSON),
    Column("report", _JSON),
    Column("process", _JSON),
    Column("heartbeat_at", Float),
    Column("changed_at", Float),
    Column("created_at", Float),
    Column("request", String(20)),
    Column("refusal", Text),
)
_checkpoints = Table(
    "checkpoints_1",
    _one,
    Column("transfer_id", Integer, primary_key=True),
    Column("checkpoint", _JSON),
    Column("saved_at", Float),
)
_disconnections = Table(
    "disconnections_1",
    _one,
    Column("transfer_id", Integer, primary_key=True),
    Column("attempt", Integer),
    Column("until", Float),
    Column("ended", Text),
    Column("process", _JSON),
    Column("heartbeat_at", Float),
    Column("clients", _JSON),
)

# Settings that have another name now.
_SETTINGS_OF_1 = {"hold_horizon": "extend_horizon"}


def _from_1(connection: Connection, name: str) -> int:
    # 1. No process writes any more, and no worker is in the middle of something.
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE transfers IN ACCESS EXCLUSIVE MODE"))
    _refuse_while_leased(connection, name)
    # 2. The names of the tables that are others now are free; those that came later may be missing.
    tables = set(inspect(connection).get_table_names())
    old = [each for each in ("checkpoints", "disconnections") if each in tables]
    for each in old:
        connection.execute(text(f"ALTER TABLE {each} RENAME TO {each}_1"))
    for column in ("migration_id", "number"):
        connection.execute(text(f"ALTER TABLE events ADD COLUMN {column} INTEGER"))
    schema.metadata.create_all(connection)
    for index in schema.events.indexes:
        index.create(connection, checkfirst=True)
    # 3. What was in them, in the order in which it refers to each other.
    _move(connection, _transfers, _add_migration)
    if "checkpoints" in old:
        _move(connection, _checkpoints, _add_checkpoint)
    if "disconnections" in old:
        _move(connection, _disconnections, _add_disconnection)
    _number_events(connection)
    if connection.dialect.name == "postgresql":
        # Their numbers were given, not drawn.
        top = "SELECT setval(pg_get_serial_sequence('migrations', 'id'), max(id)) FROM migrations"
        connection.execute(text(f"{top} HAVING max(id) IS NOT NULL"))
    # 4. SQLite deletes a table's rows before it drops it, and what refers to them.
    for table in (*(f"{each}_1" for each in old), "transfers"):
        connection.execute(text(f"DROP TABLE {table}"))
    return 2


def _refuse_while_leased(connection: Connection, name: str) -> None:
    now, table = seconds_now(connection), _transfers
    query = select(table).where(table.c.status.in_(("pending", "running"))).order_by(table.c.id)
    leased = [row for row in connection.execute(query).all() if _leased_in_1(connection, row, now)]
    if not leased:
        return
    named = [f"{row.group_id} ({_who(row)})" for row in leased[:_NAMED_MOST]]
    more = f" and {len(leased) - _NAMED_MOST} more" if len(leased) > _NAMED_MOST else ""
    raise StateError(
        f"the state {name} was written by an earlier version, whose workers still run: of the "
        f"migrations of {', '.join(named)}{more}",
        remedy="Stop these processes (kill PID) and resume the migrations with this version, or "
        "let them end first. Nothing was changed.",
    )


def _leased_in_1(connection: Connection, row: Row[Any], now: float) -> bool:
    if row.process is None:
        return bool(now - row.changed_at < LAUNCH_SECONDS)
    silent = now - row.heartbeat_at >= LEASE_SECONDS
    return not silent and not known_ended(connection, _worker(row.process))


def _who(row: Row[Any]) -> str:
    if row.process is None:
        return "just starting"
    worker = _worker(row.process)
    return f"{worker.name} on {worker.host}"


def _worker(process: Mapping[str, Any]) -> Worker:
    """Version 1 knew processes alone."""
    pid = process["pid"]
    return Worker(f"process {pid}", process["host"], {"Pid": pid}, dict(process))


def _move(
    connection: Connection, table: Table, add: Callable[[Connection, Row[Any]], None]
) -> None:
    """Every row, some at a time."""
    (key,) = table.primary_key
    last = -1
    while rows := _after(connection, table, key, last):
        for row in rows:
            add(connection, row)
        last = rows[-1]._mapping[key]


def _after(connection: Connection, table: Table, key: Column[Any], last: int) -> list[Row[Any]]:
    query = select(table).where(key > last).order_by(key).limit(_ROWS_AT_ONCE)
    return list(connection.execute(query))


def _add_migration(connection: Connection, row: Row[Any]) -> None:
    columns = [each.name for each in schema.migrations.columns if each.name in _transfers.c]
    values = {name: row._mapping[name] for name in columns}
    values["settings"] = {
        _SETTINGS_OF_1.get(name, name): value for name, value in row.settings.items()
    }
    connection.execute(insert(schema.migrations), {**values, "events": 0})
    # Its number is its migration's, and so is its lane's: each has one.
    lease = {
        "migration_id": row.id,
        "term": row.attempt,
        "worker": _worker(row.process).to_dict() if row.process else None,
        "renewed_at": row.heartbeat_at,
        "ends_at": row.heartbeat_at + LEASE_SECONDS
        if row.process
        else row.changed_at + LAUNCH_SECONDS,
    }
    table = schema.leases
    lease_id = connection.execute(insert(table).returning(table.c.id), lease).scalar_one()
    lane = {
        "migration_id": row.id,
        "name": schema.LANE,
        "source_url": row.source_urls[0],
        "shard": "",
        "slots": schema.ALL_SLOTS,
        "lease_id": lease_id,
        "progress": row.progress,
    }
    connection.execute(insert(schema.lanes), lane)


def _add_checkpoint(connection: Connection, row: Row[Any]) -> None:
    lanes = schema.lanes
    lane = select(lanes.c.id).where(lanes.c.migration_id == row.transfer_id).scalar_subquery()
    connection.execute(
        insert(schema.checkpoints).values(
            lane_id=lane, checkpoint=row.checkpoint, saved_at=row.saved_at
        )
    )


def _add_disconnection(connection: Connection, row: Row[Any]) -> None:
    values = dict(row._mapping)
    values["process"] = _worker(row.process).to_dict() if row.process else None
    connection.execute(insert(schema.disconnections), values)


def _number_events(connection: Connection) -> None:
    """Give each event to the migration that had begun by then, if its group had one."""
    table = schema.migrations
    query = select(table.c.id, table.c.group_id, table.c.created_at)
    rows = connection.execute(query.order_by(table.c.group_id, table.c.id)).all()
    for row, next_one in zip_longest(rows, rows[1:]):
        same = next_one is not None and next_one.group_id == row.group_id
        until = next_one.created_at if next_one is not None and same else None
        _number(connection, row.id, row.group_id, row.created_at, until)


def _number(
    connection: Connection, transfer_id: int, group_id: str, since: float, until: float | None
) -> None:
    events = schema.events
    query = select(events.c.id).where(events.c.group_id == group_id, events.c.at >= since)
    if until is not None:
        query = query.where(events.c.at < until)
    numbers: Iterable[int] = connection.execute(query.order_by(events.c.id)).scalars().all()
    count = 0
    for count, event_id in enumerate(numbers, 1):
        mine = events.c.id == event_id
        numbered = update(events).where(mine).values(migration_id=transfer_id, number=count)
        connection.execute(numbered)
    counted = update(schema.migrations).where(schema.migrations.c.id == transfer_id)
    connection.execute(counted.values(events=count))


# --- Version 2: a migration has one lane ---


def _from_2(connection: Connection, name: str) -> int:
    # Tables are added, and none is changed: a worker of version 2 that still runs goes on. Of what
    # has several lanes it would run the first, which is why the version is another one.
    del name
    schema.metadata.create_all(connection)
    return 3


STEPS: Mapping[int, Callable[[Connection, str], int]] = {1: _from_1, 2: _from_2}
"""For each earlier version what takes a state on from it (connection, the state's name for people);
returns the version that it has then. Raises `StateError` if it must not be, in words."""
