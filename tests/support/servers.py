"""How a test asks for a server of this machine, and an end's address and stream by whatever it is.

`ServerFactory` is the type of the fixture `server_factory`; `known` names a release.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import (
    Binary,
    Server,
    found_named,
)

ServerFactory = Callable[..., Server]
End = Server | Proxy | Cluster | str
"""An end of a migration: a server, the proxy before one, a cluster, or a URL."""


def known(name: str) -> Binary:
    """The server that is `found_named` so ("redis-7.0"); without it the test skips."""
    found = found_named(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def url_of(end: End) -> str:
    """The URL of an end: a server's own, or a proxy's; of a cluster one of its nodes'."""
    if isinstance(end, Proxy):
        return f"redis://{end.host}:{end.port}"
    return end if isinstance(end, str) else end.url


def offset_of(server: Server) -> int:
    """The end of the server's replication stream, in bytes (INFO's master_repl_offset)."""
    return int(server.client().info("replication")["master_repl_offset"])


def refuses_writes(server: Server) -> bool:
    """Whether the server refuses writes, as a source does behind a cut-over (NOREPLICAS).

    A server that is paused is waited for, at most 20 s: then redis-py's `TimeoutError` is raised.
    """
    try:
        server.client(socket_timeout=20).set("probe", "1")
    except redis.ResponseError as error:
        return str(error).startswith("NOREPLICAS")
    server.client().delete("probe")
    return False


def write_block_of(server: Server) -> int:
    """What the server's min-replicas-to-write (before 5.0 min-slaves-to-write) is set to."""
    return int(next(iter(server.client().config_get("min-*-to-write").values())))


def servers_of(end: Server | Cluster) -> list[Server]:
    """The server, or the primaries of a cluster."""
    return end.primaries if isinstance(end, Cluster) else [end]
