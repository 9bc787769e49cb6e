"""The cut-over of an online migration: fence, drain, verify, open; or back to where it was.

What a crash leaves is in the books before it is at the source: `fenced` and what `seal` changes
there. The engine that comes back takes the fence away if the target is not open (`take_away`), and
lets go who waits behind it if the target is (`finish`). While it is not known whether the target is
open (`Opening.in_doubt`) it does neither: the source goes on refusing writes. Either is noted as
done when it is, and tried again until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from engine import logs
from engine.errors import EngineError, StateError, TransferFailed, TransferStopped, UsageError
from engine.model.calls import Calls
from engine.model.endpoint import Endpoint
from engine.model.online import position_key
from engine.model.progress import Phase
from engine.model.replication import Replication
from engine.model.server import ServerInfo
from engine.sources.replica import ReplicaSource
from engine.targets.applier import PositionMoved
from engine.transfer import seal
from engine.transfer.aside import beside, cancelled
from engine.transfer.books import Books
from engine.transfer.check import Check, Origin
from engine.transfer.deadlines import DbKey
from engine.transfer.ends import Ends
from engine.transfer.fence import Fence, fence_of
from engine.transfer.fence_left import FenceLeft
from engine.transfer.follow import Follower
from engine.transfer.gate import GateResult, offering
from engine.transfer.head import Head, Heads
from engine.transfer.held import HeldDeadlines
from engine.transfer.opening import Opening
from engine.transfer.roles import Roles
from engine.transfer.stage import Stage
from engine.transfer.switch import Switch
from engine.transfer.target_watch import TargetWatch
from engine.transfer.words import size_words
from engine.wire.admin import admin

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
        ends: Ends,
        books: Books,
        stage: Stage,
        deadlines: HeldDeadlines,
        opening: Opening,
        check: Check,
        source: ReplicaSource,
        target_watch: TargetWatch,
        roles: Roles,
        switch: Switch,
        is_anothers: Callable[[bytes], bool],
    ) -> None:
        """`is_anothers`: whether a position that was found on the target is another migration's."""
        self._ends = ends
        self._books = books
        self._stage = stage
        self._deadlines = deadlines
        self._opening = opening
        self._check = check
        self._source = source
        self._target_watch = target_watch
        self._roles = roles
        self._switch = switch
        self._refused = 0
        # Another migration may have cut over from the source since our fence was put up.
        self._lost = False
        self._is_anothers = is_anothers
        # Why the primary that takes the writes could not be asked.
        self._unasked = ""
        self._left = FenceLeft(stage, hook=ends.settings.fence == "hook")
        # A cut-over is being tried: what may stand at the source is its own.
        self._trying = False
        # Why those who wait at the source could not be let go.
        self._not_let_go: EngineError | None = None
        self.fence_seconds: float | None = None
        """From the fence to the open target."""

    async def in_sync(self, follower: Follower, pump: asyncio.Task[None]) -> GateResult:
        """`--until in-sync`: no fence, so the target is what the source was a moment ago."""
        limit = self._ends.settings.cut_over_timeout
        process = follower.applier.identity
        try:
            refused = await self._check.prepare(follower, pump, await self._origin())
            if refused is not None:
                return self._refuse(refused.reason)
            near = await self._deadlines.release(follower, pump)
            async with asyncio.timeout(limit):
                await beside(follower.settle(), pump)
                await beside(follower.confirm(), pump)
            await _stop(follower, pump)
            if self._stage.tally.not_carried_total:
                raise TransferStopped(self._stage.tally.not_carried_words)
            await self._target_watch.look()
            if evicted := self._stage.tally.evictions.words_in_one_go:
                raise TransferStopped(evicted)
            await self._deadlines.settle(follower, near)
            await self._opening.promote(follower.applier, process)
            await self._opening.tidy_up()
        except TimeoutError:
            reason = f"keys were still being read again from the source after {limit:g} s"
            return self._refuse(reason, follower)
        except EngineError as exc:
            if self._books.mark.opened or pump.done() or isinstance(exc, StateError):
                raise
            return self._refuse(exc.in_one_line, follower)
        finally:
            await self._check.close()
        compared = self._check.before().reason
        self._stage.reason = f"in sync at offset {follower.position.offset:,}; {compared}"
        return GateResult(True, self._stage.reason)

    async def run(self, follower: Follower, pump: asyncio.Task[None]) -> GateResult:
        """Either the target is open, or everything is as it was before.

        Raises `TransferStopped` where the target is open, and the source could not be told so.
        """
        self._trying = True
        _log.info("Cut-over: begin", extra={"lag_bytes": follower.lag_bytes})
        await self._left.quit()
        try:
            return await self._run(follower, pump)
        finally:
            self._trying = False
            self._left.show()
            await self.take_away()

    async def _run(self, follower: Follower, pump: asyncio.Task[None]) -> GateResult:
        if refused := await self._check.passing(pump):
            return self._refuse(refused.reason)
        try:
            head = await self._head()
            # Whoever takes it away dials that server, and not what the source's address leads to.
            address = head.address or self._books.mark.followed
            at = self._ends.beside_source(address) if address else head.endpoint
        except (TransferFailed, UsageError) as exc:
            return self._refuse(exc.in_one_line)
        if refusal := await self._fence_in_the_way(address):
            return self._refuse(refusal)
        fence = self._fence(at, head.info, address)
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
                near = await self._deadlines.release(follower, pump)
                # So that its connection is there: behind the fence there is no time to dial. Behind
                # the deadlines, which tell sooner of a target that stands still.
                await self._target_watch.look()
            except EngineError as exc:
                if pump.done() or isinstance(exc, StateError):
                    raise
                return self._refuse(exc.in_one_line, follower)
            await self._books.save(
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
            await fence.release()

    async def _behind(
        self, fence: Fence, follower: Follower, pump: asyncio.Task[None], near: list[DbKey]
    ) -> GateResult:
        stage, loop = self._stage, asyncio.get_running_loop()
        began = loop.time()
        # The process of the target that is drained, compared and opened: one and the same.
        process = follower.applier.identity
        stage.can_complete = stage.trying_again = False
        stage.lets_scripts = fence.lets_scripts
        stage.enter(Phase.CUT_OVER)
        result, doing = GateResult(False, ""), "writers were paused"
        try:
            with stage.step("cut-over"):
                async with asyncio.timeout(fence.seconds):
                    # 1. No more writes; the last byte that counts.
                    with self._step("pause writers"):
                        told = await fence.close()
                        final = self._final(told)
                    self._note_before(fence)
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
                    settling = asyncio.ensure_future(self._deadlines.settle(follower, near))
                    looking = asyncio.gather(
                        self._target_watch.look(), self._roles.no_second_primary(told)
                    )
                    try:
                        with logs.timed(_log, "Cut-over: compare both ends"):
                            result = await self._check.run(
                                follower,
                                pump,
                                fence.readable or bool(self._books.mark.fenced_at),
                                lambda: self._settled(follower, settling),
                                fence,
                            )
                            await settling
                            await looking
                    finally:
                        await cancelled(settling)
                        await cancelled(looking)
                    # What was read again for the gate.
                    await self._deadlines.settle(follower, [])
                    if evicted := stage.tally.evictions.words:
                        result = GateResult(False, evicted)
                    if result.ok and stage.tally.not_carried_total:
                        result = GateResult(False, stage.tally.not_carried_words)
                    # 4. Writes are refused, however long what comes now may take.
                    doing = "the source was told to refuse writes"
                    if result.ok:
                        with self._step("block writes", write_block=bool(fence.before)):
                            await fence.seal()
                        doing = "the source was asked for its role once more"
                        await self._not_moved(fence)
                # 5. The target is opened, if it still is what was compared. Once it was asked there
                # is no deadline any more: it is open or not as the target says. But for a fence
                # that ends by itself: then it has to say so in time.
                if result.ok:
                    await _stop(follower, pump)
                    by = None if fence.lasts else began + fence.seconds
                    await self._opening.promote(follower.applier, process, by=by, hand_over=True)
                    fence.opened()
                    self.fence_seconds = loop.time() - began
                    # What the source sends from here on is nobody's: keys that expire there.
                    await self._source.close()
                    # 6. The applications' name for the server is moved, before they dial again.
                    await self._switch_once()
                    # 7. Those who wait may learn of it.
                    await self._let_go(fence)
                    await self._opening.tidy_up()
                    await self.finish()
        except PositionMoved as moved:
            self._lost = await self._lost_to_another(moved.found)
            raise
        except TimeoutError:
            lag = size_words(follower.lag_bytes)
            words = f"the deadline of {fence.seconds:g} s passed while {doing}, {lag} behind"
            # Without the comparison there would have been time.
            result = GateResult(False, offering(stage, words) if doing == _COMPARED else words)
        except EngineError as exc:
            if self._books.mark.opened or pump.done() or isinstance(exc, StateError):
                raise
            result = GateResult(False, exc.in_one_line)
        finally:
            if not (self._books.mark.opened or self._opening.in_doubt):
                self._refused += 1
                follower.hurry(False)
                self._deadlines.lift_again()
                if self._lost:
                    self._tell_left_closed()
                else:
                    await self._take_away(fence)
        stage.reason = result.reason
        if result.ok:
            stage.on_event(
                f"cut over at offset {follower.position.offset:,}, {self.fence_seconds:.3f} s "
                "after the fence was put up"
            )
        else:
            stage.trying_again = self._check.again
            stage.lead_back(Phase.FOLLOW, result.reason)
        return result

    async def _lost_to_another(self, found: bytes | None) -> bool:
        """Whether the target, of which `found` is the position now, may be another migration's, or
        was: then the source is not ours to open. One that came back older, or empty, is ours."""
        if found is not None:
            return self._is_anothers(found)
        try:
            async with asyncio.timeout(_ASK_SECONDS), self._ends.admin("target") as end:
                return any(entry.keys for entry in (await end.info()).keyspace)
        except (EngineError, TimeoutError):
            return True

    def _tell_left_closed(self) -> None:
        sealed = self._books.mark.sealed
        by_hand = f". If none has: {seal.remedy(sealed)}" if sealed else ""
        self._stage.on_event(
            "the source goes on refusing writes, for another migration may have cut over from it "
            f"since{by_hand}"
        )

    async def _is_lost(self) -> bool:
        """As `_lost_to_another`, of the position that is on the target now. A target that does not
        answer says nothing."""
        key = position_key(self._books.mark.token)
        try:
            async with asyncio.timeout(_ASK_SECONDS), self._ends.admin("target") as end:
                found = await end.call("GET", key)
        except (EngineError, TimeoutError):
            return False
        return await self._lost_to_another(found if isinstance(found, bytes) else None)

    async def _settled(self, follower: Follower, settling: asyncio.Future[None]) -> int:
        """The last deadlines are set back, also those of keys that were read again since. Returns
        how many keys have ended by it."""
        await asyncio.shield(settling)
        await self._deadlines.settle(follower, [])
        return self._deadlines.ended

    # --- The fence, here and after a crash ---

    async def take_away(self, *, at_once: bool = False, in_doubt: bool = False) -> None:
        """A fence that an engine before us, or a refused cut-over, has left; nothing if there is
        none.

        Returns at once, and goes on until it is away. `at_once`: it is tried once, now, and waited
        for. `in_doubt`: even while it is not known whether the target is open. Never raises.
        """
        if at_once:
            await self._left.quit()
            if self._stands(in_doubt):
                await self._take_away_once(in_doubt)
                self._left.show()
        elif self._stands() and not self._trying:
            self._left.keep_trying(self._take_away_once)

    def _stands(self, in_doubt: bool = False) -> bool:
        """Whether a fence may stand that is to be taken away."""
        mark = self._books.mark
        if self._lost and not in_doubt:
            return False
        return mark.fenced and not mark.opened and (in_doubt or not self._opening.in_doubt)

    async def _take_away_once(self, in_doubt: bool = False) -> bool:
        """One try; whether there is nothing more to do."""
        if not self._stands(in_doubt):
            return True
        if not in_doubt and await self._is_lost():
            # It was not known when the opening broke off.
            self._lost = True
            self._tell_left_closed()
            return True
        try:
            fence = await self._fence_left()
        except EngineError as exc:
            self._not_taken_away(exc)
            return False
        try:
            await self._take_away(fence)
        finally:
            await fence.release()
        return not self._books.mark.fenced

    async def finish(self, *, patient: bool = True) -> None:
        """The target is open: those who may wait at the source, behind this fence or that of an
        engine before us, are told so.

        Tried again for a minute, unless not `patient`. Raises `TransferStopped` then: the books
        still have it, and whoever resumes goes on.
        """
        if not self._books.mark.fenced:
            return
        await self._opening.hand_over()
        await self._switch_once()
        patience = self._stage.patience(
            "the source's clients",
            ended="the target is open, but the source could not be told so",
            next_step="it is told again",
            fault="source",
            limit=_FINISH_SECONDS if patient else 0.0,
        )
        while True:
            try:
                await self._finish_once()
                patience.progress()
                return
            except EngineError as exc:
                delay = patience.failed(
                    exc.message,
                    remedy="Its writers may wait, or write what is not carried: resume the "
                    "migration once the source answers, or stop its writers and end the migration "
                    "(complete-migration --force); the target stays open either way.",
                    event=f"the source was not told that its writes have gone: {exc.message}; "
                    "trying again",
                )
            await asyncio.sleep(delay)

    async def _finish_once(self) -> None:
        fence = await self._fence_left()
        try:
            await fence.approach()
            fence.opened()
            try:
                await fence.seal()
            except TransferFailed as exc:
                # Its role has changed since, or its clients cannot be held: there is no way back.
                self._stage.on_event(exc.message)
            await self._let_go(fence)
            if self._not_let_go is not None:
                raise self._not_let_go
        finally:
            await fence.release()

    async def _switch_once(self) -> None:
        if self._switch.wanted and not self._books.mark.switched:
            with logs.timed(_log, "Cut-over: run the switch"):
                await self._switch.run()
            self._books.note(switched=True)

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
            self._stage.on_event(f"the source's own offset is taken for the last: {exc.message}")
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

    async def _fence_in_the_way(self, address: str) -> str:
        """Take away a fence that still stands; why not, if that cannot be done."""
        mark = self._books.mark
        if not mark.fenced:
            return ""
        await self.take_away(at_once=True)
        if not self._books.mark.fenced or (self._left.given_up and mark.fenced_at == address):
            return ""
        return f"the fence at {mark.fenced_at or 'the source'} is still to be taken away"

    def _step(self, what: str, **figures: object) -> AbstractContextManager[None]:
        """Log a step at the server that takes the source's writes."""
        at = self._books.mark.fenced_at
        of: dict[str, object] = {"end": "source", "fence": self._ends.settings.fence}
        if at:
            of["endpoint"] = at
        return logs.timed(_log, f"Cut-over: {what}", extra=of | figures)

    def _final(self, told: Replication) -> int:
        """The offset of a fence that stands, if it is of the stream that is followed.

        Raises `TransferFailed` where the roles have changed since it was looked at them.
        """
        self._of_history(told, self._source.replid)
        return told.offset

    def _of_history(self, told: Replication, replid: str) -> None:
        """Raises `TransferFailed` where the fenced server is not the primary of this history."""
        if self._ends.settings.fence == "pause" and told.is_replica:
            raise TransferFailed(
                f"the server that was fenced is {told.place} by now: another one takes the writes",
                fault="source",
            )
        if told.replid and told.replid != replid:
            raise TransferFailed(
                "the server that takes the writes has another replication history than the one "
                "that is followed: there was a failover, or it was restarted",
                fault="source",
            )

    def _fence(self, at: Endpoint, info: ServerInfo, address: str) -> Fence:
        return fence_of(
            at,
            info,
            self._ends.settings,
            name=f"the source's primary {address}" if address else "the source",
            before=self._books.mark.sealed,
            calls_before=self._calls_before(),
            held=self._books.mark.held,
            refused=self._refused,
            straight=bool(address),
        )

    def _calls_before(self) -> Calls | None:
        mark = self._books.mark
        return None if mark.scripts is None else Calls(mark.scripts, mark.writes)

    async def _fence_left(self) -> Fence:
        """The fence that stands by the books. Raises `EngineError`."""
        address, limit = self._books.mark.fenced_at, self._ends.settings.io_timeout
        at = self._ends.beside_source(address)
        async with admin(at, timeout=limit, fault="source", straight=bool(address)) as end:
            return self._fence(at, await end.info(), address)

    async def _take_away(self, fence: Fence) -> None:
        try:
            with self._step("take the fence away"):
                await fence.open()
        except EngineError as exc:
            self._not_taken_away(exc)
            return
        self._books.note(
            fenced=False,
            sealed="",
            fenced_at="",
            closed_before="",
            lets_scripts=False,
            scripts=None,
            writes=None,
            held=False,
        )
        self._left.gone()

    def _not_taken_away(self, exc: EngineError) -> None:
        """It stays in the books: it is tried again, by whoever has them."""
        mark = self._books.mark
        name = f"the source's primary {mark.fenced_at}" if mark.fenced_at else "the source"
        if self._ends.settings.fence == "hook":
            self._left.failed(f"writes to {name} may still be held off", exc.message, exc.remedy)
            return
        by_hand = f"By hand: {seal.remedy(mark.sealed)}" if mark.sealed else exc.remedy
        self._left.failed(f"{name} may still refuse writes", exc.message, by_hand)

    async def _let_go(self, fence: Fence) -> None:
        """Those who wait; where that fails the books keep it for `finish`."""
        self._not_let_go = None
        try:
            with self._step("let clients go, and disconnect them"):
                told = await fence.finish()
        except EngineError as exc:
            self._not_let_go = exc
            return
        lost = [fence.lost_writes] if fence.lost_writes else []
        if self._ends.settings.source_after == "refuse" and (moved := await self._moved(fence)):
            told.append(moved)
            lost.append(moved)
        for each in told:
            self._stage.on_event(each)
        run = fence.calls_since
        self._books.note(
            fenced=False,
            scripts_run=None if run is None else run.scripts,
            writes_run=None if run is None else run.writes,
            lost_writes="; ".join(lost),
        )

    async def _not_moved(self, fence: Fence) -> None:
        """Raises `TransferFailed` where the source fails over behind its fence."""
        told = await fence.look()
        if told is None:
            return
        history = self._source.replid or self._opening.history
        if history or told.is_replica:
            self._of_history(told, history)
        await self._roles.no_second_primary(told, history)

    async def _moved(self, fence: Fence) -> str:
        """What was lost where the source has failed over by the time at which the target is open:
        nothing can hold off the writers of a server that was promoted meanwhile."""
        try:
            await self._not_moved(fence)
        except TransferFailed as exc:
            return (
                f"the source failed over while the target was opened ({exc.message}): what its new "
                "primary takes is on that server alone"
            )
        except EngineError as exc:
            return (
                "whether the source failed over while the target was opened is not known "
                f"({exc.message}): what another primary takes is on that server alone"
            )
        finally:
            await self._roles.siblings.close()
        return ""

    def _note_before(self, fence: Fence) -> None:
        """What the source had run when this fence was put up."""
        calls = fence.calls
        self._books.note(
            scripts=None if calls is None else calls.scripts,
            writes=None if calls is None else calls.writes,
            scripts_run=None,
            writes_run=None,
            lost_writes="",
        )

    # --- The gate ---

    def broken_off(self, reason: str) -> None:
        """What the cut-over needs was lost: whoever waits is told, and the next order is a new
        one."""
        if self._stage.phase is not Phase.CUT_OVER:
            self._refuse(reason)
        else:
            self.led_back(reason)

    def led_back(self, reason: str) -> None:
        """It is known by now that the target is not open, because of `reason`: a cut-over that went
        on until then was refused."""
        stage = self._stage
        if stage.phase is Phase.CUT_OVER:
            stage.trying_again = stage.can_complete = False
            stage.lead_back(Phase.FOLLOW, reason)

    def _refuse(self, reason: str, follower: Follower | None = None) -> GateResult:
        """Before a fence was put up; shown as a phase to whoever waits for an answer.

        `follower`: deadlines may have been set back.
        """
        if follower is not None:
            self._deadlines.lift_again()
        before = self._stage.phase
        self._stage.trying_again = False
        self._stage.enter(Phase.CUT_OVER)
        self._stage.lead_back(before, reason)
        return GateResult(False, reason)


async def _stop(follower: Follower, pump: asyncio.Task[None]) -> None:
    follower.stop()
    await pump
