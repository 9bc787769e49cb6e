"""Which commands are not faithful, between which ends, and what is read again for them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    CMD_CLAIMS,
    CMD_MEMBER_TTL,
    CMD_PAYLOAD,
    CMD_SETS_FIELDS,
    CMD_SETS_STRING,
    CMD_TTL,
    CommandBatch,
    StreamReader,
    encode_command,
)
from engine.model.server import Flavour, ServerInfo
from engine.transfer.unfaithful_commands import Doubts, UnfaithfulCommands
from engine.transfer.which_have_ttls import Timed

NOW = 1_700_000_000_000
NEAR = NOW + 5_000
FAR = NOW + 7_200_000
HORIZON = NOW + 3_600_000
EXTEND = 100 * 365 * 86_400_000

Word = str | bytes | int


def batch_of(
    *commands: str | tuple[Word, ...], lift: bool = False, anchor: bool = False
) -> CommandBatch:
    """These commands as a batch; `lift`: near deadlines are lifted."""
    reader = StreamReader(0, anchor=anchor)
    reader.now_ms = NOW
    if lift:
        reader.extend_before, reader.extend_by = HORIZON, EXTEND
    for command in commands:
        words = command.split() if isinstance(command, str) else command
        reader.feed(encode_command(*words))
    reader.flush()
    (batch,) = reader.take()
    return batch


def info(name: str) -> ServerInfo:
    """A server by its name: `redis 6.2.14`."""
    flavour, version = name.split()
    major, minor, patch = map(int, version.split("."))
    known: dict[str, Flavour] = {"redis": "redis", "valkey": "valkey"}
    return ServerInfo(known[flavour], (major, minor, patch))


def between(source: str, target: str, *commands: str | tuple[Word, ...]) -> Doubts:
    """What these commands leave in doubt."""
    return UnfaithfulCommands(info(source), info(target)).doubts(batch_of(*commands))


@pytest.mark.parametrize(
    "number", ["0", "7", "-3", "10.5", "-0.25", "0.1000000000000000055", "123456"]
)
def test_a_number_as_a_server_writes_it(number: str) -> None:
    batch = batch_of(f"SET key {number}", f"hset hash field {number}")
    assert batch.doubtful(CMD_SETS_STRING) == [0]
    assert batch.doubtful(CMD_SETS_FIELDS) == [1]


@pytest.mark.parametrize(
    "other",
    ["x", "1x", "1.", ".5", "1.50", "1.0", "01", "-", "+1", "1e3", "inf", "1 ", "", "1.2.3"],
)
def test_what_is_no_such_number(other: str) -> None:
    batch = batch_of(("SET", "key", other), ("HSET", "hash", "field", other))
    assert batch.doubtful(CMD_SETS_STRING | CMD_SETS_FIELDS) == []


def test_a_set_with_options_or_of_several_fields_was_sent_by_a_client() -> None:
    batch = batch_of(
        "SET key 1 KEEPTTL", "SET key 1 PXAT 5", "HSET hash f 1 g 2", "HSETNX hash f 1"
    )
    assert batch.doubtful(CMD_SETS_STRING | CMD_SETS_FIELDS) == []
    # What the reader has made of another command is no INCRBYFLOAT either.
    batch = batch_of("SETEX key 100 7", "SET key 8 EX 100", anchor=True)
    assert batch.rewritten == [0, 1, 2, 3]
    assert batch.doubtful(CMD_SETS_STRING) == []


def test_a_restore_of_a_module_s_value() -> None:
    """Told without an object for each value; also where its TTL was made an absolute one."""
    of_module, plain = b"\x07\x81 and so on", b"\x00\x03 and so on"
    batch = batch_of(
        ("RESTORE", "key", 0, plain),
        ("RESTORE", "key", 0, of_module, "REPLACE"),
        ("restore-asking", "key", 9_000_000, of_module),
        ("RESTORE", "key", 0),
        ("RESTORE", "key", 0, ""),
        ("SET", "key", of_module),
        anchor=True,
    )
    assert batch.doubtful(CMD_PAYLOAD) == [1, 2]


CLAIM = "XCLAIM stream group reader 0 {} TIME 1700000000000 RETRYCOUNT {} FORCE JUSTID LASTID {}"


def test_a_claim_that_is_a_first_delivery() -> None:
    batch = batch_of(
        CLAIM.format("5-1", 1, "5-1"),
        CLAIM.format("5-1", 2, "5-1"),
        CLAIM.format("5-1", 1, "6-1"),
        CLAIM.format("5-1", 1, "5-1").partition(" LASTID")[0],
        "XAUTOCLAIM stream group reader 0 0",
    )
    assert batch.doubtful(CMD_CLAIMS) == [1, 2, 3, 4]


def test_near_deadlines_behind_options_are_lifted() -> None:
    batch = batch_of(
        f"MSETEX 2 a PXAT b {NEAR} NX PXAT {NEAR}",
        f"msetex 1 a 1 exat {NEAR // 1000}",
        f"MSETEX 1 a 1 PXAT {FAR}",
        "MSETEX 1 a 1 KEEPTTL",
        f"INCREX a BYINT 3 PXAT {NEAR} ENX",
        "INCREX a",
        lift=True,
    )
    assert [batch.command(index)[-1] for index in range(3)] == [
        b"%d" % (NEAR + EXTEND),
        b"%d" % ((NEAR + EXTEND) // 1000),
        b"%d" % FAR,
    ]
    assert batch.command(0)[:-1] == f"MSETEX 2 a PXAT b {NEAR} NX PXAT".encode().split()
    assert batch.command(4) == f"INCREX a BYINT 3 PXAT {NEAR + EXTEND} ENX".encode().split()
    assert batch.rewritten == [0, 1, 4]
    assert batch.doubtful(CMD_TTL) == []
    assert [batch.changes(index) for index in (0, 4)] == [[(0, b"a"), (0, b"b")], [(0, b"a")]]
    assert [batch.offset(index) for index in range(6)] == sorted(
        batch.offset(index) for index in range(6)
    )
    # Nothing is near where nothing is lifted.
    batch = batch_of(f"MSETEX 1 a 1 PXAT {NEAR}")
    assert batch.rewritten == batch.doubtful(CMD_TTL) == []


def test_a_near_deadline_in_a_form_that_is_not_known_is_doubtful() -> None:
    commands = (
        f"SET a PXAT IFEQ x PXAT {NEAR}",
        f"SET a 1 IFEQ x PXAT {FAR}",
        "SET a PXAT",
        "SET a EX IFEQ 5",
        "MSETEX 1 a 1 EX 5",
        "MSETEX 1 EX 5",
        "MSETEX 9 a 1 EX 5",
        "MSETEX x a 1 EX 5",
        "MSETEX -1 a 1 EX 5",
        "INCREX a PX soon",
        "INCREX a PX",
    )
    assert batch_of(*commands, lift=True).doubtful(CMD_TTL) == [0, 4]
    found = UnfaithfulCommands(info("redis 8.4.0"), info("redis 8.4.0")).doubts(
        batch_of(*commands, lift=True)
    )
    assert found == Doubts(values=((0, b"a"),))


def test_members_with_ttls_are_known() -> None:
    names = ("SADDEX", "SEXPIRE", "SPEXPIREAT", "SPERSIST", "HSETEX", "HPEXPIREAT", "HGETEX")
    batch = batch_of(*(f"{name} key 1 2 3 4" for name in names))
    assert batch.indices(CMD_MEMBER_TTL) == list(range(len(names)))
    assert batch.doubtful(CMD_MEMBER_TTL) == list(range(len(names)))


def test_a_field_whose_ttl_is_kept_is_given_none() -> None:
    """Redis 8.2 sends HINCRBYFLOAT so: hashes that are counted in need not be read again."""
    batch = batch_of(
        "HSETEX hash KEEPTTL FIELDS 1 f 2.5",
        "HSETEX hash FXX keepttl FIELDS 1 f 2.5",
        f"HSETEX hash PXAT {NEAR} FIELDS 1 f KEEPTTL",
        "HSETEX KEEPTTL FIELDS 1 f v",
        "HSETEX hash",
    )
    assert batch.doubtful(CMD_MEMBER_TTL) == [2, 3, 4]


def test_fractions_lose_a_ttl() -> None:
    commands = ("SET number 1.5", "SET word x", "HSET hash field 2.5", "HSET hash field x")
    for source in ("redis 3.2.13", "redis 5.0.14"):
        found = between(source, "redis 7.0.15", *commands)
        assert found == Doubts(if_timed=(Timed(0, b"number", None),))
    for source in ("redis 7.4.1", "redis 8.0.2"):
        found = between(source, "redis 8.0.2", *commands)
        assert found == Doubts(if_timed=(Timed(0, b"hash", b"field"),))
    for source in ("redis 6.0.16", "redis 7.2.4", "redis 8.2.3", "valkey 9.1.2"):
        assert between(source, "redis 8.6.0", *commands) == Doubts()


def test_what_gets_its_ttl_in_the_same_batch_has_one() -> None:
    """The target, asked before the batch, would not tell."""
    found = UnfaithfulCommands(info("redis 5.0.14"), info("redis 7.0.15")).doubts(
        batch_of(
            "SET a 1 EX 100",
            "SET a 2.5",
            "RENAME b c",
            "SET c 2.5",
            "SET d 2.5",
            "EXPIREAT e 99999999999",
            "SET e 2.5",
            "SET f x",
            "SET f 2.5",
            anchor=True,
        )
    )
    assert found.ttls == ((0, b"a"), (0, b"c"), (0, b"e"))
    assert found.if_timed == (Timed(0, b"d", None), Timed(0, b"f", None))
    found = between("redis 8.0.2", "redis 8.0.2", "HPEXPIREAT h 99 FIELDS 1 f", "HSET h f 2.5")
    assert found == Doubts(values=((0, b"h"),))
    # Nor would it know which database is meant.
    found = between("redis 5.0.14", "redis 7.0.15", "SET a 1.5", "SWAPDB 0 1")
    assert found == Doubts(ttls=((1, b"a"),))


def test_claims_between_versions() -> None:
    command = CLAIM.format("5-1", 2, "6-1")
    for target in ("redis 7.0.15", "valkey 8.1.8"):
        assert between("redis 6.2.14", target, command) == Doubts(values=((0, b"stream"),))
    assert between("redis 6.2.14", "redis 6.0.16", command) == Doubts()
    assert between("redis 7.0.15", "valkey 8.1.8", command) == Doubts()


def test_places_between_versions() -> None:
    commands = (
        "GEORADIUS places 1 2 3 km STORE one STOREDIST two",
        "GEOSEARCHSTORE three places FROMLONLAT 1 2 BYRADIUS 3 km",
    )
    found = between("redis 6.0.16", "redis 6.2.14", *commands)
    assert found == Doubts(values=((0, b"two"), (0, b"three")))
    assert between("redis 6.0.16", "redis 6.0.16", *commands) == Doubts()


def test_scripts_that_are_sent_as_they_are() -> None:
    found = between("redis 3.0.7", "redis 7.0.15", "EVAL code 2 one two three", "EVALSHA sha 0 x")
    assert found.values == ((0, b"one"), (0, b"two"))
    assert "sends scripts as they are" in found.unnamed


def test_what_the_clock_or_chance_decides() -> None:
    commands = (
        "TS.INCRBY series 1",
        "ts.decrby other 1",
        "TS.ADD third 1000 1",
        "SPOP set",
        "SET a 1",
    )
    found = between("redis 8.0.2", "redis 8.0.2", *commands)
    assert found.values == ((0, b"series"), (0, b"other"), (0, b"set"))
    assert not found.ttls
    assert not found.unnamed


def test_keys_are_named_as_they_are_behind_the_batch() -> None:
    found = between("redis 6.2.14", "redis 7.0.15", "SELECT 2", "EVAL code 1 key", "SWAPDB 2 3")
    assert found.values == ((3, b"key"),)


def test_the_flags_say_when_a_batch_need_not_be_looked_at() -> None:
    for source, target in (("redis 8.2.3", "redis 8.2.3"), ("valkey 9.1.2", "valkey 9.1.2")):
        flags = UnfaithfulCommands(info(source), info(target)).flags
        assert not flags & (CMD_SETS_STRING | CMD_SETS_FIELDS | CMD_CLAIMS)
        plain = batch_of("SET a 1", "HSET h f 1", CLAIM.format("1-1", 2, "2-1"), "PEXPIREAT a 99")
        assert plain.doubtful(flags) == []


# --- Hostile arguments, against slow Python ---

NAMES = st.sampled_from([b"SET", b"hset", b"MSETEX", b"INCREX", b"XCLAIM", b"HSETEX", b"GETEX"])
NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65),
    st.sampled_from([0, 1, 2, NEAR, NEAR // 1000, FAR, FAR // 1000, HORIZON, HORIZON - 1]),
).map(lambda n: b"%d" % n)
OPTIONS = st.sampled_from(
    [b"EX", b"px", b"EXAT", b"pxat", b"PXAT", b"KEEPTTL", b"FIELDS", b"NX", b"1", b"2", b"k", b""]
)
WORDS = st.lists(st.one_of(OPTIONS, NUMBERS, st.binary(max_size=12)), min_size=1, max_size=16)


def option_of(words: list[bytes]) -> int | None:
    """Where the option is that gives a deadline, with a word behind it."""
    first = 2
    if words[0].upper() == b"MSETEX":
        text = words[1] if len(words) > 1 else b""
        if not re.fullmatch(rb"-?[0-9]{1,19}", text) or not 0 <= int(text) <= len(words):
            return None
        first = 2 + 2 * int(text)
    for at in range(first, len(words) - 1):
        if words[at].upper() in (b"EX", b"PX", b"EXAT", b"PXAT"):
            return at
    return None


def lifted(words: list[bytes]) -> list[bytes]:
    """An MSETEX or INCREX as it is to be sent while near deadlines are lifted."""
    at = option_of(words)
    if at is None or words[at].upper() not in (b"EXAT", b"PXAT"):
        return words
    text, unit = words[at + 1], 1000 if words[at].upper() == b"EXAT" else 1
    if not re.fullmatch(rb"-?[0-9]{1,19}", text) or not 0 < int(text) < 2**63:
        return words
    due = min(int(text) * unit, 2**63 - 1)
    if due >= HORIZON:
        return words
    return [*words[: at + 1], b"%d" % ((due + EXTEND) // unit), *words[at + 2 :]]


def is_float(text: bytes) -> bool:
    return re.fullmatch(rb"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", text) is not None


@settings(max_examples=400)
@given(st.lists(st.tuples(NAMES, WORDS), min_size=1, max_size=4))
def test_any_arguments(commands: list[tuple[bytes, list[bytes]]]) -> None:
    sent = [[name, *words] for name, words in commands]
    plain = batch_of(*(tuple(words) for words in sent))
    assert [plain.command(index) for index in range(len(plain))] == sent
    for flag, name, length in ((CMD_SETS_STRING, b"SET", 3), (CMD_SETS_FIELDS, b"HSET", 4)):
        assert plain.doubtful(flag) == [
            index
            for index, words in enumerate(sent)
            if words[0].upper() == name and len(words) == length and is_float(words[-1])
        ]
    assert plain.doubtful(CMD_TTL) == []
    assert set(plain.doubtful(CMD_MEMBER_TTL)) <= {
        index for index, words in enumerate(sent) if words[0] == b"HSETEX"
    }
    by_option = [words for words in sent if words[0] in (b"MSETEX", b"INCREX")]
    if by_option:
        batch = batch_of(*(tuple(words) for words in by_option), lift=True)
        assert [batch.command(index) for index in range(len(batch))] == list(map(lifted, by_option))
        assert batch.rewritten == [
            index for index, words in enumerate(by_option) if lifted(words) != words
        ]
