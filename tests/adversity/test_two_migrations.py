"""Two migrations, of two states, with one target: one is refused, or takes it over; never both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import LinkError
from engine.fleet.cut_over_comparisons import comparison_of, verification_gate_of
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OwnKeys
from engine.model.position import TargetPosition
from engine.model.progress import Phase
from engine.model.replication import Replication
from engine.model.settings import TransferSettings
from engine.targets.applier import Applier, Unanswered
from engine.transfer import write_block
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.fence import PauseFence
from engine.transfer.promotion import Promotion
from engine.transfer.target_claim import Foreign, TargetClaim
from engine.verify import verify
from engine.wire import cluster_primary, event_loop
from engine.wire.control_connection import admin
from tests.support.comparison import assert_settled
from tests.support.lanes import shard_of
from tests.support.library import Run, migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters

NAME = "redis-7.0"


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    source, target = server_factory(known(NAME)), server_factory(known(NAME))
    source.client().mset({f"key:{n}": n for n in range(300)})
    return source, target


@pytest.mark.parametrize("source_type", ["replica", "scan"])
def test_a_second_one_is_refused(ends: tuple[Server, Server], source_type: str) -> None:
    """It writes nothing; the first one goes on, and each increment counts once."""
    source, target = ends

    with Counters(source) as counters, migrating(source, target) as run:
        run.following()
        second = migrated(source, target, source_type=source_type)
        assert second.report.status == "failed"
        assert "is the target of another migration" in second.report.errors[0]
        assert "--take-over" in second.report.errors[0]
        counters.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_another_one_claims_the_target_behind_our_look(server_factory: ServerFactory) -> None:
    """We look ahead of our claim. By then it is the other one's, whose claim stands."""
    target = server_factory(known(NAME))
    server, own = target.client(), OwnKeys("ours")
    theirs = TargetPosition("theirs", None, "other").encode()

    async def still_ours() -> None:
        """By the state it is."""

    async def late() -> None:
        claim = TargetClaim(own, "one", still_ours, first=True)
        async with admin(Endpoint.parse(target.url), timeout=5, fault="target") as side:
            seen = await claim.look(side)
            assert seen.value is None
            server.mset({own.position: theirs, own.left: "theirs"})
            await claim.take(side, seen)

    with pytest.raises(Foreign, match="another migration, theirs"):
        event_loop.run(late())
    assert server.mget(own.position, own.left) == [theirs, b"theirs"]


def test_another_one_claims_the_target_that_was_failed_over_behind_our_look(
    server_factory: ServerFactory,
) -> None:
    """Our connection leads to the new primary then, where nothing watches for us."""
    theirs = TargetPosition("theirs", None, "other").encode()

    async def still_ours() -> None:
        """By the state it is."""

    async def late(cluster: Cluster) -> None:
        own, (primary,) = OwnKeys("ours", tag="{0}"), cluster.primaries
        shard, (replica,) = shard_of(cluster, primary), cluster.replicas_of(primary)
        claim = TargetClaim(own, "one", still_ours, first=True)
        async with admin(shard, timeout=5, fault="target") as side:
            seen = await claim.look(side)
            assert seen.value is None
            cluster.fail_over(replica)
            replica.client().set(own.position, theirs)
            # Another connection hears of it.
            cluster_primary.forget(shard)
            async with admin(shard, timeout=5, fault="target") as other:
                assert await other.call("GET", own.position) == theirs
            with pytest.raises(Foreign, match="another migration, theirs"):
                await claim.take(side, seen)
        assert replica.client().get(own.position) == theirs

    with Cluster.start(known(NAME), primaries=1, replicas=1, make=server_factory) as cluster:
        event_loop.run(late(cluster))


