"""The Query protocol: forms in, documents out, and nothing but documented errors."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import weakref
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.parsers import QueryParser
from botocore.serialize import QuerySerializer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benches.support.api import Answer, ask
from engine import errors, fleet
from engine.errors import ApiFault
from engine.fleet import local
from engine.front.engine import Engine
from engine.front.http import actions, answer_cache, client_limits, common_errors, query, xml
from engine.front.http.app import Api
from engine.front.http.authentication import Authenticator
from engine.front.http.botocore_model import API_VERSION, model
from engine.model.credentials import Credentials
from engine.transfer.checks.check_result import Preflight

SERVICE = ServiceModel(Loader().load_service_model("elasticache", "service-2"))
FORM = ("content-type", "application/x-www-form-urlencoded; charset=utf-8")
HERE = (("host", "127.0.0.1:8321"), FORM)
VERSION = f"&Version={API_VERSION}"
DOCUMENTED = {
    fault.code: fault.http_status
    for module in (errors, common_errors)
    for fault in vars(module).values()
    if isinstance(fault, type) and issubclass(fault, ApiFault)
}


@pytest.fixture
def api(state_url: str) -> Iterator[Api]:
    """The application, on a state of its own, without authentication."""
    engine = Engine(state_url, credentials=Credentials())
    yield Api(engine, Authenticator(None))
    engine.close()


async def call(api: Api, action: str, **parameters: str) -> Answer:
    form = urlencode({"Action": action, "Version": API_VERSION, **parameters})
    return await ask(api.app, form.encode(), headers=HERE)


def read(form: bytes | str, action: str) -> dict[str, Any]:
    text = form.encode() if isinstance(form, str) else form
    shape = model().shape(model().operations[action].takes)
    return query.read(query.single(query.pairs(text)), shape, model())


# What a client writes is what we read.

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
        lambda c: c >= " " or c in "\t\n\r"
    ),
    max_size=12,
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "ReplicationGroupId": TEXT,
        "ReplicationGroupDescription": TEXT,
        "Port": st.integers(-(1 << 31), (1 << 31) - 1),
        "AutomaticFailoverEnabled": st.booleans(),
        "CacheSecurityGroupNames": st.lists(TEXT, max_size=12),
        "SecurityGroupIds": st.lists(TEXT, max_size=3),
        "Tags": st.lists(st.fixed_dictionaries({"Key": TEXT, "Value": TEXT}), max_size=3),
        "NodeGroupConfiguration": st.lists(
            st.fixed_dictionaries(
                {"Slots": TEXT, "ReplicaCount": st.integers(0, 5)},
                optional={"ReplicaAvailabilityZones": st.lists(TEXT, min_size=1, max_size=3)},
            ),
            max_size=3,
        ),
    },
)


@settings(max_examples=200)
@given(PARAMETERS)
def test_what_botocore_writes_is_read(parameters: dict[str, Any]) -> None:
    operation = SERVICE.operation_model("CreateReplicationGroup")
    given = {"ReplicationGroupId": "a", "ReplicationGroupDescription": "b", **parameters}
    body = QuerySerializer().serialize_to_request(given, operation)["body"]
    form = urlencode({n: v for n, v in body.items() if n not in ("Action", "Version")})
    assert read(form, "CreateReplicationGroup") == given


def test_both_spellings_of_a_list_are_read() -> None:
    nodes = [{"Address": "a", "Port": 1}, {"Address": "b", "Port": 2}]
    form = "&".join(
        f"CustomerNodeEndpointList.member.{n}.{name}={value}"
        for n, node in enumerate(nodes, 1)
        for name, value in node.items()
    )
    assert read(form, "StartMigration") == {"CustomerNodeEndpointList": nodes}
    given = "ReplicationGroupId=a&ReplicationGroupDescription=b"
    for item in ("member", "SecurityGroupId"):
        found = read(f"{given}&SecurityGroupIds.{item}.1=x", "CreateReplicationGroup")
        assert found["SecurityGroupIds"] == ["x"]
    assert read("CustomerNodeEndpointList=", "StartMigration")["CustomerNodeEndpointList"] == []


def test_items_come_in_the_order_of_their_indices() -> None:
    order = [10, 2, 1, 9, 3, 8, 4, 7, 5, 6]
    form = "&".join(f"CustomerNodeEndpointList.member.{n}.Port={n}" for n in order)
    found = read(form, "StartMigration")["CustomerNodeEndpointList"]
    assert [each["Port"] for each in found] == list(range(1, 11))


LIST = "CustomerNodeEndpointList"


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        (f"{LIST}.member.1.Port=1&{LIST}.member.3.Port=3", "InvalidQueryParameter"),
        (f"{LIST}.member.2.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.0.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.01.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.-1.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.99999.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.x.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member..Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.\u0661.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.1=1", "InvalidQueryParameter"),
        (f"{LIST}.member=1", "InvalidQueryParameter"),
        (f"{LIST}.member.1.Port=1&{LIST}.member=1", "InvalidQueryParameter"),
        (f"{LIST}.1.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.items.1.Port=1", "InvalidQueryParameter"),
        (f"{LIST}=x", "InvalidQueryParameter"),
        (f"{LIST}=&{LIST}.member.1.Port=1", "InvalidQueryParameter"),
        (f"{LIST}.member.1.Port.x=1", "InvalidQueryParameter"),
        (f"{LIST}.member.1.Port=1&{LIST}.member.1.Port.x=1", "InvalidQueryParameter"),
        (f"{LIST}.member.1.Password=x", "InvalidQueryParameter"),
        (f"{LIST}.member.1.Port=x", "InvalidParameterValue"),
        (f"{LIST}.member.1.Port=1.5", "InvalidParameterValue"),
        (f"{LIST}.member.1.Port=", "InvalidParameterValue"),
        (f"{LIST}.member.1.Port=4294967296", "InvalidParameterValue"),
        (f"{LIST}.member.1.Port={'9' * 5000}", "InvalidParameterValue"),
        (f"{LIST}.member.1.Port=\u0661", "InvalidParameterValue"),
        ("AutoCutover=yes", "InvalidParameterValue"),
        ("AutoCutover=", "InvalidParameterValue"),
        ("ReplicationGroupId=a%00b", "InvalidParameterValue"),
        ("ReplicationGroupId=%1f", "InvalidParameterValue"),
        ("ReplicationGroupId=%EF%BF%BE", "InvalidParameterValue"),
        ("replicationGroupId=a", "InvalidQueryParameter"),
        ("Nonsense=a", "InvalidQueryParameter"),
        ("=a", "InvalidQueryParameter"),
        ("ReplicationGroupId=a&ReplicationGroupId=a", "MalformedQueryString"),
        ("ReplicationGroupId=a&Replication%47roupId=b", "MalformedQueryString"),
        ("ReplicationGroupId=%ff", "MalformedQueryString"),
        ("ReplicationGroupId=%ED%A0%80", "MalformedQueryString"),
        (b"ReplicationGroupId=\xff\xfe", "MalformedQueryString"),
        ("ReplicationGroupId=%", "MalformedQueryString"),
        ("ReplicationGroupId=%4", "MalformedQueryString"),
        ("ReplicationGroupId=%zz", "MalformedQueryString"),
        ("&".join(f"a{n}=1" for n in range(501)), "ValidationError"),
    ],
)
def test_what_cannot_be_read(form: str | bytes, fault: str) -> None:
    text = form.encode() if isinstance(form, str) else form
    with pytest.raises(ApiFault) as caught:
        read(text, "StartMigration")
    assert caught.value.code == fault
    assert len(str(caught.value)) < 300


def test_a_parameter_that_is_missing() -> None:
    with pytest.raises(common_errors.MissingParameter, match="CustomerNodeEndpointList"):
        read("ReplicationGroupId=a", "TestMigration")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2017-03-30T07:03:49.555Z", datetime(2017, 3, 30, 7, 3, 49, 555000, UTC)),
        ("2017-03-30T07:03:49Z", datetime(2017, 3, 30, 7, 3, 49, 0, UTC)),
        ("2017-03-30T09:03:49+02:00", datetime(2017, 3, 30, 7, 3, 49, 0, UTC)),
        ("2017-03-30T07:03:49", datetime(2017, 3, 30, 7, 3, 49, 0, UTC)),
        ("2017-03-30", datetime(2017, 3, 30, 0, 0, 0, 0, UTC)),
        ("2017-13-30T07:03:49Z", None),
        ("2017-03-30T25:03:49Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("now", None),
        ("1490857429", None),
        ("", None),
    ],
)
def test_times(text: str, expected: datetime | None) -> None:
    form = f"StartTime={quote(text, safe='')}"
    if expected is None:
        with pytest.raises(errors.InvalidParameterValueException, match="must be a time"):
            read(form, "DescribeEvents")
    else:
        assert read(form, "DescribeEvents") == {"StartTime": expected}


# What we write is what a client reads.


def parsed(operation: str, body: dict[str, Any]) -> dict[str, Any]:
    """An answer of ours, as botocore reads it."""
    shape = SERVICE.operation_model(operation).output_shape
    document = xml.response(model().operations[operation], body, "an-id", model())
    response = {"body": document, "headers": {}, "status_code": 200}
    found: dict[str, Any] = QueryParser().parse(response, shape)
    assert found.pop("ResponseMetadata")["RequestId"] == "an-id"
    return found


@settings(max_examples=200)
@given(TEXT, st.floats(0, 100), st.booleans(), st.integers(0, 65535))
def test_what_we_write_is_read_by_botocore(
    text: str, percent: float, flag: bool, port: int
) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    group = {
        "ReplicationGroupId": "g",
        "Description": text,
        "PendingModifiedValues": {"Resharding": {"SlotMigration": {"ProgressPercentage": percent}}},
        "MemberClusters": ["a", text],
        "NodeGroups": [{"PrimaryEndpoint": {"Address": text, "Port": port}}],
        "ClusterEnabled": flag,
        "ReplicationGroupCreateTime": at,
    }
    ours = {"Migration": {"Phase": text, "Lag": None, "Workers": [{"Pid": 1}, {"Pid": 2}]}}
    found = parsed(
        "DescribeReplicationGroups", {"Marker": None, "ReplicationGroups": [{**group, **ours}]}
    )
    assert found == {"ReplicationGroups": [group]}


def test_our_own_members_are_there_for_those_who_look() -> None:
    group = {"ReplicationGroupId": "g", "Migration": {"Workers": [{"Pid": 1}], "CanComplete": True}}
    document = xml.response(
        model().operations["StartMigration"], {"ReplicationGroup": group}, "id", model()
    )
    root = ElementTree.fromstring(document)
    ours = {"m": model().namespace}
    assert root.findtext(".//m:Migration/m:Workers/m:member/m:Pid", None, ours) == "1"
    assert root.findtext(".//m:Migration/m:CanComplete", None, ours) == "true"


@given(st.text())
def test_any_text_makes_a_document(text: str) -> None:
    document = xml.error("Code", text, sender=True, request_id="id", namespace="urn:x")
    message = ElementTree.fromstring(document).findtext("{urn:x}Error/{urn:x}Message")
    assert (message or "") == "".join("\ufffd" if xml._NOT_XML.match(c) else c for c in text)


# Through the application.


async def test_the_common_errors(api: Api) -> None:
    async def code(form: str, **more: Any) -> str:
        answer = await ask(api.app, form.encode(), **{"headers": HERE, **more})
        assert answer.status == DOCUMENTED[answer.code]
        assert answer.headers["x-amzn-requestid"] == answer.xml.findtext(
            f"{{{model().namespace}}}RequestId"
        )
        return answer.code

    assert await code("") == "MissingAction"
    assert await code("Action=") == "MissingAction"
    assert await code("Action=DescribeEvents") == "MissingParameter"
    assert await code("Action=DescribeEvents&Version=2014-09-30") == "InvalidAction"
    assert await code(f"Action=RebootEverything{VERSION}") == "InvalidAction"
    assert await code(f"Action=DescribeSnapshots{VERSION}") == "InvalidAction"
    assert await code(f"Action=%3Cx%3E{VERSION}") == "InvalidAction"
    assert await code(f"Action=DescribeEvents{VERSION}&x=1") == "InvalidQueryParameter"
    assert await code("", path="/other") == "MalformedQueryString"
    assert await code("", path="/watch/", method="GET") == "MalformedQueryString"
    assert await code("", method="PUT") == "InvalidAction"
    described = f"Action=DescribeEvents{VERSION}".encode()
    assert await code("", method="HEAD", query=described) == "InvalidAction"
    assert await code("x", headers=[*HERE[:1], ("content-type", "application/json")]) == (
        "MalformedQueryString"
    )
    away = {"headers": [("host", "evil.example.com:8321"), FORM]}
    assert await code(f"Action=DescribeEvents{VERSION}", **away) == "AccessDenied"
    page = {"headers": [*HERE, ("origin", "https://evil.example.com")]}
    assert await code(f"Action=DescribeEvents{VERSION}", **page) == "AccessDenied"


async def test_a_link_that_a_browser_is_sent_to_asks_for_nothing(api: Api) -> None:
    """A mail's link has no origin; without authentication it would be done as it is opened."""
    form = f"Action=DescribeEvents{VERSION}".encode()
    for mode, code in (("navigate", "AccessDenied"), ("cors", "")):
        headers = [*HERE, ("sec-fetch-site", "none"), ("sec-fetch-mode", mode)]
        answer = await ask(api.app, method="GET", query=form, headers=headers)
        assert answer.code == code


