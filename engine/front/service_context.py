"""What the operations work with: the state and the credentials, opened when first needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.model.credentials import Credentials

if TYPE_CHECKING:
    from engine.groups.records import GroupRecord, TransferRecord
    from engine.groups.registry import Registry

T = TypeVar("T")


class ServiceContext:
    """One state and one set of credentials."""

    def __init__(self, state: str | None, credentials: Credentials | None) -> None:
        self._state = state
        self.given_credentials = credentials
        self._loaded: Credentials | None = None
        self._registry: Registry | None = None
        self._lock = threading.Lock()

    @property
    def credentials(self) -> Credentials:
        """Those given, else those of the environment and the configuration.

        Raises `UsageError`.
        """
        if self.given_credentials is not None:
            return self.given_credentials
        if self._loaded is None:
            self._loaded = Credentials.load()
        return self._loaded

    @property
    def registry(self) -> Registry:
        """The state, opened on first use. Blocks for some ms then. Raises `StateError`."""
        # SQLAlchemy takes longer to import than most commands take to run.
        from engine.fleet.launcher import open_registry

        with self._lock:
            if self._registry is None:
                self._registry = open_registry(self._state)
            return self._registry

    async def state(self, ask: Callable[[Registry], T], *, make: bool = False) -> T:
        """`ask` the state, on a thread: it takes less than a millisecond, unless another process
        holds the lock or the disk is slow, and then the loop is not to stand still.

        A state whose file is not there answers as an empty one does, and is not made, unless
        `make` says so: a question must not leave a database behind.
        """
        return await asyncio.to_thread(self._ask, ask, make)

    def _ask(self, ask: Callable[[Registry], T], make: bool) -> T:
        from engine.fleet.launcher import open_registry
        from engine.groups.store import absent

        if make or self._registry is not None or absent(self._state) is None:
            return ask(self.registry)
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            empty = open_registry(str(Path(folder) / "state.db"))
            try:
                return ask(empty)
            finally:
                empty.store.close()

    def shape(self, group: GroupRecord, transfer: TransferRecord | None) -> dict[str, Any]:
        """A `ReplicationGroup`."""
        from engine.front import client_disconnection, group_verification, response_shapes

        shape = response_shapes.replication_group(group, transfer, self.credentials)
        if transfer is not None and transfer.source_clients is not None:
            shape["SourceClients"] = client_disconnection.shape(transfer.source_clients, group.id)
        if group.verification is not None:
            shape["Verification"] = group_verification.shape(group.verification)
        return shape

    async def answer(self, group_id: str) -> dict[str, Any]:
        """The usual answer of an operation: the `ReplicationGroup` as it is now."""
        group, transfer = await self.state(lambda registry: registry.get(group_id))
        return {"ReplicationGroup": self.shape(group, transfer)}

    def close(self) -> None:
        """Close the state; it is opened again when needed."""
        with self._lock:
            if self._registry is not None:
                self._registry.store.close()
                self._registry = None
