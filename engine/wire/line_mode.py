"""Line mode: what a server says in lines before it turns to raw bytes.

Between PSYNC and the snapshot a source speaks something that only looks like RESP: bare newlines as
signs of life, `$EOF:<mark>`, and behind `$<length>` no CRLF. A reader of replies would stumble, or
swallow the first bytes of the snapshot. Here lines are taken one by one out of a small buffer, the
connection reads nothing while one is waiting to be taken, and what lies behind the last line is
handed to what takes the connection over next.
"""

from __future__ import annotations

import asyncio

from engine._native import NEED_DATA, NeedData, ProtocolError
from engine.errors import EngineError, LinkError
from engine.wire.connection import Connection

# A line of the handshake is some 60 bytes; error texts may be longer.
LINE_BYTES = 4 << 10
_BUFFER_BYTES = 64 << 10


class LineReader:
    """A `BulkReader` that cuts what comes into lines."""

    def __init__(self) -> None:
        self._data = bytearray(_BUFFER_BYTES)
        self._start = self._end = 0
        self._before = 0

    @property
    def input(self) -> memoryview:
        """The free tail of the buffer."""
        if self._start:
            kept = self._data[self._start : self._end]
            self._data[: len(kept)] = kept
            self._before += self._start
            self._start, self._end = 0, len(kept)
        return memoryview(self._data)[self._end :]

    def received(self, n: int, /) -> int:
        """`n` bytes were read into `input`; 1 if a whole line is there, else 0.

        Raises `ProtocolError` for a line longer than `LINE_BYTES`.
        """
        self._end += n
        if self._data.find(b"\n", self._start, self._end) >= 0:
            return 1
        if self._end - self._start > LINE_BYTES:
            raise ProtocolError(
                f"expected a line of at most {LINE_BYTES} bytes", self._before + self._start
            )
        return 0

    def line(self) -> bytes | NeedData:
        """The next line without its ending; a bare newline gives b""."""
        at = self._data.find(b"\n", self._start, self._end)
        if at < 0:
            return NEED_DATA
        line = bytes(self._data[self._start : at])
        self._start = at + 1
        return line.removesuffix(b"\r")

    def rest(self) -> bytes:
        """What lies behind the lines taken so far; the buffer is empty afterwards."""
        rest = bytes(self._data[self._start : self._end])
        self._start = self._end
        return rest


class Lines:
    """A connection in line mode, from the constructor to `end`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = LineReader()
        self._waiter: asyncio.Future[None] | None = None
        connection.take_over(self._reader, self._on_ready, self._on_lost)

    async def next(self, silence: float) -> bytes:
        """The next line, b"" for a bare newline.

        Raises `LinkError` when the link goes, or nothing comes for `silence` seconds; and
        `ProtocolFault` for what is no line.
        """
        loop = asyncio.get_running_loop()
        while True:
            line = self._reader.line()
            if isinstance(line, bytes):
                return line
            lost = self._connection.lost
            if lost is not None:
                raise lost
            self._waiter = loop.create_future()
            self._connection.resume_reading()
            try:
                async with asyncio.timeout(silence):
                    await self._waiter
            except TimeoutError:
                connection = self._connection
                connection.fail(
                    LinkError(
                        f"{connection.name} sent nothing for {silence:g} s",
                        fault=connection.fault,
                    )
                )
            finally:
                self._waiter = None

    def end(self) -> None:
        """Leave line mode; the connection stays paused until it is taken over."""
        self._connection.hand_on(self._reader.rest())

    def _on_ready(self, whole: int) -> None:
        if whole:
            # The buffer cannot overflow then, whatever comes behind the line.
            self._connection.pause_reading()
            self._wake()

    def _on_lost(self, _: EngineError) -> None:
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
