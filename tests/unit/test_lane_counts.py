"""Counts of lanes that share an end: judged as one, by whoever has brought his own."""

from __future__ import annotations

import asyncio

from engine.model.server import Keyspace, ServerInfo
from engine.model.slots import SlotSet
from engine.model.verification import Counts
from engine.verify.lane_counts import Explained, LaneCounts, Told, joined


def of(keys: int, expires: int = 0, fields: int = 0) -> ServerInfo:
    return ServerInfo("redis", (7, 4, 0), keyspace=(Keyspace(0, keys, expires, fields),))


def told(source: ServerInfo, target: ServerInfo, own: int = 0, ended: int = 0) -> Told:
    return Told(source, target, own, (0, 0), ended)


def judged(counts: LaneCounts, *brought: Told) -> list[Counts]:
    async def all_lanes() -> list[Counts]:
        return await asyncio.gather(*(counts.judge(n, each) for n, each in enumerate(brought)))

    return asyncio.run(all_lanes())


def test_who_is_counted_with_whom() -> None:
    """By an end that they share, or one between them."""
    found = joined([("a", "x"), ("b", "y"), ("a", "z"), ("c", "z"), ("d", "q")])
    assert found[0] is found[2] is found[3]
    assert len({id(each) for each in found}) == 3
    # A source may be another lane's target, by its name.
    apart = joined([("a", "b"), ("b", "a")])
    assert apart[0] is not apart[1]


def test_one_source_of_two_lanes() -> None:
    """It is counted once, its targets each; what is the engine's own is no key."""
    counts = LaneCounts()
    for target in ("x", "y"):
        counts.join("a", target)
    found = judged(counts, told(of(10), of(5, 0), own=1), told(of(10), of(6, 0)))
    assert [(each.source, each.target, each.wrong) for each in found] == [(10, 10, "")] * 2
    assert not counts.doubted
    found = judged(counts, told(of(10), of(5, 0)), told(of(10), of(6, 0)))
    assert [each.wrong for each in found] == [
        "database 0 has 10 keys without a TTL on the source and 11 on the target"
    ] * 2
    assert counts.doubted == {0, 1}


def test_two_sources_of_one_target() -> None:
    """Keys that either lane has ended, by restoring its TTLs, are missing there."""
    counts = LaneCounts()
    for source in ("a", "b"):
        counts.join(source, "x")
    lanes = told(of(4, 4), of(7, 7), ended=1), told(of(6, 6), of(7, 7), ended=2)
    found = judged(counts, *lanes)
    assert [(each.source, each.target, each.wrong, each.expired) for each in found] == [
        (10, 7, "", 3)
    ] * 2


def test_hashes_of_which_every_field_has_expired() -> None:
    """What each lane has found of them is added up; where names were looked up, their number
    does."""
    counts = LaneCounts()
    for target in ("x", "y"):
        counts.join("a", target)

    async def all_lanes(*found: Explained) -> list[str]:
        lanes = told(of(10, 0, 9), of(4, 0)), told(of(10, 0, 9), of(4, 0))
        first = await asyncio.gather(*(counts.judge(n, each) for n, each in enumerate(lanes)))
        assert first[0].fields == {0: 2}
        works = [counts.explained(n, first[n], each) for n, each in enumerate(found)]
        return [each.wrong for each in await asyncio.gather(*works)]

    one = Explained({0: 1}, walked=False, expired=(0, 0))
    none = Explained({}, walked=False, expired=(0, 0))
    assert asyncio.run(all_lanes(one, one)) == ["", ""]
    assert (
        asyncio.run(all_lanes(one, none))
        == ["database 0 has 2 keys more on the source than on the target"] * 2
    )
    walked = Explained({}, walked=True, expired=(0, 1))
    assert asyncio.run(all_lanes(walked, walked)) == ["", ""]


def test_a_lane_that_does_not_come() -> None:
    """Whoever is cancelled has brought nothing, and the next round is one of all. Where one has no
    part no sum says anything."""
    counts = LaneCounts()
    for target in ("x", "y"):
        counts.join("a", target)
    counts.attend(0)
    assert not counts.complete
    counts.attend(1)
    assert counts.complete

    async def waits() -> None:
        waiting = asyncio.create_task(counts.judge(0, told(of(3), of(9))))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        lanes = told(of(3), of(1)), told(of(3), of(2))
        found = await asyncio.gather(*(counts.judge(n, each) for n, each in enumerate(lanes)))
        assert [each.target for each in found] == [3, 3]

    asyncio.run(waits())
    counts.leave(1)
    counts.leave(1)
    assert not counts.complete


def test_keys_of_slots_that_an_end_does_not_own() -> None:
    """They are left out of an end's number once, by whichever lane; and only where the names of
    all lanes were looked up."""
    for walked in (True, False):
        counts = LaneCounts()
        for target in ("x", "y"):
            counts.join("a", target)
        lanes = [
            Told(of(9, 2), of(keys, timed), 0, (0, 0), 0, ({0: 2}, {0: stray}), walked or first)
            for first, keys, timed, stray in ((True, 5, 1, 1), (False, 3, 0, 0))
        ]
        found = judged(counts, *lanes)
        assert all(bool(each.wrong) != walked for each in found)
        if walked:
            assert {(each.source, each.target, each.stray) for each in found} == {(7, 7, 3)}


def test_what_ends_are_taken_to_own() -> None:
    counts = LaneCounts()
    first = counts.join("a", "x", SlotSet(((0, 9),)))
    second = counts.join("a", "y", SlotSet(((10, 19),)))
    assert counts.slots_of(first) == (SlotSet(((0, 19),)), SlotSet(((0, 9),)))
    assert counts.slots_of(second) == (SlotSet(((0, 19),)), SlotSet(((10, 19),)))
    assert counts.names("a node holds keys")
    assert not counts.names("a node holds keys")
