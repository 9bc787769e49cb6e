"""One connection of the engine's, in control mode."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from engine._native import encode_command
from engine.errors import ServerError
from engine.model.endpoint import Endpoint
from engine.wire.dial import dial
from engine.wire.event_loop import run
from tests.support.servers import ServerFactory


def test_encoded_commands_go_together(server_factory: ServerFactory) -> None:
    server = server_factory()

    async def main() -> list[Any]:
        connection = await dial(Endpoint.parse(server.url), fault="target", timeout=10)
        try:
            commands = encode_command("SET", "k", "v") + encode_command("INCR", "k")
            replies = await connection.exchange(commands + encode_command("GET", "k"), 3)
            return [*replies, await connection.call("GET", "k")]
        finally:
            connection.close()

    stored, refused, *rest = run(main())
    assert (stored, rest) == (b"OK", [b"v", b"v"])
    assert isinstance(refused, ServerError)


@pytest.mark.parametrize("owed", [1, 3])
def test_replies_that_nobody_waits_for_any_more_are_no_news(
    owed: int, server_factory: ServerFactory
) -> None:
    server = server_factory()
    told: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(context["message"])
        )
        connection = await dial(Endpoint.parse(server.url), fault="target", timeout=10)
        waits = encode_command("BLPOP", "none", 0)
        waiting = asyncio.ensure_future(connection.exchange(waits * owed, owed))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        connection.close()
        del waiting
        gc.collect()
        await asyncio.sleep(0)

    run(main())
    assert not told
