"""A cluster's node gets a stream in the record form alone, while everything fails.

Commands that no second run leaves as it was, within a slot and across slots, transactions, scripts,
a flush now and then. Links are cut at seeded bytes, the target refuses writes for a while or is
killed and restarted, the engine is ended, with its links cut before so that it can tidy nothing up,
and another one goes on. Then both ends are compared key by key, and each acknowledged count.

ENGINE_SEED gives other moments.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benches.support.clusters import Cluster
from benches.support.compare import assert_equal
from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import EngineError, StateError
from engine.model.checkpoint import Checkpoint
from engine.model.lane_route import Route
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled
from tests.support.lanes import Lanes, Way, shard_of, ways_into
from tests.support.own_keys import OWN_PREFIX
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters, Retrying, Traffic
from tests.support.traffic.link import Link
from tests.support.traffic.thread import WritingThread

SEED = os.environ.get("ENGINE_SEED", "12")
SOAK = bool(os.environ.get("ENGINE_SOAK"))
TROUBLES = 40 if SOAK else 8
BACKLOG = ("--repl-backlog-size", "64mb")
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")
OWN = "own"


class Mixed(WritingThread):
    """A portion of commands each 10 ms over a few hundred keys, some in one slot, some not."""

    def __init__(
        self,
        server: Server,
        seed: str,
        *,
        flushes: float = 0.0,
        databases: Sequence[int] = (0,),
    ) -> None:
        super().__init__(server, "mixed commands")
        self.rng = random.Random(seed)
        self.flushes = flushes
        self.databases = databases

    def _run(self) -> None:
        link = Link(self._address)
        while not self._stopping.wait(0.01):
            words: list[tuple[bytes, ...]] = [(b"SELECT", b"%d" % self.rng.choice(self.databases))]
            for _ in range(self.rng.randrange(1, 20)):
                words += self._words()
            if self.rng.random() < self.flushes:
                words.append((b"FLUSHDB",))
            for each in words:
                link.queue(each[0].decode().lower(), each)
            link.flush()
            list(link.replies(0))
        link.close()

    def _disconnect(self) -> None:
        """The link ends with the thread."""

    def _words(self) -> Sequence[tuple[bytes, ...]]:
        rng = self.rng
        n, m = (b"%d" % rng.randrange(60) for _ in range(2))
        return rng.choice(
            [
                [(b"INCR", b"n:" + n)],
                [(b"APPEND", b"{t}text:" + n, b"x")],
                [(b"LPUSH", b"list:" + n, b"%d" % rng.randrange(1000))],
                [(b"RPOPLPUSH", b"{l}a:" + n, b"{l}b:" + m), (b"LPUSH", b"{l}a:" + n, m)],
                [(b"SADD", b"{s}set:" + n, b"%d" % rng.randrange(50))],
                [(b"SUNIONSTORE", b"{s}union:" + n, b"{s}set:" + n, b"{s}set:" + m)],
                [(b"RENAMENX", b"{t}text:" + n, b"{t}text:" + m)],
                [(b"HINCRBY", b"hash:" + n, b"%d" % rng.randrange(9), b"1")],
                [(b"SET", b"value:" + n, b"v" * rng.randrange(300), b"EX", b"5000")],
                # Across slots.
                [(b"DEL", b"list:" + n, b"n:" + m)],
                [(b"MSET", b"m:" + n, b"1", b"m:" + m, b"2")],
                [(b"SADD", b"far:" + n, m), (b"SUNIONSTORE", b"far:u", b"far:" + n, b"far:" + m)],
                [(b"MULTI",), (b"INCR", b"in:" + n), (b"INCR", b"n:" + n), (b"EXEC",)],
                [(b"EVAL", b"return redis.call('INCR', KEYS[1])", b"1", b"n:" + n)],
            ]
        )


class Trial:
    """One source, one node behind a proxy, and engines one after the other."""

    def __init__(self, source: Server, node: Server, seed: str) -> None:
        self.source, self.node = source, node
        self.rng = random.Random(seed)
        self.store = MemoryCheckpoint()
        self.events: list[str] = []
        self.up = Proxy(source.host, source.port).start()
        self.between = Proxy(node.host, node.port).start()

    def engine(self) -> Lanes:
        """The next one."""
        route = Route(to_cluster=True, tag=OWN)
        way = Way(self.up, self.between, route, self.source)
        return Lanes([way], [self.store], retry_for=60.0, timeout=250.0)

    def trouble(self, run: Lanes, kind: str) -> None:
        """One, and what it takes to be over."""
        connections, rng = self.between.connections, self.rng
        if kind == "cut":
            self.between.cut_now()
        elif kind in ("up", "down"):
            self.between.cut_after(rng.randrange(rng.choice([200, 20_000])), kind)  # type: ignore[arg-type]
        elif kind == "source":
            self.up.cut_now()
            return
        elif kind == "refuses":
            client = self.node.client()
            client.config_set("maxmemory", 1)
            time.sleep(rng.random() * 0.2)
            client.config_set("maxmemory", 0)
            return
        else:
            self.node.kill()
            self.node.restart()
        run.wait_for(lambda: self.between.connections > connections, "a new link")

    def killed(self, run: Lanes) -> None:
        """The engine is gone, and could take nothing back."""
        for proxy in (self.between, self.up):
            proxy.refuse()
            proxy.cut_now()
        run.stop()
        for proxy in (self.between, self.up):
            proxy.refuse(False)

    def close(self) -> None:
        """End the proxies."""
        self.up.stop()
        self.between.stop()


KINDS = ["cut", "up", "down", "refuses", "restart", "source"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("names", [("redis-7.0", "redis-7.0"), ("valkey-8", "valkey-9")])
def test_through_every_trouble(
    server_factory: ServerFactory, names: tuple[str, str], far: bool
) -> None:
    """Nothing is lost or doubled, and one full sync is enough. Valkey 9 has several databases."""
    seed = f"{SEED} {names} {far}"
    several = names[1] == "valkey-9"
    databases = (0, 0, 5, 11) if several else (0,)
    options = (*APPEND_ONLY, *(("--cluster-databases", "12") if several else ()))
    source = server_factory(known(names[0]), *BACKLOG)
    with Cluster.start(known(names[1]), *options, primaries=1, make=server_factory) as cluster:
        (node,) = cluster.nodes
        trial = Trial(source, node, seed)
        try:
            with (
                Counters(source, db=databases[-1]) as counters,
                Mixed(source, seed, databases=databases) as traffic,
            ):
                for turn in range(3):
                    with trial.engine() as run:
                        run.following()
                        if far:
                            trial.between.delay(0.02)
                            trial.between.cut_now()
                        kinds = KINDS if not turn else trial.rng.choices(KINDS, k=TROUBLES // 4)
                        for kind in kinds:
                            time.sleep(0.1 + trial.rng.random() * 0.2)
                            trial.trouble(run, kind)
                        time.sleep(trial.rng.random() * 0.3)
                        if turn < 2:
                            trial.killed(run)
                        else:
                            traffic.stop()
                            counters.stop()
                            trial.between.delay(0.0)
                            run.cut_over()
                    trial.events += [f"engine {turn}:", *run.events]
                    assert run.error is None, trial.events
            assert_equal(source.url, node.url)
            # What the source has, the node has, and the source has each acknowledged write once.
            assert not counters.check(source)
            assert not [key for key in node.client().scan_iter() if key.startswith(OWN_PREFIX)]
            assert source.client().info("stats")["sync_full"] == 1, trial.events
        finally:
            trial.close()


@pytest.mark.timeout(300)
def test_flushes_between_troubles(server_factory: ServerFactory) -> None:
    """A source that is emptied again and again, and engines that are killed meanwhile."""
    source = server_factory(known("redis-7.0"), *BACKLOG)
    with Cluster.start(known("redis-7.0"), primaries=1, make=server_factory) as cluster:
        (node,) = cluster.nodes
        trial = Trial(source, node, SEED)
        try:
            with Mixed(source, SEED, flushes=0.05) as traffic:
                for turn in range(4):
                    with trial.engine() as run:
                        run.following()
                        time.sleep(0.2 + trial.rng.random() * 0.4)
                        if turn % 2:
                            trial.trouble(run, "down")
                        if turn < 3:
                            trial.killed(run)
                        else:
                            traffic.stop()
                            run.cut_over()
                    assert run.error is None, run.events
            assert_equal(source.url, node.url)
        finally:
            trial.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["redis-7.0", "valkey-9"])
def test_a_shard_that_fails_over(server_factory: ServerFactory, name: str) -> None:
    """The node's replica takes over, as asked and because the node is dead, with what it had by
    then: what it did not have comes from the source again."""
    source = server_factory(known("redis-7.0"), *BACKLOG)
    rng = random.Random(f"{SEED} {name}")
    with Cluster.start(known(name), primaries=1, replicas=1, make=server_factory) as cluster:
        shard = shard_of(cluster, cluster.nodes[0])
        route = Route(to_cluster=True, tag=OWN)
        with (
            Counters(source, db=0) as counters,
            Mixed(source, f"{SEED} {name}") as traffic,
            Lanes([Way(source, shard, route, source)], retry_for=60.0, timeout=250.0) as run,
        ):
            for turn in range(12 if SOAK else 4):
                run.following()
                time.sleep(rng.random() * 0.5)
                old = cluster.owner(0)
                (replica,) = cluster.replicas_of(old)
                if turn % 2:
                    old.kill()
                    cluster.fail_over(replica, "TAKEOVER")
                    old.restart()
                else:
                    cluster.fail_over(replica, "TAKEOVER" if turn else "")
                cluster.wait_until_whole()
            traffic.stop()
            counters.stop()
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, cluster.owner(0).url)
        assert not counters.check(source)
        assert source.client().info("stats")["sync_full"] == 1, run.events


@pytest.mark.timeout(400)
@pytest.mark.parametrize("names", [("redis-7.0", "redis-7.0"), ("valkey-8", "valkey-9")])
def test_three_shards(server_factory: ServerFactory, names: tuple[str, str]) -> None:
    """Three lanes from one server: shards fail over, nodes die with what their replicas did not
    have yet, links are cut, and engines follow one another."""
    seed = f"{SEED} three {names}"
    source = server_factory(known(names[0]), *BACKLOG)
    rng = random.Random(seed)
    up = Proxy(source.host, source.port).start()
    with Cluster.start(known(names[1]), primaries=3, replicas=1, make=server_factory) as cluster:
        ways = [replace(way, source=up) for way in ways_into(source, cluster, by_shard=True)]
        stores = [MemoryCheckpoint() for _ in ways]
        try:
            with Counters(source, db=0) as counters, Mixed(source, seed) as traffic:
                for turn in range(3):
                    with Lanes(ways, stores, retry_for=60.0, timeout=250.0) as run:
                        run.following()
                        for _ in range(8 if SOAK else 2):
                            time.sleep(rng.random() * 0.4)
                            _shard_trouble(cluster, rng)
                            if rng.random() < 0.3:
                                up.cut_now()
                        run.following()
                        time.sleep(rng.random() * 0.3)
                        if turn < 2:
                            up.refuse()
                            up.cut_now()
                            run.stop()
                            up.refuse(False)
                        else:
                            traffic.stop()
                            counters.stop()
                            run.cut_over()
                    assert run.error is None, run.events
            assert_equal(source.url, cluster.url)
            assert not counters.check(source)
        finally:
            up.stop()


def _shard_trouble(cluster: Cluster, rng: random.Random) -> None:
    """The replica of a shard takes over, from a primary that is dead or does not know of it yet."""
    old = rng.choice(cluster.primaries)
    (replica,) = cluster.replicas_of(old)
    dies = rng.random() < 0.5
    if dies:
        old.kill()
    cluster.fail_over(replica, "TAKEOVER")
    if dies:
        old.restart()
    cluster.wait_until_whole()


class Replaced(MemoryCheckpoint):
    """An engine's way to a state that has the migration as another's by now, once `by` was
    called."""

    def __init__(self) -> None:
        super().__init__()
        self.over = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Refused, as by a state that several engines share."""
        if self.over:
            raise StateError("another engine has the migration")
        super().save(checkpoint)

    def by(self) -> MemoryCheckpoint:
        """What the next engine finds."""
        self.over, store = True, MemoryCheckpoint()
        found = self.load()
        assert found is not None
        store.save(found)
        return store


