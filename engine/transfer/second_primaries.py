"""The other servers of the source's replication: whether one of them takes writes of its own.

A replica that is promoted leaves its primary's list, and clients that are led to it write where
is not followed. So every server that was ever heard of is kept, and those that are not attached to
the server that takes the writes are asked, once a second and behind the fence. One that is a
primary and shares the source's history is a second primary: which of them the clients write to
cannot be told from here, so the gate is closed. One that cannot be asked is taken for gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable

from engine.errors import (
    AuthError,
    LinkError,
    ProtocolFault,
    ServerError,
    TransferFailed,
    UsageError,
)
from engine.model.replication import Replication, parse_replication
from engine.transfer.control_connections import Endpoints
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.wire.control_connection import Admin, admin

_UNKNOWN = (LinkError, AuthError, ServerError, ProtocolFault, UsageError)
# For so long one of them may take to answer, in seconds; and behind the fence, where writers wait,
# one that was there a moment ago.
_ANSWER_SECONDS = 2.0
_AT_FENCE_SECONDS = 1.0
# So many are kept, those that were heard of last.
_MOST = 64


class SiblingServers:
    """The other servers of the replication of one migration's source."""

    def __init__(
        self, ends: Endpoints, checkpoint: CheckpointWriter, context: MigrationContext
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._dialled: dict[str, tuple[contextlib.AsyncExitStack, Admin]] = {}
        # One question at a time goes over a connection.
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Which were asked and did not answer.
        self._gone: set[str] = set()
        # Histories that have branched off the source's.
        self._branches: set[str] = set()
        # The second primaries that events have told of.
        self._second: frozenset[str] = frozenset()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The `host:port` of every server that is known, those that the operator named last."""
        settings = self._ends.settings
        known = dict.fromkeys((*self._checkpoint.mark.siblings, *settings.named_nodes))
        return tuple(each for each in known if each not in settings.detached_nodes)

    def note(self, replication: Replication) -> None:
        """One of the servers has told of its replicas, and of its primary."""
        self._keep((*replication.replicas, replication.primary))

    async def look(self, replication: Replication, followed: Iterable[str]) -> str:
        """Why the gate is closed, if it is: a second primary. `replication`: what the server that
        takes the writes has told; `followed`: the addresses at which it, and the source, are
        known."""
        self.note(replication)
        asked = self._asked(replication, followed)
        found = await asyncio.gather(*(self._ask(each, _ANSWER_SECONDS) for each in asked))
        return self._judge(replication, dict(zip(asked, found, strict=True)))

    async def at_fence(
        self, replication: Replication, followed: Iterable[str], history: str = ""
    ) -> None:
        """Look once more, while writers wait. `history`: a replid that was the source's. Raises
        `TransferFailed` for a second primary."""
        self.note(replication)
        if history:
            self._branches.add(history)
        asked = [each for each in self._asked(replication, followed) if each not in self._gone]
        found = await asyncio.gather(*(self._ask(each, _AT_FENCE_SECONDS) for each in asked))
        if why := self._judge(replication, dict(zip(asked, found, strict=True))):
            raise TransferFailed(why, fault="source")

    async def close(self) -> None:
        """Hang up."""
        for address in list(self._dialled):
            await self._hang_up(address)

    def _keep(self, addresses: Iterable[str]) -> None:
        known = self._checkpoint.mark.siblings
        new = [each for each in dict.fromkeys(addresses) if each and each not in known]
        if new:
            self._checkpoint.note(siblings=(*known, *new)[-_MOST:])

    def _asked(self, replication: Replication, followed: Iterable[str]) -> list[str]:
        """Those of which it is to be asked: a server's replica is attached to it."""
        known = {*replication.replicas, *followed}
        return [each for each in self.addresses if each not in known]

    async def _ask(self, address: str, seconds: float) -> Replication | None:
        try:
            async with asyncio.timeout(seconds), self._lines[address]:
                known = self._dialled.get(address)
                end = known[1] if known is not None else await self._dial(address)
                return parse_replication(await end.call("INFO", "replication"))
        except (*_UNKNOWN, TimeoutError):
            await self._hang_up(address)
            return None

    async def _dial(self, address: str) -> Admin:
        stack = contextlib.AsyncExitStack()
        limit = min(self._ends.settings.connect_timeout, _ANSWER_SECONDS)
        at = self._ends.beside_source(address)
        end = await stack.enter_async_context(
            admin(at, timeout=limit, fault="source", straight=True)
        )
        self._dialled[address] = stack, end
        return end

    async def _hang_up(self, address: str) -> None:
        if (known := self._dialled.pop(address, None)) is not None:
            await known[0].aclose()

    def _judge(self, replication: Replication, found: dict[str, Replication | None]) -> str:
        ours = {replication.replid, replication.replid2} - {""}
        second = list[str]()
        for address, server in found.items():
            if server is None:
                # It may have been stopped, or its address is another server's by now.
                self._gone.add(address)
                continue
            self._gone.discard(address)
            self.note(server)
            if server.is_replica or (server.replid and server.replid == replication.replid):
                continue
            theirs = {server.replid, server.replid2} - {""}
            if not ours or not theirs or theirs & (ours | self._branches):
                self._branches |= theirs - ours
                second.append(address)
        now, before = frozenset(second), self._second
        for address in sorted(now - before):
            self._context.on_event(
                f"{address}, a server of the source's replication, is a primary now: what is "
                "written there does not arrive"
            )
        for address in sorted(before - now):
            self._context.on_event(f"{address} is no longer a second primary")
        self._second = now
        if not second:
            return ""
        return (
            f"{', '.join(second)}, of the source's replication, is a primary besides the server "
            "that is followed, and which of them the applications write to is unknown: make "
            "it a replica of that one, or stop it; for a copy that was detached on purpose resume "
            f"the migration with --source-node {second[0]}=detached"
        )
