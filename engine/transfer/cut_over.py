"""The cut-over of an online migration: fence, drain, compare, promote; or back to where it was.

It is a barrier over all lanes (`transfer.cut_over_barrier`): each table below is its steps in their
order, what a lane does for each of them is in `transfer.lane_cut_over`.

    CUT_OVER   the operator's word: writes are blocked, all is compared, the target is promoted
    IN_SYNC    `--until in-sync`: no fence, the target is what the source was a moment ago
    SNAPSHOT   `--until snapshot`: the target has the snapshot, and no later write

A refusal leaves each lane as it was. What a crash leaves is in the state before it is at a server:
the fence by the table (`record`), the promotion by `Promotion` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.errors import EngineError, StateError
from engine.transfer.cut_over_barrier import Barrier, LastLane, Refused, Step, StepFailed
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.lane_interface import CutOverLane

CutOverStep = Step[CutOverLane]


def _behind(doing: str) -> Callable[[CutOverLane], str]:
    return lambda lane: lane.late(doing)


def _fence_ends(lane: CutOverLane) -> float | None:
    return lane.fence_ends


_PAUSE, _COMMIT = "pause writers", "commit"

CUT_OVER: tuple[CutOverStep, ...] = (
    # What takes its time, while no client has to wait for it.
    Step("wait for the gates", lambda lane: lane.pass_gates()),
    Step("find the primary that accepts writes", lambda lane: lane.find_fence()),
    Step("compare both ends before the fence", lambda lane: lane.compare_before()),
    Step(
        "wait for the target's replicas before the fence",
        lambda lane: lane.wait_for_replicas_before(),
    ),
    Step(
        "prepare the fence, and restore TTLs",
        lambda lane: lane.prepare(),
        undo=lambda lane: lane.extend_ttls(),
    ),
    # From here on a fence may stand, and is in the state.
    Step(
        "approach the fence",
        lambda lane: lane.approach(),
        record=lambda lane: lane.record_fence(),
        undo=lambda lane: lane.remove_fence(),
    ),
    Step(_PAUSE, lambda lane: lane.pause(), until=_fence_ends, late=_behind("writers were paused")),
    Step(
        "apply the rest of the stream",
        lambda lane: lane.drain(),
        until=_fence_ends,
        late=_behind("the rest of the stream was applied"),
    ),
    Step(
        "read dirty keys again",
        lambda lane: lane.resync(),
        until=_fence_ends,
        late=_behind("keys were read again from the source"),
    ),
    Step(
        "compare both ends",
        lambda lane: lane.compare(),
        until=_fence_ends,
        late=lambda lane: lane.late_comparing(),
    ),
    Step(
        "wait for the target's replicas",
        lambda lane: lane.wait_for_replicas(),
        until=_fence_ends,
        late=_behind("the target's replicas were waited for"),
    ),
    Step(
        "block writes",
        lambda lane: lane.block_writes(),
        until=_fence_ends,
        late=_behind("the engine set the source to refuse writes"),
    ),
    Step(
        "check the source's role",
        lambda lane: lane.look_at_role(),
        until=_fence_ends,
        late=_behind("the engine asked the source for its role once more"),
    ),
    # The target answers whether it is open, without a deadline.
    Step("promote the target", lambda lane: lane.promote()),
    # From here on there is no way back.
    Step(_COMMIT, lambda lane: lane.commit()),
    Step("release the clients", lambda lane: lane.let_go()),
)

IN_SYNC: tuple[CutOverStep, ...] = (
    Step("compare both ends", lambda lane: lane.compare_in_sync()),
    Step(
        "restore TTLs",
        lambda lane: lane.restore_ttls(),
        undo=lambda lane: lane.extend_ttls_followed(),
    ),
    Step(
        "read dirty keys again",
        lambda lane: lane.settle(),
        until=lambda lane: lane.settle_ends,
        late=lambda lane: lane.late_settling(),
    ),
    Step("wait for the target's replicas", lambda lane: lane.wait_for_replicas_before()),
    Step("check the slots", lambda lane: lane.look_at_slots()),
    Step("promote the target", lambda lane: lane.promote_in_sync()),
    Step("commit", lambda lane: lane.commit_unfenced()),
    Step("remove the engine's key from the target", lambda lane: lane.tidy_up()),
)

SNAPSHOT: tuple[CutOverStep, ...] = (
    Step("wait for the target's replicas", lambda lane: lane.wait_for_replicas_before()),
    Step("check the slots", lambda lane: lane.look_at_slots()),
    Step("promote the target", lambda lane: lane.promote_snapshot()),
    Step("commit", lambda lane: lane.commit_unfenced()),
    Step("remove the engine's key from the target", lambda lane: lane.tidy_up()),
)


class CutOver:
    """What it takes to open the targets of all lanes, or of none."""

    def __init__(self, lanes: Sequence[CutOverLane]) -> None:
        self._lanes = lanes
        self.last: LastLane[CutOverLane] | None = None
        """Behind the fence of the cut-over that passed: the lane for which the others waited most,
        for how long in all, and at which step most of that; None: it was alone."""

    async def run(
        self, steps: Sequence[CutOverStep], followed: Sequence[object]
    ) -> CutOverCheckResult:
        """Take `steps` on all lanes, each with what is `followed` there. Either all targets are
        open, or everything is as it was before.

        Raises `StepFailed` where something broke, which is no refusal: its cause is
        `PositionMoved`, `ReadAgain` or an `EngineError` of the lane's ends or the state;
        `TransferStopped` where a target is open, and the source could not be told so.
        """
        barrier = Barrier(steps, decided=lambda lane: lane.decided, name_of=lambda lane: lane.title)
        begun: list[CutOverLane] = []
        try:
            for lane, what in zip(self._lanes, followed, strict=True):
                begun.append(lane)
                await lane.begin(what)
            try:
                await barrier.run(self._lanes)
            except StepFailed as failed:
                return self._refused(failed)
            self.last = _waited_for(barrier.last, steps)
            return self._passed(steps)
        finally:
            for lane in begun:
                await lane.end()

    def _refused(self, failed: StepFailed[CutOverLane]) -> CutOverCheckResult:
        """The refusal, shown on all lanes. Raises `failed` where it is none."""
        lane, cause = failed.lane, failed.cause
        if isinstance(cause, Refused):
            reason = cause.reason
        elif isinstance(cause, TimeoutError) and failed.step.late is not None:
            reason = failed.step.late(lane)
        elif (
            isinstance(cause, EngineError)
            and not isinstance(cause, StateError)
            and not (lane.promoted or lane.stopped)
        ):
            reason = cause.in_one_line
        else:
            raise failed
        reason = f"lane {lane.title}: {reason}" if lane.title else reason
        for each in self._lanes:
            each.refuse(reason)
        return CutOverCheckResult(False, reason)

    def _passed(self, steps: Sequence[CutOverStep]) -> CutOverCheckResult:
        for lane in self._lanes:
            if steps is CUT_OVER:
                last = self.last
                waited = last if last is not None and last.lane is lane else None
                lane.note_cut_over(
                    "" if waited is None else waited.step.name,
                    0.0 if waited is None else waited.seconds,
                )
            elif steps is IN_SYNC:
                lane.note_in_sync()
            else:
                lane.note_snapshot()
        return CutOverCheckResult(True, "")

    @property
    def again(self) -> bool:
        """Whether the cut-over that was refused last is worth another try by itself."""
        return any(lane.again for lane in self._lanes)

    @property
    def fence_seconds(self) -> float | None:
        """From the fence to the open target, of the lane where that took longest; None: no fence
        stood, or a target is not open."""
        seconds = [lane.fence_seconds for lane in self._lanes]
        known = [each for each in seconds if each is not None]
        return max(known) if len(known) == len(seconds) else None


def _waited_for(
    last: Sequence[LastLane[CutOverLane]], steps: Sequence[CutOverStep]
) -> LastLane[CutOverLane] | None:
    """The lane for which the others waited most while the fence stood."""
    names = [step.name for step in steps]
    fenced = set(names[names.index(_PAUSE) : names.index(_COMMIT) + 1]) if _PAUSE in names else ()
    of_lane: dict[int, list[LastLane[CutOverLane]]] = {}
    for each in last:
        if each.step.name in fenced:
            of_lane.setdefault(id(each.lane), []).append(each)
    if not of_lane:
        return None
    most = max(of_lane.values(), key=lambda waits: sum(each.seconds for each in waits))
    longest = max(most, key=lambda each: each.seconds)
    return replace(longest, seconds=sum(each.seconds for each in most))
