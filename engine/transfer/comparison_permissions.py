"""Whether the users may run the comparison that a cut-over begins with, before one is ordered.

A gate that is shown open, and then refuses because TYPE or HGETALL is denied, was never open. What
reads values of one type counts only where the source has keys of that type, as far as is looked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from engine.errors import EngineError
from engine.model.endpoint import Endpoint
from engine.model.rules import type_number
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks import required_commands
from engine.transfer.checks.check_result import Side
from engine.transfer.checks.databases import moved_databases
from engine.transfer.checks.permission_keys import UNKNOWN, SampleKeys, sample_keys
from engine.transfer.checks.permissions import Denial, Why, ask_rights
from engine.wire.control_connection import Admin, Arg, admin, all_of

_TYPE_READ = {
    "GET": b"string",
    "LRANGE": b"list",
    "SMEMBERS": b"set",
    "HGETALL": b"hash",
    "ZRANGE": b"zset",
    "XRANGE": b"stream",
    "XINFO STREAM": b"stream",
}
AGAIN_SECONDS = 2.0
"""Between two looks, while both ends cannot be compared."""
# So many pages of names are looked at for a type.
_PAGES = 20
_COUNT = 1000


async def objection(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    told: Mapping[Side, ServerInfo] | None = None,
) -> str:
    """Why both ends cannot be compared with these users, and the remedy; empty: they can, as far as
    is known. `source` may be a file. `told`: what both ends have said of themselves a moment ago.
    Raises `LinkError`, `AuthError`, `ServerError`."""
    sides: list[tuple[Side, Endpoint]] = [("source", source), ("target", target)]
    asked = [(side, at) for side, at in sides if at.file_path is None]
    keys = UNKNOWN
    timeout = settings.connect_timeout
    async with AsyncExitStack() as stack:
        dialling = [admin(at, timeout=timeout, fault=side) for side, at in asked]
        dialled = await all_of(stack, dialling)
        ends = [(side, end) for (side, _), end in zip(asked, dialled, strict=True)]
        if told is None:
            infos = await asyncio.gather(*(end.info() for end in dialled))
        else:
            infos = [told[side] for side, _ in asked]
        for (side, end), info in zip(ends, infos, strict=True):
            if side == "source":
                keys = await sample_keys(end, moved_databases(info, settings), settings)
        replies = await asyncio.gather(
            *(
                ask_rights(end, required_commands.comparison(info), _sure(keys))
                for (_, end), info in zip(ends, infos, strict=True)
            )
        )
    found = [(side, each) for (side, _), each in zip(ends, replies, strict=True)]
    wanted = {_TYPE_READ.get(each.needed.name, b"") for _, r in found for each in r.denied}
    wanted.discard(b"")
    if wanted and source.file_path is None:
        async with admin(source, timeout=timeout, fault="source") as end:
            there = await _types(end, settings, wanted)
    else:
        there = wanted
    parts = []
    for side, rights in found:
        denied = [each for each in rights.denied if _counts(each, there)]
        if denied:
            parts.append(f"{rights.figure(side, denied)} → {rights.remedy(side, '+@read')}")
    return f"both ends cannot be compared: {'; '.join(parts)}" if parts else ""


def _sure(keys: SampleKeys) -> SampleKeys:
    return keys if keys.there else UNKNOWN


def _counts(denial: Denial, there: Sequence[bytes] | set[bytes]) -> bool:
    if denial.why is Why.KEY:
        return denial.fatal
    kind = _TYPE_READ.get(denial.needed.name)
    return kind is None or kind in there


async def _types(end: Admin, settings: TransferSettings, wanted: set[bytes]) -> set[bytes]:
    """Which of the wanted types some of the source's keys have, of those that are migrated."""
    there: set[bytes] = set()
    match, rules = settings.scan_match, settings.key_rules
    pattern: tuple[Arg, ...] = () if match is None else ("MATCH", match)
    if settings.key_type is not None:
        wanted = wanted & {settings.key_type.encode()}
    for db in moved_databases(await end.info(), settings):
        cursor: bytes | int = 0
        for _ in range(_PAGES):
            selected, page = await end.pipeline(
                [("SELECT", db), ("SCAN", cursor, "COUNT", _COUNT, *pattern)]
            )
            if isinstance(selected, EngineError) or not isinstance(page, list):
                break
            cursor, names = page
            kinds = await end.pipeline([("TYPE", name) for name in names])
            there |= {
                kind
                for name, kind in zip(names, kinds, strict=True)
                if isinstance(kind, bytes)
                and kind in wanted
                and (rules is None or rules.takes(db, name, type_number(kind.decode())))
            }
            if there == wanted or cursor == b"0":
                break
            await asyncio.sleep(0)
    return there
