"""A migration that follows: its lanes, the operator's word, and the cut-over of all of them.

    lane ─┐
    lane ─┼─▶ all could be cut over, and the operator wants it ─▶ barrier ─▶ all targets are open
    lane ─┘            └── a refusal, or a lane that broke ──▶ followed again

Each lane goes its way by itself: one whose link is lost dials again while the others go on. What
concerns all is decided here, between two looks of the lanes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from engine import logs
from engine.errors import EngineError, StateError, TransferStopped
from engine.model.online_checkpoint import OnlineCheckpoint, left_at_sources
from engine.model.progress import Phase
from engine.transfer.async_helpers import all_cancelled, cancelled, together
from engine.transfer.cut_over import CUT_OVER, IN_SYNC, SNAPSHOT, CutOver
from engine.transfer.cut_over_barrier import StepFailed
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.cut_over_offer import Offer, TakenUpAnew
from engine.transfer.lane_interface import (
    LANES_OWN,
    CutOverLane,
    MigratingLane,
    WatchedCluster,
)
from engine.transfer.overview import Overview

T = TypeVar("T")

# Tries of a cut-over that cannot be repeated by hand (`migrate`).
_CUT_OVERS_MOST = 3
# For so long slots have to stay where they are before the lanes are planned anew.
_SETTLED_SECONDS = 2.0


class SlotsMoved(Exception):
    """Slots have gone to other shards than the lanes were planned for: they are to be planned
    anew."""


class LanesParted(Exception):
    """The lanes are to go on in other processes (`transfer.lane_process_split`)."""


class Migration:
    """Moves the sources of some lanes into their targets while they are written to."""

    follows = True
    doubts: Sequence[str] = ()

    def __init__(
        self,
        overview: Overview,
        lanes: Sequence[MigratingLane],
        allowed: Callable[[], Coroutine[Any, Any, None]] | None = None,
        clusters: Sequence[WatchedCluster] = (),
        remove_left: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """`clusters` are watched for all lanes. `allowed` is asked while all lanes connect, before
        anything is written: it raises where nothing is to be followed, and counts before whatever
        the lanes have met by then. `remove_left`: removes what lanes that are over have left on the
        target, before each cut-over, for its counts have it; raises `EngineError`."""
        self._allowed = allowed
        self._remove_left = remove_left
        self._clusters = clusters
        self._overview = overview
        self._orders = overview.orders
        self._settings = overview.settings
        self.lanes = lanes
        """All of them; at least one."""
        self._cut_over = CutOver([lane.cut_over for lane in lanes])
        # A lane was looked at.
        self._looked = asyncio.Event()
        for lane in lanes:
            lane.on_look = self._looked.set
            lane.beside(len(lanes))
        for cluster in clusters:
            cluster.on_look = self._looked.set
        # The cut-over is tried again by itself, for what its comparison has found.
        self._again, self._again_until = False, 0.0
        # How often it was refused since all lanes have followed what they follow now.
        self._refused = 0
        self._followed: list[object] = []
        # A cut-over goes on, or what it needs is borrowed.
        self._cutting_over = False
        self._parting: asyncio.Future[bool] | None = None
        if overview.orders.one_go and self._settings.until == "snapshot":
            self._steps = SNAPSHOT
        elif overview.orders.one_go and self._settings.until == "in-sync":
            self._steps = IN_SYNC
        else:
            self._steps = CUT_OVER

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the targets again and again meanwhile."""
        async with contextlib.AsyncExitStack() as stack:
            for cluster in self._clusters:
                await stack.enter_async_context(cluster.watching())
            for lane in self.lanes:
                await stack.enter_async_context(lane.watching())
            yield

    async def run(self) -> None:
        """Run to the end of the cut-over. Raises `EngineError` with the reason of a failure,
        `SlotsMoved` where other lanes are to go on, and `LanesParted` (`part`)."""
        self._take_up()
        over = await self._connect()
        running = [lane for lane, is_over in zip(self.lanes, over, strict=True) if not is_over]
        if running:
            await self._run(running)
        for lane in self.lanes:
            lane.context.enter(Phase.DONE)

    @property
    def asks(self) -> bool:
        """Whether something is asked while the lanes connect (`allowed`)."""
        return self._allowed is not None

    async def _connect(self) -> list[bool]:
        """Of each lane whether nothing is left to do. Raises as `run`."""
        lanes = together([_of(lane, lane.connect()) for lane in self.lanes])
        if self._allowed is None:
            return await lanes
        asked = asyncio.ensure_future(self._allowed())
        try:
            # It goes on to its end where the lanes fail.
            over, _ = await together([lanes, _end_of(asked)])
            assert over is not None
            return over
        except EngineError:
            await asked
            raise
        finally:
            await cancelled(asked)

    async def _run(self, lanes: Sequence[MigratingLane]) -> None:
        # What was promoted before takes no part.
        self._cut_over = CutOver([lane.cut_over for lane in lanes])
        tasks = [asyncio.create_task(_of(lane, lane.run())) for lane in lanes]
        word = asyncio.create_task(self._orders.word.wait())
        try:
            while True:
                looked = asyncio.ensure_future(self._looked.wait())
                try:
                    going = {task for task in tasks if not task.done()}
                    events = going | {looked} | (set() if word.done() else {word})
                    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    looked.cancel()
                self._looked.clear()
                for task in tasks:
                    if task.done():
                        task.result()
                if all(task.done() for task in tasks):
                    return
                if await self._look(lanes):
                    word.cancel()
                    word = asyncio.create_task(self._orders.word.wait())
        except asyncio.CancelledError:
            await all_cancelled(tasks)
            current = asyncio.current_task()
            if current is None or any(map(_ended_early, tasks)):
                raise
            # It came too late: all targets are open.
            current.uncancel()
        finally:
            word.cancel()
            await all_cancelled(tasks)

    async def _look(self, lanes: Sequence[MigratingLane]) -> bool:
        """Cut over if it is wanted, and can be; whether it was tried. Raises `TransferStopped`
        where that is wanted in one go and can never be, `SlotsMoved`, and `LanesParted`."""
        self._look_at_slots(lanes)
        if self._parting is not None and self._answer_parting(self.may_part):
            raise LanesParted
        one_go = self._orders.one_go
        can_complete = all(lane.context.can_complete for lane in lanes)
        if one_go and self._orders.steering.paused:
            return False
        if self._steps is not SNAPSHOT:
            if self._again and not can_complete and self._now < self._again_until:
                return False
            if one_go and not can_complete:
                for lane in lanes:
                    if why := lane.stuck:
                        raise TransferStopped(why)
                return False
        if not self._orders.word.is_set():
            return False
        self._cutting_over = True
        try:
            return await self._try_cut_over(lanes)
        finally:
            self._cutting_over = False
            self._answer_parting(False)

    async def _try_cut_over(self, lanes: Sequence[MigratingLane]) -> bool:
        """Cut over if all lanes can be borrowed; whether it was tried. Raises as `_look`."""
        offers = await self._borrow(lanes)
        if not offers:
            return False
        if self._remove_left is not None and self._steps is not SNAPSHOT:
            try:
                await self._remove_left()
            except StateError:
                raise
            except EngineError as exc:
                self._overview.on_event(
                    "keys of the engine's own that former lanes left on the target could not be "
                    f"removed, and are counted with its keys: {exc.message}"
                )
        followed = [each.followed for each in offers]
        if followed != self._followed:
            self._followed, self._again, self._refused = followed, False, 0
        self._orders.word.clear()
        try:
            result = await self._cut_over.run(self._steps, followed)
        except StepFailed as failed:
            self._break_off(failed, lanes, offers)
            return True
        if not result.ok:
            self._note_refused(result, lanes)
        for lane, offer in zip(lanes, offers, strict=True):
            if not result.ok and offer.followed is not None and lane.cut_over.stopped:
                # It had stopped to follow when another lane refused.
                offer.fail(TakenUpAnew(result.reason))
            else:
                offer.give_back(over=result.ok)
        return True

    def _look_at_slots(self, lanes: Sequence[MigratingLane]) -> None:
        """Raises `SlotsMoved` once each slot is settled where it is by now. A snapshot that can be
        is copied to its end before that, and a cut-over that may have happened is brought to its
        end."""
        if all(cluster.moved_for < _SETTLED_SECONDS for cluster in self._clusters):
            return
        if any(lane.context.phase is Phase.SNAPSHOT and not lane.stranded for lane in lanes):
            return
        if len(lanes) < len(self.lanes) or self.promoted or self.in_doubt:
            return
        if self._steps is SNAPSHOT:
            # What came to a lane behind its snapshot is in no stream that is followed.
            raise TransferStopped(
                "slots have moved since the start, and only snapshots are copied",
                remedy="Resume it: all of them are copied again.",
            )
        raise SlotsMoved

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _borrow(self, lanes: Sequence[MigratingLane]) -> list[Offer]:
        """What the lanes offer, when all of them do nothing else with it; empty: one has nothing to
        offer just now."""
        offers = [lane.offer for lane in lanes if lane.offer is not None]
        if len(offers) < len(lanes):
            return []
        for offer in offers:
            offer.want()
        await asyncio.wait([offer.lent for offer in offers])
        if not any(offer.lent.cancelled() for offer in offers):
            return offers
        for offer in offers:
            offer.give_back(over=False)
        return []

    def _note_refused(self, result: CutOverCheckResult, lanes: Sequence[MigratingLane]) -> None:
        """A refusal: tried again by itself, or told."""
        context = lanes[0].context
        if self._cut_over.again:
            self._overview.on_event(f"the cut-over is tried again: {result.reason}")
            self._again = True
            self._again_until = self._now + self._settings.cut_over_timeout
            self._orders.word.set()
            return
        self._again = False
        self._refused += 1
        repeated = self._refused < _CUT_OVERS_MOST
        # Of all lanes: the reason names the one that it is about.
        self._overview.on_event(context.refusal_words(result.reason, repeated=repeated))
        if self._orders.one_go:
            if self._refused >= _CUT_OVERS_MOST:
                raise TransferStopped(result.reason)
            self._orders.word.set()

    def _break_off(
        self,
        failed: StepFailed[CutOverLane],
        lanes: Sequence[MigratingLane],
        offers: Sequence[Offer],
    ) -> None:
        """Something broke on a lane, and is that lane's to deal with; else it is raised."""
        cause = failed.cause
        if not isinstance(cause, LANES_OWN):
            raise cause
        self._again = False
        broken = next(lane for lane in lanes if lane.cut_over is failed.lane)
        if self._steps is not SNAPSHOT:
            why, asked = broken.note_broken(cause)
            if asked:
                broken.context.on_event(why)
            elif not broken.promoted:
                broken.context.report_refusal(why, repeated=True)
                for lane in lanes:
                    lane.cut_over.break_off(why)
        if self._orders.one_go:
            # It cannot be repeated by hand.
            self._orders.word.set()
        for lane, offer in zip(lanes, offers, strict=True):
            if lane is broken:
                offer.fail(cause)
            elif lane.cut_over.stopped:
                offer.fail(TakenUpAnew(f"the cut-over failed on the lane {broken.context.title}"))
            else:
                offer.give_back(over=False)

    def _take_up(self) -> None:
        """Before a lane does anything the checkpoints of all are known: what one engine has decided
        holds for all. Raises `StateError`."""
        for lane in self.lanes:
            if not lane.taken_up:
                lane.take_up()

    # --- Parted lanes ---

    @property
    def may_part(self) -> bool:
        """Whether the lanes can be ended and opened again just now: all of them follow, and
        may move, and no cut-over is wanted, or has left anything that is to be led back."""
        if self._orders.word.is_set() or self._cutting_over or self._again:
            return False
        if self.promoted or self.in_doubt or self.fenced or self.sealed:
            return False
        if any(cluster.moved_for for cluster in self._clusters):
            return False
        return all(_follows(lane) for lane in self.lanes)

    async def part(self) -> bool:
        """End by `LanesParted` at the next look, unless that may not be any more by then; whether
        it does."""
        parting = self._parting = asyncio.get_running_loop().create_future()
        self._looked.set()
        await asyncio.wait({parting})
        is_parted: bool = parting.result()
        return is_parted

    def _answer_parting(self, is_parted: bool) -> bool:
        parting, self._parting = self._parting, None
        if parting is not None:
            parting.set_result(is_parted)
        return is_parted

    # --- The whole, from its lanes ---

    @property
    def held_before(self) -> bool | None:
        """Whether a target had keys of its own before; None: that is not known yet."""
        found = [lane.held_before for lane in self.lanes]
        return None if None in found else any(found)

    @property
    def promoted(self) -> bool:
        """Whether a target is its users' by now."""
        return any(lane.promoted for lane in self.lanes)

    @property
    def in_doubt(self) -> bool:
        """Whether it is not known if a target is open: it has not answered since."""
        return any(lane.in_doubt for lane in self.lanes)

    @property
    def begun(self) -> bool:
        """Whether a target has something of this migration, so that it can be gone on with."""
        return any(lane.begun for lane in self.lanes)

    @property
    def sealed(self) -> bool:
        """Whether the checkpoint has a write block at a source."""
        return any(lane.mark.sealed for lane in self.lanes)

    @property
    def fenced(self) -> bool:
        """Whether the checkpoint has a fence at a source."""
        return any(lane.mark.fenced for lane in self.lanes)

    @property
    def marks(self) -> list[OnlineCheckpoint]:
        """How far each lane has gone, as its checkpoint has it."""
        return [lane.mark for lane in self.lanes]

    @property
    def fence_seconds(self) -> float | None:
        """From the fence to the open target, where that took longest."""
        return self._cut_over.fence_seconds

    @property
    def last_shard(self) -> str:
        """The lane for which the others waited most while writes were blocked; empty: none."""
        last = self._cut_over.last
        return "" if last is None else last.lane.title

    @property
    def spooled_most(self) -> int:
        """Bytes that waited in the spools when there were most."""
        return sum(lane.spooled_most for lane in self.lanes)

    @property
    def left_out(self) -> list[str]:
        """What is no key and was not carried."""
        return [what for lane in self.lanes for what in lane.left_out]

    @property
    def how_far(self) -> str:
        """For a migration that is aborted: what was in sync and what was not."""
        named = [(lane.context.title, lane.how_far) for lane in self.lanes]
        return "; ".join(f"lane {title}: {text}" if title else text for title, text in named)

    def at_source(self) -> dict[str, Any]:
        """The members of a `Report` that tell what the cut-over has left at the sources."""
        return left_at_sources(self.marks)

    # --- Ends ---

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """Let go of all ends; unless it can be resumed, remove what we left on the targets.

        `forced`: the operator has aborted it, and may use the targets from now on.
        """
        if forced:
            with contextlib.suppress(EngineError):
                # Ended before it began to look; each lane says what is wrong.
                self._take_up()
        await together(
            [_of(lane, lane.close(resumable=resumable, forced=forced)) for lane in self.lanes]
        )

    async def abandon(self) -> None:
        """As `Lane.abandon`, of all lanes."""
        self._take_up()
        await together([_of(lane, lane.abandon()) for lane in self.lanes])

    async def end_promoted(self) -> bool:
        """As `LaneOutcome.end_promoted`, of all lanes."""
        return all(await together([_of(lane, lane.end_promoted()) for lane in self.lanes]))

    async def save_last(self, errors: list[str]) -> None:
        """Write the last checkpoints; a failure joins `errors` if there is none yet."""
        for lane in self.lanes:
            await lane.save_last(errors)


async def _of(lane: MigratingLane, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, whose log lines are the lane's."""
    with logs.of_shard(lane.context.title):
        return await work


def _follows(lane: MigratingLane) -> bool:
    context = lane.context
    follows = context.phase in (Phase.CATCH_UP, Phase.FOLLOW) and lane.may_move
    return follows and lane.offer is not None and context.progress.link == "up"


async def _end_of(asked: asyncio.Future[None]) -> None:
    await asyncio.shield(asked)


def _ended_early(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is not None
