"""Looks at the replica that a lane's source is read from (`--read-from replica`), once a second.

Which one it is `wire.source_replica` decides. When that is another one each connection that carries
data is given up, and what dials anew is led there; the stream goes on by a partial sync, for all
servers of a replication have one. Whatever changes is an event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from engine.errors import EngineError
from engine.model.endpoint import Endpoint
from engine.model.position import StreamPosition
from engine.model.progress import Phase
from engine.transfer.async_helpers import cancelled
from engine.transfer.control_connections import Endpoints, Side
from engine.transfer.migration_context import MigrationContext
from engine.wire import source_replica
from engine.wire.control_connection import Admin, admin
from engine.wire.source_replica import Choice

_LOOK_SECONDS = 1.0
# A server that was not asked for so long is no candidate any more.
_KEPT_SECONDS = 30.0


class ReplicaMonitor:
    """`moved` is called with the server that is read, at each look."""

    def __init__(
        self, ends: Endpoints, context: MigrationContext, moved: Callable[[Side, Endpoint], None]
    ) -> None:
        self._ends = ends
        self._context = context
        self._moved = moved
        self._before: Choice | None = None
        # Servers that are asked again and again, over connections of their own.
        self._asked: dict[Endpoint, tuple[contextlib.AsyncExitStack, Admin]] = {}
        # One question at a time goes over a connection; and when it went, by the loop's clock.
        self._lines: dict[Endpoint, asyncio.Lock] = {}
        self._asked_at: dict[Endpoint, float] = {}

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look meanwhile; nothing to do where the primary is read."""
        if not self._ends.source.from_replica:
            yield
            return
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await cancelled(task)
            for at in list(self._asked):
                await self._hang_up(at)

    def goes_on(self, position: StreamPosition | None) -> None:
        """The stream goes on from there, at the primary where no replica is fit; None: there is
        none yet."""
        if self._ends.source.from_replica:
            history = "" if position is None else position.replid
            source_replica.may_read_primary(self._ends.source, position is not None, history)

    async def _run(self) -> None:
        while True:
            if not self._is_held:
                await self._look()
                await self._forget()
            await asyncio.sleep(_LOOK_SECONDS)

    @property
    def _is_held(self) -> bool:
        """Whether what is read stays so: a snapshot that goes on is worth more than a replica that
        is nearer, and replicas are not gone back to while the writers are held."""
        phase, choice = self._context.phase, self._before
        if phase is Phase.CUT_OVER:
            return choice is not None and choice.is_primary
        return phase is Phase.SNAPSHOT

    async def _forget(self) -> None:
        """Hang up on servers that are no candidates any more."""
        now = asyncio.get_running_loop().time()
        for at, when in list(self._asked_at.items()):
            if now - when > _KEPT_SECONDS and not self._lines[at].locked():
                await self._hang_up(at)
                del self._lines[at], self._asked_at[at]

    async def _look(self) -> None:
        source = self._ends.source
        report = self._context.trouble_of("the source's replicas")
        timeout = self._ends.settings.connect_timeout
        try:
            choice = await source_replica.look(source, self._ask, fault="source", timeout=timeout)
        except EngineError as exc:
            why = exc.message.removesuffix(".")
            report(f"it is not known which replica of the source to read: {why}")
            return
        report("")
        before, self._before = self._before, choice
        if before is None or before.there.address != choice.there.address:
            self._tell(before, choice)
        elif before.is_primary != choice.is_primary:
            self._tell(None, choice)
        # Each time: a link that was being made meanwhile may lead to the one before.
        self._moved("source", choice.there)

    def _tell(self, before: Choice | None, choice: Choice) -> None:
        was = f"; it was {before.there.address}" if before is not None else ""
        if choice.is_primary:
            text = (
                f"the source is read from its primary {choice.there.address}{was}: no replica of "
                f"it is fit ({choice.why}); replicas are gone back to when one is"
            )
        else:
            text = f"the source is read from {choice.words}{was}"
        self._context.on_event(text)

    async def _ask(self, at: Endpoint, questions: Sequence[tuple[str, ...]]) -> list[Any]:
        line = self._lines.setdefault(at, asyncio.Lock())
        self._asked_at[at] = asyncio.get_running_loop().time()
        async with line:
            try:
                known = self._asked.get(at)
                end = known[1] if known is not None else await self._dial(at)
                return await end.ask(*questions)
            except BaseException:
                # What is still owed would be taken for the next answer.
                await self._hang_up(at)
                raise

    async def _dial(self, at: Endpoint) -> Admin:
        stack = contextlib.AsyncExitStack()
        timeout = self._ends.settings.connect_timeout
        end = await stack.enter_async_context(
            admin(at, timeout=timeout, fault="source", straight=True)
        )
        self._asked[at] = stack, end
        return end

    async def _hang_up(self, at: Endpoint) -> None:
        if (known := self._asked.pop(at, None)) is not None:
            await known[0].aclose()
