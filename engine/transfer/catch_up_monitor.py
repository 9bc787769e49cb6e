"""Where following stands: behind what was written before (CATCH_UP), or with the source (FOLLOW).

Whatever makes the stream doubtful is noted here (`note`): it goes into the table (`trust`), from
which follows what is read again from the source, and until when; meanwhile the phase is CATCH_UP.
From that, from the lag and from what is still to be done follows whether a cut-over could begin,
and why not.
"""

from __future__ import annotations

import asyncio
from typing import Any

from engine.model.doubt import Doubt
from engine.model.modules import GRAPH_MODULE
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.sources.replica import ReplicaSource
from engine.transfer.cut_over_check import offering
from engine.transfer.drain_estimate import DrainEstimate
from engine.transfer.follow import Follower
from engine.transfer.formatting import above_words, seconds_words, size_words
from engine.transfer.full_proof import FullProof
from engine.transfer.key_resync import KeyResync
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.role_monitor import RoleMonitor
from engine.transfer.stream_trust import CATCHING_UP, TABLE, Servers, Trust
from engine.transfer.ttl_guard import TtlGuard

# Keys that may still have to be read again when the fence goes up: it is done behind it, if it can.
_RESYNCED_BEHIND_FENCE = 1000
# A shorter lag is `0.0 s` in words.
_AGE_WORTH_TELLING = 0.05
_FOLLOWING = (Phase.CATCH_UP, Phase.FOLLOW)
_ASKING_TARGET = (
    "the engine checks what the target holds: it was restarted, replaced or emptied, or the link "
    "to it was lost"
)
# Where the source cannot be read behind its fence, and keys are read again all the time.
_STOP_WRITERS = (
    "; this source cannot be read during its fence, so that none may be left before it. While "
    "scripts (EVAL) or other commands by which keys are read again go on, no cut-over can begin: "
    "stop those writers first (--fence hook, or none once they have stopped)"
)


