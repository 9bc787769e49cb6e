"""A followed source's socket rests behind a read; and what a connection does about a rest."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EngineError, LinkError
from engine.model.endpoint import Endpoint
from engine.sources.read_coalescing import MOST_SECONDS, rest_after
from engine.wire.connection import Connection
from engine.wire.event_loop import run
from engine.wire.line_mode import LineReader

SET_BYTES = 140
ROUND_SECONDS = 0.0004


@given(
    st.integers(0, 1 << 30),
    st.booleans(),
    st.booleans(),
    st.integers(1, 100),
    st.floats(0, 1e6),
)
def test_a_rest_is_bounded_and_left_out_where_it_would_harm(
    nbytes: int, filled: bool, hurried: bool, lanes: int, now: float
) -> None:
    rest = rest_after(nbytes, filled=filled, hurried=hurried, lanes=lanes, now=now)
    assert 0 <= rest <= MOST_SECONDS * min(lanes, 4)
    # What comes in the longest rest has room in a receive buffer that has not grown yet.
    if nbytes >= 32_768:
        assert rest <= MOST_SECONDS
    # A receive buffer that has not grown yet holds less than 64 KiB.
    if filled or hurried or nbytes >= 65_483:
        assert rest == 0


@given(st.integers(2, 100), st.integers(0, 10**9), st.integers(0, 15))
def test_lanes_that_share_a_process_wake_up_together(lanes: int, now: int, later: int) -> None:
    """The rests of two that read a moment apart end with a beat, most often the same one."""
    beats = 8 if lanes == 2 else 10 if lanes <= 6 else 16
    ends = []
    for at in (now, now + later):
        rest = rest_after(3000, filled=False, hurried=False, lanes=lanes, now=at / 1000)
        assert rest >= 0.001
        ends.append(round(at + 1000 * rest))
    assert [end % beats for end in ends] == [0, 0]
    assert (ends[0] == ends[1]) == (now // beats == (now + later) // beats)


def reads(rate: float, seconds: float) -> list[float]:
    """When a socket is read to which `rate` SETs a second come, at random; each has its wait.

    Returns the waits in seconds: from a command's arrival to the read that takes it.
    """
    source = random.Random(7)
    arrivals: list[float] = []
    at = 0.0
    while at < seconds:
        at += source.expovariate(rate)
        arrivals.append(at)
    waits: list[float] = []
    rounds = 0
    free = 0.0
    taken = 0
    while taken < len(arrivals):
        now = max(free, arrivals[taken])
        here = taken
        while here < len(arrivals) and arrivals[here] <= now:
            here += 1
        waits += [now - came for came in arrivals[taken:here]]
        rest = rest_after((here - taken) * SET_BYTES, filled=False, hurried=False)
        free = now + max(rest, ROUND_SECONDS)
        taken = here
        rounds += 1
    waits.sort()
    return [rounds / seconds, waits[len(waits) // 2], waits[-1]]


def test_a_lone_command_is_read_at_once_and_a_busy_stream_in_few_portions() -> None:
    rounds, half, most = reads(20, 50)
    assert half == 0
    assert most <= 2 * SET_BYTES * 10e-6
    for rate in (5_000, 20_000, 100_000):
        rounds, half, most = reads(rate, 2)
        assert rounds <= 1.05 / MOST_SECONDS
        assert half <= 0.0025
        assert most <= MOST_SECONDS


# --- The connection's rest ---


class Endpoints:
    """A connection in data mode over a socket pair; `far` is the server's end."""

    def __init__(self, far: socket.socket, connection: Connection) -> None:
        self.far = far
        self.connection = connection
        self.reader = LineReader()
        self.rest_again = 0.0
        self.reads: list[int] = []
        self.lost: list[EngineError] = []
        connection.take_over(self.reader, self._on_ready, self.lost.append)

    def _on_ready(self, _: int) -> None:
        self.reads.append(self.connection.last_read)
        if self.rest_again:
            self.connection.rest(self.rest_again)

    async def until(self, there: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not there():  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[Endpoints]:
    near, far = socket.socketpair()
    with far:
        connection = Connection(Endpoint.parse("redis://127.0.0.1:6379"), "source")
        await asyncio.get_running_loop().create_connection(lambda: connection, sock=near)
        try:
            yield Endpoints(far, connection)
        finally:
            connection.close()


async def rests_and_reads_once(pair: Endpoints) -> None:
    pair.connection.rest(0.05)
    for _ in range(5):
        pair.far.sendall(b"+OK\r\n")
        await asyncio.sleep(0.002)
    assert pair.reads == []
    await pair.until(lambda: bool(pair.reads))
    assert pair.reads == [25]
    assert not pair.connection.filled
    # Behind the rest everything is as it was before it.
    pair.far.sendall(b"+OK\r\n")
    await pair.until(lambda: len(pair.reads) == 2)


async def rests_again_and_again(pair: Endpoints) -> None:
    pair.rest_again = 0.003
    for n in range(1, 40):
        pair.far.sendall(b"+OK\r\n")
        await pair.until(lambda n=n: sum(pair.reads) == 5 * n)  # type: ignore[misc]
    assert pair.lost == []


async def looks_before_the_rest_is_over(pair: Endpoints) -> None:
    pair.connection.rest(30)
    pair.connection.look()
    assert pair.reads == []
    pair.far.sendall(b"+OK\r\n")
    await pair.until(lambda: pair.reads == [5])
    pair.connection.rest(30)
    pair.far.sendall(b"+OK\r\n")
    pair.connection.look()
    assert pair.reads == [5, 5]


async def stays_paused(pair: Endpoints) -> None:
    pair.connection.rest(0.005)
    pair.connection.pause_reading()
    pair.far.sendall(b"+OK\r\n")
    await asyncio.sleep(0.03)
    assert pair.reads == []
    pair.connection.resume_reading()
    await pair.until(lambda: pair.reads == [5])


async def is_told_of_the_end(pair: Endpoints) -> None:
    pair.connection.rest(0.005)
    pair.far.sendall(b"+OK\r\n")
    pair.far.close()
    await pair.until(lambda: bool(pair.lost))
    assert pair.reads == [5]
    assert isinstance(pair.lost[0], LinkError)


async def is_closed_in_its_rest(pair: Endpoints) -> None:
    pair.far.sendall(b"+OK\r\n")
    pair.connection.rest(0.005)
    pair.connection.close()
    await asyncio.sleep(0.03)
    assert pair.reads == []
    assert not pair.connection.resting


async def reads_on_when_a_read_filled_its_room(pair: Endpoints) -> None:
    pair.far.setblocking(False)
    line = b"+" + b"x" * 1000 + b"\r\n"
    sent = 0
    pair.connection.rest(0.02)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += pair.far.send(line)

    def take(_: int) -> None:
        pair.reads.append(pair.connection.last_read)
        pair.reader.rest()

    pair.connection.take_over(pair.reader, take, pair.lost.append)
    await pair.until(lambda: sum(pair.reads) == sent)
    assert sent > 64 << 10
    assert pair.reads[0] == 64 << 10


async def writes_in_order_whatever_the_kernel_takes(pair: Endpoints) -> None:
    """Past the transport as long as that keeps nothing."""
    blobs = [bytes([n % 251]) * (1 + n * n * 15) for n in range(120)]
    got = bytearray()
    pair.far.setblocking(False)
    for blob in blobs:
        pair.connection.write(blob)
        with contextlib.suppress(BlockingIOError):
            got += pair.far.recv(100_000)
    async with asyncio.timeout(20):
        while len(got) < sum(map(len, blobs)):
            with contextlib.suppress(BlockingIOError):
                got += pair.far.recv(1 << 20)
            await asyncio.sleep(0)
    assert bytes(got) == b"".join(blobs)


async def rests_beside_another(pair: Endpoints) -> None:
    """Until that one's rest is over, however it ends."""
    async with ends() as other:
        ways: list[Callable[[], object]] = [
            other.connection.stop_resting,
            other.connection.look,
            lambda: None,
            lambda: other.far.sendall(b"+OK\r\n"),
            other.connection.close,
        ]
        for n, end in enumerate(ways):
            pair.connection.write(b"x", other.connection)
            assert not pair.connection.resting
            brief = n in (2, 3)
            other.connection.rest(0.02 if brief else 30)
            pair.connection.write(b"x", other.connection)
            assert pair.connection.resting
            pair.far.sendall(b"+OK\r\n")
            await asyncio.sleep(0.002)
            assert brief or len(pair.reads) == n
            end()
            await pair.until(lambda n=n: len(pair.reads) == n + 1)  # type: ignore[misc]
            assert not pair.connection.resting
            assert pair.connection.listening


async def is_read_by_hand_while_it_rests(pair: Endpoints) -> None:
    """`on_ready` hears nothing of that."""
    pair.connection.rest(30)
    assert pair.connection.take() == -1
    pair.far.sendall(b"+OK\r\n")
    async with asyncio.timeout(5):
        while pair.connection.take() < 0:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert (pair.reads, pair.connection.last_read) == ([], 5)
    assert pair.connection.resting
    pair.connection.stop_resting()
    pair.far.sendall(b"+OK\r\n")
    await pair.until(lambda: pair.reads == [5])


async def is_lost_by_a_fault_of_the_engine(pair: Endpoints) -> None:
    """In a timer's callback as well: nothing would be read any more, and nothing would say so."""

    def fault(_: int) -> None:
        raise AttributeError("no such thing")

    for rest in (0.0, 0.005):
        async with ends() as other:
            other.connection.take_over(other.reader, fault, other.lost.append)
            if rest:
                other.connection.rest(rest)
            other.far.sendall(b"+OK\r\n")
            await other.until(lambda other=other: bool(other.lost))  # type: ignore[misc]
            assert not isinstance(other.lost[0], LinkError)
            assert "AttributeError" in other.lost[0].message


@pytest.mark.parametrize(
    "story",
    [
        is_lost_by_a_fault_of_the_engine,
        rests_and_reads_once,
        rests_again_and_again,
        looks_before_the_rest_is_over,
        stays_paused,
        is_told_of_the_end,
        is_closed_in_its_rest,
        reads_on_when_a_read_filled_its_room,
        writes_in_order_whatever_the_kernel_takes,
        rests_beside_another,
        is_read_by_hand_while_it_rests,
    ],
)
def test_a_connection_that(story: Callable[[Endpoints], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ends() as pair:
            await story(pair)

    run(main())


@pytest.mark.parametrize("loop", [run, asyncio.run], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("end", ["abort", "close", "far end", "our own"])
def test_a_connection_keeps_away_from_another_socket(
    loop: Callable[[Coroutine[None, None, None]], None], end: str
) -> None:
    """Whoever ends the link: it is known to be lost before its socket's number is another's."""

    async def main() -> None:
        others: list[socket.socket] = []
        async with ends() as pair:
            transport, number = pair.connection._transport, pair.connection._fd
            assert transport is not None
            assert number >= 0
            pair.rest_again = 0.001
            pair.connection.rest(0.001)
            {
                "abort": transport.abort,
                "close": transport.close,
                "far end": pair.far.close,
                "our own": pair.connection.close,
            }[end]()
            try:
                async with asyncio.timeout(5):
                    while number not in (each.fileno() for each in others):
                        others += socket.socketpair()
                        for each in others[-2:]:
                            each.setblocking(False)
                            each.sendall(b"+OTHER\r\n")
                        pair.connection.look()
                        pair.connection.write(b"+OURS\r\n")
                        await asyncio.sleep(0.0005)
                assert pair.connection.lost is not None
                for _ in range(5):
                    pair.connection.rest(0.001)
                    pair.connection.look()
                    pair.connection._wake()
                    pair.connection.write(b"+OURS\r\n")
                    await asyncio.sleep(0.002)
                assert pair.reads == []
                assert {each.recv(100) for each in others} == {b"+OTHER\r\n"}
            finally:
                for each in others:
                    each.close()

    loop(main())
