"""Keys that may have expired on a target that was away: read again, up to a known offset."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.progress import Phase
from engine.transfer.catch_up_monitor import CatchUpMonitor
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.transfer import Transfer
from engine.transfer.ttl_guard import TtlGuard
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import YEAR_MS, assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A target without import mode, where deadlines are lifted."""
    binary = known("redis-7.0")
    return server_factory(binary, "--repl-backlog-size", "64mb"), server_factory(binary)


def count(client: redis.Redis, turn: int) -> None:
    """Write all the time, faster than what is written could be read again key by key."""
    pipe = client.pipeline(transaction=False)
    for n in range(200 * turn, 200 * (turn + 1)):
        pipe.incr(f"n:{n % 5000}")
    pipe.execute()


def follower_of(work: Transfer) -> Any:
    return work._way.lanes[0]._follower  # type: ignore[union-attr]


def released(work: Transfer) -> bool:
    return bool(work._way.lanes[0]._mark.released)  # type: ignore[union-attr]


def test_an_outage_after_a_refused_cut_over(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadlines were set back for the cut-over; then the target is away for longer than a key
    has to live there, while the source puts its end off, and writes go on all the time."""
    source, target = ends
    client = source.client()
    for n in range(50):
        client.set(f"session:{n}", "alive", px=9000)
    verdicts = [CutOverCheckResult(False, "not yet")]
    extend_all, near = TtlGuard._extend_all, CatchUpMonitor.near
    away = threading.Event()

    async def gate(_: bytes) -> CutOverCheckResult:
        return verdicts.pop() if verdicts else CutOverCheckResult(True, "")

    async def after_the_outage(self: TtlGuard) -> None:
        await asyncio.to_thread(away.wait)
        await extend_all(self)

    # The pass that would be quick enough comes too late.
    monkeypatch.setattr(TtlGuard, "_extend_all", after_the_outage)
    with (
        Proxy(target.host, target.port) as proxy,
        # (It outlasts the outage, however slow the machine is.)
        migrating(source, proxy, gate_in_sync=gate, timeout=90, retry_for=60.0) as run,
    ):
        run.in_sync()
        assert target.client().pttl("session:0") > 50 * YEAR_MS
        run.refused()
        assert target.client().pttl("session:0") < 9000
        assert released(run.work)
        with writing(count, server=source, pause=0.01):
            # So fast that the target is never near.
            monkeypatch.setattr(CatchUpMonitor, "near", lambda *_: False)
            proxy.refuse()
            proxy.cut_now()
            for n in range(50):
                client.pexpire(f"session:{n}", 600_000)
            run.wait_for(lambda: target.client().keys("session:*") == [], "expiry there", 15)
            away.set()
            proxy.refuse(False)
            run.wait_for(
                lambda: follower_of(run.work) and follower_of(run.work).trust.every_key, "suspicion"
            )
            # Its end, while writes go on.
            run.wait_for(
                lambda: follower_of(run.work) and not follower_of(run.work).trust.every_key,
                "the end of suspicion",
                30,
            )
            assert not released(run.work)
            assert run.progress.phase is Phase.CATCH_UP
            monkeypatch.setattr(CatchUpMonitor, "near", near)
            run.wait_for(lambda: len(target.client().keys("session:*")) == 50, "sessions")
            assert target.client().pttl("session:0") > 50 * YEAR_MS
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2, ttl_bound_ms=100)
    assert_tidy(target)
