"""How far a migration is that follows the source into the target: the positions of its lanes.

A difference says something only once the target has what the source had when it was looked at. So
each position on the target is awaited until it has passed the offset of its source: one of a
migration between two servers, one of each lane where an end is a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.model.online_checkpoint import POSITION_DB
from engine.model.position import StreamPosition
from engine.model.retry import Attempts, Deadline
from engine.proof.deployment import offset_in, position_in, position_names, replid_in
from engine.wire.control_connection import Admin

# It is waited for so long, behind each look.
_PASSED_SECONDS, _PASSED_PAUSE = 10.0, 0.02


class Follower:
    """The migration that has the servers behind `targets`, and follows those behind `sources`."""

    def __init__(self, sources: Sequence[Admin], targets: Sequence[Admin]) -> None:
        self._sources = sources
        self._targets = targets
        self._names: list[list[bytes]] | None = None

    async def passed(self) -> bool:
        """Wait until the target has what the sources have now, for a while; whether it has. Raises
        `EngineError`."""
        offsets = {}
        for end in self._sources:
            told = await end.call("INFO", "replication")
            offsets[replid_in(told)] = offset_in(told)
        deadline = Deadline(_PASSED_SECONDS, _PASSED_PAUSE)
        async for attempt in Attempts(deadline):
            if await self._has_passed(offsets):
                return True
            if not deadline.left or None in offsets.values():
                return False
            attempt.failed("the target has not passed the offset")
        return False

    async def _has_passed(self, offsets: Mapping[str | None, int | None]) -> bool:
        """Whether it has these; None: the source does not tell."""
        positions = await self._positions()
        if not positions:
            # It is over, or has not begun to follow.
            return True
        for replid, offset in offsets.items():
            of_it = [each.offset for each in positions if each.replid == replid]
            if offset is None or not of_it or min(of_it) < offset:
                return False
        return True

    async def _positions(self) -> list[StreamPosition]:
        """Those of all lanes that are not over."""
        if self._names is None:
            # Names are looked for among all keys.
            self._names = [await position_names(end) for end in self._targets]
        found = []
        for end, names in zip(self._targets, self._names, strict=True):
            end.choose(POSITION_DB)
            for value in await end.pipeline([("GET", name) for name in names]) if names else ():
                if value is None:
                    # Lanes are others by now.
                    self._names = None
                told = position_in(value)
                if told is not None and not told.opened and told.position is not None:
                    found.append(told.position)
        return found
