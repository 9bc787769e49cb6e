"""Rate and pause of a migration while it runs, on real servers: by the library, the verbs, the API;
kept through the death of the worker; nothing is lost over it."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benches.support.waiting import SECONDS
from engine.errors import (
    InvalidParameterCombinationException,
    InvalidReplicationGroupStateFault,
    ReplicationGroupNotUnderMigrationFault,
)
from engine.front.engine import Engine
from engine.front.faults_with_details import CompletionRefused
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.model.throttle import PAUSED, Steering, Throttle
from engine.sources.scan import ScanSource
from tests.reference.stream import command
from tests.support.completing import word_given
from tests.support.faces import GROUP
from tests.support.library import Run, copying
from tests.support.scenario import NewScenario, Scenario
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing

KEYS = 6_000
SLOW_SNAPSHOT = (
    *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"),
    *("--rdb-key-save-delay", "500"),
)
STILL = 0.6
"""Seconds in which a migration that is paused moves nothing; several looks of the engine."""


def pause(run: Run, *, rate: int = 0) -> None:
    run.call(lambda: run.work.steer(Steering(max_key_rate=rate, paused=PAUSED)))


def go_on(run: Run, *, rate: int = 0) -> None:
    run.call(lambda: run.work.steer(Steering(max_key_rate=rate)))


def keys_at(s: Scenario) -> int:
    return int(s.target.client().dbsize())


def settled(run: Run, s: Scenario) -> int:
    """How many keys the target has once what was under way at a pause has arrived."""
    last = [-1, -2]

    def rests() -> bool:
        last[:] = [keys_at(s), last[0]]
        time.sleep(0.2)
        return last[0] == last[1]

    run.wait_for(rests, "what was under way has arrived")
    return last[0]


def test_a_scan_is_held_to_a_rate_and_paused(scenario: NewScenario) -> None:
    """The source is not asked for more than the rate lets through, and for nothing in a pause."""
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=KEYS)
    began = time.monotonic()
    with s.running(source_type="scan", one_go=True, max_key_rate=500) as run:
        run.wait_for(lambda: keys_at(s) >= 500, "some keys")
        # (What a rate lets through: no more than that has passed by now.)
        assert keys_at(s) <= 500 * (time.monotonic() - began) + 500
        pause(run, rate=500)
        before = settled(run, s)
        assert before < KEYS
        asked = s.source.client().info("commandstats")
        time.sleep(STILL)
        assert keys_at(s) == before
        after = s.source.client().info("commandstats")
        for command in ("cmdstat_scan", "cmdstat_dump", "cmdstat_mget"):
            if command in asked:
                assert after[command]["calls"] == asked[command]["calls"]
        assert run.progress.paused == PAUSED
        assert run.progress.reason == PAUSED
        go_on(run)
    assert run.report.status == "done", run.report.errors
    s.assert_migrated()


def test_a_scan_outlives_its_links_in_a_pause(scenario: NewScenario) -> None:
    """A source with an idle timeout ends them again and again: that is no reason to stop."""
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=KEYS)
    with s.running(source_type="scan", one_go=True, max_key_rate=500, retry_for=0.5) as run:
        run.wait_for(lambda: keys_at(s) >= 500, "some keys")
        pause(run, rate=500)
        settled(run, s)
        for _ in range(3):
            s.source.client().client_kill_filter(_type="normal", skipme=True)
            time.sleep(STILL)
        assert run.progress.reason == PAUSED
        go_on(run)
    assert run.report.status == "done", run.report.errors
    s.assert_migrated()


def test_a_scan_takes_as_long_as_its_rate_wants(scenario: NewScenario) -> None:
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=0)
    with s.source.client().pipeline(transaction=False) as pipe:
        for n in range(600):
            pipe.set(f"key:{n}", b"x" * 1_000)
        pipe.execute()
    began = time.monotonic()
    with s.running(source_type="scan", one_go=True, max_rate=300_000) as run:
        run.join()
    # (600 kB: two seconds, but for what is let through at once.)
    assert time.monotonic() - began > 1.5
    assert run.report.status == "done", run.report.errors
    s.assert_migrated()


@pytest.mark.parametrize("ends", [("redis-7.0", "redis-7.0"), ("valkey-9", "valkey-9")])
def test_what_is_followed_waits_in_a_pause(ends: tuple[str, str], scenario: NewScenario) -> None:
    """The link stands and is acknowledged over, nothing is written to the target, a cut-over is
    refused by name, and behind the pause everything is there."""
    s = scenario(*ends)
    s.load(keys=300)
    with s.running() as run:
        with s.counters():
            run.following()
            run.in_sync()
            pause(run)
            run.wait_for(lambda: run.progress.paused, "the pause")
            assert run.refused().endswith(f"{PAUSED}; run complete-migration to try it again")
            run.wait_for(lambda: (run.progress.lag_bytes or 0) > 2_000, "writes that wait")
            applied = run.progress.applied_offset
            time.sleep(STILL)
            now = run.progress
            assert now.applied_offset == applied
            assert s.source.client().info("replication")["connected_slaves"] == 1
            assert now.phase in (Phase.FOLLOW, Phase.CATCH_UP)
            assert now.link == "up"
            assert now.partial_syncs == 0
            assert (now.lag_bytes or 0) > 0
            go_on(run, rate=50_000)
            run.wait_for(lambda: not run.progress.paused, "it goes on")
            run.in_sync()
        run.cut_over()
    assert run.report.full_syncs == 1
    s.assert_migrated()


def test_a_stream_is_held_to_a_rate(scenario: NewScenario) -> None:
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=50)
    with s.running() as run:
        run.in_sync()
        run.call(lambda: run.work.steer(Steering(max_key_rate=500)))
        began = time.monotonic()
        with s.source.client().pipeline(transaction=False) as pipe:
            for n in range(1_000):
                pipe.incr(f"count:{n % 7}")
            pipe.execute()
        run.wait_for(lambda: s.target.client().get("count:0") == b"143", "the last of them")
        assert time.monotonic() - began > 1.0
        run.cut_over()
    s.assert_migrated()


def test_a_pause_outlives_its_worker(scenario: NewScenario) -> None:
    """Set by the verbs of the command line and the library, and kept by the state."""
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=300)
    with s.worker("verbs", max_key_rate=50_000) as migration, closing(Engine(s.state)) as engine:
        cli, run, sync = migration.run.cli, migration.run, engine.sync
        named = "--replication-group-id", GROUP
        migration.following()
        assert run.migration()["Rate"] == {"Keys": 50_000}
        assert run.migration()["Paused"] is None
        # 1. Paused, and refused by name.
        assert cli("pause-migration", *named).code == 0
        assert "paused already" in sync.pause_migration(GROUP)["Message"]
        assert run.migration()["Paused"] == PAUSED
        run.until(lambda: run.migration()["Reason"] == PAUSED, "the worker's word")
        with pytest.raises(CompletionRefused, match="paused by the operator"):
            sync.complete_migration(GROUP)
        done = cli("set-migration-rate", *named, "--bytes", "20mb", "--keys", "0")
        assert done.code == 0, done.err
        assert run.migration()["Rate"] == {"Bytes": 20 << 20}
        # 2. What comes meanwhile does not arrive, with the next worker neither.
        s.source.client().set("late", "1")
        migration.kill()
        migration.resume()
        run.until(lambda: run.migration()["Reason"] == PAUSED, "the next worker's word")
        time.sleep(STILL)
        assert s.target.client().get("late") is None
        assert run.migration()["Rate"] == {"Bytes": 20 << 20}
        # 3. It goes on.
        assert "goes on" in sync.continue_migration(GROUP)["Message"]
        run.until(lambda: s.target.client().get("late"), "what was written in the pause")
        sync.set_migration_rate(GROUP, off=True)
        assert run.migration()["Rate"] is None
        migration.cut_over()
        with pytest.raises(ReplicationGroupNotUnderMigrationFault):
            sync.pause_migration(GROUP)
    said = [each.partition(": ")[0] for each in migration.events]
    assert {"migration paused", "migration continued", "rate set"} <= set(said)
    s.assert_migrated()


def test_what_cannot_be_steered(scenario: NewScenario) -> None:
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=10)
    with s.worker("verbs") as migration, closing(Engine(s.state)) as engine:
        migration.following()
        sync = engine.sync
        for wrong in ({}, {"off": True, "keys_per_second": 1}):
            with pytest.raises(InvalidParameterCombinationException):
                sync.set_migration_rate(GROUP, **wrong)
        with pytest.raises(Exception, match="must be 0 or more"):
            sync.set_migration_rate(GROUP, bytes_per_second=-1)
        migration.in_sync()
        word_given(
            lambda: sync.complete_migration(GROUP), lambda: migration.run.migration()["CanComplete"]
        )
        with pytest.raises(
            (InvalidReplicationGroupStateFault, ReplicationGroupNotUnderMigrationFault)
        ):
            sync.pause_migration(GROUP)
        migration.run.until(lambda: migration.run.describe()["Status"] == "available", "the end")
    s.assert_migrated()


def test_a_pause_of_files_that_are_applied_is_shown(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """As of every other source: the word is refused meanwhile, and taken behind it."""
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"SET", b"a", b"1"))
    target = server_factory(known("redis-7.0"))
    with copying(f"aof:{path}", target, one_go=False) as run:
        run.reaches(Phase.COPIED)
        pause(run)
        run.wait_for(lambda: run.history[-1].paused == PAUSED, "the pause is told")
        assert not run.history[-1].can_complete
        run.complete()
        run.wait_for(lambda: run.refusals, "a refusal")
        assert PAUSED in run.refusals[0]
        run.wait_for(lambda: run.history[-1].phase is Phase.COPIED, "the wait goes on")
        go_on(run)
        run.wait_for(lambda: run.history[-1].can_complete, "the end of the pause is told")
        assert not run.history[-1].paused
        run.complete()
    assert run.report.status == "done", run.report.errors
    assert target.client().get("a") == b"1"


def test_outside_of_its_window_it_is_paused(scenario: NewScenario) -> None:
    """No snapshot is asked for, it says until when, and a cut-over is refused; another window lets
    it go on."""
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=300)
    opens = datetime.now(UTC) + timedelta(hours=3)
    closes = opens + timedelta(hours=2)
    window = f"{opens:%H:%M}-{closes:%H:%M}"
    with s.worker("verbs", window=window) as migration, closing(Engine(s.state)) as engine:
        run = migration.run
        until = f"it goes on at {opens:%Y-%m-%d %H:%M} UTC"
        words = f"paused outside of its window {window} UTC: {until}"
        run.until(lambda: run.migration()["Reason"] == words, "the window's word")
        assert run.migration()["Paused"] == words
        with pytest.raises(CompletionRefused, match="outside of its window"):
            engine.sync.complete_migration(GROUP)
        time.sleep(STILL)
        assert keys_at(s) == 0
        assert s.source.client().info("stats")["sync_full"] == 0
        migration.kill()
        done = run.cli("resume-migration", "--replication-group-id", GROUP, "--window", "always")
        assert done.code == 0, done.err
        migration.following()
        migration.cut_over()
    assert words in migration.events
    s.assert_migrated()


def test_an_open_window_lets_everything_pass(scenario: NewScenario) -> None:
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=300)
    with s.running(window="00:00-24:00 Europe/Berlin") as run:
        run.cut_over()
    assert not any("window" in each for each in run.events)
    s.assert_migrated()


@pytest.mark.parametrize("side", ["source", "target"])
def test_less_is_moved_while_an_end_suffers(side: str, scenario: NewScenario) -> None:
    """Told with its figures, and over once the end answers as before; nothing is lost by it."""
    options = ("--enable-debug-command", "yes")
    s = scenario("redis-7.0", "redis-7.0", source_options=options, target_options=options)
    s.load(keys=KEYS)
    bounds = {f"protect_{side}": "latency=1s"}
    if side == "source":
        # (A scan that is still there when the source is well again.)
        bounds |= {"source_type": "scan", "one_go": True, "max_key_rate": 40}
    end = s.source if side == "source" else s.target
    with s.running(**bounds) as run:
        run.wait_for(lambda: keys_at(s) >= 50, "some keys")
        with end.client(socket_timeout=60) as client:
            while not any(f"throttled: {side} latency" in each for each in run.events):
                client.execute_command("DEBUG", "SLEEP", "1.5")
                assert not run.ended, run.events
        (told,) = (each for each in run.events if each.startswith(f"throttled: {side} latency"))
        assert told.endswith(" ms > 1000 ms")
        run.wait_for(
            lambda: any(each.startswith("no longer throttled: ") for each in run.events), "its end"
        )
        assert any(each.throttled.startswith(f"throttled: {side}") for each in run.history)
        run.call(lambda: run.work.steer(Steering()))
        if side == "target":
            run.cut_over()
    assert run.report.status == "done", run.report.errors
    s.assert_migrated()


def test_a_snapshot_is_read_at_once_where_it_costs_the_source_memory(
    scenario: NewScenario,
) -> None:
    """What is copied on write for the source's child ends with that child: slower is no help."""
    s = scenario("redis-7.0", "redis-7.0", source_options=SLOW_SNAPSHOT)
    with s.source.client().pipeline(transaction=False) as pipe:
        for n in range(8_000):
            pipe.set(f"key:{n}", b"x" * 5_000)
        pipe.execute()
    with (
        s.running(protect_source="cow=1mb", max_rate=1 << 20) as run,
        writing(lambda client, n: client.setrange(f"key:{n % 8_000}", 0, str(n)), server=s.source),
    ):
        run.wait_for(
            lambda: any("source copy-on-write memory" in each for each in run.events),
            "the snapshot is read at once",
            seconds=120,
        )
        run.call(lambda: run.work.steer(Steering()))
        run.in_sync()
        run.stop()
    (told,) = (each for each in run.events if "source copy-on-write memory" in each)
    assert " MiB > 1.0 MiB" in told


