"""Connections of the data path to a source, and the replication handshake over one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.endpoint import Endpoint
from engine.model.position import StreamPosition
from engine.wire.connection import Connection
from engine.wire.dial import dial
from engine.wire.info_command import ask_info
from engine.wire.psync import FullSync, PartialSync, handshake


@contextlib.asynccontextmanager
async def connected(server: Server | Proxy | Endpoint) -> AsyncIterator[Connection]:
    if isinstance(server, Proxy):
        endpoint = Endpoint.parse(f"redis://{server.host}:{server.port}")
    else:
        endpoint = server if isinstance(server, Endpoint) else Endpoint.parse(server.url)
    connection = await dial(endpoint, fault="source", timeout=10)
    try:
        yield connection
    finally:
        connection.close()


async def shake(
    connection: Connection, position: StreamPosition | None = None, timeout: float = 20.0
) -> FullSync | PartialSync:
    info = await ask_info(connection)
    return await handshake(connection, position, info=info, timeout=timeout)
