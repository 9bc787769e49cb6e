"""One immutable snapshot of a running transfer: it feeds the display, the state and the API."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a transfer stands. The moves between phases are the table in `transfer.phases`."""

    CONNECT = "CONNECT"
    SNAPSHOT = "SNAPSHOT"
    COPIED = "COPIED"
    CUT_OVER = "CUT_OVER"
    DONE = "DONE"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters from acknowledged batches alone. Times are seconds, `bytes` value bytes.

    `total_keys` is the source's own count at the start (an estimate while writes go on, and with
    MATCH or TYPE an upper bound). `can_complete` with its `reason` is the cut-over's gate.
    """

    phase: Phase = Phase.CONNECT
    source_type: str = "scan"
    keys: int = 0
    bytes: int = 0
    total_keys: int = 0
    skipped: int = 0
    vanished: int = 0
    not_carried: int = 0
    retries: int = 0
    reconnects: int = 0
    keys_per_second: float = 0.0
    seconds: float = 0.0
    eta_seconds: float | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    can_complete: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        """Inverse of `to_dict`; members of a newer version are passed over."""
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in data.items() if name in known}
        return cls(**{**kept, "phase": Phase(kept.get("phase", Phase.CONNECT))})
