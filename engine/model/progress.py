"""One immutable snapshot of a running transfer: it feeds the display, the state and the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from engine.model.figure import (
    added,
    added_if_known,
    declared,
    figure,
    most_if_known,
    said,
)
from engine.model.figures import Figures


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
# The worst first.
_LINKS = ("down", "silent", "", "up")


@dataclass(frozen=True, slots=True)
class Progress(Figures):
    """Where a migration stands.

    `total_keys` is the source's own count at the start (an estimate while writes go on, and with
    MATCH or TYPE an upper bound); None: the source was not asked yet. `evicted_keys` counts those
    of the target since the first write; None: not known. `can_complete` with its `reason` is the
    cut-over's gate: the reason is one line, with the figures (`lag 18.2 MB > 1.05 MB`).
    `uncomparable`: it is closed only because both ends cannot be compared with these users, and is
    open for a cut-over without the comparison. `trying_again`: a cut-over came to nothing, and is
    tried again by itself. `lets_scripts`: the source refuses writes behind its fence, but not what
    scripts write.

    `proven_keys` of `keys_to_prove` were equal at both ends when they were compared last, and no
    command has named them since (`--verify full`); None where that was not asked for.

    Where the source is followed: `lag_bytes` and `lag_seconds` lie between `applied_offset` and
    `source_offset`, and are None while it is not known what the source has sent. `link` is how the
    source is heard: "up", "down" (the link is lost), "silent" (it stands, and no answer comes), or
    empty while nothing is followed; `source_heard_seconds`: whole ones since anything came from it;
    `target_heard_seconds`: the same of the target's answer to a question that is put each second.

    `max_rate` and `max_key_rate`: bytes and keys a second that may be moved, of all lanes; None:
    any number. `paused`: why nothing is moved, in words; empty: it is.
    `throttled`: which end suffers, so that less is moved; empty: none does.

    `worker_pid`: the process that drives the lane, where it is not the migration's own.
    """

    phase: Phase = Phase.CONNECT
    total_keys: int | None = figure(
        None,
        added_if_known,
        metric="total_keys",
        meaning="Keys that the source had at the start.",
    )
    not_carried: int = figure(
        0,
        added,
        metric="not_carried_keys",
        meaning="Keys that could not be migrated (errors).",
        member="NotCarried",
        label="Not migrated",
        worry=0,
        words="not migrated",
    )
    evicted_keys: int | None = figure(
        None,
        added_if_known,
        metric="evicted_keys",
        meaning="Keys that the target has evicted since the first write.",
        member="EvictedKeys",
        label="Evicted by the target",
        worry=0,
        words="evicted by the target",
    )
    eta_seconds: float | None = figure(None, most_if_known)
    proven_keys: int | None = figure(
        None,
        added_if_known,
        metric="proven_keys",
        meaning="Keys that are proven to be equal at both ends (--verify full).",
        member="ProvenKeys",
        label="Keys proven equal",
    )
    keys_to_prove: int | None = figure(
        None,
        added_if_known,
        metric="keys_to_prove",
        meaning="Keys that are to be compared, of which some are proven (--verify full).",
        member="KeysToProve",
        label="Keys to be proven",
    )
    lag_bytes: int | None = figure(
        None,
        added_if_known,
        metric="lag_bytes",
        meaning="Bytes of the source's stream that are not applied.",
    )
    lag_seconds: float | None = figure(
        None, most_if_known, metric="lag_seconds", meaning="Seconds that the target is behind."
    )
    link: str = figure("", lambda links: min(links, key=_LINKS.index))
    source_heard_seconds: float | None = figure(
        None,
        most_if_known,
        metric="source_heard_seconds",
        meaning="Seconds since anything came from the source.",
    )
    target_heard_seconds: float | None = figure(
        None,
        most_if_known,
        metric="target_heard_seconds",
        meaning="Seconds since the followed migration's target answered.",
    )
    can_complete: bool = figure(
        False, all, metric="can_complete", meaning="1 while the migration can be completed."
    )
    max_rate: int | None = figure(
        None, most_if_known, metric="max_rate_bytes", meaning="Bytes a second that may be moved."
    )
    max_key_rate: int | None = figure(
        None, most_if_known, metric="max_rate_keys", meaning="Keys a second that may be moved."
    )
    paused: str = figure("", said)
    throttled: str = figure("", said)
    uncomparable: bool = False
    trying_again: bool = figure(False, any)
    lets_scripts: bool = figure(False, any)
    reason: str = ""
    worker_pid: int | None = None

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


FIGURES = declared(Progress)
"""What is declared of each figure. What is not known of one lane is not known of all."""


def total(lanes: Sequence[Progress], phase: Phase, titles: Sequence[str] = ()) -> Progress:
    """The progress of a migration with these lanes, at least one, which is in `phase`.

    The reason is that of the first lane whose gate is closed; it is named by its title, unless all
    lanes say the same.
    """
    if len(lanes) == 1:
        return lanes[0]
    members = {
        each.name: each.total([getattr(lane, each.name) for lane in lanes])
        for each in FIGURES
        if each.total is not None
    }
    shut = [each for each in lanes if not each.can_complete]
    members["uncomparable"] = bool(shut) and all(each.uncomparable for each in shut)
    reason = (shut or lanes)[0].reason
    if titles and reason and any(each.reason != reason for each in lanes):
        at = next(at for at, each in enumerate(lanes) if each is (shut or lanes)[0])
        # (That of a cut-over which one of them has refused names it by itself.)
        is_named = any(each and reason.startswith(f"lane {each}: ") for each in titles)
        reason = f"lane {titles[at]}: {reason}" if titles[at] and not is_named else reason
    return Progress(phase=phase, reason=reason, **members)
