"""The walks over both ends, database by database.

1. Over each server of the source: its keys are compared with the target's.
2. Over each server of the target: its names alone. Where they are the source's, by their number and
   a keyed digest, the target has none that the source has not.
3. Else over the target again: the source is asked whether it has the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from engine._native import KeyNames, LookComparer, LookReader, Looks
from engine.model.online_checkpoint import OWN_PREFIX, POSITION_DB
from engine.model.proof import ProofSettings
from engine.proof.asked_server import EXISTS, AskedServer, Question, question
from engine.proof.deployment import Deployment, Shard
from engine.proof.relinking import until_linked
from engine.proof.second_looks import SecondLooks
from engine.proof.walk import Ask, Pace, Settle, walk

TTL_BOUND_MS = 1000
"""Two expire times this far apart are one: older servers tell the time left, and not the time."""
_SUM = 1 << 128
_OF_ALL = 1 << 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Names:
    """Those that a walk has come by: how many, their digest, and how many were the engine's own."""

    count: int = 0
    digest: int = 0
    own: int = 0

    def __add__(self, other: _Names) -> _Names:
        return _Names(
            self.count + other.count,
            (self.digest + other.digest) % _SUM,
            self.own + other.own,
        )


class KeyWalks:
    """Walks over `ends`; what seems to differ goes to `again`.

    `extended`: the target's expire times may be later by so many ms. `on_named` is told how many
    names have come, and where it is `enough` the walks end. `comparers` have counted what is equal,
    `own` are the engine's own keys on the target.
    """

    def __init__(
        self,
        ends: tuple[Deployment, Deployment],
        settings: ProofSettings,
        key: bytes,
        pace: Pace,
        again: SecondLooks,
        extended: int,
        on_named: Callable[[int], None],
        enough: Callable[[], bool],
    ) -> None:
        self._ends = ends
        self._settings = settings
        self._key = key
        self._pace = pace
        self._again = again
        self._extended = extended
        self._on_named = on_named
        self._enough = enough
        self._match = None
        if settings.match is not None:
            self._match = settings.match.encode("utf-8", "surrogateescape")
        self._share = 0
        if settings.sample < 1:
            self._share = max(int(settings.sample * _OF_ALL), 1)
        self.comparers: list[LookComparer] = []
        self.own = 0

    async def over(self, db: int) -> None:
        """Compare a database. Raises `EngineError`."""
        source, target = self._ends
        ours = sum(await _all([self._compared(each, db) for each in source.shards]), _Names())
        theirs = sum(await _all([self._named(each, db) for each in target.shards]), _Names())
        self.own += theirs.own
        if (ours.count, ours.digest) != (theirs.count, theirs.digest):
            await _all([self._looked_for(each, db) for each in target.shards])

    async def alone(self, db: int, side: int, on_key: Callable[[bytes], None]) -> None:
        """Name the keys of a database that the other end than that of the number `side` has not.
        Raises `EngineError`."""
        end = self._ends[side]
        await _all([self._names_alone(end, each, db, on_key) for each in end.shards])

    # --- Over one server; from the beginning where a link is lost ---

    async def _names_alone(
        self, end: Deployment, shard: Shard, db: int, on_key: Callable[[bytes], None]
    ) -> None:
        async def once() -> _Names:
            async with AsyncExitStack() as stack:
                server, reader = await self._dialled(stack, shard, end, None, db)

                async def settle(
                    part: int, names: KeyNames, first: int, looks: Sequence[Looks]
                ) -> None:
                    server.allowed(looks[0])
                    absent = set(looks[0].absent)
                    for index in range(len(looks[0])):
                        if index not in absent:
                            on_key(names.name(first + index))

                return await self._walk(
                    server, reader, self._asking([server]), settle, self._on_named
                )

        await until_linked(once)

    async def _compared(self, shard: Shard, db: int) -> _Names:
        there = self._ends[1]

        async def once() -> _Names:
            comparer = LookComparer(self._key, ttl_bound=TTL_BOUND_MS, extended=self._extended)
            comparer.db = db
            async with AsyncExitStack() as stack:
                server, reader = await self._dialled(stack, shard, self._ends[0], there, db)
                others = await self._others(stack, there, db)
                if self._settings.mode == "count":
                    ask = self._asking(others)
                    settle = self._comparing_names(comparer, others, db)
                else:
                    ask = self._asking_both(server, others)
                    settle = self._comparing(comparer, server, others, db)
                found = await self._walk(server, reader, ask, settle, self._on_named)
            self.comparers.append(comparer)
            return found

        return await until_linked(once)

    async def _named(self, shard: Shard, db: int) -> _Names:
        async def once() -> _Names:
            async with AsyncExitStack() as stack:
                server, reader = await self._dialled(stack, shard, self._ends[1], None, db)
                return await self._walk(server, reader, None, _nothing, self._on_named)

        return await until_linked(once)

    async def _looked_for(self, shard: Shard, db: int) -> None:
        there = self._ends[0]

        async def once() -> _Names:
            async with AsyncExitStack() as stack:
                server, reader = await self._dialled(stack, shard, self._ends[1], there, db)
                others = await self._others(stack, there, db)
                ask, settle = self._asking(others), self._looking_for(others, db)
                return await self._walk(server, reader, ask, settle, _untold)

        await until_linked(once)

    async def _walk(
        self,
        server: AskedServer,
        reader: Callable[[], LookReader],
        ask: Ask | None,
        settle: Settle,
        on_named: Callable[[int], None],
    ) -> _Names:
        own = await walk(server, self._match, ask, settle, self._pace, on_named, self._enough)
        read = reader()
        return _Names(read.named, int.from_bytes(read.names, "little"), own)

    async def _dialled(
        self,
        stack: AsyncExitStack,
        shard: Shard,
        here: Deployment,
        there: Deployment | None,
        db: int,
    ) -> tuple[AskedServer, Callable[[], LookReader]]:
        """The server whose names are walked over, and what has its reader; `there`: whose parts the
        names are sorted by."""
        # Keys of the engine's own are left out at both ends.
        make = partial(
            LookReader, self._key, OWN_PREFIX if db == POSITION_DB else b"", share=self._share
        )
        if there is not None:
            make = partial(make, parts=there.parts, count=len(there.shards))
        server = AskedServer(shard.endpoint, make, here.fault, self._settings.timeout)
        await stack.enter_async_context(server)
        await server.select(db)
        return server, lambda: server.reader

    async def _others(self, stack: AsyncExitStack, there: Deployment, db: int) -> list[AskedServer]:
        found = []
        for each in there.shards:
            server = AskedServer(
                each.endpoint, partial(LookReader, self._key), there.fault, self._settings.timeout
            )
            found.append(await stack.enter_async_context(server))
            await server.select(db)
        return found

    # --- What is asked, and what becomes of the answers ---

    def _asking_both(self, server: AskedServer, others: Sequence[AskedServer]) -> Ask:
        ours, *theirs = (self._question(each) for each in (server, *others))

        def ask(
            part: int, names: KeyNames, first: int, last: int
        ) -> Sequence[asyncio.Future[Looks]]:
            return (
                server.looks(names, first, last, ours),
                others[part].looks(names, first, last, theirs[part]),
            )

        return ask

    def _question(self, server: AskedServer) -> Question:
        assert server.info is not None
        return question(self._settings.mode, server.info)

    def _asking(self, others: Sequence[AskedServer]) -> Ask:
        return lambda part, names, first, last: (others[part].looks(names, first, last, EXISTS),)

    def _comparing(
        self, comparer: LookComparer, server: AskedServer, others: Sequence[AskedServer], db: int
    ) -> Settle:
        async def settle(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            one, other = looks
            server.allowed(one)
            others[part].allowed(other)
            for index, _ in comparer.compare(names, first, one, other):
                sizes = (each.size(index - first) for each in looks)
                self._again.add(db, names.name(index), max(sizes))
            if self._again.full:
                await self._again.settle()

        return settle

    def _comparing_names(
        self, comparer: LookComparer, others: Sequence[AskedServer], db: int
    ) -> Settle:
        look_for = self._looking_for(others, db)

        async def settle(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            # The source has just named them.
            comparer.compare(names, first, looks[0], looks[0])
            await look_for(part, names, first, looks)

        return settle

    def _looking_for(self, others: Sequence[AskedServer], db: int) -> Settle:
        async def settle(part: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            others[part].allowed(looks[0])
            for index in looks[0].absent:
                self._again.add(db, names.name(first + index))
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


def _untold(_: int) -> None:
    pass
