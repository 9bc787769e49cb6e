"""Keys that the stream's own commands cannot bring over: read again from the source, and stored.

Invariant. A key is *dirty* from the moment when the target's copy may differ from what the stream
says, until a *reading* of it is stored. A reading is taken from the source in one MULTI, with the
source's offset O: value and deadline are those that the stream's commands up to O lead to. It is
stored on the target behind exactly the commands up to O, in the same transaction as the position O;
what comes behind O applies to it as it does on the source.

Between its becoming dirty and O a dirty key may be read by a command that writes another one
(RENAME, SUNIONSTORE, COPY, a script's effect): all keys of a command that names a dirty key become
dirty in turn, and are read again. It converges, because a reading ends its key's dirtiness for good
unless a command between (the moment of reading, O] names it together with another dirty key.

Dirtiness outlives us: the names of dirty keys are a set on the target (`dirty_key`), written in the
transaction that makes them dirty and taken out in the one that stores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine._native import CommandBatch, RestoreEncoder, encode_command
from engine.errors import EngineError, ProtocolFault, ServerError
from engine.model.server import ServerInfo
from engine.targets.applier import POSITION_DB
from engine.transfer.fence import offset_in
from engine.wire.admin import Admin, Arg

# Keys in one reading: its MULTI holds the source's other clients up.
_AT_ONCE = 50
_DEADLINES_AT_ONCE = 500
# Commands whose keys are asked for together.
_COMMANDS_AT_ONCE = 500
# Names in one command that keeps the set on the target.
_NAMES_AT_ONCE = 1000

DbKey = tuple[int, bytes]
Extra = tuple[int, bytes]
Store = tuple[int, bytes, bytes, int | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the source held at `offset`.

    Of each key: (db, key, the command that stores it, its value's RDB type or None).
    `values`: the keys' values, not their deadlines alone.
    """

    offset: int
    stores: tuple[Store, ...]
    values: bool