async def test_get_and_post_are_the_same(api: Api) -> None:
    form = f"Action=DescribeEvents{VERSION}&SourceType=replication-group".encode()
    for answer in (
        await ask(api.app, form, headers=HERE),
        await ask(api.app, form, headers=HERE, pieces=len(form)),
        await ask(api.app, b"", method="GET", query=form, headers=HERE),
        await ask(api.app, form[:21], query=form[22:], headers=HERE),
    ):
        assert (answer.status, answer.code) == (200, "")
        assert answer.headers["content-type"] == "text/xml; charset=utf-8"
    both = await ask(api.app, form, query=form, headers=HERE)
    assert both.code == "MalformedQueryString"


async def test_what_is_too_long_is_refused_before_it_is_read(api: Api) -> None:
    for length in (f"{10 << 20}", f"{1 << 70}"):
        answer = await ask(api.app, b"", headers=[*HERE, ("content-length", length)])
        assert answer.code == "ValidationError"
    body = b"a=" + b"b" * client_limits.BODY_MOST
    answer = await ask(api.app, body, headers=HERE, pieces=64)
    assert answer.code == "ValidationError"
    answer = await ask(api.app, b"", method="GET", query=body, headers=HERE)
    assert answer.code == "MalformedQueryString"


async def test_a_body_that_does_not_come(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "BODY_SECONDS", 0.05)

    async def never() -> dict[str, Any]:
        await asyncio.sleep(10)
        raise AssertionError

    with pytest.raises(common_errors.ValidationError, match="did not arrive within"):
        await client_limits.read_body(never, HERE)


