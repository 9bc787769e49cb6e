"""Connections of the control plane, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import TlsFiles, binaries, supports_tls
from engine.errors import AuthError, EngineError, LinkError, ServerError
from engine.model.endpoint import Endpoint
from engine.verify.key_comparison import Side
from engine.wire.connection import Connection
from engine.wire.control_connection import admin
from engine.wire.dial import dial
from tests.support.servers import ServerFactory


async def test_a_cancellation_at_any_moment_ends_the_task(server_factory: ServerFactory) -> None:
    """Also in the moment in which a command is sent: a task that goes round for ever would be
    waited for for ever by who has cancelled it."""
    endpoint = Endpoint.parse(server_factory().url)

    async def goes_round(side: object) -> None:
        while True:
            await side.call("PING")  # type: ignore[attr-defined]

    for turns in range(12):
        async with admin(endpoint, timeout=5) as side:
            task = asyncio.create_task(goes_round(side))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=20)
            assert task.cancelled(), turns


async def test_replies_of_a_long_pipeline_come_in_their_order(
    server_factory: ServerFactory,
) -> None:
    """Errors in their places, and a reply that is longer than what is read at once."""
    binary = min((each for each in binaries() if each.version >= (6, 2, 0)), key=str)
    server = server_factory(binary)
    server.client().execute_command("ACL SETUSER default -dbsize")
    long = os.urandom(1 << 20)
    asked: list[tuple[bytes | str | int, ...]] = [("SET", "long", long)]
    wanted: list[object] = [b"OK"]
    for n in range(3000):
        asked += [("ECHO", n), ("INCR", "long"), ("LRANGE", "none", 0, -1), ("GET", "none")]
        wanted += [b"%d" % n, ServerError, [], None]
        if n % 500 == 0:
            asked += [("GET", "long"), ("DBSIZE",), ("PING",), ("EXISTS", "long")]
            wanted += [long, AuthError, b"PONG", 1]
    async with admin(Endpoint.parse(server.url), timeout=5) as side:
        replies = await side.pipeline(asked)
        assert [type(each) if isinstance(each, EngineError) else each for each in replies] == wanted
        # Nothing is left of them.
        assert await side.call("ECHO", "behind") == b"behind"
        with pytest.raises(AuthError, match="DBSIZE"):
            await side.pipeline([("PING",), ("DBSIZE",), ("PING",)], raise_on_error=True)
        assert await side.call("ECHO", "again") == b"again"


async def test_a_server_that_ends_a_connection_over_which_it_has_answered(
    server_factory: ServerFactory,
) -> None:
    """The remedies of a first dial are of no use then."""
    server = server_factory()
    async with admin(Endpoint.parse(server.url)) as side:
        await side.call("PING")
        server.kill()
        with pytest.raises(LinkError) as ended:
            await side.call("PING")
    assert ended.value.message.endswith("the server closed the connection.")
    assert "was it restarted" in ended.value.remedy
    assert "too many clients" not in str(ended.value)


@pytest.mark.parametrize("moment", ["the first command", "a later one"])
async def test_a_server_that_stands_still(moment: str, server_factory: ServerFactory) -> None:
    """It is given up after the time that it has, when it is dialled as well."""
    server = server_factory()
    with Proxy(server.host, server.port) as proxy:
        endpoint = Endpoint.parse(f"redis://:secret@{proxy.host}:{proxy.port}")
        server.client().config_set("requirepass", "secret")
        if moment == "the first command":
            proxy.stall()
            with pytest.raises(LinkError):
                async with admin(endpoint, timeout=0.5):
                    pass
            return
        async with admin(endpoint, timeout=2.0) as side:
            await side.call("PING")
            proxy.stall()
            with pytest.raises(LinkError):
                await side.call("PING")
            # More than the kernel takes on its way.
            with pytest.raises(LinkError):
                await side.pipeline([("SET", "key", bytes(32 << 20))])


@pytest.mark.parametrize("kind", ["control", "data"])
async def test_a_closed_tls_connection_is_closed_at_once(
    kind: str, server_factory: ServerFactory, tls_files: TlsFiles
) -> None:
    """Not when the server has said goodbye: a loop that ended meanwhile failed at its end."""
    able = next((each for each in binaries() if supports_tls(each)), None)
    if able is None:
        pytest.skip("no server of this machine was built with TLS")
    server = server_factory(able, tls=tls_files)
    with Proxy(server.host, server.port) as proxy:
        endpoint = Endpoint.parse(
            f"rediss://{proxy.host}:{proxy.port}?verify=no"
            f"&cert_file={tls_files.client_cert}&key_file={tls_files.client_key}"
        )
        if kind == "control":
            async with admin(endpoint) as side:
                await side.call("PING")
                assert _sockets_to(proxy.port) == 1
                proxy.stall()
        else:
            connection = await dial(endpoint, fault="target", timeout=10)
            assert _sockets_to(proxy.port) == 1
            proxy.stall()
            connection.close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert _sockets_to(proxy.port) == 0


@pytest.mark.parametrize("kind", ["control", "data"])
async def test_a_tls_connection_given_up_at_the_end_of_its_handshake_is_closed_at_once(
    kind: str,
    server_factory: ServerFactory,
    tls_files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever dials has not heard of the transport yet: nobody else would close it."""
    able = next((each for each in binaries() if supports_tls(each)), None)
    if able is None:
        pytest.skip("no server of this machine was built with TLS")
    server = server_factory(able, tls=tls_files)
    given_up = 0

    def give_up(made: Any) -> Any:
        def connection_made(self: Any, transport: Any) -> None:
            nonlocal given_up
            made(self, transport)
            if transport.get_extra_info("ssl_object") is not None:
                given_up += 1
                proxy.stall()
                dialling.cancel()

        return connection_made

    for protocol in (asyncio.StreamReaderProtocol, Connection):
        monkeypatch.setattr(protocol, "connection_made", give_up(protocol.connection_made))

    async def dials() -> None:
        if kind == "control":
            async with admin(endpoint) as side:
                await side.call("PING")
        else:
            await dial(endpoint, fault="target", timeout=10)

    with Proxy(server.host, server.port) as proxy:
        endpoint = Endpoint.parse(
            f"rediss://{proxy.host}:{proxy.port}?verify=no"
            f"&cert_file={tls_files.client_cert}&key_file={tls_files.client_key}"
        )
        dialling = asyncio.ensure_future(dials())
        with pytest.raises(asyncio.CancelledError):
            await dialling
        assert given_up == 1
        for _ in range(3):
            await asyncio.sleep(0)
        assert _sockets_to(proxy.port) == 0


def _sockets_to(port: int) -> int:
    """Sockets of this process whose other end is `port`."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as each:
            found += each.getpeername()[1:2] == (port,)
    return found


async def test_keys_that_are_compared_do_not_look_used(
    server_factory: ServerFactory,
) -> None:
    """Nor behind a link that was lost, where the server has CLIENT NO-TOUCH (Redis 7.2)."""
    newest = max(binaries(), key=lambda binary: binary.version)
    server = server_factory(newest)
    client = server.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.set("key", "value")
    client.restore("key", 0, client.dump("key"), replace=True, idletime=5000)
    async with admin(Endpoint.parse(server.url), timeout=5) as end:
        side = await Side.open(end)
        await side.look([b"key"])
        assert await end.call("DUMP", b"key")
        assert client.object("idletime", "key") >= 5000
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with contextlib.suppress(LinkError):
            await end.call("PING")
        assert await end.call("PING") == b"PONG"
        assert await end.call("DUMP", b"key")
        assert client.object("idletime", "key") >= 5000
