"""`--parallel-snapshots`: how many shards of the source fork for their snapshots at once."""

from __future__ import annotations

import pytest

from benches.support.clusters import Cluster
from engine.errors import UsageError
from engine.model.settings import TransferSettings
from tests.support.comparison import assert_settled
from tests.support.scenario import NewScenario


@pytest.mark.parametrize("most", [1, 2])
def test_shards_take_turns(most: int, scenario: NewScenario) -> None:
    """Of three shards no more than so many copy at any moment; all arrive, whichever is slow."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=3)
    there = s.whole("source")
    assert isinstance(there, Cluster)
    s.load(keys=3000)
    for node in there.primaries:
        # Its fork waits for others, and its values come one by one.
        node.client().config_set("rdb-key-save-delay", 200)
    copying: list[int] = []

    def look() -> None:
        forks = [node.client().info("persistence") for node in there.primaries]
        copying.append(sum(each["rdb_bgsave_in_progress"] for each in forks))

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
