"""A migration by the library, in a thread of the test's process; the test is its operator.

    with migrating(source, target) as run:      # as a replica, until the word is given
        run.following()
        source.client().set("late", "1")
        run.cut_over()
    assert run.report.status == "done"

    run = migrated(source, target, checkpoints=store)   # the same, from its start to its end
    run = copied(source, target)                        # by SCAN, in one go, without a comparison

`copying` is `copied` with a test beside it. What is handed in (`gate`, `comparison`, …) is called
on the engine's event loop, which the test does not share: the test may block.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

import redis

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import SECONDS, wait_for
from engine.fleet.cut_over_comparisons import comparison_of, comparisons_of
from engine.fleet.lane_processes import LaneProcesses
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import ENDS, Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import CheckpointStore, MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.transfer import Transfer
from engine.wire import event_loop
from tests.support.servers import End, url_of

T = TypeVar("T")

TIMEOUT = 120.0
"""A migration that takes longer hangs: it fails the test. In seconds."""

# What `Transfer` takes beside its settings.
_OF_TRANSFER = (
    "gate",
    "gate_in_sync",
    "gate_of_files",
    "comparison",
    "comparisons",
    "compare",
    "one_go",
    "on_switch",
    "credentials",
    "held_before",
    "processes",
)


class Run:
    """One migration, which begins with a `with` block (or `start`) and ends with it.

    `events` are all that it told so far, `history` each state that it told, `progress` the state
    now, `report` how it ended. What makes the block fail stops the migration, and is raised.

    Args:
        on_progress: called with each state that is told, on the engine's loop.
        timeout: in seconds, for the whole run.
        options: what `Transfer` takes by name (`credentials` are given to both ends as well); the
            rest are `TransferSettings`.
    """

    def __init__(
        self,
        source: End,
        target: End,
        *,
        checkpoints: CheckpointStore | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float = TIMEOUT,
        **options: Any,
    ) -> None:
        self.report = Report("failed")
        self.events: list[str] = []
        self.history: list[Progress] = []
        self._source = source
        self._ends = source, target
        self._on_progress = on_progress
        self._timeout = timeout
        handed_in = {name: options.pop(name) for name in _OF_TRANSFER if name in options}
        handed_in.setdefault("processes", LaneProcesses(lambda: bool(self.work.held_before)))
        # This process has the traffic of the test as well: its CPU says nothing of the lanes'.
        self._settings = TransferSettings(**{"retry_for": 10.0, "lanes_per_worker": 0, **options})
        self.work = Transfer(
            *_endpoints(source, target, handed_in),
            self._settings,
            checkpoints=checkpoints or MemoryCheckpoint(),
            on_progress=self._told,
            on_event=self.events.append,
            **{"gate": _pass_all, **handed_in},
        )
        self._last = Progress(Phase.CONNECT)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="migration", daemon=True)

    # --- What an operator sees ---

    @property
    def progress(self) -> Progress:
        """How things stand now, or stood at the end."""
        return self.call(self._now)

    @property
    def refusals(self) -> list[str]:
        """The reasons of the cut-overs that were refused so far."""
        return [event for event in self.events if "cut-over refused: " in event]

    @property
    def ended(self) -> bool:
        """Whether it has ended, in whichever way."""
        return not self._thread.is_alive()

    def wait_for(self, condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
        """Wait until `condition`; what the migration told is in the failure."""
        return wait_for(condition, what, seconds, told=self._story)

    def reaches(self, phase: Phase, seconds: float = SECONDS) -> None:
        """Wait until the migration is in this phase. Another end raises `AssertionError`."""
        seen: list[Phase] = []

        def there() -> bool:
            seen[:] = [self.progress.phase]
            return seen[0] is phase or seen[0] in ENDS

        self.wait_for(there, f"the phase {phase}", seconds)
        assert seen[0] is phase, self._story()

    def following(self) -> None:
        """Wait until the snapshot is over and what was written meanwhile is applied."""
        self.reaches(Phase.FOLLOW)

    def in_sync(self, source: Server | None = None) -> None:
        """Wait until what is written by now is on the target, and the migration can be completed.

        `source`: the server that is followed now, where it is another than at the beginning. Of
        several shards the offsets are not looked at: what is behind, the cut-over applies.
        """
        if source is None and any(isinstance(end, Cluster) for end in self._ends):
            self.wait_for(lambda: self.progress.can_complete, "a gate that is open")
            return
        offset = int(self._info(source, "replication")["master_repl_offset"])
        self.wait_for(
            lambda: self.progress.can_complete and (self.progress.applied_offset or 0) >= offset,
            f"in sync at offset {offset}",
        )

    # --- What an operator does ---

    def complete(self, *, force: bool = False, skip_verification: bool = False) -> None:
        """Give the word, as `Transfer.complete` takes it."""
        self.call(lambda: self.work.complete(force=force, skip_verification=skip_verification))

    def stop(self) -> None:
        """Stop soon; what is acknowledged stays."""
        self.call(self.work.stop)

    def cut_over(self, source: Server | None = None, *, again: str = "the deadline of") -> None:
        """Once in sync, give the word, and wait for the end. A refusal raises `AssertionError`;
        one that says `again` is tried again, where that is another text than the usual one.

        Redis 6.0 is paused for half a second at first, and the test may have set a deadline of few
        seconds, which a slow machine may need for other things: there a deadline that passed is
        tried again, as an operator would.
        """
        version = str(self._info(source, "server")["redis_version"]).split(".")
        usual = again == "the deadline of"
        long = self._settings.cut_over_timeout >= TransferSettings().cut_over_timeout
        tries = 1 if usual and long and tuple(map(int, version[:2])) >= (6, 2) else 5
        while True:
            self.in_sync(source)
            before = len(self.refusals)
            self.complete()
            self.wait_for(
                lambda: self.progress.phase in ENDS or len(self.refusals) > before,  # noqa: B023
                "an end",
            )
            tries -= 1
            if self.progress.phase in ENDS:
                break
            if not tries or again not in self.refusals[-1]:
                break
        assert self.progress.phase is Phase.DONE, self._story()

    def refused(self, *, skip_verification: bool = False) -> str:
        """Give the word; the reason of the refusal that follows."""
        before = len(self.refusals)
        self.complete(skip_verification=skip_verification)
        self.wait_for(lambda: len(self.refusals) > before, "a refusal")
        return self.refusals[-1]

    def call(self, act: Callable[[], T]) -> T:
        """Run `act` on the engine's loop, between two of its steps; here, if it does not run."""
        if self._loop is None:
            return act()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def there() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(act())
            except BaseException as error:  # for the caller
                done.set_exception(error)

        with contextlib.suppress(RuntimeError):  # it has ended just now
            self._loop.call_soon_threadsafe(there)
        while not concurrent.futures.wait([done], timeout=0.1).done:
            if self.ended and done.cancel():
                return act()
        return done.result()

    # --- Its run ---

    def start(self) -> Self:
        """Begin."""
        self._thread.start()
        assert self._began.wait(SECONDS)
        return self

    def join(self) -> Self:
        """Wait for the end. Raises what the run raised, and `TimeoutError` after its timeout."""
        self._thread.join(self._timeout + SECONDS)
        assert self.ended, f"no end: {self._story()}"
        if self._failure is not None:
            raise self._failure
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.join()
            return
        # The failure of the test is the one to be told.
        with contextlib.suppress(Exception):
            self.stop()
            self.join()

    def _run(self) -> None:
        try:
            event_loop.run(self._main())
        except BaseException as error:  # for whoever joins
            self._failure = error
        finally:
            self._began.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began.set()
        try:
            async with asyncio.timeout(self._timeout):
                self.report = await self.work.run()
        finally:
            self._last = self.work.progress

    def _now(self) -> Progress:
        # Its figures hang on the clock of a loop that runs.
        running = self._loop is not None and self._loop.is_running()
        return self.work.progress if running else self._last

    def _told(self, progress: Progress) -> None:
        self.history.append(progress)
        if self._on_progress is not None:
            self._on_progress(progress)

    def _info(self, source: Server | None, section: str) -> dict[str, Any]:
        end = source or self._source
        if isinstance(end, Cluster):
            end = end.nodes[0]
        if isinstance(end, Server):
            client = end.client()
        elif isinstance(end, Proxy):
            client = redis.Redis(*end.upstream)
        else:
            client = redis.Redis.from_url(end)
        with client:
            found: dict[str, Any] = client.info(section)
        return found

    def _story(self) -> str:
        return f"{self.progress}, {self.report.errors}, the last events: {self.events[-10:]}"


