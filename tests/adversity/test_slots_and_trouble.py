"""Slots that have moved, and something that breaks at the wrong moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.clusters import Cluster, slot_of
from benches.support.waiting import wait_for
from engine.errors import LinkError, StateError
from engine.fleet.cut_over_comparisons import comparisons_of
from engine.model.lane_keys import KeysOfLane
from engine.model.lane_plan import PlannedLane
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.targets import cluster_applier, slot_keys
from engine.targets.slot_keys import Ask
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.follow import Follower
from engine.transfer.lane import Lane
from engine.transfer.lane_cut_over import LaneCutOver
from engine.transfer.slot_reread import SlotReread
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario, Scenario

KEYS = 3000
# Follows, writes its store down where it is told to, and is frozen.
ENGINE = """
import os, pickle, sys, time
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.library import migrating
store = MemoryCheckpoint()
with migrating(sys.argv[1], sys.argv[2], checkpoints=store, timeout=300.0, retry_for=20.0) as run:
    run.following()
    run.wait_for(lambda: run.progress.can_complete, "in sync")
    with open(sys.argv[3] + ".new", "wb") as file:
        file.write(pickle.dumps(store))
    os.replace(sys.argv[3] + ".new", sys.argv[3])
"""


class Held:
    """Audits wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = True
        read = SlotReread._read

        async def later(audit: SlotReread, slots: SlotSet, follower: Follower) -> int:
            if self.on:
                raise LinkError("not now", fault="source")
            return await read(audit, slots, follower)

        monkeypatch.setattr(SlotReread, "_read", later)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


def whole(s: Scenario, end: Any) -> Cluster:
    found = s.whole(end)
    assert isinstance(found, Cluster)
    return found


def replanned(run: Run, times: int = 1) -> None:
    run.wait_for(
        lambda: sum(event.startswith("slots have moved: ") for event in run.events) >= times,
        "other lanes",
    )


def test_slots_that_go_on_before_they_were_read(scenario: NewScenario, held: Held) -> None:
    """What a lane was to read again of slots that have gone to another one since is that one's."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2)
    s.load(keys=KEYS)
    there = whole(s, "source")
    with s.running(timeout=90.0) as run:
        run.following()
        there.move(range(20), there.primaries[1])
        replanned(run)
        there.move(range(20), there.primaries[0])
        replanned(run, 2)
        held.on = False
        run.cut_over()
    assert run.report.status == "done"
    assert_settled(there, s.target, 5)


def test_a_target_that_comes_back_from_before_an_audit(scenario: NewScenario, held: Held) -> None:
    """What was read again is gone there with the rest, and is read once more."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2)
    s.load(keys=KEYS)
    there = whole(s, "source")
    slots = range(40)
    with s.running(timeout=90.0, retry_for=60.0) as run:
        run.following()
        there.move(slots, there.primaries[1])
        replanned(run)
        run.following()
        s.target.client().save()
        with there.client() as client:
            for n in range(20):
                client.set(f"before:{n}", n)
        held.on = False
        run.wait_for(lambda: run.progress.can_complete, "in sync")
        audits = sum("was read again: " in each for each in run.events)
        s.target.kill()
        s.target.restart()
        with there.client() as client:
            for n in range(20):
                client.set(f"after:{n}", n)
        run.wait_for(lambda: any("another position" in each for each in run.events), "it was seen")
        run.wait_for(
            lambda: sum("was read again: " in each for each in run.events) > audits,
            "another audit",
        )
        run.wait_for(lambda: run.progress.can_complete, "in sync again")
        assert_settled(there, s.target, 5)
        run.cut_over()


def test_a_replaced_engine_that_wakes_behind_the_cut_over(
    scenario: NewScenario, tmp_path: Path
) -> None:
    """Of a lane that is over, too, it writes nothing any more: its source has deleted what went to
    another shard."""
    s = scenario(
        "valkey-9.1",
        "valkey-9.1",
        source_shards=2,
        target_shards=2,
        source_options=("--cluster-allow-replica-migration", "no"),
    )
    s.load(keys=KEYS)
    there, here = whole(s, "source"), whole(s, "target")
    path = tmp_path / "store"
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, there.url, here.url, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, PYTHONPATH=os.getcwd()),
    )
    try:
        wait_for(path.exists, "an engine that follows", 60)
        engine.send_signal(signal.SIGSTOP)
        store: MemoryCheckpoint = pickle.loads(path.read_bytes())
        first, second = there.primaries
        assert there.move_atomically(there.slots_of(first), second) == ["success"]
        with migrating(there, here, checkpoints=store) as run:
            run.following()
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_tidy(here)
        engine.send_signal(signal.SIGCONT)
        engine.wait(60)
        assert_settled(there, here, 5)
    finally:
        engine.kill()
        engine.wait()


