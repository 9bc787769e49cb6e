"""Near deadlines, held back while the target is behind.

A key that goes over with its deadline can expire on the target before the stream's command that
extends it arrives: gone on the target, alive on the source, and nobody has said a word. Where the
target has no import mode, deadlines that are near are lifted by `LIFT_MS`, in the snapshot and in
the stream, until the target has caught up; the source's own DELs remove what really expires, as on
a replica. A lifted deadline says of itself that it is one, whatever key it was renamed or copied to
and whichever engine lifted it, so afterwards (and after a crash) the target itself is asked which
keys have one, and each gets the deadline that the source has by then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from engine.wire.admin import Admin

LIFT_MS = 100 * 365 * 86_400_000
"""A hundred years: nobody's own deadline is so far off."""
_FAR_MS = LIFT_MS // 2
_PAGE = 500


async def lifted(target: Admin) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Pages of the target's keys whose deadlines are lifted, as (db, key).

    Keys that move while this runs may be missed: whoever applies the stream knows of them. Raises
    `LinkError`, `ServerError`, `AuthError`.
    """
    for entry in (await target.info()).keyspace:
        if not entry.expires:
            continue
        await target.select(entry.db)
        cursor: bytes | int = 0
        while True:
            cursor, keys = await target.call("SCAN", cursor, "COUNT", _PAGE)
            left = await target.pipeline([("PTTL", key) for key in keys], raise_on_error=True)
            far = [
                (entry.db, key)
                for key, ttl in zip(keys, left, strict=True)
                if isinstance(ttl, int) and ttl > _FAR_MS
            ]
            if far:
                yield far
            if cursor == b"0":
                break
