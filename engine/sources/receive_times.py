"""When the bytes of a stream came: for the lag in seconds, and to anchor relative TTLs.

One sample says that everything up to a position had come at a time. The samples are bounded: those
that came close together are one, and when there are too many every two neighbours become one. A
byte is never said to have come later than it did, so a lag is never understated.
"""

from __future__ import annotations

from bisect import bisect_left

# Seconds within which two receipts count as one, and the most samples that are kept.
_RESOLUTION = 0.001
_LIMIT = 8192


class ReceiveTimes:
    """Positions count bytes received; times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, end: int, at: float) -> None:
        """The bytes up to position `end` have come now, at `at`."""
        if self._times and at - self._times[-1] < _RESOLUTION:
            self._ends[-1] = end
            return
        self._ends.append(end)
        self._times.append(at)
        if len(self._ends) > _LIMIT:
            self._ends = self._ends[1::2] + self._ends[len(self._ends) & ~1 :]
            self._times = self._times[::2]

    def at(self, position: int) -> float | None:
        """When byte number `position` (the first is 1) came; None: not yet, or forgotten."""
        index = bisect_left(self._ends, position)
        return self._times[index] if index < len(self._times) else None

    def together(self, position: int, seconds: float) -> int:
        """The last byte of the run from `position` on that came within `seconds`."""
        index = bisect_left(self._ends, position)
        if index >= len(self._ends):
            return position
        return self._ends[max(bisect_left(self._times, self._times[index] + seconds) - 1, index)]

    @property
    def crowded(self) -> bool:
        """Whether `forget` is worth a call: the lists are shifted by it."""
        return len(self._ends) > _LIMIT // 8

    def forget(self, position: int) -> None:
        """Bytes up to `position` are not asked for again."""
        index = bisect_left(self._ends, position)
        del self._ends[:index], self._times[:index]
