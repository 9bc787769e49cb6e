"""What a migration asks of its lanes: all that it knows of one.

`MigratingLane` is a lane's way, `CutOverLane` its part in a cut-over, and `WatchedCluster` what
follows where a cluster's slots are. In the process of the migration they are a `transfer.lane.Lane`
with its `LaneCutOver`, and a `ClusterMonitor`; of a lane in another process they are what speaks to
that (`transfer.remote_lane`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from engine.errors import LinkError, ServerError
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.targets.applier import PositionMoved
from engine.targets.base import ReadAgain
from engine.transfer.cut_over_offer import Offer
from engine.transfer.migration_context import MigrationContext

LANES_OWN = (PositionMoved, ReadAgain, LinkError, ServerError)
"""What a lane deals with itself: it dials again, and goes on from what the target has."""


class CutOverLane(Protocol):
    """One lane's part in a cut-over: what each step of the tables in `transfer.cut_over` does, and
    what the barrier asks. A lane takes part from `begin` to `end`. What a method does, and raises:
    `transfer.lane_cut_over.LaneCutOver`."""

    @property
    def title(self) -> str:
        """What people read for the lane; empty for a migration's only one."""
        ...

    @property
    def promoted(self) -> bool:
        """Whether the target is open."""
        ...

    @property
    def decided(self) -> bool:
        """Whether the target is open, or may be."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether nothing is followed any more."""
        ...

    @property
    def again(self) -> bool:
        """Whether the cut-over that was refused is worth another try by itself."""
        ...

    @property
    def fence_seconds(self) -> float | None:
        """From the fence to the open target; None: it is not open."""
        ...

    @property
    def fence_ends(self) -> float | None:
        """When the fence's time is over, by the loop's clock; None: it was not put up yet."""
        ...

    @property
    def settle_ends(self) -> float:
        """When `settle` has to be through, by the loop's clock."""
        ...

    async def begin(self, followed: object) -> None:
        """A cut-over begins; of what is `followed`, as the lane's offer has it."""
        ...

    async def end(self) -> None:
        """It has come to its end, whatever that is."""
        ...

    # --- The steps ---

    def pass_gates(self) -> Awaitable[None]: ...
    def find_fence(self) -> Awaitable[None]: ...
    def compare_before(self) -> Awaitable[None]: ...
    def wait_for_replicas_before(self) -> Awaitable[None]: ...
    def prepare(self) -> Awaitable[None]: ...
    def record_fence(self) -> Awaitable[None]: ...
    def approach(self) -> Awaitable[None]: ...
    def pause(self) -> Awaitable[None]: ...
    def drain(self) -> Awaitable[None]: ...
    def resync(self) -> Awaitable[None]: ...
    def compare(self) -> Awaitable[None]: ...
    def wait_for_replicas(self) -> Awaitable[None]: ...
    def block_writes(self) -> Awaitable[None]: ...
    def look_at_role(self) -> Awaitable[None]: ...
    def promote(self) -> Awaitable[None]: ...
    def commit(self) -> Awaitable[None]: ...
    def let_go(self) -> Awaitable[None]: ...

    def compare_in_sync(self) -> Awaitable[None]: ...
    def restore_ttls(self) -> Awaitable[None]: ...
    def settle(self) -> Awaitable[None]: ...
    def look_at_slots(self) -> Awaitable[None]: ...
    def promote_in_sync(self) -> Awaitable[None]: ...
    def promote_snapshot(self) -> Awaitable[None]: ...
    def commit_unfenced(self) -> Awaitable[None]: ...
    def tidy_up(self) -> Awaitable[None]: ...

    def extend_ttls(self) -> Awaitable[None]: ...
    def extend_ttls_followed(self) -> Awaitable[None]: ...
    def remove_fence(self) -> Awaitable[None]: ...

    # --- What is told of it ---

    def late(self, doing: str) -> str:
        """Why it is refused when the fence's time was over while this was done."""
        ...

    def late_comparing(self) -> str:
        """The same of the comparison."""
        ...

    def late_settling(self) -> str:
        """The same of `settle`."""
        ...

    def refuse(self, reason: str) -> None:
        """It was refused."""
        ...

    def break_off(self, reason: str) -> None:
        """What the cut-over needs was lost."""
        ...

    def note_cut_over(self, step: str, waited: float) -> None:
        """The target is open, and all is done."""
        ...

    def note_in_sync(self) -> None:
        """The same where there was no fence."""
        ...

    def note_snapshot(self) -> None:
        """The same where nothing was followed."""
        ...


