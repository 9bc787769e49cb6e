"""Where the primary is that Sentinels watch: they are asked before each dial.

All of them are asked at once (SENTINEL MASTER), and the answer of the latest configuration epoch
counts: a Sentinel that was cut off from the others during a failover names the former primary, with
an earlier epoch. Behind a later one that was heard before it is believed with a majority alone. An
answer holds for a second, so that a dozen connections that are made together cost one question.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from engine import logs
from engine.errors import AuthError, EngineError, FaultOf, LinkError, ServerError, UsageError
from engine.model.endpoint import Endpoint, check_host
from engine.wire.ask_majority import ask_most

# How long an answer holds.
_HOLDS_SECONDS = 1.0
# What a Sentinel says of a replica that is not to be relied upon.
_DOWN = frozenset({b"s_down", b"o_down", b"disconnected"})
# Of the time for a dial.
_SHARE = 0.6
_REMEDY = (
    "Check the Sentinels' addresses, the network, and their credentials (sentinel_username, "
    "sentinel_password)."
)
_log = logs.logger(__name__)
Ask = Callable[[Endpoint, tuple[str, ...]], Awaitable[Any]]
"""Dials the Sentinel, asks, and gives the reply; raises `EngineError`."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one Sentinel says: the primary's address, and the epoch of that configuration."""

    by: Endpoint
    host: str
    port: int
    epoch: int


# The last answer for an endpoint, and when it came. Dozens at most: one for each end.
_last: dict[Endpoint, tuple[Told, float]] = {}


async def primary(endpoint: Endpoint, ask: Ask, *, fault: FaultOf, timeout: float) -> Endpoint:
    """The primary that the Sentinels of `endpoint` name now.

    `timeout`: seconds for all of it. Raises `LinkError` where no Sentinel answers or knows the
    name, and `AuthError` where none takes the credentials.
    """
    known = _last.get(endpoint)
    if known is not None and time.monotonic() - known[1] < _HOLDS_SECONDS:
        return _there(endpoint, known[0])
    # The rest of the time is the primary's.
    told, answers = await _ask_all(endpoint, ask, fault, timeout * _SHARE)
    if known is not None and told.epoch < known[0].epoch and 2 * answers <= len(endpoint.sentinels):
        raise LinkError(
            f"{fault} {endpoint.address}: {answers} of its Sentinels answered, and their "
            f"configuration is older than the last one seen: {told.by.address} may be cut off "
            "from the others.",
            remedy=_REMEDY,
            fault=fault,
        )
    if known is None or (known[0].host, known[0].port) != (told.host, told.port):
        extra = {"end": fault, "endpoint": endpoint.address, "sentinel": told.by.address}
        place = _there(endpoint, told).address
        _log.info("Sentinel names the primary: %s", place, extra=extra)
    _last[endpoint] = told, time.monotonic()
    return _there(endpoint, told)


def named_last(endpoint: Endpoint) -> Endpoint | None:
    """The primary that was named last; None: the Sentinels were not asked yet."""
    known = _last.get(endpoint)
    return None if known is None else _there(endpoint, known[0])


def forget(endpoint: Endpoint) -> None:
    """Ask the Sentinels the next time, however fresh the last answer is."""
    if (known := _last.get(endpoint)) is not None:
        _last[endpoint] = known[0], float("-inf")


def _there(endpoint: Endpoint, told: Told) -> Endpoint:
    # The loopback of the Sentinel that said so; on this machine it is the same by any name.
    away = is_loopback(told.host) and not is_loopback(told.by.host)
    host = told.by.host if away else told.host
    return endpoint.at(host, told.port)


async def failing_replicas(endpoint: Endpoint, ask: Ask, timeout: float) -> dict[str, str]:
    """Of the replicas that most of its Sentinels call down or disconnected: why, by the addresses
    at which they are reached. Raises nothing. `timeout` is in seconds."""
    group = endpoint.sentinel
    assert group is not None
    name = group.name

    async def down(at: Endpoint) -> list[str] | EngineError:
        try:
            reply = await ask(at, ("SENTINEL", "SLAVES", name))
        except EngineError as exc:
            return exc
        found = []
        for each in reply if isinstance(reply, list) else ():
            if not isinstance(each, list):
                continue
            fields = dict(zip(each[::2], each[1::2], strict=False))
            if not _DOWN & set(fields.get(b"flags", b"").split(b",")):
                continue
            try:
                host, port = fields[b"ip"].decode(), int(fields[b"port"])
                found.append(_there(endpoint, Told(at, host, port, 0)).address)
            except (KeyError, ValueError, UsageError):
                continue  # of a replica that has not said where it is
        return list(dict.fromkeys(found))

    asked = endpoint.sentinels
    heard = await ask_most([down(each) for each in asked], timeout)
    said = [address for each in heard.found for address in each]
    return {
        address: "its Sentinels call it down"
        for address in dict.fromkeys(said)
        # Of all that there are: the few that answer may be cut off together with us.
        if 2 * said.count(address) > len(asked)
    }


def is_loopback(host: str) -> bool:
    """Whether it is the loopback by any of its names."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def _ask_all(
    endpoint: Endpoint, ask: Ask, fault: FaultOf, timeout: float
) -> tuple[Told, int]:
    group = endpoint.sentinel
    assert group is not None
    questions = [_asked(each, group.name, ask) for each in endpoint.sentinels]
    heard = await ask_most(questions, timeout)
    if heard.found:
        return max(heard.found, key=lambda each: each.epoch), len(heard.found)
    raise _none_answers(endpoint, heard.failed, fault, timeout)


async def _asked(at: Endpoint, name: str, ask: Ask) -> Told | EngineError:
    try:
        reply = await ask(at, ("SENTINEL", "MASTER", name))
    except EngineError as exc:
        # What several of them say is said once.
        exc.message = exc.message.replace(at.address, "Sentinel").rstrip(".")
        return exc
    try:
        check_host(reply[reply.index(b"ip") + 1].decode())
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return Told(
            at,
            fields[b"ip"].decode(),
            int(fields[b"port"]),
            int(fields.get(b"config-epoch", 0)),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, UsageError):
        return ServerError(f"Sentinel does not say where {name} is", code="ERR")


def _none_answers(
    endpoint: Endpoint, failed: list[EngineError], fault: FaultOf, timeout: float
) -> EngineError:
    group = endpoint.sentinel
    assert group is not None
    refused = [each for each in failed if isinstance(each, AuthError)]
    unknown = [each for each in failed if isinstance(each, ServerError)]
    why = "; ".join(dict.fromkeys(each.message for each in failed))
    silent = len(group.nodes) - len(failed)
    if silent:
        why += f"{'; ' if why else ''}{silent} gave no answer within {timeout:g} s"
    message = f"{fault} {endpoint.address}: no Sentinel says where {group.name} is: {why}."
    if refused and not unknown:
        return AuthError(message, remedy=_REMEDY, fault=fault)
    if unknown:
        return LinkError(
            message,
            remedy="Check the name behind the /: SENTINEL MASTERS lists those that they watch.",
            fault=fault,
        )
    return LinkError(message, remedy=_REMEDY, fault=fault)
