"""The command line on real servers, as a user runs it: a process, its output, its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from benches import datasets
from benches.demo import preferred
from benches.support.compare import assert_equal
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server
from tests.support.command_line import GROUP, Cli, between, nodes, register
from tests.support.own_keys import OWN_PREFIX
from tests.support.servers import ServerFactory, known

SECONDS = 90.0


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source with some hundred keys of every type, and an empty target of another flavour.

    One pair: the data plane's tests go over all of them, and the command line is the same.
    """
    source, target = server_factory(preferred("source")), server_factory(preferred("target"))
    datasets.demo(source.url, n=600)
    return source, target


@pytest.fixture
def two(server_factory: ServerFactory) -> tuple[Server, Server]:
    """Two servers of the machine's first kind, with a few keys at the source."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{n}": "source" for n in range(100)})
    return source, target


# The verbs, as in AWS's story.


def test_register_test_start_complete(ends: tuple[Server, Server], cli: Cli) -> None:
    source, target = ends
    told = cli(
        "register-replication-group",
        *GROUP,
        "--primary-endpoint",
        target.url,
        "--description",
        "the new one",
        "--output",
        "json",
    )
    assert told.code == 0, told.err
    assert told.json["ReplicationGroup"]["ReplicationGroupId"] == "prod"
    assert told.json["ReplicationGroup"]["Status"] == "available"
    assert told.json["ReplicationGroup"]["Description"] == "the new one"

    told = cli("test-migration", *GROUP, *nodes(source))
    assert told.code == 0, told.err
    assert "Check" in told.out
    told = cli("test-migration", *GROUP, *nodes(source), "--output", "json")
    assert {check["name"] for check in told.json["Checks"]}

    told = cli("start-migration", *GROUP, *nodes(source), "--output", "json")
    assert told.code == 0, told.err
    assert told.json["ReplicationGroup"]["Status"] == "migrating"
    group = cli.wait_for(lambda group: group["Migration"]["CanComplete"])
    assert group["Migration"]["Keys"] == source.client().dbsize() or group["Migration"]["Keys"] > 0

    told = cli.completed("--output", "json", process=True)
    assert told.code == 0, told.err
    assert told.json["ReplicationGroup"]["Status"] == "available"
    assert_equal(source.url, target.url)

    events = cli("describe-events", *GROUP, "--output", "json")
    assert events.code == 0
    assert len(events.json["Events"]) >= 2
    told = cli("describe-events")
    assert told.out.startswith("Date")
    told = cli("describe-replication-groups")
    assert told.code == 0
    assert "prod" in told.out
    told = cli("delete-replication-group", *GROUP)
    assert told.code == 0
    assert cli("describe-replication-groups", *GROUP).code == 1


def test_start_and_wait_shows_progress(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    register(cli, target)
    told = cli.here("start-migration", *GROUP, *nodes(source), "--source-type", "scan", "--wait")
    assert told.code == 0, told.err
    assert re.search(r"^COPIED +100 keys, ", told.err, re.MULTILINE), told.err
    assert "migrating" in told.out
    told = cli.completed()
    assert told.code == 0, told.err
    assert "available" in told.out
    assert_equal(source.url, target.url)


def test_the_end_by_force(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    register(cli, target)
    assert cli.here("start-migration", *GROUP, *nodes(source)).code == 0
    told = cli.here("complete-migration", *GROUP, "--force", "--wait")
    assert told.code == 0, told.err
    # The command itself says so, and so do the events.
    aborted = r"aborted by force, not cut over: .+; the source accepts writes"
    assert re.search(rf"^STOPPED .*\({aborted}\)", told.err, re.MULTILINE), told.err
    events = cli.here("describe-events", *GROUP, "--output", "json").json["Events"]
    messages = [each["Message"] for each in events]
    assert "abort requested (force): no cut-over, and no fence stays at the source" in messages
    assert any(re.search(aborted, each) for each in messages), messages
    assert source.client().set("later", "1")
    assert cli.group()["Status"] == "available"


def test_a_cut_over_without_the_comparison(server_factory: ServerFactory, cli: Cli) -> None:
    # One that can be read while it is paused: only there something is left out.
    source, target = server_factory(known("redis-7.0")), server_factory()
    source.client().set("a", "b")
    register(cli, target)
    assert cli.here("start-migration", *GROUP, *nodes(source), "--wait").code == 0
    told = cli.here("complete-migration", *GROUP, "--force", "--skip-verification")
    assert told.code == 2
    assert "--force aborts the migration, --skip-verification cuts over" in told.err
    told = cli.completed("--skip-verification")
    assert told.code == 0, told.err
    assert_equal(source.url, target.url)
    assert "cut over without the comparison, as asked" in cli.here("describe-events", *GROUP).out
    # The source is closed as behind any cut-over.
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("late", "1")


def test_what_fails_before_a_start(server_factory: ServerFactory, cli: Cli) -> None:
    source, target = server_factory(), server_factory(None, "--databases", "4")
    source.client(db=9).set("key", "value")
    source.client().set("a", "b")
    target.client(db=0).set("its own", "1")
    register(cli, target)
    told = cli.here("start-migration", *GROUP, *nodes(source), "--output", "json")
    assert told.code == 1
    assert told.json["Error"]["Code"] == "InvalidParameterValue"
    assert {each["name"] for each in told.json["Checks"] if each["outcome"] == "fail"} == {
        "databases"
    }
    assert "the migration cannot start: databases: to be moved: 0, 9" in told.err
    for wrong, words in (
        ("databaes", "no check 'databaes'"),
        ("different-servers", "cannot be sk"),
    ):
        told = cli.here(
            "start-migration", *GROUP, *nodes(source), "--skip-checks", f"memory,{wrong}"
        )
        assert told.code == 2
        assert words in re.sub(r"\s+", " ", told.err)
    skipping = ("--skip-checks", "memory,databases", "--source-type", "scan", "--db", "0")
    told = cli.here("start-migration", *GROUP, *nodes(source), *skipping)
    assert told.code == 0, told.err
    assert told.err.startswith("warning: existing-keys: on the target: 1 in database 0")
    assert cli.here("complete-migration", *GROUP, "--force", "--wait").code == 0


# Faults.


def test_faults_of_the_groups_state(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    told = cli.here("start-migration", *GROUP, *nodes(source))
    assert told.code == 1
    assert told.err.startswith("ReplicationGroupNotFoundFault: ")
    told = cli.here("complete-migration", *GROUP, "--output", "json")
    assert told.code == 1
    assert told.json["Error"]["Code"] == "ReplicationGroupNotFoundFault"
    assert told.json["Error"]["Type"] == "Sender"
    assert told.err.startswith("ReplicationGroupNotFoundFault: ")

    register(cli, target)
    told = cli.here("register-replication-group", *GROUP, "--primary-endpoint", target.url)
    assert told.code == 1
    assert told.err.startswith("ReplicationGroupAlreadyExists: ")
    told = cli.here("complete-migration", *GROUP)
    assert told.code == 1
    assert told.err.startswith("ReplicationGroupNotUnderMigrationFault: ")

    assert cli.here("start-migration", *GROUP, *nodes(source), "--wait").code == 0
    told = cli.here("start-migration", *GROUP, *nodes(source))
    assert told.code == 1
    assert told.err.startswith("ReplicationGroupAlreadyUnderMigrationFault: ")
    told = cli.here("delete-replication-group", *GROUP)
    assert told.code == 1
    assert told.err.startswith("InvalidReplicationGroupState: ")
    assert cli.completed().code == 0


@pytest.mark.parametrize(
    "value",
    [
        "Address=127.0.0.1,Port=0",
        "Address=127.0.0.1,Port=65536",
        "Address=not_a..host,Port=6379",
        "Address=127.0.0.1,Port=6379 Address=127.0.0.1,Port=6380",
    ],
)
def test_endpoints_that_the_api_refuses(
    value: str, server_factory: ServerFactory, cli: Cli
) -> None:
    register(cli, server_factory())
    told = cli.here("start-migration", *GROUP, "--customer-node-endpoint-list", value)
    assert told.code == 1
    assert told.err.startswith("InvalidParameterValue: ")


def test_a_group_whose_source_is_its_own_target(server_factory: ServerFactory, cli: Cli) -> None:
    server = server_factory()
    register(cli, server)
    told = cli.here("test-migration", *GROUP, *nodes(server), "--output", "json")
    assert told.code == 1
    assert told.json["Error"]["Code"] == "InvalidParameterValue"


def test_a_preflight_that_fails_shows_its_checks(server_factory: ServerFactory, cli: Cli) -> None:
    source, target = server_factory(), server_factory(None, "--maxmemory", "3mb")
    source.client().set("big", b"x" * 8_000_000)
    register(cli, target)
    told = cli.here("test-migration", *GROUP, *nodes(source), "--output", "json")
    assert told.code == 1
    assert told.json["Error"]["Code"] == "InvalidParameterValue"
    assert any(check["name"] == "memory" for check in told.json["Checks"])
    told = cli.here("test-migration", *GROUP, *nodes(source))
    assert told.code == 1
    assert "memory" in told.out


def test_groups_in_pages(server_factory: ServerFactory, cli: Cli) -> None:
    target = server_factory()
    for name in ("a1", "b2", "c3"):
        done = cli(
            "register-replication-group",
            "--replication-group-id",
            name,
            "--primary-endpoint",
            target.url,
        )
        assert done.code == 0, done.err
    first = cli.here("describe-replication-groups", "--max-items", "2", "--output", "json").json
    rest = cli(
        "describe-replication-groups",
        "--starting-token",
        first["NextToken"],
        "--output",
        "json",
    ).json
    assert "NextToken" not in rest
    ids = [g["ReplicationGroupId"] for g in first["ReplicationGroups"] + rest["ReplicationGroups"]]
    assert sorted(ids) == ["a1", "b2", "c3"]
    assert (
        cli.here("describe-replication-groups", "--max-records", "7").code == 1
    )  # the API's minimum


# migrate.


def test_migrate_as_text(ends: tuple[Server, Server], cli: Cli) -> None:
    source, target = ends
    told = cli("migrate", *between(source, target))
    assert told.code == 0, told.err
    assert "SNAPSHOT" in told.err or "COPIED" in told.err
    assert told.out.splitlines()[0].split() == ["Step", "Time", "Keys", "Volume", "Note"]
    assert re.search(r"^Done: [0-9,]+ keys, .* keys/s\.$", told.out, re.MULTILINE)
    assert_equal(source.url, target.url)


def test_migrate_as_json(ends: tuple[Server, Server], cli: Cli) -> None:
    source, target = ends
    told = cli("migrate", *between(source, target), "--output", "json")
    assert told.code == 0, told.err
    report = told.last
    assert report == told.json  # the one thing on stdout
    assert report["status"] == "done"
    assert report["keys"] == sum(db["keys"] for db in source.client().info("keyspace").values())
    assert report["errors"] == report["not_carried"] == []
    assert report["seconds"] > 0
    assert report["keys_per_second"] > 0
    assert report["engine"]["cpu_seconds"] > 0
    assert report["engine"]["peak_rss_bytes"] > 1_000_000
    assert_equal(source.url, target.url)


def test_migrate_with_filters(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    source.client().rpush("k-list", "a")
    source.client(db=3).mset({"k1": "x", "other": "y"})
    told = cli(
        "migrate",
        *between(source, target),
        *("--match", "k1*", "--type", "string", "--db", "0", "--db", "3", "--output", "json"),
    )
    assert told.code == 0, told.err
    assert sorted(target.client().keys()) == sorted([b"k1", *(b"k1%d" % n for n in range(10))])
    assert target.client(db=3).keys() == [b"k1"]


def test_if_exists_skip(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    target.client().set("k7", "target")
    told = cli("migrate", *between(source, target), "--if-exists", "skip", "--output", "json")
    assert told.code == 0, told.err
    assert told.last["skipped"] == 1
    assert target.client().get("k7") == b"target"
    assert target.client().dbsize() == 100


def test_if_exists_fail(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    target.client().set("k7", "target")
    told = cli("migrate", *between(source, target), "--if-exists", "fail", "--output", "json")
    assert told.code == 1
    assert told.last["status"] == "failed"
    assert target.client().get("k7") == b"target"


def test_if_exists_replace_is_the_default(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    target.client().set("k7", "target")
    assert cli("migrate", *between(source, target)).code == 0
    assert_equal(source.url, target.url)


def test_a_wrong_password(server_factory: ServerFactory, cli: Cli) -> None:
    source, target = server_factory(password="right"), server_factory()
    url = f"redis://:hunter2@{source.host}:{source.port}"
    told = cli("migrate", "--source", url, "--target", target.url, "--output", "json")
    assert told.code == 1
    assert told.last["status"] == "failed"
    assert re.match(r"[A-Za-z]+: ", told.err.splitlines()[-1])
    assert "hunter2" not in told.out + told.err


def test_a_password_is_nowhere_to_be_seen(server_factory: ServerFactory, cli: Cli) -> None:
    source, target = server_factory(password="hunter2"), server_factory(password="swordfish")
    source.client().set("k", "v")
    told = cli("migrate", *between(source, target))
    assert told.code == 0, told.err
    shown = told.out + told.err + cli.here("describe-events").out
    shown += cli.here("describe-replication-groups").out
    assert "hunter2" not in shown
    assert "swordfish" not in shown


def test_an_unreachable_source(server_factory: ServerFactory, cli: Cli) -> None:
    target, gone = server_factory(), server_factory()
    gone.close()
    told = cli("migrate", "--source", gone.url, "--target", target.url)
    assert told.code == 1
    assert str(gone.port) in told.err
    assert told.out == ""


def test_a_source_that_is_the_target(server_factory: ServerFactory, cli: Cli) -> None:
    server = server_factory()
    server.client().set("k", "v")
    told = cli("migrate", "--source", server.url, "--target", f"localhost:{server.port}")
    assert told.code == 1
    assert told.err.splitlines()[-1].startswith("InvalidParameterValue: ")
    assert server.client().get("k") == b"v"


def test_a_state_that_is_no_database(two: tuple[Server, Server], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database\n" * 100)
    cli.state = str(tmp_path / "notes.txt")
    told = cli("migrate", *between(*two))
    assert told.code == 1
    assert told.err.startswith("StateError: ")
    assert cli.here("describe-replication-groups").code == 1


def test_a_state_url_that_cannot_be_understood(cli: Cli) -> None:
    cli.state = "nonsense://"
    told = cli.here("describe-replication-groups")
    assert told.code == 2
    assert told.err.startswith("UsageError: ")


# Signals.


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> None:
    """Read the process's stderr until a line fits."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        if re.search(pattern, line):
            return
        seen += line
    pytest.fail(f"no {pattern!r} in: {seen}")


