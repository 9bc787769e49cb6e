"""Functions and scripts that a snapshot brings beside its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.errors import EngineError
from engine.wire.control_connection import Admin

# The words of a library's first line, and its name in one of them, as servers read it (functions.c,
# functionExtractLibMetaData; sds.c, sdssplitargs): keys in any case, quotes are taken off.
_WORD = re.compile(rb"""(?:[^\s"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')+""")
_NAME = re.compile(rb"name=(\w+)", re.IGNORECASE)
_LIBRARY = "library "
LIBRARIES = "libraries of functions"
"""Some of them: which, a look at both ends tells."""


async def carry_code(
    target: Admin, functions: Sequence[bytes], scripts: Sequence[bytes], *, replace: bool = True
) -> dict[str, str]:
    """Load libraries of functions and bodies of EVAL scripts.

    `replace`: a library that the target has under the same name is replaced, else refused. Returns
    what the target refuses: {`library NAME` or `a script of N bytes`: why}. Raises `LinkError`.
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
    sent again by a client that wants it run."""
    return what.startswith(_LIBRARY)


def of_libraries(what: str) -> bool:
    """Whether that is a library, or `LIBRARIES`: a command of the stream was refused."""
    return is_library(what) or what == LIBRARIES


def library_name(code: bytes) -> str:
    """The name in a library's first line, `#!lua name=mylib`; empty if none is found there."""
    first = code.split(b"\n", 1)[0]
    for word in _WORD.findall(first)[1:] if first.startswith(b"#!") else ():
        if found := _NAME.fullmatch(word.replace(b'"', b"").replace(b"'", b"")):
            return str(found[1], "ascii")
    return ""


def _name(text: str | bytes, kind: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    size = f"{len(raw):,} bytes"
    if kind == "FUNCTION":
        # Named or not, it is missing on the target.
        return _LIBRARY + (library_name(raw) or f"without a readable name ({size})")
    return f"a script of {size}"
