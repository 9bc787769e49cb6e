"""`python -m benches.protect`: what a client of a source waits while that is scanned, with and
without `--protect-source`.

A client asks for 20 keys each millisecond (20,000 a second) over one connection, whatever the
answers take: how long each portion takes counts from when it was due. First alone, then while the
source's keys are scanned into another server as fast as both ends are, then with the source
protected. Shown are the client's latencies of each part, and how long the scan took.

The parts follow one another in rounds, and the medians are shown: the ratios within one run count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benches.support.servers import Server, named

SERVER = "redis-7.0"
AT_ONCE, EVERY = 20, 0.001
VALUE_BYTES = 100
ALONE_SECONDS, BEHIND_SECONDS = 10.0, 1.0
RUN_SECONDS = 900.0


def fill(server: Server, keys: int) -> None:
    """Strings of 100 bytes."""
    with server.client().pipeline(transaction=False) as pipe:
        for begin in range(0, keys, 10_000):
            for n in range(begin, min(begin + 10_000, keys)):
                pipe.set(f"key:{n:09}", b"x" * VALUE_BYTES)
            pipe.execute()


def ask(host: str, port: int, keys: int, told: Connection) -> None:
    """The client: until it is told to end; sends the seconds that each portion took."""
    rng = random.Random(1)
    portions = []
    for _ in range(512):
        names = [b"key:%09d" % rng.randrange(keys) for _ in range(AT_ONCE)]
        gets = [b"*2\r\n$3\r\nGET\r\n$13\r\n%s\r\n" % name for name in names]
        portions.append(b"".join(gets))
    size = AT_ONCE * len(b"$%d\r\n%s\r\n" % (VALUE_BYTES, b"x" * VALUE_BYTES))
    took: list[float] = []
    with socket.create_connection((host, port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        due = time.perf_counter()
        for turn in range(1 << 60):
            due += EVERY
            now = time.perf_counter()
            if now < due:
                time.sleep(due - now)
            elif now > due + BEHIND_SECONDS:
                # (It cannot keep up: the machine is too busy for the figures to tell anything.)
                due = now
            link.sendall(portions[turn % len(portions)])
            left = size
            while left:
                left -= len(link.recv(left))
            took.append(time.perf_counter() - due)
            if turn % 64 == 0 and told.poll():
                break
    told.send(took)


class Client:
    """`ask` in a process of its own."""

    def __init__(self, server: Server, keys: int) -> None:
        self._told, there = multiprocessing.Pipe()
        arguments = server.host, server.port, keys, there
        self._process = multiprocessing.Process(target=ask, args=arguments, daemon=True)
        self._process.start()

    def stop(self) -> list[float]:
        """How long each portion took, in seconds."""
        self._told.send(None)
        took: list[float] = self._told.recv()
        self._process.join()
        return took


def migrate(source: Server, target: Server, options: list[str]) -> float:
    """Scan the source into the target; the seconds that it took. Raises `SystemExit`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "engine", "migrate", "--source-type", "scan"]
        command += ["--source", source.url, "--target", target.url, "--until", "snapshot"]
        command += ["--output", "json", "--state", f"sqlite:///{Path(folder) / 's.sqlite'}"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=RUN_SECONDS
        )
        if done.returncode:
            raise SystemExit(f"migrate: exit {done.returncode}: {done.stdout} {done.stderr}")
        return time.perf_counter() - began


def measured(took: list[float]) -> dict[str, float]:
    """Percentiles, in ms."""
    found = sorted(took)
    return {
        f"p{share:g}_ms": round(found[int((len(found) - 1) * share / 100)] * 1000, 3)
        for share in (50.0, 99.0, 99.9)
    }


def main() -> int:
    """Measure, and print a row each."""
    parser = argparse.ArgumentParser(prog="python -m benches.protect", description=__doc__)
    parser.add_argument("--keys", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bounds", default="latency=1ms", help="for --protect-source")
    parser.add_argument("--json", action="store_true", help="one object a row")
    wanted = parser.parse_args()
    binary = named(SERVER)
    parts = {
        "alone": None,
        "unprotected": [],
        f"--protect-source {wanted.bounds}": ["--protect-source", wanted.bounds],
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    with (
        Server.start(binary, "--save", "") as source,
        Server.start(binary, "--save", "") as target,
    ):
        fill(source, wanted.keys)
        for _ in range(wanted.rounds):
            for name, options in parts.items():
                target.client().flushall()
                client = Client(source, wanted.keys)
                if options is None:
                    time.sleep(ALONE_SECONDS)
                    seconds = ALONE_SECONDS
                else:
                    seconds = migrate(source, target, options)
                    if target.client().dbsize() != wanted.keys:
                        raise SystemExit("keys are missing on the target")
                rows[name].append({**measured(client.stop()), "seconds": round(seconds, 1)})
    for name, found in rows.items():
        medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
        shown = json.dumps({"part": name, **medians, "rounds": found})
        figures = "  ".join(f"{key} {value:g}" for key, value in medians.items())
        print(shown if wanted.json else f"{name:32} {figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
