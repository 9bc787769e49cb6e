"""Values in pieces: kept in a file until their record comes, or until they have arrived.

`SnapshotReader` gives the pieces of a long collection before its batch, for the snapshot says only
at its end how long it is. A target needs them behind it. In between they lie in a temporary file,
which has no name and goes with the process, however that ends.

A snapshot cannot be read twice. So that a target's link that breaks in the middle of a value does
not cost another one, values in pieces can be kept until the target has acknowledged them: those
that were in a file stay there, the others are written to one as they pass by.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import IO

from engine._native import RecordBatch
from engine.errors import EngineError
from engine.model.temporary_file import temporary_file, write_all
from engine.sources.base import Item

_READ_BYTES = 256 << 10


class Spill:
    """Puts items of `SnapshotReader.take` into the order that a target takes.

    `limit` bounds the file, in bytes, which lies in `folder`; a reader whose `value_limit` and
    `made_limit` are no larger never reaches it. Values that were given are kept for `again`, up to
    `keep` bytes in all: beyond that the oldest are given up.
    """

    def __init__(self, limit: int, folder: str, *, keep: int = 0) -> None:
        self._limit = limit
        self._folder = folder
        self._keep_most = keep
        self._given: dict[RecordBatch, tuple[IO[bytes], int]] = {}
        self._given_bytes = 0
        # Of the value that passes by: where it is kept meanwhile; None: it is not.
        self._copy: IO[bytes] | None = None
        self._copied: RecordBatch | None = None
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
                    await self._pass_by(item)
                    yield item
                else:
                    await self._keep(item)
                continue
            self._left = item.value_size(0) if item.streamed and not item.spilled else 0
            if self._left:
                self._begin_to_copy(item)
            yield item
            if item.spilled:
                if item.streamed:
                    file, size = self._file, item.value_size(0)
                    if file is not None and size == self._kept and self._has_room(size):
                        self._file, self._kept = None, 0
                        self._add(item, file, size)
                        async for piece in self._read(file, size):
                            yield piece
                    else:
                        async for piece in self._give_back(size):
                            yield piece
                self._drop()

    def again(self, batch: RecordBatch) -> AsyncGenerator[bytes, None] | None:
        """The pieces of a value that was given before, all of them; None: they are not kept.

        Iterating raises `EngineError` when the file cannot be read.
        """
        if batch not in self._given:
            return None
        return self._read(*self._given[batch])

    def forget(self, batch: RecordBatch) -> None:
        """A value has arrived."""
        file, size = self._given.pop(batch, (None, 0))
        if file is not None:
            self._given_bytes -= size
            file.close()

    def close(self) -> None:
        """Throw away everything that is kept."""
        self._drop()
        self._drop_copy()
        for batch in tuple(self._given):
            self.forget(batch)

    def _drop(self) -> None:
        file, self._file, self._kept = self._file, None, 0
        if file is not None:
            file.close()

    # --- Values that may be wanted again ---

    def _has_room(self, size: int) -> bool:
        """Make room for a value of `size` bytes; False: it is longer than all that may be kept."""
        if size > self._keep_most:
            return False
        while self._given_bytes + size > self._keep_most:
            self.forget(next(iter(self._given)))
        return True

    def _add(self, batch: RecordBatch, file: IO[bytes], size: int) -> None:
        self._given[batch] = file, size
        self._given_bytes += size

    def _begin_to_copy(self, batch: RecordBatch) -> None:
        self._drop_copy()
        if not self._has_room(self._left):
            return
        try:
            self._copy, self._copied = temporary_file(self._folder), batch
        except OSError:
            # It is a precaution: without room for it things are as they were.
            self._drop_copy()

    async def _pass_by(self, piece: bytes) -> None:
        copy, batch = self._copy, self._copied
        if copy is None or batch is None:
            return
        try:
            await asyncio.to_thread(write_all, copy, piece)
        except OSError:
            self._drop_copy()
            return
        if not self._left:
            self._copy = self._copied = None
            self._add(batch, copy, batch.value_size(0))

    def _drop_copy(self) -> None:
        copy, self._copy, self._copied = self._copy, None, None
        if copy is not None:
            copy.close()

    async def _keep(self, piece: bytes) -> None:
        if self._kept + len(piece) > self._limit:
            raise EngineError(
                f"the source sent a value of more than {self._limit:,} bytes, the most that is kept"
            )
        try:
            if self._file is None:
                self._file = temporary_file(self._folder)
            await asyncio.to_thread(write_all, self._file, piece)
        except OSError as exc:
            raise self._failed("write", exc) from exc
        self._kept += len(piece)

    async def _give_back(self, size: int) -> AsyncGenerator[bytes, None]:
        if size != self._kept or self._file is None:
            raise EngineError(f"{self._kept:,} bytes of a value were kept, expected {size:,}")
        async for piece in self._read(self._file, size):
            yield piece

    async def _read(self, file: IO[bytes], size: int) -> AsyncGenerator[bytes, None]:
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
        return EngineError(
            f"could not {what} a long value in {self._folder}: {exc.strerror or exc}",
            remedy="Free space there, or name another with --spool-directory.",
        )
