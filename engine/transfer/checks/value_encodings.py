"""Whether the target can load the encodings of the values that the source has.

The version table says what could be refused; a look at some keys says what is there.
"""

from __future__ import annotations

from collections import Counter

from engine.model.server import ServerInfo
from engine.transfer.checks.check_result import Check, passed, warned
from engine.transfer.checks.first_keys import some_of_each
from engine.transfer.checks.server_pair import (
    rewritten_types,
    rewritten_words,
    unloadable_types,
)
from engine.transfer.checks.type_names import FIELD_TTLS, type_name
from engine.wire.control_connection import Admin


async def check_types(
    source: Admin, source_info: ServerInfo, target_info: ServerInfo, databases: list[int]
) -> Check:
    """Which kinds of value may be refused, and how many of them were among some keys."""
    name = "value-types"
    types = unloadable_types(source_info, target_info)
    if not types:
        return passed(name, "the target loads every encoding of the source")
    rewritten = rewritten_types(types, target_info)
    words = rewritten_words(source_info.capabilities.known_types, source_info.flavour, target_info)
    if rewritten == types:
        return passed(name, f"the target does not load all as they are; {words}")
    kinds = {type_name(number, source_info.flavour) for number in types - rewritten}
    seen, looked = await _look(source, databases)
    found = {kind: seen[kind] for kind in sorted(kinds) if seen[kind]}
    what = f"{target_info.name} does not load some encodings of {source_info.name}: "
    what += ", ".join(sorted(kinds))
    if rewritten:
        what += f"; {words}"
    remedy = (
        "Choose a target at least as new as the source and of its flavour; keys that cannot be"
        " loaded are named in the report."
    )
    if found:
        among = ", ".join(f"{count} {kind}" for kind, count in found.items())
        return warned(name, f"{what}; among {looked} keys looked at: {among}", remedy)
    return warned(name, f"{what}; none was seen among {looked} keys", remedy)


async def _look(source: Admin, databases: list[int]) -> tuple[Counter[str], int]:
    """Count kinds among some keys of each database."""
    seen: Counter[str] = Counter()
    looked = 0
    async for keys in some_of_each(source, databases):
        commands: list[tuple[bytes | str, ...]] = []
        for key in keys:
            commands += [("TYPE", key), ("OBJECT", "ENCODING", key)]
        replies = await source.pipeline(commands)
        for kind, encoding in zip(replies[::2], replies[1::2], strict=True):
            if isinstance(kind, bytes) and isinstance(encoding, bytes):
                looked += 1
                seen[_kind(kind, encoding)] += 1
    return seen, looked


def _kind(kind: bytes, encoding: bytes) -> str:
    if kind == b"stream":
        return "streams"
    if kind == b"list":
        # Since 7.0 every list is saved as type 18, whatever OBJECT ENCODING says.
        return "lists"
    if encoding == b"listpackex":
        return FIELD_TTLS
    if encoding == b"listpack":
        return {b"hash": "small hashes", b"zset": "small sorted sets", b"set": "small sets"}.get(
            kind, "others"
        )
    return "others"
