"""Values and data of modules, on real servers that have them: Redis Stack and FalkorDB."""

from __future__ import annotations

import pytest

from engine.transfer.transfer import Transfer
from tests.conftest import ServerFactory, known
from tests.online import cut_over, following, in_sync, online
from tests.servers import Server
from tests.transfers import Run

STACK, GRAPHS = "redis-stack-7.4", "falkordb-8.2"


@pytest.fixture
def stacks(server_factory: ServerFactory) -> tuple[Server, Server]:
    return server_factory(known(STACK)), server_factory(known(STACK))


def samples(server: Server, key: str) -> list[tuple[int, float]]:
    return [(at, value) for at, value in server.client().ts().range(key, "-", "+")]


# Time series.


def test_counters_of_a_time_series_keep_the_times_of_the_source(
    stacks: tuple[Server, Server],
) -> None:
    """TS.INCRBY and TS.DECRBY come without a time: applied as they are they take the target's."""
    source, target = stacks
    client = source.client()
    ts = client.ts()
    for key in ("up", "down", "late"):
        ts.create(key)
    ts.incrby("up", 1)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        for at in range(20):
            ts.incrby("up", at)
            ts.decrby("down", at)
            ts.incrby("late", 1, timestamp=1000 + at)
        await in_sync(work, source)
        ts.incrby("new", 7)
        await cut_over(work, run, source)

    run = online(source, target, steer)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    for key in ("up", "down", "late", "new"):
        assert samples(source, key), key
        assert samples(target, key) == samples(source, key), key
