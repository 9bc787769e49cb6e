"""A file as a source reads it: opened once, read as often as it takes.

A migration reads its file three times: to know that it is sound before anything is written, to
carry it, and to compare. A server that saves meanwhile puts another file in its place (it writes a
temporary one, and renames it): what was opened stays what it was, and all three read the same
bytes. `holding` keeps it open from the first reading to the last; the file of any reader within
is that one. A file that is written to in place is another matter: its size, the time of its last
change or its bytes (`FileChecksums`) give it away, and then no reading of it counts.

What can be read once only (standard input, a FIFO) is kept on disk as it comes, in a file without a
name, which goes with the process. It is kept as it is packed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from engine._native import crc64
from engine.errors import EngineError
from engine.model.endpoint import STDIN_PATH
from engine.model.settings import GIB, TransferSettings
from engine.model.spool_directory import spool_directory
from engine.sources.decompress import Damaged, Unpacked
from engine.sources.spool import nameless_file
from engine.sources.unchanged_file import PORTION_BYTES, FileChecksums

# What waits for a pipe looks so often whether it is to stop (ms), and says after so long (s)
# what it waits for.
_LOOK_MS = 200
_PATIENCE_SECONDS = 1.0
_REMEDIES = {
    errno.ENOENT: "The file is looked for on the machine where the engine runs.",
    errno.EACCES: "Let the user who runs the engine read it.",
    errno.EISDIR: "Name the file itself: dump.rdb, unless the server's dbfilename says otherwise.",
}


class Stopped(Exception):
    """The bytes of the pipe that was waited for are not wanted any more."""


class FileInput:
    """A file, a FIFO, or standard input (`STDIN_PATH`), to be read any number of times.

    `on_event` is told what is waited for. At most `spool_bytes` of a pipe are kept, in
    `spool_directory` (None: where the spool's files go).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        spool_bytes: int = 10 * GIB,
        directory: str | None = None,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.on_event = on_event
        self._spool_bytes = spool_bytes
        self._directory = directory
        # One thread at a time reads; none does while it is closed.
        self._lock = threading.Lock()
        self._fd = -1
        self._spool = -1
        self._base = 0
        self._identity: tuple[int, int, int, int] | None = None
        self._read_before = FileChecksums()
        self._ended = False
        self.seekable = False
        """It is a file, and no pipe."""
        self.once = False
        """A reading of all of it has found no key that is named twice."""
        self.keys: dict[int, int] | None = None
        """How many keys each database has, by a reading of all of it; None: there was none."""
        self.size = 0
        """Bytes of the file, or that have come through the pipe so far."""

    @property
    def name(self) -> str:
        """For people."""
        return "standard input" if self.path == Path(STDIN_PATH) else str(self.path)

    @property
    def opened(self) -> bool:
        """Whether it is open."""
        return self._fd >= 0

    def open(self) -> None:
        """Open it, unless it is. Raises `EngineError` (fault: the user's) when that fails."""
        with self._lock:
            if self._fd >= 0:
                return
            try:
                self._open()
            except OSError as exc:
                self._close()
                raise self.unreadable(exc) from exc
            except EngineError:
                self._close()
                raise

    def close(self) -> None:
        """Let go of it. A reading under way must have been stopped."""
        with self._lock:
            self._close()

    def reading(self) -> Reading:
        """From its first byte."""
        return Reading(self)

    def replaced(self) -> bool:
        """Whether its name leads to another file by now."""
        if not self.seekable or self._identity is None or self.path == Path(STDIN_PATH):
            return False
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity[:2]

    def check_unchanged(self) -> None:
        """Raise `EngineError` if the open file has been written to since it was opened."""
        if not self.seekable or self._fd < 0:
            return
        found = _identity(os.fstat(self._fd))
        before = self._identity
        if before is not None and found != before:
            sizes = (
                f"it had {before[2]:,} bytes and has {found[2]:,}"
                if found[2] != before[2]
                else "it was changed, and has as many bytes as before"
            )
            raise self._written_to(sizes)

    def _written_to(self, how: str) -> EngineError:
        return EngineError(
            f"{self.name} was written to while it was read: {how}",
            remedy="Give it when it has been copied to its end, or a copy of it.",
            fault="user",
        )

    def unreadable(self, exc: OSError) -> EngineError:
        """What to raise for it."""
        return EngineError(
            f"cannot read {self.name}: {exc.strerror or exc}",
            remedy=_REMEDIES.get(exc.errno or 0, ""),
            fault="user",
        )

    async def identity(self) -> str:
        """The same for the same bytes alone. What was not read yet is, and a pipe is kept to its
        end. Raises as `Reading.read`."""
        stop = threading.Event()
        task = asyncio.ensure_future(asyncio.to_thread(self._checksum, stop))
        try:
            await self.report_waiting(task)
            checksum = await task
        except asyncio.CancelledError:
            stop.set()
            raise
        except OSError as exc:
            raise self.unreadable(exc) from exc
        self.check_unchanged()
        return f"rdb-{checksum:016x}-{self.size}"

    async def report_waiting(self, reading: asyncio.Future[Any]) -> None:
        """Say what is waited for if a pipe brings nothing for a moment."""
        if self.seekable or self.size:
            return
        await asyncio.wait({reading}, timeout=_PATIENCE_SECONDS)
        if not reading.done() and not self.size and self.on_event is not None:
            writer = (
                "waiting for the first byte"
                if self.path == Path(STDIN_PATH)
                else "it is a FIFO (a named pipe), and waits for a program that writes into it"
            )
            self.on_event(f"{self.name}: {writer}; Ctrl-C ends the waiting")

    # --- In a thread ---

    def _checksum(self, stop: threading.Event) -> int:
        """The CRC64 of all of it. Raises `OSError`, `EngineError`, `Stopped`."""
        if self.seekable:
            while self.portion(self._read_before.portions):
                if stop.is_set():
                    raise Stopped
            return self._read_before.checksum
        checksum = at = 0
        while portion := self.read_at(at, PORTION_BYTES, stop):
            checksum = crc64(portion, checksum)
            at += len(portion)
        return checksum

    def portion(self, number: int) -> bytes:
        """The portion with that number (0: the first) of at most `PORTION_BYTES`, none at the end.
        Every portion before it must have been read.

        Raises `OSError`, `EngineError`; also where a file's bytes are not those of the first
        reading.
        """
        at = number * PORTION_BYTES
        with self._lock:
            if self._fd < 0:
                raise Stopped
            found = b""
            while len(found) < PORTION_BYTES:
                more = os.pread(self._fd, PORTION_BYTES - len(found), self._base + at + len(found))
                if not more:
                    break
                found += more
            same = not found or self._read_before.holds(number, found)
        if not same:
            self.check_unchanged()
            raise self._written_to(
                f"bytes {at:,} to {at + len(found):,} are not what they were at the first reading"
            )
        return found

    def read_at(self, at: int, n: int, stop: threading.Event) -> bytes:
        """At most `n` bytes of a pipe from `at` on, none at the end; waits for them until `stop`.

        Raises `OSError`, `EngineError`, `Stopped`.
        """
        with self._lock:
            if self._fd < 0:
                raise Stopped
            if at < self.size:
                return os.pread(self._spool, min(n, self.size - at), at)
            if self._ended:
                return b""
            portion = self._from_pipe(n, stop)
            self._ended = not portion
            self._keep(portion)
            return portion

    def _from_pipe(self, n: int, stop: threading.Event) -> bytes:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN | select.POLLHUP)
        while not stop.is_set():
            if not poll.poll(_LOOK_MS):
                continue
            try:
                return os.read(self._fd, n)
            except BlockingIOError:
                continue
        raise Stopped

    def _keep(self, portion: bytes) -> None:
        if self.size + len(portion) > self._spool_bytes:
            raise EngineError(
                f"{self.name} brings more than the {self._spool_bytes:,} bytes that may be kept of "
                "it on disk",
                remedy="Raise --spool-bytes, or write it into a file first.",
                fault="user",
            )
        directory = spool_directory(self._directory)
        try:
            if self._spool < 0:
                self._spool = nameless_file(directory)
            view = memoryview(portion)
            while view:
                n = os.pwrite(self._spool, view, self.size)
                self.size += n
                view = view[n:]
        except OSError as exc:
            raise EngineError(
                f"what {self.name} brings cannot be kept in {directory}: {exc.strerror or exc}",
                remedy="It is read more than once. Name a directory with room in "
                "--spool-directory, or write it into a file first.",
                fault="user",
            ) from exc

    def _open(self) -> None:
        if self.path == Path(STDIN_PATH):
            self._fd = os.dup(0)
        else:
            # A FIFO without a writer would hold up `open` itself.
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.isatty(self._fd):
            raise EngineError(
                f"{self.name} is a terminal",
                remedy="Send a file into it: zcat dump.rdb.gz | startmigration migrate --source "
                "rdb:- …",
                fault="user",
            )
        self.seekable = stat.S_ISREG(found.st_mode)
        if self.seekable:
            self._base = os.lseek(self._fd, 0, os.SEEK_CUR)
            self._identity = _identity(found)
            self.size = max(found.st_size - self._base, 0)

    def _close(self) -> None:
        for fd in (self._fd, self._spool):
            if fd >= 0:
                os.close(fd)
        self._fd = self._spool = -1
        self._read_before = FileChecksums()
        self.size, self._ended = 0, False


