"""For how long, and how often, something that failed is tried again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from engine import logs
from engine.errors import FaultOf, TransferStopped

_log = logs.logger(__name__)
_LOG_SECONDS = 10.0
"""Further tries of a series are logged this often."""
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


class Patience:
    """Waits for what passes by itself, and says meanwhile what it waits for.

    `limit`: seconds without progress after which `failed` raises `TransferStopped`; its message
    begins with `ended`, its fault is `fault`. `next_step` says what is tried next. `tell(text)` is
    called behind each try that failed, and with an empty text when all is well again; `event(text)`
    at the first try of a series that failed, and when that series is over.
    """

    def __init__(
        self,
        limit: float,
        *,
        ended: str,
        next_step: str,
        fault: FaultOf,
        report: Callable[[str], None],
        event: Callable[[str], None],
    ) -> None:
        self._limit = limit
        self._ended = ended
        self._next_step = next_step
        self._fault: FaultOf = fault
        self._report = report
        self._event = event
        self._backoff = Backoff(limit)
        self._reported = False
        self._seldom = logs.Seldom(_LOG_SECONDS)
        self._since = 0.0
        self.tries = 0
        """Tries that failed since the last progress."""

    def well(self) -> None:
        """Nothing stands in the way just now; whether it gets any further is still to be seen."""
        if self._reported:
            self._reported = False
            self._report("")

    def progress(self) -> None:
        """Something was acknowledged: the next failure begins a new series."""
        if not self.tries:
            return
        tries, self.tries = self.tries, 0
        self._backoff.progress()
        self.well()
        past = span(time.monotonic() - self._since)
        with logs.about(self._fault):
            if tries > 1:
                self._event(f"it goes on, after {tries:,} tries in {past}")
            else:
                _log.info("It goes on, after 1 try in %s", past)

    def failed(self, reason: str, *, remedy: str = "", event: str = "") -> float:
        """A try failed, for `reason`; the seconds to wait before the next one.

        `event`: what to say of the first one of a series instead of the usual. `remedy`: what
        an operator could do about it, if it lasts. Raises `TransferStopped` behind the limit.
        """
        now = time.monotonic()
        first = self._backoff.failed(now)
        if first:
            self._since = now
            self._seldom.due()
            with logs.about(self._fault):
                self._event(event or f"{reason}: trying again for {span(self._limit)}")
        if self._backoff.exhausted(now):
            raise TransferStopped(
                f"{self._ended} for {span(self._limit)}: {reason}",
                remedy=remedy or "Correct that, then resume the migration.",
                fault=self._fault,
            )
        self.tries += 1
        delay = self._backoff.delay()
        figures = {"end": self._fault, "tries": self.tries, "next_in_seconds": round(delay, 3)}
        # The event of the first one says it already.
        level = logging.INFO if not first and self._seldom.due() else logging.DEBUG
        why = reason.removesuffix(".")
        _log.log(level, "A try failed: %s; %s", why, self._next_step, extra=figures)
        tries = "1 try" if self.tries == 1 else f"{self.tries:,} tries"
        stop = "" if reason.endswith(".") else "."
        self._reported = True
        self._report(
            f"{reason}{stop} {tries} failed in {span(now - self._since)}; "
            f"{self._next_step} in {span(delay)}, for up to {span(self._limit)} without progress"
            f"{'. ' if remedy else ''}{remedy}"
        )
        return delay


def span(seconds: float) -> str:
    """A time span in words, in the largest unit that is not above it: `90 s` is `1.5 min`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds, 1):g} s"
