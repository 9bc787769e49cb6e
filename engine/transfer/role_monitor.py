"""Which server takes the writes, and whether the target takes ours: looked at while following.

The source's role is in each answer to `sources/source_monitor`. A primary takes its writes itself;
for a replica the head of its chain is walked up to, once a second. Whatever changes is an event,
and the gate of the cut-over is closed until it is known again where the writes go, and that they
come from there to here.

A target that is a replica is written to no more. Source and target that belong to one replication
would feed the migration its own output: that is looked at before each (re)start.
"""

from __future__ import annotations

import asyncio
import contextlib

from engine.errors import (
    AuthError,
    LinkError,
    ProtocolFault,
    ServerError,
    TransferFailed,
    TransferStopped,
    UsageError,
)
from engine.model.endpoint import Endpoint
from engine.model.position import StreamPosition
from engine.model.replication import Replication, parse_replication
from engine.sources.replica import ReplicaSource
from engine.targets.role_check import refuse_replica
from engine.transfer.control_connections import Endpoints
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.same_replication import APART, FEEDS_ITSELF, chain_of, relation_of
from engine.transfer.second_primaries import SiblingServers
from engine.transfer.source_primary import Heads
from engine.wire import failover_addresses, source_replica
from engine.wire.control_connection import Admin, admin

# What leaves it unknown how a server is.
_UNKNOWN = (LinkError, AuthError, ServerError, ProtocolFault)
# For so long a source cannot be dialled before another server is looked for, in seconds; and for so
# long that one may take to answer.
_AWAY_SECONDS = 3.0
_NEIGHBOUR_SECONDS = 2.0
# Between two looks at the target, and at the servers above the source.
_LOOK_SECONDS = 1.0


