"""What the lanes of one source share there: one fence, and the settings that are changed.

Each lane follows the source over a link of its own, but writers are paused once. So one of the
lanes, that which `leads`, does all that is done at the source: it puts the fence up, has it in its
checkpoint, takes it away, blocks writes, and lets clients go. The others look here where the fence
is and at which offset it stands, and drain up to that. A step of the barrier ends on all lanes
before the next one begins, so what the leader has found is there when the others need it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.model.endpoint import Endpoint
from engine.model.replication import Replication
from engine.transfer.fence import Fence

if TYPE_CHECKING:
    from engine.transfer.fence_in_checkpoint import FenceUpkeep
    from engine.transfer.lane_cut_over import LaneCutOver
    from engine.transfer.online_checkpoint_writer import CheckpointWriter
    from engine.transfer.source_primary import Head


class SharedSource:
    """One source, for all lanes that read from it; also where that is one alone."""

    def __init__(self) -> None:
        self.upkeeps: list[FenceUpkeep] = []
        """Of all lanes: each knows whether its target was lost to another migration."""
        self.tuning = asyncio.Lock()
        """Held while settings of the source are changed, or put back."""
        self.tuned: list[CheckpointWriter] = []
        """The checkpoints of all lanes: that of one has what these settings were."""
        self.copying: set[str] = set()
        """The lanes whose snapshots are under way, or are about to begin."""
        self._lanes: list[LaneCutOver] = []
        self._forget()

    # --- Of the cut-over that goes on ---

    def _forget(self) -> None:
        self.head: Head | None = None
        """Where the source's writes are taken."""
        self.address = ""
        """The `host:port` of that server; empty: the source itself."""
        self.at: Endpoint | None = None
        """The same as an endpoint."""
        self.unasked = ""
        """Why the primary that takes the writes could not be asked."""
        self.fence: Fence | None = None
        """The fence there."""
        self.fence_ends: float | None = None
        """When its time is over, by the loop's clock; None: none was put up."""
        self.replication: Replication | None = None
        """What that server said of itself when it was put up."""

    def take_part(self, lane: LaneCutOver) -> None:
        """`lane` takes part in the cut-over."""
        self._lanes.append(lane)

    def leave(self, lane: LaneCutOver) -> None:
        """The cut-over is over for `lane`."""
        self._lanes.remove(lane)
        if not self._lanes:
            self._forget()

    @property
    def lanes(self) -> list[LaneCutOver]:
        """Those that take part in the cut-over."""
        return self._lanes

    @property
    def leader(self) -> LaneCutOver | None:
        """The lane that does what is done at the source; where the one that leads takes no part,
        because its target is open already, the first that does."""
        return next((lane for lane in self._lanes if lane.leads), next(iter(self._lanes), None))
