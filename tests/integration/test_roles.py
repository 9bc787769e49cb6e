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
from benches.support.servers import Server
from benches.support.waiting import soon
from engine.errors import StateError
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.keys import DbKey
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.transfer import fence_in_checkpoint, role_monitor
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.fence import PauseFence, fence_of
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.promotion import Promotion
from engine.transfer.transfer import Transfer
from engine.transfer.unblock_source import unblock
from engine.verify import LiveComparison
from engine.wire.control_connection import admin
from tests.support.online import assert_tidy, cut_over, following, in_sync, online, phase, refused
from tests.support.servers import ServerFactory, known
from tests.support.transfers import Run

BACKLOG = ("--repl-backlog-size", "16mb", "--repl-ping-replica-period", "1")
NAMES = ("redis-7.0", "valkey-9")


class Clicks:
    """Counts up with INCR at a server until it is refused: `acknowledged` is the last OK's number.

    Replicas refuse writes too: it goes on at the next of `servers` then, as a client that was told
    of the failover.
    """

    def __init__(self, *servers: Server) -> None:
        self.acknowledged = 0
        self.refusal = ""
        self._servers = list(servers)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        client = self._servers.pop(0).client(socket_timeout=30)
        while not self._over.is_set():
            try:
                self.acknowledged = client.incr("clicks")
            except redis.ReadOnlyError:
                client = self._servers.pop(0).client(socket_timeout=30)
            except redis.ResponseError as error:
                self.refusal = str(error)
                return
            except redis.ConnectionError:
                return

    def __enter__(self) -> Clicks:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def replica_of(replica: Server, primary: Server) -> None:
    """Make it one, and wait until it is in step."""
    replica.client().execute_command("REPLICAOF", primary.host, primary.port)


def in_step(replica: Server) -> bool:
    return replica.client().info("replication")["master_link_status"] == "up"


def write_block_of(server: Server) -> int:
    return int(next(iter(server.client().config_get("min-replicas-to-write").values())))


async def completed(work: Transfer, run: Run) -> None:
    """Give the word as soon as the gate is open, and wait for the end."""
    await soon(lambda: work.progress.can_complete, "an open gate", 40)
    work.complete()
    try:
        await soon(lambda: work.progress.phase is Phase.DONE, "the end", 40)
    except AssertionError:
        raise AssertionError(f"no end: {work.progress.reason}, {run.events}") from None


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_replica_as_the_source(name: str, hops: int, server_factory: ServerFactory) -> None:
    """It is followed; the fence and the seal go to the primary at the head of its chain."""
    chain = [server_factory(known(name), *BACKLOG) for _ in range(hops + 1)]
    target = server_factory(known("redis-7.0" if name.startswith("redis") else name))
    head, source = chain[0], chain[-1]
    head.client().mset({f"key:{n}": n for n in range(200)})
    for above, below in itertools.pairwise(chain):
        replica_of(below, above)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await completed(work, run)

    with Clicks(head) as clicks:
        asyncio.run(soon(lambda: all(map(in_step, chain[1:])), "replicas in step"))
        run = online(source, target, steer, timeout=60)
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
    replica_of(promoted, source)
    shut: list[str] = []

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted), "a replica in step")
        await in_sync(work, source)
        await soon(lambda: clicks.acknowledged > 100, "writes")
        # As Sentinel does, but with nothing lost: writes are held off for the moment.
        source.client().execute_command("CLIENT", "PAUSE", 5000, "WRITE")
        offset = source.client().info("replication")["master_repl_offset"]
        await soon(
            lambda: promoted.client().info("replication")["master_repl_offset"] >= offset, "all"
        )
        promoted.client().execute_command("REPLICAOF", "NO", "ONE")
        source.client().execute_command("REPLICAOF", promoted.host, promoted.port)
        source.client().execute_command("CLIENT", "UNPAUSE")
        await soon(lambda: not work.progress.can_complete, "a closed gate")
        shut.append(work.progress.reason)
        before = clicks.acknowledged
        await soon(lambda: clicks.acknowledged > before + 100, "writes at the new primary")
        await soon(lambda: any("is a replica of" in event for event in run.events), "an event")
        await completed(work, run)

    with Clicks(source, promoted) as clicks:
        run = online(source, target, steer, timeout=60)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged
    assert run.report.full_syncs == 1
    assert run.report.sealed_at.endswith(f":{promoted.port}")
    assert_tidy(target)


