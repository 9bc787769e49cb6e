"""The core's table of commands: rows for all that writes, and the keys that it finds in them.

What real servers say of their commands (COMMAND) and of the keys in them (COMMAND GETKEYS) is the
measure; what is found in arguments that no server would take must be none, never a crash.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support.servers import Binary, binaries, extra_binaries, module_binaries
from engine._native import (
    CMD_GROUPS,
    CMD_KEYLESS,
    CMD_MEMBER_TTL,
    CMD_MODULE,
    CMD_READS,
    CMD_READS_UNNAMED,
    CMD_SCRIPT,
    CMD_TTL,
    CMD_UNKNOWN,
    CommandBatch,
    StreamReader,
    command_flags,
    encode_command,
)
from tests.support import traffic
from tests.support.servers import ServerFactory
from tests.support.traffic.specs import MAY_REPLICATE, table_specs

PAYLOADS = {"s": b"payload", "h": b"payload", "functions": b"payload"}

Words = Sequence[bytes]


def batch(commands: Iterable[Words], db: int = 0) -> CommandBatch:
    reader = StreamReader(0, db, batch_commands=1 << 20, batch_bytes=1 << 30, unit_bytes=1 << 30)
    reader.feed(b"".join(encode_command(*command) for command in commands))
    return reader.next(True) or CommandBatch.empty(0)


def rows(reply: list[Any]) -> Iterator[tuple[str, set[str]]]:
    """The commands in COMMAND's reply, subcommands included, and their flags."""
    for row in reply:
        yield row[0].decode().lower(), {flag.decode() for flag in row[2]}
        if len(row) > 9:
            yield from rows(row[9])


SERVERS = [*binaries(), *extra_binaries()]
# Those before make no array of the keys of some commands.
NAMING_KEYS = [each for each in SERVERS if each.version >= (5, 0, 0)]


# The commands of modules have rows as well.
@pytest.mark.parametrize("binary", [*SERVERS, *module_binaries()], ids=str)
def test_every_command_that_writes_has_a_row(binary: Binary, server_factory: ServerFactory) -> None:
    client = server_factory(binary).client(protocol=2)
    client.response_callbacks.clear()
    missing = []
    for name, flags in rows(client.execute_command("COMMAND")):
        first, _, second = name.partition("|")
        if "write" in flags or name in MAY_REPLICATE:
            says = command_flags(first.encode(), second.encode())
            missing += [name] if says & CMD_UNKNOWN else []
    assert missing == []


# What the sequence never draws, or draws in few forms.
BY_HAND = [
    "MIGRATE 127.0.0.1 6379 key 0 1000",
    "MIGRATE 127.0.0.1 6379 key 0 1000 COPY REPLACE AUTH KEYS",
    "SORT list BY w_* LIMIT 0 2 GET o_* GET # ASC ALPHA STORE dest",
    "SORT list LIMIT 1 2 STORE dest STORE last",
    "SORT list GET store STORE dest",
    "GEORADIUS places 1 2 3 km WITHDIST COUNT 3 ASC",
    "GEORADIUS places 1 2 3 km STORE dest",
    "GEORADIUS places 1 2 3 km COUNT 3 STOREDIST dest",
    "GEORADIUSBYMEMBER places store 3 km STOREDIST dest",
    "XREADGROUP GROUP group consumer COUNT 2 BLOCK 1 NOACK STREAMS one two > 0-0",
    "XREADGROUP GROUP streams streams STREAMS streams >",
    "EVAL script 2 one two argument",
    "EVALSHA 123 1 one",
    "ZUNIONSTORE dest 2 one two WEIGHTS 1 2 AGGREGATE MAX",
    "ZINTERSTORE dest 1 one",
    "BITOP NOT dest one",
    "BLPOP one two 0",
    "BRPOPLPUSH one two 0",
    "PFMERGE dest",
    "PFMERGE dest one two",
    "PFCOUNT one two",
    "SMOVE one two member",
    "RENAMENX one two",
    "MOVE one 3",
    "XGROUP CREATE one group $ MKSTREAM",
    "XGROUP DELCONSUMER one group consumer",
    "RESTORE-ASKING one 0 payload REPLACE",
]
# The same of newer servers: asked of those that have the command.
NEWER = [
    "COPY one two DB 3 REPLACE",
    "LMPOP 2 one two LEFT",
    "BLMPOP 0 2 one two LEFT COUNT 2",
    "ZMPOP 1 one MIN",
    "BZMPOP 0 2 one two MAX",
    "ZDIFFSTORE dest 2 one two",
    "ZRANGESTORE dest one 0 1",
    "GEOSEARCHSTORE dest one FROMMEMBER m BYRADIUS 1 km STOREDIST",
    "LMOVE one two LEFT RIGHT",
    "FCALL function 2 one two argument",
    "MSETEX 2 one 1 two 2 PXAT 1",
    "HSETEX one PXAT 1 FIELDS 1 f v",
    "XAUTOCLAIM one group consumer 0 0",
    "MIGRATE 127.0.0.1 6379  0 1000 COPY AUTH2 user secret KEYS one two",
]


