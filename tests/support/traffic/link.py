"""A connection that pipelines: commands are queued by name, replies come back with the names."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server

SILENCE_SECONDS = 30.0
"""A server that answers nothing for so long is taken for gone."""

READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and its password if it has one."""

    host: str
    port: int
    password: str | None = None

    def client(self) -> redis.Redis:
        """A redis-py client (RESP2, replies as they came)."""
        client = redis.Redis(
            self.host,
            self.port,
            password=self.password,
            protocol=2,
            socket_timeout=SILENCE_SECONDS,
            socket_connect_timeout=SILENCE_SECONDS,
            retry=None,
        )
        client.response_callbacks.clear()
        return client


def address_of(server: Server | Proxy | str) -> Address:
    """The address of a server, of a proxy before one, or in a redis:// URL."""
    if isinstance(server, Server):
        return Address(server.host, server.port, server.password)
    if isinstance(server, Proxy):
        return Address(server.host, server.port)
    parts = urlsplit(server)
    if parts.scheme not in ("redis", "valkey"):
        raise ValueError(f"{server}: expected redis:// or valkey://")
    password = unquote(parts.password) if parts.password is not None else None
    return Address(parts.hostname or "127.0.0.1", parts.port or 6379, password)


class Link:
    """One connection. `fresh` until a database was selected on it (the owner's business).

    Raises `OSError` wherever the link fails.
    """

    def __init__(self, address: Address) -> None:
        self.fresh = True
        self._reader = hiredis.Reader()
        self._queued: list[bytes] = []
        # For each reply to come: the command's name, and for EXEC the names inside.
        self._asked: deque[tuple[str, tuple[str, ...] | None]] = deque()
        self._inside: list[str] | None = None
        self._socket = socket.create_connection((address.host, address.port), SILENCE_SECONDS)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.password is not None:
                self.queue("auth", (b"AUTH", address.password.encode()))
                self.flush()
                for _, reply in self.replies(0):
                    if isinstance(reply, hiredis.ReplyError):
                        raise ConnectionRefusedError(str(reply))
        except BaseException:
            self.close()
            raise

    @property
    def unanswered(self) -> int:
        """Commands without a reply so far."""
        return len(self._asked)

    def queue(self, name: str, words: tuple[bytes, ...]) -> None:
        """Add a command; `flush` sends it."""
        self._queued.append(hiredis.pack_command(words))
        if name == "exec":
            self._asked.append((name, tuple(self._inside or ())))
            self._inside = None
        elif name == "discard":
            self._asked.append((name, None))
            self._inside = None
        elif self._inside is None:
            self._asked.append((name, None))
            if name == "multi":
                self._inside = []
        else:
            self._asked.append(("", None))  # the reply is QUEUED; EXEC brings the command's
            self._inside.append(name)

    def flush(self) -> None:
        """Send what is queued."""
        if self._queued:
            data, self._queued = b"".join(self._queued), []
            self._socket.sendall(data)

    def replies(self, leave: int) -> Iterator[tuple[str, Any]]:
        """Replies as (name, reply), until no more than `leave` commands are unanswered.

        What ran inside a transaction comes under its own name, before its EXEC.
        """
        while len(self._asked) > leave:
            reply = self._reader.gets()
            if reply is False:
                data = self._socket.recv(READ_BYTES)
                if not data:
                    raise ConnectionResetError("the server closed the connection")
                self._reader.feed(data)
                continue
            name, inside = self._asked.popleft()
            if inside is not None and isinstance(reply, list):
                yield from zip(inside, reply, strict=True)
            if name or isinstance(reply, hiredis.ReplyError):
                yield name or "queued", reply

    def close(self) -> None:
        """Close it, whatever is unanswered."""
        self._socket.close()


def wait_until_ready(address: Address, seconds: float = 1.0) -> None:
    """Return when the server takes writes; raise `OSError` if it doesn't within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        link = Link(address)
        try:
            link.queue("role", (b"ROLE",))
            link.queue("exists", (b"EXISTS", b"k"))  # ROLE is answered while the server loads
            link.flush()
            role, found = (reply for _, reply in link.replies(0))
        finally:
            link.close()
        # MOVED: a cluster's node that has slots, of which this key's is none.
        refused = isinstance(found, hiredis.ReplyError) and not str(found).startswith("MOVED")
        if not refused and role[0] == b"master":
            return
        if time.monotonic() > deadline:
            raise ConnectionRefusedError(f"the server takes no writes: {role!r:.80} {found!r:.80}")
        time.sleep(0.02)
