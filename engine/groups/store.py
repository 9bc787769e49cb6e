"""The state database: where it is, how it is opened, and what its errors mean.

SQLite in WAL mode by default: readers (`describe`) never wait for the worker that writes. Each
write transaction begins IMMEDIATE, because a transaction that turns from reader to writer half-way
is refused at once when another one writes, busy timeout or not. `synchronous` is FULL, not NORMAL:
in WAL mode NORMAL may lose the last commits with the power, and a checkpoint promises to be on
disk; at a few commits a second the sync costs nothing that can be measured.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    create_engine,
    event,
    exc,
    func,
    insert,
    inspect,
    make_url,
    select,
    update,
)
from sqlalchemy.engine import URL, Engine

from engine.errors import StateError, UsageError
from engine.groups import schema, upgrade
from engine.groups.lease import Witness, no_witness
from engine.groups.rows import WITNESS
from engine.model.retry import Deadline, retry_blocking

STATE_VARIABLE = "STARTMIGRATION_STATE"
BUSY_TIMEOUT = 5.0
"""For how long (seconds) a statement waits for another process's transaction."""
_CREATING = 0x7374617274
"""The key of PostgreSQL's advisory lock while the tables are created; chosen at random."""


class TransientStateError(StateError):
    """A state error that may pass by itself: a lock, a full disk. Worth another try."""


class LockedStateError(TransientStateError):
    """Another process has the database locked."""


_SPACE = "Free some space (or raise the quota or limit) and resume."
# SQLite's primary result codes, https://www.sqlite.org/rescode.html.
_SQLITE: dict[int, tuple[str, str, type[StateError]]] = {
    sqlite3.SQLITE_FULL: ("the disk is full", _SPACE, TransientStateError),
    sqlite3.SQLITE_IOERR: (
        "reading or writing failed (disk I/O error, or a size limit)", _SPACE, TransientStateError),
    sqlite3.SQLITE_BUSY: (
        f"another process has kept it locked for {BUSY_TIMEOUT:.0f} s",
        "End the process that has it open, and try again.", LockedStateError),
    sqlite3.SQLITE_LOCKED: ("it is locked", "Try again.", LockedStateError),
    sqlite3.SQLITE_NOTADB: (
        "the file is not a database",
        "Name another file with --state, or move this one away.", StateError),
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged",
        "Move it away; a migration then starts from the beginning.", StateError),
    sqlite3.SQLITE_READONLY: (
        "it cannot be written (read-only)",
        "Make the file and its folder writable, or name another.", StateError),
    sqlite3.SQLITE_PERM: ("access is denied", "Check the file's owner and mode.", StateError),
    sqlite3.SQLITE_CANTOPEN: (
        "the file cannot be opened", "Check that its folder exists and is writable.", StateError),
}  # fmt: skip


