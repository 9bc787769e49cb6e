"""The first pass over an append-only file: what it holds, and whether all of it is sound."""

from __future__ import annotations

import threading
import time
from collections import Counter

from engine._native import (
    CMD_FLUSHES,
    CMD_MEMBER_TTL,
    CMD_PAYLOAD,
    CMD_SCRIPT,
    CMD_UNKNOWN,
    CommandBatch,
    ModuleGuard,
    ProtocolError,
    RecordBatch,
    SnapshotReader,
    StreamReader,
    encode_command,
    module_type,
)
from engine.errors import EngineError, ProtocolFault
from engine.model.modules import HEAD_BYTES, has_graphs
from engine.model.server import ServerInfo, parse_version
from engine.model.server_capabilities import flavour_named
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles, Part
from engine.sources.aof_findings import (
    AofSurvey,
    Begin,
    OpenTail,
    damaged,
    identity_of,
    stream_of,
    unkept,
    unsound,
)
from engine.sources.on_thread import go_on, on_thread
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT
from engine.wire.search_indexes import InSnapshot, in_snapshot

# Values that are not kept are not read into memory beyond this.
_SURVEY_HOLDS = 64 << 10
# How long a value may be that is made by commands is a matter of the disk then.
_MADE_MOST = 1 << 62
_NAMED = 10
# Of a transaction that does not end: so many unknown names are kept, and so much of each.
_TAIL_NAMES_MOST = 100
_TAIL_NAME_BYTES = 64
_EXEC = encode_command("EXEC")
_MAGIC = (b"REDIS", b"VALKEY")
# Types of hashes that may have expire times of fields (RDB_TYPE_*).
_WITH_FIELDS = frozenset({22, 24, 25})


async def survey_aof(
    files: AofFiles,
    settings: TransferSettings,
    *,
    value_limit: int = DEFAULT_BULK_LIMIT,
    applied_to: int = 0,
) -> AofSurvey:
    """Read everything once, and keep nothing of it. `applied_to`: see `AofSurvey.applied`.

    Raises `ProtocolFault`, with file and byte, for what is not a valid append-only file, and
    `EngineError` for what cannot be done with it, or cannot be read.
    """

    def read(stop: threading.Event) -> AofSurvey:
        return _Surveyor(files, settings, value_limit, applied_to, stop).run()

    return await on_thread(read)


