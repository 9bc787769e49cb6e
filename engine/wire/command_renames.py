"""Commands under the names that a server has given them (`rename-command`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.model.renamed_commands import Names


def table(names: Names) -> dict[str, bytes]:
    """What `sent` looks names up in."""
    return {name: other.encode() for name, other in names}


def sent(command: Sequence[Any], names: dict[str, bytes]) -> Sequence[Any]:
    """`command` as that server knows it."""
    if not names or not command:
        return command
    word = command[0]
    text = word.decode("latin-1") if isinstance(word, bytes) else str(word)
    other = names.get(text.upper())
    if other is not None:
        return (other, *command[1:])
    if text.upper() == "ACL" and len(command) > 3 and str(command[1]).upper() == "DRYRUN":
        return (*command[:3], *sent(command[3:], names))
    return command
