"""Digests of values, against a slow reference, and by what must make no difference to them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import OrderedDigest, UnorderedDigest
from tests.reference.siphash import siphash128

KEY = bytes(range(16))
PARTS = st.lists(st.one_of(st.binary(max_size=40), st.integers(-(1 << 63), (1 << 63) - 1)))
NAMES = st.lists(st.binary(max_size=20))


def framed(parts: list[Any]) -> bytes:
    """The parts with their lengths."""
    found = b""
    for part in parts:
        raw = part if isinstance(part, bytes) else struct.pack("<q", part)
        found += struct.pack("<Q", len(raw)) + raw
    return found


def ordered(*parts: bytes | int) -> bytes:
    """The digest of parts in their order."""
    digest = OrderedDigest(KEY)
    digest.add(*parts)
    return digest.digest()


def summed(elements: list[bytes]) -> bytes:
    """The digest of elements in any order, each as the bytes that are hashed."""
    total = sum(int.from_bytes(siphash128(KEY, each), "little") for each in elements)
    return (total % (1 << 128)).to_bytes(16, "little") + struct.pack("<Q", len(elements))


def test_the_papers_own_vectors() -> None:
    """The first of those that its authors publish for 128 bits: nothing, and one zero byte."""
    digest = OrderedDigest(KEY)
    assert digest.digest().hex() == "a3817f04ba25a8e66df67214c7550293"
    digest.raw(b"\0")
    assert digest.digest().hex() == "da87c1d86b99af44347659119b22fc45"


@given(PARTS)
def test_parts_in_order(parts: list[bytes | int]) -> None:
    assert ordered(*parts) == siphash128(KEY, framed(parts))
    digest = OrderedDigest(KEY)
    digest.add_all(list(parts))
    assert digest.digest() == ordered(*parts)


@given(st.lists(st.binary(max_size=40)), st.data())
def test_where_a_part_was_cut_leaves_no_trace(pieces: list[bytes], data: st.DataObject) -> None:
    digest = OrderedDigest(KEY)
    whole = b""
    for piece in pieces:
        digest.raw(piece)
        whole += piece
        if data.draw(st.booleans()):
            assert digest.digest() == siphash128(KEY, whole)
    assert digest.digest() == siphash128(KEY, whole)


@given(NAMES, st.randoms())
def test_elements_in_any_order(names: list[bytes], chance: Any) -> None:
    digest = UnorderedDigest(KEY)
    digest.add_all(names)
    expected = summed([framed([name]) for name in names])
    assert digest.digest() == expected
    assert digest.count == len(names)
    shuffled = list(names)
    chance.shuffle(shuffled)
    again = UnorderedDigest(KEY)
    for name in shuffled:
        again.add(name)
    assert again.digest() == expected


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))))
def test_pairs(pairs: list[tuple[bytes, bytes]]) -> None:
    digest = UnorderedDigest(KEY)
    digest.add_pairs([part for pair in pairs for part in pair])
    assert digest.digest() == summed([framed(list(pair)) for pair in pairs])


@given(st.lists(st.tuples(st.binary(max_size=20), st.floats(allow_nan=False))))
def test_scores_count_as_doubles(members: list[tuple[bytes, float]]) -> None:
    digest = UnorderedDigest(KEY)
    digest.add_scored([part for name, score in members for part in (name, repr(score).encode())])
    elements = [framed([name, struct.pack("<d", score + 0.0)]) for name, score in members]
    assert digest.digest() == summed(elements)


@given(st.lists(st.tuples(st.binary(max_size=9), st.none() | NAMES)))
def test_entries(entries: list[tuple[bytes, list[bytes] | None]]) -> None:
    digest = OrderedDigest(KEY)
    digest.add_entries([list(each) for each in entries])
    parts: list[bytes | int] = []
    for identifier, fields in entries:
        parts += [identifier, len(fields or ()), *(fields or ())]
    assert digest.digest() == ordered(*parts)


def test_what_is_refused() -> None:
    for kind in (OrderedDigest, UnorderedDigest):
        with pytest.raises(ValueError, match="16 bytes"):
            kind(b"short")
        with pytest.raises(TypeError, match="bytes or a number"):
            kind(KEY).add(None)  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            kind(KEY).add(1 << 64)
    for method in ("add_pairs", "add_scored"):
        with pytest.raises(ValueError, match="even number"):
            getattr(UnorderedDigest(KEY), method)([b"alone"])
    with pytest.raises(ValueError, match="could not convert"):
        UnorderedDigest(KEY).add_scored([b"member", b"no number"])
