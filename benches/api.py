"""`python -m benches.api`: what clients of the HTTP API cost a running transfer.

A server of ours moves a set of strings, over and over: in turn with nobody asking, with 200 clients
that each describe the group once a second, and with 200 that ask as fast as they are answered. Keys
per second are those of the snapshot in the migration's report. The clients are raw sockets and
requests that are signed once, in a process that gives way to all others, as if it were on another
machine: what is measured is the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benches.datasets import strings
from benches.support.api import Serving, percent
from benches.support.servers import Server, binaries
from benches.support.waiting import wait_for
from engine.front.engine import Engine

PREFERRED = "redis-7.0"
CLIENTS = 200
SECONDS = 120.0
QUICK = 0.0
POLLING = 1.0
CASES = {"nobody": None, "200 clients, once a second": POLLING, "200 clients, at full speed": QUICK}


async def ask(address: str, target: str, clients: int, pause: float) -> None:
    """The clients' process: ask until it is ended, and print what was answered each second."""
    host, _, port = address.partition(":")
    request = f"GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    answers: Counter[str] = Counter()

    async def client(number: int) -> None:
        await asyncio.sleep(pause * number / clients)
        reader, writer = await asyncio.open_connection(host, int(port))
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
            answers[head[9:12].decode()] += 1
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    while True:
        begun = time.monotonic()
        done, _ = await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        seconds = time.monotonic() - begun
        print(json.dumps({code: count / seconds for code, count in answers.items()}), flush=True)
        answers.clear()


def one(api: Serving, source: Server, target: Server, pause: float | None) -> dict[str, Any]:
    """One migration, with clients that ask with this pause (None: without): keys a second, and the
    clients' answers a second by status."""
    target.client().flushall()
    client = api.client()
    name = {"ReplicationGroupId": "bench"}
    described = client.generate_presigned_url(
        "describe_replication_groups", name, HttpMethod="GET", ExpiresIn=3600
    )
    nodes = [{"Address": "127.0.0.1", "Port": source.port}]
    asking = None
    if pause is not None:
        request = described.removeprefix(api.url)
        asking = subprocess.Popen(
            [sys.executable, "-m", "benches.api", "--ask", api.address, request, str(pause)],
            stdout=subprocess.PIPE,
            text=True,
        )
    client.start_migration(**name, CustomerNodeEndpointList=nodes)

    def group() -> dict[str, Any]:
        found: dict[str, Any] = quiet.describe_replication_groups(**name)["ReplicationGroups"][0]
        return found

    # Another key: the clients' is throttled.
    quiet = api.client("migrate")
    wait_for(lambda: percent(group()) == 100.0, "in sync", SECONDS)
    told: list[dict[str, float]] = []
    if asking is not None:
        asking.terminate()
        assert asking.stdout is not None
        told = [json.loads(line) for line in asking.stdout]
        asking.wait()
    quiet.complete_migration(**name)
    wait_for(lambda: group()["Status"] == "available", "available", SECONDS)
    engine = Engine(api.state)
    _, transfer = engine.services.registry.get("bench")
    engine.close()
    assert transfer is not None
    assert transfer.report is not None
    assert target.client().dbsize() == source.client().dbsize()
    (step,) = [step for step in transfer.report.steps if step.name == "snapshot"]
    middle = told[1:-1]
    codes = {code for each in middle for code in each}
    return {
        "keys_per_second": step.keys / step.seconds,
        "answers": {c: statistics.mean(each.get(c, 0.0) for each in middle) for c in codes},
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(prog="python -m benches.api", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ask:
        address, target, pause = options.ask
        os.setsid()
        os.nice(19)
        with contextlib.suppress(OSError):  # niceness among sessions, where the kernel has that
            Path("/proc/self/autogroup").write_text("19", encoding="ascii")
        asyncio.run(ask(address, target, CLIENTS, float(pause)))
        return 0
    binary = next((each for each in binaries() if each.name.startswith(PREFERRED)), binaries()[0])
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    with (
        tempfile.TemporaryDirectory() as folder,
        Server.start(binary) as source,
        Server.start(binary) as target,
        Serving(Path(folder), f"sqlite:///{folder}/state.db", log_level="info") as api,
    ):
        strings(source.url, n=options.keys)
        api.client().create_replication_group(
            ReplicationGroupId="bench",
            ReplicationGroupDescription="",
            PrimaryClusterId=f"127.0.0.1:{target.port}",
        )
        for _ in range(options.runs):
            for case, pause in CASES.items():
                found[case].append(one(api, source, target, pause))
    alone = statistics.median(run["keys_per_second"] for run in found["nobody"])
    for case, runs in found.items():
        rate = statistics.median(run["keys_per_second"] for run in runs)
        answers = {code: round(n) for code, n in sorted(runs[-1]["answers"].items())}
        print(f"{case:28} {rate:10,.0f} keys/s  {rate / alone:5.2f}  answers a second: {answers}")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