class Reading:
    """Reads a `FileInput` once, unpacked, in order.

    `read` raises `EngineError` when the file cannot be read, or has been written to, and `Damaged`
    when it cannot be unpacked.
    """

    def __init__(self, source: FileInput) -> None:
        self._source = source
        self._at = 0
        self._portion = b""
        self._stop = threading.Event()
        self._unpacked: Unpacked | None = None
        self.position = 0
        """Unpacked bytes so far."""

    @property
    def layers(self) -> tuple[str, ...]:
        """What it is packed with, the outermost first; known once bytes were read."""
        return () if self._unpacked is None else tuple(self._unpacked.layers)

    @property
    def behind(self) -> int:
        """Bytes behind the end of what is packed, as far as they were read."""
        return 0 if self._unpacked is None else self._unpacked.behind

    @property
    def checked(self) -> bool:
        """Whether the packing has a checksum, which is compared."""
        return self._unpacked is not None and self._unpacked.checked

    async def read(self, n: int) -> bytes:
        """At most `n` unpacked bytes, none at the end."""
        task = asyncio.ensure_future(asyncio.to_thread(self._some, n))
        try:
            if not self._at:
                await self._source.report_waiting(task)
            portion = await task
        except asyncio.CancelledError:
            # The thread is told: it would wait for the pipe as long as that lasts.
            self._stop.set()
            raise
        except OSError as exc:
            raise self._source.unreadable(exc) from exc
        if not portion:
            self._source.check_unchanged()
        self.position += len(portion)
        return portion

    def close(self) -> None:
        """What waits for bytes of it waits no more."""
        self._stop.set()

    def _some(self, n: int) -> bytes:
        if self._unpacked is None:
            self._unpacked = Unpacked(_Packed(self._next))
        return self._unpacked.read(n)

    def _next(self, n: int) -> bytes:
        source = self._source
        if source.seekable:
            number, skipped = divmod(self._at, PORTION_BYTES)
            if not skipped:
                self._portion = source.portion(number)
            given = self._portion[skipped : skipped + n]
        else:
            given = source.read_at(self._at, n, self._stop)
        self._at += len(given)
        return given


class _Packed:
    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# --- From the first reading to the last ---

_CURRENT: ContextVar[FileInput | None] = ContextVar("current", default=None)


@contextlib.contextmanager
def holding(
    path: str | None,
    settings: TransferSettings,
    on_event: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Within it every reading of `path` is of the file that was opened first; None: no file.

    What is open already stays, with the `on_event` that was given then.
    """
    before = _CURRENT.get()
    if path is None or (before is not None and before.path == Path(path)):
        yield
        return
    current = FileInput(
        path,
        spool_bytes=settings.spool_bytes,
        directory=settings.spool_directory,
        on_event=on_event,
    )
    token = _CURRENT.set(current)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        current.close()


def input_of(path: Path | str) -> tuple[FileInput, bool]:
    """The file at `path`, and whether it is the caller's own, to be closed when it was read."""
    current = _CURRENT.get()
    if current is not None and current.path == Path(path):
        return current, False
    return FileInput(path), True


__all__ = ["Damaged", "FileInput", "Reading", "Stopped", "holding", "input_of"]
