"""Which of some keys one lane brings, of all that a server has: by slots, by rules."""

from __future__ import annotations

from collections.abc import Iterable

from engine._native import KeyRules, key_slot
from engine.model.slots import ALL_SLOTS, SLOTS, SlotSet


class KeysOfLane:
    """The keys of these slots that the rules, if there are any, take."""

    def __init__(self, slots: SlotSet = ALL_SLOTS, rules: KeyRules | None = None) -> None:
        self.slots = slots
        self.rules = rules
        self.of_every_slot = slots == ALL_SLOTS
        """Whether slots leave no key out."""
        self.all = self.of_every_slot and rules is None
        """Whether that is every key."""
        self._has = bytearray(SLOTS)
        for slot in slots if not self.of_every_slot else ():
            self._has[slot] = 1

    def among(self, db: int, keys: Iterable[bytes]) -> list[bytes]:
        """Those of `keys`, of this database, that the lane brings."""
        found = list(keys)
        if not self.of_every_slot:
            found = [key for key in found if self._has[key_slot(key)]]
        return found if self.rules is None else self.rules.chosen(db, found)

    def takes_db(self, db: int) -> bool:
        """Whether keys of this database can be among them."""
        return self.rules is None or self.rules.takes_db(db)
