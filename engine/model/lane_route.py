"""Which keys one lane brings, and what it shares with other lanes of its migration."""

from __future__ import annotations

from dataclasses import dataclass

from engine._native import SlotFilter
from engine.model.slots import ALL_SLOTS, SlotSet


@dataclass(frozen=True, slots=True)
class Route:
    """From one source shard to one node of the target.

    `lane` is the lane's name, empty for a migration's only one. `slots`: the keys of these are its
    own; whatever else the source sends is another lane's. `from_cluster`, `to_cluster`: that end is
    a node of a cluster, where a command takes keys of one slot alone. `tag` is the hash tag that
    the engine's own keys have on the target, in one of `slots`; empty: they need none.

    `leads`: of the lanes that have the same source this is the one that puts up the fence there,
    changes settings there, and sends what names no key. `shared_source`, `shared_target`: other
    lanes read from the same source, or write to the same target. `share`: how much of the source's
    slots is its own, and so about how many of its keys.
    """

    lane: str = ""
    slots: SlotSet = ALL_SLOTS
    from_cluster: bool = False
    to_cluster: bool = False
    tag: str = ""
    leads: bool = True
    shared_source: bool = False
    shared_target: bool = False
    share: float = 1.0

    @property
    def by_slot(self) -> bool:
        """Whether the target has, or may have, keys in other slots that are not this lane's."""
        return self.to_cluster or self.slots != ALL_SLOTS

    @property
    def target_slots(self) -> SlotSet | None:
        """The slots outside of which this lane has nothing to do on a cluster's node; None: the
        target is none, and takes keys of all slots in one command."""
        return self.slots if self.to_cluster else None

    @property
    def filter(self) -> SlotFilter | None:
        """What of a source's snapshot and stream is the lane's; None: all of it. Where an end is a
        cluster's node it is always looked at: slots may be moved, and commands have keys of
        several."""
        if not (self.from_cluster or self.to_cluster) and self.slots == ALL_SLOTS:
            return None
        return SlotFilter(self.slots.ranges, keyless=self.leads)


ONLY = Route()
"""The way of a migration with one lane, to a server that is no cluster's node."""
