"""What test-migration says where an end is a cluster: each check has a real cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benches.support.clusters import Cluster, node_id, slot_of
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedLane
from engine.model.online_checkpoint import OwnKeys
from engine.model.position import TargetPosition
from engine.model.settings import TransferSettings
from engine.model.slots import slot_tag
from engine.transfer.checks import cluster
from engine.transfer.checks.check_result import Check, Preflight
from engine.transfer.preflight import preflight
from engine.wire.event_loop import run
from tests.support.servers import ServerFactory, known

THREE = ["0-5460", "5461-10921", "10922-16383"]


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Cluster, Cluster]]:
    """A cluster with replicas, and one without."""
    binary = known("redis-7.0")
    with (
        Cluster.start(binary, primaries=3, replicas=1) as one,
        Cluster.start(binary, primaries=2) as other,
    ):
        yield one, other


def url(*nodes: Server) -> str:
    return "redis://" + ",".join(f"{each.host}:{each.port}" for each in nodes)


def asked(source: str, target: str, **settings: Any) -> Preflight:
    ends = Endpoint.parse(source), Endpoint.parse(target)
    return run(preflight(*ends, TransferSettings(**settings)))


def check(found: Preflight, name: str) -> Check:
    (one,) = (each for each in found.checks if each.name == name)
    return one


def slots(lanes: tuple[PlannedLane, ...]) -> list[str]:
    return [str(each.slots) for each in lanes]


def test_clusters_are_looked_at_shard_by_shard(
    two: tuple[Cluster, Cluster], server_factory: ServerFactory
) -> None:
    """Any node will do; what it is, and what is found through it, is said."""
    one, other = two
    single = server_factory(known("redis-7.0"))
    whole = asked(one.nodes[0].url, other.nodes[1].url)
    assert whole.ok, whole.failures
    assert slots(whole.lanes) == ["0-5460", "5461-8191", "8192-10921", "10922-16383"]
    assert [each.slots for each in whole.shards] == ["0-8191", "8192-16383"]
    names = [each.name for each in whole.checks]
    assert len(names) == len(set(names)), names
    assert "3 primaries" in check(whole, "source-mode").figure
    assert "the same check passes on" in check(whole, "source-reachable").figure
    # A replica leads to its primary; of several nodes those that are missing are added.
    replica = asked(url(one.nodes[4]), single.url)
    assert replica.ok, replica.failures
    assert "is a replica of" in check(replica, "source-endpoints").figure
    assert slots(replica.lanes) == THREE
    some = asked(url(*one.nodes[:2]), single.url)
    assert "1 shard that was not named is found and added: " in (
        check(some, "source-endpoints").figure
    )
    assert asked(single.url, url(*other.nodes)).lanes[0].source.ids == ()
    assert asked(single.url, single.url).lanes == ()


def test_endpoints_of_two_clusters(
    two: tuple[Cluster, Cluster], server_factory: ServerFactory
) -> None:
    one, other = two
    single = server_factory(known("redis-7.0"))
    mixed = check(asked(url(one.nodes[0], other.nodes[0]), single.url), "source-endpoints")
    assert mixed.outcome == "fail"
    stranger = next(
        each for each in (one.nodes[0], other.nodes[0]) if str(each.port) in mixed.figure
    )
    assert f"{stranger.host}:{stranger.port} is a node of another cluster" in mixed.figure
    none = asked(single.url, url(other.nodes[0], single))
    assert "is not a node of a cluster" in check(none, "target-endpoints").figure
    # Whichever of them answers first.
    other_server = server_factory(known("redis-7.0"))
    for ends, side in (
        ((url(single, other_server), single.url), "source"),
        (
            (single.url, url(other_server, single)),
            "target",
        ),
    ):
        two_servers = asked(*ends)
        assert "is not a node of a cluster" in check(two_servers, f"{side}-endpoints").figure
        assert not two_servers.ok
        anyway = asked(*ends, skip_checks=(f"{side}-endpoints",))
        assert check(anyway, f"{side}-endpoints").outcome == "fail"
    same = check(asked(one.nodes[0].url, one.nodes[1].url), "different-servers")
    assert (same.outcome, "one cluster" in same.figure) == ("fail", True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source_type": "scan"}, "--source-type scan"),
        ({"match": "a*"}, "--match chooses keys"),
    ],
)
def test_a_cluster_is_followed(
    two: tuple[Cluster, Cluster], settings: dict[str, Any], words: str
) -> None:
    found = check(asked(two[0].nodes[0].url, two[1].nodes[0].url, **settings), "following")
    assert found.outcome == "fail"
    assert words in found.figure
    ends = two[0].nodes[0].url, two[1].nodes[0].url
    anyway = asked(*ends, **settings, skip_checks=("following",))
    assert not anyway.ok


def test_another_node_at_a_primary_s_address(
    two: tuple[Cluster, Cluster], server_factory: ServerFactory
) -> None:
    """What leads to it would read one shard twice, or another cluster, and the other one never."""
    one, other = two
    single = server_factory(known("redis-7.0"))
    announced = one.nodes[1]
    for reached in (one.nodes[0], one.nodes[4], other.nodes[0]):
        mapped = (f"127.0.0.1:{announced.port}=127.0.0.1:{reached.port}",)
        for side, ends in (
            ("source", (one.nodes[0].url, single.url)),
            ("target", (single.url, one.nodes[0].url)),
        ):
            found = asked(*ends, address_map=mapped)
            wrong = check(found, f"{side}-reachable")
            assert wrong.outcome == "fail"
            assert f"at 127.0.0.1:{reached.port} another node answers" in wrong.figure
            assert not found.lanes


def test_databases_and_hash_tags(
    two: tuple[Cluster, Cluster], server_factory: ServerFactory
) -> None:
    """Keys beyond database 0 have no place there; and those of one hash tag are all on one node."""
    single = server_factory(known("redis-7.0"))
    single.client(db=3).mset({f"k{n}": n for n in range(7)})
    single.client().mset({f"{{tag}}:{n}": n for n in range(300)})
    found = asked(single.url, two[1].nodes[0].url)
    room = check(found, "databases")
    assert room.outcome == "fail"
    assert room.figure.endswith("to be moved: 0, 3; the target has no database 3, only database 0")
    assert "cluster-databases" in room.remedy
    hot = check(found, "hot-slot")
    assert hot.outcome == "warn"
    assert f"300 are in the slot {slot_of('{tag}')} (as '{{tag}}:" in hot.figure
    single.client(db=3).flushdb()
    single.client().mset({f"k{n}": n for n in range(300)})
    again = asked(single.url, two[1].nodes[0].url)
    assert again.ok, again.failures
    assert not [each for each in again.checks if each.name == "hot-slot"]


def test_a_shard_of_which_not_every_slot_was_searched(
    two: tuple[Cluster, Cluster], server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and the target is not called free."""
    monkeypatch.setattr(cluster, "_SCANNED_MOST", -1)
    found = asked(server_factory(known("redis-7.0")).url, url(*two[1].nodes))
    free = [each for each in found.checks if each.name == "other-migration"]
    assert {each.outcome for each in free} == {"warn"}
    assert all("other slots were not searched: it has more than" in each.figure for each in free)


