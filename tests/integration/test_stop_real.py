"""A migration that stops because it needs a hand, as its operator meets it: the verbs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benches.support.compare import assert_equal
from benches.support.servers import Server
from engine.front.http.metrics import Metrics
from engine.groups.registry import Registry
from tests.support.command_line import GROUP, Cli, between, nodes, register
from tests.support.servers import ServerFactory, known

AOF = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), *AOF, "--databases", "4")
    source.client().mset({f"key:{n}": n for n in range(300)})
    return source, target


def test_a_worker_that_stops_and_goes_on(ends: tuple[Server, Server], cli: Cli) -> None:
    """Who waits is told with exit code 1, and the group stays under migration."""
    source, target = ends
    register(cli, target)
    told = cli("start-migration", *GROUP, *nodes(source), "--retry-for", "1s", "--wait")
    assert told.code == 0, told.err
    target.kill()
    source.client().set("meanwhile", "1")
    group = cli.wait_for(lambda each: each["Migration"]["Reason"].startswith("stopped: "))
    assert group["Status"] == "migrating"
    assert not group["Migration"]["CanComplete"]
    assert "did not take anything for 1 s" in group["Migration"]["Reason"]
    assert "resume-migration" in group["Migration"]["Reason"]
    target.restart()
    # What it stopped for is not mended if the target is stopped again.
    target.kill()
    told = cli("resume-migration", *GROUP, "--retry-for", "2s", "--wait")
    assert told.code == 1
    assert told.err.splitlines()[-1].startswith("TransferStopped: ")
    assert "for 2 s" in told.err
    target.restart()
    told = cli("resume-migration", *GROUP, "--retry-for", "1h", "--wait")
    assert told.code == 0, told.err
    told = cli.completed("--output", "json")
    assert told.code == 0, told.err
    assert told.json["Report"]["full_syncs"] == 1
    assert target.client().get("meanwhile") == b"1"
    assert_equal(source.url, target.url)


def test_a_source_that_lost_its_data_is_accepted_by_the_verb(
    ends: tuple[Server, Server], cli: Cli
) -> None:
    """A resume without the word stops again and touches nothing; with it the target becomes what
    the source is."""
    source, target = ends
    register(cli, target)
    assert cli("start-migration", *GROUP, *nodes(source), "--wait").code == 0
    source.kill()
    source.restart()
    cli.wait_for(lambda each: each["Migration"]["Phase"] == "STOPPED")
    source.client().set("only", "1")
    told = cli("resume-migration", *GROUP, "--wait")
    assert told.code == 1
    assert "--accept-source-loss" in told.err
    assert target.client().get("key:7") == b"7"
    told = cli("resume-migration", *GROUP, "--accept-source-loss", "--wait")
    assert told.code == 0, told.err
    told = cli.completed()
    assert told.code == 0, told.err
    assert target.client().keys() == [b"only"]


def test_a_silent_source_on_every_face(ends: tuple[Server, Server], cli: Cli) -> None:
    """The command line, the API's answer and the metrics: no lag, and no green, while it lasts."""
    source, target = ends
    register(cli, target)
    assert cli("start-migration", *GROUP, *nodes(source), "--wait").code == 0
    cli.wait_for(lambda each: each["Migration"]["CanComplete"])
    source.freeze()
    try:
        group = cli.wait_for(lambda each: each["Migration"]["SourceLink"] == "silent")
        shown = group["Migration"]
        assert (shown["LagBytes"], shown["CanComplete"]) == (None, False)
        assert "has not answered for" in shown["Reason"]
        told = cli("describe-replication-groups", *GROUP)
        assert "has not answered for" in told.out
        assert "in sync" not in told.out
        told = cli("complete-migration", *GROUP, "--wait")
        assert told.code == 1
        assert "has not answered for" in told.err
        registry = Registry(cli.state)
        page = Metrics().page(registry.under_migration(), {}, {}, {}).decode()
        registry.store.close()
        assert 'startmigration_migration_can_complete{group="prod"} 0.0' in page
        assert 'startmigration_migration_lag_bytes{group="prod"}' not in page
    finally:
        source.thaw()
    cli.wait_for(lambda each: each["Migration"]["CanComplete"])
    assert cli.completed().code == 0
    assert_equal(source.url, target.url)