def spelled(lines: Iterable[str]) -> list[list[bytes]]:
    return [[word.encode() for word in line.split(" ")] for line in lines]


def drawn(binary: Binary, count: int) -> list[list[bytes]]:
    """Commands that traffic to such a server is made of."""
    version = min(binary.version, (7, 0, 15))
    made = traffic.Sequence(table_specs(version), f"keys {binary}", payloads=PAYLOADS)
    apart = {"select", "multi", "exec", "watch", "discard", "publish", "spublish"}
    units = islice(made, count)
    found = [list(words) for unit in units for name, words in unit.commands if name not in apart]
    # A key that holds 600 members is none the more a key.
    return [words for words in found if len(words) < 100]


def damaged(commands: Iterable[list[bytes]], seed: str) -> list[list[bytes]]:
    """Commands with arguments that are missing, too many, or no numbers."""
    rng = random.Random(seed)
    found = []
    for command in commands:
        words = list(command)
        if words[0].upper() == b"SWAPDB":
            continue  # the reader of the stream checks it
        at = rng.randrange(1, len(words)) if len(words) > 1 else 0
        how = rng.randrange(4)
        if how == 0 and at:
            del words[max(at, 2) :]
        elif how == 1 and at:
            words[at] = rng.choice((b"-1", b"0", b"99", b"x", b"", b"9223372036854775807", b"2"))
        elif how == 2 and at:
            words.insert(at, b"7")
        else:
            words.append(rng.choice((b"STORE", b"STREAMS", b"KEYS", b"extra")))
        found.append(words)
    return found


@pytest.mark.parametrize("binary", NAMING_KEYS, ids=str)
def test_keys_are_those_that_the_server_names(
    binary: Binary, server_factory: ServerFactory
) -> None:
    client = server_factory(binary).client(protocol=2)
    client.response_callbacks.clear()
    sound = [*drawn(binary, 1500), *spelled(BY_HAND)]
    newer = spelled(NEWER)
    # Only servers that check the counts in what they are asked about.
    checked = binary.version >= (6, 0, 0)
    odd = damaged([*sound, *newer], f"damaged {binary}") if checked else []
    commands = [*sound, *newer, *odd]
    pipe = client.pipeline(transaction=False)
    for words in commands:
        pipe.execute_command("COMMAND", "GETKEYS", *words)
    replies = pipe.execute(raise_on_error=False)
    passing = batch(commands)
    assert len(passing) == len(commands)
    compared = 0
    for index, reply in enumerate(replies):
        ours, damage = passing.keys(index), index >= len(sound) + len(newer)
        if isinstance(reply, list):
            # Where no server would run it the core is the stricter one; the older ones guess.
            if not damage or (ours is not None and binary.version >= (7, 0, 0)):
                assert sorted(ours or []) == sorted(reply), commands[index]
            compared += not damage
        elif index < len(sound) and "no key arguments" in str(reply):
            # Redis 6.0 says so of PFDEBUG as well.
            assert ours == [] or commands[index][0].upper() == b"PFDEBUG", commands[index]
    assert compared > len(sound) * 0.8
    unknown = [commands[i] for i in range(len(sound) + len(newer)) if passing.keys(i) is None]
    assert unknown == []


def test_a_word_that_belongs_to_an_option_is_none_of_the_command() -> None:
    line = b"MIGRATE 127.0.0.1 6379  0 1000 COPY AUTH2 user keys KEYS one two"
    assert batch([line.split(b" ")]).keys(0) == [b"one", b"two"]
    line = b"XREADGROUP GROUP streams streams COUNT 1 STREAMS streams >"
    assert batch([line.split(b" ")]).key_positions(0) == [7]


def test_of_several_stores_the_last_counts() -> None:
    passing = batch(
        [
            b"GEORADIUSBYMEMBER places store 3 km STORE one STOREDIST two".split(),
            b"SORT list STORE one STORE two".split(),
            b"PFMERGE dest".split(),
        ]
    )
    assert [passing.changes(index) for index in range(3)] == [
        [(0, b"two")],
        [(0, b"two")],
        [(0, b"dest")],
    ]


WORDS = st.one_of(
    st.sampled_from(b"STORE STREAMS KEYS BY GET LIMIT GROUP COUNT DB AUTH2".split()),
    st.sampled_from(b"0 1 2 -1 18446744073709551617 9223372036854775807".split()),
    st.binary(max_size=12),
)
NAMES = st.sampled_from(
    sorted(
        {line.split(" ")[0].encode() for line in (*BY_HAND, *NEWER)}
        | set(b"DEL MSET MSETNX XGROUP BLESS HIMPORT JSON.MSET CMS.MERGE TDIGEST.MERGE".split())
        | set(b"FUNCTION NOSUCH BRPOP PFDEBUG".split())
    )
)
# A name alone: see test_command_arguments.py.
COMMANDS = st.tuples(NAMES, st.lists(WORDS, min_size=1, max_size=9)).map(
    lambda made: [made[0], *made[1]]
)


