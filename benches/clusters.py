"""`python -m benches.clusters`: three shards into three, beside a single pair of the same build.

Two measurements, each of both shapes in turn within one run:

- copy: strings of 100 bytes, as a replica, to the end of `migrate`: keys a second, and the engine's
  CPU a key (its start-up taken off, which empty migrations of the same shape tell). Where
  redis-shake is on PATH its sync reader moves the same clusters, in turn.
- follow: SETs of 100 bytes at a steady rate, over all shards together: the engine's CPU a command,
  and the lag of one shard as a client sees it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from binascii import crc_hqx
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benches import procstat
from benches.adapters import redis_shake
from benches.adapters.base import last_json
from benches.datasets import Loader, resp
from benches.follow import Engine, Probe, Watch, write
from benches.support.clusters import SLOTS, Cluster
from benches.support.servers import Binary, Server, binaries

PREFERRED = "redis-7.0"
SHARDS = (0, 3)
"""What is measured: a single pair, and so many primaries at both ends."""

VALUE_BYTES = 100
FOLLOWED_KEYS = 100_000
GOALS = {"keys_per_second": 0.85, "us_a_key": 1.2, "us_a_command": 1.3}
"""Of the clusters' figure to the single pair's: at least, at most, at most."""
TIMES_REDIS_SHAKE = 5.0
"""The goal of keys a second, to those of redis-shake between the same clusters."""

Ends = tuple[Server | Cluster, Server | Cluster]


@contextmanager
def deployments(binary: Binary, shards: int) -> Iterator[Ends]:
    """Source and target of this shape, empty."""

    def start(_: int) -> Server | Cluster:
        return Cluster.start(binary, primaries=shards) if shards else Server.start(binary)

    with ExitStack() as stack:
        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(start, range(2)))
        for end in ends:
            stack.callback(end.close)
        yield ends[0], ends[1]


def nodes_of(end: Server | Cluster) -> list[tuple[Server, range]]:
    """Each server that takes writes, with its slots."""
    if isinstance(end, Server):
        return [(end, range(SLOTS))]
    found = []
    for node in end.primaries:
        slots = end.slots_of(node)
        found.append((node, range(slots[0], slots[-1] + 1)))
    return found


def names(slots: range, count: int) -> list[str]:
    """Those of the names `k:0` to `k:<count>` whose slot is one of these."""
    every = (f"k:{n}" for n in range(count))
    return [name for name in every if crc_hqx(name.encode(), 0) % SLOTS in slots]


def load(end: Server | Cluster, keys: int) -> None:
    """Put so many strings into it, over all shards."""
    value = os.urandom(VALUE_BYTES)
    for node, slots in nodes_of(end):
        with Loader(node.url) as loader:
            for name in names(slots, keys):
                loader.raw(resp("SET", name, value))
            loader.finish()


def migrate(ends: Ends) -> dict[str, float]:
    """One run of `migrate` as a replica: what it says of itself."""
    source, target = ends
    for node, _ in nodes_of(target):
        node.client().flushall()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "engine", "migrate", "--source", source.url]
        command += ["--target", target.url, "--source-type", "replica"]
        command += ["--source-after", "resume", "--if-exists", "replace", "--output", "json"]
        command += ["--state", f"sqlite:///{Path(folder) / 'state.sqlite'}"]
        done = procstat.run(command, timeout=600, cwd=Path.cwd())
    if done.returncode:
        raise SystemExit(f"migrate: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    found = last_json(done.stdout)
    steps = [each["seconds"] for each in found["steps"] if each["name"] == "snapshot"]
    return {
        "keys": float(found["keys"]),
        "seconds": float(found["seconds"]),
        # Of several lanes the longest: they go side by side.
        "snapshot_seconds": max(steps),
        "cpu_seconds": done.cpu_seconds,
        "rss_mib": done.peak_rss_bytes / (1 << 20),
    }


def shake(ends: Ends, keys: int) -> float:
    """Keys a second of redis-shake's sync reader, from its start on."""
    nodes = [nodes_of(end) for end in ends]
    there = [node.client() for node, _ in nodes[1]]
    for client in there:
        client.flushall()
    with tempfile.TemporaryDirectory() as folder:
        config = redis_shake.write_config(
            redis_shake.SYNC, nodes[0][0][0], nodes[1][0][0], Path(folder), clusters=True
        )
        done = procstat.run(
            [redis_shake.PROGRAM, str(config)],
            timeout=600,
            cwd=Path.cwd(),
            until=lambda: sum(client.dbsize() for client in there) == keys,
        )
    return keys / done.seconds


def copy(binary: Binary, keys: int, runs: int) -> dict[int, dict[str, float]]:
    """By shape: medians of keys a second and of the engine's CPU a key."""
    found: dict[int, list[dict[str, float]]] = {shards: [] for shards in SHARDS}
    with ExitStack() as stack:
        ends = {shards: stack.enter_context(deployments(binary, shards)) for shards in SHARDS}
        # The first ones compile the modules.
        starts = [{shards: migrate(ends[shards]) for shards in SHARDS} for _ in range(runs + 1)]
        empty = {
            shards: statistics.median(each[shards]["cpu_seconds"] for each in starts[1:])
            for shards in SHARDS
        }
        for shards in SHARDS:
            load(ends[shards][0], keys)
        rival = []
        for _ in range(runs):
            if shutil.which(redis_shake.PROGRAM):
                rival.append(shake(ends[SHARDS[1]], keys))
            for shards in SHARDS:
                run = migrate(ends[shards])
                if run["keys"] != keys:
                    raise SystemExit(f"{run['keys']:,.0f} keys of {keys:,} arrived")
                run["keys_per_second"] = keys / run["snapshot_seconds"]
                run["us_a_key"] = 1e6 * (run["cpu_seconds"] - empty[shards]) / keys
                found[shards].append(run)
                print(json.dumps({"copy": shards, **run}), flush=True)
    medians = {shards: _medians(runs_of) for shards, runs_of in found.items()}
    if rival:
        ours, theirs = keys / medians[SHARDS[1]]["seconds"], statistics.median(rival)
        print(
            f"keys/s, start to end: {ours:,.0f}, redis-shake {theirs:,.0f}: {ours / theirs:.2f} "
            f"(at least {TIMES_REDIS_SHAKE})"
        )
    return medians


