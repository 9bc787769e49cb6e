"""The front over real servers: the verbs, the workers, and what is left when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ParamSpec

import pytest
import redis

from benches.support.compare import assert_equal
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, binaries
from benches.support.waiting import soon
from engine.errors import (
    Interrupted,
    InvalidReplicationGroupStateFault,
    ReplicationGroupAlreadyUnderMigrationFault,
    TransferFailed,
    UsageError,
)
from engine.fleet import run
from engine.fleet.inline import run_here
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.front.engine import Engine
from engine.front.faults_with_details import CompletionRefused, PreflightFault
from engine.front.http.metrics import Metrics
from engine.groups.states import Request, TransferStatus
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from tests.support.completing import complete
from tests.support.own_keys import assert_tidy
from tests.support.processes import frozen, kill, until_ended
from tests.support.servers import known

ServerFactory = Callable[..., Server]
Slow = Callable[[Server], Proxy]
P = ParamSpec("P")
PASSWORD = "correct horse battery"
pytestmark = pytest.mark.usefixtures("no_configuration")
# Small, so that a run has many checkpoints.
MANY = 20_000
SCAN = TransferSettings(source_type="scan")
SLOW = TransferSettings(source_type="scan", batch_bytes=4096, window_bytes=8192)


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the loop that workers and the command line run on. (`test_any_event_loop` runs
    on asyncio's own.)"""

    @functools.wraps(test)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return call


@pytest.fixture
def face(state_url: str) -> Iterator[Engine]:
    """An engine; workers that a test leaves behind are ended by their pid."""
    face = Engine(state_url)
    yield face
    face.close()
    registry = open_registry(state_url)
    for _, transfer in registry.list()[0]:
        if (
            transfer is not None
            and transfer.leased()
            and transfer.worker != ProcessId.here().worker
        ):
            assert transfer.worker is not None
            kill(transfer.worker.shown["Pid"])
    registry.store.close()


@pytest.fixture
def slow() -> Iterator[Callable[[Server], Proxy]]:
    """Puts a slow link before a server: a run through it can be caught on its way."""
    with contextlib.ExitStack() as stack:

        def before(server: Server) -> Proxy:
            proxy = stack.enter_context(Proxy(server.host, server.port))
            proxy.throttle(1_000_000)
            return proxy

        yield before


