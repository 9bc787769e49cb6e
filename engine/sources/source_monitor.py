"""What a followed source says of itself, asked again and again over a connection of its own.

One question (INFO replication) serves three ends: whether the source is there at all
(`sources/source_liveness`), what its role is, and whether its stream comes late.

Theory of the last. Relative TTLs count from when a command was run at the source, and all that we
know of that is when we read it. What the network holds back comes on time by the look of it. So the
source's offset is compared with what has arrived:

- What it has told, and we have not received `GRACE_SECONDS` later, is held up somewhere.
- While it gives no answer nothing is known, and all is taken for late: what is held up may well
  come before the answer does.

Each time it is said, everything counts as late that the source has sent by then. The invariant: a
byte that is received later than `ASK_SECONDS` + 2 × `GRACE_SECONDS` (and two round trips) after it
was sent is known to be late before it is received. For it was sent before a question that was put
at most `ASK_SECONDS` later (or while none was answered), and either no answer came in time, or it
counted that byte. What is late by less is not seen.

A source whose TTLs are absolute is asked less often, for its lateness has no effect.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from engine.errors import AuthError, EngineError, LinkError, ProtocolFault, ServerError
from engine.model.endpoint import Endpoint
from engine.model.replication import Replication
from engine.wire.connection import Connection
from engine.wire.info_command import ask_replication
from engine.wire.psync import NOT_NOW

ASK_SECONDS = 0.25
"""From the end of one question to the next, where lateness matters."""
ASK_SECONDS_ELSE = 0.5
"""The same of other sources: the role is to be known once a second."""
GRACE_SECONDS = 0.25
"""An answer, or bytes, that take no longer than this are on time."""
SILENT_SECONDS = 2.0
"""A source that answers nothing for so long, or whose bytes do not come, is silent."""
_HANG_UP_SECONDS = 5.0  # an answer that takes longer is asked for over a new connection


class SourceMonitor:
    """Asks, keeps the last answer, and says so when what comes may be late.

    `dial`: a new connection to the source. `received`: the offset up to which the stream came.
    `on_late`: called again and again while it may be late; None: it does not matter. `on_event`:
    told once each time.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Connection]],
        received: Callable[[], int],
        on_late: Callable[[], None] | None,
        on_event: Callable[[str], None],
    ) -> None:
        self._dial = dial
        self._received = received
        self._on_late = on_late
        self._on_event = on_event
        self._connection: Connection | None = None
        self._hurry = asyncio.Event()
        # What was found last; None: nothing yet.
        self._late: bool | None = None
        self._received_before = -1
        self.replication: Replication | None = None
        """The last answer."""
        self.asked_at = -math.inf
        """When the question was put that `replication` answers, by the loop's clock."""
        self.heard_at = -math.inf
        """When `replication` came, by the loop's clock."""
        self.arrived_at = math.inf
        """When everything told was here last, or more came. By the loop's clock; infinite: there
        was no answer yet."""
        self.refused: EngineError | None = None
        """Why it is not asked any more: the source says that it is not for us to ask."""

    def ask_now(self) -> None:
        """Put the next question without waiting for its time."""
        self._hurry.set()

    def leave_for(self, there: Endpoint) -> None:
        """Ask `there` from now on, and nothing else in the source's place."""
        if self._connection is not None:
            self._connection.leave_for(there)

    async def run(self) -> None:
        """Ask until cancelled, or until `refused`."""
        pause = ASK_SECONDS if self._on_late is not None else ASK_SECONDS_ELSE
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._hurry.clear()
                try:
                    replication = await self._answer()
                    if self._received() < replication.offset:
                        await asyncio.sleep(GRACE_SECONDS)
                    if self._received() < replication.offset:
                        self._say_late()
                    else:
                        self._late = False
                    self._note_arrivals(replication, loop.time())
                except EngineError as exc:
                    if not _passes(exc):
                        self.refused = exc
                        self._on_event(f"the source does not say its offset and role: {exc}")
                        return
                    self._say_late()
                    self._let_go()
                    # However much it hurries: a source that refuses us is not dialled in a loop.
                    await asyncio.sleep(pause)
                    continue
                try:
                    async with asyncio.timeout(pause):
                        await self._hurry.wait()
                except TimeoutError:
                    continue
        finally:
            self._let_go()

    async def _answer(self) -> Replication:
        """What the source says; for as long as it does not come in time, all is late."""
        loop, known = asyncio.get_running_loop(), self._connection
        patience = GRACE_SECONDS + (known.round_trip if known is not None else 0.0)
        began = loop.time()
        task = asyncio.ensure_future(self._ask())
        try:
            while not (await asyncio.wait({task}, timeout=patience))[0]:
                self._say_late()
                asked = self._connection
                if asked is not None and loop.time() - began > _HANG_UP_SECONDS:
                    raise LinkError(
                        f"{asked.name} gave no answer for {_HANG_UP_SECONDS:g} s", fault="source"
                    )
            self.replication, self.asked_at, self.heard_at = task.result(), began, loop.time()
            return self.replication
        finally:
            if not task.cancel() and not task.cancelled():
                task.exception()

    async def _ask(self) -> Replication:
        if self._connection is None:
            self._connection = await self._dial()
        return await ask_replication(self._connection)

    def _note_arrivals(self, replication: Replication, now: float) -> None:
        received = self._received()
        if received >= replication.offset or received != self._received_before:
            self.arrived_at = now
        self._received_before = received

    def _say_late(self) -> None:
        if self._on_late is None:
            return
        # Dialling takes its time: before the first answer it is no news.
        if self._late is False:
            self._on_event("the source's stream arrives late: TTLs are read from the source")
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
