"""`--read-from replica`: a healthy replica sends the snapshot and the stream, the cut-over is at
the primary, and what becomes of the replica costs nothing but a partial sync."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.sentinels import sentinels, url
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import UsageError
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.preflight import preflight
from engine.wire import source_replica
from engine.wire.control_connection import admin
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.replicas import make_replica, until_in_step
from tests.support.servers import End, ServerFactory, known, url_of, write_block_of
from tests.support.traffic import Retrying, Traffic
from tests.support.traffic.writer import TAGS
from tests.support.writers import Clicks

BACKLOG = ("--repl-backlog-size", "16mb", "--repl-ping-replica-period", "1")
NAMES = ("redis-7.0", "valkey-9.1")


@contextmanager
def replicated(
    name: str, make: ServerFactory, replicas: int = 2
) -> Iterator[tuple[Server, list[Server]]]:
    """A primary with keys, and its replicas, which are in step."""
    primary, *others = (make(known(name), *BACKLOG) for _ in range(1 + replicas))
    primary.client().mset({f"key:{n}": n for n in range(500)})
    for each in others:
        make_replica(each, primary)
    until_in_step(*others)
    yield primary, others


def read(run: Run, servers: list[Server]) -> Server:
    """That of the servers which is read by the last word of it, once it is told."""

    def named() -> Server | None:
        told = [event for event in run.events if "the source is read from" in event]
        where = (
            [each for each in servers if f":{each.port}" in told[-1].split(",")[0]] if told else []
        )
        return where[0] if where else None

    return run.wait_for(named, "which server is read")


def full_syncs(server: Server) -> int:
    return int(server.client().info("stats")["sync_full"])


def attached(server: Server) -> int:
    return int(server.client().info("replication")["connected_slaves"])


def cut_over(run: Run) -> None:
    """The word, as soon as the gate is open."""
    run.wait_for(lambda: run.progress.can_complete, "an open gate")
    run.complete()
    run.join()
    assert run.report.status == "done", (run.report.errors, run.events)


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_that_dies(name: str, server_factory: ServerFactory) -> None:
    """The primary sends nothing; another replica goes on where the first one stopped, and fence and
    write block are the primary's."""
    target = server_factory(known(name))
    with replicated(name, server_factory) as (primary, replicas):
        before = full_syncs(primary)
        run = migrating(primary, target, read_from="replica", timeout=90)
        with Clicks(primary) as clicks, run:
            run.following()
            first = read(run, replicas)
            assert attached(primary) == 2
            assert attached(first) == 1
            first.kill()
            second = next(each for each in replicas if each is not first)
            run.wait_for(lambda: read(run, replicas) is second, "the other replica")
            reached = clicks.acknowledged
            run.wait_for(
                lambda: int(target.client().get("clicks") or 0) > reached, "what came since"
            )
            cut_over(run)
        assert full_syncs(primary) == before
        assert run.report.full_syncs == 1
        assert "NOREPLICAS" in clicks.refusal
        assert int(target.client().get("clicks")) == clicks.acknowledged > 0
        assert write_block_of(primary) == 65535
        assert write_block_of(second) == 0
        assert run.report.sealed_at.endswith(f":{primary.port}")
        assert_settled(primary, target)
    assert_tidy(target)


def test_a_replica_that_is_promoted(server_factory: ServerFactory) -> None:
    """The one that is followed takes the writes from then on, and the other one is read."""
    target = server_factory(known("redis-7.0"))
    with replicated("redis-7.0", server_factory) as (primary, replicas):
        with migrating(primary, target, read_from="replica", timeout=90) as run:
            run.following()
            first = read(run, replicas)
            second = next(each for each in replicas if each is not first)
            with Clicks(primary, first) as clicks:
                run.wait_for(lambda: clicks.acknowledged > 100, "writes")
                # As Sentinel does, but with nothing lost.
                primary.client().execute_command("CLIENT", "PAUSE", 5000, "WRITE")
                offset = primary.client().info("replication")["master_repl_offset"]
                for each in replicas:
                    run.wait_for(
                        lambda: (
                            each.client().info("replication")["master_repl_offset"] >= offset  # noqa: B023
                        ),
                        "all of it",
                    )
                first.client().execute_command("REPLICAOF", "NO", "ONE")
                for each in (primary, second):
                    make_replica(each, first)
                primary.client().execute_command("CLIENT", "UNPAUSE")
                until_in_step(primary, second)
                run.wait_for(
                    lambda: read(run, [primary, *replicas]) in (primary, second), "a replica of it"
                )
                cut_over(run)
            assert int(target.client().get("clicks")) == clicks.acknowledged > 100
        assert run.report.full_syncs == 1
        assert run.report.sealed_at.endswith(f":{first.port}")
        assert_settled(first, target)
    assert_tidy(target)


