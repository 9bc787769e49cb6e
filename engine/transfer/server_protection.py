"""How an end fares while data is moved, and that less is moved while it suffers.

A connection of its own asks it for an answer (PING) ten times a second. What that takes beyond the
network, and beyond what this process itself comes late by, is what a client's command waits for
there. Above the bound half of what is moved now is let through, and half of that again each half
second while it stays above. Once it has been well below the bound for a while more is let through
again, with care where it was late before; nothing is held back any more when that is as much as was
moved before. Between the bound and what is well nothing changes: the hysteresis.

What a source suffers of its snapshot (memory that is copied on write, bytes that wait behind it)
only lasts longer where less is moved: the snapshot is read at once then, see
`sources/snapshot_backpressure`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from engine import logs
from engine.errors import EngineError, LinkError
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.transfer.async_helpers import cancelled
from engine.transfer.control_connections import Side
from engine.transfer.migration_context import MigrationContext
from engine.wire.connection import Connection
from engine.wire.dial import dial

_PING_SECONDS = 0.1
# So many of the newest answers have to be late for the end to suffer, of so many.
_LATE, _NEWEST = 2, 5
# It is well where for so long no answer took more than that part of the bound.
_WELL_SECONDS, _WELL = 2.0, 0.7
# Between two changes of what is let through; and by what it changes: near where it was late less.
_STEP_SECONDS = 0.5
_LESS, _MORE, _NEAR, _MORE_NEAR = 0.5, 1.25, 0.75, 1.03
# Never less than that a second, which costs a server some thousandths of its time.
_LEAST_BYTES, _LEAST_KEYS = float(1 << 20), 1_000.0
# How often it is looked whether this process comes late itself; two of that, and what is no delay.
_TICK_SECONDS, _IN_TIME_SECONDS = 0.002, 0.006
_AGAIN_SECONDS, _TELL_SECONDS = 1.0, 60.0


class LatencyWatch:
    """What the answers say: whether the end is late, or well."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.seconds = 0.0
        """The second-longest of what the newest answers took."""
        self._newest: deque[float] = deque(maxlen=_NEWEST)
        self._well_since: float | None = None

    def note(self, seconds: float, now: float) -> None:
        """An answer took so long, or takes so long already."""
        self._newest.append(seconds)
        self.seconds = sorted(self._newest)[-_LATE:][0] if len(self._newest) >= _LATE else 0.0
        if seconds > self.bound * _WELL:
            self._well_since = None
        elif self._well_since is None:
            self._well_since = now

    @property
    def is_late(self) -> bool:
        """Whether it is above the bound."""
        return self.seconds > self.bound

    def is_well(self, now: float) -> bool:
        """Whether it has been well below the bound for a while."""
        return self._well_since is not None and now - self._well_since >= _WELL_SECONDS


