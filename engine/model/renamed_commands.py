"""Other names of commands, where a server's `rename-command` has given them some.

One table of a transfer, applied where commands are sent: to the source, to the target, or to both.
In the replication stream of a source a client's command stands under the name that the client used,
so it is understood, and goes on to the target, by the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from engine.errors import UsageError

Side = Literal["source", "target"]
Names = tuple[tuple[str, str], ...]
"""Pairs of a command's own name and the one that a server has given it."""
_SIDES: tuple[Side, ...] = ("source", "target")
_ENTRY = re.compile(r"(?:(source|target):)?([A-Za-z][A-Za-z0-9._-]*)=([!-~]{1,64})")
_MOST = 64
# What the data plane sends by itself, in one piece with the data; and what carries TTLs, which are
# rewritten under their own names.
FIXED = frozenset(
    """auth del discard dump exec expire expireat get getex increx mget mset msetex multi object
    persist pexpire pexpireat pexpiretime ping psetex pttl restore sadd scan select set setex
    smembers srem time unwatch watch""".upper().split()
)
"""Commands that can have no other name."""


def read(entries: Iterable[str]) -> Mapping[Side, Names]:
    """The names at each end, of `[source:|target:]NAME=OTHER` each; one without an end is for both.

    Raises `UsageError`.
    """
    found: dict[Side, dict[str, str]] = {side: {} for side in _SIDES}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise UsageError(
                f"{entry[:80]!r} is not the name of a command",
                remedy="Expected NAME=OTHER, source:NAME=OTHER or target:NAME=OTHER.",
            )
        name = match[2].upper()
        if name in FIXED:
            raise UsageError(
                f"the command {name} cannot have another name: the engine moves keys with it",
                remedy=f"Give {name} its name back in the server's configuration.",
            )
        for side in _SIDES if match[1] is None else [match[1]]:
            table = found["source" if side == "source" else "target"]
            if table.get(name, match[3]) != match[3]:
                raise UsageError(
                    f"the command {name} is given two other names at the {side}",
                    remedy="Give it one.",
                )
            table[name] = match[3]
    for side, table in found.items():
        if len(table) > _MOST:
            raise UsageError(f"more than {_MOST} commands are renamed at the {side}")
        others = [other.upper() for other in table.values()]
        if len(set(others)) < len(others):
            raise UsageError(f"two commands are given the same name at the {side}")
    return {side: tuple(sorted(table.items())) for side, table in found.items()}


def in_stream(source: Names, target: Names) -> list[tuple[bytes, bytes, bytes]]:
    """How commands of the source's stream are read and sent on: the name that they stand under,
    their own, and the target's."""
    there, here = dict(source), dict(target)
    return [
        (there.get(name, name).encode(), name.encode(), here.get(name, name).encode())
        for name in sorted({*there, *here})
    ]
