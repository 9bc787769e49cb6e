"""`verify` while servers are restarted, fail over, load their data and move slots: what comes of it
is what is so at the end, or that it could not be told; no difference is invented."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from benches.support.clusters import Cluster, slot_of
from benches.support.proxy import Proxy
from benches.support.waiting import wait_for
from engine import Engine
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofProgress, ProofReport, ProofSettings
from engine.proof import run, second_looks
from engine.proof.key_walks import KeyWalks
from tests.integration.test_sentinel import watched
from tests.integration.test_verify_verb import SOAK, fill, verify
from tests.support.servers import End, ServerFactory, known, url_of

KEYS = 6_000
WRONG = "string:0"
HIDDEN = (b"run_id:", b"uptime_in_seconds:", b"master_replid:")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other soon."""
    monkeypatch.setattr(second_looks, "PAUSES", (0.02, 0.02, 0.02, 0.2, 2.0, 3.0))


def verify_while(
    source: End, target: End, *acts: tuple[int, Callable[[], Any]], **settings: Any
) -> ProofReport:
    """With each of `acts` done once the walks have named so many keys."""
    left = list(acts)

    def told(progress: ProofProgress) -> None:
        while left and progress.keys >= left[0][0]:
            left.pop(0)[1]()

    ends = (Endpoint.parse(url_of(each)) for each in (source, target))
    found = Engine().sync.verify(*ends, settings=ProofSettings(**settings), on_progress=told)
    assert not left
    return found


def assert_told(found: ProofReport) -> None:
    """That one key is wrong, and nothing else."""
    assert [each.key for each in found.differences] == [WRONG], found.reasons
    assert (found.outcome, found.compared, found.unknown) == ("different", KEYS, 0)


@pytest.mark.parametrize("hidden", [HIDDEN[:1], HIDDEN[:2], HIDDEN])
def test_a_server_that_hides_its_run_id(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, hidden: tuple[bytes, ...]
) -> None:
    """When it has started tells its processes apart, and the id of its history, for that may be
    within one second; else that is what could not be told."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    values = {f"key:{n}": n for n in range(100)}
    for server in (here, there):
        for db in (0, 1):
            server.client(db).mset(values)
    over, left = KeyWalks.over, [1]

    async def restarts(walks: KeyWalks, db: int) -> None:
        await over(walks, db)
        if left and db == 0:
            left.pop()
            there.restart()
            there.client(1).mset(values)

    with Proxy(there.host, there.port) as line:
        line.veil(*hidden)
        far = f"redis://{line.host}:{line.port}"
        calm = verify(here, far)
        assert (calm.compared, calm.different) == (200, 0)
        assert calm.outcome == ("unknown" if hidden == HIDDEN else "equal"), calm.reasons
        assert [run._HIDDEN in each for each in calm.reasons] == [True] * (hidden == HIDDEN)
        monkeypatch.setattr(KeyWalks, "over", restarts)
        found = verify(here, far)
    assert not left
    if hidden == HIDDEN:
        assert found.outcome == "unknown"
    else:
        assert (found.outcome, found.different) == ("different", 100)


def test_a_primary_that_is_a_replica_meanwhile(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the process that it was, and has nothing any more of what was compared."""
    here, there, empty = (server_factory(known("redis-7.0")) for _ in range(3))
    for server in (here, there):
        server.client().mset({f"key:{n}": n for n in range(100)})
    over, left = KeyWalks.over, [1]

    async def resyncs(walks: KeyWalks, db: int) -> None:
        await over(walks, db)
        if left:
            left.pop()
            client = there.client()
            client.replicaof(empty.host, empty.port)
            wait_for(lambda: client.info("replication")["master_link_status"] == "up", "a replica")
            client.replicaof("NO", "ONE")

    monkeypatch.setattr(KeyWalks, "over", resyncs)
    found = verify(here, there)
    assert (found.outcome, found.different) == ("different", 100)


def test_one_server_whose_run_id_is_hidden(server_factory: ServerFactory) -> None:
    here = server_factory(known("redis-7.0"))
    here.client().set("key", "x")
    with Proxy(here.host, here.port) as line:
        line.veil(b"run_id:")
        far = f"redis://{line.host}:{line.port}"
        found = verify(far, far)
    assert (found.outcome, found.different) == ("unknown", 0)


