"""Commands that lie in a file are what they are in memory, on bytes cut anywhere."""

from __future__ import annotations

import errno
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    TransactionEncoder,
)
from engine.sources.spool import nameless_file
from tests.reference.stream import command
from tests.support.feeding import push

NOW = 1_700_000_000_000
KEY = b"startmigration:position"
DOUBTS = (CMD_CLAIMS, CMD_MEMBER_TTL, CMD_PAYLOAD, CMD_SETS_FIELDS, CMD_SETS_STRING, CMD_TTL)
NAMES = [(b"put", b"SET", b"PUT"), (b"SETEX", b"SETEX", b"keep"), (b"RPUSH", b"RPUSH", b"append")]
# What a value is made of: the words of options, and what looks like the protocol.
FILLING = (b"\r\n$3\r\nSET\r\n*1\r\n", b"\x00", b"EX ", bytes(range(256)))


def a_file() -> int:
    return nameless_file(tempfile.gettempdir())


def text(size: int, kind: int) -> bytes:
    filling = FILLING[kind % len(FILLING)]
    return (filling * (size // len(filling) + 1))[:size]


values = st.builds(
    text, st.sampled_from([0, 1, 256, 257, 258, 300, 4096, 9000, 70_000]), st.integers(0, 3)
)
keys = st.one_of(st.sampled_from([b"k", b"l", b"EX"]), st.builds(text, st.just(700), st.just(1)))
numbers = st.sampled_from([b"1", b"100", b"0", b"ten", b"1700000000500", b"1999999999999"])
options = st.sampled_from([b"EX", b"px", b"EXAT", b"PXAT", b"NX", b"GET", b"KEEPTTL"])
commands = st.one_of(
    st.builds(lambda k, v: command(b"SET", k, v), keys, values),
    st.builds(lambda k, v, o, n: command(b"SET", k, v, o, n), keys, values, options, numbers),
    st.builds(lambda k, v, o: command(b"put", k, v, o), keys, values, options),
    st.builds(lambda k, v, n: command(b"SETEX", k, n, v), keys, values, numbers),
    st.builds(lambda k, v, n: command(b"PSETEX", k, n, v), keys, values, numbers),
    st.builds(lambda k, v, n: command(b"RESTORE", k, n, v), keys, values, numbers),
    st.builds(lambda k, v, n: command(b"RESTORE", k, n, v, b"ABSTTL"), keys, values, numbers),
    st.builds(lambda k, n: command(b"EXPIRE", k, n), keys, numbers),
    st.builds(lambda k, n: command(b"GETEX", k, b"PX", n), keys, numbers),
    st.builds(lambda k, v: command(b"MSET", k, v, b"m", v, v, b""), keys, values),
    st.builds(
        lambda k, v, o, n: command(b"MSETEX", b"2", k, v, b"m", v, o, n),
        *(keys, values, options, numbers),
    ),
    st.builds(
        lambda k, v, o, n: command(b"HSETEX", k, o, n, b"FIELDS", b"1", b"f", v),
        *(keys, values, options, numbers),
    ),
    st.builds(lambda k, v: command(b"rpush", k, b"a", v, b"b", v), keys, values),
    st.builds(lambda k, v: command(b"HSET", k, b"f", v), keys, values),
    st.builds(lambda v, k: command(b"EVAL", v, b"1", k, v), values, keys),
    st.builds(lambda k, v: command(b"NEW.COMMAND", k, v), keys, values),
    st.builds(lambda v: command(b"PUBLISH", b"news", v), values),
    st.sampled_from(
        [command(b"PING"), command(b"SELECT", b"3"), b"\n", command(b"SWAPDB", b"0", b"3")]
    ),
)
units = st.lists(commands, max_size=4).map(
    lambda inside: command(b"MULTI") + b"".join(inside) + command(b"EXEC")
)
streams = st.lists(st.one_of(commands, commands, units), max_size=8).map(b"".join)


def read(data: bytes, sizes: list[int], flush: bool, **how: object) -> list[CommandBatch]:
    extend = bool(how.pop("extend", False))
    reader = StreamReader(1000, **how)  # type: ignore[arg-type]
    reader.now_ms = NOW
    if extend:
        reader.extend_before, reader.extend_by = NOW + 1000, 10**12
    if flush:
        for at in range(0, len(data), max(sizes)):
            push(reader, data[at : at + max(sizes)])
            reader.flush()
    else:
        push(reader, data, sizes)
        reader.flush()
    return reader.take()


def said(batch: CommandBatch) -> dict[str, object]:
    """All that a batch says of itself."""
    places = range(len(batch))
    return {
        "from": (batch.start_offset, batch.db_before, batch.in_multi_before),
        "to": (batch.end_offset, batch.db_after, batch.in_multi_after),
        "commands": [(batch.offset(i), batch.db(i), batch.command(i)) for i in places],
        "first bytes": [batch.argument(i, 0, 2) for i in places],
        "flags": [batch.flags(i) for i in places],
        "keys": [(batch.keys(i), batch.key_positions(i), batch.changes(i)) for i in places],
        "changed": batch.changed(),
        "derived": batch.derived([(0, b"k")]),
        "mentioning": batch.mentioning({b"k", text(700, 1), text(9000, 2)}),
        "naming": batch.naming(b"EX"),
        "doubtful": [batch.doubtful(each) for each in DOUBTS],
        "longer": [batch.longer(most) for most in (0, 300, 70_000)],
        "rewritten": batch.rewritten,
        "counted": batch.stream_commands,
    }


@settings(max_examples=120)
@given(
    data=streams,
    sizes=st.lists(st.sampled_from([1, 7, 60, 4000, 1 << 18]), min_size=1, max_size=3),
    flush=st.booleans(),
    memory=st.sampled_from([1, 300, 5000, 100_000]),
    batch_bytes=st.sampled_from([1, 5000, 1 << 20]),
    unit_bytes=st.sampled_from([1, 9000, 1 << 20]),
    how=st.fixed_dictionaries(
        {
            "anchor": st.booleans(),
            "extend": st.booleans(),
            "extend_fields": st.booleans(),
            "names": st.sampled_from([[], NAMES]),
            "publish": st.booleans(),
            "lacks": st.sampled_from([0, (1 << 9) - 1]),
        }
    ),
)
def test_they_are_what_they_are_in_memory(
    data: bytes,
    sizes: list[int],
    flush: bool,
    memory: int,
    batch_bytes: int,
    unit_bytes: int,
    how: dict[str, object],
) -> None:
    if max(sizes) < 60:
        sizes = [*sizes, 5000]
    how |= {"batch_bytes": batch_bytes, "unit_bytes": unit_bytes}
    expected = read(data, sizes, flush, **how)
    found = read(data, sizes, flush, file=a_file, memory_bytes=memory, **how)
    assert [said(batch) for batch in found] == [said(batch) for batch in expected]
    assert not any(batch.in_file for batch in expected)
    encoder = TransactionEncoder(KEY)
    extras = [(2, command(b"DEL", b"x"))]
    for batch, other in zip(found, expected, strict=True):
        skip = frozenset(range(0, len(batch), 3)) if len(batch) % 2 else frozenset()
        for merge in (False, True):
            sent = encoder.encode(batch, b"p", db=0, skip=skip, extras=extras, merge=merge)
            plain = encoder.encode(other, b"p", db=0, skip=skip, extras=extras, merge=merge)
            assert len(sent) == len(plain)
            assert sent.queued == plain.queued
            for most in (1 << 30, 5000):
                assert pieces(sent, most) == bytes(plain)
        # What is cut stays whole, also when the rest is gone.
        for offset in {batch.offset(i) for i in range(len(batch))}:
            parts, others = batch.split(offset), other.split(offset)
            for part, each in zip(parts, others, strict=True):
                assert [part.command(i) for i in range(len(part))] == [
                    each.command(i) for i in range(len(each))
                ]
                sent = encoder.encode(part, b"p", db=0)
                assert pieces(sent, 1 << 16) == bytes(encoder.encode(each, b"p", db=0))


def pieces(sent: object, most: int) -> bytes:
    found = b""
    while piece := sent.piece(len(found), most):  # type: ignore[attr-defined]
        assert len(piece) <= most
        found += piece
    return found


def long_set(size: int, *more: bytes) -> Iterator[bytes]:
    """SET of so many bytes, portion by portion."""
    words = b"*%d\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (3 + len(more), size)
    yield words
    portion = random.Random(size).randbytes(1 << 18)
    for at in range(0, size, len(portion)):
        yield portion[: size - at]
    yield b"\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in more)


def peak() -> int:
    """The most bytes of memory that this process had, since `forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) << 10


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


@pytest.mark.parametrize("more", [(), (b"EX", b"100")], ids=["as it is", "with another TTL"])
def test_a_long_command_takes_no_memory(more: tuple[bytes, ...]) -> None:
    """It passes in pieces, whatever is asked of it; its file goes with the last that has it."""
    files = len(os.listdir("/proc/self/fd"))
    size = 96 << 20
    reader = StreamReader(0, anchor=True, file=a_file)
    reader.now_ms = NOW
    reader.feed(command(b"INCR", b"n"))
    before = forget_peak()
    for portion in long_set(size, *more):
        reader.feed(portion)
    reader.feed(command(b"INCR", b"n"))
    first = reader.next(True)
    assert first is not None
    assert not first.in_file
    batch = reader.next(True)
    assert batch is not None
    assert batch.in_file
    assert len(batch) == (2 if more else 1)
    left, right = batch.split(batch.offset(0))
    del batch
    assert left.keys(0) == [b"k"]
    assert left.longer(size - 1) == [0]
    assert left.mentioning({b"k"})
    assert left.derived([(0, b"k")]) == ([], [])
    sent = TransactionEncoder(KEY).encode(left, b"p", db=0)
    assert sent.in_file
    with pytest.raises(BufferError, match="piece by piece"):
        memoryview(sent)  # type: ignore[arg-type]
    total = 0
    while piece := sent.piece(total, 1 << 20):
        total += len(piece)
    assert total == len(sent) > size
    del piece
    assert peak() - before < 24 << 20
    del first, right, left
    assert len(os.listdir("/proc/self/fd")) > files
    del sent
    last = reader.next(True)
    assert last is not None
    assert not last.in_file
    assert len(os.listdir("/proc/self/fd")) == files


def test_what_is_passed_over_leaves_no_file() -> None:
    files = len(os.listdir("/proc/self/fd"))
    reader = StreamReader(0, publish=False, file=a_file, memory_bytes=5000)
    for _ in range(3):
        reader.feed(command(b"PUBLISH", b"news", b"m" * 20_000))
    assert len(os.listdir("/proc/self/fd")) == files + 1
    reader.feed(command(b"INCR", b"n"))
    assert len(os.listdir("/proc/self/fd")) == files
    batch = reader.next(True)
    assert batch is not None
    assert [batch.command(0)] == [[b"INCR", b"n"]]


def test_a_file_that_cannot_be_had_is_an_error() -> None:
    def none() -> int:
        raise OSError(errno.EACCES, "no")

    def no_file() -> int:
        return os.open("/dev/null", os.O_RDWR)

    for file, error in ((none, errno.EACCES), (no_file, errno.ENODEV)):
        files = len(os.listdir("/proc/self/fd"))
        reader = StreamReader(0, file=file, memory_bytes=5000)
        reader.feed(command(b"SET", b"a", b"v" * 4000))
        words = command(b"SET", b"a", b"v" * 8000)
        with pytest.raises(OSError, match=r"no|device") as caught:
            reader.feed(words)
        assert caught.value.errno == error
        assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("more", [(), (b"EX", b"100")], ids=["read", "rewritten"])
def test_a_disk_that_is_full_is_an_error(more: tuple[bytes, ...]) -> None:
    """A file that may not grow stands for it. The room for what is rewritten is looked for too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 3 << 20
    reader = StreamReader(0, anchor=True, file=a_file, memory_bytes=1 << 20)
    reader.now_ms = NOW
    portions = list(long_set(size, *more))
    try:
        if more:
            for portion in portions[:-1]:
                reader.feed(portion)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, limits[1]))
        rest = b"".join(portions[-1:] if more else portions)
        with pytest.raises(OSError, match="File too large") as caught:
            reader.feed(rest)
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # There is room again, and a hole in what was read: nothing behind it is taken in.
    with pytest.raises(OSError, match="File too large"):
        reader.feed(command(b"SET", b"behind", b"it"))
