"""What the target says of itself while it is filled: it is asked each second.

Keys that it evicts are missing there, and no reply to a write tells of it: INFO does. And a target
that is stopped or cut off while nothing is written to it would be shown as in sync: it is heard
while INFO is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from engine.errors import EngineError, LinkError
from engine.model.endpoint import Endpoint
from engine.model.evictions import Evictions
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.async_helpers import cancelled
from engine.transfer.migration_context import MigrationContext
from engine.wire.control_connection import Admin, Arg, admin

LOOK_SECONDS = 1.0
"""From the end of one look to the next."""
SILENT_SECONDS = 2.0
"""A target that answers nothing for so long is silent."""
_HERE_SECONDS = 0.05


class AskedBeside(Protocol):
    """What else is looked at with each look at the target."""

    def question(self) -> Sequence[Arg] | None:
        """What is asked along with it; None: nothing, this time."""
        ...

    async def look(self, target: Admin, info: ServerInfo, reply: object) -> None:
        """Awaited where something was asked: over this connection the target has said so of itself,
        and given this reply, which may be an error."""
        ...


class TargetMonitor:
    """Looks at the target, and keeps in the tally what it has evicted.

    `on_change`: called when that is another number than before, to be written down.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: MigrationContext,
        on_change: Callable[[], None],
        beside: AskedBeside | None = None,
    ) -> None:
        self._beside = beside
        self._endpoint = endpoint
        self._context = context
        self._on_change = on_change
        self._stack = AsyncExitStack()
        self._end: Admin | None = None
        self._line = asyncio.Lock()
        self._report = context.trouble_of("the target's answers")
        # By the loop's clock: when it answered last, and since when it gives no answer.
        self._heard_at: float | None = None
        self._asked_at: float | None = None
        self._silent = False
        self._rests_until = -math.inf
        self.identity = ""
        """The target's data set and process, as it called itself last (`ServerInfo.identity`);
        empty: not yet, or not since it was set so."""

    @property
    def heard_seconds(self) -> float | None:
        """Whole seconds since the target answered; None: it was not asked yet."""
        if self._heard_at is None:
            return None
        return float(int(asyncio.get_running_loop().time() - self._heard_at))

    @property
    def _answered(self) -> bool:
        return self._asked_at is None

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
            beside = None if self._beside is None else self._beside.question()
            info, *replies = await self._ask(*([] if beside is None else [beside]))
            before = self._context.stats.evictions
            if before.base is None:
                return  # nothing was written yet
            if self._beside is not None and self._end is not None and replies:
                # It may stop behind that, and be asked once more.
                self._asked_at = asyncio.get_running_loop().time()
                await self._beside.look(self._end, info, replies[0])
                self._heard()
            found = self._context.stats.evictions = before.after(info)
        if found != before:
            self._on_change()
        if found.count and not before.count:
            self._context.on_event(found.words)

    async def find_answering(self) -> None:
        """As `look`, unless a look is under way, which is waited for: the target answers by now."""
        if self._line.locked():
            async with self._line:
                pass
            if self._answered:
                return
        await self.look()

    def rest(self, seconds: float) -> None:
        """Look only when asked to for so many seconds: writers wait, and who looks then is not to
        wait for the answer to a look before."""
        self._rests_until = asyncio.get_running_loop().time() + seconds

    async def begin(self, info: ServerInfo | None = None) -> None:
        """Count from here on: the first write comes next. `info`: what the target has just said of
        itself. Raises as `look`."""
        async with self._line:
            if info is None:
                info, *_ = await self._ask()
            self._context.stats.evictions = Evictions().after(info)

    async def _ask(self, *beside: Sequence[Arg]) -> tuple[ServerInfo, *tuple[object, ...]]:
        info, replies = await self._info(*beside)
        self.identity = info.identity
        self._context.few_replicas = few_replicas(info, self._context.settings)
        self._heard()
        return info, *replies

    def _heard(self) -> None:
        self._heard_at, self._asked_at = asyncio.get_running_loop().time(), None

    async def _info(self, *beside: Sequence[Arg]) -> tuple[ServerInfo, list[object]]:
        if self._end is not None:
            # A target that was restarted meanwhile has closed it: the next call dials again.
            with contextlib.suppress(LinkError):
                return await self._end.info_with(*beside)
        else:
            limit = self._context.settings.connect_timeout
            self._end = await self._stack.enter_async_context(
                admin(self._endpoint, timeout=limit, fault="target")
            )
        try:
            return await self._end.info_with(*beside)
        except LinkError:
            # The target may have been restarted since: then this dials anew.
            return await self._end.info_with(*beside)

    async def _watch(self) -> None:
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                if asyncio.get_running_loop().time() < self._rests_until:
                    continue
                if self._context.stats.evictions.base is not None:
                    await self._look_or_say()
        finally:
            self._report("")

    async def _look_or_say(self) -> None:
        """Look, and say so while no answer comes. Where the target cannot be dialled, the data's
        own connection has that trouble as well, and says which."""
        loop = asyncio.get_running_loop()
        self._asked_at = loop.time() if self._asked_at is None else self._asked_at
        look = asyncio.create_task(self.look())
        try:
            while not look.done():
                await asyncio.wait({look}, timeout=LOOK_SECONDS if self._silent else SILENT_SECONDS)
                # An engine that got no CPU may find the answer here.
                await asyncio.wait({look}, timeout=_HERE_SECONDS)
                if not look.done() and self._asked_at is not None:
                    self._say_silent(loop.time() - self._asked_at)
            with contextlib.suppress(EngineError):
                look.result()
        finally:
            await cancelled(look)
        if self._answered:
            self._report("")
            if self._silent:
                self._silent = False
                self._context.on_event("the target answers again")

    def _say_silent(self, seconds: float) -> None:
        words = f"the target has not answered for {seconds:.0f} s"
        if not self._silent:
            self._silent = True
            self._context.on_event(words)
        self._report(words)


def few_replicas(info: ServerInfo, settings: TransferSettings) -> str:
    """What the target lacks of the replicas that `--durability` asks for, in words; empty: nothing,
    as far as it tells."""
    found, wanted = info.replicas_in_step, settings.target_replicas
    if found is None or found >= wanted:
        return ""
    return f"{found} of the {wanted} replicas of the target that are asked for are in step"
