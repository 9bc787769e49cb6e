"""The encoder of commands against the same in three lines of Python."""

from __future__ import annotations

import enum

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import encode_command


def wire(arg: object) -> bytes:
    if isinstance(arg, str):
        return arg.encode()
    if isinstance(arg, (int, float)):
        return repr(arg).encode()
    return bytes(arg)  # type: ignore[call-overload,no-any-return]


def expected(*args: object) -> bytes:
    parts = [b"*%d\r\n" % len(args)]
    parts += [b"$%d\r\n%s\r\n" % (len(wire(arg)), wire(arg)) for arg in args]
    return b"".join(parts)


ARGUMENTS = st.one_of(
    st.binary(max_size=40),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    st.binary(max_size=40).map(bytearray),
    st.binary(max_size=40).map(lambda raw: memoryview(raw)),
)


@given(st.lists(ARGUMENTS, min_size=1, max_size=12))
def test_any_arguments(args: list[object]) -> None:
    assert encode_command(*args) == expected(*args)  # type: ignore[arg-type]


def test_every_width_of_a_number() -> None:
    for power in range(67):
        for near in (-1, 0, 1):
            for sign in (-1, 1):
                number = sign * (2**power + near)
                assert encode_command(number) == expected(number)
    for power in range(22):
        for number in (10**power - 1, 10**power, -(10**power)):
            assert encode_command(number) == expected(number)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 99, 100, 999, 1000, 99_999, 100_000, 2**20 + 1])
def test_lengths(size: int) -> None:
    assert encode_command(b"x" * size) == b"*1\r\n$%d\r\n%s\r\n" % (size, b"x" * size)


@pytest.mark.parametrize("count", [1, 9, 10, 99, 100, 101, 9_999, 10_000])
def test_counts(count: int) -> None:
    assert encode_command(*["k"] * count) == expected(*["k"] * count)


def test_binary_safe() -> None:
    written = encode_command(b"SET", b"\x00\r\n$5", "a b")
    assert written == b"*3\r\n$3\r\nSET\r\n$5\r\n\x00\r\n$5\r\n$3\r\na b\r\n"


def test_a_rival_reads_it() -> None:
    reader = hiredis.Reader()
    reader.feed(encode_command("SET", b"\xff", 12, 1.5))
    assert reader.gets() == [b"SET", b"\xff", b"12", b"1.5"]


def test_subclasses() -> None:
    class Kind(enum.IntEnum):
        ONE = 1

    class Text(str):
        __slots__ = ()

    class Raw(bytes):
        __slots__ = ()

    class Ratio(float):
        __slots__ = ()

        def __repr__(self) -> str:
            return "not a number"

    assert encode_command(Kind.ONE, Text("é"), Raw(b"r"), Ratio(0.5)) == expected(1, "é", b"r", 0.5)


@pytest.mark.parametrize("arg", [True, False, None, [], {}, object(), 1j])
def test_types_without_a_meaning_on_the_wire(arg: object) -> None:
    with pytest.raises(TypeError, match=f"found {type(arg).__name__}"):
        encode_command("SET", "k", arg)  # type: ignore[arg-type]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no arguments"):
        encode_command()
    with pytest.raises(UnicodeEncodeError):
        encode_command("\ud800")
    with pytest.raises(BufferError):
        encode_command(memoryview(b"abcd")[::2])


def test_buffers_are_released() -> None:
    data = bytearray(b"abc")
    encode_command(data, memoryview(data))
    with pytest.raises(TypeError):
        encode_command(data, None)  # type: ignore[arg-type]
    data.append(0)  # BufferError if a view were still held
