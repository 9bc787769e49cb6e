"""Between the tables' rows and the records; queries that both sides of the state use."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from engine import logs
from engine.errors import ReplicationGroupNotFoundFault
from engine.groups import schema
from engine.groups.lease import LAUNCH_SECONDS, LEASE_SECONDS, Lease, Witness, Worker
from engine.groups.records import EventRecord, GroupRecord, LaneRecord, TransferRecord
from engine.groups.states import ENDED, Request, TransferStatus
from engine.model.clients_after_cut_over import SourceClients
from engine.model.group_shards import GroupShard
from engine.model.joined_sentences import tidied
from engine.model.lane_plan import PlannedLane
from engine.model.progress import Progress
from engine.model.report import Report
from engine.model.sentinel_group import node_address
from engine.model.settings import TransferSettings

_log = logs.logger(__name__)
# Columns of disconnections beside those of migrations, by the names that they have there.
_CLIENTS = {
    "clients_ended": "ended",
    "clients_process": "process",
    "clients_heartbeat_at": "heartbeat_at",
}
# Parameters of one statement; SQLite's limit is higher.
_IDS_AT_ONCE = 500
WITNESS = "witness"
"""The option of a connection that tells which workers are known to have ended (`Store`)."""
EVENT_DAYS = 14
"""Events are kept for as long as ElastiCache keeps them."""


def known_ended(connection: Connection, worker: Worker | None) -> bool:
    """Whether the worker is known to have ended."""
    witness: Witness = connection.get_execution_options()[WITNESS]
    return worker is not None and witness(worker)


def seconds_now(connection: Connection) -> float:
    """Seconds since the epoch by the clock of the database."""
    return float(connection.execute(select(schema.now())).scalar_one())


def group_of(row: Row[Any]) -> GroupRecord:
    """A row of replication_groups as a record."""
    data = dict(row._mapping)
    shards = data.pop("shards", None) or ()
    return GroupRecord(**data, shards=tuple(map(GroupShard.from_dict, shards)))


def transfers_of(connection: Connection, rows: Iterable[Row[Any]]) -> list[TransferRecord]:
    """Rows of migrations as records."""
    found = list(rows)
    lanes, paused = _lanes(connection, found), _paused(connection, found)
    return [
        replace(_transfer_of(connection, row, lanes[row.id]), paused=row.id in paused)
        for row in found
    ]


def _paused(connection: Connection, rows: Sequence[Row[Any]]) -> set[int]:
    """Which of these migrations, of those that are not over, the operator has paused."""
    table = schema.steering
    going_on = [row.id for row in rows if row.status not in ENDED]
    found: set[int] = set()
    for at in range(0, len(going_on), _IDS_AT_ONCE):
        mine = table.c.migration_id.in_(going_on[at : at + _IDS_AT_ONCE])
        found.update(
            connection.execute(select(table.c.migration_id).where(mine, table.c.paused)).scalars()
        )
    return found


def transfer_by_id(connection: Connection, transfer_id: int) -> TransferRecord:
    """The migration that has this number, which is there."""
    query = select(schema.migrations).where(schema.migrations.c.id == transfer_id)
    (found,) = transfers_of(connection, [connection.execute(query).one()])
    return found


def _transfer_of(
    connection: Connection, row: Row[Any], lanes: Sequence[LaneRecord]
) -> TransferRecord:
    data = dict(row._mapping)
    del data["events"]
    data["status"] = TransferStatus(data["status"])
    data["request"] = Request(data["request"])
    data["source_urls"] = tuple(data["source_urls"])
    data["settings_data"] = data.pop("settings")
    data["report"] = Report.from_dict(data["report"]) if data["report"] else None
    data["lanes"] = tuple(lanes)
    clients, clients_row = data.pop("clients", None), [data.pop(each, None) for each in _CLIENTS]
    data["source_clients"] = (
        None if clients is None else clients_of(connection, clients, *clients_row)
    )
    return TransferRecord(**data)


def _lanes(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, list[LaneRecord]]:
    """The lanes of these migrations, by migration."""
    lanes, leases, plans = schema.lanes, schema.leases, schema.lane_plans
    # Whether the worker of one that is over has ended is of no interest.
    over = {row.id for row in rows if row.status in ENDED}
    found: dict[int, list[LaneRecord]] = {row.id: [] for row in rows}
    ids = list(found)
    for at in range(0, len(ids), _IDS_AT_ONCE):
        query = (
            select(
                lanes,
                leases.c.term,
                leases.c.worker,
                leases.c.renewed_at,
                leases.c.ends_at,
                schema.now().label("now"),
                plans.c.plan,
            )
            .join(leases, leases.c.id == lanes.c.lease_id)
            .outerjoin(plans, plans.c.lane_id == lanes.c.id)
            .where(lanes.c.migration_id.in_(ids[at : at + _IDS_AT_ONCE]))
            .order_by(lanes.c.id)
        )
        for row in connection.execute(query):
            worker = Worker.from_dict(row.worker) if row.worker else None
            lease = Lease(
                id=row.lease_id,
                term=row.term,
                worker=worker,
                renewed_at=row.renewed_at,
                age=row.now - row.renewed_at,
                left=row.ends_at - row.now,
                ended=row.migration_id not in over and known_ended(connection, worker),
            )
            found[row.migration_id].append(
                LaneRecord(
                    id=row.id,
                    name=row.name,
                    source_url=row.source_url,
                    shard=row.shard,
                    slots=row.slots,
                    progress=Progress.from_dict(row.progress or {}),
                    lease=lease,
                    plan=PlannedLane.from_dict(row.plan) if row.plan else None,
                )
            )
    return found


def clients_of(
    connection: Connection,
    clients: dict[str, Any],
    ended: str,
    process: dict[str, Any] | None,
    heartbeat_at: float,
) -> SourceClients:
    """What a row of disconnections tells, and whether a worker sees to it."""
    # What is written there is when it was told.
    found = replace(SourceClients.from_dict(clients), unattended_since=None)
    if ended or attended(connection, process, heartbeat_at, LAUNCH_SECONDS):
        return found
    # How many are there by now is not known.
    return replace(found, connected=None, unattended_since=heartbeat_at)


def attended(
    connection: Connection, process: dict[str, Any] | None, heartbeat_at: float, grace: float
) -> bool:
    """Whether a living worker disconnects clients, or one is just starting, which takes `grace`
    seconds at the most."""
    age = seconds_now(connection) - heartbeat_at
    if not process:
        return age < grace
    return age < LEASE_SECONDS and not known_ended(connection, Worker.from_dict(process))


def event_of(row: Row[Any]) -> EventRecord:
    """A row of events as a record."""
    return EventRecord(**row._mapping)


def groups() -> Select[Any]:
    """Every group, as `group_of` reads them."""
    table, engines, shards = schema.groups, schema.engines, schema.shards
    return (
        select(table, engines.c.engine, shards.c.shards)
        .outerjoin(engines, engines.c.group_id == table.c.id)
        .outerjoin(shards, shards.c.group_id == table.c.id)
    )


def write_engine(connection: Connection, group_id: str, engine: str) -> None:
    """Note what a group's servers run."""
    table = schema.engines
    connection.execute(delete(table).where(table.c.group_id == group_id))
    connection.execute(insert(table), {"group_id": group_id, "engine": engine})


