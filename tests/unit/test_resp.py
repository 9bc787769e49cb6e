"""The RESP reader: every type, every cut, every bound; hiredis reads the same bytes beside it."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import resource
import socket
import sys
from typing import Any

import hiredis
import pytest

from engine._native import NEED_DATA, NeedData, ProtocolError, ReplyError, RespReader

# ------------------------------------------------------------------ helpers


class RivalError(Exception):
    """What hiredis makes of an error reply."""


def canonical(value: Any) -> Any:
    """A form that compares: types kept apart (1, True, 1.0), nan equal to itself."""
    if isinstance(value, (ReplyError, RivalError)):
        return ("error", value.args[0])
    if isinstance(value, list):
        return ("list", [canonical(item) for item in value])
    return (type(value).__name__, repr(value))


def drain(reader: RespReader) -> list[Any]:
    replies = []
    while (reply := reader.gets()) is not NEED_DATA:
        replies.append(reply)
    return replies


def read_pieces(*pieces: bytes, **limits: Any) -> list[Any]:
    reader = RespReader(**limits)
    replies = []
    for piece in pieces:
        reader.feed(piece)
        replies += drain(reader)
    return replies


def one(data: bytes, **limits: Any) -> Any:
    (reply,) = read_pieces(data, **limits)
    return reply


def broken(data: bytes, **limits: Any) -> ProtocolError:
    reader = RespReader(**limits)
    reader.feed(data)
    with pytest.raises(ProtocolError) as caught:
        drain(reader)
    return caught.value


def hiredis_reads(data: bytes) -> list[Any]:
    reader = hiredis.Reader(
        protocolError=ValueError, replyError=RivalError, notEnoughData=NEED_DATA
    )
    reader.feed(data)
    replies = []
    while (reply := reader.gets()) is not NEED_DATA:
        replies.append(reply)
    return replies


# Replies that hiredis and this reader give as the same Python values.
COMMON: dict[str, bytes] = {
    "simple": b"+OK\r\n",
    "simple-empty": b"+\r\n",
    "simple-binary": b"+\x00\xff -:$\r\n",
    "error": b"-WRONGTYPE Operation against a key\r\n",
    "integer": b":1234567890\r\n",
    "integer-negative": b":-1\r\n",
    "integer-zero": b":0\r\n",
    "integer-largest": b":9223372036854775807\r\n",
    "integer-smallest": b":-9223372036854775808\r\n",
    "bulk": b"$5\r\nhello\r\n",
    "bulk-empty": b"$0\r\n\r\n",
    "bulk-with-crlf": b"$4\r\n\r\n\r\n\r\n",
    "bulk-null": b"$-1\r\n",
    "array": b"*3\r\n$1\r\na\r\n:1\r\n+x\r\n",
    "array-empty": b"*0\r\n",
    "array-null": b"*-1\r\n",
    "array-of-nulls": b"*2\r\n$-1\r\n*-1\r\n",
    "nested": b"*2\r\n*2\r\n:1\r\n*0\r\n*1\r\n*1\r\n$2\r\nok\r\n",
    "error-inside": b"*2\r\n-ERR one\r\n:2\r\n",
    "exec": b"*3\r\n+OK\r\n:7\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
}


# ------------------------------------------------------------------ the same bytes, cut anywhere


@pytest.mark.parametrize("name", COMMON)
def test_as_hiredis_cut_at_every_position(name: str) -> None:
    data = COMMON[name]
    expected = [canonical(reply) for reply in hiredis_reads(data)]
    assert len(expected) == 1
    for cut in range(len(data) + 1):
        replies = read_pieces(data[:cut], data[cut:])
        assert [canonical(reply) for reply in replies] == expected, cut
    assert [canonical(r) for r in read_pieces(*(bytes([b]) for b in data))] == expected


@pytest.mark.parametrize("name", COMMON)
def test_nothing_before_the_last_byte(name: str) -> None:
    data = COMMON[name]
    reader = RespReader()
    for byte in data[:-1]:
        reader.feed(bytes([byte]))
        assert reader.gets() is NEED_DATA
    reader.feed(data[-1:])
    assert reader.gets() is not NEED_DATA
    assert reader.gets() is NEED_DATA
    assert reader.pending == 0


@pytest.mark.parametrize("name", COMMON)
def test_trailing_data_waits_its_turn(name: str) -> None:
    data = COMMON[name]
    reader = RespReader()
    reader.feed(data + b"+next\r\n$3\r\nha")
    assert canonical(reader.gets()) == canonical(hiredis_reads(data)[0])
    assert reader.pending == len(b"+next\r\n$3\r\nha")
    assert reader.gets() == b"next"
    assert reader.gets() is NEED_DATA
    reader.feed(b"y\r\n")
    assert reader.gets() == b"hay"


def test_all_together_as_hiredis_cut_at_every_position() -> None:
    data = b"".join(COMMON.values())
    expected = [canonical(reply) for reply in hiredis_reads(data)]
    assert len(expected) == len(COMMON)
    for cut in range(len(data) + 1):
        assert [canonical(r) for r in read_pieces(data[:cut], data[cut:])] == expected
    for size in (1, 2, 3, 7, 64):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert [canonical(r) for r in read_pieces(*pieces)] == expected


# ------------------------------------------------------------------ what the values are


def test_simple_values() -> None:
    assert one(b"+OK\r\n") == b"OK"
    assert one(b":+5\r\n") == 5
    assert one(b"$-1\r\n") is None
    assert one(b"*-1\r\n") is None


def test_error_replies_are_values() -> None:
    simple = one(b"-MOVED 3999 127.0.0.1:6381\r\n")
    assert isinstance(simple, ReplyError)
    assert (simple.code, simple.message, str(simple)) == (
        "MOVED",
        "MOVED 3999 127.0.0.1:6381",
        "MOVED 3999 127.0.0.1:6381",
    )
    assert one(b"-\r\n").code == ""
    assert one(b"-ERR \xff\r\n").message == "ERR \\xff"
    assert pickle.loads(pickle.dumps(simple)).code == "MOVED"


def test_need_data_is_one_value() -> None:
    assert repr(NEED_DATA) == "NEED_DATA"
    assert not NEED_DATA
    assert isinstance(NEED_DATA, NeedData)
    with pytest.raises(TypeError):
        NeedData()
    assert copy.deepcopy(NEED_DATA) is NEED_DATA
    assert pickle.loads(pickle.dumps(NEED_DATA)) is NEED_DATA


# ------------------------------------------------------------------ bytes that break the protocol

BROKEN: dict[str, tuple[bytes, int, str]] = {
    "no-type": (b"hello\r\n", 0, "type byte.*found b'h'"),
    "second-reply": (b"+OK\r\nx", 5, "found b'x' at byte 5"),
    "inside": (b"*2\r\n:1\r\n?", 8, "type byte"),
    "bare-newline": (b"\r\n", 0, "type byte"),
    "length-letters": (b"$abc\r\n", 1, "a digit, found b'a'"),
    "length-missing": (b"$\r\n", 1, "a digit"),
    "length-minus": (b"$-\r\n", 2, "a digit"),
    "length-plus": (b"$+5\r\n", 1, "a digit"),
    "length-space": (b"$5 \r\nhello\r\n", 2, "a digit or CR"),
    "length-negative": (b"$-2\r\n", 0, "a string of 0 to 536870912 bytes, found b'\\$-2'"),
    "length-over-bound": (b"$536870913\r\n", 0, "found b'\\$536870913'"),
    "length-over-64-bits": (b"$9999999999999999999\r\n", 0, "64-bit"),
    "length-endless": (b"$" + b"1" * 20, 0, "at most 19 digits"),
    "length-wraps": (b"$18446744073709551617\r\n", 0, "at most 19 digits"),
    "length-cr-only": (b"$5\rhello", 3, "LF, found b'h'"),
    "length-lf-only": (b"$5\nhello", 2, "a digit or CR, found b'\\\\n'"),
    "bulk-too-long": (b"$3\r\nhello\r\n", 7, "CR, found b'l'"),
    "bulk-no-lf": (b"$3\r\nhey\rx", 8, "LF, found b'x'"),
    "count-negative": (b"*-2\r\n", 0, "an array of 0 to 16777216 values"),
    "count-over-bound": (b"*1000000000\r\n", 0, "found b'\\*1000000000'"),
    "count-letters": (b"*x\r\n", 1, "a digit"),
    "integer-empty": (b":\r\n", 1, "a digit"),
    "integer-letters": (b":1x\r\n", 2, "a digit or CR"),
    "integer-signs": (b":--1\r\n", 2, "a digit"),
    "integer-over": (b":9223372036854775808\r\n", 0, "64-bit"),
    "integer-under": (b":-9223372036854775809\r\n", 0, "64-bit"),
    "simple-lf-only": (b"+OK\n", 3, "CR, found b'\\\\n'"),
    "simple-cr-inside": (b"+O\rK\r\n", 3, "LF, found b'K'"),
    "error-lf-only": (b"-ERR\n", 4, "CR"),
    "of-resp3": (b"_\r\n", 0, "type byte"),
    "streamed-string": (b"$?\r\n", 1, "a digit"),
    "streamed-array": (b"*?\r\n", 1, "a digit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_bytes_cut_at_every_position(name: str) -> None:
    data, offset, message = BROKEN[name]
    texts = set()
    for cut in range(len(data) + 1):
        with pytest.raises(ProtocolError, match=message) as caught:
            read_pieces(data[:cut], data[cut:] + b"+OK\r\n" * 3)
        assert caught.value.offset == offset
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_a_broken_reader_stays_broken() -> None:
    reader = RespReader()
    reader.feed(b"+OK\r\n*2\r\n:1\r\nWAT")
    assert reader.gets() == b"OK"
    with pytest.raises(ProtocolError) as first:
        reader.gets()
    reader.feed(b"+OK\r\n")
    reader.get_buffer()[:5] = b"+OK\r\n"
    reader.buffer_updated(5)
    assert reader.pending == 0
    for _ in range(2):
        with pytest.raises(ProtocolError) as again:
            reader.gets()
        assert str(again.value) == str(first.value)
        assert again.value.offset == first.value.offset == 13
    assert isinstance(first.value, ValueError)
    assert pickle.loads(pickle.dumps(first.value)).offset == 13


def test_offsets_count_from_the_first_byte_of_the_stream() -> None:
    reader = RespReader()
    chunk = (b"$1000\r\n" + b"x" * 1000 + b"\r\n") * 100
    for _ in range(5):
        for start in range(0, len(chunk), 1500):
            reader.feed(chunk[start : start + 1500])
            drain(reader)
    reader.feed(b"bad")
    with pytest.raises(ProtocolError) as caught:
        reader.gets()
    assert caught.value.offset == 5 * len(chunk)


# ------------------------------------------------------------------ bounds


def test_it_takes_no_other_arguments() -> None:
    with pytest.raises(TypeError):
        RespReader(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        RespReader(max_depht=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pickle.dumps(RespReader())
    with pytest.raises(TypeError):
        RespReader().feed("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        RespReader().feed(memoryview(b"abcd")[::2])


def test_bounds_of_ones_own() -> None:
    assert one(b"$4\r\nabcd\r\n", max_bulk=4) == b"abcd"
    assert "0 to 4 bytes" in str(broken(b"$5\r\n", max_bulk=4))
    assert one(b"*2\r\n:1\r\n:2\r\n", max_elements=2) == [1, 2]
    assert "0 to 2 values" in str(broken(b"*3\r\n", max_elements=2))
    assert one(b"*1\r\n*0\r\n", max_depth=2) == [[]]
    assert "at most 2 arrays" in str(broken(b"*1\r\n*1\r\n*0\r\n", max_depth=2))
    assert one(b"*1\r\n*-1\r\n", max_depth=1) == [None]
    for bad in ({"max_depth": 0}, {"max_depth": 1025}, {"max_bulk": -1}, {"max_elements": -1}):
        with pytest.raises(ValueError, match="must be"):
            RespReader(**bad)  # type: ignore[arg-type]


def test_depth_bomb() -> None:
    error = broken(b"*1\r\n" * 1_000_000)
    assert error.offset == 64 * 4
    value = one(b"*1\r\n" * 1024 + b":1\r\n", max_depth=1024)
    for _ in range(1024):
        (value,) = value
    assert value == 1


def test_a_declared_count_reserves_nothing() -> None:
    reader = RespReader(max_elements=2**40, max_bulk=2**40)
    before = address_space()
    for header in (
        b"*1000000000\r\n",
        b"$1099511627776\r\n",
    ):
        reader.feed(header)
        assert reader.gets() is NEED_DATA
    assert address_space() - before < 2**24


def address_space() -> int:
    """Bytes of memory that were asked for, touched or not."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


