"""How a source is reached for its stream: connected to, asked for its INFO, its clock and its
stream.

The first time it is asked for everything, or for what follows a position on the target; after a
lost link for what follows the last byte that came.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, cast

from engine import logs
from engine.errors import LinkError
from engine.model.endpoint import Endpoint
from engine.model.position import StreamPosition
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.wire.connection import Connection, answered
from engine.wire.dial import Command, dial, dial_and_ask
from engine.wire.info_command import info_in
from engine.wire.psync import ANNOUNCED, FullSync, PartialSync, handshake

_log = logs.logger(__name__)
# The source's own PING period where it does not tell.
_PING_SECONDS = 10.0
# The period times this may pass in silence.
_PING_PERIODS = 3
# The source's clock is asked for until an answer takes no longer than this, and so often at most.
_CLOCK_SECONDS = 0.005
_CLOCK_TRIES = 5
# So near the round trip the answer did not lie anywhere.
_CLOCK_ROUND_TRIPS = 1.25


class PositionGone(LinkError):
    """The source answered a partial sync with a full one.

    `replid` is the history that it offers. If that is still ours, it holds all that we were sent
    and more: what waits here is worth nothing. If not, it may have lost its data.
    """

    def __init__(self, message: str, *, remedy: str, replid: str) -> None:
        super().__init__(message, remedy=remedy, fault="source")
        self.replid = replid


class ReplicaHandshake:
    """Dials one source, and has it send its stream."""

    def __init__(self, endpoint: Endpoint, settings: TransferSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self.info: ServerInfo = cast(ServerInfo, None)
        """What the server says of itself; set by `open`."""
        self.skew = time.time() - time.monotonic()
        """Seconds from `time.monotonic` to the source's clock; our own clock's until `open`."""
        self.silence = settings.io_timeout
        """Seconds of silence after which a source that follows its own PING period is lost."""
        self.ping_period = _PING_SECONDS
        """Seconds between two PINGs of the source to its replicas."""

    async def dial(self) -> Connection:
        """A new connection. Raises `LinkError`, `AuthError`, `ServerError`."""
        return await dial(self._endpoint, fault="source", timeout=self._settings.connect_timeout)

    async def open(
        self,
        position: StreamPosition | None,
        since: StreamPosition | None,
        ready: Awaitable[None] | None = None,
    ) -> tuple[Connection, FullSync | PartialSync]:
        """A connection that sends the stream from `position` on, or everything.

        `since`: an earlier place of the same stream, from which on it is wanted, but only if the
        source has `position` too. `ready`: what has to be there before the source is asked for its
        stream. Raises as `dial` and `handshake` do, and what `ready` raises.
        """
        began = time.monotonic()
        questions: list[Command] = [("INFO",), ("TIME",), ("CONFIG", "GET", "repl-ping-*-period")]
        connection, replies = await dial_and_ask(
            self._endpoint,
            [*questions, *ANNOUNCED],
            fault="source",
            timeout=self._settings.connect_timeout,
        )
        answers, announced = replies[: len(questions)], replies[len(questions) :]
        try:
            await self._learn(connection, answers, began)
            if ready is not None:
                await ready
            # Where it did not simply say OK it is told once more: that tells what it means.
            known = all(reply == b"OK" for reply in announced)
            sync = await self._shake_hands(connection, position, announced=known)
            if since is not None and isinstance(sync, PartialSync):
                return await self._reach_back(connection, sync, since)
        except BaseException:
            connection.close()
            raise
        return connection, sync

    async def behind(self, position: StreamPosition) -> tuple[Connection, PartialSync]:
        """A connection that sends what follows `position`. Raises `PositionGone`, and as `open`
        does."""
        connection = await self.dial()
        try:
            sync = await self._shake_hands(connection, position)
            if isinstance(sync, FullSync):
                raise PositionGone(
                    f"{connection.name} no longer has what follows offset {position.offset}",
                    remedy="A full sync begins anew; a larger repl-backlog-size avoids it.",
                    replid=sync.replid,
                )
        except BaseException:
            connection.close()
            raise
        return connection, sync

    async def _shake_hands(
        self, connection: Connection, position: StreamPosition | None, *, announced: bool = False
    ) -> FullSync | PartialSync:
        timeout = self._settings.io_timeout
        sync = await handshake(
            connection, position, info=self.info, timeout=timeout, announced=announced
        )
        self._log_sync(sync, position)
        return sync

    def _log_sync(self, sync: FullSync | PartialSync, asked: StreamPosition | None) -> None:
        figures: dict[str, object] = {
            "end": "source",
            "endpoint": self._endpoint.address,
            "offset": sync.offset,
            "replid": sync.replid,
            "server": self.info.name,
        }
        if isinstance(sync, PartialSync):
            _log.info("Partial sync: the source sends what follows the offset", extra=figures)
            return
        if sync.length is not None:
            figures["snapshot_bytes"] = sync.length
        why = "no position was asked for"
        if asked is not None and asked.replid != sync.replid:
            why = "the source has another replication history than the position"
        elif asked is not None:
            why = "the source's backlog no longer has what follows the position"
        if asked is not None:
            figures |= {"asked_offset": asked.offset, "asked_replid": asked.replid}
        _log.info("Full sync: %s", why, extra=figures)

    async def _reach_back(
        self, connection: Connection, sync: PartialSync, since: StreamPosition
    ) -> tuple[Connection, FullSync | PartialSync]:
        """The same stream, from `since` on; both at once, so that the source's backlog stays."""
        earlier = await self.dial()
        try:
            found = await self._shake_hands(earlier, since)
            if isinstance(found, PartialSync) and found.replid != sync.replid:
                raise LinkError(
                    f"{earlier.name} changed its history while it was asked for it", fault="source"
                )
        except BaseException:
            earlier.close()
            raise
        connection.close()
        return earlier, found

    async def _learn(self, connection: Connection, replies: list[Any], began: float) -> None:
        """Take in INFO, TIME and the PING period, asked for behind `began`; a user without the
        rights to the latter two goes without."""
        info, clock, period = replies
        self.info = info_in(connection, answered(info))
        quickest = self._read_clock(clock, began, float("inf"))
        # Every relative TTL is off by as much as the clock is; an answer that lay a while before we
        # had a turn makes that half the time it took.
        for _ in range(_CLOCK_TRIES - 1):
            if quickest < max(_CLOCK_SECONDS, connection.round_trip * _CLOCK_ROUND_TRIPS):
                break
            began = time.monotonic()
            quickest = self._read_clock(await connection.try_call("TIME"), began, quickest)
        # Both names of it, where there are two (Redis 5.0 renamed it).
        if isinstance(period, list) and len(period) >= 2:
            self.ping_period = float(period[1])
        self.silence = max(self._settings.io_timeout, self.ping_period * _PING_PERIODS)

    def _read_clock(self, clock: object, began: float, quickest: float) -> float:
        """Take a reply to TIME that was asked for at `began`, if it is the quickest so far; the
        seconds of the quickest, 0: none is given."""
        now = time.monotonic()
        if not isinstance(clock, list) or len(clock) != 2:
            self.skew = time.time() - now
            return 0.0
        if now - began >= quickest:
            return quickest
        self.skew = int(clock[0]) + int(clock[1]) / 1e6 - (began + now) / 2
        return now - began
