"""valkey-glide. See the package."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from glide import (
    GlideClient,
    GlideClientConfiguration,
    GlideError,
    NodeAddress,
)


async def main(port: int) -> None:
    """Go on until killed."""
    addresses = [NodeAddress("127.0.0.1", port)]

    async def count() -> None:
        # Not its own limit of 250 ms: what a slow machine gives up the server counts alone.
        config = GlideClientConfiguration(addresses, request_timeout=5000)
        number, own = 0, await GlideClient.create(config)
        while True:
            with contextlib.suppress(GlideError):
                await own.incr("counter")
                number += 1
                print("ack", number, flush=True)
            await asyncio.sleep(0.001)

    async def pop() -> None:
        config = GlideClientConfiguration(addresses, request_timeout=5000)
        own = await GlideClient.create(config)
        while True:
            with contextlib.suppress(GlideError):
                if (item := await own.blpop(["queue"], timeout=1)) is not None:
                    print("popped", item[1].decode(), flush=True)
            await asyncio.sleep(0.001)

    async def listen() -> None:
        modes = GlideClientConfiguration.PubSubChannelModes
        wanted = GlideClientConfiguration.PubSubSubscriptions(
            {modes.Exact: {"channel"}}, None, None
        )
        config = GlideClientConfiguration(addresses, pubsub_subscriptions=wanted)
        own = await GlideClient.create(config)
        while True:
            with contextlib.suppress(GlideError):
                message = await own.get_pubsub_message()
                print("heard", bytes(message.message).decode(), flush=True)

    await asyncio.gather(count(), pop(), listen())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