def test_migrate_that_stops_and_goes_on(ends: tuple[Server, Server], cli: Cli) -> None:
    """In one go as well: what was carried stays, and the same command goes on."""
    source, target = ends
    source.client(3).set("near", "1")
    told = cli("migrate", *between(source, target), "--skip-checks", "databases")
    assert told.code == 0, told.err
    source.client().config_set("min-replicas-to-write", 0)
    target.client().flushall()
    source.client(9).set("far", "1")
    told = cli(
        "migrate", *between(source, target), "--skip-checks", "databases", "--output", "json"
    )
    assert told.code == 1
    assert told.last["status"] == "stopped"
    assert told.err.splitlines()[-1].startswith("TransferStopped: stopped: the target has no ")
    assert told.err.rstrip().endswith("Then the same command goes on.")
    target.options = (*AOF, "--databases", "16")
    target.restart()
    told = cli("migrate", *between(source, target), "--skip-checks", "databases")
    assert told.code == 0, told.err
    assert target.client(9).get("far") == b"1"
    assert_equal(source.url, target.url)


@pytest.mark.parametrize(
    ("way", "until", "full_syncs"),
    [("replica", "cut-over", 1), ("replica", "snapshot", 2), ("scan", "cut-over", 0)],
)
def test_a_cut_over_that_is_refused_in_one_go(
    server_factory: ServerFactory, cli: Cli, way: str, until: str, full_syncs: int
) -> None:
    """It needs a hand, and is no end: the exit code is 1, and the same command goes on."""
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), "--proto-max-bulk-len", "1048576")
    source.client().set("long", os.urandom(2 << 20))
    source.client().set("short", "1")
    options = ("--source-type", way, "--until", until, "--skip-checks", "value-limit")
    run = ("migrate", *between(source, target), *options, "--output", "json")
    told = cli(*run)
    assert told.code == 1, told.out
    assert told.last["status"] == "stopped"
    assert "TransferStopped: stopped: 1 key was not migrated: 'long'" in told.err
    assert told.err.rstrip().endswith("Then the same command goes on.")
    (group,) = cli("describe-replication-groups", "--output", "json").json["ReplicationGroups"]
    assert group["Status"] == "migrating"
    target.client().config_set("proto-max-bulk-len", 512 << 20)
    told = cli(*run)
    assert told.code == 0, told.err
    assert told.last["full_syncs"] == full_syncs
    assert_equal(source.url, target.url)


