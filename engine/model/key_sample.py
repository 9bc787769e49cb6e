"""A sample of any number of keys that come one after another."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


class Sampler:
    """Chooses `most` of any number of keys, each as likely as another, without a look at every
    one: how many are passed over is drawn instead (Li's algorithm L)."""

    def __init__(self, seed: int, most: int = 1000) -> None:
        self._random = random.Random(seed)
        self._most = most
        self._seen = 0
        self._next = 0
        self._weight = 1.0

    def chosen(self, count: int) -> Iterator[tuple[int, int]]:
        """Of the next `count` keys: (index, place in the sample) of those that go into it."""
        begin, self._seen = self._seen, self._seen + count
        while self._next < self._seen:
            at = self._next
            place = at if at < self._most else self._random.randrange(self._most)
            self._next = at + 1 if at + 1 < self._most else at + 1 + self._pass_over()
            yield at - begin, place

    def _pass_over(self) -> int:
        # 1 - random(): never 0.
        self._weight *= math.exp(math.log(1 - self._random.random()) / self._most)
        return math.floor(math.log(1 - self._random.random()) / math.log1p(-self._weight))