def migrating(source: End, target: End, **options: Any) -> Run:
    """A migration as a replica, with the comparison that the product has; for a `with` block."""
    ends = _endpoints(source, target, options)
    options = {"source_type": "replica", **options}
    rules = {name: options[name] for name in ("include", "exclude") if name in options}
    settings = TransferSettings(**rules)
    run: list[Run] = []

    def held_before() -> bool:
        return bool(rules and run and run[0].work.held_before)

    if "gate_in_sync" not in options:
        options.setdefault("comparison", comparison_of(*ends, settings, held_before))
        # Where an end is a cluster.
        options.setdefault(
            "comparisons", lambda lanes: comparisons_of(lanes, settings, held_before)
        )
    run.append(Run(source, target, **options))
    return run[0]


def _endpoints(source: End, target: End, given: dict[str, Any]) -> tuple[Endpoint, Endpoint]:
    credentials = given.get("credentials", Credentials())
    here, there = (credentials.apply(Endpoint.parse(url_of(end))) for end in (source, target))
    return here, there


def migrated(source: End, target: End, **options: Any) -> Run:
    """`migrating`, from its start to its end."""
    return migrating(source, target, **options).start().join()


def copying(source: End, target: End, **options: Any) -> Run:
    """A migration by SCAN (or of a file) in one go, that compares nothing; for a `with` block."""
    return Run(source, target, **{"source_type": "scan", "one_go": True, **options})


def copied(source: End, target: End, **options: Any) -> Run:
    """`copying`, from its start to its end."""
    return copying(source, target, **options).start().join()


async def _pass_all() -> CutOverCheckResult:
    return CutOverCheckResult(True, "not verified")
