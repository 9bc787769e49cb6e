"""Deadlines while a target is behind: none may pass there before the source says so.

A target with import mode keeps them by itself. On another the near ones are lifted (`deadlines`),
and set back before the target is opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from engine.model.server import ServerInfo
from engine.sources.replica import ReplicaSource
from engine.targets.import_mode import has_import_mode, import_source, in_import_mode
from engine.transfer.aside import beside
from engine.transfer.books import Books
from engine.transfer.deadlines import LIFT_MS, DbKey, Lifted
from engine.transfer.ends import Ends
from engine.transfer.follow import Follower
from engine.transfer.repair import Mender
from engine.transfer.stage import Stage

# By how much a clock may be off, and a catch-up last, in seconds.
_HORIZON_MARGIN = 120.0


class HeldDeadlines:
    """Which way deadlines are held, and the way back. `on_woke`: the target let some pass."""

    def __init__(
        self,
        ends: Ends,
        books: Books,
        stage: Stage,
        source: ReplicaSource,
        target: Callable[[], ServerInfo],
        on_woke: Callable[[], None],
    ) -> None:
        self._ends = ends
        self._books = books
        self._stage = stage
        self._source = source
        self._target = target
        self._on_woke = on_woke
        self.mender: Mender | None = None
        """That of the follower that runs, whose readings bring deadlines too."""
        self.importing = False
        """The target is in import mode."""
        self.taken_up = False
        """Another engine, or this one before it had to begin anew, may have lifted some."""
        # They are lifted until the cut-over, where the target has no import mode.
        self._lifting = False
        self._releasing = False

    async def prepare(self, *, resumed: bool) -> None:
        """Before a byte is read: no deadline may pass on a target that is behind."""
        # Deadlines that an engine without import mode has lifted want to be set back at the end.
        self.importing = (
            has_import_mode(self._target())
            and not (resumed and self._books.mark.lifted)
            and await self._enter_import_mode(resumed)
        )
        alone = self._ends.settings.until == "snapshot" and self._stage.one_go
        self._lifting = not (self.importing or alone)
        self.hold()
        self._books.note(lifted=self._lifting)

    async def _enter_import_mode(self, resumed: bool) -> bool:
        async with self._ends.dialled() as connection:
            if resumed and not await in_import_mode(connection):
                self._on_woke()
            return await import_source(connection)

    def hold(self) -> None:
        """Near is what is near now: to be called again and again."""
        if not self._lifting or self._releasing:
            return
        before = self._source.now_ms + int(self._horizon * 1000)
        self._source.hold(before, LIFT_MS)
        if self.mender is not None:
            self.mender.lift_before, self.mender.lift_ms = before, LIFT_MS

    async def keep_up(self) -> None:
        """Now and then while the source is followed. Raises `StateError`."""
        if not self._lifting or self._releasing:
            return
        self.hold()
        if not self._books.mark.released and self._far_is_near():
            await self._books.save(released=True)

    def _far_is_near(self) -> bool:
        """Whether deadlines that were too far to be lifted may be upon us."""
        age = time.time() - self._books.mark.begun_at
        return not 0 <= age < self._horizon - _HORIZON_MARGIN

    @property
    def _horizon(self) -> float:
        """Seconds within which a deadline is near; long enough for a pass over the target."""
        return max(self._ends.settings.hold_horizon, 2 * _HORIZON_MARGIN)

    async def keep_all(self, follower: Follower) -> None:
        """Return when no key of the target expires by itself any more (`transfer.suspicion`).

        Raises `LinkError`, and `AuthError` or `ServerError` where no script may run.
        """
        if self.importing or not self._lifting:
            return
        began = time.time()
        within = int(self._horizon * 1000)
        # What was parsed, or read, during a cut-over that was refused is not lifted.
        read = self.mender.next_offset if self.mender is not None else None
        await follower.reach(max(self._source.received_offset, read or 0))
        # They are to be set back before the cut-over, whoever lifted them.
        self.taken_up = True
        follower.moved = []
        try:
            async with self._ends.admin("target") as end:
                lifted = Lifted(end)
                await lifted.lift_all(within)
                await lifted.lift(follower.moved, within)
        finally:
            follower.moved = None
        self._books.note(begun_at=began)

    # --- The way back ---

    async def release(self, follower: Follower, pump: asyncio.Task[None]) -> list[DbKey]:
        """Give the target its keys' deadlines; returns the keys that are due too soon for that.

        From here to the cut-over a link that breaks can cost a key its time, so an engine that has
        to catch up then reads every key that is named again (`suspect`).
        """
        if self.importing or not self._lifting:
            return []
        self._stage.reason = "deadlines that were held back are being set"
        self._stage.tell()
        await self._books.save(released=True)
        self._releasing = True
        self._source.hold(0, 0)
        assert self.mender is not None
        self.mender.lift_before = 0
        follower.moved = []
        # What was parsed before this may be lifted, and must be on the target first.
        await beside(follower.reach(self._source.received_offset), pump)
        if not (self.taken_up or self._source.held or self.mender.lifted):
            return []
        async with self._ends.admin("target") as end:
            lifted = Lifted(end)
            await beside(lifted.release_all(), pump)
            return lifted.near

    async def settle(self, follower: Follower, near: list[DbKey]) -> None:
        """The rest: everything is applied, and nothing more is written."""
        if near or follower.moved:
            async with self._ends.admin("target") as end:
                await Lifted(end).release([*near, *(follower.moved or ())])

    def lift_again(self, follower: Follower) -> None:
        """The cut-over did not come off: deadlines that come from now on are lifted as before."""
        follower.moved = None
        self._releasing = False
        self.hold()

    async def give_back(self) -> None:
        """For a target that is left as it is: nothing on it may live for a hundred years."""
        if self.importing or not (self._lifting or self.taken_up):
            return
        async with self._ends.admin("target") as end:
            lifted = Lifted(end)
            await lifted.release_all()
            await lifted.release(lifted.near)
