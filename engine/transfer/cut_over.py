"""The cut-over of an online migration: fence, drain, verify, open; or back to where it was.

The fence, and what a crash leaves of it, are kept by `fence_upkeep`.
"""

from __future__ import annotations

import asyncio

from engine import logs
from engine.errors import EngineError, StateError, TransferFailed, TransferStopped, UsageError
from engine.model.progress import Phase
from engine.model.replication import Replication
from engine.sources.replica import ReplicaSource
from engine.targets.applier import PositionMoved
from engine.transfer.async_helpers import beside, cancelled
from engine.transfer.checkpoint_writer import CheckpointWriter
from engine.transfer.cut_over_check import CutOverCheckResult, offering
from engine.transfer.cut_over_comparison import CutOverComparison, Origin
from engine.transfer.endpoints import Endpoints
from engine.transfer.extended_ttls import DbKey
from engine.transfer.fence import Fence
from engine.transfer.fence_upkeep import FenceUpkeep
from engine.transfer.follow import Follower
from engine.transfer.formatting import size_words
from engine.transfer.migration_context import MigrationContext
from engine.transfer.promotion import Promotion
from engine.transfer.role_monitor import RoleMonitor
from engine.transfer.source_primary import Head, Heads
from engine.transfer.target_monitor import TargetMonitor
from engine.transfer.ttl_guard import TtlGuard

_log = logs.logger(__name__)
# For how long those who wait at the source of an open target are tried to be let go, in seconds.
_FINISH_SECONDS = 60.0
_COMPARED = "both ends were compared"
# How long the target may take to tell whether it has keys, in seconds.
_ASK_SECONDS = 5.0


