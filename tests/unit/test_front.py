"""The front: every rule of validation, the responses' shapes against botocore's model, and the
operations on the state (what a worker does with them is tested on real servers)."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest

import engine
from engine import errors, fleet
from engine.errors import (
    ApiFault,
    EngineError,
    Interrupted,
    InvalidParameterCombinationException,
    InvalidParameterValueException,
    InvalidReplicationGroupStateFault,
    ReplicationGroupAlreadyExistsFault,
    ReplicationGroupAlreadyUnderMigrationFault,
    ReplicationGroupNotFoundFault,
    ReplicationGroupNotUnderMigrationFault,
    TransferFailed,
    UsageError,
)
from engine.fleet import local
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.front import host_resolution, one_command_migration, operations, validate
from engine.front.blocking_engine import BlockingEngine
from engine.front.engine import Engine
from engine.front.faults_with_details import CompletionRefused, MigrationFailed
from engine.groups.claimed_transfer import ClaimedTransfer
from engine.groups.registry import Registry
from engine.groups.states import Request, TransferStatus
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint, Tls
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer.abort_without_engine import Abandoned
from tests.support.preflight import without_checks

SECRET = "correct-horse-battery"
TARGET = "redis://target.invalid:6379"
NODES = [{"Address": "192.0.2.1", "Port": 6379}]
HERE = ProcessId.here().worker
DEAD = ProcessId(2**22 + 1, 1, ProcessId.here().where, "here").worker


# --- Identifiers ---


@pytest.mark.parametrize("value", ["a", "A", "my-group", "a1-b2-c3", "x" * 40, "a-1"])
def test_identifiers(value: str) -> None:
    assert validate.identifier(value) == value.lower()


@pytest.mark.parametrize(
    "value",
    [
        "1a",
        "-a",
        "a-",
        "a--b",
        "a_b",
        "a.b",
        "a b",
        "é",
        "aé",
        "a\n",
        "a\x00",
        "a٣",
        "x" * 41,
        "x" * 1_000_000,
    ],
)
def test_identifiers_that_are_none(value: str) -> None:
    with pytest.raises(InvalidParameterValueException, match="is not a valid identifier") as caught:
        validate.identifier(value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["", None, 7, b"a", ["a"]])
def test_identifiers_that_are_missing(value: object) -> None:
    with pytest.raises(InvalidParameterValueException, match="must be provided"):
        validate.identifier(value)


# --- Endpoint lists ---


def nodes(value: object, *, cluster: bool = False) -> tuple[Endpoint, ...]:
    return validate.node_endpoints(value, cluster_enabled=cluster)


@pytest.mark.parametrize(
    ("item", "endpoint"),
    [
        ({"Address": "a", "Port": 1}, Endpoint("a", 1)),
        ({"Address": "a.b-c.example.com.", "Port": 65535}, Endpoint("a.b-c.example.com.", 65535)),
        ({"Address": "192.0.2.1", "Port": "6379"}, Endpoint("192.0.2.1", 6379)),
        ({"Address": "::1", "Port": 6379}, Endpoint("::1", 6379)),
        ({"Address": "[fe80::1]", "Port": 6379}, Endpoint("fe80::1", 6379)),
        (Endpoint("a", 7, tls=Tls()), Endpoint("a", 7, tls=Tls())),
        (Endpoint(unix_path="/s"), Endpoint(unix_path="/s")),
    ],
)
def test_endpoints(item: object, endpoint: Endpoint) -> None:
    assert nodes([item]) == (endpoint,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected a list"),
        ("a:1", "expected a list"),
        ({"Address": "a", "Port": 1}, "expected a list"),
        ([], "at least one endpoint"),
        (["a:1"], r"member\.1: expected an Address and a Port"),
        ([None], r"member\.1: expected an Address and a Port"),
        ([{"Address": "a"}], r"member\.1\.Port must be provided"),
        ([{"Port": 1}], r"member\.1\.Address must be provided"),
        ([{"Address": "", "Port": 1}], r"member\.1\.Address must be provided"),
        ([{"Address": "a", "Port": None}], r"member\.1\.Port must be provided"),
        ([{"Address": "a", "Port": 1, "Prot": 1}], "Unknown parameter .*'Prot'"),
        ([NODES[0], {"Address": "a b", "Port": 1}], r"member\.2\.Address: 'a b' is neither"),
        ([{"Address": "-a", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "fe80::1%$(x)", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "a..b", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "300.1.1.1", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "1.2.3", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "[::1", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "::g", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "x" * 254, "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": "redis://a", "Port": 1}], "is neither a host name nor an IP address"),
        ([{"Address": 7, "Port": 1}], "expected a host name or an IP address"),
        *(
            ([{"Address": "a", "Port": port}], "Port: must be between 1 and 65535")
            for port in (0, -1, 65536, "0", "x", "6379 ", "+1", "1e3", "٣", 6379.0, True, [1])
        ),
        (NODES * 2, "192.0.2.1:6379 more than once"),
        ([{"Address": "A", "Port": 1}, {"Address": "a", "Port": "1"}], "more than once"),
        ([NODES[0], {"Address": "a", "Port": 1}], "exactly one endpoint .* not 2"),
    ],
)
def test_endpoints_that_are_wrong(value: object, message: str) -> None:
    with pytest.raises(InvalidParameterValueException, match=message):
        nodes(value)


def test_several_nodes_of_a_cluster() -> None:
    """They are one endpoint; and each of them is compared with the target's."""
    (found,) = nodes([{"Address": "a", "Port": 1}, {"Address": "b", "Port": 2}], cluster=True)
    assert found.cluster is not None
    assert (found.address, found.cluster.seeds) == ("a:1,b:2", (("a", 1), ("b", 2)))
    assert Endpoint.parse(found.url).address == found.address
    (both,) = nodes([Endpoint.parse("redis://a:1,b:2"), Endpoint("c", 3)], cluster=True)
    assert both.address == "a:1,b:2,c:3"
    assert nodes([{"Address": "a", "Port": 1}], cluster=True) == (Endpoint("a", 1),)
    for other in (
        Endpoint(unix_path="/s"),
        Endpoint("b", 2, tls=Tls()),
        Endpoint("b", username="u"),
    ):
        with pytest.raises(InvalidParameterCombinationException):
            nodes([Endpoint("a", 1), other], cluster=True)
    with pytest.raises(InvalidParameterValueException, match="exactly one endpoint"):
        nodes([Endpoint("a", 1), Endpoint("b", 2)])
    with pytest.raises(InvalidParameterValueException, match="more than once"):
        nodes(NODES * 2, cluster=True)


