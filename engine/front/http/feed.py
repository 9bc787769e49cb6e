"""The feed: server-sent events with the state of all groups, whenever it changes.

One look at the state serves every client, and is only taken while there is one. A client that
reads slowly misses states in between, and never holds more than one: there is no queue.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import date, datetime
from typing import Any

from starlette.types import Receive, Scope, Send

from engine import logs
from engine.errors import EngineError
from engine.front.http.common_errors import ServiceUnavailable, Throttling

LOOK_SECONDS = 0.5
"""The state is looked at, and sent, at most so often."""
KEEP_ALIVE_SECONDS = 5.0
"""A client that hears nothing for twice as long may take the link for lost."""
CLIENTS_MOST = 64
EVENTS = 100
"""So many of the newest events are in each state."""
LIFE_SECONDS = 3600.0
"""Then a client has to come (and sign) again."""
_WRITE_SECONDS = 30.0

Look = Callable[[], Awaitable[dict[str, Any]]]
_log = logs.logger(__name__)


class Feed:
    """The clients of the feed, and the task that looks for them. `look` returns the overview."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._state: bytes | None = None
        self._version = 0
        self._clients = 0
        self._closed = False
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def clients(self) -> int:
        """How many there are."""
        return self._clients

    def check(self) -> None:
        """Raise `Throttling` if there is no room for one more, `ServiceUnavailable` at the end."""
        if self._closed:
            raise ServiceUnavailable("The server is shutting down.")
        if self._clients >= CLIENTS_MOST:
            raise Throttling(
                f"{CLIENTS_MOST} clients watch the feed already, and no more are served."
            )

    async def close(self) -> None:
        """End every client's stream, and the task."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        async with self._changed:
            self._changed.notify_all()

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, welcome: Callable[[], bool]
    ) -> None:
        """One client, as an ASGI application, until it goes, is not `welcome` any more (its key
        was revoked), or the feed ends."""
        self._clients += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._looking())
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-store"),
                        (b"x-accel-buffering", b"no"),
                    ],
                }
            )
            await self._stream(send, gone, welcome)
            async with asyncio.timeout(_WRITE_SECONDS):
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            return  # it does not read: uvicorn closes what was not finished
        finally:
            gone.cancel()
            self._clients -= 1

    async def _stream(
        self, send: Send, gone: asyncio.Task[None], welcome: Callable[[], bool]
    ) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + LIFE_SECONDS
        seen = 0
        while not self._closed and not gone.done() and loop.time() < ends:
            waiting = asyncio.create_task(self._next(seen))
            await asyncio.wait(
                {waiting, gone}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not waiting.done():
                waiting.cancel()
            if self._closed or gone.done() or not welcome():
                return
            body = b": still here\n\n"
            if self._state is not None and self._version != seen:
                seen, body = self._version, self._state
            async with asyncio.timeout(_WRITE_SECONDS):
                await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _next(self, seen: int) -> None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._closed or (self._state is not None and self._version != seen)
            )

    async def _looking(self) -> None:
        self._state = None  # the one of the last client's time is old
        while self._clients and not self._closed:
            try:
                overview = await self._look()
            except EngineError as error:
                _log.warning("feed: %s", error)
            except Exception as error:
                # Whatever it is, the next look may be better; nothing waits for this task.
                _log.error("feed: a bug: %s", type(error).__name__)
            else:
                text = json.dumps(
                    {"groups": overview["ReplicationGroups"], "events": overview["Events"]},
                    default=_plain,
                    separators=(",", ":"),
                )
                state = f"event: state\ndata: {text}\n\n".encode()
                if state != self._state:
                    async with self._changed:
                        self._state, self._version = state, self._version + 1
                        self._changed.notify_all()
            await asyncio.sleep(LOOK_SECONDS)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _plain(value: object) -> object:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    raise TypeError(type(value).__name__)
