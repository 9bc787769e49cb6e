"""The figures of a lane, while it follows and while it does not."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.model.progress import Phase
from engine.sources.replica import ReplicaSource
from engine.targets.applier import Applier
from engine.targets.restore_writer import RestoreWriter
from engine.transfer.catch_up_monitor import CatchUpMonitor
from engine.transfer.follow import Follower
from engine.transfer.formatting import size_words
from engine.transfer.full_proof import FullProof
from engine.transfer.key_resync import KeyResync
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.target_monitor import TargetMonitor

# Figures of a source that nothing listens to.
_UNHEARD = {"lag_bytes": None, "lag_seconds": None}
# The same behind the cut-over.
_OVER = {"link": "", "lag_bytes": 0, "lag_seconds": 0.0}


class LaneFigures:
    """Members of `Progress`, asked for by calling it."""

    def __init__(
        self,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        source: ReplicaSource,
        writer: RestoreWriter,
        target_watch: TargetMonitor,
        catch_up_monitor: CatchUpMonitor,
    ) -> None:
        self._checkpoint = checkpoint
        self._context = context
        self._source = source
        self._writer = writer
        self._target_watch = target_watch
        self._catch_up_monitor = catch_up_monitor
        self.follower: Follower | None = None
        """What follows the source, if anything does."""
        self.resync: KeyResync | None = None
        """What reads keys again for it."""
        self.proof: FullProof | None = None
        """What compares every key, where that is wanted."""
        self.applier: Applier | None = None
        """What writes to the target, if anything does."""
        self.restarts = 0
        """How often both ends were dialled again."""
        self.source_lost = False
        """The link to the source is what was lost."""
        # Where the last follower stood, and the commands of all those before the one that runs.
        self._stood: dict[str, Any] = {}
        self._commands = 0
        # The same as it was known when that one was let go.
        self._let_go_at: dict[str, Any] = {}
        # The source was heard last, by the loop's clock, when that follower was let go.
        self._heard_at: float | None = None

    def start_anew(self) -> None:
        """Another snapshot begins: offsets behind it have nothing to do with those before it."""
        self._stood = {"commands": self._commands}

    def let_go(self, follower: Follower) -> None:
        """`follower` does not run any more."""
        self.follower = None
        self._let_go_at = self._where(follower)
        # Nothing listens now: what the source has sent is not known, unless nothing more counts.
        over = _OVER if self._checkpoint.mark.opened else _UNHEARD
        self._stood = {**self._let_go_at, **over}
        self._commands = self._stood["commands"]
        seconds = self._let_go_at["source_heard_seconds"]
        now = asyncio.get_running_loop().time()
        self._heard_at = None if seconds is None else now - seconds

    @property
    def how_far(self) -> str:
        """For a migration that is aborted: what was in sync and what was not."""
        context, stood = self._context, self._let_go_at or self()
        if "applied_offset" not in stood:
            return (
                f"in {context.phase}, with {context.progress.keys_words} of the snapshot "
                "acknowledged"
            )
        lag = stood["lag_bytes"]
        if lag is None:
            return "behind the source by an unknown number of bytes, and not verified"
        return f"{size_words(lag)} behind the source, and not verified"

    def __call__(self) -> dict[str, Any]:
        """The members of `Progress` that only this way knows."""
        follower, resync, applier = self.follower, self.resync, self.applier
        mark = self._checkpoint.mark
        figures: dict[str, Any] = {
            "retries": self._context.failed_dials
            + self._source.failed_dials
            + self._writer.retries
            + self.restarts
            + (applier.retries if applier else 0),
            "rebuilt_keys": self._writer.rebuilt,
            "reconnects": self._writer.reconnects + (applier.reconnects if applier else 0),
            "spool_bytes": self._source.spooled,
            "target_heard_seconds": self._target_watch.heard_seconds,
            "repaired_keys": mark.repaired_keys + (resync.repaired if resync else 0),
            "held_keys": resync.waiting if resync else 0,
            "partial_syncs": mark.partial_syncs,
            "full_syncs": mark.full_syncs,
        }
        if self.proof is not None:
            figures |= self.proof.figures()
        if self._context.phase is Phase.SNAPSHOT:
            figures |= {
                "link": self._source.link,
                "source_heard_seconds": self._source.heard_seconds,
            }
        return figures | (self._unfollowed() if follower is None else self._where(follower))

    def _unfollowed(self) -> dict[str, Any]:
        """The same while no follower runs."""
        if "link" not in self._stood or self._checkpoint.mark.opened:
            return self._stood
        # While the target is what is waited for, nothing tells of the source's link.
        figures = {**self._stood, "link": "down" if self.source_lost else ""}
        if self._heard_at is not None:
            seconds = asyncio.get_running_loop().time() - self._heard_at
            figures["source_heard_seconds"] = float(int(seconds))
        return figures

    def _where(self, follower: Follower) -> dict[str, Any]:
        return {
            "commands": self._commands + follower.commands,
            "applied_offset": follower.position.offset,
            **self._catch_up_monitor.figures(follower),
        }
