"""Where a server may be dialled, and what is told of one that cannot be reached.

A name is resolved once, each address is judged (`model.allowed_endpoints`), and the connection is
made to one that was judged: what a name stands for a moment later makes no difference. Of a unix
socket the path that its links lead to is judged, and dialled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket

from engine import logs
from engine.errors import LinkError
from engine.model import allowed_endpoints
from engine.model.allowed_endpoints import veiled
from engine.model.endpoint import Endpoint

__all__ = ["NotAllowed", "addresses", "unreached", "veiled"]

UNREACHED = "cannot be reached, or is not a Redis or Valkey server"
REMEDY = (
    "Check the address, the port, TLS, and the network's rules; the log of the API's server, or of "
    "its worker, has the cause."
)
_log = logs.logger(__name__)


class NotAllowed(LinkError):
    """The server may not be dialled, by the operator's rules."""


def unreached(error: LinkError, name: str) -> LinkError:
    """What is raised in the place of `error`, by which a server could not be reached."""
    if not veiled() or isinstance(error, NotAllowed):
        return error
    _log.warning("%s", error.message, extra={"end": error.fault})
    return LinkError(f"{name} {UNREACHED}.", remedy=REMEDY, fault=error.fault)


async def addresses(endpoint: Endpoint, name: str) -> list[str] | None:
    """The addresses at which `endpoint` may be dialled, or its socket's path without links; None:
    nothing is limited, its name or path will do.

    `name` is how messages call it. Raises `NotAllowed` where none may be, and `socket.gaierror`.
    """
    found = allowed_endpoints.rules()
    if found is None:
        return None
    if endpoint.unix_path is not None:
        path = os.path.realpath(endpoint.unix_path)  # noqa: ASYNC240 (a few lstats)
        if found.allow_path(path):
            return [path]
        raise _not_allowed(name)
    if endpoint.connect_command:
        # The command looks the name up, maybe elsewhere: an address alone can be judged here.
        try:
            if found.allow(endpoint.host, ipaddress.ip_address(endpoint.host), endpoint.port):
                return [endpoint.host]
        except ValueError:
            pass
        raise _not_allowed(name)
    rows = await asyncio.get_running_loop().getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM
    )
    judged = [
        str(row[4][0])
        for row in rows
        if found.allow(
            endpoint.host, ipaddress.ip_address(str(row[4][0]).split("%", 1)[0]), endpoint.port
        )
    ]
    if not judged:
        raise _not_allowed(name)
    return list(dict.fromkeys(judged))


def _not_allowed(name: str) -> NotAllowed:
    return NotAllowed(
        f"{name} is not among the servers that this engine may connect to.",
        remedy="The operator of the API's server can allow it: serve --allow-endpoint.",
        fault="user",
    )
