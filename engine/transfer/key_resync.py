"""Keys that the stream's own commands cannot bring over: read again from the source, and stored.

Invariant. A key is *dirty* from the moment when the target's copy may differ from what the stream
says, until a *reading* of it is stored. A reading is taken from the source in one MULTI, with the
source's offset O: value and expire time are those that the stream's commands up to O lead to. It is
stored on the target behind exactly the commands up to O, in the same transaction as the position O;
what comes behind O applies to it as it does on the source.

Between its becoming dirty and O a dirty key may be read by a command that writes another one
(RENAME, SUNIONSTORE, COPY, a script's effect): what such a command may change becomes dirty in
turn, and is read again. Which keys a command reads and which it changes the core's table says
(`ext/command_table.pxi`); where a dirty key is only written, the others stay clean. It converges,
because a reading ends its key's dirtiness for good unless a command between (the moment of
reading, O] derives it from another dirty key.

Dirtiness outlives us. Invariant: a key whose copy may differ from what the stream says at the
target's position is named in a set on the target (`dirty_key`), or by one of the last transaction's
commands, which the position knows where to find (`TargetPosition.since`). So names are added in the
transaction that makes keys dirty where that is known before, else in the next one, once the answer
was read; and a name is taken out behind the transaction that stored the key, once its answer said
that it did.

A key that the target *refused* (of a type that it does not know, say) stays dirty, but is read
again only when a command names it, and not more often than once in `_AGAIN_SECONDS`: reading it
costs the source as much as before, and may bring nothing as before. What reads it is marked dirty,
as by any dirty key. It is off the list when a reading is stored, be it that the source has it no
more. Until then no command that names it is applied (`left_out_of`), for it would write a fragment:
SADD of one member makes a set of one where the source has a thousand. The list is bounded; what
does not fit is not watched, and stays refused until the next full sync, so that the target is not
opened.

A value that is longer than the target takes in one argument is made there by commands, under a name
of the engine's own, before the transaction that gives it its key's name (`rebuild`). One at a time:
others of a reading stay dirty. Where the target does not take it just now, or that name is gone by
then, its key stays dirty, and is read again behind a pause that grows (`_Unmade`); behind some such
tries it counts as refused, and is read again besides every `_UNMADE_REFUSED_SECONDS`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine._native import CommandBatch, RestoreEncoder, encode_command, is_telemetry, key_slot
from engine.errors import EngineError, LinkError, ProtocolFault, ServerError
from engine.model.db_key import DbKey, placed
from engine.model.modules import HEAD_BYTES
from engine.model.online_checkpoint import POSITION_DB
from engine.model.report import NAMED_KEYS_LIMIT, printable_key
from engine.model.server import ServerInfo
from engine.model.slots import ALL_SLOTS, SlotSet
from engine.model.transient_errors import OF_SLOT
from engine.targets.crashing_values import CrashSuspects
from engine.targets.known_forms import too_long_words
from engine.transfer.keys_of_unknown_commands import UnknownCommands
from engine.transfer.keys_with_extended_ttls import ExtendedKeys
from engine.transfer.primary_reads import PrimaryReads
from engine.transfer.timeseries_rules import is_series, latest, related, rules_again
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT
from engine.wire.control_connection import Admin, Arg
from engine.wire.info_command import replication_in

# Keys and bytes in one reading, whose MULTI holds the source's other clients up. What a round trip
# brings decides whether dirty keys become fewer while others are derived from them: so the number
# of keys goes by the size of those before.
_FIRST_AT_ONCE = 50
_MOST_AT_ONCE = 500
_BYTES_AT_ONCE = 1 << 20
_TTLS_AT_ONCE = 500
_HURRIED_AT_ONCE = 500
# Names in one command that keeps the set on the target.
_NAMES_AT_ONCE = 1000
# A refused key that is written to all the time is read again at most so often.
_AGAIN_SECONDS = 1.0
# How long it is waited for a slot that is not on the target's node before its keys are read again.
_POSTPONED_SECONDS = 0.5
# From one try to make a value by commands to the next: at first, at the most, and where the writers
# are paused; how many there are until its key is refused; and when that is tried again.
_UNMADE_SECONDS = 0.5
_UNMADE_MOST_SECONDS = 60.0
_UNMADE_TRIES = 10
_UNMADE_REFUSED_SECONDS = 600.0
_GONE_WORDS = "it was gone before its rename to the key: it had expired, or the target evicted it"
# Commands that leave nothing of a key.
_DELETES = frozenset({b"DEL", b"UNLINK"})
# What a name in the set says is to be read: the value, the expire time; nothing, before it is
# named.
_VALUE, _TTL, _REFUSED = b"v", b"d", b"n"

Extra = tuple[int, bytes]
Store = tuple[int, bytes, bytes, int | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the source had at `offset` of the stream named `history` (empty: it does not tell).

    Of each key: (db, key, the command that stores it, its value's RDB type or None).
    `values`: the keys' values, not their expire times alone. `unfit`: keys whose values the target
    must not get: (db, key, why, bytes). `left`: keys that every server makes for itself.
    """

    offset: int
    stores: tuple[Store, ...]
    values: bool
    history: str = ""
    unfit: tuple[tuple[int, bytes, str, int], ...] = ()
    left: tuple[DbKey, ...] = ()

    @property
    def keys(self) -> list[DbKey]:
        """Every key that was read."""
        named = [(db, key) for db, key, *_ in (*self.stores, *self.unfit)]
        return list(dict.fromkeys((*named, *self.left)))


