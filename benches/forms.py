"""`python -m benches.forms`: the position in each batch's transaction, beside a record of it.

    near    20,000 SETs a second: CPU of the engine and of the target for a command, and the lag
    far     a burst of single SETs to a target that is 50 ms away: until all of it is there, and the
            same CPU

Both forms (`ext/position_records.pxi`) take turns, `--runs` times; medians are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benches import procstat
from benches.datasets import resp
from benches.far import PATIENT, ROUND_TRIP
from benches.follow import Engine, Watch, measure
from benches.support.proxy import Proxy
from benches.support.servers import Server, named

FORMS = ("transaction", "record")
SERVER = "redis-7.0"
BURST_COMMANDS = 600_000
VALUE_BYTES = 100
BURST_SECONDS = 300.0


def near(seconds: float) -> dict[str, float]:
    """One run at 20,000 SETs a second."""
    binary = named(SERVER)
    found = measure(20_000, seconds, cut_over=False, servers=(binary, binary))
    return {
        "engine, µs": found["engine_us_a_command"],
        "target, µs": 1e6 * found["target_busy"] / found["commands_per_second"],
        "p50 lag, ms": found["lag_ms_p50"],
        "p99 lag, ms": found["lag_ms_p99"],
    }


def far(commands: int) -> dict[str, float]:
    """A burst of single SETs over a line of 50 ms."""
    binary = named(SERVER)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server.start(binary, "--save", "") as source,
        Server.start(binary, "--save", "") as target,
        Proxy(target.host, target.port) as line,
    ):
        for name, value in PATIENT.items():
            source.client().config_set(name, value)
        line.delay(ROUND_TRIP / 2)
        state = f"sqlite:///{Path(folder) / 'state.sqlite'}"
        engine = Engine(state)
        there = f"redis://{line.host}:{line.port}"
        engine.run("register-replication-group", "--primary-endpoint", there)
        node = f"Address={source.host},Port={source.port}"
        list_of = ("--customer-node-endpoint-list", node, "--source-type", "replica")
        engine.run("start-migration", *list_of)
        worker = engine.until_following()
        watch = Watch(state)
        connection = source.client().connection_pool.get_connection()
        connection.connect()
        pids = (worker, target.pid)
        before = [procstat.cpu_seconds(pid) for pid in pids]
        began = time.monotonic()
        value = os.urandom(VALUE_BYTES)
        for first in range(0, commands, 1000):
            some = [resp("SET", f"k:{n % 100_000}", value) for n in range(first, first + 1000)]
            connection._sock.sendall(b"".join(some))
            owed = 5 * len(some)
            while owed:
                owed -= len(connection._sock.recv(min(owed, 1 << 16)))
        end = int(source.client().info("replication")["master_repl_offset"])
        while (watch.progress().applied_offset or 0) < end:
            if time.monotonic() - began > BURST_SECONDS:
                raise SystemExit(f"not there after {BURST_SECONDS:g} s: {watch.progress()}")
            time.sleep(0.02)
        took = time.monotonic() - began
        used = [procstat.cpu_seconds(pid) - at for pid, at in zip(pids, before, strict=True)]
        engine.run("complete-migration", "--force")
        engine.until_available(None)
    return {
        "burst, s": took,
        "engine, µs": 1e6 * used[0] / commands,
        "target, µs": 1e6 * used[1] / commands,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benches.forms", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--commands", type=int, default=BURST_COMMANDS)
    parser.add_argument("rows", nargs="*", default=["near", "far"])
    options = parser.parse_args()
    for row in options.rows:
        found: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
        for _ in range(options.runs):
            for form in FORMS:
                os.environ["STARTMIGRATION_POSITION_FORM"] = form
                found[form].append(
                    near(options.seconds) if row == "near" else far(options.commands)
                )
                print(row, form, {name: round(n, 2) for name, n in found[form][-1].items()})
        for form, runs in found.items():
            medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            print(f"{row:5} {form:12}", "  ".join(f"{k} {v:.2f}" for k, v in medians.items()))


if __name__ == "__main__":
    main()
