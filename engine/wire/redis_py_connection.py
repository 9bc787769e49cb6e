"""redis-py's connections, as the control plane uses them: they dial what may be dialled, and give
replies that were read from the socket already.

redis-py is imported with the first connection, because a worker that only moves data must not pay
for it at its start.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import TYPE_CHECKING, Any

from engine.errors import FaultOf
from engine.model.endpoint import Endpoint
from engine.wire import allowed_addresses
from engine.wire.command_link import CommandLink
from engine.wire.keep_alive import keep_alive
from engine.wire.login import secrets_of
from engine.wire.open_tls_stream import open_tls_stream
from engine.wire.tls import ssl_context

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection


def connection_to(
    endpoint: Endpoint, timeout: float, name: str, fault: FaultOf
) -> AbstractConnection:
    """One that is not dialled yet; `timeout`, in seconds, holds for connecting, `name` and `fault`
    are for messages."""
    assert endpoint.file_path is None, "a file has no address to connect to"
    settings: dict[str, Any] = {
        # Clocks are ours: with one of its own redis-py sends by asyncio.wait_for, which loses a
        # cancellation that comes in the moment in which it is done (Python 3.11).
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "protocol": 2,
        "driver_info": None,
        "parser_class": _parser_class(),
    }
    if endpoint.connect_command:
        server_name = endpoint.tls and (endpoint.tls.server_name or endpoint.host)
        connection: AbstractConnection = _through_command()(
            endpoint, fault, server_name, host=endpoint.host, port=endpoint.port, **settings
        )
    elif endpoint.unix_path is not None:
        connection = _kinds()[0](path=endpoint.unix_path, **settings)
    elif endpoint.tls is None:
        connection = _kinds()[1](host=endpoint.host, port=endpoint.port, **settings)
    else:
        tls = endpoint.tls
        connection = _kinds()[2](
            server_hostname=tls.server_name or endpoint.host,
            host=endpoint.host,
            port=endpoint.port,
            **settings,
        )
    connection.judge = functools.partial(allowed_addresses.addresses, endpoint, name)  # type: ignore[attr-defined]
    return connection


def prepare(connection: AbstractConnection, endpoint: Endpoint, password: str | None) -> None:
    """Have the next dial log in with `password` (None: not at all), and take the TLS files as they
    are now. Raises `UsageError` for files that are of no use, or `LinkError` where they were."""
    connection.password = password
    connection.username = None if password is None else _user(endpoint)
    if endpoint.tls is not None:
        connection.tls_context = ssl_context(endpoint.tls)  # type: ignore[attr-defined]


def connection_over(given: socket.socket) -> AbstractConnection:
    """One over a socket that is connected already."""
    connection: AbstractConnection = _handed_connection()(
        given, socket_timeout=None, protocol=2, driver_info=None, parser_class=_parser_class()
    )
    return connection


def _user(endpoint: Endpoint) -> str | None:
    """Before 6.0 there are no users; "default" is what the one there is called since."""
    return None if endpoint.username == "default" else endpoint.username


@functools.cache
def _parser_class() -> Any:
    """redis-py's parser of replies, which gives those that were read from the socket already."""
    from redis.asyncio import connection as redis_py
    from redis.exceptions import ConnectionError as RedisConnectionError

    class Parser(redis_py.DefaultParser):  # type: ignore[misc, valid-type]
        nothing: object = None
        """What `next_come` gives where no whole reply has been read."""

        def on_connect(self, connection: AbstractConnection) -> None:
            super().on_connect(connection)
            # What a reader gives into which nothing was fed.
            self.nothing = self._reader.gets()

        def next_come(self) -> Any:
            """The next reply, errors as values; `nothing` where none has been read."""
            reply = self._reader.gets()
            if type(reply) is list and reply and isinstance(reply[0], RedisConnectionError):
                return reply[0]
            return reply

        async def read_bytes(self) -> bytes:
            """What comes next, as it comes."""
            try:
                found: bytes = await self._stream.read(self._read_size)
            except OSError as error:
                raise RedisConnectionError(str(error)) from error
            if not found:
                raise RedisConnectionError("the connection was closed")
            return found

        def put(self, reply: bytes) -> None:
            """Take a whole reply that was read by `read_bytes`."""
            self._reader.feed(reply)

    return Parser


