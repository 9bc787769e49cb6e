"""Every name of one end, looked up at the other.

Counts that agree prove nothing: a key that one end lacks and one that it has too many make the same
number. A name costs each server well under a microsecond, and one page of either end is looked up
while the next one is asked for: one round trip for both, and for a page of each range of a table
that is far away (`verify.parallel_scan_ranges`). Names pass as the bytes that they came as
(`ext/name_pages.pxi`), over connections of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from engine._native import NamePage, NamePageReader, SlotFilter
from engine.errors import EngineError
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.verify.key_sampling import Pages
from engine.verify.parallel_scan_ranges import Range, ranges
from engine.wire.connection import Connection, answered
from engine.wire.control_connection import Admin, all_of
from engine.wire.dial import dial_and_ask
from engine.wire.server_read_size import WIDEN_READS

T = TypeVar("T")
# An end; a page of names of it that the other one has not all of, if there is one; and how many
# names, of both ends, were looked up since the one before.
_Found = tuple[int, NamePage | None, int]
# So many of them wait to be taken at the most.
_AHEAD = 32
# How often it is told how many names were looked up, where none is absent, in seconds.
_TELL_SECONDS = 0.1


async def absent_names(
    ends: tuple[Admin, Admin],
    infos: tuple[ServerInfo, ServerInfo],
    settings: TransferSettings,
    db: int,
    *,
    lacking: bool = True,
    extra: bool = True,
    slots: SlotFilter | None = None,
) -> AsyncGenerator[tuple[int, list[bytes], int], None]:
    """(end, names, count): names of the one end (0: source, 1: target) that the other has not, in
    the database `db`, which both connections are in; `count` names, of both ends, were looked up
    since the item before. Where a table is walked in ranges some names are looked up twice.

    The engine's own are left out, those in none of the `slots`, and those that the settings' rules
    leave, whatever their type is. `lacking`, `extra`: whether
    names of the source, and of the target, are looked up. Between two items the connections may be
    used for something else.

    Raises `LinkError`, `AuthError`, `ServerError`.
    """
    async with contextlib.AsyncExitStack() as stack:
        one, other = await all_of(
            stack,
            (_dialled(end, settings, db, info) for end, info in zip(ends, infos, strict=True)),
        )
        lines = (
            _Line(one, other, infos[1], slots, settings, db),
            _Line(other, one, infos[0], slots, settings, db),
        )
        lookup = _Lookup(lines, infos, settings, db)
        wanted = [end for end, asked in enumerate((lacking, extra)) if asked]
        task = asyncio.create_task(lookup.run(wanted))
        stack.push_async_callback(_ended, task)
        while found := await lookup.next(task):
            # All that is there by now in one round trip.
            lacking_any = [
                [page for here, page, _ in found if here == end and page is not None]
                for end in (0, 1)
            ]
            absent = [await _absent(ends[1 - end], lacking_any[end]) for end in (0, 1)]
            for here, page, count in found:
                yield here, [] if page is None else absent[here].get(page, []), count
        task.result()
        if lookup.names:
            yield 0, [], lookup.names


class _Lookup:
    """Walks both ends; `next` gives what was looked up."""

    def __init__(
        self,
        lines: tuple[_Line, _Line],
        infos: tuple[ServerInfo, ServerInfo],
        settings: TransferSettings,
        db: int,
    ) -> None:
        self._lines = lines
        self._infos = infos
        self._settings = settings
        self._db = db
        self._ready: asyncio.Queue[_Found] = asyncio.Queue(_AHEAD)
        self._told_at = 0.0
        self.names = 0
        """How many names were looked up of which `next` has not told."""

    async def next(self, task: asyncio.Task[None]) -> list[_Found]:
        """What was looked up since, while `task` runs `run`; empty: that was all, or it failed."""
        found: list[_Found] = []
        if self._ready.empty() and not task.done():
            getting = asyncio.ensure_future(self._ready.get())
            await asyncio.wait({getting, task}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                found.append(getting.result())
            else:
                await _ended(getting)
        while not self._ready.empty():
            found.append(self._ready.get_nowait())
        return found

    async def run(self, ends: Sequence[int]) -> None:
        """Walk these ends."""
        seconds = max(line.round_trip for line in self._lines)
        await _all([self._walk(here, seconds) for here in ends])

    async def _walk(self, here: int, round_trip: float) -> None:
        parts = ranges(self._infos[here], self._keys(here), round_trip)
        # They begin one after another, so that their pages do not come in one heap.
        pauses = [round_trip * number / len(parts) for number in range(len(parts))]
        walks = [self._part(here, *each, len(parts)) for each in zip(parts, pauses, strict=True)]
        if not all(await _all(walks)):
            await self._part(here, Range(), 0.0, 1)

    def _keys(self, here: int) -> int:
        return sum(entry.keys for entry in self._infos[here].keyspace if entry.db == self._db)

    async def _part(self, here: int, part: Range, pause: float, parts: int) -> bool:
        """Walk one of so many ranges; False: its cursors are in another order."""
        ours, other = self._lines[here], self._lines[1 - here]
        keys = self._keys(here) // parts
        pages = Pages(self._settings, start=part.start, beside=parts - 1, keys=keys)
        page: NamePage | None = None
        await asyncio.sleep(pause)
        while page is not None or not pages.over:
            # One page is looked up while the next one is asked for.
            looked_up = None if page is None else other.ask_count(page)
            asked = None if pages.over else ours.ask_page(pages.command())
            if page is not None and looked_up is not None:
                await self._take(here, page, await looked_up)
            page = None
            if asked is None:
                continue
            following = await asked
            if parts > 1 and not part.leads_on(pages.cursor, following.cursor):
                return False
            pages.pass_page(following.cursor, following.named, following.nbytes)
            pages.over = part.is_over(following.cursor)
            page = following if len(following) else None
        return True

    async def _take(self, here: int, page: NamePage, had: int) -> None:
        """The other end has so many names of `page`: most often all, which is worth no turn."""
        now = asyncio.get_running_loop().time()
        self.names += len(page)
        if had != len(page) or now - self._told_at >= _TELL_SECONDS:
            names, self.names, self._told_at = self.names, 0, now
            await self._ready.put((here, page if had != len(page) else None, names))


class _Line:
    """A connection that carries names: pages of one end's, and counts of the other's. From here on
    it carries nothing else."""

    def __init__(
        self,
        connection: Connection,
        other: Connection,
        info: ServerInfo,
        slots: SlotFilter | None,
        settings: TransferSettings,
        db: int,
    ) -> None:
        """`other`, a server of this `info`, is asked for the names of this one."""
        self._connection = connection
        many, one_slot = _together(info)
        name = other.name_of("EXISTS")
        self._reader = NamePageReader(
            OWN_PREFIX,
            slots,
            command=name,
            together=many and not one_slot,
            by_slot=many,
            rules=settings.key_rules,
            db=db,
        )
        self._answers: deque[asyncio.Future[Any]] = deque()
        connection.take_over(self._reader, self._on_ready, self._on_lost)
        connection.watch(lambda: bool(self._answers), settings.io_timeout)

    @property
    def round_trip(self) -> float:
        """Seconds from a question to its answer, as of when it was dialled."""
        return self._connection.round_trip

    def ask_page(self, scan: Sequence[Any]) -> asyncio.Future[NamePage]:
        """The page of names that this command asks for. Raises `LinkError`, `AuthError`,
        `ServerError`."""
        self._reader.expect_page()
        return self._ask(self._connection.encode(*scan))

    def ask_count(self, page: NamePage) -> asyncio.Future[int]:
        """How many names of `page`, which is the other line's, the server has. Raises as
        `ask_page`."""
        self._reader.expect_count(page.replies)
        return self._ask(page.lookup())

    def _ask(self, command: bytes) -> asyncio.Future[Any]:
        connection = self._connection
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Whoever asked may have failed meanwhile, by another answer.
        answer.add_done_callback(lambda each: each.cancelled() or each.exception())
        if connection.lost is not None:
            answer.set_exception(connection.lost)
            return answer
        self._answers.append(answer)
        connection.write(command)
        return answer

    def _on_ready(self, ready: int) -> None:
        if not ready:
            return
        for reply in self._reader.take():
            answer = self._answers.popleft()
            if answer.done():
                continue
            if isinstance(reply, str):
                answer.set_exception(self._connection.reply_error(reply))
            else:
                answer.set_result(reply)

    def _on_lost(self, error: EngineError) -> None:
        answers, self._answers = self._answers, deque()
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)


@contextlib.asynccontextmanager
async def _dialled(
    end: Admin, settings: TransferSettings, db: int, info: ServerInfo
) -> AsyncIterator[Connection]:
    """A connection of its own to a server of this `info`."""
    many, one_slot = _together(info)
    # Where there are many short commands fewer of its answers come by themselves.
    widen = one_slot or not many
    connection, (selected, *_) = await dial_and_ask(
        end.endpoint,
        [("SELECT", db), *((WIDEN_READS,) if widen else ())],
        fault=end.fault,
        timeout=settings.connect_timeout,
        may_ping=False,
    )
    try:
        answered(selected)
        yield connection
    finally:
        connection.close()


def _together(info: ServerInfo) -> tuple[bool, bool]:
    """Whether a server of this `info` takes several names in a command; and of one slot alone, as
    a cluster's node."""
    return info.capabilities.exists_of_many, info.mode == "cluster"


async def _absent(end: Admin, pages: Sequence[NamePage]) -> dict[NamePage, list[bytes]]:
    """Of each page those that the end has not: it is asked for each name."""
    names = [(page, name) for page in pages for name in page.names()]
    if not names:
        return {}
    replies = await end.pipeline((("EXISTS", name) for _, name in names), raise_on_error=True)
    absent: dict[NamePage, list[bytes]] = {}
    for (page, name), there in zip(names, replies, strict=True):
        if not there:
            absent.setdefault(page, []).append(name)
    return absent


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return; the first one that fails ends the others, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            await _ended(task)


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel it, and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
