"""The fence: how the source's writes are held off while the last bytes go over.

Each kind tells the source's offset at the moment when it stands: what lies behind it is nobody's.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import Protocol

from engine.errors import EngineError, ProtocolFault, ServerError, TransferFailed
from engine.model.endpoint import Endpoint
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.wire.admin import Admin, admin
from engine.wire.info import offset_of


class Fence(Protocol):
    """Holds the source's writers off."""

    readable: bool
    """Whether the source can be read while the fence stands."""

    async def close(self) -> int:
        """Put it up; the source's offset then. Raises `EngineError`."""
        ...

    async def open(self) -> None:
        """Take it away. Raises `EngineError`."""
        ...


def fence_of(source: Endpoint, info: ServerInfo, settings: TransferSettings) -> Fence:
    """The fence that the settings name."""
    if settings.fence == "pause":
        return PauseFence(source, info, settings)
    if settings.fence == "hook":
        return HookFence(source, settings)
    return NoFence(source, settings)


class NoFence:
    """For sources whose writers have been stopped already, or may lose the last moment."""

    readable = True

    def __init__(self, source: Endpoint, settings: TransferSettings) -> None:
        self._source = source
        self._timeout = settings.connect_timeout

    async def close(self) -> int:
        """The source's offset now."""
        async with admin(self._source, timeout=self._timeout, fault="source") as end:
            return offset_in(end, await end.call("INFO", "replication"))

    async def open(self) -> None:
        """Nothing to take away."""


class HookFence(NoFence):
    """The operator's own command: run with the argument `fence`, later perhaps `unfence`."""

    def __init__(self, source: Endpoint, settings: TransferSettings) -> None:
        super().__init__(source, settings)
        self._words = shlex.split(settings.fence_hook or "")
        self._limit = settings.cut_over_timeout

    async def close(self) -> int:
        """Run the hook, then ask for the offset."""
        await self._run("fence")
        return await super().close()

    async def open(self) -> None:
        """Run the hook to let writers on."""
        await self._run("unfence")

    async def _run(self, word: str) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._words, word, stdin=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise TransferFailed(
                f"the fence's hook cannot be run: {error.strerror}", fault="user"
            ) from None
        try:
            async with asyncio.timeout(self._limit):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise TransferFailed(
                f"the fence's hook did not end within {self._limit:g} s", fault="user"
            ) from None
        if code:
            raise TransferFailed(f"the fence's hook ended with {code} for {word!r}", fault="user")


class PauseFence:
    """CLIENT PAUSE … WRITE on the source; on 6.0, which knows no WRITE, everybody is paused.

    The pause ends by itself after `cut_over_timeout`, so that an engine that dies cannot leave the
    source closed. Pause and offset come out of one MULTI: nothing is written between the two, and a
    server that pauses everybody answers nothing more afterwards.
    """

    def __init__(self, source: Endpoint, info: ServerInfo, settings: TransferSettings) -> None:
        self._source = source
        self._timeout = settings.connect_timeout
        self._pause_ms = int(settings.cut_over_timeout * 1000)
        self.readable = info.version >= (6, 2, 0)

    async def close(self) -> int:
        """Pause the writers."""
        mode = ("WRITE",) if self.readable else ()
        async with admin(self._source, timeout=self._timeout, fault="source") as end:
            *_, replies = await end.pipeline(
                [
                    ("MULTI",),
                    ("CLIENT", "PAUSE", self._pause_ms, *mode),
                    ("INFO", "replication"),
                    ("EXEC",),
                ]
            )
            if isinstance(replies, EngineError):
                raise TransferFailed(
                    f"the source's writers cannot be paused: {replies.message}",
                    remedy="Grant +client +multi +exec, or choose --fence none or --fence hook.",
                    fault="source",
                )
            if not isinstance(replies, list) or len(replies) != 2 or replies[0] != b"OK":
                raise TransferFailed(
                    f"the source's writers cannot be paused: {replies!r}",
                    remedy="Choose --fence none or --fence hook.",
                    fault="source",
                )
            return offset_in(end, replies[1])

    async def open(self) -> None:
        """Let the writers on; where there is no UNPAUSE the pause's own time does."""
        if not self.readable:
            return
        async with admin(self._source, timeout=self._timeout, fault="source") as end:
            try:
                await end.call("CLIENT", "UNPAUSE")
            except ServerError as error:
                raise TransferFailed(error.message, fault="source") from None


def offset_in(end: Admin, reply: object) -> int:
    """`master_repl_offset` of a reply to INFO replication. Raises `ProtocolFault`."""
    found = offset_of(reply)
    if found is None:
        raise ProtocolFault(f"{end.name} did not tell its replication offset", fault=end.fault)
    return found
