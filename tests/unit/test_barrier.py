"""The barrier's table machine: steps on several lanes, each of which may fail in any way at any
moment. What must hold then is held against the trace of what was called.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import LinkError
from engine.transfer.async_helpers import to_the_end, together
from engine.transfer.cut_over_barrier import Barrier, Refused, Step, StepFailed

STEPS = ("prepare", "pause", "drain", "check", "block writes", "promote", "let go")
DECIDES = STEPS.index("promote")
# What one call may do: pass after so many turns of the loop, fail behind them, or never end.
PASSES, REFUSES, BREAKS, BUG, HANGS = "passes", "refuses", "breaks", "bug", "hangs"


@dataclass
class Lane:
    """`plan` says what each step's action does on this lane, and after how many turns; `recording`
    the same of what is written down before it."""

    name: str
    plan: dict[str, tuple[str, int]]
    recording: dict[str, tuple[str, int]]
    trace: list[tuple[str, str, str]] = field(default_factory=list)
    promoted: bool = False

    async def do(self, what: str, step: str, plan: tuple[str, int]) -> None:
        how, turns = plan
        self.trace.append((what, step, self.name))
        for _ in range(turns):
            await asyncio.sleep(0)
        if how == HANGS:
            await asyncio.Event().wait()
        if how == REFUSES:
            raise Refused(f"{step} on {self.name}")
        if how == BREAKS:
            raise LinkError("lost", fault="source")
        if how == BUG:
            raise RuntimeError("a fault of ours")
        self.trace.append((f"{what} passed", step, self.name))


def table(until: dict[str, float]) -> list[Step[Lane]]:
    """The steps; from "pause" on each is recorded, and up to the promotion each can be undone."""

    def step(at: int, name: str) -> Step[Lane]:
        async def act(lane: Lane) -> None:
            await lane.do("act", name, lane.plan.get(name, (PASSES, 0)))
            lane.promoted = lane.promoted or name == "promote"

        async def record(lane: Lane) -> None:
            await lane.do("record", name, lane.recording.get(name, (PASSES, 0)))

        async def undo(lane: Lane) -> None:
            await asyncio.sleep(0)
            lane.trace.append(("undo", name, lane.name))

        return Step(
            name,
            act,
            record=record if at else None,
            undo=undo if at < DECIDES else None,
            until=lambda _: until.get(name),
            late=lambda lane: f"{name} was late on {lane.name}",
        )

    return [step(at, name) for at, name in enumerate(STEPS)]


PLANS = st.dictionaries(
    st.sampled_from(STEPS),
    st.tuples(st.sampled_from([PASSES, PASSES, REFUSES, BREAKS, BUG, HANGS]), st.integers(0, 3)),
    max_size=3,
)


def checked(lanes: list[Lane], trace: list[tuple[str, str, str]]) -> None:
    """What must hold of every run, however it ended."""
    names = [lane.name for lane in lanes]
    passed = {(step, name) for what, step, name in trace if what == "act passed"}
    begun = [(step, name) for what, step, name in trace if what == "act"]
    undone = [(step, name) for what, step, name in trace if what == "undo"]
    # No step begins before the one before it has passed on all lanes.
    for before, after in itertools.pairwise(STEPS):
        if any((after, name) in begun for name in names):
            assert all((before, name) in passed for name in names)
    # What an action leaves is written down before it.
    for at, (what, step, name) in enumerate(trace):
        if what == "act" and step != STEPS[0]:
            assert ("record passed", step, name) in trace[:at]
    if any(lane.promoted for lane in lanes):
        assert undone == []
        return
    # Everything that was begun is undone, once, and the last step first.
    can_be = [each for each in begun if STEPS.index(each[0]) < DECIDES]
    assert sorted(undone) == sorted(can_be)
    of_steps = [STEPS.index(step) for step, _ in undone]
    assert of_steps == sorted(of_steps, reverse=True)
    # Nothing is done any more behind the first undoing.
    if undone:
        first = next(at for at, each in enumerate(trace) if each[0] == "undo")
        assert all(what == "undo" for what, _, _ in trace[first:])


async def run(
    plans: list[dict[str, tuple[str, int]]],
    recordings: list[dict[str, tuple[str, int]]],
    cancel_after: int | None,
    late: bool,
) -> tuple[list[Lane], list[tuple[str, str, str]], BaseException | None]:
    """A run on one lane for each plan; cancelled after some turns; what it raised."""
    trace: list[tuple[str, str, str]] = []
    lanes = [
        Lane(f"lane {at}", plan, recording, trace)
        for at, (plan, recording) in enumerate(zip(plans, recordings, strict=True))
    ]
    # A time that is over when its step begins: what then does not end at once is late.
    until = dict.fromkeys(STEPS[:DECIDES], 0.0) if late else {}
    barrier = Barrier(
        table(until), decided=lambda lane: lane.promoted, name_of=lambda lane: lane.name
    )
    task = asyncio.create_task(barrier.run(lanes))
    for _ in range(10_000 if cancel_after is None else cancel_after):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    (raised,) = await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a step goes on"
    return lanes, trace, raised


@given(
    st.lists(st.tuples(PLANS, PLANS), min_size=1, max_size=4),
    st.none() | st.integers(0, 40),
    st.booleans(),
)
def test_all_or_nothing(
    plans: list[tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]],
    cancel_after: int | None,
    late: bool,
) -> None:
    """Whatever refuses, breaks, hangs or is cancelled at whatever step: all is undone in reverse
    order, once, and nothing is promoted unless all steps of all lanes have passed."""
    acts, records = [each[0] for each in plans], [each[1] for each in plans]
    lanes, trace, raised = asyncio.run(run(acts, records, cancel_after, late))
    checked(lanes, trace)
    if raised is None:
        assert all(("act passed", STEPS[-1], lane.name) in trace for lane in lanes)
    if isinstance(raised, StepFailed):
        assert raised.lane in lanes
        assert isinstance(raised.cause, Refused | LinkError | RuntimeError | TimeoutError)
    else:
        assert raised is None or isinstance(raised, asyncio.CancelledError)


@given(st.integers(1, 4), st.sampled_from(STEPS), st.data())
def test_it_says_where_it_failed(lanes: int, step: str, data: st.DataObject) -> None:
    """The error names the step, the lane and the cause."""
    bad = data.draw(st.integers(0, lanes - 1))
    plans: list[dict[str, tuple[str, int]]] = [{} for _ in range(lanes)]
    plans[bad] = {step: (REFUSES, data.draw(st.integers(0, 3)))}
    all_lanes, _, raised = asyncio.run(run(plans, [{}] * lanes, None, False))
    assert isinstance(raised, StepFailed)
    assert (raised.step.name, raised.lane.name) == (step, f"lane {bad}")
    assert str(raised.cause) == f"{step} on lane {bad}"
    if STEPS.index(step) < DECIDES:
        assert not any(lane.promoted for lane in all_lanes)


def test_steps_of_all_lanes_run_at_once() -> None:
    """A step takes as long as its slowest lane, not as all of them together: each waits here for
    the others to be at the same step."""

    async def go() -> None:
        lanes = list(range(5))
        met: dict[str, asyncio.Barrier] = {name: asyncio.Barrier(5) for name in STEPS}

        def step(name: str) -> Step[int]:
            async def act(_: int) -> None:
                await met[name].wait()

            return Step(name, act)

        async with asyncio.timeout(30):
            await Barrier([step(name) for name in STEPS], decided=lambda _: False).run(lanes)

    asyncio.run(go())


def test_an_undo_that_fails_keeps_no_other_from_being_done() -> None:
    """A fault of ours in one undo is raised behind the others."""
    done: list[str] = []

    async def passes(_: str) -> None:
        pass

    async def refuses(_: str) -> None:
        raise Refused("no")

    def undoing(name: str) -> Any:
        async def undo(lane: str) -> None:
            done.append(f"{name} {lane}")
            if (name, lane) == ("second", "b"):
                raise RuntimeError("a fault of ours")

        return undo

    steps = [
        Step("first", passes, undo=undoing("first")),
        Step("second", passes, undo=undoing("second")),
        Step("third", refuses),
    ]
    with pytest.raises(RuntimeError, match="a fault of ours"):
        asyncio.run(Barrier(steps, decided=lambda _: False).run(["a", "b"]))
    assert done == ["second a", "second b", "first a", "first b"]


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_a_cancellation_that_comes_too_late(lanes: int) -> None:
    """Lanes that go to their end behind a cancellation have passed the step."""

    async def go() -> list[int]:
        ended: list[int] = []
        began = asyncio.Event()

        async def work(lane: int) -> None:
            began.set()
            for _ in range(10):
                await asyncio.sleep(0)
            ended.append(lane)

        task = asyncio.create_task(together([to_the_end(work(lane)) for lane in range(lanes)]))
        await began.wait()
        task.cancel()
        await task
        assert not task.cancelling()
        return sorted(ended)

    assert asyncio.run(go()) == list(range(lanes))


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_a_cancellation_ends_all_lanes(lanes: int) -> None:
    async def go() -> None:
        works = [asyncio.Event().wait() for _ in range(lanes)]
        task = asyncio.ensure_future(together(works))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())
