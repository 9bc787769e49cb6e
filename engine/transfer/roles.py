"""Which server takes the writes, and whether the target takes ours: looked at while following.

The source's role is in each answer to `sources/watch`. A primary takes its writes itself; for a
replica the head of its chain is walked up to, once a second. Whatever changes is an event, and the
gate of the cut-over is closed until it is known again where the writes go, and that they come from
there to here.

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
)
from engine.sources.replica import ReplicaSource
from engine.targets.role import refuse_replica
from engine.transfer.books import Books
from engine.transfer.ends import Ends
from engine.transfer.head import Heads
from engine.transfer.stage import Stage
from engine.wire.admin import Admin

# What leaves it unknown how a server is.
_UNKNOWN = (LinkError, AuthError, ServerError, ProtocolFault)
# Between two looks at the target, and at the servers above the source.
_LOOK_SECONDS = 1.0


class Roles:
    """The roles of both ends of one migration."""

    def __init__(self, ends: Ends, source: ReplicaSource, books: Books, stage: Stage) -> None:
        self._ends = ends
        self._source = source
        self._books = books
        self._stage = stage
        # The source's role as it was told last, in words.
        self._place = ""
        # The role for which it was found where the writes go, and what is in the way of it.
        self._found_for = ""
        self._problem = ""
        self._target_id = ""
        self._changed = asyncio.Event()

    # --- While following ---

    def look(self) -> None:
        """Take in what the source said last of its role."""
        told = self._source.told
        if told is None or told.place == self._place:
            return
        before, self._place = self._place, told.place
        if before:
            self._stage.on_event(
                f"the source {self._ends.source.address} is {told.place} now; it was {before}"
            )
        elif told.is_replica:
            self._stage.on_event(
                f"the source {self._ends.source.address} is {told.place}: it is followed, and "
                "writes are held off at the primary at the head of its chain"
            )
        self._changed.set()

    @property
    def objection(self) -> str:
        """Why a cut-over cannot begin as the roles are, in one line; empty if it can."""
        told = self._source.told
        if told is None:
            return "the source's role is not known yet"
        if self._stage.settings.fence != "pause":
            return ""  # writers are the operator's, wherever they write
        if told.is_replica and not told.primary_link_up:
            return f"the source is {told.place}, and has lost its link to it"
        if told.place != self._found_for:
            return f"the source is {told.place}: it is being asked where its writes are taken"
        return self._problem

    async def run(self) -> None:
        """Look until cancelled. Raises `ServerError` of a target that takes no writes any more, and
        `TransferFailed` where the ends belong to one replication."""
        heads = Heads(self._ends)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(heads.close)
            target = await self._dialled(stack)
            while True:
                self._changed.clear()
                if target is None:
                    target = await self._dialled(stack)
                else:
                    await self._look_at_target(target)
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
        told = self._source.told
        if told is None:
            return
        if not told.is_replica:
            self._problem = await self._former_head(heads)
            self._found_for = told.place
            return
        try:
            head = await heads.find()
        except TransferFailed as exc:
            self._problem = exc.message
        else:
            if self._target_id and self._target_id in head.chain:
                raise self._one_replication("the source became a replica of the target")
            self._problem = ""
            if head.address != self._books.mark.head:
                self._books.note(head=head.address)
                self._stage.on_event(f"writes are taken by {head.endpoint.address}")
        self._found_for = told.place

    async def _former_head(self, heads: Heads) -> str:
        """Whether the primary of which the source was a replica takes writes beside it."""
        former = self._books.mark.head
        if not former:
            return ""
        try:
            info = await heads.ask(former)
        except TransferFailed:
            # It is gone, as far as can be seen from here: that is why the source was promoted.
            return ""
        if info.is_replica:
            self._books.note(head="")
            return ""
        return (
            f"the source was a replica of {former} and is a primary now, while {former} is still "
            "one too: what is written there does not arrive"
        )

    # --- Before it ---

    async def check_apart(self) -> None:
        """Raise unless the ends are servers of two replications, and the target is a primary.

        Raises `ServerError` (READONLY) for a target that is a replica now and was none before,
        `TransferStopped` (which can be resumed) or `TransferFailed` for ends of one replication,
        `LinkError`, `AuthError` of the target.
        """
        async with self._ends.admin("target") as end:
            target = await end.info()
            name = end.name
        heads = Heads(self._ends)
        try:
            chain = await heads.chain()
        finally:
            await heads.close()
        if target.run_id and target.run_id in chain:
            if target.run_id == chain[0]:
                raise self._one_replication("the source is its own target")
            raise self._one_replication("the source is a replica of the target")
        self._target_id = target.run_id
        if not target.is_replica:
            return
        if not self._books.mark.begun:
            raise TransferFailed(
                f"{name} is a replica of {target.primary}: nothing is written to it",
                remedy="Name a primary as the target.",
                fault="user",
            )
        refuse_replica(name, target)

    def _one_replication(self, what: str) -> TransferFailed:
        message = f"{what}: the migration would feed on what it writes, and nothing is written"
        remedy = "Give each its own server; then start, or resume."
        if self._books.mark.begun:
            return TransferStopped(message, remedy=remedy, fault="user")
        return TransferFailed(message, remedy=remedy, fault="user")
