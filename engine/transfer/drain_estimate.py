"""How long what waits is going to take, by how fast it went while something waited all the time."""

from __future__ import annotations

from collections import deque

# Over how many seconds the rate is taken, and how many there have to be before it says anything.
_OVER_SECONDS = 5.0
_LEAST_SECONDS = 1.0


class DrainEstimate:
    """One queue, looked at now and then. `done` and `waiting` are of one unit; `done` only grows.

    A queue that was empty at a look says nothing of how fast it could have been: what was done
    until then was all that came.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._waiting = 0
        # Since when nothing was done, while something waits.
        self._still_since = 0.0

    def look(self, now: float, done: int, waiting: int) -> None:
        """How it stands at `now`, in seconds of one clock."""
        self._waiting = waiting
        if not waiting:
            self._looks.clear()
            return
        if not self._looks or done != self._looks[-1][1]:
            self._still_since = now
        self._looks.append((now, done))
        while now - self._looks[0][0] > _OVER_SECONDS and len(self._looks) > 2:
            self._looks.popleft()

    @property
    def seconds(self) -> float | None:
        """Until all that waits now is done, at that rate, and no less than nothing has been done
        for by now. None: it is not known."""
        if not self._looks:
            return None
        (began, first), (now, last) = self._looks[0], self._looks[-1]
        if now - began < _LEAST_SECONDS:
            return None
        still = now - self._still_since
        return max(self._waiting * (now - began) / (last - first), still) if last > first else still
