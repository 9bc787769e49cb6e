"""Which process a claim belongs to, and whether it still lives.

A pid alone says little: it is used again. So a claim holds the process's start time beside it
(clock ticks since boot, /proc/<pid>/stat field 22, see proc(5)), and the boot and pid namespace
within which both mean something. A process of another boot or namespace (another machine or
container on the same state) cannot be looked up; its heartbeat speaks for it.

A process that exists but has not shown a heartbeat for long is no worker any more either: it lost
the state, gave up, and lives on as the service that it is part of. (If it was only suspended, its
next write finds the claim gone; see `claimed`.)
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Seconds. A worker beats each second, and has given up long before (fleet.bookkeeper).
HEARTBEAT_LOST = 30.0
_ENDED = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for as long as the state exists."""

    pid: int
    started: int
    where: str
    host: str

    @classmethod
    def here(cls) -> ProcessId:
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has `pid` now, on this machine (`started` 0 if there is none)."""
        return cls(pid, _start_ticks(pid) or 0, _where(), socket.gethostname())

    def alive(self, heartbeat_age: float) -> bool:
        """Whether the process lives and works; `heartbeat_age` is seconds."""
        if heartbeat_age >= HEARTBEAT_LOST:
            return False
        if self.where != _where():
            return True
        return self.started != 0 and _start_ticks(self.pid) == self.started

    def ended(self) -> bool:
        """Whether the process is known to have ended; its silence alone does not tell, and one of
        another machine cannot be looked up."""
        return self.where == _where() and (
            self.started == 0 or _start_ticks(self.pid) != self.started
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ProcessId:
        """Inverse of `to_dict`."""
        return cls(**data)


def _start_ticks(pid: int) -> int | None:
    """The start time of a process, None if it has ended (a zombie has ended)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name, in parentheses, may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in _ENDED else int(fields[19])


@cache
def _where() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # Without /proc nothing can be looked up: no two processes count as neighbours.
        return f"{socket.gethostname()} {os.getpid()}"
