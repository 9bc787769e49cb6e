"""What makes a full sync necessary again, and what must not come of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from engine.transfer.checkpoint import MemoryCheckpoint
from engine.transfer.transfer import Transfer
from tests.conftest import ServerFactory
from tests.converge import assert_settled
from tests.online import assert_tidy, cut_over, following, in_sync, online, phase, soon
from engine.model.progress import ENDS, Phase
from tests.proxy import Proxy
from tests.servers import Server, binaries
from tests.traffic import Counters
from tests.transfers import Run

NAMES = ("redis-7.0", "valkey-9")


@pytest.fixture(params=NAMES)
def ends(request: pytest.FixtureRequest, server_factory: ServerFactory) -> tuple[Server, Server]:
    """Source (with a small backlog) and target."""
    found = [each for each in binaries() if each.name.startswith(request.param)]
    if not found:
        pytest.skip(f"no {request.param} on this machine")
    source = server_factory(found[0], "--repl-backlog-size", "16kb")
    target = server_factory(found[0])
    source.client().mset({f"key:{n}": n for n in range(300)})
    source.client(1).set("timed", "x", ex=3000)
    return source, target


def test_the_backlog_is_gone(ends: tuple[Server, Server]) -> None:
    source, target = ends

    def write() -> None:
        pipe = source.client().pipeline(transaction=False)
        for n in range(50):
            pipe.set(f"new:{n}", b"x" * 100_000)
        pipe.delete(*(f"key:{n}" for n in range(100)))
        pipe.execute()

    with Proxy(source.host, source.port) as proxy:

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            proxy.refuse()
            proxy.cut_now()
            await asyncio.to_thread(write)
            proxy.refuse(False)
            await soon(lambda: work.progress.full_syncs == 2, "another full sync")
            await cut_over(work, run, source)

        run = online(proxy, target, steer)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 2
    assert any("full sync again" in event for event in run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_the_target_loses_its_data(ends: tuple[Server, Server]) -> None:
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await asyncio.sleep(0.2)
        target.client().flushall()
        await soon(lambda: work.progress.full_syncs == 2, "another full sync")
        await asyncio.to_thread(counters.stop)
        await cut_over(work, run, source)

    with Counters(source) as counters:
        run = online(source, target, steer)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert any("the target lost this migration's data" in event for event in run.events)
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_the_source_comes_back_empty(ends: tuple[Server, Server]) -> None:
    """Restarted without its data it must not empty the target as well."""
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        source.kill()
        await asyncio.to_thread(source.restart)
        await phase(work, Phase.FAILED)

    run = online(source, target, steer)
    assert run.report.status == "failed"
    assert "the source has 0 keys left; 301 of those before are on the target" in (
        run.report.errors[0]
    )
    assert target.client().dbsize() == 300
    assert 0 < target.client(1).ttl("timed") <= 3000
    assert_tidy(target)


def test_two_engines_with_one_token(ends: tuple[Server, Server]) -> None:
    """The one that was taken for dead wakes up beside its successor: one of them stops."""
    source, target = ends
    source.client().config_set("repl-backlog-size", 16 << 20)
    first_store, second_store = MemoryCheckpoint(), MemoryCheckpoint()
    works: list[Transfer] = []
    second: list[Run] = []

    async def steer_second(work: Transfer, run: Run) -> None:
        works.append(work)
        await soon(lambda: works[0].progress.phase in ENDS or works[1].progress.phase in ENDS, "one")

    async def steer(work: Transfer, run: Run) -> None:
        works.append(work)
        await following(work)
        checkpoint = first_store.load()
        assert checkpoint is not None
        second_store.save(checkpoint)
        task = asyncio.create_task(
            asyncio.to_thread(
                lambda: second.append(
                    online(source, target, steer_other, checkpoints=second_store)
                )
            )
        )
        await soon(lambda: work.progress.phase in ENDS or task.done(), "one of the two to stop")
        await asyncio.to_thread(counters.stop)
        if work.progress.phase not in ENDS:
            await cut_over(work, run, source)
        await task

    async def steer_other(work: Transfer, run: Run) -> None:
        await soon(lambda: len(works) and works[0].progress.phase in ENDS, "the first to stop", 15)
        await asyncio.to_thread(counters.stop)
        await cut_over(work, run, source)

    with Counters(source) as counters:
        run = online(source, target, steer, checkpoints=first_store)
    print(run.report.status, run.events, [(each.report.status, each.events) for each in second])
    assert counters.check(target) == []
