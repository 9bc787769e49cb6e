"""A migration of lanes that a test lays out by hand, in a thread of the test's process.

    with lanes([Way(source, node, Route(slots=…, to_cluster=True, tag="…"))]) as run:
        run.in_sync()
        run.cut_over()
    assert run.error is None

The operator is the test, which may block. Both ends are compared by the test, not at the cut-over.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from benches.support.clusters import Cluster, node_id
from benches.support.servers import Server
from benches.support.waiting import SECONDS, wait_for
from engine.errors import EngineError
from engine.fleet.cut_over_comparisons import comparisons_of
from engine.model.cluster_shard import ClusterShard
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet, slot_tag
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import Comparison, CutOverCheckResult
from engine.transfer.lane import Lane
from engine.transfer.migration import Migration
from engine.transfer.overview import Overview
from engine.wire import event_loop, failover_addresses
from tests.support.servers import End, offset_of, url_of

T = TypeVar("T")


@dataclass(frozen=True)
class Way:
    """From a source to a target, each perhaps behind a proxy: one lane. `at`: the source itself,
    where it is asked how far it is."""

    source: End | Endpoint
    target: End | Endpoint
    route: Route
    at: Any


class Lanes:
    """One migration, which begins with a `with` block and ends with it."""

    def __init__(
        self,
        ways: Sequence[Way],
        stores: Sequence[MemoryCheckpoint] | None = None,
        *,
        comparison: Callable[[Endpoint, Endpoint], Comparison] | None = None,
        compared: bool = False,
        resumable: bool = True,
        timeout: float = 120.0,
        **settings: Any,
    ) -> None:
        """`compared`: both ends of all lanes are compared at the cut-over, as by a worker."""
        self.events: list[str] = []
        self.error: EngineError | None = None
        self.migration: Migration
        self.overview: Overview
        self._compared = compared
        self.stores = list(stores) if stores else [MemoryCheckpoint() for _ in ways]
        self._ways = ways
        self._comparison = comparison
        self._resumable = resumable
        self._timeout = timeout
        self._settings = TransferSettings(
            **{"retry_for": 20.0, "source_type": "replica", "cut_over_timeout": 10.0, **settings}
        )
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)

    # --- What an operator sees and does ---

    def wait_for(self, condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
        """Wait until `condition`; what the migration told is in the failure."""

        def met() -> T | bool:
            assert self._failure is None, self._story()
            return self._call(condition)

        found: Any = wait_for(met, what, seconds, told=self._story)
        return found  # type: ignore[no-any-return]

    def following(self) -> None:
        """Wait until every lane follows."""
        self.wait_for(
            lambda: all(lane.context.progress.phase is Phase.FOLLOW for lane in self.lanes),
            "all lanes follow",
        )

    def in_sync(self) -> None:
        """Wait until each lane has what its source has written by now, and the gate is open."""
        offsets = [offset_of(way.at) for way in self._ways]

        def reached() -> bool:
            applied = [lane.context.progress.applied_offset for lane in self.lanes]
            pairs = zip(applied, offsets, strict=True)
            behind = any(at is None or at < wanted for at, wanted in pairs)
            return not behind and self.overview.progress.can_complete

        self.wait_for(reached, f"in sync at {offsets}")

    def refused(self) -> str:
        """Give the word; the refusal that follows."""
        before = sum(map(_is_refusal, self.events))
        self._loop.call_soon_threadsafe(self.overview.orders.word.set)
        self.wait_for(lambda: sum(map(_is_refusal, self.events)) > before, "a refusal")
        return next(each for each in reversed(self.events) if _is_refusal(each))

    def cut_over_soon(self) -> None:
        """Give the word once the gate is open, and wait for the end."""
        self.wait_for(lambda: self.overview.progress.can_complete, "the gate is open")
        self._loop.call_soon_threadsafe(self.overview.orders.word.set)
        self.ended()

    def ended(self) -> None:
        """Wait until it has ended by itself."""
        wait_for(lambda: not self._thread.is_alive(), "the end", told=self._story)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def give_word(self) -> None:
        """Give the word for the cut-over, and go on."""
        self._loop.call_soon_threadsafe(self.overview.orders.word.set)

    def cut_over(self, *, after_refusals: bool = False) -> None:
        """Give the word, until the migration is done. A refusal raises `AssertionError`."""
        self.in_sync()
        before = sum(map(_is_refusal, self.events)) if after_refusals else 0
        self._loop.call_soon_threadsafe(self.overview.orders.word.set)
        wait_for(
            lambda: not self._thread.is_alive() or sum(map(_is_refusal, self.events)) > before,
            "an end",
            told=self._story,
        )
        assert sum(map(_is_refusal, self.events)) == before, self._story()

    def _call(self, act: Callable[[], T]) -> T:
        """Run it on the engine's loop."""

        async def there() -> T:
            return act()

        assert self._loop.is_running(), f"it has ended: {self.error!r}, {self.events[-15:]}"
        found = asyncio.run_coroutine_threadsafe(there(), self._loop)
        while not concurrent.futures.wait([found], timeout=0.1).done:
            assert self._thread.is_alive(), f"it has ended: {self.error!r}, {self.events[-15:]}"
        return found.result()

    def stop(self) -> None:
        """End the engine where it stands, as SIGTERM does, and wait for that."""
        if self._task is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), self._story()

    @property
    def lanes(self) -> Sequence[Lane]:
        """All of them."""
        return self.migration.lanes

    # --- Its run ---

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._began.wait(SECONDS)
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            with contextlib.suppress(Exception):
                self.stop()
            return
        self._thread.join(self._timeout + SECONDS)
        assert not self._thread.is_alive(), self._story()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            event_loop.run(self._main())
        except BaseException as error:  # for whoever joins
            self._failure = error
        finally:
            self._began.set()

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        failover_addresses.begin()
        overview = self.overview = Overview(
            self._settings, on_progress=lambda _: None, on_event=self.events.append, one_go=False
        )
        names = [f"lane{n}" if n else "" for n, _ in enumerate(self._ways)]
        compared = self._comparisons()
        parts = zip(self._ways, names, self.stores, compared, strict=True)
        lanes = [self._lane(*each) for each in parts]
        migration = self.migration = Migration(overview, lanes)
        overview.begin(self._loop.time())
        self._began.set()
        try:
            async with asyncio.timeout(self._timeout), migration.watching():
                await migration.run()
        except EngineError as error:
            self.error = error
        except asyncio.CancelledError:
            assert self._task is not None
            self._task.uncancel()
        finally:
            await migration.close(resumable=self._resumable)
        await migration.save_last([])

    def _comparisons(self) -> Sequence[Comparison | None]:
        ends = [(_endpoint(way.source), _endpoint(way.target), way.route) for way in self._ways]
        if self._compared:
            return comparisons_of(ends, self._settings, lambda: bool(self.migration.held_before))
        if self._comparison is None:
            return [None] * len(ends)
        return [self._comparison(source, target) for source, target, _ in ends]

    def _lane(
        self, way: Way, name: str, store: MemoryCheckpoint, comparison: Comparison | None
    ) -> Lane:
        ends = _endpoint(way.source), _endpoint(way.target)
        return Lane(
            *ends,
            self.overview.lane(name),
            checkpoints=store,
            gate=_pass_all,
            comparison=comparison,
            route=way.route,
        )

    def _story(self) -> str:
        told = [self._failure, self.error, self.events[-15:]]
        if self._thread.is_alive() and self._loop.is_running():
            told.append(self._call(lambda: [lane.context.progress for lane in self.lanes]))
        return str(told)


