"""An append-only file as a source: a snapshot, if it begins with one, and commands.

Nothing is written before `survey_aof` has read all of it once: a byte that makes no sense in the
last file would be found when everything before it had been applied. The second pass takes the same
bytes alone (`AofFiles`, which compares them) with the same readers, so it meets nothing that the
first has not.

A server that loads the file lets no key expire meanwhile. So the deadlines that its commands carry
are absolute and lifted by a hundred years here; they are set back when everything is applied
(`transfer.append_only`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from engine._native import (
    CMD_FLUSHES,
    CMD_MEMBER_TTL,
    CMD_PAYLOAD,
    CMD_SCRIPT,
    CMD_UNKNOWN,
    CommandBatch,
    HeldNames,
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
from engine.model.position import ScanPosition
from engine.model.server import ServerInfo, parse_version
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles, Part, changed
from engine.sources.base import Item, unpacked_names
from engine.sources.spill import Spill
from engine.wire.search import InSnapshot, in_snapshot

# Values that are not kept are not held beyond this.
_SURVEY_HOLDS = 64 << 10
_NAMED = 10
# Of a transaction that does not end: so many unknown names are kept, and so much of each.
_TAIL_NAMES_MOST = 100
_TAIL_NAME_BYTES = 64
_EXEC = encode_command("EXEC")
_MAGIC = (b"REDIS", b"VALKEY")
# A batch is a transaction on the target: between two of them the target waits for the next one.
_BATCH_BYTES = 4 << 20
_BATCH_COMMANDS = 32768
# Types of hashes that may have deadlines of fields (RDB_TYPE_*).
_WITH_FIELDS = frozenset({22, 24, 25})
# Every deadline is lifted.
_HOLD_BEFORE = 1 << 62
IDENTITY = "aof"


@dataclass(frozen=True, slots=True)
class Begin:
    """Where the commands of one file begin: behind its snapshot, or at its first byte."""

    part: Part
    offset: int


@dataclass(frozen=True, slots=True)
class OpenTail:
    """A transaction that the files end in, from `begin` on. `names`: those of its commands that the
    engine does not know, in capitals, each once.

    Where the server that loads the files does not know one either, it loads none of them: a
    damaged EXEC is such a name, and everything behind it is no tail.
    """

    part: Part
    begin: int
    names: tuple[bytes, ...]

    def unknown(self, name: bytes) -> ProtocolFault:
        """What to raise where the target does not know `name`."""
        shown = name.decode("ascii", "backslashreplace")
        return _unsound(
            self.part,
            f"the transaction that begins at byte {self.begin - self.part.begin:,} does not end, "
            f"and has a command {shown}, which neither the engine nor the target knows",
        )


@dataclass(frozen=True, slots=True)
class AofSurvey:
    """What the files hold, once all of them were read.

    `identity`: the same for the same bytes alone; it has their number in it (`size_in`). `end`: the
    offset behind the last command that is carried; `cut` says what is left out behind it, and why;
    empty: nothing is; `tail`: that is a transaction in which there are names to ask the target
    for. `snapshot`: there is one, and it ends at `begins[0].offset`; `keys`, `types`,
    `modules`, `refused`, `refused_total` and `left_out` are of it, as in `rdb_file.Survey`;
    `search` is what it tells of the search module, `graphs` whether FalkorDB was there (None: there
    is no snapshot that would tell).
    `commands` counts those that are carried, `held` those of them that end at the offset asked for,
    or before; `databases` are all that are named. `scripts`: how many commands run a script;
    `fields`: hashes may have deadlines of fields; `unknown`: names of commands that the engine does
    not know; `flushes`: some empty a database.
    `timestamps`: the first and the last, in seconds since the epoch; None: there are none.
    `seconds`: for how long they were read.
    """

    info: ServerInfo
    identity: str
    size: int
    end: int
    cut: str
    tail: OpenTail | None
    begins: tuple[Begin, ...]
    snapshot: bool
    rdb_version: int
    checksummed: bool
    keys: dict[int, int]
    types: dict[int, int]
    modules: dict[str, int]
    refused: tuple[tuple[bytes, str], ...]
    refused_total: int
    left_out: tuple[str, ...]
    search: InSnapshot
    graphs: bool | None
    commands: int
    held: int
    databases: tuple[int, ...]
    scripts: int
    fields: bool
    unknown: tuple[str, ...]
    flushes: bool
    timestamps: tuple[int, int] | None
    seconds: float

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self.begins)


def size_in(identity: str) -> int | None:
    """How many bytes the files had whose `AofSurvey.identity` this is; None: it is no such."""
    words = identity.split("-")
    if len(words) == 3 and words[0] == IDENTITY and words[2].isdigit():
        return int(words[2])
    return None


def identity_of(files: AofFiles) -> str:
    """`AofSurvey.identity` of files of which every byte was read."""
    return f"{IDENTITY}-{files.checksum:016x}-{files.size}"


async def is_known(files: AofFiles, identity: str) -> bool:
    """Whether these are the files of that `AofSurvey.identity`. Reads all of them, and parses
    nothing. Raises as `AofFiles.read`."""
    stop = threading.Event()

    def read() -> bool:
        for part in files.parts:
            for _ in files.portions(part):
                if stop.is_set():
                    return False
        return identity_of(files) == identity

    task = asyncio.create_task(asyncio.to_thread(read))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        # (The caller closes the files.)
        await asyncio.wait({task})
        raise


async def survey_aof(
    files: AofFiles, settings: TransferSettings, *, value_limit: int = 512 << 20, held_to: int = 0
) -> AofSurvey:
    """Read everything once, and keep nothing of it. `held_to`: see `AofSurvey.held`.

    Raises `ProtocolFault`, with file and byte, for what is no sound append-only file, and
    `EngineError` for what cannot be done with it, or cannot be read.
    """
    surveyor = _Surveyor(files, settings, value_limit, held_to)
    task = asyncio.create_task(asyncio.to_thread(surveyor.run))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        surveyor.stop.set()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


class _Surveyor:
    """The first pass, on a thread."""

    def __init__(
        self, files: AofFiles, settings: TransferSettings, value_limit: int, held_to: int
    ) -> None:
        self._files = files
        self._settings = settings
        self._value_limit = value_limit
        self._held_to = held_to
        self._held = 0
        self.stop = threading.Event()
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
            held=self._held,
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
            if self.stop.is_set():
                raise EngineError("the reading of the append-only file was stopped")
            if self._end is not None:
                # What is left out belongs to the bytes by which the files are known again.
                continue
            if number == 0 and portion.startswith(_MAGIC):
                if part is not self._files.parts[0]:
                    raise _unsound(part, "it is no increment, but begins with a snapshot")
                snapshot = self._snapshot = SnapshotReader(
                    stream_above=_SURVEY_HOLDS, value_limit=self._value_limit
                )
            if snapshot is not None and not snapshot.finished:
                if not self._read_snapshot(part, snapshot, portion):
                    continue
                begin = part.begin + snapshot.offset
                portion = snapshot.rest()
            if stream is None:
                settings = self._settings
                stream = stream_of(begin, until=settings.until_time, names=settings.stream_names)
            self._read_commands(part, stream, portion)
        if stream is not None:
            self._end_part(part, stream)
        elif snapshot is not None and not snapshot.finished:
            raise _unsound(part, f"it ends at byte {part.size:,} in the middle of its snapshot")
        return begin

    def _read_snapshot(self, part: Part, snapshot: SnapshotReader, portion: bytes) -> bool:
        """Whether the snapshot ends in this portion."""
        try:
            snapshot.feed(portion)
        except ProtocolError as exc:
            raise _unsound(part, f"its snapshot is not sound: {exc}") from exc
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
            raise _damaged(part, exc) from exc
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
        if batch.end_offset <= self._held_to:
            self._held += batch.stream_commands
        elif batch.start_offset < self._held_to:
            self._held += batch.split(self._held_to)[0].stream_commands
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
                f"{part.path} was written behind the time that --until-time says",
                remedy="What the data were before then is not in these files.",
                fault="user",
            )
        self._end = cut
        left = self._files.size - cut
        self._why = f"{left:,} bytes that were written behind the time asked for"
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
            raise _unsound(part, f"{what}, and it is not the last file")
        if not self._settings.aof_load_truncated:
            raise ProtocolFault(
                f"{part.path} is no whole append-only file: {what}",
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
        reader = stream_of(begin, names=self._settings.stream_names)
        at = begin
        while at < end and len(found) < _TAIL_NAMES_MOST:
            portion = self._files.read(part, at, end)
            at += len(portion)
            # As if it ended here: its commands are given out behind an EXEC alone.
            reader.feed(portion if at < end else portion + _EXEC)
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
                f"the snapshot in {self._files.parts[0].path} was made behind the time that "
                "--until-time says",
                remedy="What the data were before then is not in these files.",
                fault="user",
            )


def stream_of(
    offset: int,
    db: int = 0,
    in_multi: bool = False,
    *,
    until: int | None = None,
    hold_shift: int = 0,
    now_ms: int = 0,
    names: Iterable[tuple[bytes, bytes, bytes]] = (),
    lift_fields: bool = False,
) -> StreamReader:
    """What reads commands from `offset` on; with `hold_shift` their deadlines are lifted by it, and
    with `lift_fields` those of hash fields. `names`: `TransferSettings.stream_names`."""
    reader = StreamReader(
        offset,
        db,
        in_multi,
        batch_bytes=_BATCH_BYTES,
        batch_commands=_BATCH_COMMANDS,
        publish=False,
        append_only=True,
        until=until,
        anchor=hold_shift > 0,
        names=names,
        lift_fields=lift_fields,
    )
    if hold_shift:
        reader.now_ms = now_ms
        reader.hold_before, reader.hold_shift = _HOLD_BEFORE, hold_shift
    return reader


class AofSnapshot:
    """`Source` from the snapshot that an append-only file begins with. Deadlines are lifted by
    `hold_shift` ms, those that have passed as well; the keys' names go to `names`. With `fields`
    those of hash fields are lifted too, and the hashes' names go there."""

    def __init__(
        self,
        files: AofFiles,
        survey: AofSurvey,
        settings: TransferSettings,
        hold_shift: int,
        names: HeldNames,
        fields: HeldNames | None = None,
    ) -> None:
        self._files = files
        self._fields = fields
        self.stuck: list[tuple[int, bytes]] = []
        """Hashes whose fields' deadlines could not be lifted."""
        self._end = survey.begins[0].offset
        self._settings = settings
        self._hold_shift = hold_shift
        self._names = names
        self._at = 0
        self._spill: Spill | None = None
        self.info = survey.info
        self.bulk_limit = 512 << 20
        """Bytes of the longest value that the target takes; longer ones are read to nothing."""
        self.reader = SnapshotReader()
        """What reads it; its lists grow with the reading."""

    @property
    def telemetry(self) -> bool:
        """Whether the server that wrote it had FalkorDB."""
        return has_graphs(self.reader.module_data)

    @property
    def total_keys(self) -> int:
        """Keys that the snapshot has announced so far: it does so database by database."""
        return self.reader.keys_hint

    async def open(self, position: ScanPosition | None) -> None:
        """Begin anew. A position means nothing to it."""
        del position
        await self.close()
        self._at = 0
        self.stuck = []
        self._spill = Spill(self.bulk_limit)
        self.reader = SnapshotReader(
            batch_bytes=self._settings.batch_bytes,
            stream_above=self._settings.stream_above,
            value_limit=self.bulk_limit,
            hold_before=_HOLD_BEFORE,
            hold_shift=self._hold_shift,
            lift_fields=self._fields is not None,
        )

    async def items(self) -> AsyncGenerator[Item, None]:
        """Batches in order; a streamed batch is followed by the pieces of its value."""
        assert self._spill is not None
        part = self._files.parts[0]
        while not self.reader.finished:
            portion = await asyncio.to_thread(self._files.read, part, self._at, self._end)
            self._at += len(portion)
            try:
                self.reader.feed(portion)
            except ProtocolError as exc:
                raise _unsound(part, f"its snapshot is not sound: {exc}") from exc
            if not portion and not self.reader.finished:
                raise changed(part, "its snapshot does not end where it did")
            async for item in self._spill.arrange(self.reader.take()):
                if not isinstance(item, bytes):
                    self._names.add_records(item, self._hold_shift // 2)
                    if self._fields is not None:
                        self._fields.add_packed(item.db, item.timed)
                        self.stuck += [(item.db, key) for key in unpacked_names(item.stuck)]
                yield item

    def continues(self, position: ScanPosition) -> bool:
        """Never: see `open`."""
        del position
        return False

    def position_after(self, batch: object) -> ScanPosition | None:
        """There is none in a snapshot."""
        del batch
        return None

    async def close(self) -> None:
        """Let go of what is kept aside."""
        if self._spill is not None:
            self._spill.close()


class AofCommands:
    """The commands from an offset on, in batches; each batch ends at a unit's end, as far as the
    unit is not too long."""

    def __init__(
        self,
        files: AofFiles,
        survey: AofSurvey,
        offset: int,
        db: int,
        in_multi: bool,
        *,
        hold_shift: int,
        names: Iterable[tuple[bytes, bytes, bytes]] = (),
        lift_fields: bool = False,
    ) -> None:
        self._files = files
        self._survey = survey
        self._names = list(names)
        self._lift_fields = lift_fields
        self._hold_shift = hold_shift
        self._now_ms = time.time_ns() // 1_000_000
        # The one file that is read, and those behind it.
        self._rest = [each for each in survey.begins if each.part.end > offset]
        self._at = offset
        self._reader: StreamReader | None = None
        if self._rest:
            begin = self._rest[0].offset
            if offset <= begin:
                # Each file begins in database 0 (loadSingleAppendOnlyFile, aof.c).
                offset, db, in_multi = begin, 0, False
            self._begin(offset, db, in_multi)

    def next(self) -> CommandBatch | None:
        """The next batch; None: there is no more. It blocks, for it reads files: on a thread."""
        while self._reader is not None:
            if (batch := self._reader.next(False)) is not None:
                return batch
            part = self._rest[0].part
            portion = self._files.read(part, self._at, self._survey.end)
            try:
                self._at += len(portion)
                if portion:
                    self._reader.feed(portion)
                    continue
            except ProtocolError as exc:
                raise _damaged(part, exc) from exc
            if (batch := self._reader.next(True)) is not None:
                return batch
            if self._reader.batched_offset != min(part.end, self._survey.end):
                raise changed(part, "its commands do not end where they did")
            del self._rest[0]
            self._reader = None
            if self._rest and self._rest[0].offset < self._survey.end:
                self._begin(self._rest[0].offset, 0, False)
        return None

    def _begin(self, offset: int, db: int, in_multi: bool) -> None:
        self._at = offset
        self._reader = stream_of(
            offset,
            db,
            in_multi,
            hold_shift=self._hold_shift,
            now_ms=self._now_ms,
            names=self._names,
            lift_fields=self._lift_fields,
        )


def _writer(snapshot: SnapshotReader | None) -> ServerInfo:
    """The server that wrote the snapshot, as far as it says who that was."""
    if snapshot is None:
        return ServerInfo(flavour="redis", version=(0, 0, 0))
    ours = snapshot.aux.get("valkey-ver")
    said = (ours or snapshot.aux.get("redis-ver", b"0")).decode("ascii", "replace")
    valkey = ours is not None or snapshot.flavour == "valkey"
    memory = snapshot.aux.get("used-mem", b"")
    return ServerInfo(
        flavour="valkey" if valkey else "redis",
        version=parse_version(said),
        used_memory=int(memory) if memory.isdigit() else 0,
    )


def _damaged(part: Part, exc: ProtocolError) -> ProtocolFault:
    expected, _, _ = str(exc).partition(" at offset ")
    offset = exc.offset if exc.offset is not None else part.begin
    return _unsound(part, f"{expected} at byte {offset - part.begin:,}")


def _unsound(part: Part, what: str) -> ProtocolFault:
    return ProtocolFault(
        f"{part.path} is no sound append-only file: {what}",
        remedy="redis-check-aof shows the place, and can cut the file off there.",
        fault="source",
    )