@contextlib.contextmanager
def slow_line(source: Server) -> Iterator[Proxy]:
    """A line to the source on which a snapshot takes some seconds, until `throttle(None)`."""
    datasets.strings(source.url, n=12_000)
    with Proxy(source.host, source.port) as line:
        line.throttle(400_000)
        yield line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_migrate_goes_on_where_it_was(
    number: signal.Signals, server_factory: ServerFactory, cli: Cli
) -> None:
    source, target = server_factory(), server_factory()
    with slow_line(source) as line:
        ends = "--source", f"redis://{line.host}:{line.port}", "--target", target.url
        process = cli.start("migrate", *ends)
        wait_for_line(process, "^SNAPSHOT")
        process.send_signal(number)
        told = cli.end(process)
        assert told.code == 130, told.err
        assert f"--source redis://{line.host}:{line.port}" in told.err
        assert target.client().dbsize() < 12_000

        line.throttle(None)
        told = cli("migrate", *ends, "--output", "json")
    assert told.code == 0, told.err
    assert told.last["status"] == "done"
    assert "migration resumed" in cli.here("describe-events").out
    assert_equal(source.url, target.url)


def test_the_second_ctrl_c_leaves_at_once(server_factory: ServerFactory, cli: Cli) -> None:
    source, target = server_factory(), server_factory()
    with slow_line(source) as line:
        ends = "--source", f"redis://{line.host}:{line.port}", "--target", target.url
        process = cli.start("migrate", *ends)
        wait_for_line(process, "^SNAPSHOT")
        target.freeze()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert process.wait(20) == 130
        target.thaw()
        line.throttle(None)
        told = cli("migrate", *ends)
    assert told.code == 0, told.err
    assert_equal(source.url, target.url)


