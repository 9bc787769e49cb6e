"""Long values that are read again while the source is followed: put together on the target under a
name of the engine's own, before the transaction that gives them their keys' names.

That goes over a connection of its own, which has the name of those that end when another engine
claims the target, and whose position there was looked at behind that: so an engine that was
replaced writes nothing beside the one that has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable

from engine._native import encode_command
from engine.errors import AuthError, LinkError
from engine.model.online_checkpoint import OwnKeys
from engine.model.position import TargetPosition
from engine.targets.rebuilt_values import Expired, Unmakeable, build, stores
from engine.targets.restore_writer import RestoreWriter
from engine.transfer.control_connections import Endpoints
from engine.transfer.migration_ownership import MigrationOwnership
from engine.wire.connection import answered


class AsideValues:
    """What is put together there for one lane. `own`: the names of the engine's keys; `on_loss`: as
    that of `KeyResync`."""

    def __init__(
        self,
        ends: Endpoints,
        writer: RestoreWriter,
        own: Callable[[], OwnKeys],
        ownership: MigrationOwnership,
        on_loss: Callable[[int, bytes, int], None],
    ) -> None:
        self._ends = ends
        self._writer = writer
        self._own = own
        self._ownership = ownership
        self._on_loss = on_loss
        # Where something may lie that no reading is going to store: (database, name).
        self._made: dict[tuple[int, bytes], None] = {}
        self._making = False

    async def make(self, db: int, key: bytes, expire_at: int, payload: bytes) -> list[bytes] | str:
        """As `KeyResync.rebuild`."""
        try:
            made = await self._writer.commands_of(key, payload)
        except Unmakeable as exc:
            return str(exc)
        own = self._own()
        name = own.aside(key)
        self._making = True
        self._made[db, name] = None
        try:
            asked = (
                ("CLIENT", "SETNAME", self._ownership.claim.client_name),
                ("GET", own.position),
            )
            async with self._ends.dialled_with(*asked) as (connection, (_, found)):
                self._check(own, answered(found))
                if db:
                    await connection.call("SELECT", db)
                timeout = self._ends.settings.io_timeout
                try:
                    why = await build(connection, made, name, timeout)
                except Expired:
                    return [encode_command("DEL", key)]
                if why:
                    return why
        except AuthError as refusal:
            return refusal.message
        finally:
            self._making = False
            made.close()
        self._writer.count_rebuilt(db, key)
        if made.lost:
            self._on_loss(db, key, made.lost)
        # A cluster's node gets command by command.
        return stores(name, key, expire_at, by_script=bool(own.tag))

    def _check(self, own: OwnKeys, found: object) -> None:
        """Raises `LinkError` unless this engine has the target: what reads its position there knows
        what to do."""
        if isinstance(found, bytes):
            position = TargetPosition.decode(found)
            if (position.transfer, position.engine) == (own.token, self._ownership.engine):
                return
        raise LinkError(
            "the position on the target is not the one that this engine wrote", fault="target"
        )

    async def tidy_up(self) -> None:
        """Remove what no reading is going to store: none is under way. Raises `LinkError`,
        `ServerError`, `AuthError`."""
        if self._making or not self._made:
            return
        async with self._ends.admin("target") as end:
            for each in tuple(self._made):
                db, name = each
                # What is made meanwhile is noted anew.
                self._made.pop(each, None)
                try:
                    await end.select(db)
                    await end.call("DEL", name)
                except BaseException:
                    self._made[each] = None
                    raise
