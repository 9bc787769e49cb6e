"""What can be asked: the model's operations on our front, and which of their members are honoured.

A member that an action neither honours nor knows a harmless value of is refused, with
`InvalidParameterCombination`: what was asked for and is not done must be told.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.errors import (
    InvalidParameterCombinationException,
    InvalidParameterValueException,
    ReplicationGroupAlreadyExistsFault,
    ReplicationGroupNotFoundFault,
    UsageError,
)
from engine.front import validate
from engine.front.access_keys import Role
from engine.front.engine import Engine
from engine.front.http.botocore_model import MEMBERS as READ
from engine.front.http.common_errors import InvalidAction
from engine.front.verbs import VERBS, Verb, parameter
from engine.groups.states import Operation
from engine.model.endpoint import Endpoint, Tls
from engine.model.setting import members_of
from engine.model.settings import SETTINGS, TransferSettings

if TYPE_CHECKING:
    from engine.groups.registry import Registry

Parameters = Mapping[str, Any]
Run = Callable[[Engine, Parameters], Awaitable[dict[str, Any]]]
EVENTS_MINUTES = 60
"""How far back DescribeEvents looks if it is not told, as at the service."""
EVENTS_MINUTES_MOST = 14 * 24 * 60
DESCRIPTION_MOST = 1000


@dataclass(frozen=True, slots=True)
class Action:
    """One action: the role that it needs, what does it, and which members it takes.

    `honoured` are members that are acted upon; `only` those that are taken with these values
    alone, which say what is so anyway. `slow` ones talk to servers. `refused` raises the fault with
    which a group's state refuses the change, if it does; it is None for what changes nothing.
    """

    role: Role
    run: Run
    honoured: Collection[str]
    only: Mapping[str, Collection[Any]] = field(default_factory=dict)
    refused: Callable[[Registry, str], object] | None = None
    slow: bool = False

    def check(self, parameters: Parameters) -> None:
        """Raise `InvalidParameterCombination` for a member that is not taken."""
        for name, value in parameters.items():
            if name in self.honoured or (name in self.only and value in self.only[name]):
                continue
            raise InvalidParameterCombinationException(
                f"{name} is not supported by this server.", remedy=self._instead(name)
            )

    async def look(self, engine: Engine, parameters: Parameters) -> None:
        """Raise the fault with which the group's state refuses the change, if it does."""
        name = validate.identifier(parameters.get("ReplicationGroupId"))
        if (refused := self.refused) is not None:
            await engine.services.state(lambda registry: refused(registry, name))

    def _instead(self, name: str) -> str:
        if name in self.only:
            values = ", ".join(str(value).lower() for value in self.only[name])
            return f"Leave it out, or give {values}."
        return _INSTEAD.get(name, "Leave it out.")


_INSTEAD = {
    "AuthToken": "Put the target's credentials into the server's configuration, by host.",
    "NumCacheClusters": "Name a target that exists with PrimaryClusterId.",
    "ServerlessCacheName": "Name a replication group with ReplicationGroupId.",
}


def find(name: str) -> Action:
    """The action of this name. Raises `InvalidAction`."""
    action = ACTIONS.get(name)
    if action is None:
        shown = name if name.isascii() and name.isalnum() and len(name) <= 64 else "that name"
        raise InvalidAction(f"Could not find operation {shown}.")
    return action


async def _start(engine: Engine, parameters: Parameters) -> dict[str, Any]:
    return await engine.start_migration(
        parameters.get("ReplicationGroupId", ""),
        parameters.get("CustomerNodeEndpointList", []),
        settings=TransferSettings(**_settings("StartMigration", parameters)),
    )


async def _test(engine: Engine, parameters: Parameters) -> dict[str, Any]:
    return await engine.test_migration(
        parameters["ReplicationGroupId"],
        parameters["CustomerNodeEndpointList"],
        settings=TransferSettings(**_settings("TestMigration", parameters)),
    )


def _settings(action: str, parameters: Parameters) -> dict[str, Any]:
    """The settings that a request gives, by the names of their fields. Raises
    `InvalidParameterValue` for one that makes no sense."""
    found: dict[str, Any] = {}
    for name, each in members_of(SETTINGS, action).items():
        if name not in parameters:
            continue
        assert each.member is not None
        value = READ[each.kind].read(parameters[name])
        try:
            TransferSettings(**{each.name: value})
        except UsageError as error:
            expected = each.member.expected
            raise InvalidParameterValueException(
                f"Invalid value for {name}: {expected or error.message}.",
                remedy="" if expected else error.remedy,
            ) from None
        found[each.name] = value
    return found


async def _describe(engine: Engine, parameters: Parameters) -> dict[str, Any]:
    return await engine.describe_replication_groups(
        parameters.get("ReplicationGroupId"),
        max_records=parameters.get("MaxRecords", 100),
        marker=parameters.get("Marker"),
    )


async def _describe_events(engine: Engine, parameters: Parameters) -> dict[str, Any]:
    since, until = _times(parameters)
    kind = parameters.get("SourceType", "replication-group")
    response = await engine.page_events(
        parameters.get("SourceIdentifier"),
        since=since,
        until=until,
        max_records=parameters.get("MaxRecords", 100),
        marker=parameters.get("Marker"),
    )
    # Nothing else than replication groups has events here.
    return response if kind == "replication-group" else {"Events": []}


