"""Whether both ends belong to one replication: a migration would feed on what it writes."""

from __future__ import annotations

from engine.model.server import ServerInfo
from engine.transfer.control_connections import Endpoints
from engine.transfer.source_primary import Heads

FEEDS_ITSELF = "the migration would read back what it writes, so nothing is written"
APART = "Give each end its own server; then start, or resume."
"""What to do about it."""


async def relation(ends: Endpoints, target: ServerInfo) -> str:
    """How the source hangs on the target, in words; empty: not at all, as far as it is told.

    By the run ids of the source and of the servers above it, as far up as they can be asked.
    """
    return relation_of(await chain_of(ends), target)


async def chain_of(ends: Endpoints) -> tuple[str, ...]:
    """The run ids of the source and of the servers above it, as far as they are told."""
    heads = Heads(ends)
    try:
        return await heads.chain()
    finally:
        await heads.close()


def relation_of(chain: tuple[str, ...], target: ServerInfo) -> str:
    """See `relation`; `chain` is the source's (`chain_of`)."""
    if not target.run_id or target.run_id not in chain:
        return ""
    if target.run_id == chain[0]:
        return "the source is its own target"
    return "the source is a replica of the target"
