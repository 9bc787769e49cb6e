"""The file source: an RDB file, as SAVE or BGSAVE writes it.

A file has no position to go on from: opened again it is read from its beginning, which RESTORE with
REPLACE makes good. What it holds beside the keys (functions, scripts) is in `reader`. Keys whose
time was over when it was opened are passed over, as a server passes them over when it loads a file:
a RESTORE with an expire time in the past stores nothing, and deletes what the target has of that
name.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from engine._native import (
    KeyRules,
    ModuleGuard,
    ProtocolError,
    RecordBatch,
    SeenKeys,
    SnapshotReader,
    module_type,
)
from engine.errors import EngineError, ProtocolFault, UsageError
from engine.model.modules import HEAD_BYTES, has_graphs
from engine.model.position import ScanPosition
from engine.model.rdb_newer_than_engine import by_scan, newer_than_known
from engine.model.server import ServerInfo, parse_version
from engine.model.server_capabilities import flavour_named
from engine.model.setting_conflicts import file_objection
from engine.model.settings import TransferSettings
from engine.model.spool_directory import spool_directory
from engine.sources.base import Item
from engine.sources.file_input import Damaged, FileInput, Reading, input_of
from engine.sources.value_spill import Spill
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT
from engine.wire.search_indexes import in_snapshot

_READ_BYTES = 1 << 20
# Values that are not migrated are not kept beyond this.
_SURVEY_HOLDS = 64 << 10
# How long a value may be that is made by commands is a matter of the disk then.
_MADE_MOST = 1 << 62
# Keys that cannot be carried, by name; the transfer's report has all of them.
_NAMED = 10
# Keys with expire times wait behind the others of their database, up to so many bytes.
_ASIDE_BYTES = 32 << 20
_TWICE = "the file names it twice, so that no server loads it; one of its values is migrated"
_MAGIC = (b"REDIS", b"VALKEY")
_WHAT_IT_TAKES = (
    "Give the file that SAVE or BGSAVE wrote (dump.rdb); gzip, zstd and lz4 are unpacked."
)


class RdbFile:
    """A file that is read from its first byte to its last, through `reader`. `part`: the snapshot
    before an append-only file's commands is taken too (`part_of_aof`); else it is refused.

    Raises `EngineError` (fault: the user's) when it cannot be read, `ProtocolFault`, with the
    offset of what is wrong, when it is no whole and sound snapshot.
    """

    def __init__(self, path: Path | str, reader: SnapshotReader, *, part: bool = False) -> None:
        self.path = Path(path)
        self.reader = reader
        self.part_of_aof = False
        """Whether commands belong to the snapshot, in this file or in others."""
        self._part = part
        self.end = 0
        """Where the snapshot ends, once it was read; of a packed file in what it unpacks to."""
        self.behind = 0
        """Bytes behind the snapshot, which are passed over."""
        self._input: FileInput | None = None
        self._own = False
        self._reading: Reading | None = None

    async def open(self) -> None:
        """Open it and read its head."""
        self._input, self._own = input_of(self.path)
        await asyncio.to_thread(self._input.open)
        self._input.check_unchanged()
        self._reading = self._input.reading()
        await self.read_on()

    async def read_on(self) -> bool:
        """Read the next portion; False at the file's end, which must be the snapshot's."""
        assert self._reading is not None
        first = self._reading.position == 0
        try:
            portion = await self._reading.read(_READ_BYTES)
        except Damaged as exc:
            raise ProtocolFault(
                f"{self.name} cannot be unpacked: {exc}",
                remedy=exc.remedy or "Was it copied before it was written to its end?",
                fault="user",
            ) from exc
        if first and not portion and not self._input_seekable:
            raise EngineError(
                f"{self.name} sent no byte",
                remedy="Has the program before it failed?",
                fault="user",
            )
        if first:
            self._check_magic(portion)
        if not portion:
            self.behind += self._reading.behind
            if self.reader.finished:
                return False
            raise ProtocolFault(
                f"{self.name} ends at byte {self._reading.position} in the middle of its snapshot",
                remedy="Was it copied before it was written to its end?",
                fault="source",
            )
        self._parse(portion)
        return True

    def close(self) -> None:
        """Let go of the file."""
        if self._reading is not None:
            self._reading.close()
        if self._input is not None and self._own:
            self._input.close()

    @property
    def name(self) -> str:
        """For people."""
        return str(self.path) if self._input is None else self._input.name

    @property
    def _input_seekable(self) -> bool:
        return self._input is not None and self._input.seekable

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened; of a pipe those that have come."""
        return 0 if self._input is None else self._input.size

    @property
    def once(self) -> bool:
        """Whether an earlier reading of this very file has found no key that is named twice."""
        return self._input is not None and self._input.once

    @property
    def keys(self) -> dict[int, int] | None:
        """How many keys each database has, as an earlier reading of this very file has found."""
        return None if self._input is None else self._input.keys

    def note(self, once: bool, keys: dict[int, int]) -> None:
        """Keep it for the next reading."""
        if self._input is not None:
            self._input.once, self._input.keys = once, keys

    @property
    def layers(self) -> tuple[str, ...]:
        """What it is packed with, the outermost first."""
        return () if self._reading is None else self._reading.layers

    @property
    def checked_by_packing(self) -> bool:
        """Whether what it is packed with has a checksum of its own, which was right."""
        return self._reading is not None and self._reading.checked

    @property
    def replaced(self) -> bool:
        """Whether its name leads to another file by now, as after a save of its server."""
        return self._input is not None and self._input.replaced()

    @property
    def info(self) -> ServerInfo:
        """The server that wrote the snapshot, as far as its head says so."""
        aux = self.reader.aux
        ours = aux.get("valkey-ver")
        version = parse_version((ours or aux.get("redis-ver", b"0")).decode("ascii", "replace"))
        memory = aux.get("used-mem", b"")
        return ServerInfo(
            flavour=flavour_named("valkey" if ours is not None else self.reader.flavour),
            version=version,
            used_memory=int(memory) if memory.isdigit() else 0,
        )

    def _check_magic(self, head: bytes) -> None:
        if head.startswith(_MAGIC) or any(magic.startswith(head) for magic in _MAGIC):
            return
        raise ProtocolFault(
            f"{self.name} is not an RDB file: it begins with {head[:9]!r}, not REDIS or VALKEY",
            remedy=_WHAT_IT_TAKES,
            fault="user",
        )

    def _parse(self, portion: bytes) -> None:
        reader = self.reader
        try:
            reader.feed(portion)
        except ProtocolError as exc:
            self._explain_newer()
            raise ProtocolFault(
                f"{self.name} is not a valid snapshot: {exc}",
                remedy="Its server can say more (redis-check-rdb); have it write the file anew.",
                fault="source",
            ) from exc
        end = reader.offset
        if reader.aux.get("aof-base") == b"1":
            self.part_of_aof = True
        if self.part_of_aof and not self._part:
            raise ProtocolFault(
                f"{self.name} is the base of an append-only file, which holds only a part of the "
                "data",
                remedy="Give the folder of the append-only file as the source: "
                f"aof:{self.path.parent}.",
                fault="user",
            )
        if reader.finished:
            self.end = self.end or end
            self._pass_over(reader.rest(), end)

    def _explain_newer(self) -> None:
        """Raise `ProtocolFault` with what works if the file holds what is not known here."""
        reader = self.reader
        if reader.unknown is None:
            return
        newer = newer_than_known(flavour_named(reader.flavour), reader.version, reader.unknown)
        if newer is not None:
            raise ProtocolFault(
                f"{self.name} cannot be read at byte {reader.offset}: {newer}",
                remedy="Load it into a server of its version, and move that one's keys with "
                f"--source-type scan: {by_scan(reader.unknown)}",
                fault="user",
            ) from None

    def _pass_over(self, rest: bytes, end: int) -> None:
        """Bytes behind the snapshot mean nothing to a server, unless they are commands."""
        commands = rest[:1] in (b"*", b"#")
        if rest and not self.behind and (commands or self._is_preamble):
            self.part_of_aof = True
            if not self._part:
                raise ProtocolFault(
                    f"{self.name} goes on after its snapshot, from byte {end}: it is an "
                    "append-only file, which holds commands there",
                    remedy=f"Give it as aof:{self.path}, or the file that SAVE wrote.",
                    fault="user",
                )
        self.behind += len(rest)

    @property
    def _is_preamble(self) -> bool:
        aux = self.reader.aux
        return aux.get("aof-preamble") == b"1"


class RdbFileSource:
    """`Source` from a file. `reader` tells, once it was read, what else the snapshot has."""

    paces = False

    def __init__(self, path: Path | str, settings: TransferSettings) -> None:
        objection = file_objection(settings)
        if objection is not None:
            raise UsageError(objection, remedy="Leave it out, or give a server as the source.")
        self._settings = settings
        self.bulk_limit = DEFAULT_BULK_LIMIT
        """Bytes of the longest value that the target takes in one argument."""
        self._file = RdbFile(path, SnapshotReader())
        self._spill: Spill | None = None
        self._seen = seen_keys()
        self._delayed = _DelayedTtlKeys()
        self.info: ServerInfo = cast(ServerInfo, None)

    @property
    def reader(self) -> SnapshotReader:
        """What reads the file; its counters and its lists grow with the reading."""
        return self._file.reader

    @property
    def telemetry(self) -> bool:
        """Whether the server that wrote the file had FalkorDB."""
        return has_graphs(self.reader.module_data)

    @property
    def total_keys(self) -> int:
        """Keys in the chosen databases, if the file was read before; else those that the snapshot
        has announced so far: it does so database by database. How many of them rules take is known
        at its end."""
        if self._file.keys is None or self._settings.rules:
            return self.reader.keys_hint
        chosen = self._settings.databases
        return sum(n for db, n in self._file.keys.items() if chosen is None or db in chosen)

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing of the file once it was read, a sentence each."""
        file, found = self._file, []
        if empty := self.reader.empty:
            found.append(
                f"{empty:,} collections without members left out, as servers from 6.2 on do"
            )
        if excluded := self.reader.excluded:
            found.append(f"{excluded:,} keys left out, as the rules say")
        if self._seen.full:
            found.append(
                f"only the first {len(self._seen):,} keys were looked at whether the file names "
                "them twice"
            )
        if file.behind:
            found.append(f"{file.behind:,} bytes after the snapshot in {file.name} are ignored")
        if file.replaced:
            found.append(
                f"another file has taken the place of {file.name} since it was opened; what was "
                "opened is migrated"
            )
        return found

    async def identity(self) -> str:
        """The same for the same bytes alone; empty where a pipe can be read once only.

        It is read to its end for that, unless it was. Raises as `RdbFile` does.
        """
        file, own = input_of(self._file.path)
        try:
            await asyncio.to_thread(file.open)
            return "" if own and not file.seekable else await file.identity()
        finally:
            if own:
                file.close()

    async def open(self, position: ScanPosition | None) -> None:
        """Open the file and read its head. A position means nothing to it: it begins anew.

        Raises as `RdbFile` does.
        """
        await self.close()
        reader = SnapshotReader(
            batch_bytes=self._settings.batch_bytes,
            stream_above=min(self._settings.stream_above, self.bulk_limit),
            value_limit=self.bulk_limit,
            made_limit=self._settings.spool_bytes,
            drop_before=now_ms(),
            drop_imports=True,
            rules=self._settings.key_rules,
        )
        self._seen = seen_keys()
        self._delayed = _DelayedTtlKeys()
        self._file = RdbFile(self._file.path, reader)
        self._spill = Spill(
            max(self.bulk_limit, self._settings.spool_bytes),
            spool_directory(self._settings.spool_directory),
        )
        await self._file.open()
        self.info = self._file.info

    async def items(self) -> AsyncGenerator[Item, None]:
        """Batches in order; a streamed batch is followed by the pieces of its value."""
        assert self._spill is not None
        chosen = self._settings.databases
        more = wanted = True
        while more:
            async for item in self._spill.arrange(self.reader.take()):
                if not isinstance(item, bytes):
                    wanted = chosen is None or item.db in chosen
                    if wanted:
                        for waiting in self._look_at(item):
                            yield waiting
                if wanted:
                    yield item
            more = await self._file.read_on()
        for waiting in self._delayed.take():
            yield waiting

    def _look_at(self, batch: RecordBatch) -> list[RecordBatch]:
        """Name keys that the file has named before; order the others for the target. What goes
        before this batch."""
        again = [] if self._file.once else self._seen.add(batch, self.reader.keys_hint)
        for index in again:
            batch.errors.append((batch.key(index), self._twice))
        if again or self._seen.full:
            # In a batch that names a key twice (or may: see `SeenKeys.full`) the order matters.
            return self._delayed.take()
        before = self._delayed.arrange(batch)
        batch.strings_first()
        return before

    @property
    def _twice(self) -> str:
        kept = "the first" if self._settings.if_exists == "skip" else "the last"
        return f"the file names it twice, so that no server loads it; {kept} of its values stays"

    def continues(self, position: ScanPosition) -> bool:
        """Never: see `open`."""
        return False

    def position_after(self, batch: object) -> ScanPosition | None:
        """There is none in a file."""
        return None

    async def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        if self._spill is not None:
            self._spill.close()


class _DelayedTtlKeys:
    """Keys with expire times, which wait until the others of their database have gone out.

    Where a database has a single expire time, a server looks for one of each key that it is given:
    in a table of their own, which costs a fifth of all that it does with a file (`removeExpire` and
    `dbGenericDelete`, db.c). Of so many keys that they do not fit here the first go out then, and
    the others of that database as they come.
    """

    def __init__(self) -> None:
        self._waiting: list[RecordBatch] = []
        self._bytes = 0
        self._db = -1
        self._open = True

    def arrange(self, batch: RecordBatch) -> list[RecordBatch]:
        """Keep what of this batch has to wait; what goes before it."""
        before: list[RecordBatch] = []
        if batch.db != self._db:
            before, self._db, self._open = self.take(), batch.db, True
        if self._open and (kept := batch.take_with_ttls()) is not None:
            self._waiting.append(kept)
            self._bytes += kept.nbytes
            self._open = self._bytes <= _ASIDE_BYTES
            if not self._open:
                before += self.take()
        return before

    def take(self) -> list[RecordBatch]:
        """What waits, in its order; nothing does any more."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        return waiting


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds, once all of it was read.

    `keys` counts those of each database, without the `expired`, `empty` and (by rules) `excluded`
    ones; `types` those of
    each type of value (RDB_TYPE_*), `modules` those of each module type, by its name. `refused`
    names some of the keys that cannot be carried, each with its reason, `refused_total` counts all;
    `left_out` is what is no key and is not carried, a line each; `behind` counts bytes behind the
    snapshot. `packed` says what the file is packed with, the outermost first; `size` is the packed
    one's. `checksummed`: the file (or its packing) has a
    checksum, and it was right. `seconds` is for how long it was read.
    """

    info: ServerInfo
    rdb_version: int
    size: int
    keys: dict[int, int]
    types: dict[int, int]
    modules: dict[str, int]
    expired: int
    empty: int
    excluded: int
    refused: tuple[tuple[bytes, str], ...]
    refused_total: int
    left_out: tuple[str, ...]
    checksummed: bool
    packed: tuple[str, ...]
    behind: int
    seconds: float


async def survey(
    path: Path | str, *, value_limit: int = DEFAULT_BULK_LIMIT, rules: KeyRules | None = None
) -> Survey:
    """Read a file to its end, and keep nothing of it. Raises as `RdbFile` does."""
    began = time.perf_counter()
    reader = SnapshotReader(
        stream_above=_SURVEY_HOLDS,
        value_limit=value_limit,
        made_limit=_MADE_MOST,
        drop_before=now_ms(),
        drop_imports=True,
        footers=False,
        rules=rules,
    )
    seen = seen_keys()
    twice = 0
    file = RdbFile(path, reader)
    keys: Counter[int] = Counter()
    modules: Counter[str] = Counter()
    refused: list[tuple[bytes, str]] = []
    refused_total = 0
    guard = ModuleGuard(lambda name: (name or "?", False))
    head = b""
    try:
        await file.open()
        more = True
        while more:
            for item in reader.take():
                if isinstance(item, RecordBatch):
                    if len(item):
                        keys[item.db] += len(item)
                        for index in seen.add(item, reader.keys_hint):
                            keys[item.db] -= 1
                            twice += 1
                            item.errors.append((item.key(index), _TWICE))
                    if not item.streamed:
                        # Taken out by the name of their types, which so are counted.
                        guard.withhold(item)
                        modules.update(name for _, name in item.withheld)
                    head = b""
                    refused_total += len(item.errors)
                    refused += item.errors[: max(_NAMED - len(refused), 0)]
                elif len(head) < HEAD_BYTES <= len(head := head + item[:HEAD_BYTES]):
                    # The beginning of a value in pieces.
                    modules.update([kind] if (kind := module_type(head)) is not None else [])
            more = await file.read_on()
        if rules is None:
            file.note(not twice and not seen.full, dict(keys))
    finally:
        file.close()
    return Survey(
        info=file.info,
        rdb_version=reader.version,
        size=file.size,
        keys=dict(sorted(keys.items())),
        types=reader.types,
        modules=dict(modules),
        expired=reader.expired,
        empty=reader.empty,
        excluded=reader.excluded,
        refused=tuple(refused),
        refused_total=refused_total,
        left_out=(*reader.left_out, *in_snapshot(reader.module_data).words),
        checksummed=reader.checksummed or file.checked_by_packing,
        packed=file.layers,
        behind=file.behind,
        seconds=time.perf_counter() - began,
    )


def seen_keys() -> SeenKeys:
    """Which keys a file has named. No client can choose keys that are taken for each other."""
    return SeenKeys(seed=int.from_bytes(os.urandom(8)))


def now_ms() -> int:
    """This machine's clock: keys whose expire time it has passed are not carried."""
    return time.time_ns() // 1_000_000
