"""The counters of a transfer, fed from acknowledged batches alone."""

from __future__ import annotations

from collections import Counter, deque

from engine.model.report import NAMED_KEYS_LIMIT, NotCarried, printable_key
from engine.model.server import ServerInfo
from engine.targets.base import Acknowledged
from engine.transfer.refusals import explain_refusal

# Keys per second are taken over about this long, in seconds.
_RATE_SECONDS = 5.0


class Tally:
    """Keys and bytes that arrived, and the names of those that did not."""

    def __init__(self) -> None:
        self.keys = 0
        self.bytes = 0
        self.skipped = 0
        self.vanished = 0
        self.not_carried: list[NotCarried] = []
        self.not_carried_total = 0
        self._beyond: Counter[str] = Counter()
        self._rate: deque[tuple[float, int]] = deque()

    def count(self, acknowledged: Acknowledged, target: ServerInfo) -> None:
        """Add what one batch brought to `target`."""
        batch = acknowledged.batch
        self.keys += acknowledged.carried
        self.skipped += acknowledged.existing
        self.vanished += batch.vanished
        self.bytes += batch.value_bytes
        for key, reason in batch.errors:
            self.refuse(batch.db, key, f"the source refused it: {reason}")
        for index, message in acknowledged.errors:
            self.bytes -= batch.value_size(index)
            reason = explain_refusal(message, batch.value_type(index), target)
            self.refuse(batch.db, batch.key(index), reason)

    def refuse(self, db: int, key: bytes, reason: str) -> None:
        """A key that was not carried. Named up to a bound, then counted by its reason."""
        self.not_carried_total += 1
        if len(self.not_carried) < NAMED_KEYS_LIMIT:
            self.not_carried.append(NotCarried(db, printable_key(key), reason))
        else:
            self._beyond[reason] += 1

    def beyond(self) -> list[str]:
        """One line for each reason whose keys were too many to be named."""
        return [f"{count:,} more keys not carried: {why}" for why, count in self._beyond.items()]

    def rate(self, now: float) -> float:
        """Keys per second over the last seconds; call it a few times a second."""
        self._rate.append((now, self.keys))
        while len(self._rate) > 2 and now - self._rate[0][0] > _RATE_SECONDS:
            self._rate.popleft()
        began, keys = self._rate[0]
        return (self.keys - keys) / (now - began) if now > began else 0.0
