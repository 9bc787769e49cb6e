"""A process of lanes: drives them as the migration's own process asks (`transfer.remote_lane`).

It has no state of its own: checkpoints are kept by the migration's process, and where the lanes
stand is on the targets. Once that process is gone this one ends at once, in the middle of whatever
it does, as if it had been killed: nobody would know of what it does from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from engine import logs
from engine.errors import EngineError, LinkError, TransferStopped
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Progress
from engine.model.report import EngineUse
from engine.model.settings import TransferSettings
from engine.transfer import lane_building
from engine.transfer.async_helpers import cancelled
from engine.transfer.cluster_monitor import ClusterMonitor
from engine.transfer.control_connections import Side
from engine.transfer.cut_over_check import Comparison, CutOverCheckResult
from engine.transfer.cut_over_offer import Offer
from engine.transfer.lane import Lane
from engine.transfer.lane_channel import Channel, raised
from engine.transfer.lane_interface import LANES_OWN
from engine.transfer.lane_messages import BUILD, Beat, LaneSetup, LaneStatus, Wishes, WorkerSetup
from engine.transfer.lane_plan import LaneEnds
from engine.transfer.migration_context import MigrationContext, Orders
from engine.transfer.shared_promotion import Peers
from engine.transfer.snapshot_turns import SnapshotTurns
from engine.wire import failover_addresses, source_replica

_BEAT_SECONDS = 1.0
_WAIT_WORTH_TELLING = 0.1
# So many bytes may wait for a migration's process that stands still, before the lanes' ends.
_UNSENT_MOST = 64 << 20
_RECORD = ("name", "levelno", "levelname", "created", "msecs", "pathname", "lineno", "funcName")
_OF = ("migration", "shard", "end", "endpoint", "figures")

Comparisons = Callable[
    [Sequence[tuple[Endpoint, Endpoint, Route]], TransferSettings, Callable[[], bool]],
    Sequence[Comparison],
]


class LaneServer:
    """Serves one migration. `comparisons` makes what compares the ends of each lane; `use` tells
    what the process has used so far."""

    def __init__(self, comparisons: Comparisons, use: Callable[[], EngineUse]) -> None:
        self._comparisons = comparisons
        self._use = use
        self._ending = asyncio.Event()
        self._driven: dict[str, _Driven] = {}
        self._others: dict[str, OnlineCheckpoint] = {}
        self._clusters: dict[Side, ClusterMonitor] = {}
        self._orders: Orders
        self._wishes = Wishes()
        self._of = logs.current()
        self._watching = contextlib.AsyncExitStack()
        notes: dict[str, Callable[..., None]] = {
            "end": self._ending.set,
            "mark": self._note_mark,
            "wishes": self._note_wishes,
            "give_back": lambda name, number, over: self._driven[name].give_back(number, over),
            "fail": lambda name, number, cause: self._driven[name].fail(number, raised(cause)),
            "refuse": lambda name, why: self._driven[name].lane.cut_over.refuse(why),
            "break_off": lambda name, why: self._driven[name].lane.cut_over.break_off(why),
            "note_cut_over": lambda name, *last: self._driven[name].lane.cut_over.note_cut_over(
                *last
            ),
            "note_in_sync": lambda name: self._driven[name].lane.cut_over.note_in_sync(),
            "note_snapshot": lambda name: self._driven[name].lane.cut_over.note_snapshot(),
        }
        serves = {
            "setup": self._set_up,
            "connect": self._serving(lambda each: each.lane.connect()),
            "run": self._serving(self._run),
            "want": self._serving(_Driven.lend),
            "begin": self._serving(self._begin),
            "step": self._serving(_Driven.step),
            "end": self._serving(lambda each: each.lane.cut_over.end()),
            "close": self._serving(self._close),
            "abandon": self._serving(lambda each: each.lane.abandon()),
            "end_promoted": self._serving(lambda each: each.lane.end_promoted()),
            "save_last": self._serving(_Driven.save_last),
        }
        self._channel = Channel(serves, notes, _gone)
        self._channel.before_answer = self._tell

    async def run(self, end: socket.socket) -> None:
        """Serve until it is asked to end."""
        failover_addresses.begin()
        source_replica.begin()
        handler = _ToMigration(self._channel)
        logging.getLogger(logs.ROOT).addHandler(handler)
        logging.getLogger(logs.ROOT).propagate = False
        await self._channel.open(end)
        beating = asyncio.create_task(self._beat())
        await self._ending.wait()
        beating.cancel()
        await self._watching.aclose()
        self._tell_beat()

    # --- What is asked ---

    def _serving(self, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def serve(name: str, *arguments: Any) -> Any:
            of = self._of
            driven = self._driven[name]
            with (
                logs.migration(of.group, source=of.source, target=of.target),
                logs.of_shard(driven.lane.context.title),
            ):
                return await work(driven, *arguments)

        return serve

    async def _set_up(self, setup: WorkerSetup) -> None:
        """Make the lanes, which have taken up their checkpoints then, and watch their ends."""
        if setup.build != BUILD:
            raise TransferStopped(
                "the program has been replaced since the migration began: its processes cannot "
                "speak with each other",
                remedy="Resume the migration: it goes on with the program that is there now.",
            )
        logging.getLogger(logs.ROOT).setLevel(setup.log_level)
        self._of = logs.Migration(setup.group, setup.source, setup.target)
        self._orders = Orders(one_go=setup.one_go, steering=setup.wishes.steering)
        self._note_wishes(setup.wishes)
        self._others = {**setup.others, **self._others}
        peers = self._peers(setup)
        contexts = [self._context(each, setup, peers) for each in setup.lanes]
        stores = [_Checkpoints(self._channel, each) for each in setup.lanes]
        ends = [LaneEnds(each.source, each.target, each.route) for each in setup.lanes]
        compared = self._comparisons(
            [(each.source, each.target, each.route) for each in ends],
            setup.settings,
            lambda: self._wishes.had_keys,
        )
        with logs.migration(setup.group, source=setup.source, target=setup.target):
            lanes, self._clusters = lane_building.build(
                ends,
                contexts,
                stores,
                compared,
                _no_gate,
                setup.settings,
                setup.credentials,
                lambda text: self._channel.notify("event", None, text),
            )
            for lane in lanes:
                driven = self._driven[lane.context.lane] = _Driven(lane, self._channel)
                lane.on_look = driven.look
                lane.beside(len(lanes))
                lane.take_up()
            for cluster in self._clusters.values():
                cluster.on_look = self._tell_beat
                await self._watching.enter_async_context(cluster.watching())
            for lane in lanes:
                with logs.of_shard(lane.context.title):
                    await self._watching.enter_async_context(lane.watching())

    def _peers(self, setup: WorkerSetup) -> Peers:
        peers = Peers()
        most = setup.settings.parallel_snapshots
        peers.turns = _Turns(most, self._channel)
        peers.switching = _Switching(self._channel)
        peers.crashing[""] = setup.crashing
        for name in setup.others:
            peers.join(lambda name=name: self._others[name])  # type: ignore[misc]
        return peers

    def _context(self, lane: LaneSetup, setup: WorkerSetup, peers: Peers) -> MigrationContext:
        channel, name = self._channel, lane.name

        def publish(progress: Progress) -> None:
            driven = self._driven.get(name)
            if driven is not None:
                driven.tell()
                channel.notify("progress", name, progress, driven.lane.how_far)

        async def switch(source: Endpoint, target: Endpoint) -> None:
            await channel.request("on_switch", source, target)

        context = MigrationContext(
            setup.settings,
            on_progress=publish,
            on_event=lambda text: channel.notify("event", name, text),
            orders=self._orders,
            peers=peers,
            on_switch=switch if setup.switches else None,
            lane=name,
            title=lane.title,
        )
        context.began = asyncio.get_running_loop().time()
        return context

    async def _run(self, driven: _Driven) -> None:
        try:
            await driven.lane.run()
        finally:
            driven.lane.context.publish()

    async def _begin(self, driven: _Driven, number: int, wishes: Wishes) -> None:
        self._note_wishes(wishes)
        await driven.begin(number)

    async def _close(self, driven: _Driven, resumable: bool, forced: bool) -> None:
        await self._watching.aclose()
        await driven.lane.close(resumable=resumable, forced=forced)

    def _note_mark(self, name: str, mark: OnlineCheckpoint) -> None:
        self._others[name] = mark

    def _note_wishes(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._orders.skip_verification = wishes.skip_verification
        self._orders.steer(wishes.steering)

    # --- What is told ---

    def _tell(self) -> None:
        for driven in self._driven.values():
            driven.tell()

    async def _beat(self) -> None:
        while self._channel.unsent <= _UNSENT_MOST:
            self._tell()
            self._tell_beat()
            await asyncio.sleep(_BEAT_SECONDS)
        _gone()

    def _tell_beat(self) -> None:
        used, now = self._use(), asyncio.get_running_loop().time()
        moved: dict[str, float] = {
            side: now - each.moved_for for side, each in self._clusters.items() if each.moved_for
        }
        self._channel.notify("beat", Beat(used.cpu_seconds, used.peak_rss_bytes, moved))


class _Driven:
    """A lane, and what of it was told."""

    def __init__(self, lane: Lane, channel: Channel) -> None:
        self.lane = lane
        self._channel = channel
        self._told: LaneStatus | None = None
        self._offer: Offer | None = None
        self._number = 0
        self._broken: tuple[str, bool] | None = None

    def look(self) -> None:
        """It was looked where the lane stands."""
        self.tell()
        self._channel.notify("look", self.lane.context.lane)

    def tell(self) -> None:
        """Tell where it stands, if that has changed."""
        status = self._status()
        if status != self._told:
            self._told = status
            self._channel.notify("status", self.lane.context.lane, status)

    def _status(self) -> LaneStatus:
        lane, context, cut_over = self.lane, self.lane.context, self.lane.cut_over
        offer = lane.offer
        if offer is not self._offer:
            self._offer = offer
            if offer is not None:
                self._number += 1
        return LaneStatus(
            phase=context.phase,
            can_complete=context.can_complete,
            reason=context.reason,
            mark=lane.mark,
            stuck=lane.stuck,
            stranded=lane.stranded,
            may_move=lane.may_move,
            offer=self._number if offer is not None else 0,
            followed=offer is not None and offer.followed is not None,
            held_before=lane.held_before,
            begun=lane.begun,
            spooled_most=lane.spooled_most,
            left_out=tuple(lane.left_out),
            crashing=context.peers.crashing.get(context.lane, ()),
            stopped=cut_over.stopped,
            again=cut_over.again,
            fence_ends=cut_over.fence_ends,
            fence_seconds=cut_over.fence_seconds,
            late=cut_over.late("{}") if cut_over.fenced else "",
            broken=self._broken,
            failed_dials=context.failed_dials,
            copy_seconds=context.copy_seconds,
            steps=tuple(context.steps),
            verification=context.verification,
        )

    # --- Its part in a cut-over ---

    async def lend(self, number: int) -> bool:
        """Whether the migration has what was offered under this number, from now on."""
        offer = self._offer
        if offer is None or offer is not self.lane.offer or number != self._number:
            return False
        offer.want()
        await asyncio.wait({offer.lent})
        return not offer.lent.cancelled()

    def give_back(self, number: int, over: bool) -> None:
        """The cut-over has come to its end."""
        if self._offer is not None and number == self._number:
            self._offer.give_back(over=over)

    def fail(self, number: int, cause: Exception) -> None:
        """It has, by `cause`."""
        if self._offer is not None and number == self._number:
            self._offer.fail(cause)

    async def begin(self, number: int) -> None:
        """Take part, with what was offered under this number."""
        self._broken = None
        offer = self._offer
        if offer is None or number != self._number:
            raise LinkError("the lane has nothing to be cut over any more")
        await self.lane.cut_over.begin(offer.followed)

    async def step(self, name: str) -> None:
        """Take a step. Raises as it does."""
        try:
            await getattr(self.lane.cut_over, name)()
        except LANES_OWN as cause:
            self._broken = self.lane.note_broken(cause)
            raise

    async def save_last(self) -> list[str]:
        """What went wrong with it, if anything."""
        errors: list[str] = []
        await self.lane.save_last(errors)
        return errors


class _Checkpoints:
    """A lane's checkpoint, which is kept by the migration's process."""

    def __init__(self, channel: Channel, lane: LaneSetup) -> None:
        self._channel = channel
        self._name = lane.name
        self._last = lane.checkpoint
        self._loop = asyncio.get_running_loop()

    def load(self) -> Checkpoint | None:
        """On the loop's own thread the one that is known, on others as it is written. Raises
        `StateError`."""
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                return self._last
        asked = self._channel.request("load", self._name)
        found: Checkpoint | None = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """On a thread of its own. Raises `StateError`."""
        asked = self._channel.request("save", self._name, checkpoint)
        asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        self._last = checkpoint


class _Turns(SnapshotTurns):
    """The turns of all lanes, which the migration's process gives."""

    def __init__(self, most: int, channel: Channel) -> None:
        super().__init__(most)
        self._channel = channel
        self._keys: dict[Hashable, int] = {}

    async def take(self, source: Hashable, report: Callable[[str], None]) -> None:
        """See `SnapshotTurns`."""
        if not self.most:
            return
        key = self._keys.setdefault(source, len(self._keys))
        asked = asyncio.ensure_future(self._channel.request("turn", key))
        try:
            if not (await asyncio.wait({asked}, timeout=_WAIT_WORTH_TELLING))[0]:
                report(self.words)
            await asyncio.wait({asked})
        finally:
            report("")
            if not asked.done():
                await cancelled(asked)
                if not asked.cancelled() and asked.exception() is None:
                    self.give_back(source)
        asked.result()

    def give_back(self, source: Hashable) -> None:
        """See `SnapshotTurns`."""
        if self.most:
            self._channel.notify("turn_over", self._keys[source])


class _Switching:
    """Held by the one lane of all that has the applications' name moved."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __aenter__(self) -> None:
        await self._channel.request("switching")

    async def __aexit__(self, *_: object) -> None:
        self._channel.before_answer()
        self._channel.notify("switched")


class _ToMigration(logging.Handler):
    """Lines of the log are written by the migration's process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; one from another thread as well."""
        members = {name: getattr(record, name, None) for name in (*_RECORD, *_OF)}
        members["msg"], members["args"] = record.getMessage(), ()
        if record.exc_info:
            members["exc_text"] = logging.Formatter().formatException(record.exc_info)
        self._loop.call_soon_threadsafe(self._channel.notify, "log", members)


async def _no_gate(_: bytes) -> CutOverCheckResult:
    raise EngineError("lanes are compared by a comparison")


def _gone() -> None:
    os._exit(1)
