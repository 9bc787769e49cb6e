"""How many keys to ask for at once.

Too few under way and the source waits for us; too many and its replies pile up in its memory, and
a run of long values after short ones comes as a flood. The depth is steered as TCP Vegas steers
its window: from the round trip without load and the round trip now follows how many keys stand
in the source's queue; that number is kept between two bounds. A budget of bytes caps it.
"""

from __future__ import annotations

# Keys that should stand ready in the source's own queue: below, the depth doubles; above, halves.
_QUEUE_LOW = 768
_QUEUE_HIGH = 4096
_DEPTH_FIRST = 512
_DEPTH_LEAST = 4
_DEPTH_MOST = 32_768
# Bytes of replies that may be under way.
_REPLY_BUDGET = 8 << 20
# Keys named by one SCAN: the source serves nobody else meanwhile (about 1 µs a key).
_COUNT_FIRST = 128
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

    @property
    def count(self) -> int:
        """SCAN's COUNT now; grows from page to page to its usual value."""
        # A page has to last for the round trip of the next SCAN, or the pipeline runs dry.
        usual = max(_COUNT_USUAL, min(self.depth, _COUNT_MOST))
        self._count = min(self._count * 2, usual, self._page_most)
        return self._count

    def answered(self, depth: int, seconds: float, keys: int, received: int) -> None:
        """The last of `depth` keys under way was answered `seconds` after it was asked for.

        `keys` were answered and `received` bytes came meanwhile.
        """
        self._round_trip = min(self._round_trip, seconds)
        queue = depth * (1 - self._round_trip / seconds) if seconds > 0 else 0.0
        if queue < _QUEUE_LOW and depth >= self.depth // 2:
            self._wanted = min(self._wanted * 2, _DEPTH_MOST)
        elif queue > _QUEUE_HIGH:
            self._wanted = max(self._wanted // 2, _QUEUE_LOW)
        if keys:
            each = max(received // keys, 1)
            self._most = max(_REPLY_BUDGET // each, _DEPTH_LEAST)
        self.depth = min(self._wanted, self._most)

    def page(self, keys: int, key_bytes: int) -> None:
        """A page named `keys` keys of `key_bytes` bytes in all."""
        if keys:
            self._page_most = max(_PAGE_BUDGET // max(key_bytes // keys, 1), 1)
