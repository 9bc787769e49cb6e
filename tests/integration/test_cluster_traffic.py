"""The traffic of tests on clusters: every command, while slots move and primaries change, and not
one acknowledged write lost by the servers themselves.
"""

from __future__ import annotations

from itertools import islice

import pytest

from benches.support.clusters import Cluster, slot_of
from benches.support.servers import Server
from benches.support.waiting import wait_for
from tests.support.servers import known
from tests.support.traffic import Retrying, Sequence, Traffic, prepare
from tests.support.traffic.link import address_of
from tests.support.traffic.writer import TAGS


@pytest.mark.parametrize("version", ["redis-6.2", "redis-7.0", "redis-8.0", "valkey-9.1"])
def test_every_command_on_a_cluster(version: str) -> None:
    """Nearly all kinds succeed, on every shard; next to nothing is refused for its slots."""
    with (
        Cluster.start(known(version), primaries=3) as cluster,
        Traffic(cluster, seed=5, rare=0) as traffic,
    ):
        wait_for(lambda: traffic.commands > 12_000, "12,000 commands", told=traffic.describe)
        traffic.stop()
        assert traffic.coverage() > 0.9, traffic.describe()
        # SPUBLISH beside keys in a transaction.
        assert traffic.errors["CROSSSLOT"] < 10, traffic.describe()
        assert all(int(node.client().dbsize()) > 100 for node in cluster.primaries)


def test_acknowledged_writes_outlive_moves_and_failovers() -> None:
    """Clients that repeat what was refused find each slot's owner, and doubt what was lost."""
    options = ("--appendonly", "yes")
    with (
        Cluster.start(known("valkey-8.1"), *options, primaries=3, replicas=1) as cluster,
        Traffic(cluster, seed=6, rate=1000, rare=0) as traffic,
        Retrying(cluster, clients=4, replicas=1) as clients,
    ):
        clients.goes_on()
        slots = [slot_of(b"{%d}" % number) for number in range(4)]
        slots += [slot_of(b"{%b}" % tag) for tag in TAGS[:3]]
        for there in cluster.primaries[:2]:
            cluster.move(slots, there)
            clients.goes_on()
        primary = cluster.owner(slots[0])
        cluster.fail_over(cluster.replicas_of(primary)[0])
        clients.goes_on()
        cluster.wait_until_whole()
        primary = cluster.owner(slots[0])
        (replica,) = cluster.replicas_of(primary)
        primary.kill()
        cluster.fail_over(replica, "TAKEOVER")
        primary.restart()
        clients.goes_on(writes=300)
        before = traffic.commands
        wait_for(lambda: traffic.commands > before + 500, "more commands", told=traffic.describe)
        clients.stop()
        assert clients.check(cluster) == [], clients.describe()
        assert clients.acknowledged > 500


def test_commands_across_slots() -> None:
    """Traffic for a server whose data goes into a cluster has keys of one slot, and of several."""
    with Server.start(known("redis-7.0")) as server:
        specs, payloads = prepare(address_of(server))
    options = {"payloads": payloads, "tags": TAGS, "databases": (0,)}
    units = list(islice(Sequence(specs, 9, apart=0.5, **options), 3000))  # type: ignore[arg-type]
    found: dict[bool, int] = {False: 0, True: 0}
    for unit in units:
        for name, words in unit.commands:
            if name in ("mset", "del", "sinterstore", "rename"):
                tags = {word[3 : word.index(b"}")] for word in words if word[1:3] == b":{"}
                found[len(tags) > 1] += 1
    assert min(found.values()) > 20
    together = islice(Sequence(specs, 9, apart=0.0, **options), 3000)  # type: ignore[arg-type]
    for unit in together:
        for _, words in unit.commands:
            tags = {word[3 : word.index(b"}")] for word in words if word[1:3] == b":{"}
            assert tags <= {unit.tag}
