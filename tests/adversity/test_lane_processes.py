"""Lanes in several processes, which are killed at moments of the cut-over and beside it: nothing is
lost, and all targets are promoted or none is.

`ENGINE_SOAK=1`: at every step, before and behind it.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benches.support.clusters import Cluster
from benches.support.engines import Cli, Migration
from benches.support.waiting import wait_for
from engine.fleet.lane_processes import LaneProcesses
from engine.model.progress import ENDS, Phase
from engine.transfer.cut_over import CUT_OVER
from tests.support.carried import assert_carried
from tests.support.comparison import assert_settled
from tests.support.library import Run
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario, Scenario
from tests.support.servers import ServerFactory, known
from tests.support.steps import Moment, Steps
from tests.support.three_shards import TRAFFIC, three_shards
from tests.support.traffic import Traffic

SEED = int(os.environ.get("ENGINE_SEED", "4711"))
SOAK = "ENGINE_SOAK" in os.environ
PROMOTION = [step.name for step in CUT_OVER].index("promote the target")
# What changes keys without a word in the stream has cut-overs tried again.
OPTIONS = {**TRAFFIC, "without": (*TRAFFIC["without"], "bitfield", "xreadgroup")}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps of the cut-over that migrations of this test take."""
    found = Steps()
    found.install(monkeypatch.setattr)
    return found


def three(scenario: NewScenario) -> Scenario:
    """Three shards into three, with replicas, so that a source refuses writes behind it."""
    s, _, _ = three_shards(scenario, keys=1000, replicas=1)
    return s


def running(s: Scenario) -> Run:
    """A process a lane."""
    return s.running(
        lanes_per_worker=1, processes=LaneProcesses(lambda: False), timeout=600.0, retry_for=300.0
    )


def lanes(run: Run) -> Sequence[Any]:
    return run.work._way.lanes  # type: ignore[union-attr, return-value]


def kill(run: Run, lane: int) -> None:
    process = lanes(run)[lane]._worker._process
    if process is not None:
        os.kill(process.pid, signal.SIGKILL)


def some(moments: Sequence[tuple[str, int, bool]], count: int) -> list[tuple[str, int, bool]]:
    chance = random.Random(SEED)
    return chance.sample(moments, len(moments) if SOAK else count)


EARLY = [
    (step.name, lane, behind)
    for n, step in enumerate(CUT_OVER[: PROMOTION + 1])
    for lane in (0, 1)
    for behind in (False, True)
    if n < PROMOTION or not behind
]
LATE = [
    (step.name, lane, behind)
    for step in CUT_OVER[PROMOTION:]
    for lane in (0, 1)
    for behind in (False, True)
]


def test_killed_before_the_promotion(scenario: NewScenario, steps: Steps) -> None:
    """The cut-over is refused, clients go on at the source, and the lane is taken up anew."""
    s = three(scenario)
    there, here = s.whole("source"), s.whole("target")
    traffic = Traffic(there, "meanwhile", **OPTIONS, rate=500.0)
    chance = random.Random(SEED)
    with s.clients(clients=3) as clients:
        with traffic, running(s) as run:
            run.following()
            for name, lane, behind in some(EARLY, 3):
                run.in_sync()
                victim = chance.randrange(3)
                steps.act = lambda victim=victim: kill(run, victim)  # type: ignore[misc]
                steps.at = Moment(name, lanes(run)[lane].context.title, behind)
                why = run.refused()
                assert steps.at is None, (name, lane, behind, why)
                clients.goes_on()
            traffic.stop()
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


@pytest.mark.parametrize("moment", some(LATE, 2), ids=str)
def test_killed_from_the_promotion_on(
    scenario: NewScenario, steps: Steps, moment: tuple[str, int, bool]
) -> None:
    """All targets are promoted, or none, and then the next word promotes them."""
    s = three(scenario)
    there, here = s.whole("source"), s.whole("target")
    name, lane, behind = moment
    victim = random.Random(f"{SEED} {moment}").randrange(3)
    with s.clients(clients=3) as clients:
        with running(s) as run:
            run.following()
            run.in_sync()
            steps.act = lambda: kill(run, victim)
            steps.at = Moment(name, lanes(run)[lane].context.title, behind)
            run.complete()
            run.wait_for(lambda: steps.at is None, "the moment")
            run.wait_for(
                lambda: (
                    run.progress.phase in ENDS
                    or (
                        run.progress.can_complete
                        and not any(each.mark.promoting or each.mark.fenced for each in lanes(run))
                    )
                ),
                "all or none",
                120.0,
            )
            if run.progress.phase not in ENDS:
                clients.goes_on()
                run.cut_over()
            assert run.progress.phase is Phase.DONE
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


def test_killed_again_and_again(scenario: NewScenario) -> None:
    """In the snapshot, while it catches up, and while it follows: lanes go on from there."""
    s = three(scenario)
    there, here = s.whole("source"), s.whole("target")
    s.load(keys=20_000)
    chance = random.Random(SEED)
    traffic = Traffic(there, "meanwhile", **OPTIONS, rate=500.0)
    with traffic, running(s) as run:
        for _ in range(50 if SOAK else 4):
            before = traffic.commands
            run.wait_for(lambda before=before: traffic.commands > before + 200, "traffic")
            victim = chance.randrange(3)
            run.call(lambda victim=victim: kill(run, victim))
        run.following()
        traffic.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(there, here, 5)
    assert_tidy(here)


def test_the_engine_is_killed(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """Its processes end with it, and the next engine goes on with all lanes."""
    binary = known("valkey-8.1")
    with (
        Cluster.start(binary, primaries=3, make=server_factory) as source,
        Cluster.start(binary, primaries=3, make=server_factory) as target,
    ):
        migration = Migration(Cli(state_url, tmp_path), f"{SEED} processes")
        traffic = Traffic(source, "meanwhile", **OPTIONS, rate=500.0)
        try:
            migration.register(target.nodes[0])
            migration.start(source.nodes[0], "--source-type", "replica", "--lanes-per-worker", "2")
            with traffic:
                for turn in range(12 if SOAK else 1):
                    migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
                    before = traffic.commands
                    wait_for(lambda before=before: traffic.commands > before + 300, "traffic")
                    migration.kill(within=0.3)
                    migration.resume(verb=turn % 2 == 0)
                migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
                traffic.stop()
            migration.wait_for(lambda found: found["CanComplete"])
            migration.complete()
            assert_settled(source, target, 5)
        finally:
            migration.close()