@functools.cache
def _handed_connection() -> Any:
    from redis.asyncio import connection as redis_py

    class HandedConnection(redis_py.Connection):
        """One that is there already."""

        def __init__(self, given: socket.socket, **settings: Any) -> None:
            self._given = given
            super().__init__(**settings)

        def _connection_arguments(self) -> dict[str, Any]:
            return {"sock": self._given}

        async def _connect(self) -> None:
            self._reader, self._writer = await asyncio.open_connection(sock=self._given)

    return HandedConnection


@functools.cache
def _through_command() -> Any:
    from redis.asyncio import connection as redis_py

    class CommandConnection(redis_py.Connection):
        """One whose link is a command of the operator's."""

        judge: Any

        def __init__(
            self, endpoint: Endpoint, fault: FaultOf, server_name: str | None, **settings: Any
        ) -> None:
            self._endpoint = endpoint
            self._fault: FaultOf = fault
            self._server_name = server_name
            self.tls_context: Any = None
            self.through: CommandLink | None = None
            super().__init__(**settings)

        async def _connect(self) -> None:
            await self.judge()
            secrets = secrets_of(self._endpoint, self.password)
            through = CommandLink(self._endpoint, self._fault, secrets)
            self.through = through
            tls: dict[str, Any] = {}
            if self.tls_context is not None:
                tls = {"ssl": self.tls_context, "server_hostname": self._server_name}
            try:
                async with asyncio.timeout(self.socket_connect_timeout):
                    self._reader, self._writer = await open_tls_stream("", 0, tls, through.socket)
            except BaseException:
                through.socket.close()
                through.close()
                raise

        async def disconnect(self, *args: Any, **kwargs: Any) -> None:
            """As redis-py's; the command ends with it."""
            writer = self._writer
            try:
                await super().disconnect(*args, **kwargs)
            finally:
                if writer is not None:
                    writer.transport.abort()
                if self.through is not None:
                    self.through.close()

    return CommandConnection


@functools.cache
def _kinds() -> tuple[Any, Any, Any]:
    """redis-py's connections, which dial what may be dialled: by unix socket, by TCP, with TLS."""
    from redis.asyncio import connection as redis_py

    class UnixConnection(redis_py.UnixDomainSocketConnection):
        judge: Any

        async def _connect(self) -> None:
            named = self.path
            judged = await self.judge() or [named]
            try:
                (self.path,) = judged
                await super()._connect()  # type: ignore[no-untyped-call]
            finally:
                self.path = named

    class TcpConnection(redis_py.Connection):
        judge: Any

        async def _connect(self) -> None:
            named = self.host
            judged = await self.judge() or [named]
            try:
                for n, self.host in enumerate(judged, 1):
                    try:
                        await self._dial()
                        return
                    except OSError:
                        if n == len(judged):
                            raise
            finally:
                self.host = named

        async def _dial(self) -> None:
            await super()._connect()  # type: ignore[no-untyped-call]

    class TlsConnection(TcpConnection):
        """redis-py's own takes file names, and checks the host's name without letting it differ."""

        def __init__(self, *, server_hostname: str, **settings: Any) -> None:
            self._server_hostname = server_hostname
            self.tls_context: Any = None
            super().__init__(**settings)

        async def _dial(self) -> None:
            async with asyncio.timeout(self.socket_connect_timeout):
                self._reader, self._writer = await open_tls_stream(
                    self.host,
                    self.port,
                    {"ssl": self.tls_context, "server_hostname": self._server_hostname},
                )
            keep_alive(self._writer.get_extra_info("socket"))

        async def disconnect(self, *args: Any, **kwargs: Any) -> None:
            """As redis-py's, and the socket is closed with it: by itself TLS would wait for the
            server's goodbye, and a loop that ends in that moment fails (uvloop: EBUSY)."""
            writer = self._writer
            try:
                await super().disconnect(*args, **kwargs)
            finally:
                if writer is not None:
                    writer.transport.abort()

    return UnixConnection, TcpConnection, TlsConnection
