"""What a migration tells a process of lanes at its start, and what that tells of each lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine import _native
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase
from engine.model.report import Step
from engine.model.settings import TransferSettings
from engine.model.throttle import Steering
from engine.model.verification import Verification

_PROGRAM = Path(__file__).parents[1]
BUILD = " ".join(
    str(max(each.stat().st_mtime_ns for each in found))
    for found in (_PROGRAM.rglob("*.py"), [Path(_native.__file__ or __file__)])
)
"""Which build of the program this is: a process that is started later may find another one."""


@dataclass(frozen=True, slots=True)
class LaneSetup:
    """A lane that the process is to drive: its ends, with credentials, what it brings, and the
    checkpoint that it goes on from. `title`: what people read for its name."""

    name: str
    title: str
    source: Endpoint
    target: Endpoint
    route: Route
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What may change while lanes run: whether the operator wants the cut-over without the
    comparison, whether the targets had keys of their own, as far as it is known, and how fast data
    is to be moved."""

    skip_verification: bool = False
    had_keys: bool = False
    steering: Steering = field(default_factory=Steering)


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """All that a process of lanes has to know. `others`: how far the migration's lanes in other
    processes have gone. `switches`: the caller wants to move the applications' name itself.
    `crashing`: keys that no lane sends (`Peers.crashing`)."""

    build: str
    settings: TransferSettings
    credentials: Credentials
    one_go: bool
    switches: bool
    wishes: Wishes
    lanes: tuple[LaneSetup, ...]
    others: Mapping[str, OnlineCheckpoint]
    group: str = ""
    source: str = ""
    target: str = ""
    log_level: int = 0
    crashing: tuple[DbKey, ...] = ()


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """Where a lane stands, as its process tells it when it has changed: the members of
    `MigratingLane` and `CutOverLane`, `can_complete` and the like of its context.

    `offer`: the number of what it offers, 0: nothing; `followed`: whether a follower is offered.
    `late`: the words of `CutOverLane.late`, with `{}` for what was done. `broken`: those of
    `MigratingLane.note_broken` for the step that failed last. `crashing`: as `Peers.crashing`.
    """

    phase: Phase = Phase.CONNECT
    can_complete: bool = False
    reason: str = ""
    mark: OnlineCheckpoint = field(default_factory=lambda: OnlineCheckpoint(""))
    stuck: str = ""
    stranded: bool = False
    may_move: bool = False
    offer: int = 0
    followed: bool = False
    held_before: bool | None = None
    begun: bool = False
    spooled_most: int = 0
    left_out: tuple[str, ...] = ()
    crashing: tuple[DbKey, ...] = ()
    stopped: bool = True
    again: bool = False
    fence_ends: float | None = None
    fence_seconds: float | None = None
    late: str = ""
    broken: tuple[str, bool] | None = None
    failed_dials: int = 0
    copy_seconds: float = 0.0
    steps: tuple[Step, ...] = ()
    verification: Verification | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """That the process lives; what it has used (CPU seconds, peak resident bytes); since when
    (by the loop's clock) slots lie elsewhere than planned, by the side: absent where they do
    not."""

    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    moved_at: Mapping[str, float] = field(default_factory=dict)
