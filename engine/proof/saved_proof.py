"""What a comparison has come to so far, in a file beside its report: one that was cut off goes on.

The file is SQLite's: a save is a transaction, so that a process may be killed at any moment. It
holds the marks of the walks (`track`), what was found up to them, and no password.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.model import report_paths
from engine.model.proof import ComparedRun
from engine.proof.track import FoundKey, Mark, Sums

_VERSION = 1
_TABLES = (
    "CREATE TABLE head (version INTEGER, head TEXT)",
    "CREATE TABLE run (number INTEGER PRIMARY KEY, began REAL, until REAL)",
    "CREATE TABLE note (reasons TEXT, left_out TEXT)",
    "CREATE TABLE mark (label TEXT PRIMARY KEY, servers TEXT, cursor TEXT, sums TEXT)",
    "CREATE TABLE doubt (label TEXT, key BLOB, size INTEGER)",
    "CREATE INDEX doubt_label ON doubt (label)",
    (
        "CREATE TABLE found (label TEXT, db INTEGER, key BLOB, kinds TEXT, source TEXT, "
        "target TEXT, reason TEXT, run INTEGER)"
    ),
    "CREATE INDEX found_label ON found (label)",
)


class SavedProof:
    """The file at `path`. `head` says what is compared, and how: a file of another one is refused.

    With `resume` the file is there, and what it holds counts; else it is made by the first save.
    Raises `UsageError`.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        # As it is behind a way through the file.
        self._head: dict[str, Any] = json.loads(json.dumps(head))
        self._db: sqlite3.Connection | None = None
        self.began = time.time()
        self.run = 0
        """The number of this run."""
        self.runs: list[tuple[float, float]] = []
        """When each of the runs before has begun, and when it was saved last."""
        self.reasons: dict[str, int] = {}
        """What could not be told, and is no key's."""
        self.left_out: list[str] = []
        """What was left out, in words."""
        there = path.exists()
        if there and not resume:
            raise UsageError(
                f"{path} holds a comparison that was cut off",
                remedy="Go on with it (--resume in place of --report), or name another report.",
            )
        if resume:
            if not there:
                raise UsageError(
                    f"there is no comparison to go on with: {path} does not exist",
                    remedy="Begin one with --report. It writes this file as it goes, and removes "
                    "it at its end.",
                )
            with self._reading():
                self._open()

    @property
    def seed(self) -> int | None:
        """By which the comparison was begun."""
        seed: int | None = self._head.get("seed")
        return seed

    def marks(self) -> dict[str, Mark]:
        """See `track.Saved`."""
        if self._db is None:
            return {}
        found = {}
        with self._reading():
            for label, servers, cursor, sums in self._rows("SELECT * FROM mark"):
                told = json.loads(sums)
                told["equal"] = {int(run): count for run, count in told["equal"].items()}
                doubts = tuple(
                    (bytes(key), int(size))
                    for key, size in self._rows(
                        "SELECT key, size FROM doubt WHERE label = ?", label
                    )
                )
                found[label] = Mark(servers, json.loads(cursor), Sums(**told), doubts)
        return found

    def found(self, label: str) -> Iterator[FoundKey]:
        """See `track.Saved`."""
        with self._reading():
            for db, key, kinds, *rest in self._rows(
                "SELECT db, key, kinds, source, target, reason, run FROM found WHERE label = ?",
                label,
            ):
                yield FoundKey(db, key, tuple(json.loads(kinds)), *rest)

    def forget(self, label: str) -> None:
        """See `track.Saved`."""
        with self._writing() as db:
            for table in ("mark", "doubt", "found"):
                db.execute(f"DELETE FROM {table} WHERE label = ?", (label,))

    def save(self, marks: Mapping[str, tuple[Mark, Sequence[FoundKey]]]) -> None:
        """See `track.Saved`."""
        with self._writing() as db:
            run = (self.run, self.began, time.time())
            db.execute("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", run)
            db.execute("DELETE FROM note")
            note = (json.dumps(self.reasons), json.dumps(self.left_out))
            db.execute("INSERT INTO note VALUES (?, ?)", note)
            for label, (mark, found) in marks.items():
                row = (label, mark.servers, json.dumps(mark.cursor), json.dumps(asdict(mark.sums)))
                db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)", row)
                db.execute("DELETE FROM doubt WHERE label = ?", (label,))
                db.executemany(
                    "INSERT INTO doubt VALUES (?, ?, ?)",
                    ((label, key, size) for key, size in mark.doubts),
                )
                db.executemany(
                    "INSERT INTO found VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        (
                            label, each.db, each.key, json.dumps(each.kinds), each.source,
                            each.target, each.reason, each.run,
                        )
                        for each in found
                    ),
                )  # fmt: skip

    def told(self, compared: Mapping[int, int]) -> tuple[ComparedRun, ...]:
        """The runs, with how many keys each has compared."""
        runs = [*self.runs, (self.began, time.time())]
        return tuple(
            ComparedRun(began, ended, compared.get(number, 0))
            for number, (began, ended) in enumerate(runs)
        )

    def remove(self) -> None:
        """The comparison is at its end."""
        self.close()
        remove(self._path)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # --- The file ---

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        ((version, head),) = self._rows("SELECT version, head FROM head")
        if version != _VERSION:
            raise UsageError(f"{self._path} was written by another release of this program")
        held = json.loads(head)
        if self._head.get("seed") is None:
            self._head["seed"] = held["seed"]
        for name, value in held.items():
            if self._head.get(name) != value:
                raise UsageError(
                    f"the comparison in {self._path} has another {name}: {value!r}, and not "
                    f"{self._head.get(name)!r}",
                    remedy="Go on with the ends and options that it was begun with, or begin a "
                    "new one.",
                )
        self.runs = [tuple(row) for row in self._rows("SELECT began, until FROM run ORDER BY 1")]
        self.run = len(self.runs)
        for reasons, left_out in self._rows("SELECT reasons, left_out FROM note"):
            self.reasons, self.left_out = json.loads(reasons), json.loads(left_out)

    def _rows(self, statement: str, *values: object) -> Iterable[Sequence[Any]]:
        assert self._db is not None
        return self._db.execute(statement, values)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            raise UsageError(f"{self._path} cannot be read: {error}") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._db is None:
                self._made()
            assert self._db is not None
            self._db.execute("BEGIN")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise UsageError(f"{self._path} cannot be written: {error}") from None

    def _made(self) -> None:
        # It is there with its tables, or not at all.
        new = report_paths.new(self._path)
        for each in (new, report_paths.journal(new)):
            each.unlink(missing_ok=True)
        # Names of keys are for nobody else.
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as made:
            made.execute("BEGIN")
            for statement in _TABLES:
                made.execute(statement)
            made.execute("INSERT INTO head VALUES (?, ?)", (_VERSION, json.dumps(self._head)))
            made.execute("COMMIT")
        # (A journal without its file is one of a process that was killed, whose file was removed:
        # it would be played back into this one.)
        report_paths.journal(self._path).unlink(missing_ok=True)
        os.replace(new, self._path)
        self._db = sqlite3.connect(self._path, isolation_level=None)


def remove(path: Path) -> None:
    """Remove the file of a comparison, and what is beside it: of SQLite's, and of one that was
    killed while it made the file. Raises `OSError`."""
    for each in report_paths.of_database(path):
        each.unlink(missing_ok=True)