async def test_a_description_goes_round(api: Api) -> None:
    text = '<a href="x">&amp;\'\t\n\r ]]> \U0001f600 \x7f'
    form = {"ReplicationGroupDescription": text, "PrimaryClusterId": "localhost"}
    answer = await call(api, "CreateReplicationGroup", ReplicationGroupId="g", **form)
    assert answer.status == 200
    answer = await call(api, "DescribeReplicationGroups", ReplicationGroupId="g")
    found = QueryParser().parse(
        {"body": answer.body, "headers": {}, "status_code": 200},
        SERVICE.operation_model("DescribeReplicationGroups").output_shape,
    )
    assert found["ReplicationGroups"][0]["Description"] == text


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"PrimaryClusterId": "h"}, ("h", 6379, False)),
        ({"PrimaryClusterId": "h:1"}, ("h", 1, False)),
        ({"PrimaryClusterId": "h:1", "Port": "1"}, ("h", 1, False)),
        ({"PrimaryClusterId": "h", "Port": "7000"}, ("h", 7000, False)),
        ({"PrimaryClusterId": "[::1]:1"}, ("::1", 1, False)),
        ({"PrimaryClusterId": "[::1]", "Port": "2"}, ("::1", 2, False)),
        ({"PrimaryClusterId": "rediss://h:1"}, ("h", 1, True)),
        ({"PrimaryClusterId": "h", "TransitEncryptionEnabled": "true"}, ("h", 6379, True)),
        ({"PrimaryClusterId": "h", "NumNodeGroups": "1", "Engine": "valkey"}, ("h", 6379, False)),
        ({}, "InvalidParameterValue"),
        ({"PrimaryClusterId": ""}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "a b"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "http://h"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "redis://:pw@h"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "h", "Port": "0"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "h", "Port": "70000"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "h:1", "Port": "2"}, "InvalidParameterCombination"),
        (
            {"PrimaryClusterId": "rediss://h", "TransitEncryptionEnabled": "false"},
            "InvalidParameterCombination",
        ),
        ({"PrimaryClusterId": "h", "AuthToken": "secret"}, "InvalidParameterCombination"),
        ({"PrimaryClusterId": "h", "NumCacheClusters": "2"}, "InvalidParameterCombination"),
        ({"PrimaryClusterId": "h", "ClusterMode": "compatible"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "h", "NumNodeGroups": "3"}, "InvalidParameterValue"),
        ({"PrimaryClusterId": "h", "Engine": "memcached"}, "InvalidParameterCombination"),
        ({"PrimaryClusterId": "h", "Tags.Tag.1.Key": "a"}, "InvalidParameterCombination"),
        ({"PrimaryClusterId": "h", "NetworkType": "ipv9"}, "InvalidParameterValue"),
        (
            {"PrimaryClusterId": "h", "ReplicationGroupDescription": "x" * 1001},
            "InvalidParameterValue",
        ),
    ],
)  # fmt: skip
async def test_registering_a_target(
    api: Api, parameters: dict[str, str], expected: tuple[str, int, bool] | str
) -> None:
    given = {"ReplicationGroupId": "g", "ReplicationGroupDescription": "", **parameters}
    answer = await call(api, "CreateReplicationGroup", **given)
    if isinstance(expected, str):
        assert answer.code == expected, answer.message
        assert "pw" not in answer.message
        assert "secret" not in answer.message
        return
    assert answer.code == "", answer.message
    group, _ = await api._engine.services.state(lambda registry: registry.get("g"))
    found = group.primary
    assert (found.host, found.port, found.tls is not None) == expected