def test_a_failover_between_the_last_look_and_the_fence(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role in the fence's own MULTI counts: the cut-over is undone, and comes off later."""
    source, promoted, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    source.client().set("key", 1)
    replica_of(promoted, source)
    prepare = PauseFence.prepare
    prepared: list[str] = []

    async def fail_over(self: PauseFence) -> None:
        await prepare(self)
        prepared.append(self.before)
        if len(prepared) == 1:
            promoted.client().execute_command("REPLICAOF", "NO", "ONE")
            source.client().execute_command("REPLICAOF", promoted.host, promoted.port)

    monkeypatch.setattr(PauseFence, "prepare", fail_over)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted), "a replica in step")
        await in_sync(work, source)
        reason = await refused(work, run)
        assert f"is a replica of 127.0.0.1:{promoted.port} by now" in reason
        # Nothing is left of it there.
        assert write_block_of(source) == write_block_of(promoted) == 0
        assert await asyncio.to_thread(promoted.client(socket_timeout=5).set, "key", "2")
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
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
    source, promoted = (server_factory(known(name), *BACKLOG[:2]) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    source.client().set("key", 1)
    replica_of(promoted, source)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted), "a replica in step")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(lambda: told.replication.replicas, "the replica")
        await in_sync(work, source)
        if when == "promoting":
            work.complete()
            return
        reason = await refused(work, run)
        assert "took writes" in reason or "a replica of" in reason or "beside" in reason, reason
        if when == "detached":
            source.client().execute_command("REPLICAOF", promoted.host, promoted.port)
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert struck
    if when == "promoting":
        assert f"127.0.0.1:{promoted.port}" in run.report.lost_writes, run.report
        assert "what its new primary takes is on that server alone" in run.report.lost_writes
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
    replica_of(promoted, source)
    store = MemoryCheckpoint()
    promote = Promotion.promote

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        await asyncio.to_thread(source.kill)
        promoted.client().execute_command("REPLICAOF", "NO", "ONE")
        promoted.client().set("key", 2)
        await promote(self, *args, **options)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted), "a replica in step")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(lambda: told.replication.replicas, "the replica")
        await in_sync(work, source)
        work.complete()

    with Proxy(source.host, source.port) as name:
        with monkeypatch.context() as patch:
            patch.setattr(Promotion, "promote", promoting)
            patch.setattr(fence_in_checkpoint, "_FINISH_SECONDS", 0.1)
            run = online(name, target, steer, checkpoints=store, timeout=60)
        assert run.report.status == "stopped", (run.report.errors, run.events)
        if then == "back":
            source.restart()
        else:
            name.lead_to(promoted.host, promoted.port)
        run = online(name, target, checkpoints=store, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert "what its new primary takes is on that server alone" in run.report.lost_writes
    assert any("failed over while the target was opened" in each for each in run.events)


def test_a_replica_that_dies_as_the_source(server_factory: ServerFactory) -> None:
    """Its primary goes on with the stream, and is followed."""
    head, source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    head.client().set("key", 1)
    replica_of(source, head)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: work.progress.can_complete, "an open gate")
        await asyncio.to_thread(source.kill)
        head.client().set("key", 2)
        await soon(lambda: any("goes on with its stream" in e for e in run.events), "the primary")
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
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
    replica_of(promoted, source)
    replica_of(bystander, source)
    store = MemoryCheckpoint()
    nodes = (f"127.0.0.1:{bystander.port}=detached",)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted) and in_step(bystander), "replicas in step")
        # It knows the source's history as well, but parted from it before.
        bystander.client().execute_command("REPLICAOF", "NO", "ONE")
        bystander.client().set("key:0", "another")
        source.client().set("last", 1)
        await in_sync(work, source)
        await soon(lambda: promoted.client().get("last") == b"1", "the replica's copy")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(
            lambda: told.replication.replicas == (f"127.0.0.1:{promoted.port}",), "the replicas"
        )
        await asyncio.to_thread(source.kill)
        promoted.client().execute_command("REPLICAOF", "NO", "ONE")
        await soon(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        with Clicks(promoted) as clicks:
            await soon(lambda: clicks.acknowledged > 100, "writes")
        await soon(lambda: work.progress.can_complete, f"an open gate: {run.events}", 40)
        await asyncio.to_thread(source.restart)
        await soon(lambda: "answers again as a primary" in work.progress.reason, "the reason")
        assert not work.progress.can_complete
        replica_of(source, promoted)
        await soon(lambda: work.progress.can_complete, f"an open gate again: {run.events}", 40)
        work.stop()

    run = online(source, target, steer, checkpoints=store, source_nodes=nodes, timeout=90)
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert run.report.full_syncs == 1

    with Clicks(promoted) as clicks:
        run = online(source, target, completed, checkpoints=store, source_nodes=nodes, timeout=90)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted), "the replica in step")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(
            lambda: told.replication.replicas == (f"127.0.0.1:{promoted.port}",), "the replica"
        )
        await soon(lambda: work.progress.can_complete, "an open gate")
        promoted.client().execute_command("SLAVEOF", "NO", "ONE")
        promoted.client().incr("clicks")
        await soon(lambda: "a primary beside" in work.progress.reason, "the reason")
        assert f"127.0.0.1:{promoted.port}" in work.progress.reason
        assert not work.progress.can_complete
        assert "a primary beside" in await refused(work, run)
        # The failover comes to its end.
        source.client().execute_command("SLAVEOF", promoted.host, promoted.port)
        if name == "redis-3.2":  # a chain's offsets are not one stream's there
            work.stop()
            return
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
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
        replica_of(replica, source)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(one) and in_step(two), "replicas in step")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(lambda: len(told.replication.replicas) == 2, "the replicas")
        await soon(lambda: work.progress.can_complete, "an open gate")
        await asyncio.to_thread(source.kill)
        for replica in (one, two):
            replica.client().execute_command("REPLICAOF", "NO", "ONE")
        await soon(lambda: any("more than one of" in e for e in run.events), "both")
        assert not any("goes on with its stream" in e for e in run.events)
        replica_of(two, one)
        await soon(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        await soon(lambda: work.progress.can_complete, f"an open gate: {run.events}", 40)
        two.client().execute_command("REPLICAOF", "NO", "ONE")
        two.client().incr("clicks")
        await soon(lambda: "a primary beside" in work.progress.reason, "the reason")
        assert "a primary beside" in await refused(work, run)
        replica_of(two, one)
        one.client().incr("clicks")
        await completed(work, run)

    run = online(source, target, steer, timeout=90)
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
    replica_of(promoted, source)

    class Late(LiveComparison):
        async def choose(self, first: Iterable[DbKey], then: Iterable[DbKey]) -> None:
            await super().choose(first, then)
            promoted.client().execute_command("REPLICAOF", "NO", "ONE")
            promoted.client().incr("clicks")

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(promoted), "the replica in step")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(lambda: told.replication.replicas, "the replica")
        await soon(lambda: work.progress.can_complete, "an open gate")
        monkeypatch.setattr(role_monitor, "_LOOK_SECONDS", 3600.0)
        await asyncio.sleep(1.5)  # the look that has begun
        assert "a primary beside" in await refused(work, run)
        source.client().set("key", 1)  # it takes writes again
        work.stop()

    ends = (Endpoint.parse(each.url) for each in (source, target))
    late = Late(*ends, TransferSettings(), lambda: False)
    run = online(source, target, steer, comparison=late, timeout=60)
    assert run.report.status == "stopped", (run.report.errors, run.events)


