"""How many keys to ask for at once.

Too few under way and the source waits for us; too many and its replies pile up in its memory, and
a run of long values after short ones comes as a flood. The depth is steered as TCP Vegas steers
its window, by the round trip without load and the time that a full depth takes now. Keys are asked
for again when half of them are answered, so the source never waits if it works on that half for
longer than the round trip: a full depth then takes three times the round trip. Less, and the depth
doubles; far more, and it halves. A budget of bytes caps it.
"""

from __future__ import annotations

# What a full depth should take, in round trips without load.
_FULL_LEAST = 3.0
_FULL_MOST = 8.0
# The first depth is small: how long the values are is not known yet. The usual one holds some 15 ms
# of work, so that a source does not wait while the scheduler has us wait.
_DEPTH_FIRST = 512
_DEPTH_USUAL = 4096
_DEPTH_LEAST = 4
_DEPTH_MOST = 32_768
# Bytes of replies that may be under way.
_REPLY_BUDGET = 8 << 20
# Keys named by one SCAN: the source serves nobody else meanwhile (about 1 µs a key).
_COUNT_FIRST = 8
_COUNT_USUAL = 1024
_COUNT_MOST = 10_240
# Bytes of keys (names alone) in one reply to SCAN.
_PAGE_BUDGET = 4 << 20


class Pace:
    """The depth of the pipeline and SCAN's COUNT. `round_trip` is in seconds, without load."""

    def __init__(self, round_trip: float) -> None:
        self._round_trip = round_trip
        self._wanted = _DEPTH_FIRST
        self._most = _DEPTH_MOST
        self._page_most = _COUNT_MOST
        self._count = _COUNT_FIRST
        self.depth = _DEPTH_FIRST
        """Keys asked for and not answered."""

    @property
    def low(self) -> int:
        """Ask again when no more than this many keys are under way."""
        return self.depth // 2

    def count(self, dry: bool) -> int:
        """SCAN's COUNT now; grows from page to page to its usual value.

        `dry`: nothing is under way, so the source waits for this page. A page has to last for the
        round trip of the next SCAN; with MATCH or TYPE few of its keys are named at all.
        """
        usual = _COUNT_MOST if dry else max(_COUNT_USUAL, min(self.depth, _COUNT_MOST))
        self._count = max(min(self._count * 2, usual, self._page_most), 1)
        return self._count

    def answered(self, depth: int, seconds: float, keys: int, received: int) -> None:
        """The last of `depth` keys under way was answered `seconds` after it was asked for.

        `keys` were answered and `received` bytes came meanwhile.
        """
        self._round_trip = min(self._round_trip, seconds)
        full = seconds >= _FULL_LEAST * self._round_trip and self._wanted >= _DEPTH_USUAL
        if not full and depth >= self.depth // 2:
            self._wanted = min(self._wanted * 2, _DEPTH_MOST)
        elif seconds > _FULL_MOST * self._round_trip:
            self._wanted = max(self._wanted // 2, _DEPTH_USUAL)
        if keys:
            each = max(received // keys, 1)
            self._most = max(_REPLY_BUDGET // each, _DEPTH_LEAST)
        self.depth = min(self._wanted, self._most)

    def page(self, keys: int, key_bytes: int) -> None:
        """A page named `keys` keys of `key_bytes` bytes in all."""
        if keys:
            self._page_most = max(_PAGE_BUDGET // max(key_bytes // keys, 1), 1)
