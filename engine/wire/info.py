"""What a server says of itself, read over a data connection."""

from __future__ import annotations

from engine.errors import ProtocolFault
from engine.model.replication import Replication, parse_replication
from engine.model.server import ServerInfo, parse_info
from engine.wire.connection import Connection


async def ask_info(connection: Connection) -> ServerInfo:
    """INFO, parsed. Raises as `Connection.call` does; `ProtocolFault` for what is no such reply."""
    reply = await connection.call("INFO")
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
    found = parse_replication(await connection.call("INFO", "replication"))
    if found is None:
        raise ProtocolFault(
            f"{connection.name} did not tell its replication offset", fault=connection.fault
        )
    return found


async def ask_offset(connection: Connection) -> int:
    """The server's replication offset. Raises as `ask_replication` does."""
    return (await ask_replication(connection)).offset


def offset_of(reply: object) -> int | None:
    """`master_repl_offset` of a reply to INFO replication; None where it is not told."""
    found = parse_replication(reply)
    return found.offset if found is not None else None
