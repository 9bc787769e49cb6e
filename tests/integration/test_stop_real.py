"""A migration that stops because it needs a hand, as its operator meets it: the verbs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ServerFactory, known
from tests.integration.test_cli_real import GROUP, Cli, between, nodes, register
from tests.reference.compare import assert_equal
from tests.servers import Server

AOF = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def cli(state_url: str, tmp_path: Path) -> Iterator[Cli]:
    runner = Cli(state_url, tmp_path)
    yield runner
    runner.close()


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
    told = cli("complete-migration", *GROUP, "--wait", "--output", "json")
    assert told.code == 0, told.err
    assert told.json["Report"]["full_syncs"] == 1
    assert target.client().get("meanwhile") == b"1"
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
    assert "TransferStopped: stopped: 1 key was not carried: 'long'" in told.err
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
        told = other("complete-migration", *GROUP, "--wait")
        assert told.code == 0, told.err
    finally:
        other.close()
    assert target.client().get("counter") == b"1"
    assert not target.client().keys("startmigration*")
    assert_equal(source.url, target.url)


def test_resume_with_what_makes_no_sense(cli: Cli) -> None:
    for option, value in (("--retry-for", "soon"), ("--spool-bytes", "plenty")):
        told = cli("resume-migration", *GROUP, option, value)
        assert told.code == 2
        assert option in told.err
