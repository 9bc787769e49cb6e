"""Lanes that share a process as long as it has CPU (`--lanes-per-worker auto`).

All lanes begin in the migration's own process. A process that has used more than `BUSY` of a core
over a window in which all lanes followed (a longer one, while some catch up: they use what there
is) has half of its lanes, by the commands that they bring,
parted from it, where the machine has a CPU to spare: from then on every lane is driven by a process
of lanes (`transfer.remote_lane`), of which there is one more.

What is true at every moment:

- One process applies for a lane. Lanes are parted by ending them in order and opening them again:
  each one's last command, and the record that says so, have been answered by its target before
  another process is told of the lane; and that one goes on from what the record says. So nothing is
  applied twice, and nothing is left out.
- No lane copies anything again for it. Lanes are parted only while each source keeps more of its
  stream than what is written in the time that it takes (`_HELD_SECONDS`), beside what its target is
  behind by.
- Nothing waits for it but the stream. The processes are there, and have said so, before a lane is
  ended; where they are not, all goes on as it was.
- It never comes between an operator and the cut-over: not once the word is given, not while both
  ends are compared, not while a lane copies, dials or waits for an end.
- What one process alone knows of a lane is not forgotten by it: a lane for which a value was left
  out, as the target's process ends at it, stays where it is.
- It happens once at a time, with `APART_SECONDS` between, and is never undone. A process that dies
  afterwards is dealt with as ever.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine import logs
from engine.errors import EngineError
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.transfer import machine_cpu
from engine.transfer.formatting import size_words
from engine.transfer.lane_groups import inseparable
from engine.transfer.lane_plan import LaneEnds
from engine.transfer.lane_worker import LaneProcesses, LaneWorkers, WorkerProcess
from engine.transfer.migration import Migration
from engine.transfer.overview import Overview
from engine.wire.control_connection import admin

_log = logs.logger(__name__)
BUSY = 0.7
"""Of a core: a process that uses more has its lanes parted."""
WINDOW_SECONDS = 10.0
"""Over so long."""
CATCHING_UP_SECONDS = 60.0
"""The same where some lanes catch up."""
APART_SECONDS = 60.0
"""Between one time and the next."""
SPARE = 0.5
"""So much of a core has to have had nothing to do meanwhile."""
_SAMPLE_SECONDS = 1.0
# So long a source's backlog has to reach while nothing reads from it.
_HELD_SECONDS = 10.0
# Within so many, before lanes are ended, each process that drives some says that it lives.
_SIGN_SECONDS = 2.5
# How long processes may take to begin.
_READY_SECONDS = 30.0
_END_SECONDS = 5.0
# Of lanes' names, in an event.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """What was used and done until a moment: CPU seconds of each process (that of the migration, or
    those of its lanes), idle seconds of the machine's CPUs (None: not known), and of each lane, by
    its name, the commands applied and the source's offset. `caught_up`: no lane catches up."""

    at: float
    cpu: tuple[float, ...]
    idle: float | None
    commands: Mapping[str, int]
    offsets: Mapping[str, int]
    caught_up: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """The same of one second, over a window of `seconds`."""

    seconds: float
    cpu: tuple[float, ...]
    idle: float | None
    commands: Mapping[str, float]
    bytes: Mapping[str, float]


