"""Which keys and fields have a TTL on the target, asked before commands are applied there.

No other client writes to the target, so the answer holds for the batch that is applied next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.errors import LinkError, ServerError
from engine.wire.control_connection import Admin, Arg


class Timed(NamedTuple):
    """A key, or a field of the hash there."""

    db: int
    key: bytes
    field: bytes | None


class TargetTtls:
    """Asks over `target`, a connection of the control plane."""

    def __init__(self, target: Admin) -> None:
        self._target = target

    async def of(self, wanted: Sequence[Timed]) -> list[Timed]:
        """Those that have a TTL there, and those of which the target does not tell."""
        asked: list[tuple[Arg, ...]] = []
        # Where the answer stands, and that of the SELECT before it.
        places: list[tuple[int, int]] = []
        db: int | None = None
        selected = 0
        for each in wanted:
            if each.db != db:
                db, selected = each.db, len(asked)
                asked.append(("SELECT", db))
            places.append((selected, len(asked)))
            if each.field is None:
                asked.append(("PTTL", each.key))
            else:
                asked.append(("HPTTL", each.key, "FIELDS", 1, each.field))
        if not asked:
            return []
        try:
            replies = await self._target.pipeline(asked)
        except LinkError:
            return list(wanted)
        return [
            each
            for each, (selected, place) in zip(wanted, places, strict=True)
            # Where the SELECT was refused the answer is another database's.
            if replies[selected] != b"OK" or _may_be_timed(replies[place])
        ]


def _may_be_timed(reply: object) -> bool:
    if isinstance(reply, list):
        # HPTTL of one field; an empty list where there is no such hash.
        reply = reply[0] if reply else -2
    if isinstance(reply, int):
        return reply >= 0
    if reply is None:
        return False
    # A target that does not know HPTTL holds no TTLs of fields; a key of another type none either.
    words = "unknown command", "WRONGTYPE"
    return not (isinstance(reply, ServerError) and any(word in str(reply) for word in words))
