"""When the stream may be trusted, and what is read again from the source while it may not.

Theory. A target that applies the source's stream, command by command, ends equal to the source as
long as each command finds what it found at the source, and leads to the same. There are few things
that can break this. Each is a row of `TABLE`: a `Doubt`, with what may be wrong, which keys are
read again because of it, and until when.

    noted ──▶ holds, its end not known ──the source tells its offset O──▶ holds up to O ──▶ over
     ▲                                                                        │
     └───────────────────────── noted again: its end moves ───────────────────┘

*Until when.* Time has gone wrong in most rows: something was written, and reached the target, or
was read, later than it seems; or keys expired on the target that live on at the source. Let t be
the moment at which the doubt was noted last (or, for a target whose TTLs may be due, the first
moment at which they no longer may be), and O the source's offset, by an answer to a question that
was put at t or later.

- What comes late: all that the source had written by t has an offset of O at most. What lies
  behind O was written later, and comes in time.
- A key K that expired on the target at d <= t, and lives on at the source: the source ran a command
  that extended K's TTL before d, so before t, and its offset is O at most. That command names K, so
  K is read again as long as every key that is named is read again up to O. A key that expired at
  both ends is deleted by the source's DEL.

So behind O there is no doubt any more, however much is being written. An answer to an earlier
question does not do: between that question and t there may have been such a command. A row whose
end is `CAUGHT_UP` holds until the target is near the source as well: hash fields expire on the
target while commands wait in front of it.

*What is read again.* `Again` names the kinds of keys. Kinds that the two ends rule out are never
asked for (`Servers`): a source from 7.0 on sends absolute TTLs, for which it does not matter when
they come, and a target in import mode lets neither keys nor fields expire.

*Behind the fence* of a cut-over writers wait, and a source before 6.2 answers nothing: a doubt
counts there only where its row says so. One that counts leads back to CATCH_UP if that cut-over is
refused.

`Trust` has no clock, no connection and no task: events, moments (of one clock, in seconds) and
offsets go in, verdicts come out. The follower asks it for each batch, so verdicts are kept up to
date as plain attributes.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from engine._native import CMD_MEMBER_COUNT, CMD_MEMBER_TTL, CMD_UNKNOWN
from engine.model.doubt import Doubt

# For so long what leads back is the reason that is shown; some are noted several times a second.
_SHOWN_SECONDS = 1.0
# A batch that counts fields up, and is applied longer than this after it was received, may have
# found one expired: HINCRBY keeps a field's TTL, and makes a field without one if it is gone.
_COUNTED_SECONDS = 0.05
_COMES_LATE = "what the source sends arrives late"
CATCHING_UP = "catching up with what was written before"
"""Why a cut-over cannot begin in CATCH_UP, where no row has words of its own."""


class Again(enum.Flag):
    """What is read again from the source, of the keys that a batch of commands may change."""

    NOTHING = 0
    EVERY_KEY = enum.auto()
    """Each of them, its value and its TTL."""
    TTLS = enum.auto()
    """The TTLs of keys whose TTL is set, or taken along by another key."""
    FIELD_TTLS = enum.auto()
    """Hashes in which the TTL of a field is set."""
    FIELD_COUNTS = enum.auto()
    """Hashes in which a field is counted up."""
    OWN_STREAMS = enum.auto()
    """Streams that FalkorDB writes at each server for itself."""
    APPLIED = enum.auto()
    """Each key of commands that the target has already, and that the source sends once more."""
    BY_KIND = enum.auto()
    """What `engine.transfer.unfaithful_commands` says of each kind of command."""


class Until(enum.Enum):
    """What ends a doubt."""

    PASSED = "passed"
    """The target has everything up to O."""
    CAUGHT_UP = "caught up"
    """The same, and is near the source."""
    SETTLED = "settled"
    """The follower has found out (`Trust.settle`)."""
    AT_ONCE = "at once"
    """It is about one batch, whose keys are read again: nothing stays."""
    FOREVER = "forever"
    """It holds while these two servers are the ends."""


class Fenced(enum.Enum):
    """Whether a doubt counts that is noted behind the fence of a cut-over."""

    COUNTS = "counts"
    READABLE = "readable"
    """If the source answers behind its fence: else it is the fence that was noticed."""
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Row:
    """What follows from a doubt.

    `again`: what is read again while it holds. `until`: what ends it. `fenced`: see there.
    `leads_back`: it leads from FOLLOW back to CATCH_UP, and ends before FOLLOW is entered. `ages`:
    time has passed on the target unnoticed, so it is looked at once whether TTLs may be due there.
    `kept`: it is in the checkpoint, for the engine that comes next. `words`: why a cut-over cannot
    begin, shown for a second after it was noted, or, if it does not lead back, as long as it holds.
    """

    again: Again
    until: Until
    fenced: Fenced = Fenced.LEFT_OUT
    leads_back: bool = False
    ages: bool = False
    kept: bool = False
    words: str = ""


_LATE = Again.TTLS | Again.FIELD_COUNTS

TABLE: Mapping[Doubt, Row] = MappingProxyType(
    {
        # Relative TTLs were written some time ago, and are anchored at the time of receipt; a field
        # may have expired on the target before a command that counts it up came.
        Doubt.BEGUN: Row(_LATE, Until.CAUGHT_UP, leads_back=True, ages=True),
        Doubt.RELINKED: Row(_LATE, Until.CAUGHT_UP, leads_back=True, ages=True),
        # What did not fit into the window has waited at the source, and comes in time by the look
        # of it: it is all late up to the source's offset. Behind the fence as well: what the source
        # wrote just before it may be among it.
        Doubt.READ_LATE: Row(
            _LATE, Until.CAUGHT_UP, Fenced.COUNTS, leads_back=True, words=_COMES_LATE
        ),
        Doubt.STALLED: Row(
            _LATE, Until.CAUGHT_UP, Fenced.READABLE, leads_back=True, words=_COMES_LATE
        ),
        # The stream went on arriving, and waited: fields may have expired meanwhile.
        Doubt.OUTAGE: Row(_LATE, Until.CAUGHT_UP, leads_back=True, ages=True),
        # Keys may have expired that the source has extended: any command may find its key gone.
        Doubt.EXPOSED: Row(Again.EVERY_KEY, Until.PASSED, Fenced.COUNTS, leads_back=True),
        Doubt.LAPSED: Row(Again.EVERY_KEY, Until.PASSED, Fenced.COUNTS, leads_back=True, kept=True),
        # Which of those commands failed was in an answer to that engine.
        Doubt.UNSETTLED: Row(
            Again.APPLIED,
            Until.SETTLED,
            Fenced.COUNTS,
            words="looking through the last commands of the engine before this one",
        ),
        # What was applied already is applied a second time: behind the last of it nothing is.
        Doubt.BEGUN_BEFORE: Row(Again.EVERY_KEY, Until.PASSED, Fenced.COUNTS, leads_back=True),
        # Which of its commands failed was in the answer.
        Doubt.UNSEEN: Row(Again.EVERY_KEY, Until.AT_ONCE, Fenced.COUNTS),
        Doubt.COUNTED_LATE: Row(Again.FIELD_COUNTS, Until.AT_ONCE, Fenced.COUNTS),
        # A command that sets a field's TTL may come a moment too late.
        Doubt.FIELD_TTLS: Row(Again.FIELD_TTLS, Until.FOREVER),
        Doubt.OWN_STREAMS: Row(Again.OWN_STREAMS, Until.FOREVER),
        Doubt.VERSIONS: Row(Again.BY_KIND, Until.FOREVER),
    }
)
"""What follows from each doubt."""


@dataclass(frozen=True, slots=True)
class Servers:
    """What the two servers rule out.

    `relative_ttls`: the source sends relative TTLs. `field_ttls`: its hashes may have fields with
    TTLs, and the target lets them expire by itself. `own_streams`: the source has FalkorDB.
    `readable`: the source answers behind the fence of a cut-over.
    """

    relative_ttls: bool
    field_ttls: bool
    own_streams: bool
    readable: bool = True

    @property
    def possible(self) -> Again:
        """What may have to be read again with these two."""
        found = Again.EVERY_KEY | Again.APPLIED | Again.BY_KIND
        if self.relative_ttls:
            found |= Again.TTLS
        if self.field_ttls:
            found |= Again.FIELD_TTLS | Again.FIELD_COUNTS
        if self.own_streams:
            found |= Again.OWN_STREAMS
        return found


@dataclass(frozen=True, slots=True)
class Look:
    """What was in force when a batch was looked at, before it was applied."""

    every_key: bool
    field_counts: bool
    times: int


@dataclass(slots=True)
class _InForce:
    """A doubt that holds: noted last at `since` (infinite: it has not stopped), up to the offset
    `until` (None: not known yet), and no further than `bound`."""

    since: float
    until: int | None = None
    bound: int | None = None

    def stopped_by(self, moment: float) -> bool:
        """Whether it arose by `moment`, and had stopped then."""
        return self.since <= moment and self.since < math.inf


class Trust:
    """The doubts that hold for one follower.

    Until `begin`: what the two ends rule out is known, nothing else.
    """

    def __init__(self, servers: Servers) -> None:
        self._possible = servers.possible
        self._readable = servers.readable
        self._in_force: dict[Doubt, _InForce] = {}
        # How often every key came into doubt.
        self._times = 0
        self.plain = True
        """A batch may be applied without a look at what its commands name, if it holds no command
        of `kinds`."""
        self.kinds = CMD_UNKNOWN
        """A batch that holds one of these (a sum of CMD_…) is looked at."""
        self.unsettled = False
        """`Doubt.UNSETTLED` holds."""
        self.every_key = self.ttls = self.field_ttls = self.field_counts = self.own_streams = False
        for doubt, row in TABLE.items():
            if row.until is Until.FOREVER:
                self._in_force[doubt] = _InForce(-math.inf)
        self._keep_up()

    # --- Events ---

    def note(
        self, doubt: Doubt, now: float, *, fenced: bool = False, bound: int | None = None
    ) -> None:
        """`doubt` arises at the moment `now`, or again: its end is not known then.

        `bound`: it ends at this offset at the latest. `fenced`: a cut-over holds the source's
        writers off.
        """
        row = TABLE[doubt]
        if row.until in (Until.AT_ONCE, Until.FOREVER) or (fenced and not self._counts(row)):
            return
        if Again.EVERY_KEY in row.again and (doubt is Doubt.LAPSED or doubt not in self._in_force):
            self._times += 1
        self._in_force[doubt] = _InForce(math.inf if doubt is Doubt.EXPOSED else now, bound=bound)
        self._keep_up()

    def expose(self, exposed: bool, now: float) -> None:
        """Whether TTLs on the target may be due, at the moment `now`."""
        entry = self._in_force.get(Doubt.EXPOSED)
        if exposed and (entry is None or entry.stopped_by(now)):
            self.note(Doubt.EXPOSED, now)
        elif not exposed and entry is not None and not entry.stopped_by(now):
            # From `now` on they are not.
            entry.since = now

    @property
    def unanswered(self) -> list[float]:
        """The moments since which the source's offset is to be known: `note_source_offset` is to be
        called with each, once there is an answer."""
        found = {
            entry.since
            for doubt, entry in self._in_force.items()
            if entry.until is None and entry.stopped_by(math.inf) and _has_offset(doubt)
        }
        return sorted(found)

    def note_source_offset(self, moment: float, offset: int) -> None:
        """The source's offset, by its answer to a question that was put at `moment` or later."""
        for doubt, entry in self._in_force.items():
            if _has_offset(doubt) and entry.until is None and entry.stopped_by(moment):
                entry.until = offset if entry.bound is None else min(offset, entry.bound)

    def reached(self, offset: int, *, near: bool) -> frozenset[Doubt]:
        """The target has everything up to `offset`, and is `near` the source or not. Returns which
        doubts are over by that."""
        over = {
            doubt
            for doubt, entry in self._in_force.items()
            if entry.until is not None
            and offset >= entry.until
            and (near or TABLE[doubt].until is Until.PASSED)
        }
        for doubt in over:
            del self._in_force[doubt]
        if over:
            self._keep_up()
        return frozenset(over)

    def settle(self, doubt: Doubt) -> None:
        """The follower has found out what was in doubt."""
        assert TABLE[doubt].until is Until.SETTLED
        self._in_force.pop(doubt, None)
        self._keep_up()

    # --- Verdicts ---

    def __contains__(self, doubt: Doubt) -> bool:
        """Whether `doubt` holds."""
        return doubt in self._in_force and bool(TABLE[doubt].again & self._possible)

    @property
    def again(self) -> Again:
        """What is to be read again of the batches that come."""
        found = Again.NOTHING
        for doubt in self._in_force:
            found |= TABLE[doubt].again
        return found & self._possible

    @property
    def catching_up(self) -> bool:
        """Whether something holds that leads back to CATCH_UP, and ends before it is left."""
        return any(TABLE[doubt].leads_back for doubt in self._in_force)

    def words(self, now: float) -> str:
        """Why a cut-over cannot begin, by what leads back to CATCH_UP; a sentence's part."""
        for doubt, entry in self._in_force.items():
            row = TABLE[doubt]
            if row.leads_back and row.words and now - entry.since < _SHOWN_SECONDS:
                return row.words
        return CATCHING_UP

    def look(self) -> Look:
        """What is in force while a batch is looked at, to be compared with what has arisen by the
        time when it is on the target (`missed`, `counted_late`)."""
        return Look(self.every_key, self.field_counts, self._times)

    def missed(self, look: Look, *, unseen: bool = False) -> bool:
        """Whether every key is to be read again that a batch may have changed which is on the
        target now, though `look` did not say so, or before a store of the batch could expire.

        `unseen`: its answer was not seen (`Doubt.UNSEEN`).
        """
        return unseen or self._times != look.times

    def counted_late(self, age: float | None, look: Look | None) -> bool:
        """Whether hashes are to be read again in which a batch that is on the target now has
        counted fields up (`Doubt.COUNTED_LATE`).

        `age`: seconds since its first byte was received; None: long ago. `look`: what was in force
        when it was looked at; None: it was applied without a look at such commands.
        """
        if not self.field_ttls or (look is not None and look.field_counts):
            return False
        return age is None or age > _COUNTED_SECONDS

    # --- Inside ---

    def _counts(self, row: Row) -> bool:
        """Whether it counts behind the fence."""
        if not row.again & self._possible:
            return False
        return row.fenced is Fenced.COUNTS or (row.fenced is Fenced.READABLE and self._readable)

    def _keep_up(self) -> None:
        again = self.again
        self.unsettled = Again.APPLIED in again
        self.every_key = Again.EVERY_KEY in again
        self.ttls = Again.TTLS in again
        self.field_ttls = Again.FIELD_TTLS in again
        self.field_counts = Again.FIELD_COUNTS in again
        self.own_streams = Again.OWN_STREAMS in again
        self.plain = not again & (Again.EVERY_KEY | Again.TTLS | Again.APPLIED)
        self.kinds = CMD_UNKNOWN
        if self.field_ttls:
            self.kinds |= CMD_MEMBER_TTL
        if self.field_counts:
            self.kinds |= CMD_MEMBER_COUNT


def _has_offset(doubt: Doubt) -> bool:
    return TABLE[doubt].until in (Until.PASSED, Until.CAUGHT_UP)