@pytest.mark.parametrize(
    ("action", "parameters", "code"),
    [
        ("StartMigration", {"ClearTargetCacheData": "true"}, "InvalidParameterCombination"),
        ("StartMigration", {"ServerlessCacheName": "x"}, "InvalidParameterCombination"),
        ("CompleteMigration", {"ServerlessCacheName": "x"}, "InvalidParameterCombination"),
        ("StartMigration", {"ReplicationGroupId": ""}, "InvalidParameterValue"),
        ("CompleteMigration", {"ReplicationGroupId": ""}, "InvalidParameterValue"),
        ("StartMigration", {"ReplicationGroupId": "no"}, "ReplicationGroupNotFoundFault"),
        ("StartMigration", {f"{LIST}.member.1.Address": "a b"}, "InvalidParameterValue"),
        ("StartMigration", {f"{LIST}.member.1.Port": "70000"}, "InvalidParameterValue"),
        (
            "StartMigration",
            {f"{LIST}.member.2.Address": "b", f"{LIST}.member.2.Port": "1"},
            "InvalidParameterValue",
        ),
        ("StartMigration", {f"{LIST}.member.1.Address": "localhost"}, "InvalidParameterValue"),
        ("CompleteMigration", {}, "ReplicationGroupNotUnderMigrationFault"),
        ("DeleteReplicationGroup", {"FinalSnapshotIdentifier": "x"}, "InvalidParameterCombination"),
        (
            "DeleteReplicationGroup",
            {"RetainPrimaryCluster": "false"},
            "InvalidParameterCombination",
        ),
        ("DeleteReplicationGroup", {"ReplicationGroupId": "no"}, "ReplicationGroupNotFoundFault"),
        ("UnblockSource", {"ReplicationGroupId": "no"}, "ReplicationGroupNotFoundFault"),
        # Its former name.
        ("ReleaseSource", {"ReplicationGroupId": "no"}, "ReplicationGroupNotFoundFault"),
        ("DescribeReplicationGroups", {"MaxRecords": "19"}, "InvalidParameterValue"),
        ("DescribeReplicationGroups", {"MaxRecords": "101"}, "InvalidParameterValue"),
        ("DescribeReplicationGroups", {"Marker": "?"}, "InvalidParameterValue"),
        ("DescribeEvents", {"MaxRecords": "1"}, "InvalidParameterValue"),
        ("DescribeEvents", {"Marker": "-1"}, "InvalidParameterValue"),
        ("DescribeEvents", {"Duration": "0"}, "InvalidParameterValue"),
        ("DescribeEvents", {"Duration": "20161"}, "InvalidParameterValue"),
        ("DescribeEvents", {"SourceType": "nonsense"}, "InvalidParameterValue"),
        ("DescribeEvents", {"SourceIdentifier": "a--b"}, "InvalidParameterValue"),
        (
            "DescribeEvents",
            {"Duration": "5", "StartTime": "2020-01-01"},
            "InvalidParameterCombination",
        ),
        (
            "DescribeEvents",
            {"StartTime": "2020-01-02", "EndTime": "2020-01-01"},
            "InvalidParameterCombination",
        ),
        ("CreateReplicationGroup", {}, "ReplicationGroupAlreadyExists"),
    ],
)
async def test_each_rule_has_its_code(
    api: Api, action: str, parameters: dict[str, str], code: str
) -> None:
    created = {"ReplicationGroupDescription": "d", "PrimaryClusterId": "127.0.0.1:6379"}
    await call(api, "CreateReplicationGroup", ReplicationGroupId="g", **created)
    given = {} if action.startswith("Describe") else {"ReplicationGroupId": "g"}
    if action == "StartMigration":
        given |= {f"{LIST}.member.1.Address": "192.0.2.1", f"{LIST}.member.1.Port": "6379"}
    if action == "CreateReplicationGroup":
        given |= created
    answer = await call(api, action, **{**given, **parameters})
    assert answer.code == code, answer.message
    assert answer.status == DOCUMENTED[code]


