"""Awaiting with something else beside it, or to the end whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
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
    lost; what was to stop would go on for ever. It is cancelled again if it goes on: a library
    below it may lose a cancellation, and a task that goes round for ever would never end.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)
    if not task.cancelled():
        task.exception()


async def all_cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """The same of several, all at once. A cancellation of our own meanwhile is raised behind the
    end of all: none of them is left to itself."""
    if await _end(tasks):
        raise asyncio.CancelledError


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


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them at once, to their end; what they return.

    The first one that fails ends the others, which are waited for, and is raised. So is a
    cancellation; but if all go on to their end though they are cancelled, because it comes too late
    (`to_the_end`), so does this.
    """
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:
        cancelled = any(not task.done() for task in tasks)
        await _end(tasks)
        current = asyncio.current_task()
        if current is None or not cancelled or any(map(_ended_badly, tasks)):
            raise
        current.uncancel()
    failed = next((task for task in tasks if task.done() and _ended_badly(task)), None)
    if await _end(tasks):
        raise asyncio.CancelledError
    return [task.result() for task in ([failed] if failed is not None else tasks)]


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> bool:
    """Cancel those that go on, and wait for the end of all; whether we were cancelled meanwhile."""
    interrupted = False
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=_AGAIN_SECONDS)
        except asyncio.CancelledError:
            interrupted = True
    for task in tasks:
        if not task.cancelled():
            # Looked at: nothing else is going to, where another one failed before.
            task.exception()
    return interrupted


def _ended_badly(task: asyncio.Future[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
