"""Which lanes a migration has, by what its ends tell of themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

from engine._native import key_slot
from engine.errors import TransferFailed
from engine.model.cluster_topology import Node, Shard, Topology
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.model.slots import ALL_SLOTS, SlotSet
from engine.transfer import lane_plan
from engine.transfer.lane_plan import Deployment

SOURCE, TARGET = Endpoint.parse("redis://:s@10.0.0.9"), Endpoint.parse("redis://10.1.0.9:7000")
INFO = ServerInfo("redis", (7, 0, 0))


def cluster(end: Endpoint, letter: str, *slots: str) -> Deployment:
    """One whose shards have these slots, and a replica each."""
    shards = []
    for n, text in enumerate(slots, 1):
        primary = Node(f"{letter}{n}" * 20, f"10.{n}.0.1", 7000)
        replica = Node(f"{letter}{n}9{n}" * 10, f"10.{n}.0.2", 7000, primary.id)
        shards.append(Shard(primary, SlotSet.parse(text), (replica,)))
    nodes = tuple(node for each in shards for node in (each.primary, *each.replicas))
    return Deployment(end, INFO, Topology(nodes[0].id, nodes, tuple(shards)))


def one(end: Endpoint) -> Deployment:
    return Deployment(end, INFO)


THREE = ("0-5460", "5461-10922", "10923-16383")
TWO = ("0-8191", "8192-16383")


def planned(source: Deployment, target: Deployment) -> list[tuple[str, str, bool, bool, bool]]:
    """Of each lane its slots, both ends' shares, and whether it leads."""
    lanes = lane_plan.plan(source, target)
    found = lane_plan.ends_of(lanes, source.endpoint, target.endpoint, TransferSettings())
    covered = SlotSet()
    for each in lanes:
        assert not covered & each.slots or source.told is None
        covered |= each.slots
    assert covered == ALL_SLOTS
    # Of each source all keys are expected, over its lanes.
    shares: dict[str, float] = defaultdict(float)
    for lane in found:
        shares[lane.source.address] += lane.route.share
    assert all(share == pytest.approx(1) for share in shares.values())
    for each in lanes:
        assert PlannedLane.from_dict(each.to_dict()) == each
    assert len({each.title for each in lanes}) == len(lanes)
    return [
        (
            str(each.route.slots),
            each.target.address,
            each.route.shared_source,
            each.route.shared_target,
            each.route.leads,
        )
        for each in found
    ]


def test_shapes() -> None:
    """Each with each: pairs of shards whose slots meet."""
    here, there = cluster(SOURCE, "a", *THREE), cluster(TARGET, "b", *TWO)
    assert lane_plan.plan(one(SOURCE), one(TARGET)) == ()
    assert planned(here, there) == [
        ("0-5460", "10.1.0.1:7000", False, True, True),
        ("5461-8191", "10.1.0.1:7000", True, True, True),
        ("8192-10922", "10.2.0.1:7000", True, True, False),
        ("10923-16383", "10.2.0.1:7000", False, True, True),
    ]
    assert planned(here, cluster(TARGET, "c", *THREE)) == [
        (slots, f"10.{n}.0.1:7000", False, False, True) for n, slots in enumerate(THREE, 1)
    ]
    assert planned(one(SOURCE), there) == [
        ("0-8191", "10.1.0.1:7000", True, False, True),
        ("8192-16383", "10.2.0.1:7000", True, False, False),
    ]
    assert planned(here, one(TARGET)) == [
        (slots, "10.1.0.9:7000", False, True, True) for slots in THREE
    ]
    assert planned(cluster(SOURCE, "a", "0-16383"), one(TARGET)) == [
        ("0-16383", "10.1.0.9:7000", False, False, True)
    ]