def write_shards(connection: Connection, group_id: str, shards: Sequence[GroupShard]) -> None:
    """Note which shards a group has; none: it is no cluster."""
    table = schema.shards
    connection.execute(delete(table).where(table.c.group_id == group_id))
    if shards:
        told = [each.to_dict() for each in shards]
        connection.execute(insert(table), {"group_id": group_id, "shards": told})


def add_lanes(
    connection: Connection, transfer_id: int, lease_id: int, lanes: Sequence[PlannedLane]
) -> None:
    """The lanes of a migration with a cluster at an end, under the lease of the whole."""
    for each in lanes:
        row = {"migration_id": transfer_id, "name": each.name, "lease_id": lease_id}
        table = schema.lanes
        insertion = insert(table).returning(table.c.id)
        lane_id = connection.execute(insertion, row | _planned(each)).scalar_one()
        connection.execute(insert(schema.lane_plans), {"lane_id": lane_id, "plan": each.to_dict()})


def write_steering(
    connection: Connection, transfer_id: int, *, paused: bool, settings: TransferSettings
) -> None:
    """Note how fast a migration is to move data from now on, and whether it is paused."""
    table = schema.steering
    rates = {"max_rate": settings.max_rate, "max_key_rate": settings.max_key_rate}
    connection.execute(delete(table).where(table.c.migration_id == transfer_id))
    connection.execute(insert(table), {"migration_id": transfer_id, "paused": paused, **rates})


