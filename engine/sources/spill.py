"""Values whose length nobody knew: kept in a file until their record comes.

`SnapshotReader` gives the pieces of a long collection before its batch, for the snapshot says only
at its end how long it is. A target needs them behind it. In between they lie in a temporary file,
which has no name and goes with the process, however that ends.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable
from typing import IO, cast

from engine.errors import EngineError
from engine.sources.base import Item

_READ_BYTES = 256 << 10


class Spill:
    """Puts items of `SnapshotReader.take` into the order that a target takes.

    `limit` bounds the file, in bytes; a reader whose `value_limit` is no larger never reaches it.
    `folder` is where the file lies (None: where temporary files go).
    """

    def __init__(self, limit: int, folder: str | None = None) -> None:
        self._limit = limit
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._kept = 0
        # Of a streamed value: pieces that follow their batch as they are.
        self._left = 0

    async def arrange(self, items: Iterable[Item]) -> AsyncGenerator[Item, None]:
        """The same items, the pieces of a spilled value behind its batch.

        Call it for all that the reader gives, in order. Raises `EngineError` when the file cannot
        be written or read.
        """
        for item in items:
            if isinstance(item, bytes):
                if self._left:
                    self._left -= len(item)
                    yield item
                else:
                    await self._keep(item)
                continue
            self._left = item.value_size(0) if item.streamed and not item.spilled else 0
            yield item
            if item.spilled:
                if item.streamed:
                    async for piece in self._give_back(item.value_size(0)):
                        yield piece
                self.close()

    def close(self) -> None:
        """Throw away what is kept."""
        file, self._file, self._kept = self._file, None, 0
        if file is not None:
            file.close()

    async def _keep(self, piece: bytes) -> None:
        if self._kept + len(piece) > self._limit:
            raise EngineError(f"a value is longer than the {self._limit:,} bytes that it may have")
        try:
            if self._file is None:
                # A BinaryIO in all but the type that the stubs give it.
                opened = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                self._file = cast(IO[bytes], opened)
            await asyncio.to_thread(_write, self._file, piece)
        except OSError as exc:
            raise self._failed("write", exc) from exc
        self._kept += len(piece)

    async def _give_back(self, size: int) -> AsyncGenerator[Item, None]:
        if size != self._kept or self._file is None:
            raise EngineError(f"{self._kept:,} bytes of a value were kept, expected {size:,}")
        file = self._file
        try:
            file.seek(0)
            while size:
                piece = await asyncio.to_thread(file.read, min(size, _READ_BYTES))
                if not piece:
                    raise EngineError("the file with a long value has become shorter")
                size -= len(piece)
                yield piece
        except OSError as exc:
            raise self._failed("read", exc) from exc

    def _failed(self, what: str, exc: OSError) -> EngineError:
        folder = self._folder or tempfile.gettempdir()
        return EngineError(
            f"could not {what} a long value in {folder}: {exc.strerror or exc}",
            remedy="Free space there, or name another folder in TMPDIR.",
        )


def _write(file: IO[bytes], piece: bytes) -> None:
    """All of it: a raw file may take a part."""
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]
