"""What the calling process has used so far."""

from __future__ import annotations

import resource
from pathlib import Path

from engine.model.report import EngineUse


def engine_use() -> EngineUse:
    """CPU seconds (user and system, all threads) and peak resident bytes of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return EngineUse(used.ru_utime + used.ru_stime, _peak_rss() or used.ru_maxrss * 1024)


def _peak_rss() -> int | None:
    # VmHWM, not ru_maxrss: the latter survives exec, so that a process started by a large one
    # would report its parent's peak as its own (exec_mmap in the kernel's fs/exec.c).
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return None
