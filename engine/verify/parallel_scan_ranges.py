"""The ranges of one table of keys that are walked beside each other, where the server is far away.

A page of SCAN takes a round trip, and its cursor leads to the next one: so a far table is walked in
several ranges at once. A cursor is a place in the order in which the buckets are passed, by the
bits of their numbers, the lowest first (dict.c and hashtable.c), and SCAN may begin at any. Each
page has to lead further in that order; where one does not, the ranges are not what they seem, and
all is walked once more as one.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.model.server import ServerInfo

# Nearer servers are walked in one range: pages of a round trip each keep it busy enough.
_FAR_SECONDS = 0.01
# One range more for so much of a round trip: a page of so many names takes a server about as long.
_PAGE_SECONDS = 0.002
_KEYS_LEAST = 2048
_MOST = 32
_BITS = 64


@dataclass(frozen=True, slots=True)
class Range:
    """The cursors from `start` on, up to `end` (0: to the end of the table)."""

    start: int = 0
    end: int = 0

    def leads_on(self, asked: int, told: int) -> bool:
        """Whether the page that was asked for with the cursor `asked` leads further by `told`."""
        return told == 0 or _place(told) > _place(asked)

    def is_over(self, told: int) -> bool:
        """Whether a page whose reply is the cursor `told` is the last of the range."""
        return told == 0 or (self.end != 0 and _place(told) >= _place(self.end))


def ranges(info: ServerInfo, keys: int, round_trip: float) -> list[Range]:
    """The ranges of a table of so many keys, `round_trip` seconds away; one where that is near, or
    the table small, or in no order that is known: those of forks, and of a cluster, whose cursors
    begin with the slot."""
    count = 1
    if round_trip >= _FAR_SECONDS and not info.fork and info.mode == "standalone":
        most = min(_MOST, int(round_trip / _PAGE_SECONDS), keys // _KEYS_LEAST)
        while count * 2 <= most:
            count *= 2
    shift = _BITS - (count.bit_length() - 1)
    starts = [_place(number << shift) for number in range(count)]
    return [Range(*each) for each in zip(starts, [*starts[1:], 0], strict=True)]


def _place(cursor: int) -> int:
    """Where a cursor is in the order; and, as that is its own inverse, the cursor of a place."""
    return int(f"{cursor:0{_BITS}b}"[::-1], 2)
