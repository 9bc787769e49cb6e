"""Processes of the engine: killed, and waited for."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from benches.support.waiting import wait_for
from engine.fleet.process_identity import ProcessId


def until_ended(pid: int) -> None:
    """Wait until a process has ended, whoever its parent is."""
    wait_for(ProcessId.of(pid).ended, f"the end of the process {pid}")


def kill(pid: int) -> None:
    """SIGKILL, and wait for the end."""
    who = ProcessId.of(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(who.ended, f"the end of the process {pid} by SIGKILL")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Meanwhile the process gets no CPU."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
