"""Whether the target still has the position that was left there, while nothing is written to it.

Each batch finds out by itself. A source that is not written to sends none: a target that was
emptied, or took over the data of another server and has kept its connections, would be shown as in
sync until it does. So the position is read with each look at the target, and where it is another
one than the last answer told, the target has to show what it holds over the connection of the data
(`Follower.ask_target`): that one decides.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from engine.errors import AuthError, EngineError, ServerError
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

        # What was being read, and what the target had by its last answer then.
        self._reading: tuple[Follower, bytes] | None = None

    def question(self) -> tuple[str, bytes] | None:
        """See `AskedBeside`."""
        self._reading = None
        follower, now = self._follower(), asyncio.get_running_loop().time()
        if follower is None:
            return None
        if follower is self._asked and now - self._asked_at < _AGAIN_SECONDS:
            return None
        return self._read(follower)

    def _read(self, follower: Follower) -> tuple[str, bytes] | None:
        left = follower.applier.at_rest
        if left is None or not follower.is_target_known:
            return None
        self._reading = follower, left
        return "GET", self._key()

    async def look(self, target: Admin, info: ServerInfo, reply: object) -> None:
        """See `AskedBeside`. Raises `LinkError`."""
        if info.is_replica:
            return
        for again in reversed(range(_READINGS)):
            reading, self._reading = self._reading, None
            if reading is None or isinstance(reply, EngineError):
                return
            follower, left = reading
            phase = self._context.phase
            if reply == left or follower is not self._follower() or phase is Phase.CUT_OVER:
                return
            if follower.applier.at_rest != left:
                return
            if again:
                question = self._read(follower)
                if question is None:
                    return
                try:
                    reply = await target.call(*question)
                except (AuthError, ServerError):
                    return
        self._asked, self._asked_at = follower, asyncio.get_running_loop().time()
        follower.ask_target()