def test_a_source_that_loads_its_data(server_factory: ServerFactory) -> None:
    """Databases that it has not come to yet are compared as well."""
    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    here, there = server_factory(known("redis-7.0"), *slow), server_factory(known("redis-7.0"))
    values = {f"key:{n}": random.Random(n).randbytes(100) for n in range(1_000)}
    for server in (here, there):
        server.client().mset(values)
    here.client(5).set("missing", "x")
    here.client().save()
    here.restart(loaded=False)
    assert here.client().info("persistence")["loading"]
    found = verify(here, there)
    assert (found.outcome, found.compared) == ("different", 1_001)
    assert [(each.db, each.key) for each in found.differences] == [(5, "missing")]


@pytest.mark.parametrize("side", ["source", "target"] if SOAK else ["target"])
def test_sentinels_fail_over(side: str, server_factory: ServerFactory) -> None:
    single = server_factory(known("redis-7.0"))
    with watched("redis-7.0", server_factory) as deployment:
        for server in (single, deployment.primary):
            fill(server.client(), KEYS, 0)
        deployment.primary.client().set(WRONG, "~")
        assert deployment.primary.client().wait(1, 10_000) == 1
        ends = (deployment.url, single) if side == "source" else (single, deployment.url)
        found = verify_while(*ends, (KEYS, deployment.primary.kill))
    assert_told(found)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three shards with a replica each, and what is in `alone` but for one key."""
    with Cluster.start(known("redis-7.0"), primaries=3, replicas=1) as found:
        with found.client() as client:
            fill(client, KEYS, 0)
        yield found


@pytest.mark.parametrize(
    ("side", "way"),
    [("source", "killed"), ("target", "asked")]
    + [("source", "asked"), ("target", "killed")] * SOAK,
)
def test_a_shard_fails_over(
    side: str, way: str, cluster: Cluster, server_factory: ServerFactory
) -> None:
    """The primary before it may live on, and give names of keys for which it answers MOVED."""
    alone = server_factory(known("valkey-9"))
    fill(alone.client(), KEYS, 1)
    alone.client().set(WRONG, "~")
    cluster.wait_until_whole()
    primary = cluster.owner(slot_of(WRONG))
    assert primary.client().wait(1, 10_000) == 1
    (replica,) = cluster.replicas_of(primary)

    def trouble() -> None:
        if way == "asked":
            cluster.fail_over(replica)
        else:
            primary.kill()

    ends = (cluster, alone) if side == "source" else (alone, cluster)
    found = verify_while(*ends, (KEYS, trouble))
    assert_told(found)
    if way == "killed":
        primary.restart()
        cluster.wait_until_whole()


@pytest.mark.parametrize("back", [False, True])
def test_slots_that_move_meanwhile(back: bool, server_factory: ServerFactory) -> None:
    """A key that goes from a node before its page to one that has no more pages, and comes back, is
    looked at by neither."""
    alone = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2) as cluster:
        here, there = cluster.primaries
        mine = set(cluster.slots_of(here))
        names = [name for n in range(3 * KEYS) if slot_of(name := f"key:{n}") in mine][:KEYS]
        pipe = here.client().pipeline(transaction=False)
        for name in names:
            pipe.set(name, "x")
        pipe.execute()
        alone.client().mset(dict.fromkeys(names, "x"))
        assert verify(cluster, alone).outcome == "equal"
        client: redis.Redis = here.client()
        order = [name.decode() for name in client.scan_iter(count=1_000)]
        key = order[KEYS * 6 // 10]
        alone.client().set(key, "~")
        acts = [(1_000, lambda: cluster.move([slot_of(key)], there))]
        if back:
            acts.append((2 * KEYS - 1_000, lambda: cluster.move([slot_of(key)], here)))
        found = verify_while(cluster, alone, *acts)
    assert run._MOVED in found.reasons
    assert found.outcome in ("unknown", "different")
    assert {each.key for each in found.differences} <= {key}
