"""`verify` where an end is a cluster, or is found by Sentinels."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import redis

from benches.support.clusters import Cluster
from benches.support.sentinels import sentinels
from benches.support.servers import Server
from engine.proof import second_looks
from tests.integration.test_verify_verb import fill, verify
from tests.support.library import migrating
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known

KEYS = 700


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.start(known("redis-7.0"), primaries=3) as found:
        fill(of(found), KEYS, 0)
        yield found


def of(cluster: Cluster) -> redis.Redis:
    """A client of the whole cluster."""
    return redis.RedisCluster.from_url(cluster.url)  # type: ignore[return-value]


def test_a_cluster_and_a_server(cluster: Cluster, server_factory: ServerFactory) -> None:
    alone = server_factory(known("valkey-9"))
    fill(alone.client(), KEYS, 1)
    there = verify(cluster, alone)
    assert (there.outcome, there.compared) == ("equal", KEYS)
    assert sum(each.keys for each in there.source) == KEYS
    assert len(there.source) == 3
    back = verify(alone, cluster)
    assert (back.outcome, back.compared) == ("equal", KEYS)
    # One of each kind, wherever its slot is.
    client = alone.client()
    for n in range(5):
        client.set(f"string:{7 * n}", "~", keepttl=True)
        client.delete(f"list:{7 * n + 1}")
        client.set(f"new:{n}", "x")
    found = verify(cluster, alone)
    assert found.kinds == {"value": 5, "missing": 5, "extra": 5}
    turned = verify(alone, cluster)
    assert turned.kinds == {"value": 5, "missing": 5, "extra": 5}
    repaired = verify(cluster, alone, repair=True)
    assert (repaired.repaired, repaired.outcome) == (15, "equal")


def test_two_clusters(cluster: Cluster) -> None:
    with Cluster.start(known("valkey-9"), primaries=2) as other:
        fill(of(other), KEYS, 2)
        assert verify(cluster, other).outcome == "equal"
        dice = random.Random(3)
        wrong = dice.sample(range(0, KEYS, 7), 20)
        for n in wrong:
            of(other).append(f"string:{n}", "~")
        found = verify(cluster, other)
        assert {each.key for each in found.differences} == {f"string:{n}" for n in wrong}
        assert verify(cluster, other, repair=True).outcome == "equal"


def test_what_sentinels_watch(server_factory: ServerFactory) -> None:
    binary = known("redis-7.0")
    here, there = server_factory(binary), server_factory(binary)
    for server in (here, there):
        fill(server.client(), KEYS, 0)
    with sentinels(binary, here) as watching:
        nodes = ",".join(f"{each.host}:{each.port}" for each in watching)
        found = verify(f"redis+sentinel://{nodes}/main", there)
    assert (found.outcome, found.compared) == ("equal", KEYS)
    assert found.source[0].address == f"{here.host}:{here.port}"


def test_while_a_migration_follows(server_factory: ServerFactory) -> None:
    """Near TTLs are extended on the target, and the engine has keys of its own there."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("valkey-9"))
    fill(here.client(), KEYS, 0)
    here.client().set("near", "x", ex=300)

    def written(server: Server, name: str) -> None:
        server.client().set(name, "x")

    with migrating(here, there) as run:
        run.following()
        run.in_sync()
        written(here, "late")
        found = verify(here, there)
        assert (found.outcome, found.compared) == ("equal", KEYS + 2)
        assert any("of the engine's own" in each for each in found.left_out)
        with pytest.raises(Exception, match="a migration has the target"):
            verify(here, there, repair=True)
        written(there, "wrong")
        assert [each.key for each in verify(here, there).differences] == ["wrong"]
        there.client().delete("wrong")
        run.cut_over()


def test_while_a_migration_of_clusters_follows(scenario: NewScenario) -> None:
    """Each lane is awaited: what is on its way is no difference, and what is wrong there is one."""
    s = scenario("redis-7.0", "valkey-9.1", source_shards=2, target_shards=2)
    here, there = s.whole("source"), s.whole("target")
    assert isinstance(here, Cluster)
    assert isinstance(there, Cluster)
    fill(of(here), KEYS, 0)
    with s.clients(clients=2) as clients, s.running() as run:
        run.following()
        clients.goes_on()
        of(there).set("wrong", "x")
        found = verify(here, there)
        assert [each.key for each in found.differences] == ["wrong"]
        assert set(found.reasons) <= {second_looks.RESTLESS}
        of(there).delete("wrong")
        run.cut_over()
    assert run.report.status == "done"