class _Surveyor:
    """The first pass, on a thread."""

    def __init__(
        self,
        files: AofFiles,
        settings: TransferSettings,
        value_limit: int,
        applied_to: int,
        stop: threading.Event,
    ) -> None:
        self._files = files
        self._settings = settings
        self._value_limit = value_limit
        self._applied_to = applied_to
        self._applied = 0
        self._stop = stop
        self._snapshot: SnapshotReader | None = None
        self._guard = ModuleGuard(lambda name: (name or "?", False))
        self._head = b""
        self._keys: Counter[int] = Counter()
        self._modules: Counter[str] = Counter()
        self._refused: list[tuple[bytes, str]] = []
        self._refused_total = 0
        self._databases: set[int] = set()
        self._commands = self._scripts = 0
        self._fields = False
        self._unknown: dict[str, None] = {}
        self._flushes = False
        self._first_time: int | None = None
        self._last_time = 0
        # Where everything behind is left out, and why.
        self._end: int | None = None
        self._why = ""
        self._tail: OpenTail | None = None

    def run(self) -> AofSurvey:
        began = time.perf_counter()
        begins = [Begin(part, self._read_part(part)) for part in self._files.parts]
        self._check_times()
        size = self._files.size
        end = size if self._end is None else self._end
        snapshot = self._snapshot
        return AofSurvey(
            info=_writer(snapshot),
            identity=identity_of(self._files),
            size=size,
            end=end,
            cut=self._why,
            tail=self._tail,
            begins=tuple(begins),
            snapshot=snapshot is not None,
            rdb_version=0 if snapshot is None else snapshot.version,
            checksummed=snapshot is not None and snapshot.checksummed,
            keys=dict(sorted(self._keys.items())),
            types={} if snapshot is None else snapshot.types,
            modules=dict(self._modules),
            refused=tuple(self._refused),
            refused_total=self._refused_total,
            left_out=()
            if snapshot is None
            else (*snapshot.left_out, *in_snapshot(snapshot.module_data).words),
            search=InSnapshot() if snapshot is None else in_snapshot(snapshot.module_data),
            graphs=None if snapshot is None else has_graphs(snapshot.module_data),
            commands=self._commands,
            applied=self._applied,
            databases=tuple(sorted(self._databases | set(self._keys))),
            scripts=self._scripts,
            fields=self._fields or bool(snapshot and not _WITH_FIELDS.isdisjoint(snapshot.types)),
            unknown=tuple(self._unknown),
            flushes=self._flushes,
            timestamps=None if self._first_time is None else (self._first_time, self._last_time),
            seconds=time.perf_counter() - began,
        )

    def _read_part(self, part: Part) -> int:
        """One file; the offset at which its commands begin."""
        snapshot: SnapshotReader | None = None
        stream: StreamReader | None = None
        begin = part.begin
        for number, portion in enumerate(self._files.portions(part)):
            go_on(self._stop)
            if self._end is not None:
                # What is left out belongs to the bytes by which the files are known again.
                continue
            if number == 0 and portion.startswith(_MAGIC):
                if part is not self._files.parts[0]:
                    raise unsound(part, "it is not an increment: it begins with a snapshot")
                snapshot = self._snapshot = SnapshotReader(
                    stream_above=_SURVEY_HOLDS,
                    value_limit=self._value_limit,
                    made_limit=_MADE_MOST,
                )
            if snapshot is not None and not snapshot.finished:
                if not self._read_snapshot(part, snapshot, portion):
                    continue
                begin = part.begin + snapshot.offset
                portion = snapshot.rest()
            if stream is None:
                settings = self._settings
                stream = stream_of(
                    begin,
                    until=settings.until_time,
                    names=settings.stream_names,
                    directory=settings.spool_directory,
                )
            self._read_commands(part, stream, portion)
        if stream is not None:
            self._end_part(part, stream)
        elif snapshot is not None and not snapshot.finished:
            raise unsound(part, f"it ends at byte {part.size:,} in the middle of its snapshot")
        return begin

    def _read_snapshot(self, part: Part, snapshot: SnapshotReader, portion: bytes) -> bool:
        """Whether the snapshot ends in this portion."""
        try:
            snapshot.feed(portion)
        except ProtocolError as exc:
            raise unsound(part, f"its snapshot is not sound: {exc}") from exc
        for item in snapshot.take():
            if isinstance(item, RecordBatch):
                if len(item):
                    self._keys[item.db] += len(item)
                if not item.streamed:
                    # Taken out by the name of their types, which so are counted.
                    self._guard.withhold(item)
                    self._modules.update(name for _, name in item.withheld)
                self._head = b""
                self._refused_total += len(item.errors)
                self._refused += item.errors[: max(_NAMED - len(self._refused), 0)]
            elif len(self._head) < HEAD_BYTES:
                self._head += item[:HEAD_BYTES]
                if len(self._head) >= HEAD_BYTES and (kind := module_type(self._head)):
                    self._modules[kind] += 1
        return snapshot.finished

    def _read_commands(self, part: Part, stream: StreamReader, portion: bytes) -> None:
        try:
            stream.feed(portion)
        except ProtocolError as exc:
            raise damaged(part, exc) from exc
        except OSError as exc:
            raise unkept(self._settings.spool_directory, exc) from exc
        self._count_batches(stream)
        if stream.cut_offset is not None:
            self._cut_by_time(part, stream)

    def _count_batches(self, stream: StreamReader) -> None:
        cut = stream.cut_offset
        for batch in stream.take():
            if cut is None or batch.end_offset <= cut:
                self._count(batch)
            elif batch.start_offset < cut:
                self._count(batch.split(cut)[0])

    def _count(self, batch: CommandBatch) -> None:
        self._commands += batch.stream_commands
        if batch.end_offset <= self._applied_to:
            self._applied += batch.stream_commands
        elif batch.start_offset < self._applied_to:
            self._applied += batch.split(self._applied_to)[0].stream_commands
        self._databases |= batch.databases
        if batch.holds(CMD_SCRIPT):
            self._scripts += len(batch.indices(CMD_SCRIPT))
        self._fields = self._fields or batch.holds(CMD_MEMBER_TTL | CMD_PAYLOAD)
        if batch.holds(CMD_UNKNOWN):
            for name in batch.unknown[:_NAMED]:
                if len(self._unknown) < _NAMED:
                    self._unknown[name[:64].decode("ascii", "backslashreplace")] = None
        self._flushes = self._flushes or batch.holds(CMD_FLUSHES)

    def _cut_by_time(self, part: Part, stream: StreamReader) -> None:
        """What was written behind `until_time` begins here."""
        cut = stream.cut_offset
        assert cut is not None
        if part.kind == "base" or (part is self._files.parts[0] and cut == part.begin):
            raise EngineError(
                f"{part.path} was written after the time that --until-time says",
                remedy="What the data were before then is not in these files.",
                fault="user",
            )
        self._end = cut
        left = self._files.size - cut
        self._why = f"{left:,} bytes that were written after the time asked for"
        self._note_times(stream)

    def _end_part(self, part: Part, stream: StreamReader) -> None:
        """The end of a file that has commands: is it one of a unit as well?"""
        stream.flush()
        self._count_batches(stream)
        if self._end is not None:
            return
        self._note_times(stream)
        end = stream.multi_offset if stream.in_multi else stream.parsed_offset
        left = part.end - end
        if not left:
            return
        kind = "transaction" if stream.in_multi else "command"
        what = f"it ends inside a {kind} that begins at byte {end - part.begin:,}"
        if part is not self._files.parts[-1]:
            raise unsound(part, f"{what}, and it is not the last file")
        if not self._settings.aof_load_truncated:
            raise ProtocolFault(
                f"{part.path} is not a complete append-only file: {what}",
                remedy=f"Its last {left:,} bytes are left out without --aof-load-truncated no.",
                fault="source",
            )
        self._end = end
        self._why = f"the last {left:,} bytes of {part.path.name}: {what}"
        if stream.in_multi and (names := self._unknown_between(part, end, stream.parsed_offset)):
            self._tail = OpenTail(part, end, names)

    def _unknown_between(self, part: Part, begin: int, end: int) -> tuple[bytes, ...]:
        """The names of `OpenTail`, of a transaction whose last whole command ends at `end`."""
        found: dict[bytes, None] = {}
        settings = self._settings
        reader = stream_of(begin, names=settings.stream_names, directory=settings.spool_directory)
        at = begin
        while at < end and len(found) < _TAIL_NAMES_MOST:
            portion = self._files.read(part, at, end)
            at += len(portion)
            # As if it ended here: its commands are given out behind an EXEC alone.
            try:
                reader.feed(portion if at < end else portion + _EXEC)
            except OSError as exc:
                raise unkept(settings.spool_directory, exc) from exc
            if at == end:
                reader.flush()
            for batch in reader.take():
                found.update(dict.fromkeys(name[:_TAIL_NAME_BYTES] for name in batch.unknown))
        return tuple(found)[:_TAIL_NAMES_MOST]

    def _note_times(self, stream: StreamReader) -> None:
        if stream.timestamps:
            if self._first_time is None:
                self._first_time = stream.first_timestamp
            self._last_time = stream.last_timestamp

    def _check_times(self) -> None:
        until = self._settings.until_time
        if until is None:
            return
        if self._first_time is None:
            raise EngineError(
                f"{self._files.path} has no timestamps, so that --until-time means nothing to it",
                remedy="A server writes them with aof-timestamp-enabled yes (Redis 7.0 and later).",
                fault="user",
            )
        made = self._snapshot.aux.get("ctime", b"") if self._snapshot is not None else b""
        if made.isdigit() and int(made) > until:
            raise EngineError(
                f"the snapshot in {self._files.parts[0].path} was made after the time that "
                "--until-time says",
                remedy="What the data were before then is not in these files.",
                fault="user",
            )


def _writer(snapshot: SnapshotReader | None) -> ServerInfo:
    """The server that wrote the snapshot, as far as it says so."""
    if snapshot is None:
        return ServerInfo(flavour="redis", version=(0, 0, 0))
    ours = snapshot.aux.get("valkey-ver")
    said = (ours or snapshot.aux.get("redis-ver", b"0")).decode("ascii", "replace")
    memory = snapshot.aux.get("used-mem", b"")
    return ServerInfo(
        flavour=flavour_named("valkey" if ours is not None else snapshot.flavour),
        version=parse_version(said),
        used_memory=int(memory) if memory.isdigit() else 0,
    )
