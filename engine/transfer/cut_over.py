"""The gate of a cut-over: a decision that carries its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether the target may be opened, and the one line that says why or why not."""

    ok: bool
    reason: str
