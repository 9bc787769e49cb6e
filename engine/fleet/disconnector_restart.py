"""Starts the process again that disconnects a source's clients, where that one is killed:

    python -m engine.fleet.disconnector_restart GROUP FD MIGRATION   (with the state's URL in the
    environment)

The process that disconnects them (`fleet.client_disconnector`) starts this one, and another one
where this one is killed: so both have to be killed before clients are let in. FD is one end of a
socket between the two. Over it comes the connection by which the source is paused
(`transfer.hold_source`), as a descriptor, with what makes its pause longer; then the other one's
end, with a word or without. In the latter case the pause is made longer, and a new process goes on
with that connection: one that dials anew would be paused like all others, until the pause has run
out and scripts are run. MIGRATION is the one whose source that is, by its number in the state.

Until then nothing of the engine is imported here: all that this one takes is an idle Python.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.groups.records import TransferRecord
    from engine.groups.registry import Registry
    from engine.wire.control_connection import Admin

# The first byte of a message; KEEP comes with a descriptor, and with what is to be sent there.
_KEEP, _DROP, _LEAVE = b"k", b"d", b"l"
_MESSAGE_MOST = 4096
# A process that was killed is seen to be gone a moment after its descriptors are closed.
_TRIES, _AGAIN_SECONDS = 10, 0.2


class DisconnectorGuard:
    """The guard as the process has it that disconnects clients of this migration's source."""

    def __init__(self, registry: Registry, transfer: TransferRecord) -> None:
        self._registry = registry
        self._transfer = transfer
        self._socket: socket.socket | None = None
        self._kept: Admin | None = None

    def watch(self, pausing: Admin | None, longer: bytes) -> None:
        """Have a guard, which keeps the connection `pausing` (None: there is none) and would send
        `longer` there. Does not wait; one that cannot be started is tried again."""
        if self._gone():
            self._start()
        if pausing is not self._kept and self._socket is not None:
            self._send(pausing, longer)

    def leave(self) -> None:
        """This process ends as it should: nothing is to be started."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(_LEAVE)
            self._socket.close()
            self._socket = None

    def _gone(self) -> bool:
        if self._socket is None:
            return True
        # It never says anything: what can be read is its end.
        with contextlib.suppress(BlockingIOError):
            with contextlib.suppress(ConnectionError):
                self._socket.recv(1)
            self._socket.close()
            self._socket = None
            return True
        return False

    def _start(self) -> None:
        from engine.errors import EngineError
        from engine.fleet import local

        self._kept = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                local.guard(self._registry, self._transfer, theirs.fileno())
            except EngineError:
                ours.close()
                return
        ours.setblocking(False)
        self._socket = ours

    def _send(self, pausing: Admin | None, longer: bytes) -> None:
        assert self._socket is not None
        number = None if pausing is None else pausing.duplicate()
        with contextlib.suppress(OSError):
            if number is None:
                self._socket.send(_DROP)
            else:
                socket.send_fds(self._socket, [_KEEP + longer], [number])
            self._kept = pausing
        if number is not None:
            os.close(number)


class _Kept:
    """The connection that is kept, and what makes its pause longer."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._longer = b""

    def keep(self, number: int | None, longer: bytes) -> None:
        """Keep this one in the place of the one before."""
        if self.number is not None:
            os.close(self.number)
        self.number, self._longer = number, longer

    def lengthen(self) -> None:
        """Make the pause longer; what takes the connection over ignores the answer."""
        if self.number is None:
            return
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.number)) as connection:
            connection.setblocking(False)
            connection.send(self._longer)


def main(arguments: Sequence[str]) -> int:
    """Wait for the other one's end; start another where that was unforeseen."""
    if len(arguments) != 3 or not all(each.isdigit() for each in arguments[1:]):
        _write("", "usage: python -m engine.fleet.disconnector_restart GROUP FD MIGRATION")
        return 2
    number, transfer_id = map(int, arguments[1:])
    kept = _Kept()
    with socket.socket(fileno=number) as other:
        if _left(other, kept):
            return 0
    kept.lengthen()
    return _go_on(arguments[0], transfer_id, kept)


def _left(other: socket.socket, kept: _Kept) -> bool:
    """Wait; whether the other one has ended as it should."""
    while True:
        try:
            message, numbers, *_ = socket.recv_fds(other, _MESSAGE_MOST, 1)
        except ConnectionError:
            return False
        if not message:
            return False
        if message == _LEAVE:
            return True
        kept.keep(numbers[0] if numbers else None, message[1:])


def _go_on(group_id: str, transfer_id: int, kept: _Kept) -> int:
    from engine.errors import EngineError
    from engine.fleet import local
    from engine.fleet.launcher import open_registry

    try:
        registry = open_registry()
        for _ in range(_TRIES):
            given = None if kept.number is None else (kept.number, transfer_id)
            # The new process takes seconds to begin; from then on the connection is its own.
            kept.lengthen()
            if local.disconnect_clients(registry, group_id, handed_over=given):
                _write(group_id, "The process that disconnected clients has ended; another started")
                return 0
            time.sleep(_AGAIN_SECONDS)
    except EngineError as error:
        _write(group_id, f"{type(error).__name__}: {error}")
        return 1
    _write(group_id, "No clients are to be disconnected, or another process disconnects them")
    return 0


def _write(group_id: str, line: str) -> None:
    """A line of the log, of this group's migration."""
    from engine import logs
    from engine.logs import output as log_output

    log_output.to_stderr(*log_output.from_environment())
    logs.logger("engine.fleet.disconnector_restart").info(line, extra={"migration": group_id})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
