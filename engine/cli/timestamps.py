"""Moments as options have them: seconds since the epoch, or ISO 8601."""

from __future__ import annotations

from datetime import UTC, datetime

from engine.errors import UsageError


def parse(text: str) -> int:
    """Read `1764361200` or `2026-11-28T20:20:00Z`, to whole seconds since the epoch; without a zone
    it is UTC. Raises `UsageError`."""
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit() and len(stripped) <= 12:
        return int(stripped)
    try:
        moment = datetime.fromisoformat(stripped)
    except ValueError:
        raise UsageError(
            f"{text[:80]!r} is not a moment",
            remedy="Write seconds since the epoch, or 2026-11-28T20:20:00Z.",
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = int(moment.timestamp())
    if seconds < 0:
        raise UsageError(f"{text[:80]!r} lies before 1970")
    return seconds


def write(seconds: int) -> str:
    """The moment as a person reads it, and `parse` does."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
