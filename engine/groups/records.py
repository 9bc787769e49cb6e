"""Rows of the state, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.groups.lease import Lease, Worker
from engine.groups.states import CUT_OVERS, ENDED, Request, TransferStatus
from engine.model.clients_after_cut_over import SourceClients
from engine.model.endpoint import Endpoint
from engine.model.group_shards import GroupShard
from engine.model.lane_plan import PlannedLane
from engine.model.progress import ENDS, Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings

KILLED = "the worker was killed during the cut-over, which was undone"
"""The refusal of a cut-over whose worker was killed. It holds once the next worker is beyond
CONNECT: that one asks the target first, which may be open."""


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """A group's newest verification. `asked` is how it compares; `progress` and `result` are as the
    process that does it has told (`fleet.verifier`), `result` None until its end. `goes_on`: a
    living process does it, or one is just starting."""

    source_url: str
    asked: dict[str, Any]
    began_at: float
    ended_at: float | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    goes_on: bool


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A replication group. `created_at` is seconds since the epoch; `engine` is what its servers
    run ("redis", "valkey"), None where that is not known (yet)."""

    id: str
    description: str
    status: str
    cluster_enabled: bool
    primary_url: str
    created_at: float
    engine: str | None = None
    shards: tuple[GroupShard, ...] = ()
    """Those of a cluster, as it has told last; none where it is no cluster, or was not asked."""
    verification: VerificationRecord | None = None
    """The newest one; it comes where the group is read to be shown alone."""

    @property
    def primary(self) -> Endpoint:
        """The target's primary, without credentials."""
        return Endpoint.parse(self.primary_url)


@dataclass(frozen=True, slots=True)
class LaneRecord:
    """The way of one shard of the source into the target, and its worker.

    `slots` are the ones that it covers, as ranges ("0-16383"); `shard` is the name that a cluster
    has for it. `plan`: what it is planned for, where an end is a cluster; None: the only lane, or
    the one of the whole.
    """

    id: int
    name: str
    source_url: str
    shard: str
    slots: str
    progress: Progress
    lease: Lease
    plan: PlannedLane | None = None

    @property
    def title(self) -> str:
        """What people read for it."""
        return self.plan.title if self.plan is not None else self.name


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """One migration into a group. Times are seconds since the epoch.

    `lanes` are in the order in which they were made.
    `held_before` tells whether the target had keys before the first one of ours (None: not known).
    `refusal` is why the last asked-for cut-over did not happen, empty while one is pending.
    `source_clients` is what was found of the source's clients behind the cut-over, if it is looked
    for; it comes with the group's newest transfer alone. `paused`: the operator has paused it.
    """

    id: int
    group_id: str
    status: TransferStatus
    source_urls: tuple[str, ...]
    target_url: str
    settings_data: dict[str, Any]
    held_before: bool | None
    report: Report | None
    changed_at: float
    created_at: float
    request: Request
    refusal: str
    lanes: tuple[LaneRecord, ...]
    source_clients: SourceClients | None = None
    paused: bool = False

    @property
    def progress(self) -> Progress:
        """How far it is as a whole."""
        return self.lanes[0].progress

    @property
    def parts(self) -> tuple[LaneRecord, ...]:
        """Its lanes where an end is a cluster; none where it has one without a plan."""
        return tuple(each for each in self.lanes if each.plan is not None)

    @property
    def plans(self) -> tuple[PlannedLane, ...]:
        """What they are planned for."""
        return tuple(each.plan for each in self.parts if each.plan is not None)

    @property
    def lease(self) -> Lease:
        """Its worker: one worker has all of its lanes."""
        return self.lanes[0].lease

    @property
    def worker(self) -> Worker | None:
        """The worker that has it, or had it last; None before one is named."""
        return self.lease.worker

    @property
    def source(self) -> Endpoint:
        """The source, without credentials."""
        return Endpoint.parse(self.source_urls[0])

    @property
    def target(self) -> Endpoint:
        """The target, without credentials."""
        return Endpoint.parse(self.target_url)

    @property
    def settings(self) -> TransferSettings:
        """The settings it was started with. Raises `UsageError` (another version's state)."""
        return TransferSettings.from_dict(self.settings_data)

    @property
    def known(self) -> Progress:
        """Its progress as far as it is known now. While no process works on it, nothing hears its
        ends; and if it has not ended, the source may be any number of bytes ahead."""
        if self.leased():
            return self.progress
        unheard = replace(
            self.progress, link="", source_heard_seconds=None, target_heard_seconds=None
        )
        if self.status in ENDED:
            return unheard
        return replace(unheard, lag_bytes=None, lag_seconds=None)

    @property
    def undecided(self) -> bool:
        """Whether its worker was killed during a cut-over, and the next one, if there is one yet,
        has not found out whether the target is open."""
        if self.status not in (TransferStatus.PENDING, TransferStatus.RUNNING):
            return False
        # An end that is published is recorded a moment later.
        if self.refusal == KILLED and self.progress.phase in (Phase.CONNECT, *ENDS):
            return True
        return self.broken_off and not self.leased()

    @property
    def broken_off(self) -> bool:
        """Whether its last worker was in a cut-over that was asked for, by the last it wrote."""
        return self.request in CUT_OVERS and self.progress.phase is Phase.CUT_OVER

    @property
    def refused(self) -> str:
        """Why the last asked-for cut-over did not happen; empty while that is `undecided`."""
        return "" if self.undecided else self.refusal

    def orphaned(self) -> bool:
        """Whether its worker is known to have ended without a last word: it was killed. Or none
        came."""
        if self.status not in (TransferStatus.PENDING, TransferStatus.RUNNING) or self.leased():
            return False
        return self.worker is None or self.lease.ended

    def leased(self) -> bool:
        """Whether a living worker has the transfer, or one is just starting."""
        going = self.status in (TransferStatus.PENDING, TransferStatus.RUNNING)
        return going and self.lease.live


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a group. `at` is seconds since the epoch; `number` is the event's
    among those of its migration, None where it is of none."""

    id: int
    group_id: str
    at: float
    message: str
    migration_id: int | None = None
    number: int | None = None
