"""The file source: an RDB file, as SAVE or BGSAVE writes it.

A file has no position to go on from: opened again it is read from its beginning, which RESTORE with
REPLACE makes good. What it holds beside the keys (functions, scripts) is in `reader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, cast

from engine._native import ProtocolError, SnapshotReader
from engine.errors import EngineError, ProtocolFault, UsageError
from engine.model.position import ScanPosition
from engine.model.server import ServerInfo, parse_version
from engine.model.settings import TransferSettings
from engine.sources.base import Item
from engine.sources.spill import Spill

_READ_BYTES = 1 << 20


class RdbFileSource:
    """`Source` from a file. `reader` tells, once it was read, what else the snapshot held."""

    def __init__(self, path: Path | str, settings: TransferSettings) -> None:
        if settings.match is not None or settings.key_type is not None:
            raise UsageError(
                "a file is read whole: --match and --type ask a server",
                remedy="Leave them out, or choose databases.",
            )
        self._path = Path(path)
        self._settings = settings
        self.bulk_limit = 512 << 20
        """Bytes of the longest value that the target takes; longer ones are read to nothing."""
        self._file: IO[bytes] | None = None
        self._spill: Spill | None = None
        self.reader = SnapshotReader()
        self.info: ServerInfo = cast(ServerInfo, None)

    @property
    def total_keys(self) -> int:
        """Keys that the snapshot has announced so far: it does so database by database."""
        return self.reader.keys_hint

    async def open(self, position: ScanPosition | None) -> None:
        """Open the file and read its head. A position means nothing to it: it begins anew.

        Raises `EngineError` when it cannot be read, `ProtocolFault` when it is no snapshot.
        """
        await self.close()
        self.reader = SnapshotReader(
            batch_bytes=self._settings.batch_bytes,
            stream_above=self._settings.stream_above,
            value_limit=self.bulk_limit,
        )
        self._spill = Spill(self.bulk_limit)
        try:
            self._file = await asyncio.to_thread(self._path.open, "rb", 0)
        except OSError as exc:
            raise self._unreadable(exc) from exc
        await self._read_on()
        self.info = _info(self.reader)

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
                    yield item
            more = await self._read_on()

    def continues(self, position: ScanPosition) -> bool:
        """Never: see `open`."""
        return False

    def position_after(self, batch: object) -> ScanPosition | None:
        """There is none in a file."""
        return None

    async def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._spill is not None:
            self._spill.close()

    async def _read_on(self) -> bool:
        """Read the next portion; False at the file's end, which must be the snapshot's."""
        assert self._file is not None
        try:
            portion = await asyncio.to_thread(self._file.read, _READ_BYTES)
        except OSError as exc:
            raise self._unreadable(exc) from exc
        reader = self.reader
        if not portion:
            if reader.finished:
                return False
            raise ProtocolFault(
                f"{self._path} ends at byte {self._file.tell()} in the middle of its snapshot",
                remedy="Was it copied before it was written to its end?",
                fault="source",
            )
        try:
            reader.feed(portion)
        except ProtocolError as exc:
            raise ProtocolFault(
                f"{self._path} is no sound snapshot: {exc}", fault="source"
            ) from exc
        end = reader.offset
        if reader.finished and reader.rest():
            raise ProtocolFault(
                f"{self._path} goes on behind its snapshot, from byte {end}",
                remedy="An append-only file holds commands there, which are not read: give the "
                "file that SAVE wrote.",
                fault="source",
            )
        return True

    def _unreadable(self, exc: OSError) -> EngineError:
        return EngineError(f"cannot read {self._path}: {exc.strerror or exc}", fault="source")


def _info(reader: SnapshotReader) -> ServerInfo:
    """The server that wrote the snapshot, as far as it says who that was."""
    ours = reader.aux.get("valkey-ver")
    version = parse_version((ours or reader.aux.get("redis-ver", b"0")).decode("ascii", "replace"))
    valkey = ours is not None or reader.flavour == "valkey"
    return ServerInfo(flavour="valkey" if valkey else "redis", version=version)
