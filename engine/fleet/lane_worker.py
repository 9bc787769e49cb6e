"""A process that drives lanes: `python -m engine.fleet.lane_worker PARENT`, with its socket as the
descriptor 3. What it does is `transfer.lane_server`'s.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence

from engine.fleet import run
from engine.fleet.lane_processes import SOCKET

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Serve the process of the migration, whose pid is given, until it asks us to end or is
    gone."""
    # Ctrl-C and the end of a service reach all its processes: what becomes of the lanes is decided
    # by the migration's own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with(int(arguments[0]))
    end = socket.socket(fileno=SOCKET)
    end.set_inheritable(False)
    run(_serve(end))
    return 0


async def _serve(end: socket.socket) -> None:
    from engine.fleet.cut_over_comparisons import comparisons_of
    from engine.fleet.resource_usage import engine_use
    from engine.transfer.lane_server import LaneServer

    await LaneServer(comparisons_of, engine_use).run(end)


def _end_with(parent: int) -> None:
    """Be killed when `parent` ends, also where our loop stands still and does not see its socket
    closed (prctl(2); elsewhere than on Linux the socket alone tells)."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