def test_ends_and_names() -> None:
    """Names are the primaries' ids, and stay; an end is its shard, by whichever primary, with the
    credentials of the one that was named; own keys have one tag for all lanes to a shard."""
    here, there = cluster(SOURCE, "a", *THREE), cluster(TARGET, "b", "0-9,100-16383", "10-99")
    lanes = lane_plan.plan(here, there)
    assert [each.name for each in lanes] == [
        "a1a1a1a1-b1b1b1b1",
        "a1a1a1a1-b2b2b2b2",
        "a2a2a2a2-b1b1b1b1",
        "a3a3a3a3-b1b1b1b1",
    ]
    assert [each.title for each in lanes[:2]] == [
        "10.1.0.1:7000->10.1.0.1:7000",
        "10.1.0.1:7000->10.2.0.1:7000",
    ]
    settings = TransferSettings(address_map=("10.1.0.1=127.0.0.1", "10.2.0.1:7000=h:17000"))
    found = lane_plan.ends_of(lanes, SOURCE, TARGET, settings)
    first = found[0].source
    assert (first.address, first.password, first.looked_up) == ("127.0.0.1:7000", "s", True)
    assert first.cluster is not None
    assert first.cluster.ids == lanes[0].source.ids
    assert first.cluster.seeds == (
        ("10.0.0.9", 6379),
        ("127.0.0.1", 7000),
        ("h", 17000),
        ("10.3.0.1", 7000),
    )
    assert found[0].source == found[1].source != found[2].source
    assert len({each.source.cluster.seeds for each in found if each.source.cluster}) == 1
    assert [key_slot(each.route.tag.encode()) for each in found] == [16383, 99, 16383, 16383]
    assert all(each.route.from_cluster and each.route.to_cluster for each in found)
    alone = lane_plan.plan(one(SOURCE), there)
    assert [each.name for each in alone] == ["b1b1b1b1", "b2b2b2b2"]
    assert [each.title for each in alone] == ["10.1.0.1:7000", "10.2.0.1:7000"]
    (first_end, second) = lane_plan.ends_of(alone, SOURCE, TARGET, settings)
    assert first_end.source == second.source == SOURCE
    assert not first_end.route.from_cluster
    # Nodes whose ids begin alike.
    told = there.told
    assert told is not None
    alike = [
        Shard(Node("b" * 8 + str(n) * 32, "h", 1), shard.slots)
        for n, shard in enumerate(told.shards)
    ]
    both = Deployment(TARGET, INFO, Topology("", tuple(s.primary for s in alike), tuple(alike)))
    assert len({each.name for each in lane_plan.plan(one(SOURCE), both)}) == 2


def test_several_nodes_that_are_none() -> None:
    """A server by itself is not taken for a cluster of which it was named with other nodes."""
    several = one(Endpoint.parse("redis://a,b"))
    for ends in ((several, one(TARGET)), (one(SOURCE), several)):
        with pytest.raises(TransferFailed, match="at least one server of a:6379,b:6379 is not"):
            lane_plan.plan(*ends)


def test_slots_without_a_node() -> None:
    with pytest.raises(TransferFailed, match="no node of the target's cluster has the slots 7-9"):
        lane_plan.plan(one(SOURCE), cluster(TARGET, "b", "0-6", "10-16383"))


@pytest.mark.parametrize(
    ("source", "target", "wrong"),
    [
        (cluster(SOURCE, "a", *THREE), cluster(TARGET, "b", *TWO), []),
        # Failed over, resharded: the cluster is the same.
        (cluster(SOURCE, "a", *TWO), cluster(TARGET, "b", *THREE), []),
        (
            one(SOURCE),
            cluster(TARGET, "b", *TWO),
            ["the source was a cluster, and is a single server now"],
        ),
        (
            cluster(SOURCE, "c", *THREE),
            cluster(TARGET, "b", *TWO),
            ["the source is another cluster now: it has none of the nodes that it had"],
        ),
    ],
)
def test_what_is_gone_on_with(source: Deployment, target: Deployment, wrong: Sequence[str]) -> None:
    lanes = lane_plan.plan(cluster(SOURCE, "a", *THREE), cluster(TARGET, "b", *TWO))
    assert list(lane_plan.unfit(lanes, source, target)) == wrong
    alone = lane_plan.plan(one(SOURCE), cluster(TARGET, "b", *TWO))
    assert list(lane_plan.unfit(alone, cluster(SOURCE, "a", *TWO), target)) == [
        "the source was a single server, and is a cluster now"
    ]
