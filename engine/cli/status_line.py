"""Where a transfer stands, on one line."""

from __future__ import annotations

from collections.abc import Iterator

from engine.cli.output_format import duration, volume
from engine.model.figure import counted
from engine.model.progress import ENDS, FIGURES, Phase, Progress

COPIED = (Phase.CATCH_UP, Phase.FOLLOW, Phase.COPIED, Phase.CUT_OVER, Phase.DONE)
"""The phases after the snapshot."""


def describe(progress: Progress) -> str:
    """Everything but the phase, on one line."""
    parts = [_keys(progress), volume(progress.bytes)]
    if progress.keys_per_second:
        parts.append(f"{progress.keys_per_second:,.0f} keys/s")
    if progress.eta_seconds is not None and progress.phase == Phase.SNAPSHOT:
        parts.append(f"ETA {duration(progress.eta_seconds)}")
    parts += _followed(progress)
    parts += counted(((each, each.words) for each in FIGURES), progress, unusual=True)
    if progress.phase is Phase.FOLLOW:
        parts.append("can complete" if progress.can_complete else "cannot complete")
    line = ", ".join(parts)
    return f"{line} ({progress.reason})" if progress.reason else line


def _followed(progress: Progress) -> Iterator[str]:
    """What the stream of writes brings, where there is one."""
    if progress.commands:
        yield f"{progress.commands:,} commands"
    if progress.lag_bytes is not None:
        yield f"lag {volume(progress.lag_bytes)}"
        if progress.lag_seconds is not None:
            yield duration(progress.lag_seconds)
    elif progress.lag_unknown:
        yield f"lag unknown (link {progress.link})" if progress.link else "lag unknown"
    if progress.spool_bytes:
        yield f"{volume(progress.spool_bytes)} spooled"


def _keys(progress: Progress) -> str:
    # The total counts what filters pass over, and what an earlier run of a resumed migration moved:
    # once everything is copied, a share of it would only alarm. It may be copied where a run ended.
    if not progress.total_keys or progress.phase in COPIED or progress.phase in ENDS:
        return f"{progress.keys:,} keys"
    share = min(1.0, progress.keys / progress.total_keys)
    return f"{progress.keys:,} of {progress.total_keys:,} keys ({share:.1%})"
