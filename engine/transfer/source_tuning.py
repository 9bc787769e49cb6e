"""`--tune-source`: the source's own settings for the time of a snapshot, and back, crash or not."""

from __future__ import annotations

from engine.transfer.checkpoint_writer import CheckpointWriter
from engine.transfer.control_connections import Endpoints
from engine.transfer.migration_context import MigrationContext

_NAME = "rdbcompression"


class SourceTuning:
    """Has the source send its snapshot uncompressed: compressing is most of its work."""

    def __init__(
        self, ends: Endpoints, checkpoint: CheckpointWriter, context: MigrationContext
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context

    async def tune(self) -> None:
        """What was set before is written down first, so that the next engine can put it
        back. Raises `LinkError`, `ServerError`, `StateError`."""
        async with self._ends.admin("source") as end:
            reply = await end.call("CONFIG", "GET", _NAME)
            was = reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else ""
            if was != "yes":
                return
            await self._checkpoint.save(tuned=was)
            await end.call("CONFIG", "SET", _NAME, "no")
        self._context.on_event(f"the source's {_NAME} is off for the time of the snapshot")

    async def untune(self) -> None:
        """Put back what `tune` has changed, or an engine before us."""
        was = self._checkpoint.mark.tuned
        if not was:
            return
        async with self._ends.admin("source") as end:
            await end.call("CONFIG", "SET", _NAME, was)
        self._checkpoint.note(tuned="")
        self._context.on_event(f"the source's {_NAME} is as it was")
