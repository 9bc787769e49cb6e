"""Migrations with clusters at their ends that are interrupted: gone on with where each lane stands,
aborted on all of them, and never gone on with into another cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from benches.support.clusters import Cluster
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import EngineError
from engine.front.engine import Engine
from engine.model.settings import TransferSettings
from tests.support.comparison import assert_settled
from tests.support.completing import word_given
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known


class Operator:
    """What an operator of the group `g` says and sees."""

    def __init__(self, engine: Engine) -> None:
        self.verbs: Any = engine.sync

    @property
    def migration(self) -> dict[str, Any]:
        told = self.verbs.describe_replication_groups("g")
        found: dict[str, Any] = told["ReplicationGroups"][0]["Migration"]
        return found

    @property
    def events(self) -> list[str]:
        return [each["Message"] for each in self.verbs.describe_events("g")["Events"]]

    def begin(self, source: Any, target: Any) -> None:
        """Register, and start."""
        self.verbs.register_replication_group("g", url_of(target))
        nodes = [{"Address": each.host, "Port": each.port} for each in nodes_of(source)[:1]]
        settings = TransferSettings(source_type="replica", retry_for=20.0)
        self.verbs.start_migration("g", nodes, settings=settings)

    def in_sync(self) -> None:
        """Until it can be completed."""
        wait_for(
            lambda: self.migration["CanComplete"],
            "in sync",
            60,
            told=lambda: (self.migration, self.events),
        )

    def kill(self) -> None:
        """End its worker, which tidies nothing up."""
        pid = self.migration["Workers"][0]["Pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.migration["Workers"], "a worker that is known to be gone", 60)

    def complete(self) -> None:
        """Give the word."""
        word_given(
            lambda: self.verbs.complete_migration("g"), lambda: self.migration["CanComplete"]
        )

    def available(self) -> None:
        def so() -> bool:
            told = self.verbs.describe_replication_groups("g")["ReplicationGroups"][0]
            return bool(told["Status"] == "available")

        wait_for(so, "the end", 60, told=lambda: (self.migration, self.events))


def nodes_of(end: Server | Cluster) -> list[Server]:
    return end.nodes if isinstance(end, Cluster) else [end]


def url_of(end: Server | Cluster) -> str:
    return nodes_of(end)[0].url


@pytest.fixture
def operator(state_url: str) -> Iterator[Operator]:
    with closing(Engine(state_url)) as engine:
        found = Operator(engine)
        yield found
        # Of a test that has failed.
        if any(
            group["Status"] == "migrating"
            for group in found.verbs.describe_replication_groups()["ReplicationGroups"]
        ):
            found.verbs.complete_migration("g", force=True)
            found.available()


@pytest.mark.parametrize(("source", "target"), [(0, 3), (3, 2), (3, 0)])
def test_a_worker_that_is_killed(
    source: int, target: int, operator: Operator, scenario: NewScenario
) -> None:
    """The next one goes on where each lane stands: nothing is copied again, lost or doubled."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=source, target_shards=target)
    s.load(keys=2000)
    with s.clients(clients=3) as clients:
        operator.begin(s.whole("source"), s.whole("target"))
        operator.in_sync()
        lanes = {each["Shard"]: each["Slots"] for each in operator.migration["Workers"]}
        clients.goes_on()
        operator.kill()
        clients.goes_on()
        operator.verbs.resume_migration("g")
        operator.in_sync()
        counted = operator.migration["Counters"]
        assert counted["FullSyncs"] == len(lanes), counted
        assert counted["PartialSyncs"] == len(lanes), counted
        assert {each["Shard"]: each["Slots"] for each in operator.migration["Workers"]} == lanes
        operator.complete()
        operator.available()
        assert operator.migration["Status"] == "done", operator.events
        clients.stop()
    s.assert_migrated()
    # The shards that refuse writes accept them again, all of them.
    accepts = {"min-replicas-to-write": "0"}
    for node in nodes_of(s.whole("source")):
        assert node.client().config_get("min-replicas-to-write") != accepts
    message = operator.verbs.unblock_source("g")["Message"]
    for node in nodes_of(s.whole("source")):
        assert f":{node.port}" in message or not source
        assert node.client().config_get("min-replicas-to-write") == accepts


