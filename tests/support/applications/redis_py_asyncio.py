"""redis-py's asyncio client. See the package."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import redis
import redis.asyncio


async def main(port: int) -> None:
    """Go on until killed."""

    def client() -> redis.asyncio.Redis:
        return redis.asyncio.Redis(port=port)

    async def count() -> None:
        number, own = 0, client()
        while True:
            with contextlib.suppress(redis.RedisError):
                await own.incr("counter")
                number += 1
                print("ack", number, flush=True)
            await asyncio.sleep(0.001)

    async def pop() -> None:
        own = client()
        while True:
            with contextlib.suppress(redis.RedisError):
                if (item := await own.blpop(["queue"], timeout=1)) is not None:
                    print("popped", item[1].decode(), flush=True)

    async def listen() -> None:
        messages = client().pubsub(ignore_subscribe_messages=True)
        await messages.subscribe("channel")
        while True:
            with contextlib.suppress(redis.RedisError):
                if (message := await messages.get_message(timeout=1)) is not None:
                    print("heard", message["data"].decode(), flush=True)

    await asyncio.gather(count(), pop(), listen())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
