"""The files of a comparison's report: what it leaves at its end (`proof.report_file`), and where it
is cut off (`proof.saved_proof`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Those of the report at `report`, which has the lines."""

    report: Path

    @property
    def page(self) -> Path:
        """The page for people."""
        return beside(self.report, ".html")

    @property
    def part(self) -> Path:
        """The lines until the end; a process that writes them has this file locked."""
        return beside(self.report, ".part")

    @property
    def page_part(self) -> Path:
        """The page until it is whole."""
        return beside(self.page, ".part")

    @property
    def state(self) -> Path:
        """What a comparison that is cut off goes on with."""
        return beside(self.report, ".state")

    @property
    def all_files(self) -> Iterator[Path]:
        """All that there may be, also where a process was killed."""
        yield from (self.report, self.page, self.part, self.page_part)
        yield from of_database(self.state)


def new(path: Path) -> Path:
    """A database of SQLite's until its tables are there."""
    return beside(path, ".new")


def journal(path: Path) -> Path:
    """What SQLite has beside a database in a transaction."""
    return beside(path, "-journal")


def of_database(path: Path) -> tuple[Path, ...]:
    """All that there may be of a database, also where a process was killed."""
    return path, journal(path), new(path), journal(new(path))


def beside(path: Path, ending: str) -> Path:
    """The file whose name ends in this behind that of `path`."""
    return path.with_name(path.name + ending)
