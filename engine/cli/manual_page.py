"""The manual page, from the descriptions that `--help` shows:

    python -m engine.cli.manual_page > docs/startmigration.1

Kept in docs/, installed by the wheel; a test holds the file against this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import typer

from engine.cli.app import DISTRIBUTION, application

_EXIT_CODES = (
    ("0", "It is done."),
    ("1", "It failed or stopped, or a key was not migrated; the message says which."),
    ("2", "The command line is wrong; nothing was done."),
    ("130", "It was interrupted (Ctrl-C, SIGTERM)."),
)
_ENVIRONMENT = (
    ("STARTMIGRATION_STATE", "Where the state is kept, as --state."),
    ("STARTMIGRATION_LOG_LEVEL", "How much is logged, as --log-level; migrate logs if it is set."),
    ("STARTMIGRATION_LOG_FORMAT", "text or json, as --log-format; migrate logs if it is set."),
    (
        f"_{DISTRIBUTION.upper()}_COMPLETE",
        "source_bash, source_zsh or source_fish: prints the shell's completion script.",
    ),
)


def page() -> str:
    """The whole page, in man(7)'s macros."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    command: Any = typer.main.get_command(application())
    yield f'.TH {DISTRIBUTION.upper()} 1 "" "{DISTRIBUTION}" "User Commands"'
    yield ".SH NAME"
    yield f"{DISTRIBUTION} \\- {_text(command.help.rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield f".B {DISTRIBUTION}"
    yield ".I VERB"
    yield "[OPTIONS]"
    yield ".SH VERBS"
    for name, verb in command.commands.items():
        if verb.hidden:
            continue
        yield f".SS {_text(name)}"
        yield from _paragraphs(verb.help)
        yield from _options(verb.params)
    yield ".SH ENVIRONMENT"
    yield from _terms(_ENVIRONMENT)
    yield ".SH EXIT STATUS"
    yield from _terms(_EXIT_CODES)


def _paragraphs(text: str) -> Iterator[str]:
    for each in text.strip().split("\n\n"):
        yield ".PP"
        yield _text(" ".join(each.split()))


def _options(params: Iterable[Any]) -> Iterator[str]:
    for param in params:
        if getattr(param, "hidden", False):
            continue
        if param.param_type_name != "option":
            yield from (".TP", f"\\fI{_text(param.metavar)}\\fR", _text(param.help))
            continue
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in (*param.opts, *param.secondary_opts))
        value = "" if param.is_flag or param.count else f" \\fI{_text(_value(param))}\\fR"
        yield ".TP"
        yield names + value
        notes = " [required]" if param.required else _default(param)
        yield _text(" ".join((param.help or "").split()) + notes)


def _value(param: Any) -> str:
    choices = getattr(param.type, "choices", None)
    if choices:
        return "|".join(str(getattr(each, "value", each)) for each in choices)
    return str(param.metavar or param.type.name.upper())


def _default(param: Any) -> str:
    found = param.default
    if (
        not getattr(param, "show_default", True)
        or found in (None, False, "", ())
        or callable(found)
    ):
        return ""
    return f" [default: {getattr(found, 'value', found)}]"


def _terms(table: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in table:
        yield from (".TP", f"\\fB{_text(term)}\\fR", _text(meaning))


def _text(text: str) -> str:
    """As roff takes it: a hyphen that can be copied, and no line that begins a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    sys.stdout.write(page())
