"""What the ways of moving data share: the phase, the steps, the counters, the operator's word."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from engine.errors import LinkError, ServerError
from engine.model.backoff import Backoff
from engine.model.progress import Phase, Progress
from engine.model.report import Step
from engine.model.settings import TransferSettings
from engine.transfer.phases import move
from engine.transfer.tally import Tally

_WAIT_WORTH_TELLING = 0.05
# For how long an end that cannot be reached at the start is tried again, in seconds.
_OPEN_SECONDS = 1.0
_NOT_NOW = frozenset({"LOADING", "BUSY", "MASTERDOWN", "NOMASTERLINK", "TRYAGAIN"})
_IN_SYNC = frozenset({Phase.COPIED, Phase.CATCH_UP, Phase.FOLLOW, Phase.CUT_OVER, Phase.DONE})


class Stage:
    """Where a transfer stands, and what is told of it."""

    def __init__(
        self,
        settings: TransferSettings,
        *,
        on_progress: Callable[[Progress], None],
        on_event: Callable[[str], None],
        one_go: bool,
    ) -> None:
        self.settings = settings
        self.one_go = one_go
        self.on_event = on_event
        self._on_progress = on_progress
        self.phase = Phase.CONNECT
        self.source_type: str = settings.source_type
        self.reason = ""
        self.can_complete = False
        self.tally = Tally()
        self.total_keys = 0
        self.steps: list[Step] = []
        self.copy_seconds = 0.0
        self.began = 0.0
        self.figures: Callable[[], dict[str, Any]] = dict
        """Members of `Progress` that only the way of moving knows."""
        self.word = asyncio.Event()
        """Set when the operator wants the cut-over."""
        self.skip_verification = False
        """Whether the operator wants that cut-over without the comparison of both ends."""
        if one_go:
            self.word.set()

    def enter(self, phase: Phase) -> None:
        """Move to `phase`, and tell."""
        self.phase = move(self.phase, phase)
        self.tell()

    def tell(self) -> None:
        """Tell how things stand now."""
        self._on_progress(self.progress)

    @property
    def progress(self) -> Progress:
        """How things stand now."""
        tally, now = self.tally, asyncio.get_running_loop().time()
        rate = tally.rate(now) if self.phase is Phase.SNAPSHOT else 0.0
        left = max(self.total_keys - tally.keys - tally.skipped, 0)
        members: dict[str, Any] = {
            "phase": self.phase,
            "source_type": self.source_type,
            "keys": tally.keys,
            "bytes": tally.bytes,
            "total_keys": self.total_keys,
            "skipped": tally.skipped,
            "vanished": tally.vanished,
            "not_carried": tally.not_carried_total,
            "keys_per_second": rate,
            "seconds": now - self.began if self.began else 0.0,
            "eta_seconds": left / rate if rate else (0.0 if self.phase in _IN_SYNC else None),
            "can_complete": self.can_complete,
            "reason": self.reason,
        }
        return Progress(**members | self.figures())

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; a wait that takes no time worth telling is left out."""
        loop = asyncio.get_running_loop()
        began, keys, moved = loop.time(), self.tally.keys, self.tally.bytes
        try:
            yield
        finally:
            seconds = loop.time() - began
            tally = self.tally
            if name == "snapshot":
                self.copy_seconds += seconds
            if name not in ("wait", "follow") or seconds >= _WAIT_WORTH_TELLING:
                self.steps.append(Step(name, seconds, tally.keys - keys, tally.bytes - moved))

    async def insist(
        self, open_end: Callable[[], Awaitable[object]], *, again: bool = False
    ) -> None:
        """Open an end; a link that breaks just then is given a few more tries, a wrong address too.

        A server that is there and says "not now" is waited for, `retry_seconds`; so is one that is
        not there, if it was before (`again`).
        """
        patience = self.settings.retry_seconds
        began = asyncio.get_running_loop().time()
        backoff = Backoff(patience)
        while True:
            now = asyncio.get_running_loop().time()
            try:
                await open_end()
                return
            except LinkError:
                if now - began >= (patience if again else _OPEN_SECONDS):
                    raise
            except ServerError as exc:
                if exc.code not in _NOT_NOW or now - began >= patience:
                    raise
                if backoff.failed(now):
                    self.on_event(f"{exc.message}: waiting for up to {patience:g} s")
            await asyncio.sleep(backoff.delay())
