"""Commands that change a key and leave no word in the stream, and how often they were called.

XREADGROUP of pending entries raises their delivery counts. BITFIELD of which every write overflows
(OVERFLOW FAIL) lengthens its string, or makes it, from 7.0 on; before, it is replicated. INFO
commandstats counts calls by scripts and transactions as well.
"""

from __future__ import annotations

from collections.abc import Mapping

ASK = ("INFO", "commandstats")
"""The command; `calls_in` reads its reply."""
READ_PENDING = "xreadgroup"
LENGTHEN = "bitfield"
LENGTHENS_FROM = (7, 0, 0)
"""The first version of which BITFIELD is silent; all of Valkey's are."""

# What tells whether the figures were set back (CONFIG RESETSTAT): who is followed was called with
# PSYNC, and is asked by INFO all the time.
_SYNC, _GROWS = "psync", "info"

Calls = Mapping[str, int]
"""How often each of the two was called, and what tells whether the figures were set back."""


def calls_in(reply: object) -> Calls | None:
    """What a reply to `ASK` tells; None where it does not."""
    if not isinstance(reply, bytes):
        return None
    found = {READ_PENDING: 0, LENGTHEN: 0, _SYNC: 0, _GROWS: 0}
    told = False
    for line in reply.decode("utf-8", "replace").splitlines():
        name, _, figures = line.partition(":calls=")
        told = told or bool(figures)
        if (name := name.removeprefix("cmdstat_")) in found:
            count = figures.partition(",")[0]
            if not count.isdigit():
                return None
            found[name] = int(count)
    return found if told else None


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
