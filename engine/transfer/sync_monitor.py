"""Where following stands: behind what was written before (CATCH_UP), or with the source (FOLLOW).

What was written while nobody listened, or came late, is caught up with: until the target has all
that the source had sent by then, deadlines in the stream are not what they seem, and the follower
reads them from the source (`Follower.late`, `fields`, `suspect`). Whatever breaks the stream's
punctuality leads back to CATCH_UP. From where the follower stands follows whether a cut-over could
begin, and why not.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.sources.replica import ReplicaSource
from engine.transfer.checkpoint_writer import CheckpointWriter
from engine.transfer.cut_over_check import offering
from engine.transfer.drain_estimate import DrainEstimate
from engine.transfer.fence import readable_behind
from engine.transfer.follow import Follower
from engine.transfer.formatting import above_words, seconds_words, size_words
from engine.transfer.key_resync import KeyResync
from engine.transfer.migration_context import MigrationContext
from engine.transfer.role_monitor import RoleMonitor
from engine.transfer.ttl_guard import TtlGuard

# Keys that may still have to be read again when the fence goes up: it is done behind it, if it can.
_RESYNCED_BEHIND_FENCE = 1000
# For so long a link that stood still is the reason of a catch-up; it is told more often.
_STALL_SECONDS = 1.0
# A shorter lag is `0.0 s` in words.
_AGE_WORTH_TELLING = 0.05
_FOLLOWING = (Phase.CATCH_UP, Phase.FOLLOW)
_CATCHING_UP = "catching up with what was written before"
# Where the source cannot be read behind its fence, and keys are read again all the time.
_STOP_WRITERS = (
    "; this source cannot be read behind its fence, so that none may be left before it. Scripts "
    "(EVAL) or other commands by which keys are read again leave no moment for the cut-over while "
    "they go on: stop those writers first (--fence hook, or none once they have stopped)"
)


class SyncMonitor:
    """Looks at the follower that runs, and leads it back when the stream was late."""

    def __init__(
        self,
        source: ReplicaSource,
        ttl_guard: TtlGuard,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        settings: TransferSettings,
        roles: RoleMonitor,
    ) -> None:
        self._roles = roles
        self._source = source
        self._ttl_guard = ttl_guard
        self._checkpoint = checkpoint
        self._context = context
        self._settings = settings
        self._follower: Follower | None = None
        self._resync: KeyResync
        # What the source has sent up to here was written before we caught up; None: not yet.
        self._behind_until: int | None = None
        # By the loop's clock: when we began to catch up.
        self._caught_at = -math.inf
        # Bytes of the stream, and keys that are read again.
        self._bytes, self._keys = DrainEstimate(), DrainEstimate()
        # Whether the source was heard at the last look.
        self._heard = True
        # By the loop's clock: when the source's link stood still last, as far as we know.
        self._stalled_at = -math.inf

    def attend(self, follower: Follower, resync: KeyResync) -> None:
        """`follower` is going to run."""
        self._follower, self._resync = follower, resync
        self._bytes, self._keys = DrainEstimate(), DrainEstimate()
        self._heard = True

    def let_go(self) -> None:
        """No follower runs any more."""
        self._follower = None

    # --- The looks ---

    def look(self, follower: Follower) -> None:
        """Where the follower stands, as phase, gate and reason."""
        context, exposed = self._context, self._ttl_guard.exposed
        entered = False
        unread = follower.suspect or follower.late or follower.fields
        if (unread and context.phase is Phase.FOLLOW) or (exposed and not follower.suspect):
            self.catch_up(follower)
        if context.phase is Phase.CATCH_UP:
            if self._behind_until is None and exposed:
                # What is written by the time when it no longer is has to be passed.
                pass
            elif self._behind_until is None:
                # Asked of the source itself: what was written while nobody listened may not even
                # have begun to arrive.
                told = self._source.told_since(self._caught_at)
                if told is not None:
                    self._behind_until = told.offset
                else:
                    self._source.ask_now()
            elif follower.position.offset >= self._behind_until:
                # However much is being written: see `TtlGuard.exposed`.
                if follower.suspect and self._ttl_guard.importing:
                    self._checkpoint.note(released=False)
                follower.suspect = False
                if self.near(follower):
                    follower.late = follower.fields = False
                    context.enter(Phase.FOLLOW, tell=False)
                    entered = True
        self._tell_whether_heard()
        self._roles.look()
        now = asyncio.get_running_loop().time()
        self._bytes.look(now, follower.position.offset, self._lag(follower))
        self._keys.look(now, self._resync.resynced_keys, self._resync.waiting)
        context.passing, context.only_uncomparable, context.advice = False, False, ""
        context.can_complete, context.reason = self._gates(follower)
        if entered:
            # Phase, gate and reason are published together.
            context.tell()

    @property
    def calm(self) -> bool:
        """Whether nothing is awaited but the operator's word."""
        context = self._context
        return context.can_complete and context.phase is Phase.FOLLOW and not context.one_go

    def near(self, follower: Follower) -> bool:
        """Whether the target is as close behind as a cut-over wants it."""
        return self._lag(follower) <= self._settings.max_lag_bytes

    def figures(self, follower: Follower) -> dict[str, Any]:
        """Members of `Progress` about the source's link and the lag, which is unknown while the
        source is not heard."""
        source = self._source
        trouble = source.trouble
        heard, lag = not trouble, self._lag(follower)
        # Published together, though the gate is looked at less often.
        shut = {"can_complete": False, "uncomparable": False, "reason": trouble}
        return {
            **(shut if trouble and self._context.phase in _FOLLOWING else {}),
            "link": source.link,
            "source_heard_seconds": source.heard_seconds,
            "source_offset": source.sent_offset,
            "lag_bytes": lag if heard else None,
            "lag_seconds": source.lag(follower.position.offset)[1] if heard else None,
        }

    def _lag(self, follower: Follower) -> int:
        """Bytes that the source has sent, as far as it was heard, and the target has not."""
        return max(self._source.sent_offset - follower.position.offset, 0)

    def _tell_whether_heard(self) -> None:
        trouble = self._source.trouble
        if bool(trouble) is not self._heard:
            return
        self._heard = not trouble
        # A link that is lost, and one that is made anew, are told of where that happens.
        if self._source.link == "silent":
            self._context.on_event(f"{trouble}: how far the target is behind is not known")
        elif self._heard:
            self._context.on_event("the source is heard again")

    def _gates(self, follower: Follower) -> tuple[bool, str]:
        """Whether a cut-over could begin now, and why not."""
        settings, stats = self._settings, self._context.stats
        most = settings.max_lag_bytes
        if trouble := self._source.trouble or self._context.trouble:
            self._context.passing = True
            return False, trouble
        if objection := self._roles.objection:
            return False, objection
        lag = self._lag(follower)
        if lag > most:
            self._context.passing = True
            return False, f"lag {above_words(lag, most)}"
        age, longest = self._source.lag(follower.position.offset)[1], settings.max_lag_seconds
        if age > longest:
            self._context.passing = True
            return False, f"lag {size_words(lag)}, {seconds_words(age)} > {longest:g} s"
        if (takes := self._bytes.seconds or 0.0) > longest:
            self._context.passing = True
            return False, f"lag {size_words(lag)}, which takes {_longer(takes, longest)} to apply"
        if stats.not_carried_total:
            return False, self._context.stats.not_carried_words
        if lost := self._context.lost_words:
            return False, lost
        if evicted := stats.evictions.words:
            return False, evicted
        if self._ttl_guard.trouble:
            return False, f"near deadlines cannot be lifted: {self._ttl_guard.trouble}"
        if self._ttl_guard.extending_again:
            self._context.passing = True
            return False, "near deadlines are being lifted"
        if self._context.phase is Phase.CATCH_UP:
            self._context.passing = True
            if asyncio.get_running_loop().time() - self._stalled_at < _STALL_SECONDS:
                return False, "what the source sends comes late"
            return False, _CATCHING_UP
        if follower.in_doubt:
            self._context.passing = True
            return False, "looking through the last commands of the engine before this one"
        readable = readable_behind(self._source.info, self._settings)
        takes = self._keys.seconds or 0.0
        if self._resync.waiting > (_RESYNCED_BEHIND_FENCE if readable else 0) or takes > longest:
            self._context.passing = True
            self._context.advice = "" if readable else _STOP_WRITERS
            waiting = self._resync.waiting
            words = "1 key is" if waiting == 1 else f"{waiting:,} keys are"
            words += " being read again from the source"
            if takes > longest:
                words += f", which takes {_longer(takes, longest)}"
            return False, words
        if not self._context.skip_verification and (told := self._context.uncomparable) != "":
            self._context.passing, self._context.only_uncomparable = told is None, bool(told)
            asking = "it is being asked whether both ends can be compared"
            return False, asking if told is None else offering(self._context, told)
        in_sync = f"in sync: lag {size_words(lag)}"
        return True, in_sync if age < _AGE_WORTH_TELLING else f"{in_sync}, {seconds_words(age)}"

    # --- What leads back ---

    def catch_up(self, follower: Follower) -> None:
        """What comes now was written some time ago: deadlines in it are not what they seem."""
        has_fields = self._source.field_ttls
        self._behind_until = None
        self._caught_at = asyncio.get_running_loop().time()
        follower.late = self._source.relative_ttls
        follower.has_fields = follower.fields = has_fields and not self._ttl_guard.importing
        follower.suspect = follower.suspect or self._ttl_guard.doubtful
        self._context.reason = _CATCHING_UP
        self._context.enter(Phase.CATCH_UP)

    def relinked(self) -> None:
        """A lost link to the source was made anew."""
        self._checkpoint.note(partial_syncs=self._checkpoint.mark.partial_syncs + 1)
        if self._follower is not None:
            if self._context.phase in _FOLLOWING:
                self.catch_up(self._follower)
            self._follower.suspect = self._follower.suspect or self._ttl_guard.doubtful

    def read_late(self) -> None:
        """The engine got no CPU for a while. What did not fit into the window has waited at the
        source, and comes on time by the look of it: it is all late up to the source's offset."""
        follower = self._follower
        if follower is None:
            return
        if self._context.phase in _FOLLOWING:
            self.catch_up(follower)
        else:
            # Behind the fence; a cut-over that is refused looks at it, see `look`.
            follower.late = self._source.relative_ttls
            follower.fields = follower.has_fields

    def stalled(self) -> None:
        """The source's link may stand still."""
        self._stalled_at = asyncio.get_running_loop().time()
        fenced = self._context.phase is Phase.CUT_OVER
        if not fenced or readable_behind(self._source.info, self._settings):
            self.read_late()
        # Else the source answers nobody, and sends nothing, for as long as our own fence stands.

    def outage(self) -> None:
        """The target could not be reached for a while: what it holds has aged meanwhile."""
        if self._follower is None:
            return
        if self._context.phase in _FOLLOWING:
            self.catch_up(self._follower)
        else:
            self._follower.suspect = self._follower.suspect or self._ttl_guard.doubtful

    def woke(self) -> None:
        """The target was restarted, and let keys expire until we were back: what is named from here
        on may be gone there."""
        self._checkpoint.note(released=True)
        if self._follower is not None:
            self._follower.suspect = True
            if self._context.phase in _FOLLOWING:
                self.catch_up(self._follower)


def _longer(seconds: float, most: float) -> str:
    """How long what waits takes, where that is more than it may."""
    return f"about {seconds_words(seconds)} > {most:g} s"
