"""The decoder of values: every encoding against the slow reference, and damage of every kind.

One value has one digest, whatever it is kept in; what differs in a byte has another. Whatever the
bytes: the decoder yields what the reference yields, or both refuse them.
"""

from __future__ import annotations

import functools
import math
import random
import resource
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support import encoded_values as encoded
from benches.support.encoded_values import (
    REDIS,
    VALKEY,
    as_number,
    length,
    listpack,
    payload,
    string,
)
from benches.support.servers import binaries
from engine._native import ProtocolError, ValueDecoder, value_encoding
from tests.reference import values as reference
from tests.reference.rdb import Damaged, inflate
from tests.support.snapshots import snapshot
from tests.unit.test_rdb_fuzz import mutate

MODULE_ID = (((12 << 6 | 34) << 42) | 5) << 10 | 3


def node(master: tuple[int, int], *entries: Any, names: tuple[bytes, ...] = (b"f",)) -> bytes:
    """A stream's node; an entry is (flags, ms, seq, values) with the names of the head, or fields
    and values of its own."""
    live = sum(not entry[0] & 1 for entry in entries)
    elements: list[Any] = [live, len(entries) - live, len(names), *names, 0]
    for flags, ms, seq, items in entries:
        elements += [flags, ms - master[0], seq - master[1]]
        if not flags & 2:
            elements.append(len(items) // 2)
        elements += [*items, len(items) + (3 if flags & 2 else 4)]
    return string(struct.pack(">QQ", *master)) + string(listpack(elements))


ENTRIES = length(1) + node(
    (5, 0), (2, 5, 0, [b"one"]), (3, 5, 1, [b"gone"]), (0, 7, 2, [b"g", 17, b"f", b"x"])
)
AT = struct.pack("<Q", 1_700_000_000_000)
OWNED = struct.pack(">QQ", 5, 0)


def stream(number: int, entries: bytes = ENTRIES, *, count: int = 2) -> bytes:
    """A stream with a group, of the type with this number."""
    body = entries + length(count) + length(7) + length(2)
    if number != 15:
        body += length(5) + length(0) + length(5) + length(1) + length(3)
    body += length(1) + string(b"group") + length(5) + length(0)
    if number != 15:
        body += length(1)
    body += length(1) + OWNED + AT + length(4)
    consumer = string(b"anna") + AT + (b"" if number in (15, 19) else AT)
    body += length(1) + consumer
    if number == 27:
        body += length(0) + length(1) + OWNED
    else:
        body += length(1) + OWNED
    if number >= 26:
        body += length(100) + length(50) + length(1) + string(b"producer")
        body += length(1) + string(b"iid") + length(5) + length(0) + length(9) + length(8)
    return payload(number, body)


BY_HAND = {
    **{f"stream {number}": stream(number) for number in (15, 19, 21, 26, 27)},
    "module": payload(
        7,
        length(MODULE_ID) + length(1) + length(2**64 - 5) + length(2) + length(9)
        + length(3) + b"4444" + length(4) + struct.pack("<d", 1.5)
        + length(5) + string(b"text") + length(0),
    ),
    "array": payload(
        28,
        length(4) + length(1) + length(9)
        + length(0) + length(0) + string(b"long string") + length(3) + length(1)
        + struct.pack("<q", -7) + length(4) + length(2) + struct.pack("<d", 0.5)
        + length(2**40) + length(3) + string(b"short"),
    ),
    "gcra": payload(33, length(2**50)),
    "path hash": payload(
        23,
        length(2) + string(b"") + length(1) + string(b"field") + as_number(b"17")
        + string(b"a/b") + length(2) + string(b"f") + string(b"v") + string(b"g") + string(b""),
        81,
    ),
}  # fmt: skip


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """A payload of every type."""
    fields = [(b"one", b"1", -1), (b"two", b"t" * 70, 1_700_000_000_000)]
    plain = [(name, value, -1) for name, value, _ in fields]
    return (
        *BY_HAND.values(),
        *encoded.strings(b"-129"),
        *encoded.lists([b"a", b"70000", b"-5", b"x" * 300]),
        *encoded.sets([b"1", b"300", b"-40000"]),
        *encoded.zsets([(b"a", 1.0), (b"b", -0.5), (b"c", math.inf)]),
        *encoded.hashes(fields),
        *encoded.hashes(plain),
    )


def check(data: bytes, decoder: ValueDecoder) -> None:
    """The decoder and the reference say the same of it."""
    wanted: tuple[str, list[Any]] | None
    try:
        wanted = reference.decode(data)
    except Damaged:
        wanted = None
    for ask in (decoder.look, decoder.digest, decoder.value):
        if wanted is None:
            with pytest.raises(ProtocolError):
                ask(data)
        else:
            found = ask(data)
            if ask == decoder.value:
                # (By their text: nan of a module is not equal to itself.)
                assert repr(found) == repr(wanted)
            elif ask == decoder.look:
                assert found[0] == wanted[0]


@pytest.mark.parametrize("name", BY_HAND)
def test_types_that_no_server_here_writes(name: str) -> None:
    decoder = ValueDecoder()
    data = BY_HAND[name]
    check(data, decoder)
    assert value_encoding(data) is not None
    # Shorter by a byte, or longer, it is no value.
    for damaged in (data[:-11] + data[-10:], data[:-10] + b"\0" + data[-10:]):
        check(damaged, decoder)
        with pytest.raises(ProtocolError):
            decoder.look(damaged)


def test_what_is_shown_of_a_stream() -> None:
    kind, elements = ValueDecoder().value(stream(26))
    assert kind == "stream"
    assert elements == [
        [[b"5-0", b"f", b"one"], [b"7-2", b"g", b"17", b"f", b"x"]],
        b"7-2",
        b"5-1",
        3,
        [[b"group", b"5-0", 1, [[b"5-0", 1_700_000_000_000, 4]],
          [[b"anna", 1_700_000_000_000, 1_700_000_000_000, [b"5-0"]]]]],
        100, 50, [[b"producer", [b"iid", b"5-0"]]], 9, 8,
    ]  # fmt: skip


def test_a_stream_has_one_digest_in_all_its_forms() -> None:
    decoder = ValueDecoder(bytes(range(16)))
    # 27 is not among them: there the entry was given back.
    found = {decoder.digest(stream(number))[0:3:2] for number in (15, 19, 21, 26)}
    own_names = length(1) + node(
        (4, 9), (0, 5, 0, [b"f", b"one"]), (0, 7, 2, [b"g", b"17", b"f", b"x"])
    )
    found.add(decoder.digest(stream(15, own_names))[0:3:2])
    two_nodes = (
        length(2)
        + node((5, 0), (2, 5, 0, [b"one"]))
        + node((7, 2), (2, 7, 2, [17, b"x"]), names=(b"g", b"f"))
    )
    found.add(decoder.digest(stream(21, two_nodes))[0:3:2])
    assert len(found) == 1
    other = length(1) + node((5, 0), (2, 5, 0, [b"one"]), (0, 7, 2, [b"g", 18, b"f", b"x"]))
    assert decoder.digest(stream(21, other))[0] not in {value for value, _ in found}
    assert decoder.digest(stream(27))[2] not in {groups for _, groups in found}


# --- Every encoding of one value ---

SHORT = st.binary(max_size=5) | st.sampled_from(
    [b"0", b"12", b"13", b"-1", b"127", b"128", b"-128", b"4095", b"4096", b"-4096", b"-4097",
     b"32767", b"32768", b"8388607", b"-8388608", b"8388608", b"2147483647", b"2147483648",
     b"-2147483649", b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808",
     b"007", b"-0", b"+1", b" 1", b""]
)  # fmt: skip
TEXT = SHORT | st.sampled_from([b"x" * n for n in (63, 64, 127, 128, 253, 254, 4095, 4096)])
UNIQUE = st.lists(TEXT, min_size=1, max_size=6, unique=True)
SCORES = st.floats(allow_nan=False) | st.integers(-(10**15), 10**15).map(float)
FIELDS = st.dictionaries(
    TEXT, st.tuples(TEXT, st.just(-1) | st.integers(1, 1 << 45)), min_size=1, max_size=6
).map(lambda found: [(name, value, ttl) for name, (value, ttl) in found.items()])
VALUES: dict[str, tuple[Any, Callable[[Any], list[bytes]]]] = {
    "string": (TEXT, encoded.strings),
    "list": (st.lists(TEXT, min_size=1, max_size=6), encoded.lists),
    "set": (UNIQUE | st.lists(st.integers(-9, 9).map(lambda n: b"%d" % n), min_size=1,
                              unique=True), encoded.sets),
    "zset": (st.dictionaries(TEXT, SCORES, min_size=1, max_size=6).map(
        lambda found: list(found.items())), encoded.zsets),
    "hash": (FIELDS, encoded.hashes),
    "hash without TTLs": (FIELDS.map(lambda found: [(n, v, -1) for n, v, _ in found]),
                          encoded.hashes),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_one_value_has_one_digest_in_every_encoding(kind: str) -> None:
    values, encodings = VALUES[kind]
    decoder = ValueDecoder(b"sixteen bytes, k")

    @settings(max_examples=120)
    @given(values)
    def one(value: Any) -> None:
        found = encodings(value)
        for each in found:
            check(each, decoder)
        assert len({decoder.digest(each) for each in found}) == 1
        assert ValueDecoder(b"another key of 1").digest(found[0]) != decoder.digest(found[0])

    @settings(max_examples=120)
    @given(values, values)
    def two(value: Any, other: Any) -> None:
        same = reference.decode(encodings(value)[0]), reference.decode(encodings(other)[0])
        equal = same[0][1] == same[1][1] or (
            kind[:4] in ("set", "zset", "hash")
            and sorted(map(repr, same[0][1])) == sorted(map(repr, same[1][1]))
        )
        digests = decoder.digest(encodings(value)[0]), decoder.digest(encodings(other)[0])
        assert (digests[0] == digests[1]) is equal

    one()
    two()


def test_what_a_digest_tells_apart() -> None:
    decoder = ValueDecoder()

    def digest(encodings: list[bytes]) -> bytes:
        return decoder.digest(encodings[0])[0]

    ttl = 1_700_000_000_000
    assert digest(encoded.lists([b"a", b"b"])) != digest(encoded.lists([b"b", b"a"]))
    assert digest(encoded.lists([b"a", b"b"])) != digest(encoded.lists([b"ab"]))
    assert digest(encoded.lists([b"a"])) != digest(encoded.sets([b"a"]))
    assert digest(encoded.sets([b"a"])) != digest(encoded.strings(b"a"))
    last_bit = math.nextafter(1.5, 2)
    assert digest(encoded.zsets([(b"a", 1.5)])) != digest(encoded.zsets([(b"a", last_bit)]))
    assert digest(encoded.zsets([(b"a", 0.0)])) == digest(encoded.zsets([(b"a", -0.0)]))
    assert digest(encoded.hashes([(b"a", b"b", -1)])) != digest(encoded.hashes([(b"ab", b"", -1)]))
    with_ttl, without = encoded.hashes([(b"a", b"b", ttl)]), encoded.hashes([(b"a", b"b", -1)])
    later = encoded.hashes([(b"a", b"b", ttl + 1)])
    assert digest(with_ttl) == digest(without) == digest(later)
    assert len({decoder.digest(each[0])[1] for each in (with_ttl, without, later)}) == 3


def test_scores_at_their_limits() -> None:
    decoder = ValueDecoder()
    scores = [0.1, 1e308, 5e-324, 2.0**53, 2.0**53 + 2, -1e-7, 17.000000000000004, math.inf]
    members = [(b"%d" % place, score) for place, score in enumerate(scores)]
    for each in encoded.zsets(members):
        assert sorted(decoder.value(each)[1]) == [[name, score] for name, score in members]
    for text in (b"nan", b"", b" 1", b"1 ", b"1_0", b"1\0", b"0x", b"1e", b"--1", b"9" * 256):
        with pytest.raises(ProtocolError):
            decoder.look(payload(17, string(listpack([b"member", text]))))


def test_scores_as_text() -> None:
    """Each as the nearest double that there is, however many digits it has."""
    rng, decoder, refused = random.Random(1316), ValueDecoder(), 0
    for _ in range(4_000):
        digits = "".join(rng.choices("0123456789", k=rng.randrange(18)))
        text = rng.choice(("", "", "-")) + digits
        if rng.random() < 0.7:
            at = rng.randrange(len(text) + 1)
            text = f"{text[:at]}.{text[at:]}"
        data = payload(17, string(listpack([b"member", text.encode()])))
        try:
            wanted = float(text)
        except ValueError:
            refused += 1
            with pytest.raises(ProtocolError):
                decoder.value(data)
        else:
            (((_, found),)) = decoder.value(data)[1]
            assert struct.pack("<d", found) == struct.pack("<d", wanted + 0.0), text
    assert 0 < refused < 1_000


def test_compressed_strings() -> None:
    """Runs as they are, and such as stand before, near and far, which may overlap themselves."""
    rng, decoder = random.Random(1317), ValueDecoder()
    for _ in range(3_000):
        packed, plain = b"", 0
        for _ in range(rng.randrange(1, 12)):
            if not plain or rng.random() < 0.4:
                run = rng.randbytes(rng.randrange(1, 33))
                packed += bytes([len(run) - 1]) + run
                plain += len(run)
                continue
            count = rng.choice((rng.randrange(1, 7), rng.randrange(7, 263)))
            away = rng.choice((1, min(plain, 8), rng.randrange(1, plain + 1)))
            high, low = divmod(away - 1, 256)
            packed += bytes([min(count, 7) << 5 | high, *([count - 7] * (count >= 7)), low])
            plain += count + 2
        data = payload(0, b"\xc3" + length(len(packed)) + length(plain) + packed)
        assert decoder.value(data)[1] == [inflate(packed, plain)]
        for wrong in (plain - 1, plain + 1):
            data = payload(0, b"\xc3" + length(len(packed)) + length(wrong) + packed)
            with pytest.raises(ProtocolError):
                decoder.value(data)


# --- Damage ---


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Another value between the type and the footer."""
    return data[:1] + mutate(data[1:-10], rng) + data[-10:]


def test_mutated_values() -> None:
    rng = random.Random(1312)
    decoder = ValueDecoder()
    for data in seeds():
        check(data, decoder)
    for _ in range(8_000):
        data = damaged(rng.choice(seeds()), rng)
        if rng.random() < 0.1:
            version = rng.choice((REDIS, VALKEY))
            data = bytes([rng.randrange(36)]) + data[1:-10] + payload(0, b"", version)[1:]
        check(data, decoder)


@pytest.mark.server
def test_values_of_every_server_whole_and_damaged() -> None:
    rng = random.Random(1313)
    decoder = ValueDecoder()
    for binary in binaries():
        for dumped in snapshot(binary, "tiny").keys.values():
            check(dumped.payload, decoder)
            for _ in range(2):
                check(damaged(dumped.payload, rng), decoder)


@settings(max_examples=400)
@given(
    number=st.integers(0, 36),
    body=st.lists(
        st.binary(max_size=12) | st.integers(0, 2**64 - 1).map(length)
        | st.lists(st.binary(max_size=3) | st.integers(-9, 300), max_size=6).map(listpack).map(
            string),
        max_size=5,
    ).map(b"".join),
    version=st.sampled_from([REDIS, VALKEY]),
)  # fmt: skip
def test_made_up_values(number: int, body: bytes, version: int) -> None:
    check(payload(number, body, version), ValueDecoder())


@pytest.mark.parametrize("data", [b"", b"\0" * 10, bytes(5)])
def test_what_is_no_payload_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="more than ten bytes"):
        ValueDecoder().look(data)


@pytest.mark.parametrize(
    ("number", "version"),
    [(6, REDIS), (34, REDIS), (35, REDIS), (24, VALKEY), (30, REDIS), (99, VALKEY)],
)
def test_a_type_that_is_not_known_is_named(number: int, version: int) -> None:
    data = payload(number, string(b"?"), version)
    with pytest.raises(ProtocolError, match=f"type of value {number} is not known"):
        ValueDecoder().value(data)
    assert value_encoding(data) is None


def test_damage_costs_no_memory_and_little_time() -> None:
    """A few bytes that promise much; and entries of a stream that share many long names."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoder = ValueDecoder(most=1 << 20)
    promises = [length(2**29 - 1), length(2**40), length(2**63 - 100), b"\xc3" + length(2**28) * 2]
    for promise in promises:
        for number in range(36):
            for front in (b"", bytes(8), length(1), length(1) + length(2)):
                for version in (REDIS, VALKEY):
                    check(payload(number, front + promise + b"x" * 50, version), decoder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # kB
    names = tuple(b"n" * 200 + b"%d" % n for n in range(200))
    entries = [(2, 5, n, [1] * 200) for n in range(500)]
    body = length(1) + node((5, 0), *entries, names=names)
    shared = stream(21, body, count=500)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    decoder.digest(shared)
    decoder.look(shared)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - started < 0.5
    with pytest.raises(ProtocolError, match="longer than the 1,048,576 bytes"):
        decoder.value(shared)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        ValueDecoder(b"short")


def test_a_value_that_is_too_long_to_be_shown_is_not_kept() -> None:
    decoder = ValueDecoder(most=8 << 20)
    data = payload(1, length(90) + string(b"x" * 100_000) * 90)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="longer than the 8,388,608 bytes"):
            decoder.value(data)
        assert tracemalloc.get_traced_memory()[1] > 4 << 20
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
