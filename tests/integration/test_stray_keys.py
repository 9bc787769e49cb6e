"""Keys that a cluster's node holds of slots that it does not own: no client reaches them, so they
are neither migrated nor counted, and they are named."""

from __future__ import annotations

import pytest

from benches.support.clusters import Cluster, slot_of
from tests.support.library import migrating
from tests.support.servers import ServerFactory, known

# Which release, and how many primaries each end has: pairs of shards for themselves, and lanes that
# share their ends. Which ends hold such keys.
CASES = [
    ("redis-7.0", 3, 3, ("source", "target")),
    ("valkey-9.1", 2, 3, ("source",)),
    ("valkey-9.1", 2, 3, ("target",)),
]
KEYS = 300


def leave_behind(cluster: Cluster, name: str) -> None:
    """Five keys of a slot that their node has no more; three have a TTL."""
    old, new = cluster.primaries[:2]
    (tag,) = cluster.tags_of(old, 1)
    for number in range(5):
        key = b"%s{%s}%d" % (name.encode(), tag, number)
        old.client().set(key, "behind", ex=None if number % 2 else 10_000)
    for node in cluster.nodes:
        node.client().execute_command("CLUSTER DELSLOTS", slot_of(tag))
    new.client().execute_command("CLUSTER ADDSLOTS", slot_of(tag))
    new.client().execute_command("CLUSTER BUMPEPOCH")
    cluster.wait_until_whole()
    assert old.client().dbsize() == 5


def reached(cluster: Cluster) -> dict[bytes, tuple[bytes | None, bool]]:
    """What clients find: each key, its value, and whether it has a TTL."""
    found = {}
    for node in cluster.primaries:
        slots, client = set(cluster.slots_of(node)), node.client()
        for key in client.scan_iter(count=1000):
            if slot_of(key) in slots:
                found[key] = client.get(key), client.ttl(key) > 0
    return found


@pytest.mark.parametrize(("name", "sources", "targets", "ends"), CASES)
def test_they_do_not_count(
    server_factory: ServerFactory, name: str, sources: int, targets: int, ends: tuple[str, ...]
) -> None:
    with (
        Cluster.start(known(name), primaries=sources, make=server_factory) as source,
        Cluster.start(known(name), primaries=targets, make=server_factory) as target,
    ):
        for end, cluster in (("source", source), ("target", target)):
            if end in ends:
                leave_behind(cluster, end)
        with source.client() as client:
            for number in range(KEYS):
                client.set(f"key:{number}", number, ex=10_000 if number % 3 else None)
        with migrating(source, target, timeout=60) as run:
            run.following()
            with source.client() as client:
                client.delete("key:7")
                client.set("late", "1")
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert not run.refusals
        assert run.report.verification is not None
        assert run.report.verification.counted
        told = [event for event in run.events if "of slots that it does not own" in event]
        assert len(told) == len(ends), run.events
        for end, event in zip(ends, sorted(told), strict=True):
            assert f"{end} 127.0.0.1" in event
            assert "holds 5 keys of slots that it does not own" in event
        there = reached(target)
        assert there == reached(source)
        assert len(there) == KEYS


def test_no_command_that_a_node_runs_for_any_slot_is_sent(server_factory: ServerFactory) -> None:
    """MSETEX of Valkey 9.1 (findings/msetex-at-a-node-without-its-slot.sh): where the slot had
    moved, its new owner would not have the keys, and the node would hold them for nobody."""
    source = server_factory(known("valkey-9.1"))
    with Cluster.start(known("valkey-9.1"), primaries=2, make=server_factory) as target:
        with migrating(source, target, timeout=60) as run:
            run.following()
            client = source.client()
            client.execute_command("MSETEX", 3, "a", 1, "b", 2, "c", 3)
            client.execute_command("MSETEX", 2, "{t}1", 1, "{t}2", 2, "EX", 10_000)
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        for node in target.nodes:
            assert "cmdstat_msetex" not in node.client().info("commandstats")
        there = reached(target)
    assert there == {
        **{name: (str(n).encode(), False) for n, name in enumerate((b"a", b"b", b"c"), 1)},
        b"{t}1": (b"1", True),
        b"{t}2": (b"2", True),
    }
