"""The native core's parts: the RESP reader beside hiredis, checksums, slots and the encoder.

`pytest benches/micro` prints a group for each kind of reply, the two readers under one another;
`extra_info` has the throughput: `gb_per_s` (10**9 bytes a second, by the fastest round), and
`ns_per_reply` or `ns_per_item`. With --benchmark-disable each runs once, as a test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import hiredis
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.support import encoded_values as encoded
from engine import _native

# ------------------------------------------------------------------ replies


def bulk(body: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(body), body)


# name: (bytes, number of top-level replies in them)
SHAPES: dict[str, tuple[bytes, int]] = {
    "pipeline of +OK": (b"+OK\r\n" * 1000, 1000),
    "pipeline of integers": (b":86399\r\n" * 1000, 1000),
    "pipeline of 100-byte bulks": (bulk(b"v" * 100) * 1000, 1000),
    "pipeline of 64-KiB bulks": (bulk(b"v" * 65536) * 10, 10),
    "array of 1,000 bulks": (b"*1000\r\n" + bulk(b"key:0000000000000000") * 1000, 1),
    "nested arrays": (b"*100\r\n" + (b"*2\r\n+name\r\n*5\r\n" + b":1\r\n" * 5) * 100, 1),
}


def read_all(reader: Any, data: bytes, need_data: object) -> int:
    reader.feed(data)
    gets = reader.gets
    count = 0
    while gets() is not need_data:
        count += 1
    return count


def ours(data: bytes) -> Callable[[], int]:
    reader = _native.RespReader()
    return lambda: read_all(reader, data, _native.NEED_DATA)


def theirs(data: bytes) -> Callable[[], int]:
    reader = hiredis.Reader(notEnoughData=_native.NEED_DATA)
    return lambda: read_all(reader, data, _native.NEED_DATA)


READERS: dict[str, Callable[[bytes], Callable[[], int]]] = {
    "engine": ours,
    "hiredis": theirs,
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("reader", READERS)
def test_reader(benchmark: BenchmarkFixture, shape: str, reader: str) -> None:
    data, replies = SHAPES[shape]
    benchmark.group = f"RESP: {shape}"
    assert benchmark(READERS[reader](data)) == replies
    record(benchmark, len(data), replies=replies)


# ------------------------------------------------------------------ checksums and slots

IMPLEMENTATIONS = dict.fromkeys([_native.crc64_implementation(), "slicing-by-16"])


@pytest.mark.parametrize("size", [16, 64, 100, 1000, 65536])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_crc64(benchmark: BenchmarkFixture, name: str, size: int) -> None:
    """One call from Python a checksum: under some 200 bytes, the call is most of it."""
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    benchmark.group = f"CRC64: {size} bytes"
    assert benchmark(_native.crc64_with, name, data) == _native.crc64(data)
    record(benchmark, size)


@pytest.mark.parametrize(
    "key", [b"key:000000000012", b"user:{1234}:name", b"k" * 65536], ids=["plain", "tagged", "long"]
)
def test_key_slot(benchmark: BenchmarkFixture, key: bytes) -> None:
    benchmark.group = "slots"
    assert 0 <= benchmark(_native.key_slot, key) < 16384
    record(benchmark, len(key))


# ------------------------------------------------------------------ the encoder

COMMANDS = [
    (b"RESTORE", b"key:%012d" % i, 0, b"p" * 100, b"REPLACE", b"ABSTTL") for i in range(1000)
]


def test_encode_commands(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "encoder: 1,000 RESTOREs of 100 bytes"
    written = benchmark(lambda: b"".join(_native.encode_command(*each) for each in COMMANDS))
    record(benchmark, len(written), items=len(COMMANDS))


def test_encode_commands_hiredis(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "encoder: 1,000 RESTOREs of 100 bytes"
    pack: Callable[..., bytes] = hiredis.pack_command  # its stub has tuples of one item only
    written = benchmark(lambda: b"".join(map(pack, COMMANDS)))
    assert written == b"".join(_native.encode_command(*each) for each in COMMANDS)
    record(benchmark, len(written), items=len(COMMANDS))


def test_encode_one_large_value(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "encoder: one value of 1 MiB"
    written = benchmark(_native.encode_command, b"SET", b"k", bytes(2**20))
    record(benchmark, len(written))


# ------------------------------------------------------------------ the stream

STREAM = b"".join(
    _native.encode_command(*command)
    for i in range(2000)
    for command in (
        (b"SET", b"key:%d" % i, b"v" * 20),
        (b"INCR", b"count:%d" % i),
        (b"SUNIONSTORE", b"union:%d" % i, b"set:%d" % i, b"set:%d" % (i + 1)),
        (b"PEXPIREAT", b"key:%d" % i, 1_900_000_000_000),
    )
)


def stream_batch() -> _native.CommandBatch:
    reader = _native.StreamReader(0)
    reader.feed(STREAM)
    batch = reader.next(True)
    assert batch is not None
    return batch


def test_read_stream(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "stream: 8,000 commands"
    batch = benchmark(stream_batch)
    record(benchmark, len(STREAM), items=len(batch))


def test_stream_holds(benchmark: BenchmarkFixture) -> None:
    """A look at what a batch holds, each time at a fresh one: the second look is free."""
    benchmark.group = "stream: 8,000 commands"
    found = benchmark.pedantic(
        lambda batch: batch.holds(_native.CMD_PLACES),
        setup=lambda: ((stream_batch(),), {}),
        rounds=20,
    )
    assert not found
    record(benchmark, len(STREAM), items=8000)


def test_stream_derived(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "stream: 8,000 commands"
    batch = stream_batch()
    dirty = [(0, b"set:%d" % i) for i in range(0, 2000, 10)]
    keys, unknown = benchmark(batch.derived, dirty)
    assert (len(keys), unknown) == (399, [])
    record(benchmark, len(STREAM), items=len(batch))


# ------------------------------------------------------------------ figures


def record(benchmark: BenchmarkFixture, size: int, *, replies: int = 0, items: int = 0) -> None:
    """Throughput by the fastest round, which other processes disturbed least."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["gb_per_s"] = round(size / seconds / 1e9, 3)
    if replies:
        benchmark.extra_info["ns_per_reply"] = round(seconds / replies * 1e9, 1)
    if items:
        benchmark.extra_info["ns_per_item"] = round(seconds / items * 1e9, 1)


