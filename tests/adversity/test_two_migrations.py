"""Two migrations, of two states, with one target: one is refused, or takes it over; never both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import soon, wait_for
from engine.fleet.verification_gate import comparison_of, verification_gate_of
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.model.replication import Replication
from engine.model.settings import TransferSettings
from engine.targets.applier import Applier, Unanswered
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.fence import PauseFence
from engine.transfer.promotion import Promotion
from engine.transfer.transfer import Transfer
from engine.verify import verify
from tests.support.comparison import assert_settled
from tests.support.online import assert_tidy, cut_over, following, in_sync, online, phase
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters
from tests.support.transfers import Run, transfer

NAME = "redis-7.0"


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    source, target = server_factory(known(NAME)), server_factory(known(NAME))
    source.client().mset({f"key:{n}": n for n in range(300)})
    return source, target


def beside(run: Callable[[], Run]) -> tuple[threading.Thread, list[Run]]:
    """A second migration of this process, on a loop of its own."""
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(run()))
    thread.start()
    return thread, runs


@pytest.mark.parametrize("source_type", ["replica", "scan"])
def test_a_second_one_is_refused(ends: tuple[Server, Server], source_type: str) -> None:
    """It writes nothing; the first one goes on, and each increment counts once."""
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        thread, runs = beside(
            lambda: transfer(source, target, one_go=False, source_type=source_type)
        )
        await asyncio.to_thread(thread.join)
        assert runs[0].report.status == "failed"
        assert "is the target of another migration" in runs[0].report.errors[0]
        assert "--take-over" in runs[0].report.errors[0]
        await asyncio.to_thread(counters.stop)
        await cut_over(work, run, source)

    with Counters(source) as counters:
        run = online(source, target, steer)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("own", [False, True])
def test_a_second_one_takes_over(ends: tuple[Server, Server], own: bool) -> None:
    """The first one is shut out at once. What it had brought goes, and what the target had before
    it stays."""
    source, target = ends
    if own:
        target.client().set("own", "1")
    first: list[Transfer] = []
    there = threading.Event()

    async def old(work: Transfer, run: Run) -> None:
        first.append(work)
        await following(work)
        source.client().set("deleted", "1")
        await in_sync(work, source)
        there.set()
        await phase(work, Phase.FAILED)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: first[0].progress.phase is Phase.FAILED, "the end of the first")
        await asyncio.to_thread(counters.stop)
        await cut_over(work, run, source)

    with Counters(source) as counters:
        thread, runs = beside(lambda: online(source, target, old))
        assert there.wait(30)
        source.client().delete("deleted")
        at = Endpoint.parse(source.url), Endpoint.parse(target.url)
        both = comparison_of(*at, TransferSettings(), lambda: own)
        run = online(source, target, steer, take_over=True, comparison=both)
        thread.join()
    assert runs[0].report.status == "failed"
    assert "has taken the target over" in runs[0].report.errors[0]
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await cut_over(work, run, source)

    run = online(source, target, steer)
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
    there, over = threading.Event(), threading.Event()

    async def old(work: Transfer, run: Run) -> None:
        await following(work)
        there.set()
        await asyncio.to_thread(over.wait)
        source.client().set("later", "1")
        await phase(work, Phase.FAILED)

    thread, runs = beside(lambda: online(source, target, old))
    assert there.wait(30)
    try:
        source.client().set("meanwhile", "1")
        wait_for(lambda: target.client().get("meanwhile"), "the last write that it has brought")

        async def steer(work: Transfer, run: Run) -> None:
            await soon(lambda: work.progress.phase is Phase.COPIED, "the copy")
            # While it holds the target: the other one finds it there.
            over.set()
            await asyncio.to_thread(thread.join)
            source.client().delete("later")
            work.complete()

        at = Endpoint.parse(source.url), Endpoint.parse(target.url)
        gate = verification_gate_of(*at, TransferSettings(), lambda: own)
        run = online(source, target, steer, source_type="scan", take_over=True, gate=gate)
    finally:
        over.set()
        thread.join()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert runs[0].report.status == "failed"
    assert "has taken the target over" in runs[0].report.errors[0]
    if own:
        assert target.client().getdel("own") == b"1"
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_one_is_taken_over_in_its_snapshot(ends: tuple[Server, Server]) -> None:
    """What it has under way does not arrive in the target of the other one."""
    source, target = ends
    source.client().mset({f"old:{n}": b"old" * 100 for n in range(20_000)})
    stalled = threading.Event()
    first: list[Transfer] = []

    async def old(work: Transfer, run: Run) -> None:
        first.append(work)
        await soon(lambda: work.progress.keys > 1000, "a part of the snapshot")
        proxy.stall()
        stalled.set()
        await soon(lambda: work.progress.phase is Phase.FAILED, "its end", 50)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await asyncio.to_thread(
            lambda: source.client().mset({f"old:{n}": "new" for n in range(20_000)})
        )
        await in_sync(work, source)
        proxy.throttle(None)
        proxy.stall(False)
        await asyncio.to_thread(thread.join)
        await cut_over(work, run, source)

    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(1_000_000)
        thread, runs = beside(
            lambda: online(source, proxy, old, timeout=60, batch_bytes=20_000, retry_for=30.0)
        )
        assert stalled.wait(30)
        run = online(source, target, steer, take_over=True, timeout=60)
        proxy.stall(False)
        thread.join()
    assert runs[0].report.status == "failed"
    assert "has taken the target over" in runs[0].report.errors[0]
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

    async def stop(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        work.stop()

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await cut_over(work, run, source)

    run = online(source, target, stop, checkpoints=store)
    assert run.report.status == "stopped", (run.report.errors, run.events)
    both = comparison_of(
        Endpoint.parse(source.url), Endpoint.parse(target.url), TransferSettings(), lambda: own
    )
    run = online(source, target, steer, take_over=True, comparison=both)
    assert run.report.status == "done", (run.report.errors, run.events)
    client = target.client()
    client.mset({"key:0": "newer", "of a user": "1"})
    before = {key: client.dump(key) for key in client.scan_iter(count=1000)}

    run = online(source, target, None, checkpoints=store)
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert "they may be others' by now" in run.report.errors[0]
    assert {key: client.dump(key) for key in client.scan_iter(count=1000)} == before
    if own:
        return
    # The operator empties it: then it may have everything anew.
    client.flushall()
    source.client().config_set("min-replicas-to-write", 0)
    run = online(source, target, steer, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


@pytest.mark.parametrize("when", ["sealed", "before the seal", "unanswered"])
@pytest.mark.parametrize("name", ["redis-7.0", "redis-6.0"])
def test_one_that_slept_in_its_cut_over(
    name: str, when: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes the target over meanwhile, and completes. The first is refused then, and
    must not open the source behind the other's cut-over."""
    source, target = server_factory(known(name)), server_factory(known(NAME))
    source.client().mset({f"key:{n}": n for n in range(300)})
    slept: list[Run] = []
    began: list[bool] = []
    block_writes, close, promote = PauseFence.block_writes, PauseFence.close, Promotion.promote

    def other() -> None:
        slept.append(
            online(
                source, target, one_go=True, until="cut-over", take_over=True, cut_over_timeout=10.0
            )
        )

    async def sleep() -> None:
        if threading.current_thread() is threading.main_thread() and not slept:
            await asyncio.to_thread(other)

    async def sealing(self: PauseFence) -> None:
        if when != "sealed" and name == "redis-7.0":
            await sleep()
        await block_writes(self)

    async def closing(self: PauseFence) -> Replication:
        if when != "sealed" and name == "redis-6.0":  # which seals as it closes
            await sleep()
        return await close(self)

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        if when == "sealed":
            await sleep()
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        work.complete()

    run = online(source, target, steer, timeout=90)
    assert slept[0].report.status == "done", (slept[0].report.errors, slept[0].events)
    assert run.report.status in ("failed", "stopped"), (run.report.errors, run.events)
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client(socket_timeout=30).set("late", 1)
    assert not target.client().exists("late")
    assert any("refus" in each for each in run.events)
