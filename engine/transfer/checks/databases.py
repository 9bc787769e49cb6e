"""Which databases are moved, whether the target has them, and what is in them already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import AuthError, EngineError, ServerError
from engine.model.online_checkpoint import LEFT_KEY, POSITION_DB, POSITION_KEY
from engine.model.position import TargetPosition
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, failed, listed, own_keys, passed, warned
from engine.transfer.checks.cluster import own_keys_in
from engine.transfer.target_claim import foreign
from engine.wire.control_connection import Admin
from engine.wire.engine_key_count import OWN_DB, count_own


def moved_databases(source: ServerInfo, settings: TransferSettings) -> list[int]:
    """The databases that a transfer would read: those chosen, or those with keys; ascending."""
    if settings.databases is not None:
        chosen = sorted(set(settings.databases))
    else:
        chosen = [each.db for each in source.keyspace]
    return list(filter(settings.rules.takes_db, chosen))


async def check_chosen(source: Admin, info: ServerInfo, moved: list[int]) -> Check:
    """Whether the source has the databases that were chosen, and keys in them."""
    name = "chosen-databases"
    absent, _ = await _refused(source, moved)
    if absent:
        return failed(
            name,
            f"the source has no database {listed(absent)}",
            "Choose among those with keys: " + listed([each.db for each in info.keyspace]) + ".",
        )
    filled = {each.db: each.keys for each in info.keyspace}
    empty = [db for db in moved if db not in filled]
    if empty:
        return warned(
            name,
            f"no keys in database {listed(empty)} of the source",
            "With keys: " + listed(list(filled)) + ".",
        )
    return passed(name, "; ".join(f"database {db}: {filled[db]:,} keys" for db in moved))


async def check_room(target: Admin, moved: list[int], *, node: bool = False) -> Check:
    """Whether the target has a database for each one that is moved. `node`: it is a cluster's."""
    name = "databases"
    option = "cluster-databases" if node else "databases"
    # SELECT is what the transfer will do; CONFIG may be denied, and only adds the figure.
    absent, (reply,) = await _refused(target, moved, ("CONFIG", "GET", option))
    count = int(reply[1]) if isinstance(reply, list) and len(reply) == 2 else None
    if absent:
        has = f"no database {listed(absent)}"
        if count == 1 or (count is None and node):
            has += ", only database 0"
        elif count is not None:
            has += f", only those from 0 to {count - 1}"
        rules = " ".join(f"--exclude db:{db}" for db in absent)
        remedy = f"(it needs a restart), or leave them out: {rules}."
        if node:
            remedy = "(from Valkey 9.0 on; it needs a restart), or move these keys into database 0."
        return failed(
            name,
            f"to be moved: {listed(moved)}; the target has {has}",
            f"Raise `{option}` in the target's configuration {remedy}",
        )
    has = "enough" if count is None else str(count)
    return passed(name, f"to be moved: {listed(moved)}; the target has {has}")


async def check_free(target: Admin, settings: TransferSettings) -> Check:
    """Whether another migration, of whichever state, has the target."""
    name = "other-migration"
    try:
        (found,) = await target.ask_in(POSITION_DB, ("GET", POSITION_KEY))
    except (AuthError, ServerError) as refusal:
        rule = own_keys(target, refusal)
        return warned(
            name,
            refusal.message,
            f"Make sure yourself that no other migration has the target{rule}.",
        )
    target_position = TargetPosition.decode(found) if isinstance(found, bytes) else None
    if target_position is None or target_position.opened:
        return passed(name, "no other migration has the target")
    error = foreign(target_position, target.name)
    if settings.take_over:
        return warned(name, error.message, "It is ended (--take-over).")
    return failed(name, error.message, error.remedy)


async def check_existing(
    target: Admin,
    info: ServerInfo,
    moved: list[int],
    settings: TransferSettings,
    *,
    slot: int | None = None,
) -> Check:
    """Keys that the target holds where the source's will go; the engine's own are none of them.
    `slot`: where those are, on a cluster's node."""
    name = "existing-keys"
    own = await count_own(target) if slot is None else len((await own_keys_in(target, slot)).keys)
    keys = {each.db: each.keys - (own if each.db == OWN_DB else 0) for each in info.keyspace}
    target_position = {db: count for db, count in keys.items() if count > 0 and db in moved}
    total = sum(count for count in keys.values() if count > 0)
    if total and settings.take_over and await _emptied_first(target):
        which = (
            "at most those that the rules take are removed"
            if settings.rules
            else "they are removed, in all databases"
        )
        return warned(
            name,
            f"{_keys_in(keys)}; {which}, also those of other writers",
            "--take-over was given. Without it nothing is removed.",
        )
    if not target_position:
        where = f" ({total:,} in other databases, untouched)" if total else ""
        return passed(name, f"none in the databases that are moved{where}")
    meaning, remedy = {
        "replace": (
            "of the same name they are overwritten, else they stay",
            "Empty the target if they are not wanted; a scan with --if-exists skip spares them.",
        ),
        "skip": (
            "of the same name they stay, and the source's value is not migrated",
            "Empty the target if the source's values are wanted.",
        ),
        "fail": (
            "one of the same name with another value makes the transfer fail",
            "Empty the target, or choose --if-exists replace or skip.",
        ),
    }[settings.if_exists]
    if settings.rules:
        # Others' keys may be among them.
        remedy = "Remove those that the rules take if they are not wanted; no others are touched."
    return warned(name, f"{_keys_in(target_position)}; {meaning}", remedy)


def _keys_in(keys: Mapping[int, int]) -> str:
    counts = (f"{count:,} in database {db}" for db, count in keys.items() if count > 0)
    return "on the target: " + ", ".join(counts)


async def _emptied_first(target: Admin) -> bool:
    """Whether the target has another migration's mark, and was empty before that one: what takes
    it over empties it. Leaves database 0 chosen."""
    try:
        await target.select(POSITION_DB)
        marks = await target.pipeline([("GET", POSITION_KEY), ("GET", LEFT_KEY)])
        found = [TargetPosition.decode(mark) for mark in marks if isinstance(mark, bytes)]
    except EngineError:
        return False  # other checks say so
    open_ones = [each for each in found if not each.opened]
    return bool(open_ones) and not open_ones[0].held_before


async def _refused(
    end: Admin, numbers: list[int], *others: tuple[str, ...]
) -> tuple[list[int], list[Any]]:
    """Those of `numbers` that SELECT does not take, and the replies to `others`; database 0 is
    chosen afterwards.

    Rights are another check's business: a SELECT that is not allowed says nothing here.
    """
    selects = [("SELECT", db) for db in numbers]
    replies = await end.pipeline([*selects, ("SELECT", 0), *others])
    refused = [
        db
        for db, reply in zip(numbers, replies, strict=False)
        if isinstance(reply, ServerError) and not isinstance(reply, AuthError)
    ]
    return refused, replies[len(selects) + 1 :]
