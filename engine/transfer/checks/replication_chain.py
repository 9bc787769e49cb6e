"""From which servers an end has its data: the primaries above it, as far as they can be asked.

A source that is a replica of the target, at whatever distance, would be sent its own writes again,
without an end. INFO's replication id tells of it while the replica's link stands; before that, and
where a service hides the id, only the chain of `master_host` does.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from dataclasses import dataclass, replace

from engine.errors import EngineError, UsageError
from engine.model.endpoint import Endpoint
from engine.model.server import ServerInfo
from engine.wire.control_connection import admin

HOPS_MOST = 8
"""So many primaries above one another are asked; Redis chains are one or two long."""


@dataclass(frozen=True, slots=True)
class Member:
    """One server of a lineage; `info` is None where it could not be asked."""

    endpoint: Endpoint
    info: ServerInfo | None

    def is_one_with(self, other: Member) -> bool:
        """Whether both are one server, as far as they tell."""
        one, two = self.info, other.info
        if one is not None and two is not None and one.run_id and one.run_id == two.run_id:
            return True
        return same_place(self.endpoint, other.endpoint)

    def shares_data_with(self, other: Member) -> bool:
        """Whether both are one server, or of one replication, as far as they tell."""
        one, two = self.info, other.info
        if one is not None and two is not None and one.replid and one.replid == two.replid:
            return True
        return self.is_one_with(other)


async def lineage(endpoint: Endpoint, info: ServerInfo, *, timeout: float) -> tuple[Member, ...]:
    """The server itself, then its primary, that one's primary, and so on up to the head.

    The primaries are asked with the credentials of `endpoint`; the first one that cannot be asked
    is the last of the list. `timeout` is in seconds, for each. Raises nothing.
    """
    found = [Member(endpoint, info)]
    while (above := found[-1].info) is not None and above.primary and len(found) <= HOPS_MOST:
        place = _at(endpoint, above.primary)
        if place is None:
            break
        member = Member(place, await _asked(place, timeout))
        if any(member.is_one_with(each) for each in found):
            break  # servers that are replicas of each other
        found.append(member)
    return tuple(found)


def same_place(one: Endpoint, other: Endpoint) -> bool:
    """Whether both addresses lead to one server by their text; the loopback has several names."""
    if one.address.lower() == other.address.lower():
        return True
    here = one.unix_path is None and other.unix_path is None and one.port == other.port
    return here and _loopback(one.host) and _loopback(other.host)


def _at(endpoint: Endpoint, address: str) -> Endpoint | None:
    """The server at `address` (`host:port`), with everything else as at `endpoint`."""
    with suppress(UsageError):
        there = Endpoint.parse(address)
        return replace(endpoint.at(there.host, there.port), unix_path=None)
    return None


async def _asked(place: Endpoint, timeout: float) -> ServerInfo | None:
    with suppress(EngineError, TimeoutError):
        async with asyncio.timeout(timeout), admin(place, timeout=timeout) as end:
            return await end.info()
    return None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.split("%", 1)[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"
