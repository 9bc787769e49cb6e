"""What starts workers, and the one place that chooses it.

Two kinds of launcher exist: `local.LocalProcesses` starts detached processes of this machine, and
`inline.Inline` runs one migration in the calling process, on its event loop. All others see of
either is the `Launcher` below; another kind is one more row of `LAUNCHERS`.

A worker is told what to do through the state (`Registry.request`), wherever it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.groups.lease import Worker
    from engine.groups.records import TransferRecord
    from engine.groups.registry import Registry
    from engine.model.credentials import Credentials


class Launcher(Protocol):
    """Starts workers. A worker claims its migration by itself (`Registry.claim_transfer`)."""

    def launch(
        self,
        registry: Registry,
        transfer: TransferRecord,
        *,
        credentials: Credentials | None = None,
    ) -> None:
        """Start a worker for a pending migration; the state names the worker from then on.

        The worker finds credentials as the caller does, in its environment and configuration;
        `credentials`, if given, are handed to it instead. Raises `EngineError` if no worker can be
        started, and `StateError`.
        """
        ...

    def tidy(self) -> None:
        """Let go of what ended workers still hold of the caller's. Quick; never raises."""
        ...


class WorkerLauncher(Launcher, Protocol):
    """A launcher whose workers outlive the caller: what the operations of the API start."""

    def ours(self, worker: Worker) -> bool:
        """Whether the worker ran where this launcher starts workers."""
        ...

    def disconnect_clients(
        self,
        registry: Registry,
        group_id: str,
        *,
        credentials: Credentials | None = None,
        grace: float = 0.0,
    ) -> bool:
        """Start what disconnects the clients of a source that was cut over from, if the state wants
        it for this group and nothing does it; whether it was started.

        One that was asked for less than `grace` seconds ago counts as starting. `credentials` as
        for `launch`. A start that fails is an event. Raises `StateError`.
        """
        ...

    def verify(
        self, registry: Registry, group_id: str, *, credentials: Credentials | None = None
    ) -> None:
        """Start what verifies the group, as the state asks for. `credentials` as for `launch`.
        Raises `EngineError` where it cannot be started, and `StateError`."""
        ...


def open_registry(state: str | None = None) -> Registry:
    """The state that `state` names (see `Registry`), which asks the launchers which of their
    workers have ended. Raises `StateError`, `UsageError`."""
    from engine.fleet.process_identity import ended
    from engine.groups.registry import Registry

    return Registry(state, witness=ended)


def _local() -> WorkerLauncher:
    from engine.fleet.local import LocalProcesses

    return LocalProcesses()


LAUNCHERS: Mapping[str, Callable[[], WorkerLauncher]] = {"local": _local}
"""Each kind whose workers outlive the caller, by name."""
DEFAULT = "local"


def launcher(kind: str = DEFAULT) -> WorkerLauncher:
    """What starts the workers of the operations."""
    return LAUNCHERS[kind]()