class MigratingLane(Protocol):
    """One lane's way. What a method does, and raises: `transfer.lane.Lane`."""

    on_look: Callable[[], None]
    """Called when it was looked where the lane stands."""

    @property
    def context(self) -> MigrationContext:
        """Where it stands."""
        ...

    @property
    def cut_over(self) -> CutOverLane:
        """What each step of a cut-over does there."""
        ...

    @property
    def offer(self) -> Offer | None:
        """The lane, while it could be cut over."""
        ...

    @property
    def taken_up(self) -> bool:
        """Whether `take_up` was called."""
        ...

    @property
    def held_before(self) -> bool | None:
        """Whether the target had keys of its own before; None: that is not known yet."""
        ...

    @property
    def mark(self) -> OnlineCheckpoint:
        """How far it has gone, as the checkpoint has it."""
        ...

    @property
    def promoted(self) -> bool:
        """Whether the target is its users' by now."""
        ...

    @property
    def in_doubt(self) -> bool:
        """Whether it is not known if the target is open: it has not answered since."""
        ...

    @property
    def begun(self) -> bool:
        """Whether the target has something of this migration, so that it can be gone on with."""
        ...

    @property
    def spooled_most(self) -> int:
        """Bytes that waited in the spool when there were most."""
        ...

    @property
    def left_out(self) -> list[str]:
        """What is no key and was not carried, in words."""
        ...

    @property
    def how_far(self) -> str:
        """For a migration that is aborted: what was in sync and what was not."""
        ...

    @property
    def may_move(self) -> bool:
        """Whether another process can go on with it just now, and nothing is waited for, or known
        of it, that would be lost by that."""
        ...

    @property
    def stuck(self) -> str:
        """Why the gate stays closed until an operator mends something; empty: it may open."""
        ...

    @property
    def stranded(self) -> bool:
        """Whether its cluster has the shard at one of its ends no more, or the slot of its own keys
        at another one, or a slot of what is copied: no snapshot of it comes to its end."""
        ...

    def beside(self, lanes: int) -> None:
        """So many lanes share the process, this one among them."""
        ...

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Look at both ends again and again meanwhile."""
        ...

    def take_up(self) -> None:
        """Go on from the checkpoint of an engine before us, if there is one."""
        ...

    async def connect(self) -> bool:
        """Both ends are there; whether nothing is left to do."""
        ...

    async def run(self) -> None:
        """Run until the target is open."""
        ...

    def note_broken(self, cause: Exception) -> tuple[str, bool]:
        """A cut-over broke here: in words, and whether the target may be open."""
        ...

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """Let go of both ends."""
        ...

    async def abandon(self) -> None:
        """Nothing goes on with it."""
        ...

    async def end_promoted(self) -> bool:
        """As `LaneOutcome.end_promoted`."""
        ...

    async def save_last(self, errors: list[str]) -> None:
        """Write the last checkpoint."""
        ...


class WatchedCluster(Protocol):
    """Follows where a cluster's slots are."""

    on_look: Callable[[], None]
    """Called behind each look."""

    @property
    def moved_for(self) -> float:
        """For how many seconds slots have belonged to other shards than planned."""
        ...

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Watch it meanwhile."""
        ...
