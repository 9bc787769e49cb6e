"""Processes that drive lanes of a migration, as children of the one that has the migration.

They are told all by the socket that they inherit (`transfer.lane_channel`), and end when its other
end does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

from engine.errors import LinkError
from engine.fleet.local import child_environment

SOCKET = 3
"""The number that the socket has there."""
_LOOK_SECONDS = 0.02


class LaneProcess:
    """One of them."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self.socket = end
        self._over = False

    async def ended(self, seconds: float) -> None:
        """Wait for its end, and after so many seconds kill it."""
        loop = asyncio.get_running_loop()
        by = loop.time() + seconds
        killed = False
        while not self._reaped():
            if not killed and loop.time() >= by:
                killed = True
                os.kill(self.pid, signal.SIGKILL)
            await asyncio.sleep(_LOOK_SECONDS)

    def _reaped(self) -> bool:
        if not self._over:
            try:
                self._over = os.waitpid(self.pid, os.WNOHANG) != (0, 0)
            except ChildProcessError:
                # Another part of the program (a handler of SIGCHLD) has waited for it.
                self._over = True
        return self._over


class LaneProcesses:
    """Starts them. `had_keys`: whether the targets had keys of their own before the first of ours,
    as far as that is known."""

    def __init__(self, had_keys: Callable[[], bool]) -> None:
        self.had_keys = had_keys

    async def start(self) -> LaneProcess:
        """One more. Raises `LinkError`."""
        return _start()


def _start() -> LaneProcess:
    ours, theirs = socket.socketpair()
    environment = child_environment()
    command = [sys.executable, "-P", "-m", "engine.fleet.lane_worker", str(os.getpid())]
    try:
        pid = os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), SOCKET),
            ],
            setsigmask=[],
        )
    except OSError as error:
        ours.close()
        raise LinkError(
            f"no process for lanes could be started: {error.strerror}", fault="engine"
        ) from None
    finally:
        theirs.close()
    return LaneProcess(pid, ours)
