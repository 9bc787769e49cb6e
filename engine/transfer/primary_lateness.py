"""Whether what a replica sends comes late from its primary: of a source that sends relative TTLs.

Such TTLs count from when the primary ran the command. The replica that is followed is asked for its
offset, which tells what is held up behind it (`sources.source_monitor`). What is held up before it
is told by the primary's offset alone: while a replica is followed its primary is asked in the same
way, over a connection of its own, and what has not come a moment after it was told is late, as is
everything while there is no answer. A primary that cannot be asked counts as late only where the
fence is "pause".

After a failover the former primary is one more replica. So another connection is made when the
server that is followed has another role or primary, or the one that is asked is a replica itself;
what came meanwhile counts as late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.errors import LinkError, TransferFailed
from engine.model.doubt import Doubt
from engine.sources.replica import ReplicaSource
from engine.sources.source_monitor import ASK_SECONDS, SourceMonitor
from engine.transfer.async_helpers import cancelled
from engine.transfer.control_connections import Endpoints
from engine.transfer.primary_reads import place_of
from engine.transfer.source_primary import Heads
from engine.wire.connection import Connection
from engine.wire.dial import dial

_LOOK_SECONDS = 1.0


class PrimaryLateness:
    """Asks while the server that is followed is a replica."""

    def __init__(
        self, ends: Endpoints, source: ReplicaSource, on_event: Callable[[str], None]
    ) -> None:
        self._ends = ends
        self._source = source
        self._on_event = on_event
        # The primary cannot be asked where the writers are the operator's, wherever they write.
        self._unasked = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._source.relative_ttls and (place := place_of(self._source)):
                await self._ask_while(place)
                self._say_late()
            else:
                await asyncio.sleep(_LOOK_SECONDS)

    async def _ask_while(self, place: str) -> None:
        """Ask the primary until the source is something else than `place`."""
        source = self._source
        monitor = SourceMonitor(
            self._dial, lambda: source.received_offset, self._say_late, self._on_event
        )
        asking = asyncio.create_task(monitor.run())
        try:
            while place_of(source) == place:
                if asking.done():
                    # It does not let itself be asked, and that was told.
                    asking.result()
                    await asyncio.sleep(_LOOK_SECONDS)
                    continue
                await asyncio.wait({asking}, timeout=ASK_SECONDS)
                if monitor.replication is not None and monitor.replication.is_replica:
                    return
        finally:
            await cancelled(asking)

    def _say_late(self) -> None:
        if place_of(self._source) and not self._unasked:
            self._source.on_doubt(Doubt.STALLED)

    async def _dial(self) -> Connection:
        heads, settings = Heads(self._ends), self._ends.settings
        try:
            head = await heads.find()
        except TransferFailed as exc:
            self._unasked = settings.fence != "pause"
            raise LinkError(exc.message, fault="source") from None
        finally:
            await heads.close()
        self._unasked = False
        timeout, straight = settings.connect_timeout, bool(head.address)
        return await dial(head.endpoint, fault="source", timeout=timeout, straight=straight)
