"""Deadlines on a target without import mode: lifted, set back, lifted again; never too early."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server
from engine.errors import ServerError
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.progress import Phase
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.extended_ttls import ExtendedTtls
from engine.wire.control_connection import admin
from engine.wire.event_loop import run as run_loop
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing

HOUR_MS = 3_600_000


@pytest.fixture(params=["redis-6.0", "redis-7.0"])
def ends(request: pytest.FixtureRequest, server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source, and a target that has no import mode."""
    return server_factory(known("redis-7.0")), server_factory(known(request.param))


def brief(client: redis.Redis, turn: int) -> None:
    """Set keys that live for 3 s."""
    client.set(f"brief:{turn % 500}", turn, px=3000)
    client.rename(f"brief:{turn % 500}", f"renamed:{turn % 7}")


def test_a_target_that_comes_back_from_before_they_were_extended(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are extended once more: what is near by then may end there while it is behind."""
    source, target = ends
    client = source.client()
    # Not near at first.
    client.set("key", "1", px=2 * HOUR_MS)
    extend_all = ExtendedTtls.extend_all

    async def later(extended: ExtendedTtls, horizon: float, *more: Any) -> None:
        await extend_all(extended, horizon + HOUR_MS / 1000, *more)

    def is_extended() -> bool:
        return int(target.client().pttl("key")) > EXTEND_MS // 2

    monkeypatch.setattr(ExtendedTtls, "extend_all", later)
    with migrating(source, target, extend_horizon=1.5 * HOUR_MS / 1000) as run:
        run.in_sync()
        (lane,) = run.work._way.lanes  # type: ignore[union-attr]
        assert not is_extended()
        target.client().save()
        # It is time to look for those that are near by now.
        run.call(lambda: lane._checkpoint.note(begun_at=time.time() - HOUR_MS / 1000))
        run.wait_for(is_extended, "it is extended")
        client.set("later", "1")
        run.in_sync()
        target.kill()
        target.restart()
        assert not is_extended()
        client.set("behind", "1")
        run.wait_for(is_extended, "it is extended again")
        run.cut_over()
    assert not is_extended()
    assert_tidy(target)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_a_stall_behind_a_refused_cut_over(ends: tuple[Server, Server], at_once: bool) -> None:
    """Deadlines had been set back by then; a key that is extended meanwhile must not be lost."""
    source, target = ends
    client = source.client()
    client.set("key", "1")
    looks = iter((CutOverCheckResult(False, "not yet"), CutOverCheckResult(True, "now")))

    async def gate(own_key: bytes) -> CutOverCheckResult:
        return next(looks)

    with (
        Proxy(target.host, target.port) as proxy,
        writing(brief, server=source, pause=0.01, until_refused=True),
        migrating(source, proxy, cut_over_timeout=5.0, gate_in_sync=gate) as run,
    ):
        run.following()
        # One that is set back behind the fence, and one before it.
        client.set("near", "x", px=7_000)
        client.set("nearer", "x", px=6_000)
        client.set("far", "x", px=13_000)
        over = time.monotonic() + 13
        run.in_sync()
        assert "refused: not yet" in run.refused()
        if not at_once:
            run.in_sync()
            assert target.client().pttl("far") > EXTEND_MS // 2
            assert target.client().pttl("near") > EXTEND_MS // 2
        proxy.stall()
        client.persist("near")
        client.pexpire("nearer", HOUR_MS)
        client.persist("far")
        # The target's own deadlines have passed when the stall ends.
        time.sleep(max(over + 0.5 - time.monotonic(), 0))
        proxy.stall(False)
        client.set("key", "1")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().mget("near", "nearer", "far") == [b"x"] * 3
    assert target.client().pttl("near") == -1
    assert 0 < target.client().pttl("nearer") <= HOUR_MS
    assert_tidy(target)


def test_a_target_that_stalls_while_deadlines_are_set_back(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client = source.client()
    client.set("key", "1", ex=600)

    # Without the comparison before it, which would be refused for the stall first.
    with (
        Proxy(target.host, target.port) as proxy,
        migrating(source, proxy, cut_over_timeout=1.5, comparison=None) as run,
    ):
        run.following()
        run.in_sync()
        proxy.stall()
        reason = run.refused()
        assert "TTLs that were extended on the target could not be restored within 1.5 s" in reason
        # Nobody was held up meanwhile.
        assert source.client(socket_timeout=1).set("key", "2", ex=500)
        proxy.stall(False)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"
    assert 0 < target.client().ttl("key") <= 500
    assert_tidy(target)


def test_what_was_far_becomes_near(ends: tuple[Server, Server]) -> None:
    source, target = ends
    client = source.client()
    client.set("far", "x", px=61_000)
    client.set("farther", "x", px=HOUR_MS)

    with migrating(source, target, extend_horizon=60.0) as run:
        run.following()
        run.in_sync()
        there = target.client()
        assert 0 < there.pttl("far") <= 61_000
        time.sleep(2)
        # As if it had gone on for so long: a quarter of the horizon is over.
        checkpoint = run.work._way.lanes[0]._checkpoint  # type: ignore[union-attr]
        checkpoint.note(begun_at=time.time() - 20)
        run.wait_for(lambda: there.pttl("far") > EXTEND_MS // 2, "lifted")
        assert 0 < there.pttl("farther") <= HOUR_MS
        run.wait_for(lambda: checkpoint.mark.begun_at > time.time() - 20, "noted")
        # And once more, too late: what is named meanwhile is read again.
        run.in_sync()
        checkpoint.note(begun_at=time.time() - 50)
        run.reaches(Phase.CATCH_UP)
        run.in_sync()
        assert not checkpoint.mark.released
        assert checkpoint.mark.begun_at > time.time() - 20
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert 0 < target.client().pttl("far") <= 60_000
    assert_tidy(target)


def test_there_and_back(binary: Binary, server_factory: ServerFactory) -> None:
    """On every server: exactly, page by page, in every database."""
    server = server_factory(binary)
    ttls = {}
    for db in (0, 3):
        pipe = server.client(db).pipeline(transaction=False)
        for n in range(2500):
            ttls[db, n] = 0 if n % 3 == 0 else 20_000 + n * 1000
            pipe.set(f"key:{n}", n, px=ttls[db, n] or None)
        pipe.execute()
    began = time.monotonic()

    def left(db: int) -> list[int]:
        pipe = server.client(db).pipeline(transaction=False)
        for n in range(2500):
            pipe.pttl(f"key:{n}")
        return pipe.execute()

    def about(there: int, wanted: int) -> bool:
        passed = (time.monotonic() - began) * 1000
        return wanted - passed - 30_000 <= there <= wanted

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with admin(Endpoint.parse(server.url), fault="target") as end:
            extended = ExtendedTtls(end)
            await extended.extend_all(1000.0)
            for db in (0, 3):
                for n, ttl in enumerate(left(db)):
                    if 1_000_000 <= ttls[db, n] < 1_060_000:
                        # It may have become near meanwhile.
                        continue
                    by = EXTEND_MS if 0 < ttls[db, n] < 1_000_000 else 0
                    assert about(ttl, ttls[db, n] + by) if ttls[db, n] else ttl == -1
            # Twice is once.
            await extended.extend_all(1000.0)
            near = await extended.restore_all(loop.time() + 60)
            assert {db for db, _ in near} == {0, 3}
            assert all(int(key[4:]) < 45 for _, key in near)
            assert 40 < len(near) < 60
            near += await extended.restore(near, loop.time() + 60)
            assert await extended.restore(near) == []
            for db in (0, 3):
                assert all(
                    about(ttl, ttls[db, n]) if ttls[db, n] else ttl == -1
                    for n, ttl in enumerate(left(db))
                )
            # A script that was under way for too long does nothing.
            extended._skew -= 10  # type: ignore[operator]
            with pytest.raises(ServerError, match="too late"):
                await extended.extend_all(1000.0)
            assert max(left(0)) < EXTEND_MS // 2

    run_loop(main())


@pytest.mark.parametrize("target_name", ["redis-7.0", "valkey-8.1"])
def test_ttls_that_count_from_a_time_that_is_gone(
    target_name: str, server_factory: ServerFactory
) -> None:
    """An old source's EXPIRE comes when the link is back, seconds after it was run."""
    source, target = server_factory(known("redis-6.0")), server_factory(known(target_name))
    client = source.client()
    client.mset({"expire": 1, "persisted": 1, "renamed": 1})

    with Proxy(source.host, source.port) as proxy, migrating(proxy, target) as run:
        run.following()
        proxy.refuse()
        proxy.cut_now()
        client.expire("expire", 600)
        client.execute_command("SETEX", "setex", 600, 1)
        client.set("set", 1, px=600_000)
        client.expire("renamed", 600)
        client.rename("renamed", "new")
        client.expire("persisted", 600)
        client.persist("persisted")
        time.sleep(4)
        proxy.refuse(False)
        run.wait_for(lambda: target.client().exists("setex"), "the stream goes on")
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_same_ends(source, target)
    assert target.client().pttl("persisted") == -1
    assert_tidy(target)


@pytest.mark.parametrize("older", ["redis-6.0", "redis-6.2"])
@pytest.mark.parametrize("alone", [False, True], ids=["all-links", "replication-alone"])
def test_relative_deadlines_behind_a_link_that_stood_still(
    older: str, alone: bool, server_factory: ServerFactory
) -> None:
    """It is not lost, and what it holds back comes as if it had been sent just now."""
    source, target = server_factory(known(older)), server_factory(known("redis-7.0"))
    client = source.client()
    client.mset({f"filler:{n}": "x" * 1000 for n in range(1000)})

    with Proxy(source.host, source.port) as proxy, migrating(proxy, target) as run:
        run.following()
        for n in range(2):
            client.execute_command("SETEX", f"before:{n}", 1000, "x")
            time.sleep(0.5)
            (proxy.stall_busiest if alone else proxy.stall)(True)
            for part in range(6):
                name = f"{n}:{part}"
                client.execute_command("SETEX", f"setex:{name}", 1000, "x")
                client.set(f"set:{name}", "x", px=900_000)
                client.rename(f"set:{name}", f"renamed:{name}")
                client.set(f"expire:{name}", "x")
                client.expire(f"expire:{name}", 2000)
                client.expire(f"before:{n}", 500)
                # Up to a second before it flows again: what is later than that is seen.
                time.sleep(0.5 if part < 5 else 1.25)
            (proxy.stall_busiest if alone else proxy.stall)(False)
            run.wait_for(lambda n=n: target.client().exists(f"expire:{n}:5"), "it flows again")
            run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert any("arrives late" in event for event in run.events), run.events
    assert_same_ends(source, target)
    assert_tidy(target)


@contextlib.contextmanager
def worker_to_stop(
    source: Server, target: Server, state_url: str, folder: Path
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A migration that follows in a worker, whose process is stopped while what is yielded is
    entered; it is completed at the end."""
    migration = Migration(Cli(state_url, folder), seed=1)
    try:
        migration.register(target)
        migration.start(source, "--source-type", "replica")
        migration.wait_for(lambda found: found["CanComplete"])
        (pid,) = migration.workers()

        @contextlib.contextmanager
        def stopped() -> Iterator[None]:
            os.kill(pid, signal.SIGSTOP)
            try:
                yield
            finally:
                os.kill(pid, signal.SIGCONT)

        yield stopped
        # What the state says just now may be from before the stop.
        time.sleep(1)
        migration.wait_for(lambda found: found["CanComplete"])
        migration.complete()
    finally:
        migration.close()


@pytest.mark.parametrize("older", ["redis-6.0", "redis-6.2"])
@pytest.mark.parametrize("newer", ["redis-7.0", "valkey-8.1"])
def test_relative_deadlines_behind_an_engine_that_was_stopped(
    older: str, newer: str, server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """Its link stays up, and what it reads when it goes on is 3 s old: nothing tells it so."""
    source, target = server_factory(known(older)), server_factory(known(newer))
    client = source.client()
    with worker_to_stop(source, target, state_url, tmp_path) as stopped:
        # In the middle of a stream, and out of the blue.
        for n in range(2):
            client.execute_command("SETEX", f"before:{n}", 1000, "x")
            with stopped():
                client.execute_command("SETEX", f"setex:{n}", 1000, "x")
                client.set(f"set:{n}", "x", px=900_000)
                client.rename(f"set:{n}", f"renamed:{n}")
                client.set(f"expire:{n}", "x")
                client.expire(f"expire:{n}", 2000)
                client.expire(f"before:{n}", 500)
                time.sleep(3)
            time.sleep(1 - n)
            client.execute_command("SETEX", f"behind:{n}", 1000, "x")
    assert_same_ends(source, target)


def test_relative_deadlines_behind_a_window_that_was_full(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """The engine is stopped, and more comes than its socket takes: the rest waits at the source,
    and is read at once when it comes."""
    source, target = server_factory(known("redis-6.2")), server_factory(known("valkey-8.1"))
    client = source.client()
    with worker_to_stop(source, target, state_url, tmp_path) as stopped, stopped():
        with client.pipeline(transaction=False) as pipe:
            for n in range(20_000):
                pipe.execute_command("SETEX", f"key:{n}", 1000, "x" * 1000)
            pipe.execute()
        time.sleep(3)
    assert client.dbsize() == 20_000
    assert_same_ends(source, target)


def assert_same_ends(source: Server, target: Server) -> None:
    """Each key of the source ends at the same time on both."""
    keys = sorted(source.client().keys())
    ends = []
    for server in (source, target):
        with server.client().pipeline() as pipe:
            pipe.time()
            for key in keys:
                pipe.pttl(key)
            (seconds, micros), *left = pipe.execute()
        now = seconds * 1000 + micros // 1000
        # (Without a TTL: -1, whenever it was asked.)
        ends.append([each if each < 0 else now + each for each in left])
    for key, there, here in zip(keys, *ends, strict=True):
        assert abs(here - there) < 500, (key, here - there)
