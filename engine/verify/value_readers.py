"""How a value of each type is read: one generator a type.

A generator yields a list of commands, is sent their replies, and returns the value's parts, each
with a digest. It knows no connection, so hundreds of keys are read in one round trip, and a huge
one in as many windows as it takes. An error reply (a key that changed its type in between) ends it
with `Changed`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from engine.model.hyperloglog import LONGEST, MAGIC
from engine.model.modules import made_by
from engine.model.server import ServerInfo
from engine.verify.value_digest import number, ordered, stream, unordered
from engine.wire.control_connection import Raw

Command = tuple[bytes | str | int, ...]
Parts = dict[str, bytes]
Reading = Generator[list[Command], list[Any], Parts]

# A reply is aimed at this many bytes; one element of a collection cannot be cut.
WINDOW_BYTES = 1 << 20
# Up to this size a value is read whole.
WHOLE_BYTES = 256 << 10
# Nothing is known of the elements at first: one of them may have 500 MB.
_FIRST_COUNT = 1
_LARGEST_COUNT = 100_000
RULES = "compaction rules"
"""The part of a time series that DUMP leaves out."""
MADE_BY = "made by"
"""Beside a DUMP: whose bytes say all of the value (`model.modules.made_by`)."""
# DUMP gives a value whole: module types above this are not compared.
_DUMP_LIMIT = 64 << 20
# Beside the value of a string that looks like a HyperLogLog: its bytes. Others may mean the same.
HYPERLOGLOG = "hyperloglog"
# RDB version and CRC64 behind a DUMP's value: they tell of the server, not of the value.
_FOOTER = 10


class Changed(Exception):  # not an error: the key is read again
    """The key is not what it was a moment ago."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one server can be asked, and what of it means anything.

    `idle_consumers`: a stream's consumers that have nothing pending count. No primary tells its
    replicas of them (XREADGROUP that finds nothing makes one all the same), so that they say
    nothing where the target was fed by replication. `full_streams`: XINFO STREAM … FULL tells all
    of a stream in one reply. `info` is the server's.
    """

    field_ttls: bool
    expire_times: bool
    idle_consumers: bool = True
    full_streams: bool = False
    info: ServerInfo | None = None

    @classmethod
    def of(cls, info: ServerInfo, *, followed: bool = False) -> Abilities:
        """What `info` says of it; `followed`: the target was fed by replication."""
        able = info.capabilities
        return cls(able.hpexpiretime, able.pexpiretime, not followed, able.xinfo_full, info)


class _Count:
    """How many elements to ask for next, so that a reply has about `WINDOW_BYTES`."""

    def __init__(self) -> None:
        self.next = _FIRST_COUNT

    def saw(self, elements: int, size: int) -> None:
        """The last window had this many elements, of `size` bytes together."""
        fits = WINDOW_BYTES * elements // max(size, 1)
        self.next = max(1, min(fits, self.next * 4, _LARGEST_COUNT))


def reading(kind: bytes, key: bytes, size: int | None, able: Abilities) -> Reading:
    """The generator for a key of TYPE `kind`; `size` is its MEMORY USAGE, None if not told."""
    read = _READERS.get(kind)
    if kind == b"TSDB-TYPE":
        return _series(key, size)
    if read is None:
        return _dump(key, size, made_by(kind, able.info) if able.info is not None else b"")
    return read(key, size is not None and size <= WHOLE_BYTES, able)


def _string(key: bytes, whole: bool, able: Abilities) -> Reading:
    digest = ordered()
    start = 0
    while True:
        window: Command = ("GETRANGE", key, start, start + WINDOW_BYTES - 1)
        if whole:
            window = ("GET", key)
        (piece,) = yield [window]
        digest.raw(_bytes(piece))
        start += len(piece)
        if whole or len(piece) < WINDOW_BYTES:
            parts = {"value": digest.digest() + number(start)}
            if piece.startswith(MAGIC) and start == len(piece) <= LONGEST:
                parts[HYPERLOGLOG] = piece
            return parts


def _list(key: bytes, whole: bool, able: Abilities) -> Reading:
    digest = ordered()
    count = _Count()
    start = 0
    while True:
        asked = count.next
        (items,) = yield [("LRANGE", key, start, -1 if whole else start + asked - 1)]
        digest.add_all(_list_of(items))
        start += len(items)
        if whole or len(items) < asked:
            return {"value": digest.digest() + number(start)}
        count.saw(len(items), sum(map(len, items)))


def _set(key: bytes, whole: bool, able: Abilities) -> Reading:
    digest = unordered()
    count = _Count()
    cursor = b"0"
    while True:
        if whole:
            (members,) = yield [("SMEMBERS", key)]
        else:
            (page,) = yield [("SSCAN", key, cursor, "COUNT", count.next)]
            cursor, members = _list_of(page)
        digest.add_all(_list_of(members))
        if whole or cursor == b"0":
            return {"value": digest.digest()}
        count.saw(len(members), sum(map(len, members)))


def _sorted_set(key: bytes, whole: bool, able: Abilities) -> Reading:
    digest = unordered()
    count = _Count()
    start = 0
    while True:
        asked = count.next
        stop = -1 if whole else start + asked - 1
        (flat,) = yield [("ZRANGE", key, start, stop, "WITHSCORES")]
        digest.add_scored(_list_of(flat))
        members = len(flat) // 2
        start += members
        if whole or members < asked:
            return {"value": digest.digest()}
        count.saw(members, sum(map(len, flat)))


def _hash(key: bytes, whole: bool, able: Abilities) -> Reading:
    values, expire_times = unordered(), unordered()
    count = _Count()
    cursor = b"0"
    while True:
        if whole:
            (flat,) = yield [("HGETALL", key)]
        else:
            (page,) = yield [("HSCAN", key, cursor, "COUNT", count.next)]
            cursor, flat = _list_of(page)
        values.add_pairs(_list_of(flat))
        fields = flat[::2]
        if able.field_ttls and fields:
            (times,) = yield [("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)]
            for field, at in zip(fields, _list_of(times), strict=True):
                if at > 0:  # -1: no expire time; -2: the field has gone since
                    expire_times.add(field, at)
        if whole or cursor == b"0":
            # A server without field TTLs has none: that is a statement, not a gap.
            return {"value": values.digest(), "field TTLs": expire_times.digest()}
        count.saw(len(fields), sum(map(len, flat)))


def _stream(key: bytes, whole: bool, able: Abilities) -> Reading:
    """Entries, counters, groups, consumers, and what is pending with its count of deliveries.

    Of pending entries the time of delivery is left out: servers tell it as a moving idle time.
    """
    entries = ordered()
    if whole and able.full_streams:
        (full,) = yield [Raw(("XINFO", "STREAM", key, "FULL", "COUNT", 0))]
        told = stream(_bytes(full), able.idle_consumers)
        if told is None:
            raise Changed
        value, groups, last_id, deleted, added = told
        return _stream_parts(value, last_id, groups, deleted, added)
    count = _Count()
    start: bytes = b"-"
    while True:
        asked = count.next
        limit: Command = () if whole else ("COUNT", asked)
        (found,) = yield [("XRANGE", key, start, "+", *limit)]
        entries.add_entries(_list_of(found))
        size = sum(sum(map(len, fields or ())) for _, fields in found)
        if whole or len(found) < asked:
            break
        count.saw(len(found), size)
        start = _after(found[-1][0])
    info, answer = yield [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)]
    about = _named(info)
    consumed = yield from _groups(
        key, [_named(each) for each in _list_of(answer)], able.idle_consumers
    )
    return _stream_parts(
        entries.digest(),
        about[b"last-generated-id"],
        consumed,
        about.get(b"max-deleted-entry-id"),
        about.get(b"entries-added"),
    )


def _stream_parts(
    value: bytes, last_id: bytes, groups: bytes, deleted: bytes | None, added: int | None
) -> Parts:
    parts = {"value": value, "last id": last_id, "groups": groups}
    # Since 7.0; a stream that came from an older server has estimates in their place.
    if deleted is not None:
        parts["max deleted entry id"] = deleted
    if added is not None:
        parts["entries added"] = number(added)
    return parts


def _groups(
    key: bytes, groups: list[dict[bytes, Any]], idle_consumers: bool
) -> Generator[list[Command], list[Any], bytes]:
    digest = ordered()
    for group in sorted(groups, key=lambda each: each[b"name"]):
        name = group[b"name"]
        digest.add(name, group[b"last-delivered-id"], group[b"pending"])
        (consumers,) = yield [("XINFO", "CONSUMERS", key, name)]
        described = [_named(each) for each in _list_of(consumers)]
        for consumer in sorted(described, key=lambda each: each[b"name"]):
            if consumer[b"pending"] or idle_consumers:
                digest.add(consumer[b"name"], consumer[b"pending"])
        start: bytes = b"-"
        while True:
            (pending,) = yield [("XPENDING", key, name, start, "+", 1000)]
            for identifier, owner, _idle, deliveries in _list_of(pending):
                digest.add(identifier, owner, deliveries)
            if len(pending) < 1000:
                break
            start = _after(pending[-1][0])
    return digest.digest()


def _dump(key: bytes, size: int | None, made_by: bytes) -> Reading:
    if size is not None and size > _DUMP_LIMIT:
        return {}
    (payload,) = yield [("DUMP", key)]
    digest = ordered()
    digest.raw(_bytes(payload)[:-_FOOTER])
    return {"dump": digest.digest(), MADE_BY: made_by}


def _series(key: bytes, size: int | None) -> Reading:
    """A time series: DUMP leaves out its compaction rules, and what it is a compaction of."""
    if size is not None and size > _DUMP_LIMIT:
        return {}
    payload, answer = yield [("DUMP", key), ("TS.INFO", key)]
    digest, rules = ordered(), ordered()
    digest.raw(_bytes(payload)[:-_FOOTER])
    members = _named(answer)
    for rule in sorted(members[b"rules"]):
        rules.add(*(_bytes_or_number(each) for each in rule))
    rules.add(members[b"sourceKey"] or b"")
    return {"dump": digest.digest(), RULES: rules.digest()}


_READERS: dict[bytes, Callable[[bytes, bool, Abilities], Reading]] = {
    b"string": _string,
    b"list": _list,
    b"set": _set,
    b"zset": _sorted_set,
    b"hash": _hash,
    b"stream": _stream,
}


def _after(identifier: bytes) -> bytes:
    """The stream id that follows: exclusive ranges came only with 6.2."""
    milliseconds, _, sequence = identifier.partition(b"-")
    following = int(sequence) + 1
    if following >= 1 << 64:
        return b"%d-0" % (int(milliseconds) + 1)
    return b"%s-%d" % (milliseconds, following)


def _bytes(reply: Any) -> bytes:
    if not isinstance(reply, bytes):  # gone (None), or of another type (an error)
        raise Changed
    return reply


def _list_of(reply: Any) -> list[Any]:
    if not isinstance(reply, list):
        raise Changed
    return reply


def _pairs(reply: Any) -> tuple[list[bytes], list[bytes]]:
    flat = _list_of(reply)
    return flat[::2], flat[1::2]


def _named(reply: Any) -> dict[bytes, Any]:
    names, values = _pairs(reply)
    return dict(zip(names, values, strict=True))


def _bytes_or_number(value: bytes | int) -> bytes:
    return value if isinstance(value, bytes) else number(value)
