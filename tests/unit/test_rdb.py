"""The core's snapshot reader, on snapshots of every real server and on bytes written by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.encoded_values import compressed, length, listpack, string
from benches.support.servers import Binary, Server
from benches.support.waiting import wait_for
from engine._native import ProtocolError, RecordBatch, SnapshotReader
from tests.reference import rdb as reference
from tests.reference.crc import crc64
from tests.support.snapshots import Read, feed, records, save, snapshot

MARK = bytes(range(65, 105))


def read(data: bytes, sizes: list[int] | None = None, **options: Any) -> list[Read]:
    """All records of a snapshot, which must end where `data` does."""
    reader = SnapshotReader(**options)
    items = feed(reader, data, sizes)
    assert reader.finished
    assert reader.rest() == b""
    assert not reader.take()
    return records(items)


def expected(data: bytes) -> list[Read]:
    """The same by the slow reference."""
    found = reference.parse(data)
    assert found.size == len(data)
    return [
        Read(
            entry.db,
            entry.key,
            found.payload(entry.value),
            entry.expire_at,
            entry.access[1] if entry.access else None,
        )
        for entry in found.entries
        if entry.value is not None
    ]


# ------------------------------------------------------------------ bytes by hand


def whole(body: bytes, magic: bytes = b"REDIS0012", crc: bool = True) -> bytes:
    """A snapshot around opcodes and keys."""
    data = magic + body + b"\xff"
    return data + (crc64(data) if crc else 0).to_bytes(8, "little")


def key(kind: int, name: bytes, value: bytes) -> bytes:
    """A key of a type."""
    return bytes([kind]) + string(name) + value


def refused(data: bytes, **options: Any) -> str:
    """What the reader says of bytes that are no snapshot, however they are cut."""
    said = set()
    for size in (1, 7, 1 << 18):
        reader = SnapshotReader(**options)
        with pytest.raises(ProtocolError) as caught:
            feed(reader, data, [size])
        said.add(str(caught.value).split(", found")[0])
        assert 0 <= caught.value.offset <= len(data)
        with pytest.raises(ValueError, match="damaged"):
            reader.received(0)
        assert not reader.finished
    assert len(said) == 1
    return said.pop()


# ------------------------------------------------------------------ real servers


def test_every_value_is_what_dump_gives(binary: Binary) -> None:
    saved = snapshot(binary, "large")
    reader = SnapshotReader()
    items = feed(reader, saved.data)
    found = records(items)
    assert {(each.db, each.key) for each in found} == set(saved.keys)
    assert len(found) == len(saved.keys)
    for each in found:
        dumped = saved.keys[each.db, each.key]
        # The footer says the lowest version that will do; DUMP says the server's own.
        assert each.value[:-10] == dumped.payload[:-10], each.key
        if dumped.expire_at is None:
            assert each.expire_at is None
        else:
            assert each.expire_at == pytest.approx(dumped.expire_at, abs=2_000)
        assert each.access is None
    assert set(reader.functions) == saved.functions
    assert reader.left_out == []
    assert reader.keys_hint == len(saved.keys)
    assert reader.offset == len(saved.data)
    assert reader.flavour == ("valkey" if binary.name.startswith("valkey-9") else "redis")
    version = reader.aux.get("valkey-ver") or reader.aux["redis-ver"]
    assert version.decode() == ".".join(map(str, binary.version))
    batches = [item for item in items if isinstance(item, RecordBatch)]
    assert [batch.db for batch in batches] == sorted(batch.db for batch in batches)
    assert max(batch.nbytes for batch in batches) < (1 << 20) + (4 << 20)
    assert sum(batch.value_bytes for batch in batches) == sum(len(each.value) for each in found)


def test_the_reference_agrees_on_every_byte(binary: Binary) -> None:
    data = snapshot(binary, "tiny").data
    assert read(data) == expected(data)


@pytest.mark.parametrize("sizes", [[1], [2, 3], [5, 1, 13]])
def test_small_cuts_change_nothing(binary: Binary, sizes: list[int]) -> None:
    data = snapshot(binary, "tiny").data
    assert read(data, sizes) == read(data)


@pytest.mark.parametrize("sizes", [[1000, 1, 1], [61], [65_536]])
def test_cuts_change_nothing(binary: Binary, sizes: list[int]) -> None:
    data = snapshot(binary, "small").data
    assert read(data, sizes) == read(data)


def test_a_cut_at_every_byte(few_binary: Binary) -> None:
    """A prefix of a snapshot is never an error and never the whole; the rest completes it."""
    data = snapshot(few_binary, "tiny").data
    wanted = read(data)
    for at in range(len(data)):
        reader = SnapshotReader()
        items = feed(reader, data[:at])
        assert not reader.finished
        assert reader.offset <= at
        items += feed(reader, data[at:])
        assert reader.finished
        assert records(items) == wanted


@pytest.mark.parametrize("stream_above", [12, 300, 5_000, 15_000])
@pytest.mark.parametrize("sizes", [[1 << 18], [1000, 7]])
def test_long_values_come_in_pieces(binary: Binary, stream_above: int, sizes: list[int]) -> None:
    data = snapshot(binary, "small").data
    reader = SnapshotReader(stream_above=stream_above)
    items = feed(reader, data, sizes)
    assert reader.finished
    assert records(items) == read(data)
    held = [item for item in items if isinstance(item, RecordBatch) and not item.streamed]
    lone = [item for item in items if isinstance(item, RecordBatch) and item.streamed]
    for batch in held:
        assert all(batch.value_size(i) <= stream_above for i in range(len(batch)))
    assert all(batch.value_size(0) > stream_above for batch in lone)
    assert {batch.spilled for batch in lone} == {True, False}


@pytest.mark.parametrize("batch_bytes", [1, 1_000, 30_000])
def test_batches_are_closed_at_their_size(binary: Binary, batch_bytes: int) -> None:
    data = snapshot(binary, "small").data
    reader = SnapshotReader(batch_bytes=batch_bytes)
    items = feed(reader, data)
    assert records(items) == read(data)
    for batch in items:
        last = len(batch.key(len(batch) - 1)) + batch.value_size(len(batch) - 1)
        assert batch.nbytes - last < batch_bytes


@pytest.mark.parametrize("value_limit", [30, 1_000, 20_000])
@pytest.mark.parametrize("stream_above", [20, 5_000, 1 << 20])
def test_a_value_over_the_limit_is_named(
    binary: Binary, value_limit: int, stream_above: int
) -> None:
    data = snapshot(binary, "small").data
    everything = read(data)
    reader = SnapshotReader(stream_above=stream_above, value_limit=value_limit)
    items = feed(reader, data, [1 << 15])
    assert records(items) == [each for each in everything if len(each.value) <= value_limit]
    errors = {
        (batch.db, name): reason
        for batch in items
        if isinstance(batch, RecordBatch)
        for name, reason in batch.errors
    }
    long = {(each.db, each.key): each for each in everything if len(each.value) > value_limit}
    assert set(errors) == set(long)
    for name, reason in errors.items():
        assert f"{len(long[name].value):,} bytes as dumped" in reason
        assert f"({value_limit:,} bytes)" in reason


def test_feed_takes_any_amount(binary: Binary) -> None:
    data = snapshot(binary, "large").data
    reader = SnapshotReader()
    items = []
    for at in range(0, len(data), 3_000_000):
        count = reader.feed(data[at : at + 3_000_000])
        taken = reader.take()
        assert count == len(taken)
        items += taken
    assert reader.finished
    assert records(items) == read(data)


def test_access_figures_come_along(binary: Binary) -> None:
    for policy, word, figure in (("allkeys-lru", "IDLETIME", 12_345), ("allkeys-lfu", "FREQ", 77)):
        with Server.start(binary, "--save", "", "--maxmemory-policy", policy) as server:
            client = server.client()
            client.set("other", "1")
            payload = client.dump("other")
            client.execute_command("RESTORE", "key", 0, payload, word, figure)
            data = save(server).data
        reader = SnapshotReader()
        (batch,) = feed(reader, data)
        found = {batch.key(i): batch.access(i) for i in range(len(batch))}
        assert found[b"key"] == pytest.approx(figure, abs=3)
        assert found[b"other"] is not None
        assert {each.key: each.access for each in expected(data)} == found


def _at_rest(client: redis.Redis) -> bool:
    """It has a replica that has its snapshot, and none is under way."""
    replica = client.info("replication").get("slave0", {})
    saving = client.info("persistence")["rdb_bgsave_in_progress"]
    return replica.get("state") == "online" and not saving


def test_scripts_of_old_servers_are_kept(binary: Binary) -> None:
    """Until 6.2 a primary with replicas wrote its cached scripts as AUX fields."""
    with Server.start(binary, "--save", "", "--repl-diskless-sync-delay", "0") as server:
        client = server.client()
        client.eval("return 1", 0)
        client.eval("return {1, 2}", 0)
        replica = Server.start(binary, "--replicaof", "127.0.0.1", str(server.port))
        try:
            wait_for(lambda: _at_rest(client), "a server at rest", 20)
            data = save(server).data
        finally:
            replica.close()
    reader = SnapshotReader()
    feed(reader, data)
    assert reader.finished
    scripts = {b"return 1", b"return {1, 2}"} if binary.version < (7, 0, 0) else set()
    assert set(reader.scripts) == scripts
    assert "lua" not in reader.aux
    assert len(reader.aux["repl-id"]) == 40
    assert reader.aux["repl-offset"].isdigit()


def test_a_server_with_checksums_off_writes_none(binary: Binary) -> None:
    with Server.start(binary, "--save", "", "--rdbchecksum", "no") as server:
        server.client().set("a", "b")
        data = save(server).data
    assert data[-8:] == bytes(8)
    assert [each.key for each in read(data)] == [b"a"]


def test_a_snapshot_of_nothing(binary: Binary) -> None:
    with Server.start(binary, "--save", "") as server:
        data = save(server).data
    reader = SnapshotReader()
    assert feed(reader, data) == []
    assert reader.finished


# ------------------------------------------------------------------ its end


def test_a_length_must_be_the_snapshots(binary: Binary) -> None:
    data = snapshot(binary, "tiny").data
    stream = b"*1\r\n$4\r\nPING\r\n"
    for sizes in ([1], [1 << 18]):
        reader = SnapshotReader(length=len(data))
        items = feed(reader, data + stream, sizes)
        assert reader.finished
        assert records(items) == read(data)
        assert reader.offset == len(data)
        assert reader.rest() == stream
        assert reader.rest() == b""
    short = refused(data, length=len(data) - 1)
    assert "the end of the snapshot before that of its length" in short
    assert "ends where its length says" in refused(data + b"x", length=len(data) + 1)
    for cut in (0, 1, 8, 9, 500):
        assert "before that of its length" in refused(data + stream, length=cut)


def test_a_mark_must_follow(binary: Binary) -> None:
    data = snapshot(binary, "tiny").data
    stream = b"*1\r\n$4\r\nPING\r\n"
    for sizes in ([1], [7, 2], [1 << 18]):
        reader = SnapshotReader(mark=MARK)
        items = feed(reader, data, sizes)
        assert not reader.finished
        with pytest.raises(ValueError, match="its end"):
            reader.rest()
        items += feed(reader, MARK + stream, sizes)
        assert reader.finished
        assert records(items) == read(data)
        assert reader.rest() == stream
    assert "the mark that was announced" in refused(data + MARK[:-1] + b"x", mark=MARK)


def test_what_feed_brings_behind_the_end_is_kept() -> None:
    data = whole(key(0, b"a", string(b"b")))
    reader = SnapshotReader(mark=MARK)
    behind = bytes(range(256)) * 4_000
    assert reader.feed(data + MARK + behind) == 1
    reader.feed(b"more")
    assert reader.rest() == behind + b"more"
    assert reader.rest() == b""


def test_what_makes_no_reader() -> None:
    with pytest.raises(ValueError, match="not both"):
        SnapshotReader(length=5, mark=MARK)
    with pytest.raises(ValueError, match="40 bytes"):
        SnapshotReader(mark=b"short")
    for held in ({"extend_before": -1}, {"extend_by": -1}):
        with pytest.raises(ValueError, match="only ever extended"):
            SnapshotReader(**held)


def test_a_wrong_checksum(binary: Binary) -> None:
    data = bytearray(snapshot(binary, "tiny").data)
    data[-3] ^= 1
    assert "the checksum of the bytes before it" in refused(bytes(data))
    data[-3] ^= 1
    at = data.index(b"a key that is a number")
    data[at] ^= 1
    assert "the checksum of the bytes before it" in refused(bytes(data))


# ------------------------------------------------------------------ what no server here writes

ID = (((12 << 6 | 34) << 42) | 5) << 10 | 3  # a module type's id, with encoding version 3
MODULE = (
    length(1) + length(7)
    + length(2) + length(2**63)
    + length(3) + b"4444"
    + length(4) + b"88888888"
    + length(5) + string(b"string") + length(5) + b"\xc1\x39\x30" + length(5) + string(b"x" * 300)
    + length(0)
)  # fmt: skip
PEL = length(2) + (bytes(16) + bytes(8) + length(1)) * 2
GROUP = string(b"group") + length(1) + length(2) + length(3) + PEL
CONSUMERS = length(1) + string(b"anna") + bytes(8) + bytes(8) + length(2) + bytes(32)
LOG = length(1) + string(bytes(16)) + string(b"listpack") + length(300) * 8
IDEMPOTENCE = (
    length(100) + length(50)
    + length(2)
    + string(b"producer") + length(1) + string(b"iid") + length(70_000) + length(2)
    + string(b"other") + length(0)
    + length(9) + length(8)
)  # fmt: skip

BY_HAND = {
    "list": (1, length(3) + string(b"a") + b"\xc0\x05" + b"\xc3\x05\x0a\x00a\xe0\x00\x00", 1),
    "zset": (3, length(4) + string(b"a") + b"\x031.5" + b"".join(
        string(name) + bytes([mark]) for name, mark in ((b"nan", 253), (b"+", 254), (b"-", 255))
    ), 1),
    "module": (7, length(ID) + MODULE, 8),
    "stream": (15, LOG[: -5 * 2] + length(0), 9),
    "hash of 7.4-rc": (22, length(1) + length(2**40) + string(b"f") + string(b"v"), 12),
    "listpack of 7.4-rc": (23, string(b"listpack"), 12),
    "stream 4": (26, LOG + length(1) + GROUP + CONSUMERS + IDEMPOTENCE, 13),
    "stream 5": (
        27, LOG + length(1) + GROUP + CONSUMERS + length(1) + bytes(16) + IDEMPOTENCE, 14
    ),
    "array": (
        28, length(4) + length(1) + length(9) + b"".join(
            length(i) + length(tag) + value for i, (tag, value) in enumerate(
                ((0, string(b"long string")), (1, bytes(8)), (2, bytes(8)), (3, string(b"short")))
            )
        ), 14,
    ),
    "array, no cursor": (28, length(1) + length(0) + length(2**40) + length(1) + bytes(8), 14),
    "gcra": (33, length(2**50), 15),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_types_that_no_server_here_writes(name: str) -> None:
    kind, value, version = BY_HAND[name]
    body = key(kind, b"before", value) + key(0, b"after", string(b"1"))
    data = whole(body, b"REDIS0015")
    wanted = expected(data)
    assert [each.value[:-10] for each in wanted] == [bytes([kind]) + value, b"\x00\x011"]
    assert int.from_bytes(wanted[0].value[-10:-8], "little") == version
    for sizes in ([1], [3], [1 << 18]):
        assert read(data, sizes) == wanted
        assert read(data, sizes, stream_above=15) == wanted
    for at in range(len(data)):
        reader = SnapshotReader()
        feed(reader, data[:at])
        assert not reader.finished


def test_what_cannot_be_carried_is_listed() -> None:
    released = string(b"lib") + string(b"LUA") + length(1) + string(b"about") + string(b"code")
    plain = string(b"lib") + string(b"LUA") + length(0) + string(b"code")
    body = (
        b"\xf7" + length(ID) + MODULE + b"\xf7" + length(ID) + MODULE
        + b"\xf6" + released + b"\xf6" + plain
        + b"\xf3" + length(2) + (b"spec" + MODULE) * 2 + key(0, b"a", string(b"1"))
        + b"\xf4" + length(16383) + length(70_000) + length(1)
        + b"\xf3" + length(1) + b"spec" + MODULE + key(0, b"b", string(b"1"))
    )  # fmt: skip
    data = whole(body, b"REDIS0015")
    for sizes in ([1], [1 << 18]):
        reader = SnapshotReader()
        items = feed(reader, data, sizes)
        assert reader.finished
        assert [each.key for each in records(items)] == [b"a", b"b"]
        assert reader.left_out == [
            "the data that module MiAAAAAAF keeps beside the keys",
            "functions as the release candidates of Redis 7.0 wrote them",
            "module metadata of 2 keys",
        ]


def template(number: int, *names: bytes) -> bytes:
    """The names of a template of the snapshot."""
    return b"\xf2" + length(number) + length(len(names)) + b"".join(map(string, names))


def test_hashes_of_a_template_are_made_plain() -> None:
    packed = listpack([70, b"v" * 90, -129])
    body = (
        template(70, b"f0", b"17")
        + template(1, b"f0")
        + key(0, b"a", string(b"1"))
        + key(30, b"listpack", string(packed))
        + key(30, b"compressed", compressed(packed))
        + b"\xfc" + (5).to_bytes(8, "little")
        + key(32, b"array", length(70) + string(b"v0") + b"\xc0\x05")
        + key(32, b"one", length(1) + string(b"v0"))
        + key(0, b"b", string(b"2"))
    )  # fmt: skip
    data = whole(body, b"REDIS0015")
    both = b"\4\2" + string(b"f0") + string(b"v" * 90) + string(b"17") + string(b"-129")
    plain = [
        (b"a", None, b"\0" + string(b"1")),
        (b"listpack", None, both),
        (b"compressed", None, both),
        (b"array", 5, b"\4\2" + string(b"f0") + string(b"v0") + string(b"17") + b"\xc0\x05"),
        (b"one", None, b"\4\1" + string(b"f0") + string(b"v0")),
        (b"b", None, b"\0" + string(b"2")),
    ]
    for sizes in ([1], [1 << 18]):
        reader = SnapshotReader(batch_bytes=64)
        found = records(feed(reader, data, sizes))
        assert [(each.key, each.expire_at, each.value[:-10]) for each in found] == plain
        # It is 4 for the target: the lowest version, and what it counts as.
        assert found[1].value[-10:-8] == b"\1\0"
        assert reader.types == {0: 2, 4: 4}


def test_hashes_that_do_not_fit_their_template_are_named() -> None:
    body = (
        template(70, b"f0", b"f1")
        + template(2)
        + template(3, b"17", b"f", b"17")
        + b"\xf2" + length(4) + length(2) + b"\xc0\x11" + string(b"17")
        + template(5, b"n" * 40)[:-41] + compressed(b"n" * 40)
        + b"\xf2" + length(6) + length(2) + compressed(b"n" * 40) + string(b"n" * 40)
        + key(30, b"damaged", string(b"listpack"))
        + key(30, b"few", string(listpack([70, b"v0"])))
        + key(30, b"many", string(listpack([70, 1, 2, 3])))
        + key(30, b"no id", string(listpack([b"70", 1, 2])))
        + key(30, b"unknown", string(listpack([9, 1, 2])))
        + key(32, b"none", length(2))
        + key(32, b"twice", length(3) + string(b"v0") * 3)
        + key(32, b"as a number", length(4) + string(b"v0") * 2)
        + key(32, b"compressed once", length(5) + string(b"v0"))
        + key(32, b"compressed", length(6) + string(b"v0") * 2)
        + key(0, b"a", string(b"1"))
    )  # fmt: skip
    for sizes in ([1], [1 << 18]):
        items = feed(SnapshotReader(), whole(body, b"REDIS0015"), sizes)
        assert [each.key for each in records(items)] == [b"compressed once", b"a"]
        errors = [error for batch in items for error in batch.errors]
        names = [b"damaged", b"few", b"many", b"no id", b"unknown", b"none"]
        # No server takes a hash that has a field twice.
        names += [b"twice", b"as a number", b"compressed"]
        assert [name for name, _ in errors] == names
        assert all("field template" in why and "does not fit" in why for _, why in errors)
    unknown = whole(key(32, b"array", length(70) + string(b"v0")), b"REDIS0015")
    assert "the id of a field template" in refused(unknown)


def test_hashes_of_a_template_that_are_too_long_are_named() -> None:
    """Few bytes of the snapshot may stand for very many: no more is held than of other values."""
    body = (
        template(1, b"n" * 500)
        + template(2, b"f")
        + key(32, b"name", length(1) + string(b"v"))
        + key(32, b"value", length(2) + string(b"v" * 500))
        + key(30, b"packed", string(listpack([2, b"v" * 500])))
        + key(32, b"short", length(2) + string(b"v"))
    )
    for sizes in ([1], [1 << 18]):
        items = feed(SnapshotReader(stream_above=400), whole(body, b"REDIS0015"), sizes)
        assert [each.key for each in records(items)] == [b"short"]
        errors = [error for batch in items for error in batch.errors]
        assert [name for name, _ in errors] == [b"name", b"value", b"packed"]
        assert all("is too long for it" in why for _, why in errors)
    many = b"".join(template(n, b"n" * (1 << 20)) for n in range(70)) + b"".join(
        key(32, b"%d" % n, length(n) + string(b"v")) for n in range(70)
    )
    items = feed(SnapshotReader(), whole(many, b"REDIS0015", crc=False))
    assert len(records(items)) == 63
    assert sum(len(batch.errors) for batch in items) == 7


def test_path_hashes_of_valkey_are_carried() -> None:
    value = length(2) + string(b"") + length(1) + string(b"f") + string(b"v")
    value += string(b"p") + length(2) + string(b"f") + b"\xc0\x05" + string(b"g") + string(b"w")
    body = key(23, b"before", value) + key(23, b"empty", length(0)) + key(0, b"after", string(b"1"))
    data = whole(body, b"VALKEY081")
    wanted = expected(data)
    assert [each.value[:-10] for each in wanted] == [b"\x17" + value, b"\x17\0", b"\0\x011"]
    assert int.from_bytes(wanted[0].value[-10:-8], "little") == 81
    for sizes in ([1], [3], [1 << 18]):
        assert read(data, sizes) == wanted
        assert read(data, sizes, stream_above=15) == wanted


def test_numbers_that_mean_another_thing_to_valkey() -> None:
    hash_ttl = length(1) + string(b"f") + string(b"v") + bytes(8)
    imported = b"\xf3" + string(b"job") + length(2) + length(1) + length(5) + length(9) + length(9)
    data = whole(imported + key(22, b"h", hash_ttl), b"VALKEY080")
    (newer,) = read(data.replace(b"VALKEY080", b"VALKEY081")[:-8] + bytes(8))
    (found,) = read(data)
    assert newer == found
    assert found.value[:-8] == b"\x16" + hash_ttl + (80).to_bytes(2, "little")
    reader = SnapshotReader()
    feed(reader, data)
    assert reader.flavour == "valkey"
    assert reader.left_out == ["an import of slots that was under way"]
    for kind in (23, 24, 26, 28, 30):
        said = refused(whole(key(kind, b"h", hash_ttl), b"VALKEY080"))
        assert said.startswith(f"type of value {kind} is not known in a snapshot of valkey")
    assert refused(whole(b"\xf2" + hash_ttl, b"VALKEY081")).startswith("opcode 242")


@pytest.mark.parametrize(
    ("magic", "kind"),
    [
        (b"REDIS0011", 22), (b"REDIS0011", 24), (b"REDIS0010", 20), (b"REDIS0009", 16),
        (b"REDIS0012", 6), (b"REDIS0012", 8), (b"REDIS0015", 29), (b"REDIS0015", 31),
        (b"REDIS0015", 34), (b"REDIS0015", 241), (b"REDIS0011", 243), (b"REDIS0011", 242),
    ],
)  # fmt: skip
def test_types_and_opcodes_that_are_not_known(magic: bytes, kind: int) -> None:
    said = refused(whole(bytes([kind]) + string(b"k") + string(b"v"), magic))
    what = "opcode" if kind >= 242 else "type of value"
    assert said.startswith(f"{what} {kind} is not known in a snapshot of redis, version ")


@pytest.mark.parametrize(
    "magic", [b"REDIS0000", b"REDIS00 1", b"KEYDB0009", b"VALKEY08x", bytes(9)]
)
def test_other_magic(magic: bytes) -> None:
    assert "magic" in refused(whole(b"", magic))


def test_before_version_5_there_is_no_checksum() -> None:
    data = b"REDIS0004" + key(0, b"a", string(b"b")) + b"\xff"
    assert [each.key for each in read(data)] == [b"a"]


def test_deadlines() -> None:
    later = 1_900_000_000_000
    body = b"".join(
        opcode + key(0, b"%d" % i, string(b"v"))
        for i, opcode in enumerate(
            (
                b"\xfc" + later.to_bytes(8, "little"),
                b"\xfd" + (1_900_000_000).to_bytes(4, "little"),
                b"",
                b"\xfc" + (0).to_bytes(8, "little"),
                b"\xfc" + (2**64 - 1).to_bytes(8, "little"),
                b"\xfc" + (2**64 - 9).to_bytes(8, "little"),
                b"\xfd" + (2**32 - 9).to_bytes(4, "little"),
                b"\xfc" + (2**63 - 1).to_bytes(8, "little"),
            )
        )
    )
    data = whole(body)
    found = [each.expire_at for each in read(data, [1])]
    assert found == [later, later, None, 0, None, 0, 0, 2**63 - 1]
    assert read(data) == expected(data)


def test_near_deadlines_are_held_back(binary: Binary) -> None:
    data = snapshot(binary, "small").data
    plain = read(data)
    deadlines = sorted(each.expire_at for each in plain if each.expire_at is not None)
    middle = deadlines[len(deadlines) // 2]
    for stream_above in (15, 1 << 20):
        reader = SnapshotReader(extend_before=middle, extend_by=600_000, stream_above=stream_above)
        items = feed(reader, data, [4096])
        timed = set()
        for batch in items:
            if not isinstance(batch, RecordBatch):
                continue
            packed = batch.timed
            while packed:
                size = int.from_bytes(packed[:4], "little")
                timed.add((batch.db, packed[4 : 4 + size]))
                packed = packed[4 + size :]
        assert timed == {(each.db, each.key) for each in plain if each.value[0] in (22, 24, 25)}
        near = 0
        for each, before in zip(records(items), plain, strict=True):
            held = before.expire_at is not None and before.expire_at < middle
            near += held
            assert each.expire_at == (before.expire_at + 600_000 if held else before.expire_at)
        assert near == reader.extended_count > 0


@pytest.mark.parametrize("stream_above", [15, 1 << 20])
@pytest.mark.parametrize("size", [1, 4096])
def test_keys_whose_time_is_over_are_passed_over(
    binary: Binary, stream_above: int, size: int
) -> None:
    data = snapshot(binary, "tiny").data
    plain = read(data)
    deadlines = sorted(each.expire_at for each in plain if each.expire_at is not None)
    middle = deadlines[len(deadlines) // 2]
    reader = SnapshotReader(drop_before=middle, stream_above=stream_above)
    items = feed(reader, data, [size])
    assert reader.finished
    kept = [each for each in plain if each.expire_at is None or each.expire_at >= middle]
    assert records(items) == kept
    assert reader.expired == len(plain) - len(kept) > 0
    counted = Counter(each.value[0] for each in kept)
    assert reader.types == counted
    batches = [item for item in items if isinstance(item, RecordBatch)]
    lasting = sum(each.expire_at is None for each in kept)
    assert sum(batch.lasting for batch in batches) == lasting


def test_whether_there_is_a_checksum() -> None:
    for crc in (True, False):
        reader = SnapshotReader()
        reader.feed(whole(key(0, b"a", string(b"b")), crc=crc))
        assert reader.finished
        assert reader.checksummed == crc


def test_a_shift_does_not_overflow() -> None:
    data = whole(b"\xfc" + bytes(8) + key(0, b"a", string(b"b")))
    (found,) = read(data, extend_before=2**62, extend_by=2**63 - 1)
    assert found.expire_at == 2**63 - 1


def test_a_batch_has_one_database_and_one_kind_of_access() -> None:
    def put(name: bytes, before: bytes = b"") -> bytes:
        return before + key(0, name, string(b"v"))

    idle, freq = b"\xf8" + length(70_000), b"\xf9\xc8"
    body = (
        b"\xfe\x00" + put(b"a", idle) + put(b"b") + put(b"c", idle) + put(b"d", freq) + put(b"e")
        + b"\xfe\x00" + put(b"f") + b"\xfe" + length(300) + put(b"g") + b"\xfe\x00"
    )  # fmt: skip
    data = whole(body)
    for sizes in ([1], [1 << 18]):
        items = feed(SnapshotReader(), data, sizes)
        keys = [[batch.key(i) for i in range(len(batch))] for batch in items]
        assert keys == [[b"a", b"b", b"c"], [b"d", b"e", b"f"], [b"g"]]
        assert [batch.db for batch in items] == [0, 0, 300]
        assert [items[0].access(i) for i in range(3)] == [70_000, None, 70_000]
        assert items[1].access(0) == 200


def test_flush_hands_on_what_is_complete() -> None:
    first, second = (
        key(0, b"a", string(b"b")),
        key(4, b"h", length(1) + string(b"f") + string(b"v")),
    )
    data = whole(first + second)
    reader = SnapshotReader()
    reader.feed(data[: 9 + len(first)])
    assert reader.may_flush
    reader.flush()
    (batch,) = reader.take()
    assert batch.key(0) == b"a"
    assert not reader.may_flush
    reader.flush()
    assert reader.take() == []
    reader.feed(data[9 + len(first) : 9 + len(first) + 5])
    assert not reader.may_flush
    with pytest.raises(ValueError, match="a value is being read"):
        reader.flush()
    reader.feed(data[9 + len(first) + 5 :])
    (batch,) = reader.take()
    assert batch.key(0) == b"h"


# ------------------------------------------------------------------ hostile bytes


@pytest.mark.parametrize("count", [2**14, 2**32 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("kind", [1, 4, 5, 7, 14, 15, 18, 19, 21, 24, 26, 28])
def test_a_count_costs_nothing_until_its_elements_come(kind: int, count: int) -> None:
    """No allocation of that size, and no end: more is needed."""
    head = bytes(8) if kind == 24 else b""
    data = b"REDIS0015" + key(kind, b"k", head + length(count)) + b"\x01" * 200
    for size in (1, 1 << 18):
        reader = SnapshotReader()
        try:
            feed(reader, data, [size])
        except ProtocolError:
            assert kind == 7
        assert not reader.finished


@pytest.mark.parametrize("count", [2**32 - 1, 2**40, 2**62])
def test_a_long_string_that_never_comes(count: int) -> None:
    data = b"REDIS0012" + key(0, b"k", length(count)) + b"x" * 1000
    reader = SnapshotReader()
    (batch,) = feed(reader, data) or [None]
    assert batch is None
    reader = SnapshotReader(value_limit=2**63)
    items = feed(reader, data)
    assert items[0].streamed
    assert items[0].value_size(0) == 1 + len(length(count)) + count + 10
    assert not reader.finished


@pytest.mark.parametrize(
    "body",
    [
        b"\x00" + length(2**63) + b"k",
        b"\x00" + length(2**30) + b"k",
        b"\x00\xc3" + length(4) + length(2**29) + b"\x00a\x00b",
        b"\x00\xc3" + length(2**40) + length(2**29),
        key(0, b"k", length(2**63)),
        key(0, b"k", b"\xc3" + length(2**63) + length(5)),
        key(0, b"k", b"\xc4"),
        key(0, b"k", b"\x82"),
        key(1, b"k", b"\xc0\x05"),
        key(1, b"k", length(1) + b"\xff"),
        key(7, b"k", length(ID) + length(6)),
        key(28, b"k", length(1) + length(2)),
        key(28, b"k", length(1) + length(0) + length(0) + length(4)),
        b"\x00\xc3\x05\x0b\x00a\xe0\x00\x00" + string(b"v"),
        b"\x00\xc3\x02\x02\x05a" + string(b"v"),
        b"\xfe" + length(2**31),
        b"\xfe\xc0\x01",
        b"\xfb\x01\xc0\x01",
        b"\xf8" + length(2**63),
        b"\xfa" + length(2**25),
        b"\xfa" + string(b"lua") + length(2**27),
        b"\xf5" + length(2**27),
    ],
)
def test_bytes_that_are_no_snapshot(body: bytes) -> None:
    assert refused(whole(body, b"REDIS0015")).startswith("expected ")


def test_texts_have_bounds() -> None:
    many = b"\xfa" + string(b"x" * 200) + string(b"y" * 200)
    assert "of a length in bounds" in refused(whole(many * 3_000, crc=False))
    fields = b"".join(b"\xfa" + string(b"%d" % i) + string(b"") for i in range(1_100))
    assert "fewer AUX fields" in refused(whole(fields, crc=False))
    library = b"\xf5" + b"\x80" + (1 << 20).to_bytes(4, "big") + bytes(1 << 20)
    reader = SnapshotReader()
    with pytest.raises(ProtocolError, match="of a length in bounds"):
        reader.feed(b"REDIS0012" + library * 70)
    assert 60 <= len(reader.functions) < 64


def test_many_refused_keys_are_handed_on_in_time() -> None:
    body = b"".join(key(0, b"%d" % i, string(b"long enough")) for i in range(2_500))
    items = feed(SnapshotReader(value_limit=15), whole(body))
    assert [len(batch.errors) for batch in items] == [1000, 1000, 500]
    assert [len(batch) for batch in items] == [0, 0, 0]


def test_keys_in_every_encoding(tmp_path: Path) -> None:
    names = {
        b"\xc0\x85": b"-123",
        b"\xc1\x39\x30": b"12345",
        b"\xc2\x00\x00\x00\x80": b"-2147483648",
        b"\xc3\x05\x0a\x00a\xe0\x00\x00": b"a" * 10,
        length(0): b"",
        string(b"k" * 70_000): b"k" * 70_000,
    }
    data = whole(b"".join(b"\x00" + name + string(b"v") for name in names))
    for sizes in ([1], [5], [1 << 18]):
        assert [each.key for each in read(data, sizes)] == list(names.values())
    assert read(data) == expected(data)
