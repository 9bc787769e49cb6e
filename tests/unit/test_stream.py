"""The core's stream reader against slow Python, on bytes cut anywhere."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    CMD_MEMBER_COUNT,
    CMD_MEMBER_TTL,
    CMD_MOVES,
    CMD_PLACES,
    CMD_SWAPS,
    CMD_TTL,
    CommandBatch,
    ProtocolError,
    StreamReader,
)
from tests.reference import stream as reference
from tests.reference.stream import HAVE_KEYS, command
from tests.support.feeding import contents, push

NOW = 1_700_000_000_000
FAR = 2**63 - 1


def batches_of(
    data: bytes, sizes: list[int] | None = None, flush_every: int = 0, **options: int
) -> list[CommandBatch]:
    """All batches of a stream that begins at offset 1000, the last one flushed."""
    reader = StreamReader(1000, **options)
    if flush_every:
        for at in range(0, len(data), flush_every):
            push(reader, data[at : at + flush_every])
            reader.flush()
    else:
        push(reader, data, sizes)
    reader.flush()
    assert not reader.may_flush
    return reader.take()


def check(batches: list[CommandBatch], data: bytes, *, inside_units: bool = False) -> None:
    """The batches hold exactly what the reference reads, with the right state at each edge."""
    stream = reference.read(data, 1000)
    edges = stream.boundaries
    at = 1000
    for batch in batches:
        assert batch.start_offset == at
        at = batch.end_offset
        assert (batch.db_before, batch.in_multi_before) == edges[batch.start_offset]
        assert (batch.db_after, batch.in_multi_after) == edges[at]
        if not inside_units:
            assert not batch.in_multi_after
        assert batch.databases == {batch.db(i) for i in range(len(batch))}
    ends = stream.unit_ends
    last = max(ends, default=1000)
    if not inside_units:
        assert at == last
    assert contents(batches) == [
        (step.end_offset, step.db, step.args) for step in stream.commands if step.end_offset <= at
    ]


MIXED = b"".join(
    [
        command(b"SELECT", b"0"),
        command(b"SET", b"a", b"1"),
        command(b"ping"),
        b"\n",
        command(b"MULTI"),
        command(b"INCR", b"a"),
        command(b"select", b"11"),
        command(b"sAdd", b"s", b"", b"\r\n", b"*1\r\n"),
        command(b"EXEC"),
        b"\r\n",
        command(b"REPLCONF", b"GetAck", b"*"),
        command(b"FLUSHDB"),
        command(b"SWAPDB", b"0", b"11"),
        command(b"Select", b"2147483647"),
        command(b"RENAME", b"a", b"b"),
        command(b"MULTI"),
        command(b"EXEC"),
        command(b"SELECT", b"0"),
        # What a replica refuses, and passes over.
        command(b"EXEC"),
        command(b"INCR", b"a"),
        command(b"MULTI"),
        command(b"INCR", b"a"),
        command(b"MULTI"),
        command(b"INCR", b"a"),
        command(b"EXEC"),
        command(b"EXEC"),
        command(b"DEL", b"x" * 300),
        command(b"PING"),
        command(b"PUBLISH", b"news", b"m"),
        command(b"Publish", b"__sentinel__:hello", b"127.0.0.1,26379,id,0,one,127.0.0.1,6379,0"),
        command(b"MULTI"),
        command(b"PUBLISH", b"__sentinel__:hello", b"m"),
        command(b"PUBLISH", b"__sentinel__:hellO", b"__sentinel__:hello"),
        command(b"EXEC"),
        command(b"PUBLISH"),
    ]
)


def test_every_cut_gives_the_same():
    whole = contents(batches_of(MIXED))
    for cut in range(1, len(MIXED)):
        batches = batches_of(MIXED, [cut, len(MIXED)])
        check(batches, MIXED)
        assert contents(batches) == whole
    for size in range(1, 40):
        check(batches_of(MIXED, [size]), MIXED)
        check(batches_of(MIXED, [size], batch_bytes=1), MIXED)
        check(batches_of(MIXED, batch_commands=1 + size % 3), MIXED)


def test_every_prefix_leaves_its_rest():
    for end in range(len(MIXED) + 1):
        reader = StreamReader(1000)
        push(reader, MIXED[:end])
        stream = reference.read(MIXED[:end], 1000)
        assert reader.received_offset == 1000 + end
        assert reader.parsed_offset == 1000 + end - len(stream.rest)
        assert reader.commands == len(stream.commands)
        assert (reader.db, reader.in_multi) == stream.boundaries[reader.parsed_offset]
        assert reader.may_flush == bool(stream.unit_ends)
        reader.flush()
        check(reader.take(), MIXED[:end])
        # What follows goes on as if nothing had been flushed.
        before = reader.batched_offset
        reader.feed(MIXED[end:])
        reader.flush()
        assert reader.batched_offset == 1000 + len(MIXED)
        rest = [entry for entry in contents(batches_of(MIXED)) if entry[0] > before]
        assert contents(reader.take()) == rest


def test_what_is_counted():
    reader = StreamReader(7)
    reader.feed(MIXED)
    assert reader.acks_wanted == 1
    reader.feed(command(b"REPLCONF", b"ACK", b"1") + command(b"REPLCONF"))
    assert reader.acks_wanted == 1
    reader.flush()
    (batch,) = reader.take()
    assert batch.flushes
    assert batch.swaps == [(0, 11)]
    assert batch.indices(CMD_MOVES) == [5]
    assert batch.command(5)[0] == b"RENAME"
    assert batch.databases == {0, 11, 2147483647}
    assert batch.nbytes >= len(MIXED)
    assert reader.batched_offset == batch.end_offset == reader.received_offset


def test_arguments_that_are_too_long_are_found() -> None:
    """Above the limit, and not at it; whichever argument it is, and however long all together."""
    commands = [
        command(b"SET", b"k", b"x" * 100),
        command(b"SET", b"k", b"x" * 101),
        command(b"MSET", b"a", b"x" * 60, b"b", b"x" * 60),
        command(b"MSET", b"a", b"y", b"k" * 500, b"z"),
    ]
    (batch,) = batches_of(b"".join(commands))
    assert batch.longer(100) == [1, 3]
    assert batch.longer(500) == batch.longer(2**63) == []
    assert batch.longer(0) == [0, 1, 2, 3]
    assert CommandBatch.empty(0).longer(0) == []


def test_one_argument_is_read_without_the_others() -> None:
    (batch,) = batches_of(command(b"PING") + command(b"SET", b"key", b"0123456789", b"KEEPTTL"))
    words = batch.command(0)
    assert [batch.argument(0, place) for place in range(4)] == words
    assert [batch.argument(0, place, 2) for place in range(4)] == [word[:2] for word in words]
    assert batch.argument(0, 2, 0) == b""
    for index, place in ((0, 4), (0, 2**40), (1, 0), (-1, 0)):
        with pytest.raises(IndexError):
            batch.argument(index, place)


def test_messages_can_be_left_out():
    head = data = command(b"SET", b"a", b"1") + command(b"PUBLISH", b"news", b"m")
    data += command(b"MULTI") + command(b"spublish", b"news", b"m") + command(b"INCR", b"a")
    data += command(b"EXEC") + command(b"PUBLISH", b"news", b"m")
    (batch,) = batches_of(data, publish=False)
    assert [batch.command(i)[0] for i in range(len(batch))] == [b"SET", b"INCR"]
    assert batch.end_offset == 1000 + len(data)
    # Offsets behind what was left out are boundaries as well.
    first, rest = batch.split(1000 + len(head))
    assert (len(first), len(rest)) == (1, 1)
    (batch,) = batches_of(data)
    assert len(batch) == 5


def test_passing_nothing_but_keepalives_moves_the_offset():
    reader = StreamReader(50, 3)
    reader.feed(command(b"PING") * 3 + b"\n" + command(b"SELECT", b"4"))
    assert reader.may_flush
    reader.flush()
    (batch,) = reader.take()
    assert len(batch) == 0
    assert batch.end_offset == 50 + 3 * 14 + 1 + 23
    assert (batch.db_before, batch.db_after) == (3, 4)
    assert batch.databases == frozenset()
    assert not batch.flushes
    assert batch.mentioning({b"PING"}) == []
    reader.flush()
    assert reader.take() == []


def test_it_may_begin_between_multi_and_exec():
    reader = StreamReader(10, 5, True)
    reader.feed(command(b"INCR", b"a"))
    assert reader.in_multi
    assert not reader.may_flush
    reader.feed(command(b"EXEC"))
    reader.flush()
    (batch,) = reader.take()
    assert (batch.in_multi_before, batch.in_multi_after) == (True, False)
    assert batch.db(0) == 5


def test_a_unit_stays_whole_until_it_is_too_large():
    unit = command(b"MULTI") + command(b"SET", b"k", b"v" * 50) * 40 + command(b"EXEC")
    data = command(b"SET", b"before", b"1") + unit + command(b"SET", b"after", b"1")
    batches = batches_of(data, [64], batch_bytes=100)
    check(batches, data)
    assert max(len(batch) for batch in batches) >= 40
    batches = batches_of(data, [64], batch_bytes=100, unit_bytes=500)
    check(batches, data, inside_units=True)
    assert [batch.in_multi_after for batch in batches].count(True) > 2
    assert batches[-1].end_offset == 1000 + len(data)
    # The bound holds for what the index needs as well, where commands are tiny.
    tiny = command(b"MULTI") + command(b"x") * 1000 + command(b"EXEC")
    batches = batches_of(tiny, unit_bytes=1000)
    check(batches, tiny, inside_units=True)
    assert all(batch.nbytes < 1100 for batch in batches)


def test_a_flush_inside_a_unit_closes_before_it():
    before = command(b"SET", b"a", b"1") + command(b"PING")
    unit = command(b"MULTI") + command(b"INCR", b"a") * 3
    reader = StreamReader(0)
    reader.feed(before + unit)
    reader.flush()
    (batch,) = reader.take()
    assert batch.end_offset == len(before)
    assert not reader.may_flush
    reader.flush()
    assert reader.take() == []
    reader.feed(command(b"EXEC"))
    reader.flush()
    (batch,) = reader.take()
    assert [batch.command(i) for i in range(len(batch))] == [[b"INCR", b"a"]] * 3
    assert batch.offset(2) == len(before + unit)


@pytest.mark.parametrize("sizes", [[1 << 18], [1000], [7]])
def test_a_long_command_does_not_keep_those_before_it(sizes):
    small = command(b"SET", b"a", b"1") * 3
    long = command(b"SET", b"b", b"x" * 400_000)
    reader = StreamReader(0, batch_bytes=10_000)
    push(reader, small + long[:30_000], sizes)
    (batch,) = reader.take()
    assert len(batch) == 3
    assert batch.end_offset == len(small)
    push(reader, long[30_000:], sizes)
    (batch,) = reader.take()
    assert batch.command(0) == [b"SET", b"b", b"x" * 400_000]
    assert batch.nbytes < 410_000


def test_an_idle_stream_takes_no_memory():
    reader = StreamReader(0)
    # Cut so that a command is always unfinished.
    data = command(b"PING") * 9001
    tracemalloc.start()
    try:
        reader.feed(data[:5])
        for _ in range(20):
            reader.feed(data[5:])
            reader.feed(data[:5])
            reader.flush()
            assert all(len(batch) == 0 for batch in reader.take())
        # Raw memory is traced too: the arena, and not 2.5 MB of pings.
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_200_000
    assert reader.parsed_offset == 20 * len(data)


def test_feed_takes_any_length():
    data = command(b"SET", b"k", b"v" * 1000) * 2000
    reader = StreamReader(1000)
    assert reader.feed(data) == len(reader.take())
    reader.flush()
    reader = StreamReader(1000)
    reader.feed(data)
    reader.flush()
    check(reader.take(), data)
    assert reader.feed(b"") == 0


def words() -> st.SearchStrategy[bytes]:
    return st.sampled_from([b"a", b"b", b"key", b"", b"\r\n", b"$1\r\n", b"*", b"0", b"\x00\xff"])


def plain() -> st.SearchStrategy[bytes]:
    names = [b"SET", b"set", b"DEL", b"FLUSHALL", b"Rename", b"COPY", b"PINGS", b"MULT", b"x" * 90]
    return st.builds(
        lambda name, args: command(name, *(args or [b"a"] * (name.upper() in HAVE_KEYS))),
        st.sampled_from(names),
        st.lists(words(), max_size=4),
    )


def passing() -> st.SearchStrategy[bytes]:
    fixed = [command(b"PING"), command(b"REPLCONF", b"GETACK", b"*"), b"\n", b"\r\n"]
    selects = st.integers(0, 20).map(lambda n: command(b"SELECT", b"%d" % n))
    return st.one_of(st.sampled_from(fixed), selects)


def unit() -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(plain(), passing()), max_size=6).map(
        lambda items: command(b"MULTI") + b"".join(items) + command(b"exec")
    )


streams = st.lists(st.one_of(plain(), passing(), unit()), max_size=20).map(b"".join)


@settings(max_examples=300)
@given(
    data=streams,
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    batch_bytes=st.sampled_from([1, 60, 1 << 20]),
    batch_commands=st.sampled_from([1, 3, 8192]),
    unit_bytes=st.sampled_from([1, 200, 1 << 20]),
    flush_every=st.sampled_from([0, 0, 1, 17]),
)
def test_streams_agree_with_the_reference(
    data, sizes, batch_bytes, batch_commands, unit_bytes, flush_every
):
    batches = batches_of(
        data,
        sizes,
        flush_every,
        batch_bytes=batch_bytes,
        batch_commands=batch_commands,
        unit_bytes=unit_bytes,
    )
    check(batches, data, inside_units=unit_bytes < 1 << 20)
    assert not data or batches[-1].end_offset == 1000 + len(data)
    for batch in batches:
        args = [batch.command(i) for i in range(len(batch))]
        for wanted in ({b"a"}, {b"", b"key", b"nowhere"}, {b"\r\n"}, set()):
            assert batch.mentioning(wanted) == [
                i for i, arg in enumerate(args) if wanted & set(arg[1:])
            ]
        for prefix in (b"k", b"", b"\r"):
            assert batch.naming(prefix) == [
                i for i, arg in enumerate(args) if any(each.startswith(prefix) for each in arg[1:])
            ]
        assert batch.indices(CMD_MOVES) == [
            i for i, arg in enumerate(args) if arg[0].upper() in (b"RENAME", b"COPY")
        ]
        assert batch.flushes == any(arg[0] == b"FLUSHALL" for arg in args)


@settings(max_examples=100)
@given(data=streams)
def test_a_batch_is_cut_at_any_boundary_and_nowhere_else(data):
    edges = reference.read(data, 1000).boundaries
    for batch in batches_of(data):
        whole = contents([batch])
        for offset in range(batch.start_offset - 2, batch.end_offset + 3):
            if not batch.start_offset <= offset <= batch.end_offset or offset not in edges:
                with pytest.raises(ValueError, match="boundary"):
                    batch.split(max(offset, 0))
                continue
            left, right = batch.split(offset)
            assert contents([left, right]) == whole
            assert all(end <= offset for end, _, _ in contents([left]))
            assert all(end > offset for end, _, _ in contents([right]))
            assert left.start_offset == batch.start_offset
            assert left.end_offset == right.start_offset == offset
            assert right.end_offset == batch.end_offset
            assert (left.db_after, left.in_multi_after) == edges[offset]
            assert (right.db_before, right.in_multi_before) == edges[offset]
            # A part is a batch like any other.
            again, _ = right.split(right.end_offset)
            assert contents([again]) == contents([right])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, gone, doubled or put in."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(broken) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(broken):
            broken[at] = rng.choice([0, 10, 13, 36, 42, 45, 48, 49, 57, 255, rng.randrange(256)])
        elif kind == 1:
            del broken[at : at + rng.randint(1, 5)]
        elif kind == 2:
            broken[at:at] = broken[at : at + rng.randint(1, 9)]
        else:
            broken[at:at] = rng.choice([b"\r\n", b"*1\r\n", b"$-1\r\n", b"$9999999999\r\n", b"-"])
    return bytes(broken)


@settings(max_examples=400)
@given(data=streams, seed=st.integers(0, 2**32))
def test_damage_is_a_protocol_error_or_read_as_the_reference_does(data, seed):
    rng = random.Random(seed)
    broken = damaged(data, rng)
    reader = StreamReader(1000)
    failure = None
    try:
        push(reader, broken, [rng.randint(1, 50)])
    except ProtocolError as exc:
        failure = exc
    if failure is not None:
        assert 1000 <= failure.offset <= 1000 + len(broken)
        with pytest.raises(ProtocolError) as again:
            reader.feed(b"x")
        assert again.value is failure
    try:
        stream = reference.read(broken, 1000)
    except reference.Broken:
        assert failure is not None
        return
    assert failure is None
    assert reader.parsed_offset == 1000 + len(broken) - len(stream.rest)
    reader.flush()
    check(reader.take(), broken)


@pytest.mark.parametrize(
    ("data", "at", "expected"),
    [
        (b"SET a 1\r\n", 0, "a command"),
        (b"+OK\r\n", 0, "a command"),
        (b"\rx", 0, "a command"),
        (b"*0\r\n", 4, "array's length"),
        (b"*-1\r\n", 0, "array's length"),
        (b"*01\r\n", 0, "array's length"),
        (b"*99999999999\r\n", 0, "array's length"),
        (b"*x", 0, "array's length"),
        (b"*1\r\n+OK\r\n", 4, "bulk's length"),
        (b"*1\r\n$-1\r\n", 4, "bulk's length"),
        (b"*1\r\n$ 1\r\nx\r\n", 4, "bulk's length"),
        (b"*1\r\n$1\rx", 4, "bulk's length"),
        (b"*2\r\n$3\r\nSET\r\n$9223372036854775807\r\n", 13, "bulk's length"),
        (b"*1\r\n$9999999999\r\n", 4, "a shorter command"),
        (b"*1\r\n$3\r\nSETxx", 11, "CRLF behind a bulk"),
        (command(b"SELECT"), 0, "in SELECT"),
        (command(b"SELECT", b"1", b"2"), 0, "in SELECT"),
        (command(b"SELECT", b"-1"), 0, "in SELECT"),
        (command(b"SELECT", b"2147483648"), 0, "in SELECT"),
        (command(b"SELECT", b""), 0, "in SELECT"),
        (command(b"SWAPDB", b"1"), 0, "in SWAPDB"),
        (command(b"SWAPDB", b"1", b"x"), 0, "in SWAPDB"),
    ],
)
def test_what_is_no_stream(data, at, expected):
    good = command(b"SET", b"a", b"1")
    for sizes in (None, [1]):
        reader = StreamReader(500)
        with pytest.raises(ProtocolError, match=expected) as caught:
            push(reader, good + data, sizes)
        assert caught.value.offset == 500 + len(good) + at
        # What came before it can still be had.
        reader.flush()
        (batch,) = reader.take()
        assert contents([batch])[0] == (500 + len(good), 0, [b"SET", b"a", b"1"])


def test_the_limit_of_a_command():
    reader = StreamReader(0, command_limit=100)
    reader.feed(command(b"SET", b"a", b"x" * 60))
    with pytest.raises(ProtocolError, match="a shorter command"):
        reader.feed(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$90\r\n")
    reader = StreamReader(0, command_limit=100)
    with pytest.raises(ProtocolError, match="a shorter command"):
        reader.feed(b"*50\r\n" + b"$1\r\na\r\n" * 20)
    with pytest.raises(ProtocolError, match="array's length"):
        StreamReader(0, command_limit=100).feed(b"*101\r\n")


def test_what_python_may_not_ask():
    batch = batches_of(command(b"SET", b"a", b"1"))[0]
    for index in (-1, 1, 2**40):
        for ask in (batch.command, batch.offset, batch.db):
            with pytest.raises(IndexError):
                ask(index)
    with pytest.raises(TypeError):
        batch.mentioning({"a"})
    with pytest.raises(ValueError, match="not negative"):
        StreamReader(0, -1)
    with pytest.raises(OverflowError):
        StreamReader(-1)
    with pytest.raises(ValueError, match="at least one"):
        StreamReader(0, batch_commands=0)
    with pytest.raises(TypeError):
        StreamReader(0).feed(None)
    reader = StreamReader(0)
    with memoryview(reader.input) as view:
        room = len(view)
    with pytest.raises(ValueError, match="more bytes received"):
        reader.received(room + 1)


def test_many_keys_to_look_for():
    rng = random.Random(5)
    keys = [b"key:%d" % rng.randrange(10**9) for _ in range(5000)]
    data = b"".join(command(b"SET", key, b"v" * 20) for key in keys)
    batches = batches_of(data)
    wanted = set(rng.sample(keys, 700)) | {b"v" * 19, b"", b"SET"}
    for batch in batches:
        assert batch.mentioning(wanted) == [
            i for i in range(len(batch)) if batch.command(i)[1] in wanted
        ]
        assert batch.mentioning({b"v" * 20}) == list(range(len(batch)))


# --- Relative TTLs ---


def pexpireat(key: bytes, at: int, *options: bytes) -> list[bytes]:
    return [b"PEXPIREAT", key, b"%d" % at, *options]


SET = [b"SET", b"k", b"v"]
ANCHORED = [
    ([b"EXPIRE", b"k", b"100"], [pexpireat(b"k", NOW + 100_000)]),
    ([b"expire", b"k", b"1", b"NX"], [pexpireat(b"k", NOW + 1000)]),
    ([b"PEXPIRE", b"k", b"100"], [pexpireat(b"k", NOW + 100)]),
    ([b"SETEX", b"k", b"100", b"v"], [SET, pexpireat(b"k", NOW + 100_000)]),
    ([b"setex", b"k", b"1", b""], [[b"SET", b"k", b""], pexpireat(b"k", NOW + 1000)]),
    ([b"PSETEX", b"k", b"5", b"v"], [SET, pexpireat(b"k", NOW + 5)]),
    ([b"SET", b"k", b"v", b"EX", b"100"], [SET, pexpireat(b"k", NOW + 100_000)]),
    ([b"SET", b"k", b"v", b"px", b"7"], [SET, pexpireat(b"k", NOW + 7)]),
    ([b"SET", b"k", b"v", b"NX", b"EX", b"1"], [SET, pexpireat(b"k", NOW + 1000)]),
    ([b"SET", b"k", b"v", b"PX", b"1", b"XX", b"GET"], [SET, pexpireat(b"k", NOW + 1)]),
    ([b"GETEX", b"k", b"EX", b"3"], [pexpireat(b"k", NOW + 3000)]),
    ([b"GETEX", b"k", b"px", b"3"], [pexpireat(b"k", NOW + 3)]),
    (
        [b"RESTORE", b"k", b"9", b"payload"],
        [[b"RESTORE", b"k", b"%d" % (NOW + 9), b"payload", b"ABSTTL"]],
    ),
    (
        [b"restore-asking", b"k", b"9", b"p", b"replace", b"IDLETIME", b"5"],
        [(b"restore-asking k %d p replace IDLETIME 5 ABSTTL" % (NOW + 9)).split()],
    ),
    (
        [b"RESTORE", b"k", b"9", b"p", b"FREQ", b"ABSTTL"],  # the counter's value, not the word
        [[b"RESTORE", b"k", b"%d" % (NOW + 9), b"p", b"FREQ", b"ABSTTL", b"ABSTTL"]],
    ),
    # Arithmetic saturates.
    ([b"EXPIRE", b"k", b"9223372036854775807"], [pexpireat(b"k", FAR)]),
    ([b"PEXPIRE", b"k", b"9223372036854775807"], [pexpireat(b"k", FAR)]),
    ([b"EXPIRE", b"k", b"9223372036854775"], [pexpireat(b"k", FAR)]),
]
UNTOUCHED = [
    [b"EXPIRE", b"k", b"-1"],
    [b"EXPIRE", b"k", b"0"],
    [b"EXPIRE", b"k", b"ten"],
    [b"EXPIRE", b"k", b""],
    [b"EXPIRE", b"k", b"9223372036854775808"],
    [b"EXPIRE", b"k"],
    [b"PEXPIRE", b"k", b"1.5"],
    [b"SETEX", b"k", b"0", b"v"],
    [b"SETEX", b"k", b"1"],
    [b"SETEX", b"k", b"1", b"v", b"more"],
    [b"SET", b"k", b"v"],
    [b"SET", b"k", b"v", b"KEEPTTL"],
    [b"SET", b"k", b"v", b"NX"],
    [b"SET", b"k", b"v", b"EX"],
    [b"SET", b"k", b"v", b"EX", b"x"],
    [b"SET", b"k", b"v", b"EX", b"1", b"PX", b"1"],
    [b"SET", b"k", b"v", b"EX", b"1", b"NEWER"],
    [b"SET", b"k", b"v", b"PXAT", b"1999999999999"],
    [b"SET", b"k", b"v", b"EXAT", b"1999999999"],
    [b"SET", b"k", b"v"] + [b"NX"] * 20 + [b"EX", b"1"],
    [b"GETEX", b"k"],
    [b"GETEX", b"k", b"PERSIST"],
    [b"GETEX", b"k", b"EXAT", b"1999999999"],
    [b"GETEX", b"k", b"EX", b"-5"],
    [b"RESTORE", b"k", b"0", b"p"],
    [b"RESTORE", b"k", b"1999999999999", b"p", b"absttl"],
    [b"RESTORE", b"k", b"1999999999999", b"p", b"REPLACE", b"ABSTTL"],
    [b"RESTORE", b"k", b"5", b"p", b"IDLETIME"],
    [b"RESTORE", b"k", b"5"],
    [b"EXPIREAT", b"k", b"1999999999"],
    [b"PEXPIREAT", b"k", b"1999999999999"],
    [b"PERSIST", b"k"],
    [b"SETNX", b"k", b"v"],
]


def anchored(data: bytes, sizes: list[int] | None = None, **options: int) -> list[CommandBatch]:
    reader = StreamReader(0, anchor=True, **options)
    reader.now_ms = NOW
    push(reader, data, sizes)
    reader.flush()
    return reader.take()


@pytest.mark.parametrize(("args", "expected"), ANCHORED, ids=lambda row: repr(row)[:60])
def test_relative_ttls_are_anchored(args, expected):
    data = command(*args)
    for sizes in (None, [1]):
        (batch,) = anchored(data, sizes)
        assert [batch.command(i) for i in range(len(batch))] == expected
        assert {batch.offset(i) for i in range(len(batch))} == {len(data)}
    # Only where the source needs it.
    assert contents(batches_of(data)) == [(1000 + len(data), 0, args)]


@pytest.mark.parametrize("args", UNTOUCHED, ids=lambda row: repr(row)[:60])
def test_other_commands_are_not_touched(args):
    (batch,) = anchored(command(*args))
    assert [batch.command(i) for i in range(len(batch))] == [args]


def test_rewritten_commands_keep_their_place():
    rows = [(args, expected) for args, expected in ANCHORED]
    rows += [(args, [args]) for args in UNTOUCHED]
    random.Random(3).shuffle(rows)
    data = b""
    expected = []
    for args, wanted in rows:
        data += command(b"MULTI") + command(*args) + command(b"INCR", b"n") + command(b"EXEC")
        expected += [*wanted, [b"INCR", b"n"]]
    for options in (
        {},
        {"batch_bytes": 50},
        {"batch_commands": 1},
        {"batch_bytes": 50, "unit_bytes": 60},
    ):
        batches = anchored(data, [11], **options)
        assert [args for _, _, args in contents(batches)] == expected
        for batch in batches:
            for at in sorted({batch.offset(i) for i in range(len(batch))}):
                left, right = batch.split(at)
                assert contents([left, right]) == contents([batch])
        assert sum(map(len, batches)) == len(expected)
    # Flushed while a unit is open, what is rewritten inside it moves on.
    reader = StreamReader(0, anchor=True)
    reader.now_ms = NOW
    for at in range(0, len(data), 13):
        reader.feed(data[at : at + 13])
        reader.flush()
    assert reader.commands == len(expected)
    assert [args for _, _, args in contents(reader.take())] == expected


def test_the_time_of_receipt_is_that_of_the_last_bytes():
    reader = StreamReader(0, anchor=True)
    with pytest.raises(ValueError, match="now_ms"):
        reader.feed(b"\n")
    reader.now_ms = 1000
    reader.feed(command(b"EXPIRE", b"a", b"1"))
    reader.now_ms = 5000
    reader.feed(command(b"EXPIRE", b"b", b"1"))
    reader.flush()
    (batch,) = reader.take()
    assert [batch.command(i)[2] for i in range(2)] == [b"2000", b"6000"]


EXTEND = 10**12


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([b"PEXPIREAT", b"k", b"%d" % (NOW + 5)], [pexpireat(b"k", NOW + 5 + EXTEND)]),
        (
            [b"EXPIREAT", b"k", b"%d" % (NOW // 1000)],
            [pexpireat(b"k", NOW // 1000 * 1000 + EXTEND)],
        ),
        ([b"SET", b"k", b"v", b"PXAT", b"%d" % NOW], [SET, pexpireat(b"k", NOW + EXTEND)]),
        # Far enough; but what it was weighed against on the source may be lifted here.
        ([b"PEXPIREAT", b"k", b"%d" % (NOW + 1000), b"GT"], [pexpireat(b"k", NOW + 1000)]),
        ([b"PEXPIREAT", b"k", b"%d" % (NOW + 1000)], [pexpireat(b"k", NOW + 1000)]),
        ([b"HPEXPIREAT", b"k", b"1", b"FIELDS", b"1", b"f"], None),
        ([b"PERSIST", b"k"], None),
    ],
)
def test_near_deadlines_are_lifted(args: list[bytes], expected: list[list[bytes]] | None) -> None:
    reader = StreamReader(0)
    reader.extend_before, reader.extend_by = NOW + 1000, EXTEND
    reader.feed(command(*args))
    reader.flush()
    (batch,) = reader.take()
    found = [batch.command(i) for i in range(len(batch))]
    assert found == ([args] if expected is None else expected)
    lifted = [
        each for each in found if each[0] == b"PEXPIREAT" and int(each[2]) >= EXTEND + NOW // 2
    ]
    assert reader.extended_count == len(lifted)


def test_who_sets_a_deadline_is_known() -> None:
    reader = StreamReader(0)
    names = [b"HSETEX", b"hincrby", b"HPEXPIREAT", b"HINCRBYFLOAT", b"hpersist", b"PEXPIREAT", b"X"]
    for name in names:
        reader.feed(command(name, b"k", b"1"))
    reader.flush()
    (batch,) = reader.take()
    assert batch.indices(CMD_MEMBER_TTL) == [0, 2, 4]
    assert batch.indices(CMD_MEMBER_COUNT) == [1, 3]
    assert batch.indices(CMD_TTL) == [5]
    empty = type(batch).empty(7, 3, True)
    assert (len(empty), empty.start_offset, empty.end_offset, empty.db_after) == (0, 7, 7, 3)


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ([b"rename", b"a", b"b"], CMD_MOVES),
        ([b"RENAMENX", b"a", b"b"], CMD_MOVES),
        ([b"COPY", b"a", b"b"], CMD_MOVES),
        ([b"Move", b"a", b"1"], CMD_MOVES),
        ([b"SWAPDB", b"0", b"1"], CMD_SWAPS),
        ([b"HPEXPIREAT", b"h", b"1", b"FIELDS", b"1", b"f"], CMD_MEMBER_TTL),
        ([b"HINCRBYFLOAT", b"h", b"f", b"1"], CMD_MEMBER_COUNT),
        ([b"GeoRadius", b"g", b"1", b"2", b"3", b"km", b"STORE", b"a"], CMD_PLACES),
        ([b"GEORADIUSBYMEMBER", b"g", b"m", b"3", b"km", b"STORE", b"a"], CMD_PLACES),
        ([b"geosearchstore", b"a", b"g", b"FROMMEMBER", b"m"], CMD_PLACES),
        ([b"GEORADIUSBYMEMBEX", b"g"], 0),
        ([b"SET", b"rename", b"swapdb"], 0),
        ([b"FLUSHALL"], 0),
        ([b"PEXPIREAT", b"a", b"1"], 0),
    ],
)
def test_a_batch_says_what_kinds_it_holds(args: list[bytes], kind: int) -> None:
    kinds = [CMD_MOVES, CMD_SWAPS, CMD_MEMBER_TTL, CMD_MEMBER_COUNT, CMD_PLACES]
    reader = StreamReader(0)
    reader.feed(command(b"SET", b"a", b"b") + command(*args) + command(b"INCR", b"n"))
    batch = reader.next(True)
    assert batch is not None
    assert [batch.holds(each) for each in kinds] == [each == kind for each in kinds]
    assert batch.holds(sum(kinds)) == (kind != 0)
    assert not batch.holds(0)
    assert not CommandBatch.empty(0).holds(sum(kinds))


def test_the_next_batch_is_the_oldest_and_a_flush_comes_last() -> None:
    reader = StreamReader(0, batch_commands=2)
    assert reader.next(True) is None
    one = command(b"INCR", b"n")
    reader.feed(one * 5 + one[:7])
    assert reader.closed == 2
    taken = []
    for flush, left in ((True, 1), (False, 0)):
        taken.append(reader.next(flush))
        assert reader.closed == left
    assert reader.next(False) is None
    taken.append(reader.next(True))
    assert reader.next(True) is None
    edges = [(batch.start_offset, batch.end_offset) for batch in taken if batch is not None]
    size = len(one)
    assert edges == [(0, 2 * size), (2 * size, 4 * size), (4 * size, 5 * size)]
    # What was cut goes on.
    reader.feed(one[7:])
    last = reader.next(True)
    assert last is not None
    assert (last.start_offset, last.end_offset, len(last)) == (5 * size, 6 * size, 1)


def test_commands_that_have_other_names():
    """They are understood as what they are, and go on under the target's name, at every cut."""
    names = [
        (b"wipe", b"FLUSHALL", b"boom"),
        (b"Ren", b"RENAME", b"RENAME"),
        (b"LPUSH", b"LPUSH", b"a-name-of-the-target"),
        (b"say", b"PUBLISH", b"shout"),
        (b"SADD", b"SADD", b"sadd"),
    ]
    other = {
        b"WIPE": b"boom",
        b"REN": b"RENAME",
        b"LPUSH": b"a-name-of-the-target",
        b"SAY": b"shout",
    }
    data = b"".join(
        [
            command(b"SET", b"a", b"1"),
            command(b"WIPE"),
            command(b"lpush", b"l", b"x" * 300, b""),
            command(b"MULTI"),
            command(b"REN", b"l", b"m"),
            command(b"wiped", b"a"),
            command(b"say", b"news", b"m"),
            command(b"say", b"__sentinel__:hello", b"m"),
            command(b"SADD", b"s", b"*1\r\n"),
            command(b"EXEC"),
            command(b"wip", b"a"),
            command(b"LPUSH", b"l"),
        ]
    )
    stream = reference.read(data, 1000)
    expected = [
        (step.end_offset, step.db, [other.get(step.args[0].upper(), step.args[0]), *step.args[1:]])
        for step in stream.commands
        if step.args[:2] != [b"say", b"__sentinel__:hello"]
    ]
    for size in range(1, len(data) + 1):
        for options in ({}, {"batch_bytes": 1}, {"batch_commands": 2}):
            reader = StreamReader(1000, names=names, **options)
            push(reader, data, [size])
            reader.flush()
            found = contents(reader.take())
            assert [(end, db, list(args)) for end, db, args in found] == expected
    # By their rows, not by what they are called: one moves a key, the other one all.
    plain = StreamReader(1000)
    push(plain, command(b"RENAME", b"l", b"m") + command(b"FLUSHALL"))
    plain.flush()
    named = StreamReader(1000, names=names)
    push(named, command(b"ren", b"l", b"m") + command(b"wipe"))
    named.flush()
    (one,), (two,) = plain.take(), named.take()
    assert [one.flags(n) for n in range(2)] == [two.flags(n) for n in range(2)]
    assert one.flushes == two.flushes
    assert one.keys(0) == two.keys(0) == [b"l", b"m"]


@pytest.mark.parametrize("name", [b"", b"x" * 65])
def test_names_that_cannot_be(name: bytes):
    with pytest.raises(ValueError, match="1 to 64 bytes"):
        StreamReader(0, names=[(name, b"FLUSHALL", b"FLUSHALL")])
