"""Every name of one end, looked up at the other.

Counts that agree prove nothing: a key that one end lacks and one that it has too many make the same
number. A name costs each server well under a microsecond, and one page of either end is looked up
while the next one is asked for: one round trip for both. Names pass as the bytes that they came as
(`ext/name_pages.pxi`), over connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from engine._native import NamePage, NamePageReader
from engine.errors import EngineError
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.verify.key_sampling import Pages
from engine.wire.connection import Connection, answered
from engine.wire.control_connection import Admin, all_of
from engine.wire.dial import dial_and_ask


async def absent_names(
    ends: tuple[Admin, Admin],
    infos: tuple[ServerInfo, ServerInfo],
    settings: TransferSettings,
    db: int,
    *,
    lacking: bool = True,
    extra: bool = True,
) -> AsyncGenerator[tuple[int, list[bytes], int], None]:
    """(end, names, count): names of the one end (0: source, 1: target) that the other has not, in
    the database `db`, which both connections are in; `count` names of it were looked up for that.

    The engine's own are left out. `lacking`, `extra`: whether names of the source, and of the
    target, are looked up. Between two items the connections may be used for something else.

    Raises `LinkError`, `AuthError`, `ServerError`.
    """
    async with contextlib.AsyncExitStack() as stack:
        lines = await all_of(stack, (_line(end, settings, db) for end in ends))
        sides = [_Names(settings, over=not lacking), _Names(settings, over=not extra)]
        many = [info.capabilities.exists_of_many for info in infos]
        while not all(side.over and side.page is None for side in sides):
            asked = [
                lines[here].ask(sides[here].next_page(), sides[1 - here].page, many[here])
                for here in (0, 1)
            ]
            replies = await asyncio.gather(*asked)
            pages = [side.page for side in sides]
            for here in (0, 1):
                sides[here].take(replies[here][0])
            for there in (0, 1):
                page, had = pages[there], replies[1 - there][1]
                if page is not None:
                    absent = [] if had == len(page) else await _absent(ends[1 - there], page)
                    yield there, absent, len(page)


class _Names:
    """One end's names; `page` are those that are to be looked up next."""

    def __init__(self, settings: TransferSettings, *, over: bool = False) -> None:
        self._pages = Pages(settings)
        self.over = over
        self.page: NamePage | None = None

    def next_page(self) -> tuple[Any, ...] | None:
        """The command that asks for it, if there is one."""
        return None if self.over else self._pages.command()

    def take(self, page: NamePage | None) -> None:
        """The reply to `next_page`; None: there was none."""
        if page is not None:
            self._pages.pass_page(page.cursor, page.named, page.nbytes)
            self.over = self._pages.over
        self.page = page if page is not None and len(page) else None


class _Line:
    """A connection that carries names."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = NamePageReader(OWN_PREFIX)
        self._owed = 0
        self._answer: asyncio.Future[None] | None = None

    def take_over(self, timeout: float) -> None:
        """From here on it carries nothing else; `timeout`: seconds for an answer."""
        self._connection.take_over(self._reader, self._on_ready, self._on_lost)
        self._connection.watch(lambda: self._answer is not None, timeout)

    async def ask(
        self, scan: Sequence[Any] | None, page: NamePage | None, many: bool
    ) -> tuple[NamePage | None, int | None]:
        """The next page, and how many names of `page` the server has. Raises `LinkError`,
        `AuthError`, `ServerError`."""
        connection, reader = self._connection, self._reader
        if scan is not None:
            reader.expect_page()
            connection.write(connection.encode(*scan))
            self._owed += 1
        if page is not None:
            reader.expect_count(1 if many else len(page))
            connection.write(page.lookup(connection.name_of("EXISTS"), together=many))
            self._owed += 1
        if not self._owed:
            return None, None
        if connection.lost is not None:
            raise connection.lost
        self._answer = asyncio.get_running_loop().create_future()
        try:
            await self._answer
        finally:
            self._answer = None
        replies, self._owed = reader.take(), 0
        for reply in replies:
            if isinstance(reply, str):
                raise connection.reply_error(reply)
        found = next((each for each in replies if isinstance(each, NamePage)), None)
        return found, next((each for each in replies if isinstance(each, int)), None)

    def _on_ready(self, ready: int) -> None:
        if ready >= self._owed and self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _on_lost(self, error: EngineError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


@contextlib.asynccontextmanager
async def _line(end: Admin, settings: TransferSettings, db: int) -> AsyncIterator[_Line]:
    connection, (selected,) = await dial_and_ask(
        end.endpoint,
        [("SELECT", db)],
        fault=end.fault,
        timeout=settings.connect_timeout,
        may_ping=False,
    )
    try:
        answered(selected)
        line = _Line(connection)
        line.take_over(settings.io_timeout)
        yield line
    finally:
        connection.close()


async def _absent(end: Admin, page: NamePage) -> list[bytes]:
    """Those that the end has not: it is asked for each."""
    names = page.names()
    replies = await end.pipeline((("EXISTS", name) for name in names), raise_on_error=True)
    return [name for name, there in zip(names, replies, strict=True) if not there]
