"""boto3, the library's verbs and the command line drive migrations with clusters at their ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from benches.support.api import Serving
from benches.support.clusters import Cluster, node_id, slot_of
from benches.support.engines import Migration
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.front.engine import Engine
from tests.support.carried import assert_carried
from tests.support.command_line import Cli, between, nodes
from tests.support.completing import word_given
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Retrying

KEYS = 600
SOAK = bool(os.environ.get("ENGINE_SOAK"))


@pytest.fixture
def api(tmp_path: Path, state_url: str) -> Iterator[Serving]:
    with Serving(tmp_path, state_url) as serving:
        yield serving


def filled(cluster: Any) -> None:
    client = cluster.client()
    for n in range(KEYS):
        client.set(f"key:{n}", n)


def assert_has_them(target: Any) -> None:
    client = target.client()
    assert [n for n in range(KEYS) if client.get(f"key:{n}") != str(n).encode()] == []


def group(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.describe_replication_groups(ReplicationGroupId="cache")
    return found["ReplicationGroups"][0]


def migration(state: str) -> dict[str, Any]:
    """What the service's model has no member for."""
    with closing(Engine(state)) as engine:
        told = engine.sync.describe_replication_groups("cache")
    found: dict[str, Any] = told["ReplicationGroups"][0]["Migration"]
    return found


def test_three_shards_into_three(api: Serving, state_url: str) -> None:
    """Create, test, start with three endpoints, describe, complete."""
    binary = known("redis-7.0")
    with (
        Cluster.start(binary, primaries=3) as source,
        Cluster.start(binary, primaries=3, replicas=1) as target,
    ):
        filled(source)
        client = api.client()
        first = target.nodes[0]
        client.create_replication_group(
            ReplicationGroupId="cache",
            ReplicationGroupDescription="the new home",
            PrimaryClusterId=f"{first.host}:{first.port}",
            ClusterMode="enabled",
            NumNodeGroups=3,
        )
        made = group(client)
        assert (made["ClusterMode"], made["ClusterEnabled"]) == ("enabled", True)
        assert made["ConfigurationEndpoint"]["Port"] == first.port
        nodes = [{"Address": each.host, "Port": each.port} for each in source.nodes]
        tested = client.test_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
        shards = tested["ReplicationGroup"]["NodeGroups"]
        assert [each["Slots"] for each in shards] == ["0-5460", "5461-10921", "10922-16383"]
        assert [each["PrimaryEndpoint"]["Port"] for each in shards] == [
            each.port for each in target.nodes[:3]
        ]
        roles = [[each["CurrentRole"] for each in shard["NodeGroupMembers"]] for shard in shards]
        assert roles == [["primary", "replica"]] * 3
        client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
        wait_for(lambda: migration(state_url)["CanComplete"], "in sync", 60)
        workers = migration(state_url)["Workers"]
        assert sorted(each["Slots"] for each in workers) == sorted(each["Slots"] for each in shards)
        assert {each["Phase"] for each in workers} == {"FOLLOW"}
        named = {
            f"{one.host}:{one.port}->{other.host}:{other.port}"
            for one, other in zip(source.nodes, target.nodes, strict=False)
        }
        assert {each["Shard"] for each in workers} == named
        with pytest.raises(botocore.exceptions.ClientError) as again:
            client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
        assert again.value.response["Error"]["Code"] == "ReplicationGroupAlreadyUnderMigrationFault"
        word_given(
            lambda: client.complete_migration(ReplicationGroupId="cache"),
            lambda: migration(state_url)["CanComplete"],
        )
        wait_for(lambda: group(client)["Status"] == "available", "the end", 60)
        ended = migration(state_url)
        assert ended["Status"] == "done", ended
        # Of all lanes, not of one.
        assert f"{KEYS} keys on the source, {KEYS} on the target" in ended["Reason"]
        # A lane has one name wherever it is read.
        steps = ended["Report"]["Steps"]
        assert {each["Shard"] for each in steps if each["Name"] == "snapshot"} == named
        found = client.describe_events(SourceIdentifier="cache", SourceType="replication-group")
        told = [each["Message"] for each in found["Events"]]
        assert {each.split(": ")[0] for each in told if "cut over at offset" in each} == {
            f"lane {name}" for name in named
        }
        assert not [each for each in told if any(each.count(name) > 1 for name in named)], told
        assert_has_them(target)


