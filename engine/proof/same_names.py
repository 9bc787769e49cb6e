"""That the target has no key that the source has not, by the counts of their keys alone.

The law, of one database of two primaries, from before the first page of the source's names to
behind the last look:

1. Keys come by writes. To a server at which nothing was written no key has come, and where it has
   as many keys as before none has gone (expired, been evicted): it had the same ones all the while.
2. If that is so of the source, SCAN has named each of them. (Not those that have expired and are
   still there, as while writes are paused: so none may have an expire time.)
3. If that is so of the target too, and each name was found there, it has all keys of the source.
   Where it has as many as the source, it has no other.

So its own names need not be asked for. Nothing is said where a server does not tell, or counts
otherwise: a fork; one with modules, which may add keys past its counts, but for those that servers
come with; a replica, which may take all of its primary's keys anew; a node of a cluster, which
counts keys that are no longer its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.proof.deployment import written_in
from engine.wire.control_connection import Admin

# What Redis 8 and Valkey 9 come with: their writes count.
_OWN_MODULES = frozenset({"lua", "vectorset"})
_LAST_SAVE = re.compile(rb"^rdb_last_save_time:(\d+)", re.MULTILINE)
_CLOCK = re.compile(rb"^server_time_usec:(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class AtRest:
    """What a server has said of a database at one moment: where it says the same at two moments it
    had the same `keys` at both, and between them. `expires` of them have an expire time."""

    process: str
    written: object
    keys: int
    expires: int


async def both_at_rest(ends: Sequence[Sequence[Admin]], db: int) -> tuple[AtRest, AtRest] | None:
    """Source and target, where the law may come to hold. Raises `EngineError`."""
    if [len(each) for each in ends] != [1, 1]:
        return None
    ours, theirs = [await _at_rest(each[0], db) for each in ends]
    if ours is None or theirs is None or ours.expires or ours.keys != theirs.keys:
        return None
    return ours, theirs


async def _at_rest(end: Admin, db: int) -> AtRest | None:
    text = await end.call("INFO")
    info, written = end.info_in(text), written_in(text)
    if written is None or not info.process:
        return None
    if info.fork or info.role != "master" or info.mode != "standalone":
        return None
    if not _OWN_MODULES.issuperset(info.modules):
        return None
    # A save sets the count of changes back. One that is still to come has a later time.
    saved, now = (pattern.search(text) for pattern in (_LAST_SAVE, _CLOCK))
    if saved is None or now is None or int(saved[1]) >= int(now[1]) // 1_000_000:
        return None
    found = [(each.keys, each.expires) for each in info.keyspace if each.db == db]
    return AtRest(info.process, written, *(found[0] if found else (0, 0)))