def test_a_source_that_died_while_no_engine_ran(server_factory: ServerFactory) -> None:
    """It told the next engine nothing: its successor is one of the servers that the operator names,
    as soon as no other of them could be it."""
    source, promoted, other, target = (
        server_factory(known("redis-7.0"), *BACKLOG) for _ in range(4)
    )
    source.client().mset({f"key:{n}": n for n in range(200)})
    replica_of(promoted, source)
    replica_of(other, source)
    store = MemoryCheckpoint()

    async def stop(work: Transfer, run: Run) -> None:
        await following(work)
        source.client().set("last", 1)
        await in_sync(work, source)
        await soon(lambda: in_step(promoted) and in_step(other), "replicas in step")
        for server in (promoted, other):
            await soon(lambda: server.client().get("last") == b"1", "the replica's copy")  # noqa: B023
        work.stop()

    run = online(source, target, stop, checkpoints=store)
    assert run.report.status == "stopped", (run.report.errors, run.events)
    source.kill()
    for server in (promoted, other):
        server.client().execute_command("REPLICAOF", "NO", "ONE")
    promoted.client().incr("clicks")

    async def steer(work: Transfer, run: Run) -> None:
        await soon(lambda: any("more than one of" in each for each in run.events), "a refusal")
        assert not any("goes on with its stream" in each for each in run.events)
        replica_of(other, promoted)
        await soon(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        promoted.client().incr("clicks")
        await completed(work, run)

    nodes = tuple(f"{server.host}:{server.port}" for server in (other, promoted))
    run = online(
        source, target, steer, checkpoints=store, source_nodes=nodes, timeout=90, retry_for=60.0
    )
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
    replica_of(other, source)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: in_step(other), "a replica in step")
        told = work._way.lanes[0]._source  # type: ignore[union-attr]
        await soon(lambda: told.replication.replicas == (f"127.0.0.1:{other.port}",), "the replica")
        # 1. The failover.
        await asyncio.to_thread(source.kill)
        other.client().execute_command("REPLICAOF", "NO", "ONE")
        await soon(lambda: any("goes on with its stream" in e for e in run.events), "a successor")
        other.client().set("key:0", "B")
        await asyncio.to_thread(source.restart)
        replica_of(source, other)
        await soon(lambda: in_step(source), "the former source in step")
        await soon(lambda: work.progress.can_complete, f"an open gate: {run.events}", 40)
        # 2. And back.
        source.client().execute_command("REPLICAOF", "NO", "ONE")
        replica_of(other, source)
        await soon(lambda: in_step(other), "the replica in step")
        source.client().set("key:1", "A")
        taken = f"writes are taken by 127.0.0.1:{source.port}"
        await soon(lambda: taken in run.events, f"who takes the writes: {run.events}", 40)
        await in_sync(work, other)
        if comes_back == "succeeds":
            await asyncio.to_thread(other.kill)
            await soon(
                lambda: sum("goes on with its stream" in e for e in run.events) == 2, "the source"
            )
        await completed(work, run)

    run = online(source, target, steer, timeout=90)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: clicks.acknowledged > 100, "writes")
        await cut_over(work, run, source)

    with Clicks(source) as clicks:
        run = online(source, target, steer, timeout=60)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: min(acknowledged) > 10, "transactions")
        await cut_over(work, run, source)

    threads = [threading.Thread(target=transact, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        run = online(source, target, steer, timeout=60)
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
    replica_of(source, head)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: "which cannot be asked" in work.progress.reason, "the reason")
        assert f"127.0.0.1:{head.port}" in work.progress.reason
        assert not work.progress.can_complete
        assert "which cannot be asked" in await refused(work, run)
        head.client(password="secret").config_set("requirepass", "")
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"1"


def test_a_primary_that_falls_silent(server_factory: ServerFactory) -> None:
    """The source, its replica, still takes its link for up: the gate is closed all the same."""
    head, source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(3))
    head.client().set("key", 1)
    replica_of(source, head)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: work.progress.can_complete, "an open gate")
        head.freeze()
        try:
            await soon(lambda: "has not answered for 2 s" in work.progress.reason, "a reason")
            assert not work.progress.can_complete
        finally:
            head.thaw()
        await soon(lambda: work.progress.can_complete, "an open gate again", 40)
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"1"


