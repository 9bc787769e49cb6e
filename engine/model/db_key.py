"""A key's place on a server: the number of its database, and its name."""

from __future__ import annotations

from collections.abc import Iterable

DbKey = tuple[int, bytes]
"""(database, key)."""


def placed(db: int, keys: Iterable[bytes], swaps: Iterable[tuple[int, int]]) -> list[DbKey]:
    """Keys that a command in database `db` names, with the database that they are in behind its
    batch: with every one that it may be by the batch's SWAPDBs, for too many do no harm."""
    places = {db}
    for pair in swaps:
        if not places.isdisjoint(pair):
            places.update(pair)
    return [(place, key) for key in keys for place in places]
