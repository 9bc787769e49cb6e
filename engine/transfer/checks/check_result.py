"""What a check found: frozen values for the display and the API."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.errors import AuthError, EngineError
from engine.model.group_shards import GroupShard
from engine.model.lane_plan import PlannedLane
from engine.model.online_checkpoint import OWN_PREFIX
from engine.wire.control_connection import Admin

Outcome = Literal["pass", "warn", "fail"]
Side = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `figure` is what was measured or read, `remedy` the way out (empty on pass)."""

    name: str
    outcome: Outcome
    figure: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Preflight:
    """All findings, in the order in which they were made. A check that could not run is absent."""

    checks: tuple[Check, ...]
    engine: str = ""
    """What the target runs: "redis" or "valkey"; empty where that was not found out."""
    lanes: tuple[PlannedLane, ...] = ()
    """Those that a migration has, where an end is a cluster."""
    shards: tuple[GroupShard, ...] = ()
    """Those of a target that is a cluster."""
    unplanned: bool = False
    """An end is a cluster, or may be one, and it is not known which lanes lead to its shards: no
    check that fails can be skipped."""

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way; warnings may be there."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that stand in the way of a transfer."""
        return tuple(check for check in self.checks if check.outcome == "fail")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """What the operator should know before starting."""
        return tuple(check for check in self.checks if check.outcome == "warn")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with `ok`; `from_dict` reads them back."""
        checks = [asdict(check) for check in self.checks]
        found = {"ok": self.ok, "checks": checks, "engine": self.engine}
        return found | ({"unplanned": True} if self.unplanned else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preflight:
        """Inverse of `to_dict`."""
        checks = tuple(Check(**check) for check in data["checks"])
        return cls(checks, data.get("engine", ""), unplanned=data.get("unplanned", False))


def passed(name: str, figure: str) -> Check:
    """Nothing to do."""
    return Check(name, "pass", figure)


def warned(name: str, figure: str, remedy: str) -> Check:
    """The transfer can run; the operator should know."""
    return Check(name, "warn", figure, remedy)


def failed(name: str, figure: str, remedy: str) -> Check:
    """The transfer would fail, or do harm."""
    return Check(name, "fail", figure, remedy)


def own_keys(end: Admin, refusal: EngineError) -> str:
    """The end of a remedy: the ACL rule for the engine's own keys, where it is what is missing."""
    if not isinstance(refusal, AuthError) or not refusal.of_key:
        return ""
    return f", or ACL SETUSER {end.endpoint.username or 'default'} ~{OWN_PREFIX.decode()}*"


def skipped(check: Check) -> Check:
    """The check as it is told where the operator has it skipped: in the way of nothing."""
    if check.outcome != "fail":
        return check
    return warned(check.name, f"skipped as asked: {check.figure}", check.remedy)


def not_skipped(check: Check) -> Check:
    """The check as it is told where the operator has it skipped, and nothing can be moved like
    that."""
    if check.outcome != "fail":
        return check
    figure = f"{check.figure} (not skipped: without it a cluster's shards are not known)"
    return failed(check.name, figure, check.remedy)


def listed(numbers: tuple[int, ...] | list[int]) -> str:
    """Database numbers for people: `0, 9`."""
    return ", ".join(map(str, numbers)) or "none"


def size(count: int) -> str:
    """Bytes for people: `1.5 MiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
