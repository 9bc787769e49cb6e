"""What is done when the lanes of a migration are planned anew (`transfer.lane_replan`).

No lane runs meanwhile. In this order, so that an engine that dies in between does it once more:

1. The slots that came to a lane are noted in its checkpoint, to be read again as a whole.
2. The engine's own keys of a lane whose slot for them is another shard's by now are written anew in
   a slot that its shard has. They are read where the cluster has that slot now: a slot takes along
   what is in it.
3. The state has the new plan.
4. Lanes that begin get a checkpoint: what other lanes brought before is no data of the target's
   own.
5. What lanes that are over have left on the target is removed.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import replace

from engine import logs
from engine.errors import EngineError, ProtocolFault, ServerError
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedEnd, PlannedLane, endpoint_of
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.transfer.checkpoint_store import LaneCheckpoints
from engine.transfer.lane_plan import Deployment, tag_of
from engine.transfer.lane_replan import Replanned
from engine.wire.control_connection import Admin, admin

_NAMES_AT_ONCE = 1000
_log = logs.logger(__name__)


class SlotHandover:
    """Leads a migration from one plan to the next. `target` is what it tells of itself now."""

    def __init__(
        self, checkpoints: LaneCheckpoints, target: Deployment, settings: TransferSettings
    ) -> None:
        self._checkpoints = checkpoints
        self._target = target
        self._settings = settings

    async def run(self, before: Sequence[PlannedLane], replanned: Replanned) -> None:
        """All of it. Raises `StateError`, and `EngineError` of a target that cannot be asked."""
        marks = {each.name: self._mark(each.name) for each in before}
        for name, slots in replanned.audits.items():
            if (mark := marks[name]) is not None:
                self._save(name, replace(mark, audit=str(SlotSet.parse(mark.audit) | slots)))
        former = {each.name: each for each in before}
        moved = [
            (former[each.name], each)
            for each in replanned.lanes
            if each.name in former and each.own_slot != former[each.name].own_slot
        ]
        for old, new in moved:
            if (mark := marks[old.name]) is not None:
                await self._carry(mark.token, old, new)
        self._checkpoints.plan(replanned.lanes)
        held_before = any(mark is not None and mark.held_before for mark in marks.values())
        had_keys = any(mark is not None and mark.had_keys for mark in marks.values())
        for name in replanned.new:
            if self._checkpoints.of_lane(name).load() is None:
                token = secrets.token_hex(8)
                mark = OnlineCheckpoint(
                    token, begun=True, held_before=held_before, had_keys=had_keys
                )
                self._save(name, mark)
        for old in (*replanned.gone, *(old for old, _ in moved)):
            if (mark := marks[old.name]) is not None:
                with contextlib.suppress(EngineError):
                    await self._remove(mark.token, old)

    async def _carry(self, token: str, old: PlannedLane, new: PlannedLane) -> None:
        """Write a lane's own keys anew. Nothing to do where they are not there: they may have been
        carried before, or the lane has not begun."""
        there, here = _own(token, old), _own(token, new)
        async with self._at(old.own_slot) as end:
            position, names = await _asked(end, ("GET", there.position), ("SMEMBERS", there.dirty))
        if position is None:
            return
        if not isinstance(position, bytes) or not isinstance(names, list):
            raise ProtocolFault("a key of the engine's own holds something else", fault="target")
        _log.info("The own keys of the lane %s move to another slot", new.name)
        async with self._at(new.own_slot) as end:
            for at in range(0, len(names), _NAMES_AT_ONCE):
                await _asked(end, ("SADD", here.dirty, *names[at : at + _NAMES_AT_ONCE]))
            await _asked(end, ("SET", here.position, position))

    async def _remove(self, token: str, lane: PlannedLane) -> None:
        own = _own(token, lane)
        async with self._at(lane.own_slot) as end:
            await _asked(end, ("DEL", *own.all))

    def _at(self, slot: int) -> contextlib.AbstractAsyncContextManager[Admin]:
        """The node that has the slot now. Raises `ServerError`."""
        return admin(self._node(slot), timeout=self._settings.connect_timeout, fault="target")

    def _node(self, slot: int) -> Endpoint:
        told, endpoint = self._target.told, self._target.endpoint
        if told is None or slot < 0:
            return endpoint
        shard = told.shard_of(slot)
        if shard is None:
            raise ServerError(
                f"no node of the target's cluster has the slot {slot}",
                code="CLUSTERDOWN",
                fault="target",
            )
        ids = (shard.primary.id, *(each.id for each in shard.replicas))
        end = PlannedEnd(shard.primary.host, shard.primary.port, ids, shard.slots)
        return endpoint_of(end, endpoint, [end], self._settings.addresses)

    def _mark(self, name: str) -> OnlineCheckpoint | None:
        found = self._checkpoints.of_lane(name).load()
        position = None if found is None else found.position
        return position if isinstance(position, OnlineCheckpoint) else None

    def _save(self, name: str, mark: OnlineCheckpoint) -> None:
        store = self._checkpoints.of_lane(name)
        before = store.load()
        store.save(Checkpoint(mark, "") if before is None else replace(before, position=mark))


def _own(token: str, lane: PlannedLane) -> OwnKeys:
    return OwnKeys(token, lane.name, tag_of(lane))


async def _asked(end: Admin, *commands: tuple[bytes | str | int, ...]) -> list[object]:
    replies = await end.pipeline(commands)
    for reply in replies:
        if isinstance(reply, EngineError):
            raise reply
    return replies
