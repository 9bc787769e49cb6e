"""Processes as workers: what the state is to know of one, and whether it still lives.

A pid alone says little: it is used again. So a worker's detail holds the process's start time
beside it (clock ticks since boot, /proc/<pid>/stat field 22, see proc(5)), and the boot and pid
namespace within which both mean something. A process of another boot or namespace (another machine
or container on the same state) cannot be looked up; its lease speaks for it.

A process that exists but has not renewed its lease for long is no worker any more either: it lost
the state, gave up, and lives on as the service that it is part of. (If it was only suspended, its
next write finds the lease gone; see `groups.claimed_transfer`.)
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from engine.groups.lease import Worker

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

    def ended(self) -> bool:
        """Whether the process is known to have ended; its silence alone does not tell, and one of
        another machine cannot be looked up."""
        return self.where == _where() and (
            self.started == 0 or _start_ticks(self.pid) != self.started
        )

    @property
    def worker(self) -> Worker:
        """It, as the state has it."""
        return Worker(f"process {self.pid}", self.host, {"Pid": self.pid}, asdict(self))

    @classmethod
    def of_worker(cls, worker: Worker) -> ProcessId | None:
        """Inverse of `worker`; None for one that another launcher has started."""
        try:
            return cls(**worker.detail)
        except TypeError:
            return None


def ended(worker: Worker) -> bool:
    """The `Witness` of processes of this machine."""
    who = ProcessId.of_worker(worker)
    return who is not None and who.ended()


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
