"""RESP2 read by recursion over one bytes object, one byte at a time.

`read(data, limits)` gives the list of complete replies and how the rest ends: in NEED_DATA, or in
a Broken with the offset of the byte that broke the protocol. It starts from the first byte at
each call, which the native reader must never do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DIGITS = b"0123456789"
NUMBER_DIGITS = 19
LINE_MAX = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """The bounds that the native reader takes."""

    max_bulk: int = 512 * 1024 * 1024
    max_elements: int = 2**24
    max_depth: int = 64


@dataclass(frozen=True, eq=False)
class Error:
    """An error reply: a value, equal to itself only, as exceptions are."""

    message: str


@dataclass(frozen=True)
class End:
    """How the bytes end: offset is None where they only need more."""

    offset: int | None


class NeedDataSignal(Exception):
    """The value at hand is not there in whole."""


class BrokenSignal(Exception):
    """The byte at .args[0] is not RESP."""


def read(data: bytes, limits: Limits | None = None) -> tuple[list[Any], End]:
    """All complete replies of `data`, and how the rest ends."""
    reader = _Reader(data, limits or Limits())
    replies = []
    while True:
        try:
            replies.append(reader.value(depth=0))
        except NeedDataSignal:
            return replies, End(None)
        except BrokenSignal as broken:
            return replies, End(broken.args[0])


class _Reader:
    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data = data
        self.at = 0
        self.limits = limits

    def peek(self) -> int:
        if self.at == len(self.data):
            raise NeedDataSignal
        return self.data[self.at]

    def take(self, wanted: bytes) -> int:
        """One byte, which must be one of those wanted."""
        byte = self.peek()
        if byte not in wanted:
            raise BrokenSignal(self.at)
        self.at += 1
        return byte

    def line_end(self) -> None:
        self.take(b"\r")
        self.take(b"\n")

    def number(self, start: int, signs: bytes) -> int:
        """[sign] digits CRLF, in 64 bits."""
        sign = 1
        if self.peek() in signs and self.take(signs) == ord("-"):
            sign = -1
        digits = bytes([self.take(DIGITS)])
        while self.peek() in DIGITS:
            digits += bytes([self.take(DIGITS)])
            if len(digits) > NUMBER_DIGITS:
                raise BrokenSignal(start)
        self.line_end()
        value = sign * int(digits)
        if not -(2**63) <= value < 2**63:
            raise BrokenSignal(start)
        return value

    def line(self, start: int, longest: int) -> bytes:
        """What stands before CRLF, with no CR or LF inside."""
        end = self.data.find(b"\n", self.at)
        size = (len(self.data) if end < 0 else end) - self.at
        if size > longest + 1:
            raise BrokenSignal(start)
        if end < 0:
            raise NeedDataSignal
        text = self.data[self.at : end]
        if b"\r" not in text:
            raise BrokenSignal(end)
        if text.index(b"\r") != len(text) - 1:
            raise BrokenSignal(self.at + text.index(b"\r") + 1)
        self.at = end + 1
        return text[:-1]

    def bulk(self, start: int) -> bytes | None:
        size = self.number(start, b"-")
        if size == -1:
            return None
        if not 0 <= size <= self.limits.max_bulk:
            raise BrokenSignal(start)
        if len(self.data) - self.at < size + 2:
            raise NeedDataSignal
        body = self.data[self.at : self.at + size]
        self.at += size
        self.line_end()
        return body

    def value(self, depth: int) -> Any:
        start = self.at
        kind = bytes([self.take(b"+-:$*")])
        if kind == b"*":
            return self.array(start, depth)
        if kind == b"+":
            return self.line(start, LINE_MAX)
        if kind == b"-":
            return Error(self.line(start, LINE_MAX).decode(errors="backslashreplace"))
        if kind == b":":
            return self.number(start, b"+-")
        return self.bulk(start)

    def array(self, start: int, depth: int) -> Any:
        count = self.number(start, b"-")
        if count == -1:
            return None
        if not 0 <= count <= self.limits.max_elements or depth == self.limits.max_depth:
            raise BrokenSignal(start)
        return [self.value(depth + 1) for _ in range(count)]
