"""disconnect-clients: clients that come back to the source behind a cut-over."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli import durations
from engine.cli.common_options import GroupOption, OutputOption, StateOption, understood
from engine.cli.verb_runner import respond


def disconnect_clients(
    replication_group_id: GroupOption,
    span: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            show_default=False,
            help="For how long from now: 90s, 10m, 2h.  [default: as the migration was started]",
        ),
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Do not disconnect them any more.")] = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Keep clients away from the source.

    A cut-over does so for a while by itself (--disconnect-for): a client that dials before its name
    for the server points to the target would stay at the source. This goes on with it, begins it
    again, or stops it.
    """
    if stop and span is not None:
        raise typer.BadParameter("--stop and --for exclude each other", param_hint="--stop")
    seconds = 0.0 if stop else None
    if span is not None:
        seconds = understood("--for", lambda: durations.parse(span))
    respond(
        state,
        output,
        lambda engine: engine.disconnect_clients(replication_group_id, seconds=seconds),
    )
