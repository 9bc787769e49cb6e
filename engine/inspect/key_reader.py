"""Every key of a file or a server that is asked for, with what its value is.

A value is looked at where it lies; one that is longer than may be held is passed over, and its type
and size are told alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from engine._native import (
    ProtocolError,
    RecordBatch,
    SlotFilter,
    SnapshotReader,
    ValueDecoder,
    key_slot,
    value_encoding,
    value_flavour,
    value_kind,
)
from engine.errors import EngineError
from engine.inspect.aof_base import AofBase
from engine.inspect.key_pattern import compiled
from engine.inspect.shown_value import shown
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.model.throttle import Steering, Throttle
from engine.sources.base import Item
from engine.sources.rdb_file import RdbFile
from engine.sources.scan import ScanSource
from engine.wire.connection import answered
from engine.wire.dial import dial_and_ask

_Look = tuple[str, int, int, int, int, int, int]
HELD_BYTES = 32 << 20
"""A longer value is not held, unless its key was named."""
_VALUE_MOST = 16 << 30
"""No value is longer, but by a damaged length."""
_FOOTER = 10
COMMANDS = "the commands after this base of an append-only file"


@dataclass(frozen=True, slots=True)
class Seen:
    """One key. `elements`, `longest` and `field_ttls` are 0, and `payload` may be empty, where the
    value was not decoded, for the reason of `objection`; `size` and `memory` are None where nothing
    but the name is known, and then `expire_at` says nothing."""

    db: int
    key: bytes
    kind: str
    elements: int
    longest: int
    field_ttls: int
    size: int | None
    memory: int | None
    expire_at: int | None
    objection: str = ""
    value: bytes = b""
    batch: RecordBatch | None = None
    index: int = 0

    @property
    def payload(self) -> bytes:
        """The value as DUMP gives it."""
        return self.value if self.batch is None else self.batch.value(self.index)

    @property
    def encoding(self) -> str:
        """How the value is kept; empty where that is not known."""
        return value_encoding(self.payload) or ""


class KeyReader:
    """Reads `source` once. `left_out` says, once it was read, what else is there and not shown.

    Of an append-only file it is the base that is read. Raises what `AofBase` raises.
    """

    def __init__(
        self,
        source: Endpoint,
        *,
        key: bytes | None = None,
        match: bytes | None = None,
        db: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._base = None if source.aof_path is None else AofBase(source.aof_path)
        self._path = source.rdb_path if self._base is None else str(self._base.path)
        self._snapshot_end = 0
        self._behind_snapshot: int | None = None
        self._source = source
        self._key = key
        self._match = None if match is None else compiled(match)
        self._glob = match
        self._db = db
        self._timeout = timeout
        # Of what wrote the file, or of the server.
        self._flavour = "redis"
        self.decoder = ValueDecoder()
        self.left_out: list[str] = []

    async def keys(self) -> AsyncGenerator[Seen, None]:
        """All of them, in the order of the source. Raises `EngineError`."""
        if self._path is None and self._key is not None:
            found = await self._asked(self._db or 0, self._key)
            if found is not None:
                yield found
            return
        async with contextlib.aclosing(self.batches()) as batches:
            async for each in batches:
                if isinstance(each, Seen):
                    yield each
                else:
                    for index in range(len(each)):
                        if self._wanted(each.db, each.key(index)):
                            yield self.record(each, index)

    async def batches(self) -> AsyncGenerator[RecordBatch | Seen, None]:
        """The same, but whole batches as they come, wanted or not; and keys whose value is not in
        any, those alone that are wanted."""
        items = self._of_server() if self._path is None else self._of_file(self._path)
        async with contextlib.aclosing(items):
            async for each in self._without_pieces(items):
                yield each

    def record(self, batch: RecordBatch, index: int) -> Seen:
        """A record of a batch."""
        look: _Look | str
        try:
            look = self.decoder.look_at(batch, index)
        except ProtocolError as exc:
            look = str(exc)
        size = max(batch.value_size(index) - _FOOTER, 0)
        return _found(
            batch.db, batch.key(index), look, size,
            self._kind(batch.value_type(index)),
            batch.expire_at(index), batch=batch, index=index,
        )  # fmt: skip

    def value(self, seen: Seen) -> tuple[Any, str]:
        """The value of a key as JSON has it, or (None) why it cannot be shown: a few bytes of a
        stream may stand for very many."""
        payload = seen.payload
        try:
            return shown(*self.decoder.value(payload), payload), ""
        except ProtocolError as exc:
            return None, str(exc)

    @property
    def searched(self) -> int | None:
        """The database in which a key is looked for that was named; None: in all of them."""
        return self._db if self._db is not None or self._path is not None else 0

    @property
    def behind_base(self) -> str:
        """What of an append-only file is not shown, for people; empty: nothing, or it is none. Once
        it was read it is known how much that is."""
        return "" if self._base is None else self._base.behind(self._behind_snapshot)

    async def named_behind_base(self) -> int | None:
        """How many commands behind the base of an append-only file, once that was read, name the
        key that is looked for; None: it may be changed by some that do not name it. Raises
        `EngineError`."""
        if self._base is None or self._key is None:
            return 0
        return await self._base.naming(self._key, self._snapshot_end)

    def takes(self, db: int) -> bool:
        """Whether keys of a database are wanted."""
        return self._db is None or db == self._db

    # --- Where they come from ---

    async def _of_file(self, path: str) -> AsyncGenerator[Item, None]:
        # Other keys' values are not held beside that of a key that was named.
        named = None if self._key is None else key_slot(self._key)
        reader = SnapshotReader(
            stream_above=HELD_BYTES if named is None else _VALUE_MOST,
            value_limit=_VALUE_MOST,
            slots=None if named is None else SlotFilter([(named, named)], keyless=False),
        )
        file = RdbFile(path, reader, part=True)
        try:
            await file.open()
            self._flavour = reader.flavour
            more = True
            while more:
                for item in reader.take():
                    yield item
                more = await file.read_on()
            for item in reader.take():
                yield item
            self._snapshot_end, self._behind_snapshot = file.end, file.behind
            self.left_out += reader.left_out
            if self._base is None and file.part_of_aof:
                self.left_out.append(COMMANDS)
        except MemoryError:
            raise EngineError(
                f"{file.name} at byte {reader.offset}: there is not enough memory for the value "
                "that is read there",
                remedy="It is that long, or its length is damaged (redis-check-rdb says which).",
                fault="source",
            ) from None
        finally:
            file.close()

    async def _of_server(self) -> AsyncGenerator[Item, None]:
        settings = TransferSettings(
            source_type="scan",
            match=None if self._glob is None else self._glob.decode("utf-8", "surrogateescape"),
            databases=None if self._db is None else (self._db,),
            stream_above=HELD_BYTES,
            connect_timeout=self._timeout,
        )
        source = ScanSource(self._source, settings, Throttle(Steering()).copying)
        source.bulk_limit = _VALUE_MOST
        try:
            await source.open(None)
            self._flavour = source.info.flavour
            async with contextlib.aclosing(source.items()) as items:
                async for item in items:
                    yield item
        finally:
            await source.close()

    async def _asked(self, db: int, key: bytes) -> Seen | None:
        """One key of a server; None: it has none of this name."""
        connection, _ = await dial_and_ask(self._source, [], fault="source", timeout=self._timeout)
        try:
            if db:
                await connection.call("SELECT", db)
            expire, ttl, now, dump = await connection.together(
                ("PEXPIRETIME", key), ("PTTL", key), ("TIME",), ("DUMP", key)
            )
        finally:
            connection.close()
        payload = answered(dump)
        if payload is None:
            return None
        at: int
        if isinstance(expire, EngineError):
            # Before 7.0 there is no PEXPIRETIME. By the server's clock: ours may differ.
            at = answered(ttl)
            seconds, micros = (int(part) for part in answered(now))
            at += seconds * 1000 + micros // 1000 if at >= 0 else 0
        else:
            at = expire
        expire_at = None if at < 0 else at
        look: _Look | str
        try:
            look = self.decoder.look(payload, len(key), expire_at is not None)
        except ProtocolError as exc:
            look = str(exc)
        kind = value_kind(payload[0], value_flavour(payload))
        return _found(db, key, look, len(payload) - _FOOTER, kind, expire_at, value=payload)

    # --- What they are ---

    async def _without_pieces(
        self, items: AsyncIterator[Item]
    ) -> AsyncGenerator[RecordBatch | Seen, None]:
        # Of a streamed record its value is still to come, and so many bytes of it; what comes
        # before its record is that of a spilled one.
        long: RecordBatch | None = None
        left = 0
        first = b""
        async for item in items:
            if isinstance(item, bytes):
                if left:
                    left -= len(item)
                else:
                    first = first or item[:1]
                if long is not None:
                    for found in self._long(long, item[:1]):
                        yield found
                    long = None
            elif item.streamed and not item.spilled:
                long, left = item, item.value_size(0)
            else:
                if item.streamed:
                    for found in self._long(item, first):
                        yield found
                else:
                    yield item
                for key, reason in item.errors:
                    if self._wanted(item.db, key):
                        yield _found(item.db, key, reason, None, None, None)
                first = b""

    def _wanted(self, db: int, key: bytes) -> bool:
        if not self.takes(db):
            return False
        if self._key is not None:
            return key == self._key
        return self._match is None or self._match.fullmatch(key) is not None

    def _kind(self, number: int | None) -> str | None:
        return None if number is None else value_kind(number, self._flavour)

    def _long(self, batch: RecordBatch, first: bytes) -> Iterator[Seen]:
        key = batch.key(0)
        if self._wanted(batch.db, key):
            reason = f"longer than the {HELD_BYTES:,} bytes that are held; name it by --key"
            size = batch.value_size(0) - _FOOTER
            kind = self._kind(first[0] if first else None)
            yield _found(batch.db, key, reason, size, kind, batch.expire_at(0))


def _found(
    db: int,
    key: bytes,
    look: _Look | str,
    size: int | None,
    known: str | None,
    expire_at: int | None,
    *,
    value: bytes = b"",
    batch: RecordBatch | None = None,
    index: int = 0,
) -> Seen:
    if isinstance(look, str):
        return Seen(
            db, key, known or "?", 0, 0, 0, size, size, expire_at, look, value, batch, index
        )
    kind, elements, _, longest, ttls, _, memory = look
    return Seen(
        db, key, kind, elements, longest, ttls, size, memory, expire_at, "", value, batch, index
    )
