"""Follows what a cluster tells of itself, for all lanes that have one of its shards as an end.

Each primary is asked about once a second (CLUSTER SLOTS, CLUSTER NODES; where it knows it CLUSTER
GETSLOTMIGRATIONS): only the nodes that take part in the move of a slot tell of it, and of a
failover the nodes of the latest configuration. What they say is put together
(`model.cluster_topology.merge`). When a shard has another primary each connection that carries data
of its lanes is given up, and what dials anew asks the cluster where to (`wire.dial.located`).

The gate of the cut-over is closed while no node answers, while a slot is being moved, and while a
slot belongs to another shard than the one that the lanes were made for.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import operator
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from engine import logs
from engine.errors import EngineError, LinkError, UsageError
from engine.model.cluster_shard import ClusterShard
from engine.model.cluster_topology import Node, Topology, merge
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.transfer.async_helpers import cancelled
from engine.transfer.cluster_node import ClusterNode
from engine.transfer.control_connections import Side
from engine.transfer.migration_context import MigrationContext
from engine.wire import cluster_primary

_log = logs.logger(__name__)
# From one look to the next.
_LOOK_SECONDS = 1.0
# How long one node may take to answer.
_ANSWER_SECONDS = 3.0
# A slot that is on its way for longer is told of once more: its move may have been given up.
_LONG_SECONDS = 60.0
# Nodes beside the primaries that are asked where those are not known yet.
_SEEDS_MOST = 6

Moved = Callable[[Side, Endpoint], None]


@dataclass(slots=True)
class _Attended:
    """A lane's end."""

    end: Endpoint
    shard: ClusterShard
    context: MigrationContext
    moved: Moved
    own_slot: int
    there: Endpoint | None = None


