"""The target's opening: from here on it is its users', and nothing of ours may write to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from engine.errors import AuthError, LinkError, ServerError
from engine.model.backoff import Backoff
from engine.model.online import dirty_key, position_key
from engine.model.server import ServerInfo
from engine.targets.import_mode import has_import_mode, leave_import_mode
from engine.transfer.aside import to_the_end
from engine.transfer.books import Books
from engine.transfer.ends import Ends
from engine.transfer.stage import Stage


class Opening:
    """Opens the target: first in the checkpoint, then in fact."""

    def __init__(
        self, ends: Ends, books: Books, stage: Stage, target: Callable[[], ServerInfo]
    ) -> None:
        self._ends = ends
        self._books = books
        self._stage = stage
        self._target = target

    async def open(self) -> None:
        """All of it, even if cancelled meanwhile. Raises `StateError` (it is not open then),
        `LinkError` and `ServerError` (it is, and `tidy_up` is still to be done)."""
        await to_the_end(self._open())

    async def _open(self) -> None:
        await self._books.save(opened=True)
        backoff = Backoff(self._ends.settings.retry_seconds)
        while True:
            try:
                return await self.tidy_up()
            except (LinkError, ServerError) as exc:
                now = asyncio.get_running_loop().time()
                if backoff.failed(now):
                    self._stage.on_event(f"{exc.message}: tidying up again")
                if backoff.exhausted(now):
                    raise
            await asyncio.sleep(backoff.delay())

    async def tidy_up(self) -> None:
        """Remove the position, and let deadlines pass again."""
        async with self._ends.dialled() as connection:
            token = self._books.mark.token
            await connection.call("DEL", position_key(token), dirty_key(token))
            if has_import_mode(self._target()):
                with contextlib.suppress(AuthError, ServerError):
                    await leave_import_mode(connection)
