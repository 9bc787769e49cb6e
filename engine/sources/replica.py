"""The replica source: becomes a replica by PSYNC, gives the snapshot, then the stream.

    socket -> [spool] -> SnapshotReader -> RecordBatch and pieces
                      -> StreamReader   -> CommandBatch

A source keeps what a replica has not read in its own memory, and cuts the replica off when that is
too much. So in the follow phase the socket is always drained: bytes that the consumer does not want
yet go to the spool. During the snapshot the consumer's pace may hold the source back: what piles up
there is only what clients write meanwhile, and no spool as large as the snapshot is needed. The
source is asked how much that is (`sources/snapshot_backpressure`); if it is much, the socket is
drained then too.

The source is told once a second what has been applied, not what has been received: that is what its
operator sees, and what WAIT counts. While the snapshot comes, a bare newline says that we live.
A diskless source sends nothing of the stream before the first ACK behind the snapshot; one that
comes before the source has seen its child end has no effect, so the first few follow closely.

A lost link costs nothing in the follow phase as long as the source's backlog reaches: what has been
received is kept, and the stream is asked for behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, cast

from engine import logs
from engine._native import (
    CommandBatch,
    RecordBatch,
    SnapshotReader,
    StreamReader,
)
from engine.errors import EngineError, LinkError, ServerError, TransferStopped
from engine.model.backoff import Backoff, span
from engine.model.doubt import Doubt
from engine.model.endpoint import Endpoint
from engine.model.lane_route import ONLY, Route
from engine.model.position import StreamPosition
from engine.model.replication import Replication
from engine.model.retry import Attempts
from engine.model.server import ServerInfo
from engine.model.settings import MIB, TransferSettings
from engine.sources.base import Item
from engine.sources.read_coalescing import rest_after
from engine.sources.reader_or_spool import READY_LIMIT, Demux
from engine.sources.replica_connect import PositionGone, ReplicaHandshake
from engine.sources.snapshot_backpressure import too_much_behind
from engine.sources.source_liveness import Link, SourceLiveness
from engine.sources.source_monitor import SourceMonitor
from engine.sources.spool import Spool
from engine.sources.unread_age import TURN_SECONDS
from engine.sources.value_spill import Spill
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT
from engine.wire.connection import Connection
from engine.wire.psync import FullSync, PartialSync

_log = logs.logger(__name__)
_TICK_SECONDS = 1.0
# Tries to make a lost link anew are logged this often.
_LOG_SECONDS = 10.0
# What tells a source during the snapshot that its replica lives. A replica sends the newline alone:
# up to 3.2 processInlineBuffer takes two bytes off for it, so an ACK right behind it loses its
# first one, and errors come down the stream.
BEAT = b"\r\n"
# Read from a paused socket at each tick: a diskless source cuts off a replica that takes nothing
# for `repl-timeout`.
_SIP_BYTES = 256 << 10
# After the snapshot, until the source has seen that its child is done.
_FIRST_ACKS = (0.0, 0.05, 0.1, 0.1, 0.25, 0.5)
# Values in pieces that the target has not acknowledged yet are kept on disk up to so many bytes.
_KEPT_BYTES = 1024 * MIB
# A batch of the snapshot that fills slowly is handed on after so long.
_LINGER_SECONDS = 0.5
# With fewer bytes than this a read of the snapshot was hardly worth its wake-up: a diskless source
# sends them in portions of 16 KiB. In the follow phase latency counts, see
# `sources/read_coalescing`.
_REST_BELOW = 64 << 10
_REST_SECONDS = 0.002


class ReplicaSource:
    """One shard of a source, followed. Opened, read, closed; opened again after a failure.

    Before `open`: `bulk_limit`, `extend_before` and `extend_by` (as `SnapshotReader`'s; ms), and
    `lacks`. Calls: `open`, then `snapshot` to its end if that gave a `FullSync`, then
    `next_commands` again and again, and where that has none `more`.
    """

    def __init__(self, endpoint: Endpoint, settings: TransferSettings, route: Route = ONLY) -> None:
        """`route`: which of the source's keys are wanted."""
        self._handshake = ReplicaHandshake(endpoint, settings)
        self._slots = route.filter
        self._rules = settings.key_rules
        self._settings = settings
        self.bulk_limit = DEFAULT_BULK_LIMIT
        """Bytes of the longest value that the target takes in one argument."""
        self.extend_before = 0
        self.extend_by = 0
        self.lacks = 0
        """Which newer commands the target does not know, as a `StreamReader` takes it."""
        self.on_event: Callable[[str], None] = lambda _: None
        """Told what an operator would want to read in a log."""
        self.on_doubt: Callable[[Doubt], None] = lambda _: None
        """Told that the stream was read late, before those bytes are given; again and again while
        it may be held up on its way; and that a lost link was made anew, before what was missed is
        read. The first two of sources that send relative TTLs, or have fields with TTLs."""
        self.elsewhere: Callable[[StreamPosition], Awaitable[bool]] | None = None
        """Asked while the source cannot be dialled, with the last position: whether its stream goes
        on at another server, to which its address leads from now on."""
        self.replid = ""
        """The stream's name now; it changes with a failover of the source."""
        self.reconnects = 0
        self.connection: Connection = cast(Connection, None)
        """The link that the stream comes over; another one behind a loss."""
        self._liveness = SourceLiveness(
            lambda: self.connection, lambda: self._handshake.ping_period, settings.retry_for
        )
        self._watch: SourceMonitor | None = None
        self._demux: Demux = cast(Demux, None)
        self._spool: Spool = cast(Spool, None)
        self._spooled_most = 0
        self._spill: Spill | None = None
        self.applied = 0
        # Up to here the stream was received, and applied, before.
        self._known = 0
        self._acks_seen = 0
        self.ack_wanted: int | None = None
        self._drain = False
        self._sip = 0
        self._hurried = 0
        self._interrupted = False
        self.lanes = 1
        """How many lanes share the process."""
        self.on_more: Callable[[], None] | None = None
        """Called, if nothing waits in `more`, when `next_commands` is worth another call."""
        self._lost: EngineError | None = None
        self.usable = True
        """What was received may be applied: else `next_commands` raises."""
        self._given_up = False  # the link was tried again for as long as it may be
        self._waiter: asyncio.Future[None] | None = None
        self._resting: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole = asyncio.Event()
        # The same without a call: it is asked for with every read.
        self._is_whole = False

    # --- Its life ---

    async def open(
        self,
        position: StreamPosition | None,
        since: StreamPosition | None = None,
        ready: Awaitable[None] | None = None,
    ) -> FullSync | PartialSync:
        """Become a replica, from `position` on (None: everything).

        `ready`: as `ReplicaHandshake.open`.

        `since`: an earlier place of the same stream, from which on it is wanted. It is asked for
        only if the source has `position` too: else it might go on from there with another history
        than the one that led to `position`. For the same reason a link that is lost before
        `position` is reached again is not made anew.

        A `FullSync` may be the answer to a position as well. Raises `PsyncRefused` (take the scan
        source), `LinkError`, `AuthError`, `ServerError` (not now), `SpoolFull` and `UsageError`
        (the spool's directory).
        """
        settings = self._settings
        # 1. Room for what may have to wait, before the source forks for us.
        self._spooled_most = self.spooled_most
        self._spool = Spool(settings.spool_directory, settings.spool_bytes, self._on_spool)
        await asyncio.to_thread(self._spool.check)
        # 2. The handshake.
        connection, sync = await self._handshake.open(position, since, ready)
        self._known = position.offset if position is not None and since is not None else 0
        # 3. From here on bytes come.
        self.replid = sync.replid
        self._liveness.begin()
        self._watch = None
        self._lost, self._waiter = None, None
        self.usable = True
        self._whole, self._is_whole = asyncio.Event(), False
        self._drain, self._sip = False, 0
        self._interrupted = False
        self._acks_seen, self.ack_wanted = 0, None
        self.applied = sync.offset if isinstance(sync, PartialSync) else 0
        self._demux = self._make_demux(sync, since or position)
        self._take_over(connection)
        self._start(self._beat())
        if self._watched:
            self._start(self._watch_turns())
        self._start(self._ask_on())
        if isinstance(sync, FullSync):
            self._start(self._watch_pending(sync.offset))
        return sync

    async def close(self) -> None:
        """Let go of the connection, the spool and what waits in it. Never raises."""
        # The link first, or its loss meanwhile would start a task without an end: it would dial
        # again behind our back, and feed what is opened next. A task that ends all the same by
        # taking another link over leaves that one, so it is looked at again.
        while True:
            if self.connection is not None:
                self.connection.close()
            if not self._tasks:
                break
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._spool is not None:
            await self._spool.close()
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    # --- What it gives ---

    async def snapshot(self) -> AsyncGenerator[Item, None]:
        """The snapshot's batches in order; a streamed batch is followed by its pieces.

        Nothing after a partial sync. Raises `LinkError` when the link goes before the whole
        snapshot is here (open it again: it begins anew), `ProtocolFault`, `SpoolFull`.
        """
        demux = self._demux
        spill = self._spill = Spill(
            max(self.bulk_limit, self._settings.spool_bytes),
            self._spool.directory,
            keep=_KEPT_BYTES,
        )
        loop = asyncio.get_running_loop()
        handed_on = loop.time()
        while True:
            items = demux.take_records()
            if items:
                self._steer()
                async for item in spill.arrange(items):
                    yield item
                handed_on = loop.time()
                continue
            if demux.stream is not None:
                return
            if self._lost is not None and not self._is_whole:
                raise self._lost
            self._raise_if_broken()
            if await self._parse_spooled():
                continue
            assert demux.snapshot is not None
            if demux.snapshot.may_flush and loop.time() - handed_on > _LINGER_SECONDS:
                demux.snapshot.flush()
                continue
            self._raise_if_over()
            await self._wait(_LINGER_SECONDS)

    def value_again(self, batch: RecordBatch) -> AsyncGenerator[bytes, None] | None:
        """The pieces of a streamed value of the snapshot that was given before; None: they are
        gone."""
        return self._spill.again(batch) if self._spill is not None else None

    def value_arrived(self, batch: RecordBatch) -> None:
        """A streamed value is on the target: `value_again` is not going to be asked for it."""
        if self._spill is not None:
            self._spill.forget(batch)

    def next_commands(self) -> CommandBatch | None:
        """The stream's next batch if it has come, else None. Behind the snapshot's end only.

        A batch is closed when nothing more has come, so it may be small, or empty (a PING moved
        the offset). Raises `ProtocolFault`, `SpoolFull`.
        """
        if self._lost is not None:
            self._raise_if_broken()
        batch = self._demux.next_commands()
        if batch is not None and not self._is_whole:
            self._steer()
        return batch

    async def more(self) -> None:
        """Wait until `next_commands` is worth another call; `interrupt` ends the wait.

        Cancelled, it loses nothing. Raises `LinkError` when the link is gone for good and all that
        was received has been given; `ProtocolFault`, `SpoolFull`.
        """
        if await self._parse_spooled():
            return
        self._raise_if_over()
        if not self._interrupted:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._interrupted = False

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until `interrupt`. What comes meanwhile is received, and goes to the
        spool: nothing of that is parsed."""
        if not self._interrupted:
            self._resting = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait({self._resting}, timeout=seconds)
            finally:
                self._resting = None
        self._interrupted = False

    @property
    def at_rest(self) -> bool:
        """Whether nothing but new bytes is waited for: `more` has nothing to do, nor to raise."""
        return not self._spool.size and self._lost is None

    @property
    def spool(self) -> Spool:
        """What waits in front of `stream`."""
        return self._spool

    @property
    def stream(self) -> StreamReader:
        """What splits the stream into batches, behind the snapshot's end only: as `next_commands`,
        but that nothing is raised. Not to be asked while this is not `usable`."""
        assert self._demux.stream is not None, "the snapshot has not been read to its end"
        return self._demux.stream

    def interrupt(self) -> None:
        """End a wait in `more`, or the next one."""
        self._interrupted = True
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(None)
        self._wake()

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Meanwhile the socket is read without a pause: its bytes are waited for."""
        self._hurried += 1
        self.connection.stop_resting()
        try:
            yield
        finally:
            self._hurried -= 1

    def leave_for(self, there: Endpoint) -> None:
        """Give up links to any server but `there`, which is the source by now: what was received is
        kept, and the stream asked for behind it."""
        if self._watch is not None:
            self._watch.leave_for(there)
        if self.connection is not None:
            self.connection.leave_for(there)

    def acknowledge(self, offset: int) -> None:
        """The target has everything up to and including `offset`: what the source is told."""
        self.applied = max(self.applied, offset)
        if self.ack_wanted is not None and offset >= self.ack_wanted:
            self._acknowledge_now()
            self.ack_wanted = None

    def hold(self, before: int, shift: int) -> None:
        """Extend expire times before `before` (ms since the epoch, the source's clock) by `shift`
        ms."""
        self.extend_before, self.extend_by = before, shift
        if self._demux is not None:
            self._demux.hold(before, shift)

    # --- What is known ---

    @property
    def info(self) -> ServerInfo:
        """What the server said of itself when it was opened."""
        return self._handshake.info

    @property
    def relative_ttls(self) -> bool:
        """Whether the source sends TTLs that count from when it ran the command."""
        return not self.info.capabilities.absolute_ttls

    @property
    def field_ttls(self) -> bool:
        """Whether fields of the source's hashes may have TTLs."""
        return self.info.capabilities.field_ttls

    @property
    def _watched(self) -> bool:
        return self.relative_ttls or self.field_ttls

    @property
    def link(self) -> Link:
        """Whether the source is heard, see `sources/source_liveness`."""
        return self._liveness.link

    @property
    def trouble(self) -> str:
        """Why it is not known what the source has sent by now, in one line; empty while it is."""
        return self._liveness.trouble

    @property
    def heard_seconds(self) -> float | None:
        """Whole seconds since anything came from the source; None: nothing ever came."""
        return self._liveness.seconds

    @property
    def replication(self) -> Replication | None:
        """What the source said last of its role and offset; None: nothing since `open`."""
        return self._watch.replication if self._watch is not None else None

    @property
    def failed_dials(self) -> int:
        """How many times a lost link could not be made anew."""
        return self._liveness.failed_dials

    @property
    def sent_offset(self) -> int:
        """Up to here the source has sent its stream, as far as it was heard."""
        replication = self.replication
        return max(self.received_offset, replication.offset if replication is not None else 0)

    def ask_now(self) -> None:
        """Have the source asked for its role and offset without waiting for the next time."""
        if self._watch is not None:
            self._watch.ask_now()

    def replication_since(self, moment: float) -> Replication | None:
        """What the source answered to a question that was put at `moment` of the loop's clock, or
        later; None: nothing yet. Raises `AuthError`, `ServerError`, `ProtocolFault` where it does
        not let itself be asked."""
        watch = self._watch
        if watch is None:
            return None
        if watch.asked_at >= moment:
            return watch.replication
        if watch.refused is not None:
            raise watch.refused
        return None

    @property
    def extended_count(self) -> int:
        """How many expire times were extended since `open`."""
        return self._demux.extended_count

    @property
    def parsed_offset(self) -> int:
        """Offset up to which the stream has been parsed: what `hold` says holds behind it."""
        assert self._demux.stream is not None
        return self._demux.stream.parsed_offset

    @property
    def stream_db(self) -> int:
        """The database in which the stream behind the snapshot begins."""
        return self._demux.stream_db

    @property
    def now_ms(self) -> int:
        """What the source's clock shows now, in ms since the epoch."""
        return self.source_ms(time.monotonic())

    @property
    def total_keys(self) -> int:
        """Keys in the chosen databases when the source was opened."""
        takes_db = self._settings.takes_db
        return sum(entry.keys for entry in self.info.keyspace if takes_db(entry.db))

    @property
    def snapshot_received(self) -> bool:
        """Whether the whole snapshot is here, parsed or not."""
        return self._demux.snapshot_bytes is not None

    @property
    def received_offset(self) -> int:
        """Offset of the last byte of the stream that was received."""
        return self._demux.received_offset

    @property
    def spooled(self) -> int:
        """Bytes that wait in the spool."""
        return self._spool.size if self._spool is not None else 0

    @property
    def spooled_most(self) -> int:
        """The most that ever waited there, since the first `open`."""
        return max(self._spooled_most, self._spool.most if self._spool is not None else 0)

    def check(self) -> None:
        """Raise `SpoolFull` if the spool has failed, also while nothing asks for what comes
        next."""
        if self._spool is not None and self._spool.failed is not None:
            raise self._spool.failed

    def receive_time_of(self, offset: int) -> float | None:
        """When the byte at `offset` came, by `time.monotonic`; None: not yet, or long applied."""
        return self._demux.receive_times.at(self._demux.position_of(offset))

    def lag(self, offset: int) -> tuple[int, float]:
        """(bytes, seconds) by which something that is at `offset` is behind what was received."""
        behind = self.received_offset - offset
        if behind <= 0:
            return 0, 0.0
        came = self.receive_time_of(offset + 1)
        return behind, time.monotonic() - came if came is not None else 0.0

    def source_ms(self, at: float) -> int:
        """What the source's clock shows at `at` of `time.monotonic`, in ms since the epoch."""
        return int((at + self._handshake.skew) * 1000)

    @property
    def aux(self) -> dict[str, bytes]:
        """The snapshot's AUX fields that have been read so far."""
        return self._demux.snapshot.aux if self._demux.snapshot is not None else {}

    @property
    def functions(self) -> list[bytes]:
        """Code of the libraries in the snapshot."""
        return self._demux.snapshot.functions if self._demux.snapshot is not None else []

    @property
    def scripts(self) -> list[bytes]:
        """Bodies of EVAL scripts in the snapshot (old sources keep them there)."""
        return self._demux.snapshot.scripts if self._demux.snapshot is not None else []

    @property
    def module_data(self) -> list[tuple[str, bytes | None]]:
        """What modules keep beside the keys, as `SnapshotReader` gives it."""
        return self._demux.snapshot.module_data if self._demux.snapshot is not None else []

    @property
    def left_out(self) -> list[str]:
        """What the snapshot holds and cannot be carried, a line each."""
        return self._demux.snapshot.left_out if self._demux.snapshot is not None else []

    @property
    def keys_hint(self) -> int:
        """Keys of the databases of the snapshot that have begun."""
        return self._demux.snapshot.keys_hint if self._demux.snapshot is not None else 0

    # --- Opening ---

    def _make_demux(self, sync: FullSync | PartialSync, position: StreamPosition | None) -> Demux:
        settings = self._settings
        snapshot = None
        if isinstance(sync, FullSync):
            snapshot = SnapshotReader(
                length=sync.length,
                mark=sync.mark,
                batch_bytes=settings.batch_bytes,
                stream_above=min(settings.stream_above, self.bulk_limit),
                value_limit=self.bulk_limit,
                made_limit=settings.spool_bytes,
                extend_before=self.extend_before,
                extend_by=self.extend_by,
                slots=self._slots,
                rules=self._rules,
            )
        relative = self.relative_ttls

        def stream_from(db: int) -> StreamReader:
            in_multi = False
            if isinstance(sync, PartialSync) and position is not None:
                db, in_multi = position.db, position.in_multi
            stream = StreamReader(
                sync.offset,
                db,
                in_multi,
                batch_bytes=settings.batch_bytes,
                anchor=relative,
                publish=settings.publish == "pass",
                names=settings.stream_names,
                file=self._spool.new_file,
                slots=self._slots,
                rules=self._rules,
                lacks=self.lacks,
            )
            stream.extend_before, stream.extend_by = self.extend_before, self.extend_by
            return stream

        source_ms = self.source_ms if relative else None
        watched = self._watched
        return Demux(sync, self._spool, snapshot, stream_from, source_ms, watched=watched)

    def _take_over(self, connection: Connection) -> None:
        self.connection = connection
        connection.take_over(self._demux, self._on_ready, self._on_lost)
        connection.watch(lambda: True, self._handshake.silence)
        connection.resume_reading()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- The socket ---

    def _on_ready(self, _: int) -> None:
        if self._demux.was_late:
            self.on_doubt(Doubt.READ_LATE)
        if self._sip:
            self._sip = max(self._sip - self.connection.last_read, 0)
        stream = self._demux.stream
        if stream is not None and stream.acks_wanted != self._acks_seen:
            # A client of the source WAITs: told now, and again when the target has got there.
            self._acks_seen = stream.acks_wanted
            self.ack_wanted = stream.parsed_offset
            self._acknowledge_now()
        connection, whole = self.connection, self._is_whole
        if self._spool.size or not whole:
            self._steer()
        if whole:
            hurried = self._hurried > 0
            read, filled = connection.last_read, connection.filled
            seconds = rest_after(
                read,
                filled=filled,
                hurried=hurried,
                lanes=self.lanes,
                now=connection.received_at,
            )
        else:
            seconds = _REST_SECONDS if connection.last_read < _REST_BELOW else 0.0
        if seconds:
            connection.rest(seconds)
        if self.on_more is not None and self._waiter is None:
            self.on_more()
        else:
            self._wake()

    def _on_spool(self) -> None:
        if self._spool.failed is not None:
            self.connection.fail(self._spool.failed)
        self._steer()
        self._wake()

    def _steer(self) -> None:
        """Read from the socket, or leave it to the source to hold what it has."""
        demux, spool = self._demux, self._spool
        if demux.snapshot_bytes is not None and not self._is_whole:
            self._is_whole = True
            self._whole.set()
            if demux.snapshot_bytes:
                extra = {"end": "source", "bytes": demux.snapshot_bytes}
                _log.info("The whole snapshot is received", extra=extra)
        if spool.behind:
            read = False
        elif self._is_whole or self._drain or self._sip:
            read = True
        else:
            read = not spool.size and demux.ready < READY_LIMIT
        if read:
            self.connection.resume_reading()
        else:
            self.connection.pause_reading()

    async def _parse_spooled(self) -> bool:
        if not self._spool.size:
            return False
        try:
            await self._demux.parse_spooled()
        except EngineError as exc:
            # The portion is gone: nothing that comes behind it may be taken in.
            self.connection.fail(exc)
            raise
        self._steer()
        return True

    def _on_lost(self, error: EngineError) -> None:
        if self._demux.snapshot_bytes is not None:
            self._is_whole = True
            self._whole.set()
        known = self._demux.received_offset >= self._known
        if self._is_whole and isinstance(error, LinkError) and known:
            self._start(self._relink(error))
            self._wake()
        else:
            _log.info("The link to the source is lost: %s", error.message, extra={"end": "source"})
            self._give_up(error)

    def _give_up(self, error: EngineError) -> None:
        self._lost = error
        # After a lost link, even one that is given up, what was received is still good; after
        # anything else it is of no use.
        superseded = isinstance(error, PositionGone) and error.replid == self.replid
        self.usable = not superseded and (isinstance(error, LinkError) or self._given_up)
        self._wake()

    def _raise_if_broken(self) -> None:
        if not self.usable:
            assert self._lost is not None
            raise self._lost

    def _raise_if_over(self) -> None:
        if self._lost is not None:
            raise self._lost

    async def _wait(self, seconds: float | None) -> None:
        """Until something came or ended, or `seconds` have passed."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({self._waiter}, timeout=seconds)
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif self.on_more is not None:
            self.on_more()

    # --- Beside it ---

    async def _beat(self) -> None:
        """Tell the source that we live, and how far the target is."""
        while not self._is_whole:
            self.connection.write(BEAT)
            self._sip = _SIP_BYTES
            self._steer()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._whole.wait()
        for pause in _FIRST_ACKS:
            await asyncio.sleep(pause)
            self._acknowledge_now()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._acknowledge_now()

    async def _watch_turns(self) -> None:
        """See `sources/unread_age`."""
        while True:
            self._demux.quiet(self.connection.listening)
            await asyncio.sleep(TURN_SECONDS)

    async def _ask_on(self) -> None:
        """See `sources/source_monitor`. What comes behind a snapshot is late in any case."""
        if self._demux.snapshot_bytes is None:
            await self._whole.wait()
        watch = self._watch = SourceMonitor(
            self._handshake.dial,
            lambda: self._demux.received_offset,
            (lambda: self.on_doubt(Doubt.STALLED)) if self._watched else None,
            lambda text: self.on_event(text),
        )
        self._liveness.attend(watch)
        await watch.run()

    def _acknowledge_now(self) -> None:
        if self._demux.receive_times.crowded:
            self._demux.receive_times.forget(self._demux.position_of(self.applied))
        self.connection.write(self.connection.encode("REPLCONF", "ACK", self.applied))

    async def _watch_pending(self, offset: int) -> None:
        """See `sources/snapshot_backpressure`: from then on the target's pace no longer matters."""
        reason = await too_much_behind(
            offset, self._handshake.dial, self._whole, self._settings.source_protection
        )
        if reason is not None and not self._is_whole:
            self._drain = True
            self.on_event(f"the snapshot is received faster than the target stores it: {reason}")
            self._steer()

    async def _relink(self, error: EngineError) -> None:
        """Ask for the stream behind what was received; the bytes go on as if nothing had been."""
        self.on_event(f"{error.message}: connecting again")
        self._liveness.lost(error)
        seldom, tries = logs.Seldom(_LOG_SECONDS), 0
        async for attempt in Attempts(_Relinking(self._settings.retry_for, self._liveness)):
            try:
                behind = StreamPosition(self.replid, self.received_offset)
                connection, sync = await self._handshake.behind(behind)
                self.replid = sync.replid
                self.reconnects += 1
                seconds, tries = self._liveness.linked()
                self.on_event(
                    f"the link to the source stands again, after {seconds:.1f} s and {tries} tries"
                )
                self.on_doubt(Doubt.RELINKED)
                self._take_over(connection)
                return
            except (LinkError, ServerError) as exc:
                error = exc
                tries += 1
                self._liveness.lost(exc)
                if seldom.due():
                    extra = {"end": "source", "tries": tries, "offset": self.received_offset}
                    _log.info("Could not connect to the source: %s", exc.message, extra=extra)
                if isinstance(exc, PositionGone):
                    break
                if self.elsewhere is not None and await self.elsewhere(behind):
                    # It is another server, and may be of another version: opened anew.
                    break
                try:
                    attempt.failed(exc.message, remedy=exc.remedy)
                except TransferStopped as stopped:
                    self._given_up = True
                    error = stopped
                    break
            except EngineError as exc:
                error = exc
                break
        self._give_up(error)


class _Relinking:
    """The policy of dialling again (`model.retry`): the liveness is told of each rest."""

    def __init__(self, limit: float, liveness: SourceLiveness) -> None:
        self._limit = limit
        self._liveness = liveness
        self._backoff = Backoff(limit)
        self._backoff.failed(time.monotonic())

    def failed(self, reason: str, *, remedy: str = "", event: str = "") -> float:
        """See `Policy`. Raises `TransferStopped`."""
        if self._backoff.exhausted(time.monotonic()):
            raise TransferStopped(
                f"the source could not be reached for {span(self._limit)}: {reason}",
                remedy=remedy,
                fault="source",
            )
        delay = self._backoff.delay()
        self._liveness.rests(delay)
        return delay
