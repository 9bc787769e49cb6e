"""What all keys of a source come to, by type, and the biggest of them."""

from __future__ import annotations

import contextlib
import heapq
from dataclasses import dataclass, replace

from engine._native import ValueTotals
from engine.inspect.key_reader import KeyReader, Seen


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the keys of one type."""

    keys: int = 0
    elements: int = 0
    size: int = 0
    memory: int = 0
    with_ttl: int = 0


class Report:
    """Of every key that was seen; `most` of them are kept, those that take the most memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._totals = ValueTotals()
        self._biggest: list[tuple[int, int, Seen, str]] = []
        self._count = 0

    async def read(self, reader: KeyReader) -> None:
        """Count every key of it. Raises `EngineError`."""
        async with contextlib.aclosing(reader.batches()) as batches:
            async for each in batches:
                if isinstance(each, Seen):
                    self._totals.count(each.kind, each.size or 0, each.expire_at is not None)
                    self._keep(each)
                elif reader.takes(each.db):
                    for index in self._totals.add(each, self._least):
                        self._keep(reader.record(each, index))

    @property
    def _least(self) -> int:
        """A key that takes no more memory than this is none of the biggest."""
        if not self._most:
            return 1 << 62
        return self._biggest[0][0] if len(self._biggest) >= self._most else -1

    def _keep(self, seen: Seen) -> None:
        if seen.memory is None or seen.memory <= self._least:
            return
        self._count += 1
        # Without its batch, which would stay in memory with all its other keys.
        kept = (seen.memory, -self._count, replace(seen, batch=None), seen.encoding)
        full = len(self._biggest) >= self._most
        (heapq.heappushpop if full else heapq.heappush)(self._biggest, kept)

    @property
    def types(self) -> dict[str, Totals]:
        """By type."""
        return {kind: Totals(*found) for kind, found in self._totals.types.items()}

    @property
    def total(self) -> Totals:
        """Of all types together."""
        rows = self._totals.types.values()
        return Totals(*(sum(column) for column in zip(*rows, strict=True)))

    @property
    def not_decoded(self) -> int:
        """Keys whose value was not decoded."""
        return self._totals.not_decoded

    @property
    def biggest(self) -> list[tuple[Seen, str]]:
        """The biggest keys with their encodings, the biggest first."""
        return [(seen, encoding) for _, _, seen, encoding in sorted(self._biggest, reverse=True)]