def test_passwords_are_refused() -> None:
    for call in (
        lambda: nodes([Endpoint("a", password=SECRET)]),
        lambda: validate.primary_endpoint(f"redis://u:{SECRET}@a"),
        lambda: validate.primary_endpoint(Endpoint("a", password=SECRET)),
    ):
        with pytest.raises(InvalidParameterValueException, match="would be stored") as caught:
            call()
        assert "STARTMIGRATION_CREDENTIALS" in caught.value.remedy
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "must be provided"),
        (None, "expected a URL"),
        ("http://a", "http:// is not a known scheme"),
        ("redis://", "names no host"),
        ("redis://a:0", "port 0"),
        ("redis://a:x", "port is not a number"),
        ("redis://a/3", "names a database"),
        ("redis://a?b=c", "need rediss://"),
    ],
)
def test_primaries_that_are_wrong(value: object, message: str) -> None:
    with pytest.raises(InvalidParameterValueException, match=message):
        validate.primary_endpoint(value)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a:6379", "a:6379"),
        ("A:6379", "a:6379"),
        ("localhost:6379", "127.0.0.1:6379"),
        ("localhost:6379", "redis://[::1]:6379"),
        ("127.0.0.1:6379", "redis://[::1]:6379"),
        ("redis://[::ffff:127.0.0.1]:6379", "127.0.0.1:6379"),
        ("0.0.0.0:6379", "127.0.0.1:6379"),
        ("redis://[0:0:0:0:0:0:0:1]:6379", "redis://[::1]:6379"),
        ("unix:///tmp/../tmp/s", "unix:///tmp/s"),
    ],
)
async def test_a_source_that_is_its_own_target(source: str, target: str) -> None:
    one, other = Endpoint.parse(source), Endpoint.parse(target)
    found = await host_resolution.resolve([one, other])
    with pytest.raises(InvalidParameterValueException, match="cannot be migrated into itself"):
        validate.not_the_target([one], [Endpoint("other"), other], found)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("127.0.0.1:6379", "127.0.0.1:6380"),
        ("127.0.0.2:6379", "127.0.0.1:6379"),
        ("a.invalid", "b.invalid"),
        ("localhost:1", "unix:///tmp/s"),
    ],
)
async def test_a_source_that_is_another(source: str, target: str) -> None:
    one, other = Endpoint.parse(source), Endpoint.parse(target)
    validate.not_the_target([one], [other], await host_resolution.resolve([one, other]))


async def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    released, answered = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        assert released.wait(60)
        answered.set()
        return []

    monkeypatch.setattr(host_resolution, "RESOLVE_SECONDS", 0.05)
    monkeypatch.setattr(host_resolution.socket, "getaddrinfo", slow)
    assert await host_resolution.resolve([Endpoint("slow")]) == {Endpoint("slow"): set()}
    assert not answered.is_set()
    released.set()
    assert await asyncio.to_thread(answered.wait, 60)
    await asyncio.sleep(0)  # the late answer is dropped


@pytest.mark.parametrize("value", [0, 19, 101, -1, "100", None, True, 50.0])
def test_page_sizes(value: object) -> None:
    with pytest.raises(InvalidParameterValueException, match="between 20 and 100"):
        validate.page(value, None)


@pytest.mark.parametrize("value", ["", "no such marker", 7])
def test_markers(value: object) -> None:
    with pytest.raises(InvalidParameterValueException, match="Marker"):
        validate.page(100, value)


# --- Shapes, against the service model ---


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    loaded = botocore.loaders.Loader().load_service_model("elasticache", "service-2", "2015-02-02")
    assert loaded["metadata"]["apiVersion"] == "2015-02-02"
    return dict(loaded)


PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "timestamp": (datetime,),
}


def assert_shape(model: dict[str, Any], name: str, value: Any, ours: frozenset[str]) -> None:
    """Every member of `value` exists in the model's shape `name`, and has its type."""
    shape = model["shapes"][name]
    if shape["type"] == "structure":
        assert isinstance(value, dict)
        for member, inner in value.items():
            if member in ours:
                continue
            assert member in shape["members"], f"{name} has no {member}"
            assert_shape(model, shape["members"][member]["shape"], inner, ours)
    elif shape["type"] == "list":
        assert isinstance(value, list)
        for inner in value:
            assert_shape(model, shape["member"]["shape"], inner, ours)
    else:
        # Exactly: a StrEnum would show itself in a repr, and a bool is an int.
        assert type(value) in PYTHON_TYPES[shape["type"]], f"{name}: {value!r}"
        if isinstance(value, datetime):
            assert value.tzinfo is not None


def faults() -> list[type[ApiFault]]:
    found = [each for each in vars(errors).values() if inspect.isclass(each)]
    return [each for each in found if issubclass(each, ApiFault) and each is not ApiFault]


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.__name__)
def test_faults_are_the_models(model: dict[str, Any], fault: type[ApiFault]) -> None:
    error = model["shapes"][fault.__name__]["error"]
    assert (fault.code, fault.http_status) == (error["code"], error["httpStatusCode"])


def test_every_operation_may_raise_its_faults(model: dict[str, Any]) -> None:
    raised = {
        "StartMigration": {
            ReplicationGroupNotFoundFault,
            ReplicationGroupAlreadyUnderMigrationFault,
            InvalidReplicationGroupStateFault,
            InvalidParameterValueException,
            InvalidParameterCombinationException,
        },
        "CompleteMigration": {
            ReplicationGroupNotFoundFault,
            ReplicationGroupNotUnderMigrationFault,
            InvalidReplicationGroupStateFault,
            InvalidParameterValueException,
        },
        "DeleteReplicationGroup": {
            ReplicationGroupNotFoundFault,
            InvalidReplicationGroupStateFault,
            InvalidParameterValueException,
        },
        "DescribeReplicationGroups": {
            ReplicationGroupNotFoundFault,
            InvalidParameterValueException,
        },
    }
    raised["TestMigration"] = raised["StartMigration"]
    for operation, ours in raised.items():
        theirs = {each["shape"] for each in model["operations"][operation]["errors"]}
        assert {fault.__name__ for fault in ours} <= theirs


# --- The operations on the state ---


@pytest.fixture
async def services(
    state_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Engine, Registry]]:
    """An engine with the group "g" whose workers are this process: the fleet starts none."""
    monkeypatch.setattr(local, "launch", lambda *_, **__: os.getpid())
    without_checks(monkeypatch)
    face, registry = Engine(state_url, credentials=Credentials()), open_registry(state_url)
    await face.register_replication_group("g", TARGET, description="d")
    yield face, registry
    face.close()
    registry.store.close()


ServiceContext = tuple[Engine, Registry]


async def begun(services: ServiceContext) -> ClaimedTransfer:
    face, registry = services
    await face.start_migration("G", NODES)
    return registry.claim_transfer("g", HERE)


async def described(services: ServiceContext) -> dict[str, Any]:
    answer = await services[0].describe_replication_groups("g")
    (group,) = answer["ReplicationGroups"]
    return dict(group)


async def events(services: ServiceContext) -> list[str]:
    return [each["Message"] for each in (await services[0].describe_events("g"))["Events"]]


async def test_responses_have_the_models_shapes(
    services: ServiceContext, model: dict[str, Any]
) -> None:
    face, registry = services
    ours = frozenset({"Migration", "Checks"})
    await face.register_replication_group("unix", "unix:///s", cluster_enabled=True)
    await face.register_replication_group("tls", "rediss://u@h?verify=no")
    registered = await face.register_replication_group("h", TARGET)
    assert_shape(model, "StartMigrationResponse", registered, frozenset())
    started = await face.start_migration("g", NODES)
    assert_shape(model, "StartMigrationResponse", started, ours)
    registry.claim_transfer("g", HERE).beat(Progress(phase=Phase.COPIED, can_complete=True))
    completed = await face.complete_migration("g")
    assert_shape(model, "CompleteMigrationResponse", completed, ours)
    all_of_them = await face.describe_replication_groups()
    assert_shape(model, "ReplicationGroupMessage", all_of_them, ours)
    assert len(all_of_them["ReplicationGroups"]) == 4
    found = await face.describe_events()
    assert_shape(model, "EventsMessage", found, frozenset())
    types = model["shapes"]["SourceType"]["enum"]
    assert {each["SourceType"] for each in found["Events"]} <= set(types)
    deleted = await face.delete_replication_group("h")
    assert_shape(model, "DeleteReplicationGroupResult", deleted, frozenset())


