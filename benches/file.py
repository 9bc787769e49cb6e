"""`python -m benches.file`: a snapshot of mixed keys, loaded by its own server and migrated by the
engine.

A server is filled with `--keys` keys (half of them plain strings, a tenth strings with TTLs, the
others small hashes, lists, sets and sorted sets) and saves them. The same program loads the file,
and its CPU until then is looked at; the engine migrates the file into an empty server (test, copy
and comparison, as `migrate` does), in a process that has done so with a small one before. Both are
done `--rounds` times, in turn. Printed: the CPU of the load, and that of engine and target as
multiples of it. Both must then have the same number of keys.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benches.follow import PREFERRED
from benches.support.servers import Binary, Server, named
from engine.front.engine import Engine
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.wire.event_loop import run

ENGINE_GOAL, TARGET_GOAL = 0.85, 1.7
HOUR_MS = 3_600_000
_AT_ONCE = 10_000
_SAVE_SECONDS = 600.0


def write(binary: Binary, path: Path, keys: int, seed: int = 1) -> None:
    """A file of so many keys, by the server itself."""
    rng = random.Random(seed)
    with Server.start(binary, "--save", "") as server:
        client = server.client()
        for first in range(0, keys, _AT_ONCE):
            pipe = client.pipeline(transaction=False)
            for n in range(first, min(first + _AT_ONCE, keys)):
                kind = n % 10
                if kind < 5:
                    pipe.set(f"string:{n}", rng.randbytes(100).hex()[: rng.randrange(10, 200)])
                elif kind == 5:
                    pipe.set(f"ttl:{n}", n, px=1000 * HOUR_MS)
                elif kind == 6:
                    pipe.hset(f"hash:{n}", mapping={f"f{i}": f"value {i * n}" for i in range(10)})
                elif kind == 7:
                    pipe.rpush(f"list:{n}", *(f"item {i}" for i in range(10)))
                elif kind == 8:
                    pipe.sadd(f"set:{n}", *(f"member {i * n}" for i in range(8)))
                else:
                    pipe.zadd(f"zset:{n}", {f"member {i}": i * 1.5 for i in range(8)})
            pipe.execute()
        # A large file takes longer than any answer of a test.
        server.client(socket_timeout=_SAVE_SECONDS).save()
        shutil.copy(server.folder / "dump.rdb", path)


def load(binary: Binary, path: Path) -> tuple[float, int]:
    """CPU seconds of a server that loads the file; how many keys it has."""
    with Server.start(binary, "--save", "") as server:
        server.stop()
        shutil.copy(path, server.folder / "dump.rdb")
        server.restart(loaded=False)
        while server.client().info("persistence")["loading"]:
            time.sleep(0.02)
        return server.cpu_seconds(), server.client().dbsize()


def migrate(path: Path, target: Server, state: Path) -> float:
    """CPU seconds of the engine, in this process."""

    async def main() -> None:
        engine = Engine(f"sqlite:///{state}", credentials=Credentials(()))
        try:
            report = await engine.migrate(Endpoint(rdb_path=str(path)), Endpoint.parse(target.url))
        finally:
            engine.close()
        if report.status != "done":
            raise SystemExit(f"not done: {report.errors}")

    before = resource.getrusage(resource.RUSAGE_SELF)
    run(main())
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep nothing."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benches.file")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", default=PREFERRED, help="the server's name, or its beginning")
    given = parser.parse_args(arguments)
    binary = named(given.server)
    loads, engines, targets = [], [], []
    with tempfile.TemporaryDirectory(prefix="sm-file-") as folder:
        path, small = Path(folder, "dump.rdb"), Path(folder, "small.rdb")
        write(binary, path, given.keys)
        write(binary, small, 1000)
        with Server.start(binary, "--save", "") as target:
            migrate(small, target, Path(folder, "small.sqlite"))
        for turn in range(given.rounds):
            seconds, keys = load(binary, path)
            with Server.start(binary, "--save", "") as target:
                used = migrate(path, target, Path(folder, f"{turn}.sqlite"))
                if target.client().dbsize() != keys:
                    raise SystemExit(f"not the same: {keys}, {target.client().dbsize()}")
                loads.append(seconds)
                engines.append(used / seconds)
                targets.append(target.cpu_seconds() / seconds)
            print(
                f"load {seconds:.2f} s of CPU; engine {engines[-1]:.2f}, target {targets[-1]:.2f}",
                flush=True,
            )
        size = path.stat().st_size
    print(
        f"{binary}: {given.keys:,} keys, {size / 1e6:,.0f} MB; load "
        f"{statistics.median(loads):.2f} s of CPU; as multiples of it: engine "
        f"{statistics.median(engines):.2f} (goal {ENGINE_GOAL}), target "
        f"{statistics.median(targets):.2f} (goal {TARGET_GOAL}); medians of {given.rounds}"
    )


if __name__ == "__main__":
    main()
