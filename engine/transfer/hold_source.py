"""The hold: a source that would run scripts behind its cut-over is paused for as long as it takes.

Before 6.2 `min-replicas-to-write` does not hold for what scripts write
(`transfer.scripts_behind_cut_over`).
CLIENT PAUSE does: it holds every command of every client, and those of a client that is
disconnected meanwhile are never run. It ends by itself, and our own commands wait in it like all
others. But a replica's connection is not paused (`processInputBuffer` of 3.0 to 6.0 looks at
CLIENT_SLAVE before it looks at the pause), and a server runs the commands that come from there. So,
right before the fence, a connection of ours becomes a replica's, by a partial sync from the
source's own offset: that costs neither a snapshot nor a fork. Over it the pause is made longer
again and again before it ends, and clients are listed and disconnected.

A new connection is paused as well. So this one goes on from the process that cut over to the one
that disconnects clients (`wire.connections_for_child`), and where that one is killed to the next
(`fleet.disconnector_restart`). Where that cannot be (TLS, or both were killed) the pause runs out
and scripts are run, for as long as it takes until another process is there and let in; these are
counted then.

Nothing ends such a pause early: each is as short as it can be. It is made only where scripts are
seen, because the source answers no client meanwhile. Where Sentinel watches the source there is
none: it would take the source for dead, and make a replica of it a primary that takes writes.
"""

from __future__ import annotations

import asyncio
import contextlib

from engine.errors import AuthError, EngineError, LinkError, ProtocolFault, ServerError
from engine.model.replication import parse_replication
from engine.model.server import ServerInfo
from engine.wire.control_connection import Admin, Arg

PENDING_SECONDS = 2.0
"""The length of one pause while the target may not be opened after all."""
SECONDS = 10.0
"""The length of one pause once the target is open, until another process has taken over."""
KEPT_SECONDS = 5.0
"""The length of one pause of the process that disconnects clients each second."""
_EVERY_SECONDS = 0.5
# As Sentinel names its connections (sentinel.c, `sentinelSetClientName`).
_SENTINEL = b" name=sentinel-"


def needed(info: ServerInfo) -> bool:
    """Whether this server can be paused, and nothing less keeps its scripts from writing."""
    able = info.capabilities
    return able.client_pause and not able.refuses_writes_of_scripts


async def objection(end: Admin) -> str:
    """Why the server should not be paused; empty: nothing speaks against it. Raises `LinkError`."""
    try:
        listed = await end.call("CLIENT", "LIST")
    except (AuthError, ServerError, ProtocolFault) as error:
        return error.message
    if isinstance(listed, bytes) and _SENTINEL in listed:
        return "Sentinel watches it, and would take a server that answers no client for dead"
    return ""


def pause(seconds: float) -> tuple[Arg, ...]:
    """The command: all clients wait for so long, or longer if they wait for longer already."""
    return ("CLIENT", "PAUSE", int(seconds * 1000))


def longer(end: Admin) -> bytes:
    """What makes the pause longer over `end`'s connection once this process is gone."""
    return end.packed(*pause(SECONDS))


async def attach(end: Admin) -> None:
    """Make `end` a connection that is not paused. Raises `ServerError`, `AuthError`, `LinkError`,
    `ProtocolFault`: it is of no use then."""
    info = await end.info()
    replication = parse_replication(await end.call("INFO", "replication"))
    # Before 4.0 the run id names the stream.
    replid = info.replid if info.capabilities.replication_ids else info.run_id
    if replication is None or replication.is_replica or not replid:
        replica = replication is not None and replication.is_replica
        what = "is a replica by now" if replica else "gives no replication id (INFO replication)"
        raise ServerError(f"{end.name} {what}", code="ERR", fault=end.fault)
    await end.become_replica(replid, replication.offset + 1)


async def lengthen(end: Admin, seconds: float) -> None:
    """Have all clients wait for `seconds` from now. Raises `ServerError`, `AuthError`,
    `LinkError`."""
    await end.call(*pause(seconds))


class ScriptPause:
    """Keeps the pause of a server up, over `end`: a connection that is `attach`ed."""

    def __init__(self, end: Admin) -> None:
        self.end = end
        self.lost = ""
        """Why the pause could not be made longer; what was run since is counted by others."""
        self._begun = self._over = False
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._seconds = PENDING_SECONDS

    async def begin(self) -> None:
        """Make the pause longer, now and from here on. Never raises `EngineError`."""
        if self._task is None:
            await self._lengthen()
            self._begun = True
            self.go_on()

    def go_on(self) -> None:
        """Behind `rest`: keep it up again, if it had begun."""
        if self._begun and self._task is None:
            self._over = False
            self._woken.clear()
            self._task = asyncio.create_task(self._keep())

    def lasting(self, seconds: float) -> None:
        """Each pause is of so many seconds from here on. One that is kept up is made longer at
        once; nothing waits for that."""
        self._seconds = seconds
        self._woken.set()

    async def rest(self) -> None:
        """Make it longer no more; `end` is free for other commands."""
        self._over = True
        self._woken.set()
        task, self._task = self._task, None
        if task is not None:
            # Not cancelled: a connection that is cut off under a command is of no use any more.
            await task

    async def _keep(self) -> None:
        while not self._over and not self.lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_SECONDS):
                    await self._woken.wait()
            if not self._over:
                self._woken.clear()
                await self._lengthen()

    async def _lengthen(self) -> None:
        try:
            await lengthen(self.end, self._seconds)
        except EngineError as error:
            self.lost = error.message


async def attached(end: Admin) -> ScriptPause | EngineError:
    """A hold over `end`, or why there is none."""
    try:
        await attach(end)
    except (LinkError, AuthError, ServerError, ProtocolFault) as error:
        return error
    return ScriptPause(end)
