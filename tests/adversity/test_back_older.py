"""A target that was opened, and came back older while clients were being led to it: a hand is
needed, and everything that the operator may want is possible."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from benches.support.engines import Migration
from engine.model.progress import ENDS
from engine.transfer.snapshot import Snapshot
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known, refuses_writes

SECONDS = 60.0
# Tells that it runs, and ends when it may.
HOOK = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
deadline = time.monotonic() + 60
while not pathlib.Path(sys.argv[2]).exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""


def stopped(migration: Migration) -> bool:
    return bool(migration.describe()["Migration"]["Status"] == "stopped")


@pytest.mark.parametrize(
    ("worker", "then"), [("lives", "resumed"), ("lives", "aborted"), ("is killed", "resumed")]
)
def test_a_target_that_comes_back_older_as_clients_are_led_to_it(
    migration: Migration, server_factory: ServerFactory, tmp_path: Path, worker: str, then: str
) -> None:
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), "--save", "3600 1000000")
    source.client().mset({"key": "1", "last": "old"})
    hook, runs, go = (tmp_path / name for name in ("hook.py", "runs", "go"))
    hook.write_text(HOOK)
    migration.register(target)
    command = f"{sys.executable} -I -S {hook} {runs} {go}"
    switch = ("--switch-hook", command, "--switch-timeout", "90s", "--disconnect-for", "0")
    migration.start(source, "--source-type", "replica", *switch)
    migration.wait_for(lambda found: found["CanComplete"])
    target.client().save()
    source.client().set("last", "new")
    migration.until(lambda: target.client().get("last") == b"new", "the last write")
    migration.wait_for(lambda found: found["CanComplete"])
    done = migration.cli("complete-migration", "--replication-group-id", "g")
    assert done.code == 0, done.err
    migration.until(runs.exists, "the hook runs")
    # 1. Clients are being led to it, and it comes back without the end.
    target.kill()
    target.restart()
    assert target.client().get("last") == b"old"
    target.client().set("users", "1")
    if worker == "is killed":
        migration.kill()
    go.touch()
    if worker == "is killed":
        # It was not stopped for this yet: that is no word of the operator's.
        migration.resume(verb=False)
    migration.until(lambda: stopped(migration), "a stop")
    # 2. Nothing goes on by itself, and it says why.
    told = migration.describe()["Migration"]
    assert "the target lost data after it was promoted" in told["Reason"], told
    assert "unblock-source" in told["Reason"]
    assert "--force (the source accepts writes again" in told["Reason"]
    assert "no cut-over: the source accepts writes" not in told["Reason"]
    assert refuses_writes(source)
    assert target.client().mget("last", "users") == [b"old", b"1"]
    if then == "aborted":
        done = migration.cli("complete-migration", "--replication-group-id", "g", "--force")
        assert done.code == 0, done.err
        assert migration.describe()["Status"] == "available"
    elif worker == "lives":
        done = migration.cli("unblock-source", "--replication-group-id", "g")
        assert done.code == 0, done.err
        assert not refuses_writes(source)
    if then == "resumed":
        # 3. Brought up to date from the source, and cut over again.
        migration.resume()
        migration.wait_for(lambda found: found["CanComplete"])
        assert target.client().mget("last", "users") == [b"new", b"1"]
        migration.until(lambda: not refuses_writes(source), "the source accepts writes")
        # (The comparison would name what the users wrote.)
        migration.complete("--skip-verification")
        assert target.client().mget("last", "users", "key") == [b"new", b"1", b"1"]
        assert refuses_writes(source)
    else:
        assert not refuses_writes(source)
    assert_tidy(target, left=then == "aborted")


@pytest.mark.parametrize("skip", [False, True], ids=["verified", "not verified"])
def test_older_behind_the_snapshot(
    skip: bool, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the snapshot's confirmation and the first position: the claim is there as before, and
    some of the values are not. No position says that they are."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    keys = [f"k:{n}" for n in range(5000)]
    source.client().mset(dict.fromkeys(keys, 1))
    note_names = Snapshot.note_names
    crashes: list[int] = []

    def crash() -> None:
        # What it had not written yet.
        client = target.client()
        client.delete(*keys[:1000])
        client.save()
        target.kill()
        target.restart()

    async def and_then(self: Snapshot) -> None:
        await note_names(self)
        if not crashes:
            crashes.append(1)
            await asyncio.to_thread(crash)

    monkeypatch.setattr(Snapshot, "note_names", and_then)
    with migrating(source, target) as run:
        run.in_sync(source)
        run.complete(skip_verification=skip)
        run.wait_for(lambda: run.progress.phase in ENDS, "an end")
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 2
    assert target.client().exists(*keys) == len(keys)


def test_a_database_that_is_used_first_behind_that(scenario: NewScenario) -> None:
    """What is dialled to choose it may hold less than what was left there."""
    s = scenario("valkey-9.1", "valkey-9.1")
    s.load(keys=100)
    with s.running(retry_for=60.0) as run:
        run.following()
        run.in_sync()
        s.target.client().save()
        s.source.client().mset({f"later:{n}": n for n in range(50)})
        run.in_sync()
        s.target.kill()
        s.source.client(db=5).set("first", 1)
        s.target.restart()
        run.wait_for(lambda: any("another position" in each for each in run.events), "it was seen")
        run.cut_over()
    assert not any("differed from the source" in each for each in run.events), run.events
    s.assert_migrated()
