"""DescribeReplicationGroups side by side with another that answers as the service does (moto), and
with botocore's model: what is not there is in a table of docs/api.md, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.session import get_session
from moto import mock_aws

from benches.support.api import REGION, Serving
from engine.front.http.botocore_model import SERVICE

DOCS = Path(__file__).parents[2] / "docs/api.md"
GROUP = {
    "ReplicationGroupId": "cache",
    "ReplicationGroupDescription": "the new home",
    "Engine": "valkey",
}
# What differs between any two groups.
OWN = {"ARN", "Address", "Port", "ReplicationGroupCreateTime"}


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^### {title}\n(.*?)(?=^##)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def absent() -> dict[str, str]:
    """The table: member, and why a group does not have it."""
    rows = re.findall(r"^\| (`.*`) \| (.+) \|$", section("What it does not say"), re.MULTILINE)
    return {name: why for names, why in rows for name in re.findall(r"`(\w+)`", names)}


def members(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each member of an answer by its path, and its value; one of a list stands for all."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield (*path, name), each
            yield from members(each, (*path, name))
    elif isinstance(value, list):
        for each in value:
            yield from members(each, path)


def of_model(shape: Any) -> Iterator[str]:
    """The names of all members that a group may have, down to its nodes."""
    for name, each in shape.members.items():
        yield name
        if name in ("NodeGroups", "NodeGroupMembers"):
            yield from of_model(each.member)


@pytest.fixture
def ours(tmp_path: Path, state_url: str) -> Iterator[dict[str, Any]]:
    """A group as this server describes it."""
    with Serving(tmp_path, state_url) as api:
        client = api.client("admin")
        # Nothing is dialled.
        client.create_replication_group(**GROUP, PrimaryClusterId="127.0.0.1:6379")
        yield client.describe_replication_groups()["ReplicationGroups"][0]


def theirs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same group as moto describes it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with mock_aws():
        client = boto3.client("elasticache", REGION)
        client.create_replication_group(**GROUP)
        found: dict[str, Any] = client.describe_replication_groups()["ReplicationGroups"][0]
    return found


def test_every_member_that_another_gives_is_given_or_has_its_reason(
    ours: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = dict(members(ours)), dict(members(theirs(monkeypatch)))
    assert {path[-1] for path in there.keys() - here.keys()} <= absent().keys()
    assert not {path[-1] for path in here} & absent().keys()
    both = here.keys() & there.keys()
    assert len(both) > 25
    for path in both:
        assert type(here[path]) is type(there[path]), path
        plain = not isinstance(here[path], dict | list) and path[-1] not in OWN
        assert not plain or here[path] == there[path], path


def test_every_member_of_the_model_is_given_or_has_its_reason() -> None:
    shape = get_session().get_service_model(SERVICE).shape_for("ReplicationGroup")
    without, names = absent(), set(of_model(shape))
    given = set(re.findall(r"`(\w+)`", section("What a group says")))
    assert names == (given & names) | without.keys()
    assert not given & without.keys()
