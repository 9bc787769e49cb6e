"""A barrier over lanes: a table of steps, each taken on all lanes at once, or all of it undone.

    step 1 ─▶ step 2 ─▶ … ─▶ the deciding step ─▶ what follows        it is decided
       └─────────┴───────────┴──▶ undo, the last step first           everything is as it was

What is true of each run:

- A step begins on every lane at once, and only when the step before it has passed on all of them.
  So it takes as long as its slowest lane, however many lanes there are.
- What a step leaves after a crash is in the state before the step is taken: its `record` has ended
  on a lane before its `act` begins there.
- A step that fails on one lane (it refuses, an end is lost, its time is over) is ended on the
  others, and they are waited for. Then each step that had begun on a lane is undone there, the last
  one first, each one once; a step that failed half-way is undone like one that passed.
- Once something is decided on any lane (`decided`), or may be, nothing is undone: what is left to
  do is done by what comes after, here or in the next engine.
- The same holds of a cancellation; one that comes during the undoing waits for its end.

This module knows nothing of servers: the table and the lanes are handed in. The cut-over's tables
are in `transfer.cut_over`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine import logs
from engine.transfer.async_helpers import together

_log = logs.logger(__name__)

L = TypeVar("L")


class Refused(Exception):
    """A step found a reason against the cut-over; nothing is broken."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StepFailed(Exception, Generic[L]):
    """The run ended at `step`, on `lane`, by `cause`, and what could be undone was.

    `cause` is what the step raised; `TimeoutError` where its time was over.
    """

    def __init__(self, step: Step[L], lane: L, cause: Exception) -> None:
        super().__init__(f"{step.name}: {cause}")
        self.step, self.lane, self.cause = step, lane, cause


@dataclass(frozen=True, slots=True)
class Step(Generic[L]):
    """A row of the table.

    `act` takes the step on a lane, and `record` writes down before it what a crash would leave.
    `undo` leads a lane back to where it was before; it is called whether `act` passed or not, and
    raises nothing that is to be expected. `until`: when the step has to be through on a lane, by
    the loop's clock; None: it has a bound of its own. `late` says why the run is refused when that
    time was over.
    """

    name: str
    act: Callable[[L], Awaitable[None]]
    record: Callable[[L], Awaitable[None]] | None = None
    undo: Callable[[L], Awaitable[None]] | None = None
    until: Callable[[L], float | None] = lambda _: None
    late: Callable[[L], str] | None = None


@dataclass(frozen=True, slots=True)
class LastLane(Generic[L]):
    """The lane that was last to pass a step, and for how many seconds the others waited for it."""

    step: Step[L]
    lane: L
    seconds: float


class Barrier(Generic[L]):
    """Takes the steps of a table. `decided` tells whether there is no way back on a lane."""

    def __init__(
        self,
        steps: Sequence[Step[L]],
        *,
        decided: Callable[[L], bool],
        name_of: Callable[[L], str] = lambda _: "",
    ) -> None:
        self._steps = steps
        self._decided = decided
        self._name_of = name_of
        self.last: list[LastLane[L]] = []
        """Of each step that was passed on several lanes, in their order."""

    async def run(self, lanes: Sequence[L]) -> None:
        """Take every step on all lanes. Raises `StepFailed`, behind which all is undone or decided;
        what is no `Exception` (a cancellation) as it is."""
        # What has begun, in its order.
        begun: list[tuple[Step[L], L]] = []
        try:
            for step in self._steps:
                await self._take(step, lanes, begun)
        except BaseException:
            if not any(map(self._decided, lanes)):
                await self._undone(begun)
            raise

    async def _take(
        self, step: Step[L], lanes: Sequence[L], begun: list[tuple[Step[L], L]]
    ) -> None:
        left = list(lanes)
        loop = asyncio.get_running_loop()
        before = loop.time()

        async def on(lane: L) -> None:
            nonlocal before
            try:
                with logs.of_shard(self._name_of(lane)):
                    if step.record is not None:
                        await step.record(lane)
                    begun.append((step, lane))
                    await step.act(lane)
            except Exception as cause:
                raise StepFailed(step, lane, cause) from cause
            left.remove(lane)
            if left or len(lanes) == 1:
                before = loop.time()
                return
            seconds = loop.time() - before
            self.last.append(LastLane(step, lane, seconds))
            with logs.of_shard(self._name_of(lane)):
                extra = {"seconds": round(seconds, 3)}
                _log.info("Cut-over: %s: this shard was last", step.name, extra=extra)

        bounds = [at for at in map(step.until, lanes) if at is not None]
        try:
            async with asyncio.timeout_at(min(bounds, default=None)):
                await together([on(lane) for lane in lanes])
        except TimeoutError as late:
            raise StepFailed(step, left[0] if left else lanes[0], late) from late

    async def _undone(self, begun: list[tuple[Step[L], L]]) -> None:
        """Undo it to the end. A cancellation meanwhile is raised behind that."""
        undoing = asyncio.ensure_future(self._undo(begun))
        cancelled = False
        while not undoing.done():
            try:
                await asyncio.shield(undoing)
            except asyncio.CancelledError:
                cancelled = True
        undoing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _undo(self, begun: list[tuple[Step[L], L]]) -> None:
        """Undo what has begun: step by step, the last one first, on all its lanes at once."""
        failed: BaseException | None = None
        for step in reversed(self._steps):
            undo = step.undo
            if undo is None:
                continue
            works = [undo(lane) for each, lane in begun if each is step]
            for found in await asyncio.gather(*works, return_exceptions=True):
                failed = failed or found
        if failed is not None:
            raise failed
