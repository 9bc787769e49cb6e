"""What CPU this process may use, and what the machine has to spare."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_STAT = Path("/proc/stat")
# Which control groups this process is in, and where they are.
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
# Fields of the first line of `_STAT`: its name, user, nice, system, idle, iowait.
_IDLE = slice(4, 6)


def cpus() -> int:
    """How many CPUs this process may use: those that it may run on, within the quota of its
    control groups."""
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
    """Whole CPUs of the narrowest quota; None: there is none."""
    return min((most // period for most, period in _quotas() if most > 0), default=None)


def _quotas() -> Iterator[tuple[int, int]]:
    """(quota, period) of this process's control group and of those above, of either version."""
    try:
        lines = _GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _MOUNT / "cpu" if controllers else _MOUNT
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            # (A group that a container does not see, or without a quota: `max`.)
            with suppress(OSError, ValueError):
                words = [(folder / name).read_text(encoding="ascii").split() for name in names]
                most, period = (word for each in words for word in each)
                yield int(most), int(period)
            if folder == root:
                break
