"""Sets of a cluster's slots, as ranges."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

SLOTS = 16384
"""How many there are."""
_RANGES_SHOWN = 5
_RANGES = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")


@dataclass(frozen=True, slots=True)
class SlotSet:
    """Slots from 0 to 16383, as ascending ranges (first, last) that do not touch each other.

    Raises `ValueError` for ranges that are not.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        before = -2
        for first, last in self.ranges:
            if not before + 1 < first <= last < SLOTS:
                raise ValueError(f"not ranges of slots: {self.ranges}")
            before = last

    @classmethod
    def of(cls, slots: Iterable[int]) -> SlotSet:
        """The set of these slots, in any order. Raises `ValueError`."""
        ranges: list[tuple[int, int]] = []
        for slot in sorted(set(slots)):
            if ranges and ranges[-1][1] == slot - 1:
                ranges[-1] = (ranges[-1][0], slot)
            else:
                ranges.append((slot, slot))
        return cls(tuple(ranges))

    @classmethod
    def parse(cls, text: str) -> SlotSet:
        """Inverse of `str`. Raises `ValueError`."""
        if not text:
            return cls()
        if not _RANGES.fullmatch(text):
            raise ValueError(f"not slots: {text[:80]!r}")
        ranges = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            ranges.append((int(first), int(last or first)))
        return cls(tuple(ranges))

    def __str__(self) -> str:
        return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in self.ranges)

    @property
    def words(self) -> str:
        """The same for people: the first ranges, and how many more there are."""
        more = len(self.ranges) - _RANGES_SHOWN
        if more <= 0:
            return str(self)
        return f"{SlotSet(self.ranges[:_RANGES_SHOWN])} and {more} more ranges"

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __contains__(self, slot: int) -> bool:
        return any(first <= slot <= last for first, last in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __or__(self, other: SlotSet) -> SlotSet:
        merged: list[tuple[int, int]] = []
        for first, last in sorted(self.ranges + other.ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return SlotSet(tuple(merged))

    def __and__(self, other: SlotSet) -> SlotSet:
        found = []
        for first, last in self.ranges:
            for start, end in other.ranges:
                if max(first, start) <= min(last, end):
                    found.append((max(first, start), min(last, end)))
        return SlotSet(tuple(sorted(found)))

    def __sub__(self, other: SlotSet) -> SlotSet:
        left, found = 0, []
        for first, last in other.ranges:
            if left < first:
                found.append((left, first - 1))
            left = last + 1
        if left < SLOTS:
            found.append((left, SLOTS - 1))
        return self & SlotSet(tuple(found))


ALL_SLOTS = SlotSet(((0, SLOTS - 1),))
"""What a target that is no cluster holds."""


_TAG_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=1024)
def slot_tag(slot: int) -> str:
    """The first short text whose slot is this one: as a hash tag it puts a key there. Raises
    `ValueError` for no slot."""
    if not 0 <= slot < SLOTS:
        raise ValueError(f"not a slot: {slot}")
    # The core is not loaded where nothing is moved.
    from engine._native import key_slot

    return next(tag for tag in _tags() if key_slot(tag.encode()) == slot)


def slot_tags(slots: SlotSet) -> dict[int, str]:
    """`slot_tag` of each of these."""
    from engine._native import key_slot

    wanted, found = set(slots), dict[int, str]()
    for tag in _tags() if wanted else ():
        if (slot := key_slot(tag.encode())) in wanted:
            wanted.remove(slot)
            found[slot] = tag
            if not wanted:
                break
    return found


def _tags() -> Iterator[str]:
    for size in itertools.count(1):
        yield from map("".join, itertools.product(_TAG_LETTERS, repeat=size))
