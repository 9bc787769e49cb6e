"""set-migration-rate: how fast a migration moves data, while it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli import sizes
from engine.cli.common_options import GroupOption, OutputOption, StateOption, understood
from engine.cli.verb_runner import respond


def set_migration_rate(
    replication_group_id: GroupOption,
    rate: Annotated[
        str | None,
        typer.Option(
            "--bytes",
            metavar="SIZE",
            show_default=False,
            help="At most this many bytes a second: 20mb; 0: no bound.",
        ),
    ] = None,
    keys: Annotated[
        int | None,
        typer.Option(
            "--keys",
            metavar="N",
            min=0,
            show_default=False,
            help="At most this many keys a second, or commands of the stream; 0: no bound.",
        ),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="As fast as both ends are.")] = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Bound the speed of a migration.

    At once, without a restart, and for the workers that come too. What is not given stays as it is.
    """
    if off and (rate is not None or keys is not None):
        raise typer.BadParameter(
            "--off does not go together with --bytes and --keys", param_hint="--off"
        )
    if not off and rate is None and keys is None:
        raise typer.BadParameter("give --bytes, --keys or both; or --off", param_hint="--bytes")
    nbytes = None if rate is None else understood("--bytes", lambda: sizes.parse(rate))
    respond(
        state,
        output,
        lambda engine: engine.set_migration_rate(
            replication_group_id, bytes_per_second=nbytes, keys_per_second=keys, off=off
        ),
    )
