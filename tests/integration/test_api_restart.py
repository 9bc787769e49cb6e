"""The server ends, well or badly, and workers are killed: migrations go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from benches.support.api import Serving, percent
from benches.support.waiting import wait_for
from engine.front.engine import Engine
from engine.front.http.server import GRACE_SECONDS
from tests.support.completing import word_given
from tests.support.servers import ServerFactory


def pid_of(state: str) -> int:
    """The worker's process, 0 without one."""
    engine = Engine(state)
    try:
        answer = engine.sync.describe_replication_groups("cache")
        workers = answer["ReplicationGroups"][0].get("Migration", {}).get("Workers", [])
        return int(workers[0]["Pid"]) if workers else 0
    finally:
        engine.close()


def replaced(state: str, pid: int) -> bool:
    """Whether there is a worker, and another one than that."""
    return pid_of(state) not in (0, pid)


def in_sync(client: Any) -> bool:
    answer = client.describe_replication_groups(ReplicationGroupId="cache")
    return percent(answer["ReplicationGroups"][0]) == 100.0


def status(client: Any) -> Any:
    answer = client.describe_replication_groups(ReplicationGroupId="cache")
    return answer["ReplicationGroups"][0]["Status"]


def begun(api: Serving, server_factory: ServerFactory) -> tuple[Any, Any, int]:
    """A migration that follows; its ends, and its worker's pid."""
    source, target = server_factory(), server_factory()
    source.client().set("before", "1")
    client = api.client()
    client.create_replication_group(
        ReplicationGroupId="cache",
        ReplicationGroupDescription="",
        PrimaryClusterId=f"127.0.0.1:{target.port}",
    )
    nodes = [{"Address": "127.0.0.1", "Port": source.port}]
    client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
    wait_for(lambda: in_sync(client), "in sync")
    return source, target, pid_of(api.state)


def completed(api: Serving, source: Any, target: Any) -> None:
    source.client().set("after", "2")
    client = api.client()
    wait_for(lambda: in_sync(client), "in sync again")
    word_given(
        lambda: client.complete_migration(ReplicationGroupId="cache"), lambda: in_sync(client)
    )
    # Once: an order that was accepted is carried out, or it is told why not.
    try:
        wait_for(lambda: status(client) == "available", "available")
    except AssertionError as late:
        told = [each["Message"] for each in client.describe_events()["Events"]]
        raise AssertionError(f"{late}; events: {told}") from None
    assert target.client().mget("before", "after") == [b"1", b"2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_migration_outlives_the_server(
    number: signal.Signals, tmp_path: Path, state_url: str, server_factory: ServerFactory
) -> None:
    with Serving(tmp_path, state_url) as api:
        source, target, pid = begun(api, server_factory)
        started = time.monotonic()
        assert api.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert time.monotonic() - started < GRACE_SECONDS
        assert pid_of(state_url) == pid
        os.kill(pid, 0)
        api.start()
        completed(api, source, target)


def test_a_worker_that_is_killed_is_replaced(
    tmp_path: Path, state_url: str, server_factory: ServerFactory
) -> None:
    with Serving(tmp_path, state_url) as api:
        source, target, pid = begun(api, server_factory)
        # The server gives way to its workers; what it starts does not.
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
        group = Path(f"/proc/{pid}/autogroup")
        assert not group.exists() or group.read_text().endswith("nice 0\n")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: replaced(state_url, pid), "another worker")
        assert os.getpriority(os.PRIO_PROCESS, pid_of(state_url)) == os.getpriority(
            os.PRIO_PROCESS, 0
        )
        completed(api, source, target)
        told = [each["Message"] for each in api.client().describe_events()["Events"]]
        assert f"the worker process (pid {pid}) was killed: replaced, 1 of 20" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_end_and_the_server_takes_it_up(
    number: signal.Signals, tmp_path: Path, state_url: str, server_factory: ServerFactory
) -> None:
    """As when the machine shuts down, or a container is killed with all that is in it."""
    with Serving(tmp_path, state_url) as api:
        source, target, pid = begun(api, server_factory)
        api.end(number)
        os.kill(pid, number)
        wait_for(lambda: pid_of(state_url) == 0, "the worker has ended")
        api.start()
        completed(api, source, target)