@pytest.mark.parametrize("own", [False, True])
def test_a_second_one_takes_over(ends: tuple[Server, Server], own: bool) -> None:
    """The first one is shut out at once. What it had brought goes, and what the target had before
    it stays."""
    source, target = ends
    if own:
        target.client().set("own", "1")

    with Counters(source) as counters, migrating(source, target) as first:
        first.following()
        source.client().set("deleted", "1")
        first.in_sync()
        source.client().delete("deleted")
        at = Endpoint.parse(source.url), Endpoint.parse(target.url)
        both = comparison_of(*at, TransferSettings(), lambda: own)
        with migrating(source, target, take_over=True, comparison=both) as run:
            run.following()
            first.reaches(Phase.FAILED)
            counters.stop()
            run.cut_over()
    assert first.report.status == "failed"
    assert "has taken the target over" in first.report.errors[0]
    assert run.report.status == "done", (run.report.errors, run.events)
    assert any("taken over from the migration" in event for event in run.events)
    assert counters.check(target) == []
    if own:
        assert target.client().getdel("own") == b"1"
        # If the first one was shut out before it carried the DEL, nobody can tell this key from
        # the target's own.
        target.client().delete("deleted")
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_source_that_was_the_target_of_one_that_was_aborted(ends: tuple[Server, Server]) -> None:
    """Its mark comes along with its keys, and does not stay: it says nothing of this target."""
    source, target = ends
    source.client().set("startmigration:left", "v2 another engine")

    with migrating(source, target) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_tidy(target)
    source.client().config_set("min-replicas-to-write", 0)
    at = Endpoint.parse(source.url), Endpoint.parse(target.url)
    found = asyncio.run(verify(*at, TransferSettings()))
    assert found.ok, found.reason


@pytest.mark.parametrize("own", [False, True])
def test_a_scan_takes_over(ends: tuple[Server, Server], own: bool) -> None:
    """The one that follows is shut out, and what it has brought goes."""
    source, target = ends
    if own:
        target.client().set("own", "1")
    with migrating(source, target) as first:
        first.following()
        source.client().set("meanwhile", "1")
        wait_for(lambda: target.client().get("meanwhile"), "the last write that it has brought")

        at = Endpoint.parse(source.url), Endpoint.parse(target.url)
        gate = verification_gate_of(*at, TransferSettings(), lambda: own)
        with migrating(source, target, source_type="scan", take_over=True, gate=gate) as run:
            run.wait_for(lambda: run.progress.phase is Phase.COPIED, "the copy")
            # While it holds the target: the other one finds it there.
            source.client().set("later", "1")
            first.reaches(Phase.FAILED)
            first.join()
            source.client().delete("later")
            run.complete()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert first.report.status == "failed"
    assert "has taken the target over" in first.report.errors[0]
    if own:
        assert target.client().getdel("own") == b"1"
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_one_is_taken_over_in_its_snapshot(ends: tuple[Server, Server]) -> None:
    """What it has under way does not arrive in the target of the other one."""
    source, target = ends
    source.client().mset({f"old:{n}": b"old" * 100 for n in range(20_000)})
    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(1_000_000)
        first = migrating(source, proxy, timeout=60, batch_bytes=20_000, retry_for=30.0).start()
        first.wait_for(lambda: first.progress.keys > 1000, "a part of the snapshot")
        proxy.stall()
        with migrating(source, target, take_over=True, timeout=60) as run:
            run.following()
            source.client().mset({f"old:{n}": "new" for n in range(20_000)})
            run.in_sync()
            proxy.throttle(None)
            proxy.stall(False)
            first.join()
            run.cut_over()
    assert first.report.status == "failed"
    assert "has taken the target over" in first.report.errors[0]
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("own", [False, True])
def test_one_that_slept_through_a_whole_take_over(ends: tuple[Server, Server], own: bool) -> None:
    """The other one was completed meanwhile, and its target is in use: nothing is written there."""
    source, target = ends
    if own:
        target.client().set("own", "1")
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.in_sync()
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)
    both = comparison_of(
        Endpoint.parse(source.url), Endpoint.parse(target.url), TransferSettings(), lambda: own
    )
    with migrating(source, target, take_over=True, comparison=both) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    client = target.client()
    client.mset({"key:0": "newer", "of a user": "1"})
    before = {key: client.dump(key) for key in client.scan_iter(count=1000)}

    run = migrated(source, target, checkpoints=store)
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert "they may be others' by now" in run.report.errors[0]
    assert {key: client.dump(key) for key in client.scan_iter(count=1000)} == before
    if own:
        return
    # The operator empties it: then it may have everything anew.
    client.flushall()
    source.client().config_set("min-replicas-to-write", 0)
    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


