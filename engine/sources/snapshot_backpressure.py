"""What waits in the source behind a snapshot, while the target's pace holds the snapshot back.

A source keeps what clients write meanwhile in its own memory, and cuts a replica off when that is
too much. So it is asked once a second how much that is; and, where that has a bound
(`--protect-source cow=`), how much memory was copied on write for the child that makes the
snapshot: that ends with the child, which lives until its snapshot is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from engine.errors import EngineError
from engine.model.protection import MIB, Protection
from engine.wire.connection import Connection
from engine.wire.info_command import ask_copied, ask_offset

# Above it the snapshot is drained, or above a lower bound that is given. Far below the usual limit
# of a replica's output buffer (256 MiB, or 64 MiB for a minute).
_PENDING_BYTES = 8 * MIB
_ASK_SECONDS = 1.0


async def too_much_behind(
    offset: int,
    dial: Callable[[], Awaitable[Connection]],
    whole: asyncio.Event,
    bounds: Protection,
) -> str | None:
    """Return as soon as the source holds too much behind `offset`, where its snapshot was taken, or
    for the child that makes it, or does not tell: the reason, in words. None: `whole` was set
    first.
    """
    most = min(bounds.output_buffer or _PENDING_BYTES, _PENDING_BYTES)
    connection: Connection | None = None
    try:
        connection = await dial()
        while not whole.is_set():
            pending = await ask_offset(connection) - offset
            if pending > most:
                return f"{pending // MIB} MiB of writes wait in the source behind the snapshot"
            if bounds.cow:
                copied = await ask_copied(connection)
                if copied is None:
                    return (
                        "the source does not say how much memory is copied on write "
                        "(current_cow_size)"
                    )
                if copied > bounds.cow:
                    return (
                        f"source copy-on-write memory {copied / MIB:,.1f} MiB > "
                        f"{bounds.cow / MIB:,.1f} MiB"
                    )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_SECONDS):
                    await whole.wait()
    except EngineError as exc:
        return f"the source does not say how many bytes of writes wait behind the snapshot ({exc})"
    finally:
        if connection is not None:
            connection.close()
    return None