def test_what_others_have_on_a_shard(
    two: tuple[Cluster, Cluster], server_factory: ServerFactory
) -> None:
    """Keys, another migration's position, and what one has left: of the shard where they are."""
    single = server_factory(known("redis-7.0"))
    single.client().set("k", 1)
    target = two[1].nodes[1]
    keys = OwnKeys("aaaa", "other", slot_tag(16383))
    client, mark = target.client(), TargetPosition("aaaa", None, "")
    name = next(f"k{n}" for n in range(100) if slot_of(f"k{n}") >= 8192)
    try:
        client.set(name, "there")
        client.set(keys.position, mark.encode())
        found = asked(single.url, url(*two[1].nodes))
        existing = check(found, "existing-keys")
        assert existing.outcome == "warn"
        assert "1 in database 0" in existing.figure
        busy = check(found, "other-migration")
        assert busy.outcome == "fail"
        assert f"→ 127.0.0.1:{target.port}: " in busy.figure
        assert check(asked(single.url, target.url, take_over=True), "other-migration").outcome == (
            "warn"
        )
        client.delete(keys.position)
        # Its lanes were planned when the shard's last slot was another one.
        before = OwnKeys("aaaa", "other", slot_tag(9000))
        client.set(before.position, mark.encode())
        assert check(asked(single.url, target.url), "other-migration").outcome == "fail"
        client.delete(before.position)
        client.set(keys.left, mark.encode())
        left = check(asked(single.url, target.url), "leftovers")
        assert left.outcome == "fail"
        assert "the migration aaaa, which was not completed" in left.figure
    finally:
        client.delete(name)
        client.delete(keys.position, keys.left)


