"""Functions and scripts that a snapshot brings beside its keys."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import EngineError
from engine.wire.admin import Admin


async def carry_code(
    target: Admin, functions: Sequence[bytes], scripts: Sequence[bytes], *, replace: bool = True
) -> list[str]:
    """Load libraries of functions and bodies of EVAL scripts.

    `replace`: a library that the target has under the same name is replaced, else refused. Returns
    a line for each that the target refuses. Raises `LinkError`.
    """
    how = ("REPLACE",) if replace else ()
    commands: list[tuple[str | bytes, ...]] = [
        ("FUNCTION", "LOAD", *how, code) for code in functions
    ]
    commands += [("SCRIPT", "LOAD", body) for body in scripts]
    if not commands:
        return []
    replies = await target.pipeline(commands)
    return [
        f"a {str(command[0]).lower()} of {len(command[-1]):,} bytes: {reply.message}"
        for command, reply in zip(commands, replies, strict=True)
        if isinstance(reply, EngineError)
    ]
