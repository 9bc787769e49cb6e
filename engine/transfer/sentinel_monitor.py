"""Follows what Sentinels say of an end's primary: a failover is noticed when they decide it.

A connection to the former primary may well stand: it was cut off from the Sentinels, and does not
know yet. What clients write from then on goes to the new one. So each connection that carries data
is given up when the Sentinels name another server (`+switch-master`), and what dials anew asks them
where to (`wire.dial.located`). While none of them answers the gate of the cut-over is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from engine import logs
from engine.errors import AuthError, EngineError, ServerError
from engine.model.endpoint import Endpoint
from engine.transfer.async_helpers import all_cancelled
from engine.transfer.control_connections import Endpoints, Side
from engine.transfer.migration_context import MigrationContext
from engine.wire import sentinel_primary
from engine.wire.control_connection import Admin, admin
from engine.wire.dial import located

_CHANNEL = "+switch-master"
# Between two tries to reach a Sentinel.
_PAUSE_SECONDS = 1.0
# From the end of one question to the next, whatever is announced: an announcement may be lost with
# the Sentinel that would have made it.
_ASK_SECONDS = 5.0
_log = logs.logger(__name__)


class SentinelMonitor:
    """`moved` is called with the end and its primary whenever its Sentinels were asked."""

    def __init__(
        self, ends: Endpoints, context: MigrationContext, moved: Callable[[Side, Endpoint], None]
    ) -> None:
        self._ends = ends
        self._context = context
        self._moved = moved
        self._primaries: dict[Side, Endpoint] = {}
        self._refused: set[Side] = set()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Follow the Sentinels of both ends meanwhile; nothing to do where an end has none."""
        # (Which of the source's replicas is read, if one is, is another matter.)
        source = self._ends.source.of_primary
        both: dict[Side, Endpoint] = {"source": source, "target": self._ends.target}
        tasks = [
            asyncio.create_task(self._watch(side, end))
            for side, end in both.items()
            if end.sentinel is not None
        ]
        try:
            yield
        finally:
            await all_cancelled(tasks)

    async def _watch(self, side: Side, end: Endpoint) -> None:
        nodes = end.sentinels
        turn = 0
        while True:
            # One after the other: what one of them misses the next one tells.
            node = nodes[turn % len(nodes)]
            turn += 1
            try:
                await self._listen(side, end, node)
            except EngineError as exc:
                extra = {"end": side, "sentinel": node.address}
                _log.debug("Cannot subscribe to a Sentinel: %s", exc.message, extra=extra)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _listen(self, side: Side, end: Endpoint, node: Endpoint) -> None:
        """Until the link goes. Raises `LinkError`, `AuthError`, `ServerError`."""
        timeout = self._ends.settings.connect_timeout
        await self._look(side, end)
        async with admin(node, timeout=timeout, fault=side, straight=True) as connection:
            listens = await self._subscribe(connection, side)
            while True:
                await self._look(side, end)
                if listens:
                    await connection.message(_ASK_SECONDS)
                else:
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _subscribe(self, connection: Admin, side: Side) -> bool:
        """Whether the Sentinel announces failovers to us. Raises `LinkError`."""
        try:
            await connection.subscribe(_CHANNEL)
        except (AuthError, ServerError) as exc:
            if side not in self._refused:
                self._refused.add(side)
                self._context.on_event(
                    f"the engine asks the Sentinels of the {side} each second, because it cannot "
                    f"subscribe to their messages: {exc.message}"
                )
            return False
        return True

    async def _look(self, side: Side, end: Endpoint) -> None:
        """Where is the primary by now? What the Sentinels do not tell is asked the next time."""
        sentinel_primary.forget(end)
        report = self._context.trouble_of(f"the Sentinels of the {side}")
        before = self._primaries.get(side) or sentinel_primary.named_last(end)
        try:
            there = await located(end, fault=side, timeout=self._ends.settings.connect_timeout)
        except EngineError as exc:
            # Nothing says any more that the server which is followed is the one that clients use.
            why = exc.message.removesuffix(".")
            report(f"{why}: the engine does not know which server is the primary, and asks again")
            return
        report("")
        self._primaries[side] = there
        if before is not None and before.address != there.address:
            assert end.sentinel is not None
            self._context.on_event(
                f"Sentinel names {there.address} as the primary of {end.sentinel.name} (the "
                f"{side}); it was {before.address}"
            )
        if side == "source" and self._ends.source.from_replica:
            return
        # Each time: a link that was being made meanwhile may lead to the one before.
        self._moved(side, there)
