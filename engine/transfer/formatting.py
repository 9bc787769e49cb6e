"""Figures and places in words, for reasons and events."""

from __future__ import annotations

from engine.model.position import StreamPosition


def size_words(nbytes: float) -> str:
    """`18.2 MB`, in powers of ten and with three digits."""
    if nbytes < 1000:
        return f"{nbytes:,.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        nbytes /= 1000
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
    return f"{nbytes / 1000:,.1f} TB"


def above_words(nbytes: int, most: int) -> str:
    """`18.2 MB > 1.05 MB`, of a size that is above its bound, with as many digits as show it."""
    found, bound = size_words(nbytes), size_words(most)
    return f"{found} > {bound}" if found != bound else f"{nbytes:,} > {most:,} bytes"


def seconds_words(seconds: float) -> str:
    """`14.2 s`, with no more than a decimal."""
    return f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def place_words(position: StreamPosition | None) -> str:
    """What a target has of a source's stream."""
    return "no position" if position is None else f"offset {position.offset:,}"


def stream_words(position: StreamPosition | None) -> str:
    """What a source is asked for, to go on from there. What it answers is another thing."""
    return "a full sync" if position is None else f"what follows offset {position.offset:,}"
