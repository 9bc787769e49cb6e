"""Some keys of the source, for checks that look at what is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from engine.errors import EngineError
from engine.wire.control_connection import Admin

# Of each database: what is asked of them takes one more round trip.
_MOST = 200


async def some_of_each(source: Admin, databases: Iterable[int]) -> AsyncIterator[list[bytes]]:
    """Some keys of each database, which is chosen meanwhile; database 0 is afterwards. One that
    cannot be read is passed over. Raises `LinkError`."""
    for db in databases:
        selected, page = await source.pipeline([("SELECT", db), ("SCAN", 0, "COUNT", _MOST)])
        if isinstance(page, list) and not isinstance(selected, EngineError):
            yield page[1][:_MOST]
    await source.pipeline([("SELECT", 0)])
