"""Commands that the core's table does not have: the source is asked for their keys.

A module's command, or one of a newer server. Where its keys are is asked once for each name
(COMMAND INFO); where that hangs on the arguments, or may not be asked, once for each command
(COMMAND GETKEYS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import ServerError
from engine.transfer.primary_reads import PrimaryReads
from engine.wire.control_connection import Admin

# Commands whose keys are asked for together.
_AT_ONCE = 500
# Names of which it is kept where their keys are; a stream may hold any number of them.
_NAMES_MOST = 1000

Places = tuple[int, int, int]
"""The first and the last argument that is a key, and the step between two, as COMMAND has them."""


class UnknownCommands:
    """Asks `source`, a connection of the control plane, and keeps what can be kept."""

    def __init__(self, source: Admin | PrimaryReads) -> None:
        self._source = source
        # None: to be asked for each command.
        self._places: dict[bytes, Places | None] = {}

    async def keys(self, commands: Sequence[Sequence[bytes]]) -> list[list[bytes] | None]:
        """The keys of each of these commands (their words, the name first); None: not even the
        source can tell. Raises `LinkError`, `AuthError`."""
        await self._ask_places({command[0].upper() for command in commands})
        found: list[list[bytes] | None] = []
        asked: list[int] = []
        for index, command in enumerate(commands):
            places = self._places.get(command[0].upper())
            found.append(None if places is None else _placed(command, places))
            if places is None:
                asked.append(index)
        for at in range(0, len(asked), _AT_ONCE):
            some = asked[at : at + _AT_ONCE]
            replies = await self._source.pipeline(
                ("COMMAND", "GETKEYS", *commands[index]) for index in some
            )
            for index, reply in zip(some, replies, strict=True):
                found[index] = _named(reply)
        return found

    async def _ask_places(self, names: set[bytes]) -> None:
        new = sorted(names - self._places.keys())[: _NAMES_MOST - len(self._places)]
        for at in range(0, len(new), _AT_ONCE):
            some = new[at : at + _AT_ONCE]
            replies = await self._source.pipeline(("COMMAND", "INFO", name) for name in some)
            for name, reply in zip(some, replies, strict=True):
                self._places[name] = _places(reply)


def _places(reply: object) -> Places | None:
    """Where a command's keys are, if they are always there."""
    row: Any = reply[0] if isinstance(reply, list) and reply else None
    if not isinstance(row, list) or len(row) < 6:
        return None
    flags = {flag.decode() if isinstance(flag, bytes) else str(flag) for flag in row[2]}
    first, last, step = row[3:6]
    if "movablekeys" in flags or first < 1 or step < 1:
        return None
    return first, last, step


def _placed(command: Sequence[bytes], places: Places) -> list[bytes]:
    first, last, step = places
    end = last + 1 if last >= 0 else len(command) + last + 1
    return list(command[first:end:step])


def _named(reply: object) -> list[bytes] | None:
    """The keys in a reply to COMMAND GETKEYS."""
    if isinstance(reply, list):
        return [key for key in reply if isinstance(key, bytes)]
    if isinstance(reply, ServerError) and "no key arguments" in str(reply):
        return []
    return None
