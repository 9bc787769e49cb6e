"""Progress in the log: each change of phase with its figures, and between them how it goes on."""

from __future__ import annotations

import re
import time

from engine import logs
from engine.model.progress import Phase, Progress

EVERY_SECONDS = 10.0
"""A line this often while something keeps a cut-over from beginning, or values are copied …"""
CALM_SECONDS = 300.0
"""… and this often while nothing does."""
# Phases that may follow each other quickly, while the engine or a link comes late again and again.
_BACK_AND_FORTH = frozenset({Phase.CATCH_UP, Phase.FOLLOW})
# So many changes between them are written in `EVERY_SECONDS`; then the phase that it comes to.
_BACK_AND_FORTH_MOST = 10
_FIGURE = re.compile(r"\d[\d.,]*")
_log = logs.logger(__name__)


class ProgressLog:
    """Writes what is worth a line of all the progress that is told."""

    def __init__(self) -> None:
        # When the phase began, and what was shown by then.
        self._entered = self._written = time.monotonic()
        self._at_entry = self._last = Progress()
        self._first = True
        self._turns, self._turns_since = 0, 0.0

    def note(self, progress: Progress) -> None:
        """Write a line, if it is due: at each change of phase, when the reason that a cut-over
        cannot begin is another one, and from time to time."""
        now, last = time.monotonic(), self._last
        since = now - self._written
        if progress.phase is not last.phase or self._first:
            if {progress.phase, last.phase} != _BACK_AND_FORTH or self._may_turn(now):
                self._turned(progress, now)
            return
        if since < EVERY_SECONDS:
            # Within seconds a reason may come and go again.
            return
        changed = _gate(progress) != _gate(last)
        calm = progress.can_complete and not changed
        if since >= (CALM_SECONDS if calm else EVERY_SECONDS):
            self._write(progress, now)

    def _may_turn(self, now: float) -> bool:
        if now - self._turns_since >= EVERY_SECONDS:
            self._turns, self._turns_since = 0, now
        self._turns += 1
        return self._turns <= _BACK_AND_FORTH_MOST

    def _turned(self, progress: Progress, now: float) -> None:
        before, last = self._at_entry, self._last
        figures = {} if self._first else _spent(before, progress, now - self._entered)
        _log.info(
            "Phase %s begins%s",
            progress.phase,
            "" if self._first else f", {last.phase} is over",
            extra={**figures, **_figures(progress)},
        )
        self._first, self._entered, self._written = False, now, now
        self._at_entry = self._last = progress

    def _write(self, progress: Progress, now: float) -> None:
        last, seconds = self._last, now - self._written
        figures = _figures(progress) | {
            name: round((after - before) / seconds)
            for name, before, after in (
                ("source_bytes_per_second", last.source_offset, progress.source_offset),
                ("applied_bytes_per_second", last.applied_offset, progress.applied_offset),
            )
            # A source that began anew counts from elsewhere.
            if before is not None and after is not None and after >= before
        }
        if progress.held_keys or last.held_keys:
            figures["dirty_keys_change"] = progress.held_keys - last.held_keys
        _log.info("Phase %s goes on", progress.phase, extra=figures)
        self._last, self._written = progress, now


def _gate(progress: Progress) -> tuple[bool, str]:
    """Whether a cut-over can begin, and why not; its figures are no news."""
    return progress.can_complete, "" if progress.can_complete else _FIGURE.sub("", progress.reason)


def _spent(before: Progress, now: Progress, seconds: float) -> dict[str, object]:
    """What the phase that is over came to."""
    return {
        "phase_seconds": round(seconds, 3),
        "phase_keys": now.keys - before.keys,
        "phase_bytes": now.bytes - before.bytes,
        "phase_commands": now.commands - before.commands,
    }


def _figures(progress: Progress) -> dict[str, object]:
    """What an operator wants to know of where it stands; what is zero or not known is left out."""
    shown: dict[str, object] = {
        "reason": progress.reason,
        "keys": progress.keys,
        "total_keys": progress.total_keys,
        "bytes": progress.bytes,
        "keys_per_second": round(progress.keys_per_second),
        "commands": progress.commands,
        "lag_bytes": progress.lag_bytes,
        "lag_seconds": None if progress.lag_seconds is None else round(progress.lag_seconds, 3),
        "spool_bytes": progress.spool_bytes,
        "dirty_keys": progress.held_keys,
        "not_carried": progress.not_carried,
        "retries": progress.retries,
        "reconnects": progress.reconnects,
        "link": progress.link,
    }
    known = {name: value for name, value in shown.items() if value}
    if progress.link or progress.lag_unknown:
        known["lag_bytes"] = progress.lag_bytes  # None: not known
    return known | {"can_complete": progress.can_complete}
