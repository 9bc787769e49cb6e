"""The disconnecting of a source's clients behind a cut-over, in the state.

A row stands for one migration that is completed. It is made in the transaction that ends the
migration, is claimed by one process at a time (`attempt` counts the claims), and is over when its
time is, or when the operator says so: then `ended` says why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, delete, insert, select, update

from engine.groups import schema
from engine.groups.lease import LAUNCH_SECONDS, Worker
from engine.groups.records import TransferRecord
from engine.groups.rows import attended, clients_of, seconds_now, transfer_by_id, write_event
from engine.groups.store import Store
from engine.model.clients_after_cut_over import SourceClients, alone, ending, moment

_TABLE = schema.disconnections


def begin(connection: Connection, transfer_id: int, until: float, *, ended: str = "") -> None:
    """Have the clients of this migration's source disconnected until then (seconds since the
    epoch); what was found before is kept. `ended`: they are not, for this reason, and that is to be
    known."""
    known = connection.execute(select(_TABLE).where(_TABLE.c.transfer_id == transfer_id)).first()
    found = SourceClients(until=until, lets_scripts=_lets_scripts(connection, transfer_id))
    if known is not None:
        found = replace(
            SourceClients.from_dict(known.clients), until=until, ended="", unattended_since=None
        )
    if ended:
        found = found.end(ended)
    attempt = 0 if known is None else known.attempt + 1
    connection.execute(delete(_TABLE).where(_TABLE.c.transfer_id == transfer_id))
    connection.execute(
        insert(_TABLE).values(
            transfer_id=transfer_id,
            attempt=attempt,
            until=until,
            ended=found.ended,
            process=None,
            heartbeat_at=schema.now(),
            clients=found.to_dict(),
        )
    )


def once(connection: Connection, transfer_id: int) -> None:
    """Note that the clients of this migration's source were disconnected once, and are not again,
    although it does not refuse all writes."""
    why = "they were disconnected once (--disconnect-for 0)"
    begin(connection, transfer_id, time.time(), ended=why)


def note_once(store: Store, transfer_id: int) -> None:
    """As `once`, if it does not refuse all writes. Raises `StateError`."""
    with store.write() as connection:
        if _lets_scripts(connection, transfer_id):
            once(connection, transfer_id)


def _lets_scripts(connection: Connection, transfer_id: int) -> bool:
    report = schema.migrations.c.report
    result = connection.execute(
        select(report).where(schema.migrations.c.id == transfer_id)
    ).scalar()
    return bool(result and result.get("lets_scripts"))


def end(store: Store, transfer: TransferRecord, why: str, *, refuses: bool = True) -> bool:
    """Stop it, with an event; False if it had ended before, or never began. `refuses` as for
    `SourceClients.end`. Raises `StateError`."""
    with store.write() as connection:
        row = _unfinished(connection, transfer.id)
        if row is None:
            return False
        found = _clients(connection, row)
        if found.unattended_since is not None:
            # What was run since then was not counted.
            found = replace(found, scripts=None, writes=None, unattended_since=None)
        found = found.end(why, refuses=refuses)
        connection.execute(
            update(_TABLE)
            .where(_TABLE.c.transfer_id == transfer.id)
            .values(ended=found.ended, clients=found.to_dict(), attempt=row.attempt + 1)
        )
        write_event(connection, transfer.group_id, ending(found), of=transfer.id)
        return True


def unattended(store: Store, *, grace: float = LAUNCH_SECONDS, patience: float = 0.0) -> list[str]:
    """The groups for which it is to go on and no process does it, nor is one just starting: that
    takes `grace` seconds at the most. One that has shown that it lives less than `patience` seconds
    ago is still waited for. Raises `StateError`."""
    query = _with_groups(_TABLE).where(_TABLE.c.ended == "", _TABLE.c.until > time.time())
    with store.read() as connection:
        now = seconds_now(connection)
        return [
            row.group_id
            for row in connection.execute(query).all()
            if not attended(connection, row.process, row.heartbeat_at, grace)
            and now - row.heartbeat_at >= patience
        ]


def report_unattended(store: Store) -> None:
    """Note an event, once, for each that is to go on, or was to until its time was over, and is
    done by no process. Raises `StateError`."""
    query = _with_groups(_TABLE).where(_TABLE.c.ended == "")
    with store.read() as connection:
        rows = [(row, _clients(connection, row)) for row in connection.execute(query).all()]
    for row, found in rows:
        since = found.unattended_since
        if since is None or row.clients.get("unattended_since") == since:
            continue
        with store.write() as connection:
            result = connection.execute(
                update(_TABLE)
                .where(
                    _TABLE.c.transfer_id == row.transfer_id,
                    _TABLE.c.attempt == row.attempt,
                    _TABLE.c.heartbeat_at == row.heartbeat_at,
                    _TABLE.c.ended == "",
                )
                .values(clients={**row.clients, "unattended_since": since})
            )
            if result.rowcount:
                message = alone(found, row.group_id)
                write_event(connection, row.group_id, message, of=row.transfer_id)


def found(store: Store) -> dict[str, SourceClients]:
    """What was found, by group: of the newest migration that it is done for. `StateError`."""
    query = _with_groups(_TABLE).order_by(_TABLE.c.transfer_id)
    with store.read() as connection:
        rows = connection.execute(query).all()
        return {row.group_id: _clients(connection, row) for row in rows}


def _clients(connection: Connection, row: Row[Any]) -> SourceClients:
    return clients_of(connection, row.clients, row.ended, row.process, row.heartbeat_at)


def _with_groups(table: Table) -> Select[Any]:
    transfers = schema.migrations
    return select(transfers.c.group_id, table).join(
        transfers, transfers.c.id == table.c.transfer_id
    )


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
        with self.store.write() as connection:
            row = self._write(connection, found)
            return None if row is None else float(row.until)

    def end(self, found: SourceClients) -> bool:
        """It is over (`found.ended`), with an event; False: it was before, or is another process's
        by now."""
        with self.store.write() as connection:
            if self._write(connection, found) is None:
                return False
            write_event(connection, self.transfer.group_id, ending(found), of=self.transfer.id)
            return True

    def _write(self, connection: Connection, found: SourceClients) -> Row[Any] | None:
        values: dict[str, Any] = {"clients": found.to_dict(), "heartbeat_at": schema.now()}
        return connection.execute(
            update(_TABLE)
            .where(*self._mine())
            .values(ended=found.ended, **values)
            .returning(_TABLE.c.until)
        ).one_or_none()

    def add_event(self, message: str) -> None:
        """Note an event of the group."""
        with self.store.write() as connection:
            write_event(connection, self.transfer.group_id, message, of=self.transfer.id)

    def _mine(self) -> tuple[Any, ...]:
        return (
            _TABLE.c.transfer_id == self.transfer.id,
            _TABLE.c.attempt == self.attempt,
            _TABLE.c.ended == "",
        )


def claim(store: Store, group_id: str, worker: Worker) -> Claimed | None:
    """Take it over for `worker`: the newest of the group that goes on and is not held by a living
    one; None if there is none. Raises `StateError`."""
    transfers = schema.migrations
    query = (
        select(_TABLE)
        .join(transfers, transfers.c.id == _TABLE.c.transfer_id)
        .where(transfers.c.group_id == group_id, _TABLE.c.ended == "")
        .order_by(_TABLE.c.transfer_id.desc())
    )
    with store.write() as connection:
        for row in connection.execute(query).all():
            if row.until <= time.time() or attended(connection, row.process, row.heartbeat_at, 0.0):
                continue
            attempt = row.attempt + 1
            connection.execute(
                update(_TABLE)
                .where(_TABLE.c.transfer_id == row.transfer_id)
                .values(attempt=attempt, process=worker.to_dict(), heartbeat_at=schema.now())
            )
            transfer = transfer_by_id(connection, row.transfer_id)
            clients = replace(SourceClients.from_dict(row.clients), unattended_since=None)
            return Claimed(store, transfer, clients, attempt, first=row.process is None)
    return None


def extend(store: Store, transfer_id: int, seconds: float) -> None:
    """Have it go on, or begin anew, for `seconds` from now. Raises `StateError`."""
    until = time.time() + seconds
    with store.write() as connection:
        row = _unfinished(connection, transfer_id)
        if row is None or not attended(connection, row.process, row.heartbeat_at, 0.0):
            begin(connection, transfer_id, until)
            return
        # The process that does it goes on: the source would have to accept another one first.
        connection.execute(
            update(_TABLE)
            .where(_TABLE.c.transfer_id == transfer_id)
            .values(until=until, clients={**row.clients, "until": until})
        )
        text = f"clients that connect to the source are disconnected until {moment(until)} by now"
        write_event(connection, _group_of(connection, transfer_id), text, of=transfer_id)


def _group_of(connection: Connection, transfer_id: int) -> str:
    query = select(schema.migrations.c.group_id).where(schema.migrations.c.id == transfer_id)
    return str(connection.execute(query).scalar_one())


def _unfinished(connection: Connection, transfer_id: int) -> Row[Any] | None:
    query = select(_TABLE).where(_TABLE.c.transfer_id == transfer_id, _TABLE.c.ended == "")
    return connection.execute(query).one_or_none()
