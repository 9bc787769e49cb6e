"""CRC64, CRC16 and slots against their definitions, bit by bit."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import _native
from tests.reference import crc as reference

IMPLEMENTATIONS = (
    ["pclmulqdq", "slicing-by-16"]
    if _native.crc64_implementation() == "pclmulqdq"
    else ["slicing-by-16"]
)


def test_check_values() -> None:
    # The check values of the CRC catalogue, and of the comment in the servers' crc64.c.
    assert _native.crc64(b"123456789") == 0xE9C6D914C4B8D9CA
    assert reference.crc16(b"123456789") == 0x31C3
    assert _native.key_slot(b"123456789") == 0x31C3
    assert _native.crc64(b"") == 0
    assert _native.key_slot(b"") == 0


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_length_around_the_block_sizes(name: str) -> None:
    rng = random.Random(1)
    for size in range(210):
        data, seed = rng.randbytes(size), rng.getrandbits(64)
        assert _native.crc64_with(name, data, seed) == reference.crc64(data, seed), size


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(data=st.binary(max_size=600), cut=st.integers(0, 600), seed=st.integers(0, 2**64 - 1))
def test_crc64_goes_on_from_any_cut(name: str, data: bytes, cut: int, seed: int) -> None:
    first = _native.crc64_with(name, data[:cut], seed)
    assert _native.crc64_with(name, data[cut:], first) == reference.crc64(data, seed)
    assert _native.crc64(data, seed) == reference.crc64(data, seed)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_any_alignment(name: str) -> None:
    data = random.Random(2).randbytes(300)
    view = memoryview(data)
    for start in range(33):
        for size in (15, 16, 17, 63, 64, 65, 127, 200):
            piece = view[start : start + size]
            assert _native.crc64_with(name, piece) == reference.crc64(bytes(piece))


def test_large_inputs_agree_without_the_gil() -> None:
    data = random.Random(3).randbytes(100_003)
    expected = _native.crc64_with("slicing-by-16", data)
    assert _native.crc64(data) == expected
    assert _native.crc64(data[50_000:], _native.crc64(data[:50_000])) == expected
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(_native.crc64(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_crc64_refuses() -> None:
    with pytest.raises(ValueError, match="expected 'pclmulqdq'"):
        _native.crc64_with("crc32", b"")
    for seed in (-1, 2**64):
        with pytest.raises(OverflowError):
            _native.crc64(b"x", seed)
    with pytest.raises(BufferError):
        _native.crc64(memoryview(b"abcd")[::2])
    with pytest.raises(TypeError):
        _native.crc64("text")  # type: ignore[arg-type]


def test_the_slot_of_a_long_key() -> None:
    data = random.Random(4).randbytes(20_001)
    assert _native.key_slot(data) == reference.key_slot(data)
    assert _native.key_slot(bytearray(data)) == reference.key_slot(data)


@pytest.mark.parametrize(
    ("key", "same_as"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"{user1000}.followers", b"user1000"),
        (b"foo{}{bar}", None),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"{}", None),
        (b"}{", None),
        (b"a}b{c}d", b"c"),
        (b"{open", None),
        (b"{\x00}", b"\x00"),
        (b"", None),
    ],
)
def test_hash_tags(key: bytes, same_as: bytes | None) -> None:
    """The examples of the Redis Cluster specification, and its corners; None: the whole key."""
    hashed = key if same_as is None else same_as
    assert _native.key_slot(key) == reference.crc16(hashed) % 16384


def test_a_hash_tag_anywhere_in_a_key_of_any_length() -> None:
    """A key is looked through eight bytes at a time, and the last ones overlap those before."""
    for size in range(40):
        key = bytes(range(97, 97 + 20)) * 2
        assert _native.key_slot(key[:size]) == reference.key_slot(key[:size])
        for at in range(size):
            tagged = key[:at] + b"{" + key[at : size - 1]
            for other in (tagged, tagged + b"}", tagged[: at + 2] + b"}" + tagged[at + 2 :]):
                assert _native.key_slot(other) == reference.key_slot(other)


def test_known_slots() -> None:
    # CLUSTER KEYSLOT, on a real server.
    assert _native.key_slot(b"foo") == 12182
    assert _native.key_slot(b"somekey") == 11058
    assert _native.key_slot(b"foo{hash_tag}") == 2515


@given(
    st.binary(max_size=100)
    | st.lists(st.sampled_from([b"{", b"}", b"a", b"bc", b"|", b"\xfb"]), max_size=40).map(b"".join)
)
def test_slots(key: bytes) -> None:
    assert _native.key_slot(key) == reference.key_slot(key)