def test_a_target_that_another_state_migrates_into(
    ends: tuple[Server, Server], cli: Cli, tmp_path: Path
) -> None:
    """The first one's position lies there: a start is refused, unless the target is meant to be
    taken over; the first one then ends by itself."""
    source, target = ends
    register(cli, target)
    told = cli("start-migration", *GROUP, *nodes(source), "--wait")
    assert told.code == 0, told.err
    other = Cli(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    try:
        register(other, target)
        told = other("start-migration", *GROUP, *nodes(source), "--wait")
        assert told.code == 1
        assert "other-migration: " in told.err
        assert "--take-over" in told.err
        assert other.group()["Status"] == "available"
        told = other("start-migration", *GROUP, *nodes(source), "--take-over", "--wait")
        assert told.code == 0, told.err
        source.client().incr("counter")
        cli.wait_for(lambda group: group["Status"] == "available")
        assert "has taken the target over" in cli("describe-events", *GROUP).out
        told = other.completed()
        assert told.code == 0, told.err
    finally:
        other.close()
    assert target.client().get("counter") == b"1"
    assert not target.client().keys("startmigration*")
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_what_an_aborted_migration_has_left(
    ends: tuple[Server, Server], cli: Cli, tmp_path: Path, way: str
) -> None:
    """Keys that the source has deleted since must not live on behind "completed": a start from
    another state is refused, and changes nothing, until the operator says what becomes of them."""
    source, target = ends
    register(cli, target)
    run = ("start-migration", *GROUP, *nodes(source), "--source-type", way, "--wait")
    assert cli(*run).code == 0
    assert cli("complete-migration", *GROUP, "--force", "--wait").code == 0
    source.client().delete(*(f"key:{n}" for n in range(100, 300)))
    other = Cli(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    try:
        register(other, target)
        told = other(*run)
        assert told.code == 1
        assert "leftovers: the migration " in told.err
        assert "has left 300 keys on the target, which was empty before" in told.err
        assert "the source does not have 'key:" in told.err
        assert "--take-over" in told.err
        assert target.client().exists(*(f"key:{n}" for n in range(300))) == 300
        told = other(*run, "--take-over")
        assert told.code == 0, told.err
        events = other("describe-events", *GROUP).out
        assert "The start removes them" in events
        assert "300 in database 0; they are removed" in events
        assert "they stay" not in events
        told = other.completed("--output", "json")
        assert told.code == 0, told.err
        assert told.json["Report"]["verification"]["counted"]
    finally:
        other.close()
    assert not target.client().keys("startmigration*")
    assert_equal(source.url, target.url)


def test_what_an_aborted_migration_has_left_and_the_source_still_has(
    ends: tuple[Server, Server], cli: Cli
) -> None:
    """Each of them is overwritten: no word is needed, and the ends are counted at the cut-over."""
    source, target = ends
    run = ("start-migration", *GROUP, *nodes(source), "--wait")
    register(cli, target)
    for _ in range(2):
        assert cli(*run).code == 0
        assert cli("complete-migration", *GROUP, "--force", "--wait").code == 0
    assert target.client().keys("startmigration*") == [b"startmigration:left"]
    assert cli(*run).code == 0
    assert "the source has each of them too" in cli("describe-events", *GROUP).out
    told = cli.completed("--output", "json")
    assert told.code == 0, told.err
    assert told.json["Report"]["verification"]["counted"]
    assert not target.client().keys("startmigration*")
    assert_equal(source.url, target.url)


def test_what_is_left_among_keys_of_the_target(ends: tuple[Server, Server], cli: Cli) -> None:
    """Nothing tells them apart: nothing is removed, and the operator is told."""
    source, target = ends
    target.client().set("own", "1")
    register(cli, target)
    assert cli("start-migration", *GROUP, *nodes(source), "--wait").code == 0
    assert cli("complete-migration", *GROUP, "--force", "--wait").code == 0
    source.client().delete("key:1")
    assert cli("start-migration", *GROUP, *nodes(source), "--wait").code == 0
    events = cli("describe-events", *GROUP).out
    assert "warning: leftovers: the migration " in events
    assert "has left keys among those that the target had before" in events
    told = cli.completed("--output", "json")
    assert told.code == 0, told.err
    assert target.client().mget("own", "key:1") == [b"1", b"1"]
    # The operator says that they are the target's own.
    source.client().config_set("min-replicas-to-write", 0)
    target.client().set("startmigration:left", "v2 another engine")
    skipped = ("--skip-checks", "leftovers")
    assert cli("start-migration", *GROUP, *nodes(source), "--wait").code == 1
    assert cli("start-migration", *GROUP, *nodes(source), *skipped, "--wait").code == 0
    told = cli.completed()
    assert told.code == 0, told.err
    assert target.client().mget("own", "key:1") == [b"1", b"1"]


def test_resume_with_what_makes_no_sense(cli: Cli) -> None:
    for option, value in (("--retry-for", "soon"), ("--spool-bytes", "plenty")):
        told = cli("resume-migration", *GROUP, option, value)
        assert told.code == 2
        assert option in told.err
