"""The RESP reader against the slow reference: generated replies, mutated ones, and garbage.

Whatever the bytes and wherever they are cut, both give the same replies and the same end: more
data needed, or broken at the same byte.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import NEED_DATA, ProtocolError, ReplyError, RespReader
from tests.reference import resp as reference

LIMITS = reference.Limits(max_bulk=200, max_elements=40, max_depth=6)


# ------------------------------------------------------------------ replies, as bytes


def bulk(mark: bytes, body: bytes) -> bytes:
    return mark + b"%d\r\n%s\r\n" % (len(body), body)


LINES = st.binary(max_size=12).map(lambda line: line.translate(None, b"\r\n"))
SCALARS = st.one_of(
    LINES.map(lambda line: b"+%s\r\n" % line),
    LINES.map(lambda line: b"-%s\r\n" % line),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
    st.integers(-3, 3).map(lambda number: b":%d\r\n" % number),
    st.binary(max_size=30).map(lambda body: bulk(b"$", body)),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n"]),
)


def arrays(children: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(children, max_size=6).map(
        lambda parts: b"*%d\r\n%s" % (len(parts), b"".join(parts))
    )


REPLIES = st.recursive(SCALARS, arrays, max_leaves=15)
STREAMS = st.lists(REPLIES, max_size=5).map(b"".join)
TOKENS = st.sampled_from(
    [bytes([byte]) for byte in b"+-:$*_#,(!=%~>|;.?0123456789tf \x00\xffxe"]
    + [b"\r\n", b"\r", b"\n", b"-1", b"inf", b"nan", b"$0\r\n\r\n", b"*1\r\n", b":1\r\n", b"|0\r\n"]
)
GARBAGE = st.lists(TOKENS, max_size=40).map(b"".join) | st.binary(max_size=60)
CUTS = st.lists(st.integers(0, 400), max_size=8)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Good replies with bytes replaced, dropped, doubled or put in."""
    data = bytearray(draw(STREAMS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 3))
        data[at : at + length] = draw(TOKENS | st.just(bytes(data[at : at + 5]) * 2))
    return bytes(data)


# ------------------------------------------------------------------ both readers


def canonical(value: Any) -> Any:
    """A form that compares across the two, types kept apart, nan equal to itself."""
    if isinstance(value, (ReplyError, reference.Error)):
        return ("error", value.message)
    if isinstance(value, list):
        return ("list", [canonical(item) for item in value])
    return (type(value).__name__, repr(value))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def native_read(data: bytes, cuts: list[int]) -> tuple[list[Any], reference.End]:
    reader = limited()
    replies: list[Any] = []
    for piece in pieces(data, cuts):
        view = reader.get_buffer()
        view[: len(piece)] = piece
        reader.buffer_updated(len(piece))
        try:
            while (reply := reader.gets()) is not NEED_DATA:
                replies.append(reply)
        except ProtocolError as error:
            return replies, reference.End(error.offset)
    return replies, reference.End(None)


def limited() -> RespReader:
    return RespReader(
        max_bulk=LIMITS.max_bulk, max_elements=LIMITS.max_elements, max_depth=LIMITS.max_depth
    )


def compare(data: bytes, cuts: list[int]) -> None:
    expected, end = reference.read(data, LIMITS)
    replies, native_end = native_read(data, cuts)
    assert [canonical(reply) for reply in replies] == [canonical(reply) for reply in expected]
    assert native_end == end


# ------------------------------------------------------------------ tests


@given(data=STREAMS, cuts=CUTS)
def test_replies(data: bytes, cuts: list[int]) -> None:
    compare(data, cuts)


@given(data=STREAMS)
def test_replies_byte_by_byte(data: bytes) -> None:
    compare(data, list(range(len(data))))


@settings(max_examples=400)
@given(data=mutated(), cuts=CUTS)
def test_mutated_replies(data: bytes, cuts: list[int]) -> None:
    compare(data, cuts)


@settings(max_examples=400)
@given(data=GARBAGE, cuts=CUTS)
def test_garbage(data: bytes, cuts: list[int]) -> None:
    compare(data, cuts)


def test_many_random_streams() -> None:
    """Short strings over the protocol's own alphabet: quicker than hypothesis, and many more."""
    rng = random.Random(20)
    alphabet = [b"\r\n"] * 8 + [bytes([byte]) for byte in b"+-:$*_#,(!=%~>|?0112tf"] * 2
    alphabet += [b"\r", b"\n", b"$1\r\na\r\n", b":1\r\n", b"*2\r\n", b"%1\r\n", b"|1\r\n"]
    for _ in range(20_000):
        data = b"".join(rng.choices(alphabet, k=rng.randrange(1, 14)))
        compare(data, [rng.randrange(len(data) + 1) for _ in range(rng.randrange(4))])
