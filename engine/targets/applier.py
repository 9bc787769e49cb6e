"""The stream's target: command batches in, each applied once.

Theory. Every batch goes out as one transaction that also sets the *position key*:

    MULTI  … the batch's commands …  SET <key> <position behind them>  EXEC  WATCH <key>  GET <key>

so the position lives in the target beside the data, and moves with it or not at all: through a kill
of this engine, a cut link, a target that comes back from its append-only file or snapshot, or a
replica that takes over. Whatever happens, the position found there says exactly which bytes of the
stream the target's data contains.

The WATCH behind each EXEC, and the GET that must show what we have just written, guard the next
transaction: if another client moved the position (a second engine that took this one for dead, or
this one waking up after it was replaced), EXEC answers nil and applies nothing.

Batches for which nothing but their keys matters may go without a transaction, with the position
behind them: `ext/position_records.pxi` says how, and when.

To a target that is near one EXEC is unanswered at a time. What comes before the next EXEC may be
under way (`send_ahead`): the target reads it while the answer is on its way to us, and drops it
with the connection where the answer is not that all went well.

To a target that is far several are under way at once, or each would cost a round trip. These things
hold then:

- Where one is refused (out of memory, say) and one behind it applied, the position has moved past
  commands that were never applied. So each position names the place up to which every answer was
  seen (`TargetPosition.since`); what lies between is in doubt, and `settle` tells which of it the
  target lacks. Its keys are read from the source again, by us or by the engine after us.
- Where the guard refuses one, those behind it run all the same. They set the position only where
  there is one, so that a target that was emptied has none; an answer that shows other data than was
  left there, with one behind it applied, has everything copied again (`PositionMoved`).
- The guard covers the first of them alone: between the EXEC of one and the WATCH of the next
  another engine may write. So an engine that claims the target closes the connections of those
  before it by their names (`transfer.target_claim`), and this one that of its own that it has
  lost, before it looks at the position. Where the target's user may not do that, one is under way
  at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine import logs
from engine._native import (
    CMD_SWAPS,
    CommandBatch,
    Pump,
    RecordForm,
    Sent,
    Transaction,
    TransactionEncoder,
    TransactionResult,
)
from engine.errors import EngineError, LinkError, ServerError, TransferFailed, TransferStopped
from engine.model.doubt import Doubt
from engine.model.endpoint import Endpoint
from engine.model.lane_keys import KeysOfLane
from engine.model.online_checkpoint import POSITION_DB
from engine.model.position import TargetPosition, begun_of
from engine.model.server import same_process
from engine.model.settings import TransferSettings
from engine.model.transient_errors import OF_SLOT
from engine.targets.applier_link import ApplierLink
from engine.targets.slot_keys import keys_of, without_own
from engine.targets.target_refusals import TRY_AGAIN, refused_all
from engine.wire.connection import Connection, answered
from engine.wire.info_command import ask_info

# A longer batch is not sent ahead: the connection keeps what the kernel does not take.
_AHEAD_BYTES_MOST = 8 << 20
# Of a transaction that lies in a file so much is read at once.
_PIECE_BYTES = 1 << 20
# So many transactions, and bytes of their batches, are under way to a target that is far: 100 MB a
# second over a line of 150 ms. All of that is read from the source again where the link is lost.
UNDER_WAY_MOST = 512
UNDER_WAY_BYTES = 16 << 20
# How EXEC's error begins where it has one of its own.
_DISCARDED = "EXECABORT Transaction discarded because of: "
_log = logs.logger(__name__)


class PositionMoved(Exception):
    """The target's position is not the one that we left there. `found` None: there is none.

    Its data may be older (it came back from its disk, or a replica took over), newer (another
    engine), or gone. What reads the source decides, by what was found.

    `written_over`: transactions that were under way have written ours over it since, so that the
    target does not tell of it any more.
    """

    def __init__(self, found: bytes | None, *, written_over: bool = False) -> None:
        super().__init__(found)
        self.found = found
        self.written_over = written_over


class Unanswered(LinkError):
    """The link to the target was lost before its answer to a promotion: whether the promotion took
    place is told by the target alone."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch.

    `refused`: (command's index, message) of commands that the target did not take into the
    transaction: then nothing was applied, and the batch is to be sent again without them.
    `failed`: the same of commands that failed inside it; all others were applied. `unseen`: it was
    applied, but the link went before the answer: which of its commands failed is not known.
    `ended`: nothing was applied, for the target's process ended meanwhile: sent again, it may end
    the next one. `begun`: it was not applied, but any of its commands may have been, each for
    itself (`ext/position_records.pxi`): it is to be sent again, and all its keys to be read again.
    Indices of extras are -1 - their place.
    """

    refused: tuple[tuple[int, str], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()
    unseen: bool = False
    ended: bool = False
    begun: bool = False


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A transaction that was sent up to its EXEC."""

    batch: CommandBatch
    position: bytes
    transaction: Transaction


class Applier:
    """Applies command batches over one connection."""

    records_only = False
    """Whether nothing goes in a transaction."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: TransferSettings,
        key: bytes,
        *,
        on_event: Callable[[str], None],
        importing: bool = False,
        on_doubt: Callable[[Doubt], None] = lambda _: None,
        on_trouble: Callable[[str], None] = lambda _: None,
        full: bool = False,
        name: str = "",
        far: bool = False,
    ) -> None:
        """`full`: the connection will be full of commands all the time. Then SETs that follow each
        other go as MSET, unless the target refuses that, or is a cluster. `name`: how the names of
        connections begin that are to end when another engine has the target; empty: one transaction
        is under way at a time. `far`: the target is known to be far (`applier_link.is_far`)."""
        self._endpoint = endpoint
        self._merges = full
        self._settings = settings
        self._key = key
        self._encoder = TransactionEncoder(key, POSITION_DB)
        self._form = RecordForm(POSITION_DB, only=self.records_only)
        # The connection that the form knows of.
        self._attached: Connection | None = None
        self._pump = Pump(self._encoder, None, POSITION_DB, self._form)
        self.link = ApplierLink(
            endpoint,
            settings,
            key,
            self._attach,
            self._form,
            on_event=on_event,
            importing=importing,
            on_doubt=on_doubt,
            on_trouble=on_trouble,
            full=full,
            name=name,
            far=far,
        )
        """The connection."""
        self._answer: asyncio.Future[TransactionResult] | None = None
        # A transaction that lies in a file is being sent: what the target does not take is noticed
        # there, and no answer is due yet.
        self._in_pieces = False
        self._ahead: _Ahead | None = None
        self._on_answer: Callable[[Sent], None] = _ignore
        self._on_turn: Callable[[], None] | None = None
        self.ended = False
        """Whether the target's process ended while what `apply` was given last was under way."""

    @property
    def several(self) -> bool:
        """Whether several transactions may be under way at once."""
        return self.link.several

    @property
    def records(self) -> int:
        """How many batches went with a record."""
        return self._form.records

    @property
    def identity(self) -> str:
        """The target's data set and process, as it called itself at the last dial
        (`ServerInfo.identity`)."""
        return self.link.identity

    @property
    def retries(self) -> int:
        """How often something was sent again."""
        return self.link.retries

    @property
    def reconnects(self) -> int:
        """How often the link was made anew."""
        return self.link.reconnects

    async def open(self) -> bytes | None:
        """Dial; return the position found on the target. Raises `LinkError`, `AuthError`."""
        await self.link.dial()
        return self.link.position

    async def begin(self, position: bytes, *, over: bytes, process: str | None = None) -> None:
        """Write the first position: the target holds a whole snapshot up to it, in the process
        called `process`.

        `over` is what has to stand there before. Raises as `apply` does.
        """
        while True:
            self._drop_ahead()
            connection = await self.link.control()
            if process is not None and not same_process(self.identity, process):
                # It came back with the claim, and perhaps without some of the values.
                raise PositionMoved(self.link.position)
            try:
                if self.link.position == over:
                    # Its WATCH stands since the position was seen.
                    # That MULTI is allowed was seen at the dialling.
                    self.link.position = await self.link.watch(
                        connection, ("MULTI",), ("SET", self._key, position), ("EXEC",)
                    )
            except (LinkError, ServerError) as exc:
                connection.close()
                await self.link.pause(exc)
                continue
            if self.link.position == over:
                # Our own claim was written once more since the WATCH, which stands anew.
                continue
            if self.link.position != position:
                raise PositionMoved(self.link.position)
            self.link.patience.progress()
            self._attach(connection)
            return

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
        """Apply `batch` without the commands in `skip`, then `extras` ((db, encoded command)) and
        `notes`, which are the engine's own, and move the position to `position`; all of it or
        nothing.

        `sent`: the batch as `start` sent it, with an outcome that is to be dealt with.

        Retries what passes by itself, for `retry_for`. Raises `PositionMoved`, `AuthError`,
        `TransferFailed` (with the reason), `ProtocolFault`.
        """
        self._drop_ahead()
        begun = 0
        if sent is not None:
            if sent.transaction.record:
                return await self._recorded(sent)
            transaction, before, begun = sent.transaction, sent.before, sent.begun
        else:
            extras = [*extras, *notes]
            # (What is dialled for that may be a target that came back from before.)
            before = self.link.position
            await self.link.ensure_databases(databases_of(batch, extras, skip))
            if self._form.allowed and len(batch):
                position = self._form.value(batch, position, 0)
                begun = self._form.asked
            transaction = self._encoder.encode(
                batch, position, db=POSITION_DB, skip=frozenset(skip), extras=extras
            )
        # The process that the transaction was sent to last.
        process = self.identity if sent is not None else None
        self.ended = False
        while True:
            try:
                if sent is not None:
                    outcome, sent = sent.outcome, None
                    if not isinstance(outcome, TransactionResult):
                        assert outcome is not None
                        raise outcome
                    result = outcome
                    if self._refuses_merged(transaction, result) and result.position == before:
                        # Nothing was applied. Each command for itself from here on.
                        self._merges = False
                        transaction = self._encode(batch, position)
                        continue
                else:
                    if not (self.link.closed or self._form.watched):
                        await self._watch_again()
                    if self.link.closed:
                        await self.link.dial()
                        self.ended = process is not None and not same_process(
                            self.identity, process
                        )
                    if self.link.position == position != before:
                        # The target has taken it: what stood in the way is over.
                        self.link.patience.progress()
                        return Applied(unseen=True)
                    if self.link.position != before:
                        raise PositionMoved(self.link.position)
                    if self.ended:
                        return Applied(ended=True)
                    process = self.identity
                    result = await self._send(transaction)
            except (LinkError, ServerError) as exc:
                await self.link.pause(exc)
                continue
            if result.status in ("not_begun", "partial"):
                await self.close()
                raise _outside(result)
            if result.guard_error is not None:
                # Applied or not: the position says so once the target answers again.
                await self.link.pause(self.link.guard_refused(result.guard_error))
                continue
            if result.status == "applied":
                if result.position != position:
                    raise PositionMoved(result.position)
                self.link.position = position
                self.link.patience.progress()
                self._form.answered(begun)
                self._form.unresolved = False
                return Applied(failed=_indices(transaction, result.failed))
            if result.status == "raced":
                raise PositionMoved(result.position)
            refused = await self._not_applied(transaction, result)
            if refused is not None:
                return refused

    async def empty(self, keys: KeysOfLane, offset: int, db: int | None = None) -> None:
        """Remove every one of `keys` that the target has, in this database or in all (None), but
        for the engine's own, as a command of the stream at `offset` says. Nothing is under way.

        The same position is written behind it, with another number: a target that comes back with
        the keys does not have that one. Raises `PositionMoved`, `AuthError`.
        """
        del offset  # what is removed is removed again by an engine that goes on from before it
        left = self.link.position
        while True:
            connection = await self.link.control()
            try:
                found = await self.link.watch(connection)
                if found == left:
                    info = await ask_info(connection)
                    # (One without keys it may not even have.)
                    for each in (each.db for each in info.keyspace if db in (None, each.db)):
                        found = await self._empty(connection, each, keys)
                        if found != left:
                            break
                if found == left and left is not None:
                    behind = TargetPosition.decode(left).anew().encode()
                    found = await self.link.watch(
                        connection, ("MULTI",), ("SET", self._key, behind), ("EXEC",)
                    )
                    if found == behind:
                        left = self.link.position = behind
            except (LinkError, ServerError) as exc:
                await self.link.pause(exc)
                continue
            if found != left:
                raise PositionMoved(found)
            self.link.patience.progress()
            self._attach(connection)
            return

    async def _empty(self, connection: Connection, db: int, keys: KeysOfLane) -> bytes | None:
        """Remove those of one database; the position behind that, which they are removed with."""

        async def ask(commands: Sequence[tuple[bytes | str | int, ...]]) -> list[Any]:
            chosen, *replies, left = await connection.together(("SELECT", db), *commands, home)
            answered(chosen)
            answered(left)
            return replies

        home: tuple[str, int] = ("SELECT", POSITION_DB)
        found = self.link.position
        try:
            async with contextlib.aclosing(keys_of(ask, keys, db, node=False)) as pages:
                async for page in pages:
                    if not (gone := without_own(page)):
                        continue
                    # Alone: behind one that is refused they would be removed from another database.
                    await connection.call("SELECT", db)
                    found = await self.link.watch(
                        connection, ("MULTI",), ("DEL", *gone), ("EXEC",), home
                    )
                    if found != self.link.position:
                        return found
        except BaseException:
            # It may be in another database than the position's.
            connection.close()
            raise
        return found

    async def _watch_again(self) -> None:
        """Have the position looked after from now on: a record's SET has ended that."""
        connection = await self.link.control()
        self.link.position = await self.link.watch(connection)
        self._attach(connection)

    async def _recorded(self, sent: Sent) -> Applied:
        """What became of a batch that went with a record, and alone."""
        result, process = sent.outcome, self.identity
        if isinstance(result, TransactionResult):
            self._check_chain([sent], 0)
            if result.guard_error is None:
                self.link.position = sent.position
                self._form.answered(sent.begun)
                passing = self._passing(result)
                if passing is None:
                    self._form.unresolved = False
                    self.link.patience.progress()
                    return Applied(failed=_indices(sent.transaction, result.failed))
                await self.link.pause(passing)
                return Applied(begun=True)
            problem: LinkError | ServerError = self.link.guard_refused(result.guard_error)
        elif isinstance(result, LinkError | ServerError):
            problem = result
        else:
            assert result is not None
            raise result
        await self._dial_again(problem)
        if self.link.position == sent.position:
            self._form.unresolved = False
            self.link.patience.progress()
            return Applied(unseen=True)
        self.ended = not same_process(self.identity, process)
        if self.link.position != sent.before:
            raise PositionMoved(self.link.position)
        return Applied(begun=True, ended=self.ended)

    def _passing(self, result: TransactionResult) -> ServerError | None:
        """The first error of a command with a record that may pass by itself. Raises `AuthError`
        for one that concerns the user."""
        for _, text in result.failed:
            if (refusal := refused_all(text, self._endpoint)) is not None:
                raise refusal
            text = text.removeprefix(_DISCARDED)
            code = text.partition(" ")[0]
            if code in TRY_AGAIN and code not in OF_SLOT:
                return ServerError(text, code=code, fault="target")
        return None

    async def _dial_again(self, problem: LinkError | ServerError) -> None:
        """Wait, and dial, until the position is known again."""
        again: LinkError | ServerError | None = problem
        while again is not None:
            try:
                await self.link.pause(again)
                await self.link.dial()
                again = None
            except (LinkError, ServerError) as exc:
                again = exc

    def start(
        self, batch: CommandBatch, position: bytes, on_answer: Callable[[Sent], None]
    ) -> bool:
        """Send `batch` at once, if nothing stands in the way; False: it is for `apply`.

        `on_answer` is called once it is known what became of it, unless `abandon` comes first. If
        it was not simply applied, `apply` is to deal with that.
        """
        connection, pump = self._ready_for(batch), self._pump
        if connection is None:
            return False
        form = self._form
        record = form.takes(batch)
        if not (record or self._form.watched):
            return False
        if form.allowed:
            position = form.value(batch, position, pump.under_way_bytes)
        ahead, self._ahead = self._ahead, None
        if record:
            form.watched = False
            transaction = self._encoder.encode_record(batch, position)
            pump.expect(transaction)
            connection.write(transaction)
        elif ahead is None:
            # Where those before it find the position gone, this one brings none back.
            transaction = self._encode(batch, position, over=self.several and pump.under_way > 0)
            pump.expect(transaction)
            connection.write(transaction)
        elif ahead.batch is batch and ahead.position == position:
            transaction = ahead.transaction
            connection.write(transaction.ending)
        else:
            connection.close()
            return False
        if not pump.under_way:
            pump.found = self.link.position
        pump.push(batch, transaction, position)
        self._on_answer = on_answer
        return True

    def follow(
        self, on_answer: Callable[[Sent], None], on_turn: Callable[[], None]
    ) -> tuple[Pump, Connection, frozenset[int]] | None:
        """What a stream is sent with, until `abandon`: the pump, the connection that takes its
        transactions, and the databases that the target is known to have. None: the next batch is
        for `apply`.

        `on_answer` is told of what surfaces, in the order of sending; then, and whenever the target
        has answered, `on_turn` is called, unless the connection's bytes are taken by hand.
        """
        self._drop_ahead()
        connection = self.link.connection
        if connection is None or connection.lost is not None:
            return None
        self._pump.found = self.link.position
        self._on_answer, self._on_turn = on_answer, on_turn
        return self._pump, connection, frozenset(self.link.databases)

    def send_ahead(self, batch: CommandBatch, position: bytes) -> None:
        """Send `batch` up to its EXEC behind the transaction that is under way, if nothing stands
        in the way. EXEC follows where `start` is called next, with the same batch and position,
        and that transaction was applied; else the connection is given up, and with it what the
        target has queued."""
        connection = self._ready_for(batch)
        if connection is None or not self._pump.under_way or self._ahead is not None:
            return
        if batch.nbytes > _AHEAD_BYTES_MOST:
            return
        transaction = self._encode(batch, position)
        self._ahead = _Ahead(batch, position, transaction)
        self._pump.expect(transaction)
        connection.write(transaction.body)

    def _encode(self, batch: CommandBatch, position: bytes, *, over: bool = False) -> Transaction:
        merge = self._merges and not self.link.cluster
        return self._encoder.encode(batch, position, db=POSITION_DB, merge=merge, over=over)

    def _refuses_merged(self, transaction: Transaction, result: TransactionResult) -> bool:
        """Whether the target did not take the command that SETs were merged to."""
        return (
            result.status == "aborted"
            and result.guard_error is None
            and any(transaction.merged_at(slot) > 1 for slot, _ in result.refused)
        )

    def _ready_for(self, batch: CommandBatch) -> Connection | None:
        """The connection, if `batch` can be sent at once."""
        connection = self.link.connection
        if (
            connection is None
            or connection.lost is not None
            or batch.in_file
            or not batch.databases <= self.link.databases
            or batch.holds(CMD_SWAPS)
        ):
            return None
        return connection

    async def settle(self, sent: Sequence[Sent]) -> list[Applied | None]:
        """What became of transactions that were under way at once, in the order of their sending:
        all of those that were, from the first on that was not simply applied.

        `Applied` with `failed`: it was applied. With `unseen`: it may not have been, or not whole,
        and one behind it was. With `begun`: see there, to be applied in its turn. None: it was not,
        and none behind it was: to be applied, in their order. The target's position is that of the
        last one that was applied.

        Raises `PositionMoved`, `AuthError`, `TransferFailed`.
        """
        before, problem = sent[0].before, await self._unanswered(sent)
        if problem is not None:
            await self._dial_again(problem)
        found = self.link.position
        last = next((n for n, each in enumerate(sent) if each.position == found), -1)
        if last < 0 and found != before:
            raise PositionMoved(found)
        self._check_chain(sent, last)
        if last >= 0:
            self.link.patience.progress()
        settled: list[Applied | None] = []
        for n, each in enumerate(sent):
            result = each.outcome if isinstance(each.outcome, TransactionResult) else None
            status = result.status if result is not None else ""
            # The target holds less than it did.
            if status in ("applied", "recorded") and n > last:
                raise PositionMoved(found)
            if n > last:
                settled.append(Applied(begun=True) if each.transaction.record else None)
            elif result is not None and (
                status == "applied" or (status == "recorded" and self._passing(result) is None)
            ):
                settled.append(Applied(failed=_indices(each.transaction, result.failed)))
            else:
                if result is not None and not each.transaction.record:
                    text = result.refused[0][1] if result.refused else result.error
                    _log.warning(
                        "The target refused a transaction, and applied one behind it: its keys are "
                        "read again: %s",
                        text,
                        extra={"end": "target"},
                    )
                settled.append(Applied(unseen=True))
        self._form.unresolved = any(each is None or each.begun for each in settled)
        return settled

    def _check_chain(self, sent: Sequence[Sent], last: int) -> None:
        """Raise `PositionMoved` unless each that was answered found the position that the one
        before it has left there. Those behind it may have been applied to other data, up to
        `last`."""
        left = sent[0].before
        for n, each in enumerate(sent):
            result = each.outcome
            if not isinstance(result, TransactionResult):
                return
            there = result.position
            if each.transaction.record:
                # GET came before its SET, and one of the two may have been refused.
                if result.guard_error is not None:
                    return
                if there != left:
                    raise PositionMoved(there, written_over=result.status == "recorded" or n < last)
                if result.status == "unrecorded":
                    raise PositionMoved(None, written_over=n < last)
                left = each.position
                continue
            if result.status == "applied":
                left = each.position
            if result.guard_error is None and there != left:
                raise PositionMoved(there, written_over=n < last)
            if result.status == "raced":
                raise PositionMoved(self.link.position)

    async def _unanswered(self, sent: Sequence[Sent]) -> LinkError | ServerError | None:
        """Why the target has to be asked where it stands, or None: the last answer tells, and its
        WATCH stands. Raises `AuthError`, `TransferFailed`, `ProtocolFault`."""
        for each in sent:
            result = each.outcome
            if not isinstance(result, TransactionResult):
                if isinstance(result, LinkError | ServerError):
                    return result
                assert result is not None
                raise result
            if result.status in ("not_begun", "partial"):
                await self.close()
                raise _outside(result)
            if result.guard_error is not None:
                return self.link.guard_refused(result.guard_error)
        assert isinstance(result, TransactionResult)
        recorded = result.status == "recorded"
        self.link.position = sent[-1].position if recorded else result.position
        return None

    def _drop_ahead(self) -> None:
        """No EXEC follows what was sent ahead: the target drops it with the connection."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self.link.close()

    def look(self) -> None:
        """Read the answer now, if it is there and was left for later."""
        if self.link.connection is not None:
            self.link.connection.look()

    def abandon(self) -> None:
        """Call nothing back: what waited for the transactions under way is gone."""
        if self._on_turn is not None:
            self.link.position = self._pump.found
        self._on_answer, self._on_turn = _ignore, None
        if self._form.allowed:
            # What is under way may be waited for once more (`leave`).
            self._pump.surfacing = True
        else:
            self._pump.forget()
        self._drop_ahead()
        if self.link.connection is not None:
            self.link.connection.stop_resting()

    async def promote(
        self,
        position: bytes,
        process: str,
        inside: Sequence[Sequence[bytes | str]] = (),
        behind: Sequence[Sequence[bytes | str]] = (),
        limit: float = math.inf,
    ) -> None:
        """Put `position` in the place of the one that was written last, and run `inside` with it:
        one transaction, in one round trip, on the connection whose WATCH has stood since.

        It takes place only if the target still holds that position, in the process and data set
        called `process`; `behind` runs after it, and may fail. Nothing is tried twice. `limit`:
        seconds for which the answer is waited for, if `io_timeout` is not shorter. Raises
        `PositionMoved`, `LinkError`, `ServerError`, `AuthError` where nothing was done, and
        `Unanswered` where that is not known.
        """
        self._drop_ahead()
        connection = self.link.connection
        if connection is None:
            raise LinkError("the target's connection is closed", fault="target")
        if connection.lost is not None:
            raise connection.lost
        if self.identity != process:
            raise PositionMoved(self.link.position)
        connection.release()
        if not self._form.watched and await self.link.watch(connection) != self.link.position:
            raise PositionMoved(self.link.position)
        commands = [("MULTI",), *inside, ("SET", self._key, position), ("EXEC",)]
        timeout = min(self._settings.io_timeout, limit)
        replies = await asyncio.gather(
            *(connection.call(*each, timeout=timeout) for each in (*commands, *behind)),
            return_exceptions=True,
        )
        done = replies[len(commands) - 1]
        if isinstance(done, LinkError):
            raise Unanswered(done.message, remedy=done.remedy, fault="target")
        for reply in replies[: len(commands)]:
            if isinstance(reply, BaseException):
                raise reply
        if done is None:
            raise PositionMoved(await self.link.watch(connection))
        self.link.position = position

    @property
    def found(self) -> bytes | None:
        """The position that was found at the last dialling, or written since."""
        return self.link.position

    @property
    def at_rest(self) -> bytes | None:
        """The position that the target has by its last answer; None while an answer is owed."""
        if self._owed() or self._in_pieces:
            return None
        return self._pump.found if self._on_turn is not None else self.link.position

    @property
    def closed(self) -> bool:
        """Whether there is no connection: it was not opened, was closed, or lost."""
        return self.link.closed

    def leave_for(self, there: Endpoint) -> None:
        """Give up a connection to any server but `there`, which is the target by now."""
        self.link.leave_for(there)

    async def leave(self, seconds: float) -> None:
        """Have the position say that nothing is begun behind it, where that can be found out within
        `seconds`: before the connection is given up. Raises nothing."""
        with contextlib.suppress(EngineError, TimeoutError):
            await asyncio.wait_for(self._take_begun_away(), seconds)

    async def _take_begun_away(self) -> None:
        link = self.link
        if self._pump.under_way:
            drained = asyncio.Event()
            self._on_answer = lambda _: None if self._pump.under_way else drained.set()
            await drained.wait()
        position, connection = link.position, link.connection
        if link.closed or connection is None or self._form.unresolved or self._owed():
            return
        if position is None or b" begun " not in position:
            return
        connection.release()
        found = await link.watch(connection)
        if found == position:
            plain = replace(TargetPosition.decode(position), begun=None).encode()
            await link.watch(connection, ("MULTI",), ("SET", self._key, plain), ("EXEC",))

    async def close(self) -> None:
        """Let go of the connection, and of what was waited for: what comes next connects anew."""
        self._ahead = None
        self.link.patience.well()
        self.link.close()

    # --- One transaction ---

    def _attach(self, connection: Connection) -> None:
        if connection is not self._attached:
            self._attached = connection
            self._form.begin(self.link.record)
            if self._form.only:
                # What stands there was answered by this dial's GET.
                self._form.answered(begun_of(self.link.position))
        self._pump = Pump(self._encoder, self.link.position, POSITION_DB, self._form)
        connection.take_over(self._pump, self._on_results, self._on_lost)
        connection.watch(self._owed, self._settings.io_timeout)

    async def _send(self, transaction: Transaction) -> TransactionResult:
        connection = self.link.connection
        assert connection is not None
        answer: asyncio.Future[TransactionResult] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._pump.expect(transaction)
        if transaction.in_file:
            await self._send_pieces(connection, transaction)
        else:
            connection.write(transaction)
        return await answer

    async def _send_pieces(self, connection: Connection, transaction: Transaction) -> None:
        """Send it from its file, no faster than the target takes it. Whatever stops that ends the
        connection: the target drops what it has of the transaction."""
        at = 0
        self._in_pieces = True
        try:
            while at < len(transaction):
                piece = await asyncio.to_thread(transaction.piece, at, _PIECE_BYTES)
                connection.write(piece)
                at += len(piece)
                await connection.writable(self._settings.io_timeout)
        except BaseException as exc:
            if self._answer is not None and self._answer.done():
                # The link's loss is told there as well.
                self._answer.exception()
            self._answer = None
            connection.close()
            if isinstance(exc, OSError):
                raise TransferStopped(
                    f"a long command could not be read from the spool's directory: {exc.strerror}",
                    remedy="See to its disk, then resume the migration.",
                ) from exc
            raise
        finally:
            self._in_pieces = False

    def _on_results(self, ready: int) -> None:
        # One by one, for a callback may read more of them from the socket.
        while ready and (sent := self._pump.pop()) is not None:
            if sent.applied:
                self.link.position = sent.position
                self.link.patience.progress()
            else:
                self._drop_ahead()
            self._on_answer(sent)
        while ready and (result := self._pump.other()) is not None:
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(result)
        if self._on_turn is not None:
            self._on_turn()

    def _on_lost(self, error: EngineError) -> None:
        _log.info("The link to the target is lost: %s", error.message, extra={"end": "target"})
        self._ahead = None
        waited = self._pump.under_way > 0
        self._pump.lost(error)
        while (sent := self._pump.pop()) is not None:
            self._on_answer(sent)
        if not waited and self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self._on_turn is not None:
            self._on_turn()

    def _owed(self) -> bool:
        if self._in_pieces:
            return False
        if self._pump.under_way:
            return True
        return self._answer is not None and not self._answer.done()

    async def _not_applied(
        self, transaction: Transaction, result: TransactionResult
    ) -> Applied | None:
        """Nothing was applied. None: try the same again; else what is to be left out."""
        messages = [text for _, text in result.refused] or [result.error or "no reason given"]
        for text in messages:
            if (refusal := refused_all(text, self._endpoint)) is not None:
                raise refusal
            code = text.partition(" ")[0]
            if code in TRY_AGAIN:
                await self.link.pause(ServerError(text, code=code, fault="target"))
                return None
        # The position as the GET behind it showed it; the WATCH stands again.
        if result.position != self.link.position:
            raise PositionMoved(result.position)
        refused = _indices(transaction, result.refused)
        if not refused:
            raise TransferFailed(f"the target refuses a transaction: {messages[0]}", fault="target")
        return Applied(refused=refused)


def _indices(
    transaction: Transaction, errors: Sequence[tuple[int, str]]
) -> tuple[tuple[int, str], ...]:
    found: list[tuple[int, str]] = []
    for slot, message in errors:
        index = transaction.index_of(slot)
        if transaction.record and index is not None and found and found[-1][0] == index:
            # It is a transaction for itself: the first error says why.
            continue
        if index is None:
            # SELECT, or the position's own SET: never on a target that answered them before.
            raise TransferFailed(
                f"the target refused the engine's own command: {message}",
                remedy="Correct that on the target, then start the migration anew.",
            )
        found += [(each, message) for each in range(index, index + transaction.merged_at(slot))]
    return tuple(found)


def databases_of(
    batch: CommandBatch, extras: Sequence[tuple[int, bytes]], skip: Collection[int]
) -> set[int]:
    """Those that the target has to have for that."""
    used: Iterable[int] = batch.databases
    if skip:
        left_out = {*skip, *batch.across}
        used = (batch.db(index) for index in range(len(batch)) if index not in left_out)
    swapped = (db for pair in batch.swaps for db in pair)
    return {*used, *(db for db, _ in extras), *swapped}


def _outside(result: TransactionResult) -> TransferFailed:
    """What ran, ran without the transaction: the probe at dialling is there to make this
    impossible, and nothing but a full sync would mend it."""
    return TransferFailed(
        f"the target ran commands outside of their transaction: {result.error}",
        remedy="Grant +multi +exec +watch to the target's user, and start anew.",
        fault="target",
    )


def _ignore(_: Sent) -> None:
    pass
