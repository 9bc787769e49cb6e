"""What all keys of a source come to, by type, and the biggest of them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

from engine.inspect.key_reader import Seen


@dataclass(slots=True)
class Totals:
    """Of the keys of one type."""

    keys: int = 0
    elements: int = 0
    size: int = 0
    memory: int = 0
    with_ttl: int = 0

    def add(self, seen: Seen) -> None:
        """Count a key."""
        self.keys += 1
        self.elements += seen.elements
        self.size += seen.size
        self.memory += seen.memory
        self.with_ttl += seen.expire_at is not None


@dataclass(slots=True)
class Report:
    """Of every key that was seen; `most` of them are kept, those that take the most memory."""

    most: int
    types: dict[str, Totals] = field(default_factory=dict)
    not_decoded: int = 0
    _biggest: list[tuple[int, int, Seen, str]] = field(default_factory=list)
    _count: int = 0

    def add(self, seen: Seen) -> None:
        """Count a key."""
        totals = self.types.get(seen.kind)
        if totals is None:
            totals = self.types[seen.kind] = Totals()
        totals.add(seen)
        self.not_decoded += bool(seen.objection)
        self._count += 1
        full = len(self._biggest) >= self.most
        if self.most and not (full and seen.memory <= self._biggest[0][0]):
            # Without its batch, which would stay in memory with all its other keys.
            kept = (seen.memory, -self._count, replace(seen, batch=None), seen.encoding)
            (heapq.heappushpop if full else heapq.heappush)(self._biggest, kept)

    @property
    def biggest(self) -> list[tuple[Seen, str]]:
        """The biggest keys with their encodings, the biggest first."""
        return [(seen, encoding) for _, _, seen, encoding in sorted(self._biggest, reverse=True)]

    @property
    def total(self) -> Totals:
        """Of all types together."""
        found = Totals()
        for each in self.types.values():
            found.keys += each.keys
            found.elements += each.elements
            found.size += each.size
            found.memory += each.memory
            found.with_ttl += each.with_ttl
        return found
