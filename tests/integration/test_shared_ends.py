"""Lanes that share an end: one source into several targets, several sources into one.

One fence stands at a source, whichever lane breaks; either the source is open and all lanes follow,
or all targets are promoted.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benches.support.clusters import slot_of
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import LinkError
from engine.model.lane_route import Route
from engine.model.slots import SlotSet
from engine.transfer.cut_over import CUT_OVER
from engine.transfer.cut_over_barrier import Refused
from tests.support.lanes import Lanes, Way
from tests.support.lanes_process import killed_at
from tests.support.own_keys import OWN_PREFIX
from tests.support.servers import ServerFactory, known, refuses_writes, write_block_of
from tests.support.steps import Moment, Steps
from tests.support.writers import Clicks

HALVES = SlotSet(((0, 8191),)), SlotSet(((8192, 16383),))
KEYS = 400
SEED = int(os.environ.get("SEED", "1"))
CASES = int(os.environ.get("CASES", "10"))
BEHIND = [step.name for step in CUT_OVER].index("promote the target")


def key_in(slots: SlotSet, prefix: str = "key") -> str:
    return next(f"{prefix}:{n}" for n in range(10**6) if slot_of(f"{prefix}:{n}") in slots)


def fill(server: Server, slots: Sequence[SlotSet] = HALVES) -> None:
    """Keys of these slots, some with a TTL that is near, some whose hashes have groups."""
    with server.client().pipeline(transaction=False) as pipe:
        for n in range(KEYS):
            if any(slot_of(f"key:{n}") in each for each in slots):
                pipe.set(f"key:{n}", n, ex=3600 if n % 3 else None)
        for n in range(20):
            if any(slot_of(f"stream:{n}") in each for each in slots):
                pipe.xadd(f"stream:{n}", {"a": 1}, id="1-1")
                pipe.xgroup_create(f"stream:{n}", "group", id="0")
        pipe.execute()


def split(source: Server, targets: Sequence[Server]) -> list[Way]:
    """From one source to each of two targets, by halves of the slots."""
    return [
        Way(source, target, Route(slots=slots, leads=not n, shared_source=True), source)
        for n, (target, slots) in enumerate(zip(targets, HALVES, strict=True))
    ]


def joined(sources: Sequence[Server], target: Server) -> list[Way]:
    """From two sources, which have a half of the slots each, to one target."""
    return [
        Way(source, target, Route(slots=slots, shared_target=True), source)
        for source, slots in zip(sources, HALVES, strict=True)
    ]


def assert_open(source: Server, run: Lanes) -> None:
    """Nothing is left of a cut-over that came to nothing."""
    assert not refuses_writes(source)
    assert write_block_of(source) == 0
    for lane in run.lanes:
        mark = lane.mark
        assert not any((mark.fenced, mark.sealed, mark.opened, mark.promoting)), mark


def assert_moved(ways: Sequence[Way], writers: Sequence[Clicks]) -> None:
    """Each target has what is its own, and nothing else; the sources refuse writes."""
    of_target: dict[int, list[Way]] = {}
    for way in ways:
        of_target.setdefault(way.target.port, []).append(way)
    for lanes in of_target.values():
        expected = {}
        for way in lanes:
            client = way.source.client()
            for key in client.scan_iter(count=1000):
                if slot_of(key) in way.route.slots:
                    expected[key] = (client.type(key), client.pttl(key) > 0)
        there = lanes[0].target.client()
        found = {key: (there.type(key), there.pttl(key) > 0) for key in there.scan_iter(count=1000)}
        assert found == expected
        assert not [key for key in found if key.startswith(OWN_PREFIX)]
        assert all(there.pttl(key) < 3_600_001 for key in found)
    for way in ways:
        assert refuses_writes(way.source)
    for writer in writers:
        assert "NOREPLICAS" in writer.refusal
        (target,) = {
            way.target.port: way.target for way in ways if slot_of(writer.key) in way.route.slots
        }.values()
        assert int(target.client().get(writer.key)) == writer.acknowledged > 0


@pytest.fixture
def one(server_factory: ServerFactory) -> list[Way]:
    """One source, two targets."""
    source = server_factory(known("redis-7.0"))
    fill(source)
    return split(source, [server_factory(known("redis-7.0")) for _ in HALVES])


def test_one_source_into_two_targets(one: list[Way]) -> None:
    """Under live traffic, compared; one fence, and the clients of both are let go behind it."""
    source = one[0].source
    with (
        Clicks(source, key=key_in(HALVES[0], "clicks"), pause=0.002) as first,
        Clicks(source, key=key_in(HALVES[1], "clicks"), pause=0.002) as second,
        Lanes(one, compared=True) as run,
    ):
        run.following()
        run.cut_over()
        run.stop()
    assert run.error is None, (run.error, run.events)
    assert_moved(one, [first, second])
    # What is said of the source is said once.
    assert sum("refuses writes from now on" in event for event in run.events) == 1
    assert sum("cut over at offset" in event for event in run.events) == 2
    assert sum("this shard was last: the others waited" in event for event in run.events) == 1
    (counts,) = {
        (found.keys_source, found.keys_target)
        for lane in run.lanes
        if (found := lane.context.verification) is not None and found.counted
    }
    # (The key that `refuses_writes` left is none.)
    assert counts[0] == counts[1] == source.client().dbsize()


def test_two_sources_into_one_target(server_factory: ServerFactory) -> None:
    """The target was empty, so that both lanes' keys are counted, and each name is looked up."""
    sources = [server_factory(known("redis-7.0")) for _ in HALVES]
    for source, slots in zip(sources, HALVES, strict=True):
        fill(source, [slots])
    ways = joined(sources, server_factory(known("valkey-8")))
    with (
        Clicks(sources[0], key=key_in(HALVES[0], "clicks"), pause=0.002) as first,
        Clicks(sources[1], key=key_in(HALVES[1], "clicks"), pause=0.002) as second,
        Lanes(ways, compared=True) as run,
    ):
        run.following()
        assert run.migration.held_before is False
        target = ways[0].target
        # A key too many is found, by its name, and taken away.
        target.client().set(key_in(HALVES[1], "more"), "1")
        run.cut_over()
        run.stop()
    assert run.error is None, (run.error, run.events)
    assert_moved(ways, [first, second])
    assert target.client().config_get("import-mode") in ({"import-mode": "no"}, {})
    for lane in run.lanes:
        found = lane.context.verification
        assert found is not None
        assert found.counted
        assert found.keys_source == found.keys_target == target.client().dbsize()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps of the cut-over that migrations of this test take."""
    found = Steps()
    found.install(monkeypatch.setattr)
    return found


def failing(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def test_a_failure_at_any_step_leaves_the_source_open(one: list[Way], steps: Steps) -> None:
    """Before and behind each step, on either lane: a refusal, or a link that is lost."""
    source = one[0].source
    chance = random.Random(SEED)
    cases = [
        Moment(step.name, lane, behind)
        for n, step in enumerate(CUT_OVER[: BEHIND + 1])
        for lane in ("", "lane1")
        for behind in (False, True)
        # Behind the promotion of one lane the other's may be over.
        if n < BEHIND or not behind
    ]
    chance.shuffle(cases)
    with (
        Clicks(source, key=key_in(HALVES[0], "clicks"), pause=0.002) as first,
        Clicks(source, key=key_in(HALVES[1], "clicks"), pause=0.002) as second,
        Lanes(one, compared=True, timeout=300.0) as run,
    ):
        writers = [first, second]
        run.following()
        for moment in cases[:CASES]:
            side: Any = chance.choice(("source", "target"))
            kinds = [Refused("not now"), LinkError("the link was lost", fault=side)]
            # What a lane deals with itself is no refusal behind its end.
            error = chance.choice(kinds if moment.step != CUT_OVER[BEHIND].name else kinds[1:])
            steps.at, steps.act = moment, failing(error)
            run.in_sync()
            why = run.refused()
            assert steps.at is None, (str(moment), why)
            told = "not now" if isinstance(error, Refused) else "the link was lost"
            assert told in why, (str(moment), why)
            run.wait_for(
                lambda: not any(each.mark.fenced for each in run.lanes), "the fence is away"
            )
            assert_open(source, run)
            before = [writer.acknowledged for writer in writers]
            wait_for(
                lambda before=before: all(
                    writer.acknowledged > at for writer, at in zip(writers, before, strict=True)
                ),
                f"writers go on: it failed {moment}",
            )
        run.cut_over(after_refusals=True)
        run.stop()
    assert run.error is None, (run.error, run.events)
    assert_moved(one, writers)


LAST = [
    Moment(step.name, lane, behind)
    for step in CUT_OVER[BEHIND:]
    for lane in ("", "lane1")
    for behind in (False, True)
]


def some(moments: Sequence[Moment], count: int) -> list[Moment]:
    """As many of them as a run has time for, chosen by its seed."""
    return random.Random(SEED).sample(moments, min(count, len(moments)))


@pytest.mark.parametrize("moment", some(LAST, CASES // 2), ids=str)
def test_a_failure_from_the_promotion_on(one: list[Way], steps: Steps, moment: Moment) -> None:
    """All are promoted, or none; then the next word promotes all."""
    source = one[0].source
    with (
        Clicks(source, key=key_in(HALVES[0], "clicks"), pause=0.002) as first,
        Clicks(source, key=key_in(HALVES[1], "clicks"), pause=0.002) as second,
        Lanes(one, compared=True) as run,
    ):
        run.following()
        run.in_sync()
        steps.at, steps.act = moment, failing(LinkError("the link was lost", fault="target"))
        run.give_word()
        wait_for(lambda: steps.at is None, "the failure")
        go_on(one, run)
        if run.error is not None:
            # A target was promoted by then: what is left to do is the next engine's.
            assert run.migration.promoted
            with Lanes(one, run.stores, compared=True) as again:
                again.ended()
            assert again.error is None, (again.error, again.events)
    assert_moved(one, [first, second])


@pytest.mark.parametrize(
    "moment",
    some(
        [
            Moment(step.name, lane, behind)
            # Before it nothing is at a server that would have to be found again.
            for step in CUT_OVER[3:]
            for lane in ("", "lane1")
            for behind in (False, True)
        ],
        CASES // 2,
    ),
    ids=str,
)
def test_an_engine_that_is_killed(one: list[Way], tmp_path: Path, moment: Moment) -> None:
    """The next one opens the source and follows again, or brings the cut-over to its end on all
    lanes."""
    source = one[0].source
    with (
        Clicks(source, key=key_in(HALVES[0], "clicks"), pause=0.002) as first,
        Clicks(source, key=key_in(HALVES[1], "clicks"), pause=0.002) as second,
    ):
        stores = killed_at(moment, one, tmp_path)
        with Lanes(one, stores, compared=True) as run:
            go_on(one, run)
        assert run.error is None, (run.error, run.events)
    assert_moved(one, [first, second])


def go_on(ways: Sequence[Way], run: Lanes) -> None:
    """Wait until all targets are promoted, or none is and the source is open: then cut over."""

    def settled() -> bool:
        marks = [each.mark for each in run.lanes]
        return not run.alive or (
            all(each.context.can_complete for each in run.lanes)
            and not any(mark.promoting or mark.fenced or mark.opened for mark in marks)
        )

    wait_for(settled, "all or none", told=run._story)
    if run.alive:
        assert_open(ways[0].source, run)
        run.cut_over(after_refusals=True)
    run.stop()