async def test_what_a_group_says(services: ServiceContext) -> None:
    group = await described(services)
    assert group["ReplicationGroupId"] == "g"
    assert (group["Status"], group["Description"]) == ("available", "d")
    assert group["MemberClusters"] == ["g-001"]
    (shard,) = group["NodeGroups"]
    assert shard["PrimaryEndpoint"] == {"Address": "target.invalid", "Port": 6379}
    assert not group["ClusterEnabled"]
    assert "Migration" not in group
    # What nothing here does is off, and what is not known is absent.
    assert group["ARN"] == "arn:startmigration:elasticache:::replicationgroup:g"
    assert (group["ClusterMode"], group["AutomaticFailover"]) == ("disabled", "disabled")
    assert (group["MultiAZ"], group["SnapshotRetentionLimit"]) == ("disabled", 0)
    assert group["UserGroupIds"] == []
    for unknown in ("Engine", "NetworkType", "CacheNodeType", "TransitEncryptionMode"):
        assert unknown not in group


async def test_what_a_group_runs(services: ServiceContext) -> None:
    """As the registration says, until the target has told."""
    face, registry = services
    said = await face.register_replication_group("h", "10.0.0.1", engine="redis")
    assert said["ReplicationGroup"]["Engine"] == "redis"
    assert said["ReplicationGroup"]["NetworkType"] == "ipv4"
    registry.note_engine("h", "valkey")
    registry.note_engine("h", "valkey")
    listed = (await face.describe_replication_groups())["ReplicationGroups"]
    assert [each.get("Engine") for each in listed] == [None, "valkey"]
    await face.delete_replication_group("h")
    await face.register_replication_group("h", "10.0.0.1")
    assert "Engine" not in (await face.describe_replication_groups("h"))["ReplicationGroups"][0]


async def test_what_credentials_tell(state_url: str) -> None:
    known = Credentials.read([{"host": "a", "password": SECRET, "tls": True}], "test")
    face = Engine(state_url, credentials=known)
    answer = await face.register_replication_group("g", "a")
    assert answer["ReplicationGroup"]["AuthTokenEnabled"]
    assert answer["ReplicationGroup"]["TransitEncryptionEnabled"]
    answer = await face.register_replication_group("h", "b")
    assert not answer["ReplicationGroup"]["AuthTokenEnabled"]
    assert not answer["ReplicationGroup"]["TransitEncryptionEnabled"]
    face.close()


async def test_register_twice(services: ServiceContext) -> None:
    with pytest.raises(ReplicationGroupAlreadyExistsFault):
        await services[0].register_replication_group("G", TARGET)


CALLS: list[Callable[[Engine, str], Any]] = [
    lambda face, name: face.test_migration(name, NODES),
    lambda face, name: face.start_migration(name, NODES),
    lambda face, name: face.complete_migration(name),
    lambda face, name: face.complete_migration(name, force=True),
    lambda face, name: face.resume_migration(name),
    lambda face, name: face.describe_replication_groups(name),
    lambda face, name: face.delete_replication_group(name),
    lambda face, name: face.wait(name, until="copied"),
]


@pytest.mark.parametrize("call", CALLS)
async def test_names_that_are_unknown_or_wrong(
    services: ServiceContext, call: Callable[[Engine, str], Any]
) -> None:
    with pytest.raises(ReplicationGroupNotFoundFault, match="ReplicationGroup no not found"):
        await call(services[0], "No")
    with pytest.raises(InvalidParameterValueException):
        await call(services[0], "not a name")


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (CALLS[0], ReplicationGroupAlreadyUnderMigrationFault),
        (CALLS[1], ReplicationGroupAlreadyUnderMigrationFault),
        (CALLS[4], ReplicationGroupAlreadyUnderMigrationFault),
        (CALLS[6], InvalidReplicationGroupStateFault),
    ],
)
async def test_while_migrating(
    services: ServiceContext, call: Callable[[Engine, str], Any], fault: type[ApiFault]
) -> None:
    await begun(services)
    with pytest.raises(fault):
        await call(services[0], "g")


@pytest.mark.parametrize("call", [*CALLS[2:5], CALLS[7]])
async def test_while_not_migrating(
    services: ServiceContext, call: Callable[[Engine, str], Any]
) -> None:
    with pytest.raises(ReplicationGroupNotUnderMigrationFault):
        await call(services[0], "g")


async def test_validation_comes_before_the_state(services: ServiceContext) -> None:
    await begun(services)
    with pytest.raises(InvalidParameterValueException, match="at least one"):
        await services[0].start_migration("g", [])
    with pytest.raises(InvalidParameterValueException, match="into itself"):
        await services[0].start_migration("g", [{"Address": "TARGET.invalid", "Port": 6379}])