def test_two_servers_on_one_state(
    tmp_path: Path, state_url: str, server_factory: ServerFactory
) -> None:
    """Both watch over every migration, and both are asked to start one: there is one worker."""
    (tmp_path / "other").mkdir()
    with Serving(tmp_path, state_url) as api, Serving(tmp_path / "other", state_url) as other:
        source, target = server_factory(), server_factory()
        source.client().set("before", "1")
        api.client().create_replication_group(
            ReplicationGroupId="cache",
            ReplicationGroupDescription="",
            PrimaryClusterId=f"127.0.0.1:{target.port}",
        )
        nodes = [{"Address": "127.0.0.1", "Port": source.port}]

        def start(serving: Serving) -> str:
            try:
                serving.client().start_migration(
                    ReplicationGroupId="cache", CustomerNodeEndpointList=nodes
                )
            except ClientError as refused:
                return str(refused.response["Error"]["Code"])
            return "started"

        with ThreadPoolExecutor(4) as pool:
            told = sorted(pool.map(start, (api, other, api, other)))
        assert told.count("started") == 1
        # The same request at the same server within a second has the same signature.
        assert set(told) <= {
            "ReplicationGroupAlreadyUnderMigrationFault",
            "RequestExpired",
            "started",
        }
        for serving in (other, api):
            wait_for(partial(in_sync, serving.client()), "in sync")
            pid = pid_of(state_url)
            os.kill(pid, signal.SIGKILL)
            wait_for(partial(replaced, state_url, pid), "another worker")
        wait_for(lambda: len(source.client().client_list(_type="replica")) == 1, "one replica")
        completed(other, source, target)
        assert status(api.client()) == "available"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "0.0.0.0:0", "--no-auth"], "only the loopback is served, not 0.0.0.0"),
        (["--listen", "[::]:0", "--no-auth"], "only the loopback"),
        (["--listen", "127.0.0.1:0", "--listen", "10.0.0.1:0", "--no-auth"], "not 10.0.0.1"),
        ([], "either --credentials or --no-auth"),
        (["--no-auth", "--credentials", "keys"], "either --credentials or --no-auth"),
        (["--credentials", "none"], "none cannot be read"),
        (["--credentials", "open"], "can be read by others"),
        (["--no-auth", "--listen", "127.0.0.1"], "not an address"),
        (["--no-auth", "--listen", "127.0.0.1:99999"], "not an address"),
        (["--no-auth", "--listen", "192.0.2.1:1"], "only the loopback"),
        (["--credentials", "keys", "--listen", "192.0.2.1:1"], "cannot listen on 192.0.2.1:1"),
        (["--no-auth", "--tls-cert", "keys"], "needs both"),
        (["--no-auth", "--tls-cert", "keys", "--tls-key", "keys"], "not a certificate"),
        (["--no-auth", "--metrics-token-file", "open"], "can be read by others"),
        (["--no-auth", "--metrics-token-file", "keys"], "fewer than 16"),
        (["--no-auth", "--allow-endpoint", "10.*"], "--allow-endpoint: '10.*' is not a network"),
        (["--no-auth"], "entry 1: password_file holds a NUL"),
    ],
)  # fmt: skip
def test_what_it_does_not_start_with(
    options: list[str], words: str, tmp_path: Path, state_url: str
) -> None:
    for name, mode in (("keys", 0o600), ("open", 0o644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    config = tmp_path / "config.toml"
    config.write_text('[[credentials]]\nhost = "h"\npassword_file = "/a\\u0000b"\n')
    named = {"STARTMIGRATION_CONFIG": str(config)} if "password_file" in words else {}
    done = subprocess.run(
        [sys.executable, "-m", "engine", "serve", "--state", state_url, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **named},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())
