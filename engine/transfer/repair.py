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
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine._native import CommandBatch, RestoreEncoder, encode_command
from engine.errors import EngineError, ProtocolFault, ServerError
from engine.model.server import ServerInfo
from engine.transfer.fence import offset_in
from engine.wire.admin import Admin, Arg

# Keys in one reading: its MULTI holds the source's other clients up.
_AT_ONCE = 50
_DEADLINES_AT_ONCE = 500

DbKey = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the source held at `offset`: (db, key, the command that stores it) of each key.

    `values`: the keys' values, not their deadlines alone.
    """

    offset: int
    stores: tuple[tuple[int, bytes, bytes], ...]
    values: bool


class Mender:
    """The dirty keys, and the readings that wait for their offset.

    `source` is a connection of the control plane; `encoder` stamps payloads for the target.
    """

    def __init__(self, source: Admin, info: ServerInfo, encoder: RestoreEncoder) -> None:
        self._source = source
        self._encoder = encoder
        self._absolute = info.version >= (7, 0, 0) and not info.fork
        self._dirty: set[DbKey] = set()
        self._deadlines: dict[DbKey, None] = {}
        self._readings: list[Reading] = []
        self.repaired = 0
        """Keys whose value was read again and stored."""

    @property
    def clean(self) -> bool:
        """Whether the target holds nothing that differs from the stream."""
        return not (self._dirty or self._deadlines or self._readings)

    @property
    def waiting(self) -> int:
        """Keys that are not mended yet."""
        reading = sum(len(reading.stores) for reading in self._readings)
        return len(self._dirty) + len(self._deadlines) + reading

    @property
    def to_read(self) -> bool:
        """Whether a reading could be taken: one at a time is under way."""
        return not self._readings and bool(self._dirty or self._deadlines)

    def spoil(self, keys: Iterable[DbKey]) -> None:
        """These keys may differ: they are to be read again."""
        self._dirty.update(keys)

    def spoil_deadlines(self, keys: Iterable[DbKey]) -> None:
        """Of these keys the deadline alone may differ."""
        self._deadlines.update(dict.fromkeys(keys))

    def flushed(self) -> None:
        """Everything dirty is to be forgotten: a full sync begins."""
        self._dirty.clear()
        self._deadlines.clear()
        self._readings.clear()

    # --- The stream passes by ---

    async def taint(self, batch: CommandBatch) -> None:
        """Spread dirtiness over the keys of commands that name a dirty key."""
        if self.clean:
            return
        for one, other in batch.swaps:
            self._swap(one, other)
        names = {key for _, key in self._dirty}
        names.update(key for reading in self._readings for _, key, _ in reading.stores)
        if not names:
            return
        for index in batch.mentioning(frozenset(names)):
            command = batch.command(index)
            keys = await self.keys_of(command)
            db = batch.db(index)
            if len(keys) > 1 and any(key in names for key in keys):
                self._dirty.update((db, key) for key in keys)

    async def keys_of(self, command: Sequence[bytes]) -> list[bytes]:
        """The keys that a command names, as the source's own tables say (COMMAND GETKEYS)."""
        try:
            reply = await self._source.call("COMMAND", "GETKEYS", *command)
        except ServerError:
            # No keys, or a command that the source itself does not know by now.
            return []
        return [key for key in reply if isinstance(key, bytes)]

    def _swap(self, one: int, other: int) -> None:
        swap = {one: other, other: one}
        self._dirty = {(swap.get(db, db), key) for db, key in self._dirty}
        self._deadlines = dict.fromkeys((swap.get(db, db), key) for db, key in self._deadlines)
        # The numbers in a reading are those at its offset, which is where it is stored.

    # --- Readings ---

    async def read(self) -> None:
        """Take a reading of some dirty keys. Raises `LinkError`, `ServerError`, `AuthError`."""
        if self._dirty:
            keys = sorted(self._dirty)[:_AT_ONCE]
            self._readings.append(await self._read(keys, values=True))
            self._dirty.difference_update(keys)
        elif self._deadlines:
            keys = list(self._deadlines)[:_DEADLINES_AT_ONCE]
            self._readings.append(await self._read(keys, values=False))
            for key in keys:
                del self._deadlines[key]

    def due(self, offset: int) -> list[Reading]:
        """The readings that belong behind exactly `offset` or before it."""
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
        stores: list[tuple[int, bytes, bytes]] = []
        for (db, key), place in zip(keys, places, strict=True):
            deadline = replies[place]
            if not isinstance(deadline, int):
                raise ProtocolFault(f"{self._source.name}: no integer for {ttl}", fault="source")
            if deadline >= 0 and not self._absolute:
                deadline += now
            payload = replies[place + 1] if values else b""
            if isinstance(payload, Exception):
                raise ServerError(f"{self._source.name} answered DUMP with: {payload}")
            stores.append((db, key, self._storing(key, deadline, payload, values)))
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