@pytest.mark.parametrize("mark", [b"+", b"-"])
def test_endless_lines_end(mark: bytes) -> None:
    line = mark + b"x" * 2**20
    assert len(read_pieces(line, b"\r\n")) == 1
    reader = RespReader()
    reader.feed(line)
    assert reader.gets() is NEED_DATA
    reader.feed(b"x")
    assert reader.gets() is NEED_DATA  # it could still be the CR
    reader.feed(b"x")
    with pytest.raises(ProtocolError, match="a shorter line"):
        reader.gets()


def test_many_pieces_stay_linear() -> None:
    """A million values in a thousand pieces, and long ones byte by byte: quadratic would hang."""
    data = b"*1000000\r\n" + b":7\r\n" * 1_000_000
    step = len(data) // 1000 + 1
    reader = RespReader()
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        reply = reader.gets()
        assert reader.pending < 20
    assert len(reply) == 1_000_000
    data = b"+" + b"s" * 200_000 + b"\r\n$200000\r\n" + b"b" * 200_000 + b"\r\n"
    replies = read_pieces(*(data[i : i + 1] for i in range(len(data))))
    assert [len(reply) for reply in replies] == [200_000, 200_000]


def test_memory_is_given_back() -> None:
    def rounds() -> None:
        reader = RespReader()
        for _ in range(200):
            reader.feed(b"*3\r\n$200\r\n" + b"x" * 200 + b"\r\n*2\r\n+k\r\n*2\r\n:1\r\n:9\r\n")
            assert reader.gets() is NEED_DATA
            reader.feed(b"*2\r\n+a\r\n-ERR x\r\n")
            assert len(reader.gets()) == 3
            reader.feed(b"*2\r\n*2\r\n$6\r\nfooBAR\r\n")
            assert reader.gets() is NEED_DATA
            reader.feed(b"WAT")
            with pytest.raises(ProtocolError):
                reader.gets()
            reader = RespReader()
            reader.feed(b"*2\r\n*2\r\n$6\r\nfooBAR\r\n")
            assert reader.gets() is NEED_DATA
            reader = RespReader()

    rounds()
    gc.collect()
    blocks = sys.getallocatedblocks()
    for _ in range(5):
        rounds()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 100


