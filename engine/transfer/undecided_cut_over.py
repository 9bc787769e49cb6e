"""What an engine left undecided on one lane: whether the target is open, and what is done then.

A lost answer, a crash after the promotion, or an abort leaves three questions, which the target
alone answers: was it promoted (`promoted`), did it come back older (`came_back`), and is what we
left there ours to take away (`take_back`).
"""

from __future__ import annotations

import asyncio
import contextlib

from engine.errors import EngineError, StateError, TransferFailed
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.position import TargetPosition
from engine.targets.applier import PositionMoved
from engine.targets.restore_writer import RestoreWriter
from engine.transfer.control_connections import Endpoints
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.formatting import place_words
from engine.transfer.migration_context import MigrationContext
from engine.transfer.migration_ownership import MigrationOwnership
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.promotion import Promotion
from engine.transfer.ttl_guard import TtlGuard

# How long TTLs may take to be restored when a migration ends without a cut-over.
_GIVE_BACK_SECONDS = 120.0


class LaneOutcome:
    """How one lane's cut-over ended, as its target tells."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        ownership: MigrationOwnership,
        promotion: Promotion,
        upkeep: FenceUpkeep,
        writer: RestoreWriter,
        ttl_guard: TtlGuard,
    ) -> None:
        self._settings = ends.settings
        self._checkpoint = checkpoint
        self._context = context
        self._ownership = ownership
        self._promotion = promotion
        self._upkeep = upkeep
        self._writer = writer
        self._ttl_guard = ttl_guard
        self.not_promoted = ""
        """Why the last cut-over did not open the target, as far as that is known."""

    @property
    def _mark(self) -> OnlineCheckpoint:
        return self._checkpoint.mark

    async def finished(self, *, patient: bool = True) -> bool:
        """The checkpoint says that the target is open: do what is left to do. False: the target
        says otherwise. Raises as `Promotion.tidy_up` and `FenceUpkeep.finish`."""
        try:
            await self._promotion.tidy_up()
        except PositionMoved:
            await self.came_back()
            return False
        await self._upkeep.finish(patient=patient)
        self._context.reason = "the target was promoted already"
        return True

    async def take(self) -> TargetPosition:
        """The target's position, claimed for us. A promotion that does not count is taken back.
        Raises as `MigrationOwnership.take`."""
        target_position = await self._ownership.take()
        does_not_count = self._mark.timed and not self._context.peers.decided
        if target_position.opened and self._promotion.asked and does_not_count:
            target_position = await self._ownership.revoke()
            self.not_promoted = (
                "the target was promoted, but whether writes to the source were still blocked then "
                "is unknown: the promotion was revoked, and the source is followed again"
            )
            self._context.on_event(self.not_promoted)
            await self._promotion.deny()
        return target_position

    async def promoted(self, target_position: TargetPosition) -> bool:
        """What the target says of a promotion whose answer was not seen. True: it is open, and
        there is nothing left to do. Raises `PositionMoved`, and as `Promotion.tidy_up`."""
        if target_position.opened:
            await self._promotion.confirm()
            await self._promotion.tidy_up()
            await self._upkeep.finish()
            self._context.reason = "the target was promoted; its answer was lost"
            return True
        if self._promotion.asked:
            await self._promotion.deny()
            found = f"the target was not promoted: it has {place_words(target_position.position)}"
            self._context.on_event(found)
            self.not_promoted = f"{self.not_promoted}; {found}" if self.not_promoted else found
            await self._upkeep.take_away(at_once=True)
        return False

    async def came_back(self) -> None:
        """The target was opened, and has come back from before that."""
        if self._mark.opened:
            await self._promotion.deny()
            self.not_promoted = (
                "the target lost data after it was promoted: it was restarted or replaced, and is "
                "brought up to date again"
            )
            self._context.on_event(self.not_promoted)

    async def abandon(self) -> None:
        """As `Lane.abandon`, before both ends are closed."""
        if self._mark.came_back:
            # The target is given up: the source is let on, and ours is taken away there.
            self._checkpoint.mark = self._mark.accepted()
            await self._checkpoint.save(promoting="", process="", opened=False)
        elif self._mark.opened:
            await self._writer.open()
            await self.finished(patient=False)

    async def end_promoted(self) -> bool:
        """The operator aborts: if an engine before us has opened the target, what is left to do
        behind that is done, as far as both ends answer now. Whether it is open, and all is done.

        Never raises `EngineError`: what cannot be done is an event.
        """
        try:
            if not self._mark.opened or self._mark.came_back:
                return False
            if not self._writer.opened:
                await self._writer.open()
            await self._promotion.tidy_up_once()
            await self._upkeep.finish(patient=False)
            return True
        except PositionMoved:
            await self.came_back()
        except EngineError as exc:
            self.report_left(exc)
        return False

    def report_left(self, exc: EngineError) -> None:
        """Report that something is left to do after the promotion."""
        self._context.on_event(f"what remains to be done after the promotion failed: {exc}")

    async def take_back(self, forced: bool) -> None:
        """Remove what we left on the target, if it is ours to do so."""
        ours = not self._mark.begun
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                if not self._writer.opened:
                    await self._writer.open()
                if not ours:
                    target_position = await self.take()
                    ours = True
            if self._mark.begun and await self.promoted(target_position):
                return
        except (EngineError, PositionMoved, TimeoutError) as exc:
            if isinstance(exc, StateError | TransferFailed):
                return
            self._context.on_event(
                "the target may still hold the migration's position key and extended TTLs: "
                f"{_why(exc)}"
            )
            if forced and self._promotion.in_doubt:
                self._context.on_event(
                    "it is not known whether the target was promoted, because it does not answer; "
                    "the source accepts writes again"
                )
                await self._upkeep.take_away(at_once=True, in_doubt=True)
        if forced and self._mark.begun:
            # Before anything is removed: the next engine must not sync after a crash into a target
            # that is in use.
            try:
                await self._checkpoint.save(opened=True)
            except StateError:
                return
        if not ours:
            return
        try:
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await self._ttl_guard.give_back()
        except (EngineError, TimeoutError) as exc:
            self._context.on_event(
                "could not restore TTLs on the target; they are still extended by 100 years: "
                f"{_why(exc)}"
            )
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self._settings.connect_timeout):
                await self._promotion.tidy_up()


def _why(error: Exception) -> str:
    """In words; the error of a time that has passed has none."""
    return "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
