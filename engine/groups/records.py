"""Rows of the state, as frozen values."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from engine.groups.process import ProcessId
from engine.groups.states import CUT_OVERS, ENDED, Request, TransferStatus
from engine.model.endpoint import Endpoint
from engine.model.progress import ENDS, Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.model.source_clients import SourceClients

# A worker that was asked for but has not claimed its transfer within this counts as gone.
START_GRACE = 15.0
KILLED = "the worker was killed during the cut-over, which came to nothing"
"""The refusal of a cut-over whose worker was killed. It holds once the next worker is beyond
CONNECT: that one asks the target first, which may be open."""


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

    @property
    def primary(self) -> Endpoint:
        """The target's primary, without credentials."""
        return Endpoint.parse(self.primary_url)


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """One migration into a group. Times are seconds since the epoch.

    `attempt` counts the claims: a worker whose attempt is no longer the row's has lost it.
    `held_before` tells whether the target had keys before the first one of ours (None: not known).
    `refusal` is why the last asked-for cut-over did not happen, empty while one is pending.
    `source_clients` is what was found of the source's clients behind the cut-over, if it is looked
    for; it comes with the group's newest transfer alone.
    """

    id: int
    group_id: str
    status: TransferStatus
    attempt: int
    source_urls: tuple[str, ...]
    target_url: str
    settings_data: dict[str, Any]
    held_before: bool | None
    progress: Progress
    report: Report | None
    process: ProcessId | None
    heartbeat_at: float
    changed_at: float
    created_at: float
    request: Request
    refusal: str
    source_clients: SourceClients | None = None

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
        """Its progress as far as it is known now. While no process works on it, nobody hears its
        ends; and if it has not ended, the source may be any number of bytes ahead."""
        if self.held():
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
        return self.broken_off and not self.held()

    @property
    def broken_off(self) -> bool:
        """Whether its last worker was in a cut-over that was asked for, by the last it wrote."""
        return self.request in CUT_OVERS and self.progress.phase is Phase.CUT_OVER

    @property
    def refused(self) -> str:
        """Why the last asked-for cut-over did not happen; empty while that is `undecided`."""
        return "" if self.undecided else self.refusal

    def orphaned(self) -> bool:
        """Whether its worker is known to have ended without a last word: it was killed."""
        if self.status not in (TransferStatus.PENDING, TransferStatus.RUNNING) or self.held():
            return False
        return self.process is None or self.process.ended()

    def held(self) -> bool:
        """Whether a living worker has the transfer, or one is just starting."""
        now = time.time()
        if self.status not in (TransferStatus.PENDING, TransferStatus.RUNNING):
            return False
        if self.process is None:
            return now - self.changed_at < START_GRACE
        return self.process.alive(now - self.heartbeat_at)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a group. `at` is seconds since the epoch."""

    id: int
    group_id: str
    at: float
    message: str
