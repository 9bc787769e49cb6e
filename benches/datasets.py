"""Seeded data sets, written into a real server as fast as one core can.

`python -m benches.datasets NAME --url URL [--scale F] [--seed N] [--flush]`

Every generator is a function of its seed: the same seed writes the same keys and values on every
machine (expiry times are relative to the moment of filling, rounded to a minute). Values are
random bytes, so that they do not compress: the worst case for the server's LZF, and the one in
which nobody can win by being lucky.

Commands are formatted as RESP bytes in bulk and sent in large writes. Replies are read after each
write, so the server never has to hold more than a write's worth of them, and each of them is
checked: a data set is either complete or an error.
"""

from __future__ import annotations

import argparse
import random
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis

SEED = 20_150_202
"""The seed used unless another is given."""

WRITE_BYTES = 512 * 1024
"""How much is formatted before it is sent: large enough to make system calls rare."""

READ_BYTES = 256 * 1024
"""The size of one read of replies."""

CONNECT_SECONDS = 10.0
STALL_SECONDS = 120.0
"""The longest wait for a server that neither reads nor answers."""

HOUR_MS = 3_600_000


class DatasetError(Exception):
    """The data set could not be written; the message says what the server answered."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a generator wrote.

    `bytes` counts key names and values as the user sees them (no server overhead, no protocol);
    `seconds` is the time it took; `field_ttls` the hash fields with a TTL of their own. `by_type`
    goes by what a key holds: a HyperLogLog or a bitmap is counted as such, though TYPE calls it a
    string (and a geo set a zset).
    """

    name: str
    seed: int
    keys: int
    bytes: int
    seconds: float
    with_ttl: int
    field_ttls: int
    by_type: dict[str, int] = field(default_factory=dict)
    by_db: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        types = ", ".join(f"{n:,} {name}" for name, n in sorted(self.by_type.items()))
        dbs = ", ".join(f"db{db} {n:,}" for db, n in sorted(self.by_db.items()))
        rate = self.keys / self.seconds if self.seconds else 0.0
        return (
            f"{self.name}: {self.keys:,} keys, {self.bytes / 1e6:,.1f} MB, "
            f"{self.with_ttl:,} with TTL, {self.field_ttls:,} fields with TTL; {types}; {dbs}; "
            f"{self.seconds:.1f} s ({rate:,.0f} keys/s)"
        )


# ---------------------------------------------------------------------------------------------
# The connection