@pytest.mark.parametrize("worker", ["lives", "is gone"])
def test_an_abort(worker: str, operator: Operator, scenario: NewScenario) -> None:
    """Every lane's keys of the engine's own are gone from the target, with or without a worker;
    and the next migration can begin once the operator has said what becomes of the keys there."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2, target_shards=3)
    s.load(keys=500)
    operator.begin(s.whole("source"), s.whole("target"))
    operator.in_sync()
    if worker == "is gone":
        operator.kill()
    operator.verbs.complete_migration("g", force=True)
    operator.available()
    assert operator.migration["Status"] == "forced"
    left = [
        key
        for node in nodes_of(s.whole("target"))
        for key in node.client().scan_iter(match="startmigration:*")
    ]
    assert all(key.endswith(b":left") for key in left), left
    assert left
    nodes = [{"Address": s.source.host, "Port": s.source.port}]
    with pytest.raises(EngineError, match="leftovers"):
        operator.verbs.start_migration("g", nodes)
    settings = TransferSettings(take_over=True)
    operator.verbs.start_migration("g", nodes, settings=settings)
    operator.in_sync()
    operator.complete()
    operator.available()
    assert operator.migration["Status"] == "done", operator.events
    s.assert_migrated()


def test_another_cluster_in_its_place(server_factory: ServerFactory) -> None:
    """Lanes are for the shards of one cluster: another one at its addresses is not written to."""
    from engine.transfer.checkpoint_store import MemoryCheckpoint

    store, binary = MemoryCheckpoint(), known("redis-7.0")
    source = server_factory(binary)
    source.client().mset({f"k{n}": n for n in range(100)})
    with Cluster.start(binary, primaries=2) as first:
        with migrating(source, first.nodes[0].url, checkpoints=store) as run:
            run.following()
            run.stop()
        assert run.report.status == "stopped"
    with Cluster.start(binary, primaries=2) as second:
        with migrating(source, second.nodes[0].url, checkpoints=store) as again:
            pass
        assert again.report.status in ("stopped", "failed")
        assert "another cluster now" in again.report.errors[0]
        assert not any(node.client().dbsize() for node in second.nodes)
    single = server_factory(binary)
    with migrating(source, single, checkpoints=store) as neither:
        pass
    assert "the target was a cluster, and is a single server now" in neither.report.errors[0]
    assert not single.client().dbsize()


def test_a_source_shard_fails_over_meanwhile(scenario: NewScenario) -> None:
    """Its lane goes on with the new primary, the fence stands there, and all is carried."""
    binary = known("redis-7.0")
    s = scenario("redis-7.0", "redis-7.0")
    with Cluster.start(
        binary, "--repl-ping-replica-period", "1", primaries=2, replicas=1
    ) as source:
        client = source.client()
        for n in range(500):
            client.set(f"k{n}", n)
        with migrating(source.nodes[0].url, s.target) as run:
            run.following()
            new = source.nodes[2]
            source.fail_over(new)
            run.wait_for(
                lambda: any(f"the cluster names 127.0.0.1:{new.port}" in e for e in run.events),
                "a failover",
            )
            for n in range(500):
                client.set(f"late{n}", n)
            run.wait_for(
                lambda: run.progress.can_complete and s.target.client().dbsize() >= 1000,
                "in sync", 60,
            )  # fmt: skip
            run.complete()
            run.wait_for(lambda: run.ended or bool(run.refusals), "an end", 60)
        assert run.report.status == "done", (run.report.errors, run.events)
        assert run.progress.full_syncs == 2
        sealed = {run.report.sealed_at, *(at for at, _ in run.report.sealed_too)}
        assert f"127.0.0.1:{new.port}" in sealed
        assert_settled(source, s.target)
    assert_tidy(s.target)