def test_ctrl_c_while_waiting_leaves_the_worker_at_work(
    server_factory: ServerFactory, cli: Cli
) -> None:
    source, target = server_factory(), server_factory()
    register(cli, target)
    with slow_line(source) as line:
        process = cli.start(
            "start-migration",
            *GROUP,
            *("--customer-node-endpoint-list", f"Address={line.host},Port={line.port}"),
            *("--source-type", "scan", "--wait"),
        )
        wait_for_line(process, "^CONNECT")
        process.send_signal(signal.SIGINT)
        told = cli.end(process)
        assert told.code == 130, told.err
        assert "describe-replication-groups --replication-group-id prod" in told.err
        line.throttle(None)
        cli.wait_for(lambda group: group["Migration"]["CanComplete"])
        assert cli.completed().code == 0
    assert_equal(source.url, target.url)


# Workers that are killed.


def worker_of(group: dict[str, Any]) -> int:
    """The pid of the worker that lives, 0 if there is none."""
    return next((each["Pid"] for each in group.get("Migration", {}).get("Workers", [])), 0)


def test_a_worker_that_is_killed_is_replaced(server_factory: ServerFactory, cli: Cli) -> None:
    """`kill -9`, twice, under the eyes of `start-migration --wait`: nothing is lost, and nobody
    has to do anything."""
    source, target = server_factory(), server_factory()
    datasets.strings(source.url, n=15_000)
    register(cli, target)
    killed: list[int] = []
    with Proxy(source.host, source.port) as link:
        link.throttle(125_000)
        process = cli.start(
            "start-migration",
            *GROUP,
            *("--customer-node-endpoint-list", f"Address={link.host},Port={link.port}"),
            *("--source-type", "scan", "--wait"),
        )
        for _ in range(2):
            # One that has got somewhere.
            group = cli.wait_for(
                lambda group: (
                    worker_of(group) not in (0, *killed) and group["Migration"]["Keys"] > 0
                )
            )
            assert group["Migration"]["Phase"] == "SNAPSHOT"
            killed.append(worker_of(group))
            os.kill(killed[-1], signal.SIGKILL)
        assert len(set(killed)) == 2
        cli.wait_for(lambda group: worker_of(group) > 0)
        assert process.poll() is None
        link.throttle(None)
        told = cli.end(process)
        assert told.code == 0, told.err
        done = cli.completed("--output", "json")
    assert done.code == 0, done.err
    assert done.json["Report"]["status"] == "done"
    assert done.json["Report"]["source_type"] == "scan"
    assert_equal(source.url, target.url)
    events = cli.here("describe-events", *GROUP).out
    for pid in killed:
        line = f"the worker process (pid {pid}) was killed: replaced"
        assert line in told.err
        assert line in events
    # And the last word is that it is all there (some keys may be counted twice).
    assert re.fullmatch(r"COPIED +1[5-9],[0-9]+ keys, .*", told.err.splitlines()[-1]), told.err


