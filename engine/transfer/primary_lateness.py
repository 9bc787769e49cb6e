"""Whether what a replica sends comes late from its primary: of a source that sends relative TTLs.

Such TTLs count from when the primary ran the command. The replica that is followed is asked for its
offset, which tells what is held up behind it (`sources.source_monitor`); what is held up before it
tells the primary's. So that one is asked in the same way, over a connection of its own, and what it
says to be late is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.errors import LinkError, TransferFailed
from engine.model.doubt import Doubt
from engine.sources.replica import ReplicaSource
from engine.sources.source_monitor import SourceMonitor
from engine.transfer.control_connections import Endpoints
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
            if self._source.relative_ttls and self._is_replica:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        source = self._source
        monitor = SourceMonitor(
            self._dial, lambda: source.received_offset, self._say_late, self._on_event
        )
        await monitor.run()
        # It does not let itself be asked, and that was told.
        await asyncio.Event().wait()

    @property
    def _is_replica(self) -> bool:
        told = self._source.replication
        return (told if told is not None else self._source.info).is_replica

    def _say_late(self) -> None:
        if self._is_replica and not self._unasked:
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
        return await dial(head.endpoint, fault="source", timeout=settings.connect_timeout)
