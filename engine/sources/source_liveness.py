"""Whether a followed source is heard: what stands behind every figure of its lag.

    up      it answers, and what it says that it has sent is here or on its way
    down    the link is lost; it is dialled again and again
    silent  the link stands, but no answer comes (a source that is stopped, or cut off), or the
            bytes that it has told of do not arrive

How far the target is behind is known while the link is up alone: bytes that a source has not been
asked for, or could not tell of, may be any number.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Literal

from engine.errors import EngineError
from engine.model.backoff import span
from engine.sources.source_monitor import SILENT_SECONDS, SourceMonitor
from engine.wire.connection import Connection

Link = Literal["up", "down", "silent"]


class SourceLiveness:
    """What is known of the link to one source. Times are the loop's.

    `connection`: the one that the stream comes over. `period`: seconds between two PINGs of the
    source, which come over it however little is written. `limit`: seconds for which a lost link is
    dialled again and again.
    """

    def __init__(
        self,
        connection: Callable[[], Connection | None],
        period: Callable[[], float],
        limit: float,
    ) -> None:
        self._limit = limit
        self._connection = connection
        self._period = period
        self._watch: SourceMonitor | None = None
        self._watched_since = math.inf
        self._down: EngineError | None = None
        self._down_since = 0.0
        self._dials = 0
        self._dial_at = -math.inf
        self.failed_dials = 0
        """How many times a lost link could not be made anew, since the beginning."""

    # --- What happens to it ---

    def begin(self) -> None:
        """The source was opened: nothing of before counts."""
        self._watch, self._watched_since = None, math.inf
        self._down, self._dials = None, 0

    def attend(self, watch: SourceMonitor) -> None:
        """`watch` begins to ask."""
        self._watch, self._watched_since = watch, self._now

    def lost(self, error: EngineError) -> None:
        """The link is gone, or could not be made anew."""
        if self._down is None:
            self._down_since, self._dials = self._now, 0
        else:
            self._dials += 1
            self.failed_dials += 1
        self._down = error

    def rests(self, seconds: float) -> None:
        """The link is dialled again after so long."""
        self._dial_at = self._now + seconds

    def linked(self) -> tuple[float, int]:
        """The link was made anew: after how many seconds and tries."""
        found = self._now - self._down_since, self._dials + 1
        self._down = None
        return found

    # --- What is known ---

    @property
    def link(self) -> Link:
        """See the module."""
        if self._down is not None:
            return "down"
        return "silent" if self._unheard or self._stuck else "up"

    @property
    def trouble(self) -> str:
        """Why it is not known how far the target is behind, in one line; empty while it is."""
        if self._down is not None:
            words = f"the link to the source has been down for {self._now - self._down_since:.0f} s"
            tries = "1 try" if self._dials == 1 else f"{self._dials:,} tries"
            failed = f"{tries} failed; " if self._dials else ""
            rest = self._dial_at - self._now
            when = f"connected to again in {span(rest)}" if rest > 0 else "being dialled"
            return (
                f"{words}: {self._down.message.removesuffix('.')}. {failed}it is {when}, for up to "
                f"{span(self._limit)}"
            )
        if self._unheard:
            return f"the source has not answered for {self._now - self._answered_at:.0f} s"
        if self._stuck:
            assert self._watch is not None
            late = self._now - self._watch.arrived_at
            return f"what the source has sent does not arrive, for {late:.0f} s"
        return ""

    @property
    def seconds(self) -> float | None:
        """Whole seconds since anything came from the source, an answer or a part of its stream;
        None: nothing ever came."""
        connection = self._connection()
        heard = connection.received_at if connection is not None else -math.inf
        if self._watch is not None:
            heard = max(heard, self._watch.heard_at)
        return float(max(int(self._now - heard), 0)) if heard > 0 else None

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def _answered_at(self) -> float:
        """When the source was heard last by what shows best that it lives."""
        watch = self._watch
        if watch is not None and watch.refused is None:
            return max(watch.heard_at, self._watched_since)
        connection = self._connection()
        return connection.received_at if connection is not None else self._now

    @property
    def _unheard(self) -> bool:
        watch, patience = self._watch, SILENT_SECONDS
        if watch is None:
            return False  # the snapshot comes
        if watch.refused is not None:
            patience += self._period()
        return self._now - self._answered_at > patience

    @property
    def _stuck(self) -> bool:
        watch = self._watch
        return watch is not None and self._now - watch.arrived_at > SILENT_SECONDS
