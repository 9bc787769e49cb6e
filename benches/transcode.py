"""`python -m benches.transcode`: values that the target does not know, beside such as it takes as
they are.

A server of the newest release writes a file of `--keys` small keys of each kind. The core reads it
and makes the commands of it, as a migration does but for the sockets: `passed on`, for a target of
the same release; and `rewritten`, for one that knows none of these forms. Each kind by itself, in
turn, `--rounds` times. Printed: µs of CPU a key of both, medians, and the ratio; what is in all of
them together is the row `all`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benches.support.servers import Binary, Server, binaries, extra_binaries
from engine._native import RecordBatch, RestoreEncoder, SnapshotReader, ValueTranscoder
from engine.model.server_capabilities import capabilities_of

GOAL = 1.3
_READ_BYTES = 1 << 20
# Where none of the forms is known that the newest release writes.
_OLDER = capabilities_of("redis", (5, 0, 0), "")


def _hash(pipe: Any, key: str, rng: random.Random) -> None:
    pipe.hset(key, mapping={f"field {i}": rng.randbytes(12).hex() for i in range(10)})


def _set(pipe: Any, key: str, rng: random.Random) -> None:
    pipe.sadd(key, *(rng.randbytes(8).hex() for _ in range(10)))


def _zset(pipe: Any, key: str, rng: random.Random) -> None:
    pipe.zadd(key, {f"member {i}": rng.randrange(10**6) / 4 for i in range(10)})


def _list(pipe: Any, key: str, rng: random.Random) -> None:
    pipe.rpush(key, *(f"item {rng.randrange(10**6)}" for _ in range(10)))


def _stream(pipe: Any, key: str, rng: random.Random) -> None:
    for n in range(10):
        pipe.xadd(key, {"field": rng.randbytes(8).hex()}, id=f"{n + 1}-0")
    pipe.xgroup_create(key, "group", id="0")


def _text(pipe: Any, key: str, rng: random.Random) -> None:
    pipe.hset(key, mapping={f"field {i}": f"some text {i} " * 4 for i in range(10)})


KINDS: dict[str, Callable[[Any, str, random.Random], None]] = {
    "hash": _hash,
    "hash, packed by LZF": _text,
    "set": _set,
    "zset": _zset,
    "list": _list,
    "stream": _stream,
}


def write(binary: Binary, path: Path, keys: int, kinds: Sequence[str]) -> bytes:
    """A file of so many keys of each of these kinds, by the server itself."""
    rng = random.Random(1)
    with Server.start(binary, "--save", "") as server:
        client = server.client()
        for first in range(0, keys, 1_000):
            pipe = client.pipeline(transaction=False)
            for n in range(first, min(first + 1_000, keys)):
                for kind in kinds:
                    KINDS[kind](pipe, f"{kind}:{n}", rng)
            pipe.execute()
        client.save()
        shutil.copy(server.folder / "dump.rdb", path)
    return path.read_bytes()


def seconds(data: bytes, rewritten: bool) -> tuple[float, int]:
    """Of CPU for reading a file and making commands of it; of how many keys."""
    reader = SnapshotReader()
    encoder = RestoreEncoder()
    core = ValueTranscoder(_OLDER.flavour, _OLDER.known_types) if rewritten else None
    keys = 0
    began = time.process_time()
    for at in range(0, len(data), _READ_BYTES):
        reader.feed(data[at : at + _READ_BYTES])
        for item in reader.take():
            if not isinstance(item, RecordBatch):
                continue
            keys += len(item)
            while core is not None:
                done, too_long = core.transcode(item)
                if too_long:
                    raise SystemExit("a value is too long")
                if done >= len(item):
                    break
                encoder.encode(item.take(done))
            encoder.encode(item)
    return time.process_time() - began, keys


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep nothing."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benches.transcode")
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--server", default="redis-8.6", help="the server's name's beginning")
    given = parser.parse_args(arguments)
    known = (*binaries(), *extra_binaries())
    binary = next(each for each in known if each.name.startswith(given.server))
    with tempfile.TemporaryDirectory(prefix="sm-transcode-") as folder:
        for name, kinds in {**{each: [each] for each in KINDS}, "all": list(KINDS)}.items():
            data = write(binary, Path(folder, "dump.rdb"), given.keys // len(kinds), kinds)
            used: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(given.rounds):
                for rewritten, runs in used.items():
                    took, keys = seconds(data, rewritten)
                    runs.append(took / keys * 1e6)
            one, other = (statistics.median(runs) for runs in used.values())
            print(
                f"{name:20} passed on {one:5.2f} µs a key, rewritten {other:5.2f}: "
                f"{other / one:.2f} times (goal {GOAL})",
                flush=True,
            )


if __name__ == "__main__":
    main()
