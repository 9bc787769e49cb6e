"""The walks over both ends, database by database.

1. Over each server of the source: its keys are compared with the target's.
2. Beside that, over each server of the target: its names alone. Where they are the source's, by
   their number and a keyed digest, the target has none that the source has not. They are not asked
   for where that is known of servers at rest by then (`same_names`).
3. Else over the target again: the source is asked whether it has the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

from engine._native import KeyNames, KeyPage, LookReader, Looks
from engine.model.online_checkpoint import OWN_PREFIX, POSITION_DB
from engine.model.pace import Pace
from engine.model.proof import ProofSettings
from engine.proof.asked_server import EXISTS, AskedServer, question
from engine.proof.deployment import Deployment, Shard
from engine.proof.relinking import until_linked
from engine.proof.same_names import AtRest
from engine.proof.second_looks import SecondLooks
from engine.proof.string_looks import StringLooks
from engine.proof.track import COMPARED, LOOKED_FOR, NAMED, Sums, Track, Tracks
from engine.proof.walk import Ask, Settle, walk

TTL_BOUND_MS = 1000
"""Two expire times this far apart are one: older servers tell the time left, and not the time."""
_OF_ALL = 1 << 64
Rest = tuple[AtRest, AtRest]
T = TypeVar("T")


class KeyWalks:
    """Walks over `ends`; what seems to differ goes to `again`.

    `tracks` have how far each is, `processes` which ones of servers were asked (of those that
    tell). `extended`: the target's expire times may be later by so many ms.
    `at_rest` asks both ends whether nothing is written to a database (`same_names`). `on_page` is
    told of each page, and where it is `enough` the walks end.
    """

    def __init__(
        self,
        ends: tuple[Deployment, Deployment],
        settings: ProofSettings,
        key: bytes,
        pace: Pace,
        again: SecondLooks,
        tracks: Tracks,
        extended: int,
        at_rest: Callable[[int], Awaitable[Rest | None]],
        on_page: Callable[[], None],
        enough: Callable[[], bool],
    ) -> None:
        self._ends = ends
        self._settings = settings
        self._key = key
        self._pace = pace
        self._again = again
        self._tracks = tracks
        self._extended = extended
        self._at_rest = at_rest
        self._on_page = on_page
        self._enough = enough
        self.processes: set[str] = set()
        self._match = None
        if settings.match is not None:
            self._match = settings.match.encode("utf-8", "surrogateescape")
        self._partial = settings.match is not None or settings.sample < 1
        self._share = 0
        if settings.sample < 1:
            self._share = max(int(settings.sample * _OF_ALL), 1)

    async def over(self, db: int) -> None:
        """Compare a database. Raises `EngineError`."""
        source, target = self._ends
        ours = [self._tracks.track(COMPARED, db, n) for n in range(len(source.shards))]
        theirs = [self._tracks.track(NAMED, db, n) for n in range(len(target.shards))]

        async def compared() -> None:
            walks = zip(source.shards, ours, strict=True)
            await _all([self._compared(*each, db) for each in walks])

        async def named() -> None:
            walks = zip(target.shards, theirs, strict=True)
            await _all([self._named(*each, db) for each in walks])

        rest = None
        if not (self._partial or self._extended or any(each.marked for each in (*ours, *theirs))):
            rest = await self._at_rest(db)
        if rest is None:
            # What the target has all the while its own walk names; so the two may go side by side.
            await _all([compared(), named()])
        else:
            ours[0].of_both = True
            await compared()
            ours[0].of_both = False
            if not await self._same_names(db, rest, ours[0], theirs[0]):
                await named()
        if _names(ours) != _names(theirs):
            others = [self._tracks.track(LOOKED_FOR, db, n) for n in range(len(target.shards))]
            await _all(
                [self._looked_for(*each, db) for each in zip(target.shards, others, strict=True)]
            )

    async def alone(self, db: int, side: int, on_key: Callable[[bytes], None]) -> None:
        """Name the keys of a database that the other end than that of the number `side` has not.
        Raises `EngineError`."""
        end = self._ends[side]
        await _all([self._names_alone(end, each, db, on_key) for each in end.shards])

    async def _same_names(self, db: int, before: Rest, ours: Track, theirs: Track) -> bool:
        """Whether the names that the source has named are those of the target (`same_names`), to
        which nothing has happened since `before`; then its walk is at its end."""
        if ours.doubted or ours.sums.own or ours.sums.count < before[0].keys or self._enough():
            return False
        here, there = (each.shards[0] for each in self._ends)
        pair = [(here, before[0].process), (there, before[1].process)]
        if not ours.ended_at(self._asked(pair)) or await self._at_rest(db) != before:
            return False
        self._tracks.proven(theirs, ours, self._asked(pair[1:]), self._again)
        return True

    # --- Over one server; from the beginning where a link is lost ---

    async def _names_alone(
        self, end: Deployment, shard: Shard, db: int, on_key: Callable[[bytes], None]
    ) -> None:
        async def once() -> None:
            async with AsyncExitStack() as stack:
                server = await self._dialled(stack, shard, end, None, db)

                async def settle(
                    part: int, names: KeyNames, first: int, looks: Sequence[Looks]
                ) -> None:
                    await server.allowed(looks[0])
                    for index in range(len(looks[0])):
                        # (A key that it may not be asked for is there: it was named.)
                        if looks[0].there(index):
                            on_key(names.name(first + index))

                await walk(
                    server,
                    self._match,
                    self._asking([server]),
                    settle,
                    self._pace,
                    lambda _: self._on_page(),
                    self._enough,
                )

        await until_linked(once)

    async def _compared(self, shard: Shard, track: Track, db: int) -> None:
        there = self._ends[1]

        async def once() -> None:
            async with AsyncExitStack() as stack:
                server = await self._dialled(stack, shard, self._ends[0], there, db)
                others = await self._others(stack, there, db)
                strings = None
                if self._settings.mode == "full":
                    strings = StringLooks(db, server, others, lambda: track.comparer)
                if self._settings.mode == "count":
                    ask = self._asking(others)
                    settle = self._comparing_names(track, others, db)
                else:
                    ask = self._asking_both(server, others)
                    settle = self._comparing(track, server, others, db)
                asked = self._asked(_processes((shard, *there.shards), (server, *others)))
                await self._walk(track, asked, server, ask, settle, strings)

        await until_linked(once)

    async def _named(self, shard: Shard, track: Track, db: int) -> None:
        async def once() -> None:
            async with AsyncExitStack() as stack:
                server = await self._dialled(stack, shard, self._ends[1], None, db)
                asked = self._asked(_processes([shard], [server]))
                await self._walk(track, asked, server, None, _nothing)

        await until_linked(once)

    async def _looked_for(self, shard: Shard, track: Track, db: int) -> None:
        there = self._ends[0]

        async def once() -> None:
            async with AsyncExitStack() as stack:
                server = await self._dialled(stack, shard, self._ends[1], there, db)
                others = await self._others(stack, there, db)
                ask, settle = self._asking(others), self._looking_for(track, others, db)
                asked = self._asked(_processes((shard, *there.shards), (server, *others)))
                await self._walk(track, asked, server, ask, settle)

        await until_linked(once)

    def _asked(self, asked: Sequence[tuple[Shard, str]]) -> str:
        """Which processes of servers a walk asks, of which slots, and what it takes for equal;
        empty: one does not tell."""
        told = [f"{self._extended}"]
        for each, process in asked:
            if not process:
                return ""
            slots = "" if each.slots is None else f"{each.slots.words} {each.epoch}"
            told.append(f"{process} {slots}")
        return "; ".join(told)

    async def _walk(
        self,
        track: Track,
        asked: str,
        server: AskedServer,
        ask: Ask | None,
        settle: Settle,
        strings: StringLooks | None = None,
    ) -> None:
        own = 0

        def on_page(page: KeyPage) -> None:
            nonlocal own
            own += page.left_out
            track.named += page.named
            track.at(server.reader.named, int.from_bytes(server.reader.names, "little"), own)
            self._on_page()

        cursor = self._tracks.begin(track, asked, self._again)
        if cursor is None:
            return
        await walk(
            server,
            self._match,
            ask,
            settle,
            self._pace,
            on_page,
            self._enough,
            cursor,
            lambda: track.due,
            lambda cursor: self._tracks.mark(track, cursor, self._again),
            strings,
        )
        if not self._enough():
            self._tracks.mark(track, None, self._again)

    async def _dialled(
        self,
        stack: AsyncExitStack,
        shard: Shard,
        here: Deployment,
        there: Deployment | None,
        db: int,
    ) -> AskedServer:
        """The server whose names are walked over; `there`: whose parts the names are sorted by."""
        # Keys of the engine's own are left out at both ends.
        make = partial(
            LookReader, self._key, OWN_PREFIX if db == POSITION_DB else b"", share=self._share
        )
        if there is not None:
            make = partial(make, parts=there.parts, count=len(there.shards))
        server = AskedServer(shard.endpoint, make, here.fault, self._settings.timeout)
        return await self._entered(stack, server, db)

    async def _others(self, stack: AsyncExitStack, there: Deployment, db: int) -> list[AskedServer]:
        found = []
        for each in there.shards:
            server = AskedServer(
                each.endpoint, partial(LookReader, self._key), there.fault, self._settings.timeout
            )
            found.append(await self._entered(stack, server, db))
        return found

    async def _entered(self, stack: AsyncExitStack, server: AskedServer, db: int) -> AskedServer:
        await stack.enter_async_context(server)
        self.processes |= {server.info.process} - {""}
        await server.select(db)
        return server

    # --- What is asked, and what becomes of the answers ---

    def _asking_both(self, server: AskedServer, others: Sequence[AskedServer]) -> Ask:
        ours, *theirs = (question(self._settings.mode, each.info) for each in (server, *others))

        def ask(
            part: int, names: KeyNames, first: int, last: int
        ) -> Sequence[asyncio.Future[Looks]]:
            return (
                server.looks(names, first, last, ours),
                others[part].looks(names, first, last, theirs[part]),
            )

        return ask

    def _asking(self, others: Sequence[AskedServer]) -> Ask:
        return lambda part, names, first, last: (others[part].looks(names, first, last, EXISTS),)

    def _comparing(
        self, track: Track, server: AskedServer, others: Sequence[AskedServer], db: int
    ) -> Settle:
        async def settle(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            one, other = looks
            await server.allowed(one)
            await others[part].allowed(other)
            for index, _ in track.comparer.compare(names, first, one, other):
                sizes = (each.size(index - first) for each in looks)
                self._again.add(db, names.name(index), track, max(sizes))
            if self._again.full:
                await self._again.settle()

        return settle

    def _comparing_names(self, track: Track, others: Sequence[AskedServer], db: int) -> Settle:
        look_for = self._looking_for(track, others, db)

        async def settle(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            # The source has just named them.
            track.comparer.compare(names, first, looks[0], looks[0])
            await look_for(part, names, first, looks)

        return settle

    def _looking_for(self, track: Track, others: Sequence[AskedServer], db: int) -> Settle:
        async def settle(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            await others[part].allowed(looks[0])
            for index in looks[0].absent:
                self._again.add(db, names.name(first + index), track)
            if self._again.full:
                await self._again.settle()

        return settle


async def _all(walks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them beside each other; what one raises ends the others."""
    tasks = [asyncio.create_task(each) for each in walks]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
    pass


def _names(tracks: Sequence[Track]) -> tuple[int, int]:
    """How many names have come, and their digest."""
    sums = sum((each.sums for each in tracks), Sums())
    return sums.count, sums.names


def _processes(shards: Sequence[Shard], servers: Sequence[AskedServer]) -> list[tuple[Shard, str]]:
    return [(each, of_it.info.process) for each, of_it in zip(shards, servers, strict=True)]
