"""How many keys to ask for at once.

Too few under way and the source waits for us; too many and its replies pile up in its memory, and
a run of long values after short ones comes as a flood. The depth is steered as TCP Vegas steers
its window, by the round trip without load and the time that a full depth takes now. Keys are asked
for again when half of them are answered, so the source never waits if it works on that half for
longer than the round trip: a full depth then takes three times the round trip. Far away they are
asked for again by quarters, and a full depth takes two round trips: what is under way covers the
line, and what it takes to be late now and then. Less, and the depth doubles; far more, and it
halves. Far away it changes by less, once it is large: what is asked for too deeply comes behind
itself, and so do the names of what is to be asked for next. A budget of bytes caps it.
"""

from __future__ import annotations

# What a full depth should take, in round trips without load: from and to, near and far away.
_FULL = (3.0, 8.0)
_FULL_FAR = (2.0, 3.0)
# The source had nothing to do for most of the round trip: far away doubling would take seconds.
_IDLE = 1.25
_IDLE_GROWTH = 8
# The first sample, of keys from all over the table: how long values are is known well by then.
_IDLE_GROWTH_FIRST = 64
_SAMPLE_LEAST = 128
# The first depth is small: how long the values are is not known yet. The usual one holds some 15 ms
# of work, so that a source does not wait while the scheduler has us wait.
_DEPTH_FIRST = 512
_DEPTH_USUAL = 4096
_DEPTH_LEAST = 4
_DEPTH_MOST = 32_768
_DEPTH_MOST_FAR = 131_072
# Bytes of replies that may be under way.
_REPLY_BUDGET = 8 << 20
# Keys named by one SCAN: the source serves nothing else meanwhile (about 1 µs a key).
_COUNT_FIRST = 8
_COUNT_FIRST_OF_RANGE = 4
_COUNT_USUAL = 1024
_COUNT_MOST = 10_240
# Bytes of keys (names alone) in one reply to SCAN; of up to 128 ranges such pages are under way
# beside each other, 32 MiB in all.
_PAGE_BUDGET = 4 << 20
_PAGE_BUDGET_OF_RANGE = 256 << 10
# Keys that are named ahead of the values at the least, where pages come beside each other.
_AHEAD_LEAST = 131_072


class Pace:
    """The depth of the pipeline and SCAN's COUNT. `round_trip` is in seconds, without load.

    `ranged`: several pages of SCAN are under way at once.
    """

    def __init__(self, round_trip: float, ranged: bool = False) -> None:
        self._round_trip = round_trip
        self._ranged = ranged
        self._full_least, self._full_most = _FULL_FAR if ranged else _FULL
        self._depth_most = _DEPTH_MOST_FAR if ranged else _DEPTH_MOST
        self._wanted = _DEPTH_FIRST
        self._most = self._depth_most
        self._page_most = _COUNT_MOST
        self._count = _COUNT_FIRST
        self._sampled = False
        self.depth = _DEPTH_FIRST
        """Keys asked for and not answered."""

    @property
    def low(self) -> int:
        """Ask again when no more than this many keys are under way."""
        return self.depth - self.depth // 4 if self._ranged else self.depth // 2

    def roomy(self, queued: int, pages: int) -> bool:
        """Whether SCAN is to name more keys: `queued` are named and not asked for, and `pages` of
        SCAN are under way."""
        if not self._ranged:
            return queued < self.depth
        return queued + pages * _COUNT_USUAL < max(self.depth, _AHEAD_LEAST)

    @property
    def first_count(self) -> int:
        """SCAN's COUNT for the first page of each of several ranges."""
        return _COUNT_FIRST_OF_RANGE

    def count(self, dry: bool) -> int:
        """SCAN's COUNT now; grows from page to page to its usual value.

        `dry`: nothing is under way, so the source waits for this page. A page has to last for the
        round trip of the next SCAN, unless there are others; with MATCH or TYPE few of its keys are
        named at all.
        """
        usual = _COUNT_MOST if dry else max(_COUNT_USUAL, min(self.depth, _COUNT_MOST))
        if self._ranged:
            usual = _COUNT_USUAL
        self._count = max(min(self._count * 2, usual, self._page_most), 1)
        return self._count

    def answered(self, depth: int, seconds: float, keys: int, received: int) -> None:
        """The last of `depth` keys under way was answered `seconds` after it was asked for.

        `keys` were answered and `received` bytes came meanwhile.
        """
        self._round_trip = min(self._round_trip, seconds)
        full = seconds >= self._full_least * self._round_trip and self._wanted >= _DEPTH_USUAL
        first, self._sampled = not self._sampled, True
        if not full and (depth >= self.depth // 2 or (first and self._ranged)):
            idle = self._ranged and seconds < _IDLE * self._round_trip
            growth: float = 1.5 if self._ranged and self._wanted >= _DEPTH_USUAL else 2
            growth = _IDLE_GROWTH if idle else growth
            if idle and first and keys >= _SAMPLE_LEAST:
                growth = _IDLE_GROWTH_FIRST
            self._wanted = min(int(self._wanted * growth), self._depth_most)
        elif seconds > self._full_most * self._round_trip:
            shrunk = self._wanted * 3 // 4 if self._ranged else self._wanted // 2
            self._wanted = max(shrunk, _DEPTH_USUAL)
        if keys:
            each = max(received // keys, 1)
            self._most = max(_REPLY_BUDGET // each, _DEPTH_LEAST)
        self.depth = min(self._wanted, self._most)

    def page(self, keys: int, key_bytes: int) -> None:
        """A page named `keys` keys of `key_bytes` bytes in all."""
        budget = _PAGE_BUDGET_OF_RANGE if self._ranged else _PAGE_BUDGET
        if keys:
            self._page_most = max(budget // max(key_bytes // keys, 1), 1)