class CutOver:
    """What it takes to open the target behind a follower and the task that runs it."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        ttl_guard: TtlGuard,
        promotion: Promotion,
        check: CutOverComparison,
        source: ReplicaSource,
        target_watch: TargetMonitor,
        roles: RoleMonitor,
        upkeep: FenceUpkeep,
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._ttl_guard = ttl_guard
        self._promotion = promotion
        self._check = check
        self._source = source
        self._target_watch = target_watch
        self._roles = roles
        self._upkeep = upkeep
        # Why the primary that takes the writes could not be asked.
        self._unasked = ""
        self.fence_seconds: float | None = None
        """From the fence to the open target."""

    async def in_sync(self, follower: Follower, pump: asyncio.Task[None]) -> CutOverCheckResult:
        """`--until in-sync`: no fence, so the target is what the source was a moment ago."""
        limit = self._ends.settings.cut_over_timeout
        process = follower.applier.identity
        try:
            refused = await self._check.prepare(follower, pump, await self._origin())
            if refused is not None:
                return self._refuse(refused.reason)
            near = await self._ttl_guard.restore(follower, pump)
            async with asyncio.timeout(limit):
                await beside(follower.settle(), pump)
                await beside(follower.confirm(), pump)
            await _stop(follower, pump)
            if self._context.stats.not_carried_total:
                raise TransferStopped(self._context.stats.not_carried_words)
            await self._target_watch.look()
            if evicted := self._context.stats.evictions.words_in_one_go:
                raise TransferStopped(evicted)
            await self._ttl_guard.settle(near)
            await self._promotion.promote(follower.applier, process)
            await self._promotion.tidy_up()
        except TimeoutError:
            reason = f"keys were still being read again from the source after {limit:g} s"
            return self._refuse(reason, follower)
        except EngineError as exc:
            if self._checkpoint.mark.opened or pump.done() or isinstance(exc, StateError):
                raise
            return self._refuse(exc.in_one_line, follower)
        finally:
            await self._check.close()
        compared = self._check.before().reason
        self._context.reason = f"in sync at offset {follower.position.offset:,}; {compared}"
        return CutOverCheckResult(True, self._context.reason)

    async def run(self, follower: Follower, pump: asyncio.Task[None]) -> CutOverCheckResult:
        """Either the target is open, or everything is as it was before.

        Raises `TransferStopped` where the target is open, and the source could not be told so.
        """
        _log.info("Cut-over: begin", extra={"lag_bytes": follower.lag_bytes})
        await self._upkeep.begin()
        try:
            return await self._run(follower, pump)
        finally:
            await self._upkeep.end()

    async def _run(self, follower: Follower, pump: asyncio.Task[None]) -> CutOverCheckResult:
        if refused := await self._check.passing(pump):
            return self._refuse(refused.reason)
        try:
            head = await self._head()
            # Whoever takes it away dials that server, and not what the source's address leads to.
            address = head.address or self._checkpoint.mark.followed
            at = self._ends.beside_source(address) if address else head.endpoint
        except (TransferFailed, UsageError) as exc:
            return self._refuse(exc.in_one_line)
        if refusal := await self._upkeep.in_the_way(address):
            return self._refuse(refusal)
        fence = self._upkeep.fence_at(at, head.info, address)
        try:
            # 1. What takes its time, while nobody has to wait for it.
            try:
                origin = Origin(head.primary, fence.readable, self._unasked)
                refused = await self._check.prepare(follower, pump, origin)
                if refused is not None:
                    return self._refuse(refused.reason)
                with logs.timed(
                    _log,
                    "Cut-over: prepare the fence",
                    extra={"end": "source", "endpoint": at.address},
                ):
                    await fence.prepare()
                near = await self._ttl_guard.restore(follower, pump)
                # So that its connection is there: behind the fence there is no time to dial. Behind
                # the deadlines, which tell sooner of a target that stands still.
                await self._target_watch.look()
            except EngineError as exc:
                if pump.done() or isinstance(exc, StateError):
                    raise
                return self._refuse(exc.in_one_line, follower)
            await self._checkpoint.save(
                fenced=True,
                sealed=fence.before,
                fenced_at=address,
                closed_before=fence.closed_before,
                held=fence.held,
                lets_scripts=fence.lets_scripts,
            )
            await fence.approach()
            # 2. Behind the fence.
            return await self._behind(fence, follower, pump, near)
        finally:
            await self._check.close()
            await fence.remove()

    async def _behind(
        self, fence: Fence, follower: Follower, pump: asyncio.Task[None], near: list[DbKey]
    ) -> CutOverCheckResult:
        context, loop = self._context, asyncio.get_running_loop()
        began = loop.time()
        # The process of the target that is drained, compared and opened: one and the same.
        process = follower.applier.identity
        context.can_complete = context.trying_again = False
        context.lets_scripts = fence.lets_scripts
        context.enter(Phase.CUT_OVER)
        result, doing = CutOverCheckResult(False, ""), "writers were paused"
        try:
            with context.step("cut-over"):
                async with asyncio.timeout(fence.seconds):
                    # 1. No more writes; the last byte that counts.
                    with self._upkeep.step("pause writers"):
                        told = await fence.close()
                        final = self._final(told)
                    self._upkeep.note_before(fence)
                    # 2. It is on the target.
                    follower.hurry(True)
                    doing = "the rest of the stream was applied"
                    what = "Cut-over: apply the rest of the stream"
                    with logs.timed(_log, what, extra={"end": "target", "offset": final}):
                        await beside(follower.reach(final), pump)
                    doing = "keys were read again from the source"
                    with logs.timed(_log, "Cut-over: read dirty keys again"):
                        await beside(follower.settle(), pump)
                    # 3. Both ends agree. Meanwhile the last deadlines are set back: a key whose
                    # deadline seems to differ is looked at again.
                    doing = _COMPARED
                    settling = asyncio.ensure_future(self._ttl_guard.settle(near))
                    looking = asyncio.gather(
                        self._target_watch.look(), self._roles.no_second_primary(told)
                    )
                    try:
                        with logs.timed(_log, "Cut-over: compare both ends"):
                            result = await self._check.run(
                                follower,
                                pump,
                                fence.readable or bool(self._checkpoint.mark.fenced_at),
                                lambda: self._settled(follower, settling),
                                fence,
                            )
                            await settling
                            await looking
                    finally:
                        await cancelled(settling)
                        await cancelled(looking)
                    # What was read again for the gate.
                    await self._ttl_guard.settle([])
                    if evicted := context.stats.evictions.words:
                        result = CutOverCheckResult(False, evicted)
                    if result.ok and context.stats.not_carried_total:
                        result = CutOverCheckResult(False, context.stats.not_carried_words)
                    # 4. Writes are refused, however long what comes now may take.
                    doing = "the source was told to refuse writes"
                    if result.ok:
                        with self._upkeep.step("block writes", write_block=bool(fence.before)):
                            await fence.block_writes()
                        doing = "the source was asked for its role once more"
                        await self._upkeep.not_moved(fence)
                # 5. The target is opened, if it still is what was compared. Once it was asked there
                # is no deadline any more: it is open or not as the target says. But for a fence
                # that ends by itself: then it has to say so in time.
                if result.ok:
                    await _stop(follower, pump)
                    by = None if fence.lasts else began + fence.seconds
                    await self._promotion.promote(follower.applier, process, by=by, hand_over=True)
                    fence.opened()
                    self.fence_seconds = loop.time() - began
                    # What the source sends from here on is nobody's: keys that expire there.
                    await self._source.close()
                    # 6. The applications' name for the server is moved, before they dial again.
                    await self._upkeep.switch_once()
                    # 7. Those who wait may learn of it.
                    await self._upkeep.let_clients_go(fence)
                    await self._promotion.tidy_up()
                    await self._upkeep.finish()
        except PositionMoved as moved:
            await self._upkeep.note_lost(moved.found)
            raise
        except TimeoutError:
            lag = size_words(follower.lag_bytes)
            words = f"the deadline of {fence.seconds:g} s passed while {doing}, {lag} behind"
            # Without the comparison there would have been time.
            result = CutOverCheckResult(
                False, offering(context, words) if doing == _COMPARED else words
            )
        except EngineError as exc:
            if self._checkpoint.mark.opened or pump.done() or isinstance(exc, StateError):
                raise
            result = CutOverCheckResult(False, exc.in_one_line)
        finally:
            if not (self._checkpoint.mark.opened or self._promotion.in_doubt):
                follower.hurry(False)
                self._ttl_guard.extend_again()
                await self._upkeep.call_off(fence)
        context.reason = result.reason
        if result.ok:
            context.on_event(
                f"cut over at offset {follower.position.offset:,}, {self.fence_seconds:.3f} s "
                "after the fence was put up"
            )
        else:
            context.trying_again = self._check.again
            context.lead_back(Phase.FOLLOW, result.reason)
        return result

    async def _settled(self, follower: Follower, settling: asyncio.Future[None]) -> int:
        """The last deadlines are set back, also those of keys that were read again since. Returns
        how many keys have ended by it."""
        await asyncio.shield(settling)
        await self._ttl_guard.settle([])
        return self._ttl_guard.ended

    async def _head(self) -> Head:
        """The server that takes the writes. Raises `TransferFailed`."""
        heads = Heads(self._ends)
        self._unasked = ""
        try:
            return await heads.find()
        except TransferFailed as exc:
            if self._ends.settings.fence == "pause":
                raise
            # Writers are the operator's, wherever they write.
            self._context.on_event(f"the source's own offset is taken for the last: {exc.message}")
            self._unasked = exc.message
            return Head(self._ends.source, self._source.info, "", ())
        finally:
            await heads.close()

    async def _origin(self) -> Origin:
        """What is compared where no writer is held off."""
        heads = Heads(self._ends)
        try:
            return Origin((await heads.find()).primary)
        except TransferFailed as exc:
            return Origin(unasked=exc.message)
        finally:
            await heads.close()

    def _final(self, told: Replication) -> int:
        """The offset of a fence that stands, if it is of the stream that is followed.

        Raises `TransferFailed` where the roles have changed since it was looked at them.
        """
        self._upkeep.of_history(told, self._source.replid)
        return told.offset

    # --- The gate ---

    def broken_off(self, reason: str) -> None:
        """What the cut-over needs was lost: whoever waits is told, and the next order is a new
        one."""
        if self._context.phase is not Phase.CUT_OVER:
            self._refuse(reason)
        else:
            self.led_back(reason)

    def led_back(self, reason: str) -> None:
        """It is known by now that the target is not open, because of `reason`: a cut-over that went
        on until then was refused."""
        context = self._context
        if context.phase is Phase.CUT_OVER:
            context.trying_again = context.can_complete = False
            context.lead_back(Phase.FOLLOW, reason)

    def _refuse(self, reason: str, follower: Follower | None = None) -> CutOverCheckResult:
        """Before a fence was put up; shown as a phase to whoever waits for an answer.

        `follower`: deadlines may have been set back.
        """
        if follower is not None:
            self._ttl_guard.extend_again()
        before = self._context.phase
        self._context.trying_again = False
        self._context.enter(Phase.CUT_OVER)
        self._context.lead_back(before, reason)
        return CutOverCheckResult(False, reason)


async def _stop(follower: Follower, pump: asyncio.Task[None]) -> None:
    follower.stop()
    await pump
