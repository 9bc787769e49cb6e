"""Whether the source accepts writes, asked of the servers that take them: for those who give a
migration up, and leave the source to its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from engine.errors import EngineError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.settings import TransferSettings
from engine.transfer import lane_plan, write_block
from engine.transfer.control_connections import Endpoints
from engine.transfer.source_primary import Heads
from engine.wire.control_connection import admin

# For so long the servers may take to answer, all together.
_SECONDS = 2.0
_UNASKED = write_block.Refusal("it could not be asked", known=False)


async def said(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    credentials: Credentials,
    lanes: Sequence[PlannedLane] = (),
) -> str:
    """A part of a sentence. `lanes`: those of a migration with a cluster at an end. Raises
    nothing."""
    sources = [source]
    if lanes:
        sources = [each.source for each in lane_plan.ends_of(lanes, source, target, settings)]
    ends = [
        Endpoints(each.of_primary, target, settings, credentials)
        for each in dict.fromkeys(sources)
        # (Of a cluster without lanes it is not known which servers they are.)
        if lanes or each.cluster is None
    ]
    found = await asyncio.gather(*(_refusal(each) for each in ends)) or [_UNASKED]
    if why := "; ".join(each.why for each in found if each.why and each.known):
        return f"the source refuses writes, though not because of this migration: {why}"
    if why := "; ".join(dict.fromkeys(each.why for each in found if not each.known)):
        return f"it is not known whether the source accepts writes: {why}"
    return "the source accepts writes"


async def _refusal(ends: Endpoints) -> write_block.Refusal:
    """Whether the server that takes the writes refuses them."""
    heads = Heads(ends)
    try:
        async with asyncio.timeout(_SECONDS):
            head = await heads.find()
            straight, limit = bool(head.address), ends.settings.io_timeout
            async with admin(
                head.endpoint, timeout=limit, fault="source", straight=straight
            ) as end:
                found = await write_block.refusal(end)
                if not found.why:
                    return found
                return replace(found, why=f"{end.endpoint.address}: {found.why}")
    except (EngineError, TimeoutError):
        return _UNASKED
    finally:
        await heads.close()
