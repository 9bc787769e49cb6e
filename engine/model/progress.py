"""One immutable snapshot of a running transfer: it feeds the display, the state and the API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a transfer stands. The moves between phases are the table in `transfer.phases`."""

    CONNECT = "CONNECT"
    SNAPSHOT = "SNAPSHOT"
    CATCH_UP = "CATCH_UP"
    FOLLOW = "FOLLOW"
    COPIED = "COPIED"
    CUT_OVER = "CUT_OVER"
    DONE = "DONE"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


ENDS = frozenset({Phase.DONE, Phase.FAILED, Phase.STOPPED})
"""Nothing comes after these."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters from acknowledged batches alone. Times are seconds, `bytes` value bytes.

    `source_type` is how the source is read, "replica", "scan" or "file"; "auto" until that is
    known.
    `total_keys` is the source's own count at the start (an estimate while writes go on, and with
    MATCH or TYPE an upper bound); None: the source was not asked yet. `evicted_keys` counts those
    of the target since the first write; None: not known. `can_complete` with its `reason` is the
    cut-over's gate: the reason is one line, with the figures (`lag 18.2 MB > 1.05 MB`).
    `uncomparable`: it is closed only because both ends cannot be compared with these users, and is
    open for a cut-over without the comparison. `trying_again`: a cut-over came to nothing, and is
    tried again by itself. `lets_scripts`: the source refuses writes behind its fence, but not what
    scripts write.

    Where the source is followed: `applied_offset` is the replication offset up to which the target
    has everything, `source_offset` the source's own, as last heard; `lag_bytes` and `lag_seconds`
    lie between them, and are None while it is not known what the source has sent. `link` is how the
    source is heard: "up", "down" (the link is lost), "silent" (it stands, and no answer comes), or
    empty while nothing is followed; `source_heard_seconds`: whole ones since anything came from it;
    `target_heard_seconds`: the same of the target's answer to a question that is put each second.
    `retries` counts tries that failed and were repeated: batches sent, ends dialled.
    `commands` counts the stream's commands that were applied, `spool_bytes` is what waits on disk
    now, `repaired_keys` were fetched anew because their commands could not be carried, `held_keys`
    are dirty: they wait to be read again from the source.
    """

    phase: Phase = Phase.CONNECT
    source_type: str = "auto"
    keys: int = 0
    bytes: int = 0
    total_keys: int | None = None
    skipped: int = 0
    vanished: int = 0
    not_carried: int = 0
    evicted_keys: int | None = None
    retries: int = 0
    reconnects: int = 0
    keys_per_second: float = 0.0
    seconds: float = 0.0
    eta_seconds: float | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    applied_offset: int | None = None
    source_offset: int | None = None
    link: str = ""
    source_heard_seconds: float | None = None
    target_heard_seconds: float | None = None
    commands: int = 0
    spool_bytes: int = 0
    partial_syncs: int = 0
    full_syncs: int = 0
    repaired_keys: int = 0
    held_keys: int = 0
    can_complete: bool = False
    uncomparable: bool = False
    trying_again: bool = False
    lets_scripts: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @property
    def lag_unknown(self) -> bool:
        """Whether the source may be any number of bytes ahead: it is not heard, or not followed
        just now although the snapshot is over."""
        behind = self.phase in (Phase.CATCH_UP, Phase.FOLLOW)
        return self.lag_bytes is None and (self.link in ("down", "silent") or behind)

    @property
    def keys_words(self) -> str:
        """`300 of about 9,000 keys`, or `300 keys` while it is not known of how many."""
        of = "" if self.total_keys is None else f" of about {self.total_keys:,}"
        return f"{self.keys:,}{of} keys"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        """Inverse of `to_dict`; members of a newer version are passed over."""
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in data.items() if name in known}
        return cls(**{**kept, "phase": Phase(kept.get("phase", Phase.CONNECT))})


def _sum(values: Sequence[Any]) -> Any:
    return sum(values)


def _sum_if_known(values: Sequence[Any]) -> Any:
    return None if None in values else sum(values)


def _most(values: Sequence[Any]) -> Any:
    return max(values)


def _most_if_known(values: Sequence[Any]) -> Any:
    return None if None in values else max(values)


def _only(values: Sequence[Any]) -> Any:
    """What several streams have each for themselves has no total."""
    return values[0] if len(values) == 1 else None


def _first(values: Sequence[Any]) -> Any:
    return values[0]


_LINKS = ("down", "silent", "", "up")

_TOTALS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "source_type": _first,
    "keys": _sum,
    "bytes": _sum,
    "total_keys": _sum_if_known,
    "skipped": _sum,
    "vanished": _sum,
    "not_carried": _sum,
    "evicted_keys": _sum_if_known,
    "retries": _sum,
    "reconnects": _sum,
    "keys_per_second": _sum,
    "seconds": _most,
    "eta_seconds": _most_if_known,
    "lag_bytes": _sum_if_known,
    "lag_seconds": _most_if_known,
    "applied_offset": _only,
    "source_offset": _only,
    "link": lambda links: min(links, key=_LINKS.index),
    "source_heard_seconds": _most_if_known,
    "target_heard_seconds": _most_if_known,
    "commands": _sum,
    "spool_bytes": _sum,
    "partial_syncs": _sum,
    "full_syncs": _sum,
    "repaired_keys": _sum,
    "held_keys": _sum,
    "can_complete": all,
    "trying_again": any,
    "lets_scripts": any,
}
"""How the members of the lanes of one migration add up. What is not known of one lane is not known
of all."""


def total(lanes: Sequence[Progress], phase: Phase) -> Progress:
    """The progress of a migration with these lanes, at least one, which is in `phase`.

    The reason is that of the first lane whose gate is closed.
    """
    if len(lanes) == 1:
        return lanes[0]
    members = {name: add([getattr(each, name) for each in lanes]) for name, add in _TOTALS.items()}
    shut = [each for each in lanes if not each.can_complete]
    members["uncomparable"] = bool(shut) and all(each.uncomparable for each in shut)
    return Progress(phase=phase, reason=(shut or lanes)[0].reason, **members)
