"""Which of some keys may differ between two servers: one look at both ends, compared in the core.

What it does not name is equal at both ends: in its value, whatever its form, and in its expire
time. What it names may differ, or cannot be told so; it is for a closer look.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from engine._native import KeyNames, LookComparer, LookReader, Looks
from engine.model.endpoint import Endpoint
from engine.model.pace import Pace
from engine.proof.asked_server import AskedServer, question
from engine.proof.string_looks import StringLooks
from engine.proof.walk import RunLengths, Runs


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
        self._lengths = RunLengths()
        self._strings: StringLooks | None = None
        self._db: int | None = None
        # It counts alone: who asks keeps the pace.
        self._pace = Pace(0)
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
        if self._strings is None or not self._strings.refused:
            # Both ends are written to.
            self._strings = StringLooks(
                0, self._ends[0], self._ends[1:], lambda: self._comparer, may_prove=False
            )
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
            if self._strings is not None:
                self._strings.db = db
        found: list[bytes] = []
        asked = [(each, question("full", each.info)) for each in self._ends]

        def ask(_: int, names: KeyNames, first: int, last: int) -> Sequence[asyncio.Future[Looks]]:
            return [end.looks(names, first, last, what) for end, what in asked]

        async def settle(_: int, names: KeyNames, first: int, looks: Sequence[Looks]) -> None:
            for index, _bits in self._comparer.compare(names, first, *looks):
                found.append(names.name(index))

        runs = Runs(ask, settle, self._pace, self._strings, self._lengths)
        try:
            await runs.add(0, KeyNames(list(keys)))
            await runs.finish()
        finally:
            self.read = self._pace.bytes
        return found