async def test_start_returns_at_once(services: ServiceContext) -> None:
    answer = await services[0].start_migration("g", NODES, settings=TransferSettings(match="a*"))
    group = answer["ReplicationGroup"]
    assert (group["Status"], group["NodeGroups"][0]["Status"]) == ("migrating", "migrating")
    assert group["Migration"] == {
        "Status": "pending",
        "Phase": "CONNECT",
        "SourceType": TransferSettings().source_type,
        "Keys": 0,
        "TotalKeys": None,
        "Bytes": 0,
        "KeysPerSecond": 0.0,
        "EtaSeconds": None,
        "LagBytes": None,
        "LagSeconds": None,
        "AppliedOffset": None,
        "SourceOffset": None,
        "SourceLink": None,
        "SourceHeardSeconds": None,
        "TargetHeardSeconds": None,
        "Counters": {
            "Commands": 0,
            "PartialSyncs": 0,
            "FullSyncs": 0,
            "RepairedKeys": 0,
            "HeldKeys": 0,
            "SpoolBytes": 0,
            "NotCarried": 0,
            "EvictedKeys": None,
            "Retries": 0,
            "Reconnects": 0,
            "RebuiltKeys": 0,
            "ProvenKeys": None,
            "KeysToProve": None,
        },
        "Rate": None,
        "Paused": None,
        "Throttled": None,
        "CanComplete": False,
        "Reason": "",
        "Workers": [{"Shard": "0001", "Pid": os.getpid(), "Phase": "CONNECT"}],
        "Report": None,
    }


async def test_a_worker_that_cannot_be_started(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise EngineError("no worker process could be started: No space")

    monkeypatch.setattr(local, "launch", broken)
    with pytest.raises(EngineError, match="No space"):
        await services[0].start_migration("g", NODES)
    assert (await described(services))["Status"] == "available"
    assert (await events(services))[-1] == (
        "migration failed: no worker process could be started: No space"
    )


async def test_complete_is_refused_until_copied(services: ServiceContext) -> None:
    face, _ = services
    claimed = await begun(services)
    claimed.beat(Progress(phase=Phase.SNAPSHOT, keys=3, total_keys=9))
    with pytest.raises(
        InvalidReplicationGroupStateFault, match=r"not in sync yet \(SNAPSHOT, 3 of about 9 keys\)"
    ):
        await face.complete_migration("g")
    assert (await described(services))["Status"] == "migrating"
    assert (await events(services))[-1].startswith("completion refused: not in sync yet")
    assert claimed.read_request() is Request.NONE
    claimed.beat(Progress(phase=Phase.CUT_OVER))
    with pytest.raises(InvalidReplicationGroupStateFault, match="a cut-over is under way"):
        await face.complete_migration("g")


FOLLOWING = Progress(
    phase=Phase.FOLLOW,
    source_type="replica",
    keys=9,
    total_keys=9,
    lag_bytes=18_000_000,
    lag_seconds=2.5,
    applied_offset=100,
    source_offset=18_000_100,
    commands=7,
    spool_bytes=6,
    partial_syncs=1,
    full_syncs=2,
    repaired_keys=3,
    held_keys=4,
    reason="lag 18 MB > 1 MB",
)


async def test_what_a_followed_source_says(services: ServiceContext) -> None:
    face, _ = services
    await face.start_migration("g", NODES, settings=TransferSettings(source_type="auto"))
    assert (await described(services))["Migration"]["SourceType"] == "auto"
    services[1].claim_transfer("g", HERE).beat(FOLLOWING)
    migration = (await described(services))["Migration"]
    assert (migration["Phase"], migration["SourceType"]) == ("FOLLOW", "replica")
    assert (migration["LagBytes"], migration["LagSeconds"]) == (18_000_000, 2.5)
    assert (migration["AppliedOffset"], migration["SourceOffset"]) == (100, 18_000_100)
    assert (migration["CanComplete"], migration["Reason"]) == (False, "lag 18 MB > 1 MB")
    assert migration["Counters"] == {
        "Commands": 7,
        "PartialSyncs": 1,
        "FullSyncs": 2,
        "RepairedKeys": 3,
        "HeldKeys": 4,
        "SpoolBytes": 6,
        "NotCarried": 0,
        "EvictedKeys": None,
        "Retries": 0,
        "Reconnects": 0,
        "RebuiltKeys": 0,
        "ProvenKeys": None,
        "KeysToProve": None,
    }


async def test_complete_is_refused_until_in_sync(services: ServiceContext) -> None:
    face, _ = services
    claimed = await begun(services)
    claimed.beat(FOLLOWING)
    with pytest.raises(CompletionRefused, match="of g: lag 18 MB > 1 MB") as caught:
        await face.complete_migration("g")
    assert caught.value.reason == "lag 18 MB > 1 MB"
    assert caught.value.code == "InvalidReplicationGroupState"
    assert (await events(services))[-1] == "completion refused: lag 18 MB > 1 MB"
    waiting = asyncio.create_task(face.wait("g", until="in-sync", poll=0.02))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    in_sync = replace(FOLLOWING, lag_bytes=0, can_complete=True, reason="in sync")
    claimed.beat(in_sync)
    assert await waiting == in_sync
    assert await face.wait("g", until="copied") == in_sync
    await face.complete_migration("g")
    assert claimed.read_request() is Request.COMPLETE


async def test_the_end_by_force_of_a_followed_source(services: ServiceContext) -> None:
    face, registry = services
    await face.start_migration("g", NODES)
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET worker = ?", (json.dumps(DEAD.to_dict()),))
    registry.claim_transfer("g", DEAD).beat(FOLLOWING)
    await face.complete_migration("g", force=True)
    report = await face.wait("g", until="available")
    assert isinstance(report, Report)
    assert (report.source_type, report.commands, report.repaired_keys) == ("replica", 7, 3)
    standing = "after 9 of about 9 keys, with a lag of 18,000,000 bytes"
    unknown = "it is not known whether the source accepts writes: it could not be asked"
    assert report.errors[0].endswith(f"{standing}; {unknown}")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "migration aborted by force, without a worker and not cut over, after 9 of about"),
        ({"promoting": "x"}, "migration aborted by force, without a worker, while the target was"),
        (
            {"opened": True},
            "migration ended by force, without a worker, after the target was promoted",
        ),
    ],
)
async def test_force_says_whether_the_target_is_open(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch, members: dict[str, Any], words: str
) -> None:
    async def nothing_left(*_: object) -> Abandoned:
        return Abandoned([])

    monkeypatch.setattr(fleet, "abandon", nothing_left)
    face, registry = services
    await face.start_migration("g", NODES)
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET worker = ?", (json.dumps(DEAD.to_dict()),))
    claimed = registry.claim_transfer("g", DEAD)
    claimed.beat(FOLLOWING)
    claimed.save_checkpoint(Checkpoint(OnlineCheckpoint("t", begun=True, **members), "a"))
    await face.complete_migration("g", force=True)
    assert (await events(services))[-1].startswith(words)