def _times(parameters: Parameters) -> tuple[float, float | None]:
    """The range of DescribeEvents, in seconds since the epoch."""
    start: datetime | None = parameters.get("StartTime")
    end: datetime | None = parameters.get("EndTime")
    minutes = parameters.get("Duration")
    if minutes is not None and (start is not None or end is not None):
        raise InvalidParameterCombinationException(
            "Duration cannot be used together with StartTime or EndTime."
        )
    if minutes is not None and not 1 <= minutes <= EVENTS_MINUTES_MOST:
        raise InvalidParameterValueException(
            f"Invalid value for Duration: must be between 1 and {EVENTS_MINUTES_MOST}."
        )
    if start is not None and end is not None and end < start:
        raise InvalidParameterCombinationException("EndTime is before StartTime.")
    until = None if end is None else end.timestamp()
    if start is not None:
        return start.timestamp(), until
    from_end = time.time() if until is None else until
    return from_end - (minutes or EVENTS_MINUTES) * 60, until


async def _create(engine: Engine, parameters: Parameters) -> dict[str, Any]:
    description = parameters["ReplicationGroupDescription"]
    if len(description) > DESCRIPTION_MOST:
        raise InvalidParameterValueException(
            "Invalid value for ReplicationGroupDescription: more than "
            f"{DESCRIPTION_MOST} characters."
        )
    mode = parameters.get("ClusterMode", "disabled")
    if mode not in ("enabled", "disabled"):
        raise InvalidParameterValueException(
            "Invalid value for ClusterMode: must be enabled or disabled."
        )
    cluster_enabled = mode == "enabled"
    # Its shards are those that it has: the answer tells them.
    validate.shards_asked(parameters.get("NumNodeGroups"), cluster_enabled=cluster_enabled)
    return await engine.register_replication_group(
        parameters["ReplicationGroupId"],
        _primary(parameters),
        description=description,
        cluster_enabled=cluster_enabled,
        engine=parameters.get("Engine"),
    )


def _primary(parameters: Parameters) -> Endpoint:
    """The target that exists: PrimaryClusterId, with Port and TransitEncryptionEnabled."""
    given = parameters.get("PrimaryClusterId", "")
    if not given:
        raise InvalidParameterValueException(
            "The parameter PrimaryClusterId must be provided and must not be blank.",
            remedy="Give the address of the target's primary, HOST or HOST:PORT.",
        )
    try:
        found = Endpoint.parse(given)
        # Only now: what was wrong with the address is said first.
        if (port := parameters.get("Port")) is not None:
            if found.looked_up or (_has_port(given) and port != found.port):
                raise InvalidParameterCombinationException(
                    "PrimaryClusterId and Port name different ports."
                )
            found = replace(found, port=port)
    except UsageError as error:
        raise InvalidParameterValueException(
            f"Invalid value for PrimaryClusterId: {error.message}.",
            remedy="Expected HOST, HOST:PORT, redis://HOST:PORT or rediss://HOST:PORT.",
        ) from None
    encrypted = parameters.get("TransitEncryptionEnabled")
    if encrypted is False and found.tls is not None:
        raise InvalidParameterCombinationException(
            "PrimaryClusterId is a URL with TLS, and TransitEncryptionEnabled is false."
        )
    return replace(found, tls=Tls()) if encrypted and found.tls is None else found


def _has_port(text: str) -> bool:
    address = text.rpartition("//")[2].partition("?")[0].rpartition("@")[2]
    return address.rpartition("]")[2].count(":") == 1 or (
        "[" not in address and address.count(":") == 1
    )


def _refused(operation: Operation, registry: Registry, group_id: str) -> None:
    registry.check(operation, group_id)


def _refused_to_create(registry: Registry, group_id: str) -> None:
    with suppress(ReplicationGroupNotFoundFault):
        registry.get(group_id)
        raise ReplicationGroupAlreadyExistsFault(f"ReplicationGroup {group_id} already exists.")


def _refused_to_verify(registry: Registry, group_id: str) -> None:
    # (While it is being verified it may be asked to stop.)
    registry.get(group_id)


def _plain(verb: Verb) -> Run:
    """Hands the members of a request to the library's method, by the names that they have there."""

    async def run(engine: Engine, parameters: Parameters) -> dict[str, Any]:
        given = {
            parameter(name): parameters[name] for name in verb.members if name in parameters
        } | {
            name: value for name, value in _settings(verb.action, parameters).items() if value != ()
        }
        # What the model does not require; the name is refused then.
        given.setdefault("replication_group_id", "")
        response: dict[str, Any] = await getattr(engine, verb.method)(**given)
        return response

    return run


# What does more than that.
_RUNS: Mapping[str, Run] = {
    "StartMigration": _start,
    "TestMigration": _test,
    "DescribeReplicationGroups": _describe,
    "DescribeEvents": _describe_events,
    "CreateReplicationGroup": _create,
}


def action_of(verb: Verb) -> Action:
    """The action of a verb that has one."""
    refused: Callable[[Registry, str], object] | None = None
    if verb.operation:
        refused = partial(_refused, Operation[verb.operation])
    elif verb.action == "CreateReplicationGroup":
        refused = _refused_to_create
    elif verb.action == "VerifyReplicationGroup":
        refused = _refused_to_verify
    return Action(
        Role(verb.role),
        _RUNS.get(verb.action) or _plain(verb),
        (*verb.members, *members_of(SETTINGS, verb.action)),
        verb.only,
        refused=refused,
        slow=verb.slow,
    )


ACTIONS: dict[str, Action] = {verb.action: action_of(verb) for verb in VERBS if verb.action}
ACTIONS |= {verb.former_action: ACTIONS[verb.action] for verb in VERBS if verb.former}
