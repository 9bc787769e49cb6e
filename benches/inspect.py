"""`python -m benches.inspect --rdb PROGRAM`: the biggest keys of a file, by the engine and by
redis-rdb-tools.

A server writes a file of `--keys` mixed keys (`benches.file`), in a version that redis-rdb-tools
reads (Redis 5.0). In turn, `--rounds` times: `engine inspect rdb:FILE --big 10`, and PROGRAM
`--command memory -l 10 FILE`. PROGRAM is the `rdb` of an environment of its own:

    python -m venv /tmp/rdb && /tmp/rdb/bin/pip install rdbtools python-lzf

Printed: seconds and CPU of both, the most memory that the engine took, and how many times as fast
it was; medians. The engine has to tell of all keys, and the other to name as many big ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benches import procstat
from benches.file import write
from benches.support.servers import named

RATIO_GOAL, MEMORY_GOAL = 5.0, 100 << 20
BIG = 10
_LIMIT_SECONDS = 7_200.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep nothing."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benches.inspect")
    parser.add_argument("--rdb", required=True, help="the program of redis-rdb-tools")
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", default="redis-5.0", help="the server's name's beginning")
    given = parser.parse_args(arguments)
    binary = named(given.server)
    by_wall, by_cpu, peaks = [], [], []
    with tempfile.TemporaryDirectory(prefix="sm-inspect-") as name:
        folder = Path(name)
        path = folder / "dump.rdb"
        write(binary, path, given.keys)
        ours = [sys.executable, "-m", "engine", "inspect", f"rdb:{path}", "--big", str(BIG)]
        theirs = [given.rdb, "--command", "memory", "-l", str(BIG), str(path)]
        for _ in range(given.rounds):
            mine, other = (
                procstat.run(each, timeout=_LIMIT_SECONDS, cwd=Path.cwd())
                for each in ([*ours, "--output", "json"], theirs)
            )
            for each in (mine, other):
                if each.returncode:
                    raise SystemExit(f"it failed: {each.stderr[-2000:]}")
            totals = json.loads(mine.stdout.splitlines()[-1])["totals"]
            keys = totals["all"]["keys"]
            listed = len(other.stdout.splitlines()) - 1
            if (keys, listed) != (given.keys, BIG):
                raise SystemExit(f"not all was looked at: {keys} keys, {listed} named")
            by_wall.append(other.seconds / mine.seconds)
            by_cpu.append(other.cpu_seconds / mine.cpu_seconds)
            peaks.append(mine.peak_rss_bytes)
            print(
                f"engine {mine.seconds:.1f} s ({mine.cpu_seconds:.1f} of CPU, "
                f"{mine.peak_rss_bytes / 2**20:.0f} MiB), redis-rdb-tools {other.seconds:.1f} s "
                f"({other.cpu_seconds:.1f} of CPU, {other.peak_rss_bytes / 2**20:.0f} MiB)",
                flush=True,
            )
        size = path.stat().st_size
    print(
        f"{binary}: {given.keys:,} keys, {size / 1e6:,.0f} MB: {statistics.median(by_wall):.1f} "
        f"times as fast (by CPU {statistics.median(by_cpu):.1f}; goal {RATIO_GOAL:.0f}), "
        f"{max(peaks) / 2**20:.0f} MiB (goal {MEMORY_GOAL >> 20}); medians of {given.rounds}"
    )


if __name__ == "__main__":
    main()
