"""The keys of some slots on a cluster's node: counted, and removed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from typing import Any

from engine._native import key_slot
from engine.errors import EngineError
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.slots import SlotSet
from engine.wire.connection import answered

# Slots that are asked for in one go, and keys that are removed in one command.
_SLOTS_AT_ONCE = 1000
_KEYS_AT_ONCE = 1000
# A node with no more keys is scanned.
_FEW_KEYS = 20_000
# The names of so many keys are had in one reply.
_SLOT_KEYS_MOST = 100_000

Ask = Callable[[Sequence[tuple[bytes | str | int, ...]]], Awaitable[list[Any]]]
"""Sends commands to the node in one go, and gives their replies, errors as values."""


async def remove_keys(ask: Ask, slots: SlotSet, spared: Collection[bytes] = ()) -> int:
    """Remove the keys that the node has in `slots`, but for those `spared`; how many they were.

    What is written there meanwhile may stay. Raises as `ask`, and the node's error.
    """
    removed = 0
    async with contextlib.aclosing(_of_each_slot(ask, slots)) as pages:
        async for keys in pages:
            if gone := [key for key in keys if key not in spared]:
                removed += await _one(ask, "UNLINK", *gone)
    return removed


async def has_keys(ask: Ask, slots: SlotSet) -> bool:
    """Whether the node has a key in `slots` that is not the engine's own. Raises as
    `remove_keys`."""
    async with contextlib.aclosing(_of_each_slot(ask, slots)) as pages:
        async for keys in pages:
            if not all(key.startswith(OWN_PREFIX) for key in keys):
                return True
    return False


async def _of_each_slot(ask: Ask, slots: SlotSet) -> AsyncGenerator[list[bytes], None]:
    """The keys of `slots` in portions, each of one slot. They may be removed meanwhile."""
    counts = await _counts(ask, slots) if await _one(ask, "DBSIZE") > _FEW_KEYS else {}
    if counts and max(counts.values()) <= _SLOT_KEYS_MOST:
        for slot, count in counts.items():
            keys = await _one(ask, "CLUSTER", "GETKEYSINSLOT", slot, count)
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                yield keys[at : at + _KEYS_AT_ONCE]
        return
    # Quicker than asking for every slot, or than names that are too many for one reply.
    wanted, cursor = frozenset(slots), b"0"
    while True:
        cursor, names = await _one(ask, "SCAN", cursor, "COUNT", _KEYS_AT_ONCE)
        found: dict[int, list[bytes]] = {}
        for name in names:
            if (slot := key_slot(name)) in wanted:
                found.setdefault(slot, []).append(name)
        for keys in found.values():
            yield keys
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
