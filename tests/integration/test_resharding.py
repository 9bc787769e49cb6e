"""Slots that move at either end of a migration while it follows: by each way in which servers move
them, and wherever the engine is then.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benches.support.clusters import Cluster, node_id, slot_of
from benches.support.servers import Server
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.progress import Phase
from engine.model.slots import slot_tag
from engine.transfer import cluster_monitor
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.lane_plan import tag_of
from tests.support.carried import assert_carried
from tests.support.comparison import assert_settled
from tests.support.library import Run
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario, Scenario

KEYS = 3000


def began(scenario: NewScenario, source: str, target: str, shards: int, others: int) -> Scenario:
    s = scenario(source, target, source_shards=shards, target_shards=others)
    s.load(keys=KEYS)
    return s


def clusters(s: Scenario) -> tuple[Cluster, Cluster]:
    """Source and target."""
    there, here = s.whole("source"), s.whole("target")
    assert isinstance(there, Cluster)
    assert isinstance(here, Cluster)
    return there, here


def moved(cluster: Cluster, slots: range, to: int) -> None:
    """Move them, by MIGRATE."""
    cluster.move(slots, cluster.primaries[to])


def replanned(run: Run, times: int = 1) -> None:
    """Wait until the lanes were planned anew, so many times."""
    run.wait_for(
        lambda: sum(event.startswith("slots have moved: ") for event in run.events) >= times,
        "other lanes",
    )


@pytest.mark.parametrize("end", ["source", "target"])
def test_slots_move_to_another_shard(end: str, scenario: NewScenario) -> None:
    """Writers go on all the time: nothing is lost, or applied twice, and what the keys were at the
    node that had them before is gone."""
    s = began(scenario, "redis-7.0", "redis-7.0", 3, 3)
    there, here = clusters(s)
    with s.clients(clients=3) as clients:
        with s.running(timeout=120.0) as run:
            run.following()
            clients.goes_on()
            moved(there if end == "source" else here, range(300), 1)
            replanned(run)
            clients.goes_on()
            run.cut_over(again="slots")
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


def test_dirty_keys_of_a_slot_that_has_gone(scenario: NewScenario) -> None:
    """What an engine had still to mend of a slot which is another lane's by now is that lane's: the
    one before cannot read it any more, and does not wait for it."""
    s = began(scenario, "redis-7.0", "redis-7.0", 2, 2)
    there, here = clusters(s)
    store = MemoryCheckpoint()
    with s.running(checkpoints=store, timeout=120.0) as run:
        run.following()
        run.stop()
    slots = range(20)
    key = next(f"key:{n}" for n in range(KEYS) if slot_of(f"key:{n}") in slots)
    lane = next(each for each in store.lanes or () if slots[0] in each.slots)
    found = store.of_lane(lane.name).load()
    assert found is not None
    assert isinstance(found.position, OnlineCheckpoint)
    own = OwnKeys(found.position.token, lane.name, tag_of(lane))
    with here.client() as client:
        client.sadd(own.dirty, f"0 v {key}")
        client.delete(key)
    moved(there, slots, 1)
    with s.running(checkpoints=store, timeout=120.0) as run:
        run.cut_over(again="slots")
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(there, here, 5)
    assert_tidy(here)


def test_own_keys_that_come_back(scenario: NewScenario) -> None:
    """A replica that is promoted may lack the removal of what a lane had in a slot that has gone:
    such keys are removed again, and make no difference of the counts."""
    s = began(scenario, "redis-7.0", "redis-7.0", 2, 2)
    there, here = clusters(s)
    store = MemoryCheckpoint()
    with s.running(checkpoints=store, timeout=120.0) as run:
        run.following()
        lane = (store.lanes or ())[0]
        found = store.of_lane(lane.name).load()
        assert found is not None
        assert isinstance(found.position, OnlineCheckpoint)
        own = OwnKeys(found.position.token, lane.name, tag_of(lane))
        with here.client() as client:
            position = client.get(own.position)
            assert position is not None
            moved(here, range(lane.own_slot, lane.own_slot + 1), 1)
            replanned(run)
            run.following()
            assert client.get(own.position) is None
            client.set(own.position, position)
            client.sadd(own.dirty, "0 v key:1")
        run.cut_over(again="slots")
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(there, here, 5)
    assert_tidy(here)


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_shard_is_emptied_and_another_one_added(end: str, scenario: NewScenario) -> None:
    """The primary that gives its last slot away becomes another shard's replica."""
    s = began(scenario, "valkey-9.1", "valkey-9.1", 3, 3)
    there, here = clusters(s)
    changed = there if end == "source" else here
    with s.clients(clients=2) as clients:
        with s.running(timeout=200.0, retry_for=60.0) as run:
            run.following()
            last = changed.primaries[-1]
            fresh = changed.add_shard()
            changed.move_atomically(changed.slots_of(last)[:-1], fresh)
            changed.move(changed.slots_of(last), fresh)
            clients.goes_on()
            run.cut_over(again="")
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


