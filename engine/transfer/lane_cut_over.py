"""What each step of a cut-over does on one lane, and how it is undone there.

The order of the steps, and what becomes of the other lanes when one fails, is the barrier's
(`transfer.cut_over`). A lane takes part from `begin` to `end`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from engine import logs
from engine.errors import TransferFailed, TransferStopped, UsageError
from engine.model.cluster_topology import Topology
from engine.model.db_key import DbKey
from engine.model.progress import Phase
from engine.model.replication import Replication
from engine.sources.replica import ReplicaSource
from engine.targets.applier import Applier, PositionMoved
from engine.transfer.async_helpers import beside, cancelled, together
from engine.transfer.control_connections import Endpoints
from engine.transfer.cut_over_barrier import Refused
from engine.transfer.cut_over_check import CutOverCheckResult, offering
from engine.transfer.cut_over_comparison import CutOverComparison, Origin
from engine.transfer.fence import Fence
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.follow import Follower
from engine.transfer.formatting import size_words
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.promotion import Promotion
from engine.transfer.role_monitor import RoleMonitor, unasked
from engine.transfer.shared_source import SharedSource
from engine.transfer.source_primary import Head, Heads
from engine.transfer.target_monitor import TargetMonitor
from engine.transfer.target_replicas import TargetReplicas
from engine.transfer.ttl_guard import TtlGuard

_log = logs.logger(__name__)
# For so long behind the fence the target is asked only what a step needs.
_TARGET_RESTS_SECONDS = 2.0
_Act = Callable[["LaneCutOver"], Awaitable[None]]


@dataclass(slots=True)
class Followed:
    """What is to be cut over: a follower, and the task that runs it."""

    follower: Follower
    pump: asyncio.Task[None]


def _notices(act: _Act) -> _Act:
    """The same, which looks whose the target is where it is not as it was left."""

    async def noticing(lane: LaneCutOver) -> None:
        try:
            await act(lane)
        except PositionMoved as moved:
            await lane.upkeep.note_lost(moved.found)
            raise

    return noticing


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """That the source has failed over is a reason against the cut-over, and breaks nothing: also
    where the link to it has gone by that, which is the lane's to deal with."""
    try:
        yield
    except TransferFailed as exc:
        raise Refused(exc.in_one_line) from exc


