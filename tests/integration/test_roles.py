"""Which server takes the writes: replicas as sources, failovers, and ends of one replication."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.waiting import soon
from engine.errors import LinkError
from engine.model.credentials import Credentials
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.model.replication import Replication
from engine.model.settings import TransferSettings
from engine.transfer import fence_in_checkpoint, role_monitor
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.fence import PauseFence, fence_of
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.promotion import Promotion
from engine.transfer.unblock_source import unblock
from engine.verify import LiveComparison
from engine.wire.control_connection import admin
from tests.support.checkpoints import DiesAt, promoting
from tests.support.library import Run, migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.replicas import in_step, make_replica, until_in_step
from tests.support.servers import ServerFactory, known, write_block_of
from tests.support.writers import Clicks

BACKLOG = ("--repl-backlog-size", "16mb", "--repl-ping-replica-period", "1")
NAMES = ("redis-7.0", "valkey-9")


def completed(run: Run) -> None:
    """Give the word as soon as the gate is open, and wait for the end."""
    run.wait_for(lambda: run.progress.can_complete, "an open gate", 40)
    run.complete()
    try:
        run.wait_for(lambda: run.progress.phase is Phase.DONE, "the end", 40)
    except AssertionError:
        raise AssertionError(f"no end: {run.progress.reason}, {run.events}") from None


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_replica_as_the_source(name: str, hops: int, server_factory: ServerFactory) -> None:
    """It is followed; the fence and the seal go to the primary at the head of its chain."""
    chain = [server_factory(known(name), *BACKLOG) for _ in range(hops + 1)]
    target = server_factory(known("redis-7.0" if name.startswith("redis") else name))
    head, source = chain[0], chain[-1]
    head.client().mset({f"key:{n}": n for n in range(200)})
    for above, below in itertools.pairwise(chain):
        make_replica(below, above)

    with Clicks(head) as clicks:
        until_in_step(*chain[1:])
        with migrating(source, target, timeout=60) as run:
            run.following()
            completed(run)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    assert run.report.sealed_at.endswith(f":{head.port}")
    assert write_block_of(head) == 65535
    assert write_block_of(source) == 0
    assert any("is a replica of" in event for event in run.events)
    assert any(f"the source's primary 127.0.0.1:{head.port} refuses" in e for e in run.events)
    assert_tidy(target)


@pytest.mark.parametrize("name", NAMES)
def test_a_failover_while_following(name: str, server_factory: ServerFactory) -> None:
    """The source's replica is promoted, and the source made its replica: it goes on by a partial
    sync, and what the new primary acknowledges is on the target."""
    source, promoted = (server_factory(known(name), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0" if name.startswith("redis") else name))
    source.client().mset({f"key:{n}": n for n in range(200)})
    make_replica(promoted, source)
    shut: list[str] = []

    with Clicks(source, promoted) as clicks:
        with migrating(source, target, timeout=60) as run:
            run.following()
            run.wait_for(lambda: in_step(promoted), "a replica in step")
            run.in_sync()
            run.wait_for(lambda: clicks.acknowledged > 100, "writes")
            # As Sentinel does, but with nothing lost: writes are held off for the moment.
            source.client().execute_command("CLIENT", "PAUSE", 5000, "WRITE")
            offset = source.client().info("replication")["master_repl_offset"]
            run.wait_for(
                lambda: promoted.client().info("replication")["master_repl_offset"] >= offset, "all"
            )
            promoted.client().execute_command("REPLICAOF", "NO", "ONE")
            source.client().execute_command("REPLICAOF", promoted.host, promoted.port)
            source.client().execute_command("CLIENT", "UNPAUSE")
            run.wait_for(lambda: not run.progress.can_complete, "a closed gate")
            shut.append(run.progress.reason)
            before = clicks.acknowledged
            run.wait_for(lambda: clicks.acknowledged > before + 100, "writes at the new primary")
            run.wait_for(
                lambda: any("is a replica of" in event for event in run.events), "an event"
            )
            completed(run)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged
    assert run.report.full_syncs == 1
    assert run.report.sealed_at.endswith(f":{promoted.port}")
    assert_tidy(target)


@pytest.mark.parametrize("link", ["stands", "has gone"])
def test_a_failover_between_the_last_look_and_the_fence(
    link: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role in the fence's own MULTI counts: the cut-over is undone, and comes off later; also
    where the source has closed the engine's link before that."""
    source, promoted, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    source.client().set("key", 1)
    make_replica(promoted, source)
    prepare, close = PauseFence.prepare, PauseFence.close
    prepared: list[str] = []

    async def fail_over(self: PauseFence) -> None:
        await prepare(self)
        prepared.append(self.before)
        if len(prepared) == 1:
            promoted.client().execute_command("REPLICAOF", "NO", "ONE")
            source.client().execute_command("REPLICAOF", promoted.host, promoted.port)

    async def close_late(self: PauseFence) -> Replication:
        if link == "has gone" and len(prepared) == 1:
            (lane,) = run.work._way.lanes  # type: ignore[union-attr]
            lane._source._give_up(LinkError("the source closed it", fault="source"))
            await soon(lambda: lane.cut_over.stopped, "a link that is gone")
        return await close(self)

    monkeypatch.setattr(PauseFence, "prepare", fail_over)
    monkeypatch.setattr(PauseFence, "close", close_late)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: in_step(promoted), "a replica in step")
        run.in_sync()
        reason = run.refused()
        assert f"is a replica of 127.0.0.1:{promoted.port} by now" in reason
        # Nothing is left of it there.
        assert write_block_of(source) == write_block_of(promoted) == 0
        assert promoted.client(socket_timeout=5).set("key", "2")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"
    assert write_block_of(promoted) == 65535


