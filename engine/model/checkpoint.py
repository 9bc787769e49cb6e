"""What a transfer writes down so that another process can go on.

There is one record of it, `Checkpoint`: the counters, and one of three things that say where to go
on. They are three because the exact position is kept in three places:

    ScanPosition       a scan: its position is here, and moves with each page that the target has
                       acknowledged. Written by `transfer.offline`.
    OnlineCheckpoint   a followed source, an append-only file: their position is in a key on the
                       target, written in one transaction with the data. Here is what that key
                       cannot say: what was done to both servers (fence, promotion, TTLs), and it
                       changes before each such step. Written by
                       `transfer.online_checkpoint_writer`.
    FileIdentity       a snapshot's file, which is loaded from its beginning: there is no position
                       but which file it is. Written by `transfer.offline`, before the first key.

All are encoded and read back here alone, and are in one column of the state (`groups.schema`). An
operator's word that changes one (`resume-migration`) goes through `groups.registry`. What an
earlier version has written is read by `from_dict`: what it lacks has a default there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from engine.model.carried_with_loss import CarriedWithLoss, carried_with_loss
from engine.model.evictions import Evictions
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.position import ScanPosition
from engine.model.report import NotCarried


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file (a snapshot) a transfer writes into its target, kept before its first key.

    `identity` is the same for the same bytes alone. `held_before`: whether the target had keys that
    are not the file's.
    """

    identity: str
    held_before: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position that the target has acknowledged, and the counters as they stood then.

    Of a scanned source it is SCAN's; an online migration has its exact position on the target, and
    what it has done here. A file has none, and `file` says which one it is.

    A position lies between two pages of SCAN, the counters between two batches: some keys behind
    the position may be in the counters already, and are counted again by a run that goes on.

    It is void when the target's identity (process and replication history) is another one: what
    was acknowledged may be gone. The names of the keys that were not carried are part of it, so
    that a run that goes on reports those of the runs before it; `beyond` counts, by reason, those
    that were too many to be named. `evictions` are those of the target since the first write;
    `telemetry` are the streams of FalkorDB's that were left to each server, `losses` what was
    carried with a loss.
    """

    position: ScanPosition | OnlineCheckpoint
    target_identity: str
    keys: int = 0
    bytes: int = 0
    skipped: int = 0
    vanished: int = 0
    not_carried: tuple[NotCarried, ...] = ()
    not_carried_total: int = 0
    beyond: tuple[tuple[str, int], ...] = ()
    evictions: Evictions = field(default_factory=Evictions)
    telemetry: tuple[tuple[int, str], ...] = ()
    losses: tuple[CarriedWithLoss, ...] = ()
    file: FileIdentity | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Checkpoint:
        """Inverse of `to_dict`."""
        data = dict(data)
        kind = OnlineCheckpoint if "token" in data["position"] else ScanPosition
        data["position"] = kind.from_dict(data["position"])
        data["not_carried"] = tuple(NotCarried(**item) for item in data["not_carried"])
        data["beyond"] = tuple((reason, count) for reason, count in data["beyond"])
        data["telemetry"] = tuple((db, key) for db, key in data.get("telemetry", ()))
        data["losses"] = carried_with_loss(data.get("losses", ()))
        data["evictions"] = Evictions.from_dict(data.get("evictions", {}))
        data["file"] = FileIdentity(**file) if (file := data.get("file")) else None
        return cls(**data)
