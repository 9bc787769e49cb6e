"""What is done when the lanes of a migration are planned anew (`transfer.lane_replan`).

No lane runs meanwhile. In this order, so that an engine that dies in between does it once more:

0. Every lane that there was is claimed, as by an engine that goes on with it, and what engines
   before this one still have under way is ended: of a lane that is over nobody else would, and an
   engine that was replaced deletes keys of slots that have gone, as their former node does.
1. The slots that came to a lane are noted in its checkpoint, to be read again as a whole.
2. The engine's own keys of a lane whose slot for them is another shard's by now are written anew in
   a slot that its shard has. They are read where the cluster has that slot now: a slot takes along
   what is in it.
3. The state has the new plan.
4. Lanes that begin get a checkpoint: what other lanes brought before is no data of the target's
   own. An engine that finds one without does it (`begin_late`).
5. What lanes that are over have left on the target is removed. It is in the plan as well, and is
   removed again before each cut-over: a node may not answer now, or die with the removal.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine import logs
from engine.errors import EngineError, ProtocolFault, ServerError
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import LeftKeys, PlannedEnd, PlannedLane, endpoint_of
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.transfer.checkpoint_store import LaneCheckpoints
from engine.transfer.lane_plan import Deployment, tag_in, tag_of
from engine.transfer.lane_replan import Replanned
from engine.transfer.target_claim import TargetClaim, end_engines
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

    async def run(
        self, before: Sequence[PlannedLane], replanned: Replanned
    ) -> tuple[PlannedLane, ...]:
        """All of it; the lanes as they are in the plan. Raises `StateError`, and `EngineError` of a
        target that cannot be asked."""
        marks = {each.name: self._mark(each.name) for each in before}
        await self._claim(before, marks)
        for name, slots in replanned.audits.items():
            if (mark := marks[name]) is not None:
                held, had = _held(slots, before, marks) or (True, True)
                mark = replace(
                    mark,
                    audit=str(SlotSet.parse(mark.audit) | slots),
                    held_before=mark.held_before or held,
                    had_keys=mark.had_keys or had,
                )
                self._save(name, mark)
        former = {each.name: each for each in before}
        moved = [
            (former[each.name], each)
            for each in replanned.lanes
            if each.name in former and each.own_slot != former[each.name].own_slot
        ]
        for old, new in moved:
            if (mark := marks[old.name]) is not None:
                await self._carry(mark.token, old, new)
        first, *others = (
            _late(each, _held(each.slots, before, marks)) if each.name in replanned.new else each
            for each in replanned.lanes
        )
        left = [each for lane in before for each in lane.left]
        left += [
            LeftKeys(mark.token, old.name, old.own_slot)
            for old in (*replanned.gone, *(old for old, _ in moved))
            if (mark := marks[old.name]) is not None
        ]
        lanes = (replace(first, left=tuple(dict.fromkeys(left))), *others)
        self._checkpoints.plan(lanes)
        self.begin_late(lanes)
        try:
            await self.remove_left(lanes)
        except EngineError as exc:
            _log.warning("The engine's keys of ended lanes are not removed yet: %s", exc.message)
        return lanes

    async def remove_left(self, lanes: Sequence[PlannedLane]) -> None:
        """Remove what lanes that are over have left on the target; nothing of those that there are.
        Raises `EngineError` of a node that cannot be asked, and `StateError`."""
        # (A lane may have got the name of one that is over.)
        positions = {(each.name, each.own_slot) for each in lanes}
        tokens = {mark.token for each in lanes if (mark := self._mark(each.name)) is not None}
        for left in (left for lane in lanes for left in lane.left):
            own = OwnKeys(left.token, left.lane, tag_in(left.own_slot))
            here = (left.lane, left.own_slot) in positions
            names = [] if here else [own.position]
            if not here or left.token not in tokens:
                names.append(own.dirty)
            if names:
                async with self._at(left.own_slot) as end:
                    await _asked(end, ("DEL", *names))

    def begin_late(self, lanes: Sequence[PlannedLane]) -> None:
        """Lanes that were planned when slots had moved get a checkpoint, where they have none: else
        what is in their slots would be taken for the target's own. Raises `StateError`."""
        for each in lanes:
            if each.late and self._checkpoints.of_lane(each.name).load() is None:
                mark = OnlineCheckpoint(
                    secrets.token_hex(8),
                    begun=True,
                    held_before=each.held_before,
                    had_keys=each.had_keys,
                )
                self._save(each.name, mark)

    async def _claim(
        self, before: Sequence[PlannedLane], marks: Mapping[str, OnlineCheckpoint | None]
    ) -> None:
        """No engine before this one writes to the target from here on, for whichever lane."""
        engine, tokens = secrets.token_hex(4), []
        for lane in before:
            mark = marks[lane.name]
            if mark is None or not mark.begun:
                continue
            tokens.append(mark.token)
            own = _own(mark.token, lane)
            still_ours = functools.partial(self._look, lane.name, mark)
            claim = TargetClaim(own, engine, still_ours, held_before=mark.held_before)
            async with self._at(lane.own_slot) as end:
                # Where it is not there the lane itself says what that means.
                (found,) = await _asked(end, ("GET", own.position))
                if found is not None:
                    await claim.take(end)
        # The own keys may be at another node than the lane's by now.
        told = self._target.told
        for slot in [-1] if told is None else [each.slots.ranges[0][0] for each in told.shards]:
            async with self._at(slot) as end:
                await end_engines(end, tokens)

    async def _look(self, name: str, mark: OnlineCheckpoint) -> None:
        """Raises `StateError` where the migration is another engine's."""
        self._save(name, mark)

    async def _carry(self, token: str, old: PlannedLane, new: PlannedLane) -> None:
        """Write a lane's own keys anew. Nothing to do where they are not there: they may have been
        carried before, or the lane has not begun."""
        there, here = _own(token, old), _own(token, new)
        async with self._at(old.own_slot) as end:
            position, names = await _asked(end, ("GET", there.position), ("SMEMBERS", there.dirty))
        if position is None:
            return
        if not isinstance(position, bytes) or not isinstance(names, list):
            raise ProtocolFault("a key of the engine's own has an unexpected value", fault="target")
        _log.info("The engine's keys of the lane %s move to another slot", new.title)
        async with self._at(new.own_slot) as end:
            for at in range(0, len(names), _NAMES_AT_ONCE):
                await _asked(end, ("SADD", here.dirty, *names[at : at + _NAMES_AT_ONCE]))
            await _asked(end, ("SET", here.position, position))

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


def _held(
    slots: SlotSet,
    before: Sequence[PlannedLane],
    marks: Mapping[str, OnlineCheckpoint | None],
) -> tuple[bool, bool] | None:
    """What the lanes that brought these slots know of the target's own keys there: as `held_before`
    and `had_keys` of `OnlineCheckpoint`. None: one of them has not begun, and knows nothing."""
    found = [marks[each.name] for each in before if each.slots & slots]
    begun = [mark for mark in found if mark is not None and mark.begun]
    if len(begun) < len(found):
        return None
    return any(mark.held_before for mark in begun), any(mark.had_keys for mark in begun)


def _late(lane: PlannedLane, held: tuple[bool, bool] | None) -> PlannedLane:
    """One that begins. Where it is not known what is the target's own there it asks, as those do
    that are planned at first: no key goes that may be the target's."""
    if held is None:
        return replace(lane, late=False)
    return replace(lane, held_before=held[0], had_keys=held[1])


async def _asked(end: Admin, *commands: tuple[bytes | str | int, ...]) -> list[object]:
    replies = await end.pipeline(commands)
    for reply in replies:
        if isinstance(reply, EngineError):
            raise reply
    return replies
