"""A task that is ended, by one that is to stop itself in that moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.sources.spool import CHUNK_BYTES, Spool
from engine.transfer import async_helpers
from engine.transfer.async_helpers import all_cancelled, cancelled


async def takes_its_time(end: type[BaseException] | None) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)
        if end is not None:
            raise end from None


@pytest.mark.parametrize("end", [None, EngineError, asyncio.CancelledError])
async def test_whatever_the_task_s_end_is(end: type[BaseException] | None) -> None:
    task = asyncio.create_task(takes_its_time(end))
    await asyncio.sleep(0)
    await cancelled(task)
    assert task.done()


async def test_a_cancellation_that_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_helpers, "_AGAIN_SECONDS", 0.02)
    lost = 0

    async def goes_round() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    task = asyncio.create_task(goes_round())
    await asyncio.sleep(0)
    await cancelled(task)
    assert task.cancelled()
    assert lost == 2


async def test_several_of_which_none_is_left_to_itself() -> None:
    """Who ends them is stopped once more before the first one is over."""
    tasks = [asyncio.create_task(takes_its_time(None)) for _ in range(2)]
    await asyncio.sleep(0)
    ender = asyncio.create_task(all_cancelled(tasks))
    await asyncio.sleep(0.01)
    ender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ender
    assert all(task.done() for task in tasks)


@pytest.mark.parametrize("end", [None, EngineError, asyncio.CancelledError])
async def test_a_stop_meanwhile_is_not_lost(end: type[BaseException] | None) -> None:
    task = asyncio.create_task(takes_its_time(end))
    await asyncio.sleep(0)
    ender = asyncio.create_task(cancelled(task))
    await asyncio.sleep(0.01)
    ender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ender
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def test_a_stop_while_the_spool_is_closed_is_not_lost(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), 1 << 30, lambda: None, memory=4 * CHUNK_BYTES)
    for _ in range(16):
        spool.append(bytes(CHUNK_BYTES))
    closing = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await spool.close()
    assert spool.size == 0