def test_keys_that_a_scan_goes_by_count(scenario: NewScenario) -> None:
    """One that names few keys would else keep the source busy, whatever the rate."""
    s = scenario("redis-7.0", "redis-7.0")
    s.load(keys=3_000)
    s.source.client().set("chosen", "1")
    began = time.monotonic()
    with s.running(source_type="scan", one_go=True, match="chos*", max_key_rate=2_000) as run:
        run.join()
    assert time.monotonic() - began > 1.0
    assert run.report.status == "done", run.report.errors
    assert keys_at(s) == 1


async def test_a_scan_asks_again_where_it_was_due_a_moment_too_late(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer wakes one that has asked for nothing: it was not due, and was when it was looked
    how long that lasts."""
    source = server_factory()
    source.client().mset({f"key:{n}": "x" for n in range(200)})
    flow = Throttle(Steering(max_key_rate=1_000_000)).copying
    usual, turns = flow.keys_now, itertools.count()
    # (More often in a row than there are pages whose answers wake it.)
    monkeypatch.setattr(
        flow, "keys_now", lambda *asked: usual(*asked) if next(turns) % 50 == 49 else 0
    )
    scan = ScanSource(Endpoint.parse(source.url), TransferSettings(source_type="scan"), flow)
    await scan.open(None)
    try:
        async with asyncio.timeout(SECONDS):
            batches = [each async for each in scan.items() if not isinstance(each, bytes)]
    finally:
        await scan.close()
    assert sum(map(len, batches)) == 200
