"""Ends whose primary is told by others: failovers of a cluster's shard, and nobody left to ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from benches.support.clusters import Cluster, node_id
from benches.support.waiting import soon
from engine.errors import LinkError
from engine.model.cluster_shard import AddressMap, of_shard
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer import cluster_monitor
from engine.transfer.checks.cluster import ask_topology
from engine.transfer.cluster_monitor import ClusterMonitor
from engine.transfer.migration_context import MigrationContext
from engine.transfer.overview import Overview
from engine.wire.control_connection import admin
from engine.wire.dial import dial, located
from engine.wire.event_loop import run
from tests.integration.test_sentinel import watched
from tests.support.library import migrating
from tests.support.servers import ServerFactory, known


async def shards_of(cluster: Cluster) -> list[Endpoint]:
    """An endpoint for each shard's primary."""
    first = cluster.nodes[0]
    async with admin(Endpoint.parse(first.url)) as end:
        told = await ask_topology(end)
    seeds = ((first.host, first.port),)
    return [
        Endpoint(
            each.primary.host,
            each.primary.port,
            cluster=of_shard(each, seeds, AddressMap()),
        )
        for each in told.shards
    ]


@dataclass
class Watched:
    """What a monitor has told."""

    monitor: ClusterMonitor
    contexts: list[MigrationContext]
    events: list[str] = field(default_factory=list)
    primaries: dict[int, str] = field(default_factory=dict)

    def trouble(self, n: int) -> str:
        return self.contexts[n].trouble


@contextlib.asynccontextmanager
async def watching(ends: list[Endpoint]) -> AsyncIterator[Watched]:
    settings, events = TransferSettings(), list[str]()
    overview = Overview(settings, on_progress=lambda _: None, on_event=events.append, one_go=False)
    monitor = ClusterMonitor("source", settings, events.append)
    found = Watched(monitor, [overview.lane(str(n)) for n in range(len(ends))], events)

    def moved(n: int) -> Callable[[str, Endpoint], None]:
        return lambda _, there: found.primaries.update({n: there.address})

    for n, (end, context) in enumerate(zip(ends, found.contexts, strict=True)):
        monitor.attend(end, context, moved(n))
    async with monitor.watching():
        await soon(lambda: len(found.primaries) == len(ends), "a look")
        yield found


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9"])
def test_a_shard_is_followed_to_its_new_primary(name: str) -> None:
    """Ordered and by a dead primary; whatever node is named first."""
    with Cluster.start(known(name), primaries=3, replicas=1) as cluster:

        async def main() -> None:
            ends = await shards_of(cluster)
            async with watching(ends) as seen:
                assert not any(map(seen.trouble, range(3)))
                first = next(n for n, end in enumerate(ends) if end.port == cluster.nodes[0].port)
                new = cluster.nodes[3]
                await asyncio.to_thread(cluster.fail_over, new)
                await soon(lambda: seen.primaries[first] == f"127.0.0.1:{new.port}", "a failover")
                assert any(
                    f"the cluster names 127.0.0.1:{new.port} as the primary of " in event
                    for event in seen.events
                ), seen.events
                connection = await dial(ends[first], fault="source", timeout=5)
                assert connection.endpoint.port == new.port
                # The one that was named at first is a replica by now; and then it has to help out.
                new.kill()
                old = f"127.0.0.1:{cluster.nodes[0].port}"
                await soon(lambda: seen.primaries[first] == old, "a failover by itself", 30)
                connection.close()
                await soon(lambda: not seen.trouble(first), "all is well")

        run(main())


def test_slots_that_move_close_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_monitor, "_LONG_SECONDS", 0.5)
    with Cluster.start(known("redis-7.0"), primaries=3) as cluster:

        async def main() -> None:
            ends = await shards_of(cluster)
            async with watching(ends) as seen:
                here, there = cluster.nodes[:2]
                move = "CLUSTER", "SETSLOT", 7
                there.client().execute_command(*move, "IMPORTING", node_id(here))
                here.client().execute_command(*move, "MIGRATING", node_id(there))
                await soon(lambda: all(map(seen.trouble, range(3))), "a slot that moves")
                assert "the slots 7 of the source's cluster are being moved" in seen.trouble(0)
                long = "the slots 7 of the source's cluster have been on their way for more than"
                await soon(lambda: long in seen.trouble(0), "it takes long")
                assert "CLUSTER SETSLOT <slot> STABLE" in seen.trouble(0)
                assert len([event for event in seen.events if long in event]) == 1
                for node in (there, here, cluster.nodes[2]):
                    node.client().execute_command(*move, "NODE", node_id(there))
                await soon(lambda: "belong to another shard" in seen.trouble(0), "a slot gone")
                assert "the slots 7 of the source's shard 0-5460" in seen.trouble(0)
                await asyncio.to_thread(cluster.move, [7], here)
                await soon(lambda: not any(map(seen.trouble, range(3))), "a slot back")

        run(main())


def test_no_node_answers() -> None:
    with Cluster.start(known("redis-7.0"), primaries=1) as cluster:

        async def main() -> None:
            ends = await shards_of(cluster)
            async with watching(ends) as seen:
                cluster.nodes[0].kill()
                await soon(lambda: "no node of the source's cluster" in seen.trouble(0), "trouble")
                with pytest.raises(LinkError, match="no node of its cluster answers"):
                    await located(ends[0], fault="source", timeout=2)
                cluster.nodes[0].restart()
                await soon(lambda: not seen.trouble(0), "a node that answers")

        run(main())


@pytest.mark.parametrize("side", ["source", "target"])
def test_no_sentinel_answers(side: str, server_factory: ServerFactory) -> None:
    """Whether the primary is the clients' one is not known then: nothing can be cut over."""
    other = server_factory(known("redis-7.0"))
    with watched("redis-7.0", server_factory) as group:
        primary = group.primary if side == "source" else other
        primary.client().set("k", 1)
        ends = (group.url, other) if side == "source" else (other, group.url)
        with migrating(*ends) as run_:
            run_.in_sync(primary)
            for each in group.group[:2]:
                each.kill()
            run_.wait_for(lambda: run_.progress.can_complete, "one that answers is enough")
            group.group[2].kill()
            run_.wait_for(lambda: not run_.progress.can_complete, "a closed gate")
            assert f"{side} " in run_.progress.reason
            assert "no Sentinel says where main is" in run_.progress.reason
            assert "cut-over refused" in run_.refused()
            run_.stop()
