"""What snapshots of the field hold: collections without members, Redis Enterprise's opcodes, slots
on their way in, keys that are there twice, and what came after this engine."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support.encoded_values import length, string
from benches.support.servers import Binary, Server, binaries, extra_binaries
from engine._native import (
    NEED_DATA,
    RecordBatch,
    ReplyCounter,
    RespReader,
    RestoreEncoder,
    SeenKeys,
    SlotFilter,
    SnapshotReader,
)
from engine.errors import ProtocolFault
from engine.model.rdb_newer_than_engine import newer_than_known
from engine.model.server_capabilities import Flavour, known_types
from engine.model.settings import TransferSettings
from engine.sources import rdb_file
from engine.sources.rdb_file import RdbFileSource, Survey, survey
from engine.transfer.checks.type_names import type_name
from tests.reference.crc import crc64, key_slot
from tests.support.feeding import push
from tests.support.servers import ServerFactory
from tests.support.snapshots import feed, records
from tests.unit.test_rdb import key, refused, whole
from tests.unit.test_rdb_fuzz import EMPTY_ZIPLIST

ZIPLIST = string(EMPTY_ZIPLIST)
LISTPACK = string(b"\x07\0\0\0\0\0\xff")
INTSET = string(b"\x02\0\0\0\0\0\0\0")
# (type, a value without members, one that has some and begins alike)
EMPTY = {
    "list": (1, length(0), length(1) + string(b"")),
    "set": (2, b"\x40\x00", length(1) + string(b"")),
    "sorted set": (3, length(0), length(1) + string(b"") + b"\x011"),
    "hash": (4, b"\x80\0\0\0\0", length(1) + string(b"") * 2),
    "sorted set 2": (5, length(0), length(1) + string(b"") + bytes(8)),
    "zipmap": (9, string(b"\0\xff"), string(b"\x01\xff")),
    "ziplist list": (10, ZIPLIST, string(EMPTY_ZIPLIST[:8] + b"\1\0\xff")),
    "intset": (11, INTSET, string(b"\x02\0\0\0\1\0\0\0")),
    "ziplist zset": (12, ZIPLIST, string(EMPTY_ZIPLIST[:8] + b"\2\0\xff")),
    "ziplist hash": (13, ZIPLIST, string(EMPTY_ZIPLIST + b" ")),
    "quicklist": (14, length(0), length(5) + ZIPLIST * 5),
    "quicklist of nothing": (14, length(2) + ZIPLIST * 2, length(2) + ZIPLIST + string(b"x")),
    "listpack hash": (16, LISTPACK, string(b"\x07\0\0\0\1\0\xff")),
    "listpack zset": (17, LISTPACK, string(b"\x07\0\0\0\0\1\xff")),
    "quicklist 2": (18, length(0), length(1) + length(1) + string(b"plain")),
    "quicklist 2 of nothing": (
        18, length(1) + length(2) + LISTPACK, length(1) + length(1) + LISTPACK
    ),
    "listpack set": (20, LISTPACK, string(b"\x07\0\0\0\1\0\xff")),
    "field TTLs": (24, bytes(8) + length(0), bytes(8) + length(1) + length(0) + string(b"") * 2),
    "field TTLs, listpack": (25, bytes(8) + LISTPACK, bytes(8) + string(b"\x07\0\0\0\1\0\xff")),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_collections_without_members_are_passed_over(name: str) -> None:
    kind, empty, other = EMPTY[name]
    around = key(0, b"before", string(b"1"))
    body = around + b"\xfc" + bytes(8) + key(kind, b"gone", empty) + key(kind, b"stays", other)
    data = whole(body, b"REDIS0012")
    for sizes in ([1], [5], [1 << 18]):
        for stream_above in (12, 1 << 20):
            reader = SnapshotReader(stream_above=stream_above)
            found = records(feed(reader, data, sizes))
            assert [(each.key, each.expire_at) for each in found] == [
                (b"before", None),
                (b"stays", None),
            ]
            assert found[1].value[:-10] == bytes([kind]) + other
            assert reader.empty == 1
            assert reader.finished
            assert reader.types == {0: 1, kind: 1}


def test_streams_and_strings_may_be_empty() -> None:
    stream = length(0) * 9 + length(0)
    data = whole(key(0, b"a", string(b"")) + key(21, b"b", stream), b"REDIS0012")
    reader = SnapshotReader()
    assert [each.key for each in records(feed(reader, data))] == [b"a", b"b"]
    assert reader.empty == 0


def test_redis_enterprise_s_opcodes_are_passed_over() -> None:
    body = (
        b"\x6b" + length(5) + b"\x79" + length(16_000) + key(0, b"a", string(b"1"))
        + b"\x6b\x81" + (2**40).to_bytes(8, "big") + key(1, b"b", length(1) + string(b"x"))
    )  # fmt: skip
    data = whole(body, b"REDIS0009")
    for sizes in ([1], [1 << 18]):
        reader = SnapshotReader()
        assert [each.key for each in records(feed(reader, data, sizes))] == [b"a", b"b"]
    assert "Redis Enterprise" in refused(whole(b"\x6b\xc0", b"REDIS0009"))
    assert "type of value 107 is not known" in refused(whole(b"\x6b\x01", b"VALKEY080"))


def test_keys_of_slots_on_their_way_in_are_left_out() -> None:
    names = [b"key:%d" % n for n in range(400)]
    first, last = 1000, 9000
    imports = b"\xf3" + string(b"j" * 40) + length(2) + length(first) + length(last)
    imports += length(12_345) + length(12_345)
    body = imports + b"".join(key(0, name, string(b"1")) for name in names)
    data = whole(body, b"VALKEY080")
    ours = [
        name for name in names if not (first <= key_slot(name) <= last or key_slot(name) == 12_345)
    ]
    assert 0 < len(ours) < len(names)
    for sizes in ([1], [1 << 18]):
        reader = SnapshotReader(drop_imports=True)
        assert [each.key for each in records(feed(reader, data, sizes))] == ours
        assert reader.importing == len(names) - len(ours)
        (line,) = reader.left_out
        assert line.startswith(f"{len(names) - len(ours)} keys of slots that were on their way in")
    # A replica is sent the rest of the import.
    reader = SnapshotReader()
    assert [each.key for each in records(feed(reader, data))] == names
    for wrong in (length(5) + length(4), length(0) + length(16_384)):
        said = refused(whole(b"\xf3" + string(b"j") + length(1) + wrong, b"VALKEY080"))
        assert said.startswith("expected what comes next")


# ------------------------------------------------------------------ keys that are there twice


def batches(names: list[bytes], db: int = 0, at_once: int = 50) -> list[RecordBatch]:
    body = b"\xfe" + length(db) + b"".join(key(0, name, string(b"1")) for name in names)
    found = feed(SnapshotReader(batch_bytes=at_once * 20), whole(body, crc=False))
    return [item for item in found if isinstance(item, RecordBatch)]


@settings(max_examples=60)
@given(
    names=st.lists(st.binary(max_size=20), max_size=200),
    seed=st.integers(0, 2**64 - 1),
    at_once=st.integers(1, 200),
    expected=st.integers(0, 1000),
)
def test_what_was_there_before(names: list[bytes], seed: int, at_once: int, expected: int) -> None:
    seen = SeenKeys(seed=seed)
    known: set[tuple[int, bytes]] = set()
    for db in (0, 3):
        for batch in batches(names, db, at_once):
            again = seen.add(batch, expected)
            for index in range(len(batch)):
                each = batch.db, batch.key(index)
                assert (index in again) == (each in known)
                known.add(each)
    assert len(seen) == len(known)
    assert not seen.full


def test_the_table_has_a_bound() -> None:
    names = [b"key:%d" % n for n in range(12_000)]
    given = batches(names, at_once=500)
    seen = SeenKeys(most_bytes=8 << 13)
    assert all(not seen.add(batch) for batch in given)
    assert seen.full
    assert 1 << 12 < len(seen) < 8192
    # The first are known, the last are not.
    assert sum(len(seen.add(batch)) for batch in batches(names[:4000])) == 4000
    assert sum(len(seen.add(batch)) for batch in batches(names[-4000:])) == 0
    # Whatever a file announces.
    for expected in (1 << 60, 2**64 - 1):
        seen = SeenKeys(most_bytes=1 << 20)
        assert not any(seen.add(batch, expected) for batch in given)
        assert not seen.full
        assert len(seen) == len(names)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 4]), st.booleans(), st.booleans()), max_size=40))
def test_strings_first(kinds: list[tuple[int, bool, bool]]) -> None:
    values = {
        0: string(b"v"),
        1: length(1) + string(b"v"),
        4: length(1) + string(b"f") + string(b"v"),
    }
    body = b"".join(
        (b"\xfc" + (2**40).to_bytes(8, "little") if mortal else b"")
        + (b"\xf8" + length(5) if idle else b"")
        + key(kind, b"%d" % index, values[kind])
        for index, (kind, mortal, idle) in enumerate(kinds)
    )
    before = records(feed(SnapshotReader(), whole(body)))
    items = feed(SnapshotReader(), whole(body))
    for item in items:
        item.strings_first()
    after = records(items)
    plain = [
        kind == 0 and not mortal and not any(idle for *_, idle in kinds)
        for kind, mortal, _ in kinds
    ]
    if len(kinds) > 2 and not any(idle for *_, idle in kinds):
        assert after == [each for each, first in zip(before, plain, strict=True) if first] + [
            each for each, first in zip(before, plain, strict=True) if not first
        ]
    assert sorted(each.key for each in after) == sorted(each.key for each in before)
    assert {each.key: each for each in after} == {each.key: each for each in before}


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 4]), st.booleans()), min_size=3, max_size=40),
    st.booleans(),
    st.data(),
)
def test_take_from_a_batch_in_another_order(
    kinds: list[tuple[int, bool]], without_deadlines: bool, data: st.DataObject
) -> None:
    """Whatever was moved or taken out before: both parts say what the batch said."""
    values = {
        0: string(b"v"),
        1: length(1) + string(b"v"),
        4: length(1) + string(b"f") + string(b"v"),
    }
    body = b"".join(
        (b"\xfc" + (2**40 + index).to_bytes(8, "little") if mortal else b"")
        + key(kind, b"%d" % index, values[kind])
        for index, (kind, mortal) in enumerate(kinds)
    )
    (batch,) = (b for b in feed(SnapshotReader(), whole(body)) if isinstance(b, RecordBatch))
    batch.strings_first()
    if without_deadlines:
        batch.take_with_ttls()
    if len(batch):
        batch.leave_out(data.draw(st.integers(0, len(batch) - 1)), "why")
    before, size = records([batch]), batch.value_bytes
    parts = []
    while len(batch) > 1:
        parts.append(batch.take(data.draw(st.integers(1, len(batch) - 1))))
    parts.append(batch)
    assert records(parts) == before
    assert sum(each.value_bytes for each in parts) == size


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 4]), st.booleans(), st.booleans()), max_size=40))
def test_take_deadlines(kinds: list[tuple[int, bool, bool]]) -> None:
    values = {
        0: string(b"v"),
        1: length(1) + string(b"v"),
        4: length(1) + string(b"f") + string(b"v"),
    }
    body = b"".join(
        (b"\xfc" + (2**40 + index).to_bytes(8, "little") if mortal else b"")
        + (b"\xf8" + length(5) if idle else b"")
        + key(kind, b"%d" % index, values[kind])
        for index, (kind, mortal, idle) in enumerate(kinds)
    )
    before = records(feed(SnapshotReader(), whole(body)))
    batches_of: list[RecordBatch] = [
        each for each in feed(SnapshotReader(), whole(body)) if isinstance(each, RecordBatch)
    ]
    size = sum(each.value_bytes for each in batches_of)
    taken = [each for each in (batch.take_with_ttls() for batch in batches_of) if each is not None]
    assert records(taken) == [each for each in before if each.expire_at is not None]
    assert records(batches_of) == [each for each in before if each.expire_at is None]
    assert sum(each.value_bytes for each in (*batches_of, *taken)) == size
    encoder = RestoreEncoder()
    for batch in (*batches_of, *taken):
        commands = bytes(encoder.encode(batch))
        assert commands.count(b"RESTORE") == len(batch)
    assert not any(batch.take_with_ttls() for batch in batches_of)


def test_a_string_is_summed_up_where_it_leaves_as_a_payload() -> None:
    """By MSET it needs no CRC64; by RESTORE, as a value of a batch and of a part of one it does."""
    values = [
        string(b""),
        string(b"v" * 3),
        string(b"v" * 300),
        b"\xc0\x7f",
        b"\xc3\x04\x03\x02aaa",
    ]
    expiring = b"\xfc" + (10**13).to_bytes(8, "little")
    body = b"".join(
        before + key(0, b"%d%d" % (n, bool(before)), value)
        for n, value in enumerate(values)
        for before in (b"", expiring)
    )
    found = feed(SnapshotReader(), whole(b"\xfe\0" + body))
    (batch,) = (each for each in found if isinstance(each, RecordBatch))
    encoder = RestoreEncoder(mset=True)
    assert bytes(encoder.encode(batch)).count(b"MSET") > 0
    encoder.use_restore_alone()
    for part in (batch, batch.take(3), batch.take_with_ttls(), batch):
        assert part is not None
        commands = bytes(encoder.encode(part))
        assert commands.count(b"RESTORE") == len(part)
        for index in range(len(part)):
            payload = part.value(index)
            assert crc64(payload[:-8]) == int.from_bytes(payload[-8:], "little")
            assert payload in commands


def arranged(path: Path, **settings: object) -> list[tuple[int, bytes]]:
    """(database, key) in the order in which the source gives them."""

    async def main() -> list[tuple[int, bytes]]:
        source = RdbFileSource(path, TransferSettings(**settings))  # type: ignore[arg-type]
        await source.open(None)
        found = [
            (item.db, item.key(index))
            async for item in source.items()
            if isinstance(item, RecordBatch)
            for index in range(len(item))
        ]
        await source.close()
        return found

    return asyncio.run(main())


def in_database(db: int, *keys: tuple[bytes, bool]) -> bytes:
    return (
        b"\xfe"
        + length(db)
        + b"".join(
            (b"\xfc" + (2**42).to_bytes(8, "little") if mortal else b"")
            + key(0, name, string(b"v" * 9))
            for name, mortal in keys
        )
    )


def test_keys_with_deadlines_wait_for_the_others_of_their_database(tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    names = [(b"%d" % n, n % 3 == 0) for n in range(30)]
    path.write_bytes(whole(in_database(0, *names) + in_database(4, *names)))
    one = [name for name, mortal in names if not mortal] + [name for name, late in names if late]
    wanted = [(db, name) for db in (0, 4) for name in one]
    assert arranged(path, batch_bytes=100) == wanted
    assert arranged(path) == wanted


def test_they_keep_their_order_where_a_key_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(
        whole(
            in_database(0, (b"a", True), (b"b", False), (b"c", True), (b"a", False), (b"d", True))
        )
    )
    for size in (20, 60, 1 << 20):
        found = [name for _, name in arranged(path, batch_bytes=size)]
        assert sorted(found) == [b"a", b"a", b"b", b"c", b"d"]
        # The last of its values is the one without a deadline, and stays.
        last = len(found) - 1 - found[::-1].index(b"a")
        assert found[:last].count(b"a") == 1
        assert found.index(b"c") < last or size > 60


def test_no_more_of_them_wait_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdb_file, "_ASIDE_BYTES", 100)
    path = tmp_path / "dump.rdb"
    names = [(b"%d" % n, n % 2 == 0) for n in range(40)]
    path.write_bytes(whole(in_database(0, *names)))
    found = [name for _, name in arranged(path, batch_bytes=100)]
    assert sorted(found) == sorted(name for name, _ in names)
    # Some waited, and the last did not.
    assert found != [name for name, _ in names]
    assert found[-1] in (b"38", b"39")


def test_values_without_footers() -> None:
    body = key(0, b"a", string(b"v")) + key(1, b"b", length(1) + string(b"v"))
    for each, bare in zip(
        records(feed(SnapshotReader(), whole(body))),
        records(feed(SnapshotReader(footers=False), whole(body))),
        strict=True,
    ):
        assert bare.value == each.value[:-10] + bytes(10)


# ------------------------------------------------------------------ files


def surveyed(folder: Path, data: bytes) -> Survey:
    path = folder / "dump.rdb"
    path.write_bytes(data)
    return asyncio.run(survey(path))


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    body = (
        key(0, b"a", string(b"1"))
        + key(0, b"b", string(b"1"))
        + key(1, b"a", length(1) + string(b""))
    )
    found = surveyed(tmp_path, whole(body + b"\xfe\x01" + key(0, b"a", string(b"1"))))
    assert found.keys == {0: 2, 1: 1}
    assert found.refused_total == 1
    assert found.refused[0][0] == b"a"
    assert "names it twice" in found.refused[0][1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            whole(b"\xf2" + bytes(30), b"VALKEY081"),
            "it holds commands that stand inside a snapshot (opcode 242), which Valkey 9.2 brought",
        ),
        (whole(key(34, b"s", bytes(30)), b"REDIS0017"), "sets whose members have TTLs (type of"),
        (
            whole(key(99, b"x", bytes(30)), b"REDIS0042"),
            "it holds a type of value (99) that came after Redis 8.10 (RDB version 42",
        ),
        (
            whole(key(31, b"h", bytes(30)), b"REDIS0016"),
            "a type of value (31) that Redis 8.10 brought for DUMP payloads alone (RDB version 16",
        ),
        (whole(b"\xf2" + bytes(30), b"VALKEY081"), "a scan reads each key that the server has by"),
    ],
)
def test_what_came_later_has_its_name(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ProtocolFault) as caught:
        surveyed(tmp_path, data)
    assert words in str(caught.value)
    assert "--source-type scan" in str(caught.value)
    assert "not a valid snapshot" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "magic"),
    [
        (99, b"REDIS0011"),
        (34, b"REDIS0011"),
        (35, b"REDIS0013"),
        (34, b"REDIS0015"),
        (29, b"REDIS0015"),
        (23, b"VALKEY080"),
        (34, b"VALKEY080"),
        (242, b"REDIS0011"),
        (242, b"VALKEY080"),
    ],
)
def test_damage_is_damage(tmp_path: Path, number: int, magic: bytes) -> None:
    what = "opcode" if number >= 242 else "type of value"
    with pytest.raises(ProtocolFault, match=f"is not a valid snapshot: {what} {number}") as caught:
        surveyed(tmp_path, whole(key(number, b"x", bytes(30)), magic))
    assert "scan" not in str(caught.value)


@given(
    st.sampled_from([("redis", range(1, 16)), ("valkey", (*range(1, 12), 80))]),
    st.data(),
    st.integers(0, 255),
)
def test_no_feature_is_newer_than_a_version_that_is_known(
    kind: tuple[Flavour, Sequence[int]], data: st.DataObject, number: int
) -> None:
    flavour, versions = kind
    assert newer_than_known(flavour, data.draw(st.sampled_from(versions)), number) is None


def test_numbers_mean_what_their_flavour_says() -> None:
    assert type_name(23, "valkey") == "path hashes"
    assert type_name(22, "valkey") == type_name(24, "redis") == "hashes with field TTLs"
    assert type_name(26, "redis") == type_name(27, "redis") == "streams"
    assert 23 in known_types("valkey", (9, 2, 0))
    assert 23 not in known_types("redis", (9, 2, 0))


# ------------------------------------------------------------------ every encoding's edge


def fill_edges(server: Server) -> None:
    """Values one short of, at, and one beyond what the server's settings and formats allow an
    encoding to hold."""
    client = server.client()
    told = dict(client.config_get("*max*"))

    def limit(*names: str) -> int:
        return next((int(told[name]) for name in names if name in told), 128)

    pipe = client.pipeline(transaction=False)

    def put_hash(name: str, fields: dict[str, Any]) -> None:
        # HSET takes one field before Redis 4.0.
        pipe.execute_command("HMSET", name, *itertools.chain(*fields.items()))

    # A listpack's numbers have 7, 13, 16, 24, 32, or 64 bits, a ziplist's 4, 8, 16, 24, 32, or 64.
    numbers = [
        sign * 2**bits + off
        for bits in (4, 7, 8, 12, 13, 15, 16, 23, 24, 31, 32, 63)
        for sign in (1, -1)
        for off in (-1, 0, 1)
    ]
    for number in numbers:
        pipe.set(f"number:{number}", number)
        pipe.set(str(number), "a key that is a number")
    # By the tens: a packed list of each, and sorted sets whose scores and members are such numbers.
    for at in range(0, len(numbers), 10):
        few = numbers[at : at + 10]
        pipe.rpush(f"numbers:{at}", *few)
        pipe.zadd(f"numbers as scores:{at}", {str(number): number for number in few})
        put_hash(f"numbers as fields:{at}", {str(number): number for number in few})
    # In a ziplist the length of the entry before takes one byte up to 253. In a listpack an entry's
    # own takes one byte up to 127, two up to 16,383; a string's one up to 63, two up to 4,095.
    sizes = (0, 1, 20, 21, 44, 45, 63, 64, 126, 127, 128, *range(248, 257), 4_095, 4_096)
    for size in (*sizes, 16_383, 16_384, 65_536):
        pipe.set(f"plain:{size}", os.urandom(size))
        pipe.set(f"runs:{size}", b"ab" * (size // 2))
        pipe.set(b"k" * size or b"nothing", size)
        pipe.rpush(f"list behind {size}", "x" * size, 1, os.urandom(size), "y")
    for entries, value in (
        (limit("hash-max-listpack-entries", "hash-max-ziplist-entries"), 64),
        (limit("zset-max-listpack-entries", "zset-max-ziplist-entries"), 64),
        (limit("set-max-listpack-entries"), 64),
        (limit("set-max-intset-entries"), 64),
    ):
        for count in (1, entries - 1, entries, entries + 1):
            put_hash(f"hash:{count}", {f"f{n}": n for n in range(count)})
            pipe.zadd(f"zset:{count}", {f"m{n}": n / 4 for n in range(count)})
            pipe.sadd(f"set:{count}", *(f"m{n}" for n in range(count)))
            pipe.sadd(f"intset:{count}", *range(count))
            pipe.rpush(f"list:{count}", *range(count))
        for size in (value - 1, value, value + 1, 8_191, 8_192, 8_193):
            put_hash(f"hash of {size}", {"f": "x" * size, "x" * size: 1})
            pipe.zadd(f"zset of {size}", {"x" * size: 1})
            pipe.sadd(f"set of {size}", "x" * size)
            pipe.rpush(f"list of {size}", "x" * size, 1, "x" * size)
    for number in (2**15 - 1, 2**15, 2**31 - 1, 2**31):
        pipe.sadd(f"intset to {number}", 1, number)
    pipe.execute()
    # Hashes, sets and sorted sets that are packed with long members.
    told_sizes = [
        name for name in told if name.endswith(("-max-listpack-value", "-max-ziplist-value"))
    ]
    for name in told_sizes:
        client.config_set(name, 5_000)
    for size in (*range(248, 257), 4_095, 4_096):
        put_hash(f"packed hash behind {size}", {"x" * size: "y" * size, "f": size})
        pipe.zadd(f"packed zset behind {size}", {"x" * size: size, "m": 0.5})
        pipe.sadd(f"packed set behind {size}", "x" * size, "m")
    pipe.execute()
    for name in told_sizes:
        client.config_set(name, told[name])
    if server.binary.version < (5, 0, 0):
        return
    entries = limit("stream-node-max-entries")
    for count in {1, 99, 100, 101, entries + 1}:
        for n in range(count):
            pipe.xadd(f"stream:{count}", {"f": n}, id=f"{n + 1}-0")
        pipe.xgroup_create(f"stream:{count}", "g", "0")
    for size in (*range(124, 130), 253, 254, 4_095, 4_096, 16_383, 16_384):
        pipe.xadd(f"stream behind {size}", {"x" * size: "y" * size, "f": size}, id="1-0")
    for number in numbers:
        pipe.xadd("stream of numbers", {"f": number})
    pipe.execute()


@pytest.mark.parametrize("binary", [*binaries(), *extra_binaries()], ids=str)
def test_every_encoding_s_edge(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary)
    fill_edges(server)
    client = server.client()
    client.save()
    names = client.keys()
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.dump(name)
    dumps = dict(zip(names, pipe.execute(), strict=True))
    data = Path(server.folder, "dump.rdb").read_bytes()
    for sizes, above in (([1 << 18], 1 << 20), ([4093, 1], 200)):
        reader = SnapshotReader(stream_above=above)
        found = {each.key: each.value[:-10] for each in records(feed(reader, data, sizes))}
        assert found == {name: payload[:-10] for name, payload in dumps.items()}
        assert reader.empty == 0
        # Both encodings of each collection are there.
        # Scores are text before RDB version 8 (Redis 4.0).
        packed = {4: {13, 16}, 5 if reader.version >= 8 else 3: {12, 17}, 2: {11}}
        assert all(
            kind in reader.types and others & set(reader.types) for kind, others in packed.items()
        )


# ------------------------------------------------------------------ one lane's slots


def test_keys_of_other_slots_are_passed_over() -> None:
    """However long they are, and whatever their type: what is left is as without a filter."""
    names = [b"key:%d" % n for n in range(60)]
    values = {name: string(b"v" * (n % 7 * 100)) for n, name in enumerate(names)}
    hashes = {name: length(10) + string(b"f" * 40) * 20 for name in names[::5]}
    imports = b"\xf3" + string(b"job") + length(1) + length(3) + length(5)
    body = b"\xfa" + string(b"name") + string(b"value") + imports
    for db in (0, 1):
        body += b"\xfe" + length(db) + b"\xfb" + length(len(names)) + length(0)
        for name in names:
            here = (4, hashes[name]) if name in hashes else (0, values[name])
            body += b"\xfc" + (2**41).to_bytes(8, "little") + key(here[0], name, here[1])
    data = whole(body, b"VALKEY080")
    inside = [(0, 4000), (9000, 9500)]
    ours = [each for each in names if any(a <= key_slot(each) <= b for a, b in inside)]
    assert 0 < len(ours) < len(names)
    for sizes in ([1], [1000], [1 << 18]):
        for stream_above in (500, 1 << 20):
            how: dict[str, Any] = {"stream_above": stream_above}
            plain = [
                each
                for each in records(feed(SnapshotReader(**how), data, sizes))
                if each.key in ours
            ]
            reader = SnapshotReader(slots=SlotFilter(inside, keyless=False), **how)
            assert records(feed(reader, data, sizes)) == plain
            assert reader.finished
            assert reader.checksummed
            assert sum(reader.types.values()) == 2 * len(ours)
            assert reader.elsewhere == 2 * (len(names) - len(ours))
            assert reader.keys_hint == 2 * len(names)
            assert reader.aux == {"name": b"value"}


@settings(max_examples=100)
@given(
    numbers=st.lists(st.integers(0, 200), unique=True, max_size=60),
    tagged=st.sets(st.integers(0, 200), max_size=12),
    mortal=st.sets(st.integers(0, 200), max_size=12),
    refused_ones=st.sets(st.integers(0, 90), max_size=12),
    batch_bytes=st.sampled_from([1, 60, 400, 1 << 20]),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
)
def test_commands_for_a_clusters_node(
    numbers: list[int],
    tagged: set[int],
    mortal: set[int],
    refused_ones: set[int],
    batch_bytes: int,
    sizes: list[int],
) -> None:
    """Strings that follow each other and share a slot go together; and each answer counts for the
    keys that it is about, whatever the others say."""
    body, there = b"", []
    for n in numbers:
        name = b"{%d}%d" % (n % 2, n) if n in tagged else MATES[n]
        body += b"\xfc" + (2**42).to_bytes(8, "little") if n in mortal else b""
        body += key(0, name, string(b"value %d" % n))
        there.append((name, b"value %d" % n, n in mortal))
    slots = SlotFilter([(0, 9000), (key_slot(b"0"), key_slot(b"0"))], keyless=False)
    reader = SnapshotReader(slots=slots, batch_bytes=batch_bytes)
    found = feed(reader, whole(body), sizes)
    encoder = RestoreEncoder(mset=True, of_one_slot=True)
    sent = iter([each for each in there if slots.takes(each[0])])
    counter = ReplyCounter()
    answers, wanted, at = b"", [], 0
    for batch in found:
        assert isinstance(batch, RecordBatch)
        mine = [next(sent) for _ in range(len(batch))]
        assert [batch.key(index) for index in range(len(batch))] == [name for name, *_ in mine]
        output = encoder.encode(batch)
        counter.expect(len(batch), output.runs)
        errors, index, before = [], 0, -1
        for name, *rest in commands_in(bytes(output)):
            many = len(rest) // 2 if name == b"MSET" else 1
            keys = rest[: 2 * many : 2]
            assert name in (b"MSET", b"RESTORE")
            (slot,) = {key_slot(each) for each in keys}
            # (What expires goes by itself.)
            assert name == b"RESTORE" or slot != before
            before = slot if name == b"MSET" else -1
            for each, (wanted_name, value, dies) in zip(keys, mine[index:], strict=False):
                assert each == wanted_name
                assert dies == (name == b"RESTORE")
                assert dies or rest[rest.index(each) + 1] == value
            bad = at in refused_ones
            answers += b"-OOM no\r\n" if bad else b"+OK\r\n"
            errors += [(index + each, "OOM no") for each in range(many)] if bad else []
            index, at = index + many, at + 1
        assert index == len(batch)
        wanted.append((len(batch) - len(errors), 0, errors))
    assert not list(sent)
    push(counter, answers, sizes)
    assert counter.take() == wanted


def names_that_share_slots(many: int) -> list[bytes]:
    """Names without hash tags, those of one slot behind each other."""
    by_slot: dict[int, list[bytes]] = {}
    for n in range(30_000):
        by_slot.setdefault(key_slot(b"key:%d" % n), []).append(b"key:%d" % n)
    groups = sorted(by_slot.values(), key=lambda each: (-len(each), each))
    return list(itertools.chain.from_iterable(groups))[:many]


MATES = names_that_share_slots(201)


def commands_in(data: bytes) -> list[list[bytes]]:
    """The commands of a pipeline."""
    reader = RespReader()
    found, at = [], 0
    while at < len(data):
        with memoryview(reader.get_buffer(-1)) as view:
            size = min(len(view), len(data) - at)
            view[:size] = data[at : at + size]
        reader.buffer_updated(size)
        at += size
        while (command := reader.gets()) is not NEED_DATA:
            found.append(command)
    return found


def test_imports_of_slots_are_told() -> None:
    name = b"0123456789abcdef" * 2 + b"01234567"
    body = b"\xf3" + string(name) + length(2) + length(0) + length(100) + length(9) + length(16_383)
    body += b"\xf3" + string(b"") + length(0) + key(0, b"a", string(b"1"))
    for sizes in ([1], [1 << 18]):
        for drop in (False, True):
            reader = SnapshotReader(drop_imports=drop)
            feed(reader, whole(body, b"VALKEY080"), sizes)
            assert reader.slot_imports == [(name, ((0, 100), (9, 16_383))), (b"", ())]
    many = b"\xf3" + string(b"j") + length(300_000) + (length(0) + length(1)) * 300_000
    assert refused(whole(many, b"VALKEY080")) == "expected an import of fewer slots"
    assert refused(whole(b"\xf3" + string(b"j" * 1025) + length(0), b"VALKEY080")).startswith(
        "expected fewer imports of slots"
    )
