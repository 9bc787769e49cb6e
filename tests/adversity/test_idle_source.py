"""A source that is not written to, and a target that does not hold any more what it held: no batch
finds out, and no one is told that they are in sync."""

from __future__ import annotations

import pytest

from tests.support.library import Run
from tests.support.replicas import make_replica, until_in_step
from tests.support.scenario import NewScenario, Scenario
from tests.support.servers import ServerFactory, known

QUIET = ("--repl-ping-replica-period", "3600")
OLD = ("--save", "3600 1000000")


def brought_up_to_date(s: Scenario, run: Run) -> None:
    """It is seen and mended, and the source writes nothing meanwhile."""
    wrote = s.source.client().info("replication")["master_repl_offset"]
    run.wait_for(lambda: any("another position" in each for each in run.events), "it was seen")
    run.wait_for(lambda: s.target.client().get("last") == b"new", "what was missing")
    run.in_sync()
    assert s.source.client().info("replication")["master_repl_offset"] == wrote


def test_it_comes_back_older(scenario: NewScenario) -> None:
    s = scenario("redis-7.0", "redis-7.0", source_options=QUIET, target_options=OLD)
    s.load()
    with s.running(retry_for=60.0) as run:
        run.in_sync()
        s.target.client().save()
        s.source.client().set("last", "new")
        run.in_sync()
        s.target.kill()
        run.wait_for(lambda: not run.progress.can_complete, "a gate that is closed")
        s.target.restart()
        assert not s.target.client().exists("last")
        brought_up_to_date(s, run)
        run.cut_over()
    s.assert_migrated()


def test_it_takes_over_what_another_server_has(
    scenario: NewScenario, server_factory: ServerFactory
) -> None:
    """And keeps its connections: an operator has made it a replica and a primary again."""
    s = scenario("redis-7.0", "redis-7.0", source_options=QUIET)
    older = server_factory(known("redis-7.0"))
    s.load()
    with s.running(retry_for=60.0) as run:
        run.in_sync()
        make_replica(older, s.target)
        until_in_step(older)
        older.client().execute_command("REPLICAOF", "NO", "ONE")
        s.source.client().set("last", "new")
        run.in_sync()
        make_replica(s.target, older)
        until_in_step(s.target)
        s.target.client().execute_command("REPLICAOF", "NO", "ONE")
        brought_up_to_date(s, run)
        run.cut_over()
    s.assert_migrated()


@pytest.mark.parametrize("shards", [None, 2])
def test_it_is_emptied(scenario: NewScenario, shards: int | None) -> None:
    """By another client, over whose connection nothing is lost."""
    cluster = {} if shards is None else {"target_shards": shards}
    s = scenario("redis-7.0", "redis-7.0", source_options=QUIET, **cluster)
    s.load()
    with s.running(retry_for=60.0) as run:
        run.in_sync()
        s.target.client().flushall()
        run.wait_for(lambda: not run.progress.can_complete, "a gate that is closed")
        run.wait_for(lambda: run.progress.full_syncs > (shards or 1), "everything copied again")
        run.cut_over()
    s.assert_migrated()
