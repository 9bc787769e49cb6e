"""Keys of the source are read again at its primary, also where a replica of it is followed.

Invariant. What is read at the offset O of the primary is what the stream's commands up to O lead
to, whichever server of the replication sends that stream: all have one, under one id. A replica
itself says less. What a primary changes without a word in the stream its replica does not have. And
a key, or a field, whose time is over by the replica's clock is hidden there until the primary
deletes it, or extends it: that is not known at O, so a reading that found no key would delete one
that lives on.

The primary is looked up for each connection, and when the server that is followed has another role,
or another primary. A failover may come before that is heard: what is read tells its role as well
(`refuse_demoted`). While the primary cannot be asked nothing is read, and keys stay dirty; a
cut-over with the fence "pause" waits for it as well. With another fence, where the writers are the
operator's, the replica is read then, and the primary is looked for again after `_BACK_SECONDS`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from engine.errors import FaultOf, LinkError, TransferFailed
from engine.model.replication import Replication
from engine.sources.replica import ReplicaSource
from engine.transfer.control_connections import Endpoints
from engine.transfer.source_primary import Heads
from engine.wire.control_connection import Admin, Arg, admin

_BACK_SECONDS = 10.0


class PrimaryReads:
    """A connection of the control plane to the server that takes the source's writes. `on_event` is
    told where that cannot be asked and a replica is read."""

    fault: FaultOf = "source"

    def __init__(
        self, ends: Endpoints, source: ReplicaSource, on_event: Callable[[str], None]
    ) -> None:
        self._ends = ends
        self._source = source
        self._on_event = on_event
        self._told = False
        self._stack = contextlib.AsyncExitStack()
        self._end: Admin | None = None
        # What the server that is followed was when it was dialled (`place_of`), and until when a
        # replica is read in its primary's place; None: what takes the writes is read.
        self._place = ""
        self._replica_until: float | None = None
        self._name = f"source {ends.source.address}"

    @property
    def name(self) -> str:
        """As `Admin.name`."""
        return self._name

    async def pipeline(self, commands: Iterable[Sequence[Arg]]) -> list[Any]:
        """As `Admin.pipeline`."""
        end = self._end
        if end is None or self._is_old:
            end = await self._dial()
        try:
            return await end.pipeline(commands)
        except LinkError:
            # Its part may be another server's by now.
            await self.close()
            raise

    @property
    def _is_old(self) -> bool:
        if self._place != place_of(self._source):
            return True
        return self._replica_until is not None and time.monotonic() >= self._replica_until

    async def refuse_demoted(self, told: Replication) -> None:
        """`told`: by the server that was read, of itself, with what was read. Raises `LinkError`
        where it was dialled as the one that takes the writes, and is a replica by now."""
        if not told.is_replica or self._replica_until is not None:
            return
        await self.close()
        raise LinkError(
            f"{self._name} is {told.place} by now: there was a failover", fault="source"
        )

    async def close(self) -> None:
        """Hang up; what is asked next is asked of the server that takes the writes then."""
        self._end = None
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()

    @contextlib.asynccontextmanager
    async def dialled(self) -> AsyncIterator[PrimaryReads]:
        """Itself, closed behind its user. A source that is a primary is dialled at once: raises as
        `Endpoints.admin`."""
        try:
            if not place_of(self._source):
                await self._dial()
            yield self
        finally:
            await self.close()

    async def _dial(self) -> Admin:
        await self.close()
        self._place, self._replica_until = place_of(self._source), None
        dialling = None
        if self._place and (dialling := await self._dialling_head()) is None:
            self._replica_until = time.monotonic() + _BACK_SECONDS
        if dialling is None:
            dialling = self._ends.admin("source")
        end = self._end = await self._stack.enter_async_context(dialling)
        self._name = end.name
        return end

    async def _dialling_head(self) -> contextlib.AbstractAsyncContextManager[Admin] | None:
        """The primary's connection; None: the replica is to be read. Raises `LinkError`."""
        heads = Heads(self._ends)
        try:
            head = await heads.find()
        except TransferFailed as exc:
            if self._ends.settings.fence == "pause":
                raise LinkError(exc.message, remedy=exc.remedy, fault="source") from None
            if not self._told:
                self._told = True
                self._on_event(
                    "keys are read again from a replica of the source, and what it does not have "
                    f"of its primary is not seen: {exc.message}"
                )
            return None
        finally:
            await heads.close()
        timeout = self._ends.settings.io_timeout
        straight = bool(head.address)
        return admin(head.endpoint, timeout=timeout, fault="source", straight=straight)


def place_of(source: ReplicaSource) -> str:
    """The primary of the server that is followed, `a replica of HOST:PORT`; empty: it is one."""
    told = source.replication
    if told is None:
        info = source.info
        return f"a replica of {info.primary}" if info.is_replica else ""
    return told.place if told.is_replica else ""
