"""Valkey's import mode: expire times wait until the migration says so.

A key that is restored with its expire time can expire on the target before the stream's command
that extends it arrives. In import mode (Valkey 8.1 and later: `import-mode`, `CLIENT
IMPORT-SOURCE`, expire.c) nothing expires by itself, and the import source still sees keys whose
time has come; the source's own DEL removes them, as on a replica. `ServerCapabilities.import_mode`
says whether a release knows it; whether we may use it is another question.
"""

from __future__ import annotations

from engine.errors import AuthError, ServerError
from engine.wire.connection import Connection


async def import_source(connection: Connection) -> bool:
    """Put the target into import mode, and make this connection its source.

    On every dialling: a target that was restarted has forgotten. False where it is refused.
    """
    try:
        await connection.call("CONFIG", "SET", "import-mode", "yes")
        await connection.call("CLIENT", "IMPORT-SOURCE", "ON")
    except (ServerError, AuthError):
        return False
    return True


async def in_import_mode(connection: Connection) -> bool:
    """Whether the target still is in import mode. False where it does not tell."""
    reply = await connection.try_call("CONFIG", "GET", "import-mode")
    return isinstance(reply, list) and len(reply) == 2 and reply[1] == b"yes"


async def leave_import_mode(connection: Connection) -> None:
    """Let keys expire again. Raises `LinkError`, `ServerError`, `AuthError`."""
    await connection.call("CONFIG", "SET", "import-mode", "no")
