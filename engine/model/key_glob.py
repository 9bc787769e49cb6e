"""Globs as the servers match them (stringmatchlen, util.c), for the core to match names by.

`*` is any bytes, `?` one, `[…]` one of some, `\\` takes the next byte as it is. What a server makes
of odd ones (a class without an end, ranges that run backwards) is made of them here.
"""

from __future__ import annotations

from collections.abc import Iterable

GLOB_MOST = 4096
"""Bytes of the longest glob."""
# As ext/key_rules.pxi has them; a byte is itself.
_ANY, _STAR, _SET = 256, 257, 258
_EVERY = frozenset(range(256))


def compiled(glob: bytes) -> tuple[list[int], bytes]:
    """What `KeyRules` takes for a glob: its signs, and the sets of bytes that they name. Raises
    `ValueError` for one that is too long."""
    if len(glob) > GLOB_MOST:
        raise ValueError(f"it has {len(glob):,} bytes; at most {GLOB_MOST:,}")
    codes: list[int] = []
    sets: list[bytes] = []
    at = 0
    while at < len(glob):
        sign = glob[at : at + 1]
        at += 1
        if sign == b"*":
            if codes[-1:] != [_STAR]:
                codes.append(_STAR)
        elif sign == b"?":
            codes.append(_ANY)
        elif sign == b"[":
            members, at = byte_class(glob, at)
            codes.append(_SET + len(sets))
            sets.append(byte_set(members))
        elif sign == b"\\" and at < len(glob):
            codes.append(glob[at])
            at += 1
        else:
            codes.append(sign[0])
    return codes, b"".join(sets)


def as_prefix(codes: list[int]) -> bytes | None:
    """The prefix that a compiled glob comes to; None: it is none."""
    *before, last = codes or [0]
    return bytes(before) if last == _STAR and all(each < _ANY for each in before) else None


def of_prefix(prefix: bytes) -> bytes:
    """The glob of all names that begin so."""
    return (
        b"".join(b"\\" + bytes([byte]) if byte in b"*?[\\" else bytes([byte]) for byte in prefix)
        + b"*"
    )


def byte_class(glob: bytes, at: int) -> tuple[frozenset[int], int]:
    """The bytes of the class whose bracket was opened before `at`, and where the glob goes on;
    without an end it goes on to the glob's."""
    negated = glob[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(glob) and glob[at : at + 1] != b"]":
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            at += 1
            members.add(glob[at])
        elif glob[at + 1 : at + 2] == b"-" and at + 2 < len(glob):
            first, last = sorted((glob[at], glob[at + 2]))
            members.update(range(first, last + 1))
            at += 2
        else:
            members.add(glob[at])
        at += 1
    return _EVERY - members if negated else frozenset(members), at + 1


def byte_set(members: Iterable[int]) -> bytes:
    """A bit for each byte."""
    bits = 0
    for each in members:
        bits |= 1 << each
    return bits.to_bytes(32, "little")
