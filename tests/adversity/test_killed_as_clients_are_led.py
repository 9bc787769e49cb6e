"""A worker that is killed in the cut-over, before or behind the opening: what is told is true."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import pytest
import redis

from benches.support.engines import Migration
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.front.engine import Engine
from engine.groups import schema
from engine.groups.registry import Registry
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

SECONDS = 60.0
# Tells that it runs. The first one stays as long as its worker does; later ones end at once.
HOOK = """
import os, pathlib, sys, time
runs, parent = pathlib.Path(sys.argv[1]), os.getppid()
first = not runs.exists()
runs.touch()
deadline = time.monotonic() + 60
while first and os.getppid() == parent and time.monotonic() < deadline:
    time.sleep(0.02)
"""


def hook(folder: Path) -> str:
    """The command that runs the hook, which touches `folder`/runs."""
    (folder / "hook.py").write_text(HOOK)
    return f"{sys.executable} -I -S {folder / 'hook.py'} {folder / 'runs'}"


def led(
    migration: Migration, source: Server, target: Server, folder: Path, disconnect_for: str = "0"
) -> None:
    """Follow until it can be completed, with a switch hook that touches `folder`/runs."""
    switch = ("--switch-hook", hook(folder), "--switch-timeout", "90s")
    switch += ("--disconnect-for", disconnect_for)
    migration.register(target)
    migration.start(source, "--source-type", "replica", *switch)
    migration.wait_for(lambda found: found["CanComplete"])


def until_it_runs(migration: Migration, folder: Path) -> None:
    migration.until(lambda: (folder / "runs").exists(), "the hook runs")


def test_whoever_waits_is_told_that_it_is_complete(
    migration: Migration, server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().mset({f"key:{n}": n for n in range(100)})
    led(migration, source, target, tmp_path)
    process = migration.cli.start("complete-migration", "--replication-group-id", "g", "--wait")
    until_it_runs(migration, tmp_path)
    migration.kill()
    done = migration.cli.end(process)
    assert done.code == 0, done.err
    assert "refused" not in done.out + done.err, done.err
    assert migration.describe()["Migration"]["Status"] == "done"
    assert target.client().dbsize() == 100
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("later", "1")
    assert_tidy(target)


def test_whoever_waits_is_told_that_it_came_to_nothing(
    migration: Migration, server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", "1")
    migration.register(target)
    fence = ("--fence", "hook", "--fence-hook", hook(tmp_path), "--cut-over-timeout", "60")
    migration.start(source, "--source-type", "replica", *fence)
    migration.wait_for(lambda found: found["CanComplete"])
    process = migration.cli.start("complete-migration", "--replication-group-id", "g", "--wait")
    until_it_runs(migration, tmp_path)
    migration.wait_for(lambda found: found["Phase"] == "CUT_OVER")
    migration.kill()
    done = migration.cli.end(process)
    assert done.code == 1, done.out
    assert "killed during the cut-over, which was undone" in done.err
    # It is as it was before, and can be asked for again.
    migration.wait_for(lambda found: found["CanComplete"])
    source.client().set("later", "1")
    migration.complete()
    assert target.client().mget("key", "later") == [b"1", b"1"]
    assert_tidy(target)


@pytest.mark.parametrize("worker", ["comes back", "is gone"])
def test_an_abort_says_that_the_target_is_open(
    migration: Migration, server_factory: ServerFactory, tmp_path: Path, worker: str
) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", "1")
    led(migration, source, target, tmp_path, "60s")
    done = migration.cli("complete-migration", "--replication-group-id", "g")
    assert done.code == 0, done.err
    until_it_runs(migration, tmp_path)
    migration.kill()
    with contextlib.closing(Engine(migration.cli.state)) as engine:
        if worker == "comes back":
            # In the same breath: the new one has not looked at the target yet.
            engine.sync.resume_migration("g")
        engine.sync.complete_migration("g", force=True)
    migration.until(lambda: migration.describe()["Status"] == "available", "the end")
    told = migration.cli("describe-events", "--output", "json").out
    assert "no cut-over" not in told
    assert "not cut over" not in told
    assert "ended by force" in told
    assert "until unblock-source" in migration.describe()["Migration"]["Reason"]
    # Clients that come back to the source are disconnected as behind any cut-over.
    client = redis.Redis(port=source.port, retry=None)
    deadline = time.monotonic() + SECONDS
    while not (seen := migration.describe().get("SourceClients", {})).get("Disconnected"):
        assert time.monotonic() < deadline, (seen, migration.story())
        with contextlib.suppress(redis.ConnectionError):
            client.get("key")
        time.sleep(0.05)
    stopped = migration.cli("disconnect-clients", "--replication-group-id", "g", "--stop")
    assert stopped.code == 0, stopped.err
    assert "no longer disconnected" in stopped.out
    assert target.client().dbsize() == 1
    assert_tidy(target)
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("later", "1")
    done = migration.cli("unblock-source", "--replication-group-id", "g")
    assert done.code == 0, done.err
    assert source.client().set("later", "1")


def test_scripts_are_run_until_somebody_goes_on(
    migration: Migration, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """2.8 refuses no script, and cannot be held: the reason says it, and what is run is counted."""
    source, target = server_factory(known("redis-2.8")), server_factory(known("redis-6.2"))
    source.client().set("key", "1")
    led(migration, source, target, tmp_path, "60s")
    done = migration.cli("complete-migration", "--replication-group-id", "g")
    assert done.code == 0, done.err
    until_it_runs(migration, tmp_path)
    migration.kill()
    client = redis.Redis(port=source.port, retry=None, protocol=2)
    for _ in range(3):
        client.eval("return redis.call('INCR', KEYS[1])", 1, "key")
    reason = migration.describe()["Migration"]["Reason"]
    assert "may be promoted: resume-migration starts a worker" in reason
    assert "Until then the source runs scripts (EVAL)" in reason
    process = migration.cli.start("resume-migration", "--replication-group-id", "g", "--wait")
    migration.cli.end(process)
    migration.until(lambda: migration.describe()["Status"] == "available", "the end")
    lost = "the source has run 3 scripts since the cut-over, with 3 commands that write"
    assert migration.describe()["Migration"]["Report"]["LostWrites"].startswith(lost)
    assert target.client().get("key") == b"1"
    with contextlib.closing(Engine(migration.cli.state)) as engine:
        wait_for(
            lambda: engine.sync.describe_replication_groups("g")["ReplicationGroups"][0][
                "SourceClients"
            ]["Scripts"],
            "scripts that were counted",
            told=migration.story,
        )
        stopped = engine.sync.disconnect_clients("g", seconds=0)
        assert "runs scripts (EVAL), and what they write from now on" in stopped["Message"]
        told = [each["Message"] for each in engine.sync.describe_events("g")["Events"]]
    assert len([each for each in told if each.startswith(lost)]) == 1, told


def test_a_seal_that_an_abort_could_not_take_away_is_left_to_release_source(
    migration: Migration, server_factory: ServerFactory
) -> None:
    """The worker was killed behind its fence, and the source does not answer at the abort."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", "1")
    with Proxy(source.host, source.port) as link:
        migration.register(target)
        migration.start(link, "--source-type", "replica")
        migration.wait_for(lambda found: found["CanComplete"])
        migration.kill()
        # As it is between the fence and the opening.
        fenced(migration.cli.state)
        source.client().config_set("min-replicas-to-write", 65535)
        link.refuse()
        with contextlib.closing(Engine(migration.cli.state)) as engine:
            engine.sync.complete_migration("g", force=True)
            told = [each["Message"] for each in engine.sync.describe_events("g")["Events"]]
            assert any("may still refuse writes" in each for each in told), told
            link.refuse(False)
            done = engine.sync.unblock_source("g")
        assert "accepts writes again" in done["Message"]
    assert source.client().set("key", "2")


def fenced(state: str) -> None:
    """Have the books say that a fence stands."""
    store = Registry(state).store
    with store.write() as connection:
        row = connection.execute(schema.checkpoints.select()).one()
        found = dict(row.checkpoint)
        found["position"] = {**found["position"], "fenced": True, "sealed": "0 10"}
        connection.execute(schema.checkpoints.update().values(checkpoint=found))
    store.close()