def fill(server: Server, count: int = 2000, size: int = 100) -> None:
    client = server.client()
    for begin in range(0, count, 5000):
        pipe = client.pipeline(transaction=False)
        for number in range(begin, min(count, begin + 5000)):
            pipe.set(f"key:{number}", os.urandom(size // 2).hex())
        pipe.execute()
    # Types whose encoding every server knows: what can't be carried is another file's matter.
    client.sadd("set", *range(100))
    client.set("passing", "1", ex=3600)


def node(server: Server | Proxy) -> list[dict[str, Any]]:
    return [{"Address": server.host, "Port": server.port}]


def plain(server: Server) -> str:
    return f"redis://{server.host}:{server.port}"


async def migration(face: Engine) -> dict[str, Any]:
    (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
    return dict(group.get("Migration", {}))


async def events(face: Engine) -> list[str]:
    return [each["Message"] for each in (await face.describe_events("g"))["Events"]]


async def until_keys(face: Engine, least: int) -> dict[str, Any]:
    """Wait until the migration is on its way, with `least` keys acknowledged."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = await migration(face)
        if found["Keys"] >= least:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"still not {least} keys: {found}")


def log_of(state_url: str) -> Path:
    return Path(state_url.removeprefix("sqlite:///")).parent / "worker-g.log"


@in_loop
async def test_the_verbs(
    face: Engine, state_url: str, server_factory: ServerFactory, ring_pair: tuple[Binary, Binary]
) -> None:
    """Register, test, start, describe until it can be completed, complete, available."""
    source, target = (server_factory(each) for each in ring_pair)
    fill(source)
    await face.register_replication_group("g", plain(target))
    tested = await face.test_migration("g", node(source))
    assert tested["Checks"]
    assert target.client().dbsize() == 0
    started = await face.start_migration("g", node(source), settings=SCAN)
    assert started["ReplicationGroup"]["Status"] == "migrating"
    deadline = time.monotonic() + 60
    while not (found := await migration(face))["CanComplete"]:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
    assert (found["Phase"], found["Keys"]) == ("COPIED", 2002)
    (worker,) = found["Workers"]
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault):
        await face.start_migration("g", node(source))
    await complete(face, "g")
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert (report.status, report.keys, report.errors) == ("done", 2002, ())
    assert report.engine.cpu_seconds > 0
    assert report.engine.peak_rss_bytes > 1 << 20
    assert_equal(source.client(), target.client())
    assert "migration completed" in (await events(face))[-1]
    log = log_of(state_url)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "Traceback" not in log.read_text()
    await asyncio.to_thread(until_ended, worker["Pid"])
    await face.delete_replication_group("g")


def holding(secret: str, folder: Path) -> list[Path]:
    """The files under `folder` in which `secret` stands."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if secret.encode() in file.read_bytes()]


@in_loop
async def test_credentials_reach_the_worker(
    face: Engine,
    state_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_factory: ServerFactory,
) -> None:
    """From the configuration; and the password is in no file but that one."""
    source, target = server_factory(password=PASSWORD), server_factory(password=PASSWORD)
    fill(source, 100)
    await face.register_replication_group("g", plain(target))
    with pytest.raises(PreflightFault) as caught:
        await face.test_migration("g", node(source))
    assert any(check["outcome"] == "fail" for check in caught.value.checks)
    config = tmp_path / "elsewhere" / "config.toml"
    config.parent.mkdir()
    config.write_text(f'[[credentials]]\nhost = "127.0.0.*:*"\npassword = "{PASSWORD}"\n')
    config.chmod(0o600)
    monkeypatch.setenv("STARTMIGRATION_CONFIG", str(config))
    face = Engine(state_url)
    await face.start_migration("g", node(source))
    await face.wait("g", until="copied", timeout=60)
    worker = (await migration(face))["Workers"][0]["Pid"]
    command = await asyncio.to_thread(Path(f"/proc/{worker}/cmdline").read_bytes)
    await complete(face, "g")
    await face.wait("g", until="available", timeout=60)
    assert_equal(source.client(), target.client())
    await asyncio.to_thread(until_ended, worker)
    face.close()
    assert PASSWORD.encode() not in command
    assert holding(PASSWORD, tmp_path) == [config]


@in_loop
async def test_given_credentials_reach_the_worker(
    state_url: str, server_factory: ServerFactory
) -> None:
    from engine.model.credentials import Credentials

    source, target = server_factory(password=PASSWORD), server_factory()
    fill(source, 100)
    known = Credentials.read(
        [{"host": f"127.0.0.1:{source.port}", "password": PASSWORD}], "this test"
    )
    face = Engine(state_url, credentials=known)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source))
    await face.wait("g", until="copied", timeout=60)
    await complete(face, "g")
    await face.wait("g", until="available", timeout=60)
    assert_equal(source.client(), target.client())
    face.close()


@in_loop
async def test_a_killed_worker_is_resumed(
    face: Engine, state_url: str, server_factory: ServerFactory, slow: Slow
) -> None:
    source, target = server_factory(), server_factory(binaries()[-1])
    fill(source, MANY, 400)
    link = slow(source)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(link), settings=SLOW)
    found = await until_keys(face, 2000)
    assert found["Phase"] == "SNAPSHOT"
    pid = found["Workers"][0]["Pid"]
    kill(pid)
    found = await migration(face)
    assert found["Reason"].startswith(f"the worker process (pid {pid}) is gone: resume")
    assert not found["CanComplete"]
    with pytest.raises(InvalidReplicationGroupStateFault, match="is gone"):
        await face.complete_migration("g")
    with pytest.raises(TransferFailed, match="is gone"):
        await face.wait("g", until="copied")
    before = saved(state_url)
    assert before is not None
    link.throttle(None)
    resumed = await face.resume_migration("g")
    assert resumed["ReplicationGroup"]["Status"] == "migrating"
    await face.wait("g", until="copied", timeout=120)
    await complete(face, "g")
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    # It went on from the checkpoint, and did not begin anew; all is counted.
    (copied,) = [step.keys for step in report.steps if step.name == "snapshot"]
    assert copied <= MANY + 2 - before.keys // 2
    assert report.keys >= MANY
    assert_equal(source.client(), target.client())


