"""The second pass over an append-only file, whose bytes the first one has found sound: what goes to
the target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable

from engine._native import CommandBatch, ExtendedNames, ProtocolError, SnapshotReader, StreamReader
from engine.model.modules import has_graphs
from engine.model.position import ScanPosition
from engine.model.settings import TransferSettings
from engine.model.spool_directory import spool_directory
from engine.sources.aof_files import AofFiles, changed
from engine.sources.aof_findings import (
    EXTEND_BEFORE,
    AofSurvey,
    damaged,
    stream_of,
    unkept,
    unsound,
)
from engine.sources.base import Item, unpacked_names
from engine.sources.value_spill import Spill
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT


class AofSnapshot:
    """`Source` from the snapshot that an append-only file begins with. Expire times are extended by
    `extend_by` ms, those that have passed as well; the keys' names go to `names`. With `fields`
    those of hash fields are extended too, and the hashes' names go there."""

    paces = False

    def __init__(
        self,
        files: AofFiles,
        survey: AofSurvey,
        settings: TransferSettings,
        extend_by: int,
        names: ExtendedNames,
        fields: ExtendedNames | None = None,
    ) -> None:
        self._files = files
        self._fields = fields
        self.stuck: list[tuple[int, bytes]] = []
        """Hashes whose fields' expire times could not be extended."""
        self._end = survey.begins[0].offset
        self._settings = settings
        self._extend_by = extend_by
        self._names = names
        self._at = 0
        self._spill: Spill | None = None
        self.info = survey.info
        self.bulk_limit = DEFAULT_BULK_LIMIT
        """Bytes of the longest value that the target takes in one argument."""
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
        self._spill = Spill(
            max(self.bulk_limit, self._settings.spool_bytes),
            spool_directory(self._settings.spool_directory),
        )
        self.reader = SnapshotReader(
            batch_bytes=self._settings.batch_bytes,
            stream_above=min(self._settings.stream_above, self.bulk_limit),
            value_limit=self.bulk_limit,
            made_limit=self._settings.spool_bytes,
            extend_before=EXTEND_BEFORE,
            extend_by=self._extend_by,
            extend_fields=self._fields is not None,
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
                raise unsound(part, f"its snapshot is not sound: {exc}") from exc
            if not portion and not self.reader.finished:
                raise changed(part, "its snapshot does not end where it did")
            async for item in self._spill.arrange(self.reader.take()):
                if not isinstance(item, bytes):
                    self._names.add_records(item, self._extend_by // 2)
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
        extend_by: int,
        names: Iterable[tuple[bytes, bytes, bytes]] = (),
        extend_fields: bool = False,
        directory: str | None = None,
        lacks: int = 0,
    ) -> None:
        self._files = files
        self._directory = directory
        self._lacks = lacks
        self._survey = survey
        self._names = list(names)
        self._extend_fields = extend_fields
        self._extend_by = extend_by
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
                raise damaged(part, exc) from exc
            except OSError as exc:
                raise unkept(self._directory, exc) from exc
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
            extend_by=self._extend_by,
            now_ms=self._now_ms,
            names=self._names,
            extend_fields=self._extend_fields,
            directory=self._directory,
            lacks=self._lacks,
        )
