"""Keys that the target refuses: watched, read again when they are named, off the list at last."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from benches.support.servers import Server, binaries
from benches.support.waiting import soon
from engine.transfer import key_resync
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.transfer import Transfer
from tests.support.comparison import assert_settled
from tests.support.online import assert_tidy, cut_over, following, in_sync, online
from tests.support.servers import ServerFactory, known, offset_of
from tests.support.transfers import Run


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source with a type of values, and commands, that the target does not know."""
    names = [each for each in binaries() if each.name.startswith("redis-8.0")]
    older = [each for each in binaries() if each.name.startswith("redis-7.0")]
    if not names or not older:
        pytest.skip("no such pair on this machine")
    source, target = server_factory(names[0]), server_factory(older[0])
    client = source.client()
    client.set("plain", "x")
    refuse(source, "refused")
    return source, target


def refuse(source: Server, key: str) -> None:
    """A hash whose fields have deadlines: of a type that only its own releases know."""
    client = source.client()
    client.hset(key, mapping={"f": "v", "g": "w"})
    client.execute_command("HPEXPIRE", key, 10_000_000, "FIELDS", 1, "f")


async def refused_first(work: Transfer, count: int = 1) -> None:
    await following(work)
    await soon(lambda: work.progress.not_carried == count, f"{count} keys refused")
    assert not work.progress.can_complete


@pytest.mark.parametrize(
    "how", ["deleted", "overwritten", "expired", "flushed", "renamed away", "freed"]
)
def test_one_that_goes_lets_the_cut_over_come(ends: tuple[Server, Server], how: str) -> None:
    source, target = ends
    client = source.client()
    if how == "freed":
        refuse(source, "freed before")
        client.execute_command("HPERSIST", "freed before", "FIELDS", 1, "f")

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work)
        if how == "deleted":
            client.delete("refused")
        elif how == "overwritten":
            client.set("refused", "a string")
        elif how == "expired":
            client.pexpire("refused", 1)
            client.exists("refused")
        elif how == "freed":
            # Its form stays that of a hash with field TTLs.
            client.pexpire("refused", 10_000_000)
            client.execute_command("HPERSIST", "refused", "FIELDS", 1, "f")
        elif how == "flushed":
            client.flushall()
        else:
            client.rename("refused", "elsewhere")
            await soon(lambda: work.progress.not_carried == 1, "the new name")
            client.delete("elsewhere")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_what_reads_one_is_read_as_well(ends: tuple[Server, Server]) -> None:
    """COPY, and a rename over another key: the target cannot do them on what it does not have."""
    source, target = ends
    client = source.client()
    client.set("victim", "old")

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work)
        client.copy("refused", "victim", replace=True)
        # The copy is refused too; what the target has under that name is not the source's.
        await soon(lambda: work.progress.not_carried == 2, "the copy")
        # Then both become what the target knows.
        client.delete("refused")
        client.execute_command("HPERSIST", "victim", "FIELDS", 1, "f")
        client.rename("victim", "winner")
        client.set("winner", "new")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


def test_a_set_that_is_made_of_one(server_factory: ServerFactory) -> None:
    """The reader is of a type that the target knows: without a look at the source it would be
    made of nothing, and the target opened with it once the refused key is gone."""
    names = {each.name.split("-")[0] + each.name.split("-")[1][:3]: each for each in binaries()}
    if "redis7.0" not in names or "redis6.2" not in names:
        pytest.skip("no such pair on this machine")
    source, target = server_factory(names["redis7.0"]), server_factory(names["redis6.2"])
    target.client().config_set("proto-max-bulk-len", 1 << 20)
    client = source.client()
    # Too long for the target, by what it says of itself.
    members = [os.urandom(1000) for _ in range(1500)]
    client.sadd("long", *members)

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work)
        client.sinterstore("made", "long", "long")
        client.srem("made", *members[10:])
        client.delete("long")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert source.client().scard("made") == 10
    assert_settled(source, target, 2)


async def applied(work: Transfer, source: Server) -> None:
    """Wait until everything that is written by now has reached the target, or was left out."""
    offset = await asyncio.to_thread(offset_of, source)
    await soon(lambda: (work.progress.applied_offset or 0) >= offset, "applied")


