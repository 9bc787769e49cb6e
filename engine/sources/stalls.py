"""Whether the link to a followed source stands still, or lags, without being lost.

Theory. Relative TTLs count from when a command was run at the source, and all that we know of that
is when we read it. What the network holds back comes on time by the look of it. So the source is
asked again and again, over a connection of its own, what its offset is:

- What it has told, and we have not received `GRACE_SECONDS` later, is held up somewhere.
- While it gives no answer nothing is known, and all is taken for late: what is held up may well
  come before the answer does.

Each time it is said, everything counts as late that the source has sent by then. The invariant: a
byte that is received later than `ASK_SECONDS` + 2 × `GRACE_SECONDS` (and two round trips) after it
was sent is known to be late before it is received. For it was sent before a question that was put
at most `ASK_SECONDS` later (or while none was answered), and either no answer came in time, or it
counted that byte. What is late by less is not seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.errors import AuthError, EngineError, ProtocolFault, ServerError
from engine.wire.connection import Connection
from engine.wire.info import ask_offset
from engine.wire.psync import NOT_NOW

ASK_SECONDS = 0.25
"""From the end of one question to the next."""
GRACE_SECONDS = 0.25
"""An answer, or bytes, that take no longer than this are on time."""


class StallWatch:
    """Asks, and says so when what comes may be late.

    `dial`: a new connection to the source. `received`: the offset up to which the stream came.
    `on_late`: called again and again while it may be late. `on_event`: told once each time.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Connection]],
        received: Callable[[], int],
        on_late: Callable[[], None],
        on_event: Callable[[str], None],
    ) -> None:
        self._dial = dial
        self._received = received
        self._on_late = on_late
        self._on_event = on_event
        self._connection: Connection | None = None
        # What was found last; None: nothing yet.
        self._late: bool | None = None

    async def run(self) -> None:
        """Ask until cancelled, or until the source says that it is not for us to ask."""
        try:
            while True:
                try:
                    told = await self._answer()
                    if self._received() < told:
                        await asyncio.sleep(GRACE_SECONDS)
                    if self._received() < told:
                        self._say_late()
                    else:
                        self._late = False
                except EngineError as exc:
                    if not _passes(exc):
                        self._on_event(f"nobody sees whether the source's stream comes late: {exc}")
                        return
                    self._say_late()
                    self._let_go()
                await asyncio.sleep(ASK_SECONDS)
        finally:
            self._let_go()

    async def _answer(self) -> int:
        """The source's offset; for as long as it does not come in time, all is late."""
        known = self._connection
        patience = GRACE_SECONDS + (known.round_trip if known is not None else 0.0)
        task = asyncio.ensure_future(self._ask())
        try:
            while not (await asyncio.wait({task}, timeout=patience))[0]:
                self._say_late()
            return task.result()
        finally:
            if not task.cancel() and not task.cancelled():
                task.exception()

    async def _ask(self) -> int:
        if self._connection is None:
            self._connection = await self._dial()
        return await ask_offset(self._connection)

    def _say_late(self) -> None:
        # Dialling takes its time: before the first answer it is no news.
        if self._late is False:
            self._on_event("the source's stream comes late: deadlines are read from the source")
            self._late = True
        self._on_late()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _passes(error: EngineError) -> bool:
    """Whether it is worth asking again."""
    if isinstance(error, AuthError | ProtocolFault):
        return False
    return not isinstance(error, ServerError) or error.code in NOT_NOW
