"""Time spans as people write them: 90, 90s, 10m, 2h, 1d."""

from __future__ import annotations

import math
import re

from engine.errors import UsageError

_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(s|m|h|d)?", re.ASCII | re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(text: str) -> float:
    """Seconds: `90` and `90s` are ninety of them, `1.5h` is 5400. Raises `UsageError`."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a time span", remedy="Expected one like 90s, 10m or 2h.")
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


def write(seconds: float) -> str:
    """The shortest text that `parse` reads as `seconds`."""
    for unit in ("d", "h", "m"):
        if seconds and not math.fmod(seconds, _SECONDS[unit]):
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{seconds:g}s"
