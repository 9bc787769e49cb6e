"""What was sent and is not acknowledged, in order, bounded by bytes.

Lanes that share a process share the bound as well, for each keeps its window full while its source
is the quicker end: so each has its part of it, down to `LEAST_BYTES`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from engine._native import RecordBatch

LEAST_BYTES = 5 << 19
"""Of one lane: room for a batch or two besides that which the target has just answered."""
# (stored, BUSYKEY, [(index, message)]) as the core counts them.
Result = tuple[int, int, list[tuple[int, str]]]


class Entry:
    """A batch under way; `result` None until all its replies are there."""

    __slots__ = ("batch", "result")

    def __init__(self, batch: RecordBatch) -> None:
        self.batch = batch
        self.result: Result | None = None


class Window:
    """FIFO of entries. `limit` in bytes; one batch is taken however long it is."""

    def __init__(self, limit: int) -> None:
        self._limit = self._whole = limit
        self._entries: deque[Entry] = deque()
        self._answered = 0
        # Seconds that the target takes for a byte, of late; 0: not known.
        self._pace = 0.0
        self._measured_at = 0.0
        self._retired_bytes = 0
        self.nbytes = 0
        """Bytes of records kept for sending again."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def first(self) -> Entry | None:
        """The oldest entry."""
        return self._entries[0] if self._entries else None

    @property
    def unanswered(self) -> int:
        """Entries whose replies are not all there."""
        return len(self._entries) - self._answered

    def has_room(self, nbytes: int) -> bool:
        """Whether a batch of `nbytes` may be added."""
        return not self._entries or self.nbytes + nbytes <= self._limit

    def share(self, lanes: int) -> None:
        """So many lanes have the bound together."""
        self._limit = min(max(self._whole // lanes, LEAST_BYTES), self._whole)

    def measure(self, now: float) -> None:
        """What was retired since the last call has taken the target that long, if it was never
        without work. `now`: by the loop's clock."""
        if not self._retired_bytes:
            return
        if self._measured_at:
            pace = (now - self._measured_at) / self._retired_bytes
            self._pace = (self._pace + pace) / 2 if self._pace else pace
        self._retired_bytes = 0
        self._measured_at = now if self._entries else 0.0

    @property
    def busy_seconds(self) -> float:
        """How long the target is likely to have work besides the oldest entry; 0: not known."""
        if len(self._entries) < 2:
            return 0.0
        return (self.nbytes - self._entries[0].batch.nbytes) * self._pace

    def add(self, batch: RecordBatch) -> None:
        """Append what was just sent."""
        self._entries.append(Entry(batch))
        self.nbytes += batch.nbytes

    def answer(self, result: Result) -> None:
        """The oldest entry without result has got it."""
        self._entries[self._answered].result = result
        self._answered += 1

    def retire(self) -> None:
        """The oldest entry is acknowledged for good."""
        entry = self._entries.popleft()
        self.nbytes -= entry.batch.nbytes
        self._retired_bytes += entry.batch.nbytes
        self._answered -= 1

    def forget_results(self) -> None:
        """All of it is to be sent again."""
        for entry in self._entries:
            entry.result = None
        self._answered = 0

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._answered = self._retired_bytes = 0
        self._pace = self._measured_at = 0.0
        self.nbytes = 0
