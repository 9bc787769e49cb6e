"""How many sources send a snapshot at once (`--parallel-snapshots`): each of them forks for it.

Lanes that read from one source take one turn together: they ask at once, and so share its fork.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable


class SnapshotTurns:
    """The turns of all lanes of a migration; at most `most` sources have one at a time, 0: all."""

    def __init__(self, most: int) -> None:
        self.most = most
        """See the class."""
        self._lanes: Counter[Hashable] = Counter()
        self._changed = asyncio.Event()

    @property
    def words(self) -> str:
        """What is waited for."""
        return (
            f"the snapshot waits until those of other shards have ended: {self.most} at once "
            "(--parallel-snapshots)"
        )

    async def take(self, source: Hashable, report: Callable[[str], None]) -> None:
        """Wait for a turn of `source`, which `give_back` ends. `report` is told what is waited for,
        and, with an empty text, that it is over."""
        while self.most and source not in self._lanes and len(self._lanes) >= self.most:
            report(self.words)
            self._changed.clear()
            await self._changed.wait()
        self._lanes[source] += 1
        report("")

    def give_back(self, source: Hashable) -> None:
        """The end of a lane's turn."""
        self._lanes[source] -= 1
        if not self._lanes[source]:
            del self._lanes[source]
            self._changed.set()
