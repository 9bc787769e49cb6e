"""Values rewritten to a form that an older target knows: against the slow reference, whole and
damaged. One that was rewritten holds what it held; all others are as they were."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings

from benches.support import encoded_values as encoded
from benches.support.encoded_values import VALKEY, length, listpack, payload, string
from engine._native import RecordBatch, RestoreEncoder, SnapshotReader, ValueTranscoder, crc64
from engine.model.carried_with_loss import WORDS
from engine.model.server_capabilities import Flavour, ServerCapabilities, Version
from tests.reference import values as reference
from tests.reference.rdb import Damaged
from tests.support.snapshots import feed
from tests.unit.test_rdb import key, whole
from tests.unit.test_value_decoder import BY_HAND, VALUES, damaged, seeds, stream

TARGETS: dict[str, tuple[Flavour, Version]] = {
    "redis-5.0": ("redis", (5, 0, 0)),
    "redis-6.2": ("redis", (6, 2, 0)),
    "redis-7.0": ("redis", (7, 0, 0)),
    "redis-7.2": ("redis", (7, 2, 0)),
    "redis-8.0": ("redis", (8, 0, 0)),
    "redis-8.6": ("redis", (8, 6, 0)),
    "valkey-8.1": ("valkey", (8, 1, 0)),
    "valkey-9.1": ("valkey", (9, 1, 0)),
}
ACTIVE, COUNTERS, PRODUCERS, _ = WORDS


def sealed(data: bytes) -> bytes:
    """With the CRC64 of its own."""
    return data[:-8] + struct.pack("<Q", crc64(data[:-8]))


@functools.cache
def known(target: str) -> ServerCapabilities:
    """What it can do."""
    return ServerCapabilities(*TARGETS[target])


@functools.cache
def transcoder(target: str) -> ValueTranscoder:
    """One for this target."""
    able = known(target)
    return ValueTranscoder(able.flavour, able.known_types)


def own(data: bytes) -> str:
    """Whose types the payload has."""
    return "valkey" if int.from_bytes(data[-10:-8], "little") >= VALKEY else "redis"


def loads(target: str, data: bytes) -> bool:
    """Whether the target knows this type: from 22 on each flavour has its own."""
    able = known(target)
    return data[0] in able.known_types and (data[0] < 22 or own(data) == able.flavour)


def parts(kind: str, elements: list[Any], number: int) -> list[Any]:
    """What is the same in every form of a value from the one of this type on."""
    if kind in ("set", "zset", "hash"):
        return sorted(elements)
    if kind != "stream":
        return elements
    entries, last_id, deleted, added, groups, *_ = elements
    found = []
    for name, last, read, pending, consumers, *_ in groups:
        owners = [
            [owner, seen, active if number >= 21 else None, ids]
            for owner, seen, active, ids in consumers
        ]
        found.append([name, last, read if number > 15 else None, pending, owners])
    return [entries, last_id, *([deleted, added] if number > 15 else []), found]


def rewritten(target: str, data: bytes) -> bytes:
    """What a target is sent for this value; checked."""
    found, lost = transcoder(target).payload(data)
    assert found is not None
    if found is data:
        assert not lost
        return found
    assert not loads(target, data)
    assert loads(target, found)
    assert known(target).accepts_rdb_version(int.from_bytes(found[-10:-8], "little"))
    assert found == sealed(found)
    kind, elements = reference.decode(data)
    assert reference.decode(found)[0] == kind
    assert parts(kind, reference.decode(found)[1], found[0]) == parts(kind, elements, found[0])
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", VALUES)
def test_every_encoding_of_a_value(kind: str, target: str) -> None:
    values, encodings = VALUES[kind]
    able = known(target)

    @settings(max_examples=25)
    @given(values)
    def one(value: Any) -> None:
        for each in encodings(value):
            data = sealed(each)
            found = rewritten(target, data)
            ttls = kind == "hash" and any(ttl >= 0 for _, _, ttl in value)
            assert loads(target, found) is (able.field_ttls or not ttls or loads(target, data))

    one()


@pytest.mark.parametrize(
    ("target", "numbers", "lost"),
    [
        ("redis-8.6", {27: 27}, {27: 0}),
        ("redis-8.0", {26: 21}, {26: PRODUCERS}),
        ("valkey-9.1", {26: 21}, {26: PRODUCERS}),
        ("redis-7.0", {26: 19, 21: 19}, {26: PRODUCERS | ACTIVE, 21: ACTIVE}),
        (
            "redis-5.0",
            {26: 15, 21: 15, 19: 15},
            {26: PRODUCERS | ACTIVE | COUNTERS, 21: ACTIVE | COUNTERS, 19: COUNTERS},
        ),
    ],
)
def test_streams(target: str, numbers: dict[int, int], lost: dict[int, int]) -> None:
    for number, wanted in numbers.items():
        data = sealed(stream(number))
        assert rewritten(target, data)[0] == wanted
        assert transcoder(target).payload(data)[1] == lost[number]
    # In the oldest form that makes it, it is what it would have been made there by hand.
    if numbers.get(21) == 15:
        for number in numbers:
            assert rewritten(target, sealed(stream(number)))[:-10] == stream(15)[:-10]


def test_a_stream_whose_producers_sent_nothing_loses_nothing() -> None:
    data = stream(26)
    behind = length(100) + length(50) + length(1) + string(b"producer")
    at = data.index(behind)
    for most, lost in ((100, 0), (50, PRODUCERS)):
        plain = data[:at] + length(100) + length(most) + length(0) * 3 + data[-10:]
        assert transcoder("redis-8.0").payload(sealed(plain))[1] == lost


def test_what_no_older_form_has_is_left_as_it_is() -> None:
    for name in ("stream 27", "array", "gcra", "module"):
        data = sealed(BY_HAND[name])
        for target in TARGETS:
            assert rewritten(target, data) is data
    late = sealed(encoded.hashes([(b"f", b"v", 1 << 47)])[0])
    assert rewritten("valkey-9.1", late) is late
    # Redis knows no expire time so late.
    assert rewritten("redis-8.0", late) is late


# Numbers at the edges of their forms, and strings at those of their lengths and of the one behind.
EDGES = sorted(
    {sign * (1 << bits) + off for bits in (0, 3, 7, 12, 15, 23, 31, 62) for sign in (1, -1)
     for off in (-1, 0, 1)} | {12, 13, (1 << 63) - 1, -(1 << 63)}
)  # fmt: skip
LONG = [
    b"x" * size for size in (0, 1, 3, 4, 7, 8, 15, 16, 31, 33, 63, 64, 250, 251, 252, 253, 4096)
]


def packed_in(data: bytes) -> bytes:
    """The one string that the value is, behind its type."""
    at = {0: 2, 1: 3, 2: 6}[data[1] >> 6]
    return data[at:-10]


def test_listpacks_become_ziplists_of_the_same_elements() -> None:
    """Byte by byte those that an older server would have made."""
    names = [*EDGES, *(b"f%d:" % n + each for n, each in enumerate(LONG))]
    values: list[bytes | int] = [*LONG, *EDGES, *LONG][: len(names)]
    flat = [each for pair in zip(names, values, strict=True) for each in pair]
    data = sealed(payload(16, string(listpack(flat))))
    found = rewritten("redis-6.2", data)
    assert (found[0], packed_in(found)) == (13, encoded.ziplist(flat))
    scored: list[bytes | int] = [b"a", b"-inf", b"b", -7, b"c", b"0.1", 5, b"1e+25", b"d", b"inf"]
    data = sealed(payload(17, string(encoded.listpack(scored))))
    found = rewritten("redis-6.2", data)
    assert (found[0], packed_in(found)) == (12, encoded.ziplist(scored))
    nodes = [flat, values, [b"one"]]
    data = sealed(payload(18, length(3) + b"".join(b"\2" + string(listpack(n)) for n in nodes)))
    found = rewritten("redis-6.2", data)
    assert found[0] == 14
    assert all(encoded.ziplist(node) in found for node in nodes)


@pytest.mark.parametrize(
    ("number", "body", "wanted"),
    [
        # Not in the order in which a server keeps it; of one score by the members' bytes.
        (17, string(listpack([b"m", 2, b"n", 1])), 5),
        (17, string(listpack([b"n", 2, b"m", 2])), 5),
        (17, string(listpack([9, 2, 10, 2])), 5),
        (17, string(listpack([10, 2, 9, 2])), 12),
        # Scores that no server writes so.
        (17, string(listpack([b"m", b"Infinity"])), 5),
        (17, string(listpack([b"m", b"0." + b"1" * 60])), 5),
        # Longer than a ziplist should be.
        (16, string(listpack([b"f", b"v" * 70_000])), 4),
        (18, length(1) + b"\2" + string(listpack([b"v" * 70_000])), 1),
        (18, length(2) + b"\2" + string(listpack([b"v"])) + b"\1" + string(b"long"), 1),
    ],
)
def test_what_is_no_ziplist_of_an_older_server(number: int, body: bytes, wanted: int) -> None:
    assert rewritten("redis-6.2", sealed(payload(number, body)))[0] == wanted


def test_lists_for_a_target_without_quicklists() -> None:
    oldest = ValueTranscoder("redis", known("redis-5.0").known_types - {14})
    data = sealed(payload(18, length(1) + b"\2" + string(listpack([b"a", 1]))))
    found, _ = oldest.payload(data)
    assert found is not None
    assert found[0] == 1
    assert reference.decode(found) == reference.decode(data)


def test_a_member_that_is_there_twice_is_none_that_a_server_wrote() -> None:
    twice: Sequence[tuple[int, list[bytes | int]]] = [
        (16, [b"f", b"v", b"f", b"w"]), (17, [b"m", 1, b"m", 2]), (20, [b"m", b"m"]),
        (20, [7, b"7"]), (20, [b"-12", -12]), (20, [b"", b""]), (20, [b"-", 0, b"0"]),
        (20, [-(1 << 63), b"-9223372036854775808"]), (16, [12345678, b"v", b"12345678", b"w"]),
    ]  # fmt: skip
    for number, elements in twice:
        data = sealed(payload(number, string(listpack(elements))))
        assert rewritten("redis-5.0", data) is data
        many = [*(b"%d" % n for n in range(3000)), *elements]
        data = sealed(payload(number, string(listpack(many))))
        assert rewritten("redis-5.0", data) is data
        data = sealed(payload(number, string(listpack(many[:3000]))))
        assert rewritten("redis-5.0", data) is not data


def test_members_that_only_look_alike_are_not_the_same() -> None:
    members: list[bytes | int] = [
        0, b"00", b"-0", b"", b"-", b"-1 ", -1, b"--1", b"01", 1, b"+1", b"1:",
        b"18446744073709551615", (1 << 63) - 1, -(1 << 63), b"9223372036854775808",
        b"-9223372036854775809", b"\0", b"0\0",
    ]  # fmt: skip
    assert rewritten("redis-5.0", sealed(payload(20, string(listpack(members)))))[0] == 2


def test_damage_is_left_for_the_target_to_refuse() -> None:
    rng = random.Random(1516)
    for data in map(sealed, seeds()):
        for target in TARGETS:
            rewritten(target, data)
            # A CRC64 that is not the value's own.
            other = data[:-1] + bytes([data[-1] ^ 1])
            assert rewritten(target, other) is other
    for _ in range(4_000):
        data = sealed(damaged(rng.choice(seeds()), rng))
        target = rng.choice(list(TARGETS))
        try:
            reference.decode(data)
        except Damaged:
            assert rewritten(target, data) is data
        else:
            rewritten(target, data)


def test_one_that_would_be_too_long_is_not_made() -> None:
    limited = ValueTranscoder("redis", known("redis-5.0").known_types, most=1000)
    short, long_ = (
        sealed(payload(20, string(listpack([b"%04d" % n for n in range(count)]))))
        for count in (100, 300)
    )
    assert limited.payload(short)[0] not in (None, short)
    assert limited.payload(long_) == (None, 0)
    limited.most = 1 << 20
    assert limited.payload(long_)[0] not in (None, long_)


def test_a_type_of_one_flavour_keeps_to_it_under_another_version() -> None:
    """8.6 writes 13 behind hashes with field TTLs, which 8.0 knows from 12 on."""
    fields = [(b"f", b"v", 1 << 41)]
    valkey, redis = (
        next(each for each in encoded.hashes(fields) if each[0] == number) for number in (22, 25)
    )
    for data, bounds, version in (
        (payload(25, redis[1:-10], 13), (12, 1, 0), 12),
        (payload(25, redis[1:-10], 13), (13, 1, 0), 13),
        # Where it is refused anyway it stays what it is.
        (payload(25, redis[1:-10], 13), (11, 1, 0), 13),
        (payload(25, redis[1:-10], 13), (80, 12, 79), 13),
        (payload(22, valkey[1:-10], 81), (80, 12, 79), 80),
        (payload(22, valkey[1:-10], 80), (15, 1, 0), 80),
    ):
        highest, low, high = bounds
        encoder = RestoreEncoder(highest_version=highest, refused_low=low, refused_high=high)
        sent = encoder.command(b"k", -1, sealed(data))
        wanted = sealed(data[:-10] + struct.pack("<H", version) + bytes(8))
        assert wanted in sent


# --- In batches ---


def batches_of(*values: bytes) -> list[RecordBatch]:
    """Keys k0, k1, … with these values, as a snapshot brings them."""
    body = b"".join(key(data[0], b"k%d" % n, data[1:-10]) for n, data in enumerate(values))
    found = feed(SnapshotReader(), whole(body, b"REDIS0015"))
    return [each for each in found if isinstance(each, RecordBatch)]


def test_a_batch_and_what_its_values_lost() -> None:
    small = [b"a%d" % n for n in range(20)]
    values = [
        encoded.strings(b"as it is")[0], stream(26), encoded.sets(small)[2], stream(21),
        encoded.lists(small)[1], BY_HAND["array"],
    ]  # fmt: skip
    (batch,) = batches_of(*values)
    before = batch.value_bytes
    assert transcoder("redis-7.0").transcode(batch) == (6, [])
    assert [batch.value_type(n) for n in range(6)] == [0, 19, 2, 19, 1, 28]
    for n, data in enumerate(values):
        found = batch.value(n)
        assert found == sealed(found)
        assert batch.key(n) == b"k%d" % n
        number = found[0]
        assert parts("stream" if n in (1, 3) else "list", reference.decode(found)[1], number) == (
            parts("stream" if n in (1, 3) else "list", reference.decode(sealed(data))[1], number)
        )
    assert batch.value_bytes == sum(batch.value_size(n) for n in range(6)) != before
    assert batch.losses([], 1) == [(ACTIVE, 2, [b"k1"]), (PRODUCERS, 1, [b"k1"])]
    # Of those that the target refuses nothing was carried.
    assert batch.losses([1], 5) == [(ACTIVE, 1, [b"k3"])]
    head = batch.take(2)
    assert head.losses([], 5) == [(ACTIVE, 1, [b"k1"]), (PRODUCERS, 1, [b"k1"])]
    assert batch.losses([], 5) == [(ACTIVE, 1, [b"k3"])]


def test_a_batch_does_not_grow_without_bound() -> None:
    """Sets of a long member that came compressed."""
    packed = encoded_lzf(b"x" * 200_000)
    (batch,) = batches_of(*[packed] * 300)
    core, done, taken = transcoder("redis-6.2"), 0, 0
    assert batch.nbytes < 1 << 20
    while len(batch):
        done, too_long = core.transcode(batch)
        assert not too_long
        assert batch.nbytes < 50 << 20
        if done == len(batch):
            break
        taken += len(batch.take(done))
    assert taken + done == 300
    assert taken > 200


def test_values_of_a_batch_that_would_be_too_long() -> None:
    short, long_ = (encoded.sets([b"%04d" % n for n in range(count)])[2] for count in (9, 300))
    (batch,) = batches_of(short, long_, short, long_)
    limited = ValueTranscoder("redis", known("redis-5.0").known_types, most=1000)
    assert limited.transcode(batch) == (4, [1, 3])
    assert [batch.value_type(n) for n in range(4)] == [2, 20, 2, 20]


def test_a_value_in_pieces() -> None:
    values = [stream(26), encoded.strings(b"short")[0]]
    body = b"".join(key(data[0], b"k", data[1:-10]) for data in values)
    core = transcoder("redis-7.0")
    assert core.wants(26)
    assert not core.wants(19)
    assert not core.wants(28)
    assert not core.wants(300)
    *pieces, batch, _ = feed(SnapshotReader(stream_above=50), whole(body, b"REDIS0015"), [64])
    assert isinstance(batch, RecordBatch)
    assert batch.streamed
    data = b"".join(each for each in pieces if isinstance(each, bytes))
    for size in (7, 1 << 20):
        for at in range(0, len(data), size):
            held = core.hold(data[at : at + size])
        assert held == len(data)
        if size == 7:
            core.drop()
    assert core.whole(batch) is False
    assert not batch.streamed
    assert batch.value(0) == core.payload(data)[0]
    assert batch.losses([], 1)
    with pytest.raises(ValueError, match="no batch of this value"):
        core.whole(batch)


@pytest.mark.parametrize("known_types", [[256], [-1]])
def test_what_is_no_type(known_types: list[int]) -> None:
    with pytest.raises(ValueError, match="no type of value"):
        ValueTranscoder("redis", known_types)
    with pytest.raises(ValueError, match="redis or valkey"):
        ValueTranscoder("keydb", [])


def encoded_lzf(member: bytes) -> bytes:
    """A set of one member that is one byte again and again, in a listpack that is compressed."""
    plain = listpack([member])
    head, at = plain[:12], 12
    packed = bytes([len(head) - 1]) + head
    # References to the byte before, of 264 bytes each; what is left as it is.
    count = (len(plain) - at - 16) // 264
    packed += b"\xe0\xff\x00" * count
    at += 264 * count
    while at < len(plain):
        part = plain[at : at + 32]
        packed += bytes([len(part) - 1]) + part
        at += 32
    return payload(20, b"\xc3" + length(len(packed)) + length(len(plain)) + packed)
