"""complete-migration: cut over, or abort the migration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.common_options import GroupOption, OutputOption, StateOption, WaitOption
from engine.cli.verb_runner import respond
from engine.cli.wait_option import as_shown, follow, how_to_go_on, lacking

if TYPE_CHECKING:
    from engine.front.engine import Engine


def complete_migration(
    replication_group_id: GroupOption,
    force: Annotated[
        bool,
        typer.Option(
            "--force/--no-force",
            help="Abort: nothing is cut over, and no fence is put up. The source accepts writes "
            "and is not drained, the target stays as it is.",
        ),
    ] = False,
    skip_verification: Annotated[
        bool,
        typer.Option(
            "--skip-verification",
            help="Cut over without the comparison of both ends; fence, drain and write block stay "
            "as they are.",
        ),
    ] = False,
    wait: WaitOption = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Cut over: the group becomes available.

    Refused while not everything has arrived, or where both ends differ; the reason says which.
    """
    if force and skip_verification:
        raise typer.BadParameter(
            "--force aborts the migration, --skip-verification cuts over: give one of them.",
            param_hint="--skip-verification",
        )

    async def complete(engine: Engine) -> dict[str, Any]:
        response = await engine.complete_migration(
            replication_group_id, force=force, skip_verification=skip_verification
        )
        return await follow(engine, replication_group_id, "available") if wait else response

    respond(
        state,
        output,
        complete,
        as_shown=as_shown,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state),
        lacks=lacking,
    )
