"""The rules for parameters, as pure functions: what they take is right, or they raise.

`InvalidParameterValue` is the fault for one value, `InvalidParameterCombination` for values that do
not go together. Messages name the parameter as the service model spells it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import (
    InvalidParameterCombinationException,
    InvalidParameterValueException,
    UsageError,
)
from engine.model import sentinel_group
from engine.model.cluster_shard import ClusterShard
from engine.model.endpoint import STDIN_PATH, Endpoint, check_host
from engine.model.setting_conflicts import objection_to
from engine.model.settings import TransferSettings

ID_LENGTH = 40
PAGE = range(20, 101)
_SHARDS_MOST = 500
_IDENTIFIER = re.compile(r"[A-Za-z](?:-?[A-Za-z0-9])*")
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_EVENT = re.compile(r"[0-9]{1,18}", re.ASCII)
_NOT_OURS = "Invalid value for Marker: it is not one of this server's."
_LIST = "CustomerNodeEndpointList"
_MEMBERS = ("Address", "Port")
_WHERE_CREDENTIALS_GO = (
    "Put the credentials into the configuration file or STARTMIGRATION_CREDENTIALS, by host."
)


def identifier(value: object, name: str = "ReplicationGroupId") -> str:
    """A group's identifier, in lower case as it is kept: 1 to 40 letters, digits and hyphens, the
    first a letter, no two hyphens in a row and none at the end."""
    if not isinstance(value, str) or not value:
        raise _invalid(f"The parameter {name} must be provided and must not be blank.")
    if len(value) > ID_LENGTH or not _IDENTIFIER.fullmatch(value):
        raise _invalid(
            f"The parameter {name} is not a valid identifier. Identifiers must begin with a "
            "letter; must contain only ASCII letters, digits, and hyphens; must not end with a "
            f"hyphen or contain two consecutive hyphens; and have at most {ID_LENGTH} characters."
        )
    return value.lower()


def page(max_records: object, marker: object) -> tuple[int, str | None]:
    """MaxRecords (20 to 100) and Marker (None at the start; else a group's identifier)."""
    limit = _limit(max_records)
    if marker is None:
        return limit, None
    try:
        return limit, identifier(marker)
    except InvalidParameterValueException:
        raise _invalid(_NOT_OURS) from None


def events_page(max_records: object, marker: object) -> tuple[int, int]:
    """MaxRecords (20 to 100) and Marker (None at the start; else an event's number) for events;
    the number to go on after, 0 at the start."""
    limit = _limit(max_records)
    if marker is None:
        return limit, 0
    if not isinstance(marker, str) or not _EVENT.fullmatch(marker):
        raise _invalid(_NOT_OURS)
    return limit, int(marker)


def primary_endpoint(value: object) -> Endpoint:
    """A target's primary, as URL or `Endpoint`; without a password, which would be stored."""
    name = "PrimaryEndpoint"
    if isinstance(value, str):
        if not value:
            raise _invalid(f"The parameter {name} must be provided and must not be blank.")
        try:
            value = Endpoint.parse(value)
        except UsageError as error:
            raise _invalid(f"Invalid value for {name}: {error}") from None
    if not isinstance(value, Endpoint):
        raise _invalid(f"Invalid value for {name}: expected a URL.")
    not_a_file(value, name)
    return _without_password(value, name)


def node_endpoints(value: object, *, cluster_enabled: bool) -> tuple[Endpoint, ...]:
    """CustomerNodeEndpointList: at least one endpoint, none twice, no password; exactly one for a
    group with cluster mode disabled. Several are nodes of one cluster, and come back as one
    endpoint."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        raise _invalid(f"Invalid value for {_LIST}: expected a list of endpoints.")
    if not value:
        raise _invalid(f"{_LIST} must contain at least one endpoint.")
    found = tuple(_node(item, f"{_LIST}.member.{n}") for n, item in enumerate(value, 1))
    if any(endpoint.rdb_path == STDIN_PATH for endpoint in found):
        raise _invalid(
            f"Invalid value for {_LIST}: rdb:- is standard input, which the worker does not have.",
            "Use migrate, which runs in the process that has it; or write it into a file.",
        )
    seen: set[str] = set()
    for endpoint in found:
        address = endpoint.address.lower()
        if address in seen:
            raise _invalid(f"{_LIST} has {endpoint.address} more than once.")
        seen.add(address)
    if len(found) > 1 and not cluster_enabled:
        raise _invalid(
            f"{_LIST} must contain exactly one endpoint for a replication group with cluster mode "
            f"disabled, not {len(found)}. (Of a target that is a cluster this is known from a test "
            "with one of them on, or where the group was made with cluster mode enabled.)"
        )
    return found if len(found) == 1 else (_one_cluster(found),)


def _one_cluster(nodes: Sequence[Endpoint]) -> Endpoint:
    """The cluster that several endpoints are nodes of: all are reached alike."""
    first, places = nodes[0], []
    for each in nodes:
        if each.file_path is not None or each.unix_path is not None or each.sentinel is not None:
            raise InvalidParameterCombinationException(
                f"{_LIST} has several endpoints, and {each.address} is not a node of a cluster.",
                remedy="Name nodes of one cluster, or only one endpoint.",
            )
        if (each.username, each.tls) != (first.username, first.tls):
            raise InvalidParameterCombinationException(
                f"{_LIST}: nodes of one cluster are reached with the same user and TLS settings, "
                f"and {each.address} has others than {first.address}.",
                remedy="Name one node: the others are found through it.",
            )
        own = ((each.host, each.port),) if each.cluster is None else each.cluster.seeds
        places += [place for place in own if place not in places]
    return replace(first, cluster=ClusterShard(tuple(places)))


def several_nodes(endpoint: Endpoint) -> list[Endpoint]:
    """The nodes that an endpoint names, each as an endpoint; itself where it names one server."""
    if endpoint.cluster is None:
        return [endpoint]
    return [endpoint.at(*each) for each in endpoint.cluster.seeds]


def shards_asked(number: object, *, cluster_enabled: bool) -> None:
    """NumNodeGroups: how many shards a group has is told by its cluster, and not asked for."""
    if number is None:
        return
    most = _SHARDS_MOST if cluster_enabled else 1
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
        mode = "enabled" if cluster_enabled else "disabled"
        raise _invalid(
            f"Invalid value for NumNodeGroups: with cluster mode {mode} it must be between 1 and "
            f"{most}."
        )


def not_a_file(target: Endpoint, name: str) -> None:
    """A file can be read from, and that is all."""
    if target.file_path is not None:
        raise _invalid(
            f"Invalid value for {name}: {target.address} is a file, and a target is a server.",
            "A server writes a file itself: SAVE or BGSAVE.",
        )


def possible_from(sources: Sequence[Endpoint], settings: TransferSettings) -> None:
    """What is asked for can be done with a file, where a source is one."""
    for source in sources:
        objection = objection_to(settings, source)
        if objection is not None:
            raise InvalidParameterCombinationException(
                f"{source.address}: {objection}.",
                remedy="Leave it out, or name a server as the source.",
            )


def not_the_target(
    sources: Sequence[Endpoint],
    members: Sequence[Endpoint],
    resolved: Mapping[Endpoint, Collection[str]],
) -> None:
    """No source is a member of the target. `resolved` has the addresses that each endpoint's name
    stands for, as far as they are known."""
    for source in sources:
        for member in members:
            same = source.address.lower() == member.address.lower()
            if same or set(resolved.get(source, ())) & set(resolved.get(member, ())):
                also = "" if same else f" ({member.address})"
                raise _invalid(
                    f"{_LIST}: {source.address} is a member of the target replication "
                    f"group{also}: a server cannot be migrated into itself."
                )


def _node(item: object, name: str) -> Endpoint:
    if isinstance(item, Endpoint):
        return _without_password(item, name)
    if not isinstance(item, Mapping):
        raise _invalid(f"Invalid value for {name}: expected an Address and a Port.")
    for member in item:
        if member not in _MEMBERS:
            raise _invalid(
                f"Unknown parameter in {name}: {str(member)!r}, must be one of: Address, Port."
            )
    address = item.get("Address")
    if isinstance(address, str) and item.get("Port") is None and sentinel_group.is_url(address):
        return _watched(address, name)
    for member in _MEMBERS:
        if item.get(member) in (None, ""):
            raise _invalid(f"The parameter {name}.{member} must be provided and must not be blank.")
    return Endpoint(host=_host(item["Address"], name), port=_port(item["Port"], name))


def _watched(url: str, name: str) -> Endpoint:
    """An Address that names Sentinels, which need no Port."""
    try:
        found = Endpoint.parse(url)
    except UsageError as error:
        raise _invalid(f"Invalid value for {name}.Address: {error.message}.") from None
    if found.sentinel is None:
        raise _invalid(f"Invalid value for {name}.Address: it names no Sentinels.")
    if found.tls is not None and any((found.tls.ca_file, found.tls.cert_file, found.tls.key_file)):
        # A caller that may start migrations may not have the engine open files.
        raise _invalid(f"Invalid value for {name}.Address: it names files.", _WHERE_CREDENTIALS_GO)
    return _without_password(found, name)


def _limit(max_records: object) -> int:
    if not isinstance(max_records, int) or isinstance(max_records, bool) or max_records not in PAGE:
        raise _invalid(f"Invalid value for MaxRecords: must be between {PAGE[0]} and {PAGE[-1]}.")
    return max_records


def _host(value: Any, name: str) -> str:
    try:
        if not isinstance(value, str):
            raise UsageError("expected a host name or an IP address")
        # [::1] is how an address with colons stands in a URL; the brackets are not part of it.
        host = value[1:-1] if value[0] == "[" and value[-1] == "]" and ":" in value else value
        check_host(host)
    except UsageError as error:
        raise _invalid(f"Invalid value for {name}.Address: {error.message}.") from None
    return host


def _port(value: Any, name: str) -> int:
    text = value if isinstance(value, str) else str(value)
    wrong = isinstance(value, bool) or not isinstance(value, (int, str))
    if wrong or not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise _invalid(f"Invalid value for {name}.Port: must be between 1 and 65535.")
    return int(text)


def _without_password(endpoint: Endpoint, name: str) -> Endpoint:
    sentinel = endpoint.sentinel
    if endpoint.password is not None or (sentinel is not None and sentinel.password is not None):
        raise _invalid(
            f"Invalid value for {name}: it has a password, which would be stored.",
            _WHERE_CREDENTIALS_GO,
        )
    return endpoint


def _invalid(message: str, remedy: str = "") -> InvalidParameterValueException:
    return InvalidParameterValueException(message, remedy=remedy)
