"""How fast a migration moves data, and whether it is paused: what bounds it, and who waits for it.

The operator's word (`Steering`) is of all lanes; each lane has a `Throttle` with its share of it.
Where an end is protected, what protects it adds a bound of its own while the end suffers
(`Throttle.hold`). What moves data has a view of it (`Flow`) with the bounds that concern it: what
copies from the source has all of them; the stream, which the source sends anyway, has not those
that protect the source. It asks before (`due`, `wait`, `keys_now`) and tells what it has moved
(`passed`). A cut-over lifts the throttle: writers wait for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

# What a rate lets through at once, in seconds of it; so many keys are short enough in any case.
_BURST_SECONDS, _BURST_KEYS = 0.005, 16.0
# A rate that was not used for a while lets through no more than that.
_SAVED_SECONDS = 0.1
# With a rate of bytes so many keys are asked for before it is known how long they are.
_KEYS_FIRST = 16
PAUSED = "paused by the operator: continue-migration goes on with it"
Whose = Literal["operator", "source", "target"]
"""Who bounds it: the operator, or what protects an end."""


def rate_words(max_rate: int, max_key_rate: int) -> str:
    """`5,000,000 bytes and 2,000 keys a second`; `no bound`."""
    rates = (max_rate, "bytes"), (max_key_rate, "keys")
    found = [f"{rate:,} {what}" for rate, what in rates if rate]
    return f"{' and '.join(found)} a second" if found else "no bound"


@dataclass(frozen=True, slots=True)
class Steering:
    """What is wanted now of all lanes together: bytes and keys a second (0: no bound), and why
    nothing is moved, in words (empty: it is)."""

    max_rate: int = 0
    max_key_rate: int = 0
    paused: str = ""


class _Bucket:
    """So many a second. What was taken beyond it is waited for."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._level, self._at = 0.0, 0.0

    def allow(self, rate: float) -> None:
        if rate == self.rate:
            return
        if not (rate and self.rate):
            self._level, self._at = 0.0, time.monotonic()
        elif self._now < 0:
            # What is owed is paid back in the time that it would have taken, or sooner.
            self._level *= min(rate / self.rate, 1.0)
        self.rate = rate

    def take(self, amount: float) -> None:
        if self.rate:
            self._level = self._now - amount

    @property
    def level(self) -> float:
        """What may be taken now; below 0: what is owed."""
        return self._now if self.rate else math.inf

    @property
    def delay(self) -> float:
        """Seconds until something may be taken."""
        return max(-self._now / self.rate, 0.0) if self.rate else 0.0

    @property
    def _now(self) -> float:
        now = time.monotonic()
        gained = (now - self._at) * self.rate
        self._at = now
        self._level = min(self._level + gained, max(self.rate * _SAVED_SECONDS, 1.0))
        return self._level


class _Bound:
    """Bytes and keys a second, of one who bounds them."""

    def __init__(self) -> None:
        self.bytes, self.keys = _Bucket(), _Bucket()

    def allow(self, max_rate: float, max_key_rate: float) -> None:
        self.bytes.allow(max_rate)
        self.keys.allow(max_key_rate)

    @property
    def free(self) -> bool:
        return not (self.bytes.rate or self.keys.rate)


