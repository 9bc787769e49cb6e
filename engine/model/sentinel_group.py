"""A primary by the name under which Sentinels watch it, and where these are.

    redis+sentinel://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…]/NAME
        [?sentinel_username=…&sentinel_password=…]

User and password before the @ are those of the servers that hold the data; Sentinels have their
own, or none. With rediss+sentinel:// both are reached by TLS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from engine.errors import UsageError
from engine.model.password_source import PasswordSource

DEFAULT_PORT = 26379
SUFFIX = "+sentinel"
OPTIONS = ("sentinel_username", "sentinel_password")
# What a name may hold that a credentials entry, an address and a URL can repeat as it is.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_URL = re.compile(r"[a-z]+\+sentinel://", re.IGNORECASE)
_NODE = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d{1,5}))?")
_EXPECTED = "Expected redis+sentinel://HOST:PORT,HOST:PORT/NAME."


@dataclass(frozen=True, slots=True)
class SentinelGroup:
    """`name`: SENTINEL MONITOR's. `nodes`: (host, port) of each Sentinel, in the URL's order. The
    password is theirs, and never part of `repr`."""

    name: str
    nodes: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_source: PasswordSource | None = None
    """As `Endpoint.password_source`."""

    @property
    def has_password(self) -> bool:
        """Whether they have a password, be it known already or not."""
        return self.password is not None or self.password_source is not None

    @property
    def address(self) -> str:
        """`host:port,host:port/NAME`."""
        return ",".join(node_address(*each) for each in self.nodes) + f"/{self.name}"

    @property
    def options(self) -> list[str]:
        """The URL's options that are no secret."""
        if self.username is None:
            return []
        return [f"sentinel_username={quote(self.username, safe='')}"]


def is_url(text: str) -> bool:
    """Whether this is a URL whose scheme says that it names Sentinels."""
    return _URL.match(text) is not None


def node_address(host: str, port: int) -> str:
    """`host:port`, `[v6]:port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(nodes: str, path: str, options: dict[str, str]) -> SentinelGroup:
    """Read a URL's `HOST:PORT,HOST:PORT` (without user and password) and `/NAME`; of `options` its
    own ones are taken out.

    Hosts are not looked at closer than that: `Endpoint` does. Raises `UsageError`.
    """
    found = []
    for text in nodes.split(","):
        node = _NODE.fullmatch(text)
        if node is None:
            # Not repeated: a password with a / in it has its rest here.
            raise UsageError(
                "a Sentinel is not named as HOST:PORT",
                remedy=f"{_EXPECTED} Write / in a password as %2F, and ? as %3F.",
            )
        port = DEFAULT_PORT if node["port"] is None else int(node["port"])
        place = (unquote(node["v6"] or node["host"]), port)
        if place in found:
            raise UsageError(f"the Sentinel {node_address(*place)} is named twice")
        found.append(place)
    name = unquote(path.strip("/"))
    if not name:
        raise UsageError("the URL does not say which primary the Sentinels watch", remedy=_EXPECTED)
    if not _NAME.fullmatch(name):
        raise UsageError(
            "the part after the / is not a name that Sentinels can have for a primary",
            remedy="A name has letters, digits, dots, hyphens and underscores. Write / in a "
            "password as %2F, and ? as %3F.",
        )
    username, password = (options.pop(each, None) for each in OPTIONS)
    return SentinelGroup(name, tuple(found), username, password)
