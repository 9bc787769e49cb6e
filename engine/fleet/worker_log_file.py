"""The log of a group's workers: a file that is put aside when it gets long."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

from engine.errors import StateError
from engine.logs import output as log_output

FILE_BYTES = 4 << 20
"""A log that would become longer than this is put aside as `….log.1`, and so on."""
FILES_KEPT = 4


class LogFile(RotatingFileHandler):
    """Writes to the file, and takes stdout and stderr of this process along when it is put aside.

    Processes of one group share the file (a worker, and those that disconnect clients behind it):
    each follows it where another one has put it aside.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            maxBytes=FILE_BYTES,
            backupCount=FILES_KEPT,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def _open(self) -> io.TextIOWrapper:
        number = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(number, standard)
        return io.TextIOWrapper(
            io.FileIO(number, "a"), encoding=self.encoding, errors=self.errors, write_through=True
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, to the file that has the name now. Never raises: what cannot be opened is
        tried again with the next line."""
        if self.stream is not None and not _same(self.stream.fileno(), self.baseFilename):
            with contextlib.suppress(OSError):
                self.stream.close()
            # The handler opens a file where it has none.
            self.stream = None
        super().emit(record)


def begin(path: Path) -> None:
    """Have this process log to `path`, if that is where its stderr goes; else to stderr.

    Level and form are those of the environment. Raises `StateError`.
    """
    level, form = log_output.from_environment()
    if not _same(2, path):
        log_output.to_stderr(level, form)
        return
    try:
        log_output.install(LogFile(path), level, form)
    except OSError as error:
        raise StateError(
            f"the log {path} cannot be written: {error.strerror}",
            remedy="Check the folder's permissions and the disk's room.",
        ) from None


def _same(number: int, path: Path | str) -> bool:
    """Whether a descriptor is of the file that has this name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(number), os.stat(path))
    return False