async def test_complete(services: ServiceContext) -> None:
    face, _ = services
    claimed = await begun(services)
    claimed.beat(Progress(phase=Phase.COPIED, can_complete=True, reason="copied"))
    answer = await face.complete_migration("g")
    assert answer["ReplicationGroup"]["Status"] == "migrating"
    assert claimed.read_request() is Request.COMPLETE
    # The worker's gate refuses: whoever waits is told, and may ask again.
    claimed.refuse("1 key differs")
    with pytest.raises(TransferFailed, match="cut-over refused: 1 key differs; g stays"):
        await face.wait("g", until="available")
    reason = "copied (last cut-over refused: 1 key differs)"
    assert (await described(services))["Migration"]["Reason"] == reason
    await face.complete_migration("g")
    assert (await described(services))["Migration"]["Reason"] == "copied"


async def test_a_cut_over_without_the_comparison(services: ServiceContext) -> None:
    face, _ = services
    claimed = await begun(services)
    # It leaves out the comparison alone: what is not in sync is refused as ever.
    with pytest.raises(CompletionRefused, match="not in sync yet"):
        await face.complete_migration("g", skip_verification=True)
    claimed.beat(Progress(phase=Phase.COPIED, can_complete=True, reason="copied"))
    with pytest.raises(InvalidParameterCombinationException, match="Force aborts"):
        await face.complete_migration("g", force=True, skip_verification=True)
    await face.complete_migration("g", skip_verification=True)
    assert claimed.read_request() is Request.COMPLETE_UNVERIFIED
    assert (await events(services))[-1] == "completion without the comparison requested"


async def test_force_with_a_worker(services: ServiceContext) -> None:
    claimed = await begun(services)
    await services[0].complete_migration("g", force=True)
    assert claimed.read_request() is Request.FORCE
    assert (await described(services))["Status"] == "migrating"


async def test_a_dead_worker(services: ServiceContext) -> None:
    face, registry = services
    await face.start_migration("g", NODES)
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET worker = ?", (json.dumps(DEAD.to_dict()),))
    registry.claim_transfer("g", DEAD).beat(
        Progress(phase=Phase.COPIED, can_complete=True, keys=5, total_keys=9)
    )
    gone = (
        f"the worker process ({DEAD.words}) is gone: resume with resume-migration, or abort with "
        "complete-migration --force (no cut-over: the source accepts writes, the target stays as "
        "it is)"
    )
    migration = (await described(services))["Migration"]
    assert migration["Reason"] == gone
    assert not migration["CanComplete"]
    assert migration["Workers"] == []
    with pytest.raises(InvalidReplicationGroupStateFault, match="is gone"):
        await face.complete_migration("g")
    for until in ("copied", "available"):
        with pytest.raises(TransferFailed, match="is gone"):
            await face.wait("g", until=until)  # type: ignore[arg-type]
    answer = await face.complete_migration("g", force=True)
    assert answer["ReplicationGroup"]["Status"] == "available"
    # It stays readable.
    ended = answer["ReplicationGroup"]["Migration"]
    assert (ended["Status"], ended["CanComplete"], ended["Workers"]) == ("forced", False, [])
    assert ended["Reason"] == ended["Report"]["Errors"][0]
    assert ended["Reason"].startswith("aborted by force, without a worker")
    assert (await events(services))[-1] == (
        "migration aborted by force, without a worker and not cut over, after 5 of about 9 keys; "
        "it is not known whether the source accepts writes: it could not be asked"
    )
    report = await face.wait("g", until="available")
    assert isinstance(report, Report)
    assert report.status == "stopped"


async def test_a_dead_worker_is_replaced(services: ServiceContext) -> None:
    face, registry = services
    await face.start_migration("g", NODES)
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET worker = ?", (json.dumps(DEAD.to_dict()),))
    answer = await face.resume_migration("g")
    assert answer["ReplicationGroup"]["Migration"]["Workers"][0]["Pid"] == os.getpid()
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault):
        await face.resume_migration("g")


