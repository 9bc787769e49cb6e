"""The applier of a cluster's node: batches with a record alone, never in a transaction.

A node takes no transaction of keys in two slots, so that the position cannot ride with the data:
everything goes command by command with a record behind it. `ext/position_records.pxi` says why
nothing is lost or doubled by that, and what has to be on the target before what.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence, Set
from typing import Any

from engine._native import CommandBatch, Sent, Transaction
from engine.errors import LinkError, ServerError, TransferFailed
from engine.model.lane_keys import KeysOfLane
from engine.model.online_checkpoint import POSITION_DB
from engine.targets.applier import Applied, Applier, PositionMoved, databases_of
from engine.targets.slot_keys import remove_keys
from engine.wire.connection import Connection
from engine.wire.info_command import ask_info


class ClusterApplier(Applier):
    """As `Applier`, to a cluster's node."""

    records_only = True

    async def apply(
        self,
        batch: CommandBatch,
        position: bytes,
        *,
        skip: Collection[int] = (),
        extras: Sequence[tuple[int, bytes]] = (),
        notes: Sequence[tuple[int, bytes]] = (),
        sent: Sent | None = None,
    ) -> Applied:
        """Apply `batch` without the commands in `skip`, then `extras`, and move the position.

        `notes` are on the target before any of that. Nothing is `refused` here, but `failed`. What
        could not be applied for a reason that passes is told as `begun`. Raises as `Applier.apply`.
        """
        if sent is not None:
            return await self._recorded(sent)
        self.ended = False
        wanted = databases_of(batch, extras, skip)
        await self._has(wanted)
        if notes or not self._form.covers(batch.end_offset):
            await self._go_ahead(notes, batch.end_offset)
        value = self._form.value(batch, position, 0)
        transaction = self._encoder.encode_record(batch, value, skip=frozenset(skip), extras=extras)
        return await self._recorded(await self._sent(batch, transaction, value, wanted))

    async def empty(self, keys: KeysOfLane, offset: int, db: int | None = None) -> None:
        """As `Applier.empty`. The connection ends when another engine has the target.

        A record of the same position goes behind it, over the same connection: a target that comes
        back with the keys does not have that one.
        """
        if not self._form.covers(offset):
            await self._go_ahead((), offset)
        while True:
            connection = await self._dialled()
            links = self.reconnects
            connection.release()
            try:
                # (One without keys it may not even have.)
                for each in (await ask_info(connection)).keyspace:
                    if db in (None, each.db):
                        await self._empty_node(connection, each.db, keys)
            except (LinkError, ServerError) as exc:
                await self.link.pause(exc)
                continue
            finally:
                if connection.lost is None:
                    self._attach(connection)
            self.link.patience.progress()
            await self._go_ahead((), offset)
            if self.reconnects == links:
                return

    async def _empty_node(self, connection: Connection, db: int, keys: KeysOfLane) -> None:
        async def ask(commands: Sequence[tuple[bytes | str | int, ...]]) -> list[Any]:
            return await connection.together(*commands)

        async with in_database(connection, db):
            await remove_keys(ask, keys, db, node=True)

    async def _go_ahead(self, notes: Sequence[tuple[int, bytes]], offset: int) -> None:
        """Have the record say that commands up to `offset` may be there, behind `notes`."""
        while True:
            await self._dialled()
            before = self.link.position
            assert before is not None
            value = self._form.ahead(before, offset)
            nothing = CommandBatch.empty(offset)
            transaction = self._encoder.encode_record(nothing, value, extras=notes)
            result = await self._recorded(await self._sent(nothing, transaction, value))
            if result.failed:
                raise TransferFailed(
                    f"the target refuses the engine's own command: {result.failed[0][1]}",
                    remedy="Correct that on the target, then start the migration anew.",
                )
            # Which of the notes failed is not known where the answer was not seen.
            if not result.begun and not (result.unseen and notes):
                return

    async def _dialled(self) -> Connection:
        """The connection, to a target that has the record that was left there. Raises
        `PositionMoved`."""
        left = self.link.position
        while self.link.closed:
            try:
                await self.link.dial()
            except (LinkError, ServerError) as exc:
                await self.link.pause(exc)
        if self.link.position != left:
            raise PositionMoved(self.link.position)
        assert self.link.connection is not None
        return self.link.connection

    async def _has(self, databases: Set[int]) -> Connection:
        """As `_dialled`, to a target that has these databases."""
        connection = await self._dialled()
        while not databases <= self.link.databases:
            left = self.link.position
            await self.link.ensure_databases(databases)
            if self.link.position != left:
                raise PositionMoved(self.link.position)
            connection = await self._dialled()
        return connection

    async def _sent(
        self,
        batch: CommandBatch,
        transaction: Transaction,
        value: bytes,
        databases: Set[int] = frozenset(),
    ) -> Sent:
        """Send it, with nothing under way before it; the answer."""
        connection = await self._has(databases)
        pump = self._pump
        answer: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()

        def answered(sent: Sent) -> None:
            if not answer.done():
                answer.set_result(sent)

        self._on_answer = answered
        self._form.watched = False
        pump.surfacing = True
        pump.found = self.link.position
        pump.expect(transaction)
        pump.push(batch, transaction, value)
        if transaction.in_file:
            try:
                await self._send_pieces(connection, transaction)
            except LinkError:
                # That is the answer.
                if not answer.done():
                    raise
        else:
            connection.write(transaction)
        return await answer


@contextlib.asynccontextmanager
async def in_database(connection: Connection, db: int) -> AsyncIterator[Connection]:
    """The connection in this database; it is in the position's again behind that.

    The SELECT goes alone: behind one that is refused, what is meant for its database would run in
    another one. A connection that may not be in the position's is closed. Raises as
    `Connection.call`.
    """
    if db == POSITION_DB:
        yield connection
        return
    try:
        await connection.call("SELECT", db)
        yield connection
        await connection.call("SELECT", POSITION_DB)
    except BaseException:
        connection.close()
        raise
