"""What tests do to clusters (`benches.support.clusters`): it is done, and all keys are kept."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benches.support.clusters import Cluster, slot_of
from benches.support.waiting import wait_for
from tests.support.servers import known

VERSIONS = ["redis-6.2", "redis-7.0", "redis-8.0", "valkey-8.1", "valkey-9.1"]
KEYS = 400
ONE_SLOT = slot_of("{one slot}")


def numbered(cluster: Cluster) -> None:
    """Put keys into it, some of them in one slot."""
    with cluster.client() as client:
        for number in range(KEYS):
            client.set(f"key:{number}", number)
            client.set(f"{{one slot}}:{number}", number)


def assert_whole(cluster: Cluster) -> None:
    """Each key is there, once."""
    with cluster.client() as client:
        for name in ("key", "{one slot}"):
            for number in range(KEYS):
                assert client.get(f"{name}:{number}") == b"%d" % number, (name, number)
    assert sum(int(node.client().dbsize()) for node in cluster.primaries) == 2 * KEYS


@pytest.fixture
def three() -> Iterator[Cluster]:
    with Cluster.start(known("valkey-9.1"), primaries=3) as cluster:
        numbered(cluster)
        yield cluster


@pytest.mark.parametrize("version", VERSIONS)
def test_three_with_replicas(version: str) -> None:
    """They start within seconds; slots move by MIGRATE; a replica takes over."""
    before = time.monotonic()
    with Cluster.start(known(version), primaries=3, replicas=1) as cluster:
        started = time.monotonic() - before
        numbered(cluster)
        first, second, _ = cluster.primaries
        slots = [*cluster.slots_of(first)[:10], ONE_SLOT]
        cluster.move(slots, second)
        assert set(slots) <= set(cluster.slots_of(second))
        (replica,) = cluster.replicas_of(second)
        cluster.fail_over(replica)
        assert cluster.owner(slots[0]) is replica
        cluster.wait_until_whole()
        assert_whole(cluster)
    assert started < 60, f"{started:.1f} s"  # 3 s on a quiet machine


def test_five() -> None:
    """All slots, in equal shares."""
    with Cluster.start(known("redis-7.0"), primaries=5) as cluster:
        shares = [len(cluster.slots_of(node)) for node in cluster.primaries]
        assert sum(shares) == 16384
        assert max(shares) - min(shares) <= 1


def test_a_move_at_a_pace_that_is_cancelled(three: Cluster) -> None:
    """It stops half-way, between two slots."""
    first, second, _ = three.primaries
    slots = three.slots_of(first)[:500]
    moving = three.moving(slots, second, rate=100)
    wait_for(lambda: len(moving.moved) >= 10, "ten slots that have moved")
    moved = moving.cancel()
    assert 10 <= len(moved) < 500
    assert set(three.slots_of(second)) & set(slots) == set(moved)
    assert_whole(three)


@pytest.mark.parametrize("version", ["valkey-9.1", "redis-8.6"])
def test_a_move_as_a_whole(version: str) -> None:
    """Slots move at once, several ranges in a job; a cancelled job moves none."""
    with Cluster.start(known(version), primaries=3) as cluster:
        numbered(cluster)
        first, second, third = cluster.nodes
        slots = cluster.slots_of(first)
        assert set(cluster.move_atomically(slots[:100] + slots[200:300], second)) <= {
            "success",
            "completed",
        }
        assert len(cluster.slots_of(second)) > len(slots)
        there = next(each for each in (first, second) if each is not cluster.owner(ONE_SLOT))
        cluster.move_atomically([ONE_SLOT], there)
        ended = cluster.moving_atomically(cluster.slots_of(third)[:1000], first)
        cluster.cancel_moves()
        assert set(ended()) <= {"canceled", "cancelled", "failed", "success", "completed"}
        cluster.wait_until_whole()
        assert_whole(cluster)


@pytest.mark.parametrize("how", ["FORCE", "TAKEOVER"])
def test_a_primary_that_dies_and_comes_back(how: str) -> None:
    """Its replica is made the primary, and it becomes a replica of that one."""
    with Cluster.start(known("valkey-8.1"), "--appendonly", "yes", replicas=1) as cluster:
        numbered(cluster)
        primary = cluster.primaries[0]
        (replica,) = cluster.replicas_of(primary)
        assert primary.client().wait(1, 10_000) == 1
        primary.kill()
        cluster.fail_over(replica, "FORCE" if how == "FORCE" else "TAKEOVER")
        primary.restart()
        wait_for(lambda: primary.client().role()[0] in (b"slave", "slave"), "its new role")
        cluster.wait_until_whole()
        assert cluster.replicas_of(replica) == [primary]
        assert_whole(cluster)


def test_a_shard_more_and_one_less(three: Cluster) -> None:
    """An empty one is added and gets slots; another is emptied, and leaves."""
    first, *_ = three.primaries
    fourth = three.add_shard(replicas=1)
    assert fourth not in three.primaries
    three.move(three.slots_of(first)[:10], fourth)
    assert len(three.slots_of(fourth)) == 10
    (replica,) = three.replicas_of(fourth)
    three.empty_shard(fourth)
    assert fourth not in three.primaries
    three.remove(replica)
    three.remove(fourth)
    three.wait_until_whole()
    assert_whole(three)
