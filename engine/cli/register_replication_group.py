"""register-replication-group: name a target deployment."""

from __future__ import annotations

from typing import Annotated, Literal

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
            "redis+sentinel://HOST:PORT,HOST:PORT/NAME; of a cluster any node, or several: "
            "redis://HOST:PORT,HOST:PORT. Credentials belong into the configuration: "
            "they are not kept with the group.",
        ),
    ],
    description: Annotated[str, typer.Option("--description", metavar="TEXT")] = "",
    cluster_mode: Annotated[
        Literal["enabled", "disabled"],
        typer.Option(
            "--cluster-mode",
            help="Enabled: the target is a cluster, and a source may be named by several nodes. "
            "(Of a target that says that it is one this is found out.)",
        ),
    ] = "disabled",
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
            replication_group_id,
            primary,
            description=description,
            cluster_enabled=cluster_mode == "enabled",
        ),
    )
