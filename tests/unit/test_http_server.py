"""The server's limits on connections: in this process, with limits that can be waited for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from benches.support.servers import TlsFiles
from engine.front.engine import Engine
from engine.front.http import client_limits, feed, log_throttle, server
from engine.front.http.app import Api
from engine.front.http.authentication import Authenticator
from engine.front.http.tls_handshake_limits import TlsListener
from engine.model.credentials import Credentials

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n"


@pytest.fixture
async def port(state_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A server that has little patience."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(server, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(client_limits, "CONNECTIONS_MOST", 3)
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(client_limits, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(feed, "CLIENTS_MOST", 1)
    monkeypatch.setattr(feed, "KEEP_ALIVE_SECONDS", 0.1)
    engine = Engine(state_url, credentials=Credentials())
    api = Api(engine, Authenticator(None))
    sockets = server._bind([("127.0.0.1", 0)])
    number: int = sockets[0].getsockname()[1]
    served = server._Server(server._config(api, None), api)
    task = asyncio.create_task(served.serve(sockets))
    async with asyncio.timeout(5):
        while not served.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
    yield number
    served._end()
    await asyncio.wait_for(task, 5)
    engine.close()


@contextlib.asynccontextmanager
async def link(
    port: int, own: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(own, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """What comes until the server closes, and for how long that took.

    A reset is an end too: the kernel sends one when the server closes with bytes of ours unread,
    or when we write once more to what it has closed. What came before it counts.
    """
    begun = time.monotonic()
    told = bytearray()
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):
            while some := await reader.read(65536):
                told += some
    return bytes(told), time.monotonic() - begun


async def test_who_says_nothing(port: int) -> None:
    async with link(port) as (reader, _):
        assert 0.9 < (await ended(reader))[1] < 15


async def test_a_head_that_comes_a_byte_at_a_time(port: int) -> None:
    async with link(port) as (reader, writer):

        async def drip() -> None:
            for byte in HEAD * 20:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await ended(reader))[1] < 15
        dripping.cancel()


async def test_the_second_request_of_a_connection_has_no_more_time(port: int) -> None:
    async with link(port) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        told, seconds = await ended(reader)
        assert told == b'{"status":"ok"}'
        assert seconds < 15


async def test_a_body_that_does_not_come(port: int) -> None:
    async with link(port) as (reader, writer):
        writer.write(POST + b"Action=")
        told, seconds = await ended(reader)
        assert b"<Code>ValidationError</Code>" in told
        assert seconds < 15


async def test_more_connections_than_there_may_be(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 600.0)
    async with link(port), link(port), link(port), link(port) as (reader, _):
        assert (await ended(reader))[0] == b""


async def test_one_client_does_not_shut_the_others_out(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_limits, "CONNECTIONS_OF_ONE", 2)
    monkeypatch.setattr(server, "HEAD_SECONDS", 600.0)
    async with link(port), link(port), link(port) as (refused, _):
        assert (await ended(refused))[0] == b""
        async with link(port, "127.0.0.2") as (reader, writer):
            writer.write(HEAD + b"\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)


@pytest.mark.parametrize("part", [b"", HEAD, POST + b"Action=", HEAD + b"\r\n"])
async def test_several_clients_do_not_shut_the_others_out(
    port: int, monkeypatch: pytest.MonkeyPatch, part: bytes
) -> None:
    """Who has not sent a whole request gives way: of the address that has most, the first."""
    for module, name in ((server, "HEAD_SECONDS"), (client_limits, "BODY_SECONDS")):
        monkeypatch.setattr(module, name, 600.0)
    monkeypatch.setattr(client_limits, "CONNECTIONS_MOST", 5)
    monkeypatch.setattr(client_limits, "CONNECTIONS_OF_ONE", 3)
    async with contextlib.AsyncExitStack() as stack:

        async def opened(own: str) -> asyncio.StreamReader:
            reader, writer = await stack.enter_async_context(link(port, own))
            writer.write(part)
            if part.endswith(b"\r\n\r\n"):
                await reader.readuntil(b'{"status":"ok"}')  # it asks no more
            return reader

        one = await opened("127.0.0.2")
        many = [await opened("127.0.0.1") for _ in range(3)]
        other = await opened("127.0.0.2")
        # None of the same address gives way.
        async with link(port, "127.0.0.1") as (refused, _):
            assert (await ended(refused))[0] == b""
        async with link(port, "127.0.0.3") as (reader, writer):
            writer.write(HEAD + b"Connection: close\r\n\r\n")
            assert b"200 OK" in (await ended(reader))[0]
        await ended(many[0])
        for each in (one, other, *many[1:]):
            assert not each.at_eof()


async def test_who_is_being_answered_does_not_give_way(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "CLIENTS_MOST", 3)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            reader, writer = await stack.enter_async_context(link(port))
            writer.write(HEAD.replace(b"/healthz", b"/watch") + b"\r\n")
            await reader.readuntil(b"event: state\n")
        async with link(port, "127.0.0.2") as (refused, _):
            assert (await ended(refused))[0] == b""
        async with asyncio.timeout(10):
            await reader.readuntil(b": still here\n\n")


async def test_who_does_not_shake_hands_gives_way(
    monkeypatch: pytest.MonkeyPatch, tls_files: TlsFiles
) -> None:
    monkeypatch.setattr(client_limits, "CONNECTIONS_MOST", 3)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls_files.cert, tls_files.key)
    trusted = ssl.create_default_context(cafile=str(tls_files.ca))
    greeted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.put_nowait(writer)

    def make() -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), greet)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        door = TlsListener(listening, context, make, list)
        async with contextlib.AsyncExitStack() as stack:
            own = ("127.0.0.1", "127.0.0.2", "127.0.0.2")
            links = [await stack.enter_async_context(link(port, each)) for each in own]
            _, writer = await asyncio.wait_for(
                asyncio.open_connection(
                    "127.0.0.1", port, local_addr=("127.0.0.3", 0), ssl=trusted,
                    server_hostname="localhost",
                ),
                20,
            )  # fmt: skip
            assert (await ended(links[1][0]))[0] == b""
            assert not links[0][0].at_eof()
            assert not links[2][0].at_eof()
            for each in (await asyncio.wait_for(greeted.get(), 20), writer):
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()
        door.close()
        await door.wait_closed()


class Waiting:
    """A connection, for the rule alone."""

    def __init__(self, address: str, rank: int | None = 0, since: float = 0.0) -> None:
        self.address, self.leaving = address, False
        self._waits = None if rank is None else (rank, since)

    def waits(self) -> tuple[int, float] | None:
        return self._waits

    def give_way(self) -> None:
        self.leaving = True


def test_which_connection_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "CONNECTIONS_MOST", 5)
    monkeypatch.setattr(client_limits, "CONNECTIONS_OF_ONE", 3)

    def gone(client: str, *guests: Waiting) -> list[int] | None:
        """Which gave way; None: the client was not let in."""
        if not client_limits.admit(client, guests):
            assert not any(each.leaving for each in guests)
            return None
        return [n for n, each in enumerate(guests) if each.leaving]

    a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"
    # 1. There is room.
    assert gone(c, *(Waiting(a) for _ in range(4))) == []
    # 2. The first of the address that has most.
    assert gone(c, Waiting(b, 0, 1), Waiting(b, 0, 2), Waiting(a, 0, 5), Waiting(a, 0, 3),
                Waiting(a, 0, 4)) == [3]  # fmt: skip
    # 3. Who does not take an answer goes after those who have not asked; who is answered stays.
    assert gone(c, Waiting(a, 1, 0), Waiting(a, 0, 9), Waiting(a, None), *[Waiting(b)] * 2) == [1]
    assert gone(c, Waiting(a, None), Waiting(a, 1, 0), Waiting(a, None), *[Waiting(b)] * 2) == [1]
    assert gone(c, *[Waiting(a, None)] * 3, Waiting(b, 0, 2), Waiting(b, 0, 1)) == [4]
    assert gone(c, *[Waiting(a, None)] * 5) is None
    # 4. One each, at many addresses; and no exchange among equals.
    singles = [Waiting(f"192.0.2.{n}", 0, 10 - n) for n in range(5, 10)]
    assert gone(c, *singles) == [4]
    assert gone(b, Waiting(a), Waiting(a), Waiting(b), Waiting(b), Waiting(c)) is None
    assert gone(b, Waiting(a), Waiting(a), Waiting(a), Waiting(b), Waiting(c)) == [0]
    # 5. Who has given way already counts no more, and gives way once.
    left = Waiting(a)
    left.give_way()
    assert client_limits.admit(c, [left, *(Waiting(b) for _ in range(4))])


def test_which_connections_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "CONNECTIONS_OF_ONE", 1)
    assert client_limits.room_for("192.0.2.1", ["192.0.2.2", "2001:db8::1"])
    assert not client_limits.room_for("192.0.2.1", ["::ffff:192.0.2.1"])
    assert not client_limits.room_for("2001:db8::1", ["2001:db8::ffff:2"])
    assert client_limits.room_for("2001:db8::1", ["2001:db8:0:1::1"])


@pytest.mark.parametrize("last", [b"", b"nonsense\r\n\r\n"])
async def test_who_asks_and_does_not_read_is_cut_off(port: int, last: bytes) -> None:
    """Closing would wait for them for ever, and soon there would be no connection for others."""
    part = HEAD.replace(b"/healthz", b"/page/page.css") + b"\r\n"
    loop = asyncio.get_running_loop()
    deaf = []
    for _ in range(3):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.setblocking(False)
        await loop.sock_connect(each, ("127.0.0.1", port))
        # More than the kernel's buffers take, as far as the server reads it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await loop.sock_sendall(each, part * 1000 + last)
        deaf.append(each)
    async with asyncio.timeout(5):
        told = b""
        while not told.startswith(b"HTTP/1.1 200 OK"):
            async with link(port) as (reader, writer):
                writer.write(HEAD + b"Connection: close\r\n\r\n")
                told, _ = await ended(reader)
            await asyncio.sleep(0.05)
    for each in deaf:
        each.close()


async def test_what_follows_an_answer_given_early(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body was too long and has its answer; the rest of it is not even chunks."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 600.0)
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    post = POST.replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")
    with caplog.at_level(logging.ERROR):
        async with link(port) as (reader, writer):
            writer.write(post + chunk * 3)
            told = await reader.readuntil(b"</ErrorResponse>")
            writer.write(b"zz\r\n")
            assert (await ended(reader))[0] == b""
    assert b"<Code>ValidationError</Code>" in told
    assert not caplog.records


async def test_a_request_that_is_not_complete_at_the_end(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_limits, "BODY_SECONDS", 30)
    with caplog.at_level(logging.INFO):
        async with link(port) as (reader, writer):
            writer.write(POST + b"Action=")
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            told, seconds = await ended(reader)
    assert b"<Code>ServiceUnavailable</Code>" in told
    assert seconds < 15
    assert "Traceback" not in caplog.text


async def test_a_feed_has_room_for_so_many_and_shows_that_it_lives(port: int) -> None:
    watch = HEAD.replace(b"/healthz", b"/watch") + b"\r\n"
    async with link(port) as (reader, writer):
        writer.write(watch)
        await reader.readuntil(b"event: state\n")
        async with link(port) as (other, more):
            more.write(watch)
            assert b"<Code>Throttling</Code>" in (await ended(other))[0]
        async with asyncio.timeout(5):
            await reader.readuntil(b": still here\n\n")
    async with asyncio.timeout(5):
        while True:
            async with link(port) as (reader, writer):
                writer.write(watch)
                if b"200 OK" in await reader.readuntil(b"\r\n\r\n"):
                    return


def code_of(record: Any) -> Any:
    """The error's code in a line of the log."""
    return record.figures["code"]


async def test_the_log_of_refusals_that_anybody_can_cause_is_bounded(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many there were, and goes on telling later."""
    refused = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def ask(times: int) -> None:
        async with link(port) as (reader, writer):
            for _ in range(times):
                writer.write(refused)
                await reader.readuntil(b"</ErrorResponse>")

    now = time.monotonic()
    monkeypatch.setattr(log_throttle, "time", SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level(logging.INFO, "engine.front.http.app"):
        await ask(100)
        assert len(caplog.records) == log_throttle.LINES
        assert {code_of(each) for each in caplog.records} == {"MalformedQueryString"}
        now += log_throttle.SECONDS
        caplog.clear()
        await ask(1)
    first, second = caplog.records
    assert first.message.startswith(f"{100 - log_throttle.LINES} refusals")
    assert code_of(second) == "MalformedQueryString"
