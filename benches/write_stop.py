"""`python -m benches.write_stop`: how long a cut-over holds writers up.

And how soon an engine that was killed is in sync again.

    far      the servers are a round trip of 50 and of 150 ms away, the source has 16 databases
    keys     6 M keys, of which 100 have a TTL, into a server without import mode
    killed   SIGKILL under 1,500 commands of many keys a second; 40 ms away
    shards   a cluster of three primaries into one of three, at 20,000 writes a second over all
    proof    2 M keys at 20,000 writes a second: how much longer it is where every key is compared

Each row is measured `--runs` times, and its median is shown with what it must reach. `far` and
`keys` are `migrate` from the command line, with a client that writes to the source until it is
refused, and goes to the target as soon as the switch hook has moved its name. `fence` is the time
from the fence to the open target, as the report has it; `client` the longest time between two of
the client's answers, which has the hook's own process in it, and the way to find the new name. Of
`shards`, `rate` is what was written each second; the shard for which the others waited most is
printed before. Of `proof`, `full` is the fence with `--verify full`, `sample` the one without, and
`above` what it is longer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from benches.support.clusters import SLOTS, Cluster, slot_of
from benches.support.engines import Cli, Migration
from benches.support.movers import NAMES, Mover, fill, killed
from benches.support.proxy import Proxy
from benches.support.servers import Server, named

SERVER = "redis-7.0"
DATABASES = 16
DATABASE_KEYS = 300
KEYS = 6_000_000
KEYS_WITH_TTL = 100
KILLED_DELAY = 0.02  # one way
RUN_SECONDS = 900.0
SHARDS = 3
SHARD_KEYS = 100_000
WRITES_A_SECOND = 20_000
_BEAT_SECONDS = 0.01
PROVEN_KEYS = 2_000_000
MUST = {"far 50": 0.5, "far 150": 1.4, "keys": 1.0, "killed": 10.0, "shards": 1.0, "proof": 0.1}


class Client:
    """Counts one key up, at the source until its name is moved; `longest` is in seconds."""

    def __init__(self, source: Server, target: Server, moved: Path) -> None:
        # (Named as the engine's own connections, it is not disconnected: it leaves by itself.)
        self._ends = [source.client(retry=None), target.client()]
        self._moved = moved
        self._over = threading.Event()
        self.longest = 0.0
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        end, last = self._ends[0], None
        while not self._over.is_set():
            try:
                end.incr("clicks")
            except redis.ResponseError:
                # Refused by the source: until the name leads to the target.
                while not self._moved.exists() and not self._over.is_set():
                    time.sleep(0.001)
                end = self._ends[1]
                continue
            now = time.perf_counter()
            self.acknowledged += 1
            if last is not None:
                self.longest = max(self.longest, now - last)
            last = now
            time.sleep(0.002)

    def stop(self) -> None:
        """Write no more."""
        self._over.set()
        self._thread.join()


class Counters:
    """Counts keys of one primary up, so many times a second, until it refuses."""

    def __init__(self, primary: Server, keys: Sequence[str], rate: float) -> None:
        self.acknowledged: Counter[str] = Counter()
        self.seconds = 0.0
        self._keys = keys
        self._at_once = max(int(rate * _BEAT_SECONDS), 1)
        self._client = primary.client(retry=None)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        began = beat = time.perf_counter()
        at = 0
        while not self._over.is_set():
            keys = [self._keys[(at + n) % len(self._keys)] for n in range(self._at_once)]
            at += self._at_once
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.incr(key)
                try:
                    replies = pipe.execute(raise_on_error=False)
                except redis.ConnectionError:
                    break
            self.acknowledged.update(
                key for key, reply in zip(keys, replies, strict=True) if isinstance(reply, int)
            )
            if not any(isinstance(reply, int) for reply in replies):
                break
            beat += _BEAT_SECONDS
            time.sleep(max(beat - time.perf_counter(), 0))
        self.seconds = time.perf_counter() - began

    def stop(self) -> None:
        """Write no more."""
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def servers() -> Iterator[tuple[Server, Server, Path]]:
    """A source and a target of the kind that the figures are of, and a folder."""
    binary = named(SERVER)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server.start(binary, "--repl-backlog-size", "64mb", "--save", "") as source,
        Server.start(binary, "--save", "") as target,
    ):
        yield source, target, Path(folder)


def cut_over(
    source: Server, target: Server, ends: tuple[str, str], folder: Path
) -> dict[str, float]:
    """One migration between the addresses `ends`; seconds. Raises `SystemExit` if it fails."""
    moved = folder / "moved"
    client = Client(source, target, moved)
    command = [sys.executable, "-m", "engine", "migrate", "--source-type", "replica"]
    command += ["--source", ends[0], "--target", ends[1], "--output", "json"]
    command += ["--switch-hook", f"touch {moved}", "--disconnect-for", "0"]
    command += ["--state", f"sqlite:///{folder / 'state.sqlite'}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=RUN_SECONDS
        )
        time.sleep(0.2)
    finally:
        client.stop()
    if done.returncode:
        raise SystemExit(f"migrate: exit {done.returncode}: {done.stdout} {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    counted = int(target.client().get("clicks") or 0)
    if counted != client.acknowledged:
        raise SystemExit(f"{client.acknowledged} writes acknowledged, {counted} on the target")
    return {"fence": report["fence_seconds"], "client": client.longest}


def far(round_trip: float) -> dict[str, float]:
    """Both ends so far away, in seconds, and in every database a key that is due soon."""
    with servers() as (source, target, folder):
        for db in range(DATABASES):
            pipe = source.client(db).pipeline(transaction=False)
            for n in range(DATABASE_KEYS):
                pipe.set(f"key:{n}", n, ex=3000 if n % 3 else None)
            pipe.set("soon", "x", px=30_000)
            pipe.execute()
        with Proxy(source.host, source.port) as one, Proxy(target.host, target.port) as other:
            for proxy in (one, other):
                proxy.delay(round_trip / 2)
            ends = [f"redis://{proxy.host}:{proxy.port}" for proxy in (one, other)]
            return cut_over(source, target, (ends[0], ends[1]), folder)


def many_keys(keys: int) -> dict[str, float]:
    """`keys` keys, of which few have a TTL."""
    with servers() as (source, target, folder):
        client = source.client(socket_timeout=300)
        at = 0
        while at < keys:
            # In portions: the client's own beat, and no command that takes seconds.
            count = min(10_000, keys - at)
            client.mset({f"key:{n}": "a value of some bytes" for n in range(at, at + count)})
            at += count
        pipe = client.pipeline(transaction=False)
        for n in range(KEYS_WITH_TTL):
            pipe.set(f"timed:{n}", n, ex=3000)
        pipe.execute()
        return cut_over(source, target, (source.url, target.url), folder)


def killed_engine() -> dict[str, float]:
    """Seconds until the gate is open again, and how many keys were dirty at the most."""
    with servers() as (source, target, folder):
        fill(source)
        cli = Cli(f"sqlite:///{folder / 'state.sqlite'}", folder)
        migration = Migration(cli, seed=1)
        with (
            contextlib.closing(migration),
            Proxy(source.host, source.port) as near,
            Proxy(target.host, target.port) as other,
        ):
            for proxy in (near, other):
                proxy.delay(KILLED_DELAY)
            migration.register(other)
            migration.start(near, "--source-type", "replica")
            migration.wait_for(lambda found: found["CanComplete"])
            with Mover(source, seed=1) as mover:
                took, counts = killed(mover, migration, target.client())
        return {"seconds": took, "dirty": float(max(counts)), "of": 3.0 * NAMES}


def shards() -> dict[str, float]:
    """Three shards into three, each of which is written to."""
    binary = named(SERVER)
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster.start(binary, "--repl-backlog-size", "64mb", primaries=SHARDS) as source,
        Cluster.start(binary, primaries=SHARDS) as target,
    ):
        found: list[list[str]] = [[] for _ in range(SHARDS)]
        for n in range(SHARD_KEYS * SHARDS):
            slot = slot_of(f"key:{n}")
            found[sum(slot >= SLOTS * each // SHARDS for each in range(1, SHARDS))].append(
                f"key:{n}"
            )
        for node, keys in zip(source.nodes, found, strict=True):
            with node.client().pipeline(transaction=False) as pipe:
                for n, key in enumerate(keys):
                    pipe.set(key, 0, ex=3000 if n % 10 == 0 else None)
                pipe.execute()
        rate = WRITES_A_SECOND / SHARDS
        writers = [
            Counters(node, keys[:1000], rate)
            for node, keys in zip(source.nodes, found, strict=True)
        ]
        report = _written_to(source.nodes[0], target.nodes, writers, Path(folder))
        ports = [node.port for node in source.nodes]
        print(json.dumps({"last": report["last_shard"], "ports": ports}), flush=True)
        return {
            "fence": report["fence_seconds"],
            "rate": sum(sum(each.acknowledged.values()) / each.seconds for each in writers),
        }


def proof(keys: int) -> dict[str, float]:
    """One server into another, with a sample compared and with every key."""
    found: dict[str, float] = {}
    for verify in ("sample", "full"):
        with servers() as (source, target, folder):
            client = source.client(socket_timeout=300)
            for at in range(0, keys, 10_000):
                client.mset({f"key:{n}": 0 for n in range(at, min(at + 10_000, keys))})
            names = [f"key:{n}" for n in range(0, keys, 7)]
            writer = Counters(source, names, WRITES_A_SECOND)
            report = _written_to(source, [target], [writer], folder, "--verify", verify)
            found[verify] = report["fence_seconds"]
            found["rate"] = sum(writer.acknowledged.values()) / writer.seconds
            print(json.dumps({"verify": verify, "compared": report["verification"]}), flush=True)
    return {**found, "above": found["full"] - found["sample"]}


def _written_to(
    source: Server,
    targets: Sequence[Server],
    writers: Sequence[Counters],
    folder: Path,
    *options: str,
) -> dict[str, Any]:
    """The report of a migration while these write, each to what goes to one of `targets`. Raises
    `SystemExit` where it fails, or the target has other counts than were acknowledged."""
    command = [sys.executable, "-m", "engine", "migrate", "--source-type", "replica", *options]
    command += ["--source", source.url, "--target", targets[0].url]
    command += ["--output", "json", "--disconnect-for", "0"]
    command += ["--state", f"sqlite:///{folder}/state.sqlite"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=RUN_SECONDS
        )
    finally:
        for writer in writers:
            writer.stop()
    if done.returncode:
        raise SystemExit(f"migrate: exit {done.returncode}: {done.stdout} {done.stderr}")
    for node, writer in zip(targets, writers, strict=True):
        keys = list(writer.acknowledged)
        there = [int(value or 0) for value in _each(node, keys)]
        if there != [writer.acknowledged[key] for key in keys]:
            raise SystemExit(f"{node} has other counts than were acknowledged")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _each(node: Server, keys: Sequence[str]) -> list[bytes | None]:
    with node.client().pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.get(key)
        found: list[bytes | None] = pipe.execute()
    return found


def main() -> int:
    """Measure the rows named; print each run, the medians, and what they must reach."""
    parser = argparse.ArgumentParser(prog="python -m benches.write_stop", description=__doc__)
    parser.add_argument("--rows", default=",".join(MUST), help=", ".join(MUST))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keys", type=int, help="of the rows `keys` and `proof`")
    options = parser.parse_args()
    rows = options.rows.split(",")
    if unknown := [row for row in rows if row not in MUST]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(MUST)}")
    missed = False
    for row in rows:
        runs = []
        for _ in range(options.runs):
            name, _, milliseconds = row.partition(" ")
            if name == "far":
                found = far(float(milliseconds) / 1000)
            elif name == "shards":
                found = shards()
            elif name == "proof":
                found = proof(options.keys or PROVEN_KEYS)
            elif name == "keys":
                found = many_keys(options.keys or KEYS)
            else:
                found = killed_engine()
            runs.append(found)
            print(
                json.dumps({"row": row, **{k: round(v, 3) for k, v in found.items()}}), flush=True
            )
        told = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        figure = next(told[each] for each in ("fence", "seconds", "above") if each in told)
        missed = missed or figure > MUST[row]
        words = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
        print(f"{row}: median of {len(runs)}: {words}; must reach {MUST[row]:g} s", flush=True)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
