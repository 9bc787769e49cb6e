"""The servers' own counts of keys, compared."""

from __future__ import annotations

from engine.model.server import Keyspace, ServerInfo
from engine.model.verification import Counts


def judge(source: ServerInfo, target: ServerInfo, *, own: int, expired: tuple[int, int]) -> Counts:
    """Hold the counts against each other, database by database.

    `own`: keys of the engine's in the target's database 0. `expired`: keys that the source and the
    target have let expire since the counts could last be equal: each does so by itself, and a
    source whose writers are paused does not at all. Keys without an expire time are counted
    exactly, but for hashes whose fields have expire times: the last field's end is the key's.
    """
    here, there = ({entry.db: entry for entry in info.keyspace} for info in (source, target))
    totals = source.keys, target.keys - own
    fields: dict[int, int] = {}
    more_timed = less_timed = 0
    for db in sorted(here.keys() | there.keys()):
        one, other = here.get(db, Keyspace(db, 0, 0)), there.get(db, Keyspace(db, 0, 0))
        mine = own if db == 0 else 0
        lasting = one.keys - one.expires, other.keys - other.expires - mine
        more = lasting[0] - lasting[1]
        if not -other.field_expires <= more <= one.field_expires:
            return Counts(
                *totals,
                f"database {db} has {lasting[0]:,} keys without a TTL on the source and "
                f"{lasting[1]:,} on the target",
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
            )
    return Counts(*totals, "", fields, more_timed + less_timed)
