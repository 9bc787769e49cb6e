"""For how long, and how often, something that failed is tried again."""

from __future__ import annotations

import random

_FIRST_SECONDS = 0.05
_LONGEST_SECONDS = 5.0


class Backoff:
    """Seconds to wait before the next try; grows until `progress` is seen.

    `limit`: seconds without progress after which `exhausted` says so. `now` are loop times.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._next = _FIRST_SECONDS
        self._since: float | None = None

    def progress(self) -> None:
        """Something was acknowledged: begin anew."""
        self._next = _FIRST_SECONDS
        self._since = None

    def failed(self, now: float) -> bool:
        """Another try failed; True if it is the first of a series."""
        if self._since is not None:
            return False
        self._since = now
        return True

    def exhausted(self, now: float) -> bool:
        """Whether it has been failing for longer than the limit."""
        return self._since is not None and now - self._since >= self._limit

    def delay(self) -> float:
        """Seconds to wait now; each call doubles the next, with some chance in it."""
        wait = self._next * random.uniform(0.8, 1.2)
        self._next = min(self._next * 2, _LONGEST_SECONDS)
        return wait
