"""The abort of a migration that no engine has any more.

What its last engine left is taken away, as its own abort would have done: the fence and the
write block at the source; extended expire times, import mode and our own keys at the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.online_checkpoint import OnlineCheckpoint, left_at_sources
from engine.model.settings import TransferSettings
from engine.transfer import lane_plan
from engine.transfer.aof_migration import leave
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.lane import Lane
from engine.transfer.leftovers import leave as leave_unplaced
from engine.transfer.leftovers import token_of
from engine.transfer.migration import Migration
from engine.transfer.overview import Overview
from engine.wire import failover_addresses, source_replica


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What an operator has to know, and the marks of the lanes as they are now; none where the
    source was not followed.

    A write block that could not be taken away is in its mark (`sealed`, at `fenced_at`), and so is
    one that belongs there, because the target is open.
    """

    events: list[str]
    marks: Sequence[OnlineCheckpoint] = ()

    @property
    def cut_over(self) -> bool:
        """Whether the target is open, and the source's clients were told so."""
        return any(mark.sealed and not mark.fenced for mark in self.marks)

    def at_source(self) -> dict[str, Any]:
        """The members of a `Report` that tell what is left at the source."""
        return left_at_sources(self.marks)


async def abandon(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    checkpoints: Mapping[str, Checkpoint],
    credentials: Credentials,
    lanes: Sequence[PlannedLane] = (),
) -> Abandoned:
    """Tidy both ends up, behind the migration whose last checkpoints these are, by the names of its
    lanes; `lanes`: what they were planned for, where an end is a cluster.

    `credentials`: for a server other than `source` that was fenced.

    Never raises `EngineError`: what cannot be done is said.
    """
    if lanes:
        return await _abandon_lanes(source, target, settings, checkpoints, credentials, lanes)
    checkpoint = next(iter(checkpoints.values()), None)
    if checkpoint is not None and checkpoint.file is not None:
        token, had_keys = token_of(source, target), checkpoint.file.held_before
        return Abandoned(await leave_unplaced(target, token, had_keys, settings.connect_timeout))
    if checkpoint is None or not isinstance(checkpoint.position, OnlineCheckpoint):
        return Abandoned([])
    mark = checkpoint.position
    if source.aof_path is not None:
        if not mark.begun or mark.opened:
            return Abandoned([])
        return Abandoned(await leave(target, mark.token, settings.connect_timeout))

    async def gate(_: bytes) -> CutOverCheckResult:
        return CutOverCheckResult(False, "nothing is opened here")

    failover_addresses.begin()
    source_replica.begin()
    events: list[str] = []
    store = MemoryCheckpoint()
    store.save(checkpoint)
    overview = Overview(settings, on_progress=lambda _: None, on_event=events.append, one_go=False)
    way = None
    try:
        lane = overview.lane()
        way = Migration(
            overview,
            [Lane(source, target, lane, checkpoints=store, gate=gate, credentials=credentials)],
        )
        await way.abandon()
    except EngineError as error:
        events.append(f"what the migration left at both ends may still be there: {error}")
    return Abandoned(events, [mark] if way is None else way.marks)


async def _abandon_lanes(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    checkpoints: Mapping[str, Checkpoint],
    credentials: Credentials,
    lanes: Sequence[PlannedLane],
) -> Abandoned:
    """The same of a migration with a cluster at an end."""

    async def gate(_: bytes) -> CutOverCheckResult:
        return CutOverCheckResult(False, "nothing is opened here")

    positions = [each.position for each in checkpoints.values()]
    marks = [each for each in positions if isinstance(each, OnlineCheckpoint)]
    if not marks:
        return Abandoned([])
    failover_addresses.begin()
    source_replica.begin()
    events: list[str] = []
    overview = Overview(settings, on_progress=lambda _: None, on_event=events.append, one_go=False)
    way = None
    try:
        made = []
        for each, ends in zip(
            lanes, lane_plan.ends_of(lanes, source, target, settings), strict=True
        ):
            store = MemoryCheckpoint()
            if (found := checkpoints.get(each.name)) is not None:
                store.save(found)
            made.append(
                Lane(
                    ends.source,
                    ends.target,
                    overview.lane(each.name, each.title),
                    checkpoints=store,
                    gate=gate,
                    credentials=credentials,
                    route=ends.route,
                )
            )
        way = Migration(overview, made)
        await way.abandon()
    except EngineError as error:
        events.append(f"what the migration left at both ends may still be there: {error}")
    return Abandoned(events, marks if way is None else way.marks)
