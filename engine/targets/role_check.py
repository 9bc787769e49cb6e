"""What a target's role means: nothing is written to a replica.

A replica refuses writes as it is set by default; one that takes them (`replica-read-only no`) loses
them with the next sync of its primary, and if that primary is the source, feeds on what we write.
"""

from __future__ import annotations

from engine.errors import ServerError
from engine.model.server import ServerInfo


def refuse_replica(name: str, info: ServerInfo) -> None:
    """Raise `ServerError` (READONLY) unless the target called `name` is a primary."""
    if info.is_replica:
        raise ServerError(
            f"{name} is a replica of {info.primary or 'another server'} (READONLY): nothing is "
            "written to it",
            code="READONLY",
            remedy="Make it a primary (REPLICAOF NO ONE), or name its primary as the target.",
            fault="target",
        )
