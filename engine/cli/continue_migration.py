"""continue-migration: go on with one that was paused."""

from __future__ import annotations

from engine.cli.common_options import GroupOption, OutputOption, StateOption
from engine.cli.verb_runner import respond


def continue_migration(
    replication_group_id: GroupOption,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Go on with a paused migration."""
    respond(state, output, lambda engine: engine.continue_migration(replication_group_id))
