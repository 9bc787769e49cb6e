"""Which of some keys may differ between two servers: one look at both ends, compared in the core.

What it does not name is equal at both ends: in its value, whatever its form, and in its expire
time. What it names may differ, or cannot be told so; it is for a closer look.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from engine._native import KeyNames, LookComparer, LookReader, Looks
from engine.model.endpoint import Endpoint
from engine.proof.asked_server import AskedServer, question
from engine.proof.walk import RunLength

# Runs of keys whose answers are awaited.
_UNDER_WAY = 3


class KeyScreen:
    """Asks both ends. Not for two tasks at once."""

    def __init__(self, source: Endpoint, target: Endpoint, timeout: float) -> None:
        key = os.urandom(16)
        self._key = key
        self._source = source
        self._make = partial(AskedServer, reader=partial(LookReader, key), timeout=timeout)
        self._ends = self._make(source, fault="source"), self._make(target, fault="target")
        self._stack = AsyncExitStack()
        self._comparer = LookComparer(key)
        self._length = RunLength()
        self._db: int | None = None
        self.read = 0
        """Bytes of answers, of both ends."""

    async def open(self, extend_ms: int, primary: Endpoint | None = None) -> None:
        """Dial both ends. `extend_ms`: by so much the target's expire times may be later;
        `primary`: the server that is asked in the source's place. Raises `LinkError`, `AuthError`,
        `ServerError`."""
        await self.close()
        source = self._make(primary or self._source, fault="source", straight=primary is not None)
        self._ends = source, self._ends[1]
        self._comparer = LookComparer(self._key, extended=extend_ms)
        for each in self._ends:
            await self._stack.enter_async_context(each)
        self._db = None

    async def close(self) -> None:
        """Hang up. A second call does nothing."""
        await self._stack.aclose()

    async def doubtful(self, db: int, keys: Sequence[bytes]) -> list[bytes]:
        """Those of `keys` that may differ. Raises as `open`."""
        if self._db != db:
            for each in self._ends:
                await each.select(db)
            self._db = self._comparer.db = db
        names, found, first = KeyNames(list(keys)), list[bytes](), 0
        asked = [(each, question("full", each.info)) for each in self._ends if each.info]
        under_way: deque[tuple[int, int, list[asyncio.Future[Looks]]]] = deque()
        while first < len(names) or under_way:
            while first < len(names) and len(under_way) < _UNDER_WAY:
                last = min(first + self._length.keys, len(names))
                answers = [end.looks(names, first, last, what) for end, what in asked]
                under_way.append((first, last, answers))
                first = last
            begin, end, answers = under_way.popleft()
            one, other = [await each for each in answers]
            self._length.saw(end - begin, max(one.nbytes, other.nbytes))
            self.read += one.nbytes + other.nbytes
            found += [keys[index] for index, _ in self._comparer.compare(names, begin, one, other)]
        return found