def test_a_large_reply_does_not_keep_its_buffer() -> None:
    reader = RespReader()
    size = 16 * 1024 * 1024
    reader.feed(b"$%d\r\n" % size + b"x" * size)
    assert reader.gets() is NEED_DATA
    reader.feed(b"\r\n*2\r\n")
    assert len(reader.gets()) == size
    assert reader.gets() is NEED_DATA
    assert reader.get_buffer().nbytes < 2**20


# ------------------------------------------------------------------ reading into its memory


def test_get_buffer() -> None:
    reader = RespReader()
    view = reader.get_buffer(-1)
    assert isinstance(view, memoryview)
    assert not view.readonly
    assert view.nbytes >= 32 * 1024
    view[:7] = b"+OK\r\n:1"
    reader.buffer_updated(7)
    assert reader.pending == 7
    assert reader.gets() == b"OK"
    assert reader.gets() is NEED_DATA
    reader.get_buffer(100_000)[:2] = b"\r\n"
    reader.buffer_updated(2)
    assert reader.gets() == 1
    assert reader.get_buffer(100_000).nbytes >= 100_000
    assert reader.get_buffer(2**62).nbytes < 64 * 1024 * 1024


def test_buffer_updated_refuses() -> None:
    reader = RespReader()
    with pytest.raises(ValueError, match="expected 0 to 0 bytes"):
        reader.buffer_updated(1)
    size = reader.get_buffer().nbytes
    for bad in (-1, size + 1):
        with pytest.raises(ValueError, match=f"0 to {size} bytes"):
            reader.buffer_updated(bad)
    reader.buffer_updated(0)
    with pytest.raises(ValueError, match="0 to 0 bytes"):
        reader.buffer_updated(1)
    reader.get_buffer()
    reader.feed(b"+OK\r\n")
    with pytest.raises(ValueError, match="0 to 0 bytes"):
        reader.buffer_updated(1)


