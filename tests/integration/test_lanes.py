"""Two lanes into one target: two sources whose keys are not each other's, one migration, and one
cut-over of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from benches.support.servers import Server
from benches.support.waiting import soon
from engine.errors import EngineError, LinkError, StateError
from engine.fleet.cut_over_comparisons import comparison_of
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.progress import Phase, Progress
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.lane import Lane
from engine.transfer.migration import Migration
from engine.transfer.overview import Overview
from engine.transfer.promotion import Promotion
from engine.wire import failover_addresses
from engine.wire.event_loop import run
from tests.support.checkpoints import DiesAt, opened
from tests.support.own_keys import OWN_PREFIX
from tests.support.servers import ServerFactory, known, offset_of, refuses_writes
from tests.support.writers import Clicks

NAMES = ("", "b")
KEYS = 300


class Lanes:
    """What a migration of two lanes told, and how it ended."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.progress: list[Progress] = []
        self.error: EngineError | None = None
        self.migration: Migration
        self.overview: Overview

    async def in_sync(self, sources: Sequence[Server]) -> None:
        """Both lanes have what is written by now, and the gate of the whole is open."""
        offsets = [offset_of(source) for source in sources]

        def reached() -> bool:
            applied = [lane.context.progress.applied_offset for lane in self.migration.lanes]
            pairs = zip(applied, offsets, strict=True)
            behind = any(at is None or at < wanted for at, wanted in pairs)
            return not behind and self.overview.progress.can_complete

        await soon(reached, "both lanes in sync")

    async def refused(self) -> str:
        """Give the word; the refusal that follows."""
        before = self._refusals()
        self.overview.orders.word.set()
        await soon(lambda: len(self._refusals()) > len(before), "a refusal")
        return self._refusals()[-1]

    def _refusals(self) -> list[str]:
        return [event for event in self.events if "cut-over refused: " in event]


Steer = Callable[[Lanes], Awaitable[None]]


def migrate(
    sources: Sequence[Server],
    target: Server,
    steer: Steer,
    stores: Sequence[MemoryCheckpoint],
) -> Lanes:
    """One migration of a lane for each source; `steer` is awaited beside it."""
    settings = TransferSettings(retry_for=20.0, source_type="replica", cut_over_timeout=10.0)
    told = Lanes()

    async def main() -> None:
        failover_addresses.begin()
        overview = told.overview = Overview(
            settings,
            on_progress=told.progress.append,
            on_event=told.events.append,
            one_go=False,
        )

        async def gate(_: bytes) -> Any:
            raise AssertionError("both ends are compared by the comparison")

        def lane(source: Server, name: str, store: MemoryCheckpoint) -> Lane:
            ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
            comparison = comparison_of(*ends, settings, lambda: True)
            return Lane(
                *ends,
                overview.lane(name),
                checkpoints=store,
                gate=gate,
                comparison=comparison,
                route=Route(shared_target=True),
            )

        migration = told.migration = Migration(
            overview, [lane(*each) for each in zip(sources, NAMES, stores, strict=True)]
        )
        overview.begin(asyncio.get_running_loop().time())
        work = asyncio.current_task()
        assert work is not None

        async def steered() -> None:
            try:
                await steer(told)
            except BaseException:
                work.cancel()
                raise

        beside = asyncio.create_task(steered())
        try:
            async with asyncio.timeout(100), migration.watching():
                await migration.run()
        except EngineError as error:
            told.error = error
        except asyncio.CancelledError:
            if not beside.done():
                raise
            work.uncancel()
        finally:
            await migration.close(resumable=True)
            await asyncio.gather(beside)
        await migration.save_last([])

    run(main())
    return told


@pytest.fixture
def servers(server_factory: ServerFactory) -> tuple[list[Server], Server]:
    """Two sources with keys of their own, and a target."""
    sources = [server_factory(known("redis-7.0")) for _ in NAMES]
    for at, source in enumerate(sources):
        with source.client().pipeline(transaction=False) as pipe:
            for number in range(KEYS):
                pipe.set(f"{at}:{number}", number, ex=3600 if number % 3 else None)
            pipe.execute()
    return sources, server_factory(known("redis-7.0"))


def taken(stores: Sequence[MemoryCheckpoint]) -> list[OnlineCheckpoint]:
    """The checkpoints of both lanes."""
    found = [store.load() for store in stores]
    return [
        each.position
        for each in found
        if each is not None and isinstance(each.position, OnlineCheckpoint)
    ]


def assert_moved(sources: Sequence[Server], target: Server, writers: Sequence[Clicks]) -> None:
    """Every acknowledged write is on the target, both sources refuse writes, and nothing of ours is
    left."""
    client = target.client()
    for at, source in enumerate(sources):
        assert client.mget(f"{at}:{number}" for number in range(KEYS)) == [
            str(number).encode() for number in range(KEYS)
        ]
        assert refuses_writes(source)
    for writer in writers:
        assert "NOREPLICAS" in writer.refusal
        assert int(client.get(writer.key)) == writer.acknowledged > 0
    assert [key for key in client.scan_iter() if key.startswith(OWN_PREFIX)] == []
    assert all(client.pttl(key) < 3_600_001 for key in client.scan_iter())


