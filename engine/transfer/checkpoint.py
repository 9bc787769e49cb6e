"""What the target has acknowledged, written down.

A checkpoint is read, or written after the acknowledgement, never before. The store is handed in
by whoever runs the transfer.
"""

from __future__ import annotations

from typing import Protocol

from engine.model.position import ScanPosition


class CheckpointStore(Protocol):
    """Where a transfer's position is kept. Both calls raise `StateError`."""

    def load(self) -> ScanPosition | None:
        """The last position saved, None at the start."""
        ...

    def save(self, position: ScanPosition) -> None:
        """Make `position` durable before returning."""
        ...


class MemoryCheckpoint:
    """A store for runs that need not survive their process."""

    def __init__(self) -> None:
        self._position: ScanPosition | None = None

    def load(self) -> ScanPosition | None:
        """The last position saved in this process."""
        return self._position

    def save(self, position: ScanPosition) -> None:
        """Keep `position`."""
        self._position = position
