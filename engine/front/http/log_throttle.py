"""How often the log reports refusals that any client can cause.

A caller without a key may ask as often as the server answers; a line for each would let any client
fill the disk. The counters of `/metrics` have them all.
"""

from __future__ import annotations

import time

LINES = 20
"""Lines in a row …"""
SECONDS = 10.0
"""… and then none until so many seconds have passed since the first of them."""


class LogThrottle:
    """Counts what is told, and what is not."""

    def __init__(self, lines: int = LINES, seconds: float = SECONDS) -> None:
        self._lines, self._seconds = lines, seconds
        self._began = 0.0
        self._written = 0
        self._skipped = 0

    def take(self) -> int | None:
        """For one more: how many were not told before it, or None: this one is not to be either."""
        now = time.monotonic()
        if now - self._began >= self._seconds:
            self._began, self._written = now, 0
        if self._written >= self._lines:
            self._skipped += 1
            return None
        self._written += 1
        skipped, self._skipped = self._skipped, 0
        return skipped