def saved(state_url: str) -> Checkpoint | None:
    """The checkpoint in the state, as it is on the disk."""
    registry = open_registry(state_url)
    with registry.store.read() as connection:
        found = connection.exec_driver_sql("SELECT checkpoint FROM checkpoints").scalar()
    registry.store.close()
    return None if found is None else Checkpoint.from_dict(json.loads(found))


@in_loop
async def test_a_killed_worker_is_ended_by_force(
    face: Engine, server_factory: ServerFactory, slow: Slow
) -> None:
    source, target = server_factory(), server_factory()
    fill(source, MANY, 400)
    link = slow(source)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(link), settings=SLOW)
    kill((await until_keys(face, 100))["Workers"][0]["Pid"])
    answer = await face.complete_migration("g", force=True)
    assert answer["ReplicationGroup"]["Status"] == "available"
    assert "aborted by force, without a worker" in (await events(face))[-1]
    # And the group is as good as new.
    await face.start_migration("g", node(source))
    await face.wait("g", until="copied", timeout=60)
    await complete(face, "g")
    await face.wait("g", until="available", timeout=60)
    assert_equal(source.client(), target.client())


@in_loop
async def test_what_a_killed_worker_left_is_taken_away(
    face: Engine, server_factory: ServerFactory
) -> None:
    """It followed: deadlines were lifted, and two keys of its own were on the target."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().set("key", "1", ex=600)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source))
    described = await face.wait("g", until="in-sync", timeout=60)
    assert target.client().ttl("key") > 100_000
    (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
    kill(group["Migration"]["Workers"][0]["Pid"])
    answer = await face.complete_migration("g", force=True)
    assert answer["ReplicationGroup"]["Status"] == "available", described
    assert "aborted by force, without a worker" in (await events(face))[-1]
    assert 0 < target.client().ttl("key") <= 600
    assert_tidy(target, left=True)


@pytest.mark.parametrize("name", ["redis-6.2", "redis-7.0", "redis-8.0", "valkey-8.1"])
@pytest.mark.parametrize("sealed", [False, True], ids=["paused", "sealed"])
@in_loop
async def test_what_a_worker_left_that_was_killed_behind_the_fence(
    face: Engine, server_factory: ServerFactory, state_url: str, name: str, sealed: bool
) -> None:
    """Its source's writers wait, or are refused, and the target is not open."""
    source, target = (server_factory(known(name)) for _ in range(2))
    client = source.client()
    client.config_set("min-replicas-max-lag", 0)
    before = client.config_get("min-replicas-*")
    client.set("near", "1", ex=300)
    client.set("far", "1", ex=3000)
    with (
        Proxy(target.host, target.port) as link,
        contextlib.closing(
            sqlite3.connect(state_url.removeprefix("sqlite:///"), isolation_level=None)
        ) as state,
    ):
        await face.register_replication_group("g", plain(link))
        settings = TransferSettings(cut_over_timeout=60.0)
        await face.start_migration("g", node(source), settings=settings)
        await face.wait("g", until="in-sync", timeout=60)
        # Behind the fence each question to the target takes its time; before it too, where both
        # ends are compared.
        await complete(face, "g")
        link.delay(0.2)
        await soon(lambda: _phase(state) == "CUT_OVER", "the cut-over")
        if sealed:
            # Up to the moment when it writes down that the target is open.
            state.execute("BEGIN IMMEDIATE")
            link.delay(0)
            await soon(
                lambda: client.config_get()["min-replicas-to-write"] == "65535", "the write block"
            )
        (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
        kill(group["Migration"]["Workers"][0]["Pid"])
        link.delay(0)
        if sealed:
            state.execute("ROLLBACK")
        with pytest.raises((redis.ResponseError, redis.TimeoutError)):
            source.client(socket_timeout=0.3).set("key", "1")
        answer = await face.complete_migration("g", force=True)
        assert answer["ReplicationGroup"]["Status"] == "available"
    told = await events(face)
    assert "aborted by force, without a worker" in told[-1], told
    assert source.client(socket_timeout=2).set("key", "1")
    assert client.config_get("min-replicas-*") == before
    assert 0 < target.client().ttl("near") <= 300
    assert 0 < target.client().ttl("far") <= 3000
    assert_tidy(target, left=True)


async def worker(face: Engine) -> int:
    (found,) = (await migration(face))["Workers"]
    return int(found["Pid"])


def _phase(state: sqlite3.Connection) -> str:
    (progress,) = state.execute("SELECT progress FROM lanes ORDER BY id DESC").fetchone()
    return str(json.loads(progress)["phase"]) if progress else ""


@in_loop
async def test_force_on_the_way(face: Engine, server_factory: ServerFactory, slow: Slow) -> None:
    source, target = server_factory(), server_factory()
    fill(source, MANY, 400)
    link = slow(source)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(link), settings=SLOW)
    await until_keys(face, 100)
    await face.complete_migration("g", force=True)
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "stopped"
    assert "by force" in report.errors[0]
    assert 0 < target.client().dbsize() < MANY + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_loop