class RoleMonitor:
    """The roles of both ends of one migration."""

    def __init__(
        self,
        ends: Endpoints,
        source: ReplicaSource,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
    ) -> None:
        self._ends = ends
        self._source = source
        self._checkpoint = checkpoint
        self._context = context
        # The source's role as it was told last, in words.
        self._place = ""
        # The role for which it was found where the writes go, and what is in the way of it.
        self._found_for = ""
        self._problem = ""
        self._target_id = ""
        # Since when the source cannot be dialled, by the loop's clock, and which servers that could
        # succeed it lack something.
        self._away_since: float | None = None
        self._short: set[str] = set()
        # Those that could succeed it, more than one.
        self._several: set[str] = set()
        self._changed = asyncio.Event()
        self.behind: int | None = None
        """Bytes that the source, a replica, lacked of its primary's stream when that one was asked
        last; None: there was no answer. A primary lacks none."""
        self.siblings = SiblingServers(ends, checkpoint, context)
        """The other servers of the source's replication."""

    # --- Where it is followed ---

    def take_up(self) -> None:
        """An engine before us may have followed another server in the source's place."""
        if self._ends.source.from_replica:
            mark, settings = self._checkpoint.mark, self._ends.settings
            known = (mark.followed, mark.head, *mark.siblings, *settings.named_nodes)
            source_replica.note(self._ends.source, known, settings.detached_nodes)
        elif followed := self._checkpoint.mark.followed:
            failover_addresses.lead(self._ends.source, self._ends.beside_source(followed))

    async def goes_on_elsewhere(self, position: StreamPosition) -> bool:
        """Whether the source, which cannot be dialled, was succeeded by a server that goes on with
        its stream from `position`: its address leads there from now on.

        That is one of the replicas that it had, promoted since; or the primary of a source that is
        a replica itself; or one of the servers that the operator has named: if no other of them
        could be it as well. A server that parted from the source before is none of these, though
        it knows its history too.
        """
        if self._ends.source.looked_up:
            return False  # what decides that is asked before each dial: Sentinels, for one
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since < _AWAY_SECONDS:
            return False
        if self._source.replication is not None:
            self.siblings.note(self._source.replication)
        asked = self.siblings.addresses
        found = await asyncio.gather(*(self._successor(each, position) for each in asked))
        there = {each: at for each, at in zip(asked, found, strict=True) if at is not None}
        if len(there) == 1:
            return self._lead_to(*next(iter(there.items())))
        if there and self._several != set(there):
            self._several = set(there)
            self._context.on_event(
                f"the source {self._ends.source.address} cannot be reached, and more than one of "
                f"the servers of its replication could go on with its stream: {', '.join(there)}; "
                "none is followed while all of them are primaries"
            )
        return False

    def _lead_to(self, address: str, there: Endpoint) -> bool:
        failover_addresses.lead(self._ends.source, there)
        self._checkpoint.note(followed=address, head="")
        self._context.on_event(
            f"the source {self._ends.source.address} cannot be reached: {there.address} is a "
            "primary now, and goes on with its stream; it is followed"
        )
        return True

    async def _successor(self, address: str, position: StreamPosition) -> Endpoint | None:
        try:
            there = self._ends.beside_source(address)
            found = await self._ask(there)
        except UsageError:
            return None
        if found is None or found.is_replica:
            return None
        if found.goes_on_from(position.replid, position.offset):
            return there
        if found.replid2 == position.replid and address not in self._short:
            self._short.add(address)
            self._context.on_event(
                f"{there.address} was promoted, and lacks what the target has already: it is not "
                "followed. Name it as the source of another migration"
            )
        return None

    async def _ask(self, at: Endpoint) -> Replication | None:
        """What the server at this very address says of its role; None if it does not."""
        limit = min(self._ends.settings.connect_timeout, _NEIGHBOUR_SECONDS)
        try:
            async with admin(at, timeout=limit, fault="source", straight=True) as end:
                return parse_replication(await end.call("INFO", "replication"))
        except _UNKNOWN:
            return None

    # --- While following ---

    def look(self) -> None:
        """Take in what the source said last of its role."""
        replication = self._source.replication
        if self._source.link == "up":
            self._away_since = None
        if replication is None:
            return
        self.siblings.note(replication)
        if replication.place == self._place:
            return
        before, self._place = self._place, replication.place
        named = failover_addresses.leading(self._ends.source)
        at = ((source_replica.named_last(named) if named.from_replica else None) or named).address
        if before:
            self._context.on_event(f"the source {at} is {replication.place} now; it was {before}")
        elif replication.is_replica:
            self._context.on_event(
                f"the source {at} is {replication.place}: it is followed, and "
                + (
                    "writes are blocked at the primary at the head of its chain"
                    if self._context.settings.fence == "pause"
                    else "what the primary has not sent it does not arrive"
                )
            )
        self._changed.set()

    @property
    def objection(self) -> str:
        """Why a cut-over cannot begin as the roles are, in one line; empty if it can."""
        replication = self._source.replication
        if replication is None:
            return "the source's role is not known yet"
        pause = self._context.settings.fence == "pause"
        # Writers are the operator's, wherever they write; but what they wrote has to be here.
        if not pause and (not replication.is_replica or self._context.skip_verification):
            return ""
        if replication.is_replica and not replication.primary_link_up:
            lost = f"the source is {replication.place}, and has lost its link to it"
            return lost if pause else unasked(self._context, lost)
        if replication.place != self._found_for:
            return (
                f"the source is {replication.place}: the engine looks for the server that accepts "
                "its writes"
            )
        if pause:
            return self._problem
        return unasked(self._context, self._problem) if self.behind is None else ""

    async def run(self) -> None:
        """Look until cancelled. Raises `ServerError` of a target that takes no writes any more, and
        `TransferFailed` where the ends belong to one replication."""
        heads = Heads(self._ends)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(heads.close)
            stack.push_async_callback(self.siblings.close)
            target = await self._dialled(stack)
            while True:
                self._changed.clear()
                replication = self._source.replication
                # Above a replica the target may be found, which is known by the run id that it has
                # told: then it is asked first.
                is_replica = replication is None or replication.is_replica
                if not is_replica:
                    await self._look_up(heads)
                if target is None:
                    target = await self._dialled(stack)
                else:
                    await self._look_at_target(target)
                if is_replica:
                    await self._look_up(heads)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._changed.wait()

    async def _dialled(self, stack: contextlib.AsyncExitStack) -> Admin | None:
        try:
            return await stack.enter_async_context(self._ends.admin("target"))
        except _UNKNOWN:
            return None  # the data's own connection has trouble as well, and says so

    async def _look_at_target(self, target: Admin) -> None:
        try:
            info = await target.info()
        except _UNKNOWN:
            return
        refuse_replica(target.name, info)
        self._target_id = info.run_id

    async def _look_up(self, heads: Heads) -> None:
        replication = self._source.replication
        if replication is None:
            return
        if not replication.is_replica:
            self.behind = 0
            self._problem = (
                await self._named_one(replication.replid)
                or await self._former_head(heads, replication.replid)
                or await self.siblings.look(replication, self._known)
            )
            self._found_for = replication.place
            return
        self.siblings.note(replication)
        behind: int | None = None
        try:
            async with asyncio.timeout(_NEIGHBOUR_SECONDS):
                head = await heads.find()
                beside = await heads.replication(head)
        except TransferFailed as exc:
            self._problem = exc.message
        except _UNKNOWN as exc:
            await heads.close()
            self._problem = f"the source's primary cannot be asked for its replicas: {exc.message}"
        except TimeoutError:
            # What is still owed over a connection would be taken for the next answer.
            await heads.close()
            self._problem = (
                f"the source is {replication.place}, and the primary at the head of its chain "
                f"has not answered for {_NEIGHBOUR_SECONDS:g} s"
            )
        else:
            if self._target_id and self._target_id in head.chain:
                raise self._one_replication("the source became a replica of the target")
            if head.address != self._checkpoint.mark.head:
                self._checkpoint.note(head=head.address)
                self._context.on_event(f"writes are accepted by {head.endpoint.address}")
            if beside is None:
                self._problem = f"{head.endpoint.address} does not list its replicas"
            else:
                behind = max(beside.offset - self._source.sent_offset, 0)
                self._problem = await self.siblings.look(beside, self._known)
        self._found_for, self.behind = replication.place, behind

    @property
    def _known(self) -> tuple[str, ...]:
        """The addresses of servers whose roles are looked at otherwise."""
        mark = self._checkpoint.mark
        return (mark.followed, mark.head, self._ends.source.address)

    async def _named_one(self, replid: str) -> str:
        """Whether the source that was named takes writes again, while another one is followed, a
        primary whose history is `replid`."""
        followed = self._checkpoint.mark.followed
        if not followed:
            return ""
        found = await self._ask(self._ends.source)
        if found is None or found.is_replica:
            return ""
        if replid and found.replid == replid:
            # No two primaries have one history: it is the server that is followed, again.
            return ""
        return (
            f"the source {self._ends.source.address} answers again as a primary, besides "
            f"{followed}, which is followed: make one of them a replica of the other"
        )

    async def _former_head(self, heads: Heads, replid: str) -> str:
        """Whether the primary of which the source was a replica takes writes beside it, a primary
        whose history is `replid`."""
        former = self._checkpoint.mark.head
        if not former:
            return ""
        try:
            info = await heads.ask(former)
        except TransferFailed:
            # It is gone, as far as can be seen from here: that is why the source was promoted.
            return ""
        if info.is_replica or (replid and info.replid == replid):
            # Or it is the server that is followed by now: no two primaries have one history.
            self._checkpoint.note(head="")
            return ""
        return (
            f"the source was a replica of {former} and is a primary now, while {former} is still "
            "one too: what is written there does not arrive"
        )

    async def no_second_primary(self, replication: Replication, history: str = "") -> None:
        """Behind the fence: `replication` by the server that it stands at. Raises `TransferFailed`
        where another one of the source's replication, of this `history` too, was promoted by
        now."""
        if self._context.settings.fence == "pause":
            await self.siblings.at_fence(replication, self._known, history)

    # --- Before it ---

    async def check_apart(self) -> None:
        """Raise unless the ends are servers of two replications, and the target is a primary.

        Raises `ServerError` (READONLY) for a target that is a replica now and was none before,
        `TransferStopped` (which can be resumed) or `TransferFailed` for ends of one replication,
        `LinkError`, `AuthError` of the target.
        """
        async with self._ends.admin("target") as end:
            target, chain = await asyncio.gather(end.info(), chain_of(self._ends))
            name = end.name
        if what := relation_of(chain, target):
            raise self._one_replication(what)
        self._target_id = target.run_id
        if not target.is_replica:
            return
        if not self._checkpoint.mark.begun:
            raise TransferFailed(
                f"{name} is a replica of {target.primary}: nothing is written to it",
                remedy="Name a primary as the target.",
                fault="user",
            )
        refuse_replica(name, target)

    def _one_replication(self, what: str) -> TransferFailed:
        kind = TransferStopped if self._checkpoint.mark.begun else TransferFailed
        return kind(f"{what}: {FEEDS_ITSELF}", remedy=APART, fault="user")


def unasked(context: MigrationContext, why: str) -> str:
    """Why a source that is a replica, and may lack what its primary has, is not cut over where the
    writers are the operator's; with the word that does so all the same."""
    words = f"{why.rstrip('.')}; what the primary has not sent it by then is not migrated"
    if context.one_go:
        return words
    return f"{words}: complete-migration --skip-verification cuts over without it"
