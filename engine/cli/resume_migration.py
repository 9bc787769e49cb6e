"""resume-migration: go on with one that was stopped, or whose worker died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.cli.follow import as_told, follow, how_to_go_on
from engine.cli.options import GroupOption, OutputOption, StateOption, WaitOption
from engine.cli.session import respond

if TYPE_CHECKING:
    from engine.front.engine import Engine


def resume_migration(
    replication_group_id: GroupOption,
    wait: WaitOption = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Go on with a stopped migration.

    Also with one whose worker died: from its checkpoint.
    """

    async def resume(engine: Engine) -> dict[str, Any]:
        response = await engine.resume_migration(replication_group_id)
        return await follow(engine, replication_group_id, "in-sync") if wait else response

    respond(
        state,
        output,
        resume,
        as_told=as_told,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state),
    )