Harm = Callable[[Cluster], object]


def _uncovered(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.client().execute_command("CLUSTER DELSLOTS", 7, 9)


def _in_motion(cluster: Cluster) -> None:
    here, there = cluster.nodes[0], cluster.nodes[1]
    there.client().execute_command("CLUSTER SETSLOT", 7, "IMPORTING", node_id(here))
    here.client().execute_command("CLUSTER SETSLOT", 7, "MIGRATING", node_id(there))


def _dead(cluster: Cluster) -> None:
    cluster.nodes[0].kill()
    first = cluster.nodes[2].client()
    wait_for(
        lambda: (
            "cluster_state:fail" in str(first.execute_command("CLUSTER INFO"))
            or first.execute_command("CLUSTER INFO").get("cluster_state") == "fail"
        ),
        "a failure",
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_uncovered, ["no node has the slots 7,9", "says cluster_state:fail"]),
        # Told by the nodes that take part alone, whichever was named.
        (_in_motion, ["the slot 7 is being moved"]),
        (_dead, ["is not reached by the other nodes", "says cluster_state:fail"]),
    ],
)
def test_a_cluster_that_is_not_whole(
    harm: Harm, words: list[str], server_factory: ServerFactory
) -> None:
    single = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=3) as cluster:
        harm(cluster)
        for found, name in (
            (asked(cluster.nodes[2].url, single.url), "source-mode"),
            (asked(single.url, cluster.nodes[2].url), "target-mode"),
        ):
            mode = check(found, name)
            assert mode.outcome == "fail"
            assert all(each in mode.figure for each in words), mode.figure
            assert not found.lanes
        # What the lanes are planned by cannot be skipped: one node would stand for them all.
        gone = server_factory(known("redis-7.0"))
        gone.kill()
        silent = asked(cluster.nodes[2].url, gone.url, skip_checks=("target-reachable",))
        assert check(silent, "target-reachable").outcome == "fail"
        again = asked(cluster.nodes[2].url, single.url, skip_checks=("source-mode",))
        assert check(again, "source-mode").outcome == "fail"
        assert "not skipped" in check(again, "source-mode").figure


def test_an_address_that_cannot_be_reached(server_factory: ServerFactory) -> None:
    """It is named, with the option that helps; and with that all is well."""
    single = server_factory(known("redis-7.0"))
    binary = known("redis-7.0")
    with Cluster.start(binary, primaries=2) as cluster:
        node = cluster.nodes[1]
        # Nothing listens there: the port of a server that has ended.
        gone = server_factory(binary)
        gone.kill()
        node.client().config_set("cluster-announce-port", gone.port)
        first = cluster.nodes[0].client()
        wait_for(lambda: str(gone.port) in str(first.execute_command("CLUSTER NODES")), "gossip")
        for ends, side in (
            ((cluster.nodes[0].url, single.url), "source"),
            ((single.url, cluster.nodes[0].url), "target"),
        ):
            found = check(asked(*ends), f"{side}-reachable")
            assert found.outcome == "fail"
            assert f"127.0.0.1:{gone.port}" in found.figure
            assert "--address-map" in found.remedy
            mapped = (f"127.0.0.1:{gone.port}=127.0.0.1:{node.port}",)
            again = asked(*ends, address_map=mapped)
            assert again.ok, again.failures
            assert len(again.lanes) == 2


def test_rights_on_a_node(server_factory: ServerFactory) -> None:
    """A user of one shard who may not do it there: which, and where."""
    single = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2) as cluster:
        for node in cluster.nodes:
            node.client().execute_command("ACL SETUSER", "u", "on", ">p", "~*", "&*", "+@all")
        second = cluster.nodes[1]
        second.client().execute_command(
            "ACL SETUSER", "u", "-cluster|getkeysinslot", "-client|kill"
        )
        at = f"redis://u:p@{cluster.nodes[0].host}:{cluster.nodes[0].port}"
        rights = check(asked(single.url, at), "target-permissions")
        assert rights.outcome == "fail"
        assert rights.figure.startswith(f"{second.host}:{second.port}: the target's user 'u' may ")
        assert "CLUSTER GETKEYSINSLOT" in rights.figure
        assert "CLIENT KILL" in rights.figure