@pytest.mark.parametrize("fence", ["none", "hook"])
def test_the_operators_own_fence_at_a_replica(
    fence: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """`--fence none` and `--fence hook`: the source's own offset counts where its primary cannot be
    asked."""
    script, noted = tmp_path / "hook.sh", tmp_path / "noted"
    script.write_text(f"echo \"$1\" >> '{noted}'\n")
    settings = {"fence": fence, **({"fence_hook": f"sh {script}"} if fence == "hook" else {})}
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().set("key", 1)
    replica_of(source, head)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: source.client().get("key") == b"1", "the replica's copy")
        head.kill()
        await completed(work, run)

    run = online(source, target, steer, timeout=60, **settings)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"1"
    assert run.report.verification is not None
    assert "compared with a replica of the source" in run.report.verification.reason
    if fence == "hook":
        assert noted.read_text().split()[-2:] == ["fence", "done"]


def test_the_role_is_looked_at_each_second(server_factory: ServerFactory) -> None:
    """A rate, over a few seconds in which the machine did not stand still: others count nothing."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    source.client().set("key", 1)
    client = source.client()

    def asked() -> int:
        return int(client.info("commandstats")["cmdstat_info"]["calls"])

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        rates: list[float] = []
        while not rates or (max(rates) < 1.0 and len(rates) < 8):
            before, began = asked(), time.monotonic()
            await asyncio.sleep(3.0)
            # One of them was ours.
            rates.append((asked() - before - 1) / (time.monotonic() - began))
        assert max(rates) >= 1.0, rates
        work.stop()

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "stopped", (run.report.errors, run.events)


@pytest.mark.parametrize("name", ["redis-7.0", "redis-5.0"])
@pytest.mark.parametrize("word", ["complete", "in-sync"])
def test_what_a_primary_changes_without_a_word(
    name: str, word: str, server_factory: ServerFactory
) -> None:
    """The delivery counts of a primary are not those of its replica, which is the source: the
    target is held against the primary, and is never called equal."""
    head, source = (server_factory(known(name), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    client = head.client()
    for key in ("jobs", "quiet"):
        client.xadd(key, {"f": "v"}, id="1-1")
        client.xgroup_create(key, "group", "0")
        client.xreadgroup("group", "reader", {key: ">"})
    replica_of(source, head)
    asyncio.run(soon(lambda: in_step(source), "the replica in step"))
    client.xreadgroup("group", "reader", {"jobs": "0"})

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        reason = await refused(work, run)
        assert "1 keys differ" in reason
        assert "key jobs" in reason
        assert f"compared with 127.0.0.1:{head.port}" in reason
        assert "name the primary as the source" in reason
        client.delete("jobs")
        await completed(work, run)

    if word == "in-sync":
        run = online(source, target, one_go=True, until="in-sync", timeout=60)
        assert run.report.status != "done"
        return
    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().xpending("quiet", "group")["pending"] == 1
    assert not target.client().exists("jobs")
    assert_tidy(target)


def test_two_primaries(server_factory: ServerFactory) -> None:
    """The source is detached from its primary, which goes on taking writes."""
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().set("key", 1)
    replica_of(source, head)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: work.progress.can_complete, "an open gate")
        source.client().execute_command("REPLICAOF", "NO", "ONE")
        head.client().set("key", 2)
        await soon(lambda: "is still one too" in work.progress.reason, "the reason")
        assert not work.progress.can_complete
        assert any("is a primary now" in event for event in run.events)
        replica_of(source, head)
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"


class _DiesBehindTheWriteBlock(MemoryCheckpoint):
    """An engine that ends just when it would write down that the target is being opened."""

    def save(self, checkpoint: Checkpoint) -> None:
        if isinstance(checkpoint.position, OnlineCheckpoint) and checkpoint.position.promoting:
            raise StateError("died here")
        super().save(checkpoint)


def test_a_fence_that_a_crash_has_left_at_the_primary(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next engine takes it away there, where it stands by the books."""
    head, source = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    target = server_factory(known("redis-7.0"))
    head.client().set("key", 1)
    replica_of(source, head)
    store = _DiesBehindTheWriteBlock()

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: work.progress.can_complete, "an open gate")
        work.complete()
        await phase(work, Phase.FAILED)

    async def nothing(self: FenceUpkeep, *of: object, **more: object) -> None:
        pass

    with monkeypatch.context() as patched:
        for name in ("take_away", "remove"):
            patched.setattr(FenceUpkeep, name, nothing)
        online(source, target, steer, checkpoints=store)
    assert write_block_of(head) == 65535
    again = MemoryCheckpoint()
    checkpoint = store.load()
    assert checkpoint is not None
    again.save(checkpoint)

    async def go_on(work: Transfer, run: Run) -> None:
        await following(work)
        assert write_block_of(head) == 0
        assert await asyncio.to_thread(head.client(socket_timeout=5).set, "key", "2")
        await completed(work, run)

    run = online(source, target, go_on, checkpoints=again)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        # At a port of nobody: it becomes a replica, and keeps its data.
        target.client().execute_command("REPLICAOF", "127.0.0.1", 1)
        await soon(lambda: "is a replica of" in work.progress.reason, "the reason")
        assert not work.progress.can_complete
        # It is the target that is waited for: nothing is said of the source's link.
        assert (work.progress.link, work.progress.lag_bytes) == ("", None)
        source.client().set("key", 2)
        assert target.client().get("key") == b"1"
        assert any("nothing is written to it" in event for event in run.events)
        target.client().execute_command("REPLICAOF", "NO", "ONE")
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_one_server_under_two_addresses(way: str, server_factory: ServerFactory) -> None:
    source = server_factory(known("redis-7.0"))
    source.client().set("n", 1)
    with Proxy(source.host, source.port) as proxy:
        run = online(source, proxy, one_go=True, source_type=way)
    assert run.report.status == "failed"
    assert "the source is its own target" in run.report.errors[0]
    assert source.client().keys() == [b"n"]


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_a_source_that_is_a_replica_of_the_target(way: str, server_factory: ServerFactory) -> None:
    target, source = (server_factory(known("redis-7.0")) for _ in range(2))
    target.client().set("n", 1)
    replica_of(source, target)
    run = online(source, target, one_go=True, source_type=way)
    assert run.report.status == "failed"
    assert "the source is a replica of the target" in run.report.errors[0]
    assert target.client().keys() == [b"n"]