async def test_a_signal_stops_the_worker(
    face: Engine, server_factory: ServerFactory, slow: Slow, number: signal.Signals
) -> None:
    source, target = server_factory(), server_factory()
    fill(source, MANY, 400)
    link = slow(source)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(link), settings=SLOW)
    found = await until_keys(face, 100)
    os.kill(found["Workers"][0]["Pid"], number)
    with pytest.raises(Interrupted, match="resume with resume-migration"):
        await face.wait("g", until="copied", timeout=60)
    assert (await events(face))[-1] == "migration stopped; it can be resumed"
    link.throttle(None)
    await face.resume_migration("g")
    await face.wait("g", until="copied", timeout=120)
    await complete(face, "g")
    await face.wait("g", until="available", timeout=60)
    assert_equal(source.client(), target.client())


@in_loop
async def test_a_stop_through_the_state(
    face: Engine, state_url: str, server_factory: ServerFactory, slow: Slow
) -> None:
    source, target = server_factory(), server_factory()
    fill(source, MANY, 400)
    link = slow(source)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(link), settings=SLOW)
    await until_keys(face, 100)
    registry = open_registry(state_url)
    registry.request("g", Request.STOP)
    registry.store.close()
    with pytest.raises(Interrupted):
        await face.wait("g", until="copied", timeout=60)


@in_loop
async def test_a_cut_over_that_is_refused(face: Engine, server_factory: ServerFactory) -> None:
    """What is written to the source after SCAN passed is not followed: the gate sees it."""
    source, target = server_factory(), server_factory()
    fill(source, 500)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source), settings=SCAN)
    await face.wait("g", until="copied", timeout=60)
    source.client().set("late", "1")
    await complete(face, "g")
    with pytest.raises(TransferFailed, match="cut-over refused"):
        await face.wait("g", until="available", timeout=60)
    found = await migration(face)
    assert "(last cut-over refused: " in found["Reason"]
    assert any("cut-over refused" in each for each in await events(face))
    # Mended, it goes through; the same worker is still there.
    target.client().set("late", "1")
    await complete(face, "g")
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    assert_equal(source.client(), target.client())


@in_loop
async def test_the_order_behind_one_that_came_to_nothing(
    face: Engine, server_factory: ServerFactory
) -> None:
    """The source cannot go on where the engine was, and everything is copied anew: an order that
    arrived before is refused, and the next one heard; or it is carried out behind the copy."""
    source, target = server_factory(None, "--repl-backlog-size", "16kb"), server_factory()
    fill(source, 100)
    client = source.client()
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source))
    await face.wait("g", until="in-sync", timeout=60)
    with frozen(await worker(face)):
        await face.complete_migration("g")
        client.client_kill_filter(_type="replica")
        client.set("long", "x" * 1_000_000)
    try:
        report = await face.wait("g", until="available", timeout=60)
    except TransferFailed:
        assert "cut-over refused: " in " ".join(await events(face))
        await face.wait("g", until="in-sync", timeout=60)
        await complete(face, "g")
        report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    assert report.full_syncs == 2
    assert_equal(client, target.client())