def test_a_worker_that_is_stopped_is_left_alone(server_factory: ServerFactory, cli: Cli) -> None:
    """SIGTERM is somebody's wish: the wait ends, and says how to go on."""
    source, target = server_factory(), server_factory()
    datasets.strings(source.url, n=60_000)
    register(cli, target)
    with Proxy(source.host, source.port) as link:
        link.throttle(125_000)
        process = cli.start(
            "start-migration",
            *GROUP,
            *("--customer-node-endpoint-list", f"Address={link.host},Port={link.port}"),
            *("--source-type", "scan", "--wait"),
        )
        group = cli.wait_for(lambda group: group.get("Migration", {}).get("Keys", 0) > 0)
        os.kill(group["Migration"]["Workers"][0]["Pid"], signal.SIGTERM)
        told = cli.end(process)
    assert told.code == 130, told.err
    assert "resume-migration" in told.err
    assert "replaced" not in cli.here("describe-events", *GROUP).out
    assert cli.group()["Migration"]["Phase"] == "STOPPED"
    assert cli.here("complete-migration", *GROUP, "--force").code == 0


# On a terminal.


def test_a_terminal_gets_a_bar(two: tuple[Server, Server], cli: Cli) -> None:
    source, target = two
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "engine", "migrate", *between(source, target)),
            *("--state", cli.state, "--output", "json"),
        ],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**cli.environment, "TERM": "xterm", "COLUMNS": "120"},
    )
    cli.running.append(process)
    os.close(theirs)
    out, _ = process.communicate(timeout=SECONDS)
    drawn = b""
    while select.select([ours], [], [], 0)[0]:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # EIO: the other end was closed
            break
        drawn += piece
    os.close(ours)
    assert process.returncode == 0, drawn
    assert b"DONE" in drawn
    assert b"100 keys, " in drawn
    assert "━".encode() in drawn
    assert json.loads(out)["status"] == "done"


