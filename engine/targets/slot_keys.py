"""The keys of a lane on a server: looked for, and removed. A target may have others, be they other
lanes' or neighbours that rules leave: those of the lane's slots that the rules take are all that it
may take away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any

from engine._native import key_slot
from engine.errors import EngineError
from engine.model.lane_keys import KeysOfLane
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.slots import ALL_SLOTS, SlotSet
from engine.wire.connection import answered

# Slots that are asked for in one go, and keys that are removed in one command.
_SLOTS_AT_ONCE = 1000
_KEYS_AT_ONCE = 1000
# A node with no more keys is scanned.
_FEW_KEYS = 20_000
# So many may come to a slot while it is asked for the names that it has.
_NEW_KEYS = 100
# The names of so many keys are had in one reply.
_SLOT_KEYS_MOST = 100_000

Ask = Callable[[Sequence[tuple[bytes | str | int, ...]]], Awaitable[list[Any]]]
"""Sends commands to the node in one go, and gives their replies, errors as values."""


async def remove_keys(ask: Ask, keys: KeysOfLane, db: int, *, node: bool) -> int:
    """Remove those of `keys` that the server has in the database `db`, which is chosen, but for the
    engine's own; how many they were. `node`: it is a cluster's.

    What is written there meanwhile may stay. Raises as `ask`, and the server's error.
    """
    await see_expired(ask)
    removed = 0
    async with contextlib.aclosing(keys_of(ask, keys, db, node=node)) as pages:
        async for page in pages:
            if gone := without_own(page):
                removed += await _one(ask, "UNLINK" if node else "DEL", *gone)
    return removed


async def has_keys(ask: Ask, keys: KeysOfLane, db: int, *, node: bool) -> bool:
    """Whether the server has one of `keys` that is not the engine's own. As `remove_keys`."""
    await see_expired(ask)
    async with contextlib.aclosing(keys_of(ask, keys, db, node=node)) as pages:
        async for page in pages:
            if without_own(page):
                return True
    return False


async def see_expired(ask: Ask) -> None:
    """Have SCAN name keys whose time has come, which a target in import mode keeps, and names to
    its import source alone. An error says that it is in no such mode."""
    await ask([("CLIENT", "IMPORT-SOURCE", "ON")])


def without_own(keys: Iterable[bytes]) -> list[bytes]:
    """The keys that are not the engine's own, of whichever lane."""
    return [key for key in keys if not key.startswith(OWN_PREFIX)]


async def keys_of(
    ask: Ask, keys: KeysOfLane, db: int, *, node: bool
) -> AsyncGenerator[list[bytes], None]:
    """Those of a lane's keys that are there all the time meanwhile, as `keys_in`."""
    if not keys.takes_db(db):
        return
    async with contextlib.aclosing(keys_in(ask, keys.slots, node=node)) as pages:
        async for page in pages:
            if found := page if keys.rules is None else keys.rules.chosen(db, page):
                yield found


def keys_in(ask: Ask, slots: SlotSet, *, node: bool) -> AsyncGenerator[list[bytes], None]:
    """The keys of `slots` that are there all the time meanwhile, in portions, each of which one
    command takes."""
    return _of_each_slot(ask, slots) if node else _scanned(ask, slots)


async def _of_each_slot(ask: Ask, slots: SlotSet) -> AsyncGenerator[list[bytes], None]:
    counts = await _counts(ask, slots) if await _one(ask, "DBSIZE") > _FEW_KEYS else {}
    if counts and max(counts.values()) <= _SLOT_KEYS_MOST:
        for slot, count in counts.items():
            # Some may come meanwhile, and must not take the place of others.
            most = 2 * count + _NEW_KEYS
            keys = await _one(ask, "CLUSTER", "GETKEYSINSLOT", slot, most)
            if len(keys) >= most:
                async with contextlib.aclosing(_scanned(ask, SlotSet.of([slot]))) as pages:
                    async for names in pages:
                        yield names
                continue
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                yield keys[at : at + _KEYS_AT_ONCE]
        return
    # Quicker than asking for every slot, or than names that are too many for one reply.
    async with contextlib.aclosing(_scanned(ask, slots)) as pages:
        async for names in pages:
            found: dict[int, list[bytes]] = {}
            for name in names:
                found.setdefault(key_slot(name), []).append(name)
            for keys in found.values():
                yield keys


async def _scanned(ask: Ask, slots: SlotSet) -> AsyncGenerator[list[bytes], None]:
    wanted, cursor = frozenset(slots), b"0"
    every = slots == ALL_SLOTS
    while True:
        cursor, names = await _one(ask, "SCAN", cursor, "COUNT", _KEYS_AT_ONCE)
        if found := names if every else [name for name in names if key_slot(name) in wanted]:
            yield found
        if cursor == b"0":
            return


async def _one(ask: Ask, *command: bytes | str | int) -> Any:
    (reply,) = await ask([command])
    return answered(reply)


async def _counts(ask: Ask, slots: SlotSet) -> dict[int, int]:
    """Of each slot that has keys, how many."""
    found: dict[int, int] = {}
    numbers = list(slots)
    for at in range(0, len(numbers), _SLOTS_AT_ONCE):
        portion = numbers[at : at + _SLOTS_AT_ONCE]
        counts = await ask([("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in portion])
        for reply in counts:
            if isinstance(reply, EngineError):
                raise reply
        found.update((slot, n) for slot, n in zip(portion, counts, strict=True) if n)
    return found
