"""One table scanned in several ranges beside each other, where the source is far away.

The cursor of SCAN's next page is known from its reply alone: one page comes in a round trip, and a
page of many keys holds a server's other clients up (about 1 µs a key). But a cursor is all that
SCAN remembers, and it is a place in the order in which a table's buckets are passed: by the bits of
their numbers, the lowest first (dict.c and hashtable.c). So SCAN may begin at any number, and gives
every key that stays from there to the cursor of its reply, also if the table grows or shrinks
meanwhile. The core looks whether cursors keep that order (`ScanPipeline.disordered`).
"""

from __future__ import annotations

from engine.model.server import ServerInfo

# Nearer sources are scanned in one range: a page lasts for the round trip.
_FAR_SECONDS = 0.01
# A page comes behind the values that were asked for before it, some two round trips after its own
# request: so many seconds of one round trip are a range, for a page in twice as many.
_PAGE_SECONDS = 0.00039
# Keys of a range at the least: at its end some come twice.
_KEYS_LEAST = 1024
_MOST = 128


def in_table_order(info: ServerInfo) -> bool:
    """Whether the server's cursors are those of one table: forks have tables of their own, and a
    cluster's cursor begins with the slot."""
    return not info.fork and info.mode == "standalone"


def ranges(cursor: int, keys: int, round_trip: float) -> list[tuple[int, int]]:
    """Where the ranges behind `cursor` begin and end (0: at the end of the table); one range where
    `round_trip` (seconds) is short, or the table small.

    `keys`: of the table.
    """
    count = 1
    if round_trip >= _FAR_SECONDS:
        most = min(_MOST, int(round_trip / _PAGE_SECONDS), keys // _KEYS_LEAST)
        while count * 2 <= most:
            count *= 2
    bits = count.bit_length() - 1
    starts = [_turned(n, bits) for n in range(count)]
    begun = _turned(cursor, 64)
    starts = [cursor] + [start for start in starts if _turned(start, 64) > begun]
    return list(zip(starts, [*starts[1:], 0], strict=True))


def _turned(value: int, bits: int) -> int:
    """`value` with its `bits` lowest bits in the opposite order."""
    return int(f"{value:0{bits}b}"[::-1], 2) if bits else 0
