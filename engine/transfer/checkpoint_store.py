"""What the target has acknowledged, written down.

A checkpoint is read, or written after the acknowledgement, never before. The store is handed in
by what runs the transfer.
"""

from __future__ import annotations

from typing import Protocol

from engine.model.checkpoint import Checkpoint
from engine.model.lane_plan import PlannedLane


class CheckpointStore(Protocol):
    """Where a transfer's checkpoint is kept. Both calls raise `StateError`."""

    def load(self) -> Checkpoint | None:
        """The last checkpoint saved, None at the start."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Make `checkpoint` durable before returning."""
        ...


class LaneCheckpoints(CheckpointStore, Protocol):
    """The same of a transfer that may have several lanes. All raise `StateError`."""

    @property
    def lanes(self) -> tuple[PlannedLane, ...] | None:
        """The lanes that were planned, none where there is one without a name; None: nothing was
        planned yet."""
        ...

    def plan(self, lanes: tuple[PlannedLane, ...]) -> None:
        """Keep which lanes there are, before any of them begins."""
        ...

    def of_lane(self, name: str) -> CheckpointStore:
        """Where the checkpoint of this lane is kept."""
        ...


class MemoryCheckpoint:
    """A store for runs that need not survive their process."""

    def __init__(self) -> None:
        self._checkpoint: Checkpoint | None = None
        self._of_lanes: dict[str, MemoryCheckpoint] = {}
        self.lanes: tuple[PlannedLane, ...] | None = None
        """As of `LaneCheckpoints`."""

    def plan(self, lanes: tuple[PlannedLane, ...]) -> None:
        """Keep which lanes there are."""
        self.lanes = lanes

    def of_lane(self, name: str) -> CheckpointStore:
        """The store of a lane."""
        return self._of_lanes.setdefault(name, MemoryCheckpoint())

    def load(self) -> Checkpoint | None:
        """The last checkpoint saved in this process."""
        return self._checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep `checkpoint`."""
        self._checkpoint = checkpoint
