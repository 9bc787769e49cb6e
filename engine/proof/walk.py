"""A walk over the keys of one server, in one database: page by page, each page in runs of keys.

The next page is asked for before the keys of the last one, and several runs are under way, so that
neither end waits for the other. A run is as long as its answers are about `_RUN_BYTES`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine._native import KeyNames, KeyPage, Looks
from engine.model.pace import Pace
from engine.proof.asked_server import AskedServer

_RUN_BYTES = 1 << 20
# Nothing is known of the length of the first values.
_RUN_KEYS_FIRST, _RUN_KEYS_MOST = 1, 512
# Keys whose answers are awaited, in runs; of a cluster with many shards these are short, and so
# there are more of them, as many as a reader takes at the most.
_UNDER_WAY, _RUNS_MOST = 3, 48
# The mean of what a key takes counts so many of the last runs.
_MEAN_RUNS = 4

Ask = Callable[[int, KeyNames, int, int], Sequence[asyncio.Future[Looks]]]
"""Asks the part of this number of the keys from … to before …, wherever that is."""
Settle = Callable[[int, KeyNames, int, Sequence[Looks]], Awaitable[None]]
"""Has the looks at the keys from … on compared."""


class RunLength:
    """How many keys are asked for at once."""

    def __init__(self) -> None:
        self.keys = _RUN_KEYS_FIRST
        self._mean = 0.0

    def saw(self, keys: int, nbytes: int) -> None:
        """So many keys took so many bytes, at the end where they took more."""
        each = nbytes / keys
        self._mean = each if not self._mean else self._mean + (each - self._mean) / _MEAN_RUNS
        # A run that was longer than it should be is not waited for to fade from the mean.
        fits = int(_RUN_BYTES / max(self._mean, each, 1.0))
        self.keys = max(1, min(fits, 4 * self.keys, _RUN_KEYS_MOST))


@dataclass(slots=True)
class _Run:
    part: int
    names: KeyNames
    first: int
    count: int
    answers: Sequence[asyncio.Future[Looks]]


async def walk(
    server: AskedServer,
    match: bytes | None,
    ask: Ask | None,
    settle: Settle,
    pace: Pace,
    on_page: Callable[[KeyPage], Any],
    enough: Callable[[], bool],
    cursor: int = 0,
    due: Callable[[], bool] = lambda: False,
    on_mark: Callable[[int], Any] = lambda _: None,
) -> None:
    """Walk over the keys of the database that is chosen, from the page of this cursor on; `ask`
    None: over their names alone. `on_page` is told of each page that is done with, and where it is
    `enough` the walk ends. Where it is `due` the next page is asked for once all keys before it are
    settled, and `on_mark` is told its cursor. Raises `EngineError`."""
    length = RunLength()
    under_way: deque[_Run] = deque()
    keys = 0

    async def settle_first() -> None:
        nonlocal keys
        run = under_way.popleft()
        keys -= run.count
        looks = [await each for each in run.answers]
        length.saw(run.count, max(each.nbytes for each in looks))
        await settle(run.part, run.names, run.first, looks)
        await pace.read(sum(each.nbytes for each in looks))

    next_page: asyncio.Future[KeyPage] | None = server.page(cursor, match)
    while next_page is not None and not enough():
        page = await next_page
        # The digest of names counts a page as soon as it has come.
        marked = bool(page.cursor) and due()
        await pace.read(page.nbytes)
        next_page = server.page(page.cursor, match) if page.cursor and not marked else None
        for part, names in enumerate(page.names if ask is not None else ()):
            assert ask is not None
            first = 0
            while first < len(names):
                last = min(first + length.keys, len(names))
                under_way.append(
                    _Run(part, names, first, last - first, ask(part, names, first, last))
                )
                keys += last - first
                first = last
                while keys >= _UNDER_WAY * length.keys or len(under_way) >= _RUNS_MOST:
                    await settle_first()
        on_page(page)
        if marked:
            while under_way:
                await settle_first()
            on_mark(page.cursor)
            next_page = server.page(page.cursor, match)
    while under_way:
        await settle_first()
    if next_page is not None:
        await next_page
