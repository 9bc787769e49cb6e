"""Lanes of clusters compared: each looks at the keys of its slots alone, and lanes that share an
end are counted as one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import redis

from benches.support.clusters import Cluster, slot_of
from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.fleet.cut_over_comparisons import comparisons_of
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.settings import TransferSettings
from engine.model.slots import ALL_SLOTS, SlotSet
from engine.model.verification import AtFence, Counts
from engine.transfer.cut_over_check import Comparison
from engine.wire.control_connection import admin
from engine.wire.event_loop import run
from tests.support.servers import ServerFactory, known

KEYS = 3000
Ends = Sequence[tuple[Server, SlotSet]]


@dataclass
class Seen:
    """What all lanes have seen, put together."""

    differ: dict[DbKey, str]
    names: set[bytes]
    looked_up: int
    sampled: set[bytes]
    at_fence: list[AtFence]
    counts: list[Counts | None]


def nodes_of(cluster: Cluster, shards: int) -> Ends:
    """Its primaries, with their slots."""
    bounds = [ALL_SLOTS.ranges[0][1] + 1] * shards
    parts = [each * n // shards for n, each in enumerate(bounds)] + [bounds[0]]
    slots = [SlotSet(((first, last - 1),)) for first, last in itertools.pairwise(parts)]
    return list(zip(cluster.nodes, slots, strict=False))


def owner(ends: Ends, key: str) -> redis.Redis:
    return next(server.client() for server, slots in ends if slot_of(key) in slots)


def fill(ends: Ends) -> None:
    """The same keys at whatever these are, some of them with a TTL, and streams with groups."""
    for server, slots in ends:
        client = server.client()
        with client.pipeline(transaction=False) as pipe:
            for number in range(KEYS):
                if slot_of(f"key:{number}") in slots:
                    pipe.set(f"key:{number}", number)
                if number % 3 == 0 and slot_of(f"key:{number}") in slots:
                    pipe.pexpireat(f"key:{number}", 4_000_000_000_000)
            for number in range(9):
                if slot_of(f"stream:{number}") in slots:
                    pipe.xadd(f"stream:{number}", {"a": 1}, id="1-1")
                    pipe.xgroup_create(f"stream:{number}", "group", id="0")
            pipe.execute()


def routes(sources: Ends, targets: Ends, *, of_cluster: tuple[bool, bool]) -> list[Route]:
    found = []
    for (_, have), (_, take) in itertools.product(sources, targets):
        if slots := have & take:
            found.append(
                Route(
                    slots=slots,
                    from_cluster=of_cluster[0],
                    to_cluster=of_cluster[1],
                    shared_source=bool(have - slots),
                    shared_target=bool(take - slots),
                )
            )
    return found


def look(sources: Ends, targets: Ends, kinds: tuple[bool, bool], *, every: bool) -> Seen:
    """Compare each pair whose slots meet: its sample, or every key, its names, and behind a fence
    (nobody writes)."""
    settings = TransferSettings()
    pairs = [(one, other) for (one, a), (other, b) in itertools.product(sources, targets) if a & b]
    lanes = [
        (Endpoint.parse(one.url), Endpoint.parse(other.url), route)
        for (one, other), route in zip(
            pairs, routes(sources, targets, of_cluster=kinds), strict=True
        )
    ]
    seen = Seen({}, set(), 0, set(), [], [])

    async def reach(_: int) -> None:
        pass

    async def settled() -> int:
        return 0

    async def lane(comparison: Comparison) -> None:
        try:
            await comparison.open()
            # As the cut-over of all: none is counted before all compare.
            await opened.wait()
            chosen = []
            portions = comparison.doubtful({"all"}) if every else comparison.sample()
            async for db, keys in portions:
                seen.sampled |= set(keys)
                chosen += [(db, key) for key in keys]
                found = await comparison.compare(db, keys, reach)
                seen.differ |= found.differ
            async for db, keys in comparison.doubtful({"groups"}):
                found = await comparison.compare(db, keys, reach)
                seen.differ |= found.differ
            async for _, absent, count in comparison.one_sided_names():
                seen.names |= set(absent)
                seen.looked_up += count
            comparison.names_looked_up()
            assert not comparison.doubted
            await comparison.choose([], chosen)
            at_fence = await comparison.at_fence(settled)
            counts = at_fence.counts or await comparison.counts_together()
            seen.at_fence.append(at_fence)
            seen.counts.append(counts)
            assert comparison.doubted == bool(counts and counts.wrong)
        finally:
            await comparison.close()

    async def main() -> None:
        await asyncio.gather(*map(lane, comparisons_of(lanes, settings, lambda: False)))

    opened = asyncio.Barrier(len(lanes))
    run(main())
    return seen


@pytest.fixture(scope="module", params=["redis-6.2", "redis-7.0", "redis-8.0", "valkey-9"])
def clusters(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Cluster]]:
    binary = known(request.param)
    with Cluster.start(binary, primaries=2) as two, Cluster.start(binary, primaries=3) as three:
        yield two, three


def one_server(server: Server) -> Ends:
    return [(server, ALL_SLOTS)]


@pytest.mark.parametrize("shape", ["one into three", "three into one", "two into three"])
def test_every_lane_looks_at_its_own(
    clusters: tuple[Cluster, Cluster], server_factory: ServerFactory, shape: str
) -> None:
    two, three = nodes_of(clusters[0], 2), nodes_of(clusters[1], 3)
    single = one_server(server_factory(known("redis-7.0")))
    ends: dict[str, tuple[Ends, Ends, tuple[bool, bool]]] = {
        "one into three": (single, three, (False, True)),
        "three into one": (three, single, (True, False)),
        "two into three": (two, three, (True, True)),
    }
    sources, targets, kinds = ends[shape]
    for server, _ in (*sources, *targets):
        server.client().flushall()
    fill(sources)
    fill(targets)

    # 1. Equal ends are equal, whoever looks.
    whole = KEYS + 9
    for every in (False, True):
        seen = look(sources, targets, kinds, every=every)
        assert not seen.differ
        assert not seen.names
        assert seen.looked_up == 2 * whole
        assert len(seen.sampled) == whole if every else 200 <= len(seen.sampled) < whole
        assert all(not each.differ for each in seen.at_fence)
        assert [counts for counts in seen.counts if counts is None or counts.wrong] == []
        sums = {(counts.source, counts.target) for counts in seen.counts if counts is not None}
        assert sum(one for one, _ in sums) in (whole, len(sums) * whole)

    # 2. One lacks a key, and another has one too many: the sums agree, names and samples do not.
    gone, more, other = "key:7", "more", "key:11"
    owner(targets, gone).delete(gone)
    owner(targets, more).set(more, "1")
    owner(targets, other).set(other, "otherwise")
    seen = look(sources, targets, kinds, every=True)
    assert seen.names == {gone.encode(), more.encode()}
    assert seen.differ.keys() == {(0, gone.encode()), (0, other.encode())}
    assert not any(counts is None or counts.wrong for counts in seen.counts)

    # 3. The sums do not agree.
    owner(targets, more).delete(more)
    seen = look(sources, targets, kinds, every=False)
    assert all(counts is not None and counts.wrong for counts in seen.counts)


def test_names_of_a_far_end(server_factory: ServerFactory) -> None:
    """Far away a table is walked in ranges: thousands of names a round trip, and none is missed,
    though both tables grow and shrink meanwhile."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    keys = 60_000
    for server in (source, target):
        with server.client().pipeline(transaction=False) as pipe:
            for number in range(keys):
                pipe.set(f"key:{number}", "")
            pipe.execute()
    absent = {f"key:{number}" for number in range(0, keys, 997)}
    target.client().delete(*absent)
    target.client().set("more", "1")
    delay = 0.1
    with (
        Proxy(source.host, source.port) as one,
        Proxy(target.host, target.port) as other,
    ):
        one.delay(delay)
        other.delay(delay)
        ends = [Endpoint.parse(f"redis://{each.host}:{each.port}") for each in (one, other)]
        lane = (ends[0], ends[1], Route())
        (comparison,) = comparisons_of([lane], TransferSettings(), lambda: False)

        async def walk() -> tuple[set[bytes], int]:
            found, count = set[bytes](), 0
            await comparison.open()
            async with admin(Endpoint.parse(source.url)) as writer:
                async for _, names, looked_up in comparison.one_sided_names():
                    found |= set(names)
                    count += looked_up
                    # The table is rehashed under the walk.
                    await writer.pipeline([("SET", f"new:{count}:{n}", "") for n in range(100)])
            await comparison.close()
            return found, count

        found, count = run(walk())
    assert {name for name in found if not name.startswith(b"new:")} == {
        name.encode() for name in (*absent, "more")
    }
    assert count >= 2 * keys - len(absent)
