"""A lane in another process, as its migration drives it.

    Migration ── RemoteLane ─┐                      ┌─ Lane
    Migration ── RemoteLane ─┴─ LaneWorker ═ socket ═ LaneServer ─┴─ Lane

What the migration asks of a lane is asked of that process, and what it looks at is what the process
has told last (`LaneStatus`). The lane's checkpoint is kept here: this process has the lease.

What is true at every moment, whichever process dies:

- Of one lane there is one process at the most: before another one is started the one before has
  ended, and what it had sent is dealt with.
- A lane whose process has ended is as one whose link was lost: another process takes it up from its
  checkpoint and from the target's record, while the other lanes go on. But where a cut-over has
  borrowed it that waits until the cut-over has come to its end everywhere: what the others have
  decided by then is what the new process finds.
- Whatever a lane's checkpoint says is told to the processes of all other lanes before the lane is
  told that it is written, and before they are told anything that was done behind it.
- Once this process is gone the others end at once, and write nothing behind the next owner's claim.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.errors import EngineError
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import ENDS, Phase, Progress
from engine.model.retry import Attempts
from engine.transfer.async_helpers import cancelled
from engine.transfer.checkpoint_store import CheckpointStore
from engine.transfer.cut_over_check import offering
from engine.transfer.cut_over_offer import Offer
from engine.transfer.lane_channel import WorkerLost, told
from engine.transfer.lane_messages import LaneSetup, LaneStatus
from engine.transfer.lane_plan import LaneEnds
from engine.transfer.lane_worker import LaneWorker
from engine.transfer.migration_context import MigrationContext
from engine.transfer.stats import TransferStats

# So long processes of a lane may end one after another.
_LOST_SECONDS = 120.0
# One that has lived for so long begins a new series.
_LIVED_SECONDS = 10.0
# Of what the process says of a lane these are the context's own here.
_OWN_FIGURES = frozenset(
    {"phase", "can_complete", "uncomparable", "reason", "seconds", "trying_again", "lets_scripts"}
)
_FIGURES = tuple(each.name for each in fields(Progress) if each.name not in _OWN_FIGURES)
# What is known of a lane whose process has ended.
_UNKNOWN: dict[str, Any] = {
    "can_complete": False,
    "uncomparable": False,
    "link": "",
    "lag_bytes": None,
    "lag_seconds": None,
}


@dataclass(frozen=True, slots=True)
class _Followed:
    """What a lane offers, by its process and its number there."""

    worker: int
    number: int


class RemoteLane:
    """As `transfer.lane.Lane`."""

    def __init__(
        self,
        ends: LaneEnds,
        context: MigrationContext,
        checkpoints: CheckpointStore,
        worker: LaneWorker,
    ) -> None:
        self._ends = ends
        self._context = context
        self._checkpoints = checkpoints
        self._worker = worker
        self.on_look: Callable[[], None] = lambda: None
        """As of `MigratingLane`."""
        self.taken_up = False
        """As of `MigratingLane`."""
        self.status = LaneStatus()
        """What the process has told last."""
        self._said: Progress | None = None
        self._how_far = ""
        self._mark: OnlineCheckpoint | None = None
        # The number of the process in which the lane is connected.
        self._connected = 0
        self._lost = False
        self._offer: Offer | None = None
        self._offered = 0
        self._lending: asyncio.Task[None] | None = None
        self.cut_over = RemoteCutOver(self, context, worker)
        """As of `MigratingLane`."""
        shared = context.peers.target_of(ends.target, ends.route)
        shared.join(context.lane, lambda: self.mark)
        context.peers.join(lambda: self.mark)
        context.source_type = "replica"
        context.figures = self._figures
        # Of what went on with the lane before this process.
        self._steps, self._copied = tuple(context.steps), context.copy_seconds
        self._silence = context.trouble_of("the process of the lane")
        worker.join(self)

    # --- What the process tells ---

    @property
    def name(self) -> str:
        """The lane's."""
        return self._context.lane

    @property
    def setup(self) -> LaneSetup:
        """What a process that takes it up has to know. Raises `StateError`."""
        ends = self._ends
        found = self._checkpoints.load()
        title = self._context.title
        return LaneSetup(self.name, title, ends.source, ends.target, ends.route, found)

    def note_status(self, status: LaneStatus) -> None:
        """It has changed."""
        before, self.status = self.status, status
        context = self._context
        self._lost = False
        if context.phase not in ENDS:
            self._enter(status.phase)
            context.can_complete = status.can_complete
            context.reason = status.reason
        context.failed_dials = status.failed_dials
        context.copy_seconds = self._copied + status.copy_seconds
        context.steps[:] = [*self._steps, *status.steps]
        context.verification = status.verification
        if status.crashing != before.crashing:
            context.peers.crashing[self.name] = status.crashing
        if status.mark != self._mark:
            self._mark = status.mark
            self._worker.tell_others(self)
        if status.offer != before.offer:
            self._offer_anew(status)

    def note_progress(self, progress: Progress, how_far: str) -> None:
        """How it stands, as it is told."""
        context = self._context
        self._said, self._how_far = progress, how_far
        if context.phase in ENDS:
            return
        self._enter(progress.phase)
        context.trying_again = progress.trying_again
        context.lets_scripts = progress.lets_scripts
        context.publish()

    def note_silent(self) -> None:
        """Its process has not been heard of for some seconds: it may be stopped, or out of
        memory."""
        self._context.can_complete = False
        self._silence(
            f"the process {self._worker.pid} of the lane does not answer; if that lasts another "
            "one takes the lane up"
        )
        self.on_look()

    def note_heard(self) -> None:
        """It is there again: what it has told last holds."""
        self._silence("")
        if self._context.phase not in ENDS:
            self._context.can_complete = self.status.can_complete
        self.on_look()

    def note_lost(self) -> None:
        """Its process has ended."""
        self._lost = True
        self._connected = 0
        self._silence("")
        self._context.keep_commands()
        if self._said is not None:
            self._said = replace(self._said, commands=0)
        self._steps, self._copied = tuple(self._context.steps), self._context.copy_seconds
        if self._context.phase not in ENDS:
            self._context.can_complete = False
            self._context.reason = "the process of the lane has ended: another one takes it up"
            if self._said is not None:
                self._said = replace(self._said, **_UNKNOWN)
        self.status = replace(
            self.status, can_complete=False, stuck="", may_move=False, offer=0, stopped=True
        )
        self._offer_anew(self.status)
        self.on_look()

    async def save(self, checkpoint: Any) -> None:
        """Its process has a checkpoint to be written. Raises `StateError`."""
        await asyncio.to_thread(self._checkpoints.save, checkpoint)
        self._take(checkpoint)
        self._worker.tell_others(self)

    async def load(self) -> Any:
        """The checkpoint as it is written. Raises `StateError`."""
        return await asyncio.to_thread(self._checkpoints.load)

    def _take(self, checkpoint: Any) -> None:
        if checkpoint is not None and isinstance(checkpoint.position, OnlineCheckpoint):
            before = self._context.stats.keys_before if self._mark is not None else checkpoint.keys
            self._mark = checkpoint.position
            stats = TransferStats(checkpoint)
            stats.keys_before = before
            self._context.count_with(stats)

    def _enter(self, phase: Phase) -> None:
        """A lane that was taken up by another process is not shown as one that begins."""
        before = self._context.phase
        if phase is Phase.CONNECT and before is not Phase.CONNECT:
            phase = Phase.SNAPSHOT if before is Phase.SNAPSHOT else Phase.CATCH_UP
        self._context.phase = phase

    def _figures(self) -> dict[str, Any]:
        said, context = self._said, self._context
        if said is None:
            return {}
        figures = {name: getattr(said, name) for name in _FIGURES}
        figures["worker_pid"] = self._worker.pid
        if context.phase not in ENDS:
            trouble = context.trouble
            figures["reason"] = trouble or said.reason
            figures["can_complete"] = said.can_complete and not trouble
            figures["uncomparable"] = said.uncomparable and not trouble
        return figures

    # --- What it offers ---

    @property
    def offer(self) -> Offer | None:
        """As of `MigratingLane`."""
        offer = self._offer
        return None if offer is None or offer.returned else offer

    @property
    def offered(self) -> int:
        """The number of what the process offers; 0: nothing."""
        return self._offered

    def _offer_anew(self, status: LaneStatus) -> None:
        if status.offer == self._offered:
            return
        self._offered = status.offer
        before, self._offer = self._offer, None
        if before is not None and not (self._lost and before.borrowed):
            before.withdraw()
        if status.offer:
            followed = _Followed(self._worker.number, status.offer) if status.followed else None
            offer = self._offer = Offer(followed)
            self._lending = asyncio.create_task(self._lend(offer, status.offer))

    async def _lend(self, offer: Offer, number: int) -> None:
        """Hand the migration's word on, and what becomes of it."""
        channel = self._worker.channel
        await asyncio.wait({offer.wanted, offer.lent}, return_when=asyncio.FIRST_COMPLETED)
        lent = False
        if channel is not None and not offer.lent.done():
            with contextlib.suppress(EngineError):
                lent = await channel.request("want", self.name, number)
        if not lent or channel is None or offer.lent.done():
            offer.withdraw()
            if lent and channel is not None:
                channel.notify("give_back", self.name, number, False)
            return
        try:
            over = await offer.lend()
        except asyncio.CancelledError:
            return
        except Exception as cause:
            channel.notify("fail", self.name, number, told(cause))
        else:
            channel.notify("give_back", self.name, number, over)

    async def _given_back(self) -> None:
        """Wait until no cut-over has it any more."""
        lending = self._lending
        if lending is not None:
            await asyncio.wait({lending})

    # --- The way ---

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """The process does so by itself."""
        yield

    def beside(self, lanes: int) -> None:
        """The process knows how many it has."""

    def take_up(self) -> None:
        """As of `MigratingLane`."""
        found = self._checkpoints.load()
        self.taken_up = True
        self._take(found)

    async def connect(self) -> bool:
        """As of `MigratingLane`."""
        over = await self._persist(self._connect)
        self._leave_catch_up(over)
        return over

    async def run(self) -> None:
        """As of `MigratingLane`."""
        self._leave_catch_up(await self._persist(self._run))

    def _leave_catch_up(self, over: bool) -> None:
        """A lane that another process has taken up may be over before it follows again."""
        if over and self._context.phase is Phase.CATCH_UP:
            self._context.phase = Phase.FOLLOW

    async def _connect(self) -> bool:
        channel = await self._worker.up()
        if self._connected == self._worker.number:
            return False
        number = self._worker.number
        over: bool = await channel.request("connect", self.name)
        self._connected = number
        return over

    async def _run(self) -> bool:
        if await self._connect():
            return True
        # (Of another process, where it is not connected, nothing is asked.)
        await self._worker.ask_of(self._connected, "run", self.name)
        return True

    async def _persist(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do it in one process after another, where they end before it is done."""
        patience = self._context.patience(
            "the lane's process",
            ended="the processes of the lane have ended one after another",
            next_step="another one is started",
            fault="engine",
            limit=_LOST_SECONDS,
        )
        async for attempt in Attempts(patience):
            try:
                done = await work()
                patience.progress()
                return done
            except WorkerLost as lost:
                await self._given_back()
                if self._worker.lived > _LIVED_SECONDS:
                    patience.progress()
                attempt.failed(
                    lost.message,
                    remedy="Look into the worker's log, and resume the migration.",
                    event=f"{lost.message}: another process takes the lane up",
                )
                patience.well()
        raise AssertionError("attempts ended with neither a result nor an error")

    def note_broken(self, cause: Exception) -> tuple[str, bool]:
        """As of `MigratingLane`."""
        if self.status.broken is not None and not isinstance(cause, WorkerLost):
            return self.status.broken
        why = cause.in_one_line if isinstance(cause, EngineError) else str(cause)
        if not self._asked:
            return why, False
        return f"the promotion was sent to the target, and its answer is not known: {why}", True

    # --- What is known of it ---

    @property
    def context(self) -> MigrationContext:
        """As of `MigratingLane`."""
        return self._context

    @property
    def mark(self) -> OnlineCheckpoint:
        """As of `MigratingLane`."""
        return self.status.mark if self._mark is None else self._mark

    @property
    def held_before(self) -> bool | None:
        """As of `MigratingLane`."""
        return self.status.held_before

    @property
    def promoted(self) -> bool:
        """As of `MigratingLane`."""
        return self.mark.opened

    @property
    def _asked(self) -> bool:
        return bool(self.mark.promoting) and not self.mark.opened

    @property
    def in_doubt(self) -> bool:
        """As of `MigratingLane`: what is asked of a target is in its checkpoint before."""
        return self._asked and (not self.mark.timed or self._context.peers.decided)

    @property
    def begun(self) -> bool:
        """As of `MigratingLane`."""
        return self.status.begun or (self.mark.begun and self._context.stats.keys > 0)

    @property
    def spooled_most(self) -> int:
        """As of `MigratingLane`."""
        return self.status.spooled_most

    @property
    def left_out(self) -> list[str]:
        """As of `MigratingLane`."""
        return list(self.status.left_out)

    @property
    def how_far(self) -> str:
        """As of `MigratingLane`."""
        return self._how_far or f"in {self._context.phase}"

    @property
    def may_move(self) -> bool:
        """As of `MigratingLane`."""
        return self.status.may_move and not self._context.trouble

    @property
    def stranded(self) -> bool:
        """As of `MigratingLane`."""
        return self.status.stranded

    @property
    def stuck(self) -> str:
        """As of `MigratingLane`."""
        return self.status.stuck

    # --- Ends ---

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """As of `MigratingLane`. Where its process is gone another one takes away what it has left,
        unless the next engine does."""

        def is_over() -> bool:
            mark = self.mark
            left = bool(mark.fenced or mark.sealed or mark.tuned) and not mark.opened
            return not self._worker.living and (resumable or not mark.begun) and not left

        await self._at_the_end("close", resumable, forced, unless=is_over)

    async def abandon(self) -> None:
        """As of `MigratingLane`."""
        await (await self._worker.up()).request("abandon", self.name)

    async def end_promoted(self) -> bool:
        """As of `MigratingLane`."""
        if not self._worker.living and not self.mark.opened:
            return False
        return bool(await self._at_the_end("end_promoted"))

    async def save_last(self, errors: list[str]) -> None:
        """As of `MigratingLane`."""
        if self._worker.living:
            with contextlib.suppress(EngineError):
                found = await self._worker.ask("save_last", self.name)
                if found and not errors:
                    errors.append(found[0])
        if self._lending is not None:
            await cancelled(self._lending)
        await self._worker.done_with(self)

    async def _at_the_end(
        self, what: str, *arguments: Any, unless: Callable[[], bool] = lambda: False
    ) -> Any:
        """Twice at the most: what is left is in the checkpoint."""
        for last in (False, True):
            if unless():
                return None
            try:
                channel = await self._worker.up()
                return await channel.request(what, self.name, *arguments)
            except EngineError as exc:
                if last or not isinstance(exc, WorkerLost):
                    self._context.on_event(f"what the lane has left may still be there: {exc}")
                    return None
        return None


def _step(name: str) -> Callable[[RemoteCutOver], Awaitable[None]]:
    """A step of the cut-over's tables, taken there."""

    async def act(self: RemoteCutOver) -> None:
        await self.take(name)

    return act


def _undo(name: str) -> Callable[[RemoteCutOver], Awaitable[None]]:
    """The same of what undoes one: where the process is gone the next one does it."""

    async def act(self: RemoteCutOver) -> None:
        with contextlib.suppress(WorkerLost):
            await self.take(name)

    return act


class RemoteCutOver:
    """As `transfer.lane_cut_over.LaneCutOver`."""

    def __init__(self, lane: RemoteLane, context: MigrationContext, worker: LaneWorker) -> None:
        self._lane = lane
        self._context = context
        self._worker = worker
        # The process that takes part in the cut-over that goes on.
        self._number = 0

    async def take(self, step: str) -> None:
        """Take a step there. Raises as it does, and `WorkerLost`."""
        await self._worker.ask_of(self._number, "step", self._lane.name, step)

    async def begin(self, followed: object) -> None:
        """As of `CutOverLane`."""
        self._number = self._worker.number
        wishes = self._worker.wishes()
        await self._worker.ask_of(
            self._number, "begin", self._lane.name, self._lane.offered, wishes
        )

    async def end(self) -> None:
        """As of `CutOverLane`."""
        with contextlib.suppress(WorkerLost):
            await self._worker.ask_of(self._number, "end", self._lane.name)

    pass_gates = _step("pass_gates")
    find_fence = _step("find_fence")
    compare_before = _step("compare_before")
    wait_for_replicas_before = _step("wait_for_replicas_before")
    prepare = _step("prepare")
    record_fence = _step("record_fence")
    approach = _step("approach")
    pause = _step("pause")
    drain = _step("drain")
    resync = _step("resync")
    compare = _step("compare")
    wait_for_replicas = _step("wait_for_replicas")
    block_writes = _step("block_writes")
    look_at_role = _step("look_at_role")
    promote = _step("promote")
    commit = _step("commit")
    let_go = _step("let_go")
    compare_in_sync = _step("compare_in_sync")
    restore_ttls = _step("restore_ttls")
    settle = _step("settle")
    look_at_slots = _step("look_at_slots")
    promote_in_sync = _step("promote_in_sync")
    promote_snapshot = _step("promote_snapshot")
    commit_unfenced = _step("commit_unfenced")
    tidy_up = _step("tidy_up")
    extend_ttls = _undo("extend_ttls")
    extend_ttls_followed = _undo("extend_ttls_followed")
    remove_fence = _undo("remove_fence")

    # --- What is known of it ---

    @property
    def title(self) -> str:
        """As of `CutOverLane`."""
        return self._context.title

    @property
    def promoted(self) -> bool:
        """As of `CutOverLane`."""
        return self._lane.promoted

    @property
    def decided(self) -> bool:
        """As of `CutOverLane`."""
        return self._lane.promoted or self._lane.in_doubt

    @property
    def _gone(self) -> bool:
        return not self._worker.living or self._worker.number != self._number

    @property
    def stopped(self) -> bool:
        """As of `CutOverLane`."""
        return self._gone or self._lane.status.stopped

    @property
    def again(self) -> bool:
        """As of `CutOverLane`."""
        return not self._gone and self._lane.status.again

    @property
    def fence_seconds(self) -> float | None:
        """As of `CutOverLane`."""
        return self._lane.status.fence_seconds

    @property
    def fence_ends(self) -> float | None:
        """As of `CutOverLane`: both processes have the machine's clock."""
        return self._lane.status.fence_ends

    @property
    def settle_ends(self) -> float:
        """As of `CutOverLane`."""
        return asyncio.get_running_loop().time() + self._context.settings.cut_over_timeout

    def late(self, doing: str) -> str:
        """As of `CutOverLane`."""
        words = self._lane.status.late or "the deadline passed while {}"
        return words.replace("{}", doing)

    def late_comparing(self) -> str:
        """As of `CutOverLane`."""
        return offering(self._context, self.late("both ends were compared"))

    def late_settling(self) -> str:
        """As of `CutOverLane`."""
        limit = self._context.settings.cut_over_timeout
        return f"keys were still being read again from the source after {limit:g} s"

    def refuse(self, reason: str) -> None:
        """As of `CutOverLane`."""
        if not self._gone:
            self._worker.notify("refuse", self._lane.name, reason)
            return
        self._lead_back(reason)

    def break_off(self, reason: str) -> None:
        """As of `CutOverLane`."""
        if not self._gone:
            self._worker.notify("break_off", self._lane.name, reason)
            return
        self._lead_back(reason)

    def _lead_back(self, reason: str) -> None:
        context = self._context
        before = context.phase
        if before is Phase.CUT_OVER:
            before = Phase.FOLLOW
        else:
            context.enter(Phase.CUT_OVER)
        context.trying_again = context.can_complete = False
        context.lead_back(before, reason)

    def note_cut_over(self, step: str, waited: float) -> None:
        """As of `CutOverLane`."""
        self._worker.notify("note_cut_over", self._lane.name, step, waited)

    def note_in_sync(self) -> None:
        """As of `CutOverLane`."""
        self._worker.notify("note_in_sync", self._lane.name)

    def note_snapshot(self) -> None:
        """As of `CutOverLane`."""
        self._worker.notify("note_snapshot", self._lane.name)
