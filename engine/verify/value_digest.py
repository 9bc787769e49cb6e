"""Digests of values that do not depend on how a value was cut into replies.

A value of 500 MB is read in windows, and forgotten as it is read. Where order belongs to the value
(string, list, stream) the digest is one running hash; where it does not (set, hash, sorted set) it
is the sum of the elements' hashes, because two servers hold the same elements in different orders.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

_BYTES = 16
_MODULUS = 1 << (8 * _BYTES)
_LENGTH = struct.Struct("<q")


def framed(*parts: bytes) -> bytes:
    """The parts with their lengths, so that no two sequences of parts read the same."""
    return b"".join([_LENGTH.pack(len(part)) + part for part in parts])


def number(value: int) -> bytes:
    """A number as a part."""
    return _LENGTH.pack(value)


def score(text: bytes) -> bytes:
    """A sorted set's score as a part: its double, because versions print it differently."""
    # + 0.0: -0.0 and 0.0 sort alike, and an integer encoding keeps no sign of zero.
    return struct.pack("<d", float(text) + 0.0)


class Ordered:
    """A digest of parts in their order."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_BYTES)

    def raw(self, piece: bytes) -> None:
        """Add a piece of one long part; where it was cut leaves no trace."""
        self._hash.update(piece)

    def add(self, *parts: bytes) -> None:
        """Add whole parts."""
        self._hash.update(framed(*parts))

    def digest(self) -> bytes:
        """16 bytes."""
        return self._hash.digest()


class Unordered:
    """A digest of elements in any order."""

    def __init__(self) -> None:
        self._sum = 0
        self.count = 0

    def add(self, *parts: bytes) -> None:
        """Add one element made of parts."""
        element = blake2b(framed(*parts), digest_size=_BYTES).digest()
        self._sum = (self._sum + int.from_bytes(element, "little")) % _MODULUS
        self.count += 1

    def digest(self) -> bytes:
        """16 bytes, and the count."""
        return self._sum.to_bytes(_BYTES, "little") + number(self.count)