def test_what_is_written_to_one_makes_no_fragment(ends: tuple[Server, Server]) -> None:
    """The target has none of it, or it would show a field or two for the whole."""
    source, target = ends
    client, store = source.client(), MemoryCheckpoint()

    async def stop(work: Transfer, run: Run) -> None:
        await refused_first(work)
        client.hset("refused", "h", "more")
        client.pexpire("refused", 10_000_000)
        pipe = client.pipeline(transaction=True)
        pipe.set("beside", "x").hincrby("refused", "n", 3).set("behind", "y")
        pipe.execute()
        await applied(work, source)
        assert not target.client().exists("refused")
        assert target.client().mget("beside", "behind") == [b"x", b"y"]
        work.stop()

    async def steer(work: Transfer, run: Run) -> None:
        # The next engine knows of it before the first command.
        client.hset("refused", "i", "more")
        await refused_first(work)
        client.hset("refused", "j", "more")
        await applied(work, source)
        assert not target.client().exists("refused")
        # What takes its place at the source is of a type that the target knows.
        client.delete("refused")
        client.hset("refused", "l", "the last")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    online(source, target, stop, checkpoints=store)
    run = online(source, target, steer, checkpoints=store, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert target.client().hgetall("refused") == {b"l": b"the last"}


def test_commands_of_several_keys_leave_no_fragment_either(
    server_factory: ServerFactory,
) -> None:
    """A set that is too long: what goes from it and into it, and what else those commands name."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-6.2"))
    target.client().config_set("proto-max-bulk-len", 1 << 20)
    client = source.client()
    client.sadd("long", *(b"%d " % n + os.urandom(1000) for n in range(1500)))
    client.sadd("long", "m")
    client.sadd("other", "a", "b")

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work)
        client.smove("other", "long", "a")
        client.smove("long", "other", "m")
        client.smove("other", "third", "m")
        client.sunionstore("fourth", "third", "long", "other")
        client.spop("fourth", 1490)
        await applied(work, source)
        there = target.client()
        await soon(lambda: there.smembers("third") == {b"m"}, "what came out of the long one")
        await soon(lambda: there.smembers("other") == {b"b"}, "what went into the long one")
        await soon(lambda: there.scard("fourth") == client.scard("fourth"), "what was made of it")
        assert not there.exists("long")
        client.delete("long")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


def test_the_next_engine_watches_it_on(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client, store = source.client(), MemoryCheckpoint()

    async def stop(work: Transfer, run: Run) -> None:
        await refused_first(work)
        refuse(source, "later")
        await soon(lambda: work.progress.not_carried == 2, "another one")
        work.stop()

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work, 2)
        client.delete("refused", "later")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    online(source, target, stop, checkpoints=store)
    run = online(source, target, steer, checkpoints=store, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_one_that_was_mended_behind_the_books(ends: tuple[Server, Server]) -> None:
    """The state still names it: the engine before died in between."""
    source, target = ends
    client, store = source.client(), MemoryCheckpoint()

    async def stop(work: Transfer, run: Run) -> None:
        await refused_first(work)
        await asyncio.sleep(2.5)
        before = store.load()
        client.set("refused", "a string")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await in_sync(work, source)
        checkpoint.append(before)
        work.stop()

    checkpoint: list = []  # type: ignore[type-arg]
    online(source, target, stop, checkpoints=store)
    assert len(checkpoint[0].not_carried) == 1
    store.save(checkpoint[0])

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    run = online(source, target, steer, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


def test_more_than_are_kept_track_of(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay refused, and it is said: the target is not opened before another full sync."""
    source, target = ends
    for module in ("key_resync", "stats", "snapshot"):
        monkeypatch.setattr(f"engine.transfer.{module}.NAMED_KEYS_LIMIT", 3)
    assert key_resync.NAMED_KEYS_LIMIT == 3
    for n in range(5):
        refuse(source, f"more:{n}")

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work, 6)
        source.client().flushall()
        await soon(lambda: work.progress.not_carried == 3, "those that are named")
        assert not work.progress.can_complete
        assert "too many to be kept track of" in work.progress.reason
        work.stop()

    run = online(source, target, steer)
    assert run.report.not_carried_total == 3


def test_one_that_is_written_to_all_the_time_is_seldom_read(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client = source.client()

    async def steer(work: Transfer, run: Run) -> None:
        await refused_first(work)
        before = int(client.info("commandstats")["cmdstat_dump"]["calls"]) if asked() else 0
        began = time.monotonic()
        for n in range(300):
            client.hset("refused", "g", n)
            await asyncio.sleep(0.005)
        after = int(client.info("commandstats")["cmdstat_dump"]["calls"])
        # Once a second, and at either end of it.
        assert 1 <= after - before <= time.monotonic() - began + 3
        client.delete("refused")
        await soon(lambda: work.progress.not_carried == 0, "nothing refused")
        await cut_over(work, run, source)

    def asked() -> bool:
        return "cmdstat_dump" in client.info("commandstats")

    run = online(source, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
