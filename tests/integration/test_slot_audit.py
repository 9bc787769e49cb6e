"""Slots of which every key is read again, from whichever state the target is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from benches.support.clusters import Cluster, node_lines, slot_of
from benches.support.compare import assert_equal
from benches.support.servers import Server
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.slots import SlotSet
from engine.targets import slot_keys
from engine.targets.slot_keys import keys_in
from engine.transfer import slot_reread
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.wire.control_connection import admin
from tests.support.library import Run, migrating
from tests.support.servers import ServerFactory, known

SLOTS = SlotSet(((0, 9999), (12000, 12000)))
KEYS = 3000


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    with source.client().pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.rpush(f"key:{number}", number, number)
        pipe.execute()
    return source, target


def audited(run: Run, slots: SlotSet) -> None:
    """Have the lane read these slots again, and wait for it."""

    def begin() -> asyncio.Task[None]:
        (lane,) = run.work._way.lanes  # type: ignore[union-attr]
        return asyncio.ensure_future(lane.audit.add(slots))

    task = run.call(begin)
    run.wait_for(task.done, "the audit in the checkpoint")
    run.wait_for(lambda: any("was read again" in each for each in run.events), "the audit's end")


def spoil(target: Server, slots: SlotSet) -> int:
    """Change, remove and add keys of these slots; how many."""
    spoilt = 0
    with target.client().pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            if slot_of(f"key:{number}") not in slots:
                continue
            spoilt += 1
            match number % 3:
                case 0:
                    pipe.delete(f"key:{number}")
                case 1:
                    pipe.rpush(f"key:{number}", "more")
                case _:
                    pipe.rename(f"key:{number}", f"{{key:{number}}}:other")
        pipe.execute()
    return spoilt


def test_every_key_of_the_slots_is_as_at_the_source(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed on the target is put right, what is there alone is removed, in each of the
    databases; the gate is closed meanwhile, and open behind it."""
    monkeypatch.setattr(slot_reread, "_WAITING_MOST", 100)
    source, target = ends
    source.client(2).set("in other", "1")
    store = MemoryCheckpoint()
    with migrating(source, target, checkpoints=store) as run:
        run.following()
        assert spoil(target, SLOTS) > 1000
        target.client(2).set("in other", "spoilt")
        target.client(4).set("in other", "alone")
        audited(run, SLOTS)
        run.wait_for(lambda: mark_of(store).audit == "", "the audit out of the checkpoint")
        assert (target.client(2).get("in other"), target.client(4).dbsize()) == (b"1", 0)
        assert any("every key of the slots" in each.reason for each in run.history)
        run.cut_over()
    assert run.report.status == "done"
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("command", ["copy", "eval"])
def test_what_is_derived_meanwhile_of_a_key_that_was_not_read_yet(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A key that was read is wrong again where a command makes it of one that is wrong still."""
    source, target = ends
    first, later = b"{t}first", b"{t}later"
    source.client().mset({first: "1", later: "2"})
    # Of such a target the source alone is asked for names.
    target.client().set("its own", "1")
    goes_on = asyncio.Event()
    looked = keys_in

    async def slowly(*args: Any, **named: Any) -> AsyncIterator[list[bytes]]:
        yield [first]
        await goes_on.wait()
        async for page in looked(*args, **named):
            yield [name for name in page if name != first]

    monkeypatch.setattr(slot_reread, "keys_in", slowly)
    with migrating(source, target) as run:
        run.following()
        run.in_sync()
        target.client().mset({first: "wrong", later: "wrong"})
        (lane,) = run.work._way.lanes  # type: ignore[union-attr]
        slots = SlotSet.of([slot_of("t")])
        run.call(lambda: asyncio.ensure_future(lane.audit.add(slots)))
        run.wait_for(lambda: target.client().get(first) == b"1", "the first key")
        if command == "copy":
            source.client().copy(later, first, replace=True)
        else:
            text = "return redis.call('COPY', KEYS[1], KEYS[2], 'REPLACE')"
            source.client().eval(text, 2, later, first)
        source.client().set("behind", "it")
        run.wait_for(lambda: target.client().exists("behind"), "the command")
        run.call(goes_on.set)
        run.wait_for(lambda: any("was read again" in each for each in run.events), "the end")
        assert target.client().mget(first, later) == [b"2", b"2"]
        run.stop()


def test_what_a_target_with_keys_of_its_own_has_alone_is_told(ends: tuple[Server, Server]) -> None:
    """It may be its users', or deleted at the source meanwhile: it stays."""
    source, target = ends
    target.client().set("its own", "1")
    with migrating(source, target) as run:
        run.following()
        target.client().set("{its own}:deleted", "1")
        target.client(7).set("{its own}:deleted", "1")
        slots = SlotSet.of([slot_of("its own")])
        audited(run, slots)
        told = [event for event in run.events if "on the target and not at the source" in event]
        assert len(told) == 1
        assert f"3 keys of the slots {slots.words} are" in told[0]
        assert "'its own'" in told[0]
        run.stop()
    assert target.client().exists("its own", "{its own}:deleted") == 2


def test_an_audit_outlives_its_engine(ends: tuple[Server, Server]) -> None:
    """An engine that stops before its end leaves it to the next one."""
    source, target = ends
    store = MemoryCheckpoint()
    with migrating(source, target, checkpoints=store) as run:
        run.following()
        spoil(target, SLOTS)
        (lane,) = run.work._way.lanes  # type: ignore[union-attr]

        def begin() -> None:
            task = asyncio.ensure_future(lane.audit.add(SLOTS))
            task.add_done_callback(lambda _: run.work.stop())

        run.call(begin)
    assert mark_of(store).audit == str(SLOTS)
    with migrating(source, target, checkpoints=store) as run:
        run.cut_over()
    assert run.report.status == "done"
    assert mark_of(store).audit == ""
    assert_equal(source.url, target.url)


def mark_of(store: MemoryCheckpoint) -> OnlineCheckpoint:
    found = store.load()
    assert found is not None
    assert isinstance(found.position, OnlineCheckpoint)
    return found.position


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster.start(known("redis-7.0"), primaries=2) as found:
        yield found


@pytest.mark.parametrize("few", [0, 20_000])
def test_names_on_a_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Each key of the slots is named, whether the node is scanned or asked slot by slot."""
    monkeypatch.setattr(slot_keys, "_FEW_KEYS", few)
    node = cluster.primaries[0]
    client = cluster.client()
    names = [f"{{a}}{number}" for number in range(500)] + [f"k{number}" for number in range(500)]
    for name in names:
        client.set(name, "v")
    (mine,) = (line.split(" ")[8] for line in node_lines(node) if "myself" in line)
    slots = SlotSet.of(slot_of(name) for name in names) & SlotSet.parse(mine)
    wanted = sorted(name.encode() for name in names if slot_of(name) in slots)
    assert wanted

    async def ask() -> list[bytes]:
        async with admin(Endpoint.parse(node.url)) as end:
            pages = keys_in(end.pipeline, slots, node=True)
            return [name async for page in pages for name in page]

    assert sorted(set(asyncio.run(ask()))) == wanted
