"""How fast is read, where that has a bound."""

from __future__ import annotations

import asyncio
import time

# A burst that the rate lets through.
_BURST_SECONDS = 0.1


class Pace:
    """Keeps what is read at `rate` bytes a second; 0: there is no bound."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._due = 0.0
        self.bytes = 0

    async def read(self, nbytes: int) -> None:
        """So much was read."""
        self.bytes += nbytes
        if not self.rate:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _BURST_SECONDS) + nbytes / self.rate
        if self._due > now:
            await asyncio.sleep(self._due - now)
