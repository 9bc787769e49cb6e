"""`--verify full`, on real servers: every key is compared while writes go on, and again what
changes; what was changed on the target behind the engine's back is found."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import UsageError
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.model.verification import Compared
from engine.verify import LiveComparison
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.replicas import in_step, make_replica, until_in_step
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known
from tests.support.standstill import Standstill
from tests.support.writers import Clicks, writing

KEYS = 3_000


class Sabotaged(LiveComparison):
    """Has something happen before every key is gone through, and before the look behind the fence:
    once each."""

    def __init__(
        self, source: Server, target: Server, acts: dict[str, Callable[[], object]]
    ) -> None:
        ends = (Endpoint.parse(each.url) for each in (source, target))
        super().__init__(*ends, TransferSettings(), lambda: False)
        self.acts = acts

    def apart(self) -> LiveComparison:
        return self

    async def _act(self, when: str) -> None:
        act = self.acts.pop(when, None)
        if act is not None:
            await asyncio.to_thread(act)

    async def every_key(self) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        await self._act("walk")
        async for page in super().every_key():
            yield page

    async def at_rest(self, db: int, keys: Sequence[bytes]) -> Compared:
        await self._act("fence")
        return await super().at_rest(db, keys)


class Apart(LiveComparison):
    """One whose full proof is done by another."""

    def __init__(self, source: Server, target: Server, proof: LiveComparison) -> None:
        ends = (Endpoint.parse(each.url) for each in (source, target))
        super().__init__(*ends, TransferSettings(), lambda: False)
        self._proof = proof

    def apart(self) -> LiveComparison:
        return self._proof


def filled(factory: ServerFactory, name: str, other: str = "") -> tuple[Server, Server]:
    source, target = factory(known(name)), factory(known(other or name))
    pipe = source.client().pipeline(transaction=False)
    for n in range(KEYS):
        pipe.hset(f"hash:{n}", mapping={"f": n, "g": "x"})
    pipe.execute()
    return source, target


def proving(source: Any, target: Server, **options: Any) -> Run:
    return migrating(source, target, verify="full", **options)


def assert_every_key(run: Run, target: Server) -> None:
    assert run.report.status == "done", (run.report.errors, run.events)
    found = run.report.verification
    keys = int(target.client().dbsize())
    assert found is not None
    assert found.full
    assert found.compared == keys
    assert f"{keys:,} of {keys:,} keys compared, none differs" in found.reason
    assert_tidy(target)


@pytest.mark.parametrize("ends", [("redis-7.0", "valkey-9"), ("redis-6.2", "redis-6.2")])
def test_every_key_is_compared_while_writes_go_on(
    ends: tuple[str, str], server_factory: ServerFactory
) -> None:
    source, target = filled(server_factory, *ends)
    with (
        Clicks(source) as clicks,
        writing(
            lambda client, n: client.hset(f"hash:{n % (2 * KEYS)}", f"new:{n}", n),
            server=source,
            until_refused=True,
        ),
        proving(source, target) as run,
    ):
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        assert run.progress.keys_to_prove is not None
        assert run.progress.keys_to_prove >= KEYS
        run.cut_over()
    assert_every_key(run, target)
    assert run.report.verification is not None
    assert run.report.verification.repaired == 0
    assert int(target.client().get("clicks")) == clicks.acknowledged


def test_one_field_of_one_key_is_found(server_factory: ServerFactory) -> None:
    """Changed on the target, before its comparison; behind it, and then named by the stream; and
    behind the fence."""
    source, target = filled(server_factory, "redis-7.0")

    def change(key: str) -> Callable[[], object]:
        return lambda: target.client().hset(key, "f", "changed")

    def name_at_fence() -> None:
        target.client().hset("hash:3", "f", "changed")

    proof = Sabotaged(source, target, {"walk": change("hash:1"), "fence": name_at_fence})
    with proving(source, target, comparison=Apart(source, target, proof)) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        assert target.client().hget("hash:1", "f") == b"1"
        change("hash:2")()
        source.client().hset("hash:2", "g", "y")
        run.wait_for(lambda: target.client().hget("hash:2", "f") == b"2", "it was read again")
        run.wait_for(lambda: run.progress.can_complete, "it was compared again")
        with writing(
            lambda client, n: client.hset("hash:3", "g", n), server=source, until_refused=True
        ):
            run.cut_over()
    assert_every_key(run, target)
    assert run.report.verification is not None
    # (A slow machine may leave nothing to be compared behind the fence.)
    assert run.report.verification.repaired == (2 if "fence" in proof.acts else 3)
    assert target.client().hgetall("hash:3")[b"f"] == b"3"
    for n in (1, 2):
        told = f"differed from the source, and were read again: database 0, key hash:{n}: value"
        assert any(told in each for each in run.events), run.events


def test_a_link_that_is_lost_and_a_flush(server_factory: ServerFactory) -> None:
    """What was proven is so behind a link that is made anew; FLUSHALL leaves nothing proven, which
    is said."""
    source, target = filled(server_factory, "valkey-9")
    with Proxy(source.host, source.port) as proxy:
        through = source.url.replace(str(source.port), str(proxy.port))
        with proving(through, target) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "every key was compared")
            proxy.cut_now()
            source.client().hset("hash:1", "g", "y")
            run.wait_for(lambda: run.progress.partial_syncs, "it was connected again")
            run.wait_for(lambda: run.progress.can_complete, "what changed was compared")
            assert not any("from the beginning" in each for each in run.events)
            source.client().flushall()
            source.client().set("left", "1")
            run.wait_for(
                lambda: any("any key: every key is compared" in each for each in run.events),
                "it begins anew",
            )
            run.wait_for(lambda: run.progress.can_complete, "every key was compared")
            # (That it begins anew is told before progress is.)
            run.cut_over(again="every key is being compared")
    assert_every_key(run, target)


def test_a_source_without_keys(server_factory: ServerFactory) -> None:
    """All of none were compared: nothing is waited for."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    with proving(source, target) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)