@dataclass(slots=True)
class _Unmade:
    """A value that could not be made by commands `at` this moment: `why`, and how often so."""

    at: float
    why: str
    tries: int

    @property
    def pause(self) -> float:
        """Seconds from then on until its key is read again."""
        return min(_UNMADE_SECONDS * 2.0 ** (self.tries - 1), _UNMADE_MOST_SECONDS)

    @property
    def given_up(self) -> bool:
        """Whether its key is refused."""
        return self.tries >= _UNMADE_TRIES


class KeyResync:
    """The dirty keys, and the readings that wait for their offset.

    `source` is a connection of the control plane to the server that takes the writes; `encoder`
    stamps payloads for the target, which takes values of `bulk_limit` bytes at the most;
    `names_key` holds the dirty keys' names there; `suspects` knows the keys whose values must not
    be sent, as its process ended at them; `extended` extends TTLs on their way. `by_slot`: the
    source is a cluster's node, where MULTI takes keys of one slot; then a reading has those of one.
    """

    def __init__(
        self,
        source: Admin | PrimaryReads,
        info: ServerInfo,
        encoder: RestoreEncoder,
        names_key: bytes,
        bulk_limit: int = DEFAULT_BULK_LIMIT,
        suspects: CrashSuspects | None = None,
        extended: ExtendedKeys | None = None,
        stream: Callable[[], str] = str,
        by_slot: bool = False,
    ) -> None:
        self._by_slot = by_slot
        self._source = source
        self._stream = stream
        self._unknown = UnknownCommands(source)
        self._encoder = encoder
        self._names_key = names_key
        self._extended = extended or ExtendedKeys()
        self._suspects = suspects or CrashSuspects(lambda _: None)
        self._absolute = info.capabilities.pexpiretime
        self._values: dict[DbKey, None] = {}
        self._ttl_guard: dict[DbKey, None] = {}
        # Refused by the target; and those of them that a command has named since.
        self._refused: dict[DbKey, None] = {}
        self._named_again: dict[DbKey, None] = {}
        # Refused, and no reading stored since: what `_refused` holds, those named since included.
        self._absent: dict[DbKey, None] = {}
        self._again_at = 0.0
        # Those whose slot was not at the node that they are read from, or stored at.
        self._elsewhere: dict[DbKey, None] = {}
        self._postponed_until = 0.0
        self.bulk_limit = bulk_limit
        """Bytes of the longest argument that the target takes."""
        self._readings: list[Reading] = []
        self._at_once = _FIRST_AT_ONCE
        self._unnoted: list[bytes] = []
        self._settled: list[tuple[DbKey, bytes]] = []
        self._strays: list[Extra] = []
        self.hurried = False
        """The source's writers are paused anyway: a reading may be larger, for each costs them a
        round trip."""
        self.rebuild: Callable[[int, bytes, int, bytes], Awaitable[list[bytes] | str]] | None = None
        """Makes a value on the target by commands: of the database, key, expire time (-1: none) and
        payload; gives the commands, encoded, that store it, or why none can. Raises as `read`."""
        # Of one reading: no more of its values is made by commands.
        self._rebuilding = False
        self._unmade: dict[DbKey, _Unmade] = {}
        # Of the values of a reading, as they came.
        self._payload_bytes = 0
        self.on_trouble: Callable[[str], None] = lambda text: None
        """Told why a value cannot be made by commands for now; empty: all can."""
        self.on_left: Callable[[int, bytes], None] = lambda db, key: None
        """Told of keys that every server makes for itself, which are not stored."""
        self.on_loss: Callable[[int, bytes, int], None] = lambda db, key, lost: None
        """Told of keys whose values are stored with losses (bits of `model.carried_with_loss`)."""
        self.repaired = 0
        """Keys whose value was read again and stored."""
        self.resynced_keys = 0
        """The same, and those of which the expire time alone was."""

    @property
    def clean(self) -> bool:
        """Whether the target holds nothing that differs from the stream, refused keys aside, and
        the set says so."""
        return self._resynced and not self._settled

    @property
    def nothing_dirty(self) -> bool:
        """As `clean`, but for the set, which may still name keys that are mended."""
        return self._resynced

    @property
    def _resynced(self) -> bool:
        return not (self._values or self._ttl_guard or self._readings)

    @property
    def at_rest(self) -> bool:
        """Whether the stream can pass by without a look: nothing is dirty, or refused, or to be
        noted."""
        # In one look: it is asked for with every batch.
        dirty = self._values or self._ttl_guard or self._readings or self._settled
        return not (dirty or self._unnoted or self._refused or self._named_again)

    @property
    def waiting(self) -> int:
        """Keys that are not mended yet."""
        reading = sum(len(reading.stores) for reading in self._readings)
        return len(self._values) + len(self._ttl_guard) + reading

    @property
    def to_read(self) -> bool:
        """Whether a reading could be taken: one at a time is under way."""
        if self._unmade:
            self.mark_dirty(self._unmade_refused())
        if self._named_again and time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + _AGAIN_SECONDS
            self._values.update(self._named_again)
            self._named_again.clear()
        if self._readings or time.monotonic() < self._postponed_until:
            return False
        return bool(self._ttl_guard) or self._values_to_read

    @property
    def _values_to_read(self) -> bool:
        return len(self._values) > len(self._held_back())

    def _held_back(self) -> set[DbKey]:
        """The keys whose values are not read for a moment, as the target did not take them."""
        if not self._unmade:
            return set()
        now = time.monotonic()
        return {
            key
            for key, each in self._unmade.items()
            if key in self._values and now < self._due(each)
        }

    def _due(self, each: _Unmade) -> float:
        return each.at + (min(each.pause, _UNMADE_SECONDS) if self.hurried else each.pause)

    def _unmade_refused(self) -> list[DbKey]:
        """Those that are refused for that, and may be taken by now."""
        before = time.monotonic() - _UNMADE_REFUSED_SECONDS
        return [
            key for key, each in self._unmade.items() if key in self._refused and each.at <= before
        ]

    def _not_made(self, key: DbKey, why: str) -> bool:
        """This key's value could not be made by commands: it stays dirty. False: it was tried often
        enough."""
        former = self._unmade.get(key)
        tries = 1 if former is None else min(former.tries + 1, _UNMADE_TRIES)
        self._unmade = {each: of for each, of in self._unmade.items() if self.knows(each)}
        now = self._unmade[key] = _Unmade(time.monotonic(), why, tries)
        self._show_unmade()
        return not now.given_up

    def _made(self, key: DbKey) -> None:
        if self._unmade.pop(key, None) is not None:
            self._show_unmade()

    def _show_unmade(self) -> None:
        waits = ((key, each) for (_, key), each in self._unmade.items() if not each.given_up)
        key, each = next(waits, (b"", None))
        self.on_trouble(
            ""
            if each is None
            else f"the value of the key '{printable_key(key)[:80]}', which is longer than the "
            f"target takes in one argument, could not be made there by commands: {each.why}; "
            f"again in {each.pause:g} s"
        )

    @property
    def again_in(self) -> float | None:
        """Seconds until keys may be read again that were refused and named since, or postponed;
        None: there are none."""
        now, due = time.monotonic(), []
        if self._named_again:
            due.append(self._again_at)
        if now < self._postponed_until and (self._values or self._ttl_guard):
            due.append(self._postponed_until)
        elif self._unmade:
            due += [self._due(self._unmade[key]) for key in self._held_back()]
        return max(min(due) - now, 0.0) if due else None

    def mark_dirty(self, keys: Iterable[DbKey]) -> None:
        """These keys may differ: they are to be read again."""
        for key in keys:
            if key in self._refused:
                del self._refused[key]
                self._named_again[key] = None
                self._unnoted.append(_name(key, _VALUE))
            elif key not in self._named_again:
                self._add(self._values, key, _VALUE)

    def mark_ttls_dirty(self, keys: Iterable[DbKey]) -> None:
        """Of these keys the expire time alone may differ."""
        for key in keys:
            self._add(self._ttl_guard, key, _TTL)

    def refuse(self, key: DbKey) -> None:
        """The target does not take this key's value: it stays as it is until a command names it."""
        if len(self._refused) + len(self._named_again) >= NAMED_KEYS_LIMIT:
            return
        if key in self._unmade and not self._unmade[key].given_up:
            # It is refused for another reason.
            self._made(key)
        self._absent[key] = None
        self._unnoted.append(_name(key, _REFUSED))
        if key in self._values:
            # A command has named it since that reading: it waits as if that came a moment later.
            del self._values[key]
            self._named_again[key] = None
            self._unnoted.append(_name(key, _VALUE))
        else:
            self._refused[key] = None

    def read_once_more(self, key: DbKey) -> str:
        """What was to be stored of this key is gone: it stays dirty, and nothing is read for a
        moment. Or why not, where that has been tried often enough."""
        if not self._not_made(key, _GONE_WORDS):
            return _GONE_WORDS
        self._postponed_until = time.monotonic() + _POSTPONED_SECONDS
        self.mark_dirty([key])
        return ""

    def postpone(self, key: DbKey) -> None:
        """The target's node does not have this key's slot now: it stays dirty, and nothing is read
        for a moment."""
        self._elsewhere[key] = None
        self._postponed_until = time.monotonic() + _POSTPONED_SECONDS
        self.mark_dirty([key])

    @property
    def elsewhere(self) -> str:
        """Why keys stay dirty whose slots are not where they were, in words; empty: there are
        none."""
        if not self._elsewhere:
            return ""
        _, first = next(iter(self._elsewhere))
        several = f" and {len(self._elsewhere) - 1:,} more" if len(self._elsewhere) > 1 else ""
        return (
            f"the slot of the key '{printable_key(first)}'{several} is being moved, or is another "
            "node's by now"
        )

    def allow(self, bulk_limit: int) -> None:
        """The target takes arguments of so many bytes from now on. What it has refused is read
        again if it takes longer ones than before."""
        raised, self.bulk_limit = bulk_limit > self.bulk_limit, bulk_limit
        if raised:
            self.read_refused()

    def read_refused(self) -> None:
        """The target may take by now what it has refused: all of that is read again."""
        self.mark_dirty(tuple(self._refused))

    @property
    def refused(self) -> frozenset[DbKey]:
        """The keys that the target refused and nothing has named since."""
        return frozenset(self._refused)

    def knows(self, key: DbKey) -> bool:
        """Whether this key is dirty or refused."""
        return key in self._values or self._is_refused(key)

    def _is_refused(self, key: DbKey) -> bool:
        return key in self._refused or key in self._named_again

    def awaited(self, keys: Iterable[DbKey]) -> set[DbKey]:
        """Those of which the value, or the expire time, on the target is going to be another
        one."""
        read = {key for reading in self._readings for key in reading.keys}
        return {key for key in keys if key in read or key in self._ttl_guard or self.knows(key)}

    def take_up(self, names: Iterable[bytes], slots: SlotSet = ALL_SLOTS) -> None:
        """The names that an engine before us left in the set. Keys of others than `slots` are
        another lane's by now, which has read them again since they are."""
        for name in names:
            db, kind, rest = name.split(b" ", 2)
            key = int(db), rest
            if slots is not ALL_SLOTS and key_slot(rest) not in slots:
                self._settled += [(key, each) for each in (_VALUE, _TTL, _REFUSED)]
                continue
            if kind == _REFUSED:
                self._absent[key] = None
            if kind == _VALUE:
                self._values[key] = None
                self._refused.pop(key, None)
            elif kind == _TTL:
                self._ttl_guard[key] = None
            elif key not in self._values:
                self._refused[key] = None

    # --- The set of names ---

    @staticmethod
    def names_of(keys: Iterable[DbKey], *, refused: bool = False) -> list[bytes]:
        """How keys whose values are to be read again are named in the set; `refused`: keys that
        the target has refused."""
        return [_name(key, _REFUSED if refused else _VALUE) for key in keys]

    @property
    def unnoted(self) -> bool:
        """Whether the set is to be brought up to date: with new names soon, with those that are
        over when there is nothing else to do."""
        return bool(self._unnoted or (self._resynced and self._settled))

    def notes(self) -> list[Extra]:
        """Commands that bring the set up to what has changed since `noted`."""
        gone = [_name(key, kind) for key, kind in self._settled if not self._is_named(key, kind)]
        return [
            *self._strays,
            *self._commands(b"SREM", gone),
            *self._commands(b"SADD", self._unnoted),
        ]

    def noted(self) -> None:
        """The commands of `notes` were applied."""
        self._unnoted.clear()
        self._settled.clear()
        self._strays.clear()

    def note_again(self) -> None:
        """The set may be gone (FLUSHALL, SWAPDB): all of it is to be written anew."""
        names = [_name(key, _VALUE) for key in (*self._values, *self._named_again)]
        names += [_name(key, _TTL) for key in self._ttl_guard]
        names += [_name(key, _REFUSED) for key in self._absent]
        for reading in self._readings:
            kind = _VALUE if reading.values else _TTL
            names += [_name(key, kind) for key in reading.keys]
        self._unnoted = names

    def _is_named(self, key: DbKey, kind: bytes) -> bool:
        """Whether the set has to hold this name."""
        if kind == _REFUSED:
            return key in self._absent
        values = kind == _VALUE
        if values and (key in self._values or key in self._named_again):
            return True
        if not values and key in self._ttl_guard:
            return True
        return any(reading.values == values and key in reading.keys for reading in self._readings)

    def _add(self, where: dict[DbKey, None], key: DbKey, kind: bytes) -> None:
        if key not in where:
            where[key] = None
            self._unnoted.append(_name(key, kind))

    def _commands(self, command: bytes, names: Sequence[bytes]) -> list[Extra]:
        return [
            (
                POSITION_DB,
                encode_command(command, self._names_key, *names[at : at + _NAMES_AT_ONCE]),
            )
            for at in range(0, len(names), _NAMES_AT_ONCE)
        ]

    # --- The stream passes by ---

    def move(self, batch: CommandBatch) -> None:
        """From now on keys are named by the databases that they are in behind this batch."""
        swaps = batch.swaps
        for one, other in swaps:
            if POSITION_DB in (one, other) and one != other:
                # The set went to the other database, and is written anew in ours. It may hold names
                # although nothing is dirty any more: those are taken out with the next transaction.
                stray = other if one == POSITION_DB else one
                self._strays.append((stray, encode_command(b"DEL", self._names_key)))
            self._suspects.swap(one, other)
        if self._resynced and not self._refused and not self._named_again:
            return
        for one, other in swaps:
            self._swap(one, other)
        self._swap_readings(swaps)
        if batch.flushes:
            # Which of the refused keys are gone by that, the source knows.
            self.mark_dirty(tuple(self._refused))
        if swaps or batch.flushes:
            self.note_again()

    async def spread(self, batch: CommandBatch) -> None:
        """Spread dirtiness from keys to those that the batch's commands derive from them.

        A key that a command only writes does not make the others dirty that it names; a refused
        key that is named is to be read again. Raises `LinkError`, `AuthError` where the source has
        to be asked for keys.
        """
        if self._resynced and not self._refused and not self._named_again:
            return
        # An expire time goes along where its key goes, and nowhere else.
        self.mark_ttls_dirty(batch.derived(self._dirty_ttls(batch), True)[0])
        keys, unknown = batch.derived(self._dirty(batch))
        self.mark_dirty(keys)
        if unknown:
            # Whatever these read: what they may have changed is dirty, and what is derived of it.
            self.mark_dirty(await self._unknown_keys(batch, unknown))
            self.mark_dirty(batch.derived(self._dirty(batch))[0])
        if self._refused:
            for index in batch.mentioning({key for _, key in self._refused}):
                named = placed(batch.db(index), batch.keys(index) or (), batch.swaps)
                self.mark_dirty(self._refused.keys() & named)

    async def left_out_of(self, batch: CommandBatch) -> dict[int, list[DbKey]]:
        """The commands that must not be applied because they name a key that the target refused:
        their indices, with the keys that they change.

        Commands that only delete are applied: they leave no fragment.
        """
        if not self._absent:
            return {}
        swaps, found = batch.swaps, {}
        hits = [
            index
            for index in batch.mentioning({key for _, key in self._absent})
            if batch.argument(index, 0).upper() not in _DELETES
        ]
        for index in hits:
            named = placed(batch.db(index), batch.keys(index) or (), swaps)
            changed = await self.keys_of(batch, index) or []
            if not self._absent.keys().isdisjoint([*named, *changed]):
                found[index] = changed
        return found

    def _dirty(self, batch: CommandBatch) -> list[DbKey]:
        """The keys that differ, or may, with the databases that they are in behind the batch."""
        return [*self._values, *self._named_again, *self._refused, *self._under_way(batch, True)]

    def _dirty_ttls(self, batch: CommandBatch) -> list[DbKey]:
        """The same of keys whose expire times alone differ, or may."""
        return [*self._ttl_guard, *self._under_way(batch, False)]

    def _under_way(self, batch: CommandBatch, values: bool) -> list[DbKey]:
        """The keys in readings that are not stored yet."""
        found: list[DbKey] = []
        for reading in self._readings:
            if reading.values is values:
                for db, key in reading.keys:
                    # Its databases are those at its offset, before some of the swaps or behind all.
                    found += placed(db, (key,), batch.swaps)
        return found

    async def keys_of(
        self, batch: CommandBatch, index: int, *, elsewhere: bool = False
    ) -> list[DbKey] | None:
        """The keys that this command of the batch may change; None: not even the source can tell.
        Only those of the lane, or, of an unknown command, those that are `elsewhere` as well.

        Raises as `spread`.
        """
        keys = batch.changes(index)
        if keys is not None:
            return keys
        (named,) = await self._unknown.keys([batch.command(index)])
        if named is None:
            return None
        found = placed(batch.db(index), named, batch.swaps)
        return found if elsewhere else batch.within(found)

    async def keys_in(self, batch: CommandBatch) -> list[DbKey]:
        """Every key that the batch may change. Raises as `spread`."""
        keys, unknown = batch.changed()
        return keys + await self._unknown_keys(batch, unknown)

    async def _unknown_keys(self, batch: CommandBatch, indices: Sequence[int]) -> list[DbKey]:
        """The keys of commands that the table does not have."""
        if not indices:
            return []
        found: list[DbKey] = []
        asked = await self._unknown.keys([batch.command(index) for index in indices])
        for index, keys in zip(indices, asked, strict=True):
            found += placed(batch.db(index), keys or (), batch.swaps)
        return batch.within(found)

    def _swap_readings(self, swaps: Sequence[tuple[int, int]]) -> None:
        """A reading that is not stored yet was taken by numbers of databases which may be those
        behind the swap: then its keys' old copies are in the other database, and not read."""
        for reading in self._readings:
            moved = [
                place
                for db, key in reading.keys
                for place in placed(db, (key,), swaps)
                if place[0] != db
            ]
            if reading.values:
                self.mark_dirty(moved)
            else:
                self.mark_ttls_dirty(moved)

    def _swap(self, one: int, other: int) -> None:
        swap = {one: other, other: one}
        lists = self._values, self._ttl_guard, self._refused, self._named_again, self._absent
        self._unmade = {(swap.get(db, db), key): v for (db, key), v in self._unmade.items()}
        for where in lists:
            moved = [(swap.get(db, db), key) for db, key in where]
            where.clear()
            where.update(dict.fromkeys(moved))
        # The numbers in a reading are those at its offset, which is where it is stored.

    # --- Readings ---

    async def read(self) -> None:
        """Take a reading of some dirty keys. Raises `LinkError`, `ServerError`, `AuthError`."""
        if self.hurried:
            # A value's reading brings its expire time as well.
            for key in self._ttl_guard:
                self._values.setdefault(key)
            self._ttl_guard.clear()
            await self._take(self._values, _HURRIED_AT_ONCE, values=True)
        elif self._values_to_read:
            await self._take(self._values, self._at_once, values=True)
        elif self._ttl_guard:
            await self._take(self._ttl_guard, _TTLS_AT_ONCE, values=False)

    def due(self, offset: int) -> list[Reading]:
        """The readings that belong behind `offset` or before it."""
        self._drop_of_others()
        return [reading for reading in self._readings if reading.offset <= offset]

    def _drop_of_others(self) -> None:
        """Readings of a history that is not followed any more have no place in the one that is:
        their keys are read again."""
        history = self._stream()
        for reading in self._readings if history else ():
            if reading.history in ("", history):
                continue
            self._readings = [each for each in self._readings if each is not reading]
            if reading.values:
                self.mark_dirty(reading.keys)
            else:
                self.mark_ttls_dirty(reading.keys)

    @property
    def next_offset(self) -> int | None:
        """Where the next reading belongs."""
        return min((reading.offset for reading in self._readings), default=None)

    def stored(self, readings: Iterable[Reading], *, seen: bool = True) -> None:
        """These readings are on the target, but for the keys that it has refused by now.

        `seen`: the target has answered, so that all those are known.
        """
        for reading in readings:
            self._readings.remove(reading)
            self.resynced_keys += len(reading.keys)
            for key in reading.keys if self._elsewhere else ():
                if key not in self._values:
                    self._elsewhere.pop(key, None)
            if reading.values and seen:
                for key in reading.keys:
                    if not self._is_refused(key):
                        self._absent.pop(key, None)
            for key in reading.keys if reading.values and self._unmade else ():
                if not self.knows(key):
                    self._made(key)
            # A value came with its expire time.
            kinds = (_VALUE, _REFUSED, _TTL) if reading.values else (_TTL,)
            self._settled += [(key, kind) for key in reading.keys for kind in kinds]
            if reading.values:
                self.repaired += sum(not self._is_refused(key) for key in set(reading.keys))

    async def _take(self, where: dict[DbKey, None], most: int, *, values: bool) -> None:
        self._rebuilding, self._payload_bytes = False, 0
        held_back = self._held_back() if values else set()
        keys = [*itertools.islice((key for key in where if key not in held_back), most)]
        if len(where) <= most:
            keys.sort()
        if not keys:
            return
        if self._by_slot:
            readings = await self._read_slots(keys, values=values)
        else:
            readings = [await self._read(keys, values=values)]
        for key in (key for reading in readings for key in reading.keys):
            where.pop(key, None)
        self._readings += readings
        if values:
            # Also those that are not stored, or by other commands than one with all of it.
            fitting = _BYTES_AT_ONCE * len(keys) // max(self._payload_bytes, 1)
            self._at_once = min(max(fitting, 1), max(self._at_once, 2 * len(keys)), _MOST_AT_ONCE)

    async def _read_slots(self, keys: Sequence[DbKey], *, values: bool) -> list[Reading]:
        """A reading for each slot, in one round trip; none of one that is not at this node now:
        its keys stay dirty."""
        slots: dict[int, list[DbKey]] = {}
        for key in keys:
            slots.setdefault(key_slot(key[1]), []).append(key)
        groups = list(slots.values())
        asked = [self._questions(group, (), values) for group in groups]
        commands = [each for questions, _ in asked for each in (("MULTI",), *questions, ("EXEC",))]
        replies, readings = iter(await self._source.pipeline(commands)), []
        moved = False
        for group, (questions, places) in zip(groups, asked, strict=True):
            *queued, done = itertools.islice(replies, len(questions) + 2)
            if any(isinstance(each, ServerError) and each.code in OF_SLOT for each in queued):
                self._elsewhere.update(dict.fromkeys(group))
                self._postponed_until = time.monotonic() + _POSTPONED_SECONDS
                moved = True
                continue
            taken = await self._taken(group, (), questions, places, done, values, True)
            # Series are read with what their rules tie to them.
            reading = await self._read(group, values=values) if taken[1] else taken[0]
            readings.append(reading)
        if moved:
            # Perhaps not the slot has gone, but the shard's primary is another node.
            await self._source.close()
        return readings

    async def _read(self, keys: Sequence[DbKey], *, values: bool) -> Reading:
        """Time series are read together with those that their rules tie to them: the value that
        DUMP gives lacks the rules, so they are made again."""
        keys, series = list(keys), set[DbKey]()
        while True:
            try:
                reading, found, tied = await self._read_once(keys, series, values=values)
            except ServerError as exc:
                if not series or exc.code != "EXECABORT":
                    raise
                # The source's user may not ask for rules: without them no series is whole.
                reading, *_ = await self._read_once(keys, (), values=values, rules=False)
                return reading
            if found <= series and tied <= set(keys):
                return reading
            series |= found
            keys += sorted(tied - set(keys))

    async def _read_once(
        self,
        keys: Sequence[DbKey],
        series: Collection[DbKey],
        *,
        values: bool,
        rules: bool = True,
    ) -> tuple[Reading, set[DbKey], set[DbKey]]:
        """The reading; which keys are time series; and which keys belong to those in `series`."""
        asked, places = self._questions(keys, series, values)
        *_, replies = await self._source.pipeline([("MULTI",), *asked, ("EXEC",)])
        return await self._taken(keys, series, asked, places, replies, values, rules)

    def _questions(
        self, keys: Sequence[DbKey], series: Collection[DbKey], values: bool
    ) -> tuple[list[tuple[Arg, ...]], list[int]]:
        """What is asked in a transaction for a reading of `keys`, and where each one's replies
        begin."""
        ttl = "PEXPIRETIME" if self._absolute else "PTTL"
        asked: list[tuple[Arg, ...]] = [("TIME",), ("INFO", "replication")]
        places: list[int] = []
        db_now: int | None = None
        for db, key in keys:
            if db != db_now:
                asked.append(("SELECT", db))
                db_now = db
            places.append(len(asked))
            asked.append((ttl, key))
            if values:
                asked.append(("DUMP", key))
            if (db, key) in series:
                asked += [("TS.INFO", key), latest(key)]
        return asked, places

    async def _taken(
        self,
        keys: Sequence[DbKey],
        series: Collection[DbKey],
        asked: Sequence[Sequence[Arg]],
        places: Sequence[int],
        replies: Any,
        values: bool,
        rules: bool,
    ) -> tuple[Reading, set[DbKey], set[DbKey]]:
        """As `_read_once`, of EXEC's reply."""
        if isinstance(replies, EngineError):
            raise replies
        if not isinstance(replies, list) or len(replies) != len(asked):
            raise ProtocolFault(
                f"{self._source.name}: EXEC answered with something else than {len(asked)} replies",
                fault="source",
            )
        seconds, micros = (int(part) for part in replies[0])
        now = seconds * 1000 + micros // 1000
        told = replication_in(self._source, replies[1])
        if isinstance(self._source, PrimaryReads):
            await self._source.refuse_demoted(told)
        history = self._stream()
        if history and told.replid and told.replid != history:
            # What is dialled by this name now may be another server.
            await self._source.close()
            raise LinkError(
                f"{self._source.name} has another replication history than the stream that is "
                "followed: there was a failover",
                fault="source",
            )
        offset = told.offset
        stores: list[Store] = []
        unfit: list[tuple[int, bytes, str, int]] = []
        left: list[DbKey] = []
        found, tied = set[DbKey](), set[DbKey]()
        again: list[Store] = []
        for (db, key), place in zip(keys, places, strict=True):
            expire_at = replies[place]
            if not isinstance(expire_at, int):
                raise ProtocolFault(
                    f"{self._source.name} answered a TTL with something else than an integer",
                    fault="source",
                )
            if expire_at >= 0:
                expire_at += 0 if self._absolute else now
                expire_at = self._extended.extend((db, key), expire_at)
            payload = replies[place + 1] if values else b""
            if isinstance(payload, Exception):
                raise ServerError(f"{self._source.name} answered DUMP with: {payload}")
            if isinstance(payload, bytes) and self._is_telemetry(key, payload):
                left.append((db, key))
                self.on_left(db, key)
                continue
            left_out = self._suspects.left_out.get((db, key), "")
            if isinstance(payload, bytes):
                size = len(payload)
                self._payload_bytes += size
                payload, lost, why = self._rewritten(payload)
                if (
                    self.rebuild is not None
                    and not left_out
                    and (why or len(payload) > self.bulk_limit)
                ):
                    if self._rebuilding:
                        continue
                    try:
                        made = await self.rebuild(db, key, expire_at, payload)
                    except (LinkError, ServerError) as exc:
                        if isinstance(exc, ServerError) and exc.code in OF_SLOT:
                            self.postpone((db, key))
                            continue
                        # Others would wait as long for a target that does not answer.
                        self._rebuilding = isinstance(exc, LinkError)
                        if self._not_made((db, key), exc.message):
                            continue
                        made = exc.message
                    if not isinstance(made, str):
                        self._rebuilding = True
                        if lost:
                            self.on_loss(db, key, lost)
                        stores += [(db, key, raw, None) for raw in made]
                        continue
                    why = made
                if why := left_out or why or self._unfit(payload, rules):
                    unfit.append((db, key, why, size))
                    continue
                if lost:
                    self.on_loss(db, key, lost)
            if values and isinstance(payload, bytes) and self._adds(payload):
                stores.append((db, key, encode_command("DEL", key), None))
            value_type = payload[0] if isinstance(payload, bytes) and payload else None
            stores.append((db, key, self._storing(key, expire_at, payload, values), value_type))
            if values and isinstance(payload, bytes) and is_series(payload):
                found.add((db, key))
                if (db, key) in series:
                    found_rules = replies[place + 2 : place + 4]
                    tied |= {(db, each) for each in related(found_rules[0])}
                    again += [(db, key, raw, None) for raw in rules_again(key, *found_rules)]
        reading = Reading(offset, (*stores, *again), values, told.replid, tuple(unfit), tuple(left))
        return reading, found, tied

    def _rewritten(self, payload: bytes) -> tuple[bytes, int, str]:
        """The value in a form that the target knows, if there is one; what it has lost; and why it
        must not get it, if so."""
        transcoder = self._encoder.transcoder
        if transcoder is None:
            return payload, 0, ""
        found, lost = transcoder.payload(payload)
        if found is None:
            return payload, 0, too_long_words(transcoder.most)
        return found, lost, ""

    def _unfit(self, payload: bytes, rules: bool) -> str:
        """Why the target must not get this value; empty: it may. `rules`: those of time series can
        be made again."""
        if not rules and is_series(payload):
            return (
                "a time series whose compaction rules cannot be read: the source's user may not "
                "run TS.INFO and TS.REVRANGE"
            )
        if len(payload) > self.bulk_limit:
            # The target would not answer with an error, but end the connection.
            return (
                f"the value has {len(payload):,} bytes, and the target takes no more than "
                f"{self.bulk_limit:,} (proto-max-bulk-len)"
            )
        return self.refusal(payload)

    def refusal(self, payload: bytes) -> str:
        """Why the target must not get this module's value (a DUMP payload); empty: it may."""
        guard = self._encoder.guard
        return guard.refusal(payload) if guard is not None else ""

    def _is_telemetry(self, key: bytes, payload: bytes) -> bool:
        guard = self._encoder.guard
        return guard is not None and guard.telemetry and is_telemetry(key, payload[:HEAD_BYTES])

    def _adds(self, payload: bytes) -> bool:
        guard = self._encoder.guard
        return guard is not None and guard.adds(payload)

    def _storing(self, key: bytes, expire_at: int, payload: object, values: bool) -> bytes:
        if expire_at == -2 or (values and not isinstance(payload, bytes)):
            return encode_command("DEL", key)
        if values:
            assert isinstance(payload, bytes)
            return self._encoder.command(key, expire_at, payload)
        if expire_at == -1:
            return encode_command("PERSIST", key)
        return encode_command("PEXPIREAT", key, expire_at)


def _name(key: DbKey, kind: bytes) -> bytes:
    return b"%d %s %s" % (key[0], kind, key[1])
