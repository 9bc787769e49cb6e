"""How much a client may ask of the server, and how long it may take over it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import Receive

from engine.front.http.common_errors import ValidationError

BODY_MOST = 128 << 10
"""A request's body, and its query string (bytes). The largest request that makes sense has a few
kilobytes."""
BODY_SECONDS = 20.0
"""A body that is not there after this is not waited for."""
HEAD_SECONDS = 20.0
"""A connection on which no request begins, or whose head is not complete, ends after this."""
CONNECTIONS_MOST = 512
AT_ONCE = 16
"""So many operations run at once; the others wait in line."""
CHANGES_AT_ONCE = 4
"""So many changes run at once, in a line of their own: while another process has the state locked
each of them holds a thread for as long as the lock is waited for, and reading does not wait."""
SLOW_AT_ONCE = 4
"""So many operations that talk to servers run at once. Changes among them (starts) are counted by
themselves, and wait in line; for others there is no line."""
OPERATION_SECONDS = 60.0

Headers = Sequence[tuple[str, str]]


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
        raise ValidationError(f"The body was not there after {BODY_SECONDS:g} s.") from None


def _too_long() -> ValidationError:
    return ValidationError(f"The request is longer than {BODY_MOST:,} bytes.")