class Flow:
    """A throttle as one thing that moves data has it."""

    def __init__(self, throttle: Throttle, bounds: Iterable[_Bound]) -> None:
        self._throttle = throttle
        self._bounds = tuple(bounds)
        self.free = True
        """Nothing bounds it: it need not be asked."""
        self.on_change: Callable[[], None] = lambda: None
        """Called where less, or more, may be moved from now on."""

    @property
    def paused(self) -> str:
        """As of `Throttle`."""
        return self._throttle.paused

    @property
    def due(self) -> float:
        """Seconds until more may be moved; 0: now, infinite: once it is not paused any more."""
        if self.free:
            return 0.0
        if self.paused:
            return math.inf
        return max(max(each.bytes.delay, each.keys.delay) for each in self._bounds)

    def passed(self, keys: int, nbytes: int) -> None:
        """So much was moved."""
        if not self.free:
            for each in self._bounds:
                each.keys.take(keys)
                each.bytes.take(nbytes)

    async def wait(self) -> None:
        """Wait until more may be moved."""
        while (due := self.due) > 0:
            await self._throttle.rest(due)

    def keys_now(self, most: int, key_bytes: float) -> int:
        """How many keys may be asked for now, which have about so many bytes each (0: that is not
        known)."""
        if self.free:
            return most
        if self.due > 0:
            return 0
        found = float(most)
        for each in self._bounds:
            if rate := each.keys.rate:
                burst = max(rate * _BURST_SECONDS, _BURST_KEYS)
                found = min(found, burst, each.keys.level)
            if rate := each.bytes.rate:
                burst = min(rate * _BURST_SECONDS, each.bytes.level)
                found = min(found, burst / key_bytes if key_bytes else _KEYS_FIRST)
        return min(most, max(int(found), 1))

    def portion(self) -> tuple[float, float]:
        """Keys and bytes that are moved at once, at the most: what is longer is parted."""
        keys = [each.keys.rate * _SAVED_SECONDS for each in self._bounds if each.keys.rate]
        nbytes = [each.bytes.rate * _SAVED_SECONDS for each in self._bounds if each.bytes.rate]
        return max(min(keys, default=math.inf), 1.0), max(min(nbytes, default=math.inf), 1.0)

    def _look(self) -> None:
        self.free = not self.paused and all(each.free for each in self._bounds)
        self.on_change()


class Throttle:
    """How fast one lane moves data. All of it happens on one event loop."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._share = 1.0
        self._lifted = False
        self._held: dict[Whose, tuple[float, float, str]] = {}
        operator, source, target = _Bound(), _Bound(), _Bound()
        self._bounds: dict[Whose, _Bound] = {
            "operator": operator,
            "source": source,
            "target": target,
        }
        self.copying = Flow(self, (operator, source, target))
        """What is asked of the source, and written to the target."""
        self.following = Flow(self, (operator, target))
        """The stream."""
        self.comparing = Flow(self, (source, target))
        """What is read at both ends to be compared; that has a rate of its own."""
        self._flows = self.copying, self.following, self.comparing
        self._changed: asyncio.Event | None = None
        self._look()

    def of_slots(self, slots: int, of: int) -> None:
        """The lane has so many of all slots: that share of what is wanted of all lanes."""
        self._share = slots / of
        self._look()

    def steer(self, steering: Steering) -> None:
        """This is wanted from now on."""
        if steering != self._steering:
            self._steering = steering
            self._look()

    def hold(self, whose: Whose, max_rate: float, max_key_rate: float, why: str) -> None:
        """An end suffers, and `why`: so many bytes and keys a second are moved for now."""
        self._held[whose] = max_rate, max_key_rate, why
        self._look()

    def let_go(self, whose: Whose) -> None:
        """It suffers no more."""
        if self._held.pop(whose, None) is not None:
            self._look()

    def lift(self) -> None:
        """A cut-over begins: its writers are not to wait. One that is paused is not lifted."""
        self._lifted = not self._steering.paused
        self._look()

    def restore(self) -> None:
        """The cut-over has come to its end."""
        self._lifted = False
        self._look()

    @property
    def steering(self) -> Steering:
        """What is wanted of all lanes."""
        return self._steering

    @property
    def paused(self) -> str:
        """Why nothing is moved, in words; empty: it is."""
        return "" if self._lifted else self._steering.paused

    @property
    def throttled(self) -> str:
        """Which end suffers, so that less is moved, in words; empty: none does."""
        return "" if self._lifted else "; ".join(why for *_, why in self._held.values())

    async def unpaused(self, seconds: float = math.inf) -> None:
        """Wait until it is not paused, whatever the rates; so long at the most."""
        until = time.monotonic() + seconds
        while self.paused and (left := until - time.monotonic()) > 0:
            await self.rest(left)

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until less, or more, may be moved."""
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._changed.wait()

    def _look(self) -> None:
        wanted, share = self._steering, self._share
        held = {} if self._lifted else self._held
        rates: dict[Whose, tuple[float, float]] = {
            whose: (max_rate, max_key_rate) for whose, (max_rate, max_key_rate, _) in held.items()
        }
        if not self._lifted:
            rates["operator"] = wanted.max_rate * share, wanted.max_key_rate * share
        for whose, bound in self._bounds.items():
            bound.allow(*rates.get(whose, (0.0, 0.0)))
        if self._changed is not None:
            self._changed.set()
        for each in self._flows:
            each._look()
