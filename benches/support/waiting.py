"""Wait for a thing, never for a time.

    wait_for(lambda: target.client().get("key"), "the last write")
    await soon(lambda: work.progress.can_complete, "an open gate")

What is awaited comes, or does not come at all: a busy machine is not a failure, and the bound is
far beyond what anything takes. What does not come raises `AssertionError`, with what was awaited
and how things stood at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 60.0


def wait_for(
    condition: Callable[[], T],
    what: str,
    seconds: float = SECONDS,
    *,
    every: float = 0.02,
    told: Callable[[], object] | None = None,
) -> T:
    """Wait until `condition` is true, and return what it returned.

    Args:
        condition: asked again every `every` seconds. What it raises ends the waiting.
        what: what is awaited, for the failure.
        seconds: the bound.
        told: how things stand, for the failure; without it what `condition` returned last.

    Raises:
        AssertionError: it was not true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_failure(what, seconds, found, told))
        time.sleep(every)
    return found


async def soon(
    condition: Callable[[], T],
    what: str,
    seconds: float = SECONDS,
    *,
    every: float = 0.002,
    told: Callable[[], object] | None = None,
) -> T:
    """`wait_for` on an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_failure(what, seconds, found, told))
        await asyncio.sleep(every)
    return found


def _failure(what: str, seconds: float, found: object, told: Callable[[], object] | None) -> str:
    last = told() if told is not None else found
    return f"not within {seconds:g} s: {what}; the last state: {last}"
