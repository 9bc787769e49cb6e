"""Whole migrations between deployments of different shapes, with every command under way: one
server, a cluster of so many primaries, a primary that Sentinels watch. Compared key by key.
"""

from __future__ import annotations

from typing import Any

import pytest

from benches.support.sentinels import sentinels, url
from tests.support.carried import assert_carried
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Retrying, Traffic
from tests.support.traffic.writer import TAGS

RATE = 1500.0

# Source and target: the release, and how many primaries its cluster has (0: it is one server).
# Each release that clusters are tested with is a source once, and a target once.
SHAPES = [
    (("redis-6.2", 0), ("valkey-8.1", 3)),
    (("redis-7.0", 3), ("redis-8.0", 2)),
    (("valkey-8.1", 2), ("valkey-9.1", 5)),
    (("redis-6.2", 3), ("redis-7.0", 0)),
    (("redis-8.0", 3), ("redis-8.0", 3)),
    (("valkey-9.1", 3), ("valkey-9.1", 3)),
    (("redis-6.2", 3), ("redis-6.2", 3)),
]


def shape_id(shape: Any) -> str:
    name, shards = shape
    return f"{name}x{shards}" if shards else name


@pytest.mark.parametrize(("source", "target"), SHAPES, ids=shape_id)
def test_everything_is_carried_under_traffic(
    source: tuple[str, int], target: tuple[str, int], scenario: NewScenario
) -> None:
    """Every write command, keys of one slot and of several, and clients that go on at the target:
    none of their writes is lost or doubled."""
    s = scenario(
        source[0],
        target[0],
        source_shards=source[1],
        target_shards=target[1],
        # A source that refuses writes behind the cut-over has replicas, and goes on to.
        replicas=1 if (source, target) == SHAPES[-1] else 0,
    )
    there, here = s.whole("source"), s.whole("target")
    # Database 0 is the only one of a cluster.
    options: dict[str, Any] = {
        "databases": (0,),
        "tags": TAGS,
        "apart": 0.0 if source[1] else 0.3,
        "without": ("flushall", "flushdb", "move", "swapdb"),
    }
    s.load(keys=2000)
    Traffic(there, "before", **options, limit=2000).start().join()
    traffic = Traffic(there, "meanwhile", **options, rate=RATE)
    with s.clients(clients=4) as clients:
        with traffic, s.running(timeout=240.0) as run:
            run.following()
            before = traffic.commands
            run.wait_for(lambda: traffic.commands > before + 700, "traffic")
            clients.goes_on()
            traffic.stop()
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


@pytest.mark.parametrize("shards", [0, 3])
def test_a_flush_at_the_source(shards: int, scenario: NewScenario) -> None:
    """What FLUSHALL leaves nothing of at the source is gone from the target: of a cluster's shard
    its own keys alone."""
    s = scenario("redis-7.0", "valkey-9.1", source_shards=shards, target_shards=3)
    s.load(keys=3000)
    with s.clients(clients=3) as clients, s.running() as run:
        run.following()
        clients.stop()
        s.source.client().flushall()
        clients_after = Retrying(s.whole("source"), clients=2).start()
        clients_after.goes_on()
        clients_after.stop()
        s.source.client().flushall()
        run.cut_over()
    left = assert_settled(s.whole("source"), s.whole("target"), 5).keys.keys
    assert (1500 < left < 2500) if shards else left == 0
    assert_tidy(s.whole("target"))


@pytest.mark.parametrize(
    ("back", "name"), [(False, "redis-7.0"), (True, "redis-7.0"), (False, "redis-6.0")]
)
def test_sentinels(back: bool, name: str, server_factory: ServerFactory) -> None:
    """From the primary that they watch to a server, and back."""
    binary = known(name)
    primary, replica, single = (server_factory(binary) for _ in range(3))
    replica.client().execute_command("REPLICAOF", primary.host, primary.port)
    with sentinels(binary, primary) as group:
        ends = [single, url(group)] if back else [url(group), single]
        source, target = (single, primary) if back else (primary, single)
        # What would take the clients' keys along is left out.
        without = ("flushall", "flushdb", "swapdb")
        traffic = Traffic(ends[0], "meanwhile", rate=RATE, without=without)
        with Retrying(ends[0], clients=2) as clients:
            with traffic, migrating(*ends) as run:
                run.following()
                before = traffic.commands
                run.wait_for(lambda: traffic.commands > before + 700, "traffic")
                traffic.stop()
                clients.goes_on()
                run.cut_over(source)
            assert run.report.status == "done", (run.report.errors, run.events)
            assert_settled(source, target, 5)
            clients.move_to(ends[1])
            clients.goes_on()
            clients.stop()
            assert clients.check(target) == [], clients.describe()
    assert_tidy(target)
