"""How many sources send a snapshot at once (`--parallel-snapshots`): each of them forks for it.

Lanes that read from one source take one turn together: they ask at once, and so share its fork.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from engine.transfer.shared_source import SharedSource


class SnapshotTurns:
    """The turns of all lanes of a migration; at most `most` sources have one at a time, 0: all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lanes: Counter[SharedSource] = Counter()
        self._changed = asyncio.Event()

    async def take(self, source: SharedSource, report: Callable[[str], None]) -> None:
        """Wait for a turn of `source`, which `give_back` ends. `report` is told what is waited for,
        and, with an empty text, that it is over."""
        while self._most and source not in self._lanes and len(self._lanes) >= self._most:
            report(
                f"the snapshot waits until those of other shards have ended: {self._most} at once "
                "(--parallel-snapshots)"
            )
            self._changed.clear()
            await self._changed.wait()
        self._lanes[source] += 1
        report("")

    def give_back(self, source: SharedSource) -> None:
        """The end of a lane's turn."""
        self._lanes[source] -= 1
        if not self._lanes[source]:
            del self._lanes[source]
            self._changed.set()