class LaneCutOver:
    """One lane's part in a cut-over."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        ttl_guard: TtlGuard,
        promotion: Promotion,
        check: CutOverComparison,
        source: ReplicaSource,
        target_watch: TargetMonitor,
        roles: RoleMonitor,
        upkeep: FenceUpkeep,
        shared: SharedSource,
        applier: Callable[[], Awaitable[Applier]],
        slots_objection: Callable[[Topology | None], Awaitable[str]],
    ) -> None:
        """`applier` gives the applier of a target on which a snapshot has ended; `slots_objection`
        takes what the source's shard told of its cluster, if it cannot be asked now."""
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._ttl_guard = ttl_guard
        self._promotion = promotion
        self._check = check
        self._source = source
        self._target_watch = target_watch
        self._roles = roles
        self.upkeep = upkeep
        """What keeps the fence and the checkpoint in step."""
        # The fence, and where it stands.
        self._shared = shared
        self._applier = applier
        self._slots_objection = slots_objection
        self._replicas = TargetReplicas(ends)
        # Of the cut-over that goes on: what is followed, what the fenced server told behind the
        # write block, the keys that are due too soon for their TTLs to be restored before the
        # fence, and the process of the target that is drained, compared and promoted: one and the
        # same.
        self._followed: Followed | None = None
        self._blocked: Replication | None = None
        self._near: list[DbKey] = []
        self._process = ""
        self._began = 0.0
        self._lag = 0
        self._reason = ""
        # TTLs were restored on the target, and are to be extended again if it comes to nothing.
        self._restored = False
        self._timing = contextlib.ExitStack()
        self.fence_seconds: float | None = None
        """From the fence to the open target."""

    # --- Its place in the cut-over ---

    @property
    def leads(self) -> bool:
        """Whether it does what is done at a source that other lanes read from as well."""
        return self._ends.route.leads

    @property
    def _acts(self) -> bool:
        """Whether it does so in the cut-over that goes on."""
        return self._shared.leader is self

    @property
    def _fence(self) -> Fence:
        assert self._shared.fence is not None
        return self._shared.fence

    @property
    def _replication(self) -> Replication:
        assert self._shared.replication is not None
        return self._shared.replication

    @property
    def title(self) -> str:
        """What people read for the lane; empty for a migration's only one."""
        return self._context.title

    @property
    def promoted(self) -> bool:
        """Whether the target is open."""
        return self._checkpoint.mark.opened

    @property
    def decided(self) -> bool:
        """Whether the target is open, or may be."""
        return self.promoted or self._promotion.in_doubt

    @property
    def stopped(self) -> bool:
        """Whether nothing is followed any more: what fails then is not refused, but broken."""
        return self._followed is None or self._followed.pump.done()

    async def begin(self, followed: object) -> None:
        """A cut-over begins; of what is `followed` (`Followed`), if anything is."""
        assert followed is None or isinstance(followed, Followed)
        self._followed = followed
        self._shared.take_part(self)
        self._blocked = None
        self._near, self._restored = [], False
        if followed is not None:
            self._process = followed.follower.applier.identity
        extra = {} if followed is None else {"lag_bytes": followed.follower.lag_bytes}
        _log.info("Cut-over: begin", extra=extra)
        self._context.throttle.lift()
        await self.upkeep.begin()

    async def end(self) -> None:
        """It has come to its end, whatever that is."""
        self._timing.close()
        self._context.throttle.restore()
        fence = self._shared.fence if self._acts else None
        try:
            await self._check.close()
            if fence is not None:
                self._shared.fence = None
                await fence.remove()
        finally:
            self._shared.leave(self)
            await self.upkeep.end()

    @property
    def again(self) -> bool:
        """Whether the cut-over that was refused is worth another try by itself."""
        return self._check.again

    def refuse(self, reason: str) -> None:
        """It was refused: shown as a phase to whatever waits for an answer."""
        context = self._context
        if context.phase is Phase.CUT_OVER:
            context.reason = reason
            context.trying_again = self._check.again
            context.lead_back(Phase.FOLLOW, reason)
            return
        before = context.phase
        context.trying_again = False
        context.enter(Phase.CUT_OVER)
        context.lead_back(before, reason)

    def break_off(self, reason: str) -> None:
        """What the cut-over needs was lost: whatever waits is told, and the next order is a new
        one."""
        if self._context.phase is not Phase.CUT_OVER:
            self.refuse(reason)
        else:
            self.led_back(reason)

    def led_back(self, reason: str) -> None:
        """It is known by now that the target is not open, because of `reason`: a cut-over that went
        on until then was refused."""
        context = self._context
        if context.phase is Phase.CUT_OVER:
            context.trying_again = context.can_complete = False
            context.lead_back(Phase.FOLLOW, reason)

    def note_cut_over(self, step: str, waited: float) -> None:
        """The target is open, and all is done. The other lanes have `waited` so many seconds for
        this one, most of it at the step called `step`; empty: for another one, or none."""
        context = self._context
        self._timing.close()
        context.reason = self._reason
        last = ""
        if step:
            last = f"; this shard was last: the others waited {waited:.3f} s for it ({step})"
        context.on_event(
            f"cut over at offset {self._follower.position.offset:,}, {self.fence_seconds:.3f} s "
            f"after the fence was put up{last}"
        )

    def note_in_sync(self) -> None:
        """The same where there was no fence."""
        compared = self._check.before().reason
        offset = self._follower.position.offset
        self._context.reason = f"in sync at offset {offset:,}; {compared}"

    def note_snapshot(self) -> None:
        """The same where nothing was followed."""
        self._context.reason = "the snapshot is on the target; later writes are not"

    # --- Before the fence ---

    async def pass_gates(self) -> None:
        """Wait for what closes the gate and passes by itself."""
        _go_on(await self._check.passing(self._pump))

    async def find_fence(self) -> None:
        """Find the server where writes are to be blocked; one fence at a time stands there."""
        if not self._acts:
            return
        shared = self._shared
        try:
            head = await self._find_head()
            # Whatever takes it away dials that server, and not what the source's address leads to.
            address = head.address or self._checkpoint.mark.followed
            at = self._ends.beside_source(address) if address else head.endpoint
        except (TransferFailed, UsageError) as exc:
            raise Refused(exc.in_one_line) from exc
        if refusal := await self.upkeep.in_the_way(address):
            raise Refused(refusal)
        shared.head, shared.address, shared.at = head, address, at
        shared.fence = self.upkeep.fence_at(at, head.info, address)

    async def compare_before(self) -> None:
        """Compare both ends while no client has to wait for it."""
        head = self._shared.head
        assert head is not None
        origin = Origin(head.primary, self._fence.readable, self._shared.unasked, head.is_above)
        _go_on(await self._check.prepare(self._follower, self._pump, origin))

    async def compare_in_sync(self) -> None:
        """The same where no writer is paused."""
        _go_on(await self._check.prepare(self._follower, self._pump, await self._origin()))

    async def prepare(self) -> None:
        """Both ends, beside each other. The target is looked at last: its TTLs tell sooner of one
        that stands still."""
        await together([self._prepare_fence(), self._prepare_target()])

    async def _prepare_target(self) -> None:
        await self.restore_ttls()
        await self._look_at_target()

    async def _prepare_fence(self) -> None:
        """Dial the fence's server, and ask what is to be put back there."""
        at = self._shared.at
        if not self._acts or at is None:
            return
        extra = {"end": "source", "endpoint": at.address}
        with logs.timed(_log, "Cut-over: prepare the fence", extra=extra):
            await self._fence.prepare()

    async def restore_ttls(self) -> None:
        """Restore the TTLs that were extended on the target, but for those that end too soon."""
        self._restored = True
        self._near = await self._ttl_guard.restore(self._follower, self._pump)

    async def extend_ttls(self) -> None:
        """Undo `restore_ttls`."""
        if self._restored:
            self._restored = False
            self._ttl_guard.extend_again()

    async def extend_ttls_followed(self) -> None:
        """The same where no fence stands: of a target that is still followed."""
        if not self.stopped:
            await self.extend_ttls()

    async def _look_at_target(self) -> None:
        """Over the connection that is needed behind the fence: there is no time to dial then."""
        await self._target_watch.find_answering()

    # --- Behind it ---

    async def record_fence(self) -> None:
        """The state has what the fence changes."""
        if not self._acts:
            return
        fence = self._fence
        await self._checkpoint.save(
            fenced=True,
            sealed=fence.before,
            fenced_at=self._shared.address,
            closed_before=fence.closed_before,
            held=fence.script_pause,
            lets_scripts=fence.lets_scripts,
        )

    async def approach(self) -> None:
        """What is done right before the writers are paused."""
        context, fence = self._context, self._fence
        if self._acts:
            await fence.approach()
        self._target_watch.rest(_TARGET_RESTS_SECONDS)
        self._began = asyncio.get_running_loop().time()
        if self._acts:
            self._shared.fence_ends = self._began + fence.seconds
        self._process = self._follower.applier.identity
        context.can_complete = context.trying_again = False
        context.lets_scripts = fence.lets_scripts
        context.enter(Phase.CUT_OVER)
        self._timing.enter_context(context.step("cut-over"))

    async def remove_fence(self) -> None:
        """Take the fence away, and the write block with it.

        TTLs are extended before that, on all lanes: writers may extend some as soon as they are let
        on.
        """
        self._timing.close()
        self._lag = self._follower.lag_bytes
        self._follower.hurry(False)
        for lane in self._shared.lanes if self._acts else [self]:
            await lane.extend_ttls()
        if self._acts:
            await self.upkeep.call_off(self._fence)

    @property
    def fenced(self) -> bool:
        """Whether there is a fence, which may stand or have been taken away."""
        return self._shared.fence is not None

    @property
    def fence_ends(self) -> float | None:
        """When the fence's time is over, by the loop's clock; None: it was not put up yet."""
        return self._shared.fence_ends

    def late(self, doing: str) -> str:
        """Why it is refused when that time was over while this was done."""
        lag, seconds = size_words(self._lag), self._fence.seconds
        return f"the deadline of {seconds:g} s passed while {doing}, {lag} behind"

    def late_comparing(self) -> str:
        """The same of the comparison, without which there would have been time."""
        return offering(self._context, self.late("both ends were compared"))

    async def pause(self) -> None:
        """No more writes; the last byte that counts."""
        if not self._acts:
            return
        with self.upkeep.step("pause writers"):
            found = self._shared.replication = await self._fence.close()
            with _refusing():
                self.upkeep.of_history(found, self._source.replid)
        self.upkeep.note_before(self._fence)

    @_notices
    async def drain(self) -> None:
        """The last byte is on the target."""
        follower, final = self._follower, self._replication.offset
        # Each lane has a link of its own, and so a history of its own.
        with _refusing():
            self.upkeep.of_history(self._replication, self._source.replid)
        follower.hurry(True)
        what = "Cut-over: apply the rest of the stream"
        with logs.timed(_log, what, extra={"end": "target", "offset": final}):
            await beside(follower.reach(final), self._pump)

    @_notices
    async def resync(self) -> None:
        """Keys that the stream could not bring are read again."""
        with logs.timed(_log, "Cut-over: read dirty keys again"):
            await beside(self._follower.settle(), self._pump)

    @_notices
    async def compare(self) -> None:
        """Both ends agree. Meanwhile the last TTLs are restored: a key whose TTL seems to differ is
        looked at again."""
        follower, fence, head = self._follower, self._fence, self._shared.head
        assert head is not None
        settling = asyncio.ensure_future(self._ttl_guard.settle(self._near))
        looking = asyncio.gather(self._target_watch.look(), self._look_for_another_primary())
        try:
            with logs.timed(_log, "Cut-over: compare both ends"):
                result = await self._check.run(
                    follower,
                    self._pump,
                    fence.readable or head.is_above,
                    lambda: self._settled(settling),
                    fence,
                )
                await settling
                await looking
        finally:
            await cancelled(settling)
            await cancelled(looking)
        # What was read again for the gate.
        await self._ttl_guard.settle([])
        stats = self._context.stats
        if evicted := stats.evictions.words:
            raise Refused(evicted)
        _go_on(result)
        if stats.not_carried_total:
            raise Refused(stats.not_carried_words)
        self._reason = result.reason

    async def _look_for_another_primary(self) -> None:
        if self._acts:
            with _refusing():
                await self._roles.no_second_primary(self._replication)

    async def _settled(self, settling: asyncio.Future[None]) -> int:
        """The last TTLs are restored, also those of keys that were read again since. Returns how
        many keys have ended by it."""
        await asyncio.shield(settling)
        await self._ttl_guard.settle([])
        return self._ttl_guard.ended

    async def wait_for_replicas_before(self) -> None:
        """As many replicas of the target as are asked for keep up with it."""
        limit = self._ends.settings.cut_over_timeout
        await self._replicas.wait(self._checkpoint.mark.token, limit)

    async def wait_for_replicas(self) -> None:
        """They have everything."""
        ends, now = self.fence_ends, asyncio.get_running_loop().time()
        limit = self._ends.settings.cut_over_timeout if ends is None else ends - now
        await self._replicas.wait(self._checkpoint.mark.token, limit)

    async def block_writes(self) -> None:
        """Writes are refused, however long what comes now may take."""
        if not self._acts:
            return
        with self.upkeep.step("block writes", write_block=bool(self._fence.before)):
            self._blocked = await self._fence.block_writes()

    async def look_at_role(self) -> None:
        """The source has not failed over meanwhile, and its shard has the slots that it had."""
        if not self._acts:
            return
        if why := await self._slots_objection(self._fence.topology):
            raise Refused(why)
        # Other lanes may have taken their time since it was reported.
        replication = None if self._context.peers.several else self._blocked
        with _refusing():
            await self.upkeep.not_moved(self._fence, replication)

    # --- What decides, and what follows ---

    @_notices
    async def promote(self) -> None:
        """Promote the target, if it still is what was compared. Once it was asked there is no
        deadline any more: it is open or not as the target says. But for a fence that ends by
        itself: then it has to say so in time."""
        await self._stop()
        await self._promotion.promote(
            self._follower.applier,
            self._process,
            by=self._by,
            hand_over=True,
            provisional=self._context.peers.several,
        )

    async def commit(self) -> None:
        """All targets have been promoted: there is no way back any more."""
        await self._promotion.commit(by=self._by, hand_over=True)
        if self._acts:
            self._fence.on_promotion()
        self.fence_seconds = asyncio.get_running_loop().time() - self._began

    @property
    def _by(self) -> float | None:
        """When the promotion has to be through, by the loop's clock; None: the fence lasts."""
        return None if self._fence.lasts else self.fence_ends

    async def let_go(self) -> None:
        """Clients may learn of it, behind the name by which they find the server: what waits at the
        source is let go."""
        # What the source sends from here on is not replicated: keys that expire there.
        await self._source.close()
        if not self._acts:
            await self._tidy_up()
            return
        # The applications' name for the server is moved, before they dial again.
        await self.upkeep.switch_once()
        # The target is tidied up meanwhile, whatever the source says.
        let_go = asyncio.ensure_future(self.upkeep.let_clients_go(self._fence))
        try:
            await self._tidy_up()
        finally:
            await let_go
        await self.upkeep.finish()

    async def _tidy_up(self) -> None:
        await self._promotion.tidy_up()
        # The mark is gone: the next engine has to know, however long clients may take.
        await self._checkpoint.save()

    async def commit_unfenced(self) -> None:
        """The same where there was no fence."""
        await self._promotion.commit()

    async def tidy_up(self) -> None:
        """Where there was no fence: nothing of ours stays on the target."""
        await self._promotion.tidy_up()

    # --- Without a fence ---

    async def settle(self) -> None:
        """`--until in-sync`: the target is what the source was a moment ago."""
        await beside(self._follower.settle(), self._pump)
        await beside(self._follower.confirm(), self._pump)

    @property
    def settle_ends(self) -> float:
        """When that has to be through, by the loop's clock."""
        return asyncio.get_running_loop().time() + self._ends.settings.cut_over_timeout

    def late_settling(self) -> str:
        """Why it is refused when that time was over."""
        limit = self._ends.settings.cut_over_timeout
        return f"keys were still being read again from the source after {limit:g} s"

    async def look_at_slots(self) -> None:
        """The source's shard has the slots that it was planned with: else keys of others are
        missing, or its own are old."""
        if why := await self._slots_objection(None):
            if self.stopped:
                # Its snapshot will not be another one.
                raise TransferStopped(f"slots have moved since the start: {why}")
            raise Refused(why)

    async def promote_in_sync(self) -> None:
        """Promote a target that is as near as that, and lacks nothing."""
        await self._stop()
        if self._context.stats.not_carried_total:
            raise TransferStopped(self._context.stats.not_carried_words)
        await self._look_at_evictions()
        await self._ttl_guard.settle(self._near)
        await self._promotion.promote(
            self._follower.applier, self._process, provisional=self._context.peers.several
        )

    async def promote_snapshot(self) -> None:
        """`--until snapshot`: the same of a target that has the snapshot alone."""
        if self._context.stats.not_carried_total:
            raise TransferStopped(self._context.stats.not_carried_words)
        if lost := self._context.lost_words:
            raise TransferStopped(lost)
        await self._look_at_evictions()
        applier = await self._applier()
        await self._promotion.promote(
            applier, applier.identity, provisional=self._context.peers.several
        )

    async def _look_at_evictions(self) -> None:
        """Raises `TransferStopped` where the target has evicted keys."""
        await self._target_watch.look()
        if evicted := self._context.stats.evictions.words_in_one_go:
            raise TransferStopped(evicted)

    # --- Helpers ---

    @property
    def _follower(self) -> Follower:
        assert self._followed is not None
        return self._followed.follower

    @property
    def _pump(self) -> asyncio.Task[None]:
        assert self._followed is not None
        return self._followed.pump

    async def _stop(self) -> None:
        self._follower.stop()
        await self._pump

    async def _find_head(self) -> Head:
        """The server that takes the writes. Raises `TransferFailed`."""
        heads = Heads(self._ends)
        try:
            return await heads.find()
        except TransferFailed as exc:
            if self._ends.settings.fence == "pause":
                raise
            if not self._context.skip_verification:
                raise Refused(unasked(self._context, exc.message)) from exc
            # Writers are the operator's, wherever they write.
            self._context.on_event(
                "the last offset of the source's primary is not known, so the source's own offset "
                f"is used: what the primary has not sent it by then is not migrated: {exc.message}"
            )
            self._shared.unasked = exc.message
            return Head(self._ends.source, self._source.info, "", ())
        finally:
            await heads.close()

    async def _origin(self) -> Origin:
        """What is compared where no writer is paused."""
        heads = Heads(self._ends)
        try:
            return Origin((await heads.find()).primary)
        except TransferFailed as exc:
            if not self._context.skip_verification:
                raise Refused(unasked(self._context, exc.message)) from exc
            return Origin(unasked=exc.message)
        finally:
            await heads.close()


def _go_on(found: CutOverCheckResult | None) -> None:
    """Raises `Refused` where a gate is closed."""
    if found is not None and not found.ok:
        raise Refused(found.reason)
