"""Which server an endpoint's name stands for, as far as its addresses tell."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from collections.abc import Collection, Iterable, Mapping

from engine.model.endpoint import Endpoint

RESOLVE_SECONDS = 3.0
"""How long names may take. An unknown name is not our fault to tell: the preflight does."""


async def resolve(endpoints: Iterable[Endpoint]) -> Mapping[Endpoint, Collection[str]]:
    """The addresses of each endpoint, as `ip port` texts; loopback in either family is one.

    A name that is not known, or not in time, has none. Never raises.
    """
    wanted = list(endpoints)
    found = await asyncio.gather(*(_addresses(endpoint) for endpoint in wanted))
    return dict(zip(wanted, found, strict=True))


async def _addresses(endpoint: Endpoint) -> Collection[str]:
    if endpoint.file_path is not None or endpoint.looked_up or endpoint.connect_command:
        # It may be elsewhere in a moment: the preflight asks.
        return ()
    if endpoint.unix_path is not None:
        return {f"unix {os.path.realpath(endpoint.unix_path)}"}  # noqa: ASYNC240 (a few lstats)
    try:
        return {_canonical(str(ipaddress.ip_address(endpoint.host)), endpoint.port)}
    except ValueError:
        return await _look_up(endpoint.host, endpoint.port)


async def _look_up(host: str, port: int) -> Collection[str]:
    # A daemon thread of its own: the loop's executor would be waited for at exit, and a resolver
    # that hangs takes longer than an operator wants to wait.
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[set[str]] = loop.create_future()

    def look_up() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            rows = []
        found = {_canonical(str(row[4][0]), port) for row in rows}
        try:
            loop.call_soon_threadsafe(_settle, answer, found)
        except RuntimeError:
            return  # the loop is closed: nothing waits any more

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            return await answer
    except TimeoutError:
        return set()


def _settle(answer: asyncio.Future[set[str]], found: set[str]) -> None:
    if not answer.done():
        answer.set_result(found)


def _canonical(text: str, port: int) -> str:
    address = ipaddress.ip_address(text.split("%", 1)[0])
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    # The address "any", dialled, is this machine.
    if address.is_unspecified or str(address) in ("127.0.0.1", "::1"):
        return f"loopback {port}"
    return f"{address} {port}"