def dumps(server: Server) -> int:
    stats = server.client().info("commandstats")
    return int(stats.get("cmdstat_dump", {}).get("calls", 0))


def test_another_replica_is_promoted(server_factory: ServerFactory) -> None:
    """The one that is followed is a replica as before, of another primary: keys are read again
    there from now on, and at the former primary no more."""
    target = server_factory(known("redis-7.0"))
    with replicated("redis-7.0", server_factory) as (primary, replicas):
        with migrating(primary, target, read_from="replica", timeout=90) as run:
            run.following()
            first = read(run, replicas)
            second = next(each for each in replicas if each is not first)
            follower = run.work._way.lanes[0]._follower  # type: ignore[union-attr]
            run.call(lambda: follower.read_again([(0, b"key:1")]))
            run.wait_for(lambda: dumps(primary) > 0, "a reading")
            second.client().execute_command("REPLICAOF", "NO", "ONE")
            for each in (primary, first):
                make_replica(each, second)
            until_in_step(primary, first)
            run.wait_for(
                lambda: any(f"accepted by 127.0.0.1:{second.port}" in each for each in run.events),
                "the primary that accepts writes",
            )
            before, there = dumps(primary), dumps(second)
            follower = run.work._way.lanes[0]._follower  # type: ignore[union-attr]
            run.call(lambda: follower.read_again([(0, b"key:2")]))
            run.wait_for(lambda: dumps(primary) + dumps(second) > before + there, "a reading")
            assert (dumps(primary), dumps(second) > there) == (before, True)
            second.client().set("after", 1)
            cut_over(run)
        assert run.report.full_syncs == 1
        assert run.report.sealed_at.endswith(f":{second.port}")
        assert_settled(second, target)
    assert_tidy(target)


def test_the_primary_is_gone_when_an_engine_comes_back(server_factory: ServerFactory) -> None:
    """The server that is named is down, and one of its replicas was promoted while no engine ran:
    it is known by the history that the target's position names."""
    target, store = server_factory(known("redis-7.0")), MemoryCheckpoint()
    with replicated("redis-7.0", server_factory) as (primary, replicas):
        ends = {"read_from": "replica", "timeout": 90, "checkpoints": store}
        with migrating(primary, target, **ends) as run:
            run.following()
            read(run, replicas)
            run.stop()
        primary.kill()
        head, other = replicas
        head.client().execute_command("REPLICAOF", "NO", "ONE")
        make_replica(other, head)
        until_in_step(other)
        head.client().set("after", 1)
        with migrating(primary, target, **ends) as run:
            assert read(run, replicas) is other
            run.wait_for(lambda: target.client().get("after") == b"1", "what came since")
            run.wait_for(lambda: run.progress.can_complete, "an open gate")
            run.complete()
            run.join()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert run.report.full_syncs == 1
        assert run.report.sealed_at.endswith(f":{head.port}")
        assert_settled(head, target)
    assert_tidy(target)


