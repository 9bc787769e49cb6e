"""Counts of keys where lanes share an end: a server counts those of all of them in one number.

Lanes that share a source or a target, directly or by others between them, are counted as one: all
their sources have as many keys as all their targets. Each lane brings what its two ends have told
behind the fence, waits for the others, and judges the same sums as they do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.model.server import Keyspace, ServerInfo
from engine.model.slots import SlotSet
from engine.model.verification import Counts
from engine.verify.key_counts import Stray, judge

NO_SLOTS = SlotSet()


@dataclass(frozen=True, slots=True)
class Told:
    """What both ends of one lane have told. `own`: keys of the engine's on the target, of this
    lane; `expired`: how many keys each end has let expire since the counts could last be equal, and
    `ended` how many more the target has ended when this lane restored their TTLs; `stray`: keys of
    slots that the ends do not own, which are left out once every name was looked up (`walked`)."""

    source: ServerInfo
    target: ServerInfo
    own: int
    expired: tuple[int, int]
    ended: int
    stray: Stray = ({}, {})
    walked: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """How many more keys the source of one lane has than its target, by database, that are hashes
    of which every field has expired. `walked`: every name was looked up at the other end; `expired`
    fields since then, of each end."""

    over: Mapping[int, int]
    walked: bool
    expired: tuple[int, int]


class LaneCounts:
    """The lanes whose ends are counted together; one alone where it shares none."""

    def __init__(self) -> None:
        self._ends: list[tuple[Hashable, Hashable]] = []
        # Of each source and each target: the slots that these lanes take it to have.
        self._slots: tuple[dict[Hashable, SlotSet], dict[Hashable, SlotSet]] = {}, {}
        self._named: set[str] = set()
        self._brought: dict[int, Any] = {}
        self._answer: asyncio.Future[list[Any]] | None = None
        self._attending: set[int] = set()
        self.doubted: set[int] = set()
        """The lanes that are to look up every name, because the counts differed."""

    def join(self, source: Hashable, target: Hashable, slots: SlotSet = NO_SLOTS) -> int:
        """One more lane, between these two ends, of these slots; the number of it."""
        self._ends.append((source, target))
        for known, end in zip(self._slots, (source, target), strict=True):
            known[end] = known.get(end, NO_SLOTS) | slots
        return len(self._ends) - 1

    def slots_of(self, lane: int) -> tuple[SlotSet, SlotSet]:
        """The slots that the lanes take its source, and its target, to have."""
        source, target = self._ends[lane]
        return self._slots[0][source], self._slots[1][target]

    def names(self, words: str) -> bool:
        """Whether nobody has told this yet of an end that they share; it is told now."""
        fresh = words not in self._named
        self._named.add(words)
        return fresh

    @property
    def several(self) -> bool:
        """Whether there is more than one lane."""
        return len(self._ends) > 1

    def attend(self, lane: int) -> None:
        """The lane compares its ends, until it is to `leave`."""
        self._attending.add(lane)

    def leave(self, lane: int) -> None:
        """It does so no more. A second call does nothing."""
        self._attending.discard(lane)

    @property
    def complete(self) -> bool:
        """Whether all lanes compare their ends: one whose target is open already does not, and
        then no sum says anything."""
        return len(self._attending) == len(self._ends)

    async def judge(self, lane: int, told: Told) -> Counts:
        """The counts of all lanes, once each has brought its own."""
        every = await self._all(lane, told)
        sources: dict[Hashable, ServerInfo] = {}
        targets: dict[Hashable, ServerInfo] = {}
        gone: tuple[Counter[Hashable], Counter[Hashable]] = Counter(), Counter()
        stray: tuple[dict[Hashable, Mapping[int, int]], dict[Hashable, Mapping[int, int]]] = {}, {}
        own = ended = 0
        for (source, target), each in zip(self._ends, every, strict=True):
            sources.setdefault(source, each.source)
            targets.setdefault(target, each.target)
            # Of one server each lane tells; whoever has looked for longer has seen more.
            for which, end in enumerate((source, target)):
                gone[which][end] = max(gone[which][end], each.expired[which])
                stray[which].setdefault(end, each.stray[which])
            own, ended = own + each.own, ended + each.ended
        expired = sum(gone[0].values()), sum(gone[1].values()) + ended
        left_out = Counter[int](), Counter[int]()
        if all(each.walked for each in every):
            for which in (0, 1):
                for counted in stray[which].values():
                    left_out[which].update(counted)
        counts = judge(_added(sources), _added(targets), own=own, expired=expired, stray=left_out)
        counts = replace(counts, lanes=len(self._ends))
        if counts.wrong:
            self.doubted = set(range(len(self._ends)))
        return counts

    async def explained(self, lane: int, counts: Counts, found: Explained) -> Counts:
        """The same counts, where `Counts.fields` is all that they differ by: whether hashes of
        which every field has expired are the reason."""
        every = await self._all(lane, found)
        over: Counter[int] = Counter()
        for each in every:
            for db, more in each.over.items():
                over[db] += more
        walked = all(each.walked for each in every)
        fewer, more = (sum(each.expired[which] for each in every) for which in (0, 1))
        for db, by in counts.fields.items():
            left = by - over[db]
            if left and not (walked and -fewer <= left <= more):
                self.doubted = set(range(len(self._ends)))
                return replace(counts, wrong=unexplained(db, by))
        return counts

    async def _all(self, lane: int, brought: Any) -> list[Any]:
        """What all lanes bring, in their order. Who is cancelled meanwhile has brought nothing: the
        barrier ends the others then."""
        if not self.several:
            return [brought]
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        self._brought[lane] = brought
        if len(self._brought) == len(self._ends):
            answer.set_result([self._brought[each] for each in range(len(self._ends))])
            self._brought, self._answer = {}, None
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if self._answer is answer:
                del self._brought[lane]
            raise


def unexplained(db: int, more: int) -> str:
    """What is wrong with counts that differ by so many keys which nothing explains."""
    what = f"{abs(more):,} keys {'more' if more > 0 else 'less'} on the source"
    return f"database {db} has {what} than on the target"


def joined(lanes: Sequence[tuple[Hashable, Hashable]]) -> list[LaneCounts]:
    """For each lane, by its source and target, what counts it with those that share an end."""
    found: list[tuple[set[Hashable], LaneCounts, list[int]]] = []
    for at, (source, target) in enumerate(lanes):
        ends: set[Hashable] = {("source", source), ("target", target)}
        members = [at]
        apart = []
        for others in found:
            if others[0] & ends:
                ends |= others[0]
                members += others[2]
            else:
                apart.append(others)
        found = [*apart, (ends, LaneCounts(), members)]
    by_lane = {at: counts for _, counts, members in found for at in members}
    return [by_lane[at] for at in range(len(lanes))]


def _added(infos: Mapping[Hashable, ServerInfo]) -> ServerInfo:
    """One of these servers, with the keys of all of them."""
    first, *others = infos.values()
    if not others:
        return first
    keyspace: dict[int, Keyspace] = {}
    for info in (first, *others):
        for entry in info.keyspace:
            before = keyspace.get(entry.db, Keyspace(entry.db, 0, 0))
            keyspace[entry.db] = Keyspace(
                entry.db,
                before.keys + entry.keys,
                before.expires + entry.expires,
                before.field_expires + entry.field_expires,
            )
    return replace(first, keyspace=tuple(keyspace[db] for db in sorted(keyspace)))
