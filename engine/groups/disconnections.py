"""The disconnecting of a source's clients behind a cut-over, in the state.

A row stands for one migration that is completed. It is made in the transaction that ends the
migration, is claimed by one process at a time (`attempt` counts the claims), and is over when its
time is, or when somebody says so: then `ended` tells why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from engine.groups import schema
from engine.groups.process import ProcessId
from engine.groups.records import START_GRACE, TransferRecord
from engine.groups.rows import transfer_of, write_event
from engine.groups.store import Store
from engine.model.source_clients import SourceClients

_TABLE = schema.disconnections


def begin(connection: Connection, transfer_id: int, until: float) -> None:
    """Have the clients of this migration's source disconnected until then (seconds since the
    epoch); what was found before is kept."""
    known = connection.execute(select(_TABLE).where(_TABLE.c.transfer_id == transfer_id)).first()
    found = SourceClients(until=until)
    if known is not None:
        found = replace(SourceClients.from_dict(known.clients), until=until, ended="")
    attempt = 0 if known is None else known.attempt + 1
    connection.execute(delete(_TABLE).where(_TABLE.c.transfer_id == transfer_id))
    connection.execute(
        insert(_TABLE),
        {
            "transfer_id": transfer_id,
            "attempt": attempt,
            "until": until,
            "ended": "",
            "process": None,
            "heartbeat_at": time.time(),
            "clients": found.to_dict(),
        },
    )


def end(store: Store, transfer_id: int, why: str) -> bool:
    """Stop it; False if it had ended before, or never began. Raises `StateError`."""
    with store.write() as connection:
        row = _going_on(connection, transfer_id)
        if row is None:
            return False
        found = replace(SourceClients.from_dict(row.clients), ended=why)
        connection.execute(
            update(_TABLE)
            .where(_TABLE.c.transfer_id == transfer_id)
            .values(ended=why, clients=found.to_dict(), attempt=row.attempt + 1)
        )
        return True


def unattended(store: Store, *, grace: float = START_GRACE) -> list[str]:
    """The groups for which it is to go on and no process does it, nor is one just starting: that
    takes `grace` seconds at the most. Raises `StateError`."""
    query = (
        select(schema.transfers.c.group_id, _TABLE)
        .join(schema.transfers, schema.transfers.c.id == _TABLE.c.transfer_id)
        .where(_TABLE.c.ended == "", _TABLE.c.until > time.time())
    )
    with store.read() as connection:
        return [row.group_id for row in connection.execute(query) if not _held(row, grace)]


def found(store: Store) -> dict[str, SourceClients]:
    """What was found, by group: of the newest migration that it is done for. `StateError`."""
    query = (
        select(schema.transfers.c.group_id, _TABLE.c.clients)
        .join(schema.transfers, schema.transfers.c.id == _TABLE.c.transfer_id)
        .order_by(_TABLE.c.transfer_id)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    return {row.group_id: SourceClients.from_dict(row.clients) for row in rows}


@dataclass(frozen=True, slots=True)
class Claimed:
    """The disconnecting for one migration, in the hands of this process. Every method raises
    `StateError` when the database fails."""

    store: Store
    transfer: TransferRecord
    found: SourceClients
    attempt: int
    first: bool
    """Whether no process had it before, since it began or was asked for again."""

    def write(self, found: SourceClients) -> float | None:
        """Keep what was found; until when it is to go on, None: it was ended, or is another
        process's by now."""
        values: dict[str, Any] = {"clients": found.to_dict(), "heartbeat_at": time.time()}
        with self.store.write() as connection:
            row = connection.execute(
                update(_TABLE)
                .where(*self._mine())
                .values(ended=found.ended, **values)
                .returning(_TABLE.c.until)
            ).one_or_none()
            return None if row is None or found.ended else float(row.until)

    def tell(self, message: str) -> None:
        """Note an event of the group."""
        with self.store.write() as connection:
            write_event(connection, self.transfer.group_id, message)

    def _mine(self) -> tuple[Any, ...]:
        return (
            _TABLE.c.transfer_id == self.transfer.id,
            _TABLE.c.attempt == self.attempt,
            _TABLE.c.ended == "",
        )


def claim(store: Store, group_id: str, process: ProcessId) -> Claimed | None:
    """Take it over for `process`: the newest of the group that goes on and is not held by a living
    process; None if there is none. Raises `StateError`."""
    transfers = schema.transfers
    query = (
        select(_TABLE)
        .join(transfers, transfers.c.id == _TABLE.c.transfer_id)
        .where(transfers.c.group_id == group_id, _TABLE.c.ended == "")
        .order_by(_TABLE.c.transfer_id.desc())
    )
    with store.write() as connection:
        for row in connection.execute(query).all():
            if row.until <= time.time() or _held(row, 0.0):
                continue
            attempt = row.attempt + 1
            connection.execute(
                update(_TABLE)
                .where(_TABLE.c.transfer_id == row.transfer_id)
                .values(attempt=attempt, process=process.to_dict(), heartbeat_at=time.time())
            )
            found = connection.execute(
                select(transfers).where(transfers.c.id == row.transfer_id)
            ).one()
            transfer = transfer_of(found)
            clients = SourceClients.from_dict(row.clients)
            return Claimed(store, transfer, clients, attempt, first=row.process is None)
    return None


def extend(store: Store, transfer_id: int, seconds: float) -> None:
    """Have it go on, or begin anew, for `seconds` from now. Raises `StateError`."""
    with store.write() as connection:
        begin(connection, transfer_id, time.time() + seconds)


def _going_on(connection: Connection, transfer_id: int) -> Row[Any] | None:
    query = select(_TABLE).where(_TABLE.c.transfer_id == transfer_id, _TABLE.c.ended == "")
    return connection.execute(query).one_or_none()


def _held(row: Row[Any], grace: float) -> bool:
    """Whether a living process has it, or one is just starting."""
    age = time.time() - row.heartbeat_at
    if not row.process:
        return bool(age < grace)
    return ProcessId.from_dict(row.process).alive(age)
