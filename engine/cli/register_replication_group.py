"""register-replication-group: name a target deployment."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli.common_options import GroupOption, OutputOption, StateOption, endpoint
from engine.cli.verb_runner import respond


def register_replication_group(
    replication_group_id: GroupOption,
    primary_endpoint: Annotated[
        str,
        typer.Option(
            "--primary-endpoint",
            metavar="URL",
            help="The target's primary: redis://HOST:PORT, rediss://…, unix:///PATH, "
            "redis+sentinel://HOST:PORT,HOST:PORT/NAME. Credentials belong into the configuration: "
            "they are not kept with the group.",
        ),
    ],
    description: Annotated[str, typer.Option("--description", metavar="TEXT")] = "",
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Name a target deployment.

    It becomes a replication group, which migrations go into.
    """
    primary = endpoint("--primary-endpoint", primary_endpoint)
    respond(
        state,
        output,
        lambda engine: engine.register_replication_group(
            replication_group_id, primary, description=description
        ),
    )
