"""Why the effect of a replication stream on the target may be another one than on the source.

The parts that notice such a thing name it: the source, the target's connection, the follower, the
guard of TTLs. What follows from it is one table, `engine.transfer.stream_trust`.
"""

from __future__ import annotations

import enum


class Doubt(enum.Enum):
    """A reason to distrust what the stream does on the target."""

    BEGUN = "following begins"
    """What the source has written up to now was written while nothing listened."""
    RELINKED = "the source's link is made anew"
    """A lost link to the source was made anew: what was written meanwhile comes late."""
    READ_LATE = "the stream is read late"
    """The engine got no CPU: bytes of the stream may have lain in the kernel unread."""
    STALLED = "the stream arrives late"
    """The source, or what it has sent, may be held up on its way."""
    OUTAGE = "the target was away"
    """The target could not be reached: what it holds has aged meanwhile."""
    EXPOSED = "TTLs may be due"
    """On a target without import mode a TTL that is not extended may be due."""
    LAPSED = "import mode was left"
    """The target had left import mode (it was restarted), and let keys expire."""
    UNSETTLED = "an earlier engine's last transaction"
    """Which commands of the last transaction before this engine's first failed is not known."""
    BEGUN_BEFORE = "commands may have been applied before"
    """Commands behind the position may have been applied by an engine before this one, or by this
    one over a link that was lost, each for itself (`ext/position_records.pxi`)."""
    UNSEEN = "an answer was not seen"
    """A transaction was applied, and the link was lost before its answer was read."""
    COUNTED_LATE = "fields were counted up late"
    """A command that keeps a field's TTL was applied long after it was received."""
    FIELD_TTLS = "fields have TTLs"
    """Hash fields expire on the target by themselves."""
    OWN_STREAMS = "streams of each server's own"
    """FalkorDB's telemetry: each server writes such streams for itself."""
    VERSIONS = "versions differ"
    """A command does something else on the target's version than on the source's."""
