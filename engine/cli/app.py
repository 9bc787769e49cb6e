"""The application: its verbs, and how it starts and ends."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer

from engine.cli import node_list_option
from engine.cli.error_output import complain, unwritten_output
from engine.cli.program_name import program
from engine.cli.verb_runner import FAILED, INTERRUPTED
from engine.errors import EngineError
from engine.front import verbs

DISTRIBUTION = "startmigration"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
COMPLETE = f"_{DISTRIBUTION.upper()}_COMPLETE"
"""In the environment: a shell asks for its completion script (`source_bash`), or for words."""
VERBS: Mapping[str, str] = {verb.name: verb.file for verb in verbs.VERBS}
"""Each verb's file in this package, with its function where that has another name."""
ALIASES = {verb.former: verb.name for verb in verbs.VERBS if verb.former}
"""Verbs by the names that they had before: they work as ever, and no help names them."""


def application(*only: str) -> typer.Typer:
    """The application, with `only` these of its verbs and aliases if any are named: a command line
    that begins with one needs no other, and each costs a start its file and its options."""
    # No rich: it would cost each start more than all the rest of the command line.
    made = typer.Typer(
        name=DISTRIBUTION,
        help="Move a live Redis or Valkey deployment into another one.",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    made.callback()(_options)
    for name in only or (*VERBS, *ALIASES):
        place = VERBS[ALIASES.get(name, name)]
        file, _, function = place.partition(".")
        verb: Callable[..., None] = getattr(import_module(f"engine.cli.{file}"), function or file)
        made.command(name, hidden=name in ALIASES)(verb)
    return made


def __getattr__(name: str) -> Any:
    if name == "app":
        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _print_version(wanted: bool) -> None:
    if wanted:
        # Here, for it takes longer to import than the whole command line.
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        except PackageNotFoundError:
            print(f"{DISTRIBUTION}, run where it is not installed")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Move a live Redis or Valkey deployment into another one."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130
    interrupted."""
    previous = signal.signal(signal.SIGTERM, _terminated)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An argument that is not UTF-8 is echoed somehow, and never a UnicodeEncodeError.
        sys.stdout.reconfigure(errors="backslashreplace")
    if COMPLETE in os.environ:
        # Only for a shell that asks: it costs a start nothing else.
        from typer._completion_classes import completion_init

        completion_init()
    try:
        code = _run(arguments)
    finally:
        written = _flush()
        signal.signal(signal.SIGTERM, previous)
    return code if written else code or FAILED


def _run(arguments: Sequence[str]) -> int:
    try:
        known = arguments[:1] if arguments and arguments[0] in {*VERBS, *ALIASES} else ()
        application(*known)(args=node_list_option.spread(arguments), prog_name=program())
        return 0
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except EngineError as error:
        # The answer could not be printed.
        complain(error)
        return FAILED
    except OSError as error:
        # Of what the verbs' framework prints; all else is the verbs' own.
        if error.errno not in _FULL:
            raise
        complain(unwritten_output(error))
        return FAILED


def _flush() -> bool:
    """Write what is left; False: standard output does not take it, which is said."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        complain(unwritten_output(error))
        return False
    return True


def _terminated(_number: int, _frame: FrameType | None) -> None:
    # Before the event loop runs there is nothing to save: the same way out as Ctrl-C.
    raise KeyboardInterrupt
