"""The gate of a cut-over: a decision that carries its reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether the target may be opened, and the one line that says why or why not."""

    ok: bool
    reason: str


Gate = Callable[[], Awaitable[GateResult]]
# The same while the source's writers are held off; it is told the engine's own key on the target.
GateInSync = Callable[[bytes], Awaitable[GateResult]]
