"""`python -m benches`: keys a second, end to end, this engine and its rivals on the same data.

Two real servers are started. Each data set is written into the source once; then every rival
migrates it in turn, into the same target, emptied in between. With `--runs N` the whole round is
repeated: rivals are interleaved, because a machine's speed drifts, and ratios are taken within a
round.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benches import datasets, procstat, report
from benches.adapters.base import ROOT, Adapter, AdapterError, Measurement, keys_by_db
from benches.adapters.registry import adapters
from benches.support.servers import Binary, Server, ServerError, binaries

RESULTS = ROOT / "bench-results"

SETS = ("strings", "mixed", "large")
PREFERRED = "redis-7.0"
SMOKE_SCALE = {"strings": 0.005, "mixed": 0.004, "large": 0.002, "demo": 0.01}
CLIENT_SECONDS = 600.0


class BenchError(Exception):
    """The benchmark is worth nothing as it stands; the message says why."""


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 0, or 1 if something that should have run did not."""
    options = _parser().parse_args(argv)
    try:
        # 1. Who takes part, on which servers. What is measured is compiled, as installing would.
        compileall.compile_dir(ROOT / "engine", quiet=2)
        chosen = _chosen(options.adapters)
        source_binary, target_binary = _servers(options.servers)
        about = _about(options, source_binary, target_binary)
        print(f"source {source_binary}, target {target_binary}, {about['cpus']} CPUs")

        # 2. Each data set on its own pair of servers.
        results = []
        for name in options.sets:
            scale = SMOKE_SCALE[name] if options.smoke else options.scale
            result = _run_set(name, scale, options, chosen, (source_binary, target_binary))
            results.append(result)
            print(report.table(result))
            print(report.ratio_table(result, full_size=scale >= 1.0), flush=True)

        # 3. Kept, and compared.
        path = options.json or RESULTS / f"{str(about['time']).replace(':', '')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.to_json(results, about), indent=1) + "\n")
        print(f"written to {path}")
        if options.compare is not None:
            print(report.comparison(results, options.compare))
    except (BenchError, datasets.DatasetError, ServerError, OSError, ValueError) as error:
        print(f"benches: {error}", file=sys.stderr)
        return 1
    failed = [f"{result.name}: {name}" for result in results for name in result.failures]
    if failed:
        print(f"benches: did not run to the end: {', '.join(failed)}", file=sys.stderr)
    # A rival may have its reasons; without the engine there is nothing to compare.
    engine_missing = any("engine" in result.failures for result in results)
    return 1 if engine_missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    names = tuple(adapters())
    parser.add_argument(
        "--sets", type=_names((*SETS, "demo")), default=SETS, help=f"of {','.join(SETS)},demo"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times the full size (1.0)")
    parser.add_argument("--smoke", action="store_true", help="tiny, for a check that all works")
    parser.add_argument(
        "--runs", type=int, default=1, help="rounds, interleaved; medians are shown"
    )
    parser.add_argument(
        "--adapters", type=_names(names), default=None, help=f"of {','.join(names)} (all)"
    )
    parser.add_argument("--servers", metavar="SRC,TGT", help="names as in the first line printed")
    parser.add_argument("--seed", type=int, default=datasets.SEED)
    parser.add_argument("--json", type=Path, metavar="FILE", help="instead of bench-results/TIME")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="an earlier run's file")
    return parser


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: expected some of {', '.join(known)}")
        return names

    return parse


def _chosen(names: tuple[str, ...] | None) -> list[Adapter]:
    """The adapters to run: those named, else all; what can't run is said and left out."""
    every = adapters()
    chosen = []
    for name, adapter in every.items():
        if names is not None and name not in names:
            continue
        reason = adapter.available()
        if reason is None:
            chosen.append(adapter)
        elif names is not None or name == "engine":
            raise BenchError(f"{name} can't be run: {reason}")
        else:
            print(f"left out: {name}: {reason}")
    return chosen


def _servers(names: str | None) -> tuple[Binary, Binary]:
    """The source's and the target's program. Raises `BenchError` if it is not there."""
    found = {binary.name: binary for binary in binaries()}
    if not found:
        raise BenchError("no redis-server or valkey-server found; name one in ENGINE_SERVERS")
    if names is None:
        like = [binary for name, binary in found.items() if name.startswith(PREFERRED)]
        return ((like or list(found.values()))[0],) * 2
    parts = names.split(",")
    if len(parts) != 2 or not set(parts) <= set(found):
        raise BenchError(f"--servers {names}: expected two, with a comma, of {', '.join(found)}")
    return found[parts[0]], found[parts[1]]


def _about(options: argparse.Namespace, source: Binary, target: Binary) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "source": source.name,
        "target": target.name,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "scale": options.scale,
        "smoke": options.smoke,
        "runs": options.runs,
        "seed": options.seed,
    }


def _run_set(
    name: str,
    scale: float,
    options: argparse.Namespace,
    chosen: list[Adapter],
    programs: tuple[Binary, Binary],
) -> report.SetResult:
    with Server.start(programs[0]) as source, Server.start(programs[1]) as target:
        summary = datasets.load(name, source.url, scale=scale, seed=options.seed)
        print(summary, flush=True)
        result = report.SetResult(name, summary.keys, summary.bytes, [], {})
        try:
            for adapter in chosen:
                adapter.prepare(source, summary)
            for _ in range(options.runs):
                round_: dict[str, Measurement] = {}
                for adapter in chosen:
                    if adapter.name in result.failures:
                        continue
                    _flush(target)
                    try:
                        run = adapter.run(source, target, summary)
                    except (AdapterError, procstat.ToolTimeout) as error:
                        result.failures[adapter.name] = str(error)
                        print(f"  {adapter.name}: FAILED: {error}", flush=True)
                        continue
                    _check(adapter.name, source, target)
                    round_[adapter.name] = run
                    print(f"  {adapter.name}: {report.rate(run):,.0f} keys/s", flush=True)
                result.rounds.append(round_)
        finally:
            for adapter in chosen:
                adapter.close()
    return result


def _flush(target: Server) -> None:
    """Empty the target, and have its memory freed before the next rival's time begins."""
    how = ("SYNC",) if target.binary.version >= (6, 2, 0) else ()
    client = target.client(socket_timeout=CLIENT_SECONDS)
    client.execute_command("FLUSHALL", *how)  # type: ignore[no-untyped-call]


def _check(name: str, source: Server, target: Server) -> None:
    """A rate counts only if every key has arrived. Raises `BenchError`."""
    wanted = keys_by_db(source.client(socket_timeout=CLIENT_SECONDS))
    found = keys_by_db(target.client(socket_timeout=CLIENT_SECONDS))
    if wanted != found:
        raise BenchError(f"{name}: the target holds {found} keys by database, the source {wanted}")


if __name__ == "__main__":
    raise SystemExit(main())
