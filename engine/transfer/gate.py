"""The gate of a cut-over: a decision that carries its reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.transfer.stage import Stage


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether the target may be opened, and the one line that says why or why not."""

    ok: bool
    reason: str


Gate = Callable[[], Awaitable[GateResult]]
# The same while the source's writers are held off; it is told the engine's own key on the target.
GateInSync = Callable[[bytes], Awaitable[GateResult]]

NOT_COMPARED = "cut over without the comparison, as asked"
WITHOUT_COMPARISON = (
    "complete-migration --skip-verification cuts over without the comparison, with fence, drain and"
    " write block as ever"
)
"""What a refusal by the comparison offers."""


async def compared(stage: Stage, compare: Gate) -> GateResult:
    """What `compare` finds, unless the operator's word leaves the comparison out.

    A refusal says how it can be left out, where there is somebody to say that word.
    """
    if stage.skip_verification:
        return GateResult(True, NOT_COMPARED)
    found = await compare()
    if found.ok or stage.one_go:
        return found
    return GateResult(False, f"{found.reason.rstrip('.')}; {WITHOUT_COMPARISON}")
