"""Functions and scripts that a snapshot brings beside its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.errors import EngineError
from engine.wire.admin import Admin

# functionsCreateWithLibraryCtx → functionExtractLibMetaData, functions.c.
_SHEBANG_NAME = re.compile(rb"#![^\n]*?\sname=([^\s\n]+)")


async def carry_code(
    target: Admin, functions: Sequence[bytes], scripts: Sequence[bytes], *, replace: bool = True
) -> dict[str, str]:
    """Load libraries of functions and bodies of EVAL scripts.

    `replace`: a library that the target has under the same name is replaced, else refused. Returns
    what the target refuses: {`library NAME`: why}. Raises `LinkError`.
    """
    how = ("REPLACE",) if replace else ()
    commands: list[tuple[str | bytes, ...]] = [
        ("FUNCTION", "LOAD", *how, code) for code in functions
    ]
    commands += [("SCRIPT", "LOAD", body) for body in scripts]
    if not commands:
        return {}
    replies = await target.pipeline(commands)
    return {
        _name(command[-1], command[0]): reply.message
        for command, reply in zip(commands, replies, strict=True)
        if isinstance(reply, EngineError)
    }


def is_library(what: str) -> bool:
    """Whether that is the name of a library, as `carry_code` gives it: a script that is refused is
    sent again by who wants it run."""
    return what.startswith("library ")


def library_name(code: bytes) -> str:
    """The name in a library's first line, `#!lua name=mylib`; empty if there is none."""
    found = _SHEBANG_NAME.match(code)
    return found[1].decode("utf-8", "backslashreplace") if found else ""


def _name(text: str | bytes, kind: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    if kind == "FUNCTION" and (name := library_name(raw)):
        return f"library {name}"
    return f"a {str(kind).lower()} of {len(raw):,} bytes"
