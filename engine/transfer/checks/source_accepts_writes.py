"""Whether the source accepts writes: the write block of an earlier cut-over may still be there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import EngineError
from engine.transfer import write_block
from engine.transfer.checks.check_result import Check, warned
from engine.transfer.checks.replication_chain import Member
from engine.wire.control_connection import Admin, admin


async def check_writes(source: Admin, line: Sequence[Member], timeout: float) -> Check | None:
    """None where it does, or does not say. `line` is the lineage of the source; what counts is the
    server at its head, which takes the writes. Raises `LinkError` of `source`."""
    head = line[-1]
    if head.info is None or head.info.primary:
        return None
    found = write_block.Refusal()
    if len(line) == 1:
        found = await write_block.refusal(source)
    else:
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(timeout), admin(head.endpoint, timeout=timeout) as end:
                found = await write_block.refusal(end)
    if not (found.why and found.known):
        return None
    return warned(
        "source-writes",
        f"{head.endpoint.address} refuses writes: {found.why}",
        "If clients are to write there until the cut-over: unblock-source for the group that it "
        "was migrated into; if it lacks replicas attach them (the engine counts as one, while it "
        f"follows), or CONFIG SET {found.why.partition(' ')[0]} 0.",
    )
