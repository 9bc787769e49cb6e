"""How long one argument of a command may be (proto-max-bulk-len)."""

from __future__ import annotations

from engine.wire.control_connection import Admin

DEFAULT_BULK_LIMIT = 512 << 20
"""Bytes, at every server unless it is set."""
BULK_LIMIT_QUESTION = "CONFIG", "GET", "proto-max-bulk-len"


def bulk_limit_in(reply: object) -> int | None:
    """Bytes, by the reply to `BULK_LIMIT_QUESTION`; None: the server does not tell."""
    if isinstance(reply, list) and len(reply) == 2 and reply[1].isdigit():
        return int(reply[1])
    return None


async def ask_bulk_limit(end: Admin) -> int | None:
    """Bytes of the longest argument that a server takes; None: it does not tell. Raises
    `LinkError`, `AuthError`."""
    (reply,) = await end.pipeline([BULK_LIMIT_QUESTION])
    return bulk_limit_in(reply)
