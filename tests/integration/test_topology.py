"""Clusters as their nodes tell them: read from every server, and said in the preflight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benches.support.clusters import Cluster, node_id, slot_of
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.model.cluster_topology import Topology
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.transfer.checks.check_result import Check
from engine.transfer.checks.cluster import ask_topology
from engine.transfer.preflight import preflight
from engine.wire.control_connection import admin
from engine.wire.event_loop import run
from tests.support.servers import known


@pytest.fixture(params=["redis-6.2", "redis-7.0", "redis-8.0", "valkey-9"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster.start(known(request.param), primaries=3, replicas=1) as found:
        yield found


def told_by(node: Server) -> Topology:
    async def ask() -> Topology:
        async with admin(Endpoint.parse(node.url)) as end:
            return await ask_topology(end)

    return asyncio.run(ask())


def mode_of(node: Server, other: Server) -> Check:
    ends = Endpoint.parse(node.url), Endpoint.parse(other.url)
    found = run(preflight(*ends, TransferSettings()))
    return next(check for check in found.checks if check.name == "source-mode")


def test_a_cluster(cluster: Cluster) -> None:
    """All nodes tell the same, and what they do; a move of a slot and a failover are seen."""
    for node in cluster.nodes:
        found = told_by(node)
        assert found.me == node_id(node)
        assert [shard.slots for shard in found.shards] == [
            SlotSet(((0, 5460),)),
            SlotSet(((5461, 10921),)),
            SlotSet(((10922, 16383),)),
        ]
        assert [shard.primary.port for shard in found.shards] == [
            primary.port for primary in cluster.nodes[:3]
        ]
        assert not list(found.problems)
    replicas = {each.port for shard in told_by(cluster.nodes[0]).shards for each in shard.replicas}
    assert replicas == {node.port for node in cluster.nodes[3:]}
    # A slot is on its way.
    first, second = cluster.nodes[:2]
    slot = slot_of("{a}1")
    owner = cluster.owner(slot)
    there = second if owner is first else first
    there.client().execute_command("CLUSTER SETSLOT", slot, "IMPORTING", node_id(owner))
    owner.client().execute_command("CLUSTER SETSLOT", slot, "MIGRATING", node_id(there))
    (problem,) = told_by(owner).problems
    assert problem == f"the slot {slot} is being moved to 127.0.0.1:{there.port}"
    (problem,) = told_by(there).problems
    assert problem == f"the slot {slot} is being moved from 127.0.0.1:{owner.port}"
    mode = mode_of(owner, there)
    assert problem.replace("from", "to").partition(" to ")[0] in mode.figure
    assert "let moves of slots end" in mode.remedy
    for node in (there, owner, *cluster.primaries):
        node.client().execute_command("CLUSTER SETSLOT", slot, "NODE", node_id(there))
    moved = told_by(there).shard_of(slot)
    assert moved is not None
    assert moved.primary.port == there.port
    # A replica takes its shard over.
    cluster.fail_over(cluster.nodes[5])
    new = cluster.nodes[5].port
    wait_for(lambda: told_by(first).shards[-1].primary.port == new, "a new primary")


def test_clusters_that_are_not_whole() -> None:
    """Slots that no node has, and a node that the others do not reach, are named."""
    with Cluster.start(known("redis-7.0"), primaries=3) as cluster:
        whole = mode_of(*cluster.nodes[:2])
        ports = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
        assert whole.figure == (
            f"cluster mode is enabled: 3 primaries ({', '.join(ports)}), 0 replicas; "
            "they have all slots"
        )
        for node in cluster.nodes:
            node.client().execute_command("CLUSTER DELSLOTS", 7, 9, 10)
        assert "no node has the slots 7,9-10" in mode_of(*cluster.nodes[:2]).figure
        cluster.nodes[2].kill()
        gone = f"{ports[2]} is not reached by the other nodes (10922-16383)"
        wait_for(lambda: gone in list(told_by(cluster.nodes[0]).problems), gone)
        figure = mode_of(*cluster.nodes[:2]).figure
        assert gone in figure
        assert "7,9-10" in figure
