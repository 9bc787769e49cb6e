"""What a key may still ask: not more than its rate, and no change twice with one signature.

Both are kept in memory. A signature is remembered for as long as its date would be accepted; a
server that has just started knows none, and TLS is what keeps signed requests from being seen.

Two requests that are equal have one signature if they are signed in one second: a client that did
not get its answer and asks again. So a change that was done already is first told what the group's
state has against it, as it would be with another signature; only one that would be done once more
is refused for its signature. What failed has changed nothing, and is not remembered.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from engine.front.http.common_errors import RequestExpired, Throttling

RATE = 200.0
"""Requests a second that one key may send, on the average …"""
BURST = 400.0
"""… and at once."""
REMEMBERED_MOST = 100_000


class Throttle:
    """A bucket of tokens for each key. The keys are those of a file: there are not many."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key_id: str) -> None:
        """Count a request. Raises `Throttling`."""
        now = time.monotonic()
        left, at = self._buckets.get(key_id, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        if left < 1.0:
            raise Throttling("Rate exceeded.", remedy="Send fewer requests.")
        self._buckets[key_id] = (left - 1.0, now)


class Used:
    """Signatures of requests that changed something."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, signature: str) -> bool:
        """Whether it was used up."""
        return signature in self._until

    @contextmanager
    def once(self, signature: str, until: float) -> Iterator[None]:
        """Around a change: its signature is used up by it, unless it fails. `until` is how long it
        has to be remembered, in seconds since the epoch. Raises `RequestExpired`."""
        now = time.time()
        while self._until and next(iter(self._until.values())) < now:
            self._until.popitem(last=False)
        if len(self._until) >= REMEMBERED_MOST:
            # One with a long life stands before others that have expired: those go, not it.
            for each in [each for each, end in self._until.items() if end < now]:
                del self._until[each]
        if signature in self._until:
            raise RequestExpired(
                "A request with this signature was answered before.", remedy="Sign it again."
            )
        # Before the change, so that of two at the same moment one does.
        self._until[signature] = until
        if len(self._until) > REMEMBERED_MOST:
            self._until.popitem(last=False)
        try:
            yield
        except BaseException:
            self._until.pop(signature, None)
            raise
