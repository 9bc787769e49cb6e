"""Newer commands made of ones that an older target knows, against slow Python.

The reference is `tests/reference/newer_commands.py`. Whether what they are made into comes to the
same is for real servers to say: `tests/integration/test_newer_commands.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import _native as core
from engine._native import CommandBatch, SlotFilter, StreamReader, key_slot
from engine.model.server import Mode, ServerInfo, parse_version
from engine.transfer.newer_commands import lacks
from tests.reference import newer_commands as reference
from tests.reference.crc import crc64
from tests.reference.stream import HAVE_KEYS, command
from tests.support.feeding import contents, push

ALL = sum(getattr(core, name) for name in dir(core) if name.startswith("CMD_LACKS_"))

WORDS = [
    *("NX", "XX", "GET", "KEEPTTL", "EX", "PX", "EXAT", "PXAT", "IFEQ", "IFNE", "IFDEQ", "IFDNE"),
    *("FNX", "FXX", "FIELDS", "LEFT", "RIGHT", "NOMKSTREAM", "KEEPREF", "DELREF", "ACKED", "IDMP"),
    *("IDMPAUTO", "MAXLEN", "MINID", "LIMIT", "=", "~", "IDS", "CREATE", "SETID", "MKSTREAM"),
    *("CREATECONSUMER", "ENTRIESREAD", "ENTRIESADDED", "MAXDELETEDID", "SYNC", "FLUSH", "LOAD"),
]

words = st.sampled_from([*WORDS, *(each.lower() for each in WORDS)]).map(str.encode)
numbers = st.one_of(
    st.sampled_from([b"0", b"1", b"2", b"3", b"-1", b"", b"x", b"9" * 19, b"%d" % reference.MOST]),
    st.integers(1, 2**63).map(lambda n: b"%d" % n),
)
values = st.one_of(st.binary(max_size=3), st.sampled_from([b"k", b"1-1", b"*", b"v" * 300]))
names = st.sampled_from([*reference.MAKERS, b"INCR", b"PEXPIREAT", b"HSET"])
free = st.tuples(names, st.lists(st.one_of(words, numbers, values), min_size=1, max_size=9))


@st.composite
def libraries(draw: st.DrawFn) -> bytes:
    """A payload of FUNCTION DUMP, of some version, or nearly one."""
    code = draw(st.sampled_from([b"", b"#!lua name=a\n", b"#!lua name=b\n" + b"-" * 300]))
    length = bytes([len(code)]) if len(code) < 64 else (0x4000 | len(code)).to_bytes(2, "big")
    body = draw(st.integers(0, 2)) * (bytes([draw(st.sampled_from([245, 245, 0]))]) + length + code)
    body += draw(st.sampled_from([b"", b"", b"\xf5", b"\xf5\x07abc"]))
    body += draw(st.sampled_from([9, 10, 11, 13, 80])).to_bytes(2, "little")
    crc = crc64(body) ^ draw(st.sampled_from([0, 0, 0, 1]))
    return body + crc.to_bytes(8, "little")


@st.composite
def near(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A command about as a source would replicate it."""

    def some(*what: str) -> list[bytes]:
        chosen = draw(st.lists(st.sampled_from(what), max_size=3))
        return [word for text in chosen for word in text.encode().split()]

    times = ("PXAT 99", "EXAT 7", "KEEPTTL")
    n = draw(st.integers(1, 3))
    count, key = [b"%d" % n], draw(values)
    pairs = [draw(values) for _ in range(2 * n)]
    trim = ("MAXLEN 2", "MAXLEN = 2", "MAXLEN ~ 2", "MINID = 2", "LIMIT 5", "KEEPREF", "DELREF")
    name = draw(names)
    rest = {
        b"SET": [draw(values), *some(*times, "NX", "XX", "IFEQ x", "ifne x", "GET")],
        b"MSETEX": [*pairs, *some(*times, "nx", "XX")],
        b"LPOP": count,
        b"RPOP": count,
        b"LMOVE": [draw(values), *draw(st.permutations([b"RIGHT", b"left"]))],
        b"HSETEX": [*some(*times, "FNX", "fxx"), b"FIELDS", *count, *pairs],
        b"HGETDEL": [b"fields", *count, *pairs[:n]],
        b"XADD": [*some(*trim, "NOMKSTREAM", "IDMP p i", "IDMPAUTO p"), b"1-1", *pairs],
        b"XTRIM": some(*trim),
        b"XDELEX": [*some("KEEPREF"), b"IDS", *count, *pairs[:n]],
        b"XGROUP": [key, b"g", b"c", *some("MKSTREAM", "ENTRIESREAD 3")],
        b"XSETID": [b"1-1", *some("ENTRIESADDED 7", "MAXDELETEDID 1-1")],
        b"SCRIPT": some("SYNC", "ASYNC"),
        b"FUNCTION": [draw(libraries()), *some("APPEND", "REPLACE")],
    }.get(name, [])
    if name == b"MSETEX":
        key = count[0]
    elif name == b"FUNCTION":
        key = draw(st.sampled_from([b"RESTORE", b"restore", b"LOAD"]))
    elif name in (b"XGROUP", b"FLUSHALL", b"FLUSHDB", b"SCRIPT"):
        key = draw(words)
    return name, [key, *rest]


commands = st.one_of(near(), free).map(lambda drawn: [drawn[0], *drawn[1]])
lacking = st.integers(0, ALL)


