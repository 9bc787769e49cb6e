"""Lanes that go on in other processes, while processes are killed at the moments at which that
happens: nothing is lost, doubled, or copied again.

`ENGINE_SOAK=1`: at each of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from benches.support.clusters import Cluster
from engine.transfer import lane_process_split
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.lane_process_split import LaneProcessSplit
from engine.transfer.lane_worker import LaneWorker, WorkerProcess
from engine.transfer.migration import Migration
from engine.transfer.remote_lane import RemoteLane
from tests.support.carried import assert_carried
from tests.support.counted_processes import Counted
from tests.support.eager_split import PARTED, part_at_once
from tests.support.library import Run
from tests.support.scenario import NewScenario
from tests.support.three_shards import TRAFFIC, three_shards
from tests.support.traffic import Retrying, Traffic

SEED = int(os.environ.get("ENGINE_SEED", "4711"))
SOAK = "ENGINE_SOAK" in os.environ
# What changes keys without a word in the stream has cut-overs tried again.
OPTIONS = {**TRAFFIC, "without": (*TRAFFIC["without"], "bitfield", "xreadgroup")}

MOMENTS: list[tuple[type, str, bool]] = [
    # The process that goes on with lanes, before it is told of them; when it has them; and then.
    (LaneProcessSplit, "take", True),
    (LaneWorker, "up", True),
    (RemoteLane, "connect", True),
    # The one that had them, before they are ended there, and behind that.
    (RemoteLane, "close", False),
    (RemoteLane, "close", True),
    (RemoteLane, "save_last", False),
]
"""A method, and whether it is killed behind it."""


def assert_copied_once(run: Run, there: Cluster, here: Cluster, clients: Retrying) -> None:
    """It is cut over, nothing is lost or doubled, and each shard was copied once."""
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_carried(there, here, clients)
    assert run.progress.full_syncs == 3, run.events


def some() -> list[tuple[type, str, bool]]:
    return MOMENTS if SOAK else random.Random(SEED).sample(MOMENTS, 1)


@pytest.mark.parametrize(
    "moment", some(), ids=lambda moment: f"{moment[0].__name__}.{moment[1]}-{moment[2]}"
)
def test_killed_when_lanes_are_parted(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch, moment: tuple[type, str, bool]
) -> None:
    """Twice: from this process into two, and from those into three."""
    owner, name, behind = moment
    part_at_once(monkeypatch)
    s, there, here = three_shards(scenario, keys=1000)
    chance = random.Random(f"{SEED} {moment}")
    processes = Counted()
    killed: list[int] = []
    armed = [False]

    def kill() -> None:
        alive = [each.pid for each in processes.started if not each._over]
        if armed[0] and alive:
            armed[0] = False
            killed.append(chance.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)

    _around(monkeypatch, owner, name, kill, behind)
    traffic = Traffic(there, "meanwhile", **OPTIONS, rate=500.0)
    with s.clients(clients=3) as clients:
        with (
            traffic,
            s.running(
                lanes_per_worker="auto", processes=processes, timeout=300.0, retry_for=120.0
            ) as run,
        ):
            for count in (1, 2):
                armed[0] = True
                run.wait_for(
                    lambda count=count: sum(PARTED in event for event in run.events) >= count,
                    "lanes are parted",
                )
                run.following()
                clients.goes_on()
            armed[0] = False
            traffic.stop()
            run.cut_over()
        assert killed
        assert_copied_once(run, there, here, clients)


@pytest.mark.skipif(not SOAK, reason="takes minutes: ENGINE_SOAK=1 runs it")
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("word", ["stop", "complete"])
def test_a_word_when_lanes_are_parted(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch, word: str, count: int, behind: bool
) -> None:
    """The operator's, between the end of lanes and the moment in which they are opened again."""
    part_at_once(monkeypatch)
    s, there, here = three_shards(scenario, keys=1000)
    store, processes = MemoryCheckpoint(), Counted()
    options: dict[str, Any] = {"checkpoints": store, "processes": processes, "timeout": 120.0}
    told: list[str] = []

    def tell() -> None:
        told.append(word)
        if len(told) == count:
            run.work.stop() if word == "stop" else run.work.complete()

    _around(monkeypatch, LaneProcessSplit, "take", tell, behind)
    with s.clients(clients=3) as clients:
        with s.running(lanes_per_worker="auto", **options) as run:
            run.wait_for(lambda: run.ended, "an end", 60.0)
        if word == "stop":
            assert run.report.status == "stopped", (run.report.errors, run.events)
            for process in processes.started:
                with pytest.raises(ProcessLookupError):
                    os.kill(process.pid, 0)
            clients.goes_on()
            with s.running(lanes_per_worker=1, **options) as run:
                run.following()
                run.cut_over()
        assert_copied_once(run, there, here, clients)


@pytest.mark.skipif(not SOAK, reason="takes a minute: ENGINE_SOAK=1 runs it")
def test_a_process_that_stands_still_when_lanes_are_parted(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lanes of all others wait for it, and not for long."""
    part_at_once(monkeypatch)
    s, there, here = three_shards(scenario, keys=500)
    processes = Counted()
    stopped: list[float] = []
    calls = [0]

    def stop() -> None:
        calls[0] += 1
        if calls[0] == 2:
            stopped.append(time.monotonic())
            os.kill(processes.started[0].pid, signal.SIGSTOP)

    _around(monkeypatch, Migration, "part", stop, behind=False)
    with s.clients(clients=3) as clients:
        with s.running(lanes_per_worker="auto", processes=processes, timeout=120.0) as run:
            run.wait_for(
                lambda: sum(PARTED in event for event in run.events) == 2, "lanes are parted", 60
            )
            run.following()
            assert time.monotonic() - stopped[0] < 15
            clients.goes_on()
            run.cut_over()
        assert_copied_once(run, there, here, clients)


@pytest.mark.skipif(not SOAK, reason="takes a minute: ENGINE_SOAK=1 runs it")
def test_slots_that_move_while_lanes_are_to_be_parted(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that were started for it are ended."""
    part_at_once(monkeypatch)
    monkeypatch.setattr(lane_process_split, "BUSY", 1e9)
    s, there, _ = three_shards(scenario, keys=500)
    processes = Counted()
    awaited = asyncio.Event()

    async def never(process: WorkerProcess) -> bool:
        del process
        await awaited.wait()
        return True

    monkeypatch.setattr(lane_process_split, "_answers", never)
    with s.running(lanes_per_worker="auto", processes=processes, timeout=120.0) as run:
        run.following()
        monkeypatch.setattr(lane_process_split, "BUSY", -1.0)
        run.wait_for(lambda: len(processes.started) == 2, "processes")
        monkeypatch.setattr(lane_process_split, "BUSY", 1e9)
        one, other, _ = there.primaries
        there.move(there.slots_of(one)[:20], other)
        run.wait_for(lambda: len(run.call(lambda: run.work.of_lanes)) == 4, "a new lane")
        run.wait_for(lambda: all(each._over for each in processes.started), "their end")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)


def _around(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], None], behind: bool
) -> None:
    """`act` before the method is called, or behind it."""
    method = getattr(owner, name)

    def plain(*arguments: Any, **named: Any) -> Any:
        if not behind:
            act()
        found = method(*arguments, **named)
        if isinstance(found, Awaitable):
            return then(found)
        if behind:
            act()
        return found

    async def then(found: Awaitable[Any]) -> Any:
        result = await found
        if behind:
            act()
        return result

    monkeypatch.setattr(owner, name, plain)