@settings(max_examples=600)
@given(st.lists(COMMANDS, min_size=1, max_size=8))
def test_any_arguments_give_keys_among_them_or_none(commands: list[list[bytes]]) -> None:
    passing = batch(commands)
    changed, unknown = passing.changed()
    expected = []
    for index, words in enumerate(commands):
        keys, positions = passing.keys(index), passing.key_positions(index)
        changes = passing.changes(index)
        assert (keys is None) == (positions is None) == (changes is None) == (index in unknown)
        if keys is None or positions is None or changes is None:
            continue
        assert keys == [words[position] for position in positions]
        assert 0 not in positions
        assert {key for _, key in changes} <= set(keys)
        expected += changes
        if passing.flags(index) & CMD_KEYLESS:
            assert keys == []
    assert changed == list(dict.fromkeys(expected))


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            COMMANDS,
            st.sampled_from([[b"SELECT", b"1"], [b"SELECT", b"0"]]),
            st.tuples(
                st.sampled_from([b"RENAME", b"SUNIONSTORE", b"LMOVE", b"COPY", b"BITOP AND"]),
                st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=2, max_size=3),
            ).map(lambda made: [*made[0].split(), *made[1]]),
        ),
        max_size=12,
    ),
    st.sets(st.tuples(st.sampled_from([0, 1]), st.sampled_from([b"a", b"b", b"1", b""]))),
)
def test_dirtiness_spreads_in_the_order_of_the_commands(
    commands: list[list[bytes]], dirty: set[tuple[int, bytes]]
) -> None:
    """All at once comes to the same as one command after the other."""
    rest = batch(commands)
    found, _ = rest.derived(dirty)
    assert not dirty & set(found)
    assert len(found) == len(set(found))
    now = set(dirty)
    while len(rest):
        one, rest = rest.split(rest.offset(0))
        now |= set(one.derived(now)[0])
    assert now == dirty | set(found)


def test_what_is_no_key_is_refused() -> None:
    passing = batch([[b"RENAME", b"a", b"b"]])
    with pytest.raises(TypeError):
        passing.derived([(0, "a")])  # type: ignore[list-item]
    with pytest.raises(IndexError):
        passing.keys(1)
    with pytest.raises(IndexError):
        passing.changes(-1)
    with pytest.raises(TypeError):
        command_flags("SET")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        (b"Set", CMD_TTL, CMD_UNKNOWN | CMD_READS | CMD_MEMBER_TTL),
        (b"msetex", CMD_TTL | CMD_READS, CMD_UNKNOWN),
        (b"increx", CMD_TTL, CMD_UNKNOWN),
        (b"SADDEX", CMD_MEMBER_TTL, CMD_TTL),
        (b"SPEXPIREAT", CMD_MEMBER_TTL, CMD_TTL),
        (b"hpersist", CMD_MEMBER_TTL, CMD_TTL),
        (b"EVALSHA", CMD_SCRIPT | CMD_READS_UNNAMED, CMD_UNKNOWN),
        (b"XREADGROUP", CMD_GROUPS, CMD_KEYLESS),
        (b"TS.INCRBY", CMD_MODULE, CMD_UNKNOWN),
        (b"ft._createifnx", CMD_MODULE | CMD_KEYLESS, CMD_UNKNOWN),
        (b"GET", CMD_UNKNOWN, CMD_READS),
        (b"", CMD_UNKNOWN, CMD_READS),
        (b"restore\rasking", CMD_UNKNOWN, CMD_TTL),
        (b"set\0", CMD_UNKNOWN, CMD_TTL),
        (b"x" * 100, CMD_UNKNOWN, CMD_TTL),
        (b"BLESS", CMD_UNKNOWN, CMD_TTL),
    ],
)
def test_what_the_table_says(name: bytes, has: int, lacks: int) -> None:
    says = command_flags(name)
    assert says & has == has
    assert not says & lacks
    assert batch([[name, b"a"]]).holds(has)
    assert batch([[b"SET", b"a", b"1"], [name, b"a"]]).flags(1) == says


def test_subcommands_have_rows_of_their_own() -> None:
    assert not command_flags(b"BLESS", b"Set") & CMD_UNKNOWN
    assert command_flags(b"HIMPORT", b"prepare") & CMD_KEYLESS
    passing = batch([[b"himport", b"set", b"k", b"f", b"v"], [b"BLESS", b"SCAN", b"0"], [b"BLESS"]])
    assert [passing.keys(index) for index in range(3)] == [[b"k"], None, None]
    assert passing.indices(CMD_UNKNOWN) == [1, 2]
    assert passing.unknown == [b"BLESS"]
