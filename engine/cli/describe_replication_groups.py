"""describe-replication-groups: where groups and their migrations stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import paging
from engine.cli.common_options import OutputOption, StateOption
from engine.cli.verb_runner import respond

if TYPE_CHECKING:
    from engine.front.engine import Engine


def describe_replication_groups(
    replication_group_id: Annotated[
        str | None, typer.Option("--replication-group-id", metavar="ID", help="Only this one.")
    ] = None,
    max_records: Annotated[
        int | None,
        typer.Option("--max-records", metavar="N", help="One page of this many (20 to 100)."),
    ] = None,
    marker: Annotated[
        str | None,
        typer.Option("--marker", metavar="TEXT", help="The page after the one with this Marker."),
    ] = None,
    max_items: Annotated[
        int | None,
        typer.Option("--max-items", metavar="N", min=1, help="No more than this many in all."),
    ] = None,
    starting_token: Annotated[
        str | None,
        typer.Option("--starting-token", metavar="TEXT", help="Go on after a NextToken."),
    ] = None,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Show groups and their migrations.

    Without options for paging every page is read, as the AWS CLI does.
    """
    one_page = max_records is not None or marker is not None
    if one_page and (max_items is not None or starting_token is not None):
        raise typer.BadParameter(
            "--max-items and --starting-token do not go with --max-records and --marker",
            param_hint="--max-items",
        )

    async def describe(engine: Engine) -> dict[str, Any]:
        if one_page:
            return await engine.describe_replication_groups(
                replication_group_id,
                max_records=100 if max_records is None else max_records,
                marker=marker,
            )
        return await paging.collect(
            lambda after: engine.describe_replication_groups(replication_group_id, marker=after),
            "ReplicationGroups",
            max_items=max_items,
            token=starting_token,
        )

    respond(state, output, describe, asks=True)
