"""Values that the target does not know are rewritten to a form that it knows, by the core."""

from __future__ import annotations

from engine._native import ValueTranscoder
from engine.model.server import ServerInfo

HELD_MOST = 512 << 20
"""Bytes of the longest value that is rewritten: all of it has to be in memory, twice."""


def transcoder_for(target: ServerInfo, bulk_limit: int = HELD_MOST) -> ValueTranscoder:
    """What rewrites values for `target`, which takes arguments of `bulk_limit` bytes."""
    able = target.capabilities
    return ValueTranscoder(able.flavour, able.known_types, most=min(bulk_limit, HELD_MOST))


def too_long_words(most: int) -> str:
    """Why a value that would have to be rewritten is not carried."""
    return (
        "the target does not know the type of the value, and in a form that it knows the value "
        f"would be longer than {most:,} bytes"
    )
