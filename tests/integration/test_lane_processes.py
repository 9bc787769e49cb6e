"""`--lanes-per-worker`: the lanes of one migration in several processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from engine.model.progress import Progress
from engine.transfer.remote_lane import RemoteCutOver
from tests.support.carried import assert_carried
from tests.support.comparison import assert_settled
from tests.support.counted_processes import Counted
from tests.support.library import Run
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario
from tests.support.standstill import Standstill
from tests.support.three_shards import TRAFFIC, three_shards
from tests.support.traffic import Traffic


def test_several_processes_cut_over_as_one(scenario: NewScenario) -> None:
    """Everything is carried under traffic, cut over at once, and no process stays."""
    s, there, here = three_shards(scenario, keys=2000)
    traffic = Traffic(there, "meanwhile", **TRAFFIC, rate=1500.0)
    processes = Counted()
    with s.clients(clients=4) as clients:
        with (
            traffic,
            s.running(lanes_per_worker=2, processes=processes, timeout=120.0) as run,
        ):
            run.following()
            assert len(processes.started) == 2
            clients.goes_on()
            traffic.stop()
            with Standstill() as stood:
                run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)
    assert run.report.fence_seconds is not None
    assert run.report.fence_seconds < 1.0 + stood.seconds
    assert run.report.last_shard
    for process in processes.started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def told(run: Run, name: str) -> Progress:
    """How the lane of this name stands."""
    found: Progress = run.call(lambda: run.work.of_lanes[name])
    return found


def lane_of(run: Run, pid: int) -> tuple[str, Progress]:
    """The one lane of the process."""
    lanes = run.call(lambda: run.work.of_lanes)
    return next(each for each in lanes.items() if each[1].worker_pid == pid)


def test_a_process_that_is_killed(scenario: NewScenario) -> None:
    """Its lane goes on in another one, from where the target stands; the others have gone on."""
    s, there, here = three_shards(scenario, keys=2000)
    traffic = Traffic(there, "meanwhile", **TRAFFIC, rate=1500.0)
    processes = Counted()
    with traffic, s.running(lanes_per_worker=1, processes=processes, timeout=120.0) as run:
        run.following()
        name, _ = lane_of(run, processes.started[1].pid)
        run.wait_for(lambda: told(run, name).commands > 700, "commands")
        commands = told(run, name).commands
        os.kill(processes.started[1].pid, signal.SIGKILL)
        run.wait_for(lambda: len(processes.started) == 4, "another process")
        run.wait_for(
            lambda: told(run, name).worker_pid == processes.started[3].pid, "it has the lane"
        )
        # It counts on.
        assert told(run, name).commands >= commands
        run.in_sync()
        assert told(run, name).commands > commands
        traffic.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(there, here, 5)
    assert_tidy(here)
    assert run.progress.full_syncs == 3


def test_several_processes_read_from_replicas(scenario: NewScenario) -> None:
    """Each process finds one of its lanes' shards; the cut-over is at the primaries."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, target_shards=2, replicas=1)
    there, here = s.clusters["source"], s.whole("target")
    s.load(keys=1000)
    traffic = Traffic(there, "meanwhile", **TRAFFIC, rate=500.0)
    processes = Counted()
    options: dict[str, Any] = {"lanes_per_worker": 1, "read_from": "replica"}
    with traffic, s.running(**options, processes=processes, timeout=120.0) as run:
        run.following()
        assert len(processes.started) == 2
        for primary in there.primaries:
            for each, count in ((primary, 1), *((one, 1) for one in there.replicas_of(primary))):
                assert each.client().info("replication")["connected_slaves"] == count
        run.in_sync()
        traffic.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(there, here, 5)


def test_a_process_that_stands_still(scenario: NewScenario) -> None:
    """What it told last says nothing any more: nothing is cut over, and it is told; when it goes on
    all is as before."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, target_shards=2)
    s.load(keys=500)
    processes = Counted()
    with s.running(lanes_per_worker=1, processes=processes, timeout=120.0) as run:
        run.in_sync()
        frozen = processes.started[0].pid
        os.kill(frozen, signal.SIGSTOP)
        run.wait_for(lambda: "does not answer" in run.progress.reason, "it is noticed")
        assert not run.progress.can_complete
        os.kill(frozen, signal.SIGCONT)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert len(processes.started) == 2
    assert_settled(s.whole("source"), s.whole("target"), 5)


def test_a_process_that_stands_still_in_a_cut_over(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended, and the other lanes' writers are let go: none waits for a process that may never
    go on."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, target_shards=2)
    s.load(keys=500)
    processes = Counted()
    block = RemoteCutOver.block_writes
    frozen: list[int] = []

    def stands_still(self: RemoteCutOver) -> Any:
        if not frozen:
            frozen.append(processes.started[0].pid)
            os.kill(frozen[0], signal.SIGSTOP)
        return block(self)

    monkeypatch.setattr(RemoteCutOver, "block_writes", stands_still)
    with s.running(lanes_per_worker=1, processes=processes, timeout=120.0) as run:
        run.in_sync()
        assert run.refused()
        assert len(frozen) == 1
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert len(processes.started) == 3
    assert_settled(s.whole("source"), s.whole("target"), 5)
