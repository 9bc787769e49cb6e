"""An append-only file as a source: a snapshot, if it begins with one, and commands.

Nothing is written before `survey_aof` (`aof_survey`) has read all of it once: a byte that makes no
sense in the last file would be found when everything before it had been applied. The second pass
(`aof_source`) takes the same bytes alone (`AofFiles`, which compares them) with the same readers,
so it meets nothing that the first has not.

A server that loads the file lets no key expire meanwhile. So the expire times that its commands
carry are absolute and extended by a hundred years here; they are set back when everything is
applied (`transfer.aof_migration`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from engine._native import ProtocolError, StreamReader
from engine.errors import ProtocolFault, SpoolFull
from engine.model.server import ServerInfo
from engine.model.spool_directory import spool_directory
from engine.sources.aof_files import AofFiles, Part
from engine.sources.on_thread import go_on, on_thread
from engine.sources.spool import nameless_file
from engine.wire.search_indexes import InSnapshot

# A batch is a transaction on the target: between two of them the target waits for the next one.
_BATCH_BYTES = 4 << 20
_BATCH_COMMANDS = 32768
EXTEND_BEFORE = 1 << 62
"""Every expire time is extended: each is before that (`StreamReader.extend_before`)."""
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
        return unsound(
            self.part,
            f"the transaction that begins at byte {self.begin - self.part.begin:,} does not end, "
            f"and has a command {shown}, which neither the engine nor the target knows",
        )


@dataclass(frozen=True, slots=True)
class AofSurvey:
    """What the files hold, once all of them were read.

    `identity`: the same for the same bytes alone; it has their number in it (`size_in`). `end`: the
    offset behind the last command that is carried; `cut` says what is left out behind it, and why;
    empty: nothing is; `tail`: that is a transaction in which there are names to ask the target for.
    `snapshot`: there is one, and it ends at `begins[0].offset`; `keys`, `types`, `modules`,
    `refused`, `refused_total` and `left_out` are of it, as in `rdb_file.Survey`; `search` is what
    it tells of the search module, `graphs` whether FalkorDB was there (None: there is no snapshot
    that would tell). `commands` counts those that are carried, `applied` those of them that end at
    the offset asked for, or before; `databases` are all that are named. `scripts`: how many
    commands run a script; `fields`: hashes may have expire times of fields; `unknown`: names of
    commands that the engine does not know; `flushes`: some empty a database. `timestamps`: the
    first and the last, in seconds since the epoch; None: there are none. `seconds`: for how long
    they were read.
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
    applied: int
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

    def read(stop: threading.Event) -> bool:
        for part in files.parts:
            for _ in files.portions(part):
                go_on(stop)
        return identity_of(files) == identity

    return await on_thread(read)


def stream_of(
    offset: int,
    db: int = 0,
    in_multi: bool = False,
    *,
    until: int | None = None,
    extend_by: int = 0,
    now_ms: int = 0,
    names: Iterable[tuple[bytes, bytes, bytes]] = (),
    extend_fields: bool = False,
    directory: str | None = None,
    lacks: int = 0,
) -> StreamReader:
    """What reads commands from `offset` on; with `extend_by` their expire times are extended by it,
    and with `extend_fields` those of hash fields. `names`: `TransferSettings.stream_names`.
    `lacks`: which newer commands the target does not know (`StreamReader`).
    `directory`: `TransferSettings.spool_directory`; what `feed` raises where a long command cannot
    be kept there, `unkept` explains."""
    reader = StreamReader(
        offset,
        db,
        in_multi,
        batch_bytes=_BATCH_BYTES,
        batch_commands=_BATCH_COMMANDS,
        publish=False,
        append_only=True,
        until=until,
        anchor=extend_by > 0,
        names=names,
        extend_fields=extend_fields,
        file=lambda: nameless_file(spool_directory(directory)),
        lacks=lacks,
    )
    if extend_by:
        reader.now_ms = now_ms
        reader.extend_before, reader.extend_by = EXTEND_BEFORE, extend_by
    return reader


def unkept(directory: str | None, exc: OSError) -> SpoolFull:
    """What to raise where a long command cannot be kept on disk."""
    return SpoolFull(
        f"a long command cannot be kept in the spool's directory {spool_directory(directory)}: "
        f"{exc.strerror}",
        remedy="Name a larger disk with --spool-directory.",
    )


def damaged(part: Part, exc: ProtocolError) -> ProtocolFault:
    """What to raise for commands that cannot be read."""
    expected, _, _ = str(exc).partition(" at offset ")
    offset = exc.offset if exc.offset is not None else part.begin
    return unsound(part, f"{expected} at byte {offset - part.begin:,}")


def unsound(part: Part, what: str) -> ProtocolFault:
    """What to raise for a file that no server has written so."""
    return ProtocolFault(
        f"{part.path} is not a valid append-only file: {what}",
        remedy="redis-check-aof shows the place, and can cut the file off there.",
        fault="source",
    )
