"""How much a client may ask of the server, and how long it may take over it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

from starlette.types import Receive

from engine import logs
from engine.front.http.common_errors import ValidationError
from engine.front.http.log_throttle import LogThrottle

BODY_MOST = 128 << 10
"""A request's body, and its query string (bytes). The largest request that makes sense has a few
kilobytes."""
BODY_SECONDS = 20.0
"""A body that is not there after this is not waited for."""
HEAD_SECONDS = 20.0
"""A connection on which no request begins, or whose head is not complete, ends after this."""
CONNECTIONS_MOST = 512
CONNECTIONS_OF_ONE = 256
"""So many of them may come from one address: a client that opens them and asks nothing leaves room
for the others. Several addresses could hold all of them: where there is no room, one of them gives
way (`admit`)."""
AT_ONCE = 16
"""So many operations run at once; the others wait in line."""
CHANGES_AT_ONCE = 4
"""So many changes run at once, in a line of their own: while another process has the state locked
each of them holds a thread for as long as the lock is waited for, and reading does not wait."""
SLOW_AT_ONCE = 4
"""So many operations that talk to servers run at once. Changes among them (starts) are counted by
themselves, and wait in line; for others there is no line."""
OPERATION_SECONDS = 60.0

_log = logs.logger(__name__)
_refusals, _exchanges = LogThrottle(lines=1, seconds=60), LogThrottle(lines=1, seconds=60)

Headers = Sequence[tuple[str, str]]


class Guest(Protocol):
    """A connection that counts."""

    @property
    def address(self) -> str:
        """The client's address."""

    @property
    def leaving(self) -> bool:
        """Whether it has given way already, and is about to end."""

    def waits(self) -> tuple[int, float] | None:
        """A rank, and since when (the loop's time) it is there without a whole request: rank 0,
        or 1 where the client has not taken its answer. None: it has asked and is being answered,
        so it does not give way."""

    def give_way(self) -> None:
        """End at once."""


def admit(client: str, guests: Iterable[Guest]) -> bool:
    """Whether one more connection of `client` (an address) may come in beside `guests`.

    Where there are as many as there may be, one of them gives way: of the address that has most of
    them, and more than `client` has, the one that has waited longest without a whole request. So a
    client that asks finds room, however many connections others open and let wait.
    """
    here = [guest for guest in guests if not guest.leaving]
    if room_for(client, [guest.address for guest in here]):
        return True
    counts = Counter(_counted(guest.address) for guest in here)
    own = counts[_counted(client)]
    if own >= CONNECTIONS_OF_ONE:
        _warn(
            _refusals, "a connection of %s was refused: it has %d, which is the most", client, own
        )
        return False
    found = [
        ((-counts[_counted(guest.address)], *waits), guest)
        for guest in here
        if counts[_counted(guest.address)] > own and (waits := guest.waits()) is not None
    ]
    if not found:
        _warn(_refusals, "a connection of %s was refused: all %d are in use", client, len(here))
        return False
    (most, *_), last = min(found, key=lambda each: each[0])
    last.give_way()
    message = "all connections were in use: one of %s, which has %d, gave way to one of %s"
    _warn(_exchanges, message, last.address, -most, client)
    return True


def _warn(quiet: LogThrottle, message: str, *values: object) -> None:
    skipped = quiet.take()
    if skipped is not None:
        _log.warning(message + (f" ({skipped} more before it)" if skipped else ""), *values)


def room_for(client: str, others: Iterable[str]) -> bool:
    """Whether one more connection of `client` (an address) may come in beside those of `others`.

    Of IPv6 addresses the first 64 bits count: one machine has all of the rest.
    """
    who = _counted(client)
    inside, same = 0, 0
    for other in others:
        inside += 1
        same += _counted(other) == who
    return inside < CONNECTIONS_MOST and same < CONNECTIONS_OF_ONE


@lru_cache(maxsize=CONNECTIONS_MOST * 2)
def _counted(client: str) -> str:
    if ":" not in client:
        return client
    try:
        address = ipaddress.IPv6Address(client.split("%", 1)[0])
    except ValueError:
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(int(address) >> 64)


async def read_body(receive: Receive, headers: Headers) -> bytes:
    """The request's body. Raises `ValidationError` for one that is too long or too slow, and does
    not read on."""
    for name, value in headers:
        # h11 has checked that it is a number; it is looked at here so that nothing is read.
        if name == "content-length" and int(value) > BODY_MOST:
            raise _too_long()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ValidationError("The request ended before its body.")
                body += message.get("body", b"")
                if len(body) > BODY_MOST:
                    raise _too_long()
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ValidationError(f"The body did not arrive within {BODY_SECONDS:g} s.") from None


def _too_long() -> ValidationError:
    return ValidationError(f"The request is longer than {BODY_MOST:,} bytes.")
