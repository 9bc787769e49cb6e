"""describe-events: what happened."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.cli.common_options import OutputOption, StateOption
from engine.cli.output_format import table
from engine.cli.verb_runner import respond


def describe_events(
    replication_group_id: Annotated[
        str | None,
        typer.Option("--replication-group-id", metavar="ID", help="Only this group's events."),
    ] = None,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """List what happened to groups, oldest first."""
    respond(
        state,
        output,
        lambda engine: engine.describe_events(replication_group_id),
        as_shown=_as_table,
        asks=True,
    )


def _as_table(response: dict[str, Any]) -> str:
    rows = (
        (event["Date"].isoformat(timespec="seconds"), event["SourceIdentifier"], event["Message"])
        for event in response["Events"]
    )
    return table(("Date", "Group", "Message"), rows)
