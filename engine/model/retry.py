"""The one way to try again: what failed is tried again behind a pause, for so long and no longer.

    async for attempt in Attempts(patience):
        try:
            return await dial()
        except LinkError as error:
            attempt.failed(error.message, remedy=error.remedy)

`patience` is the policy: how long the pauses are, when it is enough, and what is told of it
meanwhile (`model.backoff.Patience`). What the loop catches is what passes by itself. `retry` is
that loop around one call; `retry_blocking` is for threads, with pauses of one length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, Self, TypeVar

from engine.errors import EngineError

T = TypeVar("T")


class Policy(Protocol):
    """How long to wait, and when it is enough."""

    def failed(self, reason: str, *, remedy: str = "", event: str = "") -> float:
        """A try failed; the seconds to wait before the next one. Raises when it is enough."""
        ...


class Attempts:
    """Tries, one after another, until the loop is left: `failed` is to be called in each that is
    not the last."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._delay: float | None = 0.0

    def failed(self, reason: str, *, remedy: str = "", event: str = "") -> None:
        """This try failed, as `Policy.failed` has it, which may raise: the next one comes behind a
        pause."""
        self._delay = self._policy.failed(reason, remedy=remedy, event=event)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        delay, self._delay = self._delay, None
        assert delay is not None, "a try ended with neither success nor failure"
        if delay:
            await asyncio.sleep(delay)
        return self


class Deadline:
    """A policy: pauses of `pause` seconds, until `seconds` are over."""

    def __init__(self, seconds: float, pause: float) -> None:
        self._until = time.monotonic() + seconds
        self._pause = pause

    @property
    def left(self) -> float:
        """Seconds; 0 where it is enough."""
        return max(self._until - time.monotonic(), 0.0)

    def failed(self, reason: str, *, remedy: str = "", event: str = "") -> float:
        """See `Policy`. What uses it raises the error of the last try where nothing is `left`."""
        return self._pause


async def retry(
    action: Callable[[], Awaitable[T]],
    deadline: Deadline,
    passes: Callable[[EngineError], bool],
) -> T:
    """The result of `action`, which is called again behind an error that `passes`, until
    `deadline`; then its error is raised, as any other one at once."""
    async for attempt in Attempts(deadline):
        try:
            return await action()
        except EngineError as error:
            if not (deadline.left and passes(error)):
                raise
            attempt.failed(error.message)
    raise AssertionError("attempts ended with neither a result nor an error")


def retry_blocking(action: Callable[[], T], deadline: Deadline, passes: type[EngineError]) -> T:
    """As `retry`, on a thread of its own."""
    while True:
        try:
            return action()
        except passes as error:
            if not deadline.left:
                raise
            pause = deadline.failed(error.message)
        time.sleep(pause)
