"""What the target says of itself while it is filled: it is asked each second.

Keys that it evicts are missing there, and no reply to a write tells of it: INFO does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from engine.errors import EngineError, LinkError
from engine.model.endpoint import Endpoint
from engine.model.evictions import Evictions
from engine.model.server import ServerInfo
from engine.transfer.aside import cancelled
from engine.transfer.stage import Stage
from engine.wire.admin import Admin, admin

LOOK_SECONDS = 1.0
"""From the end of one look to the next."""


class TargetWatch:
    """Looks at the target, and keeps in the tally what it has evicted.

    `on_change`: called when that is another number than before, to be written down.
    """

    def __init__(self, endpoint: Endpoint, stage: Stage, on_change: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._stage = stage
        self._on_change = on_change
        self._stack = AsyncExitStack()
        self._end: Admin | None = None
        self._line = asyncio.Lock()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look again and again meanwhile. What cannot be asked is asked the next time."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            await cancelled(task)
            self._end = None
            await self._stack.aclose()

    async def look(self) -> None:
        """Look now. Raises `LinkError`, `AuthError`, `ServerError`, `ProtocolFault`."""
        # One after the other: a figure that is older than the last one looks like a new counter's.
        async with self._line:
            info = await self._ask()
            before = self._stage.tally.evictions
            if before.base is None:
                return  # nothing was written yet
            found = self._stage.tally.evictions = before.after(info)
        if found != before:
            self._on_change()
        if found.count and not before.count:
            self._stage.on_event(found.words)

    async def begin(self) -> None:
        """Count from here on: the first write comes next. Raises as `look`."""
        async with self._line:
            self._stage.tally.evictions = Evictions().after(await self._ask())

    async def _ask(self) -> ServerInfo:
        if self._end is not None:
            # A target that was restarted meanwhile has closed it: the next call dials again.
            with contextlib.suppress(LinkError):
                return await self._end.info()
        else:
            limit = self._stage.settings.connect_timeout
            self._end = await self._stack.enter_async_context(
                admin(self._endpoint, timeout=limit, fault="target")
            )
        try:
            return await self._end.info()
        except LinkError:
            # The target may have been restarted since: then this dials anew.
            return await self._end.info()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._stage.tally.evictions.base is not None:
                with contextlib.suppress(EngineError):
                    await self.look()
