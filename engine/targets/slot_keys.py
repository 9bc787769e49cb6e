"""The keys of some slots on a cluster's node: counted, and removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from engine.errors import EngineError
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.slots import SlotSet
from engine.wire.connection import answered

# Slots that are asked for in one go, and keys that are removed in one command.
_SLOTS_AT_ONCE = 1000
_KEYS_AT_ONCE = 1000

Ask = Callable[[Sequence[tuple[bytes | str | int, ...]]], Awaitable[list[Any]]]
"""Sends commands to the node in one go, and gives their replies, errors as values."""


async def remove_keys(ask: Ask, slots: SlotSet, spared: Collection[bytes] = ()) -> int:
    """Remove the keys that the node has in `slots`, but for those `spared`; how many they were.

    What is written there meanwhile may stay. Raises as `ask`, and the node's error.
    """
    removed = 0
    for slot, count in (await _counts(ask, slots)).items():
        left = count
        while left > 0:
            most = min(left, _KEYS_AT_ONCE) + len(spared)
            keys = await _one(ask, "CLUSTER", "GETKEYSINSLOT", slot, most)
            gone = [key for key in keys if key not in spared]
            if not gone:
                break
            removed += await _one(ask, "UNLINK", *gone)
            left -= len(gone)
    return removed


async def has_keys(ask: Ask, slots: SlotSet) -> bool:
    """Whether the node has a key in `slots` that is not the engine's own. Raises as
    `remove_keys`."""
    for slot, count in (await _counts(ask, slots)).items():
        keys = await _one(ask, "CLUSTER", "GETKEYSINSLOT", slot, min(count, _KEYS_AT_ONCE))
        if not all(key.startswith(OWN_PREFIX) for key in keys):
            return True
    return False


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
