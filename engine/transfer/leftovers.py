"""What a migration that ended without a cut-over has left on the target, and what becomes of it.

The end of a migration that failed, or was aborted, renames its position key (`LEFT_KEY`). What lies
there says which migration it was and whether the target had keys of its own before it
(`TargetPosition.held_before`). If it had none, the keys on the target are that migration's, unless
others have written there since, which no server tells. So a key is removed on the operator's word
alone (`--take-over`), and without it a start is refused where the target has a key that the source
does not have: that key would live on behind the cut-over. Where the source has each of them, every
one is overwritten, and both ends can be counted at the cut-over as if the target had been empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from engine._native import KeyRules
from engine.errors import AuthError, EngineError, ServerError
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import LEFT_KEY, OWN_PREFIX, POSITION_DB, POSITION_KEY
from engine.model.position import TargetPosition
from engine.model.report import printable_key
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, failed, own_keys, passed, warned
from engine.wire.control_connection import Admin, Arg, admin

NAME = "leftovers"
"""The check's name, to be skipped by."""
# More keys are not looked up at the source before a start: some ten seconds.
_LOOKED_UP_MOST = 500_000
_PAGE = 1000
# So many names are told, and so much of each.
_NAMED = 3
_NAME_MOST = 60
REMEDY = (
    "Start with --take-over: every key on the target is removed then, also those that others have "
    "written since. Or empty the target by hand. If its keys are wanted there, --skip-checks "
    f"{NAME} takes them for the target's own."
)


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What was found. `transfer` is the migration that ended; `keys` are those on the target now,
    the engine's own left out. `held_before`: it had keys of its own before that migration.
    `unknown` says why the keys were not looked up at the source, and is empty if they were; `extra`
    are then the first of those that the source does not have, as (database, name).
    """

    transfer: str
    keys: int
    held_before: bool
    unknown: str = ""
    extra: tuple[tuple[int, str], ...] = ()

    @property
    def words(self) -> str:
        """What is there, a part of a sentence."""
        text = f"the migration {self.transfer}, which was not completed, has left"
        if self.held_before:
            return f"{text} keys among those that the target had before"
        return f"{text} {self.keys:,} keys on the target, which was empty before"

    @property
    def in_the_way(self) -> str:
        """Why nothing starts without the operator's word; empty if nothing speaks against it."""
        if self.held_before or not self.keys:
            return ""
        if self.unknown:
            return f"{self.words}: {self.unknown}"
        if self.extra:
            names = ", ".join(f"'{name}' (database {db})" for db, name in self.extra)
            return f"{self.words}: the source does not have {names}"
        return ""


def token_of(source: Endpoint, target: Endpoint) -> str:
    """What a migration is called that is scanned, or read from a snapshot's file: the same for
    the engine that resumes."""
    ends = f"{source.rdb_path or source.address} {target.address}".lower()
    return f"scan-{hashlib.sha256(ends.encode()).hexdigest()[:16]}"


async def leave(target: Endpoint, token: str, held_before: bool, timeout: float) -> list[str]:
    """Say on the target that a migration without a position was not completed. What an operator
    has to know; never raises `EngineError`."""
    try:
        async with admin(target, timeout=timeout, fault="target") as end:
            await end.select(POSITION_DB)
            (found,) = await end.pipeline([("GET", POSITION_KEY)])
            if found is None:
                mark = TargetPosition(token, None, "", held_before=held_before)
                await end.call("SET", LEFT_KEY, mark.encode())
    except EngineError as exc:
        return [f"what this migration leaves on the target is not marked: {exc}"]
    return []


Source = Callable[[], AbstractAsyncContextManager[Admin]]


async def find(
    source: Source | None, target: Admin, settings: TransferSettings, mark: bytes = LEFT_KEY
) -> Leftovers | None:
    """Look at the target, and look its keys up at the source where that decides; None: no migration
    has left anything.

    `source` opens a connection, and is None for a file. `mark`: the key that says so. Connections
    are left in any database. Raises `LinkError`, `ServerError`, `AuthError`, and `ProtocolFault`
    for a mark of another form.
    """
    (found,) = await target.ask_in(POSITION_DB, ("GET", mark))
    if not isinstance(found, bytes):
        return None
    left = TargetPosition.decode(found)
    keyspace = (await target.info()).keyspace
    keys = sum(each.keys - (each.db == POSITION_DB) for each in keyspace)
    if left.held_before or not keys or settings.take_over:
        return Leftovers(left.transfer, keys, left.held_before)
    if source is None:
        return Leftovers(left.transfer, keys, False, "a file is not asked for each of them")
    if keys > _LOOKED_UP_MOST:
        why = "they are too many to look each up at the source"
        return Leftovers(left.transfer, keys, False, why)
    extra: list[tuple[int, str]] = []
    numbers = [each.db for each in keyspace if settings.takes_db(each.db)]
    async with source() as end:
        try:
            for db in numbers:
                async for name in _extra(end, target, db, settings.key_rules):
                    extra.append((db, printable_key(name)[:_NAME_MOST]))
                    if len(extra) == _NAMED:
                        return Leftovers(left.transfer, keys, False, extra=tuple(extra))
        except AuthError as refusal:
            return Leftovers(left.transfer, keys, False, refusal.message)
    return Leftovers(left.transfer, keys, False, extra=tuple(extra))


async def _extra(
    source: Admin, target: Admin, db: int, rules: KeyRules | None
) -> AsyncIterator[bytes]:
    """Names in this database of the target that the source does not have, of those that the rules
    may take."""
    await target.select(db)
    there = await source.has_database(db)
    cursor: Arg = 0
    while True:
        cursor, page = await target.call("SCAN", cursor, "COUNT", _PAGE)
        names = [key for key in page if not key.startswith(OWN_PREFIX)]
        names = names if rules is None else rules.chosen(db, names)
        has = [0] * len(names)
        if there:
            asked = [("EXISTS", key) for key in names]
            has = await source.pipeline(asked, raise_on_error=True)
        for key, count in zip(names, has, strict=True):
            if not count:
                yield key
        if cursor == b"0":
            return


def taken_over_words(settings: TransferSettings) -> str:
    """What a start with --take-over removes."""
    which = "at most those that the rules take, also those" if settings.rules else "them, and all"
    return f"The start removes {which} that others have written since: --take-over is given."


async def check_leftovers(source: Admin | None, target: Admin, settings: TransferSettings) -> Check:
    """The same as a check of the preflight."""
    opened: Source | None = None if source is None else lambda: nullcontext(source)
    try:
        found = await find(opened, target, settings)
    except (AuthError, ServerError) as refusal:
        return warned(
            NAME,
            refusal.message,
            "The engine could not look for keys that an earlier migration has left on the target: "
            "look for them yourself, and remove them"
            f"{own_keys(target, refusal)}.",
        )
    if found is None or not found.keys:
        return passed(NAME, "the target has no keys of a migration that was not completed")
    if found.held_before:
        return warned(
            NAME,
            found.words,
            "Those that the source has deleted since stay there: remove them by hand.",
        )
    if settings.take_over:
        return warned(NAME, found.words, taken_over_words(settings))
    if why := found.in_the_way:
        return failed(NAME, why, REMEDY)
    return passed(NAME, f"{found.words}: the source has each of them too, and overwrites it")
