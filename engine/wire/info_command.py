"""What a server says of itself, read over a data connection."""

from __future__ import annotations

import re
from typing import Protocol

from engine.errors import FaultOf, ProtocolFault
from engine.model.replication import Replication, parse_replication
from engine.model.server import ServerInfo, parse_info
from engine.wire.connection import Connection

_COPIED = re.compile(rb"^current_cow_size:(\d+)", re.MULTILINE)


async def ask_info(connection: Connection) -> ServerInfo:
    """INFO, parsed. Raises as `Connection.call` does; `ProtocolFault` for what is no such reply."""
    return info_in(connection, await connection.call("INFO"))


def info_in(connection: Connection, reply: object) -> ServerInfo:
    """A reply to INFO, parsed. Raises `ProtocolFault` for what is no such reply."""
    if isinstance(reply, bytes):
        try:
            # Paths in it (config_file) may be in any encoding.
            return parse_info(reply.decode("utf-8", "replace"))
        except (ValueError, ProtocolFault) as exc:
            problem = str(exc)
    else:
        problem = f"it is a {type(reply).__name__}"
    raise ProtocolFault(
        f"{connection.name}: the reply to INFO cannot be read: {problem}", fault=connection.fault
    )


async def ask_replication(connection: Connection) -> Replication:
    """The server's role and replication offset. Raises as `Connection.call` does; `ProtocolFault`
    where it does not tell."""
    return replication_in(connection, await connection.call("INFO", "replication"))


async def ask_offset(connection: Connection) -> int:
    """The server's replication offset. Raises as `ask_replication` does."""
    return (await ask_replication(connection)).offset


async def ask_copied(connection: Connection) -> int | None:
    """Bytes of memory that are copied on write for the child that runs; None: the server does not
    tell (before Redis 6.2). Raises `LinkError`, `ServerError`."""
    reply = await connection.call("INFO", "persistence")
    found = _COPIED.search(reply) if isinstance(reply, bytes) else None
    return None if found is None else int(found[1])


class AskedServer(Protocol):
    """The server that a reply came from."""

    @property
    def name(self) -> str: ...

    @property
    def fault(self) -> FaultOf: ...


def replication_in(server: AskedServer, reply: object) -> Replication:
    """What a reply to INFO replication says. Raises `ProtocolFault` where it tells no offset."""
    found = parse_replication(reply)
    if found is None:
        raise ProtocolFault(f"{server.name} did not say its replication offset", fault=server.fault)
    return found
