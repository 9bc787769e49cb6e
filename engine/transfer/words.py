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
    """Where a source goes on from."""
    return "a full sync" if position is None else f"offset {position.offset:,}"
