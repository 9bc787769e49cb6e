"""Awaiting with something else beside it, or to the end whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from engine.errors import TransferFailed

T = TypeVar("T")

# A task that was cancelled and is still there after so long is cancelled again. What ends by itself
# (a last word to a server) has had its time by then.
_AGAIN_SECONDS = 5.0


async def beside(work: Awaitable[T], pump: asyncio.Task[None]) -> T:
    """Wait for `work`, unless the pump that it depends on ends first."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, pump}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            pump.result()
            raise TransferFailed("the follower ended")
        return task.result()
    finally:
        task.cancel()


async def cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end, whatever that is.

    Not by awaiting the task: a cancellation of our own meanwhile would be taken for the task's, and
    lost; who was to stop would go on for ever. It is cancelled again if it goes on: a library below
    it may lose a cancellation, and a task that goes round for ever would never end.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)
    if not task.cancelled():
        task.exception()


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """What must not be half done: a cancellation meanwhile comes too late."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task.cancelled() or current is None:
                raise
            current.uncancel()
    task.result()
