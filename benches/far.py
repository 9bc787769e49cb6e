"""`python -m benches.far`: what a long line to both ends costs.

    scan        strings by SCAN, from a source that is near, and from one 50 ms away: keys a second,
                the longest command for the source, and how long another client of it waits
                meanwhile
    names       every name of either end looked up at the other, both near and both 50 ms away: keys
                a second, and how long another client of the source waits meanwhile
    migration   a hundred keys, followed and cut over: round trips of 50 ms to both ends, by what it
                takes more than the same with both ends near
    burst       242 MB of SETs in some seconds, to a target that is 50 and 150 ms away: until all
                of it is there, beside a replica that is as far away

Each row is measured `--runs` times, and its median is shown.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches.follow import Engine, Watch
from benches.support.proxy import Proxy
from benches.support.servers import Server, named
from engine.fleet.cut_over_comparisons import comparison_of
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.wire.event_loop import run

SERVER = "redis-7.0"
KEYS = 1_000_000
VALUE_BYTES = 100
FEW_KEYS = 100
ROUND_TRIP = 0.05
RUN_SECONDS = 900.0
BURST_COMMANDS = 1_800_000
BURST_SCRIPT = """
for i = 1, ARGV[1] do redis.call('SET', string.format('key:%06d', i), ARGV[2]) end
"""
# A transaction of the source each, as small as those of clients are.
BURST_AT_ONCE = 1_000
# What a source may have to keep for its replicas.
PATIENT = {
    "repl-backlog-size": "1gb",
    "client-output-buffer-limit": "replica 0 0 0",
    "repl-diskless-sync-delay": "0",
}


@contextlib.contextmanager
def servers() -> Iterator[tuple[Server, Server, Path]]:
    """A source and a target of the kind that the figures are of, and a folder."""
    binary = named(SERVER)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server.start(binary, "--save", "") as source,
        Server.start(binary, "--save", "") as target,
    ):
        yield source, target, Path(folder)


def migrate(kind: str, source: Proxy | Server, target: Proxy | Server, folder: Path) -> Any:
    """The report of one migration from the command line. Raises `SystemExit` if it fails."""
    ends = [f"redis://{each.host}:{each.port}" for each in (source, target)]
    command = [sys.executable, "-m", "engine", "migrate", "--source-type", kind]
    command += ["--source", ends[0], "--target", ends[1], "--output", "json"]
    command += ["--disconnect-for", "0"] if kind == "replica" else []
    command += ["--state", f"sqlite:///{folder / f'{time.time_ns()}.sqlite'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_SECONDS)
    if done.returncode:
        raise SystemExit(f"migrate: exit {done.returncode}: {done.stdout} {done.stderr}")
    return json.loads(done.stdout)


class Bystander:
    """Another client of the source: how long it waits for each answer."""

    def __init__(self, server: Server) -> None:
        self._client = server.client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.waited: list[float] = []

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.001):
            began = time.perf_counter()
            self._client.ping()
            self.waited.append(time.perf_counter() - began)


def scan(source: Server, target: Server, folder: Path, round_trip: float) -> dict[str, float]:
    """Copy what the source has over a line of `round_trip` seconds to it."""
    client = source.client()
    target.client(socket_timeout=300).flushall()
    client.slowlog_reset()
    with Proxy(source.host, source.port) as line, Bystander(source) as bystander:
        line.delay(round_trip / 2)
        report = migrate("scan", line if round_trip else source, target, folder)
    seconds = next(step["seconds"] for step in report["steps"] if step["name"] == "snapshot")
    longest = max((each["duration"] for each in client.slowlog_get(1000)), default=0)
    waited = sorted(bystander.waited)
    return {
        "k keys/s": target.client().dbsize() / seconds / 1000,
        "longest command, ms": longest / 1000,
        "p99 of another client, ms": waited[int(len(waited) * 0.99)] * 1000,
    }


def names(source: Server, target: Server, round_trip: float) -> dict[str, float]:
    """Look up the names of two ends that hold the same, `round_trip` seconds away."""
    with (
        Proxy(source.host, source.port) as one,
        Proxy(target.host, target.port) as other,
        Bystander(source) as bystander,
    ):
        for line in (one, other):
            line.delay(round_trip / 2)
        ends = (one, other) if round_trip else (source, target)
        urls = [Endpoint.parse(f"redis://{each.host}:{each.port}") for each in ends]
        comparison = comparison_of(urls[0], urls[1], TransferSettings(), lambda: False)
        assert comparison is not None

        async def walk() -> tuple[int, float]:
            await comparison.open()
            began, count = time.perf_counter(), 0
            async for _, absent, looked_up in comparison.one_sided_names():
                assert not absent
                count += looked_up
            seconds = time.perf_counter() - began
            await comparison.close()
            return count, seconds

        count, seconds = run(walk())
    waited = sorted(bystander.waited)
    return {
        "k names/s": count / seconds / 1000,
        "seconds": seconds,
        "p99 of another client, ms": waited[int(len(waited) * 0.99)] * 1000,
    }


def round_trips(source: Server, target: Server, folder: Path) -> dict[str, float]:
    """How many round trips a migration of a few keys takes."""
    taken: list[float] = []
    for far in (0.0, ROUND_TRIP):
        for server in (source, target):
            server.client().config_set("min-replicas-to-write", 0)
            server.client().flushall()
        source.client().mset({f"key:{n}": n for n in range(FEW_KEYS)})
        with Proxy(source.host, source.port) as one, Proxy(target.host, target.port) as other:
            for proxy in (one, other):
                proxy.delay(far / 2)
            began = time.monotonic()
            migrate("replica", one, other, folder)
            taken.append(time.monotonic() - began)
    return {"near, s": taken[0], "far, s": taken[1], "round trips": (taken[1] - taken[0]) / far}


def _offset(client: Any, name: str) -> int:
    return int(client.info("replication").get(name, -1))


def burst(source: Server, target: Server, folder: Path, round_trip: float) -> dict[str, float]:
    """How long a burst takes to a far target, and to a replica as far away."""
    client = source.client(socket_timeout=300)
    for server in (source, target):
        server.client().config_set("min-replicas-to-write", 0)
        server.client().flushall()
    for name, value in PATIENT.items():
        client.config_set(name, value)
    with (
        Server.start(source.binary, "--save", "") as replica,
        Proxy(source.host, source.port) as to_source,
        Proxy(target.host, target.port) as to_target,
    ):
        for line in (to_source, to_target):
            line.delay(round_trip / 2)
        beside = replica.client()
        beside.execute_command("REPLICAOF", to_source.host, to_source.port)
        state = f"sqlite:///{folder / f'{time.time_ns()}.sqlite'}"
        engine = Engine(state)
        engine.run(
            "register-replication-group",
            "--primary-endpoint",
            f"redis://{to_target.host}:{to_target.port}",
        )
        node = f"Address={source.host},Port={source.port}"
        list_of = ("--customer-node-endpoint-list", node, "--source-type", "replica")
        engine.run("start-migration", *list_of)
        engine.until_following()
        watch = Watch(state)
        while beside.info("replication")["master_link_status"] != "up":
            time.sleep(0.05)
        began, value = time.monotonic(), "x" * VALUE_BYTES
        for _ in range(0, BURST_COMMANDS, BURST_AT_ONCE):
            client.eval(BURST_SCRIPT, 0, BURST_AT_ONCE, value)
        end = _offset(client, "master_repl_offset")
        native = ours = 0.0
        while not (native and ours) and time.monotonic() - began < RUN_SECONDS:
            now = time.monotonic() - began
            native = native or (_offset(beside, "slave_repl_offset") >= end) * now
            # The state is written twice a second.
            ours = ours or ((watch.progress().applied_offset or 0) >= end) * now
            time.sleep(0.02)
        engine.run("complete-migration", "--force")
        engine.until_available(None)
    return {"native, s": native, "engine, s": ours, "ratio": ours / native if native else 0.0}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("rows", nargs="*", default=["scan", "names", "migration", "burst"])
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    with servers() as (source, target, folder):
        if "scan" in arguments.rows:
            client = source.client(socket_timeout=300)
            client.config_set("slowlog-log-slower-than", 1000)
            client.config_set("slowlog-max-len", 1000)
            for at in range(0, arguments.keys, 10_000):
                some = range(at, min(at + 10_000, arguments.keys))
                client.mset({f"key:{n}": f"{n}:".ljust(VALUE_BYTES, "x") for n in some})
            for _ in range(arguments.runs):
                for name, far in (("scan, near", 0.0), ("scan, 50 ms", ROUND_TRIP)):
                    rows.setdefault(name, []).append(scan(source, target, folder, far))
        if "names" in arguments.rows:
            for server in (source, target):
                client = server.client(socket_timeout=300)
                client.flushall()
                for at in range(0, arguments.keys, 10_000):
                    some = range(at, min(at + 10_000, arguments.keys))
                    client.mset(dict.fromkeys((f"key:{n}" for n in some), ""))
            for _ in range(arguments.runs):
                for name, far in (("names, near", 0.0), ("names, 50 ms", ROUND_TRIP)):
                    rows.setdefault(name, []).append(names(source, target, far))
            target.client(socket_timeout=300).flushall()
        if "migration" in arguments.rows:
            for _ in range(arguments.runs):
                rows.setdefault("migration", []).append(round_trips(source, target, folder))
        if "burst" in arguments.rows:
            for _ in range(arguments.runs):
                for name, far in (("burst, 50 ms", 0.05), ("burst, 150 ms", 0.15)):
                    rows.setdefault(name, []).append(burst(source, target, folder, far))
    for name, found in rows.items():
        figures = {key: statistics.median(each[key] for each in found) for key in found[0]}
        print(f"{name:12}", ", ".join(f"{key} {value:.1f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
