"""The two ends of an online migration, for what is asked of them beside the data."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.lane_keys import KeysOfLane
from engine.model.lane_route import ONLY, Route
from engine.model.online_checkpoint import OwnKeys
from engine.model.settings import TransferSettings
from engine.wire.connection import Connection
from engine.wire.control_connection import Admin, admin
from engine.wire.dial import Command, dial_and_ask

Side = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where they are, and how long to wait for them."""

    source: Endpoint
    target: Endpoint
    settings: TransferSettings
    credentials: Credentials = field(default_factory=Credentials)
    """By host: for servers of the source's replication that are found on the way."""
    route: Route = ONLY
    """What the lane between them brings."""

    @property
    def keys(self) -> KeysOfLane:
        """The keys that are brought."""
        return KeysOfLane(self.route.slots, self.settings.key_rules)

    @property
    def whole(self) -> bool:
        """Whether the target is the lane's alone: it has no keys that are others', or may not."""
        return not (self.route.by_slot or self.settings.rules)

    def own_keys(self, token: str) -> OwnKeys:
        """The names of the engine's own keys on the target."""
        return OwnKeys(token, self.route.lane, self.route.tag)

    def beside_source(self, address: str) -> Endpoint:
        """The server at `address` (`host:port`) of the source's replication; the source itself
        where it is empty. Raises `UsageError`."""
        return self.credentials.beside(self.source, address) if address else self.source

    def admin(self, side: Side) -> contextlib.AbstractAsyncContextManager[Admin]:
        """A connection of the control plane. Raises `LinkError`, `AuthError`, `ServerError`."""
        endpoint = self.source if side == "source" else self.target
        return admin(endpoint, timeout=self.settings.io_timeout, fault=side)

    @contextlib.asynccontextmanager
    async def dialled(self) -> AsyncIterator[Connection]:
        """A plain connection to the target, closed behind its user. Raises as `admin`."""
        async with self.dialled_with() as (connection, _):
            yield connection

    @contextlib.asynccontextmanager
    async def dialled_with(
        self, *questions: Command
    ) -> AsyncIterator[tuple[Connection, list[Any]]]:
        """The same, and the replies to `questions`, as `dial_and_ask` gives them."""
        connection, replies = await dial_and_ask(
            self.target, questions, fault="target", timeout=self.settings.connect_timeout
        )
        try:
            yield connection, replies
        finally:
            connection.close()
