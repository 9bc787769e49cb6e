"""An engine that was killed, or is taken for dead, and the one that takes its migration over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.errors import LinkError, StateError
from engine.model.checkpoint import Checkpoint
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.position import StreamPosition, TargetPosition
from engine.targets.applier import Applied, Applier
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.key_resync import KeyResync
from engine.transfer.promotion import Promotion
from engine.transfer.target_claim import TargetClaim
from engine.wire.psync import FullSync, PartialSync
from tests.support.comparison import assert_settled
from tests.support.followers import next_batch, source_of
from tests.support.library import Run, migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known, offset_of
from tests.support.traffic import Counters

NAMES = ("redis-7.0", "valkey-9")


@pytest.fixture(params=NAMES)
def ends(request: pytest.FixtureRequest, server_factory: ServerFactory) -> tuple[Server, Server]:
    binary = known(request.param)
    source = server_factory(binary, "--repl-backlog-size", "16kb")
    target = server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(300)})
    return source, target


def ended(source: Server, target: Server, *before: Callable[[], None], **options: Any) -> Run:
    """Follow, do what is given, cut over."""
    with migrating(source, target, **options) as run:
        run.following()
        for act in before:
            act()
        run.cut_over()
    return run


def token_of(store: MemoryCheckpoint) -> str:
    checkpoint = store.load()
    assert checkpoint is not None
    assert isinstance(checkpoint.position, OnlineCheckpoint)
    return checkpoint.position.token


# --- What the last transaction may lack ---


def test_killed_before_it_read_that_commands_had_failed(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They failed inside a transaction that was applied, and nobody alive has seen it."""
    source, target = ends
    store = MemoryCheckpoint()
    died: list[bool] = []
    apply = Applier.apply

    async def applied_and_dead(self: Applier, *args: Any, **more: Any) -> Applied:
        result = await apply(self, *args, **more)
        if result.failed:
            died.append(True)
            await asyncio.Event().wait()
        return result

    with migrating(source, target, checkpoints=store) as run:
        run.in_sync()
        # Whatever makes a command fail on the target alone.
        target.client().set("list", "no list")
        monkeypatch.setattr(Applier, "apply", applied_and_dead)
        source.client().rpush("list", "a", "b")
        run.wait_for(lambda: died, "the transaction")
        monkeypatch.setattr(Applier, "apply", apply)
        run.stop()
    assert target.client().type("list") == b"string"
    run = ended(source, target, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_killed_again_while_it_looks_through_the_last_transaction(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = ends
    store = MemoryCheckpoint()
    seen: list[bool] = []
    apply, keys_in = Applier.apply, KeyResync.keys_in

    async def applied_and_dead(self: Applier, *args: Any, **more: Any) -> Applied:
        result = await apply(self, *args, **more)
        if result.failed:
            seen.append(True)
            await asyncio.Event().wait()
        return result

    async def looks_and_dies(*_: Any) -> Any:
        seen.append(True)
        await asyncio.Event().wait()

    with migrating(source, target, checkpoints=store) as run:
        run.in_sync()
        target.client().set("list", "no list")
        monkeypatch.setattr(Applier, "apply", applied_and_dead)
        source.client().rpush("list", "a", "b")
        run.wait_for(lambda: seen, "the transaction")
        run.stop()
    monkeypatch.setattr(Applier, "apply", apply)
    monkeypatch.setattr(KeyResync, "keys_in", looks_and_dies)
    # What comes meanwhile must not hide what is in doubt.
    source.client().set("later", "x")
    with migrating(source, target, checkpoints=store) as run:
        run.wait_for(lambda: len(seen) == 2, "a look")
        run.stop()
    monkeypatch.setattr(KeyResync, "keys_in", keys_in)
    run = ended(source, target, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)


def test_the_source_goes_when_it_is_asked_for_the_keys_of_what_failed(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = ends
    keys_of = KeyResync.keys_of
    lost: list[bool] = []

    async def lost_once(self: KeyResync, *args: Any) -> Any:
        if not lost:
            lost.append(True)
            raise LinkError("the source's link is gone", fault="source")
        return await keys_of(self, *args)

    def mark_dirty() -> None:
        target.client().set("list", "no list")
        monkeypatch.setattr(KeyResync, "keys_of", lost_once)
        source.client().rpush("list", "a", "b")

    run = ended(source, target, mark_dirty)
    assert lost
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)


def test_killed_again_and_again_in_the_middle_of_writes(ends: tuple[Server, Server]) -> None:
    source, target = ends
    source.client().config_set("repl-backlog-size", 16 << 20)
    store = MemoryCheckpoint()

    with Counters(source) as counters:
        for _ in range(6):
            with migrating(source, target, checkpoints=store) as run:
                run.following()
                time.sleep(0.15)
                run.stop()
        run = ended(source, target, counters.stop, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("name", NAMES)
def test_an_earlier_place_is_not_enough(server_factory: ServerFactory, name: str) -> None:
    """A source whose history is another one behind `since` must not pass for the same."""
    server = server_factory(known(name))

    async def main() -> None:
        async with source_of(server) as source:
            assert isinstance(await source.open(None), FullSync)
            async for _ in source.snapshot():
                pass
            start = StreamPosition(source.replid, offset_of(server))
            server.client().set("k", "v")
            end = StreamPosition(source.replid, offset_of(server))
            ahead = StreamPosition(source.replid, end.offset + 1)
            await source.close()
            assert isinstance(await source.open(ahead, start), FullSync)
            await source.close()
            sync = await source.open(end, start)
            assert sync == PartialSync(end.replid, start.offset)
            batch = await next_batch(source)
            assert batch.start_offset == start.offset
            assert batch.command(0) == (b"SET", b"k", b"v") or batch.command(0)[1] == b"k"

    asyncio.run(main())


# --- What a replaced engine still has under way ---


def test_a_transaction_that_arrives_late(ends: tuple[Server, Server]) -> None:
    """Sent before its engine was killed, read by the target after the next one took over."""
    source, target = ends
    store = MemoryCheckpoint()
    late = target.client()

    with migrating(source, target, checkpoints=store) as run:
        run.in_sync()
        run.stop()
    key = OwnKeys(token_of(store)).position
    found = late.get(key)
    assert found is not None
    held = TargetPosition.decode(found)
    assert held.position is not None
    pipe = late.pipeline()
    pipe.watch(key)
    source.client().incr("counter")

    def arrive() -> None:
        pipe.multi()
        pipe.incr("counter")
        at = StreamPosition(held.position.replid, held.position.offset + 30)  # type: ignore[union-attr]
        pipe.set(key, TargetPosition(held.transfer, at, held.engine).encode())
        with pytest.raises(Exception, match="Watched variable changed"):
            pipe.execute()

    run = ended(source, target, arrive, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("counter") == b"1"
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_target_that_comes_back_with_the_claim_of_the_engine_before(
    ends: tuple[Server, Server],
) -> None:
    source, target = ends
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.in_sync()
        target.client().save()
        run.stop()

    # A gate that lets everything pass.
    with migrating(source, target, checkpoints=store, gate_in_sync=None) as run:
        run.in_sync()
        source.client().incr("counter")
        run.wait_for(lambda: target.client().get("counter") == b"1", "the count")
        target.kill()
        target.restart()
        # Nothing is being written, and the engine has not looked: the cut-over must.
        while not run.ended:
            run.complete()
            time.sleep(0.3)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert target.client().get("counter") == b"1"
    assert_settled(source, target, 2)


class Owned(MemoryCheckpoint):
    """One engine's way to a state that several share, as `ClaimedTransfer` is."""

    owner: list[Owned]
    """Who has the claim now, last; shared."""

    def __init__(self, store: MemoryCheckpoint, owner: list[Owned]) -> None:
        super().__init__()
        self._store = store
        self.owner = owner
        self.asleep: threading.Event | None = None
        self.awake = threading.Event()

    def take(self) -> None:
        self.owner.append(self)

    def load(self) -> Checkpoint | None:
        return self._store.load()

    def save(self, checkpoint: Checkpoint) -> None:
        if self.owner[-1] is not self:
            raise StateError("the claim is another's")
        self._store.save(checkpoint)
        if self.asleep is not None:
            self.asleep.set()
            self.awake.wait(60)


@pytest.mark.parametrize("held_before", [False, True], ids=["emptied", "kept"])
def test_an_engine_that_sleeps_before_it_empties_the_target(
    ends: tuple[Server, Server], held_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the state and FLUSHALL another one takes over; then it wakes up."""
    source, target = ends
    if held_before:
        target.client().set("users", "own")
    store, owner = MemoryCheckpoint(), []  # type: ignore[var-annotated]
    first, second = Owned(store, owner), Owned(store, owner)
    first.take()
    slept = threading.Event()
    clear = TargetClaim.clear

    async def sleepy(self: TargetClaim, *args: Any) -> None:
        if owner[-1] is first:
            first.asleep = slept
        await clear(self, *args)

    monkeypatch.setattr(TargetClaim, "clear", sleepy)

    def write() -> None:
        pipe = source.client().pipeline(transaction=False)
        for n in range(50):
            pipe.set(f"new:{n}", b"x" * 100_000)
        pipe.execute()

    with (
        Proxy(source.host, source.port) as proxy,
        migrating(proxy, target, checkpoints=first, timeout=60) as beaten,
    ):
        beaten.following()
        proxy.refuse()
        proxy.cut_now()
        write()
        proxy.refuse(False)
        assert slept.wait(30)
        second.take()
        with migrating(source, target, checkpoints=second, timeout=60) as run:
            run.following()
            source.client().set("seen", "by the second")
            run.in_sync()
            first.awake.set()
            beaten.join()
            # It has done what it does on its way out.
            assert target.client().get("seen") == b"by the second"
            if held_before:
                assert target.client().getdel("users") == b"own"
            run.cut_over()
    assert beaten.report.status == "failed"
    assert "the claim is another's" in beaten.report.errors[0]
    assert run.report.status == "done", (run.report.errors, run.events)
    # One by the first engine, which slept before its second; one by the other.
    assert run.report.full_syncs == 2
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_values_of_a_snapshot_that_arrive_late(ends: tuple[Server, Server]) -> None:
    """On their way when another engine takes over: what they hold is older than its snapshot."""
    source, target = ends
    store, owner = MemoryCheckpoint(), []  # type: ignore[var-annotated]
    first, second = Owned(store, owner), Owned(store, owner)
    first.take()
    source.client().mset({f"old:{n}": b"old" * 100 for n in range(20_000)})

    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(1_000_000)
        beaten = migrating(source, proxy, checkpoints=first, timeout=60, batch_bytes=20_000).start()
        beaten.wait_for(lambda: beaten.progress.keys > 1000, "a part of the snapshot")
        proxy.stall()
        second.take()
        with migrating(source, target, checkpoints=second, timeout=60) as run:
            run.following()
            source.client().mset({f"old:{n}": "new" for n in range(20_000)})
            run.in_sync()
            proxy.throttle(None)
            proxy.stall(False)
            beaten.join()
            time.sleep(0.2)
            run.cut_over()
    assert beaten.report.status == "failed"
    assert "the claim is another's" in beaten.report.errors[0]
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_killed_while_it_ends_by_force(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on the target may be in use: whoever comes after it has nothing to do there."""
    source, target = ends
    store = MemoryCheckpoint()
    tidy_up = Promotion.tidy_up

    async def killed(_: Promotion) -> None:
        raise LinkError("dead", fault="target")

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        monkeypatch.setattr(Promotion, "tidy_up", killed)
        run.complete(force=True)
    assert run.report.errors[0].startswith("aborted by force, not cut over: ")
    monkeypatch.setattr(Promotion, "tidy_up", tidy_up)
    target.client().set("users", "own")
    source.client().set("users", "not theirs")
    # And the source's backlog is gone, so that whoever went on would begin anew.
    source.client().set("long", b"x" * 100_000)
    run = migrated(source, target, checkpoints=store)
    assert run.report.status == "done"
    assert target.client().get("users") == b"own"
    assert target.client().get("long") is None
    assert_tidy(target, left=True)
