"""What becomes of lanes when slots have moved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine.model.cluster_topology import Node, Shard, Topology
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.server import ServerInfo
from engine.model.slots import ALL_SLOTS, SLOTS, SlotSet
from engine.transfer.lane_plan import Deployment, plan
from engine.transfer.lane_replan import replanned


def deployment(side: str, *shards: SlotSet, replicas: Sequence[str] = ()) -> Deployment:
    """A cluster of these shards; shard `n` has the nodes `<side><n>` and `<side><n>r`."""
    made = []
    for number, slots in enumerate(shards):
        primary = Node(f"{side}{number}", "127.0.0.1", 7000 + number)
        replica = Node(f"{side}{number}r", "127.0.0.1", 7100 + number, primary.id)
        if primary.id in replicas:
            primary, replica = replica, primary
        if slots:
            made.append(Shard(primary, slots, (replica,)))
    nodes = tuple(node for shard in made for node in (shard.primary, *shard.replicas))
    info = ServerInfo("redis", (7, 0, 15))
    return Deployment(Endpoint(), info, Topology(nodes[0].id, nodes, tuple(made)))


def cut(*bounds: int) -> list[SlotSet]:
    """Shards that end at these slots, and at the last one."""
    edges = [-1, *bounds, SLOTS - 1]
    return [
        SlotSet(((one + 1, other),)) if other > one else SlotSet()
        for one, other in itertools.pairwise(edges)
    ]


def test_nothing_has_changed() -> None:
    """A failover is none of the plan's business."""
    source, target = deployment("s", *cut(5000, 9000)), deployment("t", *cut(5000, 9000))
    failed_over = deployment("s", *cut(5000, 9000), replicas=["s1"])
    assert replanned(plan(source, target), plan(source, target)) is None
    assert replanned(plan(source, target), plan(failed_over, target)) is None


def test_slots_that_move_between_shards_of_the_source() -> None:
    """The pair that shares them now for the first time gets a lane, and no other one reads them."""
    before = plan(deployment("s", *cut(5000)), deployment("t", *cut(5000)))
    now = replanned(before, plan(deployment("s", *cut(4000)), deployment("t", *cut(5000))))
    assert now is not None
    slots = {lane.name: lane.slots for lane in now.lanes}
    assert slots == {
        "s0-t0": SlotSet(((0, 4000),)),
        "s1-t1": SlotSet(((5001, SLOTS - 1),)),
        "s1-t0": SlotSet(((4001, 5000),)),
    }
    assert (now.new, now.audits, now.gone) == ({"s1-t0"}, {}, ())
    assert [lane.late for lane in now.lanes] == [False, False, True]
    # And back.
    back = replanned(now.lanes, plan(deployment("s", *cut(5000)), deployment("t", *cut(5000))))
    assert back is not None
    assert back.audits == {"s0-t0": SlotSet(((4001, 5000),))}
    assert [lane.name for lane in back.gone] == ["s1-t0"]


def test_a_lane_keeps_its_name_and_its_own_slot_across_a_failover() -> None:
    """Both are of the shard, whichever node is its primary; the slot, as long as it has it."""
    before = plan(deployment("s", ALL_SLOTS), deployment("t", *cut(5000)))
    assert [lane.own_slot for lane in before] == [5000, SLOTS - 1]
    moved = deployment("t", *cut(4000), replicas=["t0", "t1"])
    now = replanned(before, plan(deployment("s", ALL_SLOTS, replicas=["s0"]), moved))
    assert now is not None
    assert [lane.name for lane in now.lanes] == [lane.name for lane in before]
    assert [lane.own_slot for lane in now.lanes] == [4000, SLOTS - 1]
    assert now.audits == {before[1].name: SlotSet(((4001, 5000),))}


def test_a_replica_that_has_gone_to_another_shard() -> None:
    """The shard is where its primary is."""
    before = plan(deployment("s", *cut(5000)), deployment("t", ALL_SLOTS))
    one, other = deployment("s", *cut(4000)).told.shards  # type: ignore[union-attr]
    given_away = Shard(other.primary, other.slots, (*other.replicas, one.replicas[0]))
    alone = Shard(one.primary, one.slots, ())
    nodes = (alone.primary, given_away.primary, *given_away.replicas)
    told = Topology("s0", nodes, (alone, given_away))
    source = Deployment(Endpoint(), deployment("s", ALL_SLOTS).info, told)
    now = replanned(before, plan(source, deployment("t", ALL_SLOTS)))
    assert now is not None
    assert not now.new
    assert not now.gone
    assert now.audits == {before[1].name: SlotSet(((4001, 5000),))}


BOUNDS = st.lists(st.integers(-1, SLOTS - 1), min_size=2, max_size=2).map(sorted)


@given(st.lists(st.tuples(BOUNDS, BOUNDS), min_size=2, max_size=6))
def test_each_slot_is_one_lanes_and_is_read_again_where_it_came(
    steps: list[tuple[list[int], list[int]]],
) -> None:
    """Over any moves at both ends: every slot has one lane, and a lane that has a slot which it had
    not before reads it again, or begins."""
    lanes: tuple[PlannedLane, ...] = ()
    for one, other in steps:
        asked = plan(deployment("s", *cut(*one)), deployment("t", *cut(*other)))
        if not lanes:
            lanes = asked
            continue
        before = {lane.name: lane for lane in lanes}
        now = replanned(lanes, asked)
        if now is None:
            assert {(e.source.ids, e.target.ids, e.slots) for e in lanes} == {
                (e.source.ids, e.target.ids, e.slots) for e in asked
            }
            continue
        lanes = now.lanes
        assert len({lane.name for lane in lanes}) == len(lanes)
        every = [slots for lane in lanes for slots in lane.slots.ranges]
        assert sum(last - first + 1 for first, last in every) == SLOTS
        for lane in lanes:
            assert lane.own_slot in lane.target.slots
            if lane.name in now.new:
                assert lane.name not in before
                assert lane.late
                continue
            former = before[lane.name]
            assert lane.source.ids == former.source.ids
            assert lane.target.ids == former.target.ids
            assert lane.slots - former.slots == now.audits.get(lane.name, SlotSet())
        kept = {lane.name for lane in lanes} | {lane.name for lane in now.gone}
        assert kept >= before.keys()
