"""Checkpoints of a migration in this process: what they hold, and engines that die at one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from engine.errors import StateError
from engine.model.checkpoint import Checkpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.transfer.checkpoint_store import CheckpointStore, MemoryCheckpoint


def online_checkpoint(store: CheckpointStore) -> OnlineCheckpoint:
    """What a store holds of a migration that follows its source."""
    found = store.load()
    assert found is not None
    assert isinstance(found.position, OnlineCheckpoint)
    return found.position


class DiesAt(MemoryCheckpoint):
    """An engine that dies just when it would write what `moment` is true of. It tidies nothing up.

    `left` is what the next engine finds.
    """

    def __init__(self, moment: Callable[[OnlineCheckpoint], bool]) -> None:
        super().__init__()
        self._moment = moment

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it down, or die."""
        if isinstance(checkpoint.position, OnlineCheckpoint) and self._moment(checkpoint.position):
            raise StateError("died here")
        super().save(checkpoint)

    def left(self) -> MemoryCheckpoint:
        """A store of the next engine's own, with what this one has written."""
        store, found = MemoryCheckpoint(), self.load()
        assert found is not None
        store.save(found)
        return store


class FileCheckpoint(MemoryCheckpoint):
    """One in a file, for an engine in a process of its own that is killed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            super().save(Checkpoint.from_dict(json.loads(path.read_text())))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it, whole or not at all."""
        super().save(checkpoint)
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps(checkpoint.to_dict()))
        os.replace(written, self._path)


def promoting(mark: OnlineCheckpoint) -> bool:
    """The engine is about to promote the target."""
    return mark.promoting


def opened(mark: OnlineCheckpoint) -> bool:
    """The engine knows that the target is promoted."""
    return mark.opened
