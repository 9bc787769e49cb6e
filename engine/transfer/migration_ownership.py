"""Whose the migration is: this engine's, or one's that has taken it over.

The claim on the target and the look at the state (`transfer.target_claim`) as what the migration
does with them, and what to say when the target has another position than the one that was left
there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from engine.errors import EngineError, TransferFailed, TransferStopped
from engine.model.online_checkpoint import POSITION_DB
from engine.model.position import TargetPosition
from engine.model.server import ServerInfo
from engine.targets.applier import PositionMoved
from engine.targets.slot_keys import has_keys
from engine.transfer.control_connections import Endpoints
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.target_claim import Foreign, Seen, TargetClaim, beaten, not_ours
from engine.wire.control_connection import Admin

# How often the position may be found under another engine's name while the state has ours.
_OVERTAKEN_MOST = 3
# What was dialled for a claim is good for so many seconds.
_AHEAD_SECONDS = 5.0


class MigrationOwnership:
    """This engine's hold on one migration, from when it takes it up."""

    def __init__(self, ends: Endpoints, checkpoint: CheckpointWriter) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self.engine = secrets.token_hex(4)
        """How the target tells this engine from those before it and behind it."""
        self.replaced = False
        """Another engine has the migration: what is on the target is that one's."""
        self._overtaken = 0
        # Dialled for the next claim, with what was found there, and when.
        self._ahead: tuple[AsyncExitStack, Admin, Seen, float] | None = None
        self.info: ServerInfo | None = None
        """What the target said of itself behind the claim that was taken last."""

    @property
    def claim(self) -> TargetClaim:
        """For the migration as the checkpoint has it now."""
        mark = self._checkpoint.mark
        return TargetClaim(
            self._ends.own_keys(mark.token),
            self.engine,
            self._still_ours,
            # Beside what rules take a target may have anything: it is nobody's to be emptied.
            held_before=mark.held_before or bool(self._ends.settings.rules),
            # An engine that finds another migration there later was taken over from.
            first=not mark.full_syncs,
            lost=self._lost,
            take_over=self._ends.settings.take_over,
        )

    async def approach(self) -> None:
        """Dial for the claim that is taken next, and look at what is there, beside what has to come
        before it. Where that fails the claim dials by itself."""
        async with AsyncExitStack() as stack:
            with suppress(EngineError):
                end = await stack.enter_async_context(self._ends.admin("target"))
                found = await self.claim.look(end)
                await self.leave()
                self._ahead = stack.pop_all(), end, found, time.monotonic()

    async def leave(self) -> None:
        """Close what `approach` has dialled, if no claim has taken it."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await ahead[0].aclose()

    @asynccontextmanager
    async def _dialled(self) -> AsyncIterator[tuple[Admin, Seen | None]]:
        """A connection for a claim, and what was found over it."""
        ahead = self._ahead
        if ahead is None or time.monotonic() - ahead[3] > _AHEAD_SECONDS:
            # The target closes idle connections, it may be.
            await self.leave()
            async with self._ends.admin("target") as end:
                yield end, None
            return
        self._ahead = None
        async with ahead[0]:
            yield ahead[1], ahead[2]

    async def take(self) -> TargetPosition:
        """Claim the target; what it holds of us. Raises as `TargetClaim.take` does."""
        claim = self.claim
        async with self._dialled() as (end, seen):
            try:
                target_position = await claim.take(end, seen)
            except Foreign:
                self.replaced = self.replaced or not claim.first
                raise
            self.info = claim.info(end)
        if self.info.run_id != self._checkpoint.mark.claimed_at:
            self._checkpoint.note(claimed_at=self.info.run_id)
        return target_position

    async def is_anothers(self, target: Admin, found: bytes | None) -> bool:
        """Whether the target, of which `found` is the position now, is another migration's, or may
        have been promoted by one since. One that came back older, or empty, is ours.

        Raises `LinkError`, `ServerError`, `AuthError`, `ProtocolFault`.
        """
        if found is not None:
            return self.claim.another(found) is not None
        try:
            await self._lost(target)
        except TransferStopped:
            return True
        return False

    async def _lost(self, target: Admin) -> None:
        """Our claim is gone from a target that had it. It may be in use by now: then another
        migration was completed there, or its users have emptied it and use it.

        Raises `TransferStopped` unless it is the target that came back from before: as empty as it
        was, or, where it had keys of its own, in another process.
        """
        info, mark = await target.info(), self._checkpoint.mark
        if not mark.held_before:
            mine = self._ends.whole or await self._has_keys(target)
            if not (info.keys and mine):
                return
        if mark.held_before and mark.claimed_at and info.run_id != mark.claimed_at:
            return
        raise not_ours(target.name, info.keys)

    async def _has_keys(self, target: Admin) -> bool:
        """Of those that the lane brings, in whichever database."""
        route, keys, found = self._ends.route, self._ends.keys, False
        for entry in (await target.info()).keyspace:
            await target.select(entry.db)
            found = found or await has_keys(target.pipeline, keys, entry.db, node=route.to_cluster)
        await target.select(POSITION_DB)
        return found

    async def revoke(self) -> TargetPosition:
        """The target was promoted, and that does not count: it is ours again. What it holds."""
        async with self._ends.admin("target") as end:
            return await self.claim.revoke(end)

    async def confirm(self) -> None:
        """Before values go over a new connection: no engine has taken over meanwhile."""
        await self.take()

    async def judge(self, moved: PositionMoved) -> str:
        """What to say of a position that is not where we left it; raises if it is not for us to go
        on from where it is."""
        claim = self.claim
        if (other := claim.another(moved.found)) is not None:
            self.replaced = True
            raise beaten(other)
        found = claim.ours(moved.found)
        if found is None:
            return "the target has lost this migration's data"
        if found.engine != self.engine:
            # An engine after us: then this raises. Or one before us, of which something arrived
            # late, or whose position came back with an older copy of the target.
            await self._still_ours()
            self._overtaken += 1
            if self._overtaken > _OVERTAKEN_MOST:
                self.replaced = True
                raise TransferFailed(
                    "another engine moves the same migration on",
                    remedy="Leave the migration to that engine, or end that engine first.",
                    fault="user",
                )
        return "the target holds another position than the one that the engine left"

    async def _still_ours(self) -> None:
        """Raise unless the migration is ours, and not over: a position that is gone may have been
        removed by an engine that opened the target."""
        latest = await self._checkpoint.latest()
        if latest is not None and latest.opened:
            self.replaced = True
            raise TransferFailed(
                "another engine has promoted the target",
                remedy="Nothing is left to do.",
                fault="user",
            )
        await self._checkpoint.save()
