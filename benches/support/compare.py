"""The obvious oracle: are the keyspaces of two ends the same?

An end is a server, or a cluster, of which any node is given. Both ends are asked key by key, with
the servers' own commands, over redis-py's connections. Nothing here is shared with the engine, so
that an error in the engine can't hide itself.

    assert_equal("redis://127.0.0.1:7001", "redis://127.0.0.1:7002")

Payloads of DUMP that are the same are the same value. Where they differ, which they may for one
value, the values are read; 100,000 small keys take some three seconds.

What is compared: the type; the absolute expiry; the value (strings byte by byte, lists in order,
sets, hashes, sorted sets with their scores, streams with their ids, counters, groups, consumers and
pending entries); the expiry of each hash field; and which keys one end holds alone. What is not:
encodings, idle times and frequencies, and what only one of the two servers can report.
"""

from __future__ import annotations

import argparse
import time
from binascii import crc_hqx
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import hiredis
import redis

TTL_BOUND_MS = 2_000
"""How far apart the two ends' expiry times may be."""

TRIES = 3
"""How often one question is asked where the link is lost."""

CHUNK_KEYS = 1_000
"""Keys whose types and expiry times are asked in one pipeline."""

CHUNK_BYTES = 32 << 20
"""A bound on the values read in one pipeline (as MEMORY USAGE estimates them)."""

SCAN_COUNT = 1_000
CLIENT_SECONDS = 120.0

UNKNOWN_BYTES = 64 << 10
"""The size assumed for a key where MEMORY USAGE is refused."""

_ADDRESS = {"host", "port", "path", "username", "password", "credential_provider"}
_TLS_NAMES = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that both ends hold and that differs.

    `what` is one of: `type`, `ttl`, `value`, `hash field ttl`, `stream` (its last id and counters),
    `stream groups`, `stream consumers`, `stream pending`. `source` and `target` are what was found,
    cut down to the parts that differ; expiry times are Unix times in ms, or None for no expiry.
    """

    db: int
    key: bytes
    what: str
    source: object
    target: object

    def __str__(self) -> str:
        source, target = _short(self.source), _short(self.target)
        return f"db{self.db} {_short(self.key)}: {self.what}: source {source}, target {target}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`keys` were found on the source; `missing` and `extra` are (db, key) pairs."""

    keys: int
    different: list[Difference]
    missing: list[tuple[int, bytes]]
    extra: list[tuple[int, bytes]]

    @property
    def equal(self) -> bool:
        """Whether both ends hold the same."""
        return not (self.different or self.missing or self.extra)

    def __str__(self) -> str:
        return (
            f"{self.keys:,} keys compared: {len(self.different):,} different, "
            f"{len(self.missing):,} missing, {len(self.extra):,} extra"
        )

    def describe(self, limit: int = 20) -> str:
        """The counts, and the first `limit` findings of each kind, a line each."""
        lines = [str(self)]
        findings: tuple[tuple[str, Sequence[object]], ...] = (
            ("different", self.different),
            ("missing", [f"db{db} {_short(key)}" for db, key in self.missing]),
            ("extra", [f"db{db} {_short(key)}" for db, key in self.extra]),
        )
        for name, found in findings:
            lines += [f"  {name}: {each}" for each in found[:limit]]
            if len(found) > limit:
                lines.append(f"  {name}: … and {len(found) - limit:,} more")
        return "\n".join(lines)


