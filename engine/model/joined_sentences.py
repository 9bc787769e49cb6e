"""Sentences that are put together from others."""

from __future__ import annotations

import re

# What stands in quotes is a name, and stays as it is; an apostrophe within a word opens none.
_QUOTED = re.compile(r"((?<!\w)'[^']*'(?!\w))")
_RULES = (
    # "connection refused.: trying again", "refused.; another"
    (re.compile(r"\.(?=[;:,](?:\s|$))"), ""),
    # "refused. → Is the server running?"
    (re.compile(r"\.(?=\s+→)"), ""),
    # "(… had before).)."
    (re.compile(r"\.\)(?=\.(?:\s|$))"), ")"),
    (re.compile(r"\)\.\)"), "))"),
    # "refused.. The"
    (re.compile(r"(?<![.…])\.\.(?=\s|$)"), "."),
    (re.compile(r"([;:,])[;,](?=\s|$)"), r"\1"),
)

_REPEATED = ", with args beginning with"


def without_arguments(text: str) -> str:
    """A server's error without the arguments that it repeats of a command that it does not know:
    they may be keys, values, or a password (where AUTH has another name)."""
    return text.partition(_REPEATED)[0]


def tidied(text: str) -> str:
    """`text` without the marks that stand twice where a sentence became part of another one."""
    parts = _QUOTED.split(text)
    for at in range(0, len(parts), 2):
        for pattern, instead in _RULES:
            parts[at] = pattern.sub(instead, parts[at])
    return "".join(parts)
