"""The listener of a server with TLS: a client in the handshake counts as a connection too.

The loop's own server tells of a connection when its handshake is done. Before that it would take
any number of them, for a minute each: all descriptors of the process, and with them the state's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterable
from itertools import chain

from engine.front.http.client_limits import Guest, admit

HANDSHAKE_SECONDS = 10.0
"""A handshake that is not done after this is given up."""
_AGAIN_SECONDS = 0.1


class _Greeted:
    """A client in the middle of the handshake."""

    def __init__(self, link: socket.socket, address: str, since: float) -> None:
        self.address = address
        self.leaving = False
        self._link = link
        self._since = since

    def waits(self) -> tuple[int, float]:
        """As `client_limits.Guest` has it."""
        return 0, self._since

    def give_way(self) -> None:
        """As `client_limits.Guest` has it."""
        self.leaving = True
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)  # the handshake finds the end


class TlsListener:
    """Accepts connections at `listening` and gives each that has shaken hands a protocol of `make`,
    while there is room beside those and the `inside`. It ends as the loop's servers do.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        inside: Callable[[], Iterable[Guest]],
    ) -> None:
        # Its own descriptor: the other one may be closed while we still wait for a client.
        self._listening = listening.dup()
        self._listening.setblocking(False)
        self._context = context
        self._make = make
        self._inside = inside
        self._greeted: dict[asyncio.Task[None], _Greeted] = {}
        self._task = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Take no more, and none of those in the middle of it."""
        for each in (self._task, *self._greeted):
            each.cancel()

    async def wait_closed(self) -> None:
        """Wait for the end that `close` began."""
        await asyncio.wait({self._task, *self._greeted})

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._listening:
            while True:
                try:
                    link, client = await loop.sock_accept(self._listening)
                except OSError:
                    # It went before it was taken, or there is no descriptor for it just now.
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                guest = _Greeted(link, str(client[0]), loop.time())
                if not admit(guest.address, chain(self._greeted.values(), self._inside())):
                    link.close()
                    continue
                greeting = asyncio.create_task(self._greet(link))
                self._greeted[greeting] = guest
                greeting.add_done_callback(self._greeted.pop)

    async def _greet(self, link: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, link, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except BaseException as error:
            with contextlib.suppress(OSError):
                link.close()
            if not isinstance(error, (OSError, asyncio.CancelledError)):
                raise
