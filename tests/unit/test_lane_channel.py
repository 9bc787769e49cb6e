"""What a migration and the processes of its lanes say to each other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.errors import ServerError
from engine.targets.applier import PositionMoved
from engine.transfer.cut_over_barrier import Refused
from engine.transfer.lane_channel import Channel, WorkerLost


class Pair:
    """Both ends in one loop: `here` asks `there`, which `heard` notices."""

    def __init__(self, **serves: Callable[..., Awaitable[Any]]) -> None:
        self.heard: list[Any] = []
        self.lost = asyncio.Event()
        self.here = Channel({}, {}, self.lost.set)
        self.there = Channel(serves, {"note": self.heard.append}, lambda: None)

    async def __aenter__(self) -> Pair:
        self.ends = socket.socketpair()
        await self.here.open(self.ends[0])
        await self.there.open(self.ends[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in (self.there, self.here):
            channel._writer.close()
            await channel.closed()


async def _echo(*arguments: Any) -> Any:
    return arguments


def test_answers_and_notices_in_their_order() -> None:
    async def go() -> None:
        async with Pair(echo=_echo) as pair:
            large = b"x" * (3 << 20)
            for n in range(10):
                pair.here.notify("note", n)
            assert await pair.here.request("echo", 1, large) == (1, large)
            assert pair.heard == list(range(10))

    asyncio.run(go())


@pytest.mark.parametrize(
    "error",
    [
        ServerError("no", code="MOVED", remedy="ask", fault="target"),
        PositionMoved(b"position", written_over=True),
        Refused("a reason"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_arrive_as_they_are(error: Exception) -> None:
    async def fail() -> None:
        raise error

    async def go() -> None:
        async with Pair(fail=fail) as pair:
            with pytest.raises(type(error)) as found:
                await pair.here.request("fail")
            members = {name: getattr(found.value, name) for name in vars(error)}
            assert (found.value.args, members) == (error.args, vars(error))

    asyncio.run(go())


def test_an_error_that_cannot_be_told() -> None:
    class Local(Exception):
        pass

    async def fail() -> None:
        raise Local("of a bug")

    async def go() -> None:
        async with Pair(fail=fail) as pair:
            with pytest.raises(Exception, match="Local: of a bug"):
                await pair.here.request("fail")

    asyncio.run(go())


def test_a_cancellation_is_waited_for() -> None:
    """Also one that comes before the other end has begun."""
    ended: list[str] = []

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("long")

    async def go() -> None:
        async with Pair(long=long) as pair:
            for wait in (0.05, 0.0):
                asked = asyncio.create_task(pair.here.request("long"))
                await asyncio.sleep(wait)
                asked.cancel()
                await asyncio.wait({asked}, timeout=5)
                assert asked.cancelled()
            await pair.there.served()
        assert ended in (["long"], ["long", "long"])

    asyncio.run(go())


def test_what_is_over_is_not_cancelled() -> None:
    """An answer that is under way when its asker is cancelled counts."""
    going = asyncio.Event()

    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await going.wait()
        return "done"

    async def go() -> None:
        async with Pair(stubborn=stubborn) as pair:
            asked = asyncio.create_task(pair.here.request("stubborn"))
            await asyncio.sleep(0.05)
            asked.cancel()
            assert await asked == "done"

    asyncio.run(go())


def test_an_end_that_is_gone() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def go() -> None:
        async with Pair(never=never) as pair:
            asked = asyncio.create_task(pair.here.request("never"))
            pair.here.notify("note", "last")
            await asyncio.sleep(0.05)
            pair.there._writer.close()
            with pytest.raises(WorkerLost):
                await asked
            await pair.lost.wait()
            with pytest.raises(WorkerLost):
                await pair.here.request("never")
            pair.here.notify("note", "dropped")
            assert pair.heard == ["last"]

    asyncio.run(go())
