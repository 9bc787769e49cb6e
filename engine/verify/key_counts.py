"""The servers' own counts of keys, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.model.server import Keyspace, ServerInfo
from engine.model.verification import Counts

Stray = tuple[Mapping[int, int], Mapping[int, int]]
"""By database how many keys the source and the target count of slots that they do not own."""


def judge(
    source: ServerInfo,
    target: ServerInfo,
    *,
    own: int,
    expired: tuple[int, int],
    stray: Stray = ({}, {}),
) -> Counts:
    """Hold the counts against each other, database by database.

    `own`: keys of the engine's in the target's database 0. `expired`: keys that the source and the
    target have let expire since the counts could last be equal: each does so by itself, and a
    source whose writers are paused does not at all. Keys without an expire time are counted
    exactly, but for hashes whose fields have expire times: the last field's end is the key's.
    `stray` keys are no data: what is left without them is compared.
    """
    here, there = ({entry.db: entry for entry in info.keyspace} for info in (source, target))
    databases, left_out = sorted(here.keys() | there.keys()), 0
    for db in databases:
        gone = stray[0].get(db, 0), stray[1].get(db, 0)
        one, other = here.get(db, Keyspace(db, 0, 0)), there.get(db, Keyspace(db, 0, 0))
        # More than it has are none of what was counted.
        if any(gone) and gone[0] <= one.keys and gone[1] <= other.keys:
            mine = own if db == 0 else 0
            here[db], there[db] = _without(one, other, gone, mine, expired)
            left_out += sum(gone)
    keys = sum(each.keys for each in here.values()), sum(each.keys for each in there.values())
    totals = keys[0], keys[1] - own
    fields: dict[int, int] = {}
    more_timed = less_timed = 0
    for db in databases:
        one, other = here.get(db, Keyspace(db, 0, 0)), there.get(db, Keyspace(db, 0, 0))
        mine = own if db == 0 else 0
        lasting = one.keys - one.expires, other.keys - other.expires - mine
        more = lasting[0] - lasting[1]
        if not -other.field_expires <= more <= one.field_expires:
            return Counts(
                *totals,
                f"database {db} has {lasting[0]:,} keys without a TTL on the source and "
                f"{lasting[1]:,} on the target",
                stray=left_out,
            )
        if more:
            fields[db] = more
        # Those with an expire time.
        more = one.expires - other.expires
        more_timed, less_timed = more_timed + max(more, 0), less_timed + max(-more, 0)
        if less_timed > expired[0] or more_timed > expired[1]:
            return Counts(
                *totals,
                f"database {db} has {one.expires:,} keys with a TTL on the source and "
                f"{other.expires:,} on the target",
                stray=left_out,
            )
    return Counts(*totals, "", fields, more_timed + less_timed, stray=left_out)


def _without(
    source: Keyspace, target: Keyspace, gone: tuple[int, int], own: int, expired: tuple[int, int]
) -> tuple[Keyspace, Keyspace]:
    """The same database at both ends without so many keys. How many of those have a TTL no server
    tells: as many as let the counts agree, if such a number there is."""
    few, many = [], []
    for each, stray in zip((source, target), gone, strict=True):
        few.append(max(stray - (each.keys - each.expires), 0))
        many.append(min(stray, each.expires))
    lasting = (source.keys - source.expires - gone[0]) - (
        target.keys - target.expires - gone[1] - own
    )
    timed = source.expires - target.expires
    # So many more of the source's than of the target's have one.
    more = min(max(-lasting, timed - expired[1]), timed + expired[0])
    more = min(max(more, few[0] - many[1]), many[0] - few[1])
    of_source = max(few[0], few[1] + more)
    return (
        replace(source, keys=source.keys - gone[0], expires=source.expires - of_source),
        replace(target, keys=target.keys - gone[1], expires=target.expires - of_source + more),
    )
