"""The bytes that a source sent and the target's side has not yet asked for, first in, first out.

A source cuts a replica off whose socket is not drained, and the next full sync would meet the same
slow target: so the socket is always read, and what is not wanted yet waits here. The oldest bytes
and the newest are in memory (`MEMORY_BYTES` together), those between them on disk:

    commit -> back (memory) -> segment files -> front (memory) -> read

A spool that never grows never touches the disk. Files are written and read by one thread: the page
cache takes a chunk in less than a millisecond, but a disk that has to catch up holds up what
writes, and the event loop has other sockets to serve. When the thread cannot keep up either, the
spool is `behind`, and its owner reads no more until it is not.

Each file is unlinked as soon as it is there, so that nothing is left of it however the process
ends; its room is given back when it has been read. `df` shows it, `du` does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from engine import logs
from engine.errors import SpoolFull, UsageError
from engine.model.settings import GIB, MIB
from engine.model.spool_directory import spool_directory

_log = logs.logger(__name__)
_LOG_SECONDS = 10.0
CHUNK_BYTES = 1 * MIB
MEMORY_BYTES = 16 * MIB
SEGMENT_BYTES = 64 * MIB
# No read from a socket gets less room than this.
_LEAST_ROOM = 64 << 10
# What a disk must have free at the start, unless the limit is below it.
_FREE_AT_START = 1 * GIB
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDY = (
    "The target is slower than the source writes: raise --spool-bytes, or name a larger disk with "
    "--spool-directory. The source was not touched."
)


class _Chunk:
    __slots__ = ("data", "end")

    def __init__(self) -> None:
        self.data = bytearray(CHUNK_BYTES)
        self.end = 0


class _Segment:
    __slots__ = ("fd", "read", "written")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.read = self.written = 0


class Spool:
    """A FIFO of bytes. One reader; `input` and `commit` alternate.

    `on_change` is called when `behind` may have ended, and when writing failed (`failed`).
    """

    def __init__(
        self,
        directory: str | None,
        limit: int,
        on_change: Callable[[], None],
        *,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self.directory = spool_directory(directory)
        self.limit = limit
        self.size = 0
        """Bytes that wait."""
        self.most = 0
        """The most that ever waited."""
        self.written = 0
        """Bytes that went through files."""
        self.failed: SpoolFull | None = None
        self._on_change = on_change
        # Chunks: half of the memory each for the oldest and the newest.
        self._half = max(memory // CHUNK_BYTES // 2, 2)
        self._front: deque[_Chunk] = deque()
        self._back: deque[_Chunk] = deque()
        self._free: list[_Chunk] = []
        self._lent: _Chunk | None = None
        self._open: _Chunk | None = None
        # Touched by the thread only; `_on_disk` by the loop only.
        self._segments: deque[_Segment] = deque()
        self._on_disk = 0
        self._seldom = logs.Seldom(_LOG_SECONDS)
        self._writer: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[_Chunk] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def check(self) -> None:
        """Look for room: at least the limit, or 1 GiB if the limit is above that.

        Raises `SpoolFull`; `UsageError` for a directory that is none, or not ours to write in.
        """
        wanted = min(self.limit, _FREE_AT_START)
        try:
            free = _free_bytes(self.directory)
        except OSError as exc:
            raise self._unusable(exc) from None
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise self._unusable(OSError(errno.EACCES, os.strerror(errno.EACCES)))
        if free < wanted:
            raise SpoolFull(
                f"the spool's directory {self.directory} has {free // MIB:,} MiB free; "
                f"{wanted // MIB:,} MiB are wanted at the start",
                remedy="Name another with --spool-directory, or lower --spool-bytes.",
            )

    def new_file(self) -> int:
        """The descriptor of an empty file beside the spool's, for a command that is too long for
        memory. Raises `OSError`."""
        return nameless_file(self.directory)

    @property
    def free(self) -> int:
        """Bytes that the directory's disk has free. Raises `OSError`."""
        return _free_bytes(self.directory)

    @property
    def behind(self) -> bool:
        """The disk does not keep up: commit no more until `on_change`."""
        return len(self._back) >= self._half

    @property
    def input(self) -> memoryview:
        """Room for the next bytes."""
        chunk = self._open
        if chunk is None or CHUNK_BYTES - chunk.end < _LEAST_ROOM:
            chunk = self._open = self._free.pop() if self._free else _Chunk()
            chunk.end = 0
            # Straight to the front as long as nothing older has to be written away.
            plain = not (self._back or self._on_disk or self._writer)
            (self._front if plain and len(self._front) < self._half else self._back).append(chunk)
        return memoryview(chunk.data)[chunk.end :]

    def commit(self, n: int) -> None:
        """`n` bytes were put into `input`. Raises `SpoolFull`."""
        assert self._open is not None
        self._open.end += n
        self.size += n
        self.most = max(self.most, self.size)
        if self.size > self.limit:
            self.failed = SpoolFull(
                f"{self.size // MIB:,} MiB wait for the target, and the spool may hold "
                f"{self.limit // MIB:,}",
                remedy=_REMEDY,
            )
        if self.failed is not None:
            raise self.failed
        # The newest stay in memory: the reader may get here before the disk is worth it.
        if self._writer is None and len(self._back) > max(self._half // 2, 1):
            self._writer = asyncio.get_running_loop().create_task(self._write_out())

    def append(self, data: bytes) -> None:
        """As `input` and `commit`, for bytes that are in memory."""
        while data:
            with self.input as room:
                portion = data[: len(room)]
                room[: len(portion)] = portion
            self.commit(len(portion))
            data = data[len(portion) :]

    async def read(self) -> memoryview:
        """The oldest bytes, at most `CHUNK_BYTES`; good until the next call. Empty: none wait.

        A call that is cancelled loses nothing. Raises `SpoolFull` when the file cannot be read.
        """
        if self._lent is not None:
            self._release(self._lent)
            self._lent = None
        while self.size:
            if self._reading is None and self._on_disk and not self._front:
                self._reading = asyncio.get_running_loop().create_task(self._read_back())
            if self._reading is not None:
                # The oldest, also where the call that began to read it was cancelled.
                chunk = await asyncio.shield(self._reading)
                self._reading = None
            elif self._front:
                chunk = self._front.popleft()
            elif self._writer is not None:
                # What is being written now is the oldest.
                await asyncio.wait({self._writer})
                if self.failed is not None:
                    raise self.failed
                continue
            else:
                chunk = self._back.popleft()
                self._on_change()
            if chunk is self._open:
                self._open = None
            self._lent = chunk
            self.size -= chunk.end
            if chunk.end:
                return memoryview(chunk.data)[: chunk.end]
            self._release(chunk)
            self._lent = None
        return memoryview(b"")

    async def close(self) -> None:
        """Give memory and files back. Cancelled, it may be called again."""
        tasks = {task for task in (self._writer, self._reading) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            # Not by awaiting each: a cancellation of ours would be taken for theirs, and lost.
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()
        self._front.clear()
        self._back.clear()
        self._free.clear()
        self._open = self._lent = None
        self.size = self._on_disk = 0
        if self._thread is not None:
            # The thread has the files; a write under way ends first.
            self._thread.submit(self._close_files)
            thread, self._thread = self._thread, None
            await asyncio.to_thread(thread.shutdown)

    # --- The loop's side of the disk ---

    async def _write_out(self) -> None:
        """Write the older part of the back away, chunk by chunk."""
        if self._seldom.due():
            extra = {"end": "source", "bytes": self.size, "on_disk_bytes": self._on_disk}
            text = "The target is slower than the source: bytes are spooled to %s"
            _log.info(text, self.directory, extra=extra)
        try:
            while len(self._back) > max(self._half // 4, 1):
                chunk = self._back.popleft()
                await self._in_thread(self._write_chunk, chunk)
                self._on_disk += chunk.end
                self.written += chunk.end
                self._release(chunk)
                self._on_change()
        except OSError as exc:
            self._fail(self.lack(exc))
        except SpoolFull as exc:
            self._fail(exc)
        finally:
            self._writer = None

    def _fail(self, failure: SpoolFull) -> None:
        _log.error("The spool failed: %s", failure, extra={"bytes": self.size})
        self.failed = failure
        self._on_change()

    async def _read_back(self) -> _Chunk:
        chunk = self._free.pop() if self._free else _Chunk()
        try:
            await self._in_thread(self._read_chunk, chunk)
        except OSError as exc:
            raise self.lack(exc) from None
        self._on_disk -= chunk.end
        if not self._on_disk:
            _log.info("The spool's files are read", extra={"end": "source", "bytes": self.size})
        return chunk

    async def _in_thread(self, work: Callable[[_Chunk], None], chunk: _Chunk) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        await asyncio.get_running_loop().run_in_executor(self._thread, work, chunk)

    def _release(self, chunk: _Chunk) -> None:
        if len(self._free) < 2:
            self._free.append(chunk)

    # --- The thread's ---

    def _write_chunk(self, chunk: _Chunk) -> None:
        if not self._segments or self._segments[-1].written >= SEGMENT_BYTES:
            free = _free_bytes(self.directory)
            if free < SEGMENT_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._segments.append(_Segment(nameless_file(self.directory)))
        segment = self._segments[-1]
        view = memoryview(chunk.data)[: chunk.end]
        while view:
            n = os.pwrite(segment.fd, view, segment.written)
            segment.written += n
            view = view[n:]

    def _read_chunk(self, chunk: _Chunk) -> None:
        segment = self._segments[0]
        while segment.read == segment.written:
            os.close(segment.fd)
            self._segments.popleft()
            segment = self._segments[0]
        chunk.end = 0
        room = memoryview(chunk.data)[: segment.written - segment.read]
        n = os.preadv(segment.fd, [room], segment.read)
        if not n:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        segment.read += n
        chunk.end = n
        if segment.read == segment.written >= SEGMENT_BYTES:
            os.close(segment.fd)
            self._segments.popleft()

    def _close_files(self) -> None:
        while self._segments:
            os.close(self._segments.popleft().fd)

    def lack(self, exc: OSError) -> SpoolFull:
        """What to raise for an error of the directory's disk, at the spool's files or at
        `new_file`."""
        waiting = f"with {self.size // MIB:,} MiB waiting"
        if exc.errno in _NO_ROOM:
            return SpoolFull(
                f"the disk of the spool's directory {self.directory} is full, {waiting}",
                remedy=_REMEDY,
            )
        return SpoolFull(
            f"the spool in {self.directory} failed, {waiting}: {exc.strerror}", remedy=_REMEDY
        )

    def _unusable(self, exc: OSError) -> UsageError:
        return UsageError(
            f"the spool's directory {self.directory} cannot be used: {exc.strerror}",
            remedy="Name another with --spool-directory.",
        )


def _free_bytes(directory: str) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def nameless_file(directory: str) -> int:
    """A file that no name leads to, readable by us alone."""
    with contextlib.suppress(OSError):
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, path = tempfile.mkstemp(prefix="startmigration-spool-", dir=directory)
    os.unlink(path)
    return fd
