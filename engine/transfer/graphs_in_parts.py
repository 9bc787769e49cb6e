"""Graphs (FalkorDB) that a snapshot does not hold as one value.

A server writes a graph of VKEY_MAX_ENTITY_COUNT nodes and edges or more into its snapshot in
parts, under further keys that are nowhere else (`{graph}graph_UUID`). DUMP gives it whole.
"""

from __future__ import annotations

from engine.errors import EngineError, TransferFailed
from engine.model.modules import GRAPH_MODULE
from engine.model.server import ServerInfo
from engine.wire.control_connection import Admin

_ENTITIES_MOST = 100_000  # unless VKEY_MAX_ENTITY_COUNT says otherwise
_COUNTS = ("MATCH (n) RETURN count(n)", "MATCH ()-[e]->() RETURN count(e)")
_NAMED = 3

REMEDY = "Choose --source-type scan: it reads each graph whole."
IN_FILE_PARTS = (
    "the file has large graphs in parts, which RESTORE does not put together: a graph without them "
    "answers no query"
)
FILE_REMEDY = (
    "Load the file into a server of its version with the same module, and migrate from that one "
    "with --source-type scan: DUMP gives each graph whole."
)


async def in_parts(source: Admin, info: ServerInfo) -> str:
    """Why the source's snapshot cannot be carried, as a graph comes in parts; empty: none does.

    Leaves database 0 chosen. Raises `LinkError`.
    """
    if GRAPH_MODULE not in info.modules:
        return ""
    # The list has the graphs of all databases. FLUSHDB of one of them empties it (see findings/);
    # the snapshot then has every graph whole, until the server is started again.
    limit, names = await source.pipeline(
        [("GRAPH.CONFIG", "GET", "VKEY_MAX_ENTITY_COUNT"), ("GRAPH.LIST",)]
    )
    if not isinstance(names, list):
        return ""
    most = int(limit[1]) if isinstance(limit, list) and len(limit) == 2 else _ENTITIES_MOST
    large: list[str] = []
    for entry in info.keyspace:
        (selected,) = await source.pipeline([("SELECT", entry.db)])
        if isinstance(selected, EngineError):
            continue
        counted = await source.pipeline(
            [("GRAPH.RO_QUERY", name, text) for name in names for text in _COUNTS]
        )
        for name, nodes, edges in zip(names, counted[::2], counted[1::2], strict=True):
            total = _count(nodes) + _count(edges)
            if total >= most:
                shown = name.decode("utf-8", "backslashreplace")
                large.append(f"{shown} (database {entry.db}, {total:,} nodes and edges)")
    await source.select(0)
    if not large:
        return ""
    more = f" and {len(large) - _NAMED:,} more" if len(large) > _NAMED else ""
    return (
        "the source writes large graphs into its snapshot in parts, which RESTORE does not put "
        f"together: {', '.join(large[:_NAMED])}{more}"
    )


async def refuse_parts(source: Admin, info: ServerInfo) -> None:
    """Raise `TransferFailed` where a graph of the source would come in parts; `LinkError`."""
    if why := await in_parts(source, info):
        raise TransferFailed(why, remedy=REMEDY, fault="source")


def _count(reply: object) -> int:
    """The number in a result of one row; 0 where there is none (the key is gone)."""
    if isinstance(reply, list) and len(reply) > 1 and reply[1]:
        return int(reply[1][0][0])
    return 0
