"""Compare both ends of a migration through the servers' own commands.

Rank 4, and a stranger to `transfer`: it shares no reading code with what it checks, but for
files: there is one reader of those. Names are looked up when they are first used: what compares
files is not imported where servers are compared.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.model.verification import Difference, Verification
    from engine.verify.aof_comparison import values_of_files, verify_aof
    from engine.verify.file_comparison import verify_file
    from engine.verify.full_comparison import verify
    from engine.verify.key_comparison import differing
    from engine.verify.lane_counts import joined
    from engine.verify.live_comparison import LiveComparison

_HOMES = {
    "Difference": "engine.model.verification",
    "LiveComparison": "engine.verify.live_comparison",
    "Verification": "engine.model.verification",
    "differing": "engine.verify.key_comparison",
    "joined": "engine.verify.lane_counts",
    "values_of_files": "engine.verify.aof_comparison",
    "verify": "engine.verify.full_comparison",
    "verify_aof": "engine.verify.aof_comparison",
    "verify_file": "engine.verify.file_comparison",
}

__all__ = [
    "Difference",
    "LiveComparison",
    "Verification",
    "differing",
    "joined",
    "values_of_files",
    "verify",
    "verify_aof",
    "verify_file",
]


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(home), name)
