"""The operator's command whose standard input and output are the link to a server, in the place of
a connection of ours: through a jump host, or a proxy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from engine.errors import UsageError
from engine.model import command_words
from engine.model.command_words import Words

Side = Literal["source", "target"]
_SIDES: tuple[Side, ...] = ("source", "target")
_ENTRY = re.compile(r"(?:(source|target):)?(.*)", re.DOTALL)
_PLACE = re.compile(r"%(.?)", re.DOTALL)
_EXPECTED = (
    "Expected a program with its arguments, where %h stands for the host, %p for the port and %% "
    "for a %: 'ssh -W %h:%p jump-host', or source:… and target:… for one end."
)


def read(entries: Iterable[str]) -> Mapping[Side, Words]:
    """The words of each end's command, of `[source:|target:]COMMAND` each; one without an end is
    for both. They are split as a shell would; no shell is used.

    Raises `UsageError`.
    """
    found: dict[Side, Words] = dict.fromkeys(_SIDES, ())
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        assert match is not None
        words = _split(match[2])
        for side in _SIDES if match[1] is None else [match[1]]:
            end: Side = "source" if side == "source" else "target"
            if found[end]:
                raise UsageError(f"--connect-command is given twice for the {end}")
            found[end] = words
    return found


def filled(words: Words, host: str, port: int) -> list[str]:
    """The words with the host and the port in their places."""
    values = {"h": host, "p": str(port), "%": "%"}
    return [_PLACE.sub(lambda found: values[found[1]], word) for word in words]


def _split(text: str) -> Words:
    try:
        words = command_words.split(text)
    except ValueError as error:
        raise UsageError(f"--connect-command {error}", remedy=_EXPECTED) from None
    for word in words:
        for place in _PLACE.finditer(word):
            if place[1] not in ("h", "p", "%"):
                raise UsageError(
                    f"--connect-command: {place[0]!r} stands for nothing", remedy=_EXPECTED
                )
    return words
