"""The progress of a transfer, shown on stderr: lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from engine.cli.output_format import clean
from engine.cli.status_line import describe
from engine.model.progress import Phase, Progress

LINE_SECONDS = 2.0
"""In a pipe: a line at each change of phase, and one this often in between."""


class Display(Protocol):
    """Shows one transfer. Enter it before the first update, leave it before printing a result."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, progress: Progress) -> None:
        """Take note of where the transfer stands; cheap when nothing is due to be drawn."""

    def note(self, text: str) -> None:
        """Show a line that stays."""


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, progress: Progress) -> None:
        """Print a line if the phase is new, or the last line old."""
        now = time.monotonic()
        if progress.phase == self._phase and now < self._due:
            return
        self._phase, self._due = progress.phase, now + LINE_SECONDS
        self.note(f"{progress.phase:<8}  {describe(progress)}")

    def note(self, text: str) -> None:
        """Print a line."""
        print(clean(text), file=sys.stderr, flush=True)


class Quiet(Lines):
    """Shows nothing: the log has it."""

    def update(self, progress: Progress) -> None:
        """Print nothing."""

    def note(self, text: str) -> None:
        """Print nothing."""


def display(*, quiet: bool = False) -> Display:
    """The display that fits stderr: rich is imported only where there is a terminal. `quiet`: the
    log goes to stderr, and has all that would be shown."""
    if quiet:
        return Quiet()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from engine.cli.progress_bar import Live

        return Live()
    return Lines()