@in_loop
async def test_an_order_waits_for_what_passes(face: Engine, server_factory: ServerFactory) -> None:
    """Asked for while it could be completed, and heard when there is something to catch up with:
    the engine got no CPU meanwhile, and was written to."""
    source, target = server_factory(), server_factory()
    fill(source, 100)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source))
    await face.wait("g", until="in-sync", timeout=60)
    with frozen(await worker(face)):
        await face.complete_migration("g")
        pipe = source.client().pipeline(transaction=False)
        for number in range(20_000):
            pipe.set(f"late:{number % 500}", "x" * 1000, ex=600)
        await asyncio.to_thread(pipe.execute)
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    assert not [each for each in await events(face) if "refused" in each]
    assert target.client().get("late:499") == b"x" * 1000


@in_loop
async def test_what_fails_before_a_start(face: Engine, server_factory: ServerFactory) -> None:
    """A start looks before it leaps; who knows better names the check."""
    source, target = server_factory(), server_factory(None, "--databases", "4")
    source.client(db=9).set("key", "value")
    source.client().set("a", "b")
    await face.register_replication_group("g", plain(target))
    with pytest.raises(PreflightFault, match=r"cannot start: databases: .* database 9,") as caught:
        await face.start_migration("g", node(source))
    assert caught.value.code == "InvalidParameterValue"
    assert [each["name"] for each in caught.value.checks if each["outcome"] == "fail"] == [
        "databases"
    ]
    (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
    assert group["Status"] == "available"
    assert (await events(face))[-1].startswith("start refused: the migration cannot start: databas")
    assert target.client().dbsize() == 0
    settings = TransferSettings(skip_checks=("databases",), databases=(0,), source_type="scan")
    started = await face.start_migration("g", node(source), settings=settings)
    assert started["ReplicationGroup"]["Status"] == "migrating"
    await face.wait("g", until="in-sync", timeout=60)
    await face.complete_migration("g", force=True)
    await face.wait("g", until="available", timeout=60)


@in_loop
async def test_warnings_become_events(face: Engine, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory(None, "--maxmemory-policy", "volatile-lru")
    target.client().config_set("maxmemory", "1gb")
    target.client().set("its own", "1")
    source.client().set("a", "b")
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source))
    told = [each for each in await events(face) if each.startswith("warning: ")]
    assert [each.split(": ")[1] for each in told] == ["eviction", "existing-keys"]
    assert "→ Set maxmemory-policy noeviction on the target" in told[0]
    await face.complete_migration("g", force=True)
    await face.wait("g", until="available", timeout=60)
    # In one go too.
    target.client().flushall()  # what the abort has left as well
    await face.migrate(
        Endpoint.parse(source.url), Endpoint.parse(target.url), replication_group_id="g"
    )
    assert len([each for each in await events(face) if each.startswith("warning: ")]) == 3


@in_loop
@pytest.mark.parametrize("how", ["two addresses", "a replica", "a replica's replica"])
async def test_a_server_is_not_replicated_into_itself(
    face: Engine, server_factory: ServerFactory, how: str
) -> None:
    """One INCR became 1,123 within six seconds, and there was no end to it."""
    target = server_factory(None, unix=True)
    source: Endpoint | dict[str, Any] = Endpoint.parse(target.unix_url)
    above = target
    for _ in range({"two addresses": 0, "a replica": 1, "a replica's replica": 2}[how]):
        replica = server_factory()
        replica.client().replicaof("127.0.0.1", above.port)
        (source,), above = node(replica), replica
    await face.register_replication_group("g", plain(target))
    with pytest.raises(PreflightFault, match="different-servers: the source is"):
        await face.start_migration("g", [source])
    with pytest.raises(UsageError, match="cannot be skipped"):
        TransferSettings(skip_checks=("different-servers",))
    assert target.client().incr("clicks") == 1
    assert target.client().get("clicks") == b"1"