@pytest.mark.timeout(300)
def test_what_a_replaced_engine_has_under_way(server_factory: ServerFactory) -> None:
    """It is asleep, and its commands are on their way to the node: they arrive when the next engine
    has the node, or never, and nothing is doubled."""
    source = server_factory(known("redis-7.0"), *BACKLOG)
    route = Route(to_cluster=True, tag=OWN)
    with (
        Cluster.start(known("redis-7.0"), primaries=1, make=server_factory) as cluster,
        Proxy(cluster.nodes[0].host, cluster.nodes[0].port) as between,
    ):
        (node,) = cluster.nodes
        with Counters(source, db=0) as counters, Mixed(source, f"{SEED} asleep") as traffic:
            stores: list[MemoryCheckpoint] = [Replaced()]
            for turn in range(3):
                store = stores[-1]
                assert isinstance(store, Replaced)
                sleeper = Lanes([Way(source, between, route, source)], [store], timeout=250.0)
                with sleeper:
                    sleeper.following()
                    time.sleep(0.2 + turn * 0.1)
                    between.stall()
                    time.sleep(0.1)
                    after = store.by()
                    with Lanes([Way(source, node, route, source)], [after]) as run:
                        run.following()
                        between.stall(False)
                        wait_for(lambda: sleeper.error is not None, "the end of it")  # noqa: B023
                        run.in_sync()
                        run.stop()
                assert isinstance(sleeper.error, EngineError), sleeper.events
                found = after.load()
                assert found is not None
                stores.append(Replaced())
                stores[-1].save(found)
            traffic.stop()
            counters.stop()
        with Lanes([Way(source, node, route, source)], [stores[-1]]) as run:
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, node.url)
        assert not counters.check(source)
        assert source.client().info("stats")["sync_full"] == 1


