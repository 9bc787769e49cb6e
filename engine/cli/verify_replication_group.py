"""verify-replication-group: a worker process compares every key of a group with its source."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from engine.cli import node_list_option, sizes
from engine.cli.common_options import (
    GroupOption,
    OutputOption,
    StateOption,
    endpoints,
    understood,
)
from engine.cli.verb_runner import respond


def verify_replication_group(
    replication_group_id: GroupOption,
    customer_node_endpoint_list: Annotated[
        list[str] | None,
        typer.Option(
            node_list_option.OPTION,
            metavar="Address=HOST,Port=PORT …",
            show_default=False,
            help="What it is compared with.  [default: what it was migrated from]",
        ),
    ] = None,
    mode: Annotated[
        Literal["count", "ttl", "full"] | None,
        typer.Option("--mode", show_default=False, help="As of verify.  [default: full]"),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option("--match", metavar="GLOB", show_default=False, help="Keys that match."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            metavar="SIZE",
            show_default=False,
            help="Read at most this many bytes a second from both ends.  [default: no bound]",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the one that was stopped or killed, or has failed."
        ),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the one that is under way.")] = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Compare every key of a group with its source.

    The source is what it was migrated from, or another one that is named. A worker process does it;
    describe-replication-groups tells how far it is and what it has found.
    Nothing is written to either end. verify does the same in this process, of any two deployments.
    """
    nodes = None if customer_node_endpoint_list is None else endpoints(customer_node_endpoint_list)
    size = None if rate is None else understood("--rate", lambda: sizes.parse(rate))
    respond(
        state,
        output,
        lambda engine: engine.verify_replication_group(
            replication_group_id,
            nodes,
            mode=mode,
            match=match,
            rate=size,
            resume=resume,
            stop=stop,
        ),
    )
