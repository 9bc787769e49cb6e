"""What snapshots hold that came after those that can be read here, and which server introduced it.

The numbers are those of `rdb.h` in the two code bases, as far as they were known when this was
written; from 22 on they mean different things to the two flavours. A value whose end cannot be
found in a snapshot can still be moved key by key: DUMP gives it by itself, and RESTORE takes it
where the target knows its type.
"""

from __future__ import annotations

from engine.model.server_capabilities import Flavour

NEWEST_READ: dict[Flavour, int] = {"redis": 15, "valkey": 80}
"""The newest RDB version of which every type and opcode is read."""
_FIRST_OPCODE = 242
_FEATURES: dict[tuple[Flavour, int], tuple[str, str]] = {
    ("redis", 34): ("sets whose members have TTLs", "Redis 8.12"),
    ("redis", 35): ("small sets whose members have TTLs", "Redis 8.12"),
    ("valkey", 242): ("commands that stand inside a snapshot", "Valkey 9.2"),
}
_IN_DUMP_ALONE: dict[Flavour, frozenset[int]] = {
    "redis": frozenset({29, 31}),
    "valkey": frozenset(),
}
"""Types that the newest known version writes by DUMP, but into no snapshot."""
_LAST_KNOWN: dict[Flavour, str] = {"redis": "Redis 8.10", "valkey": "Valkey 9.1"}


def newer_than_known(flavour: Flavour, version: int, number: int) -> str | None:
    """What a type of value or opcode is that a snapshot of this RDB version holds and that is not
    known, as the end of a sentence; None in a version of which all are known: damage, that is."""
    if version <= NEWEST_READ[flavour]:
        return None
    kind = "opcode" if number >= _FIRST_OPCODE else "type of value"
    found = _FEATURES.get((flavour, number))
    if found is not None:
        what, since = found
        return f"it holds {what} ({kind} {number}), which {since} brought"
    if number in _IN_DUMP_ALONE[flavour]:
        since = f"that {_LAST_KNOWN[flavour]} brought for DUMP payloads alone"
    else:
        since = f"that came after {_LAST_KNOWN[flavour]}"
    return (
        f"it holds a {kind} ({number}) {since} (RDB version {version}; up to "
        f"{NEWEST_READ[flavour]} all are known)"
    )


def by_scan(number: int) -> str:
    """What --source-type scan makes of what has this number, as the end of a sentence."""
    if number >= _FIRST_OPCODE:
        return "a scan reads each key that the server has by DUMP, and needs no snapshot."
    return "DUMP gives such a key by itself, and a target that knows its type takes it."