def follow(binary: Binary, rate: int, seconds: float, shards: int) -> dict[str, float]:
    """One run: `rate` SETs a second over all shards; the engine's CPU a command."""
    with tempfile.TemporaryDirectory() as folder, deployments(binary, shards) as ends:
        source, target = ends
        state = f"sqlite:///{Path(folder) / 'state.sqlite'}"
        engine = Engine(state)
        places = nodes_of(source)
        first = places[0][0]
        engine.run("register-replication-group", "--primary-endpoint", target.url)
        engine.run(
            "start-migration",
            "--customer-node-endpoint-list",
            f"Address={first.host},Port={first.port}",
            "--source-type",
            "replica",
            # What is measured is one process.
            "--lanes-per-worker",
            "0",
        )
        worker = engine.until_following()
        writers = []
        for node, slots in places:
            command = [sys.executable, "-m", "benches.clusters", "--write", node.url]
            command += [str(rate // len(places)), str(seconds + 5), str(slots[0]), str(slots[-1])]
            writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        watch = Watch(state)
        time.sleep(2.5)
        (other, _), *_ = nodes_of(target)
        probe = Probe(first, other, f"{{{names(places[0][1], 1000)[0]}}}:probe")
        try:
            commands = -watch.progress().commands
            cpu, began = procstat.cpu_seconds(worker), time.monotonic()
            lags: list[int] = []
            while time.monotonic() - began < seconds:
                time.sleep(0.5)
                lags.append(watch.progress().lag_bytes or 0)
            commands += watch.progress().commands
            cpu, took = procstat.cpu_seconds(worker) - cpu, time.monotonic() - began
            rss = procstat.peak_rss_bytes(worker) / (1 << 20)
        finally:
            seen = sorted(probe.stop())
        if not seen:
            raise SystemExit("no write of the probe has reached the target: the lag is not known")
        for writer in writers:
            writer.kill()
            writer.wait()
        engine.run("complete-migration", "--force")
        engine.until_available(None)
    return {
        "commands_per_second": commands / took,
        "us_a_command": 1e6 * cpu / max(commands, 1),
        "lag_bytes_max": float(max(lags)),
        "lag_ms_p50": 1000 * statistics.median(seen),
        "lag_ms_p99": 1000 * seen[int(len(seen) * 0.99)],
        "rss_mib": rss,
    }


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _told(what: str, figure: str, found: dict[int, dict[str, float]]) -> str:
    single, several = (found[shards][figure] for shards in SHARDS)
    bound = "at least" if figure.endswith("per_second") else "at most"
    return (
        f"{what}: a single pair {single:,.2f}, {SHARDS[1]} shards {several:,.2f}: "
        f"{several / single:.2f} ({bound} {GOALS[figure]})"
    )


def main() -> int:
    """Measure, and print JSON a run and a line a figure."""
    if sys.argv[1:2] == ["--write"]:
        url, rate, seconds, first, last = sys.argv[2:]
        slots = range(int(first), int(last) + 1)
        write(url, int(rate), float(seconds), names(slots, FOLLOWED_KEYS))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benches.clusters", description=__doc__)
    parser.add_argument("--keys", type=int, default=600_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", type=int, default=50_000, help="SETs a second over all shards")
    parser.add_argument("--seconds", type=float, default=20.0, help="of following")
    parser.add_argument(
        "--server", default=PREFERRED, help="which servers, as the beginning of a name and version"
    )
    parser.add_argument("--smoke", action="store_true", help="small and short")
    options = parser.parse_args()
    if options.smoke:
        options.keys, options.runs, options.rate, options.seconds = 20_000, 1, 2_000, 3.0
    # A module that is compiled anew in each process would be charged to the engine.
    folder = tempfile.TemporaryDirectory()
    os.environ["PYTHONPYCACHEPREFIX"] = folder.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found = list(binaries())
    binary = next((each for each in found if each.name.startswith(options.server)), found[0])
    copied = copy(binary, options.keys, options.runs)
    followed: dict[int, list[dict[str, float]]] = {shards: [] for shards in SHARDS}
    for _ in range(options.runs):
        for shards in SHARDS:
            run = follow(binary, options.rate, options.seconds, shards)
            followed[shards].append(run)
            print(json.dumps({"follow": shards, **run}), flush=True)
    medians = {shards: _medians(runs) for shards, runs in followed.items()}
    print(f"{binary} at both ends, medians of {options.runs}")
    print(_told("keys/s", "keys_per_second", copied))
    print(_told("engine, us a key", "us_a_key", copied))
    print(_told(f"engine, us a command at {options.rate:,}/s", "us_a_command", medians))
    for shards, each in medians.items():
        p50, p99 = each["lag_ms_p50"], each["lag_ms_p99"]
        print(f"lag, {shards or 'no'} shards: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
