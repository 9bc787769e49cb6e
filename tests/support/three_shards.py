"""Three shards into three, for tests of lanes that go on in several processes."""

from __future__ import annotations

from typing import Any

from benches.support.clusters import Cluster
from tests.support.scenario import NewScenario, Scenario
from tests.support.traffic.writer import TAGS

TRAFFIC: dict[str, Any] = {
    "databases": (0,),
    "tags": TAGS,
    "without": ("flushall", "flushdb", "move", "swapdb"),
}
"""What `Traffic` takes for every write command, with keys of one slot and of several."""


def three_shards(
    scenario: NewScenario, *, keys: int, replicas: int = 0
) -> tuple[Scenario, Cluster, Cluster]:
    """It, its source with so many keys, and its target; each primary with so many `replicas`."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=3, target_shards=3, replicas=replicas)
    s.load(keys=keys)
    return s, s.clusters["source"], s.clusters["target"]
