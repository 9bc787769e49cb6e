"""Worker processes on this machine: detached, one a transfer.

posix_spawn, not subprocess: the worker outlives us on purpose, and a `Popen` complains about a
child that it was never asked to wait for. A worker that ends before us is a zombie until it is
reaped, which happens whenever the fleet is asked for something.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

from engine import logs
from engine.errors import EngineError
from engine.fleet.process_identity import ProcessId
from engine.groups import disconnections
from engine.groups.lease import Worker
from engine.groups.records import TransferRecord
from engine.groups.registry import Registry
from engine.groups.store import STATE_VARIABLE
from engine.model.credentials import CREDENTIALS_VARIABLE, Credentials
from engine.wire import connections_for_child

_log = logs.logger(__name__)
_launched: set[int] = set()


class LocalProcesses:
    """The launcher of detached processes: see `launcher.WorkerLauncher`."""

    def launch(
        self,
        registry: Registry,
        transfer: TransferRecord,
        *,
        credentials: Credentials | None = None,
    ) -> None:
        """Start a worker process, and note it in the state. Raises `EngineError`."""
        pid = launch(registry, transfer.group_id, credentials=credentials)
        registry.note_launch(transfer, ProcessId.of(pid).worker)

    def disconnect_clients(
        self,
        registry: Registry,
        group_id: str,
        *,
        credentials: Credentials | None = None,
        grace: float = 0.0,
    ) -> bool:
        """Start the process that disconnects clients, if the state wants it."""
        return disconnect_clients(registry, group_id, credentials=credentials, grace=grace)

    def verify(
        self, registry: Registry, group_id: str, *, credentials: Credentials | None = None
    ) -> None:
        """Start the detached process that verifies the group (`fleet.verifier`)."""
        _spawn(registry, group_id, "engine.fleet.verifier", credentials)

    def ours(self, worker: Worker) -> bool:
        """Whether it ran on this machine."""
        return worker.host == socket.gethostname()

    def tidy(self) -> None:
        """Let the kernel forget workers of ours that have ended."""
        reap()


def disconnect_clients(
    registry: Registry,
    group_id: str,
    *,
    credentials: Credentials | None = None,
    grace: float = 0.0,
    handed_over: tuple[int, int] | None = None,
) -> bool:
    """Start the detached process that disconnects the clients of a source that was cut over from
    (`fleet.client_disconnector`), if the state wants it for this group and no process does it;
    whether it was started.

    One that was asked for less than `grace` seconds ago counts as starting. `credentials` as for
    `launch`. `handed_over`: a connection that is not paused, the caller's, and the number of the
    migration whose source that is; else one that was left for this (`wire.connections_for_child`).
    A process that cannot be started is an event. Raises `StateError`.
    """
    if group_id not in disconnections.unattended(registry.store, grace=grace):
        return False
    number = (
        connections_for_child.take(_closed(registry, group_id)) if handed_over is None else None
    )
    given, *of = (number,) if handed_over is None else handed_over
    try:
        _spawn(registry, group_id, "engine.fleet.client_disconnector", credentials, given, *of)
    except EngineError as error:
        registry.add_event(group_id, f"the source's clients are not disconnected: {error}")
        return False
    finally:
        if number is not None:
            os.close(number)
    return True


def guard(registry: Registry, transfer: TransferRecord, number: int) -> None:
    """Start the detached process that starts the calling one again (`fleet.disconnector_restart`);
    `number` is its end of the socket between both. Raises `EngineError`."""
    _spawn(
        registry, transfer.group_id, "engine.fleet.disconnector_restart", None, number, transfer.id
    )


def _closed(registry: Registry, group_id: str) -> str:
    """The address of the server that the group's last cut-over closed."""
    _, transfer = registry.get(group_id)
    if transfer is None:
        return ""
    at = transfer.report.sealed_at if transfer.report is not None else ""
    return at or transfer.source.address


def launch(registry: Registry, group_id: str, *, credentials: Credentials | None = None) -> int:
    """Start a detached worker for the group's transfer and return its pid.

    Its messages go to `worker_log`. It finds credentials as we do, in the environment and the
    configuration; `credentials`, if given, are handed to it through its environment. The state's
    URL goes that way too: a command line can be read by everyone. Raises `EngineError`.
    """
    return _spawn(registry, group_id, "engine.fleet.worker", credentials)


# The number of a connection that a process is started with.
_HANDED = 3


def _spawn(
    registry: Registry,
    group_id: str,
    module: str,
    credentials: Credentials | None,
    handed_over: int | None = None,
    *more: int,
) -> int:
    reap()
    environment = child_environment() | {STATE_VARIABLE: registry.store.url}
    if credentials is not None:
        environment[CREDENTIALS_VARIABLE] = credentials.to_json()
    command = [sys.executable, "-P", "-m", module, group_id]
    actions: list[tuple[int, int, int]] = []
    if handed_over is not None:
        command += map(str, (_HANDED, *more))
        actions.append((os.POSIX_SPAWN_DUP2, handed_over, _HANDED))
    try:
        log = _open_log(worker_log(registry, group_id))
        try:
            pid = os.posix_spawn(
                sys.executable,
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    *actions,
                ],
                setsid=True,
                setsigmask=[],
            )
        finally:
            os.close(log)
    except OSError as error:
        raise EngineError(f"no worker process could be started: {error.strerror}") from None
    _launched.add(pid)
    path = worker_log(registry, group_id)
    extra = {"migration": group_id, "pid": pid, "log": str(path)}
    _log.info("Process %s started", module.removeprefix("engine.fleet."), extra=extra)
    return pid


def worker_log(registry: Registry, group_id: str) -> Path:
    """The file with the messages of a group's workers."""
    return registry.store.folder / f"worker-{group_id}.log"


def reap() -> None:
    """Let the kernel forget workers of ours that have ended."""
    for pid in list(_launched):
        # Another part of the program (a handler of SIGCHLD) may have waited for it.
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _launched.discard(pid)


def _open_log(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What writes to it puts it aside when it gets long (`fleet.worker_log_file`).
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def child_environment() -> dict[str, str]:
    """What a process of ours is started with: it imports this very program."""
    environment = dict(os.environ)
    if (root := checkout()) is not None:
        paths = filter(None, [str(root), os.environ.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def checkout() -> Path | None:
    """The folder to import `engine` from, unless it is installed where every Python looks."""
    root = Path(__file__).resolve().parents[2]
    return None if root.name in ("site-packages", "dist-packages") else root
