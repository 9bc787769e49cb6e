"""One source shard's way into the target: connect, snapshot, catch up, follow.

    CONNECT ─▶ SNAPSHOT ─▶ CATCH_UP ─▶ FOLLOW ─▶ (lent to the migration's cut-over)
       └── a position on the target ──▶┘

Source and target are handed in. A lane has its position, its checkpoint, what it trusts, and its
figures; it knows nothing of other lanes, and not when the operator wants the cut-over. A lane that
follows is offered to the migration (`Offer`), which borrows it for the time of a cut-over.

What is true at every moment, whatever breaks:

- Before the first write to the target the checkpoint holds this lane's token, and before
  anything is taken away or moved on there the target has this engine's claim, by which it refuses
  whatever an engine before this one has still under way (`transfer.target_claim`).
- While the target has no position under that token, it holds part of a snapshot at the most: the
  next attempt begins with a full sync, and empties a target that was empty before the first one.
- From the snapshot's end on the position stands on the target, and is exact (`targets/applier`).
- The target is opened by one transaction on the target itself, on condition of the final position
  (`transfer.promotion`). Its mark there outlasts a crash, and is removed when the checkpoint says
  that the target is open: an engine that comes back then has nothing to do but to tidy up, and
  never syncs into a target that is in use (`transfer.undecided_cut_over`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from engine._native import key_slot
from engine.errors import (
    EngineError,
    LinkError,
    ServerError,
    StateError,
    TransferFailed,
)
from engine.model.cluster_topology import Topology
from engine.model.credentials import Credentials
from engine.model.db_key import DbKey
from engine.model.doubt import Doubt
from engine.model.endpoint import Endpoint
from engine.model.lane_route import ONLY, Route
from engine.model.modules import GRAPH_MODULE
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.position import StreamPosition, TargetPosition
from engine.model.progress import Phase
from engine.model.retry import Attempts
from engine.model.server import ServerInfo
from engine.model.setting_conflicts import followed_by_rules_objection
from engine.model.slots import ALL_SLOTS
from engine.model.transient_errors import transient
from engine.sources.replica import ReplicaSource
from engine.targets.applier import Applier, PositionMoved
from engine.targets.applier_link import is_far
from engine.targets.base import ReadAgain
from engine.targets.cluster_applier import ClusterApplier
from engine.targets.rebuilt_values import remove_asides
from engine.targets.restore_writer import RestoreWriter
from engine.targets.slot_keys import has_keys
from engine.transfer.aside_values import AsideValues
from engine.transfer.async_helpers import all_cancelled, cancelled, together
from engine.transfer.catch_up_monitor import CatchUpMonitor
from engine.transfer.checkpoint_store import CheckpointStore
from engine.transfer.checks.modules import ask_module_types
from engine.transfer.cluster_monitor import ClusterMonitor
from engine.transfer.control_connections import Endpoints, Side
from engine.transfer.crashing_commands import CrashingCommands
from engine.transfer.cut_over_check import Comparison, CutOverCheckInSync
from engine.transfer.cut_over_comparison import CutOverComparison
from engine.transfer.cut_over_offer import Offer, TakenUpAnew
from engine.transfer.earlier_migration_on_target import TargetLeftovers, inherit
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.follow import Follower
from engine.transfer.formatting import place_words, stream_words
from engine.transfer.full_proof import FullProof
from engine.transfer.key_resync import KeyResync
from engine.transfer.lane_cut_over import Followed, LaneCutOver
from engine.transfer.lane_figures import LaneFigures
from engine.transfer.lane_not_carried import LaneLosses
from engine.transfer.migration_context import MigrationContext
from engine.transfer.migration_ownership import MigrationOwnership
from engine.transfer.newer_commands import lacks
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.primary_lateness import PrimaryLateness
from engine.transfer.primary_reads import PrimaryReads, place_of
from engine.transfer.promotion import Promotion
from engine.transfer.role_monitor import RoleMonitor
from engine.transfer.sentinel_monitor import SentinelMonitor
from engine.transfer.server_protection import ServerProtection
from engine.transfer.slot_reread import SlotReread
from engine.transfer.snapshot import Snapshot
from engine.transfer.source_primary import Heads
from engine.transfer.source_rdb_compression import SourceTuning
from engine.transfer.source_replica_monitor import ReplicaMonitor
from engine.transfer.switch_hook import SwitchHook
from engine.transfer.target_monitor import TargetMonitor
from engine.transfer.target_position_monitor import PositionMonitor
from engine.transfer.ttl_guard import TtlGuard
from engine.transfer.undecided_cut_over import LaneOutcome
from engine.transfer.unfaithful_commands import UnfaithfulCommands
from engine.transfer.which_have_ttls import TargetTtls
from engine.wire.bulk_limit import ask_bulk_limit
from engine.wire.psync import FullSync, PartialSync

# How often progress is told, and the operator's word looked for, in seconds.
_TICK_SECONDS = 0.5
# How long a connection to the target is kept to learn what it has of all that was sent.
_LEAVE_SECONDS = 1.0
_LOOK_SECONDS = 0.05
# The same while all is well: a look costs as much as a hundred commands, and an operator's word
# ends the wait.
_CALM_LOOK_SECONDS = 0.25
# Lanes that share a process share these looks, up to so many.
_CALM_LANES_MOST = 4
# From one question to the next how long a value the target takes, while keys are refused.
_LIMIT_SECONDS = 2.0
# What either end says when it is there, and not now.
_NOT_NOW = transient("psync") | transient("write")


class Lane:
    """Brings what one source has into its target while it is written to."""

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        context: MigrationContext,
        *,
        checkpoints: CheckpointStore,
        gate: CutOverCheckInSync,
        comparison: Comparison | None = None,
        credentials: Credentials = Credentials(),  # noqa: B008
        route: Route = ONLY,
        clusters: Mapping[Side, ClusterMonitor] = {},
    ) -> None:
        """`route`: which of the source's keys it brings. Its name is the context's. `clusters`:
        what watches those of the ends that are shards of one."""
        self._context = context
        self._settings = context.settings
        self._source = ReplicaSource(source, context.settings, route)
        self._source.on_event = context.event_of("source")
        self._writer = RestoreWriter(target, context.settings)
        self._writer.on_event = context.event_of("target")
        self._crashing = CrashingCommands(self._writer.suspects)
        self._writer.on_trouble = context.trouble_of("the snapshot's target")
        ends = self._ends = Endpoints(
            source, target, context.settings, credentials, replace(route, lane=context.lane)
        )
        checkpoint = self._checkpoint = CheckpointWriter(
            OnlineCheckpoint(token=secrets.token_hex(8)),
            checkpoints,
            context,
            lambda: self._writer.info.identity if self._writer.opened else "",
        )
        checkpoint.take_repaired = self._take_repaired
        context.peers.join(lambda: checkpoint.mark)
        left_out = [key for key in context.peers.all_crashing if key_slot(key[1]) in route.slots]
        self._writer.suspects.on_change = self._note_crashing
        if left_out:
            self._writer.suspects.take_up(left_out)
        self._losses = LaneLosses(checkpoint, context, lambda: self._writer.info)
        self._ownership = MigrationOwnership(ends, checkpoint)
        position = PositionMonitor(context, lambda: self._follower, lambda: self._own.position)
        self._target_watch = TargetMonitor(target, context, self._to_be_written, position)
        self._asides = AsideValues(
            ends, self._writer, lambda: self._own, self._ownership, context.stats.lose
        )
        self._sentinels = SentinelMonitor(ends, context, self._moved)
        self._replicas = ReplicaMonitor(ends, context, self._moved)
        self._clusters = clusters
        for side, monitor in clusters.items():
            # Which replica of the source is read, if one is, its cluster does not say.
            by_replica = side == "source" and source.from_replica
            moved = _ignore if by_replica else self._moved
            own_slot = key_slot(route.tag.encode()) if side == "target" and route.tag else -1
            end = source if side == "source" else target
            monitor.attend(end, context, moved, own_slot)
        self._source_cluster = clusters.get("source")
        shared = self._shared_source = context.peers.source_of(source, ends.route)
        self._turns = context.peers.turns
        self._shared_target = context.peers.target_of(target, ends.route)
        self._shared_target.join(context.lane, lambda: checkpoint.mark)
        self._tuning = SourceTuning(ends, checkpoint, context, shared)
        self._ttl_guard = TtlGuard(
            ends,
            checkpoint,
            context,
            self._source,
            lambda: self._writer.info,
            lambda doubt: self._catch_up_monitor.note(doubt),
        )
        self._roles = RoleMonitor(ends, self._source, checkpoint, context)
        self._source.elsewhere = self._roles.goes_on_elsewhere
        self._catch_up_monitor = CatchUpMonitor(
            self._source, self._ttl_guard, checkpoint, context, context.settings, self._roles
        )
        self._source.on_doubt = self._catch_up_monitor.note
        self._snapshot = Snapshot(
            ends,
            checkpoint,
            context,
            self._source,
            self._writer,
            self._ownership,
            self._losses.leave_out,
            self._target_watch,
        )
        self._snapshot.on_records = self._ttl_guard.note_records
        self._promotion = Promotion(ends, checkpoint, context, lambda: self._writer.info)
        self._check = CutOverComparison(
            ends, checkpoint, context, gate, comparison, self._compare_on
        )
        self._losses.require = self._check.require
        self._proof: FullProof | None = None
        if comparison is not None and context.settings.verify == "full":
            self._proof = FullProof(
                comparison.apart(),
                context,
                lambda: context.total_keys or 0,
                self._primary,
                self._processes,
                # Of all lanes together, by their slots.
                -(-context.settings.verify_rate * len(ends.route.slots) // len(ALL_SLOTS)),
            )
        self._check.proof = self._catch_up_monitor.proof = self._proof
        self._upkeep = FenceUpkeep(
            ends,
            checkpoint,
            context,
            self._promotion,
            self._source,
            self._roles,
            SwitchHook(source, target, context.settings, context.on_switch, context.on_event),
            self._ownership.is_anothers,
            shared,
        )
        self.cut_over = LaneCutOver(
            ends,
            checkpoint,
            context,
            self._ttl_guard,
            self._promotion,
            self._check,
            self._source,
            self._target_watch,
            self._roles,
            self._upkeep,
            shared,
            self._ready_held,
            self._slots_objection,
        )
        """What each step of a cut-over does here."""
        self._outcome = LaneOutcome(
            ends,
            checkpoint,
            context,
            self._ownership,
            self._promotion,
            self._upkeep,
            self._writer,
            self._ttl_guard,
        )
        self._calm_seconds = _CALM_LOOK_SECONDS
        self.offer: Offer | None = None
        """While the lane could be cut over."""
        self.on_look: Callable[[], None] = lambda: None
        """Called when it was looked where the lane stands."""
        # What the target holds behind a snapshot.
        self._target_position: TargetPosition | None = None
        self._applier: Applier | None = None
        self._follower: Follower | None = None
        self._resync: KeyResync | None = None
        # A comparison has found keys that differed.
        self._differed = False
        # Keys that the target refused to an engine before us are to be read once more.
        self._ask_again = False
        # Names of dirty keys on the target, behind a snapshot.
        self._dirty_names: Any = None
        # When the target is asked again how long a value it takes.
        self._limit_at = 0.0
        # The target has, or had, a position of this migration.
        self._has_position = False
        self.audit = SlotReread(ends, checkpoint, context)
        """The slots of which every key is to be read again."""
        self._figures = LaneFigures(
            checkpoint,
            context,
            self._source,
            self._writer,
            self._target_watch,
            self._catch_up_monitor,
        )
        self._figures.proof = self._proof
        self._source_protection = ServerProtection("source", source, context)
        self._target_protection = ServerProtection("target", target, context)
        context.throttle.of_slots(len(route.slots), len(ALL_SLOTS))
        context.source_type = "replica"
        context.figures = self._figures

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the target again and again meanwhile, and at what tells which servers the ends
        are."""
        async with (
            self._target_watch.watching(),
            self._sentinels.watching(),
            self._replicas.watching(),
            self._source_protection.watching(),
            self._target_protection.watching(),
        ):
            yield

    def beside(self, lanes: int) -> None:
        """So many lanes share the process, this one among them."""
        self._calm_seconds = _CALM_LOOK_SECONDS * min(lanes, _CALM_LANES_MOST)
        self._source.lanes = lanes
        self._writer.beside(lanes)

    def _note_crashing(self, keys: Collection[DbKey]) -> None:
        """At these keys the target's process has ended."""
        self._context.peers.crashing[self._context.lane] = tuple(keys)

    async def _primary(self) -> Endpoint | None:
        """Which server takes the writes, where the source is a replica; None: the source itself.
        Raises `TransferFailed` where that is not known."""
        if not place_of(self._source):
            return None
        heads = Heads(self._ends)
        try:
            return (await heads.find()).primary
        finally:
            await heads.close()

    def _processes(self) -> tuple[str, ...]:
        """What is followed, and what is written to: other ones behind a restart or a failover."""
        source, applier = self._source, self._applier
        process = "" if applier is None else applier.identity.partition(":")[0]
        return source.replid, source.info.run_id, place_of(source), process

    async def _slots_objection(self, told: Topology | None) -> str:
        """Why the slots of the source's shard are not those that were planned; empty: they are.
        `told`: by its primary, which cannot be asked now."""
        if self._source_cluster is None:
            return ""
        shard = self._ends.source.cluster
        if told is not None and shard is not None:
            return self._source_cluster.objection_to(shard, told)
        return await self._source_cluster.objection()

    def _moved(self, side: Side, there: Endpoint) -> None:
        """What tells of this end's primary, its Sentinels or its cluster, names this one."""
        if side == "source":
            self._source.leave_for(there)
            return
        self._writer.leave_for(there)
        if self._applier is not None:
            self._applier.leave_for(there)

    async def connect(self) -> bool:
        """Both ends are there; what the target holds of us says where to begin. Whether nothing is
        left to do: the target is open. Raises `EngineError`."""
        with self._context.step("connect"):
            await self._connect()
            return self._mark.opened and await self._outcome.finished()

    async def run(self) -> None:
        """Run until the target is open. Raises `EngineError` with the reason of a failure."""
        context = self._context
        patience = context.patience(
            "the migration",
            ended="no progress",
            next_step="both ends are connected to again",
            fault="engine",
        )
        target_position: TargetPosition | None = None
        reached, before, learned = None, None, 0
        # Whether the target is to be asked for the position: another client may have moved it.
        ask = resumed = self._mark.begun
        has_turn = False
        # The stream that was followed until everything is read again.
        history = ""
        # What an engine before this one could not bring.
        context.lost |= dict(self._mark.lost)
        async for attempt in Attempts(patience):
            approaching: asyncio.Future[None] | None = None
            try:
                self._figures.source_lost = False
                # Before anything is written: the claim as well. Beside the dialling of the source,
                # where nothing comes between.
                beside = not ask and not self._settings.tune_source
                if not beside:
                    await self._roles.check_apart()
                if ask and self._mark.opened and await self._outcome.finished():
                    # By us, when the cut-over broke on another lane.
                    break
                if ask:
                    target_position, ask = await self._outcome.take(), False
                    self._upkeep.claimed()
                    reached = target_position.position
                    self._has_position = self._has_position or reached is not None
                    if await self._outcome.promoted(target_position):
                        break
                    self.cut_over.led_back(
                        self._outcome.not_promoted or "the target was not promoted"
                    )
                    if resumed and reached is not None and (why := self._copied_again()):
                        context.on_event(why)
                        target_position = reached = None
                    resumed = False
                position = target_position.position if target_position is not None else None
                if position is None and context.throttle.paused:
                    # The source would fork for a snapshot that nothing reads.
                    await context.unpaused()
                    patience.progress()
                # 1. The source goes on from there, or sends everything.
                if position is None and self._settings.tune_source:
                    await self._tuning.tune()
                doubtful = target_position.doubtful if target_position is not None else None
                if position is None:
                    if self._only_snapshot and self._source_cluster is not None:
                        await self._source_cluster.keep_still()
                    await self._turns.take(self._shared_source, context.trouble_of("a turn"))
                    has_turn = True
                if beside and not self._mark.begun:
                    approaching = asyncio.ensure_future(self._ownership.approach())
                sync = await self._open_source(position, doubtful, apart=not beside)
                if approaching is not None:
                    await approaching
                if isinstance(sync, PartialSync):
                    _check_history(target_position, sync)
                self._writer.leave_telemetry(GRAPH_MODULE in self._source.info.modules)
                patience.well()
                if isinstance(sync, FullSync):
                    # Whatever breaks from here on, what was there before is no place to go on from.
                    target_position = reached = None
                    if position is not None:
                        context.on_event(
                            f"the source does not have {stream_words(position)}: it answers with "
                            "a full sync"
                        )
                await self._begin(sync, position.replid if position is not None else history)
                if isinstance(sync, FullSync):
                    target_position = await self._full_sync(sync)
                    self._has_position, reached = True, target_position.position
                    has_turn = self._end_turn(has_turn)
                else:
                    assert target_position is not None
                    target_position = target_position.renamed(sync.replid)
                if self._only_snapshot:
                    self._target_position = target_position
                    if await self._offered():
                        break
                # 2. The stream, until the target is opened or something breaks.
                await self._follow(target_position)
                break
            except PositionMoved as exc:
                reached = self._reached(reached)
                await self._outcome.came_back()
                reason, ask, remedy = await self._ownership.judge(exc), True, ""
                if self._differed or (self._follower is not None and self._follower.differed):
                    await self._losses.compare_all(
                        "the target has another position than the one that the engine left there, "
                        "and may lack what was read again because it differed"
                    )
                found = self._ownership.claim.ours(exc.found)
                wants = stream_words(found.position if found is not None else None)
                if exc.written_over:
                    # What is there now does not tell what the target lacks.
                    target_position, ask, reached, wants = None, False, None, stream_words(None)
            except TakenUpAnew as exc:
                reason, ask, remedy = str(exc), True, ""
                reached = self._reached(reached)
                wants = stream_words(reached)
            except ReadAgain as exc:
                reason, remedy, target_position, reached = exc.reason, exc.remedy, None, None
                history = self._source.replid
                wants = stream_words(None)
            except (LinkError, ServerError) as exc:
                if self._mark.opened or not _passes(exc):
                    raise
                for monitor in self._clusters.values():
                    # It may be a failover.
                    monitor.look_now()
                reached = self._reached(reached)
                # Before the target was asked it is not known what it has.
                wants = "" if ask and reached is None else stream_words(reached)
                reason, ask, remedy = exc.message, self._mark.begun, exc.remedy
                self._figures.source_lost = isinstance(exc, LinkError) and exc.fault == "source"
            finally:
                has_turn = self._end_turn(has_turn)
                if approaching is not None:
                    await cancelled(approaching)
                    await self._ownership.leave()
                await self._let_go()
            if (reached is not None and reached != before) or self._writer.learned > learned:
                before, learned = reached or before, self._writer.learned
                patience.progress()
            attempt.failed(
                reason,
                remedy=remedy,
                event=f"{reason}: connecting again{wants and f', to ask the source for {wants}'}",
            )
            self._figures.restarts += 1

    def _end_turn(self, has_turn: bool) -> bool:
        """Let another source send its snapshot, if we had the turn; whether we have one then."""
        if has_turn:
            self._turns.give_back(self._shared_source)
        return False

    def _copied_again(self) -> str:
        """Why a run in one go that is resumed does not go on from the position on the target: what
        it was stopped for is not in the stream. Empty: it does."""
        if not self._context.one_go:
            return ""
        if self._context.stats.evictions.count:
            return "the target has evicted keys: everything is copied again"
        if self._settings.until == "snapshot":
            return "the snapshot is copied again, because some of it was not migrated"
        return ""

    @property
    def _only_snapshot(self) -> bool:
        """Whether nothing is followed behind the snapshot."""
        return self._context.one_go and self._settings.until == "snapshot"

    @property
    def held_before(self) -> bool | None:
        """Whether the target had keys of its own before; None: that is not known yet."""
        if not self._mark.begun:
            return None
        route = self._ends.route
        counted = route.shared_target and not route.to_cluster
        return self._mark.had_keys if counted else self._mark.held_before

    @property
    def mark(self) -> OnlineCheckpoint:
        """How far it has gone, as the checkpoint has it."""
        return self._mark

    @property
    def promoted(self) -> bool:
        """Whether the target is its users' by now."""
        return self._mark.opened

    @property
    def in_doubt(self) -> bool:
        """Whether it is not known if the target is open: it has not answered since."""
        return self._promotion.in_doubt

    @property
    def spooled_most(self) -> int:
        """Bytes that waited in the spool when there were most."""
        return self._source.spooled_most

    @property
    def left_out(self) -> list[str]:
        """What is no key and was not carried, in words."""
        return self._losses.left_out

    @property
    def context(self) -> MigrationContext:
        """Where it stands."""
        return self._context

    @property
    def _mark(self) -> OnlineCheckpoint:
        return self._checkpoint.mark

    @property
    def begun(self) -> bool:
        """Whether the target has something of this migration, so that it can be gone on with."""
        return self._mark.begun and (self._has_position or self._context.stats.arrived)

    @property
    def how_far(self) -> str:
        """For a migration that is aborted: what was in sync and what was not."""
        return self._figures.how_far

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """Let go of both ends; unless it can be resumed, remove what we left on the target.

        `forced`: the operator has aborted it, and may use the target from now on.
        """
        await self._let_go()
        if forced and not self._checkpoint.taken_up:
            # Ended before it began to look.
            self.take_up()
        await self._upkeep.take_away(at_once=True)
        with contextlib.suppress(EngineError):
            await self._tuning.untune()
        # What has not begun leaves no checkpoint behind: nothing would come back for it.
        begun = self._mark.begun
        over = self._mark.opened or self._ownership.replaced
        if not over and not (resumable and begun) and (begun or self._ttl_guard.importing):
            await self._outcome.take_back(forced)
        await self._source.close()
        await self._writer.close()

    async def abandon(self) -> None:
        """Nothing goes on with it: take away what an engine before us has left at both ends.

        Raises `LinkError`, `ServerError`, `AuthError` of a target that was open already, and
        `TransferStopped` where the source could not be told so.
        """
        if not self.taken_up:
            self.take_up()
        self._roles.take_up()
        try:
            await self._outcome.abandon()
        finally:
            await self.close(resumable=False, forced=True)

    async def end_promoted(self) -> bool:
        """As `LaneOutcome.end_promoted`."""
        if not self._checkpoint.taken_up:
            try:
                self.take_up()
            except EngineError as exc:
                self._outcome.report_left(exc)
                return False
        # Our own cut-over has got further than that, and was told.
        if self.cut_over.fence_seconds is not None:
            return False
        return await self._outcome.end_promoted()

    @property
    def taken_up(self) -> bool:
        """Whether `take_up` was called."""
        return self._checkpoint.taken_up

    def take_up(self) -> None:
        """Go on from the checkpoint of an engine before us, if there is one. Raises
        `StateError`."""
        self._ttl_guard.taken_up = self._checkpoint.take_up()

    async def save_last(self, errors: list[str]) -> None:
        """Write the last checkpoint; a failure joins `errors` if there is none yet."""
        if not self._mark.begun:
            return
        try:
            await self._checkpoint.save()
        except StateError as exc:
            if not errors:
                errors.append(exc.in_one_line)

    # --- Connecting ---

    async def _connect(self) -> None:
        if not self._checkpoint.taken_up:
            self.take_up()
        self._roles.take_up()
        self._writer.name = self._ownership.claim.client_name
        self._writer.own = self._own
        # How far the target is is not known yet: all is asked in one go.
        applier = self._new_applier(importing=False, far=True)
        try:
            await self._connect_with(applier)
        except BaseException:
            # Given up in the moment in which it was opened ahead: nothing else would close it.
            await applier.close()
            raise

    async def _connect_with(self, applier: Applier) -> None:
        context, begins = self._context, not self._mark.begun
        left = TargetLeftovers(self._ends)
        # Whether the target lets us do what will be needed. Beside the writer's own questions,
        # whose errors are those that count.
        ahead = asyncio.ensure_future(_answered(begins, applier, left))
        try:
            await context.insist(self._writer.open, "target")
            is_answered = await ahead
        finally:
            await cancelled(ahead)
        self._refuse_one_shard("target", self._writer.info)
        self._source.bulk_limit = self._writer.bulk_limit
        self._source.lacks = lacks(self._writer.info)
        self._ask_again = self._mark.begun
        if not self._mark.begun:
            self._checkpoint.note(
                held_before=await self._has_keys(),
                had_keys=self._shared_target.had_keys(self._writer.info.keys),
            )
        await self._tuning.untune()
        if self._mark.opened:
            return
        if self._mark.begun:
            # What was evicted since the checkpoint was written; before anything can be completed.
            await context.insist(self._target_watch.look, "target")
            await context.insist(self._remove_asides, "target")
        await self._upkeep.take_away()
        if begins:
            self._applier = applier
            if not is_answered:
                await together(
                    [context.insist(applier.open, "target"), context.insist(left.find, "target")]
                )
            await applier.close()
            inherit(applier.found, self._ownership.claim, self._ends, self._checkpoint)
            if not self._mark.taken_over and not self._ends.route.shared_target:
                left.recognise(self._checkpoint, context)

    async def _remove_asides(self) -> None:
        """Values that an engine before us has not finished."""
        async with self._ends.admin("target") as end:
            await remove_asides(end, self._own, self._ends.route.slots)

    async def _has_keys(self) -> bool:
        """Whether the target has keys of its own where this lane's go. What other lanes bring to
        the same slots counts as such: it is not emptied."""
        route, keys = self._ends.route, self._ends.keys
        if self._ends.whole:
            return self._writer.info.keys > 0 or route.shared_target
        found = False

        async def ask() -> None:
            nonlocal found
            async with self._ends.admin("target") as end:
                for entry in self._writer.info.keyspace:
                    await end.select(entry.db)
                    found = found or await has_keys(
                        end.pipeline, keys, entry.db, node=route.to_cluster
                    )

        await self._context.insist(ask, "target")
        return found

    async def _open_source(
        self, position: StreamPosition | None, doubtful: StreamPosition | None, *, apart: bool
    ) -> FullSync | PartialSync:
        """The source is asked for its stream once the target is prepared for it. `apart`: both ends
        were seen to be of two replications.

        Raises as `ReplicaSource.open` and `RoleMonitor.check_apart`; behind an error of the source
        its address may lead to the server that has succeeded it."""

        async def prepare() -> None:
            if not apart:
                await self._roles.check_apart()
            await self._ttl_guard.prepare(resumed=position is not None)

        self._replicas.goes_on(position)
        prepared = asyncio.ensure_future(prepare())
        try:
            return await self._source.open(position, doubtful, prepared)
        except (LinkError, ServerError) as exc:
            if position is not None and exc.fault == "source":
                await self._roles.goes_on_elsewhere(position)
            raise
        finally:
            await cancelled(prepared)

    def _refuse_one_shard(self, side: Side, info: ServerInfo) -> None:
        """Raises `TransferFailed` for a cluster's node where none was planned for: it may not have
        answered when the lanes were, and is one shard of several."""
        route = self._ends.route
        is_planned = route.from_cluster if side == "source" else route.to_cluster
        if info.mode == "cluster" and not is_planned:
            end = self._ends.source if side == "source" else self._ends.target
            raise TransferFailed(
                f"the {side} {end.address} is a node of a cluster, which the engine did not know "
                "when the migration began: only this node would be migrated",
                remedy="Start the migration anew while the node answers.",
                fault="user",
            )

    async def _begin(self, sync: FullSync | PartialSync, history: str) -> None:
        """What has to be there before the first byte is taken in. `history`: as
        `Snapshot.prepare`."""
        self._refuse_one_shard("source", self._source.info)
        if why := followed_by_rules_objection(self._settings, self._source.info.modules):
            raise TransferFailed(
                why, remedy="Use --source-type scan, or move everything.", fault="user"
            )
        self._count(copied=isinstance(sync, PartialSync))
        if isinstance(sync, PartialSync):
            # Known by the time at which it is followed, as behind a snapshot.
            self._check.ask_rights({"source": self._source.info, "target": self._writer.info})
            await self._checkpoint.save(partial_syncs=self._mark.partial_syncs + 1)
            return
        await self._snapshot.prepare(sync, history)

    def _count(self, *, copied: bool) -> None:
        """How many keys there are to be moved. How many of the source's rules take is known once
        the snapshot was `copied`."""
        stats = self._context.stats
        self._context.total_keys = (
            stats.keys + stats.skipped + stats.not_carried_total
            if copied and self._settings.rules
            else round(self._source.total_keys * self._ends.route.share)
        )

    # --- The snapshot ---

    async def _full_sync(self, sync: FullSync) -> TargetPosition:
        context = self._context
        self._figures.start_anew()
        context.enter(Phase.SNAPSHOT)
        with context.step("snapshot"):
            await self._ticking(self._snapshot.copy(importing=self._ttl_guard.importing))
            if self._settings.rules:
                self._count(copied=True)
            applier = self._applier = self._new_applier(importing=self._ttl_guard.importing)
            await together([self._finish_snapshot(), self._dialled(applier)])
        position = StreamPosition(sync.replid, sync.offset, self._source.stream_db, False)
        target_position = replace(self._ownership.claim.bare, position=position).anew()
        begun = applier.begin(
            target_position.encode(),
            over=self._ownership.claim.bare.encode(),
            process=self._writer.info.identity,
        )
        _, self._dirty_names = await together([begun, self._ask_dirty()])
        return target_position

    async def _finish_snapshot(self) -> None:
        """What has to be there before the position: an engine that goes on from that must know."""
        # Needed when it is followed: by then it is known.
        self._check.ask_rights({"source": self._source.info, "target": self._writer.info})
        await self._snapshot.confirm()
        await self._tuning.untune()
        await self._snapshot.carry_code()
        await self._checkpoint.save(lost=tuple(self._context.lost.items()))
        await self._snapshot.note_names()

    async def _dialled(self, applier: Applier) -> None:
        await applier.open()

    # --- The stream ---

    async def _follow(self, target_position: TargetPosition) -> None:
        """Follow until the target is open, or until something that `run` knows is raised."""
        context = self._context
        reads = PrimaryReads(self._ends, self._source, context.event_of("source"))
        async with (
            reads.dialled() as control,
            self._ends.admin("target") as there,
        ):
            self._resync = KeyResync(
                control,
                self._source.info,
                self._writer.encoder,
                self._own.dirty,
                self._writer.bulk_limit,
                self._writer.suspects,
                self._ttl_guard.extended,
                lambda: self._source.replid,
                by_slot=self._ends.route.from_cluster,
            )
            applier = await self._ready(target_position)
            follower = self._follower = Follower(
                self._source,
                applier,
                self._resync,
                target_position,
                UnfaithfulCommands(self._source.info, self._writer.info),
                TargetTtls(there),
                self._crashing,
                self._catch_up_monitor.trust(),
                self._ttl_guard.extended,
                context.throttle.following,
                note=self._catch_up_monitor.note,
                not_carried=self._losses.not_carried,
                carried=self._losses.carried,
                left_out=self._losses.leave_out,
                unnamed=self._distrust_all,
            )
            follower.shares_libraries = self._ends.route.shared_target
            if not self._ends.whole:
                keys = self._ends.keys
                follower.empty = lambda offset, db: applier.empty(keys, offset, db)
            self._resync.rebuild = self._asides.make
            self._resync.on_trouble = context.trouble_of("a long value's target")
            self._resync.on_trouble("")
            self._resync.on_left = context.stats.leave
            self._resync.on_loss = context.stats.lose
            follower.on_search = self._losses.search_refused
            follower.on_unknown_command = self._losses.on_unknown_command
            if self._source_cluster is not None:
                # Sooner than at its next look: the gate is to be closed.
                follower.on_slot_moves = self._source_cluster.look_now
                follower.on_slots_came = self._distrust_databases
            self._figures.follower, self._figures.resync = follower, self._resync
            self._catch_up_monitor.attend(follower, self._resync)
            self._ttl_guard.attend(follower)
            if self._proof is not None:
                self._proof.attend(follower)
            await self._take_up_dirty()
            await self.audit.take_up(follower.position.offset)
            self._catch_up_monitor.note(Doubt.BEGUN)
            if target_position.begun is not None:
                self._catch_up_monitor.note(Doubt.BEGUN_BEFORE, target_position.begun)
            self._replicas.goes_on(target_position.position)
            with context.step("follow"):
                await self._steer(follower)

    async def _ready(self, target_position: TargetPosition) -> Applier:
        """The applier of a target that holds `target_position`, dialled. Raises `PositionMoved`."""
        applier = self._applier
        if applier is None or applier.closed:
            if applier is not None:
                await applier.close()
            applier = self._applier = self._new_applier(importing=self._ttl_guard.importing)
            found = await applier.open()
            # A target that came back older meanwhile, or was moved on by another engine: what
            # lies between the two positions would be left out, or applied twice.
            if not target_position.same_place(self._ownership.claim.ours(found)):
                raise PositionMoved(found)
        return applier

    async def _ready_held(self) -> Applier:
        assert self._target_position is not None
        return await self._ready(self._target_position)

    async def _take_up_dirty(self) -> None:
        """What an engine before us, or this one before a lost link, had still to mend."""
        resync, stats = self._resync, self._context.stats
        assert resync is not None
        names, self._dirty_names = self._dirty_names, None
        slots = self._ends.route.slots
        resync.take_up(await self._ask_dirty() if names is None else names, slots)
        for db, key in stats.named_keys():
            if key_slot(key) not in slots:
                # Its slot has gone to another lane, and what becomes of it is told there.
                self._losses.carried(db, key)
        # The checkpoint was written a moment before, or behind it.
        for db, key in resync.refused:
            stats.refuse(db, key, "the target refused it before")
        resync.mark_dirty([key for key in stats.named_keys() if not resync.knows(key)])
        if self._ask_again or self._source.field_ttls:
            # The operator may have mended what they were refused for, and then resumed; or they are
            # hashes in a form that the target does not know, and could have otherwise (`freed`).
            self._ask_again = False
            resync.mark_dirty(resync.refused)

    async def _ask_dirty(self) -> Any:
        async with self._ends.admin("target") as end:
            return await end.call("SMEMBERS", self._own.dirty)

    async def _steer(self, follower: Follower) -> None:
        """Run the follower beside the looks at where it stands, until the target is open."""
        pump = asyncio.create_task(follower.run())
        roles = asyncio.create_task(self._roles.run())
        audit = asyncio.create_task(self.audit.run(follower))
        lateness = PrimaryLateness(self._ends, self._source, self._context.event_of("source"))
        late = asyncio.create_task(lateness.run())
        tasks: tuple[asyncio.Task[None], ...] = pump, roles, audit, late
        if self._proof is not None:
            tasks += (asyncio.create_task(self._proof.run()),)
        published = 0.0
        loop = asyncio.get_running_loop()
        try:
            offer = self.offer = Offer(Followed(follower, pump))
            while True:
                await asyncio.wait(
                    {*tasks, offer.wanted},
                    timeout=self._calm_seconds if self._catch_up_monitor.calm else _LOOK_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in tasks:
                    if task.done():
                        task.result()
                self._catch_up_monitor.look(follower)
                if loop.time() - published >= _TICK_SECONDS:
                    published = loop.time()
                    await self._tick()
                if offer.wanted.done():
                    try:
                        over = await offer.lend()
                    except (TakenUpAnew, LinkError, ServerError):
                        if pump.done():
                            # What it has ended by says what to do.
                            pump.result()
                        raise
                    if over:
                        return
                    offer = self.offer = Offer(offer.followed)
                self.on_look()
        finally:
            self._withdraw()
            await all_cancelled(tasks)

    async def _offered(self) -> bool:
        """Offer what has no follower; whether the target is open then."""
        offer = self.offer = Offer(None)
        self.on_look()
        try:
            await offer.wanted
            return await offer.lend()
        finally:
            self._withdraw()

    async def _distrust_databases(self, db: int) -> None:
        """Behind slots that came by the servers' own slot migration the stream of a Valkey may have
        commands without the SELECT that they need, for as long as no replica is synchronised in
        full. Raises `ReadAgain` where there is another database than 0, or was: the stream is in
        `db` there, which may be empty by now."""
        async with self._ends.admin("source") as end:
            if db or any(entry.db for entry in (await end.info()).keyspace):
                raise ReadAgain(
                    "slots were migrated to the source, which has several databases, and its "
                    "stream may name another one since: everything is copied again"
                )

    async def _distrust_all(self, why: str) -> None:
        """Commands may have changed keys that they do not name."""
        if self._proof is not None:
            self._proof.doubt(why)
        await self._losses.compare_all(why)

    def _withdraw(self) -> None:
        offer, self.offer = self.offer, None
        if offer is not None:
            offer.withdraw()

    @property
    def may_move(self) -> bool:
        """Whether another process can go on with it just now.

        Not while something is waited for; and of what is in no checkpoint nothing may be lost: at
        which values the target's process ends, and that keys have differed.
        """
        differed = self._differed or (self._follower is not None and self._follower.differed)
        return self._writer.suspects.idle and not differed and not self._context.trouble

    @property
    def stranded(self) -> bool:
        """Whether its cluster has the shard at one of its ends no more, or the slot of its own keys
        at another one, or a slot of what is copied: no snapshot of it comes to its end."""
        if any(each.has_lost(self._context) for each in self._clusters.values()):
            return True
        return self._writer.has_lost_slots

    @property
    def stuck(self) -> str:
        """Why the gate of a lane that follows stays closed until an operator mends something;
        empty: it may open by itself."""
        context, follower = self._context, self._follower
        if follower is None or self.offer is None:
            return ""
        settled = self._catch_up_monitor.near(follower) and follower.settled
        if context.stats.not_carried_total and settled:
            # (The gate may name another reason first.)
            return context.stats.not_carried_words
        if context.lost and settled and self._check.looked:
            return context.lost_words
        if evicted := context.stats.evictions.words_in_one_go:
            return evicted
        proof = None if context.skip_verification else self._proof
        if proof is not None and settled and (why := proof.stuck):
            return why
        return (context.uncomparable or "") if context.only_uncomparable else ""

    # --- What breaks ---

    def note_broken(self, cause: Exception) -> tuple[str, bool]:
        """A cut-over broke here by `cause`: in words, and whether the target may be open. Then
        it is asked by the next attempt."""
        if isinstance(cause, PositionMoved):
            why = self._moved_words(cause)
        elif isinstance(cause, EngineError):
            why = cause.in_one_line
        else:
            why = cause.reason if isinstance(cause, ReadAgain) else str(cause)
        if not self._promotion.asked:
            return why, False
        why = f"the promotion was sent to the target, which did not answer: {why}"
        self._outcome.not_promoted = why.removesuffix(".")
        return why, True

    def _moved_words(self, moved: PositionMoved) -> str:
        """Why a cut-over was refused whose target is not what it was when it began."""
        claim = self._ownership.claim
        if claim.another(moved.found) is not None:
            return "another migration has the target by now"
        found = claim.ours(moved.found)
        has = "none of this migration's data" if found is None else place_words(found.position)
        return (
            "the target is not what it was when the cut-over began: it was restarted, replaced or "
            f"emptied, or another engine has it by now, and it has {has}"
        )

    def _reached(self, position: StreamPosition | None) -> StreamPosition | None:
        """Where the target stands after the source's link went."""
        return self._follower.position if self._follower is not None else position

    async def _let_go(self) -> None:
        self._context.can_complete = False
        await self._check.let_go()
        self._checkpoint.count_repairs()
        self._resync = self._figures.resync = None
        await self._ttl_guard.let_go()
        if self._follower is not None:
            self._differed = self._differed or self._follower.differed
            self._figures.let_go(self._follower)
            self._follower = None
            self._catch_up_monitor.let_go()
        if self._applier is not None:
            await self._applier.leave(_LEAVE_SECONDS)
            await self._applier.close()
        self._ttl_guard.taken_up = self._ttl_guard.taken_up or self._mark.begun
        await self._source.close()

    # --- Telling and keeping ---

    async def _ticking(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_SECONDS)
                await self._tick()
            await task
        finally:
            if not task.done():
                await cancelled(task)

    async def _tick(self) -> None:
        self._context.publish()
        self._source.check()
        await self._check.look()
        self._losses.forget_libraries()
        if (lost := tuple(self._context.lost.items())) != self._mark.lost:
            await self._checkpoint.save(lost=lost)
        await self._look_at_limit()
        if self._resync is not None and self._resync.clean:
            with contextlib.suppress(EngineError):
                await self._asides.tidy_up()
        await self._ttl_guard.keep_up()
        await self._upkeep.take_away()
        await self._checkpoint.save_now_and_then()

    async def _look_at_limit(self) -> None:
        """While the target has refused keys: whether it takes longer values, or those of more
        modules, by now."""
        resync, now = self._resync, asyncio.get_running_loop().time()
        if resync is None or not resync.refused or now < self._limit_at:
            return
        self._limit_at = now + _LIMIT_SECONDS
        with contextlib.suppress(EngineError):
            async with self._ends.admin("target") as end:
                limit = await ask_bulk_limit(end)
                types = await ask_module_types(end, await end.info())
            if resync is not self._resync:
                return
            if limit is not None:
                self._writer.bulk_limit = limit
                resync.allow(limit)
            if self._writer.allow(types):
                resync.read_refused()
            # A source that is not written to wakes nothing for seconds.
            self._source.interrupt()

    async def _compare_on(self, reason: str) -> None:
        """Now and then while both ends are compared before a cut-over: all else goes on."""
        if self._follower is not None:
            self._catch_up_monitor.look(self._follower)
        self._context.reason = reason if self._context.can_complete else self._context.reason
        await self._tick()

    def _to_be_written(self) -> None:
        self._checkpoint.dirty = True

    def _take_repaired(self) -> int:
        if self._resync is None:
            return 0
        repaired, self._resync.repaired = self._resync.repaired, 0
        return repaired

    # --- Ends ---

    @property
    def _own(self) -> OwnKeys:
        return self._ends.own_keys(self._mark.token)

    def _new_applier(self, *, importing: bool, far: bool = False) -> Applier:
        kind = ClusterApplier if self._ends.route.to_cluster else Applier
        applier = self._figures.applier = kind(
            self._ends.target,
            self._settings,
            self._own.position,
            on_event=self._context.event_of("target"),
            importing=importing,
            on_doubt=self._catch_up_monitor.note,
            on_trouble=self._context.trouble_of("the target"),
            name=self._ownership.claim.client_name,
            far=far or is_far(self._writer.round_trip),
        )
        return applier


def _ignore(side: Side, there: Endpoint) -> None:
    del side, there


def _check_history(target_position: TargetPosition | None, sync: PartialSync) -> None:
    """Raises `ReadAgain` where commands behind the position may be on the target, and be none of
    the history that the source goes on with."""
    at = target_position.position if target_position is not None else None
    begun = target_position is not None and target_position.begun is not None
    if begun and at is not None and sync.replid != at.replid:
        raise ReadAgain(
            "the source goes on with another replication id, and the target may have commands that "
            "came behind its position from the source before it: everything is copied again"
        )


async def _answered(wanted: bool, applier: Applier, left: TargetLeftovers) -> bool:
    """Whether the target has answered what both ask, if that is `wanted`."""
    if not wanted:
        return False
    try:
        await together([applier.open(), left.find()])
        return True
    except EngineError:
        # It is opened anew.
        await applier.close()
        return False


def _passes(error: LinkError | ServerError) -> bool:
    """Whether it is worth going on after this error of one of the ends."""
    if error.fault not in ("source", "target"):
        return False
    if isinstance(error, LinkError):
        return True
    return error.code in _NOT_NOW
