"""This engine as a replica of the source: PSYNC's snapshot, until the target is in sync."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benches.adapters.engine import Engine

if TYPE_CHECKING:
    from benches.support.servers import Server


class EngineReplica(Engine):
    """With the source's own settings."""

    name = "engine_replica"
    options: tuple[str, ...] = ()

    def command(self, source: Server, target: Server, folder: Path) -> list[str]:
        command = super().command(source, target, folder)
        command[command.index("--source-type") + 1] = "replica"
        # The next rival wants to write to the source, if only by MIGRATE.
        return [*command, "--source-after", "resume", *self.options]


class EngineReplicaTuned(EngineReplica):
    """With `rdbcompression no` on the source for the time of the snapshot."""

    name = "engine_replica_tuned"
    options = ("--tune-source",)