def test_databases_that_came_since(server_factory: ServerFactory) -> None:
    """A walk that is begun anew goes through those that the source has by then."""
    source, target = filled(server_factory, "redis-7.0")
    proof = Sabotaged(source, target, {})
    with proving(source, target, comparison=Apart(source, target, proof)) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        proof.acts["walk"] = lambda: target.client(db=3).set("new", "changed")
        with source.client().pipeline() as pipe:
            pipe.flushall()
            pipe.execute_command("SELECT", 3)
            pipe.set("new", "1")
            pipe.execute()
        run.wait_for(lambda: not proof.acts, "it begins anew")
        run.wait_for(lambda: target.client(db=3).get("new") == b"1", "it was read again")
        run.wait_for(
            lambda: any("every key was compared: 1 keys" in each for each in run.events), "its end"
        )
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    assert run.report.verification.full
    assert run.report.verification.repaired == 1


def test_a_rate(server_factory: ServerFactory) -> None:
    """It holds while no writer waits, and for nothing behind the fence."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    count, size, rate = 200, 10_000, 2_000_000
    # No server sends these shorter.
    source.client().mset({f"key:{n}": random.Random(n).randbytes(size) for n in range(count)})
    began = time.monotonic()
    with proving(source, target, verify_rate=rate) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        assert time.monotonic() - began > 0.8 * 2 * count * size / rate
        source.client().append("key:1", "x")
        with Standstill() as stood:
            run.cut_over()
    assert_every_key(run, target)
    assert run.report.fence_seconds is not None
    assert run.report.fence_seconds < 1.0 + stood.seconds
    with pytest.raises(UsageError, match="--verify-rate"):
        TransferSettings(verify_rate=-1)


@pytest.mark.parametrize("way", ["demoted", "gone"])
def test_a_failover_of_the_source(way: str, server_factory: ServerFactory) -> None:
    """The server that takes the writes is compared, wherever it is; from the beginning."""
    backlog = ("--repl-backlog-size", "16mb", "--repl-ping-replica-period", "1")
    binary = known("redis-7.0")
    source, promoted = (server_factory(binary, *backlog) for _ in range(2))
    target = server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(KEYS)})
    make_replica(promoted, source)
    with proving(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: in_step(promoted), "a replica in step")
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        # Nothing names it: the walk alone can find it.
        target.client().set("key:1", "changed")
        if way == "gone":
            source.kill()
        promoted.client().execute_command("REPLICAOF", "NO", "ONE")
        if way == "demoted":
            source.client().execute_command("REPLICAOF", promoted.host, promoted.port)
        promoted.client().set("key:2", "named")
        run.wait_for(lambda: target.client().get("key:2") == b"named", "it goes on", 40)
        run.wait_for(lambda: target.client().get("key:1") == b"1", "it was read again", 40)
        run.wait_for(lambda: run.progress.can_complete, "every key was compared", 40)
        run.cut_over(promoted)
    assert_every_key(run, target)
    assert any("taken its place: every key is compared" in each for each in run.events)
    assert run.report.full_syncs == 1


def test_the_primary_of_a_replica_is_compared(server_factory: ServerFactory) -> None:
    """What the replica has otherwise by itself is no difference."""
    binary = known("redis-7.0")
    head, source, target = (server_factory(binary) for _ in range(3))
    head.client().mset({f"key:{n}": n for n in range(KEYS)})
    make_replica(source, head)
    until_in_step(source)
    proof = Sabotaged(source, target, {"walk": lambda: spoil(source, "key:1")})
    with proving(source, target, comparison=Apart(source, target, proof)) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        target.client().set("key:2", "changed")
        head.client().append("key:2", "")
        head.client().append("key:2", "x")
        run.wait_for(lambda: target.client().get("key:2") == b"2x", "it was read again")
        run.cut_over(head)
    assert_every_key(run, target)
    assert run.report.verification is not None
    assert run.report.verification.repaired == 1
    assert target.client().get("key:1") == b"1"


def spoil(replica: Server, key: str) -> None:
    replica.client().config_set("replica-read-only", "no")
    replica.client().set(key, "the replica's own")


def test_values_that_cannot_be_compared(server_factory: ServerFactory) -> None:
    """They are counted and named, and keep the gate closed; a word leaves the comparison out."""
    source, target = filled(server_factory, "redis-8.0")
    vector = ("VADD", "vectors", "VALUES", 3)
    with proving(source, target) as run:
        run.following()
        for n in range(100):
            source.client().execute_command(*vector, n, 1, 0, f"v{n}")
        run.wait_for(lambda: "vectorset" in run.progress.reason, "the gate names the type")
        assert "vectors" in run.progress.reason
        assert "--skip-verification" in run.progress.reason
        assert not run.progress.can_complete
        source.client().delete("vectors")
        run.wait_for(lambda: run.progress.can_complete, "nothing is left of them")
        for n in range(100):
            source.client().execute_command(*vector, n, 1, 0, f"v{n}")
        run.wait_for(lambda: "vectorset" in run.progress.reason, "the gate names the type")
        run.complete(skip_verification=True)
        run.join()
    assert run.report.status == "done", (run.report.errors, run.events)


def test_a_killed_worker_and_a_cut_link_in_the_middle(scenario: NewScenario) -> None:
    """Writers write all the time; what was changed on the target before is found behind both."""
    s = scenario("redis-7.0", "valkey-8.1", proxies="source")
    s.load(keys=4 * KEYS)
    with s.counters(), s.worker(verify="full") as run:
        run.following()
        s.target.client().set("key:1", "changed")
        run.kill()
        s.target.client().set("key:2", "changed")
        run.resume()
        s.link("source").cut_now()
        wait_for(
            lambda: s.target.client().mget("key:1", "key:2") == [b"1", b"2"], "both were read again"
        )
        s.link("source").cut_now()
        run.cut_over()
        told = run.events
    assert any("keys compared, none differs" in each for each in told), told
    assert sum("to be compared while" in each for each in told) == 2, told
    s.assert_migrated()


def test_lanes_in_several_processes(scenario: NewScenario) -> None:
    """Each lane proves its own slots; the report has the sum."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, target_shards=2)
    s.load(keys=1001)
    with s.running(lanes_per_worker=1, verify="full", timeout=120.0) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    found = run.report.verification
    assert found is not None
    assert found.full
    assert found.compared == found.keys_source > 0
    assert f"{found.compared:,} of {found.compared:,} keys compared, none differs" in found.reason


def test_a_failover_of_a_shard(scenario: NewScenario) -> None:
    """Of a cluster: the lane whose primary is another one by now compares that one."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, replicas=1)
    s.load(keys=1001)
    cluster = s.clusters["source"]
    with s.running(verify="full", timeout=120.0) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        new = cluster.nodes[2]
        # (A replica that has just begun is loading its primary's data still.)
        key = run.wait_for(lambda: next(new.client().scan_iter(), None), "keys at the replica")
        # Nothing names it: the walk alone can find it.
        s.target.client().set(key, "changed")
        cluster.fail_over(new)
        run.wait_for(lambda: s.target.client().get(key) != b"changed", "it was read again")
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert any("taken its place: every key is compared" in each for each in run.events)
    assert run.report.verification is not None
    assert run.report.verification.full
    assert run.report.verification.compared == 1001
