"""Long readings of files, on a thread beside the event loop, that end where they are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from engine.errors import EngineError

T = TypeVar("T")


async def on_thread(work: Callable[[threading.Event], T]) -> T:
    """Run `work` on a thread. `work` gets an event that is set where the caller is cancelled, calls
    `go_on` with it between two portions, and has ended when this raises: the caller closes the
    files then. Raises what `work` raises."""
    stop = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


def go_on(stop: threading.Event) -> None:
    """Raises `EngineError` once `stop` is set."""
    if stop.is_set():
        raise EngineError("the reading of the file was stopped")
