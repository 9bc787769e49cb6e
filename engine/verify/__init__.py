"""Compare both ends of a migration through the servers' own commands.

Rank 4, and a stranger to `transfer`: it shares no reading code with what it checks, but for
files: there is one reader of those.
"""

from __future__ import annotations

from engine.model.verification import Difference, Verification
from engine.verify.aof_comparison import values_of_files, verify_aof
from engine.verify.file_comparison import verify_file
from engine.verify.full_comparison import verify
from engine.verify.key_comparison import differing
from engine.verify.live_comparison import LiveComparison

__all__ = [
    "Difference",
    "LiveComparison",
    "Verification",
    "differing",
    "values_of_files",
    "verify",
    "verify_aof",
    "verify_file",
]
