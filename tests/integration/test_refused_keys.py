"""Keys that the target refuses: watched, read again when they are named, off the list at last."""

from __future__ import annotations

import os
import time

import pytest

from benches.support.servers import Server, binaries
from engine.transfer import key_resync
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known, offset_of


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


def refused_first(run: Run, count: int = 1) -> None:
    run.following()
    run.wait_for(lambda: run.progress.not_carried == count, f"{count} keys refused")
    assert not run.progress.can_complete


@pytest.mark.parametrize(
    "how", ["deleted", "overwritten", "expired", "flushed", "renamed away", "freed"]
)
def test_one_that_goes_lets_the_cut_over_come(ends: tuple[Server, Server], how: str) -> None:
    source, target = ends
    client = source.client()
    if how == "freed":
        refuse(source, "freed before")
        client.execute_command("HPERSIST", "freed before", "FIELDS", 1, "f")

    with migrating(source, target, timeout=60) as run:
        refused_first(run)
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
            run.wait_for(lambda: run.progress.not_carried == 1, "the new name")
            client.delete("elsewhere")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_what_reads_one_is_read_as_well(ends: tuple[Server, Server]) -> None:
    """COPY, and a rename over another key: the target cannot do them on what it does not have."""
    source, target = ends
    client = source.client()
    client.set("victim", "old")

    with migrating(source, target, timeout=60) as run:
        refused_first(run)
        client.copy("refused", "victim", replace=True)
        # The copy is refused too; what the target has under that name is not the source's.
        run.wait_for(lambda: run.progress.not_carried == 2, "the copy")
        # Then both become what the target knows.
        client.delete("refused")
        client.execute_command("HPERSIST", "victim", "FIELDS", 1, "f")
        client.rename("victim", "winner")
        client.set("winner", "new")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
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
    # Too long for the target, by what it says of itself: one member is.
    members = [os.urandom(1000) for _ in range(1500)]
    client.sadd("long", *members, long := os.urandom(1_100_000))

    with migrating(source, target, timeout=60) as run:
        refused_first(run)
        client.sinterstore("made", "long", "long")
        client.srem("made", long, *members[10:])
        client.delete("long")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert source.client().scard("made") == 10
    assert_settled(source, target, 2)


def applied(run: Run, source: Server) -> None:
    """Wait until everything that is written by now has reached the target, or was left out."""
    offset = offset_of(source)
    run.wait_for(lambda: (run.progress.applied_offset or 0) >= offset, "applied")


def test_what_is_written_to_one_makes_no_fragment(ends: tuple[Server, Server]) -> None:
    """The target has none of it, or it would show a field or two for the whole."""
    source, target = ends
    client, store = source.client(), MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        refused_first(run)
        client.hset("refused", "h", "more")
        client.pexpire("refused", 10_000_000)
        pipe = client.pipeline(transaction=True)
        pipe.set("beside", "x").hincrby("refused", "n", 3).set("behind", "y")
        pipe.execute()
        applied(run, source)
        assert not target.client().exists("refused")
        assert target.client().mget("beside", "behind") == [b"x", b"y"]
        run.stop()
    with migrating(source, target, checkpoints=store, timeout=60) as run:
        # The next engine knows of it before the first command.
        client.hset("refused", "i", "more")
        refused_first(run)
        client.hset("refused", "j", "more")
        applied(run, source)
        assert not target.client().exists("refused")
        # What takes its place at the source is of a type that the target knows.
        client.delete("refused")
        client.hset("refused", "l", "the last")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
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
    client.sadd("long", "m", one := os.urandom(1_100_000))
    client.sadd("other", "a", "b")

    with migrating(source, target, timeout=60) as run:
        refused_first(run)
        client.smove("other", "long", "a")
        client.smove("long", "other", "m")
        client.smove("other", "third", "m")
        client.sunionstore("fourth", "third", "long", "other")
        client.srem("fourth", one)
        client.spop("fourth", 1490)
        applied(run, source)
        there = target.client()
        run.wait_for(lambda: there.smembers("third") == {b"m"}, "what came out of the long one")
        run.wait_for(lambda: there.smembers("other") == {b"b"}, "what went into the long one")
        run.wait_for(lambda: there.scard("fourth") == client.scard("fourth"), "what was made of it")
        assert not there.exists("long")
        client.delete("long")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


def test_the_next_engine_watches_it_on(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client, store = source.client(), MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        refused_first(run)
        refuse(source, "later")
        run.wait_for(lambda: run.progress.not_carried == 2, "another one")
        run.stop()
    with migrating(source, target, checkpoints=store, timeout=60) as run:
        refused_first(run, 2)
        client.delete("refused", "later")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_one_that_was_mended_behind_the_books(ends: tuple[Server, Server]) -> None:
    """The state still names it: the engine before died in between."""
    source, target = ends
    client, store = source.client(), MemoryCheckpoint()

    checkpoint: list = []  # type: ignore[type-arg]
    with migrating(source, target, checkpoints=store) as run:
        refused_first(run)
        before = run.wait_for(lambda: (kept := store.load()) and kept.not_carried and kept, "kept")
        client.set("refused", "a string")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.in_sync()
        checkpoint.append(before)
        run.stop()
    assert len(checkpoint[0].not_carried) == 1
    store.save(checkpoint[0])

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
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

    with migrating(source, target) as run:
        refused_first(run, 6)
        source.client().flushall()
        run.wait_for(lambda: run.progress.not_carried == 3, "those that are named")
        assert not run.progress.can_complete
        assert "too many to be kept track of" in run.progress.reason
        run.stop()
    assert run.report.not_carried_total == 3


def test_one_that_is_written_to_all_the_time_is_seldom_read(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client = source.client()

    def asked() -> bool:
        return "cmdstat_dump" in client.info("commandstats")

    with migrating(source, target, timeout=60) as run:
        refused_first(run)
        before = int(client.info("commandstats")["cmdstat_dump"]["calls"]) if asked() else 0
        began = time.monotonic()
        for n in range(300):
            client.hset("refused", "g", n)
            time.sleep(0.005)
        after = int(client.info("commandstats")["cmdstat_dump"]["calls"])
        # Once a second, and at either end of it.
        assert 1 <= after - before <= time.monotonic() - began + 3
        client.delete("refused")
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
