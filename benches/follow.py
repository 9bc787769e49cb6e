"""`python -m benches.follow`: how far behind a followed source the target is, and the write stop.

A writer sends SETs to the source at a steady rate. A probe beside it writes the time into one key
on the source, some hundred times a second, and looks on the target until it is there: that is the
lag as a user would see it, the engine's own opinion is not asked. It pauses for a random time in
between: a steady one falls into step with the engine's own. At the end a cut-over: a client
writes to the source one command after the other, changes to the target as soon as the migration is
complete, and the longest time between two of its answers is the write stop.

The writer prepares its commands and sends those of a millisecond at once, as a pipelining client
does. `full` names what had a core for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from benches import procstat
from benches.datasets import resp
from benches.support.servers import Server, binaries

PREFERRED = "redis-7.0"
SLICE_SECONDS = 0.001
KEYS = 100_000
VALUE_BYTES = 100
PROBE = "follow:probe"
PROBE_PAUSES = (0.002, 0.008)
# A process that used so much of a core had it for itself.
FULL = 0.95
START_SECONDS = 60.0
CUT_OVER_SECONDS = 30.0


def write(url: str, rate: int, seconds: float, names: Sequence[str] = ()) -> None:
    """The writer's process: `rate` SETs a second for `seconds`, in slices of a millisecond, to the
    keys of these names."""
    names = names or [f"k:{n}" for n in range(KEYS)]
    client = redis.Redis.from_url(url)
    connection = client.connection_pool.get_connection()
    connection.connect()
    sock = connection._sock  # redis-py has no way to send prepared bytes and count the answers
    value = os.urandom(VALUE_BYTES)
    commands = [resp("SET", name, value) for name in names]
    owed = 0
    at, sent = 0, 0
    began = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        due = int((now - began) * rate)
        count = min(due - sent, 4096)
        if count > 0:
            end = min(at + count, len(commands))
            sock.sendall(b"".join(commands[at:end]))
            owed += 5 * (end - at)
            sent += end - at
            at = end % len(commands)
        while owed > 0:
            owed -= len(sock.recv(min(owed, 1 << 16)))
        time.sleep(max(0.0, SLICE_SECONDS - (time.monotonic() - now)))
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - began}))


class Probe:
    """Measures the lag until it is stopped; `lags` in seconds."""

    def __init__(self, source: Server, target: Server, key: str = PROBE) -> None:
        self._source, self._target, self._key = source.client(), target.client(), key
        self._stop = threading.Event()
        self.lags: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            mark = str(turn).encode()
            self._source.set(self._key, mark)
            written = time.perf_counter()
            while self._target.get(self._key) != mark and not self._stop.is_set():
                time.sleep(0.0002)
            self.lags.append(time.perf_counter() - written)
            time.sleep(random.uniform(*PROBE_PAUSES))

    def stop(self) -> list[float]:
        self._stop.set()
        self._thread.join(10)
        return self.lags[:-1]


class Client:
    """Writes one command after the other, to the source until the migration is complete."""

    def __init__(self, source: Server, target: Server) -> None:
        self._ends = [source.client(socket_timeout=60, retry=None), target.client()]
        self._reads = source.client(socket_timeout=60)
        self._stop = threading.Event()
        self.moved = threading.Event()
        self.longest_write = self.longest_read = 0.0
        self.written = 0
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            end = self._ends[1 if self.moved.is_set() else 0]
            try:
                end.set("follow:client", self.written)
            except redis.ConnectionError:
                # Cut while the source held the command up: to the target with it.
                continue
            except redis.ResponseError:
                # The source refuses writes behind the cut-over: the next one goes to the target.
                self.moved.wait(CUT_OVER_SECONDS)
                continue
            now = time.perf_counter()
            self.longest_write = max(self.longest_write, now - last)
            last = now
            self.written += 1
            time.sleep(0.0005)

    def _read(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            self._reads.get("follow:client")
            now = time.perf_counter()
            self.longest_read = max(self.longest_read, now - last)
            last = now
            time.sleep(0.001)

    def move(self) -> None:
        """To the target: its connection to the source is closed, whatever it waits for there."""
        self.moved.set()
        self._ends[0].connection_pool.disconnect()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def measure(rate: int, seconds: float, *, cut_over: bool, servers: Sequence[Any]) -> dict[str, Any]:
    """One run at `rate` SETs a second: lag, CPU, and with `cut_over` the write stop."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Server.start(servers[0]) as source,
        Server.start(servers[1]) as target,
    ):
        state = f"sqlite:///{Path(folder) / 'state.sqlite'}"
        engine = Engine(state)
        engine.run("register-replication-group", "--primary-endpoint", target.url)
        engine.run(
            "start-migration",
            "--customer-node-endpoint-list",
            f"Address={source.host},Port={source.port}",
            "--source-type",
            "replica",
        )
        worker = engine.until_following()
        # The writer, then the measurement over its steady part.
        writer = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benches.follow",
                "--write",
                source.url,
                str(rate),
                str(seconds),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        pids = {"source": source.pid, "engine": worker, "target": target.pid, "writer": writer.pid}
        watch = Watch(state)
        time.sleep(min(1.5, seconds / 4))
        probe = Probe(source, target)
        commands = -watch.progress().commands
        cpu = {name: procstat.cpu_seconds(pid) for name, pid in pids.items()}
        began = time.monotonic()
        lags_bytes: list[int] = []
        while time.monotonic() - began < seconds - 2:
            time.sleep(0.5)
            lags_bytes.append(watch.progress().lag_bytes or 0)
        took = time.monotonic() - began
        used = {name: procstat.cpu_seconds(pid) - cpu[name] for name, pid in pids.items()}
        commands += watch.progress().commands
        lags = sorted(probe.stop())
        busy = {name: seconds / took for name, seconds in used.items()}
        result: dict[str, Any] = {
            "rate": rate,
            "seconds": took,
            "commands_per_second": commands / took,
            "lag_ms_p50": 1000 * statistics.median(lags),
            "lag_ms_p99": 1000 * lags[int(len(lags) * 0.99)],
            "lag_ms_max": 1000 * lags[-1],
            "lag_bytes_max": max(lags_bytes),
            "probes": len(lags),
            "engine_us_a_command": 1e6 * used["engine"] / max(commands, 1),
            **{f"{name}_busy": share for name, share in busy.items()},
            "full": [name for name, share in busy.items() if share >= FULL],
            "engine_rss_mib": procstat.peak_rss_bytes(worker) / (1 << 20),
        }
        if cut_over:
            client = Client(source, target)
            time.sleep(0.5)
            began = time.perf_counter()
            engine.run("complete-migration")
            engine.until_available(client)
            result["cut_over_seconds"] = time.perf_counter() - began
            time.sleep(0.5)
            client.stop()
            result["write_stop_seconds"] = client.longest_write
            result["read_stop_seconds"] = client.longest_read
            report = engine.last_event()
            result["event"] = report
        else:
            engine.run("complete-migration", "--force")
            engine.until_available(None)
        writer.kill()
        writer.wait()
        return result


