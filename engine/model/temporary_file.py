"""A file for what does not fit in memory: it has no name, and goes when it is closed."""

from __future__ import annotations

import tempfile
from typing import IO, cast


def temporary_file(folder: str) -> IO[bytes]:
    """An empty one in `folder`. Raises `OSError`."""
    # A BinaryIO in all but the type that the stubs give it.
    return cast(IO[bytes], tempfile.TemporaryFile(dir=folder, buffering=0))


def write_all(file: IO[bytes], data: bytes) -> None:
    """All of it: a raw file may take a part. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
