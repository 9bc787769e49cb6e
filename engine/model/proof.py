"""What `verify` is asked for, how far it is, and what it has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from engine.errors import UsageError
from engine.model.cluster_shard import AddressMap

Mode = Literal["count", "ttl", "full"]
Outcome = Literal["equal", "different", "unknown"]
NAMED_MOST = 1_000
"""So many differences are in a `ProofReport`; a report's file has all of them."""
STOP_AT = 100_000
"""Where so many keys differ the rest is not looked at."""
EXIT_CODES: Mapping[Outcome, int] = {"equal": 0, "different": 1, "unknown": 2}


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """How two deployments are compared.

    `mode`: "count" looks at which keys there are, "ttl" at their types and TTLs too, "full" at
    their values too. `match`: keys whose names match this glob. `sample`: this share of the keys,
    above 0 and up to 1, chosen by `seed`; None: a seed by chance. `rate`: bytes a second that are
    read from both ends together; 0: as many as they give. `repair`: what differs is made on the
    target what it is on the source. `timeout`: seconds for connecting and for each answer.
    `addresses`: where nodes of clusters are reached. Raises `UsageError`.
    """

    mode: Mode = "full"
    match: str | None = None
    sample: float = 1.0
    seed: int | None = None
    rate: int = 0
    repair: bool = False
    timeout: float = 30.0
    addresses: AddressMap = field(default_factory=AddressMap)

    def __post_init__(self) -> None:
        if self.mode not in ("count", "ttl", "full"):
            raise UsageError(
                f"there is no mode {self.mode!r}", remedy="Expected count, ttl or full."
            )
        if not 0 < self.sample <= 1:
            raise UsageError(
                f"a share of {self.sample:g} of the keys cannot be compared",
                remedy="Expected a number above 0 and up to 1.",
            )
        if self.seed is not None and not 0 <= self.seed < 1 << 128:
            raise UsageError("a seed must be a number from 0 to 2^128 - 1")
        if self.rate < 0 or self.timeout <= 0:
            raise UsageError("a rate must be 0 or more, and a timeout above 0")
        if self.repair and self.mode != "full":
            raise UsageError("a repair needs mode full")


@dataclass(frozen=True, slots=True)
class ProofProgress:
    """How far a comparison is. `keys` of about `total` (None: not known yet) were looked at,
    `earlier` of them by an earlier run; `doubtful` ones are to be looked at again, `different` ones
    differ; `bytes` were read, in `seconds`."""

    step: str = "connecting"
    keys: int = 0
    total: int | None = None
    bytes: int = 0
    doubtful: int = 0
    different: int = 0
    seconds: float = 0.0
    earlier: int = 0

    @property
    def seconds_left(self) -> float | None:
        """About how long it takes to the end; None: that is not known yet."""
        done = self.keys - self.earlier
        if done <= 0 or not self.total or self.seconds < 1:
            return None
        return max(self.total - self.keys, 0) * self.seconds / done


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """What is not the same at both ends. `kinds` are of `KINDS`; `key` is printable
    (`model.report`), or the name of a library; `source` and `target` say shortly what is there.
    `repaired`: it was made the same afterwards."""

    db: int
    key: str
    kinds: tuple[str, ...]
    source: str = ""
    target: str = ""
    repaired: bool = False


KINDS = (
    *("missing", "extra", "type", "value", "field TTLs", "groups", "TTL"),
    "library or index",
)


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A key of which it is not known whether it is the same at both ends, and why. `key` is
    printable."""

    db: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ComparedServer:
    """A server of one end. `offset` is that of its replication stream when it was asked, None where
    it does not tell; `keys` how many it had then."""

    address: str
    name: str
    replid: str
    offset: int | None
    keys: int
    slots: str = ""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One process's part of a comparison: `compared` keys between its beginning and its end, in
    seconds since the epoch; of one that was cut off the end is when it was saved last."""

    began: float
    ended: float
    compared: int


@dataclass(frozen=True, slots=True)
class ProofReport:
    """What a comparison has come to.

    `compared`: keys that were looked at at both ends; `different` of them differ, or are at one end
    alone, by kind in `kinds`; the first are in `differences`. `resolved`: keys that seemed to
    differ at first and did not when they were looked at again. `not_compared` are the first keys of
    which nothing is known, `unknown` is how many there are, by reason in `reasons`. `digests` are
    of all keys that were compared, of the source's and of the target's: they can be held against
    each other alone. `left_out`: what else was not compared, in words. `repaired`: keys that were
    made the same. `stopped`: so much differs, or cannot be compared, that the rest was not looked
    at. `runs`: who has compared how many keys, and when; more than one where a comparison that was
    cut off has gone on: what an earlier one has compared was not compared again.
    """

    outcome: Outcome
    settings: Mapping[str, Any]
    source: tuple[ComparedServer, ...]
    target: tuple[ComparedServer, ...]
    began: float
    ended: float
    compared: int = 0
    bytes: int = 0
    different: int = 0
    resolved: int = 0
    unknown: int = 0
    repaired: int = 0
    libraries: int = 0
    stopped: bool = False
    kinds: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    digests: tuple[str, str] = ("", "")
    differences: tuple[KeyDifference, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()
    left_out: tuple[str, ...] = ()
    runs: tuple[ComparedRun, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it took, without the time between two runs."""
        if not self.runs:
            return self.ended - self.began
        return sum(each.ended - each.began for each in self.runs)

    @property
    def exit_code(self) -> int:
        """0: equal, 1: different, 2: that could not be told."""
        return EXIT_CODES[self.outcome]

    @property
    def sentence(self) -> str:
        """What it has come to, in a sentence."""
        what = {
            "equal": "Equal",
            "different": "Different",
            "unknown": "It is not known whether they are equal",
        }[self.outcome]
        parts = [f"{self.compared:,} keys compared", f"{self.different:,} differ"]
        if self.repaired:
            parts.append(f"{self.repaired:,} were repaired")
        if self.unknown:
            parts.append(f"{self.unknown:,} could not be compared")
        if self.stopped:
            parts.append("there are so many of them that the rest was not looked at")
        told = f"{what}: {', '.join(parts)}."
        for each in self.runs[:-1]:
            if each.compared:
                told += (
                    f" {each.compared:,} of these keys were compared between {moment(each.began)} "
                    f"and {moment(each.ended)}, and not again since then."
                )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def moment(seconds: float) -> str:
    """A time as ISO 8601 has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
