"""`--parallel-snapshots`: how many shards of the source fork for their snapshots at once."""

from __future__ import annotations

import time

import pytest

from benches.support.clusters import Cluster
from engine.errors import UsageError
from engine.model.settings import TransferSettings
from tests.support.comparison import assert_settled
from tests.support.scenario import NewScenario

# Within which a server that answers has seen that its fork has ended.
_GONE_SECONDS = 1.0


@pytest.mark.parametrize("most", [1, 2])
def test_shards_take_turns(most: int, scenario: NewScenario) -> None:
    """Of three shards no more than so many copy at any moment; all arrive, whichever is slow."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=3)
    there = s.whole("source")
    assert isinstance(there, Cluster)
    s.load(keys=3000)
    for node in there.primaries:
        # Its fork waits for others, and takes its time: longer than `_GONE_SECONDS`.
        node.client().config_set("rdb-key-save-delay", 1500)
    copying: list[int] = []
    # The looks in a row that saw too many, by their times.
    too_many: list[float] = []

    def look() -> None:
        forks = [node.client().info("persistence") for node in there.primaries]
        found = sum(each["rdb_bgsave_in_progress"] for each in forks)
        copying.append(min(found, most))
        if found <= most:
            too_many.clear()
            return
        # A server sees the end of its fork some time after the engine has had all of it.
        too_many.append(time.monotonic())
        assert len(too_many) < 5 or too_many[-1] - too_many[0] < _GONE_SECONDS

    with s.running(parallel_snapshots=most, timeout=120.0) as run:
        run.wait_for(lambda: look() or run.progress.phase.value == "FOLLOW", "all are followed")
        for node in there.primaries:
            node.client().config_set("rdb-key-save-delay", 0)
        run.cut_over()
    assert run.report.status == "done", run.events
    assert max(copying) == most
    assert_settled(there, s.whole("target"), 5)


def test_fewer_than_none() -> None:
    with pytest.raises(UsageError, match="--parallel-snapshots"):
        TransferSettings(parallel_snapshots=-1)