async def test_wait(services: ServiceContext) -> None:
    face, _ = services
    claimed = await begun(services)
    seen: list[Progress] = []
    with pytest.raises(EngineError, match=r"still in CONNECT after 0\.1 s"):
        await face.wait("g", until="copied", timeout=0.1, poll=0.02, on_progress=seen.append)
    assert seen == [Progress()]
    waiting = asyncio.create_task(face.wait("g", until="copied", poll=0.02))
    copied = Progress(phase=Phase.COPIED, can_complete=True)
    claimed.beat(copied)
    assert await waiting == copied
    waiting = asyncio.create_task(face.wait("g", until="available", poll=0.02))
    await asyncio.sleep(0.05)
    report = Report("done", keys=9)
    claimed.finish(TransferStatus.DONE, report, copied, "completed")
    assert await waiting == report
    assert await face.wait("g", until="copied") == report


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("3 keys were not migrated", "3 keys were not migrated. Correct that. Then resume with "),
        ("it is full. Give it more memory.", "it is full. Give it more memory. Then resume with "),
    ],
)
async def test_the_reason_of_one_that_has_stopped(
    services: ServiceContext, why: str, told: str
) -> None:
    claimed = await begun(services)
    report = Report("stopped", errors=(why,))
    claimed.finish(TransferStatus.STOPPED, report, Progress(phase=Phase.STOPPED), "stopped")
    assert (await described(services))["Migration"]["Reason"].startswith(f"stopped: {told}")


async def test_wait_for_one_that_ends_badly(services: ServiceContext) -> None:
    face, _ = services
    claimed = await begun(services)
    stopped = Progress(phase=Phase.STOPPED)
    claimed.finish(TransferStatus.STOPPED, Report("stopped"), stopped, "stopped")
    with pytest.raises(Interrupted, match="resume with resume-migration"):
        await face.wait("g", until="copied")
    assert (await described(services))["Migration"]["Reason"].startswith("stopped: resume")
    await face.resume_migration("g")
    claimed = services[1].claim_transfer("g", HERE)
    report = Report("failed", errors=("the target is full",))
    claimed.finish(TransferStatus.FAILED, report, stopped, "failed")
    with pytest.raises(MigrationFailed, match="failed: the target is full") as caught:
        await face.wait("g", until="available")
    assert caught.value.report == report


async def test_pages(services: ServiceContext) -> None:
    face, _ = services
    for number in range(44):
        await face.register_replication_group(f"h{number:02}", TARGET)
    seen: list[str] = []
    marker, sizes = None, []
    while True:
        page = await face.describe_replication_groups(max_records=20, marker=marker)
        sizes.append(len(page["ReplicationGroups"]))
        seen += [group["ReplicationGroupId"] for group in page["ReplicationGroups"]]
        marker = page.get("Marker")
        if marker is None:
            break
    assert sizes == [20, 20, 5]
    assert seen == ["g", *(f"h{number:02}" for number in range(44))]


