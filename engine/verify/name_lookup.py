"""Every name of one end, looked up at the other.

Counts that agree prove nothing: a key that one end lacks and one that it has too many make the same
number. A name costs each server well under a microsecond, and one page of either end is looked up
while the next one is asked for: one round trip for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.verify.key_sampling import Pages
from engine.wire.admin import Admin, Arg

# From here on EXISTS takes more keys than one.
_MANY_FROM = (3, 0, 3)


async def absent_names(
    ends: tuple[Admin, Admin],
    infos: tuple[ServerInfo, ServerInfo],
    settings: TransferSettings,
    *,
    lacking: bool = True,
    extra: bool = True,
) -> AsyncIterator[tuple[int, list[bytes], int]]:
    """(end, names, count): names of the one end (0: source, 1: target) that the other has not, in
    the database that both connections are in; `count` names of it were looked up for that.

    The engine's own are left out. `lacking`, `extra`: whether names of the source, and of the
    target, are looked up. Between two items the connections may be used for something else.

    Raises `LinkError`, `AuthError`, `ServerError`.
    """
    sides = [_Names(settings, over=not lacking), _Names(settings, over=not extra)]
    many = [info.version >= _MANY_FROM for info in infos]
    while not all(side.over and not side.page for side in sides):
        asked = [
            [*sides[here].next_page(), *_lookup(sides[1 - here].page, many[here])]
            for here in (0, 1)
        ]
        replies = await asyncio.gather(
            *(
                end.pipeline(commands, raise_on_error=True)
                for end, commands in zip(ends, asked, strict=True)
            )
        )
        pages = [side.page for side in sides]
        found = []
        for here in (0, 1):
            told = list(replies[here])
            if not sides[here].over:
                sides[here].take(told.pop(0))
            else:
                sides[here].page = []
            found.append(told)
        for there in (0, 1):
            names = pages[there]
            if names:
                absent = await _absent(ends[1 - there], names, found[1 - there])
                yield there, absent, len(names)


class _Names:
    """One end's names; `page` are those that are to be looked up next."""

    def __init__(self, settings: TransferSettings, *, over: bool = False) -> None:
        self._pages = Pages(settings)
        self.over = over
        self.page: list[bytes] = []

    def next_page(self) -> list[tuple[Arg, ...]]:
        """The command that asks for it, if there is one."""
        return [] if self.over else [self._pages.command()]

    def take(self, reply: Any) -> None:
        """The reply to `next_page`."""
        names = self._pages.take(reply)
        self.page = [name for name in names if not name.startswith(OWN_PREFIX)]
        self.over = self._pages.over


def _lookup(names: Sequence[bytes], many: bool) -> list[tuple[Arg, ...]]:
    if not names:
        return []
    return [("EXISTS", *names)] if many else [("EXISTS", name) for name in names]


async def _absent(end: Admin, names: list[bytes], replies: list[Any]) -> list[bytes]:
    """Those that the end has not; of many that were asked for at once it said how many it has."""
    if len(replies) == 1 and len(names) > 1:
        if replies[0] == len(names):
            return []
        asked = [("EXISTS", name) for name in names]
        replies = await end.pipeline(asked, raise_on_error=True)
    return [name for name, there in zip(names, replies, strict=True) if not there]