# The source, behind the cut-over.


def test_the_primary_of_a_source_is_released(server_factory: ServerFactory, cli: Cli) -> None:
    """The source is a replica: it is its primary that refuses writes, and takes them again."""
    primary, source, target = (server_factory() for _ in range(3))
    primary.client().set("key", "1")
    source.client().execute_command("REPLICAOF", primary.host, primary.port)
    assert (
        cli.here("register-replication-group", *GROUP, "--primary-endpoint", target.url).code == 0
    )
    address = f"Address={source.host},Port={source.port}"
    start = ("start-migration", *GROUP, "--customer-node-endpoint-list", address)
    told = cli.here(*start, "--source-type", "replica", "--wait")
    assert told.code == 0, told.err
    while (told := cli.completed()).code:
        assert "the deadline of" in told.err, told.err
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        primary.client().set("key", "2")
    events = cli.here("describe-events", *GROUP).out
    assert f"is a replica of {primary.host}:{primary.port}" in events
    told = cli.here("unblock-source", *GROUP)
    assert told.code == 0, told.err
    assert f"the source's primary {primary.host}:{primary.port} accepts writes again" in told.out
    assert primary.client().set("key", "2")
    assert target.client().get("key") == b"1"


def test_the_source_is_released(
    few_binary: Binary, server_factory: ServerFactory, cli: Cli
) -> None:
    """It refuses writes behind the cut-over, and takes them again with its own settings."""
    source, target = server_factory(few_binary), server_factory(few_binary)
    client = source.client()
    client.config_set("min-replicas-max-lag", 0)
    before = client.config_get("min-replicas-*")
    client.set("key", "1")
    told = cli.here("register-replication-group", *GROUP, "--primary-endpoint", target.url)
    assert told.code == 0, told.err
    told = cli.here("unblock-source", *GROUP)
    assert told.code == 1
    assert "no migration of it has blocked writes at its source" in told.err
    address = f"Address={source.host},Port={source.port}"
    start = ("start-migration", *GROUP, "--customer-node-endpoint-list", address)
    assert cli.here(*start, "--source-type", "replica", "--wait").code == 0
    told = cli.here("unblock-source", *GROUP, "--output", "json")
    assert told.code == 1
    assert "InvalidReplicationGroupState" in told.json["Error"]["Code"]
    assert "it is migrating" in told.err
    while (told := cli.completed()).code:
        # Redis 6.0 is paused for half a second at first.
        assert "the deadline of" in told.err, told.err
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("key", "2")
    told = cli.here("unblock-source", *GROUP)
    assert told.code == 0, told.err
    assert "accepts writes again; they are no longer replicated" in told.out
    assert client.config_get("min-replicas-*") == before
    assert client.set("key", "2")
    assert target.client().get("key") == b"1"
    assert "accepts writes again" in cli.here("describe-events", *GROUP).out
    # Once more is no harm: what somebody has set since is left alone.
    client.config_set("min-replicas-to-write", 0)
    told = cli.here("release-source", *GROUP)  # its former name
    assert told.code == 0
    assert "nothing was done" in told.out
    assert client.set("key", "3")
    source.close()
    told = cli.here("unblock-source", *GROUP)
    assert told.code == 1
    assert "connection refused" in told.err


