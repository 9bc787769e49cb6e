"""Connections of the control plane, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import LinkError
from engine.model.endpoint import Endpoint
from engine.wire.admin import admin
from tests.conftest import ServerFactory
from tests.proxy import Proxy


async def test_a_cancellation_at_any_moment_ends_the_task(server_factory: ServerFactory) -> None:
    """Also in the moment in which a command is sent: a task that goes round for ever would be
    waited for for ever by who has cancelled it."""
    endpoint = Endpoint.parse(server_factory().url)

    async def goes_round(side: object) -> None:
        while True:
            await side.call("PING")  # type: ignore[attr-defined]

    for turns in range(12):
        async with admin(endpoint, timeout=5) as side:
            task = asyncio.create_task(goes_round(side))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=20)
            assert task.cancelled(), turns


@pytest.mark.parametrize("moment", ["the first command", "a later one"])
async def test_a_server_that_stands_still(moment: str, server_factory: ServerFactory) -> None:
    """It is given up after the time that it has, when it is dialled as well."""
    server = server_factory()
    with Proxy(server.host, server.port) as proxy:
        endpoint = Endpoint.parse(f"redis://:secret@{proxy.host}:{proxy.port}")
        server.client().config_set("requirepass", "secret")
        if moment == "the first command":
            proxy.stall()
            with pytest.raises(LinkError):
                async with admin(endpoint, timeout=0.5):
                    pass
            return
        async with admin(endpoint, timeout=0.5) as side:
            await side.call("PING")
            proxy.stall()
            with pytest.raises(LinkError):
                await side.call("PING")
            # More than the kernel takes on its way.
            with pytest.raises(LinkError):
                await side.pipeline([("SET", "key", bytes(32 << 20))])
