"""Statements that are compiled once, against what SQLAlchemy does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Float,
    Integer,
    MetaData,
    Table,
    bindparam,
    create_engine,
    exc,
    func,
    insert,
    select,
    update,
)

from engine.groups.compiled_statements import Repeated

metadata = MetaData()
table = Table(
    "things", metadata, Column("id", Integer, primary_key=True), Column("n", Float),
    Column("told", JSON),
)  # fmt: skip
VALUES: list[Any] = [None, {}, {"a": [1, "ä", None, 1.5]}, [], "text", 7]


@pytest.mark.parametrize("told", VALUES)
def test_a_repeated_statement_does_what_sqlalchemy_does(told: Any, tmp_path: Path) -> None:
    """Fixed values, those that are given each time, JSON and what is returned."""
    store = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    metadata.create_all(store)
    changed = (
        update(table)
        .where(table.c.id == bindparam("which"), table.c.n < 9)
        .values(n=func.abs(table.c.n) + 1.5, told=bindparam("told", type_=table.c.told.type))
        .returning(table.c.n)
    )
    ours, read = Repeated(changed), Repeated(select(table.c.n).where(table.c.id == 2))
    with store.begin() as connection:
        connection.execute(insert(table), [{"id": n, "n": -n, "told": "old"} for n in (1, 2, 3)])
        values = {"which": 1, "told": told}
        wanted = connection.execute(changed, values).all()
        for which in (2, 3):
            values["which"] = which
            assert ours.execute(connection, values).all() == [(which + 1.5,)], wanted
        rows = connection.execute(select(table.c.told).order_by(table.c.id)).scalars().all()
        assert rows == [told] * 3
        assert read.execute(connection).scalar() == 3.5
        values["which"] = 99
        assert ours.execute(connection, values).all() == []
    store.dispose()


def test_its_errors_are_sqlalchemys(tmp_path: Path) -> None:
    """The store translates these."""
    store = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(exc.OperationalError), store.begin() as connection:
        Repeated(select(table.c.n)).execute(connection)
    store.dispose()
