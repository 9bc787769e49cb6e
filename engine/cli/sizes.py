"""Sizes as people write them: 512mb, 10gb, 1048576; the units are those of redis.conf."""

from __future__ import annotations

import re

from engine.errors import UsageError

_SIZE = re.compile(r"([0-9]{1,18})\s*([kmgt]?b?)", re.ASCII | re.IGNORECASE)
_STEPS = "kmgt"


def parse(text: str) -> int:
    """Bytes: `1k` is 1000 of them, `1kb` is 1024. Raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size", remedy="Expected one like 512mb or 10gb.")
    unit = match[2].lower()
    power = _STEPS.find(unit[0]) + 1 if unit and unit != "b" else 0
    size = int(match[1])
    for _ in range(power):
        size *= 1024 if len(unit) == 2 else 1000
    return size


def write(size: int) -> str:
    """The shortest text that `parse` reads as `size`."""
    power = 0
    while size and size % 1024 == 0 and power < len(_STEPS):
        size, power = size // 1024, power + 1
    return f"{size}{_STEPS[power - 1]}b" if power else str(size)
