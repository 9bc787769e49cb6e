"""A target that evicts what it was given: the gate stays closed, and says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from benches.support.compare import assert_equal
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import TransferFailed
from engine.front.engine import Engine
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer import target_monitor
from tests.support.library import copied, migrating
from tests.support.servers import ServerFactory, known

KEYS = 5000
# A batch that the server holds is memory too: a large one would be refused, and nothing evicted.
SMALL = {"batch_bytes": 1 << 15, "window_bytes": 1 << 16}
POLICY = ("--maxmemory-policy", "volatile-lru")


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source whose keys have a time to live, and a target that may evict them."""
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), *POLICY)
    pipe = source.client().pipeline(transaction=False)
    for n in range(KEYS):
        pipe.set(f"key:{n}", "x" * 500, ex=100_000)
    pipe.execute()
    return source, target


def evict(target: Server) -> None:
    """Have the target evict some of its keys."""
    client = target.client()
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used - 300_000)
    wait_for(lambda: client.info("stats")["evicted_keys"] > 10, "evictions")
    client.config_set("maxmemory", 0)


def less_than_needed(target: Server) -> None:
    """Have the target's memory end before the data does."""
    client = target.client()
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_500_000)


def evicted(target: Server) -> int:
    return int(target.client().info("stats")["evicted_keys"])


@pytest.fixture
def face(state_url: str) -> Iterator[Engine]:
    face = Engine(state_url)
    yield face
    face.close()


def migration(face: Engine) -> dict[str, Any]:
    (group,) = face.sync.describe_replication_groups("g")["ReplicationGroups"]
    return dict(group.get("Migration", {}))


def test_evictions_close_the_gate(ends: tuple[Server, Server], face: Engine) -> None:
    """Through the death of the worker; and the way on that the reason names is one."""
    source, target = ends
    target.client().set("before", "x", ex=1000)
    evict_first = target.client()
    evict_first.config_set("maxmemory", 1)
    wait_for(lambda: evicted(target) == 1, "what was evicted before the start")
    evict_first.config_set("maxmemory", 0)
    face.sync.register_replication_group("g", f"redis://127.0.0.1:{target.port}")
    nodes = [{"Address": "127.0.0.1", "Port": source.port}]
    face.sync.start_migration("g", nodes)
    face.sync.wait("g", until="in-sync", timeout=60)
    assert migration(face)["Counters"]["EvictedKeys"] == 0
    evict(target)
    count = evicted(target) - 1
    closed = (
        f"the target has evicted {count:,} keys since the start (maxmemory-policy volatile-lru)"
    )
    found = wait_for(
        lambda: (m := migration(face))["Counters"]["EvictedKeys"] == count and m, "it is seen"
    )
    assert not found["CanComplete"]
    assert found["Reason"].startswith(closed)
    told = [each["Message"] for each in face.sync.describe_events("g")["Events"]]
    assert any("keys since the start (maxmemory-policy volatile-lru): set noev" in e for e in told)
    # The next worker knows it too.
    os.kill(found["Workers"][0]["Pid"], signal.SIGKILL)
    wait_for(lambda: "is gone" in migration(face)["Reason"], "the worker is gone")
    face.sync.resume_migration("g")
    found = wait_for(lambda: (m := migration(face))["Phase"] == "FOLLOW" and m, "following", 60)
    assert not found["CanComplete"]
    wait_for(lambda: migration(face)["Reason"].startswith(closed), "the reason")
    # The remedy.
    target.client().config_set("maxmemory-policy", "noeviction")
    face.sync.complete_migration("g", force=True)
    face.sync.wait("g", until="available", timeout=60)
    assert target.client().dbsize() < KEYS
    face.sync.start_migration("g", nodes, settings=TransferSettings(disconnect_for=0))
    face.sync.wait("g", until="in-sync", timeout=60)
    face.sync.complete_migration("g")
    report = face.sync.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    assert_equal(source.client(), target.client())


@pytest.mark.parametrize("skip", [False, True], ids=["compared", "not compared"])
def test_evictions_are_looked_for_beside_the_comparison(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch, skip: bool
) -> None:
    """What the last look has not seen; without the comparison nothing else would."""
    source, target = ends
    monkeypatch.setattr(target_monitor, "LOOK_SECONDS", 1000.0)

    with migrating(source, target) as run:
        run.following()
        run.in_sync()
        evict(target)
        assert run.progress.can_complete
        reason = run.refused(skip_verification=skip)
        assert reason.startswith("cut-over refused: the target has evicted")
        assert run.progress.phase is Phase.FOLLOW
        assert not run.progress.can_complete
        run.complete(force=True)
    assert run.report.status == "stopped"


@pytest.mark.parametrize("source_type", ["replica", "scan"])
def test_a_run_in_one_go_stops_and_copies_everything_again(
    ends: tuple[Server, Server], face: Engine, source_type: str
) -> None:
    """What was evicted comes with another copy: the same call makes it, once there is room."""
    source, target = ends
    less_than_needed(target)
    settings = TransferSettings(
        source_type=source_type,  # type: ignore[arg-type]
        skip_checks=("memory",),
        **SMALL,
    )
    one, other = Endpoint.parse(source.url), Endpoint.parse(target.url)
    report = face.sync.migrate(one, other, settings=settings)
    assert report.status == "stopped"
    assert "the target has evicted" in report.errors[0]
    assert report.needs_hand
    target.client().config_set("maxmemory", 0)
    report = face.sync.migrate(one, other, settings=settings)
    assert report.status == "done", report.errors
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("until_", ["snapshot", "in-sync"])
def test_it_is_not_done_before_the_cut_over_either(
    ends: tuple[Server, Server], until_: str
) -> None:
    source, target = ends
    less_than_needed(target)
    for source_type in ("replica", "scan"):
        run = copied(source, target, source_type=source_type, until=until_, **SMALL)
        assert run.report.status == "stopped"
        assert "the target has evicted" in run.report.errors[0]
        # The position stays, and is not the next one's.
        target.client().flushall()


def test_a_scanned_source(ends: tuple[Server, Server], face: Engine) -> None:
    source, target = ends
    face.sync.register_replication_group("g", f"redis://127.0.0.1:{target.port}")
    nodes = [{"Address": "127.0.0.1", "Port": source.port}]
    face.sync.start_migration("g", nodes, settings=TransferSettings(source_type="scan"))
    face.sync.wait("g", until="in-sync", timeout=60)
    evict(target)
    face.sync.complete_migration("g", skip_verification=True)
    with pytest.raises(TransferFailed, match="cut-over refused: the target has evicted"):
        face.sync.wait("g", until="available", timeout=60)
    face.sync.complete_migration("g", force=True)
    face.sync.wait("g", until="available", timeout=60)
