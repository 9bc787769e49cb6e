"""The ranges in which a far table is walked: together they are the table, whatever its size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.verify.key_sampling import Pages
from engine.verify.parallel_scan_ranges import ranges

NEAR, FAR = 0.001, 0.05


def server(mode: str = "standalone", fork: str = "") -> ServerInfo:
    return ServerInfo("redis", (7, 0, 0), mode=mode, fork=fork)


def page(buckets: int, cursor: int, count: int) -> tuple[int, list[int]]:
    """SCAN of a table with so many buckets (a power of two), one key in each (dictScan, dict.c)."""
    bits = buckets.bit_length() - 1
    found = []
    for _ in range(count):
        bucket = cursor & (buckets - 1)
        found.append(bucket)
        place = int(f"{bucket:0{bits}b}"[::-1] or "0", 2) + 1
        if place == buckets:
            return 0, found
        cursor = int(f"{place:0{bits}b}"[::-1], 2)
    return cursor, found


@given(st.integers(3, 12), st.integers(1, 400), st.floats(0.01, 0.3), st.integers(0, 10**7))
def test_ranges_are_the_table(bits: int, count: int, round_trip: float, keys: int) -> None:
    found = set()
    parts = ranges(server(), keys, round_trip)
    assert parts[0].start == 0
    assert parts[-1].end == 0
    assert len({part.start for part in parts}) == len(parts) <= 32
    for part in parts:
        asked = part.start
        while True:
            told, keys_found = page(1 << bits, asked, count)
            found.update(keys_found)
            # A table smaller than the ranges are many begins at the bucket before.
            assert part.leads_on(asked & ((1 << bits) - 1), told)
            if part.is_over(told):
                break
            asked = told
    assert found == set(range(1 << bits))


def test_how_many() -> None:
    assert len(ranges(server(), 10**6, NEAR)) == 1
    assert len(ranges(server(), 1000, FAR)) == 1
    assert len(ranges(server(), 10**6, FAR)) == 16
    assert len(ranges(server(), 10**6, 1.0)) == 32
    # A cluster's cursor begins with the slot; forks have tables of their own.
    assert len(ranges(server(mode="cluster"), 10**6, FAR)) == 1
    assert len(ranges(server(fork="dragonfly"), 10**6, FAR)) == 1


def test_cursors_in_another_order() -> None:
    """One that does not lead on is noticed; the end of the table is no such."""
    part = ranges(server(), 10**6, FAR)[3]
    assert part.leads_on(part.start, 0)
    assert not part.leads_on(part.start, part.start)
    assert not part.leads_on(2, 1 << 63)
    assert part.leads_on(1 << 63, 2)


@pytest.mark.parametrize(("keys", "count"), [(None, 50), (100, 256), (128, 256), (129, 50)])
def test_the_first_page_is_small_unless_it_is_all(keys: int | None, count: int) -> None:
    """Names may be long; a table of a few keys is one page, for it has up to two places a key."""
    assert Pages(TransferSettings(), keys=keys).command() == ("SCAN", 0, "COUNT", count)
