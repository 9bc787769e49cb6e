"""A stream over TLS that leaves nothing open when it is given up while it is being made."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast


class _Protocol(asyncio.StreamReaderProtocol):
    """Keeps the transport from the end of the handshake on: the one who dials hears of it later."""

    made: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are Transports in all but the class.
        self.made = cast(asyncio.Transport, transport)
        super().connection_made(transport)


async def open_tls_stream(
    host: str, port: int, tls_arguments: dict[str, Any], over: socket.socket | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As `asyncio.open_connection`; `tls_arguments`: `ssl` and `server_hostname` of it. `over`: a
    socket that is there already, in the place of one to host and port.

    Cancelled in the moment in which the handshake is done, uvloop closes the connection in the
    polite way: it waits for the server's goodbye, and a loop that ends meanwhile fails (EBUSY).
    Here it is aborted. Raises `OSError` and `ssl.SSLError`.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = _Protocol(reader, loop=loop)
    try:
        if over is None:
            transport, _ = await loop.create_connection(
                lambda: protocol, host, port, **tls_arguments
            )
        else:
            transport, _ = await loop.create_unix_connection(
                lambda: protocol, sock=over, **tls_arguments
            )
    except BaseException:
        if protocol.made is not None:
            protocol.made.abort()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
