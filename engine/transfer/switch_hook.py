"""The switch: between the promotion of the target and the disconnecting of the source's clients.

Applications reach a server by a name (DNS, a proxy, a configuration). A client that is disconnected
before that name points to the target dials the source again, and stays there. So the operator's own
command, or the caller's function, moves the name while the source's writes are still blocked.

It is run once, or again by the engine that goes on after a crash: it has to stand a second run. The
target is promoted by then, so that there is no way back: a switch that fails is told, and the
migration goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.errors import EngineError, TransferFailed
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer.operator_hook import ends_in_environment, run_hook

OnSwitch = Callable[[Endpoint, Endpoint], Awaitable[None]]
"""Called with the source and the target, without credentials; awaited for `switch_timeout`."""
REMEDY = "Point the applications' name for the server to the target by hand."


class SwitchHook:
    """What moves the applications' name: the settings' command, then the caller's function."""

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        settings: TransferSettings,
        on_switch: OnSwitch | None,
        on_event: Callable[[str], None],
    ) -> None:
        self._source = source.without_credentials
        self._target = target.without_credentials
        self._settings = settings
        self._on_switch = on_switch
        self._on_event = on_event

    @property
    def wanted(self) -> bool:
        """Whether there is anything to run."""
        return self._settings.switch_hook is not None or self._on_switch is not None

    async def run(self) -> None:
        """Run both. Never raises `EngineError`: what fails is an event."""
        limit, command = self._settings.switch_timeout, self._settings.switch_hook
        if command is not None:
            try:
                await run_hook(
                    "the switch hook",
                    command,
                    limit=limit,
                    environment=ends_in_environment(self._source, self._target),
                )
            except TransferFailed as error:
                self._failed(error.message)
            else:
                self._on_event("the switch hook has run: clients find the target from now on")
        if self._on_switch is not None:
            try:
                async with asyncio.timeout(limit):
                    await self._on_switch(self._source, self._target)
            except TimeoutError:
                self._failed(f"on_switch did not end within {limit:g} s")
            except EngineError as error:
                self._failed(f"on_switch failed: {error.message}")
            except Exception as error:
                # The caller's own: its text may hold anything, its type tells enough.
                self._failed(f"on_switch raised {type(error).__name__}")

    def _failed(self, reason: str) -> None:
        self._on_event(f"{reason}; the target is promoted nevertheless. {REMEDY}")