class Watch:
    """Looks at a migration by its state: a verb's process would take half a core meanwhile."""

    def __init__(self, state: str) -> None:
        from engine.groups.registry import Registry

        self._registry = Registry(state)

    def progress(self) -> Any:
        _, transfer = self._registry.get(Engine.GROUP)
        assert transfer is not None
        return transfer.progress


class Engine:
    """The engine's verbs on one state and one group."""

    GROUP = "follow"

    def __init__(self, state: str) -> None:
        self._state = state

    def run(self, verb: str, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "engine", verb, "--state", self._state]
        command += ["--output", "json", "--replication-group-id", self.GROUP, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise SystemExit(f"{verb}: {done.stdout} {done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def group(self) -> dict[str, Any]:
        found: dict[str, Any] = self.run("describe-replication-groups")["ReplicationGroups"][0]
        return found

    def migration(self) -> dict[str, Any]:
        found: dict[str, Any] = self.group()["Migration"]
        return found

    def until_following(self) -> int:
        """Wait for FOLLOW; the worker's pid."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            migration = self.migration()
            if migration["Phase"] == "FOLLOW":
                pid: int = migration["Workers"][0]["Pid"]
                return pid
            time.sleep(0.1)
        raise SystemExit(f"not following after {START_SECONDS:g} s: {self.migration()}")

    def until_available(self, client: Client | None) -> None:
        """Wait for the migration's end, by the state itself: starting a verb takes too long."""
        from engine.groups.registry import Registry

        registry = Registry(self._state)
        deadline = time.monotonic() + CUT_OVER_SECONDS
        while time.monotonic() < deadline:
            group, _ = registry.get(self.GROUP)
            if group.status == "available":
                if client is not None:
                    client.move()
                return
            time.sleep(0.001)
        raise SystemExit("the cut-over did not end")

    def last_event(self) -> str:
        events = self.run("describe-events")["Events"]
        return next(
            (each["Message"] for each in reversed(events) if "cut over" in each["Message"]), ""
        )


def main() -> int:
    """Run the rates named; print JSON and a line for people each."""
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benches.follow", description=__doc__)
    parser.add_argument("--rates", default="20000,50000,100000", help="SETs a second, with commas")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--smoke", action="store_true", help="2,000 a second for five seconds")
    options = parser.parse_args()
    rates = [2000] if options.smoke else [int(rate) for rate in options.rates.split(",")]
    seconds = 5.0 if options.smoke else options.seconds
    found = list(binaries())
    like = [binary for binary in found if binary.name.startswith(PREFERRED)] or found
    for place, rate in enumerate(rates):
        result = measure(rate, seconds, cut_over=place == 0, servers=(like[0], like[0]))
        print(json.dumps(result, indent=1), flush=True)
        print(
            "{rate:,} asked for, {commands_per_second:,.0f} commands/s; lag {lag_ms_p50:.2f} / "
            "{lag_ms_p99:.2f} / {lag_ms_max:.2f} ms (p50, p99, most); engine "
            "{engine_us_a_command:.2f} us a command, at most {engine_rss_mib:.0f} MiB; a core for "
            "itself had: {alone}".format(alone=", ".join(result["full"]) or "nobody", **result),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