@pytest.mark.parametrize("back", [False, True], ids=["away", "and back"])
def test_slots_that_move_between_snapshots(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """They are in none of them: that is not complete, also where they are where they were by
    then."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2)
    s.load(keys=KEYS)
    there = whole(s, "source")
    moved, looked, settled = asyncio.Event(), asyncio.Event(), asyncio.Event()
    open_source, wait = Lane._open_source, LaneCutOver.wait_for_replicas_before

    async def later(lane: Lane, *args: Any, **named: Any) -> Any:
        if 0 in lane._ends.route.slots:
            await moved.wait()
        return await open_source(lane, *args, **named)

    async def then(lane: LaneCutOver) -> None:
        looked.set()
        await settled.wait()
        await wait(lane)

    monkeypatch.setattr(Lane, "_open_source", later)
    monkeypatch.setattr(LaneCutOver, "wait_for_replicas_before", then)
    with s.running(one_go=True, until="snapshot") as run:
        run.wait_for(lambda: run.progress.keys > 1000, "the other shard's snapshot")
        there.move(range(200), there.primaries[1])
        run.call(moved.set)
        run.wait_for(looked.is_set, "both snapshots")
        if back:
            there.move(range(200), there.primaries[0])
        run.call(settled.set)
    assert run.report.status != "done", s.target.client().dbsize()
    assert "slots have moved" in run.report.errors[0]


def test_a_target_that_comes_back_with_what_flushall_has_removed(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scenario("redis-7.0", "redis-7.0", target_shards=1)
    s.load(keys=KEYS)
    (here,) = whole(s, "target").nodes
    remove, done = slot_keys.remove_keys, list[int]()

    async def undone(ask: Ask, keys: KeysOfLane, db: int, **of: bool) -> int:
        if not done:
            here.client().save()
        found = await remove(ask, keys, db, **of)
        if not done:
            here.kill()
            here.restart()
        done.append(found)
        return found

    def behind() -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(here.client().exists("after"))
        return False

    with s.running() as run:
        run.following()
        monkeypatch.setattr(cluster_applier, "remove_keys", undone)
        client = s.source.client()
        for n in range(50):
            client.set(f"before:{n}", n)
        client.flushall()
        client.set("after", "1")
        run.wait_for(behind, "what came behind it")
        assert_settled(s.source, whole(s, "target"), 5)
        run.cut_over()
    assert done[0] > KEYS


class DiesBehindThePlan(MemoryCheckpoint):
    """Its engine does, when lanes are planned anew."""

    def plan(self, lanes: tuple[PlannedLane, ...]) -> None:
        again = self.lanes is not None
        super().plan(lanes)
        if again:
            raise StateError("died here")


def test_an_engine_dies_behind_the_new_plan(scenario: NewScenario) -> None:
    """What other lanes brought to a new lane's slots is none of the target's own keys."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2, target_shards=2)
    s.load(keys=KEYS)
    there, here = whole(s, "source"), whole(s, "target")
    slots = range(100)
    dies = DiesBehindThePlan()
    with s.running(checkpoints=dies) as run:
        run.following()
        there.move(slots, there.primaries[1])
    assert list(run.report.errors) == ["died here"]
    store = MemoryCheckpoint()
    store.__dict__.update(dies.__dict__)
    # (It brought what is deleted now.)
    with here.client() as client:
        for n in range(KEYS):
            if slot_of(f"key:{n}") in slots:
                client.set(f"key:{n}", n)
    with there.client() as client:
        for n in range(KEYS):
            if slot_of(f"key:{n}") in slots:
                client.delete(f"key:{n}")
    with s.running(checkpoints=store) as run:
        run.following()
        assert_settled(there, here, 5)
        run.cut_over()


def test_keys_of_the_target_that_move_there(scenario: NewScenario) -> None:
    """They stay, on whichever node."""
    s = scenario("redis-7.0", "redis-7.0", target_shards=2)
    here = whole(s, "target")
    slots = range(8192, 8292)
    own = next(f"own:{n}" for n in range(100_000) if slot_of(f"own:{n}") in slots)
    with here.client() as client:
        client.set(own, "mine")
    s.load(keys=KEYS)
    settings = TransferSettings()
    compared = lambda lanes: comparisons_of(lanes, settings, lambda: True)  # noqa: E731
    with s.running(comparisons=compared) as run:
        run.following()
        here.move(slots, here.primaries[0])
        replanned(run)
        run.wait_for(lambda: any("was read again: " in each for each in run.events), "the audit")
        run.cut_over()
    with here.client() as client:
        assert client.get(own) == b"mine"
        assert client.exists("key:1") == 1