def keep_lanes(
    connection: Connection, transfer_id: int, lease_id: int, lanes: Sequence[PlannedLane]
) -> None:
    """From now on the migration has these lanes: those that are there go on, with their
    checkpoints, under another plan; others are added; those that are not among them are over."""
    table, plans = schema.lanes, schema.lane_plans
    query = (
        select(table.c.name, table.c.id)
        .join(plans, plans.c.lane_id == table.c.id)
        .where(table.c.migration_id == transfer_id)
    )
    there = {row.name: row.id for row in connection.execute(query)}
    names = {each.name for each in lanes}
    over = [lane_id for name, lane_id in there.items() if name not in names]
    for each in (schema.checkpoints, plans):
        connection.execute(delete(each).where(each.c.lane_id.in_(over)))
    connection.execute(delete(table).where(table.c.id.in_(over)))
    for lane in lanes:
        if (lane_id := there.get(lane.name)) is not None:
            connection.execute(update(table).where(table.c.id == lane_id).values(_planned(lane)))
            mine = plans.c.lane_id == lane_id
            connection.execute(update(plans).where(mine).values(plan=lane.to_dict()))
    add_lanes(connection, transfer_id, lease_id, [each for each in lanes if each.name not in there])


def _planned(lane: PlannedLane) -> dict[str, str]:
    """What the columns of a lane say of its plan."""
    place, ids = node_address(lane.source.host, lane.source.port), lane.source.ids
    return {
        "source_url": f"redis://{place}" if ids else "",
        "shard": ids[0] if ids else "",
        "slots": str(lane.slots),
    }


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
    table, clients = schema.migrations, schema.disconnections
    found: list[Row[Any]] = []
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
        found += connection.execute(query)
    return {each.group_id: each for each in transfers_of(connection, found)}


def lock_lease(connection: Connection, group_id: str) -> None:
    """Keep the group's workers from renewing until the transaction ends: whether one is alive is
    not to change between the look and what follows from it."""
    leases, migrations = schema.leases, schema.migrations
    mine = select(migrations.c.id).where(migrations.c.group_id == group_id)
    locked = select(leases.c.id).where(leases.c.migration_id.in_(mine)).with_for_update()
    connection.execute(locked).all()


def give_lease(connection: Connection, lease_id: int, term: int, worker: Worker | None) -> None:
    """Name the worker that has the lease from now on; None: one is to be named soon."""
    seconds = LAUNCH_SECONDS if worker is None else LEASE_SECONDS
    values = {
        "term": term,
        "worker": None if worker is None else worker.to_dict(),
        "renewed_at": schema.now(),
        "ends_at": schema.now() + seconds,
    }
    table = schema.leases
    connection.execute(update(table).where(table.c.id == lease_id).values(values))


def write_event(
    connection: Connection,
    group_id: str,
    message: str,
    *,
    of: int | None = None,
    level: int | None = logging.INFO,
) -> None:
    """Note an event, in the log as well, and drop those that are too old.

    `of`: the migration that it is of; None: of the group alone. `level` is the log's; None: the log
    has it already.
    """
    now, message = time.time(), tidied(message)
    if level is not None:
        _log.log(level, message, extra={"migration": group_id, "event": True})
    row = {"group_id": group_id, "at": now, "message": message, "migration_id": of}
    connection.execute(insert(schema.events), {**row, "number": _next_number(connection, of)})
    oldest = now - EVENT_DAYS * 86400
    connection.execute(delete(schema.events).where(schema.events.c.at < oldest))


def _next_number(connection: Connection, transfer_id: int | None) -> int | None:
    table = schema.migrations
    if transfer_id is None:
        return None
    # The row's lock keeps two writers from the same number.
    counted = (
        update(table)
        .where(table.c.id == transfer_id)
        .values(events=table.c.events + 1)
        .returning(table.c.events)
    )
    return connection.execute(counted).scalar()
