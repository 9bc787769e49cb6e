"""Transactions out and their replies in, against slow Python, on bytes cut anywhere."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    CommandBatch,
    ProtocolError,
    StreamReader,
    Transaction,
    TransactionEncoder,
    TransactionReader,
    TransactionResult,
    encode_command,
)
from tests.reference import stream as reference
from tests.reference.stream import command
from tests.support.feeding import push

KEY = b"startmigration:position"
POSITION = b"v1 t 0123 4567 0 0"


def batch_of(*rows: tuple[int, bytes]) -> CommandBatch:
    """A batch of (database, encoded command)."""
    reader = StreamReader(0)
    reader.feed(
        b"".join(command(b"SELECT", b"%d" % db) + command(b"PING") + data for db, data in rows)
    )
    reader.flush()
    batches = reader.take()
    return batches[0] if batches else empty()


def empty() -> CommandBatch:
    reader = StreamReader(0)
    reader.feed(b"\n")
    reader.flush()
    (batch,) = reader.take()
    return batch


def slots_of(transaction: Transaction) -> list[int | None]:
    return [transaction.index_of(slot) for slot in range(transaction.queued)]


INCR = command(b"INCR", b"n")


def test_the_shape_of_a_transaction():
    encoder = TransactionEncoder(KEY)
    transaction = encoder.encode(batch_of((0, INCR), (2, INCR), (2, INCR)), POSITION, db=0)
    end = command(b"SET", KEY, POSITION) + command(b"EXEC")
    end += command(b"WATCH", KEY) + command(b"GET", KEY)
    select = [command(b"SELECT", b"%d" % db) for db in range(4)]
    assert bytes(transaction) == (
        command(b"MULTI") + INCR + select[2] + INCR + INCR + select[0] + end
    )
    assert bytes(transaction.body) + bytes(transaction.ending) == bytes(transaction)
    assert bytes(transaction.ending).startswith(command(b"EXEC"))
    assert len(transaction) == len(bytes(transaction))
    assert slots_of(transaction) == [0, None, 1, 2, None, None]
    # Behind others that are unanswered the position is set where there is one.
    transaction = encoder.encode(batch_of((0, INCR)), POSITION, db=0, over=True)
    assert bytes(transaction) == (
        command(b"MULTI")
        + INCR
        + end.replace(b"*3", b"*4", 1).replace(command(b"EXEC"), b"$2\r\nXX\r\n" + command(b"EXEC"))
    )
    # Nothing to apply: the position alone.
    transaction = encoder.encode(empty(), POSITION, db=3)
    assert bytes(transaction) == command(b"MULTI") + select[0] + end
    assert transaction.queued == 2
    # Extras come last, in order, where they belong.
    transaction = encoder.encode(
        batch_of((0, INCR)), POSITION, db=0, extras=[(0, INCR), (3, INCR), (3, INCR)]
    )
    assert bytes(transaction) == (
        command(b"MULTI") + INCR * 2 + select[3] + INCR * 2 + select[0] + end
    )
    assert slots_of(transaction) == [0, -1, None, -2, -3, None, None]
    with pytest.raises(IndexError):
        transaction.index_of(7)
    with pytest.raises(IndexError):
        transaction.index_of(-1)


PLAIN = command(b"SET", b"key", b"value")


@pytest.mark.parametrize(
    "other",
    [
        command(b"SET", b"key", b"value", b"KEEPTTL"),
        command(b"SET", b"key", b"v" * 2000),
        command(b"SETNX", b"key", b"value"),
        INCR,
    ],
)
def test_sets_that_follow_each_other_go_as_one(other: bytes) -> None:
    """Up to 64 of one database; all else stays as it is, in order, and each slot says for which
    commands it stands."""
    lower = command(b"set", b"key", b"lower")
    many = [(0, PLAIN)] * 65
    batch = batch_of(*many, (0, other), (0, PLAIN), (0, other), (0, PLAIN), (0, lower), (1, lower))
    encoder = TransactionEncoder(KEY)
    transaction = encoder.encode(batch, POSITION, db=0, merge=True)
    pairs = [b"key", b"value"]
    body = command(b"MULTI") + command(b"MSET", *pairs * 64) + PLAIN + other + PLAIN + other
    body += command(b"MSET", *pairs, b"key", b"lower") + command(b"SELECT", b"1") + lower
    body += command(b"SELECT", b"0") + command(b"SET", KEY, POSITION)
    assert bytes(transaction.body) == body
    assert slots_of(transaction) == [0, 64, 65, 66, 67, 68, None, 70, None, None]
    merged = [transaction.merged_at(slot) for slot in range(transaction.queued)]
    assert merged == [64, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    with pytest.raises(IndexError):
        transaction.merged_at(transaction.queued)
    # What is skipped is no part of any, and parts none.
    skip = frozenset(range(65)) | {68}
    transaction = encoder.encode(batch, POSITION, db=0, merge=True, skip=skip)
    assert slots_of(transaction) == [65, 66, 67, 69, None, 70, None, None]
    # Where nobody asks for it, nothing is merged.
    assert encoder.encode(batch, POSITION, db=0).queued == 74


@settings(max_examples=100)
@given(st.lists(st.sampled_from(range(5)), max_size=150), st.integers(0, 3))
def test_merged_sets_say_the_same(kinds: list[int], db: int) -> None:
    """Taken apart, in order, they are the commands of the batch."""
    forms = [
        lambda n: (0, command(b"SET", b"k%d" % (n % 7), b"v" * (n * 37 % 1100))),
        lambda n: (1, command(b"Set", b"k%d" % (n % 7), b"%d" % n)),
        lambda n: (0, command(b"SET", b"k", b"%d" % n, b"PXAT", b"1")),
        lambda n: (0, command(b"INCR", b"k%d" % (n % 7))),
        lambda n: (0, command(b"SET", b"k", b"%d" % n)),
    ]
    batch = batch_of(*(forms[kind](n) for n, kind in enumerate(kinds)), (0, INCR))
    encoder = TransactionEncoder(KEY)
    plain = encoder.encode(batch, POSITION, db=db)
    merged = encoder.encode(batch, POSITION, db=db, merge=True)
    apart: list[tuple[bytes, ...]] = []
    for words in commands_in(bytes(merged)):
        if words[0] == b"MSET":
            assert len(words) > 3
            apart += [(b"SET", *words[at : at + 2]) for at in range(1, len(words), 2)]
        else:
            apart.append((words[0].upper(), *words[1:]))
    assert apart == [(words[0].upper(), *words[1:]) for words in commands_in(bytes(plain))]
    named: list[int] = []
    for slot in range(merged.queued):
        if (index := merged.index_of(slot)) is not None:
            named += range(index, index + merged.merged_at(slot))
    assert named == list(range(len(batch)))


def commands_in(data: bytes) -> list[tuple[bytes, ...]]:
    """Encoded commands, taken apart slowly."""
    found, at = [], 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        count, at = int(data[at + 1 : end]), end + 2
        words = []
        for _ in range(count):
            end = data.index(b"\r\n", at)
            size, at = int(data[at + 1 : end]), end + 2
            words.append(data[at : at + size])
            at += size + 2
        found.append(tuple(words))
    return found


def test_a_swap_of_the_position_s_database_leaves_no_key_behind():
    swap = command(b"SwapDB", b"1", b"0")
    away = command(b"SWAPDB", b"1", b"2")
    same = command(b"SWAPDB", b"0", b"0")
    delete = command(b"DEL", KEY)
    select = [command(b"SELECT", b"%d" % db) for db in range(3)]
    batch = batch_of((0, INCR), (0, swap), (0, INCR), (0, away), (0, same))
    body = bytes(TransactionEncoder(KEY, 0).encode(batch, POSITION, db=0))
    assert body.startswith(
        command(b"MULTI") + INCR + swap + select[1] + delete + select[0] + INCR + away + same
    )
    assert body.count(delete) == 1
    body = bytes(TransactionEncoder(KEY, 0).encode(batch, POSITION, db=0, skip=frozenset({1})))
    assert delete not in body
    body = bytes(TransactionEncoder(KEY, 2).encode(batch, POSITION, db=2))
    assert away + select[1] + delete + select[0] + same + select[2] in body
    assert body.count(delete) == 1


data_commands = st.one_of(
    st.builds(
        lambda name, args: command(name, *args),
        st.sampled_from([b"SET", b"INCR", b"LPUSH", b"x"]),
        st.lists(st.binary(max_size=5), min_size=1, max_size=3),
    ),
    st.builds(
        lambda a, b: command(b"SWAPDB", b"%d" % a, b"%d" % b), st.integers(0, 3), st.integers(0, 3)
    ),
)
rows = st.lists(st.tuples(st.integers(0, 3), data_commands), max_size=12)


@settings(max_examples=300)
@given(
    rows=rows,
    extras=st.lists(st.tuples(st.integers(0, 3), data_commands), max_size=3),
    skip=st.frozensets(st.integers(0, 11)),
    db=st.integers(0, 3),
    position_db=st.integers(0, 3),
    position=st.binary(max_size=80),
)
def test_transactions_agree_with_the_reference(rows, extras, skip, db, position_db, position):
    # The extras' own SWAPDBs are the caller's business; the reference has no such difference.
    extras = [(to, data) for to, data in extras if b"SWAPDB" not in data]
    batch = batch_of(*rows)
    skip = frozenset(i for i in skip if i < len(rows))
    transaction = TransactionEncoder(KEY, position_db).encode(
        batch, position, db=db, skip=skip, extras=extras
    )
    kept = [i for i in range(len(rows)) if i not in skip]
    expected, slots = reference.transaction(
        [rows[i] for i in kept] + extras, KEY, position, db=db, position_db=position_db
    )
    assert bytes(transaction) == expected
    numbers = kept + [-1 - i for i in range(len(extras))]
    assert slots_of(transaction) == [None if at is None else numbers[at] for at in slots]


def test_no_command_goes_to_a_database_that_the_target_has_not():
    encoder = TransactionEncoder(KEY, databases=2)
    batch = batch_of((0, INCR), (2, INCR), (1, INCR))
    with pytest.raises(ValueError, match="database 2, and the target has 2"):
        encoder.encode(batch, POSITION, db=0)
    transaction = encoder.encode(batch, POSITION, db=0, skip=frozenset({1}))
    assert command(b"SELECT", b"2") not in bytes(transaction)
    last = batch_of((2**31 - 1, INCR))
    assert command(b"SELECT", b"2147483647") in bytes(
        TransactionEncoder(KEY).encode(last, POSITION, db=0)
    )
    with pytest.raises(ValueError, match="extra's database must be 0 to 1"):
        encoder.encode(empty(), POSITION, db=0, extras=[(2, INCR)])


def test_what_is_rewritten_goes_out_in_its_place():
    reader = StreamReader(0, anchor=True)
    reader.now_ms = 1000
    reader.feed(INCR + command(b"SETEX", b"k", b"1", b"v") + INCR)
    reader.flush()
    (batch,) = reader.take()
    transaction = TransactionEncoder(KEY).encode(batch, POSITION, db=0)
    assert bytes(transaction).startswith(
        command(b"MULTI")
        + INCR
        + command(b"SET", b"k", b"v")
        + command(b"PEXPIREAT", b"k", b"2000")
        + INCR
        + command(b"SET", KEY, POSITION)
    )
    assert slots_of(transaction) == [0, 1, 2, 3, None]


@pytest.mark.parametrize(
    "extra",
    [
        b"",
        b"*1\r\n",
        INCR[:-1],
        INCR + b"\n",
        INCR * 2,
        b"*0\r\n",
        b"INCR n\r\n",
        b"*1\r\n$5\r\nINCR\r\n",
        b"*1\r\n$4\r\nINCRxx",
        b"*1\r\n$-1\r\n",
    ],
)
def test_an_extra_is_one_command(extra):
    encoder = TransactionEncoder(KEY)
    with pytest.raises(ValueError, match="exactly one"):
        encoder.encode(empty(), POSITION, db=0, extras=[(0, extra)])


def test_what_python_may_not_ask():
    encoder = TransactionEncoder(KEY)
    batch = batch_of((0, INCR))
    with pytest.raises(IndexError):
        encoder.encode(batch, POSITION, db=0, skip=frozenset({1}))
    with pytest.raises(IndexError):
        encoder.encode(batch, POSITION, db=0, skip=frozenset({-1}))
    with pytest.raises(ValueError, match="db must be"):
        encoder.encode(batch, POSITION, db=-1)
    with pytest.raises(ValueError, match="position_db must be"):
        TransactionEncoder(KEY, -1)
    with pytest.raises(ValueError, match="position_db must be 0 to 15, found 16"):
        TransactionEncoder(KEY, 16, databases=16)
    with pytest.raises(ValueError, match="at most"):
        encoder.encode(batch, b"x" * 4097, db=0)
    with pytest.raises(ValueError, match="database"):
        encoder.encode(batch, POSITION, db=0, extras=[(-1, INCR)])
    with pytest.raises(TypeError):
        encoder.encode(batch, POSITION, db=0, extras=[(0, "INCR")])
    with pytest.raises(TypeError):
        encoder.encode(batch, None, db=0)
    with pytest.raises(TypeError):
        TransactionEncoder(None)
    reader = TransactionReader()
    with pytest.raises(ValueError, match="at least one"):
        reader.expect(0)
    while reader.room:
        reader.expect(1)
    assert reader.waiting == 1024
    with pytest.raises(ValueError, match="too many"):
        reader.expect(1)
    # As much as a caller may give, at once.
    many = [(i % 3, INCR) for i in range(5000)]
    transaction = encoder.encode(batch, b"x" * 4096, db=5, extras=many)
    expected, _ = reference.transaction([(0, INCR), *many], KEY, b"x" * 4096, db=5)
    assert bytes(transaction) == expected


# --- Replies ---


def answer(
    data: bytes, *queued: int | tuple[int, bool], sizes: list[int] | None = None
) -> list[TransactionResult]:
    reader = TransactionReader()
    for count in queued:
        reader.expect(*(count if isinstance(count, tuple) else (count,)))
    push(reader, data, sizes)
    results = reader.take()
    assert reader.waiting == len(queued) - len(results)
    return results


def shown(result: TransactionResult) -> dict[str, object]:
    """What a result says, without what says nothing."""
    names = ("status", "refused", "failed", "error", "guard_error", "position")
    pairs = {name: getattr(result, name) for name in names}
    return {name: value for name, value in pairs.items() if value not in (None, [])}


OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
GUARD = OK + b"$3\r\npos\r\n"
DENIED = b"-NOPERM no\r\n"

ANSWERS = {
    "applied": (
        OK + QUEUED * 3 + b"*3\r\n:1\r\n$-1\r\n+OK\r\n" + GUARD,
        3,
        {"status": "applied", "position": b"pos"},
    ),
    "one fails": (
        OK + QUEUED * 3 + b"*3\r\n+OK\r\n-WRONGTYPE no\r\n+OK\r\n" + GUARD,
        3,
        {"status": "applied", "failed": [(1, "WRONGTYPE no")], "position": b"pos"},
    ),
    "the last fails": (
        OK + QUEUED * 2 + b"*2\r\n:1\r\n-OOM no\r\n" + GUARD,
        2,
        {"status": "applied", "failed": [(1, "OOM no")], "position": b"pos"},
    ),
    "a blob error": (
        OK + QUEUED * 2 + b"*2\r\n!6\r\nERR x\n\r\n+OK\r\n" + GUARD,
        2,
        {"status": "applied", "failed": [(0, "ERR x\n")], "position": b"pos"},
    ),
    "refused": (
        OK + QUEUED + b"-ERR unknown\r\n" + QUEUED + b"-EXECABORT gone\r\n" + GUARD,
        3,
        {
            "status": "aborted",
            "refused": [(1, "ERR unknown")],
            "error": "EXECABORT gone",
            "position": b"pos",
        },
    ),
    "all refused": (
        OK + b"-LOADING x\r\n" * 2 + b"-EXECABORT gone\r\n-LOADING y\r\n-LOADING z\r\n",
        2,
        {
            "status": "aborted",
            "refused": [(0, "LOADING x"), (1, "LOADING x")],
            "error": "EXECABORT gone",
            "guard_error": "LOADING y",
        },
    ),
    "raced": (OK + QUEUED + b"*-1\r\n" + GUARD, 1, {"status": "raced", "position": b"pos"}),
    "raced, RESP3": (OK + QUEUED + b"_\r\n" + OK + b"_\r\n", 1, {"status": "raced"}),
    "no position": (OK + QUEUED + b"*1\r\n+OK\r\n" + OK + b"$-1\r\n", 1, {"status": "applied"}),
    "empty position": (
        OK + QUEUED + b"*1\r\n+OK\r\n" + OK + b"$0\r\n\r\n",
        1,
        {"status": "applied", "position": b""},
    ),
    "not begun": (
        DENIED + b":1\r\n" + DENIED + b"*1\r\n*1\r\n-in\r\n" + OK + b"-ERR no MULTI\r\n" + GUARD,
        4,
        {
            "status": "not_begun",
            "failed": [(1, "NOPERM no")],
            "error": "NOPERM no",
            "position": b"pos",
        },
    ),
    "not begun, and EXEC answers": (
        b"-ERR nested\r\n" + QUEUED + b"*2\r\n:1\r\n*1\r\n:2\r\n" + GUARD,
        1,
        {"status": "not_begun", "error": "ERR nested", "position": b"pos"},
    ),
    "EXEC refused, MULTI open": (
        OK + QUEUED + DENIED + b"-ERR WATCH inside MULTI is not allowed\r\n" + QUEUED,
        1,
        {
            "status": "aborted",
            "error": "NOPERM no",
            "guard_error": "ERR WATCH inside MULTI is not allowed",
        },
    ),
    "MULTI open, WATCH queued": (
        OK + QUEUED + DENIED + QUEUED + QUEUED,
        1,
        {"status": "aborted", "error": "NOPERM no", "guard_error": "QUEUED"},
    ),
    "GET refused": (
        OK + QUEUED + b"*1\r\n+OK\r\n" + OK + b"-WRONGTYPE x\r\n",
        1,
        {"status": "applied", "guard_error": "WRONGTYPE x"},
    ),
    "partial": (
        OK
        + QUEUED
        + b"-LOADING a\r\n" * 2
        + QUEUED * 3
        + b"-LOADING a\r\n"
        + QUEUED
        + b"*5\r\n-one\r\n-two\r\n:3\r\n-four\r\n-five\r\n"
        + GUARD,
        8,
        {
            "status": "partial",
            "refused": [(1, "LOADING a"), (2, "LOADING a"), (6, "LOADING a")],
            "failed": [(0, "one"), (3, "two"), (5, "four"), (7, "five")],
            "position": b"pos",
        },
    ),
    "values of every kind": (
        OK
        + QUEUED * 14
        + b"*14\r\n"
        + b"*0\r\n"
        + b"*2\r\n*2\r\n:-1\r\n$5\r\n\r\nabc\r\n-ERR inside\r\n"
        + b"%2\r\n+a\r\n:1\r\n+b\r\n~1\r\n:2\r\n"
        + b",1.5e3\r\n"
        + b"#t\r\n"
        + b"(12345678901234567890123\r\n"
        + b"=7\r\ntxt:abc\r\n"
        + b"|1\r\n+ttl\r\n*2\r\n:1\r\n-ERR attribute\r\n:5\r\n"
        + b"|0\r\n-ERR behind an attribute\r\n"
        + b"*1\r\n|1\r\n+a\r\n:1\r\n:9\r\n"
        + b"*-1\r\n"
        + b":+5\r\n"
        + b",-inf\r\n"
        + b"+\r\n"
        + GUARD,
        14,
        {
            "status": "applied",
            "failed": [(8, "ERR behind an attribute")],
            "position": b"pos",
        },
    ),
    "text that is no UTF-8": (
        OK + QUEUED + b"*1\r\n-ERR \xff\r\n" + GUARD,
        1,
        {"status": "applied", "failed": [(0, "ERR \\xff")], "position": b"pos"},
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_read_however_they_are_cut(name):
    data, queued, expected = ANSWERS[name]
    (result,) = answer(data, queued)
    assert shown(result) == expected
    assert f"status={expected['status']!r}" in repr(result)
    for cut in range(1, len(data)):
        (result,) = answer(data, queued, sizes=[cut, len(data)])
        assert shown(result) == expected
    for size in (1, 2, 3, 7):
        (result,) = answer(data, queued, sizes=[size])
        assert shown(result) == expected
    # Nothing is ready before the last byte.
    assert answer(data[:-1], queued) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_all_is_well_when_everything_ran_and_the_position_is_there(name):
    data, queued, expected = ANSWERS[name]
    (result,) = answer(data, queued)
    well = expected == {"status": "applied", "position": b"pos"}
    assert result.stands(b"pos") == well
    assert not result.stands(b"another")
    with pytest.raises(TypeError):
        result.stands(None)


@pytest.mark.parametrize("size", [1 << 18, 13, 1])
def test_answers_come_one_after_the_other(size):
    names = random.Random(1).choices(list(ANSWERS), k=60)
    data = b"".join(ANSWERS[name][0] for name in names)
    results = answer(data, *(ANSWERS[name][1] for name in names), sizes=[size])
    assert [shown(result) for result in results] == [ANSWERS[name][2] for name in names]


def test_long_answers_pass_in_pieces():
    text = "ERR " + "x" * 300_000
    parts = [
        b"*5\r\n",
        b"$3000000\r\n" + b"\r" * 3_000_000 + b"\r\n",
        b"-" + text.encode() + b"\r\n",
        b"+" + b"y" * 400_000 + b"\r\n",
        b"!300000\r\n" + text.encode()[:300_000] + b"\r\n",
        b"*100000\r\n" + b":1\r\n" * 100_000,
    ]
    data = OK + QUEUED * 5 + b"".join(parts) + OK + b"$9000\r\n" + b"p" * 9000 + b"\r\n"
    for sizes in (None, [65_536], [9973]):
        (result,) = answer(data, 5, sizes=sizes)
        assert result.status == "applied"
        assert result.failed == [(1, text[:1024]), (3, text[:1024])]
        assert result.position == b"p" * 4096


def test_depth_costs_nothing():
    deep = b"*1\r\n" * 200_000 + b":1\r\n"
    (result,) = answer(OK + QUEUED + b"*1\r\n" + deep + GUARD, 1)
    assert result.status == "applied"


# --- Records ---

BEFORE = b"$3\r\npos\r\n"
RECORDS = {
    "recorded": (
        b":1\r\n$-1\r\n+OK\r\n" + BEFORE + OK,
        3,
        {"status": "recorded", "position": b"pos"},
    ),
    "one fails": (
        OK + b"-OOM no\r\n" + OK + BEFORE + OK,
        3,
        {"status": "recorded", "failed": [(1, "OOM no")], "position": b"pos"},
    ),
    "no commands": (BEFORE + OK, 0, {"status": "recorded", "position": b"pos"}),
    "no record any more": (b":1\r\n$-1\r\n$-1\r\n", 1, {"status": "unrecorded"}),
    "no record, RESP3": (b":1\r\n_\r\n_\r\n", 1, {"status": "unrecorded"}),
    "the record is refused": (
        b":1\r\n" + BEFORE + b"-OOM no\r\n",
        1,
        {"status": "unrecorded", "guard_error": "OOM no", "position": b"pos"},
    ),
    "the look is refused": (
        b":1\r\n-NOPERM get\r\n" + OK,
        1,
        {"status": "recorded", "guard_error": "NOPERM get"},
    ),
    "all is refused": (
        b"-LOADING a\r\n" * 4,
        2,
        {
            "status": "unrecorded",
            "failed": [(0, "LOADING a"), (1, "LOADING a")],
            "guard_error": "LOADING a",
        },
    ),
    "of another database": (
        OK + OK + QUEUED * 3 + b"*3\r\n" + OK + b":1\r\n" + OK + b":1\r\n" + BEFORE + OK,
        7,
        {"status": "recorded", "position": b"pos"},
    ),
    "one of another database fails": (
        OK * 2 + QUEUED * 3 + b"*3\r\n" + OK + b"-ERR x\r\n" + OK + b":1\r\n" + BEFORE + OK,
        7,
        {"status": "recorded", "failed": [(5, "ERR x")], "position": b"pos"},
    ),
    "an error within the reply of one of another database is none": (
        OK * 2 + QUEUED * 3 + b"*3\r\n" + OK + b"*1\r\n-ERR x\r\n" + OK + BEFORE + OK,
        6,
        {"status": "recorded", "position": b"pos"},
    ),
    "one of another database is not queued": (
        OK + QUEUED + b"-MOVED 1\r\n" + QUEUED + b"-EXECABORT x\r\n" + BEFORE + OK,
        5,
        {
            "status": "recorded",
            "failed": [(2, "MOVED 1"), (4, "EXECABORT x")],
            "position": b"pos",
        },
    ),
    "one of another database is not run": (
        OK + QUEUED * 3 + b"*-1\r\n" + OK + QUEUED * 3 + b"_\r\n" + BEFORE + OK,
        10,
        {"status": "recorded", "failed": [(4, ""), (9, "")], "position": b"pos"},
    ),
    "its database is refused": (
        OK + QUEUED * 3 + b"*3\r\n-ERR db\r\n:1\r\n" + OK + BEFORE + OK,
        5,
        {"status": "recorded", "failed": [(4, "ERR db")], "position": b"pos"},
    ),
    "values of every kind": (
        b"*2\r\n*0\r\n-ERR inside\r\n|1\r\n+a\r\n:1\r\n%1\r\n+a\r\n,1.5\r\n!5\r\nERR x\r\n#t\r\n"
        + BEFORE
        + OK,
        4,
        {"status": "recorded", "failed": [(2, "ERR x")], "position": b"pos"},
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_answers_before_a_record_are_read_however_they_are_cut(name: str) -> None:
    data, commands, expected = RECORDS[name]
    for sizes in (None, [1], [2], [3], [7], *([cut, len(data)] for cut in range(1, len(data)))):
        (result,) = answer(data, (commands, True), sizes=sizes)
        assert shown(result) == expected
    assert answer(data[:-1], (commands, True)) == []
    assert result.stands(b"pos") == (expected == {"status": "recorded", "position": b"pos"})
    assert not result.stands(b"another")


replies = st.sampled_from(
    [b":1\r\n", OK, b"$-1\r\n", b"*1\r\n-ERR in\r\n", b"-OOM no\r\n", b"-ERR x\r\n"]
)


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(ANSWERS)),
            st.tuples(
                st.lists(replies, max_size=5),
                st.sampled_from([b"$3\r\npos\r\n", b"$-1\r\n", b"-ERR get\r\n"]),
                st.sampled_from([OK, b"$-1\r\n", b"-OOM set\r\n"]),
            ),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_both_forms_are_read_in_their_order(
    sent: list[str | tuple[list[bytes], bytes, bytes]], sizes: list[int]
) -> None:
    """Any errors, anywhere, and bytes cut anywhere."""
    data, queued, expected = b"", [], []
    for each in sent:
        if isinstance(each, str):
            data += ANSWERS[each][0]
            queued.append((ANSWERS[each][1], False))
            expected.append(ANSWERS[each][2])
            continue
        commands, before, record = each
        data += b"".join(commands) + before + record
        queued.append((len(commands), True))
        says: dict[str, object] = {"status": "recorded" if record == OK else "unrecorded"}
        failed = [
            (slot, reply[1:-2].decode()) for slot, reply in enumerate(commands) if reply[:1] == b"-"
        ]
        refused = [reply[1:-2].decode() for reply in (before, record) if reply[:1] == b"-"]
        says |= {"failed": failed} if failed else {}
        says |= {"guard_error": refused[0]} if refused else {}
        says |= {"position": b"pos"} if before[:2] == b"$3" else {}
        expected.append(says)
    assert [shown(result) for result in answer(data, *queued, sizes=sizes)] == expected


@pytest.mark.parametrize(
    ("data", "at", "expected"),
    [
        (b":1\r\n:2\r\n", 4, "the reply to GET"),
        (b":1\r\n" + BEFORE + b":1\r\n", 13, "the reply to SET"),
        (b":1\r\n" + BEFORE + b"+QUEUED\r\n", 13, "the reply to SET"),
        (b":1\r\n" + BEFORE + OK + OK, 18, "nothing"),
    ],
)
def test_bytes_that_are_no_answer_before_a_record(data: bytes, at: int, expected: str) -> None:
    with pytest.raises(ProtocolError, match=f"{expected}.* at byte {at}"):
        answer(data, (1, True))


@settings(max_examples=200)
@given(
    kinds=st.lists(st.sampled_from([INCR, PLAIN, command(b"DEL", b"a", b"b")]), max_size=12),
    skip=st.frozensets(st.integers(0, 11)),
    position=st.binary(max_size=80),
    extras=st.lists(st.sampled_from([INCR, PLAIN]), max_size=3),
)
def test_a_record_lies_behind_its_commands(
    kinds: list[bytes], skip: frozenset[int], position: bytes, extras: list[bytes]
) -> None:
    batch = batch_of(*((0, data) for data in kinds))
    skip = frozenset(each for each in skip if each < len(kinds))
    encoded = TransactionEncoder(KEY).encode_record(
        batch, position, skip=skip, extras=[(0, each) for each in extras]
    )
    kept = [each for each in range(len(kinds)) if each not in skip]
    assert bytes(encoded) == b"".join([kinds[each] for each in kept] + extras) + command(
        b"GET", KEY
    ) + command(b"SET", KEY, position, b"XX")
    assert encoded.record
    assert slots_of(encoded) == [*kept, *(-1 - each for each in range(len(extras)))]
    assert bytes(encoded.body) == bytes(encoded)


@settings(max_examples=200)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 0, 3, 12]), st.sampled_from([INCR, PLAIN])), max_size=12
    ),
    skip=st.frozensets(st.integers(0, 11)),
    extras=st.lists(st.tuples(st.sampled_from([0, 7]), st.just(INCR)), max_size=3),
)
def test_before_a_record_a_command_of_another_database_is_a_transaction(
    rows: list[tuple[int, bytes]], skip: frozenset[int], extras: list[tuple[int, bytes]]
) -> None:
    skip = frozenset(each for each in skip if each < len(rows))
    encoded = TransactionEncoder(KEY).encode_record(
        batch_of(*rows), POSITION, skip=skip, extras=extras
    )
    sent, places = b"", list[int | None]()
    kept = [(at, *row) for at, row in enumerate(rows) if at not in skip]
    kept += [(-1 - at, *extra) for at, extra in enumerate(extras)]
    for place, db, data in kept:
        if db == 0:
            sent += data
            places.append(place)
            continue
        if b"UNWATCH" not in sent:
            sent += command(b"UNWATCH")
            places.append(None)
        sent += command(b"MULTI") + command(b"SELECT", b"%d" % db) + data
        sent += command(b"SELECT", b"0") + command(b"EXEC")
        places += [None, place, place, place, place]
    sent += command(b"GET", KEY) + command(b"SET", KEY, POSITION, b"XX")
    assert bytes(encoded) == sent
    assert slots_of(encoded) == places


def test_what_no_record_can_have() -> None:
    encoder = TransactionEncoder(KEY)
    with pytest.raises(ValueError, match="SWAPDB"):
        encoder.encode_record(batch_of((0, command(b"SWAPDB", b"1", b"2"))), POSITION)
    small = TransactionEncoder(KEY, databases=2)
    with pytest.raises(ValueError, match="runs in database 2, and the target has 2"):
        small.encode_record(batch_of((0, INCR), (2, INCR)), POSITION)
    with pytest.raises(ValueError, match="database must be 0 to 1"):
        small.encode_record(batch_of((0, INCR)), POSITION, extras=[(2, INCR)])
    with pytest.raises(ValueError, match="exactly one encoded command"):
        encoder.encode_record(batch_of((0, INCR)), POSITION, extras=[(0, INCR + INCR)])
    # Those that are left out may be any.
    batch = batch_of((0, INCR), (2, INCR), (0, command(b"SWAPDB", b"1", b"2")))
    assert encoder.encode_record(batch, POSITION, skip=frozenset({1, 2})).queued == 1
    with pytest.raises(ValueError, match="at most"):
        encoder.encode_record(batch_of((0, INCR)), b"x" * 4097)
    with pytest.raises(IndexError):
        encoder.encode_record(batch_of((0, INCR)), POSITION, skip=frozenset({1}))
    assert not encoder.encode(batch_of((0, INCR)), POSITION, db=0).record
    assert TransactionEncoder(KEY, 2).encode_record(batch_of((2, INCR)), POSITION).queued == 1


@pytest.mark.parametrize(
    ("data", "alone"),
    [
        (INCR + INCR, True),
        (b"", True),
        (command(b"MULTI") + INCR + command(b"EXEC"), False),
        (INCR + command(b"MULTI") + INCR + INCR + command(b"EXEC") + INCR, False),
        (command(b"SELECT", b"1") + INCR, False),
        (INCR + command(b"SELECT", b"1") + INCR, False),
    ],
)
def test_which_commands_stand_alone(data: bytes, alone: bool) -> None:
    reader = StreamReader(0)
    reader.feed(command(b"PING") + data)
    reader.flush()
    batches = reader.take()
    assert all(batch.stand_alone(0) for batch in batches) == alone


def test_the_same_message_is_one_object():
    (result,) = answer(OK + QUEUED * 3 + b"*3\r\n" + b"-OOM x\r\n" * 3 + GUARD, 3)
    assert len({id(text) for _, text in result.failed}) == 1


@pytest.mark.parametrize(
    ("data", "at", "expected"),
    [
        (b":1\r\n", 0, "the reply to MULTI"),
        (b"+PONG\r\n", 0, "the reply to MULTI"),
        (OK + OK, 5, "reply to a command in MULTI"),
        (OK + QUEUED + b":1\r\n", 14, "reply to a command in MULTI"),
        (OK + QUEUED * 2 + b"*1\r\n", 23, "an array with a reply for each"),
        (OK + QUEUED * 2 + b"*3\r\n", 23, "an array with a reply for each"),
        (OK + QUEUED * 2 + OK, 23, "an array with a reply for each"),
        (OK + QUEUED * 2 + b"%2\r\n", 23, "an array with a reply for each"),
        (OK + QUEUED + b"-x\r\n*2\r\n", 18, "an array with a reply for each"),
        (OK + QUEUED * 2 + b"*2\r\n>1\r\n", 27, "the type of a reply"),
        (OK + QUEUED * 2 + b"*2\r\nx", 27, "the type of a reply"),
        (OK + QUEUED * 2 + b"*2\r\n:x\r\n", 27, "an integer"),
        (OK + QUEUED * 2 + b"*2\r\n:\r\n", 27, "an integer"),
        (OK + QUEUED * 2 + b"*2\r\n$-2\r\n", 27, "a length"),
        (OK + QUEUED * 2 + b"*2\r\n$9223372036854775807\r\n", 27, "a length"),
        (OK + QUEUED * 2 + b"*2\r\n*9223372036854775807\r\n", 27, "a length"),
        (OK + QUEUED * 2 + b"*2\r\n%-1\r\n", 27, "a length"),
        (OK + QUEUED * 2 + b"*2\r\n#x\r\n", 27, "t or f"),
        (OK + QUEUED * 2 + b"*2\r\n_x\r\n", 27, "a null"),
        (OK + QUEUED * 2 + b"*2\r\n,x\r\n", 27, "a double"),
        (OK + QUEUED * 2 + b"*2\r\n(1.5\r\n", 27, "a big number"),
        (OK + QUEUED * 2 + b"*2\r\n$1\r\nab\r\n", 27, "CRLF behind a bulk"),
        (OK + QUEUED * 2 + b"*2\r\n+x\n", 27, "ends in CRLF"),
        (OK + QUEUED * 2 + b"*2\r\n:1\n", 27, "ends in CRLF"),
        (OK + QUEUED * 2 + b"*2\r\n%1000000000000\r\n", 27, "fewer values"),
        (OK + QUEUED * 2 + b"*2\r\n" + OK * 2 + b":1\r\n", 37, "the reply to WATCH"),
        (OK + QUEUED * 2 + b"*2\r\n" + OK * 3 + b":1\r\n", 42, "the reply to GET"),
        (OK + QUEUED * 2 + b"*2\r\n" + OK * 2 + GUARD + OK, 51, "no reply is owed"),
    ],
)
def test_what_is_no_answer(data, at, expected):
    for sizes in (None, [1]):
        reader = TransactionReader()
        reader.expect(2)
        with pytest.raises(ProtocolError, match=expected) as caught:
            push(reader, data if b"x" not in data[at : at + 1] else data + b"x" * 64, sizes)
        assert caught.value.offset == at
        with pytest.raises(ProtocolError):
            push(reader, OK)


def value(rng: random.Random, depth: int = 0) -> bytes:
    """A random reply."""
    kind = rng.choice("+:$_*%~#,(=" if depth < 4 else "+:$_")
    n = rng.randint(0, 4)
    if kind in "*~":
        body = b"".join(value(rng, depth + 1) for _ in range(n))
        return f"{kind}{n}\r\n".encode() + body
    if kind == "%":
        return b"%%%d\r\n" % n + b"".join(value(rng, depth + 1) for _ in range(2 * n))
    text = bytes(rng.choice(b"ab\r\n*") for _ in range(n))
    return {
        "+": b"+" + text.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n",
        ":": b":%d\r\n" % rng.randint(-99, 99),
        "$": b"$%d\r\n%s\r\n" % (n, text),
        "_": b"$-1\r\n",
        "#": b"#f\r\n",
        ",": b",1.25\r\n",
        "(": b"(99\r\n",
        "=": b"=%d\r\ntxt:%s\r\n" % (n + 4, text),
    }[kind]


@settings(max_examples=300)
@given(seed=st.integers(0, 2**40), damage=st.integers(0, 3))
def test_random_answers(seed, damage):
    rng = random.Random(seed)
    data, counts, expected = b"", [], []
    for _ in range(rng.randint(1, 4)):
        count = rng.randint(1, 6)
        failed = [(i, f"ERR {i}") for i in range(count) if rng.random() < 0.3]
        data += OK + QUEUED * count + b"*%d\r\n" % count
        for i in range(count):
            data += b"-ERR %d\r\n" % i if (i, f"ERR {i}") in failed else value(rng)
        data += GUARD
        counts.append(count)
        expected.append(("applied", failed))
    sizes = [rng.randint(1, 30) for _ in range(3)]
    if not damage:
        results = answer(data, *counts, sizes=sizes)
        assert [(result.status, result.failed) for result in results] == expected
        return
    broken = bytearray(data)
    for _ in range(damage):
        at = rng.randrange(len(broken))
        broken[at] = rng.choice(b"\r\n*$+-:0919%|_\xff")
    reader = TransactionReader()
    for count in counts:
        reader.expect(count)
    failure = None
    try:
        push(reader, bytes(broken), sizes)
    except ProtocolError as exc:
        failure = exc
    assert failure is None or 0 <= failure.offset <= len(broken)
    assert len(reader.take()) <= len(counts)


def test_an_encoded_command_is_an_extra():
    extra = encode_command(b"RESTORE", b"k", 0, b"\x00" * 30, b"REPLACE")
    transaction = TransactionEncoder(KEY).encode(empty(), POSITION, db=0, extras=((0, extra),))
    assert extra in bytes(transaction)
