"""What a finished transfer says of itself."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.model.carried_with_loss import CarriedWithLoss, carried_with_loss
from engine.model.figure import declared, figure
from engine.model.figures import Figures
from engine.model.verification import Verification

Status = Literal["done", "failed", "stopped"]
# A report names every key that was not carried up to this many; beyond it counts by reason.
NAMED_KEYS_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class NotCarried:
    """A key that did not arrive, and why. `key` is the raw name as Latin-1-safe text: bytes
    outside printable ASCII as \\xNN (as redis-cli prints them)."""

    db: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: its duration in seconds and what went through it. `lane`: which of several
    lanes took it; empty where there is one."""

    name: str
    seconds: float
    keys: int = 0
    bytes: int = 0
    note: str = ""
    lane: str = ""


@dataclass(frozen=True, slots=True)
class EngineUse:
    """What the engine's own process used: user + system CPU seconds; peak resident bytes."""

    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Report(Figures):
    """The result of a transfer. `not_carried_total` counts beyond the named ones.

    The figures are those of `Progress`, as they stood last. `expired` counts keys of a file whose
    time was over: they are not carried. `fence_seconds` is for how long writes to the source were
    blocked, None without a fence; `last_shard`: the lane for which the others waited most
    meanwhile, empty where there is one. `left_out` names what the source holds beside keys and the
    target did not get (the data of a module, a script …); `doubts` what of an append-only file may
    be otherwise there than on the server that wrote it. `sealed`: the settings of the source that
    have it refuse writes, as they were before (`transfer.write_block`); empty if they were not
    touched, or are put back.
    `sealed_at`: the `host:port` of the primary that it was done to; empty where that is the source.
    `sealed_too`: the same of the other shards of a source that is a cluster: (`sealed_at`,
    `sealed`) of each.
    `closed_before`: the setting by which that server refused writes already before the cut-over, so
    that the cut-over did not change it; empty: it accepted them. `closed_at`: as `sealed_at`.
    `lets_scripts`: it refuses writes, but not what scripts write (before 6.2). `scripts_before`,
    `scripts_run`: how many scripts it had run before the cut-over, and in the cut-over, where their
    writes are not refused; None: they are, or it is not known. `writes_before`, `writes_run`: the
    same of commands that write. `lost_writes`: what of these is on the source alone, or may be, a
    sentence; empty: nothing.
    `held`: where it runs any, its clients are paused as long as they are disconnected.
    `needs_hand`: it was not told to stop; what the first error says has to be mended before the
    transfer can go on.
    `losses`: values that were carried with a loss, by its kind.
    `verification`: what the last comparison of both ends has shown, None if there was none.
    """

    status: Status
    expired: int = figure(0, report="expired in the file, and left out")
    fence_seconds: float | None = None
    last_shard: str = ""
    sealed: str = ""
    verification: Verification | None = None
    sealed_at: str = ""
    sealed_too: tuple[tuple[str, str], ...] = ()
    closed_before: str = ""
    closed_at: str = ""
    lets_scripts: bool = False
    scripts_before: int | None = None
    scripts_run: int | None = None
    writes_before: int | None = None
    writes_run: int | None = None
    lost_writes: str = ""
    held: bool = False
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    not_carried: tuple[NotCarried, ...] = ()
    not_carried_total: int = 0
    losses: tuple[CarriedWithLoss, ...] = ()
    errors: tuple[str, ...] = ()
    needs_hand: bool = False
    steps: tuple[Step, ...] = ()
    engine: EngineUse = field(default_factory=EngineUse)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {"status": self.status, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Inverse of `to_dict`; an earlier version's report lacks some members."""
        data = {"source_type": "scan", **data}
        data["sealed_too"] = tuple((at, before) for at, before in data.get("sealed_too", ()))
        data["left_out"] = tuple(data.get("left_out", ()))
        data["doubts"] = tuple(data.get("doubts", ()))
        data["not_carried"] = tuple(NotCarried(**item) for item in data["not_carried"])
        data["losses"] = carried_with_loss(data.get("losses", ()))
        data["steps"] = tuple(Step(**item) for item in data["steps"])
        data["errors"] = tuple(data["errors"])
        data["engine"] = EngineUse(**data["engine"])
        if data.get("verification") is not None:
            data["verification"] = Verification.from_dict(data["verification"])
        return cls(**data)


FIGURES = declared(Report)
"""What is declared of each figure."""


def printable_key(key: bytes) -> str:
    """A key's name for people and JSON: printable ASCII as is, every other byte as \\xNN."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
        for byte in key
    )


def key_of(printable: str) -> bytes:
    """Inverse of `printable_key`."""
    return re.sub(
        rb"\\(?:\\|x([0-9a-f]{2}))",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\",
        printable.encode("latin-1"),
    )
