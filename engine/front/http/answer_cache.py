"""Answers that many ask for at the same moment are looked up once.

A runbook polls, and a team has many. What was read from the state a moment ago is good enough for
the next one, unless something was changed through this server meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

AGE_SECONDS = 0.1
"""How old an answer may be."""
_MOST = 256

Answer = dict[str, Any]


class AnswerCache:
    """Answers by what was asked. They are shared, and never changed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, asyncio.Task[Answer]]] = {}

    async def get(self, asked: Hashable, look: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of `look`, or of one that began less than `AGE_SECONDS` ago, be it an answer
        or an error."""
        now = time.monotonic()
        at, task = self._known.get(asked, (0.0, None))
        if task is None or now - at >= AGE_SECONDS:
            self._drop_old(now)
            task = asyncio.ensure_future(_run(look))
            task.add_done_callback(_seen)
            self._known.pop(asked, None)
            self._known[asked] = now, task
        # A caller that gives up does not take it from the others.
        return await asyncio.shield(task)

    def _drop_old(self, now: float) -> None:
        """Keep no answer without a reader: a client that polls by time never asks the same
        again."""
        if len(self._known) >= _MOST:
            self._known.clear()
        for asked, (at, _) in list(self._known.items()):
            if now - at < AGE_SECONDS:
                break  # the others are newer
            del self._known[asked]

    def forget(self) -> None:
        """Something has changed."""
        self._known.clear()


async def _run(look: Callable[[], Awaitable[Answer]]) -> Answer:
    return await look()


def _seen(task: asyncio.Task[Answer]) -> None:
    if not task.cancelled():
        task.exception()  # told to the callers that still wait
