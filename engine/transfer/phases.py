"""The phases of a transfer, as a table.

A transfer connects, copies the snapshot, and then, by what its source can do:

- a source that is scanned cannot follow writes: COPIED says that every key that SCAN named has been
  acknowledged by the target, and nothing moves any more until the operator's word;
- a source that replicates: CATCH_UP applies what was written meanwhile, FOLLOW keeps up with what
  is written now, until the operator's word. A full sync that becomes necessary (the source's
  backlog is gone, the target lost its data) leads back to SNAPSHOT.

A cut-over that its gate or its deadline refuses returns to where it came from. FAILED carries a
reason; STOPPED was asked for, and its checkpoint can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import EngineError
from engine.model.progress import Phase

_ENDS = frozenset({Phase.FAILED, Phase.STOPPED})

MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.CONNECT: _ENDS | {Phase.SNAPSHOT, Phase.CATCH_UP, Phase.DONE},
    Phase.SNAPSHOT: _ENDS | {Phase.COPIED, Phase.CATCH_UP, Phase.SNAPSHOT, Phase.DONE},
    Phase.COPIED: _ENDS | {Phase.CUT_OVER, Phase.DONE},
    Phase.CATCH_UP: _ENDS | {Phase.FOLLOW, Phase.CUT_OVER, Phase.SNAPSHOT, Phase.CATCH_UP},
    Phase.FOLLOW: _ENDS | {Phase.CUT_OVER, Phase.CATCH_UP, Phase.SNAPSHOT, Phase.DONE},
    Phase.CUT_OVER: _ENDS
    | {Phase.COPIED, Phase.FOLLOW, Phase.CATCH_UP, Phase.SNAPSHOT, Phase.DONE},
    Phase.DONE: frozenset(),
    Phase.FAILED: frozenset(),
    Phase.STOPPED: frozenset(),
}


def move(old: Phase, new: Phase) -> Phase:
    """Return `new` if the table allows it from `old`; raise `EngineError` (a bug) if not."""
    if new not in MOVES[old]:
        raise EngineError(f"a transfer cannot go from {old} to {new}")
    return new


# How far a lane is, the least advanced first. One that has ended otherwise than by a cut-over ends
# the whole.
_ADVANCE = (
    Phase.FAILED,
    Phase.STOPPED,
    Phase.CONNECT,
    Phase.SNAPSHOT,
    Phase.CATCH_UP,
    Phase.FOLLOW,
    Phase.COPIED,
    Phase.CUT_OVER,
    Phase.DONE,
)


def least_advanced(phases: Iterable[Phase]) -> Phase:
    """The phase of a migration whose lanes are in `phases`."""
    return min(phases, key=_ADVANCE.index)
