"""What the lanes of one target share there: whether it had keys of its own, and what it evicts.

A server counts its keys and its evictions in one number for all lanes.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.model.online_checkpoint import OnlineCheckpoint


class SharedTarget:
    """One target, for all lanes that write to it; also where that is one alone."""

    def __init__(self) -> None:
        self._marks: list[Callable[[], OnlineCheckpoint]] = []
        self.lanes: list[str] = []
        """Their names."""

    def join(self, lane: str, mark: Callable[[], OnlineCheckpoint]) -> None:
        """One more lane; `mark` tells how far it has gone."""
        if lane not in self.lanes:
            self.lanes.append(lane)
        self._marks.append(mark)

    def had_keys(self, keys: int) -> bool:
        """Whether it had keys of its own before the first write of any lane; it has `keys` now. No
        lane writes before all of them have asked."""
        begun = [mark() for mark in self._marks if mark().begun]
        return any(mark.had_keys for mark in begun) if begun else keys > 0