@pytest.mark.parametrize(
    ("name", "when"),
    [("redis-7.0", "sealed"), ("redis-7.0", "promoting"), ("valkey-9", "detached"),
     ("redis-6.0", "promoting"), ("redis-5.0", "promoting")],
)  # fmt: skip
def test_a_failover_behind_the_fence(
    name: str, when: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the last look the cut-over is undone. What comes behind it cannot be held off: that is
    said, and the migration does not end well."""
    # Nothing comes from a source that nobody writes to: what has failed is tried again without it.
    silent = (*BACKLOG[:2], "--repl-ping-replica-period", "3600")
    source, promoted = (server_factory(known(name), *silent) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    source.client().set("key", 1)
    make_replica(promoted, source)
    struck: list[str] = []

    def fail_over() -> None:
        if struck:
            return
        struck.append(when)
        # Where everybody is paused none of them answers, and an orchestrator's order waits.
        promoted.client().execute_command("SLAVEOF", "NO", "ONE")
        if when != "detached" and name != "redis-5.0" and name != "redis-6.0":
            source.client().execute_command("SLAVEOF", promoted.host, promoted.port)
        promoted.client().set("key", 2)

    block_writes, promote = PauseFence.block_writes, Promotion.promote

    async def sealed(self: PauseFence) -> None:
        await block_writes(self)
        if when != "promoting":
            await asyncio.to_thread(fail_over)

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        if when == "promoting":
            await asyncio.to_thread(fail_over)
        await promote(self, *args, **options)

    monkeypatch.setattr(PauseFence, "block_writes", sealed)
    monkeypatch.setattr(Promotion, "promote", promoting)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: in_step(promoted), "a replica in step")
        told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
        run.wait_for(lambda: told.replication.replicas, "the replica")
        run.in_sync()
        if when == "promoting":
            run.complete()
        else:
            reason = run.refused()
            assert "took writes" in reason or "a replica of" in reason or "beside" in reason, reason
            if when == "detached":
                source.client().execute_command("REPLICAOF", promoted.host, promoted.port)
            completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert struck
    if when == "promoting":
        assert f"127.0.0.1:{promoted.port}" in run.report.lost_writes, run.report
        assert "what its new primary accepts is only on that server" in run.report.lost_writes
        return
    assert target.client().get("key") == b"2"
    assert run.report.lost_writes == ""
    assert write_block_of(promoted) == 65535


@pytest.mark.parametrize("then", ["back", "name"])
def test_a_source_that_dies_at_the_opening_and_the_next_engine(
    then: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replica was promoted. The engine that finishes finds the source back as a primary of its
    own, or its name leading to the other one: neither is the server that was followed."""
    source, promoted, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    source.client().set("key", 1)
    make_replica(promoted, source)
    store = MemoryCheckpoint()
    promote = Promotion.promote

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        await asyncio.to_thread(source.kill)
        promoted.client().execute_command("REPLICAOF", "NO", "ONE")
        promoted.client().set("key", 2)
        await promote(self, *args, **options)

    with Proxy(source.host, source.port) as name:
        with monkeypatch.context() as patch:
            patch.setattr(Promotion, "promote", promoting)
            patch.setattr(fence_in_checkpoint, "_FINISH_SECONDS", 0.1)
            with migrating(name, target, checkpoints=store, timeout=60) as run:
                run.following()
                run.wait_for(lambda: in_step(promoted), "a replica in step")
                told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
                run.wait_for(lambda: told.replication.replicas, "the replica")
                run.in_sync()
                run.complete()
        assert run.report.status == "stopped", (run.report.errors, run.events)
        if then == "back":
            source.restart()
        else:
            name.lead_to(promoted.host, promoted.port)
        run = migrated(name, target, checkpoints=store, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert "what its new primary accepts is only on that server" in run.report.lost_writes
    assert any("failed over while the target was promoted" in each for each in run.events)


def test_a_replica_that_dies_as_the_source(server_factory: ServerFactory) -> None:
    """Its primary goes on with the stream, and is followed."""
    head, source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    head.client().set("key", 1)
    make_replica(source, head)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        source.kill()
        head.client().set("key", 2)
        run.wait_for(lambda: any("goes on with its stream" in e for e in run.events), "the primary")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert run.report.sealed_at.endswith(f":{head.port}")
    assert target.client().get("key") == b"2"
    assert write_block_of(head) == 65535


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_dies_and_is_succeeded(name: str, server_factory: ServerFactory) -> None:
    """Its replica is promoted: it is found by what the source told of its replicas, and followed by
    a partial sync. The next engine knows it too."""
    source, promoted, bystander = (server_factory(known(name), *BACKLOG) for _ in range(3))
    target = server_factory(known("redis-7.0" if name.startswith("redis") else name))
    source.client().mset({f"key:{n}": n for n in range(200)})
    make_replica(promoted, source)
    make_replica(bystander, source)
    store = MemoryCheckpoint()
    nodes = (f"127.0.0.1:{bystander.port}=detached",)

    with migrating(source, target, checkpoints=store, source_nodes=nodes, timeout=90) as run:
        run.following()
        run.wait_for(lambda: in_step(promoted) and in_step(bystander), "replicas in step")
        # It knows the source's history as well, but parted from it before.
        bystander.client().execute_command("REPLICAOF", "NO", "ONE")
        bystander.client().set("key:0", "another")
        source.client().set("last", 1)
        run.in_sync()
        run.wait_for(lambda: promoted.client().get("last") == b"1", "the replica's copy")
        told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
        run.wait_for(
            lambda: told.replication.replicas == (f"127.0.0.1:{promoted.port}",), "the replicas"
        )
        source.kill()
        promoted.client().execute_command("REPLICAOF", "NO", "ONE")
        run.wait_for(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        with Clicks(promoted) as clicks:
            run.wait_for(lambda: clicks.acknowledged > 100, "writes")
        run.wait_for(lambda: run.progress.can_complete, f"an open gate: {run.events}", 40)
        source.restart()
        run.wait_for(lambda: "answers again as a primary" in run.progress.reason, "the reason")
        assert not run.progress.can_complete
        make_replica(source, promoted)
        run.wait_for(lambda: run.progress.can_complete, f"an open gate again: {run.events}", 40)
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert run.report.full_syncs == 1

    with Clicks(promoted) as clicks:
        with migrating(source, target, checkpoints=store, source_nodes=nodes, timeout=90) as run:
            completed(run)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert int(target.client().get("clicks")) == clicks.acknowledged
    assert target.client().mget("key:0", "last") == [b"0", b"1"]
    assert run.report.sealed_at.endswith(f":{promoted.port}")
    assert "NOREPLICAS" in clicks.refusal
    assert_tidy(target)


@pytest.mark.parametrize("name", ["redis-7.0", "redis-3.2"])
def test_a_replica_that_is_promoted_beside_a_living_source(
    name: str, server_factory: ServerFactory
) -> None:
    """Clients are led to it, and nobody follows it: the gate is closed until it is known who the
    primary is. A source before 4.0 tells of no history."""
    source, promoted, target = (server_factory(known(name), *BACKLOG[:2]) for _ in range(3))
    source.client().set("clicks", 10)
    promoted.client().execute_command("SLAVEOF", source.host, source.port)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: in_step(promoted), "the replica in step")
        told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
        run.wait_for(
            lambda: told.replication.replicas == (f"127.0.0.1:{promoted.port}",), "the replica"
        )
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        promoted.client().execute_command("SLAVEOF", "NO", "ONE")
        promoted.client().incr("clicks")
        run.wait_for(lambda: "a primary beside" in run.progress.reason, "the reason")
        assert f"127.0.0.1:{promoted.port}" in run.progress.reason
        assert not run.progress.can_complete
        assert "a primary beside" in run.refused()
        # The failover comes to its end.
        source.client().execute_command("SLAVEOF", promoted.host, promoted.port)
        if name == "redis-3.2":  # a chain's offsets are not one stream's there
            run.stop()
        else:
            completed(run)
    assert any("is a primary now: what is written there" in each for each in run.events)
    if name != "redis-3.2":
        assert run.report.status == "done", (run.report.errors, run.events)
        assert target.client().get("clicks") == b"11"
        assert write_block_of(promoted) == 65535


def test_two_replicas_that_are_promoted_when_the_source_dies(
    server_factory: ServerFactory,
) -> None:
    """Both could go on with its stream: none is followed until one of them is a replica again; and
    one that is promoted beside the one that is followed closes the gate."""
    source, one, two, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(4))
    source.client().set("clicks", 10)
    for replica in (one, two):
        make_replica(replica, source)

    with migrating(source, target, timeout=90) as run:
        run.following()
        run.wait_for(lambda: in_step(one) and in_step(two), "replicas in step")
        told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
        run.wait_for(lambda: len(told.replication.replicas) == 2, "the replicas")
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        source.kill()
        for replica in (one, two):
            replica.client().execute_command("REPLICAOF", "NO", "ONE")
        run.wait_for(lambda: any("more than one of" in e for e in run.events), "both")
        assert not any("goes on with its stream" in e for e in run.events)
        make_replica(two, one)
        run.wait_for(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        run.wait_for(lambda: run.progress.can_complete, f"an open gate: {run.events}", 40)
        two.client().execute_command("REPLICAOF", "NO", "ONE")
        two.client().incr("clicks")
        run.wait_for(lambda: "a primary beside" in run.progress.reason, "the reason")
        assert "a primary beside" in run.refused()
        make_replica(two, one)
        one.client().incr("clicks")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert run.report.sealed_at == f"127.0.0.1:{one.port}"
    assert target.client().get("clicks") == b"11"


def test_a_replica_that_is_promoted_at_the_fence(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the fence."""
    source, promoted, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    source.client().set("clicks", 10)
    make_replica(promoted, source)

    class Late(LiveComparison):
        async def choose(self, first: Iterable[DbKey], then: Iterable[DbKey]) -> None:
            await super().choose(first, then)
            promoted.client().execute_command("REPLICAOF", "NO", "ONE")
            promoted.client().incr("clicks")

    ends = (Endpoint.parse(each.url) for each in (source, target))
    late = Late(*ends, TransferSettings(), lambda: False)
    with migrating(source, target, comparison=late, timeout=60) as run:
        run.following()
        run.wait_for(lambda: in_step(promoted), "the replica in step")
        told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
        run.wait_for(lambda: told.replication.replicas, "the replica")
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        monkeypatch.setattr(role_monitor, "_LOOK_SECONDS", 3600.0)
        time.sleep(1.5)  # the look that has begun
        assert "a primary beside" in run.refused()
        source.client().set("key", 1)  # it takes writes again
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)


def test_a_source_that_died_while_no_engine_ran(server_factory: ServerFactory) -> None:
    """It told the next engine nothing: its successor is one of the servers that the operator names,
    as soon as no other of them could be it."""
    source, promoted, other, target = (
        server_factory(known("redis-7.0"), *BACKLOG) for _ in range(4)
    )
    source.client().mset({f"key:{n}": n for n in range(200)})
    make_replica(promoted, source)
    make_replica(other, source)
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        source.client().set("last", 1)
        run.in_sync()
        run.wait_for(lambda: in_step(promoted) and in_step(other), "replicas in step")
        for server in (promoted, other):
            run.wait_for(lambda: server.client().get("last") == b"1", "the replica's copy")  # noqa: B023
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)
    source.kill()
    for server in (promoted, other):
        server.client().execute_command("REPLICAOF", "NO", "ONE")
    promoted.client().incr("clicks")

    nodes = tuple(f"{server.host}:{server.port}" for server in (other, promoted))
    with migrating(
        source, target, checkpoints=store, source_nodes=nodes, timeout=90, retry_for=60.0
    ) as run:
        run.wait_for(lambda: any("more than one of" in each for each in run.events), "a refusal")
        assert not any("goes on with its stream" in each for each in run.events)
        make_replica(other, promoted)
        run.wait_for(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        promoted.client().incr("clicks")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert run.report.sealed_at == f"127.0.0.1:{promoted.port}"
    assert target.client().mget("last", "clicks") == [b"1", b"2"]
    assert_tidy(target)


@pytest.mark.parametrize("comes_back", ["promoted", "succeeds"])
def test_a_source_that_takes_the_writes_again(
    server_factory: ServerFactory, comes_back: str
) -> None:
    """A dies, its replica B is followed; then A is the primary again, and B its replica, or gone:
    the gate opens, and the fence goes to A."""
    # Without PINGs: one that the other server misses makes a full sync of a partial one.
    quiet = ("--repl-ping-replica-period", "3600", "--repl-diskless-sync-delay", "0")
    options = ("--repl-backlog-size", "16mb", *quiet)
    source, other, target = (server_factory(known("redis-7.0"), *options) for _ in range(3))
    source.client().mset({f"key:{n}": n for n in range(200)})
    make_replica(other, source)

    with migrating(source, target, timeout=90) as run:
        run.following()
        run.wait_for(lambda: in_step(other), "a replica in step")
        told = run.work._way.lanes[0]._source  # type: ignore[union-attr]
        run.wait_for(
            lambda: told.replication.replicas == (f"127.0.0.1:{other.port}",), "the replica"
        )
        # 1. The failover.
        source.kill()
        other.client().execute_command("REPLICAOF", "NO", "ONE")
        run.wait_for(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        other.client().set("key:0", "B")
        source.restart()
        make_replica(source, other)
        run.wait_for(lambda: in_step(source), "the former source in step")
        run.wait_for(lambda: run.progress.can_complete, f"an open gate: {run.events}", 40)
        # 2. And back.
        source.client().execute_command("REPLICAOF", "NO", "ONE")
        make_replica(other, source)
        run.wait_for(lambda: in_step(other), "the replica in step")
        source.client().set("key:1", "A")
        taken = f"writes are accepted by 127.0.0.1:{source.port}"
        run.wait_for(lambda: taken in run.events, f"who takes the writes: {run.events}", 40)
        run.in_sync(other)
        if comes_back == "succeeds":
            other.kill()
            run.wait_for(
                lambda: sum("goes on with its stream" in e for e in run.events) == 2, "the source"
            )
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().mget("key:0", "key:1") == [b"B", b"A"]
    assert run.report.sealed_at.endswith(f":{source.port}")
    assert write_block_of(source) == 65535
    assert run.report.full_syncs == 1
    assert_tidy(target)


@pytest.mark.parametrize("name", ["redis-2.8", "redis-3.2", "redis-5.0", "redis-6.0"])
def test_old_sources_refuse_writes_after_the_cut_over(
    name: str, server_factory: ServerFactory
) -> None:
    """Before 5.0 the setting has another name; before 3.0 there is no CLIENT PAUSE."""
    source, target = server_factory(known(name)), server_factory(known("redis-7.0"))
    before = dict(source.client().config_get("min-*"))
    source.client().mset({f"key:{n}": n for n in range(200)})

    with Clicks(source) as clicks:
        with migrating(source, target, timeout=60) as run:
            run.following()
            run.wait_for(lambda: clicks.acknowledged > 100, "writes")
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged
    assert_tidy(target)
    # As `unblock-source` does.
    told = asyncio.run(
        unblock(
            Endpoint.parse(source.url),
            run.report.sealed_at,
            run.report.sealed,
            TransferSettings(),
            Credentials(),
        )
    )
    assert "accepts writes again" in told
    assert dict(source.client().config_get("min-*")) == before
    source.client().incr("clicks")


@pytest.mark.parametrize("name", ["redis-3.2", "redis-5.0", "redis-6.0"])
def test_transactions_that_were_begun_before_the_fence(
    name: str, server_factory: ServerFactory
) -> None:
    """Before 6.0 EXEC is not refused for what was queued before the setting: whoever was there is
    disconnected before anybody is answered."""
    source, target = server_factory(known(name)), server_factory(known("redis-7.0"))
    source.client().mset({f"key:{n}": n for n in range(200)})
    acknowledged = [0] * 4
    over = threading.Event()

    def transact(number: int) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            client = redis.Redis(port=source.port, single_connection_client=True, protocol=2)
            while not over.is_set():
                client.execute_command("MULTI")
                client.execute_command("INCR", f"transactions:{number}")
                time.sleep(0.03)
                client.execute_command("EXEC")
                acknowledged[number] += 1

    threads = [threading.Thread(target=transact, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        with migrating(source, target, timeout=60) as run:
            run.following()
            run.wait_for(lambda: min(acknowledged) > 10, "transactions")
            run.cut_over()
        # It answers once the pause has run out: what it held would have been run by then.
        assert redis.Redis(port=source.port, socket_timeout=60, protocol=2).ping()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert run.report.status == "done", (run.report.errors, run.events)
    found = [int(target.client().get(f"transactions:{n}") or 0) for n in range(4)]
    # An answer may have been lost with the connection.
    assert all(a <= f <= a + 1 for a, f in zip(acknowledged, found, strict=True)), run.events
    assert_tidy(target)


def test_a_fence_where_there_is_no_client_pause(server_factory: ServerFactory) -> None:
    """Before 3.0 the seal is all there is of one: it is up when the fence is, and comes off."""
    source = server_factory(known("redis-2.8"))
    client = source.client()
    client.set("key", 1)
    end = Endpoint.parse(source.url)

    async def go() -> list[str]:
        async with admin(end) as asked:
            info = await asked.info()
        fence = fence_of(end, info, TransferSettings())
        assert fence.readable
        await fence.prepare()
        assert fence.before == "min-slaves-to-write 0 min-slaves-max-lag 10"
        for _ in range(2):
            told = await fence.close()
            assert (told.role, told.is_replica) == ("master", False)
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                client.set("key", 2)
            await fence.open()
            client.set("key", 3)
        await fence.close()
        await fence.block_writes()
        said = await fence.finish()
        await fence.remove()
        return said

    assert "CONFIG SET min-slaves-to-write 0" in asyncio.run(go())[0]
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("key", 4)
    assert source.client().get("key") == b"3"


def test_a_primary_that_cannot_be_reached(server_factory: ServerFactory) -> None:
    """The source is a replica of an address that is reached by the replica alone."""
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().config_set("requirepass", "secret")
    source.client().config_set("masterauth", "secret")
    head.client(password="secret").set("key", 1)
    make_replica(source, head)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: "which cannot be asked" in run.progress.reason, "the reason")
        assert f"127.0.0.1:{head.port}" in run.progress.reason
        assert not run.progress.can_complete
        assert "which cannot be asked" in run.refused()
        head.client(password="secret").config_set("requirepass", "")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"1"


def test_a_primary_that_falls_silent(server_factory: ServerFactory) -> None:
    """The source, its replica, still takes its link for up: the gate is closed all the same."""
    head, source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    head.client().set("key", 1)
    make_replica(source, head)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        head.freeze()
        try:
            run.wait_for(lambda: "has not answered for 2 s" in run.progress.reason, "a reason")
            assert not run.progress.can_complete
        finally:
            head.thaw()
        run.wait_for(lambda: run.progress.can_complete, "an open gate again", 40)
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"1"


@pytest.mark.parametrize("fence", ["none", "hook"])
def test_the_operators_own_fence_at_a_replica(
    fence: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """`--fence none` and `--fence hook`: a replica that has lost its primary is not called in sync,
    as it may lack what that one has acknowledged; by an explicit word its own offset counts."""
    script, noted = tmp_path / "hook.sh", tmp_path / "noted"
    script.write_text(f"echo \"$1\" >> '{noted}'\n")
    settings = {"fence": fence, **({"fence_hook": f"sh {script}"} if fence == "hook" else {})}
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().set("key", 1)
    with Proxy(head.host, head.port) as between:
        source.client().execute_command("REPLICAOF", between.host, between.port)
        until_in_step(source)

        with migrating(source, target, timeout=60, **settings) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "an open gate")
            between.lead_to("127.0.0.1", 1)
            between.cut_now()
            run.wait_for(lambda: "has lost its link" in run.progress.reason, "a closed gate")
            head.client().set("late", 1)
            assert not run.progress.can_complete
            assert "complete-migration --skip-verification" in run.refused()
            assert run.progress.phase is Phase.FOLLOW
            if fence == "hook":
                between.lead_to(head.host, head.port)
                run.wait_for(lambda: run.progress.can_complete, "an open gate again", 40)
                run.complete()
            else:
                run.complete(skip_verification=True)
            run.wait_for(lambda: run.ended, "the end", 40)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"1"
    assert target.client().get("late") == (b"1" if fence == "hook" else None)
    if fence == "hook":
        assert noted.read_text().split()[-2:] == ["fence", "done"]
    else:
        assert any("what the primary has not sent it" in each for each in run.events)


def test_the_role_is_looked_at_each_second(server_factory: ServerFactory) -> None:
    """A rate, over a few seconds in which the machine did not stand still: others count nothing."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    source.client().set("key", 1)
    client = source.client()

    def asked() -> int:
        return int(client.info("commandstats")["cmdstat_info"]["calls"])

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.in_sync()
        rates: list[float] = []
        while not rates or (max(rates) < 1.0 and len(rates) < 8):
            before, began = asked(), time.monotonic()
            time.sleep(3.0)
            # One of them was ours.
            rates.append((asked() - before - 1) / (time.monotonic() - began))
        assert max(rates) >= 1.0, rates
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)


@pytest.mark.parametrize("name", ["redis-7.0", "redis-5.0"])
@pytest.mark.parametrize("word", ["complete", "in-sync"])
def test_what_a_primary_changes_without_a_word(
    name: str, word: str, server_factory: ServerFactory
) -> None:
    """The delivery counts of a primary are not those of its replica, which is the source: the
    target is held against the primary, and what differs is read from there."""
    head, source = (server_factory(known(name), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    client = head.client()
    for key in ("jobs", "quiet"):
        client.xadd(key, {"f": "v"}, id="1-1")
        client.xgroup_create(key, "group", "0")
        client.xreadgroup("group", "reader", {key: ">"})
    make_replica(source, head)
    until_in_step(source)
    client.xreadgroup("group", "reader", {"jobs": "0"})

    if word == "in-sync":
        run = migrated(source, target, one_go=True, until="in-sync", timeout=60)
    else:
        with migrating(source, target, timeout=60) as run:
            run.following()
            completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    for key in ("jobs", "quiet"):
        there, here = (each.client().xpending_range(key, "group", "-", "+", 10) for each in (
            head, target
        ))  # fmt: skip
        assert [each["times_delivered"] for each in here] == [
            each["times_delivered"] for each in there
        ]
    if word == "complete":
        assert_tidy(target)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_whose_time_is_over_at_a_replica_that_is_behind(
    name: str, server_factory: ServerFactory
) -> None:
    """It was made to live on, and the replica, which is the source, does not know yet: by its clock
    the key is gone. What is read again meanwhile is what the primary has."""
    head, source = (server_factory(known(name), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0" if name.startswith("redis") else name))
    with Proxy(head.host, head.port) as between:
        source.client().execute_command("REPLICAOF", between.host, between.port)
        until_in_step(source)
        head.client().set("long", b"v" * (4 << 20))  # so that the replica's link is the busiest
        head.client().set("key", "1")
        with migrating(source, target, timeout=60) as run:
            run.following()
            run.wait_for(lambda: target.client().exists("key"), "the key")
            while True:
                head.client().set("key", "1", px=2500)
                run.wait_for(lambda: source.client().pttl("key") != -1, "its time")
                between.stall_busiest()
                if head.client().persist("key"):
                    break
                # The machine stood still, and its time is over at the primary as well.
                between.stall_busiest(False)
                head.client().set("key", "1")
                run.wait_for(lambda: source.client().pttl("key") == -1, "the key again")
            run.wait_for(lambda: not source.client().exists("key"), "a key that is over")
            follower = run.work._way.lanes[0]._follower  # type: ignore[union-attr]
            asked = head.client().info("commandstats").get("cmdstat_dump", {}).get("calls", 0)
            run.call(lambda: follower.read_again([(0, b"key")]))

            def read() -> bool:
                ends = (head.client(), source.client())
                calls = [each.info("commandstats").get("cmdstat_dump", {}) for each in ends]
                return sum(each.get("calls", 0) for each in calls) > asked

            run.wait_for(read, "a reading")
            between.stall_busiest(False)
            run.wait_for(lambda: source.client().exists("key"), "a key that lives on")
            head.client().incr("key")
            completed(run)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"
    assert target.client().ttl("key") == -1
    assert_tidy(target)


def test_two_primaries(server_factory: ServerFactory) -> None:
    """The source is detached from its primary, which goes on taking writes."""
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().set("key", 1)
    make_replica(source, head)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        source.client().execute_command("REPLICAOF", "NO", "ONE")
        head.client().set("key", 2)
        run.wait_for(lambda: "is still one too" in run.progress.reason, "the reason")
        assert not run.progress.can_complete
        assert any("is a primary now" in event for event in run.events)
        make_replica(source, head)
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"


def test_a_fence_that_a_crash_has_left_at_the_primary(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next engine takes it away there, where it stands by the books."""
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().set("key", 1)
    make_replica(source, head)
    store = DiesAt(promoting)

    async def nothing(self: FenceUpkeep, *of: object, **more: object) -> None:
        pass

    with monkeypatch.context() as patched:
        for name in ("take_away", "remove"):
            patched.setattr(FenceUpkeep, name, nothing)
        with migrating(source, target, checkpoints=store) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "an open gate")
            run.complete()
            run.reaches(Phase.FAILED)
    assert write_block_of(head) == 65535
    with migrating(source, target, checkpoints=store.left()) as run:
        run.following()
        assert write_block_of(head) == 0
        assert head.client(socket_timeout=5).set("key", "2")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"
    assert write_block_of(head) == 65535
    assert_tidy(target)


# --- The target's role, and ends of one replication ---


def test_a_target_that_is_made_a_replica(server_factory: ServerFactory) -> None:
    """Nothing is written to it; the gate is closed, and it goes on once it is a primary again."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    # A replica that takes writes: they would be lost with its next sync.
    target.client().config_set("replica-read-only", "no")
    source.client().set("key", 1)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.in_sync()
        # At a port of nobody: it becomes a replica, and keeps its data.
        target.client().execute_command("REPLICAOF", "127.0.0.1", 1)
        run.wait_for(lambda: "is a replica of" in run.progress.reason, "the reason")
        assert not run.progress.can_complete
        # It is the target that is waited for: nothing is said of the source's link.
        assert (run.progress.link, run.progress.lag_bytes) == ("", None)
        source.client().set("key", 2)
        assert target.client().get("key") == b"1"
        assert any("nothing is written to it" in event for event in run.events)
        target.client().execute_command("REPLICAOF", "NO", "ONE")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_one_server_under_two_addresses(way: str, server_factory: ServerFactory) -> None:
    source = server_factory(known("redis-7.0"))
    source.client().set("n", 1)
    with Proxy(source.host, source.port) as proxy:
        run = migrated(source, proxy, one_go=True, source_type=way)
    assert run.report.status == "failed"
    assert "the source is its own target" in run.report.errors[0]
    assert source.client().keys() == [b"n"]


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_a_source_that_is_a_replica_of_the_target(way: str, server_factory: ServerFactory) -> None:
    target, source = (server_factory(known("redis-7.0")) for _ in range(2))
    target.client().set("n", 1)
    make_replica(source, target)
    run = migrated(source, target, one_go=True, source_type=way)
    assert run.report.status == "failed"
    assert "the source is a replica of the target" in run.report.errors[0]
    assert target.client().keys() == [b"n"]


def test_a_source_that_becomes_a_replica_of_the_target(server_factory: ServerFactory) -> None:
    """One INCR would come round again and again; the migration is stopped, to be resumed."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    source.client().set("n", 1)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.in_sync()
        source.client().execute_command("REPLICAOF", target.host, target.port)
        target.client().incr("n")
        run.wait_for(lambda: run.progress.phase is Phase.STOPPED, f"a stop: {run.events}")
    assert run.report.status == "stopped"
    assert "replica of the target" in run.report.errors[0]
    assert target.client().get("n") == b"2"


@pytest.mark.parametrize("to", ["the target", "its replica"])
def test_a_source_address_that_leads_to_the_target(to: str, server_factory: ServerFactory) -> None:
    """After a relink. Nothing is fed back; with the right address the migration goes on."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    source.client().mset({f"key:{n}": n for n in range(200)})
    there = target if to == "the target" else server_factory(known("redis-7.0"))
    store = MemoryCheckpoint()

    with Proxy(source.host, source.port) as name:
        with migrating(name, target, checkpoints=store, timeout=60) as run:
            run.following()
            run.in_sync()
            if there is not target:
                make_replica(there, target)
                run.wait_for(lambda: in_step(there), "the replica in step")
            name.lead_to(there.host, there.port)
            name.cut_now()
            target.client().incr("probe")
            run.reaches(Phase.STOPPED)
        assert run.report.status == "stopped", (run.report.errors, run.events)
        words = "own target" if there is target else "replica of the target"
        assert words in run.report.errors[0], run.report.errors
        assert target.client().get("probe") == b"1"
        assert write_block_of(target) == write_block_of(there) == write_block_of(source) == 0
        target.client().delete("probe")
        name.lead_to(source.host, source.port)
        source.client().set("later", 1)
        with migrating(name, target, checkpoints=store, timeout=60) as run:
            completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert target.client().mget("key:7", "later") == [b"7", b"1"]
    assert target.client().dbsize() == 201
    assert_tidy(target)


def test_a_target_that_is_made_a_replica_at_the_opening(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last look: the target refuses to be opened, the source accepts writes again, and
    nothing is written to the target before it is a primary once more."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    source.client().set("key", 1)
    promote = Promotion.promote
    struck: list[bytes] = []

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        if not struck:
            # At a port of nobody: it becomes a replica, and keeps its data.
            target.client().execute_command("REPLICAOF", "127.0.0.1", 1)
            struck.append(target.client().get("startmigration:position"))
        await promote(self, *args, **options)

    monkeypatch.setattr(Promotion, "promote", promoting)

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.in_sync()
        reason = run.refused()
        assert "is a replica of" in reason or "READONLY" in reason, reason
        run.wait_for(lambda: write_block_of(source) == 0, "the write block is gone")
        assert source.client(socket_timeout=20).set("key", "2")
        assert not run.progress.can_complete
        assert target.client().mget("key", "startmigration:position") == [b"1", struck[0]]
        target.client().execute_command("REPLICAOF", "NO", "ONE")
        completed(run)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert struck
    assert target.client().get("key") == b"2"
    assert run.report.full_syncs == 1
    assert_tidy(target)