def test_one_endpoint_where_cluster_mode_is_disabled(
    api: Serving, server_factory: ServerFactory
) -> None:
    """As the page of the API says; and a node of the target is not its own source."""
    target = server_factory(known("redis-7.0"))
    client = api.client()
    client.create_replication_group(
        ReplicationGroupId="cache",
        ReplicationGroupDescription="the new home",
        PrimaryClusterId=f"{target.host}:{target.port}",
    )
    two = [{"Address": "127.0.0.1", "Port": port} for port in (1, 2)]
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=two)
    assert refused.value.response["Error"]["Code"] == "InvalidParameterValue"
    assert "exactly one endpoint" in str(refused.value)


def under_way(cluster: Cluster) -> tuple[int, Server]:
    """A slot with a key in it is being moved from now on; it, and the node that it goes to."""
    slot = slot_of("key:0")
    owner = cluster.owner(slot)
    there = next(each for each in cluster.primaries if each is not owner)
    there.client().execute_command("CLUSTER SETSLOT", slot, "IMPORTING", node_id(owner))
    owner.client().execute_command("CLUSTER SETSLOT", slot, "MIGRATING", node_id(there))
    return slot, there


@pytest.mark.parametrize("name", ["redis-7.0", *(["valkey-9.1", "redis-8.6"] if SOAK else [])])
def test_replicas_as_endpoints_and_a_slot_under_way(
    cli: Cli, migration: Migration, name: str
) -> None:
    """By the verbs: whichever node is named; and a start while a slot moves at either end is
    refused, until it has moved."""
    with contextlib.ExitStack() as stack:
        source, target = (
            stack.enter_context(Cluster.start(known(name), primaries=2, replicas=1))
            for _ in range(2)
        )
        filled(source)
        clients = stack.enter_context(Retrying(source, clients=2))
        named = source.replicas_of(source.nodes[1])[0]
        migration.register(target.replicas_of(target.nodes[1])[0])
        for end in (source, target):
            slot, there = under_way(end)
            refused = cli.here(
                "start-migration", "--replication-group-id", migration.group, *nodes(named)
            )
            assert refused.code == 1
            assert f"the slot {slot} is being moved" in refused.err
            end.move([slot], there)
        migration.start(named, "--source-type", "replica")
        migration.wait_for(lambda found: found["CanComplete"])
        clients.goes_on()
        migration.complete()
        shards = migration.describe()["NodeGroups"]
        assert sorted(each["PrimaryEndpoint"]["Port"] for each in shards) == sorted(
            each.port for each in target.nodes[:2]
        )
        assert_carried(source, target, clients)


def test_the_command_line(cli: Cli, server_factory: ServerFactory) -> None:
    """One command, by any node, and by several."""
    single = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2) as cluster:
        filled(cluster)
        several = "redis://" + ",".join(f"{each.host}:{each.port}" for each in cluster.nodes)
        there = cli("migrate", "--source", several, "--target", single.url, "--output", "json")
        assert there.code == 0, there.err
        assert (there.json["status"], there.json["keys"]) == ("done", KEYS)
        assert_has_them(single)
        for each in cluster.nodes:
            blocked = each.client().config_get("min-replicas-to-write")
            assert blocked["min-replicas-to-write"] != "0"
            each.client().config_set("min-replicas-to-write", 0)
            each.client().flushall()
        back = cli("migrate", *between(single, cluster.nodes[1]), "--output", "json")
        assert back.code == 0, back.err
        assert_has_them(cluster)
