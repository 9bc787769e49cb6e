"""Figures and places in words, for reasons and events."""

from __future__ import annotations

from engine.model.position import StreamPosition


def size_words(nbytes: float) -> str:
    """`18.2 MB`, in powers of ten."""
    if nbytes < 1000:
        return f"{nbytes:,.0f} bytes"
    for unit in ("kB", "MB"):
        nbytes /= 1000
        if nbytes < 1000:
            return f"{nbytes:,.0f} {unit}"
    return f"{nbytes / 1000:,.1f} GB"


def place_words(position: StreamPosition | None) -> str:
    """What a target has of a source's stream."""
    return "no position" if position is None else f"offset {position.offset:,}"


def stream_words(position: StreamPosition | None) -> str:
    """What a source is asked for, to go on from there. What it answers is another thing."""
    return "a full sync" if position is None else f"what follows offset {position.offset:,}"
