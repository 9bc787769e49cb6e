"""What a failed command says: a line on stderr, and with `--output json` an object on stdout; and
where its answer cannot be printed."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.output_format import clean
from engine.errors import ApiFault, EngineError, TransferFailed

if TYPE_CHECKING:
    from engine.model.report import Report

DEBUG_VARIABLE = "STARTMIGRATION_DEBUG"
_PACKAGE = str(Path(__file__).resolve().parents[1])


def code_of(error: BaseException) -> str:
    """The fault's code: the API's own, or the name of the error's class in the tree of errors."""
    if isinstance(error, ApiFault):
        return error.code
    if isinstance(error, EngineError):
        # A layer's private subclass is no name for the outside.
        named = (
            kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "engine.errors"
        )
        return next(named)
    return "InternalError"


def message_of(error: BaseException) -> str:
    """One line for a person.

    Of an unforeseen error, only the class and the place: its text may hold anything, a
    URL with a password included. The trace is shown on request.
    """
    if isinstance(error, EngineError):
        return clean(sentences(error))
    again = "" if debugging() else f" Run again with {DEBUG_VARIABLE}=1 to see the trace."
    return f"{type(error).__name__} in {_place(error)}: this is a bug.{again}"


def lost_writes(report: Report) -> TransferFailed | None:
    """What a cut-over has left behind that the source acknowledged; None: nothing."""
    if report.status != "done" or not report.lost_writes:
        return None
    return TransferFailed(
        f"the target is promoted, and {report.lost_writes}",
        remedy="The migration is complete; what is missing has to be written at the target again.",
        fault="source",
    )


def sentences(error: EngineError) -> str:
    """The error's message and its remedy, as sentences."""
    if not error.remedy:
        return error.message
    stop = "" if error.message.endswith((".", "!", "?", ":")) else "."
    return f"{error.message}{stop} {error.remedy}"


def error_object(error: BaseException) -> dict[str, Any]:
    """The members `Code`, `Message` and `Type` (whose fault: the Sender's or the Receiver's), and
    the `Reason` of a fault that has one."""
    sender = isinstance(error, EngineError) and error.fault == "user"
    if isinstance(error, ApiFault):
        sender = error.http_status < 500
    answer = {
        "Code": code_of(error),
        "Message": message_of(error),
        "Type": "Sender" if sender else "Receiver",
    }
    reason = getattr(error, "reason", None) if isinstance(error, EngineError) else None
    return answer if reason is None else {**answer, "Reason": clean(reason)}


def complain(error: BaseException) -> None:
    """Print `CODE: message` on stderr, after the trace of an unforeseen error if it is wanted."""
    if debugging() and not isinstance(error, EngineError):
        traceback.print_exception(error)
    print(f"{code_of(error)}: {message_of(error)}", file=sys.stderr)


def show(text: str) -> None:
    """Print a line, or lines, of the answer. Raises `EngineError` where standard output does not
    take them (a full disk), `BrokenPipeError` where its reader has gone."""
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten_output(error) from None


def unwritten_output(error: OSError) -> EngineError:
    """What is said where standard output takes nothing more: all else goes nowhere from here on."""
    # Python would write it again, and complain, when it closes it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EngineError(
        f"standard output cannot be written: {error.strerror}",
        remedy="What was printed is not complete.",
        fault="user",
    )


def debugging() -> bool:
    """Whether traces are wanted."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(_PACKAGE)] or frames
    if not own:
        return "an unknown place"
    name = own[-1].filename.removeprefix(str(Path(_PACKAGE).parent)).lstrip("/")
    return f"{name}:{own[-1].lineno}"
