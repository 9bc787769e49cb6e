"""Commands that change a key and leave no word in the stream, and how often they were called.

XREADGROUP of pending entries raises their delivery counts. BITFIELD of which every write overflows
(OVERFLOW FAIL) lengthens its string, or makes it, from 7.0 on; before, it is replicated. INFO
commandstats counts calls by scripts and transactions as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.model.calls_despite_write_block import counts_in

READ_PENDING = "xreadgroup"
LENGTHEN = "bitfield"

# What tells whether the figures were set back (CONFIG RESETSTAT): a source that is followed was
# called with PSYNC, and is asked by INFO all the time.
_SYNC, _GROWS = "psync", "info"

Calls = Mapping[str, int]
"""How often each of the two was called, and what tells whether the figures were set back."""


def calls_in(reply: object) -> Calls | None:
    """What a reply to `command_calls.ASK_COUNTS` tells; None where it does not."""
    counts = counts_in(reply)
    if counts is None:
        return None
    return {name: counts.get(name, 0) for name in (READ_PENDING, LENGTHEN, _SYNC, _GROWS)}


def was_reset(calls: Calls) -> bool:
    """Whether the figures of a server that is followed were set back since the last sync."""
    return calls[_SYNC] == 0


def more(command: str, calls: Calls | None, before: Calls | None) -> int | None:
    """How often it was called since `before`; None where that is not known, or was reset."""
    if calls is None or before is None:
        return None
    if any(calls[name] < count for name, count in before.items()):
        return None
    return calls[command] - before[command]