@in_loop
async def test_a_cut_over_without_the_comparison(
    face: Engine, server_factory: ServerFactory
) -> None:
    """A refusal by the comparison offers it, and it opens the target as that is."""
    source, target = server_factory(), server_factory()
    fill(source, 500)
    source.client().save()
    dump = Endpoint.parse(f"rdb:{source.folder / 'dump.rdb'}")
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", [dump])
    await face.wait("g", until="copied", timeout=60)
    target.client().delete("key:7")
    await complete(face, "g")
    with pytest.raises(TransferFailed, match="cut-over refused"):
        await face.wait("g", until="available", timeout=60)
    reason = (await migration(face))["Reason"]
    assert "complete-migration --skip-verification cuts over without the comparison" in reason
    await face.complete_migration("g", skip_verification=True)
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    assert target.client().get("key:7") is None
    assert report.verification is None
    assert (await events(face))[-2:] == [
        "completion without the comparison requested",
        "migration completed: cut over without the comparison, as asked",
    ]


@pytest.mark.parametrize("way", ["replica", "scan"])
@in_loop
async def test_a_user_that_may_not_compare(
    way: str, state_url: str, server_factory: ServerFactory
) -> None:
    """The gate is closed from the start, and not open until it refuses; it names what is denied for
    the types that are there."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    fill(source, 50)
    source.client().hset("hash", "field", "value")
    source.client().acl_setuser(
        "mover", enabled=True, nopass=True, keys=["*"], channels=["*"],
        commands=["+@all", "-hgetall", "-zrange"],
    )  # fmt: skip
    mover = {"host": f"127.0.0.1:{source.port}", "username": "mover", "password": "any"}
    face = Engine(state_url, credentials=Credentials.read([mover], "this test"))
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source), settings=TransferSettings(source_type=way))

    async def until(able: bool, word: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            found = await migration(face)
            if found.get("CanComplete") is able and word in (found.get("Reason") or ""):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)

    reason = (await until(False, "HGETALL"))["Reason"]
    assert "'mover' may not run HGETALL" in reason
    assert "ZRANGE" not in reason
    assert "--skip-verification" in reason
    with pytest.raises(CompletionRefused, match="HGETALL"):
        await face.complete_migration("g")
    if way == "scan":
        source.client().execute_command("ACL", "SETUSER", "mover", "+hgetall")
        await until(True, "")
        await complete(face, "g")
    else:
        await face.complete_migration("g", skip_verification=True)
    report = await face.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    assert target.client().hget("hash", "field") == b"value"
    face.close()


@in_loop
async def test_the_word_without_the_comparison_outlives_its_worker(
    face: Engine, server_factory: ServerFactory
) -> None:
    """It is asked of the next worker as it was of the one that was killed."""
    source, target = server_factory(known("redis-7.0")), server_factory()
    fill(source, 500)
    await face.register_replication_group("g", plain(target))
    await face.start_migration("g", node(source), settings=TransferSettings(disconnect_for=0))
    await face.wait("g", until="in-sync", timeout=60)
    pid = (await migration(face))["Workers"][0]["Pid"]
    os.kill(pid, signal.SIGSTOP)
    await face.complete_migration("g", skip_verification=True)
    kill(pid)
    report = await face.wait("g", until="available", timeout=60, supervise=True)
    assert isinstance(report, Report)
    assert report.status == "done"
    told = await events(face)
    assert "migration completed: cut over without the comparison, as asked" in told
    assert_equal(source.client(), target.client())


@in_loop
async def test_a_transfer_that_fails(
    face: Engine, state_url: str, server_factory: ServerFactory
) -> None:
    source, target = server_factory(), server_factory()
    fill(source, 100)
    await face.register_replication_group("g", plain(target))
    await face.start_migration(
        "g",
        [{"Address": "127.0.0.1", "Port": 1}],
        settings=TransferSettings(retry_for=1.0, skip_checks=("source-reachable",)),
    )
    with pytest.raises(TransferFailed, match="failed:"):
        await face.wait("g", until="copied", timeout=60)
    (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
    assert group["Status"] == "available"
    assert (await events(face))[-1].startswith("migration failed: ")
    # It stays readable, for whoever looks later and with another program, until the next start.
    face.close()
    face = Engine(state_url)
    for _ in range(2):
        failed = await migration(face)
        assert (failed["Status"], failed["Phase"]) == ("failed", "FAILED")
        assert (failed["CanComplete"], failed["Workers"]) == (False, [])
        assert "source 127.0.0.1:1 cannot be reached" in failed["Reason"]
        assert failed["Report"]["Errors"] == [failed["Reason"]]
        assert failed["Counters"]["Retries"] > 0
        # A start that is refused is no next one.
        with pytest.raises(PreflightFault, match="source-reachable"):
            await face.start_migration("g", [{"Address": "127.0.0.1", "Port": 1}])
    assert outcomes(state_url) == {"done": 0, "failed": 1, "forced": 0}
    await face.start_migration("g", node(source))
    assert (await migration(face))["Status"] not in ("failed", "stopped")
    await face.wait("g", until="in-sync", timeout=60)
    going_on = await migration(face)
    assert going_on["Phase"] == "FOLLOW"
    assert "cannot be reached" not in going_on["Reason"]
    await face.complete_migration("g", force=True)
    await face.wait("g", until="available", timeout=60)
    assert outcomes(state_url) == {"done": 0, "failed": 1, "forced": 1}
    face.close()


@in_loop
async def test_what_is_published_contradicts_itself_at_no_time(
    face: Engine, state_url: str, server_factory: ServerFactory
) -> None:
    """Another program looks as fast as it can, from the start to the end: the phase, the word that
    it can be completed, the status and the group's status fit together in each answer."""
    source, target = server_factory(), server_factory()
    fill(source, 5000)
    await face.register_replication_group("g", plain(target))
    over = threading.Event()
    seen: list[dict[str, Any]] = []

    def look() -> None:
        other = Engine(state_url)
        while not over.is_set():
            (group,) = other.sync.describe_replication_groups("g")["ReplicationGroups"]
            found = group.get("Migration", {})
            each = {"Group": group["Status"], "LagKnown": found.get("LagBytes") is not None}
            for name in ("Status", "Phase", "CanComplete", "SourceLink"):
                each[name] = found.get(name)
            # What is new alone: each row is a state and the one behind it another.
            if not seen or seen[-1] != each:
                seen.append(each)
            time.sleep(0.002)
        other.close()

    looking = asyncio.create_task(asyncio.to_thread(look))
    try:
        settings = TransferSettings(disconnect_for=0)
        await face.start_migration("g", node(source), settings=settings)
        await face.wait("g", until="in-sync", timeout=60)
        await soon(lambda: any(each["CanComplete"] for each in seen), "an open gate")
        await complete(face, "g")
        await face.wait("g", until="available", timeout=60)
        await soon(lambda: seen[-1]["Status"] == "done", "the end")
    finally:
        over.set()
        await looking
    for each in seen:
        if each["Status"] is None:  # before the start
            continue
        if each["CanComplete"]:
            assert (each["Phase"], each["Status"], each["Group"]) == (
                "FOLLOW",
                "running",
                "migrating",
            )
            assert (each["SourceLink"], each["LagKnown"]) == ("up", True), seen
        assert each["Phase"] not in ("FAILED", "STOPPED"), seen
        ends = {each["Phase"] == "DONE", each["Status"] == "done", each["Group"] == "available"}
        assert len(ends) == 1, seen
    # No end before the end, and nothing behind it.
    assert [each["Phase"] == "DONE" for each in seen].count(True) == 1, seen
    assert {"FOLLOW", "DONE"} <= {each["Phase"] for each in seen}, seen