async def test_no_password_in_the_state(state_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through every way in; the files are looked at byte by byte."""
    monkeypatch.setattr(local, "launch", lambda *_, **__: os.getpid())
    known = Credentials.read([{"host": "*", "username": "u", "password": SECRET}], "test")
    face = Engine(state_url, credentials=known)
    with pytest.raises(InvalidParameterValueException):
        await face.register_replication_group("g", f"redis://:{SECRET}@h")
    await face.register_replication_group("g", TARGET)
    with pytest.raises(InvalidParameterValueException):
        await face.start_migration("g", [Endpoint("192.0.2.1", password=SECRET)])
    with monkeypatch.context() as patched:
        without_checks(patched)
        await face.start_migration("g", NODES)
    closed = [Endpoint("127.0.0.1", port, password=SECRET) for port in (1, 2)]
    with pytest.raises(InvalidParameterValueException) as caught:
        await face.migrate(*closed, settings=TransferSettings(connect_timeout=1.0))
    assert SECRET not in str(caught.value)
    face.close()
    folder = Path(state_url.removeprefix("sqlite:///")).parent
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        assert SECRET.encode() not in file.read_bytes()


# --- In one go ---


def test_the_default_name() -> None:
    name = one_command_migration.default_id(Endpoint("H", password=SECRET))
    assert name == one_command_migration.default_id(Endpoint("h", username="u"))
    assert name != one_command_migration.default_id(Endpoint("h", 6380))
    assert validate.identifier(name) == name
    assert len(name) == len("migrate-") + 12


async def test_one_go_meets_another(services: ServiceContext) -> None:
    face, registry = services
    source, target = Endpoint("192.0.2.1"), Endpoint.parse(TARGET)
    with pytest.raises(InvalidParameterValueException, match=r"g is target\.invalid:6379, not"):
        await face.migrate(source, Endpoint("other.invalid"), replication_group_id="g")
    claimed = await begun(services)
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault, match=f"process {os.getpid()}"):
        await face.migrate(source, target, replication_group_id="g")
    claimed.finish(TransferStatus.STOPPED, Report("stopped"), Progress(), "stopped")
    for other, settings in (
        (Endpoint("192.0.2.2"), TransferSettings()),
        (source, TransferSettings(match="a*")),
    ):
        with pytest.raises(InvalidReplicationGroupStateFault, match="other settings") as caught:
            await face.migrate(other, target, settings=settings, replication_group_id="g")
        assert "complete-migration --force" in caught.value.remedy
    assert registry.get("g")[0].status == "migrating"


async def test_one_go_into_itself(state_url: str) -> None:
    face = Engine(state_url)
    with pytest.raises(InvalidParameterValueException, match="into itself"):
        await face.migrate(Endpoint("localhost"), Endpoint("127.0.0.1"))
    face.close()


# --- The library's face ---


def test_the_sync_face(state_url: str) -> None:
    face = Engine(state_url, credentials=Credentials())
    answer = face.sync.register_replication_group("g", TARGET)
    assert answer["ReplicationGroup"]["ReplicationGroupId"] == "g"
    with pytest.raises(ReplicationGroupNotFoundFault):
        face.sync.describe_replication_groups("no")
    face.close()


async def test_the_sync_face_within_a_loop(state_url: str) -> None:
    with pytest.raises(UsageError, match="Await"):
        Engine(state_url).sync.describe_events()


def test_the_sync_face_is_complete() -> None:
    operations = {
        name for name, member in vars(Engine).items() if inspect.iscoroutinefunction(member)
    }
    assert operations == {name for name in vars(BlockingEngine) if not name.startswith("_")}


def test_the_package_names_what_it_exports() -> None:
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = engine.nonsense


def test_importing_the_package_costs_nothing() -> None:
    """Not the database, not the core, not redis-py: only what is used."""
    heavy = ("sqlalchemy", "redis", "uvloop", "engine._native", "engine.transfer")
    code = f"""
import sys
import engine
from engine import Endpoint, Engine, TransferSettings
Engine("/nonexistent/state.db")
print([name for name in {heavy!r} if name in sys.modules])
"""
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's own configuration is no part of a test."""
    for name in ("STARTMIGRATION_CONFIG", "STARTMIGRATION_CREDENTIALS", "STARTMIGRATION_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


# --- What leaves nothing behind ---


def broken_config(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    monkeypatch.setenv("STARTMIGRATION_CONFIG", str(path))
    monkeypatch.delenv("STARTMIGRATION_CREDENTIALS", raising=False)
    return path


def is_there(state_url: str) -> bool:
    return Path(state_url.removeprefix("sqlite:///")).exists()


async def test_a_registration_that_fails_makes_no_group(
    state_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_config(monkeypatch, tmp_path, "[[credentials]]\nhost = 'a'\npasword = 'x'\n")
    face = Engine(state_url)
    with pytest.raises(UsageError, match="credentials entry 1: unknown key 'pasword'"):
        await face.register_replication_group("g", TARGET)
    monkeypatch.setenv("STARTMIGRATION_CONFIG", os.devnull)
    assert (await face.describe_replication_groups())["ReplicationGroups"] == []
    await face.register_replication_group("g", TARGET)
    face.close()


async def test_a_refused_migrate_leaves_no_group(state_url: str) -> None:
    face = Engine(state_url, credentials=Credentials())
    ends = (Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2))
    with pytest.raises(InvalidParameterValueException, match="source-reachable"):
        await face.migrate(*ends, settings=TransferSettings(connect_timeout=1.0))
    assert not is_there(state_url)
    await face.register_replication_group("other", TARGET)
    with pytest.raises(InvalidParameterValueException, match="source-reachable"):
        await face.migrate(*ends, settings=TransferSettings(connect_timeout=1.0))
    groups = (await face.describe_replication_groups())["ReplicationGroups"]
    assert [each["ReplicationGroupId"] for each in groups] == ["other"]
    face.close()


async def test_whoever_only_asks_makes_no_state(state_url: str) -> None:
    face = Engine(state_url, credentials=Credentials())
    assert await face.describe_replication_groups() == {"ReplicationGroups": []}
    assert await face.describe_events() == {"Events": []}
    with pytest.raises(ReplicationGroupNotFoundFault):
        await face.delete_replication_group("g")
    with pytest.raises(ReplicationGroupNotFoundFault):
        await face.start_migration("g", NODES)
    assert not is_there(state_url)
    face.close()


async def test_credentials_that_are_for_another_port(state_url: str) -> None:
    """Nobody is asked for a password here, so the hint is looked at by itself."""
    known = Credentials.read([{"host": "10.0.0.*", "password": SECRET}], "test")
    assert known.other_port(Endpoint("10.0.0.7", 6380)) == "10.0.0.*"
    assert known.other_port(Endpoint("10.0.0.7")) is None
    assert known.other_port(Endpoint("10.1.0.7", 6380)) is None
    checks = [{"name": "source-auth", "outcome": "fail", "figure": "no password.", "remedy": ""}]
    operations._name_other_port(checks, "source-auth", "10.0.0.*")
    assert operations.listed(checks[0]) == (
        "source-auth: no password → The credentials for host '10.0.0.*' are for another port "
        "(without one: 6379). Write the port there too, or :* for every port of the host"
    )
