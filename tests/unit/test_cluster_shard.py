"""Which node is a shard's primary, by what nodes of its cluster tell."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from engine.errors import AuthError, EngineError, LinkError, ServerError, UsageError
from engine.model import cluster_topology
from engine.model.cluster_shard import AddressMap, ClusterShard, of_shard
from engine.model.cluster_topology import Topology
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.slots import SlotSet
from engine.wire import cluster_primary

A, B, C, D, E = (letter * 40 for letter in "abcde")
HOSTS = {A: "10.0.0.1", B: "10.0.0.2", C: "10.0.0.3", D: "10.0.0.4", E: "10.0.0.5"}
# Seeds of their own for each test: what was heard of a cluster is kept by them.
_PORTS = itertools.count(7000)


def told(me: str, *nodes: tuple[str, str, str, int, str]) -> Topology:
    """(id, flags, primary, epoch, slots) of each node, as `me` tells."""
    lines = []
    for name, flags, above, epoch, slots in nodes:
        own = "myself," if name == me else ""
        line = f"{name} {HOSTS[name]}:7000@17000 {own}{flags} {above or '-'} 0 0 {epoch} connected"
        lines.append(f"{line} {slots}".rstrip())
    return cluster_topology.read([], "\n".join(lines).encode(), HOSTS[me])


WHOLE = (
    (A, "master", "", 1, "0-8191"),
    (B, "master", "", 2, "8192-16383"),
    (C, "slave", A, 1, ""),
)
FAILED_OVER = (
    (A, "master,fail", "", 1, ""),
    (B, "master", "", 2, "8192-16383"),
    (C, "master", "", 3, "0-8191"),
)


def first_shard(found: Topology) -> ClusterShard:
    return of_shard(found.shards[0], (("10.0.0.1", next(_PORTS)),), AddressMap())


def test_the_primary_of_a_shard() -> None:
    """By the ids of its nodes, and by the slots that were its own: whoever has a node of it."""
    before = told(B, *WHOLE)
    shard = first_shard(before)
    assert set(shard.ids) == {A, C}

    def primary(*nodes: tuple[str, str, str, int, str]) -> str | None:
        found = shard.found(told(B, *nodes))
        return None if found is None else found.id

    assert primary(*WHOLE) == A
    assert primary(*FAILED_OVER) == C
    # A replica that it was given later has taken over, and its former ones are gone.
    assert primary(WHOLE[1], (D, "master", "", 3, "0-8191")) == D
    # Its slots went to another shard: the node that had them is still its own.
    assert primary((A, "master", "", 1, ""), (B, "master", "", 3, "0-16383"), WHOLE[2]) == A
    # The same where it became that shard's replica, as nodes do by themselves: it is gone.
    everything = (B, "master", "", 3, "0-16383")
    assert primary((A, "slave", B, 3, ""), everything, (C, "slave", B, 3, "")) is None
    # Its replica went to another shard, and leads that one now.
    gone = told(A, WHOLE[0], (B, "slave", C, 4, ""), (C, "master", "", 4, "8192-16383"))
    assert shard.found(gone).id == A  # type: ignore[union-attr]
    assert shard.members(gone) >= {A}
    # One of its slots went away, another one came.
    other = ((A, "master", "", 4, "1-8192"), (B, "master", "", 3, "0 8193-16383"), WHOLE[2])
    assert primary(*other) == A


def test_what_several_nodes_tell_is_put_together() -> None:
    """A node that is cut off names itself, and calls all others failing."""
    cut_off = told(
        A, WHOLE[0], (B, "master,fail?", "", 2, "8192-16383"), (C, "slave,fail?", A, 1, "")
    )
    for order in itertools.permutations([cut_off, told(B, *FAILED_OVER), told(C, *FAILED_OVER)]):
        merged = cluster_topology.merge(order)
        assert [(each.primary.id, str(each.slots)) for each in merged.shards] == [
            (C, "0-8191"),
            (B, "8192-16383"),
        ]
        assert not any(each.primary.failing for each in merged.shards)
    # A slot that moved: the node that has it by the later configuration, whoever is asked first.
    moved = told(B, (A, "master", "", 1, "1-8191"), (B, "master", "", 3, "0 8192-16383"))
    for both in ([told(A, *WHOLE), moved], [moved, told(A, *WHOLE)]):
        assert cluster_topology.merge(both).slots_of(B) == SlotSet(((0, 0), (8192, 16383)))
        assert cluster_topology.merge(both).slots_of(A) == SlotSet(((1, 8191),))
        assert not cluster_topology.merge(both).missing


class Nodes:
    """What each node tells, by host; None: it does not answer."""

    def __init__(self, tells: dict[str, Topology | EngineError | None]) -> None:
        self.tells = tells
        self.asked: list[str] = []

    def primary(self, endpoint: Endpoint) -> str:
        cluster_primary.forget(endpoint)
        found = cluster_primary.primary(endpoint, self._ask, fault="source", timeout=1)
        return asyncio.run(found).address

    async def _ask(self, at: Endpoint, questions: Sequence[tuple[str, ...]]) -> list[Any]:
        self.asked.append(at.address)
        found = self.tells.get(at.host)
        if isinstance(found, EngineError):
            raise found
        if found is None:
            raise LinkError(f"{at.address} cannot be reached")
        return [[], _text(found)]


def _text(found: Topology) -> bytes:
    lines = []
    for node in found.nodes:
        kind = "slave" if node.replica_of else "master"
        own = "myself," if node.id == found.me else ""
        slots = str(found.slots_of(node.id)).replace(",", " ")
        line = f"{node.id} {node.host}:7000@17000 {own}{kind} {node.replica_of or '-'} 0 0"
        lines.append(f"{line} {node.epoch} connected {slots}".rstrip())
    return "\n".join(lines).encode()


def endpoint_of(shard: ClusterShard, **more: Any) -> Endpoint:
    return Endpoint("10.0.0.1", 7000, cluster=shard, **more)


def test_the_latest_configuration_counts_and_is_not_forgotten() -> None:
    before, after = told(B, *WHOLE), told(B, *FAILED_OVER)
    endpoint = endpoint_of(first_shard(before))
    nodes = Nodes(dict.fromkeys(("10.0.0.1", "10.0.0.2", "10.0.0.3"), before))
    assert nodes.primary(endpoint) == "10.0.0.1:7000"
    # It is cut off, and answers on.
    nodes.tells = {"10.0.0.1": before, "10.0.0.2": after, "10.0.0.3": after}
    assert nodes.primary(endpoint) == "10.0.0.3:7000"
    assert cluster_primary.named_last(endpoint) == endpoint.at("10.0.0.3", 7000)
    nodes.tells = {"10.0.0.1": before}
    with pytest.raises(LinkError, match="configuration is older"):
        nodes.primary(endpoint)
    nodes.tells = {}
    with pytest.raises(LinkError, match="no node of its cluster answers: a node cannot be reached"):
        nodes.primary(endpoint)
    refused = AuthError("source 10.0.0.1:7000 answered: WRONGPASS")
    nodes.tells = dict.fromkeys(nodes.tells or HOSTS.values(), refused)
    with pytest.raises(AuthError):
        nodes.primary(endpoint)


def test_what_a_node_of_another_cluster_tells_is_not_believed() -> None:
    """It has the address, all slots, and the later configuration."""
    before, another = told(B, *WHOLE), told(D, (D, "master", "", 9, "0-16383"))
    endpoint = endpoint_of(first_shard(before))
    nodes = Nodes(dict.fromkeys(("10.0.0.1", "10.0.0.2"), before))
    assert nodes.primary(endpoint) == "10.0.0.1:7000"
    nodes.tells["10.0.0.1"] = another
    assert nodes.primary(endpoint) == "10.0.0.1:7000"
    meant = cluster_primary.identity(endpoint)
    assert meant is not None
    meant.check(A.encode(), "a node", "target")
    meant.check(AuthError("NOPERM"), "a node", "target")
    for reply in (D.encode(), ServerError("cluster support disabled", code="ERR"), None):
        with pytest.raises(LinkError, match=f"not the node {A[:8]}"):
            meant.check(reply, "a node", "target")
    with pytest.raises(ServerError, match="LOADING"):
        meant.check(ServerError("LOADING", code="LOADING"), "a node", "target")
    nodes.tells = {"10.0.0.1": another}
    with pytest.raises(LinkError, match="replaced by one of another cluster"):
        nodes.primary(endpoint)


def test_addresses_that_are_announced_for_others() -> None:
    pairs = AddressMap.read(("10.0.0.3=127.0.0.1", "10.0.0.1:7000=[::1]:17000"))
    shard = of_shard(told(B, *WHOLE).shards[0], (("127.0.0.9", next(_PORTS)),), pairs)
    nodes = Nodes({"127.0.0.9": told(B, *WHOLE)})
    assert nodes.primary(endpoint_of(shard)) == "[::1]:17000"
    nodes.tells = {"127.0.0.9": told(B, *FAILED_OVER), "::1": told(B, *FAILED_OVER)}
    assert nodes.primary(endpoint_of(shard)) == "127.0.0.1:7000"
    for text in ("", "a", "a=", "a:1", "a=b:1", "a:x=b:1", "a=b=c"):
        with pytest.raises(UsageError):
            AddressMap.read((text,))


def test_a_url_with_several_nodes() -> None:
    found = Endpoint.parse("rediss://me:p%2Cw@10.0.0.1:7000,[::1]:7001,c?verify=no")
    assert found.cluster is not None
    assert found.cluster.seeds == (("10.0.0.1", 7000), ("::1", 7001), ("c", 6379))
    assert (found.username, found.password, found.looked_up) == ("me", "p,w", True)
    assert found.url == "rediss://me@10.0.0.1:7000,[::1]:7001,c:6379?verify=no"
    again = Endpoint.parse(found.url)
    assert again.url == found.url
    # A password by an entry of the configuration is that of the first one; all others have it too.
    given = Credentials().and_of(found)
    for host, port in found.cluster.seeds:
        assert given.apply(Endpoint(host, port)).password == "p,w"
    assert given.beside(found, "10.9.9.9:1").password == "p,w"
    for url in ("redis://a,a", "redis://a,b:x", "redis://a,,b", "redis://:hunter2,x@h/1,a b"):
        with pytest.raises(UsageError) as refused:
            Endpoint.parse(url)
        assert "hunter2" not in str(refused.value)
