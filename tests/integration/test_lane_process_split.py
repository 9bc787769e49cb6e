"""`--lanes-per-worker auto`: lanes whose process has no CPU left for them go on in others."""

from __future__ import annotations

import os

import pytest

from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer import lane_process_split, machine_cpu
from tests.support.carried import assert_carried
from tests.support.comparison import assert_settled
from tests.support.counted_processes import Counted
from tests.support.eager_split import PARTED, part_at_once
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory
from tests.support.three_shards import TRAFFIC, three_shards
from tests.support.traffic import Traffic


def test_lanes_are_parted(scenario: NewScenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is, while there is CPU; then one lane after another, with nothing copied again; and
    all that is told of the migration counts on."""
    part_at_once(monkeypatch)
    monkeypatch.setattr(lane_process_split, "BUSY", 1e9)
    s, there, here = three_shards(scenario, keys=2000)
    traffic = Traffic(there, "meanwhile", **TRAFFIC, rate=1500.0)
    processes = Counted()
    with s.clients(clients=4) as clients:
        with (
            traffic,
            s.running(lanes_per_worker="auto", processes=processes, timeout=120.0) as run,
        ):
            run.following()
            run.wait_for(lambda: run.work._parting.looks > 3, "looks")  # type: ignore[union-attr]
            assert not processes.started
            commands = run.progress.commands
            monkeypatch.setattr(lane_process_split, "BUSY", -1.0)
            for count in (1, 2):
                run.wait_for(
                    lambda count=count: sum(PARTED in event for event in run.events) == count,
                    "lanes are parted",
                )
                run.following()
            assert len(processes.started) == 2 + 3
            assert len({each.worker_pid for each in run.call(lambda: run.work.of_lanes).values()})
            clients.goes_on()
            assert run.progress.commands > commands
            assert run.progress.full_syncs == 3
            # Lanes that come to be where slots move go with those that they share a server with.
            one, other, _ = there.primaries
            there.move(there.slots_of(one)[:20], other)
            run.wait_for(lambda: len(run.call(lambda: run.work.of_lanes)) == 4, "a new lane")
            run.following()
            clients.goes_on()
            traffic.stop()
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)
    assert sum(step.name == "snapshot" for step in run.report.steps) == 3 + 1
    assert run.report.keys_per_second
    for process in processes.started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_a_source_that_would_have_to_be_copied_again(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backlog is too small for what is written: all stays where it is, and that is told."""
    part_at_once(monkeypatch)
    s = scenario(
        "valkey-8.1",
        "valkey-8.1",
        source_shards=2,
        target_shards=2,
        source_options=("--repl-backlog-size", "16kb"),
    )
    s.load(keys=500)
    traffic = Traffic(s.whole("source"), "meanwhile", **TRAFFIC, rate=1500.0)
    processes = Counted()
    with (
        traffic,
        s.running(lanes_per_worker="auto", processes=processes, timeout=120.0) as run,
    ):
        run.following()
        run.wait_for(
            lambda: any("repl-backlog-size" in event for event in run.events), "it is told"
        )
        traffic.stop()
        assert not processes.started
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(s.whole("source"), s.whole("target"), 5)


def test_lanes_stay_while_a_target_does_not_answer(scenario: NewScenario) -> None:
    """Also those that are in other processes, which alone know of it."""
    s = scenario(
        "valkey-8.1",
        "valkey-8.1",
        source_shards=2,
        target_shards=2,
        target_options=("--cluster-node-timeout", "60000"),
    )
    s.load(keys=500)
    stopped = s.whole("target").primaries[0]

    with s.running(lanes_per_worker=1, processes=Counted(), timeout=60.0) as run:
        run.following()

        def may_part() -> bool:
            return run.call(lambda: run.work._way.may_part)  # type: ignore[union-attr]

        run.wait_for(may_part, "lanes that may be parted")
        stopped.freeze()
        run.wait_for(lambda: not may_part(), "lanes that may not")
        stopped.thaw()
        run.wait_for(may_part, "lanes that may be parted again")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)


async def test_a_source_that_does_not_say_what_it_keeps(server_factory: ServerFactory) -> None:
    """That is not known, and is not 0."""
    source, settings = server_factory(), TransferSettings(connect_timeout=0.3)
    end = Endpoint.parse(source.url)
    assert await lane_process_split._backlog(end, settings)
    source.freeze()
    try:
        assert await lane_process_split._backlog(end, settings) is None
    finally:
        source.thaw()


def test_no_other_cpu(scenario: NewScenario, monkeypatch: pytest.MonkeyPatch) -> None:
    part_at_once(monkeypatch)
    monkeypatch.setattr(machine_cpu, "cpus", lambda: 1)
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, target_shards=2)
    s.load(keys=500)
    processes = Counted()
    with s.running(lanes_per_worker="auto", processes=processes, timeout=120.0) as run:
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert not processes.started
