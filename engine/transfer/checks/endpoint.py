"""What one server says of itself: link, credentials, version, role."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator

from engine.errors import AuthError, EngineError, LinkError, UsageError
from engine.model.endpoint import Endpoint
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, Side, failed, passed, warned
from engine.wire.control_connection import Admin
from engine.wire.source_replica import NoReplica

_PINGS = 3
FAR_SECONDS = 0.025
"""A server with this round trip is far: the first PING tells enough."""


async def greet(side: Side, end: Admin) -> tuple[list[Check], float, object]:
    """Round trip and credentials over a connection that stands; the round trip in seconds, and the
    reply to INFO, which goes along.

    Raises what `Admin.call` raises: `unreachable` makes a check of it.
    """
    best = float("inf")
    info: object = None
    for n in range(_PINGS):
        began = time.perf_counter()
        # An error (LOADING, no right to PING) is an answer too: the link is what is timed.
        reply, *more = await end.pipeline([("PING",), *([] if n else [("INFO",)])])
        best = min(best, time.perf_counter() - began)
        info = more[0] if more else info
        if isinstance(reply, AuthError) and not end.endpoint.has_password:
            raise reply
        if best >= FAR_SECONDS:
            break
    endpoint = end.endpoint
    user = f"user {endpoint.username or 'default'!r}"
    secret = "with password" if endpoint.has_password else "no password needed"
    checks = [
        passed(f"{side}-reachable", f"{endpoint.address}, round trip {best * 1000:.2f} ms"),
        passed(f"{side}-auth", f"{user}, {secret}"),
        check_tls(side, endpoint),
    ]
    return checks, best, info


def check_users(side: Side, endpoint: Endpoint, info: ServerInfo) -> Check | None:
    """Whether the server knows users at all, where one was named; None if nothing is to be said."""
    named = endpoint.username not in (None, "", "default") and endpoint.has_password
    if not named or info.capabilities.acl_users:
        return None
    return failed(
        f"{side}-auth",
        f"{info.name} has no users, and the user {endpoint.username!r} was given",
        "Leave out the user's name: redis://:PASSWORD@HOST.",
    )


def unreachable(side: Side, endpoint: Endpoint, error: EngineError) -> list[Check]:
    """The checks for a server that could not be talked to, and why."""
    if isinstance(error, UsageError):
        return [failed(f"{side}-tls", error.message, error.remedy)]
    if isinstance(error, NoReplica):
        return [failed("source-replica", error.message, error.remedy)]
    if isinstance(error, LinkError):
        return [failed(f"{side}-reachable", error.message, error.remedy)]
    name = "auth" if isinstance(error, AuthError) else "answer"
    return [
        passed(f"{side}-reachable", endpoint.address),
        failed(f"{side}-{name}", error.message, error.remedy),
        check_tls(side, endpoint),
    ]


def check_tls(side: Side, endpoint: Endpoint) -> Check:
    """Whether the link is encrypted, and the server's certificate verified."""
    name = f"{side}-tls"
    if endpoint.tls is None:
        if endpoint.unix_path is not None or _loopback(endpoint.host):
            return passed(name, "off, on this machine")
        if not endpoint.has_password:
            return passed(name, "off")
        return warned(
            name,
            "off: the password and every value cross the network in the clear",
            "Use rediss:// if the server has a TLS port.",
        )
    if not endpoint.tls.verify:
        return warned(
            name,
            "on, but the certificate is not verified: anyone on the way can read the data",
            "Give the authority's certificate with ca_file=… instead of verify=no.",
        )
    mutual = ", client certificate shown" if endpoint.tls.cert_file is not None else ""
    return passed(name, f"on, certificate verified{mutual}")


def check_server(side: Side, info: ServerInfo, settings: TransferSettings) -> Iterator[Check]:
    """Version, loading, role and mode of one end."""
    yield _version(side, info, settings)
    if info.loading:
        yield failed(
            f"{side}-loading",
            "the server is still loading its data",
            "Wait until INFO persistence says loading:0, then try again.",
        )
    yield _source_role(info, settings) if side == "source" else _target_role(info)
    yield _mode(side, info)


def _version(side: Side, info: ServerInfo, settings: TransferSettings) -> Check:
    name = f"{side}-version"
    if side == "target" and not info.capabilities.restore_absttl:
        return failed(
            name,
            f"{info.name}: its RESTORE knows no ABSTTL",
            "The target must be Redis 5.0 or later, or Valkey.",
        )
    if side == "source":
        if settings.key_type is not None and not info.capabilities.scan_type:
            return failed(
                name,
                f"{info.name}: its SCAN knows no TYPE",
                "Leave out --type (or use --match); TYPE needs Redis 6.0 or later.",
            )
        if not info.capabilities.replication_ids:
            return warned(
                name,
                f"{info.name}: older than replication ids (Redis 4.0)",
                "After a failover, or a lost link that lasts, everything is copied again.",
            )
    if info.fork:
        return warned(
            name,
            f"{info.name}: not Redis or Valkey, but compatible with it",
            "Try with a copy of the data first, and compare afterwards.",
        )
    return passed(name, info.name)


def _source_role(info: ServerInfo, settings: TransferSettings) -> Check:
    name = "source-role"
    if not info.is_replica:
        return passed(name, "primary")
    if settings.read_from == "replica" and info.primary_link_up:
        return passed(name, f"a replica of {info.primary}, as --read-from replica says")
    link = "" if info.primary_link_up else ", and its link to the primary is down"
    return warned(
        name,
        f"a replica of {info.primary}{link}: what it has may be older than its primary's data,"
        " and expired keys stay until the primary deletes them",
        "This spares the primary. For the latest data name the primary.",
    )


def _target_role(info: ServerInfo) -> Check:
    name = "target-role"
    if not info.is_replica:
        return passed(name, "primary")
    return failed(
        name,
        f"a replica of {info.primary}: it accepts writes only from its primary",
        "Name the primary as the target, or promote this server (REPLICAOF NO ONE).",
    )


def _mode(side: Side, info: ServerInfo) -> Check:
    name = f"{side}-mode"
    if info.mode == "sentinel":
        return failed(
            name,
            "a Sentinel: it holds no data",
            "Write redis+sentinel://HOST:PORT/NAME for the primary that it watches as NAME.",
        )
    return passed(name, info.mode)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.split("%", 1)[0]).is_loopback
    except ValueError:
        return host == "localhost"
