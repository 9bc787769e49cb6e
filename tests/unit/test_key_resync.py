"""The resync of dirty keys: which they are, what is written down of them, and what a reading of
them is."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterable
from typing import cast

import pytest

from benches.support.servers import Binary, Server
from engine._native import CommandBatch, RespReader, RestoreEncoder, StreamReader, encode_command
from engine.errors import ServerError
from engine.model.endpoint import Endpoint
from engine.model.server import ServerInfo
from engine.transfer import key_resync
from engine.transfer.key_resync import Extra, KeyResync, Reading
from engine.wire.control_connection import Admin, admin
from tests.support.servers import ServerFactory

NAMES = b"startmigration:dirty:x"
DAY_MS = 86_400_000
INFO = ServerInfo(flavour="redis", version=(7, 0, 0))
A, B = (0, b"a"), (3, b"b with a space")


def resync(source: Admin | None = None, info: ServerInfo = INFO) -> KeyResync:
    """One that needs no server as long as nothing is read or asked for."""
    return KeyResync(cast(Admin, source), info, RestoreEncoder(), NAMES)


def batch(*commands: Iterable[bytes | str | int], offset: int = 100) -> CommandBatch:
    """What a stream of these commands gives, from `offset` on."""
    reader = StreamReader(offset)
    reader.feed(b"".join(encode_command(*command) for command in commands))
    reader.flush()
    (found,) = reader.take()
    return found


def words(raw: bytes) -> list[bytes]:
    """The words of an encoded command."""
    reader = RespReader()
    reader.feed(raw)
    found: list[bytes] = reader.gets()
    return found


def said(extras: Iterable[Extra]) -> list[tuple[int, list[bytes]]]:
    return [(db, words(raw)) for db, raw in extras]


async def passes(of: KeyResync, passing: CommandBatch) -> None:
    """What is done before a batch is applied."""
    of.move(passing)
    await of.spread(passing)


def propagate(of: KeyResync, passing: CommandBatch) -> None:
    asyncio.run(passes(of, passing))


# --- Names ---


def test_a_clean_one_has_nothing_to_say() -> None:
    it = resync()
    assert it.clean
    assert not it.to_read
    assert not it.unnoted
    assert it.waiting == 0
    assert it.next_offset is None
    assert it.notes() == it.due(1 << 40) == []


def test_a_key_that_is_refused_and_named_meanwhile_is_read_once_a_second() -> None:
    """Commands that come while it is read do not have it read again at once each time."""
    it = resync()
    it.mark_dirty([A])
    it.refuse(A)
    assert it.refused == frozenset()  # there is another value by now
    assert it.to_read
    it.mark_dirty([A])
    it.refuse(A)
    assert not it.to_read
    assert 0 < (it.again_in or 0) <= 1
    it.mark_dirty([A])
    assert not it.to_read
    assert it.knows(A)


def test_dirty_keys_are_noted_once() -> None:
    it = resync()
    it.mark_dirty([A, B, A])
    it.mark_dirty([B])
    it.mark_ttls_dirty([A])
    assert not it.clean
    assert it.to_read
    assert it.unnoted
    assert it.waiting == 3
    assert said(it.notes()) == [(0, [b"SADD", NAMES, b"0 v a", b"3 v b with a space", b"0 d a"])]
    # Until the transaction that holds them was applied they are said again.
    assert it.notes() == it.notes()
    it.noted()
    assert it.notes() == []
    assert not it.unnoted
    assert it.waiting == 3


def test_many_names_go_in_several_commands() -> None:
    it = resync()
    it.mark_dirty((0, b"%d" % n) for n in range(2500))
    sizes = [len(command) - 2 for _, command in said(it.notes())]
    assert sum(sizes) == 2500
    assert max(sizes) <= 1000


def test_the_next_engine_takes_the_names_up() -> None:
    it = resync()
    it.mark_dirty([A, B, (12, b"\x00\xff\r\n")])
    it.mark_ttls_dirty([(0, b"late")])
    names = [name for _, command in said(it.notes()) for name in command[2:]]
    other = resync()
    other.take_up(names)
    assert other.waiting == it.waiting == 4
    # They are in the set already.
    assert not other.unnoted
    other.note_again()
    again = [name for _, command in said(other.notes()) for name in command[2:]]
    assert sorted(again) == sorted(names)
    assert KeyResync.names_of([A, B]) == names[:2]


# --- The stream passes by ---


def test_a_flush_takes_the_set_along() -> None:
    it = resync()
    it.mark_dirty([A, B])
    it.noted()
    propagate(it, batch(("SET", "other", 1)))
    assert not it.unnoted
    propagate(it, batch(("FLUSHALL",)))
    assert said(it.notes()) == [(0, [b"SADD", NAMES, b"0 v a", b"3 v b with a space"])]


def test_databases_that_are_swapped_take_their_keys_along() -> None:
    it = resync()
    it.mark_dirty([A, B])
    it.mark_ttls_dirty([(5, b"late")])
    it.noted()
    propagate(it, batch(("SWAPDB", 3, 5)))
    assert said(it.notes()) == [(0, [b"SADD", NAMES, b"0 v a", b"5 v b with a space", b"3 d late"])]


def test_the_set_does_not_stay_in_a_database_that_was_swapped_away() -> None:
    it = resync()
    it.mark_dirty([A])
    it.noted()
    propagate(it, batch(("SWAPDB", 0, 7)))
    assert said(it.notes()) == [(7, [b"DEL", NAMES]), (0, [b"SADD", NAMES, b"7 v a"])]
    it.noted()
    # Into itself: nothing has moved, and nothing may be deleted.
    propagate(it, batch(("SWAPDB", 0, 0)))
    assert all(command[0] != b"DEL" for _, command in said(it.notes()))


def test_a_clean_one_looks_at_nothing() -> None:
    it = resync()
    propagate(it, batch(("FLUSHALL",), ("SWAPDB", 0, 1), ("RENAME", "a", "b")))
    assert it.clean
    assert not it.unnoted


# --- With a source ---


@contextlib.asynccontextmanager
async def of_server(server: Server) -> AsyncIterator[KeyResync]:
    async with admin(Endpoint.parse(server.url), fault="source") as end:
        yield resync(end, await end.info())


def noted(it: KeyResync) -> set[bytes]:
    """The names that it would add to the set."""
    return {name for _, command in said(it.notes()) for name in command[2:]}


def test_what_reads_a_dirty_key_is_dirty() -> None:
    it = resync()
    it.mark_dirty([(0, b"a")])
    passing = batch(
        ("SET", "untouched", 1),
        # Before the dirty key comes here: this one moves what is right.
        ("RENAME", "b", "before"),
        ("RENAME", "a", "b"),
        ("RENAME", "b", "c"),
        ("SUNIONSTORE", "sum", "x", "a"),
        # One key alone is no dirtier than it was.
        ("INCR", "a"),
        ("SET", "value", "a"),
        # It is written here, and nothing hangs on it.
        ("LMOVE", "list", "a", "LEFT", "LEFT"),
        ("SUNIONSTORE", "a", "y", "z"),
        ("MSET", "a", 1, "beside", 2),
        ("EVAL", "return redis.call('get', 'c')", 1, "script"),
        ("SORT", "w", "BY", "*", "STORE", "sorted"),
        ("SORT", "w", "BY", "nosort", "STORE", "as it is"),
        ("SELECT", 4),
        ("RENAME", "a", "other"),
    )
    propagate(it, passing)
    dirty = [b"0 v a", b"0 v b", b"0 v c", b"0 v sum", b"0 v script", b"0 v sorted"]
    assert noted(it) == set(dirty)


def test_what_is_moved_to_another_database_is_dirty_there() -> None:
    it = resync()
    it.mark_dirty([(0, b"a"), (0, b"b")])
    propagate(it, batch(("MOVE", "a", 5), ("COPY", "b", "c", "DB", 6)))
    assert noted(it) == {b"0 v a", b"5 v a", b"0 v b", b"6 v c"}


def test_what_was_swapped_is_found_where_it_is_behind_the_batch() -> None:
    it = resync()
    it.mark_dirty([(0, b"a")])
    propagate(it, batch(("COPY", "a", "b"), ("SWAPDB", 0, 7), ("COPY", "a", "c")))
    assert noted(it) == {b"7 v a", b"7 v b"}
    propagate(it, batch(("SELECT", 7), ("COPY", "a", "d"), ("SELECT", 0), ("COPY", "a", "e")))
    assert noted(it) == {b"7 v a", b"7 v b", b"7 v d"}


async def test_what_is_swapped_while_it_is_read_is_read_there_too(
    server_factory: ServerFactory,
) -> None:
    """The reading may be of the other key, which had the number of the database by then."""
    async with of_server(server_factory()) as it:
        it.mark_dirty([(3, b"a")])
        await it.read()
        it.noted()
        assert not it.to_read
        await passes(it, batch(("SWAPDB", 3, 5)))
        assert {b"3 v a", b"5 v a"} == noted(it)
        it.stored(it.due(1 << 60))
        assert it.to_read


async def test_keys_of_which_something_else_is_going_to_be_stored(
    server_factory: ServerFactory,
) -> None:
    async with of_server(server_factory()) as it:
        keys = [(0, b"%d" % n) for n in range(5)]
        assert it.awaited(keys) == set()
        it.mark_dirty(keys[:1])
        it.mark_ttls_dirty(keys[1:2])
        it.refuse(keys[2])
        assert it.awaited(keys) == set(keys[:3])
        # Read, and not stored yet.
        await it.read()
        it.noted()
        assert it.awaited(keys) == set(keys[:3])
        it.stored(it.due(1 << 60))
        assert it.awaited(keys) == set(keys[1:3])


async def test_the_source_tells_the_keys_of_commands_that_are_not_known(
    server_factory: ServerFactory,
) -> None:
    """GET, GETRANGE and OBJECT ENCODING stand for commands of a module: the table has no row for
    what only reads."""
    async with of_server(server_factory()) as it:
        passing = batch(
            ("GET", "one"), ("Get", "two"), ("OBJECT", "ENCODING", "three"), ("NOSUCH", "four")
        )
        assert passing.unknown == [b"GET", b"OBJECT", b"NOSUCH"]
        found = [await it.keys_of(passing, index) for index in range(4)]
        assert found == [[(0, b"one")], [(0, b"two")], [(0, b"three")], None]
        assert await it.keys_in(passing) == [(0, b"one"), (0, b"two"), (0, b"three")]
        # What they change is dirty while anything is.
        it.mark_dirty([(0, b"two")])
        await passes(it, passing)
        assert noted(it) >= {b"0 v one", b"0 v two", b"0 v three"}


def stores_of(reading: Reading) -> dict[tuple[int, bytes], list[bytes]]:
    return {(store[0], store[1]): words(store[2]) for store in reading.stores}


async def take(it: KeyResync) -> Reading:
    """A reading, which must be the only one."""
    await it.read()
    assert it.next_offset is not None
    (reading,) = it.due(it.next_offset)
    assert it.due(it.next_offset - 1) == []
    return reading


async def test_a_reading_is_what_the_source_holds(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    client = server.client()
    client.rpush("list", "a", "b")
    server.client(db=3).set("text", "value")
    at = int(time.time() * 1000) + DAY_MS
    server.client(db=3).pexpireat("text", at)
    async with of_server(server) as it:
        it.mark_dirty([(0, b"list"), (0, b"gone"), (3, b"text")])
        it.noted()
        assert it.to_read
        reading = await take(it)
        assert not it.to_read
        assert not it.clean
        assert it.waiting == 3
        found = stores_of(reading)
        assert found[0, b"gone"] == [b"DEL", b"gone"]
        assert found[0, b"list"][:3] == [b"RESTORE", b"list", b"0"]
        assert found[0, b"list"][3] == client.dump("list")
        text = found[3, b"text"]
        # Before 7.0 the time left is told, and hung on the source's clock.
        assert abs(int(text[2]) - at) <= (0 if binary.version >= (7, 0, 0) else 2)
        assert b"ABSTTL" in text
        kinds = {(store[0], store[1]): store[3] for store in reading.stores}
        assert kinds[3, b"text"] == 0
        assert kinds[0, b"gone"] is None
        it.stored([reading])
        assert it.next_offset is None
        assert it.waiting == 0
        assert it.repaired == 3


async def test_of_a_deadline_the_value_is_not_read(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    client = server.client()
    at = int(time.time() * 1000) + DAY_MS
    client.mset({"late": 1, "bare": 1})
    client.pexpireat("late", at)
    async with of_server(server) as it:
        it.mark_ttls_dirty([(0, b"late"), (0, b"bare"), (0, b"gone")])
        reading = await take(it)
        found = stores_of(reading)
        it.stored([reading])
        assert it.repaired == 0
    assert found[0, b"bare"] == [b"PERSIST", b"bare"]
    assert found[0, b"gone"] == [b"DEL", b"gone"]
    assert found[0, b"late"][:2] == [b"PEXPIREAT", b"late"]
    assert abs(int(found[0, b"late"][2]) - at) <= (0 if binary.version >= (7, 0, 0) else 2)


async def test_near_deadlines_are_lifted_in_a_reading_too(server_factory: ServerFactory) -> None:
    server = server_factory()
    now = int(time.time() * 1000)
    for name, at in (("near", now + 60_000), ("far", now + DAY_MS)):
        server.client().set(name, 1)
        server.client().pexpireat(name, at)
    async with of_server(server) as it:
        it._extended.before, it._extended.by = now + 3_600_000, 1000 * DAY_MS
        it.mark_dirty([(0, b"near"), (0, b"far")])
        found = stores_of(await take(it))
        assert it._extended.read == 1
    assert abs(int(found[0, b"near"][2]) - (now + 60_000 + 1000 * DAY_MS)) <= 2
    assert abs(int(found[0, b"far"][2]) - (now + DAY_MS)) <= 2


async def test_what_becomes_dirty_again_meanwhile_is_read_again(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    server.client().set("a", 1)
    async with of_server(server) as it:
        it.mark_dirty([(0, b"a")])
        reading = await take(it)
        it.mark_dirty([(0, b"a")])
        it.stored([reading])
        assert not it.clean
        assert it.to_read
        reading = await take(it)
        it.stored([reading])
        assert it.waiting == 0


async def test_readings_are_of_some_keys_at_a_time(server_factory: ServerFactory) -> None:
    server = server_factory()
    keys = [(db, b"%d" % n) for db in (0, 1) for n in range(900)]
    async with of_server(server) as it:
        it.mark_dirty(keys)
        seen: list[tuple[int, bytes]] = []
        while it.to_read:
            reading = await take(it)
            assert len(reading.stores) <= (500 if seen else 50)
            seen += [(store[0], store[1]) for store in reading.stores]
            it.stored([reading])
    assert sorted(seen) == sorted(keys)


async def test_a_reading_is_of_as_many_keys_as_fit(server_factory: ServerFactory) -> None:
    """Small values more and more at a time, for a round trip may be long; large ones few."""
    server = server_factory()
    client = server.client()
    small = [(0, b"small:%d" % n) for n in range(1200)]
    large = [(0, b"large:%d" % n) for n in range(20)]
    client.mset({key: b"x" * 20 for _, key in small})
    # What cannot be packed: DUMP's payload is as long as the value.
    rng = random.Random(1)
    client.mset({key: rng.randbytes(300_000) for _, key in large})

    async def sizes(it: KeyResync) -> list[int]:
        found = []
        while it.to_read:
            reading = await take(it)
            found.append(len(reading.stores))
            it.stored([reading])
        return found

    async with of_server(server) as it:
        it.mark_dirty(small)
        assert await sizes(it) == [50, 100, 200, 400, 450]
        it.mark_dirty(large)
        first, *others = await sizes(it)
        assert first == 20
        it.mark_dirty(large)
        assert await sizes(it) == [3] * 6 + [2]
        assert others == []


async def test_what_cannot_be_made_just_now_keeps_nothing_else(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits longer each time, and is named in the end; what it takes to read it counts."""
    monkeypatch.setattr(key_resync, "_UNMADE_SECONDS", 0.05)
    monkeypatch.setattr(key_resync, "_UNMADE_TRIES", 3)
    server = server_factory()
    long, short = (0, b"long"), [(0, b"short:%d" % n) for n in range(60)]
    server.client().set("long", random.Random(1).randbytes(400_000))
    server.client().mset({key: b"x" for _, key in short})
    tried: list[float] = []
    troubles: list[str] = []

    async def rebuild(db: int, key: bytes, at: int, payload: bytes) -> list[bytes] | str:
        tried.append(time.monotonic())
        if len(tried) <= 3:
            raise ServerError("OOM command not allowed", code="OOM")
        return [encode_command("RENAME", "aside", key)]

    async with of_server(server) as it:
        it.bulk_limit = 300_000
        it.rebuild, it.on_trouble = rebuild, troubles.append
        it.mark_dirty([*short, long])
        found: list[Reading] = []
        while it.waiting:
            if it.to_read:
                await it.read()
                reading = it.due(it.next_offset or 0)
                found += reading
                for db, key, *_ in (each for some in reading for each in some.unfit):
                    it.refuse((db, key))
                it.stored(reading)
            else:
                assert 0 < (it.again_in or 0) <= 0.2
                await asyncio.sleep(it.again_in or 0)
        assert sum(len(each.stores) for each in found[:-1]) == len(short)
        assert [each[:3] for each in found[-1].unfit] == [(*long, "OOM command not allowed")]
        assert tried[2] - tried[1] > tried[1] - tried[0] - 0.03 >= 0.02
        assert all("'long'" in each for each in troubles[:-1])
        assert troubles[-1] == ""
        assert not it.to_read
        # A command names it, or some minutes are over.
        monkeypatch.setattr(key_resync, "_UNMADE_REFUSED_SECONDS", 0.2)
        await asyncio.sleep(0.21)
        assert it.to_read
        assert [store[:2] for store in (await take(it)).stores] == [long]


async def test_what_a_long_value_takes_to_read_makes_readings_small(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    keys = [(0, b"%d" % n) for n in range(20)]
    server.client().mset({key: random.Random(1).randbytes(400_000) for _, key in keys})

    async def rebuild(db: int, key: bytes, at: int, payload: bytes) -> list[bytes] | str:
        return [encode_command("RENAME", "aside", key)]

    async with of_server(server) as it:
        it.bulk_limit, it.rebuild = 300_000, rebuild
        it.mark_dirty(keys)
        await it.read()
        assert it._at_once == 2


def test_a_dirty_deadline_goes_along_with_its_key_alone() -> None:
    it = resync()
    it.mark_ttls_dirty([(0, b"a")])
    passing = batch(
        ("RENAME", "x", "y"),
        ("SUNIONSTORE", "sum", "a"),
        ("RENAME", "a", "b"),
        ("COPY", "b", "c", "DB", 2),
        ("RENAME", "other", "more"),
    )
    propagate(it, passing)
    assert noted(it) == {b"0 d a", b"0 d b", b"2 d c"}
