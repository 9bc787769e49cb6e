"""The snapshot reader on damaged snapshots, against the slow reference.

Whatever the bytes and wherever they are cut: it reads what the reference reads, or raises
`ProtocolError`, or waits for more. It never crashes, hangs, or asks for absurd memory.
"""

from __future__ import annotations

import contextlib
import functools
import random
import resource
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support.encoded_values import compressed, length, listpack, string
from benches.support.servers import binaries
from engine._native import ProtocolError, SnapshotReader
from tests.reference import rdb as reference
from tests.support.snapshots import Read, feed, records, snapshot
from tests.unit.test_rdb import BY_HAND, ID, MODULE, key, whole

HEAD = b"REDIS0015"
EMPTY_ZIPLIST = b"\x0b\0\0\0\x0a\0\0\0\0\0\xff"


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small snapshots of every server, and one of what none of them writes."""
    rare = b"".join(key(kind, b"key", value) for kind, value, _ in BY_HAND.values())
    rare += b"\xf7" + length(ID) + MODULE + b"\xf3" + length(1) + b"spec" + MODULE
    rare += b"\xf2" + length(7) + length(1) + string(b"f") + key(32, b"t", length(7) + string(b"v"))
    rare += key(30, b"u", string(listpack([7, -5])))
    rare += key(30, b"w", compressed(listpack([7, b"v"])))
    rare += b"\xf9\x07" + key(0, b"k", b"\xc3\x05\x0a\x00a\xe0\x00\x00") + b"\xf5" + string(b"code")
    rare += b"\x6b\x07" + key(4, b"empty", length(0)) + key(12, b"empty", string(EMPTY_ZIPLIST))
    return (whole(rare, HEAD), *(snapshot(binary, "tiny").data for binary in binaries()))


def outcome(data: bytes, sizes: list[int], **options: Any) -> list[Read] | None:
    """All records, or None where the reader raises `ProtocolError` or wants more."""
    reader = SnapshotReader(**options)
    try:
        items = feed(reader, data, sizes)
    except ProtocolError:
        with pytest.raises(ValueError, match="damaged"):
            reader.feed(b"more")
        return None
    if not reader.finished:
        return None
    reader.rest()
    return records(items)


LATE = 1 << 62


def check(data: bytes, sizes: list[int]) -> None:
    """The reader and the reference agree on `data`, held whole and in pieces."""
    expected = entries = None
    with contextlib.suppress(reference.Damaged):
        found = reference.parse(data)
        entries = [each for each in found.entries if each.value is not None]
    for options in (
        {},
        {"stream_above": 30},
        {"batch_bytes": 50, "extend_before": 5},
        {"stream_above": 30, "drop_before": LATE},
        {"stream_above": 30, "drop_imports": True},
    ):
        result = outcome(data, sizes, **options)
        if entries is not None:
            # A hash of a template that is not held is named, and not handed on.
            expected = [
                (entry.db, entry.key, entry.value, entry.expire_at, entry.importing)
                for entry in entries
                if entry.held <= options.get("stream_above", entry.held)
            ]
        if result is None or expected is None:
            assert result == expected
            continue
        got = [(each.db, each.key, each.value[:-10], each.expire_at) for each in result]
        if "extend_before" in options:
            got, wanted = [each[:3] for each in got], [each[:3] for each in expected]
            assert got == wanted
        elif "drop_before" in options:
            assert got == [each[:4] for each in expected if each[3] is None or each[3] >= LATE]
        elif "drop_imports" in options:
            assert got == [each[:4] for each in expected if not each[4]]
        else:
            assert got == [each[:4] for each in expected]
    outcome(data, sizes, value_limit=25, stream_above=20)


def without_checksum(data: bytes) -> bytes:
    """So that damage is met by the parser, not only by the checksum: 0 means there is none."""
    return data[:-8] + bytes(8)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Some bytes replaced, dropped, doubled, or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 63, 64, 128, 129, 192, 195, 242, 243, 250, 254, 255))
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randrange(1, 50)]
        else:
            changed[at:at] = rng.choice(
                (b"\x81" + rng.randbytes(8), b"\x80\xff\xff\xff\xff", b"\xc3\x05\x0a", b"\xff")
            )
    return bytes(changed)


@pytest.mark.server
def test_mutated_snapshots() -> None:
    rng = random.Random(2015)
    for turn in range(1_500):
        data = mutate(rng.choice(seeds()), rng)
        sizes = [[1 << 18], [rng.randrange(1, 40)], [1, 300, 2]][turn % 3]
        check(without_checksum(data), sizes)


@pytest.mark.server
def test_mutated_snapshots_with_their_checksum() -> None:
    """It catches all but the damage that is none."""
    rng = random.Random(2016)
    for data in seeds():
        for _ in range(30):
            damaged = mutate(data, rng)
            found = outcome(damaged, [1 << 18])
            assert found is None or damaged.startswith(data)


@pytest.mark.server
def test_prefixes_with_garbage_behind() -> None:
    rng = random.Random(2017)
    for data in seeds():
        for _ in range(60):
            at = rng.randrange(len(data))
            check(data[:at] + rng.randbytes(rng.randrange(200)), [rng.choice((1, 7, 1 << 18))])


VALUES = st.binary(max_size=40) | st.integers(0, 2**64 - 1).map(length)
KEYS = st.builds(
    lambda kind, name, value: bytes([kind]) + string(name) + value,
    st.integers(0, 34) | st.sampled_from([107, 121]),
    st.binary(max_size=5),
    st.lists(VALUES, max_size=8).map(b"".join),
)
OPCODES = st.builds(
    lambda code, rest: bytes([code]) + rest, st.integers(242, 255), st.binary(max_size=12)
)


@settings(max_examples=600)
@given(
    magic=st.sampled_from([b"REDIS0006", b"REDIS0009", b"REDIS0012", b"REDIS0015", b"VALKEY080"]),
    parts=st.lists(KEYS | OPCODES, max_size=6),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
)
def test_made_up_snapshots(magic: bytes, parts: list[bytes], sizes: list[int]) -> None:
    check(without_checksum(whole(b"".join(parts), magic, crc=False)), sizes)


def test_damage_costs_no_memory() -> None:
    """A few bytes that promise much: the process grows by no more than it is sent."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    promises = [length(2**29 - 1), length(2**40), length(2**63 - 100), b"\xc3" + length(2**28) * 2]
    for promise in promises:
        for kind in (0, 1, 4, 7, 14, 18, 21, 24, 28):
            for front in (b"", bytes(8), length(1), length(ID)):
                outcome(HEAD + key(kind, b"k", front + promise + b"x" * 500), [100])
        for opcode in (0, 242, 243, 245, 247, 250):
            outcome(HEAD + bytes([opcode]) + promise + b"x" * 500, [100])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # kB
