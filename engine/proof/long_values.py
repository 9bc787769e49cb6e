"""Keys whose values are longer than is held of a run: compared each for itself.

Up to `WHOLE_BYTES` a value is asked for once more, and decoded. A longer one is read by the
commands of its type, in windows, and digested as it is read: strings, lists, sets, hashes, sorted
sets and streams; no other type can be read so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from engine import _native
from engine._native import KeyNames, LookComparer, OrderedDigest, UnorderedDigest
from engine.model.server import ServerInfo
from engine.proof.asked_server import AskedServer, Question
from engine.wire.control_connection import Admin

WHOLE_BYTES = 64 << 20
_DUMP = Question(("DUMP",), b"d")
_STRING_WINDOW = 1 << 20
# Elements of one reply: of a collection this long they are short, or few.
_ELEMENTS = 500
_DELIVERIES = f"of streams above {WHOLE_BYTES >> 20} MiB when pending entries were delivered"
Told = tuple[bytes, bytes, bytes]
"""Digests of a value, of the expire times of its fields, and of its groups."""


async def compare_whole(
    ours: AskedServer, theirs: AskedServer, db: int, key: bytes, digest_key: bytes
) -> tuple[int, bytes] | None:
    """Compare by one payload of each end; None: one of them is too long for that. `ours` and
    `theirs` hold up to `WHOLE_BYTES` of a value. Gives the bits in which they differ
    (`LookComparer`) without the TTL, and the source's state."""
    names = KeyNames([key])
    await asyncio.gather(ours.select(db), theirs.select(db))
    one, other = await asyncio.gather(*(each.looks(names, 0, 1, _DUMP) for each in (ours, theirs)))
    # Its own, so that nothing is counted twice.
    found = LookComparer(digest_key).compare(names, 0, one, other)
    bits = found[0][1] if found else 0
    if bits & _native.DIFFERS_NOT_HELD:
        return None
    return bits, one.state(0, digest_key)


async def compare_in_windows(
    source: Admin,
    target: Admin,
    infos: tuple[ServerInfo, ServerInfo],
    db: int,
    key: bytes,
    digest_key: bytes,
    leave_out: Callable[[str], None],
) -> tuple[int, bytes]:
    """The same by the commands of its type. `leave_out` is told what these do not tell."""
    for end in (source, target):
        await end.select(db)
    kinds = [await end.call("TYPE", key) for end in (source, target)]
    if b"none" in kinds:
        bits = {
            (True, True): 0,
            (True, False): _native.DIFFERS_EXTRA,
            (False, True): _native.DIFFERS_MISSING,
        }[kinds[0] == b"none", kinds[1] == b"none"]
        return bits, kinds[0]
    if kinds[0] != kinds[1]:
        return _native.DIFFERS_TYPE, kinds[0]
    kind = kinds[0].decode("latin-1")
    if kind == "stream":
        leave_out(_DELIVERIES)
    if kind not in _READERS:
        return _native.DIFFERS_NOT_DECODED, kinds[0]
    ours, theirs = await asyncio.gather(
        *(
            _READERS[kind](end, key, info, digest_key)
            for end, info in zip((source, target), infos, strict=True)
        )
    )
    bits = 0
    for one, other, bit in zip(
        ours,
        theirs,
        (_native.DIFFERS_VALUE, _native.DIFFERS_FIELD_TTLS, _native.DIFFERS_GROUPS),
        strict=True,
    ):
        bits |= bit if one != other else 0
    return bits, b"".join(ours)


async def _string(end: Admin, key: bytes, _: ServerInfo, digest_key: bytes) -> Told:
    digest, start = OrderedDigest(digest_key), 0
    while piece := await end.call("GETRANGE", key, start, start + _STRING_WINDOW - 1):
        digest.raw(piece)
        start += len(piece)
        if len(piece) < _STRING_WINDOW:
            break
    return digest.digest(), b"", b""


async def _list(end: Admin, key: bytes, _: ServerInfo, digest_key: bytes) -> Told:
    digest, start = OrderedDigest(digest_key), 0
    while items := await end.call("LRANGE", key, start, start + _ELEMENTS - 1):
        digest.add_all(items)
        start += len(items)
    return digest.digest(), b"", b""


async def _set(end: Admin, key: bytes, _: ServerInfo, digest_key: bytes) -> Told:
    digest = UnorderedDigest(digest_key)
    async for members in _scanned(end, "SSCAN", key, 1):
        digest.add_all(members)
    if digest.count != await end.call("SCARD", key):
        return _unsure()
    return digest.digest(), b"", b""


async def _sorted_set(end: Admin, key: bytes, _: ServerInfo, digest_key: bytes) -> Told:
    digest, start = UnorderedDigest(digest_key), 0
    while flat := await end.call("ZRANGE", key, start, start + _ELEMENTS - 1, "WITHSCORES"):
        digest.add_scored(flat)
        start += len(flat) // 2
    return digest.digest(), b"", b""


async def _hash(end: Admin, key: bytes, info: ServerInfo, digest_key: bytes) -> Told:
    digest, ttls = UnorderedDigest(digest_key), UnorderedDigest(digest_key)
    async for flat in _scanned(end, "HSCAN", key, 2):
        digest.add_pairs(flat)
        names = flat[::2]
        if info.capabilities.hpexpiretime:
            times = await end.call("HPEXPIRETIME", key, "FIELDS", len(names), *names)
            for name, at in zip(names, times, strict=True):
                if at > 0:
                    ttls.add(name, at)
    if digest.count != await end.call("HLEN", key):
        return _unsure()
    return digest.digest(), ttls.digest(), b""


async def _stream(end: Admin, key: bytes, _: ServerInfo, digest_key: bytes) -> Told:
    digest, groups, start = OrderedDigest(digest_key), OrderedDigest(digest_key), b"-"
    while entries := await end.call("XRANGE", key, start, "+", "COUNT", _ELEMENTS):
        digest.add_entries(entries)
        start = _behind(entries[-1][0])
    about = _members(await end.call("XINFO", "STREAM", key))
    digest.add(about[b"last-generated-id"])
    told = [_members(each) for each in await end.call("XINFO", "GROUPS", key)]
    for group in sorted(told, key=lambda each: each[b"name"]):
        groups.add(group[b"name"], group[b"last-delivered-id"])
        start = b"-"
        while pending := await end.call("XPENDING", key, group[b"name"], start, "+", _ELEMENTS):
            for number, consumer, _idle, times in pending:
                groups.add(number, consumer, times)
            start = _behind(pending[-1][0])
    return digest.digest(), b"", groups.digest()


async def _scanned(end: Admin, command: str, key: bytes, each: int) -> AsyncIterator[list[bytes]]:
    """The elements of a set or hash. One may come twice where the table shrinks meanwhile."""
    cursor: Any = 0
    while cursor != b"0":
        cursor, found = await end.call(command, key, cursor, "COUNT", _ELEMENTS // each)
        if found:
            yield found


def _unsure() -> Told:
    """Of a value that was not read as it is: it is equal to none, and changes from look to look."""
    return os.urandom(16), b"", b""


def _behind(identifier: bytes) -> bytes:
    """The id of a stream's entry that follows."""
    milliseconds, _, sequence = identifier.partition(b"-")
    if int(sequence) == (1 << 64) - 1:
        return b"%d-0" % (int(milliseconds) + 1)
    return b"%s-%d" % (milliseconds, int(sequence) + 1)


def _members(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


_READERS = {
    "string": _string,
    "list": _list,
    "set": _set,
    "zset": _sorted_set,
    "hash": _hash,
    "stream": _stream,
}
