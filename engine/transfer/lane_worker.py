"""The processes that drive a migration's lanes, as the migration has them.

`LaneWorkers` are all of them, `LaneWorker` is one with the lanes that are its: it is started when
it is needed first, and again when it has ended before its lanes have (`transfer.remote_lane`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from engine import logs
from engine.errors import LinkError
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase, Progress
from engine.model.report import EngineUse
from engine.transfer.async_helpers import cancelled, to_the_end
from engine.transfer.control_connections import Side
from engine.transfer.lane_channel import Channel, WorkerLost
from engine.transfer.lane_messages import BUILD, Beat, LaneStatus, Wishes, WorkerSetup
from engine.transfer.overview import Overview

if TYPE_CHECKING:
    from engine.transfer.remote_lane import RemoteLane

_log = logs.logger(__name__)
_BEAT_SECONDS = 1.0
# Looks at a process between which nothing was heard of it, before it is ended. They are counted and
# not timed: this process may have been stopped as well.
_SILENT_MOST = 60
# The same in a cut-over, whose writers wait.
_SILENT_CUT_OVER = 5
# The same where it is to let its lanes go, for others to take: all of them wait meanwhile.
_SILENT_LEAVING = 4
# Behind so many it is told, and nothing is cut over.
_SILENT_TOLD = 3
# How long a process may take to end when it was asked to.
_END_SECONDS = 5.0
# Two processes tell of one cluster's slots within so many seconds.
_SAME_SECONDS = 5.0


class WorkerProcess(Protocol):
    """A process that was started; `socket` is our end of what it listens to."""

    pid: int
    socket: socket.socket

    async def ended(self, seconds: float) -> None:
        """Wait for its end, and after so many seconds kill it."""
        ...


class LaneProcesses(Protocol):
    """Starts processes, and knows what they have to be told beside the lanes."""

    async def start(self) -> WorkerProcess:
        """One more, which serves `transfer.lane_server.LaneServer`. Raises `LinkError`."""
        ...

    def had_keys(self) -> bool:
        """Whether the targets had keys of their own before the first of ours, as far as that is
        known."""
        ...


class LaneWorkers:
    """All processes of a migration."""

    def __init__(
        self, processes: LaneProcesses, overview: Overview, credentials: Credentials
    ) -> None:
        self.processes = processes
        self.overview = overview
        self.credentials = credentials
        self.each: list[LaneWorker] = []
        self.leaving = False
        """All of them are to let their lanes go: one that stands still is ended soon."""
        self._told: dict[str, float] = {}

    def add(self) -> LaneWorker:
        """One more, of which there is no process yet."""
        worker = LaneWorker(self)
        self.each.append(worker)
        return worker

    def clusters(self, sides: Sequence[Side]) -> list[RemoteCluster]:
        """What tells where the slots of the clusters at these ends are."""
        found = [RemoteCluster(self, side) for side in sides]
        for worker in self.each:
            worker.on_beat = lambda: [each.on_look() for each in found]
        return found

    def on_event(self, text: str) -> None:
        """A process tells of a cluster, as others may do."""
        now = asyncio.get_running_loop().time()
        self._told = {each: at for each, at in self._told.items() if now - at <= _SAME_SECONDS}
        if text not in self._told:
            self._told[text] = now
            self.overview.on_event(text)

    @property
    def use(self) -> EngineUse:
        """What they have used so far."""
        return EngineUse(
            sum(each.cpu_seconds for each in self.each), sum(each.peak for each in self.each)
        )

    async def answer(self, seconds: float) -> bool:
        """Whether each process says within so many seconds from now that it lives."""
        beats = {worker: worker.beats for worker in self.each}
        by = asyncio.get_running_loop().time() + seconds
        while beats := {each: was for each, was in beats.items() if each.beats == was}:
            if asyncio.get_running_loop().time() >= by:
                return False
            await asyncio.sleep(_BEAT_SECONDS / 4)
        return True

    async def end(self) -> None:
        """Whatever still runs is ended."""
        for worker in self.each:
            await worker.end()


class LaneWorker:
    """One of them."""

    def __init__(self, workers: LaneWorkers) -> None:
        self._workers = workers
        self.lanes: dict[str, RemoteLane] = {}
        self.number = 0
        """Which process this is: how many there have been."""
        self.channel: Channel | None = None
        """To the process that there is; None: there is none."""
        self.on_beat: Callable[[], object] = lambda: None
        self.beat = Beat()
        """What it has told last."""
        self.beats = 0
        """How often it has."""
        self._process: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._began = 0.0
        self._lived = 0.0
        self._silent = 0
        self._watch: asyncio.Task[None] | None = None
        self._wished = Wishes()
        self._turns: list[int] = []
        self._switching: contextlib.AsyncExitStack | None = None
        self._leaving: asyncio.Future[None] | None = None
        self._done: set[str] = set()
        # Of the processes before.
        self._cpu_before, self.peak = 0.0, 0

    def join(self, lane: RemoteLane) -> None:
        """One more lane is its."""
        self.lanes[lane.name] = lane

    # --- The process ---

    @property
    def living(self) -> bool:
        """Whether there is a process that was heard of."""
        return self.channel is not None and not self.channel.lost

    @property
    def pid(self) -> int | None:
        """That of the process; None: there is none just now."""
        return self._process.pid if self._process is not None and self.living else None

    @property
    def lived(self) -> float:
        """For how many seconds the process has lived that ended last."""
        return self._lived

    @property
    def cpu_seconds(self) -> float:
        """What all its processes have used."""
        return self._cpu_before + self.beat.cpu_seconds

    async def up(self) -> Channel:
        """The process, which is started if there is none. Raises `WorkerLost`, `StateError`."""
        async with self._starting:
            if self.channel is not None and not self.channel.lost:
                return self.channel
            await self._ended()
            lanes = [
                await asyncio.to_thread(lambda lane=lane: lane.setup)  # type: ignore[misc]
                for lane in self.lanes.values()
            ]
            overview, now = self._workers.overview, asyncio.get_running_loop().time()
            self._wished = self.wishes()
            of = logs.current()
            setup = WorkerSetup(
                BUILD,
                overview.settings,
                self._workers.credentials,
                overview.orders.one_go,
                overview.on_switch is not None,
                self._wished,
                tuple(lanes),
                {lane.name: lane.mark for lane in self._others},
                of.group,
                of.source,
                of.target,
                logging.getLogger(logs.ROOT).getEffectiveLevel(),
                overview.peers.all_crashing,
            )
            try:
                process = self._process = await self._workers.processes.start()
            except LinkError as exc:
                raise WorkerLost(exc.message, fault="engine") from exc
            channel = Channel(self._serves(), self._notes(), self._on_lost)
            self.number += 1
            self._began, self._silent = now, 0
            try:
                await channel.open(process.socket)
                self.channel = channel
                self._watch = asyncio.create_task(self._watching(channel, process))
                await channel.request("setup", setup)
            except BaseException:
                # It has no lanes: nothing may take it for one that has.
                await to_the_end(self._ended())
                raise
            # What they have told meanwhile.
            for lane in self._others:
                channel.notify("mark", lane.name, lane.mark)
            _log.info("A process drives lanes", extra={"pid": process.pid, "lanes": len(lanes)})
            return channel

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Ask the process that there is. Raises `WorkerLost`, and what it raises."""
        if self.channel is None:
            raise WorkerLost("the process of the lane has ended", fault="engine")
        return await self.channel.request(name, *arguments)

    async def ask_of(self, number: int, name: str, *arguments: Any) -> Any:
        """The same, if it still is the one of this number."""
        if self.number != number:
            raise WorkerLost("the process of the lane has ended", fault="engine")
        return await self.ask(name, *arguments)

    def notify(self, name: str, *arguments: Any) -> None:
        """Tell it, if there is one."""
        if self.channel is not None:
            self.channel.notify(name, *arguments)

    def tell_others(self, lane: RemoteLane) -> None:
        """What the checkpoint of this lane says is for all other processes."""
        for worker in self._workers.each:
            if worker is not self:
                worker.notify("mark", lane.name, lane.mark)

    def wishes(self) -> Wishes:
        """What is wanted of lanes just now."""
        orders = self._workers.overview.orders
        had_keys = self._workers.processes.had_keys()
        return Wishes(orders.skip_verification, had_keys, orders.steering)

    async def done_with(self, lane: RemoteLane) -> None:
        """Nothing more is asked of it for this lane; behind the last one it ends."""
        self._done.add(lane.name)
        if self._done >= set(self.lanes):
            await self.end()

    async def end(self) -> None:
        """Have it end, and wait for that."""
        async with self._starting:
            if self.channel is not None:
                self.channel.notify("end")
            await self._ended(_END_SECONDS)

    async def _ended(self, seconds: float = 0.0) -> None:
        """Behind this there is no process, and nothing that it has asked is under way."""
        if self._watch is not None:
            await cancelled(self._watch)
            self._watch = None
        process, self._process = self._process, None
        if process is not None:
            await process.ended(seconds)
        channel, self.channel = self.channel, None
        if channel is not None:
            await channel.closed()
            await channel.served()
            self._let_go()
        self._cpu_before += self.beat.cpu_seconds
        self.beat = Beat()

    async def _watching(self, channel: Channel, process: WorkerProcess) -> None:
        """End one that has not been heard of for long, and tell it what is wanted."""
        while True:
            await asyncio.sleep(_BEAT_SECONDS / 4)
            if (wishes := self.wishes()) != self._wished:
                self._wished = wishes
                channel.notify("wishes", wishes)
            self._silent += 1
            if self._silent == _SILENT_TOLD * 4:
                for lane in self.lanes.values():
                    lane.note_silent()
            writers_wait = any(lane.context.phase is Phase.CUT_OVER for lane in self.lanes.values())
            most = _SILENT_CUT_OVER if writers_wait else _SILENT_MOST
            if self._silent > min(most, _SILENT_LEAVING if self._workers.leaving else most) * 4:
                _log.warning("A process of lanes does not answer", extra={"pid": process.pid})
                await process.ended(0.0)
                return

    @property
    def _others(self) -> list[RemoteLane]:
        return [
            lane
            for worker in self._workers.each
            if worker is not self
            for lane in worker.lanes.values()
        ]

    # --- What it asks and tells ---

    def _serves(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {
            "save": self._save,
            "load": self._load,
            "turn": self._turn,
            "switching": self._switch,
            "on_switch": self._on_switch,
        }

    def _notes(self) -> dict[str, Callable[..., None]]:
        return {
            "status": self._note_status,
            "progress": self._note_progress,
            "look": lambda name: self.lanes[name].on_look(),
            "event": self._note_event,
            "beat": self._note_beat,
            "log": _note_log,
            "turn_over": self._turn_over,
            "switched": self._switched,
        }

    async def _save(self, name: str, checkpoint: Checkpoint) -> None:
        await to_the_end(self.lanes[name].save(checkpoint))

    async def _load(self, name: str) -> Checkpoint | None:
        found: Checkpoint | None = await self.lanes[name].load()
        return found

    async def _turn(self, key: int) -> None:
        """Of a source that the process calls so: no lane of another one reads from it."""
        await self._workers.overview.peers.turns.take((self, key), lambda _: None)
        self._turns.append(key)

    def _turn_over(self, key: int) -> None:
        if key in self._turns:
            self._turns.remove(key)
            self._workers.overview.peers.turns.give_back((self, key))

    async def _switch(self) -> None:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(self._workers.overview.peers.switching)
        self._switching = stack

    def _switched(self) -> None:
        stack, self._switching = self._switching, None
        if stack is not None:
            self._leaving = asyncio.ensure_future(stack.aclose())

    async def _on_switch(self, source: Endpoint, target: Endpoint) -> None:
        on_switch = self._workers.overview.on_switch
        assert on_switch is not None
        await on_switch(source, target)

    def _note_status(self, name: str, status: LaneStatus) -> None:
        self.lanes[name].note_status(status)

    def _note_progress(self, name: str, progress: Progress, how_far: str) -> None:
        self.lanes[name].note_progress(progress, how_far)

    def _note_event(self, name: str | None, text: str) -> None:
        if name is None:
            self._workers.on_event(text)
        else:
            self.lanes[name].context.on_event(text)

    def _note_beat(self, beat: Beat) -> None:
        if self._silent >= _SILENT_TOLD * 4:
            for lane in self.lanes.values():
                lane.note_heard()
        self.beat, self._silent = beat, 0
        self.beats += 1
        self.peak = max(self.peak, beat.peak_rss_bytes)
        self.on_beat()

    def _on_lost(self) -> None:
        self._lived = asyncio.get_running_loop().time() - self._began
        self._let_go()
        for lane in self.lanes.values():
            lane.note_lost()

    def _let_go(self) -> None:
        """What the process had is for others."""
        for key in list(self._turns):
            self._turn_over(key)
        self._switched()


class RemoteCluster:
    """A `WatchedCluster` of which the processes of the lanes tell."""

    def __init__(self, workers: LaneWorkers, side: Side) -> None:
        self._workers = workers
        self._side = side
        self.on_look: Callable[[], None] = lambda: None
        """As of `WatchedCluster`."""

    @property
    def moved_for(self) -> float:
        """As of `WatchedCluster`."""
        now = asyncio.get_running_loop().time()
        told = [each.beat.moved_at.get(self._side) for each in self._workers.each]
        return max((now - at for at in told if at is not None), default=0.0)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """The processes do so by themselves."""
        yield


def _note_log(members: dict[str, Any]) -> None:
    logger = logging.getLogger(str(members["name"]))
    if logger.isEnabledFor(int(members["levelno"])):
        logger.handle(logging.makeLogRecord(members))
