"""A fence that could not be taken away: it is tried again until it is, and shown meanwhile.

The checkpoint says that it stands until the source (or the operator's hook) has said that it is
gone, so that the next engine goes on with it after a crash. While it stands, writes to the source
may be refused or wait, and no other cut-over begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.model.backoff import span
from engine.transfer.async_helpers import cancelled
from engine.transfer.migration_context import MigrationContext

# Between two tries, in seconds: at first, and at the most.
_FIRST_SECONDS = 1.0
_MOST_SECONDS = 5.0
# The operator's own command is not run as often, nor for ever.
_HOOK_MOST_SECONDS = 30.0
HOOK_TRIES = 10


class FenceRemoval:
    """Tries again, and tells of it. `hook`: the fence is the operator's command."""

    def __init__(self, context: MigrationContext, *, hook: bool) -> None:
        self._context = context
        self._hook = hook
        self._most = _HOOK_MOST_SECONDS if hook else _MOST_SECONDS
        self._show = context.trouble_of("the fence")
        self._reported: set[str] = set()
        self._text = ""
        self._tries = 0
        self._task: asyncio.Task[None] | None = None
        self.given_up = False
        """The hook has failed too often: it is run again at the next cut-over, or at the end."""

    def failed(self, where: str, reason: str, remedy: str) -> None:
        """A try failed. Each reason is one event."""
        self._tries += 1
        self._text = f"{where}, for its fence could not be removed: {reason.rstrip('.')}"
        if reason not in self._reported:
            self._reported.add(reason)
            self._context.on_event(f"{self._text}. {remedy}")
        if self._hook and self._tries >= HOOK_TRIES and not self.given_up:
            self.given_up = True
            self._context.on_event(
                f"the fence's hook has failed {self._tries} times: it is run again at the next "
                "cut-over, and at the end of the migration"
            )
        self._text += f". {remedy}"

    def gone(self) -> None:
        """It is away."""
        if self._reported:
            self._context.on_event("the fence was removed: it blocks no writes any more")
        self._reported.clear()
        self._text, self._tries, self.given_up = "", 0, False
        self._show("")

    def show(self) -> None:
        """Show what is in the way, if anything is, as what the migration waits for."""
        if not self._text or self.given_up:
            self._show("")
            return
        self._show(f"{self._text}. It is tried again in {span(self._pause)}")

    @property
    def _pause(self) -> float:
        doubled = min(max(self._tries - 1, 0), 6)
        return min(_FIRST_SECONDS * (1 << doubled), self._most)

    def keep_trying(self, once: Callable[[], Awaitable[bool]]) -> None:
        """Call `once` again and again, until it returns True; nothing if that goes on already."""
        if not self.given_up and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._keep_trying(once))

    async def quit(self) -> None:
        """Call it no more."""
        task, self._task = self._task, None
        if task is not None:
            await cancelled(task)

    async def _keep_trying(self, once: Callable[[], Awaitable[bool]]) -> None:
        if self._tries:
            await asyncio.sleep(self._pause)
        while not (await once() or self.given_up):
            self.show()
            await asyncio.sleep(self._pause)
        self.show()
