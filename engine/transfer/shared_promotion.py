"""What the lanes of one migration share at their cut-over, without knowing each other.

Each target is promoted by itself, and the promotion is to count on all of them or on none. So where
there are several lanes a promotion does not count before the lane's checkpoint says so (`opened`),
and that is written only when all targets have been promoted. From the first checkpoint on that has
it, there is no way back for any lane: an engine that comes back opens the other targets as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager

from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.transfer.shared_source import SharedSource
from engine.transfer.shared_target import SharedTarget
from engine.transfer.snapshot_turns import SnapshotTurns


class Peers:
    """The lanes of one migration, by their checkpoints."""

    def __init__(self, parallel_snapshots: int = 0) -> None:
        self.turns = SnapshotTurns(parallel_snapshots)
        """Of their snapshots."""
        self._checkpoints: list[Callable[[], OnlineCheckpoint]] = []
        self._sources: dict[Endpoint, SharedSource] = {}
        self._targets: dict[Endpoint, SharedTarget] = {}
        self.crashing: dict[str, tuple[DbKey, ...]] = {}
        """Keys at which a target's process ended, by the lane that left them out
        (`targets.crashing_values`): no lane of this run sends them."""
        self.switching: AbstractAsyncContextManager[object] = asyncio.Lock()
        """Held by the lane that has the applications' name moved."""

    def join(self, checkpoint: Callable[[], OnlineCheckpoint]) -> None:
        """One more lane; `checkpoint` tells how far it has gone."""
        self._checkpoints.append(checkpoint)

    def source_of(self, source: Endpoint, route: Route) -> SharedSource:
        """What the lane of this route shares with those that have the same source."""
        if not route.shared_source:
            return SharedSource()
        return self._sources.setdefault(source, SharedSource())

    def target_of(self, target: Endpoint, route: Route) -> SharedTarget:
        """The same of those that have the same target."""
        if not route.shared_target:
            return SharedTarget()
        return self._targets.setdefault(target, SharedTarget())

    @property
    def targets(self) -> Collection[SharedTarget]:
        """Those that several lanes may write to."""
        return self._targets.values()

    @property
    def all_crashing(self) -> tuple[DbKey, ...]:
        """Those of all lanes."""
        return tuple({key: None for keys in self.crashing.values() for key in keys})

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self._checkpoints) > 1

    @property
    def decided(self) -> bool:
        """Whether the target of any of them is open, so that those of all others are to be."""
        return any(checkpoint().opened for checkpoint in self._checkpoints)

    @property
    def switched(self) -> bool:
        """Whether the applications' name was moved, by any of them."""
        return any(checkpoint().switched for checkpoint in self._checkpoints)
