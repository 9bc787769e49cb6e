"""Deadlines of hash fields, lifted in values and in commands, against slow Python."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support.encoded_values import REDIS, VALKEY, length, payload, string
from engine._native import (
    ExtendedNames,
    ProtocolError,
    RecordBatch,
    SnapshotReader,
    StreamReader,
    crc64,
    stuck_hashes,
)
from engine.sources.base import unpacked_names
from tests.reference.stream import command
from tests.reference.values import decode
from tests.support.feeding import contents, push
from tests.support.snapshots import feed, records
from tests.unit.test_rdb import key, whole

EXTEND = 100 * 365 * 86_400_000
NOW = 1_800_000_000_000
Fields = list[tuple[bytes, bytes, int]]
"""(name, value, deadline in ms since the epoch; 0: none) of each field."""

names = st.binary(min_size=1, max_size=70).filter(lambda name: not name.isdigit())
deadlines = st.one_of(st.just(0), st.integers(1 << 33, 1 << 42))
fields = st.lists(st.tuples(names, st.binary(max_size=200), deadlines), min_size=1, max_size=8)


def entry(data: bytes | int) -> bytes:
    """One of a listpack, as a server writes it."""
    if isinstance(data, int):
        head = bytes([data]) if data < 128 else b"\xf4" + data.to_bytes(8, "little")
    elif len(data) < 64:
        head = bytes([0x80 | len(data)]) + data
    else:
        head = bytes([0xE0 | len(data) >> 8, len(data) & 255]) + data
    size = len(head)
    return head + (bytes([size]) if size < 128 else bytes([size >> 7, 0x80 | size & 127]))


def literal_lzf(data: bytes) -> bytes:
    """LZF that has found nothing to refer to."""
    runs = [data[at : at + 32] for at in range(0, len(data), 32)]
    packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return b"\xc3" + length(len(packed)) + length(len(data)) + packed


def packed_hash(hash_: Fields, *, compressed: bool) -> bytes:
    """Type 25."""
    body = b"".join(entry(name) + entry(value) + entry(at) for name, value, at in hash_)
    pack = (7 + len(body)).to_bytes(4, "little") + (3 * len(hash_)).to_bytes(2, "little")
    pack += body + b"\xff"
    first = min((at for *_, at in hash_ if at), default=0)
    return first.to_bytes(8, "little") + (literal_lzf(pack) if compressed else string(pack))


def large_hash(hash_: Fields) -> bytes:
    """Type 24."""
    first = min(at for *_, at in hash_ if at)
    return (
        first.to_bytes(8, "little")
        + length(len(hash_))
        + b"".join(
            length(at - first + 1 if at else 0) + string(name) + string(value)
            for name, value, at in hash_
        )
    )


def valkey_hash(hash_: Fields) -> bytes:
    """Type 22 of Valkey."""
    return length(len(hash_)) + b"".join(
        string(name) + string(value) + (at or -1).to_bytes(8, "little", signed=True)
        for name, value, at in hash_
    )


def read_back(kind: int, body: bytes) -> Fields:
    """What a value says, read slowly."""
    told, fields = decode(payload(kind, body, VALKEY if kind == 22 else REDIS))
    assert told == "hash"
    found = [(name, value, max(at, 0)) for name, value, at in fields]
    if kind == 25:
        assert int.from_bytes(body[:8], "little") == min((at for *_, at in found if at), default=0)
    return found


def values(hash_: Fields) -> list[tuple[int, bytes, bytes]]:
    """(type, what a snapshot begins with, value) of each form that can hold it."""
    found = [
        (25, b"REDIS0012", packed_hash(hash_, compressed=False)),
        (25, b"REDIS0012", packed_hash(hash_, compressed=True)),
        (22, b"VALKEY080", valkey_hash(hash_)),
    ]
    if any(at for *_, at in hash_):
        found.append((24, b"REDIS0012", large_hash(hash_)))
    return found


PAYLOADS = [
    body + crc64(body).to_bytes(8, "little")
    for kind, magic, value in values([(b"name", b"value" * 9, 1 << 40), (b"other", b"", 0)])
    for body in (bytes([kind]) + value + int(magic[-3:]).to_bytes(2, "little"),)
]


def lifted(hash_: Fields) -> Fields:
    return [(name, value, at + EXTEND if at else 0) for name, value, at in hash_]


@settings(max_examples=100)
@given(fields, st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(20, 3000))
def test_a_snapshot_s_fields(hash_: Fields, sizes: list[int], stream_above: int) -> None:
    for kind, magic, value in values(hash_):
        data = whole(key(0, b"a", string(b"1")) + key(kind, b"hash", value), magic)
        reader = SnapshotReader(
            extend_before=1 << 62, extend_by=EXTEND, extend_fields=True, stream_above=stream_above
        )
        items = feed(reader, data, sizes)
        batches = [each for each in items if isinstance(each, RecordBatch)]
        stuck = [name for batch in batches for name in unpacked_names(batch.stuck)]
        (found,) = [each for each in records(items) if each.key == b"hash"]
        assert found.value[0] == kind
        assert int.from_bytes(found.value[-8:], "little") == crc64(found.value[:-8])
        if stuck:
            # Only what was too long to be held may be; of type 24 nothing but its head is needed.
            assert len(value) + 11 > stream_above
            assert read_back(kind, found.value[1:-10]) == hash_
        else:
            assert read_back(kind, found.value[1:-10]) == lifted(hash_)
        timed = [name for batch in batches for name in unpacked_names(batch.timed)]
        assert timed == [b"hash"]


def reader_of(data: bytes, sizes: list[int] | None = None) -> StreamReader:
    """As an append-only file is read to be applied."""
    reader = StreamReader(0, append_only=True, publish=False, anchor=True, extend_fields=True)
    reader.now_ms = NOW
    reader.extend_before, reader.extend_by = 1 << 62, EXTEND
    push(reader, data, sizes)
    reader.flush()
    return reader


@settings(max_examples=100)
@given(fields, st.sampled_from([b"0", b"5000", b"1"]), st.booleans(), st.booleans())
def test_a_restored_hash_s_fields(hash_: Fields, ttl: bytes, absolute: bool, more: bool) -> None:
    options = [b"ABSTTL"] * absolute + [b"REPLACE"] * more
    for kind, magic, value in values(hash_):
        body = bytes([kind]) + value + int(magic[-3:]).to_bytes(2, "little")
        payload = body + crc64(body).to_bytes(8, "little")
        (batch,) = reader_of(command(b"RESTORE", b"h", ttl, payload, *options)).take()
        ((_, _, words),) = contents([batch])
        assert stuck_hashes(batch) == []
        assert words[:2] == [b"RESTORE", b"h"]
        assert read_back(kind, words[3][1:-10]) == lifted(hash_)
        assert words[3][-10:-8] == payload[-10:-8]
        assert int.from_bytes(words[3][-8:], "little") == crc64(words[3][:-8])
        if ttl == b"0":
            assert words[2] == b"0"
            assert words[4:] == options
        else:
            assert int(words[2]) == int(ttl) + EXTEND + (0 if absolute else NOW)
            assert set(words[4:]) == {b"ABSTTL", *options}
        names_of = ExtendedNames()
        names_of.clear()
        names_of.add_commands(batch, members=True)
        given_one = any(at for *_, at in hash_)
        assert [name for page in names_of.pages(9) for name in page] == [(0, b"h")] * given_one
        # Damaged on its way: it stays as it was, for the target to refuse, and is named.
        broken = payload[:-1] + bytes([payload[-1] ^ 1])
        (batch,) = reader_of(command(b"RESTORE", b"h", b"0", broken)).take()
        assert contents([batch])[0][2][3] == broken
        assert stuck_hashes(batch) == [0]


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("HPEXPIREAT h 5000 FIELDS 1 f", f"HPEXPIREAT h {5000 + EXTEND} FIELDS 1 f"),
        ("hexpireat h 5 NX FIELDS 2 f g", f"HPEXPIREAT h {5000 + EXTEND} NX FIELDS 2 f g"),
        ("HPEXPIRE h 7 FIELDS 1 f", f"HPEXPIREAT h {NOW + 7 + EXTEND} FIELDS 1 f"),
        ("HEXPIRE h 7 GT FIELDS 1 ex", f"HPEXPIREAT h {NOW + 7000 + EXTEND} GT FIELDS 1 ex"),
        ("HSETEX h PXAT 9 FIELDS 1 f v", f"HSETEX h PXAT {9 + EXTEND} FIELDS 1 f v"),
        ("HSETEX h FNX ex 9 FIELDS 1 f v", f"HSETEX h FNX PXAT {NOW + 9000 + EXTEND} FIELDS 1 f v"),
        ("HGETEX h EXAT 9 FIELDS 1 f", f"HGETEX h PXAT {9000 + EXTEND} FIELDS 1 f"),
        ("HSETEX h KEEPTTL FIELDS 2 px 5 f v", "HSETEX h KEEPTTL FIELDS 2 px 5 f v"),
        ("HSETEX h FIELDS 1 px 5", "HSETEX h FIELDS 1 px 5"),
        ("HPERSIST h FIELDS 1 f", "HPERSIST h FIELDS 1 f"),
        ("HPEXPIREAT h x FIELDS 1 f", "HPEXPIREAT h x FIELDS 1 f"),
        ("HPEXPIREAT h 70368744177663 FIELDS 1 f", "HPEXPIREAT h 70368744177663 FIELDS 1 f"),
        ("HPEXPIREAT h", "HPEXPIREAT h"),
        ("HSETEX h PXAT", "HSETEX h PXAT"),
    ],
)
def test_a_command_s_fields(given_: str, wanted: str) -> None:
    data = command(*given_.encode().split()) + command(b"SET", b"a", b"1")
    for sizes in (None, [1], [7]):
        batches = reader_of(data, sizes).take()
        found = [words for *_, words in contents(batches)]
        assert found == [wanted.encode().split(), [b"SET", b"a", b"1"]]
        held, fields_of = ExtendedNames(), ExtendedNames()
        held.clear()
        fields_of.clear()
        for batch in batches:
            held.add_commands(batch)
            fields_of.add_commands(batch, members=True)
        assert len(held) == 0
        assert len(fields_of) == (given_ != wanted)


def test_damage_does_no_harm() -> None:
    """Whatever the bytes: they are lifted, or stay as they are."""
    rng = random.Random(7)
    hash_ = [(b"name", b"value" * 30, 1 << 40), (b"other", b"", 0)]
    for kind, magic, value in values(hash_):
        body = bytes([kind]) + value + int(magic[-3:]).to_bytes(2, "little")
        for _ in range(600):
            changed = bytearray(body)
            for _ in range(rng.choice((1, 2, 8))):
                changed[rng.randrange(1, len(changed) - 2)] = rng.choice(
                    (0, 255, rng.randrange(256))
                )
            cut = bytes(changed[: rng.choice((len(changed), rng.randrange(2, len(changed)))) :])
            payload = cut + crc64(cut).to_bytes(8, "little")
            reader_of(command(b"RESTORE", b"h", b"0", payload)).take()
            snapshot = whole(key(kind, b"h", cut[1:-2]), magic)[:-8] + bytes(8)
            reader = SnapshotReader(extend_before=1 << 62, extend_by=EXTEND, extend_fields=True)
            try:
                feed(reader, snapshot)
            except ProtocolError:
                continue


def test_names_that_are_packed() -> None:
    held = ExtendedNames()
    held.clear()
    held.add_packed(3, b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc")
    assert [name for page in held.pages(2) for name in page] == [(3, b"a"), (3, b""), (3, b"bc")]
    for wrong in (b"\x01\0\0", b"\x02\0\0\0a"):
        with pytest.raises(ValueError, match="name"):
            held.add_packed(0, wrong)