def slowly_copied(server: Server, tag: bytes) -> None:
    """Keys of one slot, and a snapshot that takes its time: until rdb-key-save-delay is 0."""
    server.client().mset({b"{%b}:%d" % (tag, n): bytes(10_000) for n in range(500)})
    for name, value in {
        "rdb-key-save-delay": 50_000,
        "rdbcompression": "no",
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": 0,
    }.items():
        server.client().config_set(name, value)


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_shard_is_emptied_while_it_is_copied(end: str, scenario: NewScenario) -> None:
    """Its snapshot never comes to an end: that is not waited for."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2, target_shards=2)
    there, here = clusters(s)
    changed = there if end == "source" else here
    fresh = changed.add_shard()
    changed.move(range(20), fresh)
    first = there.owner(0)
    (tag,) = there.tags_of(first, 1) if end == "source" else (slot_tag(0).encode(),)
    s.load(keys=300)
    slowly_copied(first, tag)
    with s.clients(clients=2) as clients:
        # Once in several processes.
        several = int(end == "source")
        with s.running(timeout=120.0, retry_for=60.0, lanes_per_worker=several) as run:

            def copies() -> bool:
                found = run.call(lambda: run.work.of_lanes)
                return any(
                    each.phase is Phase.SNAPSHOT
                    for name, each in found.items()
                    if set(name.split("-")) & {node_id(fresh)[:8]}
                )

            run.wait_for(copies, "its snapshot")
            changed.empty_shard(fresh)
            first.client().config_set("rdb-key-save-delay", 0)
            replanned(run)
            clients.goes_on()
            run.cut_over(again="")
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


def test_a_slot_leaves_the_target_while_its_keys_are_copied(scenario: NewScenario) -> None:
    """The lane that is refused them does not wait for the slot to come back."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2, target_shards=2)
    there, here = clusters(s)
    s.load(keys=300)
    slowly_copied(there.nodes[0], slot_tag(0).encode())
    with s.clients(clients=2) as clients:
        with s.running(timeout=120.0, retry_for=60.0) as run:
            run.wait_for(lambda: here.nodes[0].client().dbsize() > 10, "its snapshot")
            moved(here, range(2), 1)
            there.nodes[0].client().config_set("rdb-key-save-delay", 0)
            replanned(run)
            clients.goes_on()
            run.cut_over(again="")
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(there, here, clients)


def test_a_slot_that_goes_on_before_it_was_read_again(scenario: NewScenario) -> None:
    """The lane that has it last reads it; the one that had it for a moment waits for nothing."""
    s = began(scenario, "redis-7.0", "redis-7.0", 2, 2)
    there, here = clusters(s)
    store = MemoryCheckpoint()
    with s.running(checkpoints=store, timeout=120.0) as run:
        run.following()
        run.stop()
    lane = next(each for each in store.lanes or () if 0 in each.slots)
    found = store.of_lane(lane.name).load()
    assert found is not None
    assert isinstance(found.position, OnlineCheckpoint)
    mark = replace(found.position, audit="0-19")
    store.of_lane(lane.name).save(replace(found, position=mark))
    moved(there, range(20), 1)
    with s.running(checkpoints=store, timeout=120.0) as run:
        run.cut_over(again="slots")
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(there, here, 5)


def test_the_stream_tells_of_a_move_before_the_cluster_is_asked_again(
    scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RESTORE-ASKING is sent while the slot is on its way: the gate closes at once."""
    monkeypatch.setattr(cluster_monitor, "_LOOK_SECONDS", 3600.0)
    s = began(scenario, "redis-7.0", "redis-7.0", 2, 1)
    there, _ = clusters(s)
    slot = slot_of("key:1")
    other = next(node for node in there.primaries if node is not there.owner(slot))
    with s.running(timeout=60.0) as run:
        run.following()
        with there.moving([slot], other, rate=0.2) as moving:
            run.wait_for(lambda: any("are being moved" in e for e in run.events), "the sign")
            assert "are being moved" in run.progress.reason
            assert not run.progress.can_complete
            moving.cancel()
        run.stop()