@pytest.mark.parametrize("when", ["sealed", "before the seal", "unanswered", "broken off"])
@pytest.mark.parametrize("name", ["redis-7.0", "redis-6.0"])
def test_one_that_slept_in_its_cut_over(
    name: str, when: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes the target over meanwhile, and completes. The first is refused then, and
    must not open the source behind the other's cut-over."""
    source, target = server_factory(known(name)), server_factory(known(NAME))
    source.client().mset({f"key:{n}": n for n in range(300)})
    slept: list[Run] = []
    asleep: list[bool] = []
    began: list[bool] = []
    block_writes, close, promote = PauseFence.block_writes, PauseFence.close, Promotion.promote

    def other() -> None:
        slept.append(
            migrated(
                source, target, one_go=True, until="cut-over", take_over=True, cut_over_timeout=10.0
            )
        )

    async def sleep() -> None:
        if not asleep:
            asleep.append(True)
            await asyncio.to_thread(other)

    async def sealing(self: PauseFence) -> Replication | None:
        if when not in ("sealed", "broken off") and name == "redis-7.0":
            await sleep()
        return await block_writes(self)

    async def closing(self: PauseFence) -> Replication:
        # Which seals as it closes.
        if when not in ("sealed", "broken off") and name == "redis-6.0":
            await sleep()
        return await close(self)

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        if when in ("sealed", "broken off") and not asleep:
            await sleep()
            if when == "broken off":
                # Before the target was asked, which says whose it is.
                raise LinkError("the link was lost", fault="target")
        await promote(self, *args, **options)

    async def asking(self: Applier, *args: Any, **options: Any) -> None:
        if when == "unanswered" and not slept and not began:
            began.append(True)
            await sleep()
            raise Unanswered("the link was lost", fault="target")
        await ask(self, *args, **options)

    ask = Applier.promote
    monkeypatch.setattr(Applier, "promote", asking)
    monkeypatch.setattr(PauseFence, "block_writes", sealing)
    monkeypatch.setattr(PauseFence, "close", closing)
    monkeypatch.setattr(Promotion, "promote", promoting)

    with migrating(source, target, timeout=90) as run:
        run.following()
        run.in_sync()
        run.complete()
    assert slept[0].report.status == "done", (slept[0].report.errors, slept[0].events)
    assert run.report.status in ("failed", "stopped"), (run.report.errors, run.events)
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client(socket_timeout=30).set("late", 1)
    assert not target.client().exists("late")
    assert any("refus" in each for each in run.events)


@pytest.mark.parametrize("name", ["redis-7.0", "redis-6.0"])
@pytest.mark.parametrize("when", ["paused", "promoted", "lost"])
def test_what_blocked_writes_before_is_taken_away(
    name: str, when: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut-over that found the source refusing writes does not rely on it: another one that has
    set it may take it away. It sets its own then, and says what may be lost: also where it is lost
    ("lost") in the moment before, as an engine is that ends there."""
    source, target = server_factory(known(name)), server_factory(known(NAME))
    source.client().mset({f"key:{n}": n for n in range(300)})
    close, promote = PauseFence.close, Promotion.promote
    opened: list[str] = []

    def take_away() -> None:
        if not opened:
            opened.append(when)
            source.client(socket_timeout=30).config_set("min-replicas-to-write", 0)

    async def closing(self: PauseFence) -> Replication:
        if when == "paused":
            take_away()
        return await close(self)

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        await promote(self, *args, **options)
        if when != "paused":
            await asyncio.to_thread(take_away)

    def lost(before: str) -> list[tuple[Any, ...]]:
        if when == "lost" and len(opened) == 1:
            opened.append("lost")
            raise LinkError("the link was lost", fault="source")
        return commands(before)

    commands = write_block.commands
    monkeypatch.setattr(write_block, "commands", lost)
    monkeypatch.setattr(PauseFence, "close", closing)
    monkeypatch.setattr(Promotion, "promote", promoting)
    with migrating(source, target, timeout=90) as run:
        run.following()
        run.in_sync()
        source.client().config_set("min-replicas-to-write", 65535)
        if when == "paused":
            run.complete()
            run.wait_for(lambda: run.refusals, "a refusal")
            assert "accepts writes again" in run.refusals[0]
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client(socket_timeout=30).set("late", 1)
    said = " ".join(run.events)
    assert ("until it was set again exists only there" in said) == (when == "promoted")
    assert bool(run.report.lost_writes) == (when != "paused")
    # By this it can be put back.
    assert run.report.sealed == "0 10"
    assert len(opened) == (2 if when == "lost" else 1)
    assert_settled(source, target, 2)
