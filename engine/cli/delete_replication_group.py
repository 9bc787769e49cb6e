"""delete-replication-group: forget a group."""

from __future__ import annotations

from engine.cli.common_options import GroupOption, OutputOption, StateOption
from engine.cli.verb_runner import respond


def delete_replication_group(
    replication_group_id: GroupOption,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Forget a replication group. Its servers and their data are not touched."""
    respond(state, output, lambda engine: engine.delete_replication_group(replication_group_id))