class ClusterMonitor:
    """Watches the cluster of one side of a migration."""

    def __init__(
        self, side: Side, settings: TransferSettings, on_event: Callable[[str], None]
    ) -> None:
        self._side = side
        self._settings = settings
        self._on_event = on_event
        self._ends: list[_Attended] = []
        self._told: Topology | None = None
        self._nodes: dict[tuple[str, int], ClusterNode] = {}
        self._slots = ""
        # Why it is not known where the slots are; where they are, if that is wrong.
        self._why = self._wrong = ""
        self._wrong_told = self._displaced = False
        # Since when each slot is being moved; those of which it was told that this is long.
        self._moving: dict[int, float] = {}
        self._long = SlotSet()
        # What the nodes had said when all was found to be well; empty: it was not.
        self._well: list[Topology] = []
        # Since when slots lie elsewhere than planned, and none is being moved.
        self._moved_at: float | None = None
        self._wake = asyncio.Event()
        # Of each primary the epoch of its configuration and its slots, when snapshots began behind
        # which nothing is followed; and what has become of that.
        self._still: dict[str, tuple[int, SlotSet]] | None = None
        self._stirred = ""
        # A node is asked one thing at a time.
        self._looking = asyncio.Lock()
        # The look that is going to begin, for those that ask.
        self._next: asyncio.Task[None] | None = None
        self.on_look: Callable[[], None] = lambda: None
        """Called behind each look."""

    def attend(
        self, end: Endpoint, context: MigrationContext, moved: Moved, own_slot: int = -1
    ) -> None:
        """One more lane; `moved` is called with its end's primary at each look. `own_slot` is that
        of its own keys there, without which it cannot go on; -1: it has none."""
        assert end.cluster is not None
        self._well = []
        self._ends.append(_Attended(end, end.cluster, context, moved, own_slot))

    @property
    def topology(self) -> Topology | None:
        """What the cluster told last; None: nothing yet."""
        return self._told

    @property
    def moved_for(self) -> float:
        """For how many seconds slots have belonged to other shards than planned, while each slot
        has a node and none is being moved; 0: that is not so. Infinite as soon as a lane has lost
        the slot of its own keys, whatever else is being moved."""
        if self._displaced:
            return math.inf
        if self._moved_at is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._moved_at

    def has_lost(self, context: MigrationContext) -> bool:
        """Whether this lane's shard is none any more, or has lost the slot of the lane's own keys,
        by what was told last."""
        told = self._told
        return told is not None and any(
            each.context is context and _is_lost(each, told) for each in self._ends
        )

    async def objection(self) -> str:
        """Why the lanes' slots are not theirs, by what the primaries tell from now on; empty: they
        are. Lanes that ask at once are answered at once."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._look_at_primaries())
        await asyncio.shield(self._next)
        return self._why or self._wrong or self._stirred

    def objection_to(self, shard: ClusterShard, told: Topology) -> str:
        """The same of one shard, by what its primary has `told` in the moment in which all its
        clients were paused: from then on nobody can ask it, nor move slots there. A slot that has
        gone to a shard which was paused later shows in what that one has told."""
        found = shard.found(told)
        if found is None or found.id != told.me:
            return (
                f"the {self._side}'s cluster names another primary for the shard that had the "
                f"slots {shard.slots.words}"
            )
        if moving := SlotSet.of({move.slot for move in told.moves}):
            return f"the slots {moving.words} of the {self._side}'s cluster are being moved"
        has = told.slots_of(told.me)
        if gone := shard.slots - has:
            return (
                f"the slots {gone.words} of the {self._side}'s shard {shard.slots.words} belong to "
                "another shard by now"
            )
        if more := has - shard.slots:
            return (
                f"the slots {more.words} belong to the {self._side}'s shard {shard.slots.words} by "
                "now"
            )
        return ""

    async def keep_still(self) -> None:
        """Snapshots are taken from here on, and nothing is followed: a slot that moves meanwhile
        may be in none of them, and `objection` tells of it from then on, also once it is back. For
        that changes the epoch of a configuration: a node that gets a slot takes the latest. (So
        does a failover, which is not told from it.) Raises `LinkError` where no node answers."""
        if self._still is not None:
            return
        await self.objection()
        if self._told is None or self._why:
            raise LinkError(self._why, fault=self._side)
        if self._still is None:
            self._still, self._stirred = _configuration(self._told), self._wrong

    async def _look_at_primaries(self) -> None:
        async with self._looking:
            # Whoever asks from here on is told of a later look.
            self._next = None
            await self._look_once(primaries=True)

    def look_now(self) -> None:
        """Look without waiting for the next turn."""
        self._wake.set()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch it meanwhile."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await cancelled(task)
            for node in self._nodes.values():
                await node.close()
            self._nodes.clear()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            await self._look()
            self.on_look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()

    async def _look(self) -> None:
        async with self._looking:
            await self._look_once()

    async def _look_once(self, *, primaries: bool = False) -> None:
        """`primaries`: nothing is asked of others, which may take their time."""
        if not self._ends:
            return
        any_end = self._ends[0].end
        nodes = self._asked(any_end)
        if primaries and self._told is not None:
            places = {each.shard.place_of(node) for each in self._ends[:1] for node in self._heads}
            nodes = [node for node in nodes if node.place in places] or nodes
        answers = await asyncio.gather(*(node.ask() for node in nodes))
        heard = [
            (cluster_primary.of_another(any_end, each, self._told) or each)
            if isinstance(each, Topology)
            else each
            for each in answers
        ]
        told = [each for each in heard if isinstance(each, Topology)]
        if not told:
            why = next(each.message for each in heard if isinstance(each, EngineError))
            self._doubt(f"no node of the {self._side}'s cluster answers ({why.removesuffix('.')})")
            return
        under_way = {slot for node in nodes for slot in node.under_way}
        if self._told is not None and not under_way and _same(told, self._well):
            # Nothing has changed, by far the most often.
            cluster_primary.note(any_end, self._told)
            for each in self._ends:
                if each.there is not None:
                    each.moved(self._side, each.there)
            return
        self._well = []
        merged = merge(told)
        if 2 * len(told) <= len(nodes) and self._earlier(merged):
            self._doubt(
                f"{len(told)} of {len(nodes)} nodes of the {self._side}'s cluster answer, and "
                "their configuration is older than the last one seen"
            )
            return
        self._told, self._why = merged, ""
        cluster_primary.note(any_end, merged)
        if self._still is not None and _configuration(merged) != self._still:
            self._stirred = (
                f"the {self._side}'s slots, or its primaries, are not as they were when the first "
                "snapshot began"
            )
        for each in self._ends:
            self._judge(each, merged)
        self._judge_slots(merged, SlotSet.of(under_way))
        settled = self._moved_at is None and not self._displaced
        if settled and not self._wrong and all(each.there is not None for each in self._ends):
            self._well = told

    @property
    def _heads(self) -> list[Node]:
        """The primaries, as far as they are known."""
        return [] if self._told is None else [shard.primary for shard in self._told.shards]

    def _asked(self, end: Endpoint) -> list[ClusterNode]:
        """The primaries, as far as they are known; else nodes that may tell of them."""
        most = _SEEDS_MOST if self._told is None else len(self._told.shards) + _SEEDS_MOST
        wanted = {(at.host, at.port): at for at in cluster_primary.places_of(end, self._told, most)}
        for place in [place for place in self._nodes if place not in wanted]:
            # It may be a replica by now; its connection is let go of behind what it owes.
            self._nodes.pop(place).let_go()
        for place, at in wanted.items():
            if place not in self._nodes:
                self._nodes[place] = ClusterNode(at, self._side, _ANSWER_SECONDS)
        return list(self._nodes.values())

    def _earlier(self, merged: Topology) -> bool:
        for each in self._ends:
            before = None if self._told is None else each.shard.found(self._told)
            now = each.shard.found(merged)
            if before is not None and (now is None or now.epoch < before.epoch):
                return True
        return False

    def _doubt(self, why: str) -> None:
        self._well = []
        self._moved_at, self._displaced, self._why = None, False, why
        for each in self._ends:
            each.context.trouble_of(f"the {self._side}'s cluster")(
                f"{why}: the engine does not know which servers are its primaries, and asks again"
            )

    def _judge(self, each: _Attended, told: Topology) -> None:
        """Where is the shard's primary, and has it its slots?"""
        report = each.context.trouble_of(f"the {self._side}'s cluster")
        found = each.shard.found(told)
        place = None if found is None else each.shard.place_of(found)
        there = None
        if place is not None:
            with contextlib.suppress(UsageError):
                there = each.end.at(*place)
        if found is None or there is None:
            report(
                f"the {self._side}'s cluster names no primary for the shard that had the slots "
                f"{each.shard.slots.words}; the engine asks again"
            )
            return
        report("")
        before, each.there = each.there, there
        if before is None:
            before = each.end.at(each.end.host, each.end.port)
        if before.address != there.address:
            each.context.on_event(
                f"the cluster names {there.address} as the primary of {each.shard.slots.words} "
                f"(the {self._side}); it was {before.address}"
            )
        # Each time: a link that was being made meanwhile may lead to the one before.
        each.moved(self._side, there)

    def _judge_slots(self, told: Topology, under_way: SlotSet) -> None:
        """Slots that are being moved, or have another owner than the lanes were made for."""
        moving = under_way | SlotSet.of({move.slot for move in told.moves})
        words: dict[ClusterShard, str] = {}
        for shard in dict.fromkeys(each.shard for each in self._ends):
            found = shard.found(told)
            if found is None:
                continue
            gone = shard.slots - told.slots_of(found.id)
            if elsewhere := gone & told.covered:
                words[shard] = (
                    f"the slots {elsewhere.words} of the {self._side}'s shard "
                    f"{shard.slots.words} belong to another shard by now"
                )
            elif gone:
                words[shard] = f"no node of the {self._side}'s cluster has the slots {gone.words}"
        self._displaced = not told.missing and any(_is_displaced(each, told) for each in self._ends)
        settled = not moving and not told.missing and self._elsewhere(told)
        if not settled:
            self._moved_at = None
        elif self._moved_at is None:
            self._moved_at = asyncio.get_running_loop().time()
        self._wrong = "; ".join(words.values())
        if moving:
            self._wrong = f"the slots {moving.words} of the {self._side}'s cluster are being moved"
            self._stirred = self._wrong if self._still is not None else ""
        slots = f"{moving}; {'; '.join(words.values())}"
        is_long = self._look_at_long(moving)
        for each in self._ends:
            why = words.get(each.shard, "")
            if moving:
                why = is_long or self._wrong
            each.context.trouble_of(f"the {self._side}'s slots")(why)
        if slots != self._slots:
            self._slots = slots
            _log.info("Slots of the cluster: %s", slots, extra={"end": self._side})
        if (wrong := bool(moving or words)) != self._wrong_told:
            # Thousands may move one by one: told is when they begin, and when all is over.
            self._wrong_told = wrong
            self._tell(moving, list(words.values()))

    def _look_at_long(self, moving: SlotSet) -> str:
        """What is to be done about slots that have been on their way for long; empty: there are
        none. Told once of each."""
        now = asyncio.get_running_loop().time()
        self._moving = {slot: self._moving.get(slot, now) for slot in moving}
        of_long = (slot for slot, at in self._moving.items() if now - at >= _LONG_SECONDS)
        if not (found := SlotSet.of(of_long)):
            self._long = SlotSet()
            return ""
        why = (
            f"the slots {found.words} of the {self._side}'s cluster have been on their way for "
            f"more than {_LONG_SECONDS:g} s: finish their move, or give it up (CLUSTER SETSLOT "
            "<slot> STABLE at both nodes); until then their keys wait, and nothing is cut over"
        )
        if found - self._long:
            self._on_event(why)
        self._long = found
        return why

    def _elsewhere(self, told: Topology) -> bool:
        """Whether a shard has other slots than it was planned with."""
        for shard in dict.fromkeys(each.shard for each in self._ends):
            found = shard.found(told)
            if found is None or told.slots_of(found.id) != shard.slots:
                return True
        return False

    def _tell(self, moving: SlotSet, wrong: Sequence[str]) -> None:
        parts = [*wrong]
        if moving:
            parts.insert(
                0, f"the slots {moving.words} of the {self._side}'s cluster are being moved"
            )
        if not parts:
            parts.append(f"the {self._side}'s slots are where they were at the start")
        closed = "; no cut-over begins meanwhile" if moving or wrong else ""
        self._on_event(f"{'; '.join(parts)}{closed}")


def _is_displaced(each: _Attended, told: Topology) -> bool:
    found = each.shard.found(told)
    return each.own_slot >= 0 and found is not None and each.own_slot not in told.slots_of(found.id)


def _is_lost(each: _Attended, told: Topology) -> bool:
    if told.missing:
        return False
    return each.shard.found(told) is None or _is_displaced(each, told)


def _configuration(told: Topology) -> dict[str, tuple[int, SlotSet]]:
    return {each.primary.id: (each.primary.epoch, each.slots) for each in told.shards}


def _same(told: Sequence[Topology], before: Sequence[Topology]) -> bool:
    """Whether the same nodes have said the same: then they are the very same objects."""
    return len(told) == len(before) and all(map(operator.is_, told, before))
