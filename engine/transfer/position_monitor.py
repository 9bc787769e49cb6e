"""Whether the target still has the position that was left there, while nothing is written to it.

Each batch finds out by itself. A source that is not written to sends none: a target that was
emptied, or took over the data of another server and has kept its connections, would be shown as in
sync until it does. So the position is read at each look at the target, and where it is another one
than the last answer told, the target has to show what it holds over the connection of the data
(`Follower.ask_target`): that one decides.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from engine.errors import AuthError, ServerError
from engine.model.progress import Phase
from engine.model.server import ServerInfo
from engine.transfer.follow import Follower
from engine.transfer.migration_context import MigrationContext
from engine.wire.control_connection import Admin

# Where the data's own connection finds nothing wrong, another server was asked here: not again for
# so many seconds.
_AGAIN_SECONDS = 30.0
# What comes between two readings of one position was a batch.
_READINGS = 2


class PositionMonitor:
    """`follower` is the one that runs, if any does, and `key` names its position on the target."""

    def __init__(
        self,
        context: MigrationContext,
        follower: Callable[[], Follower | None],
        key: Callable[[], bytes],
    ) -> None:
        self._context = context
        self._follower = follower
        self._key = key
        # Of the follower that was asked last: when, by the loop's clock.
        self._asked: Follower | None = None
        self._asked_at = -math.inf

    async def look(self, target: Admin, info: ServerInfo) -> None:
        """Look over this connection. Raises `LinkError`."""
        follower, now = self._follower(), asyncio.get_running_loop().time()
        if follower is None or info.is_replica:
            return
        if follower is self._asked and now - self._asked_at < _AGAIN_SECONDS:
            return
        for _ in range(_READINGS):
            left = follower.applier.at_rest
            if left is None or not follower.is_target_known:
                return
            try:
                found = await target.call("GET", self._key())
            except (AuthError, ServerError):
                return
            phase = self._context.phase
            if found == left or follower is not self._follower() or phase is Phase.CUT_OVER:
                return
            if follower.applier.at_rest != left:
                return
        self._asked, self._asked_at = follower, now
        follower.ask_target()
