"""Error codes of servers that say "not now": in which place each may come, and the way out.

What is not in the table is final where it comes. One table, so that a code which a server learns is
added once, and so that every place that asks again does so for the same reason.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

Place = Literal["answer", "dial", "psync", "read", "write"]
"""Where a code comes: in the answer to any command of the control plane; while an end is dialled at
the start; in the handshake of a replica; while the source is scanned; while the target is written
to."""

_ANYWHERE: frozenset[Place] = frozenset({"answer", "dial", "psync", "read", "write"})


@dataclass(frozen=True, slots=True)
class TransientError:
    """A code, where it means "not now", and what to do at a target if that lasts. `elsewhere`: the
    role has moved, or the process is another one, so that the connection is made anew. `of_slot`:
    it speaks of one key's slot, which is on its way to another node, or there: other keys can be
    written meanwhile."""

    code: str
    places: frozenset[Place]
    remedy: str = ""
    elsewhere: bool = False
    of_slot: bool = False


TRANSIENT_ERRORS = (
    TransientError(
        "LOADING", _ANYWHERE, "The target is loading its data: wait until it has.", elsewhere=True
    ),
    TransientError(
        "BUSY",
        _ANYWHERE,
        "A script or function blocks the target: end it with SCRIPT KILL or FUNCTION KILL.",
    ),
    TransientError(
        "MASTERDOWN",
        frozenset({"dial", "psync", "read", "write"}),
        "The target is a replica without a primary: name the primary.",
        elsewhere=True,
    ),
    TransientError(
        "TRYAGAIN",
        frozenset({"dial", "psync", "read", "write"}),
        "The target is moving slots: let that end.",
        of_slot=True,
    ),
    # A node that has lost its role answers MOVED to everything.
    TransientError(
        "MOVED",
        frozenset({"dial", "write"}),
        "The target's node does not have the slot any more: see CLUSTER NODES.",
        elsewhere=True,
        of_slot=True,
    ),
    TransientError(
        "ASK",
        frozenset({"dial", "write"}),
        "The target is moving slots: let that end.",
        of_slot=True,
    ),
    TransientError(
        "CLUSTERDOWN",
        frozenset({"dial", "read", "write"}),
        "The target's cluster is down: see CLUSTER INFO.",
        elsewhere=True,
    ),
    TransientError(
        "READONLY",
        frozenset({"dial", "write"}),
        "The target is a replica: name its primary.",
        elsewhere=True,
    ),
    # A replica that has no link to its primary refuses to have replicas of its own.
    TransientError("NOMASTERLINK", frozenset({"dial", "psync"})),
    TransientError(
        "OOM",
        frozenset({"write"}),
        "The target is out of memory: raise its maxmemory, or free some.",
    ),
    TransientError(
        "MISCONF",
        frozenset({"write"}),
        "The target cannot save to disk and refuses writes: see its log, free disk space.",
    ),
    TransientError(
        "NOREPLICAS",
        frozenset({"write"}),
        "The target has too few replicas for its min-replicas-to-write.",
    ),
)


def transient(place: Place) -> Set[str]:
    """The codes that say "not now" there."""
    return frozenset(each.code for each in TRANSIENT_ERRORS if place in each.places)


def remedies(place: Place) -> dict[str, str]:
    """The same codes, with what to do at a target if it lasts."""
    return {each.code: each.remedy for each in TRANSIENT_ERRORS if place in each.places}


OF_SLOT = frozenset(each.code for each in TRANSIENT_ERRORS if each.of_slot)
"""Those that speak of one key's slot alone."""
DIAL_AGAIN = frozenset(each.code for each in TRANSIENT_ERRORS if each.elsewhere)
"""Those after which a connection is made anew: the name may lead elsewhere by now."""
