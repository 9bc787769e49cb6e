"""The RESTORE target: batches out over one pipelined connection, acknowledgements back.

Where it replaces, plain strings go as MSET, which costs the target less; the replies are counted by
record all the same. A target that refuses MSET itself gets RESTORE alone.

A value that is longer than the target takes in one argument is made there by commands, while
nothing else is under way (`targets.rebuilt_values`).

What is sent stays in the window until the target has answered all of it. When an answer says "not
now", or the link goes, nothing more is sent; after the answers still under way, and a pause, the
window is sent again from the first batch that was refused, so that records keep their order.
A value in pieces is sent again if its source has kept them (`again`). RESTORE may be
repeated: with REPLACE it stores the same value again, as MSET does; without it the
target says BUSYKEY.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import islice
from typing import IO, Any, cast

from engine import logs
from engine._native import ModuleGuard, RecordBatch, ReplyCounter, RestoreEncoder
from engine.errors import AuthError, EngineError, LinkError, ServerError
from engine.model.backoff import Patience
from engine.model.endpoint import Endpoint
from engine.model.modules import COMMANDS, HEAD_BYTES, ModuleTypes, commands_known
from engine.model.online_checkpoint import OwnKeys
from engine.model.report import printable_key
from engine.model.server import ServerInfo, same_process
from engine.model.settings import TransferSettings
from engine.model.spool_directory import spool_directory
from engine.model.temporary_file import write_all
from engine.model.transient_errors import DIAL_AGAIN
from engine.targets.base import Acknowledged, ReadAgain
from engine.targets.crashing_values import CrashSuspects
from engine.targets.import_mode import import_source
from engine.targets.known_forms import transcoder_for
from engine.targets.rebuilt_values import (
    GONE,
    Expired,
    Made,
    Unmakeable,
    build,
    check_makeable,
    give_name,
    make,
    read_in_place,
    unkept,
    value_file,
)
from engine.targets.role_check import refuse_replica
from engine.targets.target_refusals import TRY_AGAIN, no_database, refused_all
from engine.targets.window import Result, Window
from engine.wire.bulk_limit import BULK_LIMIT_QUESTION, DEFAULT_BULK_LIMIT, bulk_limit_in
from engine.wire.connection import Connection, answered, unless_refused
from engine.wire.dial import dial_and_ask
from engine.wire.info_command import ask_info, info_in
from engine.wire.server_read_size import WIDEN_READS

_log = logs.logger(__name__)
# A user may be bound to a pattern of keys: the preflight's names are in it if ours are.
_ABSENT_KEY = "startmigration:probe:absent"
# Seconds between two looks at the acknowledgements while nothing waits for them.
_REST_SECONDS = 0.004
# A shorter rest saves nothing.
_LEAST_REST_SECONDS = 0.0005
# So often a value may be gone, once it was made by commands, before it is named as not carried.
_GONE_TRIES = 6
_GONE_WORDS = (
    "the value is longer than the target takes, and each time when commands had made it there it "
    "was gone before it had its name: the target evicts keys (maxmemory-policy)"
)


class _Gone(ServerError):
    """A value that commands have made is not there any more."""


class RestoreWriter:
    """`Target` by RESTORE."""

    def __init__(self, endpoint: Endpoint, settings: TransferSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._connection: Connection | None = None
        self._window = Window(settings.window_bytes)
        self._counter = ReplyCounter()
        self._encoder = RestoreEncoder()
        self._patience = Patience(
            settings.retry_for,
            ended="the target did not take anything",
            next_step="the next one comes",
            fault="target",
            report=lambda text: self.on_trouble(text),
            event=lambda text: self.on_event(text),
        )
        self._db = 0
        self._changed: asyncio.Future[None] | None = None
        # Why nothing is being sent just now; None while all is well.
        self._trouble: str | None = None
        # The code of the refusal in `_trouble`, if it was one.
        self._refusal: str | None = None
        self._failure: EngineError | None = None
        self.info: ServerInfo = cast(ServerInfo, None)
        self.on_acknowledged: Callable[[Acknowledged], None] = lambda _: None
        self.on_event: Callable[[str], None] = lambda _: None
        self.on_trouble: Callable[[str], None] = lambda _: None
        """Told why nothing is sent for now, and what is tried next; empty: all is well again."""
        self.import_source = False
        """Whether each connection is made the target's import source (`targets.import_mode`)."""
        self.name = ""
        """What its connections are called there, if they are to be found
        (`transfer.target_claim`)."""
        self.on_dialled: Callable[[], Awaitable[None]] | None = None
        """Awaited before anything is sent over a new connection; what it raises, so does that."""
        self.again: Callable[[RecordBatch], AsyncGenerator[bytes, None] | None] | None = None
        """The pieces of a streamed batch that was sent before, or None if they are gone."""
        # The link went in the middle of a value: its other pieces are not sent for now. Or none of
        # them is to be sent.
        self._skips_pieces = False
        self.suspects = CrashSuspects(lambda text: self.on_event(text))
        """Values at which the target's process may have ended, and those left out for it."""
        # The value in pieces that was sent last goes without anything else beside it.
        self._alone = False
        # A value in pieces, until its head is here and says whether the target may get it.
        self._awaited: RecordBatch | None = None
        self._head = b""
        # A value in pieces, until all of it is here and can be rewritten.
        self._held: RecordBatch | None = None
        # A value in pieces that is made by commands, and what is here of it.
        self._collected: tuple[RecordBatch, IO[bytes]] | None = None
        self.own = OwnKeys("")
        """How the engine's own keys are named there."""
        self.rebuilt = 0
        """Values that were made by commands."""
        self._telemetry = False
        self.retries = 0
        self.reconnects = 0
        self.bulk_limit = DEFAULT_BULK_LIMIT
        """Bytes of the longest value that the target takes."""
        self.types: ModuleTypes = cast(ModuleTypes, None)
        """What the target does with values of modules, once it was opened."""
        self.round_trip = 0.0
        """Seconds to the target and back, as at the last dialling."""

    @property
    def has_lost_slots(self) -> bool:
        """Whether it waits because another node has the slot of a key."""
        return self._refusal == "MOVED"

    def beside(self, lanes: int) -> None:
        """So many lanes share the process, this one among them."""
        self._window.share(lanes)

    def leave_telemetry(self, leave: bool) -> None:
        """Whether the streams in which FalkorDB notes queries are not sent from now on."""
        if leave == self._telemetry:
            return
        self._telemetry = leave
        if self._encoder.guard is not None:
            self._encoder.guard = self._guard()

    def _guard(self) -> ModuleGuard:
        return ModuleGuard(self.types.judge, telemetry=self._telemetry)

    def allow(self, types: ModuleTypes) -> bool:
        """From now on the target does this with values of modules; whether it is a change."""
        if types.commands == self.types.commands and types.info.modules == self.types.info.modules:
            return False
        self.types = types
        self._encoder.guard = self._guard()
        return True

    async def open(self) -> None:
        """Dial and learn which footers, and how long a bulk, the target takes."""
        before = self.info.identity if self.opened else None
        # None of these writes anything, whatever answers there.
        questions: list[tuple[str, ...]] = [
            BULK_LIMIT_QUESTION,
            ("COMMAND", "INFO", *COMMANDS),
            ("MSET", _ABSENT_KEY, "", _ABSENT_KEY),
        ]
        connection, (reply, listed, mset_reply) = await self._dial_and_ask(*questions)
        self._connection = connection
        self.round_trip = connection.round_trip
        if before is not None:
            self._look_at_process(before)
        self._window.clear()
        self._db, self._trouble, self._refusal = 0, None, None
        self.bulk_limit = bulk_limit_in(reply) or self.bulk_limit
        known = commands_known(COMMANDS, unless_refused(listed))
        self.types = ModuleTypes(self.info, known)
        replace = self._settings.if_exists == "replace"
        mset = replace and _takes_mset(mset_reply)
        self._take_over(connection)
        highest, low, high = self.info.capabilities.footer_bounds
        self._encoder = RestoreEncoder(
            replace=replace,
            mset=mset,
            of_one_slot=self.info.mode == "cluster",
            highest_version=highest,
            refused_low=low,
            refused_high=high,
            guard=self._guard(),
            transcoder=transcoder_for(self.info, self.bulk_limit),
        )

    @property
    def opened(self) -> bool:
        """Whether it ever was: `info` is there."""
        return cast(object, self.info) is not None

    @property
    def closed(self) -> bool:
        """Whether there is no connection: it was closed, or lost."""
        return self._connection is None or self._connection.lost is not None

    @property
    def encoder(self) -> RestoreEncoder:
        """What values are encoded with for this target."""
        return self._encoder

    async def send(self, item: RecordBatch | bytes) -> None:
        """Send a batch when the window has room, or a piece when the transport has.

        What the target must not get (`ModuleTypes.refusal`) is taken out before, and what it does
        not know rewritten; a value in pieces is held for that.
        """
        if not isinstance(item, bytes):
            self._awaited, self._head = None, b""
            self._drop_held()
            if item.streamed:
                self._awaited = item
                return
            if self._encoder.guard is not None:
                self._encoder.guard.withhold(item)
            await self._send_rewritten(item)
            return
        if self._held is not None:
            await self._hold(self._held, item)
            return
        if self._collected is not None:
            await self._collect(*self._collected, item)
            return
        if self._awaited is not None:
            self._head += item
            batch = self._awaited
            if len(self._head) < min(HEAD_BYTES, batch.value_size(0)):
                return
            item, self._awaited, self._head = self._head, None, b""
            if self._encoder.guard is not None:
                self._encoder.guard.withhold(batch, item[:HEAD_BYTES])
            transcoder = self._encoder.transcoder
            wanted = bool(len(batch)) and transcoder is not None and transcoder.wants(item[0])
            if wanted and transcoder is not None and batch.value_size(0) <= transcoder.most:
                self._held = batch
                await self._hold(batch, item)
                return
            if len(batch) and (wanted or batch.value_size(0) > self.bulk_limit):
                try:
                    check_makeable(item[0], batch.value_size(0), self.bulk_limit)
                    self._collected = batch, value_file(self._folder)
                except Unmakeable as exc:
                    batch.leave_out(0, str(exc))
                else:
                    await self._collect(*self._collected, item)
                    return
            await self._send_parts(batch)
            if not len(batch):
                self._skips_pieces = True
        await self._send_piece(item)

    async def _hold(self, batch: RecordBatch, piece: bytes) -> None:
        """The next bytes of a value that the target does not know in the form that it has."""
        transcoder = self._encoder.transcoder
        assert transcoder is not None
        if transcoder.hold(piece) < batch.value_size(0):
            return
        self._held = None
        if transcoder.whole(batch):
            await self._rebuild(batch, transcoder.taken())
        else:
            await self._send_parts(batch)

    async def _collect(self, batch: RecordBatch, file: IO[bytes], piece: bytes) -> None:
        """The next bytes of a value that is made by commands."""
        try:
            await asyncio.to_thread(write_all, file, piece)
        except OSError as exc:
            self._drop_held()
            batch.leave_out(0, str(unkept(exc)))
            await self._send_parts(batch)
            self._skips_pieces = True
            return
        if file.tell() < batch.value_size(0):
            return
        self._collected = None
        try:
            with read_in_place(file, batch.value_size(0)) as value:
                await self._rebuild(batch, value)
        except Unmakeable as exc:
            batch.leave_out(0, str(exc))
            await self._send_parts(batch)
        finally:
            file.close()

    @property
    def _folder(self) -> str:
        return spool_directory(self._settings.spool_directory)

    def _drop_held(self) -> None:
        collected, self._collected = self._collected, None
        if collected is not None:
            collected[1].close()
        if self._held is not None:
            self._held = None
            if self._encoder.transcoder is not None:
                self._encoder.transcoder.drop()

    async def _send_rewritten(self, item: RecordBatch) -> None:
        """Send a batch, its values in forms that the target knows."""
        transcoder = self._encoder.transcoder
        while transcoder is not None:
            done, too_long = transcoder.transcode(item)
            too_long = too_long or self._longer(item, done)
            if too_long:
                # What comes before it goes first, and it alone.
                if too_long[0]:
                    await self._send_parts(item.take(too_long[0]))
                one = item.take(1) if len(item) > 1 else item
                await self._rebuild(one, one.value(0))
                if one is item:
                    return
                continue
            if done >= len(item):
                break
            await self._send_parts(item.take(done))
        await self._send_parts(item)

    def _longer(self, item: RecordBatch, count: int) -> list[int]:
        """The first of so many values that is longer than the target takes, as it is now."""
        if item.nbytes <= self.bulk_limit:
            return []
        longer = (n for n in range(count) if item.value_size(n) > self.bulk_limit)
        return [*islice(longer, 1)]

    # --- Values that no RESTORE carries ---

    async def _rebuild(self, batch: RecordBatch, value: bytes | mmap.mmap) -> None:
        """Make the value of the only record of `batch` by commands, behind all that was sent."""
        key = batch.key(0)
        try:
            made = await self.commands_of(key, value)
        except Unmakeable as exc:
            batch.leave_out(0, str(exc))
            await self._send_parts(batch)
            return
        gone = 0
        try:
            stored = False
            while not stored:
                await self.drain()
                if why := self.suspects.left_out.get((batch.db, key)):
                    # The target's process has ended at it.
                    batch.leave_out(0, why)
                    await self._send_parts(batch)
                    return
                if batch.db != self._db:
                    await self._select(batch.db)
                    continue
                assert self._connection is not None
                connection = self._connection
                connection.release()
                try:
                    result = await self._put_together(connection, batch, made)
                except (LinkError, ServerError) as exc:
                    if isinstance(exc, LinkError):
                        self.suspects.lost([batch])
                    gone += isinstance(exc, _Gone)
                    if gone < _GONE_TRIES:
                        self._put_off(exc)
                        continue
                    result = Acknowledged(batch, 0, 0, ((0, _GONE_WORDS),))
                except AuthError as refusal:
                    result = Acknowledged(batch, 0, 0, ((0, refusal.message),))
                stored = True
                self._take_over(connection)
        finally:
            made.close()
        self._patience.progress()
        if not self.suspects.idle:
            self.suspects.answered(batch)
        if result.carried:
            self.count_rebuilt(batch.db, key)
        self.on_acknowledged(result)

    def count_rebuilt(self, db: int, key: bytes) -> None:
        """A value was made by commands."""
        self.rebuilt += 1
        if self.rebuilt == 1:
            self.on_event(
                "a value that is longer than the target takes in one argument is made there by "
                f"commands: '{printable_key(key)[:80]}' (database {db}); so are others"
            )

    async def commands_of(self, key: bytes, value: bytes | mmap.mmap) -> Made:
        """What makes a value at `own.aside(key)`. Raises `Unmakeable`."""
        return await asyncio.to_thread(
            make,
            value,
            self.own.aside(key),
            limit=self.bulk_limit,
            most=self._settings.spool_bytes,
            able=self.info.capabilities,
            folder=self._folder,
        )

    async def _put_together(
        self, connection: Connection, batch: RecordBatch, made: Made
    ) -> Acknowledged:
        """Raises `LinkError`, and `ServerError` where it may be tried again."""
        key, name, at = batch.key(0), self.own.aside(batch.key(0)), batch.expire_at(0)
        replaces = self._settings.if_exists == "replace"
        if not replaces and await connection.call("EXISTS", key):
            return self._existing(batch)
        try:
            why = await build(connection, made, name, self._settings.io_timeout)
        except Expired:
            return await self._expired(connection, batch)
        if why:
            return Acknowledged(batch, 0, 0, ((0, why),))
        expire_at = -1 if at is None else at
        try:
            named = await give_name(connection, name, key, expire_at, replace=replaces)
        except (ServerError, AuthError) as refusal:
            if isinstance(refusal, ServerError) and GONE in refusal.message:
                # Its time is over, or it was evicted in this moment.
                if at is None or at > await self._clock(connection):
                    raise _Gone(refusal.message, code="TRYAGAIN", fault="target") from None
                return await self._expired(connection, batch)
            if isinstance(refusal, ServerError) and refusal.code in TRY_AGAIN:
                raise
            await connection.try_call("DEL", name)
            return Acknowledged(batch, 0, 0, ((0, refusal.message),))
        if not named:
            await connection.call("DEL", name)
            return self._existing(batch)
        if made.lost:
            batch.lose(0, made.lost)
        return Acknowledged(batch, 1, 0, ())

    async def _expired(self, connection: Connection, batch: RecordBatch) -> Acknowledged:
        """The value's time is over at the target: it has none of it."""
        if self._settings.if_exists == "replace":
            await connection.call("DEL", batch.key(0))
        return Acknowledged(batch, 1, 0, ())

    def _existing(self, batch: RecordBatch) -> Acknowledged:
        if self._settings.if_exists == "skip":
            return Acknowledged(batch, 0, 1, ())
        return Acknowledged(batch, 0, 0, ((0, "BUSYKEY Target key name already exists."),))

    @staticmethod
    async def _clock(connection: Connection) -> int:
        """The target's clock, in ms."""
        seconds, micros = await connection.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def _send_parts(self, item: RecordBatch) -> None:
        """Send a batch; of its values those alone at which the target's process may have ended."""
        # A process that has ended is found out here: what was under way is suspect from then on.
        await self._settled()
        if self._alone:
            # A value in pieces, which has been sent by now.
            await self.drain()
            self._alone = False
        if self.suspects.idle:
            await self._send_batch(item)
            return
        for part, alone in self.suspects.parts(item):
            if alone:
                await self.drain()
            await self._send_batch(part)
            if alone and part.streamed:
                self._alone = True
            elif alone:
                await self.drain()

    async def _send_batch(self, item: RecordBatch) -> None:
        while True:
            await self._settled()
            if len(item) and item.db != self._db:
                if len(self._window):
                    await self._wait()
                else:
                    await self._select(item.db)
            elif self._window.has_room(item.nbytes) and self._counter.room:
                break
            else:
                await self._wait()
        self._window.add(item)
        self._transmit(item)

    @property
    def learned(self) -> int:
        """How many ends of its process have told more of the value that it ends at; bounded."""
        return self.suspects.learned

    @property
    def mid_value(self) -> bool:
        """A streamed value has been sent in part."""
        return self._encoder.streaming

    async def drain(self) -> None:
        """Wait until everything sent is acknowledged."""
        while True:
            await self._settled()
            if not len(self._window):
                return
            await self._wait()

    async def confirm(self) -> None:
        """Raise `ReadAgain` unless the data set that acknowledged everything is still there."""
        identity = self.info.identity
        while True:
            await self.drain()
            assert self._connection is not None
            self._connection.release()
            try:
                self.info = await ask_info(self._connection)
            except (LinkError, ServerError) as exc:
                self._put_off(exc)
            else:
                break
        self._take_over(self._connection)
        self._patience.progress()
        self._same_data(identity)

    def reset(self) -> None:
        """Forget what is not acknowledged; the link with it, for it may hold half a value."""
        if self._connection is not None:
            self._connection.close()
        self._window.clear()
        self._encoder.abandon()
        self._awaited = None
        self._drop_held()
        self._lose("started anew")

    def leave_for(self, there: Endpoint) -> None:
        """Give up a connection to any server but `there`, which is the target by now."""
        if self._connection is not None:
            self._connection.leave_for(there)

    async def close(self) -> None:
        """Let go of the connection, and of what was waited for: what comes next connects anew."""
        self._patience.well()
        if self._connection is not None:
            self._connection.close()

    # --- Sending ---

    def _transmit(self, batch: RecordBatch) -> None:
        assert self._connection is not None
        runs = None
        if len(batch):
            if batch.streamed:
                self._skips_pieces = False
                output = self._encoder.begin(batch)
            else:
                output = self._encoder.encode(batch)
            self._connection.write(output)
            runs = output.runs
        self._counter.expect(len(batch), runs)
        if not len(batch):
            self._on_results(0)

    async def _send_piece(self, piece: bytes) -> None:
        assert self._connection is not None
        if self._skips_pieces:
            return
        try:
            await self._connection.writable(self._settings.io_timeout)
        except EngineError as exc:
            self._raise_failure()
            if self.again is None:
                raise ReadAgain(exc.message) from None
            self._encoder.abandon()
            self._skips_pieces = True
            return
        # A refusal alone does not break the link: the value under way is sent to its end.
        self._connection.write(self._encoder.piece(piece))

    async def _select(self, db: int) -> None:
        """Databases are changed between batches only, and the answer is waited for."""
        assert self._connection is not None
        connection = self._connection
        connection.release()
        try:
            await connection.call("SELECT", db)
        except (LinkError, ServerError) as exc:
            if isinstance(exc, ServerError) and exc.code not in TRY_AGAIN:
                raise no_database(db, exc) from None
            self._put_off(exc)
            return
        self._db = db
        self._take_over(connection)

    async def _wait(self) -> None:
        """Until a batch was answered, or something went wrong."""
        if self._connection is not None and self._rest_seconds < _REST_SECONDS:
            self._connection.stop_resting()
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    # --- Answers ---

    def _take_over(self, connection: Connection) -> None:
        self._counter = ReplyCounter(count_busy=self._settings.if_exists == "skip")
        connection.take_over(self._counter, self._on_results, self._on_lost)
        connection.watch(self._owed, self._settings.io_timeout)

    def _owed(self) -> bool:
        # Nothing is owed for a value that is still on its way there, however long that takes.
        return self._window.unanswered > (1 if self._encoder.streaming else 0)

    def _on_results(self, _: int) -> None:
        results = self._counter.take()
        for result in results:
            self._window.answer(result)
        while (entry := self._window.first) is not None and entry.result is not None:
            if self._trouble is not None or not self._accept(entry.batch, entry.result):
                break
        self._window.measure(asyncio.get_running_loop().time())
        waits = self._changed is not None and not self._changed.done()
        if waits and (results or self._trouble is not None or self._failure is not None):
            assert self._changed is not None
            self._changed.set_result(None)
        elif self._trouble is None and self._connection is not None:
            # Nothing waits for room, or the target has work for longer: the acknowledgements can
            # come together.
            rest = self._rest_seconds if waits else _REST_SECONDS
            if rest:
                self._connection.rest(rest)

    @property
    def _rest_seconds(self) -> float:
        """How long the acknowledgements can be left where they are though room is waited for: the
        target must not run out of work meanwhile."""
        seconds = min(self._window.busy_seconds / 2, _REST_SECONDS)
        return seconds if seconds >= _LEAST_REST_SECONDS else 0.0

    def _accept(self, batch: RecordBatch, result: Result) -> bool:
        """Retire the window's first batch, unless it has to be sent again."""
        carried, existing, errors = result
        for _, message in errors:
            code = message.partition(" ")[0]
            if code in TRY_AGAIN:
                self._trouble, self._refusal = message, code
                return False
            if self._encoder.mset and _refuses_mset(message):
                # The right was taken away meanwhile, or covers fewer keys than the probe's.
                self._encoder.use_restore_alone()
                self._trouble, self._refusal = message, code
                return False
            if (refusal := refused_all(message, self._endpoint)) is not None:
                self._failure = refusal
                return False
        self._window.retire()
        self._patience.progress()
        if not self.suspects.idle:
            self.suspects.answered(batch)
        self.on_acknowledged(Acknowledged(batch, carried, existing, tuple(errors)))
        return True

    def _on_lost(self, error: EngineError) -> None:
        _log.info("The link to the target is lost: %s", error.message, extra={"end": "target"})
        self._lose(error.message)
        if not isinstance(error, LinkError):
            self._failure = error

    def _lose(self, reason: str) -> None:
        self._trouble, self._refusal = reason, None
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # --- Trouble ---

    def _put_off(self, error: LinkError | ServerError) -> None:
        """What failed is tried again by `_recover`; raises `error` if that would not help."""
        code = error.code if isinstance(error, ServerError) else None
        if code is not None and code not in TRY_AGAIN:
            raise error
        self._trouble, self._refusal = error.message, code

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _settled(self) -> None:
        """Return when there is no trouble: recover from what there is."""
        while True:
            self._raise_failure()
            if self._trouble is None:
                return
            await self._recover(self._trouble)

    async def _recover(self, reason: str) -> None:
        """Let the answers come in, pause, dial if need be, send the window again."""
        connection = self._connection
        assert connection is not None
        refusal = self._refusal
        remedy = TRY_AGAIN.get(refusal or "", "")
        while connection.lost is None and self._window.unanswered:
            await self._wait()
        if connection.lost is not None:
            self.suspects.lost(entry.batch for entry in self._window if entry.result is None)
        if self._encoder.streaming or not self._can_send_again():
            self.reset()
            self._trouble, self._refusal = reason, refusal
            raise ReadAgain(reason, remedy)
        delay = self._patience.failed(reason, remedy=remedy)
        self.retries += 1
        await asyncio.sleep(delay)
        identity = self.info.identity
        # A role that moved is found by dialling again: the name may lead elsewhere by now.
        if connection.lost is not None or self._refusal in DIAL_AGAIN:
            connection.close()
            try:
                connection = await self._dial()
            except (LinkError, ServerError) as exc:
                self._put_off(exc)
                return
            self.reconnects += 1
            self._connection = connection
            self._same_data(identity)
            if self._db:
                try:
                    await connection.call("SELECT", self._db)
                except (LinkError, ServerError) as exc:
                    self._put_off(exc)
                    return
        else:
            connection.release()
        self._take_over(connection)
        self._window.forget_results()
        self._trouble = self._refusal = None
        for entry in list(self._window):
            if connection.lost is not None:
                return
            self._transmit(entry.batch)
            if entry.batch.streamed and len(entry.batch):
                await self._transmit_pieces(connection, entry.batch)

    def _can_send_again(self) -> bool:
        streamed = [
            entry.batch for entry in self._window if entry.batch.streamed and len(entry.batch)
        ]
        again = self.again
        return not streamed or (
            again is not None and all(again(batch) is not None for batch in streamed)
        )

    async def _transmit_pieces(self, connection: Connection, batch: RecordBatch) -> None:
        """A value in pieces once more, behind its beginning."""
        pieces = self.again(batch) if self.again is not None else None
        assert pieces is not None
        async with contextlib.aclosing(pieces):
            while True:
                try:
                    piece = await anext(pieces, None)
                except EngineError as exc:
                    self.reset()
                    raise ReadAgain(exc.message) from None
                if piece is None:
                    return
                try:
                    await connection.writable(self._settings.io_timeout)
                except EngineError as exc:
                    self._encoder.abandon()
                    self._lose(exc.message)
                    return
                connection.write(self._encoder.piece(piece))

    async def _dial(self) -> Connection:
        connection, _ = await self._dial_and_ask()
        return connection

    async def _dial_and_ask(self, *questions: tuple[str, ...]) -> tuple[Connection, list[Any]]:
        """A new connection, and the replies to `questions`, which go along with what each dialling
        asks (`Connection.together`)."""
        first: list[tuple[bytes | str, ...]] = [("INFO",), WIDEN_READS]
        if self.name:
            first.append(("CLIENT", "SETNAME", self.name))
        connection, replies = await dial_and_ask(
            self._endpoint,
            [*first, *questions],
            fault="target",
            timeout=self._settings.connect_timeout,
        )
        try:
            self.info = info_in(connection, answered(replies[0]))
            refuse_replica(connection.name, self.info)
            if self.import_source:
                await import_source(connection)
            if self.on_dialled is not None:
                await self.on_dialled()
            extra = {"end": "target", "server": self.info.name, "run_id": self.info.run_id}
            _log.info("Connected to the target, for values", extra=extra)
        except BaseException:
            connection.close()
            raise
        return connection, replies[len(first) :]

    def _look_at_process(self, identity: str) -> None:
        """Is the process that was just dialled the one of `identity`?"""
        if same_process(self.info.identity, identity):
            self.suspects.lives()
        else:
            self.suspects.ended()

    def _same_data(self, identity: str) -> None:
        """Raise `ReadAgain` unless the target's data set is still the one called `identity`."""
        self._look_at_process(identity)
        if not self.info.same_data_as(identity):
            # It may have come back empty, or be a replica that had not seen everything.
            self.reset()
            raise ReadAgain("the target was restarted or replaced", from_start=True)


def _takes_mset(reply: object) -> bool:
    """Whether the target knows MSET and the user may run it: by the reply to one without a value.

    A key without a value is refused for what it is, and nothing is written; but the rights are
    looked at before.
    """
    return isinstance(reply, ServerError) and "unknown command" not in reply.message


def _refuses_mset(message: str) -> bool:
    """Whether a refusal may be about MSET rather than about what was to be stored."""
    return message.startswith("NOPERM") or "unknown command" in message
