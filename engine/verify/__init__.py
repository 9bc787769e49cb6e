"""Compare both ends of a migration through the servers' own commands.

Rank 4, and a stranger to `transfer`: it shares no reading code with what it checks, but for
files: there is one reader of those.
"""

from __future__ import annotations

from engine.verify.compare import differing
from engine.verify.file import verify_file
from engine.verify.in_sync import verify_in_sync
from engine.verify.result import Difference, Verification
from engine.verify.run import verify

__all__ = ["Difference", "Verification", "differing", "verify", "verify_file", "verify_in_sync"]
