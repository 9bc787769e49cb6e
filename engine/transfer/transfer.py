"""One transfer from its first dial to its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from engine.errors import (
    AuthError,
    EngineError,
    LinkError,
    PsyncRefused,
    ServerError,
    StateError,
    TransferFailed,
    TransferStopped,
    UsageError,
)
from engine.model.carried_with_loss import total_losses
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase, Progress
from engine.model.report import EngineUse, Report, Status
from engine.model.server import ServerInfo
from engine.model.setting_conflicts import cluster_objection, following_objection
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.model.throttle import Steering
from engine.transfer import lane_plan, source_accepts_writes
from engine.transfer.async_helpers import cancelled, together
from engine.transfer.checkpoint_store import LaneCheckpoints
from engine.transfer.checks.check_result import Side
from engine.transfer.checks.permissions import replica_objection
from engine.transfer.copy import Compare
from engine.transfer.cut_over_check import (
    Comparison,
    Comparisons,
    CutOverCheck,
    CutOverCheckInSync,
    CutOverCheckResult,
    FilesCutOverCheck,
    WithoutFiles,
)
from engine.transfer.lane_groups import grouped
from engine.transfer.lane_interface import MigratingLane, WatchedCluster
from engine.transfer.lane_plan import Deployment, LaneEnds
from engine.transfer.migration_context import MigrationContext
from engine.transfer.overview import Overview
from engine.transfer.switch_hook import OnSwitch
from engine.wire import failover_addresses, source_replica
from engine.wire.control_connection import Admin, admin

if TYPE_CHECKING:
    from engine.model.daily_window import DailyWindow

    # Each is imported when it is gone, and the others are not.
    from engine.transfer.aof_migration import AppendOnly
    from engine.transfer.lane_process_split import LaneProcessSplit
    from engine.transfer.lane_worker import LaneProcesses, LaneWorkers
    from engine.transfer.migration import Migration
    from engine.transfer.offline import Offline

    Way = Offline | Migration | AppendOnly


def _follows(way: Way | None) -> TypeGuard[Migration]:
    """Whether it is the way of a source that is followed."""
    return way is not None and way.follows


# How often it is looked whether the window is open.
_WINDOW_SECONDS = 0.5


class _Denied(PsyncRefused):
    """A user may not do what following takes."""


def _aborted(way: Way | None) -> str:
    """What an abort has met, in words: the target may be open already."""
    if _follows(way) and way.promoted:
        refuses = "; the source refuses writes, until unblock-source" if way.sealed else ""
        return f"ended by force after the target was promoted{refuses}"
    if _follows(way) and way.in_doubt:
        return "aborted by force while the target was being promoted"
    return "aborted by force, not cut over"


async def _cannot_compare(db: int, keys: Sequence[bytes]) -> list[bytes]:
    """Without a way to compare, every key that the target has is a conflict."""
    del db
    return list(keys)


class Transfer:
    """Moves one source into one target: as its replica where it can be, else by SCAN; or a file.

    Args:
        checkpoints: where the acknowledged position is kept.
        on_progress: told about twice a second, and at each change of phase.
        on_event: told what an operator would want to read in a log, a sentence each.
        gate: asked at the cut-over of a scanned source whether the target may be opened.
        gate_in_sync: the same of a source that was followed, while its writers are paused: it
            must be quick. None: `gate`.
        gate_of_files: asked instead of `gate` of an append-only file, which is open. None: `gate`.
        comparison: compares both ends of a source that is followed, before its writers are paused
            off and then; `gate_in_sync` is not asked in this case.
        comparisons: the same where the lanes are known later: a comparison for each.
        compare: which of these keys of a database differ between the ends.
        one_go: cut over without waiting for `complete`; a gate that refuses is a failure.
        on_switch: called once the target is promoted, see `transfer.switch_hook`.
        held_before: whether the target had keys before the first one of ours, None: not known. Of a
            source that is scanned; one that is followed keeps it on the target.
        credentials: by host, for servers of the source's replication that are found on the way.
        processes: starts processes that drive lanes; None: all lanes are driven in this one.
        first: awaited before anything is written to the target, beside what is asked until then.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        settings: TransferSettings,
        *,
        checkpoints: LaneCheckpoints,
        on_progress: Callable[[Progress], None],
        on_event: Callable[[str], None],
        gate: CutOverCheck,
        gate_in_sync: CutOverCheckInSync | None = None,
        gate_of_files: FilesCutOverCheck | None = None,
        comparison: Comparison | None = None,
        comparisons: Comparisons | None = None,
        compare: Compare = _cannot_compare,
        one_go: bool = False,
        on_switch: OnSwitch | None = None,
        credentials: Credentials = Credentials(),  # noqa: B008
        held_before: Callable[[], bool | None] = lambda: None,
        processes: LaneProcesses | None = None,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        # Until it is awaited.
        self._first = first
        self._known_before = held_before
        self._processes = processes
        # Of each plan of lanes that other processes have driven.
        self._workers: list[LaneWorkers] = []
        # Of those that drive the lanes now; None: this process does.
        self._driving: LaneWorkers | None = None
        self._ends: Sequence[LaneEnds] = ()
        # What parts the lanes, where that is wanted.
        self._parting: LaneProcessSplit | None = None
        self._source_endpoint = settings.named("source", source)
        self._target_endpoint = settings.named("target", target)
        self._settings = settings
        self._credentials = credentials
        self._checkpoints = checkpoints
        self._gate = gate
        self._gate_of_files = gate_of_files or WithoutFiles(gate)
        self._gate_in_sync = gate_in_sync or self._by_gate
        self._comparison = comparison
        self._comparisons = comparisons
        self._compare = compare
        self._overview = Overview(
            settings,
            on_progress=on_progress,
            on_event=on_event,
            one_go=one_go,
            on_switch=on_switch,
        )
        # Of the only lane; of several it is what comes before they are known.
        self._context = self._overview.lane()
        self._way: Way | None = None
        # What the ends said of themselves when lanes were planned, where neither is a cluster.
        self._told: dict[Side, ServerInfo] = {}
        self._forced = False
        self._stopping = False
        self._cut_over = False
        # What the operator wants, and why it is paused by its window.
        self._wanted = self._overview.orders.steering
        self._closed = ""
        self._task: asyncio.Task[None] | None = None

    # --- The operator's words ---

    def complete(self, *, force: bool = False, skip_verification: bool = False) -> None:
        """Cut over as soon as the gates are open; the last word counts.

        `skip_verification`: without the comparison of both ends, and with everything else. `force`:
        abort at once. Nothing is cut over: the source accepts writes, the target stays as it is.
        """
        self._forced = self._forced or force
        self._overview.orders.skip_verification = skip_verification
        self._overview.orders.word.set()
        if force and self._task is not None:
            self._task.cancel()

    def steer(self, steering: Steering) -> None:
        """This is how fast data is to be moved from now on, and whether it is paused."""
        self._wanted = steering
        paused = steering.paused or self._closed
        self._overview.orders.steer(replace(steering, paused=paused))

    async def _keep_window(self, window: DailyWindow) -> None:
        """Pause it outside of its window."""
        while True:
            self._look_at_window(window)
            await asyncio.sleep(_WINDOW_SECONDS)

    def _look_at_window(self, window: DailyWindow) -> None:
        before, self._closed = self._closed, window.words(time.time())
        if before == self._closed:
            return
        if bool(before) is not bool(self._closed):
            said = self._closed or f"its window {window} is open: the migration goes on"
            self._overview.on_event(said)
        self.steer(self._wanted)

    def stop(self) -> None:
        """Stop soon. What is acknowledged stays, and the checkpoint with it."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()

    @property
    def cut_over(self) -> bool:
        """Whether an abort has found the target open, and its cut-over was brought to its end."""
        return self._cut_over

    @property
    def held_before(self) -> bool | None:
        """Whether the target had keys of its own before; None: the way does not know (yet)."""
        return self._way.held_before if self._way is not None else None

    @property
    def progress(self) -> Progress:
        """How things stand now."""
        return self._overview.progress

    @property
    def of_lanes(self) -> dict[str, Progress]:
        """The same of each lane, by its name."""
        return self._overview.of_lanes

    @property
    def elsewhere(self) -> EngineUse:
        """What processes that drove lanes have used."""
        used = [each.use for each in self._workers]
        return EngineUse(
            sum(each.cpu_seconds for each in used),
            max((each.peak_rss_bytes for each in used), default=0),
        )

    # --- The run ---

    async def run(self) -> Report:
        """Run to the end and report; a failure of the transfer is in the report, not raised."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._overview.begin(began)
        failover_addresses.begin()
        source_replica.begin()
        window = self._settings.opening
        keeper: asyncio.Task[None] | None = None
        if window is not None:
            self._look_at_window(window)
            keeper = asyncio.create_task(self._keep_window(window))
        self._task = asyncio.create_task(self._go())
        if self._stopping or self._forced:
            self._task.cancel()
        errors: list[str] = []
        status: Status = "done"
        kept = forced = needs_hand = False
        try:
            await self._task
        except asyncio.CancelledError:
            status = "stopped"
            if self._forced and not self._stopping:
                how_far = self._way.how_far if self._way else "before anything was read"
                forced = True
                if self._way is None:
                    # What an engine before this one left wants to be tidied up all the same.
                    with contextlib.suppress(StateError):
                        self._way = self._begun(here=True)
                if _follows(self._way):
                    self._cut_over = await self._way.end_promoted()
                left = await self._left_open()
                errors.append(f"{_aborted(self._way)}: {how_far}{left}")
                self._overview.on_event(errors[-1])
            else:
                # By `stop`, or because our awaiter was cancelled: that comes to the same.
                current = asyncio.current_task()
                if current is not None and not self._stopping:
                    current.uncancel()
            self._overview.end(
                Phase.STOPPED, errors[-1] if errors else "stopped; what is acknowledged stays"
            )
        except EngineError as exc:
            errors.append(exc.in_one_line)
            if self._can_go_on(exc):
                # What is on the target stays, its position too.
                status, kept, needs_hand = "stopped", True, True
                self._overview.end(Phase.STOPPED, errors[-1])
            else:
                # The state failed, or the claim is another's: the target is as it has to be.
                status, kept = "failed", isinstance(exc, StateError)
                self._overview.end(Phase.FAILED, errors[-1])
        finally:
            if keeper is not None:
                await cancelled(keeper)
            if self._way is not None:
                resumable = kept or (status == "stopped" and not forced)
                await self._way.close(resumable=resumable, forced=forced)
        if self._way is not None:
            await self._way.save_last(errors)
        for workers in self._workers:
            await workers.end()
        if self._parting is not None:
            await self._parting.end()
        report = self._report(status, errors, loop.time() - began)
        return replace(report, needs_hand=needs_hand)

    async def _left_open(self) -> str:
        """Whether the source accepts writes, where it is a server and no fence stands there by the
        checkpoint."""
        way, source = self._way, self._source_endpoint
        if source.file_path is not None:
            return ""
        if _follows(way) and (way.promoted or way.in_doubt or way.fenced):
            return ""
        lanes = self._checkpoints.lanes or ()
        ends = source, self._target_endpoint
        said = await source_accepts_writes.said(*ends, self._settings, self._credentials, lanes)
        return f"; {said}"

    async def _go(self) -> None:
        """Choose the way and go it; `auto` takes the other one where PSYNC is refused."""
        lanes = await self._planned()
        way = self._way = self._of_lanes(lanes) if lanes else self._choose()
        if not (_follows(way) and way.asks):
            await self._do_first()
        try:
            while lanes:
                assert _follows(way)
                found = await self._go_lanes(way, lanes)
                if found is None:
                    return
                lanes, way = found
                self._way = way
            async with way.watching():
                await way.run()
        except PsyncRefused as refused:
            if self._settings.source_type != "auto" or self._context.phase is not Phase.CONNECT:
                raise
            if lanes:
                # A scan knows no slots.
                raise
            instead = "the source is scanned instead"
            if isinstance(refused, _Denied):
                instead = "the source is scanned, and its later writes are not followed"
            self._context.on_event(f"{refused.message}: {instead}")
            await way.close(resumable=True)
            self._context.steps.clear()
            way = self._way = self._offline()
            async with way.watching():
                await way.run()

    async def _go_lanes(
        self, way: Migration, lanes: tuple[PlannedLane, ...]
    ) -> tuple[tuple[PlannedLane, ...], Migration] | None:
        """Go the way of several lanes to its end; the next one, where slots have moved, or where
        the lanes go on in other processes."""
        from engine.transfer.migration import LanesParted, SlotsMoved

        try:
            async with way.watching(), self._parted_if_busy(way, lanes):
                await way.run()
            return None
        except SlotsMoved:
            await way.close(resumable=True)
            if self._parting is not None:
                # What was started for lanes that are not parted now.
                await self._parting.end()
            await way.save_last([])
        except LanesParted:
            parting, processes = self._parting, self._processes
            assert parting is not None
            assert processes is not None
            await way.close(resumable=True)
            await way.save_last([])
            started = parting.take(lanes, processes)
            return lanes, self._of_lanes(lanes, parted=started)
        lanes = await self._planned()
        return lanes, self._of_lanes(lanes)

    @contextlib.asynccontextmanager
    async def _parted_if_busy(
        self, way: Migration, lanes: tuple[PlannedLane, ...]
    ) -> AsyncIterator[None]:
        """Have the lanes parted meanwhile, where their process has no CPU left for them."""
        parting, processes = self._parting, self._processes
        if parting is None or processes is None:
            yield
            return
        watch = parting.watch(way, lanes, self._ends, self._driving, processes)
        watching = asyncio.create_task(watch)
        try:
            yield
        finally:
            await cancelled(watching)

    async def _planned(self) -> tuple[PlannedLane, ...]:
        """The lanes of a migration with a cluster at one of its ends, as they were planned by an
        engine before this one, or now; none: neither end is one.

        Raises `TransferFailed` where an end is not what it was any more, and for what cannot be
        done with a cluster; `EngineError` of ends that cannot be asked.
        """
        ends: dict[Side, Endpoint] = {
            "source": self._source_endpoint,
            "target": self._target_endpoint,
        }
        lanes = self._checkpoints.lanes
        if lanes == () or any(end.file_path is not None for end in ends.values()):
            return ()
        if lanes is None and self._checkpoints.load() is not None:
            # It was begun before there were several.
            return ()
        found: dict[Side, Deployment] = {}
        if lanes is not None:
            ends = lane_plan.wholes(lanes, ends, self._settings)

        async def look(side: Side) -> None:
            found[side] = await lane_plan.look(side, ends[side], self._settings)

        async def ask(side: Side) -> None:
            await self._context.insist(lambda: look(side), side)

        await together([ask(side) for side in ends])
        source, target = found["source"], found["target"]
        if lanes is not None:
            if wrong := list(lane_plan.unfit(lanes, source, target)):
                raise TransferStopped(
                    f"the migration cannot go on as it was planned: {'; '.join(wrong)}",
                    remedy="Abort it (complete-migration --force), and start another one.",
                    fault="user",
                )
            planned = lanes

            async def replan() -> None:
                nonlocal planned
                planned = await self._replanned(planned, source, found["target"])

            async def again() -> None:
                try:
                    await replan()
                except EngineError:
                    # The slot of the engine's own keys may be on its way.
                    await look("target")
                    raise

            await self._context.insist(again, "target")
            return planned
        lanes = lane_plan.plan(source, target)
        if not lanes:
            self._told = {side: each.info for side, each in found.items()}
        if lanes and (objection := cluster_objection(self._settings)):
            raise TransferFailed(
                f"{objection}, and a migration from or to a cluster follows its source",
                remedy="Move everything, with --source-type replica or auto.",
                fault="user",
            )
        self._checkpoints.plan(lanes)
        return lanes

    async def _replanned(
        self, lanes: tuple[PlannedLane, ...], source: Deployment, target: Deployment
    ) -> tuple[PlannedLane, ...]:
        """The lanes as they go on where slots lie now: one that is being moved is still where it
        was. Once the target may be promoted they stay as they are. Raises `StateError`, and
        `EngineError` of a target that cannot be asked."""
        from engine.transfer.lane_replan import replanned
        from engine.transfer.slot_handover import SlotHandover

        handover = SlotHandover(self._checkpoints, target, self._settings)
        handover.begin_late(lanes)
        told = [each.told for each in (source, target) if each.told is not None]
        if any(each.missing for each in told) or self._may_be_promoted(lanes):
            return lanes
        now = replanned(lanes, lane_plan.plan(source, target))
        if now is None:
            return lanes
        if any(self._left_something(each.name) for each in now.gone):
            # Its checkpoint is the only one that says so: it goes on until that is put back.
            return lanes
        lanes = await handover.run(lanes, now)
        slots = SlotSet.of(slot for each in now.audits.values() for slot in each)
        parts = [f"other lanes copy the slots {slots.words} from now on"] if slots else []
        parts += [f"new lanes: {len(now.new)}"] if now.new else []
        parts += [f"ended lanes: {len(now.gone)}"] if now.gone else []
        self._overview.on_event(
            f"slots have moved: {', '.join(parts) or 'some lanes have fewer slots'}; every key "
            "of the slots that moved to a lane is read again"
        )
        return lanes

    async def _remove_left(self, lanes: Sequence[PlannedLane]) -> None:
        """Remove what lanes that are over have left on the target. Raises `EngineError`."""
        from engine.transfer.slot_handover import SlotHandover

        ends: dict[Side, Endpoint] = {
            "source": self._source_endpoint,
            "target": self._target_endpoint,
        }
        end = lane_plan.wholes(lanes, ends, self._settings)["target"]
        target = await lane_plan.look("target", end, self._settings)
        await SlotHandover(self._checkpoints, target, self._settings).remove_left(lanes)

    def _left_something(self, lane: str) -> bool:
        """Whether a lane has a fence at its source, a write block or settings to be put back."""
        found = self._checkpoints.of_lane(lane).load()
        mark = None if found is None else found.position
        if not isinstance(mark, OnlineCheckpoint):
            return False
        return bool(mark.fenced or mark.sealed or mark.tuned)

    def _may_be_promoted(self, lanes: Sequence[PlannedLane]) -> bool:
        """Whether a target is promoted, or may be, by what the checkpoints say."""
        for each in lanes:
            found = self._checkpoints.of_lane(each.name).load()
            mark = None if found is None else found.position
            if isinstance(mark, OnlineCheckpoint) and (mark.opened or mark.promoting):
                return True
        return False

    def _begun(self, *, here: bool = False) -> Way | None:
        """The way that a process before this one has begun to go."""
        if (lanes := self._checkpoints.lanes) and any(
            self._checkpoints.of_lane(each.name).load() is not None for each in lanes
        ):
            return self._of_lanes(lanes, here=here)
        before = self._checkpoints.load()
        if before is None:
            return None
        if self._source_endpoint.aof_path is not None:
            return self._append_only()
        return self._online() if isinstance(before.position, OnlineCheckpoint) else self._offline()

    def _choose(self) -> Way:
        if self._source_endpoint.aof_path is not None:
            return self._append_only()
        if self._source_endpoint.rdb_path is not None:
            return self._offline()
        begun = self._begun()
        if begun is not None:
            return begun
        if self._settings.source_type == "scan":
            return self._offline()
        objection = following_objection(self._settings)
        if objection is not None:
            self._context.on_event(f"{objection}: the source is scanned")
            return self._offline()
        return self._online(self._may_follow)

    async def _do_first(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            await first()

    async def _may_follow(self) -> None:
        """Raises where the users may not do what following takes."""
        denied, _ = await together([self._denied(), self._do_first()])
        if denied is None:
            return
        reason, remedy = denied
        if self._settings.source_type == "replica" or self._settings.verify == "full":
            raise AuthError(f"the source cannot be followed: {reason}", remedy=remedy)
        raise _Denied(reason)

    async def _denied(
        self, source: Endpoint | None = None, target: Endpoint | None = None
    ) -> tuple[str, str] | None:
        """What the users at both ends may not do of what following takes, and the rule to add.

        Some of it would show only when the whole snapshot has been copied. An end that cannot be
        asked now objects to nothing: the way itself meets it, and has more patience.
        """
        limit = self._settings.connect_timeout
        try:
            async with (
                admin(source or self._source_endpoint, timeout=limit, fault="source") as one,
                admin(target or self._target_endpoint, timeout=limit, fault="target") as other,
            ):
                ends: dict[Side, Admin] = {"source": one, "target": other}
                infos = self._told
                if not infos:
                    replies = await asyncio.gather(one.info(), other.info())
                    infos = dict(zip(ends, replies, strict=True))
                return await replica_objection(ends, infos, self._settings)
        except EngineError:
            return None

    def _offline(self) -> Offline:
        from engine.transfer.offline import Offline

        return Offline(
            self._source_endpoint,
            self._target_endpoint,
            self._context,
            checkpoints=self._checkpoints,
            gate=self._gate,
            compare=self._compare,
            known_before=self._known_before,
        )

    def _append_only(self) -> AppendOnly:
        from engine.transfer.aof_migration import AppendOnly

        return AppendOnly(
            self._source_endpoint,
            self._target_endpoint,
            self._context,
            checkpoints=self._checkpoints,
            gate=self._gate_of_files,
        )

    def _of_lanes(
        self,
        lanes: Sequence[PlannedLane],
        *,
        here: bool = False,
        parted: LaneProcesses | None = None,
    ) -> Migration:
        """The way of a migration with these lanes: in this process if they are `here`, or if one
        process has all of them. `parted`: starts the processes of lanes that went on elsewhere
        until now."""
        from engine.transfer.migration import Migration

        ends = lane_plan.ends_of(
            lanes, self._source_endpoint, self._target_endpoint, self._settings
        )
        contexts = self._overview.planned(lanes, parted=parted is not None)
        self._context, self._ends = contexts[0], ends
        groups = self._groups(lanes)
        processes = parted or self._processes
        driven, clusters = (
            self._driven_here(ends, contexts)
            if here or processes is None or len(groups) == 1
            else self._driven_elsewhere(ends, contexts, groups, processes)
        )

        async def allowed() -> None:
            await self._do_first()
            for each in ends:
                denied = await self._denied(each.source, each.target)
                if denied is not None:
                    raise AuthError(f"the source cannot be followed: {denied[0]}", remedy=denied[1])

        begun = any(self._checkpoints.of_lane(each.name).load() is not None for each in lanes)
        remove_left = None
        if any(each.left for each in lanes):
            remove_left = functools.partial(self._remove_left, lanes)
        return Migration(self._overview, driven, None if begun else allowed, clusters, remove_left)

    def _groups(self, lanes: Sequence[PlannedLane]) -> list[list[int]]:
        """The places of the lanes, by the process that drives them."""
        most = self._settings.lanes_per_worker
        if most != "auto":
            return grouped(lanes, most)
        from engine.transfer.lane_process_split import LaneProcessSplit

        if self._parting is None:
            self._parting = LaneProcessSplit(self._overview, self._settings)
        return self._parting.groups(lanes)

    def _driven_here(
        self, ends: Sequence[LaneEnds], contexts: Sequence[MigrationContext]
    ) -> tuple[Sequence[MigratingLane], Sequence[WatchedCluster]]:
        from engine.transfer.lane_building import build

        self._driving = None
        compared: Sequence[Comparison | None] = [None] * len(ends)
        if self._comparisons is not None:
            compared = self._comparisons([(each.source, each.target, each.route) for each in ends])
        lanes, clusters = build(
            ends,
            contexts,
            [self._checkpoints.of_lane(each.lane) for each in contexts],
            compared,
            self._gate_in_sync,
            self._settings,
            self._credentials,
            self._overview.on_event,
        )
        return lanes, list(clusters.values())

    def _driven_elsewhere(
        self,
        ends: Sequence[LaneEnds],
        contexts: Sequence[MigrationContext],
        groups: Sequence[Sequence[int]],
        processes: LaneProcesses,
    ) -> tuple[Sequence[MigratingLane], Sequence[WatchedCluster]]:
        from engine.transfer.lane_building import clusters_of
        from engine.transfer.lane_worker import LaneWorkers
        from engine.transfer.remote_lane import RemoteLane

        workers = self._driving = LaneWorkers(processes, self._overview, self._credentials)
        self._workers.append(workers)
        lanes: dict[int, RemoteLane] = {}
        for group in groups:
            worker = workers.add()
            for at in group:
                store = self._checkpoints.of_lane(contexts[at].lane)
                lanes[at] = RemoteLane(ends[at], contexts[at], store, worker)
        self._overview.on_event(f"{len(lanes)} lanes are driven by {len(groups)} processes")
        return [lanes[at] for at in sorted(lanes)], workers.clusters(clusters_of(ends[0]))

    def _online(self, allowed: Callable[[], Coroutine[Any, Any, None]] | None = None) -> Migration:
        from engine.transfer.lane import Lane
        from engine.transfer.migration import Migration

        lane = Lane(
            self._source_endpoint,
            self._target_endpoint,
            self._context,
            checkpoints=self._checkpoints,
            gate=self._gate_in_sync,
            comparison=self._comparison,
            credentials=self._credentials,
        )
        return Migration(self._overview, [lane], allowed)

    async def _by_gate(self, own_key: bytes) -> CutOverCheckResult:
        del own_key
        return await self._gate()

    def _can_go_on(self, error: EngineError) -> bool:
        """Whether the transfer can go on once a hand has mended what `error` says.

        What has nothing on the target yet fails instead: another start is as good as a resume.
        """
        way = self._way
        if _follows(way) and way.in_doubt:
            # The target has not said whether it was opened: the engine that resumes asks it again.
            return True
        if _follows(way) and way.promoted:
            # What is left to do then is done when the migration is resumed.
            return isinstance(error, TransferStopped)
        if way is None or not way.begun:
            return False
        return isinstance(error, TransferStopped | LinkError | ServerError | AuthError | UsageError)

    def _report(self, status: Status, errors: list[str], seconds: float) -> Report:
        overview, progress = self._overview, self._overview.progress
        tallies, copy_seconds = overview.tallies, overview.copy_seconds
        moved = sum(stats.keys - stats.keys_before for stats in tallies)
        way: dict[str, Any] = {
            "seconds": seconds,
            "keys_per_second": moved / copy_seconds if copy_seconds else 0.0,
        }
        if self._way is not None:
            way["doubts"] = tuple(self._way.doubts)
            way["left_out"] = (
                *self._way.left_out,
                *(words for stats in tallies for words in stats.left_words()),
            )
        if _follows(self._way):
            way["fence_seconds"] = self._way.fence_seconds
            way["last_shard"] = self._way.last_shard
            way |= self._way.at_source()
            way["spool_bytes"] = self._way.spooled_most
        return Report(
            status=status,
            expired=sum(stats.expired for stats in tallies),
            not_carried=tuple(overview.not_carried),
            not_carried_total=sum(stats.not_carried_total for stats in tallies),
            losses=total_losses([each for stats in tallies for each in stats.losses]),
            errors=tuple(errors + [words for stats in tallies for words in stats.beyond()]),
            steps=tuple(overview.steps),
            verification=overview.verification,
            **{**progress.shared, **way},
        )
