"""complete-migration: cut over, or end the migration by force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.follow import as_told, follow, how_to_go_on
from engine.cli.options import GroupOption, OutputOption, StateOption, WaitOption
from engine.cli.session import respond

if TYPE_CHECKING:
    from engine.front.engine import Engine


def complete_migration(
    replication_group_id: GroupOption,
    force: Annotated[
        bool,
        typer.Option(
            "--force/--no-force",
            help="End it whether or not everything has arrived; the data that has stays.",
        ),
    ] = False,
    wait: WaitOption = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Cut over: the group becomes available.

    Refused while not everything has arrived, unless by --force.
    """

    async def complete(engine: Engine) -> dict[str, Any]:
        response = await engine.complete_migration(replication_group_id, force=force)
        return await follow(engine, replication_group_id, "available") if wait else response

    respond(
        state,
        output,
        complete,
        as_told=as_told,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state),
    )