def batches_of(
    data: bytes, lacking: int, sizes: list[int] | None = None, slots: SlotFilter | None = None
) -> list[CommandBatch]:
    reader = StreamReader(1000, lacks=lacking, slots=slots)
    push(reader, data, sizes)
    reader.flush()
    assert not reader.may_flush
    return reader.take()


def known(args: list[bytes]) -> bool:
    """Whether a stream may hold it."""
    return len(args) > 1 or args[0].upper() not in HAVE_KEYS


@settings(max_examples=150)
@given(
    stream=st.lists(commands, min_size=1, max_size=6),
    lacking=lacking,
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    in_multi=st.booleans(),
)
def test_they_are_made_as_the_reference_makes_them(
    stream: list[list[bytes]], lacking: int, sizes: list[int], in_multi: bool
) -> None:
    expected, data = [], b""
    if in_multi:
        data += command(b"MULTI")
    for args in stream:
        before = reference.made([b"PEXPIREAT", *args[1:3]], 0) if is_conditional(args) else [args]
        data += command(*args)
        made = [each for part in before for each in reference.made(part, lacking)]
        expected += [(1000 + len(data), 0, each) for each in made]
    if in_multi:
        data += command(b"EXEC")
    batches = batches_of(data, lacking, sizes)
    assert contents(batches) == expected
    assert batches[-1].end_offset == 1000 + len(data)


def is_conditional(args: list[bytes]) -> bool:
    """PEXPIREAT with options: made absolute and unconditional before (absolute_ttls.pxi)."""
    return args[0] == b"PEXPIREAT" and len(args) > 3 and reference.number(args[2]) is not None


@settings(max_examples=150)
@given(
    args=commands.filter(lambda args: args[0] not in (b"PEXPIREAT", b"SCRIPT")),
    lacking=lacking,
)
def test_what_it_is_made_into_changes_no_other_key(args: list[bytes], lacking: int) -> None:
    """And where that goes is said by the same slots: each part of it stays in one."""
    (one, *_) = batches_of(command(*args), 0)
    keys = one.keys(0) if len(one) else []
    if keys is None:
        return
    for batch in batches_of(command(*args), lacking):
        made = [batch.keys(i) for i in range(len(batch))]
        assert set(keys) >= {key for each in made for key in each or ()}, args
        if args[0] != b"SPUBLISH":
            assert set(keys) == {key for each in made for key in each or ()}, args
        offsets = {batch.offset(i) for i in range(len(batch))}
        assert offsets <= {batch.end_offset}
        assert batch.stream_commands <= 1
    own = {key_slot(key) for key in keys[:1]}
    if not own:
        return
    slots = SlotFilter([(slot, slot) for slot in own], keyless=True)
    for batch in batches_of(command(*args), lacking, slots=slots):
        for i in range(len(batch)):
            if i not in batch.across:
                assert {key_slot(key) for key in batch.keys(i) or ()} <= own, args


@pytest.mark.parametrize(
    ("flavour", "version", "mode", "expected"),
    [
        ("redis", "8.6.3", "standalone", set()),
        ("redis", "8.6.3", "cluster", set()),
        ("redis", "8.2.3", "cluster", {"CONDITIONS", "MSETEX"}),
        (
            "redis",
            "7.4.1",
            "standalone",
            {"CONDITIONS", "MSETEX", "REFERENCES", "HSETEX", "HGETDEL"},
        ),
        ("valkey", "9.1.2", "standalone", {"CONDITIONS", "REFERENCES"}),
        # Its nodes take MSETEX for slots that they do not own.
        ("valkey", "9.1.2", "cluster", {"CONDITIONS", "REFERENCES", "MSETEX"}),
        ("valkey", "9.0.0", "standalone", {"CONDITIONS", "REFERENCES", "MSETEX", "HGETDEL"}),
        (
            "redis",
            "6.2.14",
            "standalone",
            {"CONDITIONS", "MSETEX", "REFERENCES", "HSETEX", "HGETDEL", "FIELD_TTLS", "7_0"},
        ),
    ],
)
def test_what_a_server_lacks(flavour: str, version: str, expected: set[str], mode: Mode) -> None:
    info = ServerInfo(flavour, parse_version(version), mode=mode)  # type: ignore[arg-type]
    flags = sum(getattr(core, f"CMD_LACKS_{name}") for name in expected)
    always = core.CMD_LACKS_EXACT_LIMIT | core.CMD_LACKS_FUNCTION_VERSIONS
    assert lacks(info) == flags | always


def test_near_ttls_are_extended_before() -> None:
    """An expire time that is extended is the same in what is made, and known for one."""
    reader = StreamReader(0, lacks=ALL)
    reader.extend_before, reader.extend_by = 1000, 5_000_000
    reader.feed(command(b"MSETEX", b"2", b"a", b"1", b"b", b"2", b"NX", b"PXAT", b"7"))
    reader.feed(command(b"SET", b"c", b"3", b"PXAT", b"8"))
    reader.feed(command(b"SET", b"d", b"3", b"PXAT", b"8000"))
    reader.flush()
    (batch,) = reader.take()
    assert [batch.command(i) for i in range(len(batch))] == [
        [b"MSET", b"a", b"1", b"b", b"2"],
        [b"PEXPIREAT", b"a", b"5000007"],
        [b"PEXPIREAT", b"b", b"5000007"],
        [b"SET", b"c", b"3"],
        [b"PEXPIREAT", b"c", b"5000008"],
        [b"SET", b"d", b"3"],
        [b"PEXPIREAT", b"d", b"8000"],
    ]
    assert batch.rewritten == [0, 1, 2, 3, 4]
    assert batch.stream_commands == 3