class Store:
    """One state database. Safe to use from several threads."""

    def __init__(self, state: str | None = None, *, witness: Witness = no_witness) -> None:
        """Open (and on first use create) the state that `state` names: a URL, a file's path, or
        None for STARTMIGRATION_STATE or the default place. One that an earlier version has left is
        upgraded. `witness` tells which workers are known to have ended.

        Raises `UsageError` for a URL that cannot be understood, `StateError` for the rest.
        """
        self._url = _resolve(state)
        self.file = Path(self._url.database) if _is_sqlite(self._url) else None  # type: ignore[arg-type]
        # The two engines share one pool of connections.
        self._reader = _engine(self._url).execution_options(**{WITNESS: witness})
        self._writer = self._reader.execution_options(immediate=True)
        try:
            if self.file is not None:
                _prepare_file(self.file)
            # The change to WAL mode needs the file for itself, and SQLite does not always wait
            # there for another process that does the same.
            retry_blocking(self._prepare, Deadline(BUSY_TIMEOUT, 0.05), LockedStateError)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The database's URL with its password, if it has one: for a child's environment."""
        return self._url.render_as_string(hide_password=False)

    @property
    def name(self) -> str:
        """The database for people, without a password."""
        return str(self.file) if self.file else self._url.render_as_string(hide_password=True)

    @property
    def folder(self) -> Path:
        """Where files that belong to the state go: beside it, or where it would be by default."""
        return self.file.parent if self.file else state_folder()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads. Raises `StateError`."""
        with self._translated(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write, committed at the end unless something was raised.
        Raises `StateError`."""
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection. The store can be used again."""
        self._reader.dispose()

    def _prepare(self) -> None:
        """Check the schema's version; create the tables in an empty database."""
        with self.read() as connection:
            tables = set(inspect(connection).get_table_names())
        if schema.schema_version.name not in tables:
            if tables:
                raise StateError(
                    f"the database {self.name} is not a state of this program: it has other tables",
                    remedy="Name another one with --state.",
                )
            self._create()
            tables = set(schema.metadata.tables)
        with self.read() as connection:
            version = connection.execute(select(schema.schema_version.c.version)).scalar()
        if version in upgrade.STEPS:
            self._upgrade()
        elif version != schema.SCHEMA_VERSION:
            raise StateError(
                f"the state {self.name} has the schema version {version}, this engine knows "
                f"{schema.SCHEMA_VERSION}",
                remedy="Use the engine that wrote it, or name another state with --state.",
            )
        elif any(table not in tables for table in schema.metadata.tables):
            # An earlier engine's state.
            with self.write() as connection:
                _lock(connection)
                schema.metadata.create_all(connection)

    def _upgrade(self) -> None:
        """One transaction, from whichever version to ours: all of it or nothing."""
        with self.write() as connection:
            _lock(connection)
            # Another process may have been faster.
            table = schema.schema_version
            version = connection.execute(select(table.c.version)).scalar_one()
            while version != schema.SCHEMA_VERSION:
                version = upgrade.STEPS[version](connection, self.name)
                connection.execute(update(table).values(version=version))

    def _create(self) -> None:
        if self.file is not None:
            with self._translated(), self._reader.connect() as connection:
                # Outside of any transaction, and once: the mode is kept in the file.
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.exec_driver_sql("BEGIN")
        with self.write() as connection:
            # Within the write transaction, so that of two processes one creates. SQLite has one
            # writer at a time; PostgreSQL lets both look, and fails the one that is later.
            _lock(connection)
            if inspect(connection).has_table(schema.schema_version.name):
                return
            schema.metadata.create_all(connection)
            connection.execute(insert(schema.schema_version), {"version": schema.SCHEMA_VERSION})

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.SQLAlchemyError as error:
            # Not chained: statements and parameters are no business of the user's.
            raise _translate(error, self.name) from None
        except sqlite3.Error as error:
            raise _translate_sqlite(error, self.name) from None


def _lock(connection: Connection) -> None:
    """Have the tables to ourselves until the transaction ends (SQLite's transactions that write
    exclude each other anyway)."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_CREATING)))


def default_state() -> str:
    """The state's URL when none is named: STARTMIGRATION_STATE, or state.db in the user's folder
    for state ($XDG_STATE_HOME/startmigration)."""
    if named := os.environ.get(STATE_VARIABLE):
        return named
    return f"sqlite:///{state_folder() / 'state.db'}"


def absent(state: str | None) -> Path | None:
    """The file of the state that `state` names (as for `Store`), if it is not there; else None.
    Raises `UsageError` for a URL that cannot be understood."""
    url = _resolve(state)
    if not _is_sqlite(url):
        return None
    try:
        file = Path(url.database)  # type: ignore[arg-type]
        return None if file.exists() else file
    except (OSError, ValueError):
        return None  # opening it says what is wrong


def state_folder() -> Path:
    """$XDG_STATE_HOME/startmigration."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "startmigration"


def _resolve(state: str | None) -> URL:
    text = state or default_state()
    if "://" not in text:
        # Not by way of a URL's text: in a file's name ? and % are letters like others.
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise UsageError(
            "the state's URL cannot be understood",
            remedy="Expected a file's path, sqlite:////path/to/state.db, or postgresql://….",
        ) from None
    if not _is_sqlite(url):
        return url
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise UsageError(
            "a state in memory cannot be shared with a worker process",
            remedy="Name a file: sqlite:////path/to/state.db.",
        )
    return url.set(database=str(Path(url.database).absolute()))


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _engine(url: URL) -> Engine:
    if not _is_sqlite(url):
        schema.complete_for(url.get_backend_name())
        try:
            return create_engine(url, pool_pre_ping=True, hide_parameters=True)
        except (ImportError, exc.ArgumentError):
            raise UsageError(
                f"no driver for {url.drivername} is installed",
                remedy="Install one (for PostgreSQL: pip install psycopg, postgresql+psycopg://…).",
            ) from None
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # The driver's own implicit BEGIN is off (isolation_level None): it is never IMMEDIATE.
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _prepare_file(path: Path) -> None:
    """Create the file for its owner alone; SQLite gives its -wal and -shm the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except (OSError, ValueError) as error:
        # ValueError: a name with a NUL.
        reason = error.strerror if isinstance(error, OSError) else "no file can have this name"
        raise StateError(
            f"the state {str(path)[:200]!r} cannot be created: {reason}",
            remedy="Name another file with --state.",
        ) from None


def _translate(error: exc.SQLAlchemyError, name: str) -> StateError:
    origin = getattr(error, "orig", None)
    if isinstance(origin, sqlite3.Error):
        return _translate_sqlite(origin, name)
    kind = type(origin or error).__name__
    if isinstance(error, (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)):
        return TransientStateError(
            f"the state database {name} does not answer ({kind})",
            remedy="Check that it runs and accepts this client.",
        )
    return StateError(f"the state database {name} failed ({kind})")


def _translate_sqlite(error: sqlite3.Error, name: str) -> StateError:
    # The low byte of an extended result code is the primary one.
    code = getattr(error, "sqlite_errorcode", None)
    known = _SQLITE.get(code & 0xFF) if code is not None else None
    if known is None:
        return StateError(f"the state {name} cannot be used: {error}")
    reason, remedy, kind = known
    return kind(f"the state {name} cannot be used: {reason}.", remedy=remedy)