def outcomes(state_url: str) -> dict[str, int]:
    """How many migrations ended with which outcome, as the metrics count them."""
    registry = open_registry(state_url)
    page = Metrics().page([], {}, {}, registry.ended()).decode()
    registry.store.close()
    found = re.findall(r'^startmigration_migrations_ended{outcome="(\w+)"} (\d+)', page, re.M)
    return {outcome: int(count) for outcome, count in found}


# --- In one go ---


@in_loop
async def test_one_go(
    face: Engine, server_factory: ServerFactory, ring_pair: tuple[Binary, Binary]
) -> None:
    source, target = (server_factory(each, password=PASSWORD) for each in ring_pair)
    fill(source)
    seen: list[Progress] = []
    checks: list[Any] = []
    report = await face.migrate(
        Endpoint.parse(source.url),
        Endpoint.parse(target.url),
        on_progress=seen.append,
        on_checks=checks.extend,
    )
    assert (report.status, report.keys) == ("done", 2002)
    assert seen[-1].phase is Phase.DONE
    assert checks
    assert_equal(source.client(), target.client())
    (group,) = (await face.describe_replication_groups())["ReplicationGroups"]
    assert group["Status"] == "available"
    # Once more: the target has keys of its own now, and what it has is replaced.
    # The source refuses writes since it was cut over.
    source.client().config_set("min-replicas-to-write", 0)
    source.client().set("key:1", "changed")
    again = await face.migrate(Endpoint.parse(source.url), Endpoint.parse(target.url))
    assert again.status == "done"
    assert_equal(source.client(), target.client())


