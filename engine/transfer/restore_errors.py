"""Why a target refused a value, in words that help more than its own."""

from __future__ import annotations

from engine.model.server import ServerInfo

# What RESTORE says of a value that it cannot read (cluster.c, restoreCommand).
_UNREADABLE = ("ERR DUMP payload version or checksum are wrong", "ERR Bad data format")
# RDB_TYPE_* that came late enough for a target not to know them (rdb.h).
_TYPE_NAMES = {
    15: "stream",
    16: "hash as listpack",
    17: "sorted set as listpack",
    18: "list as quicklist of listpacks",
    19: "stream with more metadata",
    20: "set as listpack",
    21: "stream with consumers' active time",
    22: "hash with field TTLs, as Valkey writes it",
    23: "path hash, as Valkey 9.2 writes it",
    24: "hash with field TTLs",
    25: "hash with field TTLs, as listpack",
    26: "stream, as Redis 8.6 writes it",
    27: "stream, as Redis 8.8 writes it",
    28: "array",
    33: "rate limiter",
}


def explain_refusal(message: str, value_type: int | None, target: ServerInfo) -> str:
    """The reason for the report: the target's `message`, and what lies behind it if it shows.

    `value_type` is the RDB type byte of the value, None where it is not known.
    """
    if not message.startswith(_UNREADABLE) or value_type is None:
        return message
    if value_type in target.capabilities.known_types:
        return message
    name = _TYPE_NAMES.get(value_type, "unknown to this engine")
    return f"{target.name} does not know values of type {value_type} ({name}): {message}"
