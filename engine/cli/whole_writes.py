"""Standard output and standard error that take all that is written to them.

A write of the system may take a part alone: where the process was stopped and went on in the middle
of it, or where the descriptor does not wait (a property that all processes share which inherited
it). With PYTHONUNBUFFERED set, as images of containers have it, Python's own streams pass over what
is left then, and nobody is told; without it they fail where the descriptor does not wait.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class WholeWrites(io.FileIO):
    """A descriptor of which each write takes all, or raises `OSError`."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it; waits for room where the descriptor itself does not."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            try:
                left = left[os.write(self.fileno(), left) :]
            except BlockingIOError:
                _wait_for_room(self.fileno())
        return size


def begin() -> None:
    """From now on `sys.stdout` and `sys.stderr` write as a whole; all else of them stays."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _whole(stream))


def _whole(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw = WholeWrites(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if isinstance(stream.buffer, io.BufferedWriter) else raw,
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _wait_for_room(number: int) -> None:
    # Here, for hardly any process needs it.
    import select

    poll = select.poll()
    poll.register(number, select.POLLOUT)
    poll.poll()