# ------------------------------------------------------------------ values


def values() -> dict[str, bytes]:
    """A value of each of the usual kinds, of one to some twenty kilobytes."""
    rng = random.Random(13)
    words = [rng.randbytes(20) for _ in range(200)]
    numbers = [b"%d" % rng.randrange(10**6) for _ in range(100)]
    pairs = [(rng.randbytes(8), rng.randbytes(40), -1) for _ in range(100)]
    scores = [(word, float(rng.randrange(10**6))) for word in words]
    return {
        "string": encoded.strings(rng.randbytes(1000))[0],
        "list, quicklist": encoded.lists(words)[5],
        "set, hash table": encoded.sets(words)[0],
        "set, intset": encoded.sets(sorted(set(numbers)))[-1],
        "zset, skiplist": encoded.zsets(scores)[1],
        "zset, listpack": encoded.zsets(scores)[3],
        "hash, hash table": encoded.hashes(pairs)[5],
        "hash, listpack": encoded.hashes(pairs)[8],
    }


@pytest.mark.parametrize("what", ["look", "digest"])
@pytest.mark.parametrize("name", [*values(), "all"])
def test_decode_value(benchmark: BenchmarkFixture, name: str, what: str) -> None:
    made = values()
    payloads = list(made.values()) if name == "all" else [made[name]]
    decode = getattr(_native.ValueDecoder(), what)

    def each() -> None:
        for payload in payloads:
            decode(payload)

    benchmark.group = f"values: {what}"
    benchmark(each)
    record(benchmark, sum(map(len, payloads)))