def compare(
    source: str | redis.Redis,
    target: str | redis.Redis,
    *,
    dbs: Iterable[int] | None = None,
    ttl_bound_ms: int = TTL_BOUND_MS,
) -> Comparison:
    """Compare two servers, given as URLs or as redis-py clients; neither is written to.

    `dbs` are the databases to look at (default: every one in which either end has a key). Meant for
    servers at rest: a key that changes meanwhile is reported, one that expires meanwhile is not.
    Raises redis-py's errors when a server can't be asked.
    """
    with _End(source) as src, _End(target) as tgt:
        wanted = sorted(set(dbs) if dbs is not None else src.databases() | tgt.databases())
        result = Comparison(0, [], [], [])
        keys = 0
        for db in wanted:
            src.select(db)
            tgt.select(db)
            seen: set[bytes] = set()
            pair = _Pair(src, tgt, db, ttl_bound_ms)
            for chunk in _chunks(src.scan()):
                fresh = [key for key in dict.fromkeys(chunk) if key not in seen]
                seen.update(fresh)
                _compare_chunk(pair, fresh, result)
            keys += len(seen)
            for chunk in _chunks(tgt.scan()):
                alone = [key for key in dict.fromkeys(chunk) if key not in seen]
                seen.update(alone)
                # Asked again: it may have come to the source after the scan passed it, or be gone.
                for key, (there, here) in zip(
                    alone, pair.both([("EXISTS", key) for key in alone]), strict=True
                ):
                    if here and not there:
                        result.extra.append((db, key))
    return Comparison(keys, result.different, result.missing, result.extra)


def assert_equal(
    source: str | redis.Redis,
    target: str | redis.Redis,
    *,
    dbs: Iterable[int] | None = None,
    allow_extra: bool = False,
    ttl_bound_ms: int = TTL_BOUND_MS,
) -> Comparison:
    """`compare`, and raise `AssertionError` with the findings unless both ends hold the same.

    With `allow_extra` the target may hold keys that the source does not.
    """
    result = compare(source, target, dbs=dbs, ttl_bound_ms=ttl_bound_ms)
    if result.different or result.missing or (result.extra and not allow_extra):
        raise AssertionError(result.describe())
    return result


# ---------------------------------------------------------------------------------------------
# One end

# Where a command has its key; behind its name, but for these.
_SECOND = {"MEMORY", "XINFO"}
_WITHOUT_KEY = {"TIME", "INFO", "COMMAND", "SCAN", "CLUSTER"}


class _Moved(Exception):
    """A slot has another owner than was known."""


