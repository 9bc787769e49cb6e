"""Digests of values that do not depend on how a value was cut into replies.

A value of 500 MB is read in windows, and forgotten as it is read. Where order belongs to the value
(string, list, stream) the digest is one running hash; where it does not (set, hash, sorted set) it
is the sum of the elements' hashes, because two servers hold the same elements in different orders.
The key is the process's own: digests of two processes cannot be compared.
"""

from __future__ import annotations

import os
import struct

from engine._native import OrderedDigest, UnorderedDigest, stream_digests

_KEY = os.urandom(16)
_NUMBER = struct.Struct("<q")


def ordered() -> OrderedDigest:
    """A digest of parts in their order."""
    return OrderedDigest(_KEY)


def unordered() -> UnorderedDigest:
    """A digest of elements in any order."""
    return UnorderedDigest(_KEY)


def number(value: int) -> bytes:
    """A number beside a digest: 8 bytes."""
    return _NUMBER.pack(value)


def stream(
    reply: bytes, idle_consumers: bool
) -> tuple[bytes, bytes, bytes, bytes | None, int | None] | None:
    """What a reply to XINFO STREAM … FULL, as it came, says: `stream_digests` of the core."""
    return stream_digests(reply, _KEY, idle_consumers=idle_consumers)
