"""resume-migration: go on with one that was stopped, or whose worker died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.cli import log_options
from engine.cli.common_options import (
    GroupOption,
    LossOption,
    OutputOption,
    StateOption,
    WaitOption,
)
from engine.cli.log_options import LogFormatOption, LogLevelOption, VerboseOption
from engine.cli.transfer_options import with_changes
from engine.cli.verb_runner import respond
from engine.cli.wait_option import as_shown, follow, how_to_go_on
from engine.model.settings import Changes

if TYPE_CHECKING:
    from engine.front.engine import Engine


@with_changes
def resume_migration(
    replication_group_id: GroupOption,
    wanted: Changes,
    accept_source_loss: LossOption = False,
    wait: WaitOption = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    verbose: VerboseOption = 0,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Go on with a stopped migration.

    Also with one whose worker died: from its checkpoint.
    """
    log_options.hand_on(log_level, log_format, verbose)

    async def resume(engine: Engine) -> dict[str, Any]:
        response = await engine.resume_migration(
            replication_group_id, accept_source_loss=accept_source_loss, **wanted
        )
        return await follow(engine, replication_group_id, "in-sync") if wait else response

    respond(
        state,
        output,
        resume,
        as_shown=as_shown,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state),
    )
