"""Where the bytes of a replica's socket go: into a reader at once, or into the spool first.

Bytes are counted as they come (`total`), the snapshot's and the stream's in one run, because
nothing knows beforehand where the first ends. That is found twice: here, as soon as the last byte
of the snapshot is received, for the source holds the stream back until it is told so; and by the
reader of the snapshot when it gets there, which may be gigabytes of spool later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from engine._native import (
    CommandBatch,
    ProtocolError,
    ReceiveTimes,
    RecordBatch,
    SnapshotReader,
    StreamReader,
)
from engine.errors import ProtocolFault
from engine.model.rdb_newer_than_engine import by_scan, newer_than_known
from engine.model.server_capabilities import flavour_named
from engine.sources.spool import Spool
from engine.sources.unread_age import ReadDelay
from engine.wire.psync import MARK_BYTES, FullSync, PartialSync

# Room for what comes first behind a snapshot, in bytes.
_FIRST_ROOM = 4096
READY_LIMIT = 4
"""Finished items that wait to be taken; above it nothing more is parsed."""
# Spooled bytes that came within so many seconds share one time for their relative TTLs.
_SAME_TIME = 0.02

StreamFactory = Callable[[int], StreamReader]


class Demux:
    """A `BulkReader` before two readers and a spool.

    `stream_from` makes the stream's reader, given the database in which it begins. `source_ms` says
    what the source's clock showed at a time of ours; relative TTLs hang on it. `watched`:
    `was_late` is to be known: whether the last bytes may have been read long after they came.
    """

    def __init__(
        self,
        sync: FullSync | PartialSync,
        spool: Spool,
        snapshot: SnapshotReader | None,
        stream_from: StreamFactory,
        source_ms: Callable[[float], int] | None,
        *,
        watched: bool = False,
    ) -> None:
        self._base = sync.offset
        self._spool = spool
        # Not the loop's, which stands still within a turn: it would tell nothing of one that took
        # long, because the process was stopped in it, say.
        self._clock = time.monotonic
        self._stream_from = stream_from
        self._source_ms = source_ms
        self._length = sync.length if isinstance(sync, FullSync) else None
        self._mark = sync.mark if isinstance(sync, FullSync) else None
        self._tail = b""
        self._room: memoryview | None = None
        self._first: bytearray | None = None
        self._direct = False
        # Only bytes of the stream come any more, behind its first ones.
        self._flowing = snapshot is None
        self._items: list[RecordBatch | bytes] = []
        self.receive_times = ReceiveTimes()
        self._watched = watched
        self._read_delay = ReadDelay(self._clock())
        # Why a portion could not be taken in: nothing behind it may be.
        self._broken: BaseException | None = None
        # Up to here (`total`) some bytes may have lain in the kernel for long.
        self.was_late = False
        """The last read brought what may have lain in the kernel for long."""
        self.snapshot = snapshot
        self.stream: StreamReader | None = None
        """There is one as soon as the snapshot is parsed to its end."""
        self.snapshot_bytes: int | None = None
        """Bytes of the snapshot and its mark; None until all of them are received."""
        self.stream_db = 0
        """The database in which the stream begins."""
        self.total = 0
        """Bytes received."""
        self.parsed = 0
        """Bytes given to a reader."""
        self.ready = 0
        """Items that the reader has finished, and that were not taken yet."""
        if snapshot is None:
            self.snapshot_bytes = 0
            self._begin_stream(0)

    # --- The socket's side ---

    @property
    def input(self) -> Any:
        """Where the next bytes of the socket go: a `BulkReader`'s."""
        stream = self.stream
        if self._flowing and stream is not None:
            self._direct = not self._spool.size and stream.closed < READY_LIMIT
            room: Any = stream.input if self._direct else self._spool.input
        else:
            room = self._next_room()
        if self._watched:
            self._read_delay.reads(len(room), self._clock())
        return room

    def _next_room(self) -> Any:
        if self._is_first:
            self._first = bytearray(_FIRST_ROOM)
            return self._first
        self._direct = not self._spool.size and self.ready < READY_LIMIT
        if not self._direct:
            spool_room = self._spool.input
            if self.snapshot_bytes is None:
                self._room = spool_room
            return spool_room
        reader = self.stream or self.snapshot
        assert reader is not None
        if self._mark is not None and self.snapshot_bytes is None:
            # The last bytes are looked at before the reader has eaten them.
            room: Any = reader.input
            self._room = memoryview(room)
            return self._room
        return reader.input

    def received(self, n: int, /) -> int:
        """`n` bytes were read into `input`; returns `ready`.

        Raises `ProtocolFault` and `SpoolFull`.
        """
        now = self._clock()
        if self._watched:
            self.was_late = self._read_delay.was_late(n, now)
        if self._flowing:
            self.total += n
            self.receive_times.add(self.total, now)
            if not self._direct:
                self._spool.commit(n)
            elif self._source_ms is None and self.stream is not None:
                self.parsed += n
                try:
                    self.ready = self.stream.received(n)
                except ProtocolError as exc:
                    raise _unreadable("replication stream", exc) from None
                except OSError as exc:
                    # Of the file that a long command lies in.
                    raise self._spool.lack(exc) from None
            else:
                self._parse(now, None, n)
            return self.ready
        if self._first is not None:
            return self._received_first(now, n)
        self.total += n
        self.receive_times.add(self.total, now)
        if self.snapshot_bytes is None:
            self._look_for_the_end(n)
            self._room = None
        if self._direct:
            self._parse(now, None, n)
        else:
            self._spool.commit(n)
        return self.ready

    @property
    def _is_first(self) -> bool:
        """Whether the next byte is the first behind a snapshot."""
        return self.snapshot is not None and self.total == self.snapshot_bytes

    def _received_first(self, now: float, n: int) -> int:
        """The first bytes behind a snapshot: newlines among them are not the stream's.

        A source whose child was killed when it had sent all of a snapshot (by FLUSHALL, say) takes
        its replica for one that waits yet, keeps it alive with newlines, and then hangs up. They
        have no offset: to count them would be to ask for the rest of the stream one byte too far.
        """
        assert self._first is not None
        portion = bytes(self._first[:n]).lstrip(b"\n")
        self._first = None
        if not portion:
            return self.ready
        self.total += len(portion)
        self.receive_times.add(self.total, now)
        if not self._spool.size and self.ready < READY_LIMIT:
            self._parse(now, portion, len(portion))
            return self.ready
        while portion:
            room = memoryview(self._spool.input)
            size = min(len(room), len(portion))
            room[:size] = portion[:size]
            self._spool.commit(size)
            portion = portion[size:]
        return self.ready

    def _look_for_the_end(self, n: int) -> None:
        if self._length is not None:
            if self.total >= self._length:
                self.snapshot_bytes = self._length
            return
        # The source sends nothing behind the mark before we acknowledge: so it ends a read.
        assert self._room is not None
        self._tail = (self._tail + bytes(self._room[max(n - MARK_BYTES, 0) : n]))[-MARK_BYTES:]
        if self._tail == self._mark:
            self.snapshot_bytes = self.total

    # --- The consumer's ---

    async def parse_spooled(self) -> None:
        """Give the oldest spooled portion to the reader. Cancelled, it loses nothing.

        Raises `ProtocolFault`, `SpoolFull`; once it has failed, always.
        """
        if self._broken is not None:
            raise self._broken
        with await self._spool.read() as view:
            portion = bytes(view)
        try:
            self._parse_portion(portion)
        except BaseException as exc:
            # The portion is gone from the spool.
            self._broken = exc
            raise

    def _parse_portion(self, portion: bytes) -> None:
        if self._source_ms is None:
            if portion:
                self._parse(0.0, portion, len(portion))
            return
        while portion:
            first = self.parsed + 1
            n = max(self.receive_times.together(first, _SAME_TIME) - self.parsed, 1)
            piece, portion = portion[:n], portion[n:]
            self._parse(self.receive_times.at(first) or self._clock(), piece, len(piece))

    def quiet(self, listening: bool) -> None:
        """A turn of the loop, of those that come now and then: see `ReadDelay`."""
        self._read_delay.turn(self._clock() if listening else None)

    def take_records(self) -> list[RecordBatch | bytes]:
        """What the snapshot's reader has finished, in order."""
        items, self._items = self._items, []
        if self.snapshot is not None and self.stream is None:
            items += self.snapshot.take()
            self.ready = 0
        return items

    def next_commands(self) -> CommandBatch | None:
        """The next batch of the stream, if there is one; it is closed before it is full where
        nothing more has come."""
        stream = self.stream
        assert stream is not None, "the snapshot has not been read to its end"
        batch = stream.next(not self._spool.size)
        self.ready = stream.closed
        return batch

    def hold(self, before: int, shift: int) -> None:
        """Expire times that are read from now on and lie before `before` are extended by
        `shift`."""
        for reader in (self.snapshot, self.stream):
            if reader is not None:
                reader.extend_before, reader.extend_by = before, shift

    @property
    def extended_count(self) -> int:
        """How many expire times were extended."""
        count = self.snapshot.extended_count if self.snapshot is not None else 0
        return count + (self.stream.extended_count if self.stream is not None else 0)

    # --- Offsets ---

    @property
    def received_offset(self) -> int:
        """Offset of the last byte of the stream that came."""
        return self._base + max(self.total - self._snapshot_end, 0)

    def position_of(self, offset: int) -> int:
        """Which of the received bytes has this offset in the stream."""
        return offset - self._base + self._snapshot_end

    @property
    def _snapshot_end(self) -> int:
        return self.total if self.snapshot_bytes is None else self.snapshot_bytes

    # --- Inside ---

    def _parse(self, came: float, portion: bytes | None, n: int) -> None:
        reader: Any = self.stream or self.snapshot
        if self.stream is not None and self._source_ms is not None:
            self.stream.now_ms = self._source_ms(came)
        self.parsed += n
        try:
            self.ready = reader.received(n) if portion is None else reader.feed(portion)
            if self.stream is None:
                self._pass_the_end()
        except OSError as exc:
            # Of the file that a long command lies in.
            raise self._spool.lack(exc) from None
        except ProtocolError as exc:
            self._explain_newer()
            what = "snapshot" if self.stream is None else "replication stream"
            raise _unreadable(what, exc) from None
        if self.stream is not None and self.snapshot_bytes is not None:
            self._flowing = self.total > self.snapshot_bytes

    def _explain_newer(self) -> None:
        """Raise `ProtocolFault` with what works if the snapshot holds what is not known here."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.unknown is None:
            return
        newer = newer_than_known(
            flavour_named(snapshot.flavour), snapshot.version, snapshot.unknown
        )
        if newer is not None:
            raise ProtocolFault(
                f"the source's snapshot cannot be read at byte {snapshot.offset}: {newer}",
                remedy=f"Use --source-type scan: {by_scan(snapshot.unknown)} Later writes are not "
                "followed then.",
                fault="source",
            ) from None

    def _pass_the_end(self) -> None:
        """From the snapshot's reader to that of the stream, if the first is done."""
        snapshot = self.snapshot
        if snapshot is not None and snapshot.finished:
            end = snapshot.offset
            self._items += snapshot.take()
            rest = snapshot.rest()
            # See `_received_first`: they may have come together with the snapshot's end.
            stray = len(rest) - len(rest.lstrip(b"\n"))
            rest = rest[stray:]
            self.total -= stray
            self.parsed -= stray
            self.snapshot_bytes = end
            stream = self._begin_stream(_stream_db(snapshot))
            self.ready = stream.feed(rest)

    def _begin_stream(self, db: int) -> StreamReader:
        stream = self.stream = self._stream_from(db)
        self.stream_db = stream.db
        if self._source_ms is not None:
            first = self.receive_times.at((self.snapshot_bytes or 0) + 1)
            stream.now_ms = self._source_ms(self._clock() if first is None else first)
        return stream


def _unreadable(what: str, why: ProtocolError) -> ProtocolFault:
    return ProtocolFault(
        f"the source sent a {what} that this engine cannot decode: {why}", fault="source"
    )


def _stream_db(snapshot: SnapshotReader) -> int:
    """The database in which the stream begins.

    A primary sends SELECT first; a replica passes on its primary's stream as it comes, and the
    snapshot says which database was selected in it (`rdbPopulateSaveInfo`).
    """
    said = snapshot.aux.get("repl-stream-db", b"0")
    try:
        db = int(said)
    except ValueError:
        db = -1
    if not 0 <= db < 1 << 31:
        raise ProtocolFault(
            f"the snapshot says that its stream begins in database {said[:20]!r}", fault="source"
        )
    return db
