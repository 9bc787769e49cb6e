"""`--tune-source`: the source's own settings for the time of a snapshot, and back, crash or not."""

from __future__ import annotations

from engine.transfer.control_connections import Endpoints
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.shared_source import SharedSource

_NAME = "rdbcompression"


class SourceTuning:
    """Has the source send its snapshot uncompressed: compressing is most of its work.

    Lanes that share a source change it once, when the first one is about to copy, and put it back
    when the last one has; the checkpoint of the one that changed it has what was set before.
    """

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        shared: SharedSource,
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._shared = shared
        shared.tuned.append(checkpoint)

    async def tune(self) -> None:
        """What was set before is written down first, so that the next engine can put it
        back. Raises `LinkError`, `ServerError`, `StateError`."""
        self._shared.copying.add(self._context.lane)
        async with self._shared.tuning, self._ends.admin("source") as end:
            reply = await end.call("CONFIG", "GET", _NAME)
            was = reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else ""
            if was != "yes":
                return
            await self._checkpoint.save(tuned=was)
            await end.call("CONFIG", "SET", _NAME, "no")
        self._context.on_event(f"the source's {_NAME} is off for the time of the snapshot")

    async def untune(self) -> None:
        """Put back what `tune` has changed, or an engine before us, unless another lane copies from
        the source."""
        shared = self._shared
        shared.copying.discard(self._context.lane)
        async with shared.tuning:
            tuned = [each for each in shared.tuned if each.mark.tuned]
            if not tuned or shared.copying:
                return
            async with self._ends.admin("source") as end:
                await end.call("CONFIG", "SET", _NAME, tuned[0].mark.tuned)
            for each in tuned:
                each.note(tuned="")
        self._context.on_event(f"the source's {_NAME} is as it was")