def test_one_that_is_not_fit_is_not_chosen_again(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience with the one that is read begins once, however often nothing better is found."""
    monkeypatch.setattr(source_replica, "_PATIENCE_SECONDS", 0.3)
    with replicated("redis-7.0", server_factory, 1) as (primary, (replica,)):
        named = dataclasses.replace(Endpoint.parse(primary.url), from_replica=True)

        async def ask(at: Endpoint, questions: Sequence[tuple[str, ...]]) -> list[Any]:
            async with admin(at, fault="source", straight=True) as end:
                return [await end.call(*each) for each in questions]

        async def looks() -> None:
            source_replica.begin()

            async def look() -> str:
                found = await source_replica.look(named, ask, fault="source", timeout=5)
                return found.there.address

            there = await look()
            assert there == f"127.0.0.1:{replica.port}"
            replica.client().execute_command("REPLICAOF", "127.0.0.1", "1")
            deadline = time.monotonic() + 10
            with contextlib.suppress(source_replica.NoReplica):
                while time.monotonic() < deadline:
                    assert await look() == there
            for _ in range(3):
                with pytest.raises(source_replica.NoReplica, match=r"its link to .* is down"):
                    await look()

        asyncio.run(looks())


def test_the_only_replica_goes_and_comes_back(server_factory: ServerFactory) -> None:
    """The primary sends what is missing, and no snapshot; the replica is gone back to."""
    target = server_factory(known("redis-7.0"))
    with replicated("redis-7.0", server_factory, 1) as (primary, (replica,)):
        with migrating(primary, target, read_from="replica", timeout=120) as run:
            run.following()
            assert read(run, [replica]) is replica
            before = full_syncs(primary)
            replica.kill()
            run.wait_for(
                lambda: any("is read from its primary" in each for each in run.events), "an event"
            )
            primary.client().set("meanwhile", 1)
            run.wait_for(lambda: target.client().get("meanwhile") == b"1", "what is written")
            assert full_syncs(primary) == before
            replica.restart()
            make_replica(replica, primary)
            until_in_step(replica)
            run.wait_for(lambda: attached(replica) == 1, "the replica that is read again")
            cut_over(run)
        assert run.report.full_syncs == 1
        assert_settled(primary, target)
    assert_tidy(target)


def test_a_replica_that_lags_at_the_cut_over(server_factory: ServerFactory) -> None:
    """The final offset is the primary's: it is waited for, and what the replica had not sent by
    the word is on the target."""
    primary, replica, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    with Proxy(primary.host, primary.port) as between:
        replica.client().execute_command("REPLICAOF", between.host, between.port)
        until_in_step(replica)
        primary.client().set("long", b"v" * (4 << 20))  # so that the replica's link is the busiest
        with migrating(replica, target, read_from="replica", timeout=90) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "an open gate")
            between.stall_busiest()
            primary.client().mset({f"late:{n}": n for n in range(200)})
            run.complete()
            # Both ends are compared first, at the primary's offset.
            run.wait_for(
                lambda: "comparing both ends" in run.progress.reason or run.refusals, "the word"
            )
            assert not target.client().exists("late:199")
            between.stall_busiest(False)
            run.wait_for(lambda: run.ended or run.refusals, "what becomes of it")
            if not run.ended:
                cut_over(run)
            run.join()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert write_block_of(primary) == 65535
        assert write_block_of(replica) == 0
        assert_settled(primary, target)
    assert_tidy(target)


def test_a_replica_that_is_far_behind(server_factory: ServerFactory) -> None:
    """The target has all that it sends, and is not called in sync."""
    primary, replica, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    with Proxy(primary.host, primary.port) as between:
        replica.client().execute_command("REPLICAOF", between.host, between.port)
        until_in_step(replica)
        primary.client().set("long", b"v" * (4 << 20))  # so that the replica's link is the busiest
        with migrating(replica, target, read_from="replica", timeout=90) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "an open gate")
            between.stall_busiest()
            primary.client().set("late", b"v" * (3 << 20))
            run.wait_for(lambda: "behind its primary" in run.progress.reason, "a closed gate")
            assert not run.progress.can_complete
            between.stall_busiest(False)
            cut_over(run)
        assert_settled(primary, target)
    assert_tidy(target)


def test_sentinels(server_factory: ServerFactory) -> None:
    """The primary that they watch is killed: whichever replica is promoted, the other one is read,
    and no write that the replicas had is lost."""
    name = "redis-7.0"
    target = server_factory(known(name))
    with replicated(name, server_factory) as (primary, replicas):
        with sentinels(known(name), primary) as group:
            wait_for(
                lambda: all(
                    each.told()["num-slaves"] == 2 and each.told()["num-other-sentinels"] == 2
                    for each in group
                ),
                "Sentinels that know all",
            )
            with migrating(url(group), target, read_from="replica", timeout=120) as run:
                run.following()
                read(run, replicas)
                primary.client().set("before", 1)
                primary.client().wait(2, 5000)
                primary.kill()

                def promoted() -> Server | None:
                    port = group[0].primary()[1]  # a busy machine may have them decide twice
                    return next((each for each in replicas if each.port == port), None)

                head = run.wait_for(promoted, "a failover")
                run.wait_for(
                    lambda: read(run, replicas) is not promoted(), "the replica that is left", 90
                )
                head = promoted() or head
                head.client().set("after", 1)
                run.wait_for(lambda: target.client().get("after") == b"1", "what came since")
                cut_over(run)
        assert target.client().get("before") == b"1"
        head = next(each for each in replicas if run.report.sealed_at.endswith(f":{each.port}"))
        assert_settled(head, target)
    assert_tidy(target)


@pytest.mark.parametrize("name", NAMES)
def test_a_cluster(name: str, server_factory: ServerFactory) -> None:
    """Each shard by its replica, under traffic: one replica that is followed dies, one is promoted;
    key by key at the end."""
    target = server_factory(known(name))
    with Cluster.start(known(name), *BACKLOG, replicas=1, make=server_factory) as source:
        primaries = source.primaries
        before = [full_syncs(each) for each in primaries]
        replicas = [source.replicas_of(each)[0] for each in primaries]
        traffic = Traffic(
            source, "meanwhile", databases=(0,), tags=TAGS, rate=800.0, apart=0.0,
            without=("flushall", "flushdb", "move", "swapdb"),
        )  # fmt: skip
        with Retrying(source, clients=3) as clients:
            with migrating(source, target, read_from="replica", timeout=180) as run:
                with traffic:
                    run.following()
                    assert [full_syncs(each) for each in primaries] == before
                    assert [attached(each) for each in replicas] == [1, 1, 1]
                    clients.goes_on()
                    # The cluster's word for the primary leads nothing away from the replicas.
                    looks = run.progress.seconds + 2.5
                    run.wait_for(lambda: run.progress.seconds > looks, "looks at the cluster")
                    assert not [each for each in run.events if "connecting again" in each]
                    replicas[0].kill()
                    replicas[1].client().execute_command("CLUSTER", "FAILOVER")
                    run.wait_for(
                        lambda: any(
                            f":{primaries[1].port}, a replica of" in event for event in run.events
                        ),
                        "the former primary, which is read as a replica",
                        60,
                    )
                    run.wait_for(
                        lambda: any("is read from its primary" in event for event in run.events),
                        "a shard without a replica",
                    )
                    clients.goes_on()
                    traffic.stop()
                run.wait_for(lambda: run.progress.can_complete, "an open gate")
                run.complete()
                run.join()
            assert run.report.status == "done", (run.report.errors, run.events)
            assert_settled(source, target, 5)
            clients.move_to(target)
            clients.goes_on()
            clients.stop()
            assert clients.check(target) == [], clients.describe()
        assert run.report.full_syncs == 3
    assert_tidy(target)


def test_ttls_that_come_late_from_the_primary(server_factory: ServerFactory) -> None:
    """Before 7.0 a TTL counts from when the primary ran EXPIRE; what is held up between the primary
    and the replica is late all the same."""
    primary, replica = (server_factory(known("redis-6.2"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    with Proxy(primary.host, primary.port) as between:
        replica.client().execute_command("REPLICAOF", between.host, between.port)
        until_in_step(replica)
        primary.client().set("long", b"v" * (4 << 20))
        primary.client().set("key", 1)
        with migrating(replica, target, read_from="replica", timeout=90) as run:
            run.following()
            between.stall_busiest()
            primary.client().expire("key", 1000)
            run.wait_for(lambda: primary.client().pttl("key") < 997_000, "three seconds")
            between.stall_busiest(False)
            run.wait_for(lambda: target.client().pttl("key") > 0, "a TTL")
            cut_over(run)
        there, here = primary.client().pttl("key"), target.client().pttl("key")
        # (What comes late by less than `sources.source_monitor` sees stays late.)
        assert abs(there - here) < 1500, (there, here)
    assert_tidy(target)


def checked(source: End, target: End) -> dict[str, tuple[str, str]]:
    """The preflight's checks: outcome and figure, by name."""
    ends = Endpoint.parse(url_of(source)), Endpoint.parse(url_of(target))
    found = asyncio.run(preflight(*ends, TransferSettings(read_from="replica")))
    return {each.name: (each.outcome, each.figure) for each in found.checks}


def test_what_is_no_replica_to_read(server_factory: ServerFactory) -> None:
    """None, or none that is fit: the start is refused by name, and the primary is not read."""
    primary, replica, target = (server_factory(known("redis-7.0")) for _ in range(3))
    outcome, figure = checked(primary, target)["source-replica"]
    assert outcome == "fail"
    assert f"127.0.0.1:{primary.port} has no replica" in figure

    make_replica(replica, primary)
    until_in_step(replica)
    found = checked(primary, target)
    assert found["source-replica"][0] == "pass"
    assert f"127.0.0.1:{replica.port}, a replica of" in found["source-replica"][1]
    assert found["source-role"][0] == "pass"

    replica.freeze()
    outcome, figure = checked(primary, target)["source-replica"]
    assert outcome == "fail"
    assert f"127.0.0.1:{replica.port}: it does not answer" in figure
    replica.thaw()


def test_what_does_not_go_together() -> None:
    with pytest.raises(UsageError, match="--tune-source"):
        TransferSettings(read_from="replica", tune_source=True)
    with pytest.raises(UsageError, match="--read-from"):
        TransferSettings(read_from="both")  # type: ignore[arg-type]
