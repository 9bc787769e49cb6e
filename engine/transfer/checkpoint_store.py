"""What the target has acknowledged, written down.

A checkpoint is read, or written after the acknowledgement, never before. The store is handed in
by what runs the transfer.
"""

from __future__ import annotations

from typing import Protocol

from engine.model.checkpoint import Checkpoint


class CheckpointStore(Protocol):
    """Where a transfer's checkpoint is kept. Both calls raise `StateError`."""

    def load(self) -> Checkpoint | None:
        """The last checkpoint saved, None at the start."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Make `checkpoint` durable before returning."""
        ...


class MemoryCheckpoint:
    """A store for runs that need not survive their process."""

    def __init__(self) -> None:
        self._checkpoint: Checkpoint | None = None

    def load(self) -> Checkpoint | None:
        """The last checkpoint saved in this process."""
        return self._checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep `checkpoint`."""
        self._checkpoint = checkpoint
