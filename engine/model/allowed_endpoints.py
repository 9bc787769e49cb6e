"""Which servers may be dialled.

A server for others (`serve`) dials what it is told to, from inside of a network. So the operator
says which servers may be meant; addresses of the link itself (a cloud's metadata) are none unless
that was said. And a client that may start migrations is told the same of a port that is closed, one
that is filtered, and one where another program listens.

What counts is the address that is dialled (`wire.allowed_addresses`). The rules lie in the
environment (`VARIABLE`), which worker processes inherit; without that variable (the verbs, the
library) nothing is limited.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from engine.errors import UsageError
from engine.model import socket_path_pattern
from engine.model.endpoint_rule import NAT64, Address, Network, Rule, check_sockets

VARIABLE = "STARTMIGRATION_ALLOW_ENDPOINT"
# Link-local addresses, and the one address of that kind that is not among them (EC2's metadata).
_OF_THE_LINK: tuple[Network, ...] = (
    ipaddress.IPv4Network("169.254.0.0/16"),
    ipaddress.IPv6Network("fe80::/10"),
    ipaddress.IPv6Network("fd00:ec2::254/128"),
)
_every_reason: ContextVar[bool] = ContextVar("told_all", default=False)


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be dialled: what one of the rules takes in; without any, all but the link's own."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Rules:
        """Raises `UsageError`."""
        return cls(tuple(map(Rule.parse, texts)))

    def allow(self, host: str, address: Address, port: int) -> bool:
        """Whether `address`, for which `host` stands, may be dialled at this port."""
        address = plain(address)
        fitting = [each for each in self.rules if each.first <= port <= each.last]
        if any(each.network is not None and address in each.network for each in fitting):
            return True
        if any(address in network for network in _OF_THE_LINK):
            return False  # a name says nothing of where it leads
        name = host.lower().removesuffix(".")
        return not self.rules or any(
            each.name is not None and fnmatchcase(name, each.name) for each in fitting
        )

    def allow_path(self, path: str) -> bool:
        """Whether the unix socket at `path`, which leads through no link, may be dialled."""
        paths = (each.path for each in self.rules)
        return not self.rules or any(
            each is not None and socket_path_pattern.fits(path, each) for each in paths
        )


def plain(address: Address) -> Address:
    """The address that is meant by one that holds another, or by "any"."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return plain(inner)
    if address.is_unspecified:
        return ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return address


def check(texts: Sequence[str]) -> None:
    """Raise `UsageError` for a rule that is none, or that fits nothing, with what to write."""
    check_sockets(Rules.parse(texts).rules)


@contextmanager
def limited(texts: Sequence[str]) -> Iterator[None]:
    """Hold this process, and those that it starts, to these rules. Raises `UsageError`."""
    check(texts)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps(list(texts))
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def rules() -> Rules | None:
    """The rules of this process; None: it has none. Raises `UsageError`."""
    text = os.environ.get(VARIABLE)
    return None if text is None else _read(text)


@contextmanager
def with_every_reason() -> Iterator[None]:
    """For a caller that may know why a server cannot be reached."""
    token = _every_reason.set(True)
    try:
        yield
    finally:
        _every_reason.reset(token)


def veiled() -> bool:
    """Whether it is not told why a server cannot be reached."""
    return VARIABLE in os.environ and not _every_reason.get()


@lru_cache(maxsize=4)
def _read(text: str) -> Rules:
    try:
        return Rules.parse(json.loads(text))
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{VARIABLE} is not a JSON list of endpoints") from None
