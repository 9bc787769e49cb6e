"""One table scanned in ranges: nothing is lost while it grows and shrinks."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import ReplyError, ScanPipeline
from engine.model.server import ServerInfo
from engine.sources.fetch_depth import Pace
from engine.sources.scan_ranges import in_table_order, ranges
from tests.reference.source import Entry, Source, commands, scan_reply
from tests.support.feeding import push

KEYS = 80


def turned(value: int) -> int:
    return int(f"{value:064b}"[::-1], 2)


class Table(Source):
    """A source whose SCAN walks the buckets of one table as dict.c does."""

    hashes: dict[bytes, int]
    bits = 6

    def _answer(self, args: tuple[bytes, ...]) -> bytes:
        if args[0] != b"SCAN":
            return super()._answer(args)
        cursor, count, found = int(args[1]), int(args[3]), []
        mask = (1 << self.bits) - 1
        while True:
            bucket = cursor & mask
            found += [name for name in self.keys if self.hashes[name] & mask == bucket]
            # The next one, by its lowest bit first.
            after = turned(bucket) + (1 << (64 - self.bits))
            cursor = turned(after) if after < 1 << 64 else 0
            if not cursor or len(found) >= count:
                return scan_reply(cursor, found)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), count=st.sampled_from([1, 2, 16, 128]))
def test_every_steady_key_arrives_whatever_the_size_of_the_table(seed: int, count: int) -> None:
    rng = random.Random(seed)
    names = [b"key%d" % n for n in range(KEYS)]
    steady = set(names[: KEYS // 2])
    table = Table({name: Entry(name, None) for name in names}, [[]])
    table.hashes = {name: rng.getrandbits(64) for name in names}

    def another_client(_: Source) -> None:
        """The table grows and shrinks, and keys come and go."""
        if rng.random() < 0.1:
            table.bits = rng.randrange(2, 9)
        name = names[rng.randrange(KEYS // 2, KEYS)]
        table.write(name, None if name in table.keys else Entry(name, None))

    table.meanwhile = another_client
    parts = ranges(0, KEYS * 10_000, max(count * 0.0004, 0.01)) if count > 4 else [(0, 0)]
    if count == 2:
        parts = [(0, 1), (1, 0)]
    assert len(parts) == count
    arrived: set[bytes] = set()

    def read(parts: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
        """Scan `parts`, giving up after about so many requests; what is left of them."""
        pipeline = ScanPipeline(7, ranges=parts, keys=KEYS, batch_bytes=rng.choice([1, 1 << 20]))
        while not pipeline.finished and most > 0:
            requests = b""
            while pipeline.may_scan and rng.random() < 0.7:
                requests += pipeline.request_scan(rng.randrange(1, 30))
            if pipeline.queued:
                requests += pipeline.request_values(rng.randrange(1, 80), mget=64)
            most -= sum(1 for _ in commands(requests))
            push(pipeline, table.answer(requests), [rng.randrange(1, 2000)])
        ended = pipeline.finished
        # What is in the open batch is not acknowledged where the link is lost now.
        if ended or rng.random() < 0.5:
            pipeline.flush(last=ended)
        left = parts
        for batch in pipeline.take():
            arrived.update(batch.key(n) for n in range(len(batch)))
            if batch.ranges is not None:
                assert batch.cursor is None
                left = list(batch.ranges)
            elif batch.cursor is not None:
                left = [(batch.cursor, 0)] if batch.cursor else []
            # Every steady key that no range names any more is there.
            for name in steady - arrived:
                place = turned(table.hashes[name])
                assert any(
                    turned(at) <= place | ((1 << 56) - 1) and (not end or place < turned(end))
                    for at, end in left
                )
        return [] if ended else left

    # The link is lost twice.
    for most in (rng.randrange(200), rng.randrange(200), 1 << 30):
        if parts:
            parts = read(parts, most)
    assert steady <= arrived


@pytest.mark.parametrize("bits", [8, 9])
def test_no_key_comes_twice_while_the_table_keeps_its_size(bits: int) -> None:
    """What the last page of a range names beyond its end is left to the range that follows."""
    rng = random.Random(bits)
    names = [b"key%d" % n for n in range(20_000)]
    table = Table({name: Entry(name, None) for name in names}, [[]])
    table.bits = bits
    table.hashes = {name: rng.getrandbits(64) for name in names}
    pipeline = ScanPipeline(7, ranges=ranges(0, len(names), 0.05), keys=len(names))
    # Beside each other, as they are asked for: the first page of each range comes first.
    while not pipeline.scanned:
        push(pipeline, table.answer(pipeline.request_scan(1024)))
    assert len(names) < pipeline.named <= len(names) * 1.1
    assert pipeline.queued == len(names)


def test_pages_of_all_ranges_are_under_way_at_once() -> None:
    pipeline = ScanPipeline(7, ranges=ranges(0, 1 << 20, 0.05), keys=1 << 20)
    asked = []
    while pipeline.may_scan:
        asked += commands(pipeline.request_scan(1024))
    assert len({args[1] for args in asked}) == pipeline.scanning == len(asked)
    assert len(asked) == 128
    with pytest.raises(ValueError, match="under way"):
        pipeline.request_scan(1024)


@pytest.mark.parametrize("cursor", [1024, 3, 2**63 + 1])
def test_cursors_of_another_order_are_noticed(cursor: int) -> None:
    """A server that counts keys, or names a node first."""
    pipeline = ScanPipeline(7, ranges=[(0, 2), (2, 1), (1, 3), (3, 0)])
    for _ in range(4):
        pipeline.request_scan(10)
    replies = b"".join(scan_reply((n + cursor) if n != 3 else 1, []) for n in range(4))
    with pytest.raises(ReplyError, match="order"):
        push(pipeline, replies)
    assert pipeline.disordered


@given(
    cursor=st.integers(0, 2**64 - 1),
    keys=st.integers(0, 1 << 40),
    round_trip=st.floats(0, 10),
)
def test_ranges_cover_what_is_behind_the_cursor(cursor: int, keys: int, round_trip: float) -> None:
    parts = ranges(cursor, keys, round_trip)
    assert 1 <= len(parts) <= 128
    assert parts[0][0] == cursor
    assert parts[-1][1] == 0
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(parts))
    places = [turned(begin) for begin, _ in parts]
    assert places == sorted(set(places))
    assert len(parts) == 1 or (round_trip >= 0.01 and keys >= 2048)


def test_which_servers_are_scanned_in_ranges() -> None:
    assert in_table_order(ServerInfo("redis", (7, 0, 15)))
    assert in_table_order(ServerInfo("valkey", (9, 0, 0)))
    assert not in_table_order(ServerInfo("redis", (7, 0, 15), mode="cluster"))
    assert not in_table_order(ServerInfo("redis", (6, 2, 0), fork="dragonfly"))


def test_a_page_of_a_far_source_holds_it_up_no_longer() -> None:
    pace = Pace(0.05, ranged=True)
    assert max(pace.count(dry=bool(n % 2)) for n in range(20)) == 1024