def shard_of(cluster: Cluster, primary: Server) -> Endpoint:
    """The shard of this primary, by whichever of its nodes is the primary by now."""
    seeds = tuple((node.host, node.port) for node in cluster.nodes)
    ids = tuple(node_id(node) for node in (primary, *cluster.replicas_of(primary)))
    slots = SlotSet.of(cluster.slots_of(primary))
    return replace(Endpoint.parse(primary.url), cluster=ClusterShard(seeds, ids, slots))


def ways_into(source: Server, cluster: Cluster, *, by_shard: bool = False) -> list[Way]:
    """From one server to each primary of a cluster, or to its shard by whichever node."""
    found = []
    for n, node in enumerate(cluster.primaries):
        slots = SlotSet.of(cluster.slots_of(node))
        route = Route(
            slots=slots,
            to_cluster=True,
            tag=slot_tag(next(iter(slots))),
            leads=not n,
            shared_source=True,
        )
        found.append(Way(source, shard_of(cluster, node) if by_shard else node, route, source))
    return found


def ways_from(cluster: Cluster, target: Server) -> list[Way]:
    """From each primary of a cluster to one server."""
    found = []
    for node in cluster.primaries:
        slots = SlotSet.of(cluster.slots_of(node))
        route = Route(slots=slots, from_cluster=True, shared_target=True)
        found.append(Way(node, target, route, node))
    return found


def _endpoint(end: End | Endpoint) -> Endpoint:
    return end if isinstance(end, Endpoint) else Endpoint.parse(url_of(end))


async def _pass_all(_: bytes) -> CutOverCheckResult:
    return CutOverCheckResult(True, "compared by the test")


def _is_refusal(event: str) -> bool:
    return "cut-over refused: " in event
