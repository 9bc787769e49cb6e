"""unblock-source: the source of a migration that was completed accepts writes again."""

from __future__ import annotations

from engine.cli.common_options import GroupOption, OutputOption, StateOption
from engine.cli.verb_runner import respond


def unblock_source(
    replication_group_id: GroupOption,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Have the source accept writes again.

    After the cut-over the source refuses writes (NOREPLICAS). Writes that it accepts from now on
    are not replicated to the target.
    """
    respond(state, output, lambda engine: engine.unblock_source(replication_group_id))