def test_old_views_stay_valid_memory() -> None:
    """The reader moves on to another block while an old view is alive; it may still be written."""
    reader = RespReader()
    views = [reader.get_buffer()]
    for _ in range(8):
        reader.feed(b"$100000\r\n" + b"x" * 50_000)
        views.append(reader.get_buffer(200_000))
        reader.feed(b"x" * 50_000 + b"\r\n")
    for view in views:
        view[-1] = 1
    assert [len(reply) for reply in drain(reader)] == [100_000] * 8
    del reader
    for view in views:
        view[-1] = 2


async def test_buffered_protocol() -> None:
    ours, theirs = socket.socketpair()
    data = b"".join(COMMON.values()) * 50 + b"$300000\r\n" + b"v" * 300_000 + b"\r\n"
    total = 50 * len(COMMON) + 1

    class Client(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.reader = RespReader()
            self.replies: list[Any] = []
            self.done = asyncio.get_running_loop().create_future()

        def get_buffer(self, sizehint: int) -> memoryview:
            return self.reader.get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            self.reader.buffer_updated(nbytes)
            self.replies += drain(self.reader)
            if len(self.replies) == total:
                self.done.set_result(None)

    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    transport, client = await loop.create_connection(Client, sock=ours)
    try:
        await loop.sock_sendall(theirs, data)
        await asyncio.wait_for(client.done, 10)
    finally:
        transport.close()
        theirs.close()
    assert [canonical(r) for r in client.replies] == [canonical(r) for r in read_pieces(data)]
