"""Streams in which FalkorDB notes queries: each server makes its own, so that they are left out.

The module writes `telemetry{GRAPH}` about once a second, if there were queries, in database 0 and
without a word to replicas. Another key of such a name is a key as any other: what tells them apart
is the name of the first field. A server that lacks the module has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.errors import EngineError, ProtocolFault
from engine.model.modules import FIRST_FIELD, TELEMETRY, is_telemetry_name
from engine.model.server import ServerInfo, parse_info
from engine.verify.value_readers import Command
from engine.wire.control_connection import Admin

_SCAN_COUNT = 10_000


async def telemetry_among(end: Admin, keys: Sequence[bytes]) -> set[bytes]:
    """Those of `keys` (in the database that is chosen) that are one. Raises `LinkError`."""
    named = [key for key in keys if is_telemetry_name(key)]
    if not named:
        return set()
    replies = await end.pipeline([each for key in named for each in _asking(key)])
    return {
        key
        for key, kind, first in zip(named, replies[::2], replies[1::2], strict=True)
        if _is_telemetry(kind, first)
    }


class Telemetry:
    """Counts them at one end, so that counts of both ends can be compared."""

    def __init__(self, end: Admin) -> None:
        self._end = end
        self._names: dict[int, set[bytes]] = {}

    async def find(self) -> None:
        """Look for their names in every database. Leaves any database chosen. Raises `LinkError`,
        `ServerError`."""
        self._names.clear()
        for entry in (await self._end.info()).keyspace:
            await self._end.select(entry.db)
            names = self._names.setdefault(entry.db, set())
            cursor: Any = 0
            while cursor != b"0":
                match = TELEMETRY + b"*"
                cursor, keys = await self._end.call(
                    "SCAN", cursor, "COUNT", _SCAN_COUNT, "MATCH", match
                )
                names.update(key for key in keys if is_telemetry_name(key))

    async def counts(self) -> dict[int, int]:
        """How many there are in each database. Raises as `info`."""
        _, counts = await self._count()
        return {db: lasting + timed for db, (lasting, timed) in counts.items()}

    async def info(self) -> ServerInfo:
        """What the server says of itself, without those streams in its counts.

        Those of graphs that were made since `find` are looked for by the graphs' names. Leaves any
        database chosen. Raises `LinkError`, `ServerError`.
        """
        info, counts = await self._count()
        keyspace = []
        for entry in info.keyspace:
            lasting, timed = counts.get(entry.db, (0, 0))
            keys, expires = entry.keys - lasting - timed, entry.expires - timed
            keyspace.append(replace(entry, keys=keys, expires=expires))
        return replace(info, keyspace=tuple(keyspace))

    async def _count(self) -> tuple[ServerInfo, dict[int, tuple[int, int]]]:
        """What the server says of itself at a moment, and how many there are then in each
        database, without and with an expire time."""
        (graphs,) = await self._end.pipeline([("GRAPH.LIST",)])
        if isinstance(graphs, list):
            self._names.setdefault(0, set()).update(TELEMETRY + name + b"}" for name in graphs)
        asked: list[Command] = [("INFO",)]
        places: list[tuple[int, int]] = []
        for db, names in self._names.items():
            asked.append(("SELECT", db))
            for name in names:
                places.append((db, len(asked)))
                asked += [*_asking(name), ("PTTL", name)]
        # In one transaction: the module may write one between two commands.
        *_, replies = await self._end.pipeline([("UNWATCH",), ("MULTI",), *asked, ("EXEC",)])
        if isinstance(replies, EngineError):
            raise replies
        if not isinstance(replies, list) or not isinstance(replies[0], bytes):
            raise ProtocolFault(
                f"{self._end.name} answered INFO in a transaction with {replies!r:.100}",
                fault=self._end.fault,
            )
        counts = dict.fromkeys(self._names, (0, 0))
        for db, at in places:
            kind, first, left = replies[at : at + 3]
            if _is_telemetry(kind, first):
                lasting, timed = counts[db]
                has_ttl = isinstance(left, int) and left >= 0
                counts[db] = lasting + (not has_ttl), timed + has_ttl
        return parse_info(replies[0].decode("utf-8", "replace")), counts


def _asking(key: bytes) -> list[Command]:
    return [("TYPE", key), ("XRANGE", key, "-", "+", "COUNT", 1)]


def _is_telemetry(kind: Any, first: Any) -> bool:
    """By the replies to `_asking`. One without entries is taken for such a stream by its name, as
    the core does (`modules.pxi`)."""
    if kind != b"stream" or not isinstance(first, list):
        return False
    return not first or (len(first[0]) > 1 and (first[0][1] or [b""])[0] == FIRST_FIELD)
