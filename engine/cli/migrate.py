"""migrate: register, test, start and complete in one go, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import log_options
from engine.cli.check_table import warnings
from engine.cli.common_options import LossOption, OutputOption, StateOption, endpoint
from engine.cli.error_output import code_of, lost_writes, message_of, show
from engine.cli.log_options import LogFormatOption, LogLevelOption, VerboseOption
from engine.cli.output_format import as_json
from engine.cli.program_name import command
from engine.cli.progress_display import display
from engine.cli.report_summary import as_text
from engine.cli.transfer_options import fitting, spelled, with_transfer_options
from engine.cli.verb_runner import fail, perform
from engine.errors import Interrupted, TransferFailed, TransferStopped
from engine.model.endpoint import STDIN_PATH
from engine.model.report import Report
from engine.model.settings import TransferSettings

if TYPE_CHECKING:
    from engine.front.engine import Engine


@with_transfer_options
def migrate(
    source: Annotated[
        str,
        typer.Option(
            "--source",
            metavar="URL",
            help="Where the data is: [redis://][USER[:PASSWORD]@]HOST[:PORT], rediss://… (TLS), "
            "unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/NAME (the primary that Sentinels "
            "watch as NAME), of a cluster any node, or several: HOST:PORT,HOST:PORT; or rdb:PATH, "
            "a file of SAVE (rdb:- is standard input), or aof:PATH, an append-only file or the "
            "folder of one. None of its keys is written.",
        ),
    ],
    target: Annotated[
        str, typer.Option("--target", metavar="URL", help="Where the data is to go.")
    ],
    wanted: TransferSettings,
    replication_group_id: Annotated[
        str | None,
        typer.Option(
            "--replication-group-id",
            metavar="ID",
            show_default=False,
            help="The target's name in the state  [default: one made from its address]",
        ),
    ] = None,
    accept_source_loss: LossOption = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    verbose: VerboseOption = 0,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Move everything from one server to another.

    Registers the target, tests, starts and completes a migration, all in this process. An
    interrupted run is taken up again by the same command.
    """
    here, there = endpoint("--source", source), endpoint("--target", target)
    fitting(here, there, wanted)
    logs = log_options.begin(log_level, log_format, verbose)

    async def move(engine: Engine) -> Report:
        with display(quiet=logs) as shown:

            def warn(checks: Sequence[Mapping[str, Any]]) -> None:
                for warning in warnings(checks):
                    shown.note(warning)

            return await engine.migrate(
                here,
                there,
                settings=wanted,
                replication_group_id=replication_group_id,
                on_progress=shown.update,
                on_event=shown.note,
                on_checks=warn,
                accept_source_loss=accept_source_loss,
            )

    def again() -> str:
        secrets = any(
            each.password is not None
            or (each.sentinel is not None and each.sentinel.password is not None)
            for each in (here, there)
        )
        line = command(
            "migrate",
            ("--source", here.url),
            ("--target", there.url),
            *spelled(wanted),
            ("--replication-group-id", replication_group_id),
            ("--state", state),
        )
        with_what = " (add the passwords again)" if secrets else ""
        if here.rdb_path == STDIN_PATH:
            with_what += " (send the snapshot into it again)"
        return f"To go on{with_what}:  {line}"

    try:
        report = perform(state, move)
    except Exception as error:
        report = Report(
            status="stopped" if isinstance(error, Interrupted) else "failed",
            errors=(f"{code_of(error)}: {message_of(error)}",),
        )
        fail(error, output, on_interrupt=again, result=report.to_dict(), indent=None)
    if report.status != "done":
        if output == "text":
            show(as_text(report))
        reason = report.errors[0] if report.errors else f"the transfer has {report.status}"
        end = TransferFailed(reason)
        if report.status == "stopped":
            # With a full stop at its end it says itself what to do.
            mend = "" if reason.endswith(".") else "Correct that. "
            remedy = f"{mend}Then the same command goes on."
            end = TransferStopped(f"stopped: {reason}", remedy=remedy)
        fail(end, output, result=report.to_dict(), indent=None)
    if (lost := lost_writes(report)) is not None:
        if output == "text":
            show(as_text(report))
        fail(lost, output, result=report.to_dict(), indent=None)
    show(as_json(report.to_dict(), indent=None) if output == "json" else as_text(report))