class CatchUpMonitor:
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
        self.proof: FullProof | None = None
        """What compares every key, where that is wanted."""
        # Those of the follower that runs.
        self._trust: Trust | None = None
        self._resync: KeyResync
        # Bytes of the stream, and keys that are read again.
        self._bytes, self._keys = DrainEstimate(), DrainEstimate()
        # Whether the source was heard at the last look.
        self._heard = True

    def trust(self) -> Trust:
        """For the next follower: what may make the stream doubtful between these two servers."""
        info = self._source.info
        return Trust(
            Servers(
                relative_ttls=self._source.relative_ttls,
                field_ttls=self._source.field_ttls and not self._ttl_guard.importing,
                own_streams=GRAPH_MODULE in info.modules,
                readable=info.readable_behind(self._settings.fence),
            )
        )

    def attend(self, follower: Follower, resync: KeyResync) -> None:
        """`follower` is going to run."""
        self._trust, self._resync = follower.trust, resync
        self._bytes, self._keys = DrainEstimate(), DrainEstimate()
        self._heard = True

    def let_go(self) -> None:
        """No follower runs any more."""
        self._trust = None

    # --- What is noted ---

    def note(self, doubt: Doubt, bound: int | None = None) -> None:
        """A reason to distrust what the stream does on the target has arisen; it ends at the offset
        `bound` at the latest."""
        checkpoint, context, trust, row = self._checkpoint, self._context, self._trust, TABLE[doubt]
        if doubt is Doubt.RELINKED:
            checkpoint.note(partial_syncs=checkpoint.mark.partial_syncs + 1)
        if row.kept:
            checkpoint.note(released=True)
        if trust is None:
            return
        following = doubt is Doubt.BEGUN or context.phase in _FOLLOWING
        now = asyncio.get_running_loop().time()
        trust.note(doubt, now, fenced=not following, bound=bound)
        if row.ages:
            trust.expose(self._ttl_guard.exposed, now)
        if doubt is Doubt.BEGUN and self._ttl_guard.importing and checkpoint.mark.released:
            # An engine before this one has noted it, and was not done with it.
            trust.note(Doubt.LAPSED, now)
        if row.leads_back and following:
            self._catch_up()

    def _catch_up(self) -> None:
        self._context.reason = CATCHING_UP
        self._context.enter(Phase.CATCH_UP)

    # --- The looks ---

    def look(self, follower: Follower) -> None:
        """Where the follower stands, as phase, gate and reason."""
        context, trust = self._context, follower.trust
        entered = False
        if follower.applier.closed:
            # It may come back older, or a replica take its place that lacks the end: no batch of a
            # source that is not written to would find out.
            follower.ask_target()
        self._look_at_doubts(follower)
        if context.phase is Phase.FOLLOW and trust.catching_up:
            self._catch_up()
        elif context.phase is Phase.CATCH_UP and not trust.catching_up and self.near(follower):
            context.enter(Phase.FOLLOW, publish=False)
            entered = True
        self._report_source_link()
        self._roles.look()
        now = asyncio.get_running_loop().time()
        self._bytes.look(now, follower.position.offset, self._lag(follower))
        self._keys.look(now, self._resync.resynced_keys, self._resync.waiting)
        context.passing, context.only_uncomparable, context.advice = False, False, ""
        context.can_complete, context.reason = self._gates(follower)
        if entered:
            # Phase, gate and reason are published together.
            context.publish()

    def _look_at_doubts(self, follower: Follower) -> None:
        """Which of them are over by now."""
        trust, now = follower.trust, asyncio.get_running_loop().time()
        trust.expose(self._ttl_guard.exposed, now)
        for moment in trust.unanswered:
            # Asked of the source itself: what was written while nothing listened may not even have
            # begun to arrive.
            replication = self._source.replication_since(moment)
            if replication is None:
                self._source.ask_now()
            else:
                trust.note_source_offset(moment, replication.offset)
        over = trust.reached(follower.position.offset, near=self.near(follower))
        if any(TABLE[doubt].kept for doubt in over):
            self._checkpoint.note(released=False)

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

    def _report_source_link(self) -> None:
        trouble = self._source.trouble
        if bool(trouble) is not self._heard:
            return
        self._heard = not trouble
        # A link that is lost, and one that is made anew, are told of where that happens.
        if self._source.link == "silent":
            self._context.on_event(f"{trouble}: how far the target is behind is unknown")
        elif self._heard:
            self._context.on_event("the source answers again")

    def _gates(self, follower: Follower) -> tuple[bool, str]:
        """Whether a cut-over could begin now, and why not."""
        settings, stats = self._settings, self._context.stats
        most = settings.max_lag_bytes
        if trouble := self._source.trouble or self._context.trouble:
            self._context.passing = True
            return False, trouble
        if paused := self._context.throttle.paused:
            return False, paused
        if not follower.is_target_known:
            self._context.passing = True
            return False, _ASKING_TARGET
        if objection := self._roles.objection:
            return False, objection
        if (behind := self._roles.behind or 0) > most:
            self._context.passing = True
            return False, f"the source is behind its primary, {above_words(behind, most)}"
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
            trouble = self._ttl_guard.trouble
            return False, f"TTLs that end soon cannot be extended on the target: {trouble}"
        if self._ttl_guard.extending_again:
            self._context.passing = True
            return False, "TTLs that end soon are still being extended on the target"
        if self._context.phase is Phase.CATCH_UP:
            self._context.passing = True
            return False, follower.trust.words(asyncio.get_running_loop().time())
        if follower.trust.unsettled:
            self._context.passing = True
            return False, TABLE[Doubt.UNSETTLED].words
        if why := self._resync.elsewhere:
            self._context.passing = True
            return False, why
        readable = self._source.info.readable_behind(self._settings.fence)
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
        if few := self._context.few_replicas:
            self._context.passing = True
            return False, f"{few} (--durability)"
        if (
            not self._context.skip_verification
            and (uncomparable := self._context.uncomparable) != ""
        ):
            self._context.passing, self._context.only_uncomparable = (
                uncomparable is None,
                bool(uncomparable),
            )
            asking = "the engine checks whether both ends can be compared"
            return False, asking if uncomparable is None else offering(self._context, uncomparable)
        if self.proof is not None and not self._context.skip_verification:
            why, self._context.passing = self.proof.objection()
            if why:
                return False, offering(self._context, why)
        in_sync = f"in sync: lag {size_words(lag)}"
        return True, in_sync if age < _AGE_WORTH_TELLING else f"{in_sync}, {seconds_words(age)}"


def _longer(seconds: float, most: float) -> str:
    """How long what waits takes, where that is more than it may."""
    return f"about {seconds_words(seconds)} > {most:g} s"
