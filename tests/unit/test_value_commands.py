"""Commands that make a value: every encoding of it, replayed on slow dictionaries, comes to what
the slow decoder finds."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings

from benches.support.encoded_values import VALKEY, length, payload, string
from engine._native import ProtocolError, RespReader, ValueCommands, encode_command
from tests.reference import values as reference
from tests.reference.rdb import Damaged
from tests.unit.test_value_decoder import BY_HAND, VALUES, damaged, seeds
from tests.unit.test_value_encode import sealed

KINDS = [kind for kind in VALUES if kind not in ("stream", "module")]


def replayed(commands: list[list[bytes]]) -> Any:
    """What they make, as the reference shows it."""
    items: list[bytes] = []
    scores: dict[bytes, float] = {}
    fields: dict[bytes, list[Any]] = {}
    for verb, name, *rest in commands:
        assert name == b"{aside}"
        if verb in (b"SET", b"RPUSH", b"SADD"):
            items += rest
        elif verb == b"ZADD":
            scores |= {m: float(s) for s, m in zip(rest[::2], rest[1::2], strict=True)}
        elif verb == b"HSET":
            fields |= {f: [f, v, -1] for f, v in zip(rest[::2], rest[1::2], strict=True)}
        else:
            at, word, count, *names = rest
            assert (verb, word, int(count)) == (b"HPEXPIREAT", b"FIELDS", len(names))
            for each in names:
                fields[each][2] = int(at)
    return [[m, s] for m, s in scores.items()] or list(fields.values()) or items


def given_by(made: ValueCommands) -> list[list[bytes]]:
    found: list[list[bytes]] = []

    def take(portion: bytes, count: int) -> None:
        reader = RespReader()
        reader.feed(portion)
        found.extend(reader.gets() for _ in range(count))
        assert not reader.pending

    made.give(b"{aside}", take)
    if made.timed:
        made.give(b"{aside}", take, ttls=True)
    return found


def ordered(kind: str, elements: Any) -> Any:
    return sorted(elements) if kind in ("set", "zset", "hash") else elements


@pytest.mark.parametrize("kind", KINDS)
def test_every_encoding_of_a_value(kind: str) -> None:
    values, encodings = VALUES[kind]

    @settings(max_examples=25)
    @given(values)
    def one(value: Any) -> None:
        for each in encodings(value):
            data = sealed(each)
            expected, elements = reference.decode(data)
            elements = [elements] if isinstance(elements, bytes) else elements
            made = ValueCommands(data)
            assert (made.kind, made.count) == (expected, len(elements))
            assert ordered(kind, replayed(given_by(made))) == ordered(kind, elements)

    one()


def test_a_long_one_comes_in_portions() -> None:
    """None of them is long, nor is a command; an element may be."""
    items = [random.Random(n).randbytes(1 + n % 3000) for n in range(3000)] + [b"x" * 3_000_000]
    body = length(len(items)) + b"".join(map(string, items))
    made = ValueCommands(memoryview(sealed(payload(1, body))))
    sizes: list[tuple[int, int]] = []
    made.give(b"{aside}", lambda portion, count: sizes.append((len(portion), count)))
    assert made.longest == 3_000_000
    assert sizes[0][1] == 1
    assert sizes[0][0] < 100
    assert all(size < 256 * 1024 + 70_000 for size, _ in sizes[:-1])
    assert sizes[-1][0] < 3_400_000
    assert sum(count for _, count in sizes) >= sum(map(len, items[:-1])) // (68 * 1024)
    found = given_by(made)
    assert replayed(found) == items
    assert all(len(each) <= 2 + 1024 for each in found)


def test_fields_of_one_expire_time_go_together() -> None:
    ttls = [-1, 5, 5, -1, 5, 7, 7, -1, 5]
    body = length(len(ttls))
    for n, ttl in enumerate(ttls):
        body += string(b"f%d" % n) + string(b"v") + struct.pack("<q", ttl)
    made = ValueCommands(sealed(payload(22, body, VALKEY)))
    assert made.timed == 6
    late = [each for each in given_by(made) if each[0] == b"HPEXPIREAT"]
    assert [(int(each[2]), len(each) - 5) for each in late] == [(5, 3), (7, 2), (5, 1)]


def test_what_has_no_commands() -> None:
    whole = sealed(payload(1, length(2) + string(b"a") + string(b"b")))
    for data, why in (
        (sealed(BY_HAND["array"]), "no commands make a value of type 28"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "checksum is not its own"),
        (sealed(payload(1, length(3) + string(b"a") + string(b"b"))), "expected a whole string"),
        (b"\1" * 10, "more than ten bytes"),
        (sealed(payload(99, string(b"a"))), "no commands make a value of type 99"),
    ):
        with pytest.raises(ProtocolError, match=why):
            ValueCommands(data)
    with pytest.raises(ValueError, match="a list has no fields"):
        ValueCommands(whole).give(b"k", lambda *_: None, ttls=True)


def test_what_takes_them_may_end_it() -> None:
    made = ValueCommands(sealed(payload(1, length(2) + string(b"a") + string(b"b"))))

    found: list[bytes] = []

    def refuse(_: bytes, __: int) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        made.give(b"k", refuse)
    made.give(b"k", lambda portion, _: found.append(portion))
    assert found == [encode_command("RPUSH", "k", each) for each in ("a", "b")]


def check_commands(data: bytes) -> bool:
    """What the reference finds sound comes to the same, and nothing else has commands. Whether it
    was sound."""
    try:
        kind, elements = reference.decode(data)
    except Damaged:
        with pytest.raises(ProtocolError):
            ValueCommands(data)
        return False
    if kind == "stream":
        return check_stream(data, elements)
    if kind not in KINDS:
        with pytest.raises(ProtocolError, match="no commands make"):
            ValueCommands(data)
        return False
    elements = [elements] if isinstance(elements, bytes) else elements
    made = ValueCommands(data)
    assert (made.kind, made.count) == (kind, len(elements))
    found = replayed(given_by(made))
    names = [each if isinstance(each, bytes) else each[0] for each in elements]
    # (Of a member that is there twice the last one stays.)
    if kind not in ("string", "list", "set") and len(set(names)) < len(names):
        return False
    assert ordered(kind, found) == ordered(kind, elements)
    return True


def check_stream(data: bytes, found: list[Any]) -> bool:
    """The same of a stream, whose groups `test_stream_commands` looks at."""
    try:
        made = ValueCommands(data)
    except ProtocolError:
        # Pending entries that servers would not load either, or an entry without fields.
        return False
    assert (made.kind, made.count) == ("stream", len(found[0]))
    if made.released:
        return False
    commands = given_by(made)
    added = {each[2]: each[3:] for each in commands if each[0] == b"XADD"}
    assert [[number, *added[number]] for number, *_ in found[0]] == found[0]
    assert made.pending == sum(
        each.index(b"TIME", 5) - 5 for each in commands if each[0] == b"XCLAIM"
    )
    return True


def test_mutated_values() -> None:
    rng = random.Random(72)
    whole = [*map(sealed, seeds())]
    assert sum(check_commands(sealed(damaged(rng.choice(whole), rng))) for _ in range(4_000)) > 100