def _connect(url: str) -> tuple[socket.socket, str | None, str | None]:
    """Open a socket to a redis://, rediss:// or unix:// URL; return it with user and password.

    Raises `DatasetError` for a URL of another kind, `OSError` when nobody listens.
    """
    parts = urlsplit(url)
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    sock: socket.socket
    if parts.scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(unquote(parts.path))
    elif parts.scheme in ("redis", "rediss", "valkey", "valkeys"):
        host, port = parts.hostname or "127.0.0.1", parts.port or 6379
        sock = socket.create_connection((host, port), CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme in ("rediss", "valkeys"):
            options = dict(parse_qsl(parts.query))
            context = ssl.create_default_context(cafile=options.get("ca_file"))
            if "cert_file" in options:
                context.load_cert_chain(options["cert_file"], options.get("key_file"))
            sock = context.wrap_socket(sock, server_hostname=options.get("server_name", host))
    else:
        raise DatasetError(f"{parts.scheme or url!r}: expected redis://, rediss:// or unix://")
    return sock, user, password


def resp(*args: bytes | str | int) -> bytes:
    """One command as RESP bytes."""
    out = [b"*%d\r\n" % len(args)]
    for arg in args:
        raw = arg if isinstance(arg, bytes) else str(arg).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(out)


class Loader:
    """A connection that takes commands as bytes in bulk and checks every reply."""

    def __init__(self, url: str) -> None:
        self._sock, user, password = _connect(url)
        self._sock.settimeout(STALL_SECONDS)
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._due = 0
        if password is not None:
            try:
                self.ask("AUTH", *([user] if user else []), password)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; what was queued and not sent is forgotten."""
        self._sock.close()

    def raw(self, data: bytes, commands: int = 1) -> None:
        """Queue `data`, which holds that many whole commands."""
        self._out.append(data)
        self._out_bytes += len(data)
        self._due += commands
        if self._out_bytes >= WRITE_BYTES:
            self._send()

    def add(self, *args: bytes | str | int) -> None:
        """Queue one command."""
        self.raw(resp(*args))

    def ask(self, *args: bytes | str | int) -> object:
        """Send everything queued and one command; return its reply.

        Raises `DatasetError` when this or an earlier command was refused.
        """
        self.finish()
        self._sock.sendall(resp(*args))
        while (reply := self._reader.gets()) is _NOT_ENOUGH:
            self._read()
        return self._checked(reply)

    def finish(self) -> None:
        """Send what is queued and wait for all replies."""
        self._send()
        while self._due:
            self._read()
            self._count()

    def _send(self) -> None:
        if self._out:
            self._sock.sendall(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0
        # Replies are read now without waiting for them: the server answers while the next write
        # is being formatted.
        self._sock.setblocking(False)
        try:
            while True:
                self._read()
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            self._sock.settimeout(STALL_SECONDS)
        self._count()

    def _read(self) -> None:
        data = self._sock.recv(READ_BYTES)
        if not data:
            raise DatasetError("the server closed the connection while it was being filled")
        self._reader.feed(data)

    def _count(self) -> None:
        gets = self._reader.gets
        while (reply := gets()) is not _NOT_ENOUGH:
            self._checked(reply)
            self._due -= 1

    @staticmethod
    def _checked(reply: object) -> object:
        if isinstance(reply, hiredis.ReplyError):
            raise DatasetError(f"the server refused a command of the data set: {reply}")
        return reply


_NOT_ENOUGH = object()


# ---------------------------------------------------------------------------------------------
# What all generators share


class _Fill:
    """One filling of one server: the loader, the random source, and the tally."""

    def __init__(self, name: str, url: str, seed: int, dbs: tuple[int, ...] = (0,)) -> None:
        self.name = name
        self.seed = seed
        self.started = time.monotonic()
        self.random = random.Random(seed)
        self.load = Loader(url)
        self.types: Counter[str] = Counter()
        self.dbs: Counter[int] = Counter()
        self.bytes = 0
        self.with_ttl = 0
        self.field_ttls = 0
        self.db = 0
        self.now_ms = int(time.time() // 60 * 60_000)
        self.knows_field_ttl = False
        self._dbs = dbs

    def __enter__(self) -> _Fill:
        try:
            for db in self._dbs:
                self.select(db)
                # Writing into what is there already would append to lists and fail on streams.
                if held := self.load.ask("DBSIZE"):
                    raise DatasetError(f"database {db} already holds {held} keys: empty it first")
            info = self.load.ask("COMMAND", "INFO", "HPEXPIRE")
        except BaseException:
            self.load.close()
            raise
        self.knows_field_ttl = isinstance(info, list) and bool(info) and info[0] is not None
        return self

    def __exit__(self, *exc: object) -> None:
        self.load.close()

    def select(self, db: int) -> None:
        """Go on in another database."""
        self.load.add("SELECT", db)
        self.db = db

    def tally(self, kind: str, size: int) -> None:
        """Count one key of this type, whose name and value are `size` bytes together."""
        self.types[kind] += 1
        self.dbs[self.db] += 1
        self.bytes += size

    def expire(self, key: bytes, at_ms: int) -> None:
        """Give the key this absolute expiry (Unix time in ms)."""
        self.load.add(b"PEXPIREAT", key, at_ms)
        self.with_ttl += 1

    def some_expiry(self) -> int:
        """An expiry at least two hours ahead: one in four falls on one of four fixed hours."""
        if self.random.random() < 0.25:
            return self.now_ms + self.random.choice((2, 24, 168, 8760)) * HOUR_MS
        return self.now_ms + 2 * HOUR_MS + self.random.randrange(30 * 24 * HOUR_MS)

    def done(self) -> Summary:
        """Wait for the last reply, and sum up."""
        self.load.finish()
        return Summary(
            name=self.name,
            seed=self.seed,
            keys=sum(self.types.values()),
            bytes=self.bytes,
            seconds=time.monotonic() - self.started,
            with_ttl=self.with_ttl,
            field_ttls=self.field_ttls,
            by_type=dict(self.types),
            by_db=dict(self.dbs),
        )


def _bulks(items: list[bytes]) -> bytes:
    """These arguments as RESP bulk strings, without the command's header."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(item), item) for item in items])


def _slices(blob: bytes, size: int) -> list[bytes]:
    return [blob[at : at + size] for at in range(0, len(blob), size)]


# ---------------------------------------------------------------------------------------------
# strings


def strings(url: str, *, n: int = 2_000_000, size: int = 100, seed: int = SEED) -> Summary:
    """`n` strings of `size` random bytes, named `key:0000000000` and on, in database 0."""
    with _Fill("strings", url, seed) as fill:
        batch = max(1, WRITE_BYTES // (size + 64))
        form = b"*3\r\n$3\r\nSET\r\n$14\r\nkey:%010d\r\n$" + b"%d" % size + b"\r\n%b\r\n"
        for first in range(0, n, batch):
            count = min(batch, n - first)
            blob = fill.random.randbytes(count * size)
            values = _slices(blob, size) if size else [b""] * count
            commands = [
                form % pair for pair in zip(range(first, first + count), values, strict=True)
            ]
            fill.load.raw(b"".join(commands), count)
        fill.types["string"] = fill.dbs[0] = n
        fill.bytes = n * (size + 14)
        return fill.done()


# ---------------------------------------------------------------------------------------------
# mixed: every type, in its small and its large encodings

_STREAM_FIELDS = (b"temperature", b"pressure")


def _put_string(fill: _Fill, key: bytes, size: int) -> int:
    value = fill.random.randbytes(size)
    fill.load.add(b"SET", key, value)
    return size


def _put_int(fill: _Fill, key: bytes, _size: int) -> int:
    value = b"%d" % fill.random.randrange(-(2**62), 2**62)
    fill.load.add(b"SET", key, value)
    return len(value)


def _put_hash(fill: _Fill, key: bytes, fields: int, size: int) -> int:
    values = _slices(fill.random.randbytes(fields * size), size)
    body = [x for i, value in enumerate(values) for x in (b"f%d" % i, value)]
    total = _put_items(fill, b"HSET", key, body)
    # The random source is asked on every server, so that all of them get the same values.
    some, at_ms = fill.random.random() < 0.1, fill.some_expiry()
    if some and fill.knows_field_ttl:
        fill.load.add(b"HPEXPIREAT", key, at_ms, b"FIELDS", 2, b"f0", b"f2")
        fill.field_ttls += 2
    return total


def _put_items(fill: _Fill, command: bytes, key: bytes, items: list[bytes]) -> int:
    fill.load.raw(
        b"*%d\r\n$%d\r\n%b\r\n" % (2 + len(items), len(command), command) + _bulks([key, *items])
    )
    return sum(map(len, items))


def _put_list(fill: _Fill, key: bytes, items: int, size: int) -> int:
    values = _slices(fill.random.randbytes(items * size), size)
    # Every fourth element is an integer: lists keep those in an encoding of their own.
    values[::4] = [b"%d" % int.from_bytes(value[:5], "big", signed=True) for value in values[::4]]
    return _put_items(fill, b"RPUSH", key, values)


def _put_set(fill: _Fill, key: bytes, items: int, size: int) -> int:
    return _put_items(fill, b"SADD", key, _slices(fill.random.randbytes(items * size), size))


def _put_intset(fill: _Fill, key: bytes, items: int, bits: int) -> int:
    values = {fill.random.getrandbits(bits) for _ in range(items)}
    return _put_items(fill, b"SADD", key, [b"%d" % value for value in sorted(values)])


def _put_zset(fill: _Fill, key: bytes, items: int, size: int) -> int:
    members = _slices(fill.random.randbytes(items * size), size)
    body: list[bytes] = []
    for i, member in enumerate(members):
        # Whole, fractional, negative and infinite scores travel in different encodings.
        score = fill.random.uniform(-1e6, 1e6)
        text = b"%d" % score if i % 3 else repr(score).encode()
        body += (b"+inf" if i == 40 else text, member)
    return _put_items(fill, b"ZADD", key, body)


def _put_stream(fill: _Fill, key: bytes, entries: int, size: int, groups: int) -> int:
    """A stream with some deleted entries, and groups with consumers and pending entries."""
    rng, load = fill.random, fill.load
    form = (
        b"*7\r\n$4\r\nXADD\r\n"
        + _bulks([key])
        + b"$%d\r\n%b\r\n"
        + b"".join(b"$%d\r\n%b\r\n$%%d\r\n%%b\r\n" % (len(f), f) for f in _STREAM_FIELDS)
    )
    ids, total = [], 0
    at = 1_700_000_000_000 + rng.randrange(10**10)
    for i in range(entries):
        at += rng.randrange(1000)
        entry = b"%d-%d" % (at, i)
        ids.append(entry)
        reading, value = b"%d" % rng.randrange(1000), rng.randbytes(size)
        load.raw(form % (len(entry), entry, len(reading), reading, len(value), value))
        total += len(entry) + len(reading) + size + sum(map(len, _STREAM_FIELDS))
    if entries > 4:
        load.add(b"XDEL", key, ids[1], ids[-1])
    for group in range(groups):
        name = b"group-%d" % group
        load.add(b"XGROUP", b"CREATE", key, name, ids[entries // 2] if group else b"0")
        load.add(b"XREADGROUP", b"GROUP", name, b"alice", b"COUNT", 3, b"STREAMS", key, b">")
        load.add(b"XREADGROUP", b"GROUP", name, b"bob", b"COUNT", 2, b"STREAMS", key, b">")
        load.add(b"XACK", key, name, ids[0])
        total += 32
    return total


_Put = Callable[[_Fill, bytes], int]

# (share of all keys, type, writer): small encodings are common and large ones rare, as in a cache.
# Sizes are chosen so that a key is some 850 bytes with its name on average.
_MIX: tuple[tuple[float, str, _Put], ...] = (
    (0.060, "string", lambda f, k: _put_int(f, k, 0)),
    (0.188, "string", lambda f, k: _put_string(f, k, f.random.randrange(8, 44))),
    (0.180, "string", lambda f, k: _put_string(f, k, f.random.randrange(45, 500))),
    (0.032, "string", lambda f, k: _put_string(f, k, f.random.randrange(2_000, 10_000))),
    (0.170, "hash", lambda f, k: _put_hash(f, k, f.random.randrange(3, 16), 24)),
    (0.020, "hash", lambda f, k: _put_hash(f, k, f.random.randrange(10, 40), 100)),
    (0.008, "hash", lambda f, k: _put_hash(f, k, f.random.randrange(520, 700), 16)),
    (0.090, "list", lambda f, k: _put_list(f, k, f.random.randrange(2, 24), 20)),
    (0.010, "list", lambda f, k: _put_list(f, k, f.random.randrange(500, 900), 20)),
    (0.060, "set", lambda f, k: _put_set(f, k, f.random.randrange(3, 20), 16)),
    (0.040, "set", lambda f, k: _put_intset(f, k, f.random.randrange(5, 60), 15)),
    (0.010, "set", lambda f, k: _put_intset(f, k, f.random.randrange(50, 200), 40)),
    (0.008, "set", lambda f, k: _put_set(f, k, f.random.randrange(300, 600), 16)),
    (0.080, "zset", lambda f, k: _put_zset(f, k, f.random.randrange(3, 20), 16)),
    (0.008, "zset", lambda f, k: _put_zset(f, k, f.random.randrange(300, 600), 16)),
    (0.030, "stream", lambda f, k: _put_stream(f, k, f.random.randrange(1, 12), 24, 0)),
    (0.006, "stream", lambda f, k: _put_stream(f, k, f.random.randrange(30, 160), 24, 2)),
)


def _mix_into(fill: _Fill, n: int, prefix: bytes = b"") -> None:
    """Write `n` keys of `_MIX`, a third of them with a TTL, into the selected database."""
    rng = fill.random
    weights = [share for share, _, _ in _MIX]
    for first in range(0, n, 10_000):
        count = min(10_000, n - first)
        chosen = rng.choices(_MIX, weights, k=count)
        for i, (_, kind, put) in enumerate(chosen, first):
            key = b"%b%b:%08d" % (prefix, kind.encode(), i)
            fill.tally(kind, len(key) + put(fill, key))
            if i % 3 == 0:
                fill.expire(key, fill.some_expiry())


def mixed(url: str, *, n: int = 500_000, seed: int = SEED) -> Summary:
    """`n` keys of every type and encoding, a third with TTLs, some 850 bytes each, in database 0.

    Where the server knows HPEXPIRE, one hash in ten has TTLs on some of its fields.
    """
    with _Fill("mixed", url, seed) as fill:
        _mix_into(fill, n)
        return fill.done()


def tagged(url: str, tags: Sequence[bytes], *, n: int = 100_000, seed: int = SEED) -> Summary:
    """As `mixed`, for a cluster's node: the names have these hash tags, which must be its own."""
    with _Fill("tagged", url, seed) as fill:
        for at, tag in enumerate(tags):
            share = n * (at + 1) // len(tags) - n * at // len(tags)
            _mix_into(fill, share, b"{%b}:" % tag)
        return fill.done()


# ---------------------------------------------------------------------------------------------
# large: few keys, much in each


def large(url: str, *, factor: float = 1.0, seed: int = SEED) -> Summary:
    """20,000 strings of 64 KiB and 200 hashes of 50,000 fields of 32 bytes, in database 0.

    `factor` scales how many strings and hashes there are, never their size: one hash at least.
    """
    with _Fill("large", url, seed) as fill:
        for i in range(max(1, round(20_000 * factor))):
            key = b"blob:%06d" % i
            fill.tally("string", len(key) + _put_string(fill, key, 65_536))
        for i in range(max(1, round(200 * factor))):
            key = b"table:%04d" % i
            size = len(key)
            for first in range(0, 50_000, 5_000):
                values = _slices(fill.random.randbytes(5_000 * 32), 32)
                names = [b"field:%06d" % f for f in range(first, first + 5_000)]
                body = [x for pair in zip(names, values, strict=True) for x in pair]
                size += _put_items(fill, b"HSET", key, body)
            fill.tally("hash", size)
        return fill.done()


# ---------------------------------------------------------------------------------------------
# demo: everything a keyspace may hold, in three databases

DEMO_DBS = (0, 1, 5)


def _oddities(fill: _Fill) -> Iterator[tuple[str, bytes, int]]:
    """Write what real keyspaces hold and migrations trip over; yield (type, key, value bytes)."""
    rng, load = fill.random, fill.load

    names = {
        "empty": b"",
        "spaces": b"a key with  spaces ",
        "nul": b"nul\x00inside\x00",
        "crlf": b"line\r\nbreak",
        "resp": b"$5\r\nhello\r\n*1\r\n",
        "binary": bytes(range(256)),
        "utf8": "ключ-鍵-🔑".encode(),
        "quotes": b"\"quoted\" 'and' \\escaped",
        "glob": b"*[a-z]?{}",
        "tag": b"{tag}same-slot",
        "long": b"long:" + rng.randbytes(1_000_000),
    }
    for key in names.values():
        yield "string", key, _put_string(fill, key, 64)

    load.add(b"SET", b"value:empty", b"")
    yield "string", b"value:empty", 0
    for text in (b"0", b"-1", b"127", b"-32769", b"2147483648", b"9223372036854775807", b"007"):
        key = b"value:int:" + text
        load.add(b"SET", key, text)
        yield "string", key, len(text)
    for zeros in (100, 100_000):
        # Compressible on purpose: these travel as LZF inside DUMP.
        key = b"value:compressible:%d" % zeros
        load.add(b"SET", key, bytes(zeros))
        yield "string", key, zeros
    yield "string", b"value:8M", _put_string(fill, b"value:8M", 8 << 20)

    key = b"nul\x00hash"
    load.add(b"HSET", key, b"", b"empty field", b"\x00", b"\x00\r\n", b"empty value", b"")
    yield "hash", key, 40
    key = b"list:with-empty-and-huge"
    yield "list", key, _put_items(fill, b"RPUSH", key, [b"", b"\r\n", rng.randbytes(100_000), b"7"])
    key = b"set:mixed"
    yield "set", key, _put_items(fill, b"SADD", key, [b"1", b"2", b"three", b""])
    key = b"zset:edges"
    edges = [b"-inf", b"low", b"inf", b"high", b"0.1", b"tenth", b"1e-320", b"denormal"]
    edges += [b"9007199254740993", b"past-2-53", b"3", b"", b"3", b"\x00"]
    yield "zset", key, _put_items(fill, b"ZADD", key, edges)

    for size, key in ((5, b"hll:sparse"), (20_000, b"hll:dense")):
        yield (
            "hyperloglog",
            key,
            _put_items(fill, b"PFADD", key, _slices(rng.randbytes(size * 8), 8)),
        )
    for bit in rng.sample(range(1 << 20), 200):
        load.add(b"SETBIT", b"bitmap", bit, 1)
    yield "bitmap", b"bitmap", 1 << 17
    load.add(b"BITFIELD", b"bitfield", b"SET", b"u7", 13, 99, b"SET", b"i32", 64, -7)
    yield "bitmap", b"bitfield", 12
    geo: list[bytes] = []
    for i in range(300):
        longitude, latitude = rng.uniform(-179, 179), rng.uniform(-85, 85)
        geo += (b"%.6f" % longitude, b"%.6f" % latitude, b"place-%d" % i)
    yield "geo", b"geo", _put_items(fill, b"GEOADD", b"geo", geo)

    yield "stream", b"stream:work", _put_stream(fill, b"stream:work", 500, 32, 3)
    key = b"stream:drained"
    load.add(b"XADD", key, b"5-1", b"f", b"v")
    load.add(b"XGROUP", b"CREATE", key, b"idle", b"0")
    # A consumer with nothing pending is made by reading: Redis 6.0 knows no CREATECONSUMER.
    load.add(b"XREADGROUP", b"GROUP", b"idle", b"done", b"STREAMS", key, b">")
    load.add(b"XACK", key, b"idle", b"5-1")
    load.add(b"XDEL", key, b"5-1")
    yield "stream", key, 8
    key = b"stream:pending-of-deleted"
    for i in (1, 2, 3):
        load.add(b"XADD", key, b"7-%d" % i, b"\x00", b"\r\n")
    load.add(b"XGROUP", b"CREATE", key, b"g", b"0")
    load.add(b"XREADGROUP", b"GROUP", b"g", b"c", b"STREAMS", key, b">")
    load.add(b"XDEL", key, b"7-2")
    yield "stream", key, 24


def demo(url: str, *, n: int = 200_000, seed: int = SEED) -> Summary:
    """About `n` keys of every type in databases 0, 1 and 5, a third with TTLs, oddities in each.

    Names with spaces, NULs, line breaks, every byte, nothing at all, and one of 1 MB; HyperLogLogs,
    bitmaps, geo sets; streams with groups and pending entries. Where the server knows HPEXPIRE,
    some hashes have TTLs on their fields.
    """
    with _Fill("demo", url, seed, DEMO_DBS) as fill:
        rest = n
        for db, share in zip(DEMO_DBS, (0.70, 0.25, 0.05), strict=True):
            fill.select(db)
            odd = 0
            for kind, key, size in _oddities(fill):
                fill.tally(kind, len(key) + size)
                if odd % 3 == 1:
                    fill.expire(key, fill.some_expiry())
                odd += 1
            count = rest if db == DEMO_DBS[-1] else round(n * share)
            count = max(0, count - odd)
            _mix_into(fill, count, b"db%d:" % db)
            rest = max(0, rest - count - odd)
        return fill.done()


# ---------------------------------------------------------------------------------------------
# By name, and the command line


def load(name: str, url: str, *, scale: float = 1.0, seed: int = SEED) -> Summary:
    """Fill the server at `url` with the data set of this name, `scale` times its full size.

    Raises `DatasetError` for an unknown name, a database that is not empty, or a refused command.
    """
    if name == "strings":
        return strings(url, n=max(1, round(2_000_000 * scale)), seed=seed)
    if name == "mixed":
        return mixed(url, n=max(1, round(500_000 * scale)), seed=seed)
    if name == "large":
        return large(url, factor=scale, seed=seed)
    if name == "demo":
        return demo(url, n=max(1, round(200_000 * scale)), seed=seed)
    raise DatasetError(f"no data set is called {name!r}: choose one of {', '.join(NAMES)}")


NAMES = ("strings", "mixed", "large", "demo")


def main(argv: list[str] | None = None) -> int:
    """`python -m benches.datasets`: fill one server, print what was written."""
    parser = argparse.ArgumentParser(prog="python -m benches.datasets", description="Fill a server")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--url", required=True, help="redis://HOST:PORT, rediss://, unix://PATH")
    parser.add_argument("--scale", type=float, default=1.0, help="times the full size (1.0)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--flush", action="store_true", help="FLUSHALL first: removes ALL data")
    options = parser.parse_args(argv)
    try:
        if options.flush:
            with Loader(options.url) as loader:
                loader.ask("FLUSHALL")
        print(load(options.name, options.url, scale=options.scale, seed=options.seed))
    except (DatasetError, OSError) as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
