"""`python -m benches.aof`: an append-only file, loaded by its own server and migrated by the
engine.

A file of `--commands` commands (strings, counters, hashes, lists, sorted sets, TTLs; one in ten in
a transaction) is written as a server writes it. The server that loads it says in its log how long
that took; the engine migrates it into an empty server of the same program. Both are done `--rounds`
times, in turn. Printed: commands a second of both, the ratio of their rates (while the commands are
applied, and over the whole run, from the first look at the file to the comparison at the end), and
the CPU of engine and target. Both ends must then hold the same number of keys.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benches.datasets import resp
from benches.follow import PREFERRED
from benches.support.servers import Binary, Server, named
from engine.fleet.cut_over_comparisons import FilesVerificationGate
from engine.model.endpoint import Endpoint
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.transfer import Transfer
from engine.wire.event_loop import run

GOAL = 0.8
_LOADED = re.compile(r"DB loaded from (?:append only file|base file|incr file)[^:]*: ([0-9.]+) sec")
VALUE_BYTES = 100


def write(path: Path, commands: int, seed: int = 1) -> None:
    """A file of so many commands over a fifth as many keys."""
    rng = random.Random(seed)
    keys = max(commands // 5, 1)
    value = bytes(rng.randrange(33, 126) for _ in range(VALUE_BYTES))
    later = int(time.time() * 1000) + 3_600_000
    kinds = (
        lambda key: resp("SET", f"string:{key}", value),
        lambda key: resp("SET", f"string:{key}", value),
        lambda key: resp("SET", f"string:{key}", value),
        lambda key: resp("INCR", f"counter:{key}"),
        lambda key: resp("INCR", f"counter:{key}"),
        lambda key: resp("HSET", f"hash:{key // 20}", f"f:{key % 20}", value[:30]),
        lambda key: resp("RPUSH", f"list:{key // 100}", value[:20]),
        lambda key: resp("ZADD", f"zset:{key // 50}", str(key), f"m:{key}"),
        lambda key: resp("PEXPIREAT", f"string:{key}", str(later + key)),
        lambda key: b"".join(
            (resp("MULTI"), resp("INCR", f"counter:{key}"), resp("EXEC")),
        ),
    )
    with path.open("wb") as file:
        file.write(resp("SELECT", "0"))
        for _ in range(commands // len(kinds)):
            file.write(b"".join(kind(rng.randrange(keys)) for kind in kinds))


def load(binary: Binary, path: Path) -> tuple[float, float, int]:
    """Seconds in which the server loads the file, by its own log; its CPU, as much as it has used
    until then; how many keys it has."""
    with Server.start(binary, "--save", "", "--appendonly", "yes") as server:
        server.stop()
        shutil.rmtree(server.folder / "appendonlydir", ignore_errors=True)
        # From 7.0 on a server takes such a file as the base of a new folder.
        shutil.copy(path, server.folder / "appendonly.aof")
        server.restart(loaded=False)
        while server.client().info("persistence")["loading"]:
            time.sleep(0.05)
        times = [float(found) for found in _LOADED.findall(server.log.read_text())]
        keys = server.client().dbsize()
        cpu = server.cpu_seconds()
    return max(times), cpu, keys


def migrate(path: Path, target: Server) -> Report:
    """The engine, in this process."""

    async def gate() -> CutOverCheckResult:
        raise AssertionError("there is one of files")

    async def main() -> Report:
        work = Transfer(
            Endpoint.parse(f"aof:{path}"),
            Endpoint.parse(target.url),
            TransferSettings(),
            checkpoints=MemoryCheckpoint(),
            on_progress=lambda _: None,
            on_event=lambda _: None,
            gate=gate,
            gate_of_files=FilesVerificationGate(Endpoint.parse(target.url), TransferSettings()),
            one_go=True,
        )
        return await work.run()

    return run(main())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep nothing."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benches.aof")
    parser.add_argument("--commands", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", default=PREFERRED, help="the server's name, or its beginning")
    given = parser.parse_args(arguments)
    binary = named(given.server)
    results = []
    with tempfile.TemporaryDirectory(prefix="sm-aof-file-") as folder:
        path = Path(folder, "appendonly.aof")
        write(path, given.commands)
        for _ in range(given.rounds):
            loaded, load_cpu, keys = load(binary, path)
            with Server.start(binary, "--save", "") as target:
                before = resource.getrusage(resource.RUSAGE_SELF)
                report = migrate(path, target)
                after = resource.getrusage(resource.RUSAGE_SELF)
                if report.status != "done" or target.client().dbsize() != keys:
                    raise SystemExit(f"not the same: {report.errors}, {target.client().dbsize()}")
                seconds = {step.name: step.seconds for step in report.steps}
                results.append(
                    {
                        "load_seconds": loaded,
                        "load_cpu": load_cpu,
                        "apply_seconds": seconds["snapshot"],
                        "all_seconds": report.seconds,
                        "engine_cpu": after.ru_utime
                        + after.ru_stime
                        - before.ru_utime
                        - before.ru_stime,
                        "target_cpu": target.cpu_seconds(),
                        "steps": {name: round(each, 3) for name, each in seconds.items()},
                        "ratio": loaded / seconds["snapshot"],
                        "ratio_of_all": loaded / report.seconds,
                    }
                )
            print(json.dumps(results[-1]), flush=True)
        size = path.stat().st_size
    ratio = statistics.median(each["ratio"] for each in results)
    ratio_of_all = statistics.median(each["ratio_of_all"] for each in results)
    target = statistics.median(each["target_cpu"] / each["load_cpu"] for each in results)
    engine = statistics.median(each["engine_cpu"] / each["load_cpu"] for each in results)
    print(
        f"{binary}: {given.commands:,} commands, {size / 1e6:,.0f} MB; load "
        f"{given.commands / statistics.median(e['load_seconds'] for e in results):,.0f}/s, engine "
        f"{given.commands / statistics.median(e['apply_seconds'] for e in results):,.0f}/s, "
        f"ratio {ratio:.2f}, of the whole run {ratio_of_all:.2f} (goal {GOAL}); CPU, where loading "
        f"takes 1: target {target:.2f}, engine {engine:.2f}"
    )


if __name__ == "__main__":
    main()
