"""The program's name, and command lines that a user can type."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def program() -> str:
    """How this program was called: `startmigration`, or `python -m engine`."""
    # While `-m` still looks for the module, argv[0] is the option itself.
    name = Path(sys.argv[0]).name
    return "python -m engine" if name in ("__main__.py", "-m") else "startmigration"


Option = tuple[str, str | float | None]


def command(verb: str, *options: Option) -> str:
    """A command line with those of the options that have a value (True: the bare option), quoted
    for a shell."""
    given: list[str] = []
    for name, value in options:
        if value is not None:
            given += (name,) if value is True else (name, str(value))
    return f"{program()} {shlex.join([verb, *given])}"
