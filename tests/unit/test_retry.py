"""What is tried again, and when it is enough."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.errors import LinkError, ServerError, TransferStopped
from engine.model.backoff import Patience
from engine.model.retry import Attempts, Deadline, retry, retry_blocking

LOST = LinkError("the link went", fault="target")


class Failing:
    """Fails so many times, then gives 7."""

    def __init__(self, times: int, error: Exception = LOST) -> None:
        self.left, self.tries, self.error = times, 0, error

    def __call__(self) -> int:
        self.tries += 1
        if self.left:
            self.left -= 1
            raise self.error
        return 7

    async def later(self) -> int:
        await asyncio.sleep(0)
        return self()


def passes(error: Exception) -> bool:
    return isinstance(error, LinkError)


async def test_it_is_tried_until_it_succeeds() -> None:
    action = Failing(3)
    began = time.monotonic()
    assert await retry(action.later, Deadline(60.0, 0.01), passes) == 7
    assert action.tries == 4
    assert time.monotonic() - began >= 0.03


async def test_another_error_is_raised_at_once() -> None:
    refused = Failing(1, ServerError("no", code="ERR"))
    with pytest.raises(ServerError, match="no"):
        await retry(refused.later, Deadline(60.0, 0.01), passes)
    assert refused.tries == 1


class Thrice(Deadline):
    """Is over at the third time that it is asked, however long that takes."""

    asked = 0

    @property
    def left(self) -> float:
        self.asked += 1
        return float(self.asked < 3)


async def test_the_last_error_is_raised_when_it_is_enough() -> None:
    action = Failing(1 << 30)
    with pytest.raises(LinkError, match="the link went"):
        await retry(action.later, Thrice(60.0, 0.01), passes)
    assert action.tries == 3
    once = Failing(1)
    with pytest.raises(LinkError):
        await retry(once.later, Deadline(0.0, 0.01), passes)
    assert once.tries == 1


def test_a_thread_tries_as_well() -> None:
    action = Failing(2)
    assert retry_blocking(action, Deadline(60.0, 0.01), LinkError) == 7
    assert action.tries == 3
    lasting = Failing(1 << 30)
    with pytest.raises(LinkError):
        retry_blocking(lasting, Thrice(60.0, 0.01), LinkError)
    assert lasting.tries == 3
    with pytest.raises(ServerError):
        retry_blocking(Failing(1, ServerError("no", code="ERR")), Deadline(9.0, 0.01), LinkError)


def patience(limit: float, told: list[str]) -> Patience:
    return Patience(
        limit,
        ended="nothing came",
        next_step="it is tried again",
        fault="target",
        report=told.append,
        event=lambda _: None,
    )


async def test_a_loop_tells_and_ends_as_its_patience_says() -> None:
    told: list[str] = []
    action = Failing(2)
    async for attempt in Attempts(patience(60.0, told)):
        try:
            found = await action.later()
            break
        except LinkError as error:
            attempt.failed(error.message)
    assert found == 7
    assert [text.split(" failed")[0] for text in told] == [
        "the link went. 1 try",
        "the link went. 2 tries",
    ]
    attempt = await anext(Attempts(patience(0.0, told)))
    with pytest.raises(TransferStopped, match="nothing came for 0 s: away"):
        attempt.failed("away")


async def test_a_try_ends_in_one_of_two_ways() -> None:
    attempts = Attempts(Deadline(60.0, 0.01))
    await anext(attempts)
    with pytest.raises(AssertionError, match="neither success nor failure"):
        await anext(attempts)
