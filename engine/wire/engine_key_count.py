"""The engine's own keys on a target: they are no data, and no count has them."""

from __future__ import annotations

from contextlib import suppress

from engine.errors import ProtocolFault
from engine.model.online_checkpoint import LEFT_KEY, POSITION_KEY, dirty_key
from engine.model.position import TargetPosition
from engine.wire.control_connection import Admin

OWN_DB = 0
"""The database that they are in."""


async def count_own(end: Admin) -> int:
    """How many there are, as far as the user may ask. Leaves database 0 chosen.

    Raises `LinkError`, and `ServerError` where there is no database 0.
    """
    end.choose(OWN_DB)
    # One at a time: before 3.0.3 EXISTS takes one.
    position, *replies = await end.pipeline(
        [("GET", POSITION_KEY), ("EXISTS", POSITION_KEY), ("EXISTS", LEFT_KEY)]
    )
    if isinstance(position, bytes):
        with suppress(ProtocolFault):
            name = dirty_key(TargetPosition.decode(position).transfer)
            replies += await end.pipeline([("EXISTS", name)])
    return sum(reply for reply in replies if isinstance(reply, int))
