"""What becomes of a migration's lanes when slots of a cluster have moved.

A lane goes on where its two shards still share slots, under its name and from its position on the
target: slots that it had not before are read again as a whole (`transfer.slot_reread`), and those
that it has no more are left out of what it brings. A pair of shards that shares slots for the first
time gets a lane of its own, which begins with a snapshot. A pair that shares none any more has
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.model.lane_plan import PlannedEnd, PlannedLane
from engine.model.slots import SlotSet


@dataclass(frozen=True, slots=True)
class Replanned:
    """`lanes` are all that there are from now on; `audits`: of those that go on the slots which
    came to them; `new`: names of those that begin; `gone`: those that end."""

    lanes: tuple[PlannedLane, ...]
    audits: dict[str, SlotSet] = field(default_factory=dict)
    new: frozenset[str] = frozenset()
    gone: tuple[PlannedLane, ...] = ()


def replanned(before: Sequence[PlannedLane], now: Sequence[PlannedLane]) -> Replanned | None:
    """From the lanes that there are to those that the ends ask for now; None: nothing has changed
    that a lane has to know.

    `now` are lanes as they would be planned for the first time; their names do not matter but for
    those of lanes that begin.
    """
    sources = _former([each.source for each in now], [each.source for each in before])
    targets = _former([each.target for each in now], [each.target for each in before])
    known = {(each.source, each.target): each for each in before}
    names = {each.name for each in before}
    lanes: list[PlannedLane] = []
    audits: dict[str, SlotSet] = {}
    new: set[str] = set()
    kept: set[str] = set()
    for each in now:
        former = known.get((sources.get(each.source), targets.get(each.target)))  # type: ignore[arg-type]
        if former is None:
            name = _unused(each.name, names)
            names.add(name)
            new.add(name)
        else:
            name = former.name
            kept.add(name)
            if came := each.slots - former.slots:
                audits[name] = came
        own_slot = each.own_slot
        if former is not None and former.own_slot in each.target.slots:
            own_slot = former.own_slot
        late = former is None or former.late
        lanes.append(replace(each, name=name, own_slot=own_slot, late=late))
    # In their order in the state, whose first lane of a source leads.
    order = {each.name: place for place, each in enumerate(before)}
    lanes.sort(key=lambda each: order.get(each.name, len(order)))
    gone = tuple(each for each in before if each.name not in kept)
    slots = {each.name: each.slots for each in before}
    if not new and not gone and all(slots[each.name] == each.slots for each in lanes):
        return None
    return Replanned(tuple(lanes), audits, frozenset(new), gone)


def _former(
    now: Sequence[PlannedEnd], before: Sequence[PlannedEnd]
) -> dict[PlannedEnd, PlannedEnd]:
    """Which of the ends before each end was, where it was one: by its nodes, and of several that
    share some (a replica may have gone from one shard to another) by the one that shares most."""
    pairs = [
        (_alike(one, other), one, other)
        for one in dict.fromkeys(now)
        for other in dict.fromkeys(before)
    ]
    found: dict[PlannedEnd, PlannedEnd] = {}
    taken: set[PlannedEnd] = set()
    for score, one, other in sorted(pairs, key=lambda pair: pair[0], reverse=True):
        if any(score) and one not in found and other not in taken:
            found[one] = other
            taken.add(other)
    return found


def _alike(one: PlannedEnd, other: PlannedEnd) -> tuple[int, int, int]:
    """How much speaks for it that both are the same shard; none: nothing does."""
    if not one.ids or not other.ids:
        return (int(one.ids == other.ids), 0, 0)
    shared = set(one.ids) & set(other.ids)
    if not shared:
        return (0, 0, 0)
    # Its primary was one of the shard's nodes; the same one; so many nodes.
    return (int(one.ids[0] in other.ids), int(one.ids[0] == other.ids[0]), len(shared))


def _unused(name: str, names: set[str]) -> str:
    if name not in names:
        return name
    number = 2
    while f"{name}-{number}" in names:
        number += 1
    return f"{name}-{number}"
