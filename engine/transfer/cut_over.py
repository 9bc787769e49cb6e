"""The cut-over of an online migration: fence, drain, verify, open; or back to where it was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from engine.errors import AuthError, EngineError, ServerError, TransferFailed
from engine.model.online import position_key
from engine.model.progress import Phase
from engine.model.server import ServerInfo
from engine.transfer.aside import beside
from engine.transfer.books import Books
from engine.transfer.copy import explain
from engine.transfer.ends import Ends
from engine.transfer.fence import fence_of
from engine.transfer.follow import Follower
from engine.transfer.gate import GateInSync, GateResult
from engine.transfer.held import HeldDeadlines
from engine.transfer.opening import Opening
from engine.transfer.stage import Stage
from engine.transfer.words import size_words


class CutOver:
    """What it takes to open the target behind a follower and the task that runs it."""

    def __init__(
        self,
        ends: Ends,
        books: Books,
        stage: Stage,
        deadlines: HeldDeadlines,
        opening: Opening,
        gate: GateInSync,
        source: Callable[[], ServerInfo],
    ) -> None:
        self._ends = ends
        self._books = books
        self._stage = stage
        self._deadlines = deadlines
        self._opening = opening
        self._gate = gate
        self._source = source
        self.fence_seconds: float | None = None
        """From the fence to the open target."""

    async def in_sync(self, follower: Follower, pump: asyncio.Task[None]) -> None:
        """`--until in-sync`: no fence, so the target is what the source was a moment ago."""
        near = await self._deadlines.release(follower, pump)
        async with asyncio.timeout(self._ends.settings.cut_over_timeout):
            await beside(follower.settle(), pump)
            await beside(follower.confirm(), pump)
        await _stop(follower, pump)
        if self._stage.tally.not_carried_total:
            raise TransferFailed(not_carried_words(self._stage))
        await self._deadlines.settle(follower, near)
        await self._opening.open()
        self._stage.reason = f"in sync at offset {follower.position.offset:,}"

    async def run(self, follower: Follower, pump: asyncio.Task[None]) -> GateResult:
        """Either the target is open, or everything is as it was before."""
        stage = self._stage
        if not stage.can_complete:
            return self._refuse(stage.reason)
        try:
            near = await self._deadlines.release(follower, pump)
        except (AuthError, ServerError) as exc:
            # A user who may not run scripts, say: nothing has happened yet.
            self._deadlines.lift_again(follower)
            return self._refuse(explain(exc))
        fence = fence_of(self._ends.source, self._source(), self._ends.settings)
        loop = asyncio.get_running_loop()
        began = loop.time()
        stage.can_complete = False
        stage.enter(Phase.CUT_OVER)
        result = GateResult(False, "")
        try:
            with stage.step("cut-over"):
                async with asyncio.timeout(self._ends.settings.cut_over_timeout):
                    # 1. No more writes; the last byte that counts.
                    final = await fence.close()
                    # 2. It is on the target.
                    await beside(follower.reach(final), pump)
                    await beside(follower.settle(), pump)
                    await beside(follower.confirm(), pump)
                    await self._deadlines.settle(follower, near)
                    # 3. Both ends agree.
                    result = await self._pass_gate(fence.readable)
                    if result.ok and stage.tally.not_carried_total:
                        result = GateResult(False, not_carried_words(stage))
                # 4. The target is open. The deadline is behind us: from here there is no way back.
                if result.ok:
                    await _stop(follower, pump)
                    await self._opening.open()
        except TimeoutError:
            limit = self._ends.settings.cut_over_timeout
            lag = size_words(follower.lag_bytes)
            result = GateResult(False, f"the deadline of {limit:g} s passed, {lag} behind")
        except EngineError as exc:
            if self._books.mark.opened or pump.done():
                raise
            result = GateResult(False, explain(exc))
        finally:
            if not self._books.mark.opened:
                self._deadlines.lift_again(follower)
                with contextlib.suppress(EngineError):
                    await fence.open()
        stage.reason = result.reason
        if result.ok:
            self.fence_seconds = loop.time() - began
            stage.on_event(
                f"cut over at offset {follower.position.offset:,}, {self.fence_seconds:.3f} s "
                "after the fence was put up"
            )
        else:
            stage.enter(Phase.FOLLOW)
        return result

    def _refuse(self, reason: str) -> GateResult:
        """Before anything was done; shown as a phase to whoever waits for an answer."""
        before = self._stage.phase
        self._stage.enter(Phase.CUT_OVER)
        self._stage.enter(before)
        return GateResult(False, reason)

    async def _pass_gate(self, readable: bool) -> GateResult:
        if not readable:
            return GateResult(True, "the source cannot be read while it is paused: not compared")
        return await self._gate(position_key(self._books.mark.token))


def not_carried_words(stage: Stage) -> str:
    """The reason of a gate that keys keep closed."""
    words = f"{stage.tally.not_carried_total:,} keys were not carried"
    if stage.tally.beyond():
        words += ", too many to be kept track of: only another full sync clears them"
    return words


async def _stop(follower: Follower, pump: asyncio.Task[None]) -> None:
    follower.stop()
    await pump
