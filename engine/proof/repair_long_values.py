"""Values that are longer than the target takes in one argument, made there by commands: what
`targets.rebuilt_values` says of them holds here too."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.errors import AuthError, ServerError
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OwnKeys
from engine.model.server_capabilities import ServerCapabilities
from engine.model.spool_directory import spool_directory
from engine.targets.rebuilt_values import (
    GONE,
    Expired,
    Unmakeable,
    build,
    give_name,
    make,
)
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT, ask_bulk_limit
from engine.wire.control_connection import Admin
from engine.wire.dial import dial

_COMMANDS_MOST = 4 << 30
"""Bytes of one value's commands, on disk."""
OWNED = "a migration has the target"


def own_keys() -> OwnKeys:
    """Of one repair: a name in the slot of each key, which no other comparison has."""
    return OwnKeys(f"verify-{os.urandom(8).hex()}", tag="slot")


@dataclass(slots=True)
class LongValues:
    """How they get to one server. `limit`: bytes of its longest argument; `own`: how a value is
    named that is not whole. `owned`: whether a migration has the target."""

    end: Endpoint
    able: ServerCapabilities
    limit: int
    timeout: float
    own: OwnKeys
    owned: Callable[[], Awaitable[bool]]

    async def store(
        self, db: int, key: bytes, value: bytes, expire_at: int, on_loss: Callable[[int], None]
    ) -> str:
        """Make the value of a key; why that is not possible, or an empty text. `expire_at` in ms
        since the epoch, -1: never. `on_loss` is told what it loses (bits of
        `model.carried_with_loss`). Raises `LinkError`."""
        name = self.own.aside(key)
        try:
            made = await asyncio.to_thread(
                make,
                value,
                name,
                limit=self.limit,
                most=_COMMANDS_MOST,
                able=self.able,
                folder=spool_directory(None),
            )
        except Unmakeable as exc:
            return str(exc)
        try:
            connection = await dial(self.end, fault="target", timeout=self.timeout)
            with contextlib.closing(connection):
                await connection.call("SELECT", db)
                expired = False
                try:
                    if why := await build(connection, made, name, self.timeout):
                        return why
                except Expired:
                    expired = True
                if await self.owned():
                    # It has begun while the value was made.
                    await connection.call("DEL", name)
                    return OWNED
                if expired:
                    await connection.call("DEL", key)
                    return ""
                try:
                    await give_name(connection, name, key, expire_at, replace=True)
                except ServerError as refusal:
                    await connection.try_call("DEL", name)
                    if GONE not in refusal.message or expire_at < 0:
                        return refusal.message
                    # Its time was over before it had its name.
                    await connection.call("DEL", key)
                    return ""
        except (ServerError, AuthError) as refusal:
            return refusal.message
        finally:
            made.close()
        on_loss(made.lost)
        return ""


async def way_of_long_values(
    target: Admin,
    end: Endpoint,
    able: ServerCapabilities,
    timeout: float,
    own: OwnKeys,
    owned: Callable[[], Awaitable[bool]],
) -> LongValues:
    """The way to one server, which is asked what it takes. Raises `LinkError`."""
    limit = await ask_bulk_limit(target) or DEFAULT_BULK_LIMIT
    return LongValues(end, able, limit, timeout, own, owned)