@pytest.mark.timeout(300)
def test_workers_killed_in_the_middle(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """What a dead worker has begun on any of three nodes the next one reads again."""
    source = server_factory(known("redis-7.0"), *BACKLOG)
    with Cluster.start(known("redis-7.0"), primaries=3, make=server_factory) as cluster:
        migration = Migration(Cli(state_url, tmp_path), f"{SEED} cluster")
        begun = 0
        try:
            migration.register(cluster.nodes[0])
            migration.start(source, "--source-type", "replica")
            with Counters(source, db=0) as counters, Mixed(source, f"{SEED} kills") as traffic:
                for turn in range(12 if SOAK else 4):
                    migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
                    wait_for(lambda: _begun(cluster) == 3, "something begun on each node")
                    migration.kill(within=0.3)
                    begun += _begun(cluster)
                    migration.resume(verb=turn % 2 == 0)
                traffic.stop()
                counters.stop()
            migration.wait_for(lambda found: found["LagBytes"] == 0 and found["CanComplete"])
            migration.complete()
            assert_equal(source.url, cluster.url)
            assert not counters.check(source)
            assert begun > 6, "few were killed with something begun"
            assert source.client().info("stats")["sync_full"] == 3, migration.story()
        finally:
            migration.close()


@pytest.mark.timeout(400)
def test_workers_killed_between_clusters(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """Three shards into two, so that a node gets keys of several: every kind of command, workers
    that die, and clients that go on at the target."""
    binary = known("redis-7.0")
    with (
        Cluster.start(binary, *BACKLOG, primaries=3, make=server_factory) as source,
        Cluster.start(binary, primaries=2, make=server_factory) as target,
    ):
        migration = Migration(Cli(state_url, tmp_path), f"{SEED} clusters")
        traffic = Traffic(source, f"{SEED} clusters", rate=1000.0, without=("flushall", "flushdb"))
        try:
            migration.register(target.nodes[0])
            migration.start(source.nodes[0], "--source-type", "replica")
            with Retrying(source, clients=4) as clients:
                with traffic:
                    for turn in range(12 if SOAK else 3):
                        migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
                        clients.goes_on()
                        migration.kill(within=0.3)
                        migration.resume(verb=turn % 2 == 0)
                    migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
                    traffic.stop()
                migration.wait_for(lambda found: found["CanComplete"])
                migration.complete()
                assert_settled(source, target, 5)
                clients.move_to(target)
                clients.goes_on()
                clients.stop()
                assert clients.check(target) == [], clients.describe()
        finally:
            migration.close()


def _begun(cluster: Cluster) -> int:
    """On how many nodes commands may have been begun behind the position."""
    found = 0
    for node in cluster.nodes:
        for key in node.client().scan_iter(OWN_PREFIX + b"*", count=1000):
            found += node.client().type(key) == b"string" and b" begun " in node.client().get(key)
    return found
