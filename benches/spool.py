"""`python -m benches.spool`: the engine's memory while ten gigabytes wait on its disk.

The target hangs on a link that hardly carries anything; a writer writes to the source at a steady
rate, until `--gib` of the stream wait in the spool. Then the link is let go, everything goes over,
and both ends are compared. Printed: the engine's peak RSS, the most that waited, and how fast it
came and went. A source that cut us off on the way ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from benches import procstat
from benches.datasets import resp
from benches.follow import PREFERRED, Engine, Watch
from benches.support.compare import assert_equal
from benches.support.proxy import Proxy
from benches.support.servers import Server, binaries

GIB = 1 << 30
KEYS = 500
VALUE_BYTES = 64 << 10
# What the target's link carries meanwhile, in bytes a second: it is slow, not dead.
TRICKLE = 1 << 20
SECONDS = 900.0


def write(url: str, nbytes: int, rate: int) -> None:
    """The writer's process: SETs of 64 KiB, and a count of them, until `nbytes` are written, at
    `rate` bytes a second."""
    client = redis.Redis.from_url(url)
    connection = client.connection_pool.get_connection()
    connection.connect()
    sock = connection._sock  # redis-py has no way to send prepared bytes and count the answers
    noise = os.urandom(VALUE_BYTES + KEYS)
    batches = [
        b"".join(
            resp("SET", f"k:{key}", noise[key : key + VALUE_BYTES]) + resp("INCR", f"count:{key}")
            for key in range(first, first + 50)
        )
        for first in range(0, KEYS, 50)
    ]
    written = turn = 0
    began = time.monotonic()
    while written < nbytes:
        time.sleep(max(0.0, began + written / rate - time.monotonic()))
        batch = batches[turn % len(batches)]
        sock.sendall(batch)
        lines = 0
        while lines < 100:
            lines += sock.recv(1 << 16).count(b"\n")
        written += len(batch)
        turn += 1


def measure(gib: float, rate: int) -> dict[str, object]:
    """Fill the spool with `gib` GiB at `rate` bytes a second, and empty it.

    Raises `AssertionError` if the ends differ, `SystemExit` if the source cut us off.
    """
    wanted = int(gib * GIB)
    found = list(binaries())
    like = next((each for each in found if each.name.startswith(PREFERRED)), found[0])
    with (
        tempfile.TemporaryDirectory() as folder,
        Server.start(like) as source,
        Server.start(like) as target,
        Proxy(target.host, target.port) as link,
    ):
        state = f"sqlite:///{Path(folder) / 'state.sqlite'}"
        engine, watch = Engine(state), Watch(state)
        engine.run(
            "register-replication-group", "--primary-endpoint", f"redis://127.0.0.1:{link.port}"
        )
        engine.run(
            *("start-migration", "--source-type", "replica", "--spool-bytes", str(wanted * 2)),
            *("--customer-node-endpoint-list", f"Address={source.host},Port={source.port}"),
        )
        worker = engine.until_following()
        syncs = source.client().info("stats")["sync_full"]
        link.throttle(TRICKLE)
        began = time.monotonic()
        command = [sys.executable, "-m", "benches.spool", "--write", source.url, str(wanted)]
        command.append(str(rate))
        subprocess.run(command, check=True, timeout=SECONDS)
        filled = time.monotonic() - began
        most = watch.progress().spool_bytes
        if source.client().info("stats")["sync_full"] > syncs:
            raise SystemExit("the source cut us off: it was written to faster than we were let run")
        deadline = time.monotonic() + SECONDS
        link.throttle(None)
        began = time.monotonic()
        while not watch.progress().can_complete and time.monotonic() < deadline:
            time.sleep(0.2)
        emptied = time.monotonic() - began
        rss = procstat.peak_rss_bytes(worker)
        engine.run("complete-migration")
        engine.until_available(None)
        assert_equal(source.client(), target.client())
    return {
        "waited_gib": most / GIB,
        "came_mb_per_second": wanted / filled / 1e6,
        "went_mb_per_second": most / emptied / 1e6,
        "engine_peak_rss_mib": rss / (1 << 20),
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, and print JSON and a line for people."""
    if arguments[:1] == ["--write"]:
        write(arguments[1], int(arguments[2]), int(arguments[3]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benches.spool", description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--mb-per-second", type=float, default=200.0)
    options = parser.parse_args(arguments)
    result = measure(options.gib, int(options.mb_per_second * 1e6))
    print(json.dumps(result, indent=1))
    print(
        "{waited_gib:.1f} GiB waited, came with {came_mb_per_second:,.0f} MB/s and went with "
        "{went_mb_per_second:,.0f}; engine at most {engine_peak_rss_mib:.0f} MiB".format(**result)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
