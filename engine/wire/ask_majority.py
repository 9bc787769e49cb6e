"""Several servers are asked the same at once, and what most of them say is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.errors import EngineError

T = TypeVar("T")

# How long the others may take once most have answered.
_OTHERS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Heard(Generic[T]):
    """What those that answered said, why others failed, and how many were silent."""

    found: list[T]
    failed: list[EngineError]
    silent: int


async def ask_most(questions: Sequence[Awaitable[T | EngineError]], timeout: float) -> Heard[T]:
    """Wait until all have answered, or `timeout` seconds are over; once most have, the others get
    a moment. A question gives its failure as a value."""
    asked = [asyncio.ensure_future(each) for each in questions]
    left = set(asked)
    found: list[T] = []
    failed: list[EngineError] = []
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout
    try:
        while left and (rest := ends - loop.time()) > 0:
            done, left = await asyncio.wait(left, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                answer = task.result()
                if isinstance(answer, EngineError):
                    failed.append(answer)
                else:
                    found.append(answer)
            if 2 * len(found) > len(asked):
                ends = min(ends, loop.time() + _OTHERS_SECONDS)
    finally:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return Heard(found, failed, len(asked) - len(found) - len(failed))