async def test_events_by_time_and_in_pages(api: Api) -> None:
    for n in range(30):
        await api._engine.services.state(
            lambda registry, n=n: registry.add_event(f"g{n % 2}", f"event {n}"), make=True
        )

    async def events(**parameters: str) -> tuple[list[str], str | None]:
        answer = await call(api, "DescribeEvents", **parameters)
        names = {"m": model().namespace}
        found = [each.text or "" for each in answer.xml.iterfind(".//m:Message", names)]
        return found, answer.xml.findtext(".//m:Marker", None, names)

    first, marker = await events(MaxRecords="20")
    assert (first, marker is None) == ([f"event {n}" for n in range(20)], False)
    rest, end = await events(MaxRecords="20", Marker=marker or "")
    assert (rest, end) == ([f"event {n}" for n in range(20, 30)], None)
    assert len((await events(SourceIdentifier="g1", SourceType="replication-group"))[0]) == 15
    assert await events(SourceType="cache-cluster") == ([], None)
    assert await events(EndTime="2020-01-01T00:00:00Z") == ([], None)
    assert len((await events(StartTime="2020-01-01T00:00:00Z"))[0]) == 30
    assert len((await events(Duration="1"))[0]) == 30


async def test_health_and_metrics(api: Api) -> None:
    created = {"ReplicationGroupDescription": "d", "PrimaryClusterId": "127.0.0.1:6379"}
    await call(api, "CreateReplicationGroup", ReplicationGroupId="g", **created)
    healthy = await ask(api.app, method="GET", path="/healthz", headers=[("host", "any")])
    assert (healthy.status, json.loads(healthy.body)) == (200, {"status": "ok"})
    page = (await ask(api.app, method="GET", path="/metrics", headers=HERE)).body.decode()
    assert 'startmigration_api_calls_total{code="",operation="CreateReplicationGroup"} 1.0' in page


