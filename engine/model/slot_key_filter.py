"""Which of some keys are in a set of slots: those of one lane, of all that a server has."""

from __future__ import annotations

from collections.abc import Iterable

from engine._native import key_slot
from engine.model.slots import ALL_SLOTS, SLOTS, SlotSet


class KeysOfSlots:
    """The keys of these slots."""

    def __init__(self, slots: SlotSet = ALL_SLOTS) -> None:
        self.all = slots == ALL_SLOTS
        """Whether that is every key."""
        self._has = bytearray(SLOTS)
        for slot in slots:
            self._has[slot] = 1

    def among(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those of `keys` that are in the slots."""
        return list(keys) if self.all else [key for key in keys if self._has[key_slot(key)]]
