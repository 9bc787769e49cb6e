"""What CPU this process may use, and what the machine has to spare."""

from __future__ import annotations

import os
from pathlib import Path

_STAT = Path("/proc/stat")
# Of the control group that a container sees as its own.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Fields of the first line of `_STAT`: its name, user, nice, system, idle, iowait.
_IDLE = slice(4, 6)


def cpus() -> int:
    """How many CPUs this process may use: those that it may run on, within the quota of its
    control group (cgroup v2)."""
    try:
        there = len(os.sched_getaffinity(0))
    except AttributeError:  # elsewhere than on Linux
        there = os.cpu_count() or 1
    quota = _quota()
    return there if quota is None else max(min(there, quota), 1)


def idle_seconds() -> float | None:
    """For how many seconds in all the machine's CPUs have had nothing to do; None: that is not
    told."""
    try:
        line, _, _ = _STAT.read_text(encoding="ascii").partition("\n")
        return sum(map(int, line.split()[_IDLE])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def _quota() -> int | None:
    """Whole CPUs of the quota; None: there is none."""
    try:
        most, period = _QUOTA.read_text(encoding="ascii").split()
        return int(most) // int(period)
    except (OSError, ValueError):
        return None
