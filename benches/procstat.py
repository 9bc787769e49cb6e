"""CPU time and memory of processes, measured from outside: from /proc and from wait4(2).

Run as a file this is the measured child's parent: a process small enough not to count, which
reports what its child cost. It is needed because Linux carries the peak memory of a process over
exec: a child started by the benchmark itself would be charged with the benchmark's own size.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1
"""How often the memory of a running tool is looked at."""

ORPHAN_SECONDS = 10.0
"""How long processes that the tool left behind may take to end."""

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class ToolTimeout(Exception):
    """The tool did not end in time, and was killed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended: what it said and what it cost.

    `seconds` is wall time from its start to its end. `cpu_seconds` is user and system time of it
    and all its descendants. `peak_rss_bytes` is the largest of them; `peak_tree_bytes` the largest
    sum over all of them seen at one moment (sampled, and pages shared by them count twice).
    """

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_tree_bytes: int


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process so far, user and system, with its children that ended.

    From schedstat, in ns, where the kernel keeps it (threads that ended are not in it; a server
    keeps its own): clock ticks of 10 ms are too coarse for small runs.
    """
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The second field is the program's name in parentheses, and may hold spaces.
    fields = [int(field) for field in stat[stat.rindex(")") + 4 :].split()[10:14]]
    user, system, children_user, children_system = fields
    own = (user + system) / TICKS
    try:
        exact = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            exact += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        if exact:
            own = exact / 1e9
    except (OSError, ValueError):
        pass
    return own + (children_user + children_system) / TICKS


def rss_bytes(pid: int) -> int:
    """Resident bytes of a running process."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes(pid: int) -> int:
    """The most bytes that a running process ever had resident (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return rss_bytes(pid)


def machine_seconds() -> float:
    """CPU time that the whole machine has spent so far on anything, in seconds (/proc/stat)."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _wait, *rest = map(int, stat.readline().split()[1:])
    # Of the rest: irq, softirq and what a hypervisor took; guests are in `user` already.
    return (user + nice + system + sum(rest[:3])) / TICKS


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path,
    until: Callable[[], bool] | None = None,
) -> Finished:
    """Run a program to its end and measure it.

    With `until` the program is one that never ends by itself: it gets SIGTERM once `until()` is
    true, which is asked every `SAMPLE_SECONDS` at most, and `seconds` ends there. Raises
    `ToolTimeout` after `timeout` seconds; whatever was started is killed then.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        report, out, err = (Path(folder, name) for name in ("report", "stdout", "stderr"))
        shim = [sys.executable, "-I", "-S", __file__, str(report), *argv]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                shim,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        peak = 0
        started = time.monotonic()
        reached: float | None = None
        try:
            while process.poll() is None:
                peak = max(peak, _tree_rss(process.pid))
                if time.monotonic() - started > timeout:
                    said = err.read_text(errors="replace")[-500:]
                    raise ToolTimeout(f"{argv[0]} did not end within {timeout:.0f} s; {said}")
                if until is not None and reached is None and until():
                    reached = time.monotonic() - started
                    process.send_signal(signal.SIGTERM)
                try:
                    process.wait(SAMPLE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        said = err.read_text(errors="replace")
        if not report.exists():
            raise ChildProcessError(f"the measuring process failed: {said[-2000:]}")
        found = json.loads(report.read_text())
        return Finished(
            returncode=found["returncode"],
            stdout=out.read_text(errors="replace"),
            stderr=said,
            seconds=reached if reached is not None else found["seconds"],
            cpu_seconds=found["cpu_seconds"],
            peak_rss_bytes=found["peak_rss_bytes"],
            peak_tree_bytes=max(peak, found["peak_rss_bytes"]),
        )


def _tree_rss(root: int) -> int:
    """Resident bytes of all descendants of `root` now, without `root` itself.

    0 where the kernel lists no children: /proc is not searched, since that would cost the machine
    more than it tells.
    """
    total = 0
    above = [root]
    while above:
        pid = above.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                above += map(int, children)
            if pid != root:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue  # it ended meanwhile
    return total


def _shim(report: str, argv: list[str]) -> int:
    """Run `argv` as a child and write what it and its descendants cost to the file `report`."""
    import ctypes

    # Descendants whose parent ended come to us (PR_SET_CHILD_SUBREAPER), so that none is missed.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    started = time.monotonic()
    main = os.fork()
    if main == 0:
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error}\n".encode())
            os._exit(127)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(main, signal.SIGTERM))

    cpu, peak, seconds, code = 0.0, 0, 0.0, -1
    ended = 0.0
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG if ended else 0)
        except ChildProcessError:
            break
        if pid == 0:
            if time.monotonic() - ended > ORPHAN_SECONDS:
                break
            time.sleep(0.02)
            continue
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss * 1024)
        if pid == main:
            ended = time.monotonic()
            seconds, code = ended - started, os.waitstatus_to_exitcode(status)
    with open(report, "w", encoding="ascii") as file:
        json.dump(
            {
                "returncode": code,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "peak_rss_bytes": peak,
            },
            file,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(_shim(sys.argv[1], sys.argv[2:]))
