"""The kinds of value behind RDB_TYPE_* bytes, for people."""

from __future__ import annotations

from engine.model.server_capabilities import Flavour

_TYPE_NAMES: dict[int, str] = {
    15: "streams",
    16: "small hashes",
    17: "small sorted sets",
    18: "lists",
    19: "streams",
    20: "small sets",
    21: "streams",
    26: "streams",
    27: "streams",
    28: "arrays",
    29: "hashes of a template",
    30: "hashes of a template",
    31: "hashes of a template",
    32: "hashes of a template",
    33: "rate limiters",
}
# 22 and up mean different things to the two flavours.
_FIELD_TTL_TYPES: dict[Flavour, frozenset[int]] = {
    "redis": frozenset({24, 25}),
    "valkey": frozenset({22}),
}
_PATH_HASH = 23
FIELD_TTLS = "hashes with field TTLs"


def type_name(number: int, flavour: Flavour) -> str:
    """The kind of value behind an RDB_TYPE_* byte, for people."""
    if number in _FIELD_TTL_TYPES[flavour]:
        return FIELD_TTLS
    if number == _PATH_HASH and flavour == "valkey":
        return "path hashes"
    return _TYPE_NAMES.get(number, f"type {number}")
