"""The phases of a transfer, as a table.

A transfer connects, copies the snapshot, waits for the operator's word, cuts over, and is done. The
scan source cannot follow writes, so what stands between the snapshot and the cut-over is COPIED:
every key that SCAN named has been acknowledged by the target, and nothing moves any more. FAILED
carries a reason; STOPPED was asked for, and its checkpoint can be resumed. A cut-over that is
refused by its gate returns to where it came from.
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.model.progress import Phase

MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.CONNECT: frozenset({Phase.SNAPSHOT, Phase.FAILED, Phase.STOPPED}),
    Phase.SNAPSHOT: frozenset({Phase.COPIED, Phase.FAILED, Phase.STOPPED}),
    Phase.CATCH_UP: frozenset({Phase.FAILED, Phase.STOPPED}),
    Phase.FOLLOW: frozenset({Phase.FAILED, Phase.STOPPED}),
    Phase.COPIED: frozenset({Phase.CUT_OVER, Phase.FAILED, Phase.STOPPED}),
    Phase.CUT_OVER: frozenset({Phase.COPIED, Phase.DONE, Phase.FAILED, Phase.STOPPED}),
    Phase.DONE: frozenset(),
    Phase.FAILED: frozenset(),
    Phase.STOPPED: frozenset(),
}


def move(old: Phase, new: Phase) -> Phase:
    """Return `new` if the table allows it from `old`; raise `EngineError` (a bug) if not."""
    if new not in MOVES[old]:
        raise EngineError(f"a transfer cannot go from {old} to {new}")
    return new
