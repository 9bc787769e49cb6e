"""Keys that a cluster's node holds of slots that it does not own.

A slot that went to another node may leave keys behind (CLUSTER DELSLOTS, a failover while they are
removed). The node counts them (INFO, DBSIZE) and names them (SCAN), and leads every client that
asks for one to the slot's owner: they are no data, and must not count as such. It tells how many
such a slot has (CLUSTER COUNTKEYSINSLOT), and not which of them have a TTL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import AuthError, EngineError, ServerError
from engine.model import cluster_topology
from engine.model.cluster_topology import Topology
from engine.model.server import ServerInfo
from engine.model.slots import ALL_SLOTS, SlotSet
from engine.verify.value_readers import Command
from engine.wire.control_connection import Admin

# Slots that are asked for in one go.
_SLOTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class StrayKeys:
    """Of one node, by database and slot, how many there are; none of a server that is no node."""

    slots: Mapping[int, Mapping[int, int]] = field(default_factory=dict)

    @property
    def by_db(self) -> Counter[int]:
        """How many each database has."""
        return Counter({db: sum(slots.values()) for db, slots in self.slots.items()})

    def words(self, end: Admin) -> str:
        """That `end` has them; empty where there are none."""
        if not (count := self.by_db.total()):
            return ""
        slots = SlotSet.of(slot for counts in self.slots.values() for slot in counts)
        keys = "1 key" if count == 1 else f"{count:,} keys"
        return (
            f"{end.name} holds {keys} of slots that it does not own ({slots.words}): no client "
            "reaches them there, so they are neither migrated nor counted. It does not tell how "
            "many of them have a TTL: keys with and without one are counted together. CLUSTER "
            "GETKEYSINSLOT names them"
        )

    @property
    def questions(self) -> list[Command]:
        """What asks for them again; the databases are chosen by the way."""
        asked: list[Command] = []
        for db, slots in self.slots.items():
            asked += [("SELECT", db), *(_count(slot) for slot in slots)]
        return asked

    def answered(self, replies: Sequence[Any]) -> Counter[int]:
        """How many each database has, by the replies to `questions`. Raises what they are, where
        they are no numbers."""
        found, at = Counter[int](), 0
        for db, slots in self.slots.items():
            counts = replies[at + 1 : at + 1 + len(slots)]
            at += 1 + len(slots)
            for reply in counts:
                if isinstance(reply, EngineError):
                    raise reply
            found[db] = sum(counts)
        return found


NONE = StrayKeys()


async def find(end: Admin, info: ServerInfo, known: SlotSet) -> StrayKeys:
    """Look for them at a cluster's node of this `info`: in the slots that neither it has nor the
    lanes, which take it to have those that are `known`. None are found while slots come to it, and
    where the user may not ask. Leaves some database chosen.

    Raises `LinkError`.
    """
    if known == ALL_SLOTS:
        return NONE
    try:
        told = await _topology(end)
        if told is None or any(move.importing for move in told.moves):
            return NONE
        me = told.node(told.me)
        slots = (
            ALL_SLOTS - known - told.slots_of(me.replica_of if me and me.replica_of else told.me)
        )
        found: dict[int, dict[int, int]] = {}
        for entry in info.keyspace:
            if counts := await _counts(end, entry.db, slots):
                found[entry.db] = counts
        return StrayKeys(found)
    except (AuthError, ServerError):
        return NONE


async def _topology(end: Admin) -> Topology | None:
    slots, nodes = await end.ask(("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
    try:
        return cluster_topology.read(slots, nodes, end.endpoint.host)
    except ValueError:
        return None


async def _counts(end: Admin, db: int, slots: SlotSet) -> dict[int, int]:
    found: dict[int, int] = {}
    end.choose(db)
    numbers = list(slots)
    for at in range(0, len(numbers), _SLOTS_AT_ONCE):
        portion = numbers[at : at + _SLOTS_AT_ONCE]
        counts = await end.pipeline(map(_count, portion), raise_on_error=True)
        found.update((slot, n) for slot, n in zip(portion, counts, strict=True) if n)
    return found


def _count(slot: int) -> Command:
    return "CLUSTER", "COUNTKEYSINSLOT", slot