class Mender:
    """The dirty keys, and the readings that wait for their offset.

    `source` is a connection of the control plane; `encoder` stamps payloads for the target;
    `names_key` holds the dirty keys' names there.
    """

    def __init__(
        self, source: Admin, info: ServerInfo, encoder: RestoreEncoder, names_key: bytes
    ) -> None:
        self._source = source
        self._encoder = encoder
        self._names_key = names_key
        self._absolute = info.version >= (7, 0, 0) and not info.fork
        self._values: dict[DbKey, None] = {}
        self._deadlines: dict[DbKey, None] = {}
        self._readings: list[Reading] = []
        self._unnoted: list[bytes] = []
        self._strays: list[Extra] = []
        self.lift_ms = self.lift_before = 0
        """By how much deadlines before which moment are lifted now (`transfer.deadlines`)."""
        self.lifted = 0
        """How many were."""
        self.lifted_keys: dict[DbKey, None] | None = None
        """While a dict: the keys of those are added to it."""
        self.repaired = 0
        """Keys whose value was read again and stored."""

    @property
    def clean(self) -> bool:
        """Whether the target holds nothing that differs from the stream."""
        return not (self._values or self._deadlines or self._readings)

    @property
    def waiting(self) -> int:
        """Keys that are not mended yet."""
        reading = sum(len(reading.stores) for reading in self._readings)
        return len(self._values) + len(self._deadlines) + reading

    @property
    def to_read(self) -> bool:
        """Whether a reading could be taken: one at a time is under way."""
        return not self._readings and bool(self._values or self._deadlines)

    def spoil(self, keys: Iterable[DbKey]) -> None:
        """These keys may differ: they are to be read again."""
        self._add(self._values, keys, b"v")

    def spoil_deadlines(self, keys: Iterable[DbKey]) -> None:
        """Of these keys the deadline alone may differ."""
        self._add(self._deadlines, keys, b"d")

    def take_up(self, names: Iterable[bytes]) -> None:
        """The names that an engine before us left in the set."""
        for name in names:
            db, kind, key = name.split(b" ", 2)
            (self._values if kind == b"v" else self._deadlines)[int(db), key] = None

    # --- The set of names ---

    @staticmethod
    def names_of(keys: Iterable[DbKey]) -> list[bytes]:
        """How keys whose values are to be read again are named in the set."""
        return [_name(key, b"v") for key in keys]

    @property
    def unnoted(self) -> bool:
        """Whether names are to be added to the set."""
        return bool(self._unnoted)

    def notes(self) -> list[Extra]:
        """Commands that add to the set what became dirty since `noted`."""
        return [*self._strays, *self._named(b"SADD", self._unnoted)]

    def noted(self) -> None:
        """The commands of `notes` were applied."""
        self._unnoted.clear()
        self._strays.clear()

    def note_again(self) -> None:
        """The set may be gone (FLUSHALL, SWAPDB): all of it is to be written anew."""
        names = [_name(key, b"v") for key in self._values]
        names += [_name(key, b"d") for key in self._deadlines]
        for reading in self._readings:
            kind = b"v" if reading.values else b"d"
            names += [_name((db, key), kind) for db, key, *_ in reading.stores]
        self._unnoted = names

    def strike(self, readings: Iterable[Reading]) -> list[Extra]:
        """Commands that take what these readings store out of the set."""
        names = []
        for reading in readings:
            again = self._values if reading.values else self._deadlines
            kind = b"v" if reading.values else b"d"
            names += [
                _name((db, key), kind) for db, key, *_ in reading.stores if (db, key) not in again
            ]
        return self._named(b"SREM", names)

    def _add(self, where: dict[DbKey, None], keys: Iterable[DbKey], kind: bytes) -> None:
        for key in keys:
            if key not in where:
                where[key] = None
                self._unnoted.append(_name(key, kind))

    def _named(self, command: bytes, names: Sequence[bytes]) -> list[Extra]:
        return [
            (
                POSITION_DB,
                encode_command(command, self._names_key, *names[at : at + _NAMES_AT_ONCE]),
            )
            for at in range(0, len(names), _NAMES_AT_ONCE)
        ]

    # --- The stream passes by ---

    async def taint(self, batch: CommandBatch, movers: Mapping[int, DbKey]) -> None:
        """Before a batch is applied: what reads a dirty key becomes dirty, what is swapped moves.

        `movers`: where those commands put a key's value that have it in another database, or may.
        """
        if self.clean:
            return
        swaps = batch.swaps
        for one, other in swaps:
            self._swap(one, other)
            if POSITION_DB in (one, other) and one != other:
                # The set went to the other database, and is written anew in ours.
                stray = other if one == POSITION_DB else one
                self._strays.append((stray, encode_command(b"DEL", self._names_key)))
        if swaps or batch.flushes:
            self.note_again()
        await self.spread(batch, movers)

    async def spread(self, batch: CommandBatch, movers: Mapping[int, DbKey]) -> None:
        """Spread dirtiness over the keys of commands that name a dirty key."""
        asked: dict[int, list[bytes]] = {}
        names: set[bytes] = set()
        # Again as long as it spreads: what one command made dirty the next may read.
        while names != (names := self._dirty_names()):
            for index in batch.mentioning(names):
                if index not in asked:
                    asked[index] = await self.keys_of(batch.command(index))
                keys = asked[index]
                if not any(key in names for key in keys):
                    continue
                db = batch.db(index)
                if len(keys) > 1:
                    self.spoil((db, key) for key in keys)
                if index in movers:
                    self.spoil([movers[index]])

    def _dirty_names(self) -> set[bytes]:
        names = {key for _, key in self._values}
        for reading in self._readings:
            if reading.values:
                names.update(key for _, key, *_ in reading.stores)
        return names

    async def keys_of(self, command: Sequence[bytes]) -> list[bytes]:
        """The keys that a command names, as the source's own tables say (COMMAND GETKEYS)."""
        try:
            reply = await self._source.call("COMMAND", "GETKEYS", *command)
        except ServerError:
            # No keys, or a command that the source itself does not know by now.
            return []
        return [key for key in reply if isinstance(key, bytes)]

    async def keys_in(self, batch: CommandBatch) -> list[DbKey]:
        """Every key that the batch names."""
        found: list[DbKey] = []
        for first in range(0, len(batch), _COMMANDS_AT_ONCE):
            indices = range(first, min(first + _COMMANDS_AT_ONCE, len(batch)))
            replies = await self._source.pipeline(
                ("COMMAND", "GETKEYS", *batch.command(index)) for index in indices
            )
            for index, reply in zip(indices, replies, strict=True):
                if isinstance(reply, list):
                    db = batch.db(index)
                    found += [(db, key) for key in reply if isinstance(key, bytes)]
        return found

    def _swap(self, one: int, other: int) -> None:
        swap = {one: other, other: one}
        for where in (self._values, self._deadlines):
            moved = [(swap.get(db, db), key) for db, key in where]
            where.clear()
            where.update(dict.fromkeys(moved))
        # The numbers in a reading are those at its offset, which is where it is stored.

    # --- Readings ---

    async def read(self) -> None:
        """Take a reading of some dirty keys. Raises `LinkError`, `ServerError`, `AuthError`."""
        if self._values:
            await self._take(self._values, _AT_ONCE, values=True)
        elif self._deadlines:
            await self._take(self._deadlines, _DEADLINES_AT_ONCE, values=False)

    def due(self, offset: int) -> list[Reading]:
        """The readings that belong behind `offset` or before it."""
        return [reading for reading in self._readings if reading.offset <= offset]

    @property
    def next_offset(self) -> int | None:
        """Where the next reading belongs."""
        return min((reading.offset for reading in self._readings), default=None)

    def stored(self, readings: Iterable[Reading]) -> None:
        """These readings are on the target."""
        for reading in readings:
            self._readings.remove(reading)
            if reading.values:
                self.repaired += len(reading.stores)

    async def _take(self, where: dict[DbKey, None], most: int, *, values: bool) -> None:
        keys = (
            sorted(where)[:most]
            if len(where) <= most
            else [key for key, _ in zip(where, range(most), strict=False)]
        )
        reading = await self._read(keys, values=values)
        for key in keys:
            where.pop(key, None)
        self._readings.append(reading)

    async def _read(self, keys: Sequence[DbKey], *, values: bool) -> Reading:
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
        *_, replies = await self._source.pipeline([("MULTI",), *asked, ("EXEC",)])
        if isinstance(replies, EngineError):
            raise replies
        if not isinstance(replies, list) or len(replies) != len(asked):
            raise ProtocolFault(
                f"{self._source.name}: EXEC answered with something else than {len(asked)} replies",
                fault="source",
            )
        seconds, micros = (int(part) for part in replies[0])
        now = seconds * 1000 + micros // 1000
        offset = offset_in(self._source, replies[1])
        stores: list[Store] = []
        for (db, key), place in zip(keys, places, strict=True):
            deadline = replies[place]
            if not isinstance(deadline, int):
                raise ProtocolFault(f"{self._source.name}: no integer for {ttl}", fault="source")
            if deadline >= 0:
                deadline += 0 if self._absolute else now
                if deadline < self.lift_before:
                    deadline += self.lift_ms
                    self.lifted += 1
                    if self.lifted_keys is not None:
                        self.lifted_keys[db, key] = None
            payload = replies[place + 1] if values else b""
            if isinstance(payload, Exception):
                raise ServerError(f"{self._source.name} answered DUMP with: {payload}")
            value_type = payload[0] if isinstance(payload, bytes) and payload else None
            stores.append((db, key, self._storing(key, deadline, payload, values), value_type))
        return Reading(offset, tuple(stores), values)

    def _storing(self, key: bytes, deadline: int, payload: object, values: bool) -> bytes:
        if deadline == -2 or (values and not isinstance(payload, bytes)):
            return encode_command("DEL", key)
        if values:
            assert isinstance(payload, bytes)
            return self._encoder.command(key, deadline, payload)
        if deadline == -1:
            return encode_command("PERSIST", key)
        return encode_command("PEXPIREAT", key, deadline)


def _name(key: DbKey, kind: bytes) -> bytes:
    return b"%d %s %s" % (key[0], kind, key[1])