@in_loop
async def test_keys_that_the_target_had(face: Engine, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    fill(source, 500)
    target.client().set("its own", "1")
    report = await face.migrate(Endpoint.parse(source.url), Endpoint.parse(target.url))
    assert report.status == "done"
    assert_equal(source.client(), target.client(), allow_extra=True)
    assert target.client().get("its own") == b"1"


@in_loop
async def test_one_go_is_interrupted_and_resumed(
    face: Engine, state_url: str, server_factory: ServerFactory, slow: Slow
) -> None:
    source, target = server_factory(), server_factory()
    fill(source, MANY, 400)
    link = slow(source)
    ends = Endpoint(link.host, link.port), Endpoint.parse(target.url)
    moving = asyncio.Event()

    def watch(progress: Progress) -> None:
        if progress.keys > 1000:
            moving.set()

    task = asyncio.create_task(face.migrate(*ends, settings=SLOW, on_progress=watch))
    await asyncio.wait_for(moving.wait(), 60)
    other = Engine(state_url)
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault, match=f"{os.getpid()}"):
        await other.migrate(*ends, settings=SLOW)
    task.cancel()
    with pytest.raises(Interrupted, match="was stopped after"):
        await task
    with pytest.raises(InvalidReplicationGroupStateFault, match="other settings"):
        await other.migrate(*ends)
    link.throttle(None)
    report = await other.migrate(*ends, settings=SLOW)
    other.close()
    assert report.status == "done"
    # It went on from the checkpoint; what was there before is counted too.
    (copied,) = [step.keys for step in report.steps if step.name == "snapshot"]
    assert copied < MANY <= report.keys
    assert_equal(source.client(), target.client())


@in_loop
async def test_a_migration_that_is_cancelled_at_its_first_look(
    state_url: str, server_factory: ServerFactory, slow: Slow
) -> None:
    """Before anything is moved: it is stopped, and can be resumed."""
    source, target = server_factory(), server_factory()
    fill(source, 100)
    link = slow(target)
    ends = Endpoint.parse(source.url), Endpoint(link.host, link.port)
    registry = open_registry(state_url)
    registry.register("g", ends[1])
    registry.begin_migration("g", [ends[0]], SCAN, worker=ProcessId.here().worker)
    link.stall()
    task = asyncio.create_task(run_here(registry, "g", *ends, credentials=Credentials()))
    await soon(lambda: link.connections, "the look")
    task.cancel()
    with pytest.raises(Interrupted, match="was stopped after 0 keys"):
        await task
    link.stall(False)
    transfer = registry.get("g")[1]
    assert transfer is not None
    assert (transfer.status, transfer.leased()) == (TransferStatus.STOPPED, False)
    registry.resume_migration("g", worker=ProcessId.here().worker)
    report = await run_here(registry, "g", *ends, credentials=Credentials())
    assert report.status == "done"
    assert_equal(source.client(), target.client())
    registry.store.close()


def test_the_sync_face(state_url: str, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    fill(source, 100)
    face = Engine(state_url)
    report = face.sync.migrate(Endpoint.parse(source.url), Endpoint.parse(target.url))
    assert report.status == "done"
    face.close()
    assert "bookkeeper" not in {thread.name for thread in threading.enumerate()}


async def test_any_event_loop(face: Engine, server_factory: ServerFactory) -> None:
    """A library's caller brings a loop of his own."""
    source, target = server_factory(), server_factory()
    fill(source, 100)
    settings = TransferSettings(retry_for=2.0)
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    async with asyncio.timeout(60):
        report = await face.migrate(*ends, settings=settings)
    assert report.status == "done"
    assert_equal(source.client(), target.client())
