"""An append-only file as far as it holds values: its base, a snapshot.

What the commands behind the base come to is known to a server that runs them alone. So keys are
shown as the base has them, and how much is behind it is said; of one key whether any command names
it: where none does, the base's value is the one that a server would have.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from engine._native import (
    CMD_FLUSHES,
    CMD_SCRIPT,
    CMD_SWAPS,
    CMD_UNKNOWN,
    CommandBatch,
    ProtocolError,
    StreamReader,
)
from engine.errors import EngineError
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import damaged, stream_of, unkept
from engine.sources.on_thread import go_on, on_thread

_MAGICS = (b"REDIS", b"VALKEY")
# These may change keys that they do not name.
_ANY_KEY = CMD_FLUSHES | CMD_SWAPS | CMD_SCRIPT | CMD_UNKNOWN


class AofBase:
    """Finds the base of the append-only file, or folder of one, at `path`.

    Raises `EngineError` (fault: the user's) for what is not there or cannot be read, and where it
    holds commands alone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        with contextlib.closing(AofFiles(path)) as files:
            base, *others = files.parts
            if not files.read(base, 0, base.end).startswith(_MAGICS):
                raise EngineError(
                    f"{base.path} holds only commands, and no snapshot before them",
                    remedy="What they come to only a server knows: load the append-only file into "
                    "one of its version, and inspect that.",
                    fault="user",
                )
            self.path: Path = base.path
            self._files = len(others)
            self._bytes = sum(each.size for each in others)
            # Of the one file of an older server it is known behind its snapshot how much that is.
            self._whole = base.kind == "whole"

    def behind(self, same_file: int | None = None) -> str:
        """What of it is not shown, for people; empty: nothing. `same_file`: bytes behind the
        snapshot in its own file; None: that was not read yet."""
        size = self._bytes + (same_file or 0)
        if size:
            files = "file" if self._files == 1 else "files"
            where = f" in {self._files} {files}" if self._files else ""
            what = f"what the commands after the base change, {size:,} bytes{where}"
        elif self._whole and same_file is None:
            what = "what commands after the snapshot change, if there are any"
        else:
            return ""
        return f"{what}: keys are shown as {self.path.name} has them, a server knows the rest"

    async def naming(self, key: bytes, offset: int) -> int | None:
        """How many commands behind the base, whose snapshot ends at `offset`, have `key` among
        their arguments; None: some may change keys that they do not name. Raises `EngineError`."""

        def read(stop: threading.Event) -> int | None:
            found = 0
            with contextlib.closing(AofFiles(self._path)) as files:
                for batch in _batches(files, offset, stop):
                    if batch.holds(_ANY_KEY):
                        return None
                    found += len(batch.mentioning({key}))
            return found

        return await on_thread(read)


def _batches(files: AofFiles, offset: int, stop: threading.Event) -> Iterator[CommandBatch]:
    """The commands of all files, from `offset` on; what the last one is cut off in is left out."""
    for part in files.parts:
        stream: StreamReader | None = None
        at = part.begin
        for portion in files.portions(part):
            go_on(stop)
            at += len(portion)
            if at <= offset:
                continue
            if stream is None:
                begin = max(offset, part.begin)
                portion = portion[len(portion) - (at - begin) :]
                stream = stream_of(begin)
            try:
                stream.feed(portion)
            except ProtocolError as exc:
                raise damaged(part, exc) from exc
            except OSError as exc:
                raise unkept(None, exc) from exc
            yield from stream.take()
        if stream is not None:
            stream.flush()
            yield from stream.take()