def test_a_source_that_was_sealed_before_is_released(
    server_factory: ServerFactory, cli: Cli
) -> None:
    """Migrated once more from a source that still refuses writes: what was set before the first
    time is put back, and not the seal."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    client = source.client()
    client.set("key", "1")
    before = client.config_get("min-replicas-*")
    assert (
        cli.here("register-replication-group", *GROUP, "--primary-endpoint", target.url).code == 0
    )
    address = f"Address={source.host},Port={source.port}"
    start = ("start-migration", *GROUP, "--customer-node-endpoint-list", address)
    for _ in range(2):
        target.client().flushall()
        assert cli.here(*start, "--source-type", "replica", "--wait").code == 0
        assert cli.completed().code == 0
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            client.set("key", "2")
    assert cli.here("unblock-source", *GROUP).code == 0
    assert client.config_get("min-replicas-*") == before
    assert client.set("key", "2")


def test_a_source_that_its_operator_has_closed_is_not_ours_to_release(
    few_binary: Binary, server_factory: ServerFactory, cli: Cli
) -> None:
    """Its setting was the operator's before the cut-over; it stays, it is named, and nobody says
    that it was ours, or that the source is open."""
    source, target = server_factory(few_binary), server_factory(few_binary)
    client = source.client()
    client.set("key", "1")
    client.config_set("min-replicas-to-write", 65535)
    closed = client.config_get("min-replicas-*")
    assert (
        cli.here("register-replication-group", *GROUP, "--primary-endpoint", target.url).code == 0
    )
    address = f"Address={source.host},Port={source.port}"
    start = ("start-migration", *GROUP, "--customer-node-endpoint-list", address)
    assert cli.here(*start, "--source-type", "replica", "--wait").code == 0
    while (told := cli.completed()).code:
        # Redis 6.0 is paused for half a second at first.
        assert "the deadline of" in told.err, told.err
    assert target.client().get("key") == b"1"
    events = cli.here("describe-events", *GROUP).out
    assert "as it did before this cut-over" in events
    assert "min-replicas-to-write 65535" not in events
    told = cli.here("unblock-source", *GROUP)
    assert told.code == 1
    setting = next(name for name in closed if name.endswith("to-write"))
    if source.binary.version >= (5, 0, 0):
        setting = "min-replicas-to-write"
    said = " ".join(told.err.split())
    assert f"the source {source.host}:{source.port} refused writes before the cut-over" in said
    assert f"by its setting {setting}, which no migration of this group has changed" in said
    assert f"Set {setting} back there by hand" in said
    assert "no migration of it has blocked writes at its source" not in said
    assert client.config_get("min-replicas-*") == closed
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("key", "2")


# What could not be carried is no success, wherever the run was to end.


@pytest.mark.parametrize("until", ["snapshot", "in-sync", "cut-over"])
@pytest.mark.parametrize("way", ["replica", "scan"])
def test_keys_that_were_not_carried_end_with_1(
    server_factory: ServerFactory, cli: Cli, way: str, until: str
) -> None:
    source, target = server_factory(known("redis-8.0")), server_factory(known("redis-6.2"))
    client = source.client()
    client.set("fits", 1)
    for n in range(5):
        client.hset(f"hash:{n}", mapping={"stays": 1, "goes": 2})
        client.hexpire(f"hash:{n}", 3600, "goes")
    options = ("--source-type", way, "--until", until, "--output", "json")
    told = cli("migrate", *between(source, target), *options)
    assert told.code == 1, told.out
    assert "TransferStopped: stopped: 5 keys were not migrated" in told.err
    assert told.err.rstrip().endswith(". Correct that. Then the same command goes on.")
    report = told.last
    assert report["status"] == "stopped"
    (line,) = report["errors"]
    assert re.match(r"5 keys were not migrated, such as 'hash:\d' \(database 0\), 'hash:\d' ", line)
    assert report["not_carried_total"] == 5
    assert sorted(each["key"] for each in report["not_carried"]) == [f"hash:{n}" for n in range(5)]
    assert all("does not know values" in each["reason"] for each in report["not_carried"])
    names = [key for key in target.client().scan_iter() if not key.startswith(OWN_PREFIX)]
    assert names == [b"fits"]