def test_a_source_that_becomes_a_replica_of_the_target(server_factory: ServerFactory) -> None:
    """One INCR would come round again and again; the migration is stopped, to be resumed."""
    source, target = (server_factory(known("redis-7.0"), *BACKLOG) for _ in range(2))
    source.client().set("n", 1)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        source.client().execute_command("REPLICAOF", target.host, target.port)
        target.client().incr("n")
        await soon(lambda: work.progress.phase is Phase.STOPPED, f"a stop: {run.events}")

    run = online(source, target, steer, timeout=60)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        if there is not target:
            replica_of(there, target)
            await soon(lambda: in_step(there), "the replica in step")
        name.lead_to(there.host, there.port)
        name.cut_now()
        target.client().incr("probe")
        await phase(work, Phase.STOPPED)

    with Proxy(source.host, source.port) as name:
        run = online(name, target, steer, checkpoints=store, timeout=60)
        assert run.report.status == "stopped", (run.report.errors, run.events)
        words = "own target" if there is target else "replica of the target"
        assert words in run.report.errors[0], run.report.errors
        assert target.client().get("probe") == b"1"
        assert write_block_of(target) == write_block_of(there) == write_block_of(source) == 0
        target.client().delete("probe")
        name.lead_to(source.host, source.port)
        source.client().set("later", 1)
        run = online(name, target, completed, checkpoints=store, timeout=60)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        reason = await refused(work, run)
        assert "is a replica of" in reason or "READONLY" in reason, reason
        await soon(lambda: write_block_of(source) == 0, "the write block is gone")
        assert await asyncio.to_thread(source.client(socket_timeout=20).set, "key", "2")
        assert not work.progress.can_complete
        assert target.client().mget("key", "startmigration:position") == [b"1", struck[0]]
        target.client().execute_command("REPLICAOF", "NO", "ONE")
        await completed(work, run)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert struck
    assert target.client().get("key") == b"2"
    assert run.report.full_syncs == 1
    assert_tidy(target)
