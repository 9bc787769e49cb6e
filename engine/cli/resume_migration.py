"""resume-migration: go on with one that was stopped, or whose worker died."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from engine.cli import durations, log_options, sizes
from engine.cli.common_options import (
    GroupOption,
    LossOption,
    OutputOption,
    StateOption,
    WaitOption,
    understood,
)
from engine.cli.log_options import LogFormatOption, LogLevelOption, VerboseOption
from engine.cli.verb_runner import respond
from engine.cli.wait import as_shown, follow, how_to_go_on

if TYPE_CHECKING:
    from engine.front.engine import Engine

T = TypeVar("T")


def resume_migration(
    replication_group_id: GroupOption,
    retry_for: Annotated[
        str | None,
        typer.Option(
            "--retry-for",
            metavar="DURATION",
            show_default=False,
            help="From now on: how long to wait for transient errors.  [default: as before]",
        ),
    ] = None,
    spool_directory: Annotated[
        str | None,
        typer.Option(
            "--spool-directory",
            metavar="PATH",
            show_default=False,
            help="From now on: where the source's writes wait on disk.  [default: as before]",
        ),
    ] = None,
    spool_bytes: Annotated[
        str | None,
        typer.Option(
            "--spool-bytes",
            metavar="SIZE",
            show_default=False,
            help="From now on: how much may wait there.  [default: as before]",
        ),
    ] = None,
    source_nodes: Annotated[
        list[str] | None,
        typer.Option(
            "--source-node",
            metavar="HOST:PORT",
            show_default=False,
            help="From now on: other servers of the source's replication; where the source cannot "
            "be reached, the one that was promoted is followed. HOST:PORT=detached: a copy that "
            "was detached on purpose.  [default: as before]",
        ),
    ] = None,
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
    patience = _read("--retry-for", retry_for, durations.parse)
    size = _read("--spool-bytes", spool_bytes, sizes.parse)
    log_options.hand_on(log_level, log_format, verbose)
    directory = None if spool_directory is None else str(Path(spool_directory).resolve())

    async def resume(engine: Engine) -> dict[str, Any]:
        response = await engine.resume_migration(
            replication_group_id,
            retry_for=patience,
            spool_bytes=size,
            spool_directory=directory,
            source_nodes=source_nodes,
            accept_source_loss=accept_source_loss,
        )
        return await follow(engine, replication_group_id, "in-sync") if wait else response

    respond(
        state,
        output,
        resume,
        as_shown=as_shown,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state),
    )


def _read(option: str, text: str | None, read: Callable[[str], T]) -> T | None:
    return None if text is None else understood(option, lambda: read(text))
