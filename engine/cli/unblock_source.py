"""release-source: the source that was cut over from takes writes again."""

from __future__ import annotations

from engine.cli.common_options import GroupOption, OutputOption, StateOption
from engine.cli.verb_runner import respond


def release_source(
    replication_group_id: GroupOption,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Have the source take writes again.

    Behind the cut-over it refuses them (NOREPLICAS). What is written to it from now on is carried
    to the target by nobody.
    """
    respond(state, output, lambda engine: engine.release_source(replication_group_id))
