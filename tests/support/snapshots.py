"""Snapshots of real servers: every type and encoding, small and large."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import redis

from benches.support.servers import Binary, Server
from engine._native import RecordBatch, SnapshotReader

DATABASES = (0, 3, 9)
FUNCTION = b"#!lua name=%s\nredis.register_function('%s', function() return 1 end)"


@dataclass
class Dumped:
    """One key as the server itself gives it."""

    payload: bytes
    expire_at: int | None


@dataclass
class Saved:
    """A snapshot, and what the server said of the same data when it was taken."""

    data: bytes
    keys: dict[tuple[int, bytes], Dumped] = field(default_factory=dict)
    functions: set[bytes] = field(default_factory=set)


@dataclass
class Read:
    """One key as `SnapshotReader` gave it."""

    db: int
    key: bytes
    value: bytes
    expire_at: int | None
    access: int | None


Scale = Literal["tiny", "small", "large"]
"""How much there is: a few kB, some hundred kB, some MB."""

_SIZES = {"tiny": (1, 3), "small": (1, 3, 600), "large": (1, 3, 600, 20_000)}
_BYTES = {"tiny": (1, 20, 64), "small": (1, 20, 21, 63, 64, 100, 16383, 16384)}
_BYTES["large"] = (*_BYTES["small"], 70_000, 600_000)


def fill(server: Server, scale: Scale = "large", *, seed: int = 7) -> None:
    """Put every type in every encoding that this server knows into three databases."""
    rng = random.Random(seed)
    if scale == "tiny":
        _shrink(server.client())
    for db in DATABASES:
        client = server.client(db)
        pipe = client.pipeline(transaction=False)
        _strings(pipe, rng, scale)
        _collections(pipe, rng, scale)
        pipe.execute()
        _streams(client, rng, scale)
        _field_ttls(client, scale)
        if db != DATABASES[1]:
            _deadlines(client)
    client = server.client()
    for name in (b"one", b"two") if server.binary.version >= (7, 0, 0) else ():
        client.execute_command("FUNCTION", "LOAD", FUNCTION % (name, name))


def _shrink(client: redis.Redis) -> None:
    """Collections leave their compact encodings early."""
    for name in ("hash-max-{}-entries", "zset-max-{}-entries"):
        with contextlib.suppress(redis.ResponseError):
            client.config_set(name.format("ziplist"), 2)
    client.config_set("set-max-intset-entries", 2)
    with contextlib.suppress(redis.ResponseError):
        client.config_set("set-max-listpack-entries", 2)


def _strings(pipe: Any, rng: random.Random, scale: Scale) -> None:
    numbers = (0, -1, 127, -128, 128, 32767, -32768, 2**31 - 1, -(2**31), 2**31, 2**63 - 1)
    for number in numbers:
        pipe.set(f"number:{number}", number)
        pipe.set(str(number), "a key that is a number")
    pipe.set("empty", b"")
    pipe.set(b"", b"an empty key")
    pipe.set(b"\x00\xff\r\n", b"\x00\xff\r\n")
    pipe.set("k" * 300, "a key that is compressed")
    pipe.set(rng.randbytes(200), "a key that is not")
    for size in _BYTES[scale]:
        pipe.set(f"random:{size}", rng.randbytes(size))
        pipe.set(f"runs:{size}", b"abcd" * (size // 4) + b"x" * (size % 4))
    pipe.setbit("bits", 1000, 1)
    pipe.pfadd("hyperloglog", *range(50))


def _collections(pipe: Any, rng: random.Random, scale: Scale) -> None:
    for size in _SIZES[scale]:
        words = [f"{rng.randrange(10**9)}-word-{i}" for i in range(size)]
        pipe.rpush(f"list:{size}", *words)
        pipe.rpush(f"list:numbers:{size}", *range(size))
        pipe.sadd(f"set:{size}", *words)
        pipe.sadd(f"set:numbers:{size}", *range(0, 5 * size, 5))
        pipe.hset(f"hash:{size}", mapping={word: i for i, word in enumerate(words)})
        scores: dict[str, float] = {word: rng.uniform(-1e9, 1e9) for word in words}
        pipe.zadd(f"zset:{size}", scores | {"most": float("inf"), "least": float("-inf")})
    if scale == "tiny":
        return
    long = [rng.randbytes(9_000) for _ in range(30 if scale == "large" else 2)]
    pipe.rpush("list:long", *long)
    pipe.rpush("list:mixed", b"small", b"l" * 20_000, b"small", 17)
    pipe.sadd("set:long", *long)
    pipe.hset("hash:long", mapping=dict(enumerate(long)))
    pipe.zadd("zset:long", {value: i for i, value in enumerate(long)})


def _streams(client: redis.Redis, rng: random.Random, scale: Scale) -> None:
    for size in _SIZES[scale]:
        name = f"stream:{size}"
        pipe = client.pipeline(transaction=False)
        for i in range(size):
            pipe.xadd(name, {"field": i, f"other{i % 7}": rng.randbytes(9)}, id=f"{i + 1}-{i % 3}")
        pipe.execute()
        client.xgroup_create(name, "readers", "0")
        client.xgroup_create(name, "idle", "$")
        client.xreadgroup("readers", "anna", {name: ">"}, count=size // 2 + 1)
        client.xreadgroup("readers", "bert", {name: ">"}, count=size)
        client.xack(name, "readers", "1-0")
        client.xdel(name, f"{size}-{(size - 1) % 3}")
    client.xadd("stream:emptied", {"a": 1})
    client.xtrim("stream:emptied", maxlen=0)


def _field_ttls(client: redis.Redis, scale: Scale) -> None:
    later = int(time.time() * 1000) + 10_000_000
    for size in _SIZES[scale]:
        name = f"hash:ttl:{size}"
        client.hset(name, mapping={f"field:{i}": f"value {i}" for i in range(size)})
        fields = [f"field:{i}" for i in range(0, size, 2)]
        with contextlib.suppress(redis.ResponseError):  # a server that knows none
            client.execute_command("HPEXPIREAT", name, later + size, "FIELDS", len(fields), *fields)


def _deadlines(client: redis.Redis) -> None:
    later = int(time.time() * 1000) + 5_000_000
    for i, key in enumerate(("random:20", "list:3", "set:3", "hash:1", "stream:3", "number:0")):
        client.pexpireat(key, later + i)


def save(server: Server) -> Saved:
    """SAVE, and what DUMP says of every key."""
    client = server.client()
    client.execute_command("SAVE")
    saved = Saved(Path(server.folder, "dump.rdb").read_bytes())
    for db in DATABASES:
        client = server.client(db)
        names = list(client.scan_iter(count=1000))
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.dump(name)
            pipe.pttl(name)
        now = time.time() * 1000
        replies = pipe.execute()
        for name, payload, ttl in zip(names, replies[::2], replies[1::2], strict=True):
            expire_at = int(now + ttl) if ttl >= 0 else None
            saved.keys[db, name] = Dumped(payload, expire_at)
    if server.binary.version >= (7, 0, 0):
        listed = server.client().execute_command("FUNCTION", "LIST", "WITHCODE")
        saved.functions = {_code(entry) for entry in listed}
    return saved


def _code(entry: Any) -> bytes:
    if isinstance(entry, dict):
        return entry[b"library_code"]
    return dict(zip(entry[::2], entry[1::2], strict=True))[b"library_code"]


@functools.cache
def snapshot(binary: Binary, scale: Scale) -> Saved:
    """A snapshot of `fill`; made once a run."""
    with filled(binary, scale=scale) as server:
        return save(server)


@contextlib.contextmanager
def filled(binary: Binary, *options: str, scale: Scale = "large") -> Iterator[Server]:
    """A server that holds all of `fill`."""
    with Server.start(binary, "--save", "", *options) as server:
        fill(server, scale)
        yield server


def feed(reader: SnapshotReader, data: bytes, sizes: list[int] | None = None) -> list[Any]:
    """Read `data` through `input` in portions of these sizes, over and over; the items."""
    items: list[Any] = []
    at = turn = 0
    while at < len(data):
        with memoryview(reader.input) as view:
            size = sizes[turn % len(sizes)] if sizes else len(view)
            n = min(size, len(data) - at, len(view))
            view[:n] = data[at : at + n]
        reader.received(n)
        items += reader.take()
        turn += 1
        at += n
    return items


def records(items: list[Any]) -> list[Read]:
    """What batches and pieces hold, put together; checks the order that they promise."""
    found: list[Read] = []
    pieces: list[bytes] = []
    streamed: RecordBatch | None = None
    for item in items:
        if isinstance(item, bytes):
            assert 0 < len(item) <= 1 << 18
            pieces.append(item)
            if streamed is not None and sum(map(len, pieces)) >= streamed.value_size(0):
                found.append(_read(streamed, 0, b"".join(pieces)))
                streamed, pieces = None, []
            continue
        assert streamed is None
        assert item.spilled or not pieces
        if not item.streamed:
            assert not item.spilled or len(item) == 0
            found += [_read(item, i, item.value(i)) for i in range(len(item))]
        elif item.spilled:
            found.append(_read(item, 0, b"".join(pieces)))
        else:
            streamed = item
        pieces = []
    assert streamed is None
    assert not pieces
    return found


def _read(batch: RecordBatch, index: int, value: bytes) -> Read:
    assert batch.value_size(index) == len(value)
    return Read(batch.db, batch.key(index), value, batch.expire_at(index), batch.access(index))
