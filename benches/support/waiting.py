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
# What is long in coming, and what it takes long to ask for, is asked for more seldom: a 20th of the
# time that it has taken so far, or twice what the question took, is between two of them.
_SELDOM_SECONDS = 0.025
_OFTEN_SECONDS = 0.005


def wait_for(
    condition: Callable[[], T],
    what: str,
    seconds: float = SECONDS,
    *,
    every: float | None = None,
    told: Callable[[], object] | None = None,
) -> T:
    """Wait until `condition` is true, and return what it returned.

    Args:
        condition: asked again and again. What it raises ends the waiting.
        what: what is awaited, for the failure.
        seconds: the bound.
        every: from one question to the next, in seconds; else often at first, and later on seldom.
        told: how things stand, for the failure; without it what `condition` returned last.

    Raises:
        AssertionError: it was not true within `seconds`.
    """
    began = asked = time.monotonic()
    while not (found := condition()):
        now = time.monotonic()
        if now > began + seconds:
            raise AssertionError(_failure(what, seconds, found, told))
        time.sleep(_pause(every, now - began, now - asked))
        asked = time.monotonic()
    return found


async def soon(
    condition: Callable[[], T],
    what: str,
    seconds: float = SECONDS,
    *,
    every: float | None = None,
    told: Callable[[], object] | None = None,
) -> T:
    """`wait_for` on an event loop, which goes on meanwhile."""
    began = asked = time.monotonic()
    while not (found := condition()):
        now = time.monotonic()
        if now > began + seconds:
            raise AssertionError(_failure(what, seconds, found, told))
        await asyncio.sleep(_pause(every, now - began, now - asked))
        asked = time.monotonic()
    return found


def _pause(every: float | None, waited: float, took: float) -> float:
    """Seconds until it is asked again: it was awaited for so long, and asking took so long."""
    if every is not None:
        return every
    return min(max(_OFTEN_SECONDS, waited / 20, 2 * took), _SELDOM_SECONDS)


def _failure(what: str, seconds: float, found: object, told: Callable[[], object] | None) -> str:
    last = told() if told is not None else found
    return f"not within {seconds:g} s: {what}; the last state: {last}"
