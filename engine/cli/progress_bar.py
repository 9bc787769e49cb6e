"""The bar on a terminal: rich's one home, and imported only where there is one."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from engine.cli.output_format import clean
from engine.cli.status_line import COPIED, describe
from engine.model.progress import Phase, Progress

REDRAW_SECONDS = 0.25
BAR, PHASE = 24, 8
"""Characters of the bar, and of the phase before it."""


class Live:
    """A bar that is drawn anew at most four times a second, when there is news.

    There is no thread that refreshes it: a transfer tells of itself often enough, and what is not
    drawn costs nothing.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False, table_column=Column(min_width=PHASE)),
            BarColumn(bar_width=BAR, table_column=Column(min_width=BAR)),
            TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task(f"{Phase.CONNECT:<8}", total=None, line="")
        self._phase: Phase | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.refresh()
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Draw the bar anew if it is due, or the phase a new one."""
        now = time.monotonic()
        if progress.phase == self._phase and now < self._due:
            return
        self._phase, self._due = progress.phase, now + REDRAW_SECONDS
        copied = progress.phase in COPIED
        total = 1 if copied else progress.total_keys
        self._bar.update(
            self._task,
            description=f"{progress.phase:<8}",
            total=total or None,  # without a total the bar pulses
            completed=1 if copied else min(progress.keys, total or 0),
            line=self._fitting(clean(describe(progress))),
        )
        self._bar.refresh()

    def _fitting(self, text: str) -> str:
        """The beginning of `text` that has room behind phase and bar: rich would rather give up
        the columns before it."""
        line = Text(text)
        line.truncate(max(self._console.width - PHASE - BAR - 2, 0), overflow="ellipsis")
        return line.plain

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(clean(text), markup=False, soft_wrap=True)
