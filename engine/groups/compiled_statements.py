"""Statements that a worker executes several times a second.

To look one up among the statements that it has compiled costs SQLAlchemy more than to execute it
costs SQLite: it builds the statement, and a key for it, each time. So these are built and compiled
once, and go to SQLite's driver as text. Another database gets them as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable
from sqlalchemy.sql.compiler import SQLCompiler


class _Compiled(NamedTuple):
    text: str
    # Its parameters in their order: the name, the value where it is fixed, what converts it.
    parameters: tuple[tuple[str, Any, Callable[[Any], Any] | None], ...]


class Repeated:
    """One such statement. What changes from one time to the next is a `bindparam` by name."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    def execute(self, connection: Connection, values: Mapping[str, Any] | None = None) -> Any:
        """Execute it with these values; a result as of `Connection.execute`, whose columns are as
        the driver gives them. Raises `SQLAlchemyError`."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, values or {})
        if self._compiled is None:
            self._compiled = _compile(self._statement, connection)
        given = values or {}
        parameters = tuple(
            value if convert is None else convert(value)
            for value, convert in (
                (given.get(name, fixed), convert)
                for name, fixed, convert in self._compiled.parameters
            )
        )
        return connection.exec_driver_sql(self._compiled.text, parameters)


def _compile(statement: Any, connection: Connection) -> _Compiled:
    dialect = connection.dialect
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    assert compiled.positiontup is not None, "SQLite's parameters have no names"
    parameters = []
    for name in compiled.positiontup:
        bind = compiled.binds[name]
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        parameters.append((name, bind.effective_value, convert))
    return _Compiled(compiled.string, tuple(parameters))
