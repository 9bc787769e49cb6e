"""What a server is made to read at a time."""

from __future__ import annotations

import pytest

from engine.model.endpoint import Endpoint
from engine.wire.dial import dial
from engine.wire.event_loop import run
from engine.wire.server_read_size import WIDEN_READS
from tests.support.servers import ServerFactory, known


@pytest.mark.parametrize("name", ["redis-7.0", "redis-8.0", "valkey-9.1"])
def test_a_server_reads_more_at_a_time(name: str, server_factory: ServerFactory) -> None:
    server = server_factory(known(name))
    client = server.client()

    async def main() -> list[int]:
        connection = await dial(Endpoint.parse(server.url), fault="target", timeout=10)
        try:
            own = await connection.call("CLIENT", "ID")
            found = []
            for _ in range(20):
                # A machine that stands still for seconds has the server give the buffer back.
                await connection.together(WIDEN_READS)
                (told,) = [each for each in client.client_list() if int(each["id"]) == own]
                found.append(int(told["qbuf"]) + int(told["qbuf-free"]))
                if found[-1] >= 64 << 10:
                    break
            return found
        finally:
            connection.close()

    assert run(main())[-1] >= 64 << 10
