"""Options of the log, and what they come to: this process's log, and that of workers it starts."""

from __future__ import annotations

import os
from typing import Annotated, get_args

import typer

from engine.logs import output as log_output
from engine.logs.output import Form, Level

LogLevelOption = Annotated[
    Level | None,
    typer.Option(
        "--log-level",
        show_default=False,
        help="How much to log, on stderr; a worker process: in worker-ID.log beside the state.  "
        "[default: $STARTMIGRATION_LOG_LEVEL, else info]",
    ),
]
LogFormatOption = Annotated[
    Form | None,
    typer.Option(
        "--log-format",
        show_default=False,
        help="Log lines of text, or one JSON object a line.  "
        "[default: $STARTMIGRATION_LOG_FORMAT, else text]",
    ),
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="As --log-level info; twice: as --log-level debug.",
    ),
]


def begin(
    level: Level | None, form: Form | None, verbose: int, *, otherwise: Level | None = None
) -> bool:
    """Have this process log to stderr as the options, else the environment, say; workers that it
    starts log in the same way. Whether it logs now.

    `otherwise`: the level where neither says anything; None: it does not log then. Raises
    `typer.BadParameter` for a value of the environment that does not exist.
    """
    hand_on(level, form, verbose)
    if not {log_output.LEVEL_VARIABLE, log_output.FORM_VARIABLE} & os.environ.keys():
        if otherwise is None:
            return False
        os.environ[log_output.LEVEL_VARIABLE] = otherwise
    log_output.to_stderr(*log_output.from_environment())
    return True


def hand_on(level: Level | None, form: Form | None, verbose: int) -> None:
    """Have worker processes log as the options, else the environment, say.

    Raises `typer.BadParameter` for a value of the environment that does not exist.
    """
    level = level or (("info", "debug")[min(verbose, 2) - 1] if verbose else None)
    for variable, chosen, known in (
        (log_output.LEVEL_VARIABLE, level, get_args(Level)),
        (log_output.FORM_VARIABLE, form, get_args(Form)),
    ):
        if chosen is not None:
            os.environ[variable] = chosen
        if (found := os.environ.get(variable, known[0])) not in known:
            listed = ", ".join(known)
            raise typer.BadParameter(f"{variable} is {found!r}: expected one of {listed}")
