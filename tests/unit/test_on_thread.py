"""Readings on a thread end before their caller goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.errors import EngineError
from engine.sources.on_thread import go_on, on_thread


def test_a_reading_that_is_cancelled_has_ended_when_that_is_raised() -> None:
    began, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        began.set()
        try:
            while True:
                go_on(stop)
                stop.wait(60)
        finally:
            ended.set()

    async def cancel() -> None:
        task = asyncio.create_task(on_thread(work))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel())


def test_what_a_reading_returns_or_raises_is_the_callers() -> None:
    def fails(stop: threading.Event) -> None:
        assert not stop.is_set()
        raise EngineError("it is no file")

    assert asyncio.run(on_thread(lambda _: 7)) == 7
    with pytest.raises(EngineError, match="it is no file"):
        asyncio.run(on_thread(fails))