class ServerProtection:
    """Protects one end of a lane: `side`, whose commands are to take no longer than the settings
    say."""

    def __init__(self, side: Side, endpoint: Endpoint, context: MigrationContext) -> None:
        settings = context.settings
        bounds = settings.source_protection if side == "source" else settings.target_protection
        self._side: Side = side
        self._endpoint = endpoint
        self._context = context
        self._report = context.event_of(side)
        self._watch = LatencyWatch(bounds.latency)
        # What is let through, as bytes and keys a second (None: all); at what it was late; what
        # was moved before that; and why.
        self._rates: tuple[float, float] | None = None
        self._ceiling = self._moved = (0.0, 0.0)
        self._words = self._trouble = ""
        # An end that suffers again and again has an event now and then.
        self._told, self._seldom = False, logs.Seldom(_TELL_SECONDS)
        # When it was looked how much is moved, how much that was by then, and how fast.
        self._looked_at = 0.0
        self._seen = (0, 0)
        self._offset: int | None = None
        self._speed = (0.0, 0.0)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Protect it meanwhile, if there is a bound."""
        if not self._watch.bound:
            yield
            return
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await cancelled(task)
            self._context.throttle.let_go(self._side)

    async def _run(self) -> None:
        timeout = self._context.settings.connect_timeout
        while True:
            connection: Connection | None = None
            try:
                connection = await dial(self._endpoint, fault=self._side, timeout=timeout)
                await self._ask_on(connection)
            except EngineError as exc:
                # Whether it is there at all is told by those that need it.
                if not isinstance(exc, LinkError):
                    self._let_go()
                    if exc.message != self._trouble:
                        self._trouble = exc.message
                        self._report(
                            f"the {self._side} cannot be protected: it does not answer PING: "
                            f"{exc.in_one_line}"
                        )
                await asyncio.sleep(_AGAIN_SECONDS)
            finally:
                if connection is not None:
                    connection.close()

    async def _ask_on(self, connection: Connection) -> None:
        """Ask again and again. Raises `EngineError`."""
        quickest = connection.round_trip
        loop = asyncio.get_running_loop()
        while True:
            began, wait = loop.time(), _Wait()
            answer = asyncio.ensure_future(connection.call("PING"))
            try:
                while True:
                    done, _ = await asyncio.wait({answer}, timeout=_PING_SECONDS)
                    if done:
                        answer.result()
                        quickest = min(quickest, loop.time() - began)
                    self._note(max(wait.seconds - quickest, 0.0))
                    if done:
                        break
            finally:
                wait.end()
                if not answer.done():
                    await cancelled(answer)
            await asyncio.sleep(max(began + _PING_SECONDS - loop.time(), 0.0))

    # --- What follows from it ---

    def _note(self, seconds: float) -> None:
        if self._context.phase is Phase.CUT_OVER:
            # Nothing is held back then, and a fence may hold back the answer.
            self._watch = LatencyWatch(self._watch.bound)
            return
        watch, now = self._watch, time.monotonic()
        watch.note(seconds, now)
        stepped = now - self._looked_at >= _STEP_SECONDS
        if stepped:
            self._look(now)
        if self._rates is None:
            if watch.is_late:
                self._moved = self._ceiling = self._rates = self._speed
                self._less()
        elif stepped and watch.is_late:
            self._less()
        elif stepped and watch.is_well(now):
            self._more(seconds)

    def _less(self) -> None:
        """It is late: less is let through."""
        assert self._rates is not None
        latency, bound = _shown(self._watch.seconds), _shown(self._watch.bound)
        self._words = f"{self._side} latency {latency} > {bound}"
        self._ceiling = self._rates
        found = [min(rate, now) * _LESS for rate, now in zip(self._rates, self._speed, strict=True)]
        self._hold((max(found[0], _LEAST_BYTES), max(found[1], _LEAST_KEYS)))
        if not self._told and self._seldom.due():
            self._told = True
            self._report(f"throttled: {self._words}")

    def _more(self, seconds: float) -> None:
        """It is well: more is let through, or everything."""
        assert self._rates is not None
        pairs = list(zip(self._rates, self._moved, strict=True))
        if all(rate >= before for rate, before in pairs):
            self._let_go()
            if self._told:
                self._told = False
                latency, bound = _shown(seconds), _shown(self._watch.bound)
                self._report(f"no longer throttled: {self._side} latency {latency} < {bound}")
            return
        found = [
            rate * (_MORE if rate < late * _NEAR else _MORE_NEAR)
            for rate, late in zip(self._rates, self._ceiling, strict=True)
        ]
        self._hold((found[0], found[1]))

    def _let_go(self) -> None:
        self._rates = None
        self._context.throttle.let_go(self._side)
        self._context.publish()

    def _hold(self, rates: tuple[float, float]) -> None:
        self._rates = rates
        self._context.throttle.hold(self._side, *rates, f"throttled: {self._words}")
        self._context.publish()

    def _look(self, now: float) -> None:
        """How many bytes and keys a second were moved since the last look; a command is a key."""
        progress, seen, offset = self._context.progress, self._seen, self._offset
        self._seen, self._offset = (
            (progress.bytes, progress.keys + progress.commands),
            progress.applied_offset,
        )
        nbytes, keys = (max(new - old, 0) for new, old in zip(self._seen, seen, strict=True))
        if offset is not None and self._offset is not None:
            nbytes += max(self._offset - offset, 0)
        seconds, self._looked_at = now - self._looked_at, now
        self._speed = nbytes / seconds, keys / seconds


class _Wait:
    """For how long an answer is waited for. Where this process comes late itself, what counts is
    until when it is known not to have come."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        # The last two ticks: between them it was looked whether anything has come.
        self._ticks = (self._began, self._began)
        self._next()

    @property
    def seconds(self) -> float:
        """Until now."""
        now, (looked, _) = self._loop.time(), self._ticks
        return (now if now - looked <= _IN_TIME_SECONDS else looked) - self._began

    def end(self) -> None:
        self._timer.cancel()

    def _next(self) -> None:
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticks = self._ticks[1], self._loop.time()
        self._next()


def _shown(seconds: float) -> str:
    """`9 ms`, `1.2 ms`."""
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"
