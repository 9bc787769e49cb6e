"""How long the bytes of a read may have lain in the kernel before we read them.

Theory. Relative TTLs count from when a command is run at the source, and all that we know of that
is when we read it. A process that gets no CPU, or is stopped, reads late what came in time: the
link stays up, and nothing tells. But there are moments of which it is known that nothing lay there:

- the beginning of a read that did not fill its room: it took everything;
- a turn of the loop, if another turn has followed, the socket was listened to in both, and no read
  filled its room: in between the loop has asked the kernel, and whatever had come before was read.

What is read now came after the latest of them. If that is long ago, it may be as old: then the
expire times themselves are to be asked for (`Doubt.READ_LATE`). That is said too often rather than
too seldom.
"""

from __future__ import annotations

TURN_SECONDS = 0.05
"""How often `turn` is to be called."""
LATE_SECONDS = 0.25
"""Bytes that may have lain there for longer are late."""


class ReadDelay:
    """Told of reads and of turns, with times of one clock that goes on within a turn, in seconds.

    `now`: nothing lies there yet.
    """

    def __init__(self, now: float) -> None:
        self._empty = self._began = now
        self._room = 0
        self._turn: float | None = None

    def reads(self, room: int, now: float) -> None:
        """A read into `room` bytes is about to begin, or may be."""
        self._room, self._began = room, now

    def was_late(self, nbytes: int, now: float) -> bool:
        """The read that was about to begin has brought `nbytes`: whether they may be old."""
        late = now - self._empty > LATE_SECONDS
        if nbytes < self._room:
            self._empty = max(self._empty, self._began)
        else:
            self._turn = None
        return late

    def turn(self, now: float | None) -> None:
        """A turn of the loop; None: the socket is not listened to."""
        if self._turn is not None and now is not None:
            self._empty = max(self._empty, self._turn)
        self._turn = now
