"""`python -m benches.transcode`: values that the target does not know, beside such as it takes as
they are.

A server of the newest release writes a file of `--keys` small keys of each kind. The core reads it
and makes the commands of it, as a migration does but for the sockets: `passed on`, for a target of
the same release; and `rewritten`, for one that knows none of these forms. Each kind by itself, in
turn, `--rounds` times. Printed: µs of CPU a key of both, medians, and the ratio; what is in all of
them together is the row `all`. `migrated`: the engine's CPU for a whole migration of the latter
file into a server of the same release, which takes either form.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benches.file import migrate
from benches.support.servers import Binary, Server, named
from engine._native import RecordBatch, RestoreEncoder, SnapshotReader, ValueTranscoder
from engine.model.server_capabilities import capabilities_of
from engine.targets import restore_writer
from engine.targets.known_forms import transcoder_for

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


def migrated(binary: Binary, path: Path, folder: Path, rewritten: bool) -> float:
    """µs of the engine's CPU a key for all of a migration."""
    of_older = ValueTranscoder(_OLDER.flavour, _OLDER.known_types)
    with Server.start(binary, "--save", "") as target:
        made = (lambda *_: of_older) if rewritten else transcoder_for
        with mock.patch.object(restore_writer, "transcoder_for", made):
            used = migrate(path, target, folder / f"{time.monotonic_ns()}.sqlite")
        return used / int(target.client().dbsize()) * 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep nothing."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benches.transcode")
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--server", default="redis-8.6", help="the server's name's beginning")
    given = parser.parse_args(arguments)
    binary = named(given.server)
    with tempfile.TemporaryDirectory(prefix="sm-transcode-") as folder:
        for name, kinds in {**{each: [each] for each in KINDS}, "all": list(KINDS)}.items():
            data = write(binary, Path(folder, "dump.rdb"), given.keys // len(kinds), kinds)

            def of_core(rewritten: bool, data: bytes = data) -> float:
                took, keys = seconds(data, rewritten)
                return took / keys * 1e6

            show(name, of_core, given.rounds)
        # The file of all kinds is there yet. The first migration of a process takes more.
        whole = partial(migrated, binary, Path(folder, "dump.rdb"), Path(folder))
        whole(False)
        show("migrated", whole, given.rounds)


def show(name: str, measure: Callable[[bool], float], rounds: int) -> None:
    """Measure both in turn, and print the medians."""
    used: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for rewritten, runs in used.items():
            runs.append(measure(rewritten))
    one, other = (statistics.median(runs) for runs in used.values())
    print(
        f"{name:20} passed on {one:5.2f} µs a key, rewritten {other:5.2f}: "
        f"{other / one:.2f} times (goal {GOAL})",
        flush=True,
    )


if __name__ == "__main__":
    main()
