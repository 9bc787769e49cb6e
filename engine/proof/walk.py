"""A walk over the keys of one server, in one database: page by page, each page in runs of keys.

The next page is asked for before the keys of the last one, and several runs are under way, so that
neither end waits for the other. A run is as long as its answers are about `_RUN_BYTES`. Keys may be
asked for as strings first (`string_looks`): those that this leaves make runs of their own.
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
from engine.proof.string_looks import StringLooks

_RUN_BYTES = 1 << 20
# Where that is bounded a run is what is read of an end in this time: a server may close a link that
# rests for long.
_RUN_SECONDS = 1 / 16
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
    """How many keys are asked for at once; `rate`: of bytes a second, 0: there is none."""

    def __init__(self, rate: int = 0) -> None:
        self.keys = _RUN_KEYS_FIRST
        self._mean = 0.0
        self._most = min(_RUN_BYTES, rate * _RUN_SECONDS) if rate else _RUN_BYTES

    def saw(self, keys: int, nbytes: int) -> None:
        """So many keys took so many bytes, at the end where they took more."""
        each = nbytes / keys
        self._mean = each if not self._mean else self._mean + (each - self._mean) / _MEAN_RUNS
        # A run that was longer than it should be is not waited for to fade from the mean.
        fits = int(self._most / max(self._mean, each, 1.0))
        self.keys = max(1, min(fits, 4 * self.keys, _RUN_KEYS_MOST))


@dataclass(slots=True)
class _Run:
    part: int
    names: KeyNames
    first: int
    count: int
    answers: Sequence[asyncio.Future[Looks]]
    as_strings: bool
    left: bool


@dataclass(slots=True)
class _ToAsk:
    """Names that are asked for from `first` on; `left`: they were asked for as strings."""

    part: int
    names: KeyNames
    first: int = 0
    left: bool = False


class RunLengths:
    """Those of runs that are asked for as strings, and of the others."""

    def __init__(self, rate: int = 0) -> None:
        self.of = {True: RunLength(rate), False: RunLength(rate)}


class Runs:
    """Keys that are asked for in runs, several of which are under way."""

    def __init__(
        self,
        ask: Ask,
        settle: Settle,
        pace: Pace,
        strings: StringLooks | None = None,
        lengths: RunLengths | None = None,
    ) -> None:
        self._ask = ask
        self._settle = settle
        self._pace = pace
        self._strings = strings
        self._lengths = (lengths or RunLengths(pace.rate)).of
        self._to_ask: deque[_ToAsk] = deque()
        self._under_way: deque[_Run] = deque()
        self._keys = {True: 0, False: 0}

    async def add(self, part: int, names: KeyNames) -> None:
        """Ask for these; some may be under way behind it."""
        if len(names):
            self._to_ask.append(_ToAsk(part, names))
        while self._to_ask:
            while self._full:
                await self._settle_first()
            self._ask_next()

    async def finish(self) -> None:
        """All of them are settled behind it."""
        while self._under_way:
            await self._settle_first()
            while self._to_ask and not self._full:
                self._ask_next()

    @property
    def _full(self) -> bool:
        under_way = sum(self._keys[each] / length.keys for each, length in self._lengths.items())
        return under_way >= _UNDER_WAY or len(self._under_way) >= _RUNS_MOST

    def _ask_next(self) -> None:
        asked = self._to_ask[0]
        strings = self._strings if not asked.left else None
        as_strings = strings is not None and strings.take()
        ask = strings.ask if strings is not None and as_strings else self._ask
        first = asked.first
        last = min(first + self._lengths[as_strings].keys, len(asked.names))
        answers = ask(asked.part, asked.names, first, last)
        self._under_way.append(
            _Run(asked.part, asked.names, first, last - first, answers, as_strings, asked.left)
        )
        self._keys[as_strings] += last - first
        asked.first = last
        if last == len(asked.names):
            self._to_ask.popleft()

    async def _settle_first(self) -> None:
        run = self._under_way.popleft()
        self._keys[run.as_strings] -= run.count
        looks = [await each for each in run.answers]
        self._lengths[run.as_strings].saw(run.count, max(each.nbytes for each in looks))
        if run.as_strings:
            assert self._strings is not None
            left = self._strings.settle(run.part, run.names, run.first, looks)
            if left is not None:
                # Before all others: there are never more of them than were under way.
                self._to_ask.appendleft(_ToAsk(run.part, left, left=True))
        else:
            if self._strings is not None and not run.left:
                self._strings.saw(looks)
            await self._settle(run.part, run.names, run.first, looks)
        await self._pace.read(sum(each.nbytes for each in looks))


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
    strings: StringLooks | None = None,
) -> None:
    """Walk over the keys of the database that is chosen, from the page of this cursor on; `ask`
    None: over their names alone. `on_page` is told of each page that is done with, and where it is
    `enough` the walk ends. Where it is `due` the next page is asked for once all keys before it are
    settled, and `on_mark` is told its cursor. Raises `EngineError`."""
    runs = None if ask is None else Runs(ask, settle, pace, strings)
    next_page: asyncio.Future[KeyPage] | None = server.page(cursor, match)
    while next_page is not None and not enough():
        page = await next_page
        # The digest of names counts a page as soon as it has come.
        marked = bool(page.cursor) and due()
        await pace.read(page.nbytes)
        next_page = server.page(page.cursor, match) if page.cursor and not marked else None
        for part, names in enumerate(page.names):
            if runs is not None:
                await runs.add(part, names)
        on_page(page)
        if marked:
            if runs is not None:
                await runs.finish()
            on_mark(page.cursor)
            next_page = server.page(page.cursor, match)
    if runs is not None:
        await runs.finish()
    if next_page is not None:
        await next_page
