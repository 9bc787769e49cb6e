"""Commands of the stream that lead elsewhere when they are applied again, and what is done then.

A source replicates what a command did, or the command itself. Neither says all: a replica of the
source's own version differs in some of these as well. The table below says, kind by kind, between
which ends a kind is not faithful, and what is read again from the source: the keys' values, or
their expire times alone. Which command is of which kind is said by the core's command table and,
where only the arguments tell, by `CommandBatch.doubtful`.

Where a TTL gets lost, only what has one on the target can lose it. Plain numbers are set all the
time, so the target is asked before they are applied (`transfer.which_have_ttls`):
`Doubts.if_timed`.

Kinds that may change keys which they do not name (a script that was sent as it is) have every key
compared before the cut-over, see `Doubts.unnamed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engine._native import (
    CMD_CHANCE,
    CMD_CLAIMS,
    CMD_MEMBER_TTL,
    CMD_MOVES,
    CMD_PLACES,
    CMD_SCRIPT,
    CMD_SETS_FIELDS,
    CMD_SETS_STRING,
    CMD_TIME,
    CMD_TTL,
    CMD_UNKNOWN,
    CommandBatch,
)
from engine.model.db_key import DbKey
from engine.model.server import ServerInfo
from engine.transfer.which_have_ttls import Timed

Condition = Callable[[ServerInfo, ServerInfo], bool]
# What may give a key, or a member of it, a TTL.
_TIMING = CMD_TTL | CMD_MEMBER_TTL | CMD_MOVES | CMD_SCRIPT | CMD_UNKNOWN


def _always(source: ServerInfo, target: ServerInfo) -> bool:
    return True


def _floats_lose_ttls(source: ServerInfo, target: ServerInfo) -> bool:
    return not source.capabilities.floats_keep_ttl


def _floats_lose_field_ttls(source: ServerInfo, target: ServerInfo) -> bool:
    able = source.capabilities
    return able.field_ttls and not able.floats_keep_field_ttl


def _claims_differ(source: ServerInfo, target: ServerInfo) -> bool:
    # The other way round no reading of a stream could be stored: its encoding is too new there.
    drops = source.capabilities.xclaim_drops_deleted, target.capabilities.xclaim_drops_deleted
    return drops == (False, True)


def _versions_differ(source: ServerInfo, target: ServerInfo) -> bool:
    return not source.same_version_as(target)


@dataclass(frozen=True, slots=True)
class Kind:
    """Commands with the flag `flag` of the command table, and none of the flags `unless`: between
    ends for which `where` holds, `again` is read of the keys that they change. `timed`: only if the
    key, or the field that they name, has a TTL on the target. `unnamed`: they may change other keys
    as well, and why."""

    flag: int
    where: Condition
    again: Literal["values", "ttls"]
    why: str
    timed: Literal["", "key", "field"] = ""
    unnamed: str = ""
    unless: int = 0


KINDS = (
    Kind(
        CMD_SETS_STRING,
        _floats_lose_ttls,
        "ttls",
        "Redis before 6.0 sends INCRBYFLOAT as SET, which takes the key's TTL away",
        timed="key",
    ),
    Kind(
        CMD_SETS_FIELDS,
        _floats_lose_field_ttls,
        "values",
        "Redis 7.4 to 8.2.2 sends HINCRBYFLOAT as HSET, which takes the field's TTL away",
        timed="field",
    ),
    Kind(
        CMD_CLAIMS,
        _claims_differ,
        "values",
        "from 7.0 on XCLAIM drops a pending entry that was deleted; before, it keeps it",
    ),
    Kind(
        CMD_PLACES,
        _versions_differ,
        "values",
        "Redis 6.0 finds others in wide circles than later versions do",
    ),
    Kind(
        CMD_SCRIPT,
        _always,
        "values",
        "a script runs again: chance, the order in a set, the clock and TTLs are the target's own",
        unnamed="the source sends scripts as they are (EVAL), and not what they wrote",
    ),
    Kind(
        CMD_TIME,
        _always,
        "values",
        "TS.INCRBY without a time takes the target's clock",
        # Graphs: RESTORE adds to the one that is there.
        unless=CMD_CHANCE,
    ),
    Kind(CMD_CHANCE, _always, "values", "each server draws for itself", unless=CMD_TIME),
    Kind(
        CMD_TTL,
        _always,
        "values",
        "a near TTL that was not extended ends before the command that extends it arrives",
    ),
)


@dataclass(frozen=True, slots=True)
class Doubts:
    """What a batch leaves in doubt: keys whose values, or expire times alone, are to be read again,
    as (database behind the batch, key); those of them that are only if they, or the named field,
    have a TTL on the target; and why any key may differ, or an empty text."""

    values: tuple[DbKey, ...] = ()
    ttls: tuple[DbKey, ...] = ()
    if_timed: tuple[Timed, ...] = ()
    unnamed: str = ""


class UnfaithfulCommands:
    """The kinds that are not faithful between two ends.

    `flags` is the sum of their flags, for `CommandBatch.doubtful`.
    """

    def __init__(self, source: ServerInfo, target: ServerInfo) -> None:
        self.kinds = tuple(kind for kind in KINDS if kind.where(source, target))
        self.flags = 0
        for kind in self.kinds:
            self.flags |= kind.flag

    def doubts(self, batch: CommandBatch) -> Doubts:
        """What `batch` leaves in doubt once it is applied."""
        values: dict[DbKey, None] = {}
        ttls: dict[DbKey, None] = {}
        if_timed: dict[Timed, None] = {}
        unnamed = ""
        timed_here: set[DbKey] | None = None
        for kind in self.kinds:
            if not batch.holds(kind.flag):
                continue
            where = values if kind.again == "values" else ttls
            for index in batch.doubtful(kind.flag):
                if batch.flags(index) & kind.unless:
                    continue
                keys = batch.changes(index) or []
                unnamed = unnamed or kind.unnamed
                if kind.timed and not batch.swaps:
                    if timed_here is None:
                        timed_here = _timed_by(batch)
                    (key,) = keys
                    if key not in timed_here:
                        field = batch.argument(index, 2) if kind.timed == "field" else None
                        if_timed[Timed(*key, field)] = None
                        continue
                where.update(dict.fromkeys(keys))
        return Doubts(tuple(values), tuple(ttls), tuple(if_timed), unnamed)


def _timed_by(batch: CommandBatch) -> set[DbKey]:
    """The keys that this batch itself may give a TTL, or their members one."""
    found: set[DbKey] = set()
    indices = [at for at in batch.indices(_TIMING) if not batch.flags(at) & CMD_SETS_STRING]
    for index in (*indices, *batch.rewritten):
        found.update(batch.changes(index) or ())
    return found