def test_two_lanes_are_cut_over_at_once(servers: tuple[list[Server], Server]) -> None:
    """A refusal on one lane leaves both sources open, and both lanes following; then both targets
    are open, or none."""
    sources, target = servers
    stores = [MemoryCheckpoint(), MemoryCheckpoint()]
    fenced: list[bool] = []

    async def differs(*_: object) -> CutOverCheckResult:
        fenced.extend(mark.fenced for mark in taken(stores))
        return CutOverCheckResult(False, "keys differ")

    async def steer(told: Lanes) -> None:
        await told.in_sync(sources)
        client = target.client()
        assert client.exists(OwnKeys("").position) == client.exists(OwnKeys("", "b").position) == 1
        # Differs on the second lane alone, behind the fences of both.
        check: Any = told.migration.lanes[1]._check
        check.run = differs
        assert "cut-over refused: lane b: keys differ" in await told.refused()
        del check.run
        assert fenced == [True, True]
        assert told.overview.progress.phase is Phase.FOLLOW
        assert not any(lane.mark.opened or lane.mark.fenced for lane in told.migration.lanes)
        before = [writer.acknowledged for writer in writers]
        await soon(
            lambda: all(
                writer.acknowledged > at + 10 for writer, at in zip(writers, before, strict=True)
            ),
            "writers that go on at both sources",
        )
        await told.in_sync(sources)
        told.overview.orders.word.set()

    with (
        Clicks(sources[0], key="0:clicks", pause=0.002) as one,
        Clicks(sources[1], key="1:clicks", pause=0.002) as other,
    ):
        writers = [one, other]
        told = migrate(sources, target, steer, stores)
    assert told.error is None, (told.error, told.events)
    assert told.progress[-1].phase is Phase.DONE
    assert sum("cut over at offset" in event for event in told.events) == 2
    assert any(event.startswith("lane b: cut over at offset") for event in told.events)
    assert_moved(sources, target, writers)
    # Progress counted the keys of both, and said no offset that would be of one alone.
    assert told.progress[-1].keys >= 2 * KEYS
    assert told.progress[-1].applied_offset is None


def test_a_promotion_that_fails_on_one_lane(
    servers: tuple[list[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other lane's target was promoted by then: that does not count, and both are followed
    again, with what was written since."""
    sources, target = servers
    stores = [MemoryCheckpoint(), MemoryCheckpoint()]
    promote = Promotion.promote
    promoted = asyncio.Event()
    failed: list[bool] = []

    async def promoting(self: Promotion, *args: Any, **options: Any) -> None:
        if self._ends.route.lane and not failed:
            await promoted.wait()
            failed.append(True)
            raise LinkError("the target's link was lost", fault="target")
        await promote(self, *args, **options)
        promoted.set()

    monkeypatch.setattr(Promotion, "promote", promoting)

    async def steer(told: Lanes) -> None:
        await told.in_sync(sources)
        why = await told.refused()
        assert "the target's link was lost" in why
        # It is asked, taken back, and followed.
        for at, source in enumerate(sources):
            assert await asyncio.to_thread(
                source.client(socket_timeout=20).set, f"{at}:late", "written since"
            )
        await told.in_sync(sources)
        marks = [lane.mark for lane in told.migration.lanes]
        assert not any(mark.opened or mark.fenced or mark.promoting for mark in marks)
        told.overview.orders.word.set()

    told = migrate(sources, target, steer, stores)
    assert told.error is None, (told.error, told.events)
    assert target.client().mget("0:late", "1:late") == [b"written since"] * 2
    assert any(
        "the promotion was revoked, and the source is followed again" in e for e in told.events
    )
    assert_moved(sources, target, [])


def test_an_engine_that_dies_between_two_commits(servers: tuple[list[Server], Server]) -> None:
    """One lane's checkpoint says that its target is open, the other's does not yet: the next engine
    opens both, for what was written there since is nowhere else."""
    sources, target = servers
    store = DiesAt(opened)
    stores = [MemoryCheckpoint(), store]

    async def steer(told: Lanes) -> None:
        await told.in_sync(sources)
        told.overview.orders.word.set()

    with (
        Clicks(sources[0], key="0:clicks", pause=0.002) as one,
        Clicks(sources[1], key="1:clicks", pause=0.002) as other,
    ):
        told = migrate(sources, target, steer, stores)
        assert isinstance(told.error, StateError), (told.error, told.events)
        marks = taken(stores)
        assert [mark.opened for mark in marks] == [True, False]
        assert marks[1].promoting
        assert marks[1].timed
        left = store.left()

        async def nothing(_: Lanes) -> None:
            pass

        told = migrate(sources, target, nothing, [stores[0], left])
    assert told.error is None, (told.error, told.events)
    assert told.progress[-1].phase is Phase.DONE
    assert_moved(sources, target, [one, other])