class Window:
    """Samples of the last seconds, without a break."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def clear(self) -> None:
        """What was before does not count."""
        self._samples.clear()

    def note(self, sample: Sample) -> None:
        """One more."""
        self._samples.append(sample)
        most = max(WINDOW_SECONDS, CATCHING_UP_SECONDS)
        while len(self._samples) > 2 and sample.at - self._samples[1].at >= most:
            self._samples.popleft()

    def _first(self) -> Sample | None:
        """Where the window begins; None: it is not full yet."""
        if not self._samples:
            return None
        now = self._samples[-1].at
        for sample in reversed(self._samples):
            if not sample.caught_up:
                break
            if now - sample.at >= WINDOW_SECONDS:
                return sample
        oldest = self._samples[0]
        return oldest if now - oldest.at >= CATCHING_UP_SECONDS else None

    @property
    def load(self) -> Load | None:
        """None: the window is not full yet."""
        first = self._first()
        if first is None or first is self._samples[-1]:
            return None
        last = self._samples[-1]
        seconds = last.at - first.at

        def rates(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, float]:
            return {name: max(now[name] - before.get(name, 0), 0) / seconds for name in now}

        idle = None
        if first.idle is not None and last.idle is not None:
            idle = (last.idle - first.idle) / seconds
        return Load(
            seconds,
            tuple((b - a) / seconds for a, b in zip(first.cpu, last.cpu, strict=True)),
            idle,
            rates(first.commands, last.commands),
            rates(first.offsets, last.offsets),
        )


@dataclass(frozen=True, slots=True)
class Parting:
    """From the process of this number (its place in `groups`), which used `share` of a core over
    `seconds`, the lanes of the last group go on in one of their own. `groups`: the places of all
    lanes, by process."""

    groups: tuple[tuple[int, ...], ...]
    process: int
    share: float
    seconds: float


def parted(
    lanes: Sequence[PlannedLane], groups: Sequence[Sequence[int]], load: Load, cpus: int
) -> Parting | None:
    """What is parted under this load, with so many CPUs; None: nothing."""
    if len(groups) >= cpus or (load.idle is not None and load.idle < SPARE):
        return None
    for process in sorted(range(len(groups)), key=lambda at: load.cpu[at], reverse=True):
        if load.cpu[process] <= BUSY:
            return None
        stay, go = _halves(lanes, groups[process], load.commands)
        if go:
            found = [tuple(group) for group in groups]
            found[process] = tuple(sorted(stay))
            return Parting((*found, tuple(sorted(go))), process, load.cpu[process], load.seconds)
    return None


def _halves(
    lanes: Sequence[PlannedLane], group: Sequence[int], commands: Mapping[str, float]
) -> tuple[list[int], list[int]]:
    """The lanes of a group in two parts that bring as much, as far as they can be parted."""
    sets = [[group[at] for at in members] for members in inseparable([lanes[at] for at in group])]
    weights = [sum(commands.get(lanes[at].name, 0.0) for at in members) for members in sets]
    parts: tuple[list[int], list[int]] = ([], [])
    heavy = [0.0, 0.0]
    for n in sorted(range(len(sets)), key=lambda n: weights[n], reverse=True):
        # Where both bring as much the one with fewer lanes.
        at = min((0, 1), key=lambda at: (heavy[at], len(parts[at])))
        parts[at].extend(sets[n])
        heavy[at] += weights[n]
    return parts


class LaneProcessSplit:
    """Which process has which lane of a migration, and when that changes."""

    def __init__(self, overview: Overview, settings: TransferSettings) -> None:
        self._overview = overview
        self._settings = settings
        # The process of each lane, by its name.
        self._process_of: dict[str, int] = {}
        self._count = 1
        self._window = Window()
        self._at = float("-inf")
        # Whether it was told of one that is too small, and of one that is not known.
        self._told_backlog = self._told_unknown = False
        self._ready: list[WorkerProcess] = []
        self._wanted: Parting | None = None
        self.looks = 0
        """How often a full window was looked at."""

    def groups(self, lanes: Sequence[PlannedLane]) -> list[list[int]]:
        """The places of these lanes, by process: where they were before, and lanes that are new
        with those that they share a server with, else where there are fewest."""
        found: list[list[int]] = [[] for _ in range(self._count)]
        for members in inseparable(lanes):
            names = [lanes[at].name for at in members]
            known = Counter(self._process_of[name] for name in names if name in self._process_of)
            fewest = min(range(len(found)), key=lambda at: len(found[at]))
            found[known.most_common(1)[0][0] if known else fewest].extend(members)
        found = [sorted(group) for group in found if group]
        self._note(lanes, found)
        return found

    def _note(self, lanes: Sequence[PlannedLane], groups: Iterable[Iterable[int]]) -> None:
        groups = list(groups)
        self._count = len(groups)
        self._process_of = {lanes[at].name: n for n, group in enumerate(groups) for at in group}

    # --- While the lanes go on ---

    async def watch(
        self,
        way: Migration,
        lanes: Sequence[PlannedLane],
        ends: Sequence[LaneEnds],
        workers: LaneWorkers | None,
        processes: LaneProcesses,
    ) -> None:
        """Have `way` end by `LanesParted` when its lanes are to be parted, for ever; `workers`: the
        processes that drive them, None: this one does."""
        try:
            await self._watch(way, lanes, ends, workers, processes)
        except Exception:
            # They go on where they are.
            _log.exception("Lanes are not split over more processes any more")
            await self.end()

    async def _watch(
        self,
        way: Migration,
        lanes: Sequence[PlannedLane],
        ends: Sequence[LaneEnds],
        workers: LaneWorkers | None,
        processes: LaneProcesses,
    ) -> None:
        self._window.clear()
        groups = self.groups(lanes)
        separable = any(len(inseparable([lanes[at] for at in group])) > 1 for group in groups)
        if not separable or len(groups) >= machine_cpu.cpus():
            return
        if self._settings.read_from == "replica":
            # Another process may choose another one, whose backlog is not known.
            return
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            now = asyncio.get_running_loop().time()
            if not way.may_part or now - self._at < APART_SECONDS:
                self._window.clear()
                continue
            self._window.note(_sample(now, way, workers))
            if (load := self._window.load) is None:
                continue
            self.looks += 1
            found = parted(lanes, groups, load, machine_cpu.cpus())
            if found is None:
                continue
            self._window.clear()
            self._at = now
            if await self._short_backlog(way, ends, load):
                continue
            self._wanted = found
            started = await self._start(processes, len(found.groups))
            # One that stands still would have all lanes wait for it.
            there = workers is None or await workers.answer(_SIGN_SECONDS)
            if started and there and way.may_part:
                if workers is not None:
                    workers.leaving = True
                if await way.part():
                    return
            if workers is not None:
                workers.leaving = False
            await self.end()

    async def _short_backlog(self, way: Migration, ends: Sequence[LaneEnds], load: Load) -> bool:
        """Whether a source may not have what a lane asks for when it is opened again."""
        kept = await asyncio.gather(*(_backlog(each.source, self._settings) for each in ends))
        for lane, each, size in zip(way.lanes, ends, kept, strict=True):
            if size is None:
                if not self._told_unknown:
                    self._told_unknown = True
                    self._overview.on_event(
                        "the process of the lanes has no CPU left, but they are not split over "
                        f"more processes for now: the source {each.source.address} does not say "
                        "how much of its stream it keeps"
                    )
                return True
            rate = load.bytes.get(lane.context.lane, 0.0)
            behind = lane.context.progress.lag_bytes or 0
            if size >= rate * _HELD_SECONDS + behind:
                continue
            if not self._told_backlog:
                self._told_backlog = True
                self._overview.on_event(
                    "the process of the lanes has no CPU left, but they are not split over more "
                    f"processes: the source {each.source.address} keeps {size_words(size)} of its "
                    f"stream and writes {size_words(int(rate))} a second, and the target is "
                    f"{size_words(behind)} behind, so that a lane that is moved might have to copy "
                    "everything again; a larger repl-backlog-size lets them be split"
                )
            return True
        return False

    async def _start(self, processes: LaneProcesses, count: int) -> bool:
        """Start so many processes; whether all of them are there."""
        try:
            for _ in range(count):
                self._ready.append(await processes.start())
            told = await asyncio.gather(*(_answers(each) for each in self._ready))
        except EngineError as exc:
            _log.warning("A process for lanes could not be started: %s", exc)
            return False
        if not all(told):
            _log.warning("A process for lanes did not answer after its start")
        return all(told)

    # --- When they are parted ---

    def take(self, lanes: Sequence[PlannedLane], processes: LaneProcesses) -> LaneProcesses:
        """What was wanted comes to be: `groups` are others from now on. The processes for them."""
        wanted, self._wanted = self._wanted, None
        assert wanted is not None
        self._note(lanes, wanted.groups)
        self._at = asyncio.get_running_loop().time()
        self._overview.on_event(_words(lanes, wanted))
        return _Started(processes, self._ready)

    async def end(self) -> None:
        """End processes that were started and are not needed."""
        self._wanted = None
        ready = list(self._ready)
        self._ready.clear()
        for process in ready:
            # It ends by that.
            process.socket.close()
        await asyncio.gather(*(process.ended(_END_SECONDS) for process in ready))


class _Started:
    """Processes of which some were started before."""

    def __init__(self, processes: LaneProcesses, ready: list[WorkerProcess]) -> None:
        self._processes = processes
        self.ready = ready

    async def start(self) -> WorkerProcess:
        """As of `LaneProcesses`."""
        return self.ready.pop() if self.ready else await self._processes.start()

    def had_keys(self) -> bool:
        """As of `LaneProcesses`."""
        return self._processes.had_keys()


def _sample(now: float, way: Migration, workers: LaneWorkers | None) -> Sample:
    told = {lane.context.lane: lane.context.progress for lane in way.lanes}
    cpu = (
        # The thread's that drives them: a library's caller may use others for its own work.
        (time.thread_time(),)
        if workers is None
        else tuple(each.cpu_seconds for each in workers.each)
    )
    return Sample(
        now,
        cpu,
        machine_cpu.idle_seconds(),
        {name: each.commands for name, each in told.items()},
        {name: each.source_offset or 0 for name, each in told.items()},
        all(each.phase is Phase.FOLLOW for each in told.values()),
    )


async def _answers(process: WorkerProcess) -> bool:
    """Wait until a process that was started says something; whether it lives."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(process.socket, heard.set)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await heard.wait()
        return bool(process.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except (TimeoutError, OSError):
        return False
    finally:
        loop.remove_reader(process.socket)


async def _backlog(end: Endpoint, settings: TransferSettings) -> int | None:
    """Bytes of its stream that a source keeps at the most; None: it does not tell."""
    try:
        async with admin(end, timeout=settings.connect_timeout, fault="source") as source:
            text = await source.call("INFO", "replication")
    except EngineError:
        return None
    for line in bytes(text).splitlines():
        name, _, value = line.partition(b":")
        if name == b"repl_backlog_size" and value.isdigit():
            return int(value)
    return None


def _words(lanes: Sequence[PlannedLane], parting: Parting) -> str:
    titles = [lanes[at].title for at in parting.groups[-1]]
    named = ", ".join(titles[:_NAMED])
    if len(titles) > _NAMED:
        named += f" and {len(titles) - _NAMED} more"
    used = f"used {parting.share:.0%} of a core over {parting.seconds:.0f} s"
    go = f"the lane {named} goes" if len(titles) == 1 else f"the lanes {named} go"
    if len(parting.groups) == 2:
        return f"the engine's process {used}: {go} on in another one, and all others in a third"
    return f"a process of lanes {used}: {go} on in another one"
