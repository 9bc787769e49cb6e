"""Which keys on the target may have an extended TTL, as far as what passes by tells.

The guard of TTLs (`ttl_guard`) extends those that are near, and restores them before the cut-over,
by walks through the target's keys. What it has to know for that is noted where it passes by: in the
stream (`follow`) and in readings from the source (`key_resync`). Neither of them knows the guard.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine._native import CMD_MOVES, CMD_SWAPS, CMD_UNKNOWN, CommandBatch, ExtendedNames
from engine.model.db_key import DbKey


class ExtendedKeys:
    """The names of such keys, if they are known, and what a walk may miss while it lasts."""

    def __init__(self) -> None:
        self.names = ExtendedNames()
        """The keys whose TTLs on the target may be extended, if they are known."""
        self.before = self.by = 0
        """Expire times before `before` are extended by `by`, in ms; 0: none is."""
        self.read = 0
        """How many were extended that came in readings."""
        self.noting = False
        """Whether something is noted below: each command of the stream is to be looked at."""
        self.moved: dict[DbKey, None] = {}
        """Since `watch`: keys that took another key's TTL along."""
        self.came: dict[DbKey, None] = {}
        """Since `watch(extended=True)`: keys whose TTLs came extended, or may have."""
        self.swapped = False
        """Two databases were swapped since `watch`: the numbers in the names are no longer
        right."""
        self._extended = False

    # --- The guard ---

    def watch(self, *, extended: bool = False) -> None:
        """A walk begins: note what it may miss. `extended`: also which keys come with an extended
        TTL, from the first such call on."""
        if extended:
            self._extended, self.came = True, {}
        self.noting, self.swapped, self.moved = True, False, {}

    def end_watch(self) -> None:
        """No walk goes on any more."""
        self.noting = self._extended = self.swapped = False
        self.moved, self.came = {}, {}

    @property
    def seen(self) -> dict[DbKey, None]:
        """The keys that were noted since `watch`."""
        return self.moved | self.came

    def forget(self, keys: Iterable[DbKey]) -> None:
        """These are done: what comes into them from now on is noted anew."""
        for key in keys:
            self.moved.pop(key, None)
            self.came.pop(key, None)
        self.swapped = False

    # --- What passes by ---

    def sent(self, batch: CommandBatch) -> None:
        """A batch of the stream is going to the target."""
        names = self.names
        if not names.known:
            return
        names.add_commands(batch)
        if batch.holds(CMD_SWAPS | CMD_UNKNOWN):
            # The numbers of databases in the names are no longer right; or it is not known what
            # moved.
            names.give_up()
        elif batch.holds(CMD_MOVES):
            for db, key in taken_along(batch):
                names.add(db, key)

    def looked_at(self, batch: CommandBatch, moved: Iterable[DbKey]) -> None:
        """The same batch, while something is noted. `moved`: its `taken_along`."""
        if not self.noting:
            return
        self.moved.update(dict.fromkeys(moved))
        self.swapped = self.swapped or bool(batch.swaps)
        if self._extended:
            for index in batch.rewritten:
                self.came.update(dict.fromkeys(batch.changes(index) or ()))

    def extend(self, key: DbKey, expires_at: int) -> int:
        """The expire time (ms) with which a key goes to the target that was read from the source
        with this one."""
        if expires_at >= self.before:
            return expires_at
        self.read += 1
        self.names.add(*key)
        if self._extended:
            self.came[key] = None
        return expires_at + self.by


def taken_along(batch: CommandBatch) -> list[DbKey]:
    """Where the commands that take a key elsewhere, its TTL included, put it."""
    moves = (batch.changes(index) for index in batch.indices(CMD_MOVES))
    return [keys[-1] for keys in moves if keys]