async def test_what_happened_inside_is_not_told(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> dict[str, Any]:
        raise ValueError("redis://:s3cret@h")

    action = actions.Action(actions.Role.READ, broken, ())
    monkeypatch.setitem(actions.ACTIONS, "DescribeEvents", action)
    answer = await call(api, "DescribeEvents")
    assert (answer.status, answer.code) == (500, "InternalFailure")
    assert b"<Type>Receiver</Type>" in answer.body
    assert b"s3cret" not in answer.body
    assert "s3cret" not in caplog.text
    assert "ValueError in" in caplog.text


async def test_a_state_that_is_gone(tmp_path: Path) -> None:
    engine = Engine(f"sqlite:///{tmp_path}", credentials=Credentials())
    api = Api(engine, Authenticator(None))
    answer = await call(api, "DescribeEvents")
    assert (answer.status, answer.code) == (503, "ServiceUnavailable")
    assert str(tmp_path).encode() not in answer.body
    assert (await ask(api.app, method="GET", path="/healthz", headers=HERE)).status == 503


async def test_what_many_ask_at_once_is_looked_up_once() -> None:
    looked: list[int] = []
    known = answer_cache.AnswerCache()

    async def look() -> dict[str, Any]:
        looked.append(1)
        await asyncio.sleep(0.01)
        if len(looked) == 3:
            raise errors.StateError("the disk is full")
        return {"n": len(looked)}

    first = asyncio.create_task(known.get("a", look))
    await asyncio.sleep(0)
    others = [asyncio.create_task(known.get("a", look)) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()  # its client has gone; the others' answer has not
    assert [await other for other in others] == [{"n": 1}] * 5
    assert await known.get("b", look) == {"n": 2}
    known.forget()
    for _ in range(2):
        with pytest.raises(errors.StateError):
            await known.get("a", look)
    await asyncio.sleep(answer_cache.AGE_SECONDS)
    assert await known.get("a", look) == {"n": 4}


async def test_answers_that_nobody_asks_for_again_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_cache, "AGE_SECONDS", 0.01)
    known = answer_cache.AnswerCache()

    async def look() -> dict[str, Any]:
        answer.append(Answered())
        return {"n": answer[-1]}

    answer: list[Answered] = []
    alive = weakref.WeakSet[Answered]()
    for n in range(10):
        await known.get(n, look)
        alive.add(answer.pop())
        await asyncio.sleep(0.02)
    assert len(alive) <= 1


class Answered:
    """Something that can be looked for when it is gone."""


async def test_what_was_changed_here_is_seen_at_once(api: Api) -> None:
    created = {"ReplicationGroupDescription": "d", "PrimaryClusterId": "127.0.0.1:6379"}
    for n in range(3):
        await call(api, "CreateReplicationGroup", ReplicationGroupId=f"g{n}", **created)
        answer = await call(api, "DescribeReplicationGroups")
        assert answer.body.count(b"<ReplicationGroupId>") == n + 1
    await call(api, "DeleteReplicationGroup", ReplicationGroupId="g1")
    assert b">g1<" not in (await call(api, "DescribeReplicationGroups")).body


async def test_a_state_that_is_locked_can_be_read(api: Api, tmp_path: Path) -> None:
    """However many changes wait for it: they have not every thread."""
    created = {"ReplicationGroupDescription": "d", "PrimaryClusterId": "127.0.0.1:6379"}
    assert (await call(api, "CreateReplicationGroup", ReplicationGroupId="g", **created)).code == ""
    lock = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    waiting = [
        asyncio.create_task(
            call(api, "CreateReplicationGroup", ReplicationGroupId=f"g{n}", **created)
        )
        for n in range(40)
    ]
    await asyncio.sleep(0.2)
    try:
        async with asyncio.timeout(2):
            assert (await call(api, "DescribeReplicationGroups")).status == 200
            assert (await ask(api.app, method="GET", path="/healthz", headers=HERE)).status == 200
    finally:
        lock.execute("ROLLBACK")
        lock.close()
        answers = await asyncio.gather(*waiting)
    assert {answer.code for answer in answers} == {""}


async def test_a_start_that_takes_long_stands_in_nobodys_way(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It talks to servers first: changes that do not are made meanwhile."""
    slow = asyncio.Event()

    async def preflight(*_: object) -> Preflight:
        await slow.wait()
        return Preflight(())

    monkeypatch.setattr(fleet, "preflight", preflight)
    monkeypatch.setattr(local, "launch", lambda *_, **__: os.getpid())
    created = {"ReplicationGroupDescription": "d", "PrimaryClusterId": "a.invalid"}
    names = [f"g{n}" for n in range(client_limits.CHANGES_AT_ONCE + client_limits.SLOW_AT_ONCE)]
    for name in names:
        assert (
            await call(api, "CreateReplicationGroup", ReplicationGroupId=name, **created)
        ).code == ""
    nodes = {f"{LIST}.member.1.Address": "192.0.2.1", f"{LIST}.member.1.Port": "1"}
    starts = [
        asyncio.create_task(call(api, "StartMigration", ReplicationGroupId=name, **nodes))
        for name in names
    ]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(20):
        answer = await call(api, "CreateReplicationGroup", ReplicationGroupId="other", **created)
        assert answer.code == ""
        slow.set()
        answers = await asyncio.gather(*starts)
    assert {answer.code for answer in answers} == {""}


async def test_an_address_is_not_repeated_at_length(api: Api) -> None:
    created = {"ReplicationGroupDescription": "d", "PrimaryClusterId": "a" * 100_000}
    answer = await call(api, "CreateReplicationGroup", ReplicationGroupId="g", **created)
    assert answer.code == "InvalidParameterValue"
    assert len(answer.body) < 1000


# Whatever comes, the answer is a documented one.

NAMES = st.sampled_from(
    [
        "Action", "Version", "ReplicationGroupId", "Force", "MaxRecords", "Marker", "Duration",
        f"{LIST}.member.1.Address", f"{LIST}.member.1.Port", f"{LIST}.member.2.Port", LIST,
        f"{LIST}.member", "SourceType", "StartTime", "EndTime", "PrimaryClusterId", "Port",
        "ReplicationGroupDescription", "Tags.Tag.1.Key", "AutoCutover", "X-Amz-Signature",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    ["", "a", "g", "1", "20", "true", "2020-01-01T00:00:00Z", "127.0.0.1", API_VERSION, "h:99999"]
)
SOUP = st.lists(
    st.tuples(NAMES | st.text(max_size=10), VALUES | st.text(max_size=20)), max_size=10
).map(lambda pairs: urlencode(pairs, errors="surrogatepass").encode())
ACTION = st.sampled_from([*actions.ACTIONS, "Nonsense", ""])


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    action=ACTION,
    form=SOUP | st.binary(max_size=60),
    in_query=SOUP | st.binary(max_size=20) | st.just(b""),
    method=st.sampled_from(["GET", "POST", "HEAD", "DELETE"]),
)
def test_nothing_but_a_documented_error_comes_back(
    fuzzed: Api, action: str, form: bytes, in_query: bytes, method: str
) -> None:
    async def one() -> None:
        body = f"Action={action}{VERSION}&".encode() + form
        answer = await ask(fuzzed.app, body, method=method, query=in_query, headers=HERE)
        assert answer.xml.tag.startswith("{")
        assert (answer.status == 200) == (answer.code == "")
        if answer.code:
            assert answer.status == DOCUMENTED[answer.code]
            assert answer.code != "InternalFailure", answer.message
        assert len(answer.body) < 10_000

    asyncio.run(one())


@pytest.fixture
def fuzzed(state_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The application; what would start processes or talk to servers does nothing."""

    async def nothing(*_: object) -> dict[str, Any]:
        return {}

    for name in ("StartMigration", "TestMigration"):
        action = actions.ACTIONS[name]
        quiet = actions.Action(action.role, nothing, action.honoured, action.only)
        monkeypatch.setitem(actions.ACTIONS, name, quiet)
    engine = Engine(state_url, credentials=Credentials())
    yield Api(engine, Authenticator(None))
    engine.close()
