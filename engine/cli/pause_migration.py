"""pause-migration: a migration that moves nothing for a while."""

from __future__ import annotations

from engine.cli.common_options import GroupOption, OutputOption, StateOption
from engine.cli.verb_runner import respond


def pause_migration(
    replication_group_id: GroupOption,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Pause a migration.

    Nothing is written to the target. The worker stays, and a source that is followed stays
    connected: what it writes waits in the spool. continue-migration goes on with it; until then a
    cut-over is refused.
    """
    respond(state, output, lambda engine: engine.pause_migration(replication_group_id))