class _Node:
    """One server, asked in pipelines; replies come as the server sent them (RESP2, bytes)."""

    def __init__(self, cls: Any, settings: dict[str, Any]) -> None:
        self._pool = redis.ConnectionPool(connection_class=cls, **settings)
        self._link: Any = None
        self._sent = 0

    def begin(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send these commands; `end` has their replies."""
        if self._link is None:
            self._link = self._pool.get_connection()
        self._sent = len(commands)
        self._link.send_packed_command([b"".join(map(hiredis.pack_command, commands))])

    def end(self) -> list[Any]:
        """The replies; an error reply is returned, not raised."""
        return [self._reply() for _ in range(self._sent)]

    def _reply(self) -> Any:
        try:
            return self._link.read_response(disable_decoding=True)
        except redis.ConnectionError:
            raise
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        """Let go of the connection; `begin` makes another."""
        if self._link is not None:
            self._pool.release(self._link)
            self._link = None
        self._pool.disconnect()


class _End:
    """A server, or the primaries of a cluster."""

    def __init__(self, server: str | redis.Redis) -> None:
        if isinstance(server, str):
            pool = redis.ConnectionPool.from_url(_redis_py_url(server))
        else:
            pool = server.connection_pool
        # Where and who, no more: the rest of a pool's settings is bound to that pool.
        settings: dict[str, Any] = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if name in _ADDRESS or name.startswith("ssl_")
        }
        if settings.get("username") is None:
            # As the engine's own are called, so that no cut-over disconnects it.
            settings["client_name"] = "startmigration-compare"
        settings |= {"protocol": 2, "decode_responses": False, "socket_timeout": CLIENT_SECONDS}
        self._class = pool.connection_class
        self._settings = settings
        self._db = 0
        self._nodes = [_Node(self._class, settings)]
        # By slot: the node, as its place in `_nodes`. Empty: this is no cluster.
        self._owners: list[int] = []
        info = self.ask([("INFO", "cluster")])[0]
        if isinstance(info, bytes) and b"cluster_enabled:1" in info:
            self._learn()
        self.field_ttls = self._knows("HPEXPIRETIME")
        self._expiretime = self._knows("PEXPIRETIME")

    def __enter__(self) -> _End:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        for node in self._nodes:
            node.close()

    def _learn(self) -> None:
        """Ask the cluster who has which slots."""
        rows = _sound(self.ask([("CLUSTER", "SLOTS")])[0])
        places: dict[tuple[str, int], int] = {}
        owners = [0] * 16384
        for first, last, (host, port, *_), *_ in rows:
            name = host.decode() if host else self._settings["host"]
            place = places.setdefault((name, int(port)), len(places))
            owners[first : last + 1] = [place] * (last + 1 - first)
        self._close()
        self._nodes = [
            _Node(self._class, self._settings | {"db": self._db, "host": host, "port": port})
            for host, port in places
        ]
        self._owners = owners

    def _knows(self, command: str) -> bool:
        reply = _sound(self.ask([("COMMAND", "INFO", command)])[0])
        return bool(reply) and reply[0] is not None

    def databases(self) -> set[int]:
        """The databases that hold a key."""
        found = set()
        for node in self._nodes:
            text: bytes = _sound(self.ask([("INFO", "keyspace")], node)[0])
            lines = text.splitlines()
            found |= {int(line.split(b":")[0][2:]) for line in lines if line.startswith(b"db")}
        return found

    def select(self, db: int) -> None:
        """Go on in another database."""
        self._close()
        self._db = db
        if self._owners:
            self._learn()
        else:
            self._nodes = [_Node(self._class, self._settings | {"db": db})]

    def scan(self) -> Iterator[bytes]:
        """Every key of the database; some more than once. All nodes of a cluster take turns."""
        left = dict.fromkeys(self._nodes, b"0")
        while left:
            for node, cursor in list(left.items()):
                reply = self.ask([("SCAN", cursor, "COUNT", SCAN_COUNT)], node)[0]
                left[node], keys = _sound(reply)
                yield from keys
                if left[node] == b"0":
                    del left[node]

    def ask(self, commands: Sequence[tuple[Any, ...]], node: _Node | None = None) -> list[Any]:
        """The replies to these commands, by this node or by whichever has the key; an error reply
        is returned, not raised."""
        return _ask((self,), commands, node)[0] if commands else []

    def begin(
        self, commands: Sequence[tuple[Any, ...]], node: _Node | None
    ) -> list[tuple[_Node, Sequence[int]]]:
        """Send them: which went to which node."""
        if node is not None or not self._owners:
            asked = [(node or self._nodes[0], range(len(commands)))]
        else:
            by_node: dict[int, list[int]] = {}
            for at, command in enumerate(commands):
                by_node.setdefault(self._owner(command), []).append(at)
            asked = [(self._nodes[place], which) for place, which in by_node.items()]
        for to, which in asked:
            to.begin([commands[at] for at in which])
        return asked

    def _owner(self, command: tuple[Any, ...]) -> int:
        if command[0] in _WITHOUT_KEY:
            return 0
        return self._owners[_slot(command[2 if command[0] in _SECOND else 1])]

    def end(self, asked: Sequence[tuple[_Node, Sequence[int]]]) -> list[Any]:
        """The replies, in the order of the commands."""
        replies: list[Any] = [None] * sum(len(which) for _, which in asked)
        for node, which in asked:
            for at, reply in zip(which, node.end(), strict=True):
                replies[at] = reply
                if isinstance(reply, redis.ResponseError) and "MOVED" in str(reply):
                    raise _Moved(str(reply))
        return replies

    def again(self) -> None:
        """Begin anew, after a lost link or a slot that moved."""
        for node in self._nodes:
            node.close()
        if self._owners:
            self._learn()

    def now_ms(self) -> int:
        """The server's clock."""
        return _ms(self.ask([("TIME",)])[0])

    def expiries(self, keys: Sequence[bytes]) -> list[int | None]:
        """Each key's expiry as Unix time in ms; None for none (or for no such key)."""
        command = "PEXPIRETIME" if self._expiretime else "PTTL"
        now, *found = self.ask([("TIME",), *((command, key) for key in keys)])
        base = 0 if self._expiretime else _ms(now)
        return [None if left < 0 else base + left for left in map(_sound, found)]


def _ask(
    ends: Sequence[_End], commands: Sequence[tuple[Any, ...]], node: _Node | None = None
) -> list[list[Any]]:
    """Ask all of them at once."""
    tries = TRIES
    while True:
        try:
            asked = [end.begin(commands, node) for end in ends]
            return [end.end(each) for end, each in zip(ends, asked, strict=True)]
        except (redis.ConnectionError, _Moved):
            # After a cut-over the source disconnects clients, a new one before it has a name.
            tries -= 1
            if not tries:
                raise
            for end in ends:
                end.again()


def _slot(key: bytes) -> int:
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return crc_hqx(key, 0) % 16384


@dataclass(slots=True)
class _Pair:
    """Both ends, in one database. `unlike`: types whose equal values are dumped differently."""

    source: _End
    target: _End
    db: int
    bound_ms: int
    unlike: set[bytes] = field(default_factory=set)

    def both(self, commands: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
        """The two ends' replies to each command."""
        if not commands:
            return iter(())
        return zip(*_ask((self.source, self.target), commands), strict=True)

    def apart(self, source_ms: int | None, target_ms: int | None) -> bool:
        """Whether two expiry times (or other moments) are further apart than the bound."""
        if source_ms is None or target_ms is None:
            return source_ms is not target_ms
        return abs(source_ms - target_ms) > self.bound_ms

    def due(self, now_ms: int, *moments_ms: int | None) -> bool:
        """Whether one of these moments has passed, or is within the bound of now."""
        return any(at is not None and at <= now_ms + self.bound_ms for at in moments_ms)


# ---------------------------------------------------------------------------------------------
# A chunk of keys


def _compare_chunk(pair: _Pair, keys: list[bytes], result: Comparison) -> None:
    # 1. Expiry times and types, of all keys; in this order, so that the expiry time is known of a
    # key that the source still had when asked for its type, and the target no more.
    expiries = list(zip(pair.source.expiries(keys), pair.target.expiries(keys), strict=True))
    types = list(pair.both([("TYPE", key) for key in keys]))
    now_ms = pair.source.now_ms()
    by_type: dict[bytes, list[bytes]] = {}
    moments: dict[bytes, tuple[int | None, int | None]] = {}
    for key, (source_type, target_type), expiry in zip(keys, types, expiries, strict=True):
        if source_type == b"none":
            continue  # it expired, or was deleted, after SCAN returned it
        if source_type != target_type:
            # An expiry that is due may have struck on one end alone.
            if pair.due(now_ms, *expiry):
                continue
            if target_type == b"none":
                result.missing.append((pair.db, key))
            else:
                result.different.append(
                    Difference(pair.db, key, "type", _text(source_type), _text(target_type))
                )
            continue
        moments[key] = expiry
        by_type.setdefault(source_type, []).append(key)

    # 2. Values, type by type, no more at a time than fits.
    found: list[Difference] = []
    for kind, of_type in by_type.items():
        of_kind = _dumped_differently(pair, kind, of_type)
        for some in _bounded(pair.source, of_kind):
            if kind == b"stream":
                found += _compare_streams(pair, some)
            else:
                found += _compare_values(pair, kind, some)
            if kind == b"hash":
                found += _compare_field_ttls(pair, some)

    # 3. Expiry times; and nothing is said of the value of a key that expired while it was read.
    now_ms = pair.source.now_ms()
    for key, (source_ms, target_ms) in moments.items():
        if pair.apart(source_ms, target_ms):
            found.append(Difference(pair.db, key, "ttl", source_ms, target_ms))
    result.different.extend(
        each for each in found if each.what == "ttl" or not pair.due(now_ms, *moments[each.key])
    )


def _bounded(end: _End, keys: list[bytes]) -> Iterator[list[bytes]]:
    """Cut `keys` into lists whose values are some `CHUNK_BYTES` together."""
    sizes = end.ask([("MEMORY", "USAGE", key, "SAMPLES", 1) for key in keys])
    some: list[bytes] = []
    total = 0
    for key, size in zip(keys, sizes, strict=True):
        some.append(key)
        total += size if isinstance(size, int) else UNKNOWN_BYTES
        if total >= CHUNK_BYTES:
            yield some
            some, total = [], 0
    if some:
        yield some


def _dumped_differently(pair: _Pair, kind: bytes, keys: list[bytes]) -> list[bytes]:
    """The keys of this type that may differ: their payloads do."""
    if kind in pair.unlike:
        return keys
    found = []
    for some in _bounded(pair.source, keys):
        for key, (source, target) in zip(
            some, pair.both([("DUMP", key) for key in some]), strict=True
        ):
            dumped = isinstance(source, bytes) and isinstance(target, bytes)
            if not dumped or source[:-_DUMP_FOOTER_BYTES] != target[:-_DUMP_FOOTER_BYTES]:
                found.append(key)
    if 2 * len(found) > len(keys):
        pair.unlike.add(kind)
    return found


# Every type's way to be read whole. A type of a module can only be read by DUMP.
_READ: dict[bytes, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    b"string": (("GET",), ()),
    b"list": (("LRANGE",), (0, -1)),
    b"set": (("SMEMBERS",), ()),
    b"hash": (("HGETALL",), ()),
    b"zset": (("ZRANGE",), (0, -1, "WITHSCORES")),
}
_DUMP_FOOTER_BYTES = 10


def _compare_values(pair: _Pair, kind: bytes, keys: list[bytes]) -> Iterator[Difference]:
    before, after = _READ.get(kind, (("DUMP",), ()))
    replies = pair.both([(*before, key, *after) for key in keys])
    for key, (source, target) in zip(keys, replies, strict=True):
        # The same bytes in the same order are the same value, whatever their type.
        if source == target and not isinstance(source, Exception):
            continue
        there, here = _value(kind, source), _value(kind, target)
        if there != here:
            yield Difference(pair.db, key, "value", *_parts_that_differ(there, here))


def _value(kind: bytes, reply: Any) -> object:
    """A reply as a value in which order and notation count only where they mean something."""
    reply = _sound(reply)
    if reply is None:
        return None
    if kind == b"set":
        return frozenset(reply)
    if kind == b"hash":
        return dict(_pairs(reply))
    if kind == b"zset":
        # Versions write the same score differently ("0.1", "0.10000000000000001").
        return [(member, float(score)) for member, score in _pairs(reply)]
    if kind not in _READ:
        return bytes(reply[:-_DUMP_FOOTER_BYTES])  # the footer holds the RDB version: it may differ
    return reply


def _compare_field_ttls(pair: _Pair, keys: list[bytes]) -> Iterator[Difference]:
    """Expiry times of hash fields. An end without HPEXPIRETIME can't have any."""
    if not (pair.source.field_ttls or pair.target.field_ttls):
        return
    sides = []
    for end in (pair.source, pair.target):
        expiries: list[dict[bytes, int]] = [{} for _ in keys]
        if end.field_ttls:
            names = [_sound(reply) for reply in end.ask([("HKEYS", key) for key in keys])]
            asked = [(at, key, n) for at, (key, n) in enumerate(zip(keys, names, strict=True)) if n]
            replies = end.ask(
                [("HPEXPIRETIME", key, "FIELDS", len(fields), *fields) for _, key, fields in asked]
            )
            for (at, _, fields), times in zip(asked, replies, strict=True):
                expiries[at] = {
                    name: ms for name, ms in zip(fields, _sound(times), strict=True) if ms >= 0
                }
        sides.append(expiries)
    for key, source, target in zip(keys, *sides, strict=True):
        apart = [
            name
            for name in source.keys() | target.keys()
            if pair.apart(source.get(name), target.get(name))
        ]
        if apart:
            there = {name: source.get(name) for name in sorted(apart)}
            here = {name: target.get(name) for name in sorted(apart)}
            yield Difference(pair.db, key, "hash field ttl", there, here)


# ---------------------------------------------------------------------------------------------
# Streams

_STREAM_FACTS = (
    b"length",
    b"last-generated-id",
    b"max-deleted-entry-id",
    b"entries-added",
)
_GROUP_FACTS = (b"consumers", b"pending", b"last-delivered-id", b"entries-read")


def _compare_streams(pair: _Pair, keys: list[bytes]) -> Iterator[Difference]:
    # 1. Entries, the stream's own facts, and its groups'.
    commands: list[tuple[Any, ...]] = []
    for key in keys:
        commands += [("XRANGE", key, "-", "+"), ("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)]
    replies = list(pair.both(commands))
    with_groups: list[tuple[bytes, bytes, int]] = []
    for at, key in enumerate(keys):
        entries, facts, groups = replies[3 * at : 3 * at + 3]
        source, target = map(_sound, entries)
        if source != target:
            yield Difference(pair.db, key, "value", *_parts_that_differ(source, target))
        one, other = (dict(_pairs(_rows(each))) for each in facts)
        there, here = _known_to_both(one, other, _STREAM_FACTS)
        if there != here:
            yield Difference(pair.db, key, "stream", *_parts_that_differ(there, here))

        source_groups, target_groups = (_by_name(_rows(each)) for each in groups)
        alone = source_groups.keys() ^ target_groups.keys()
        there = {name: source_groups.get(name) for name in alone}
        here = {name: target_groups.get(name) for name in alone}
        for name in source_groups.keys() & target_groups.keys():
            one, other = _known_to_both(source_groups[name], target_groups[name], _GROUP_FACTS)
            if one != other:
                there[name], here[name] = one, other
            pending = max(source_groups[name][b"pending"], target_groups[name][b"pending"])
            with_groups.append((key, name, pending))
        if there:
            yield Difference(pair.db, key, "stream groups", there, here)

    # 2. The consumers and the pending entries of the groups that both ends have.
    commands = [("TIME",)]
    for key, group, pending in with_groups:
        commands.append(("XINFO", "CONSUMERS", key, group))
        commands.append(("XPENDING", key, group, "-", "+", max(1, pending)))
    clocks, *replies = list(pair.both(commands))
    for at, (key, group, _) in enumerate(with_groups):
        consumers, pendings = replies[2 * at : 2 * at + 2]
        there, here = (
            {name: each[b"pending"] for name, each in _by_name(_rows(reply)).items()}
            for reply in consumers
        )
        if there != here:
            yield Difference(pair.db, key, "stream consumers", {group: there}, {group: here})
        source, target = (
            {entry: (consumer, _ms(clock) - idle, times) for entry, consumer, idle, times in reply}
            for clock, reply in zip(clocks, map(_rows, pendings), strict=True)
        )
        apart = [
            entry
            for entry in source.keys() | target.keys()
            if not _same_pending(pair, source.get(entry), target.get(entry))
        ]
        if apart:
            yield Difference(
                pair.db,
                key,
                "stream pending",
                {(group, entry): source.get(entry) for entry in sorted(apart)},
                {(group, entry): target.get(entry) for entry in sorted(apart)},
            )


def _same_pending(
    pair: _Pair, one: tuple[bytes, int, int] | None, other: tuple[bytes, int, int] | None
) -> bool:
    """Whether (consumer, delivered at ms, deliveries) agree, the moment within the bound."""
    if one is None or other is None:
        return one is other
    return (one[0], one[2]) == (other[0], other[2]) and not pair.apart(one[1], other[1])


def _rows(reply: Any) -> list[Any]:
    """A reply about a stream; nothing where the stream expired a moment ago."""
    gone = isinstance(reply, redis.ResponseError) and (
        "no such key" in str(reply) or str(reply).startswith("NOGROUP")
    )
    return [] if gone else _sound(reply)


def _by_name(rows: list[list[Any]]) -> dict[bytes, dict[bytes, Any]]:
    """XINFO's rows as dicts, by their `name`."""
    tables = (dict(_pairs(row)) for row in rows)
    return {table[b"name"]: table for table in tables}


def _known_to_both(
    source: dict[bytes, Any], target: dict[bytes, Any], names: Sequence[bytes]
) -> tuple[dict[bytes, Any], dict[bytes, Any]]:
    """Those of the named facts which both ends report: Redis 7.0 added some."""
    both = [name for name in names if name in source and name in target]
    return {name: source[name] for name in both}, {name: target[name] for name in both}


# ---------------------------------------------------------------------------------------------
# Small things


def _sound(reply: Any) -> Any:
    """The reply, unless it is an error: the oracle must never take two errors for equal values."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _ms(reply: Any) -> int:
    seconds, micros = _sound(reply)
    return int(seconds) * 1000 + int(micros) // 1000


def _chunks(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    while chunk := list(islice(keys, CHUNK_KEYS)):
        yield chunk


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _short(value: object, limit: int = 120) -> str:
    # A name or value can be megabytes long: cut before it is formatted, and again after.
    if isinstance(value, bytes) and len(value) > limit:
        return f"{value[:limit]!r}… ({len(value):,} bytes)"
    text = repr(value)
    return text if len(text) <= 2 * limit else f"{text[: 2 * limit]}… ({len(text):,} characters)"


def _parts_that_differ(source: Any, target: Any) -> tuple[object, object]:
    """For a report: of two collections of one kind only what they don't share, in part."""
    few = 5
    if isinstance(source, dict) and isinstance(target, dict):
        names = [
            name
            for name in [*source, *(name for name in target if name not in source)]
            if source.get(name) != target.get(name)
        ][:few]
        return (
            {name: source[name] for name in names if name in source},
            {name: target[name] for name in names if name in target},
        )
    if isinstance(source, frozenset) and isinstance(target, frozenset):
        return set(islice(source - target, few)), set(islice(target - source, few))
    if isinstance(source, list) and isinstance(target, list):
        shared = zip(source, target, strict=False)
        first = next((at for at, (one, other) in enumerate(shared) if one != other), None)
        if first is None:
            first = min(len(source), len(target))
        cut = slice(first, first + few)
        return (
            f"{len(source):,} items, from {first}: {source[cut]!r}",
            f"{len(target):,} items, from {first}: {target[cut]!r}",
        )
    return source, target


def _redis_py_url(url: str) -> str:
    """The engine's notation of a URL in redis-py's: other schemes, other names of TLS options."""
    parts = urlsplit(url if "://" in url else f"redis://{url}")
    query = [(_TLS_NAMES.get(name, name), value) for name, value in parse_qsl(parts.query)]
    if ("verify", "no") in query:
        query[query.index(("verify", "no"))] = ("ssl_cert_reqs", "none")
    # Put together by hand: urlunsplit would write unix:///path as unix:/path.
    scheme = parts.scheme.replace("valkey", "redis")
    options = f"?{urlencode(query)}" if query else ""
    return f"{scheme}://{parts.netloc}{parts.path}{options}"


def main(argv: list[str] | None = None) -> int:
    """`python -m benches.support.compare SOURCE TARGET`: print the findings; 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m benches.support.compare")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--allow-extra", action="store_true")
    options = parser.parse_args(argv)
    started = time.monotonic()
    result = compare(options.source, options.target)
    print(f"{result.describe()}\n{time.monotonic() - started:.1f} s")
    bad = result.different or result.missing or (result.extra and not options.allow_extra)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
