"""Follow a source in the test's own process, and replay what it gives into a plain server.

Nothing of the engine's target side is used: RESTORE and the stream's commands go through redis-py,
one by one, so that what is tested is what the source gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine._native import CommandBatch, RecordBatch
from engine.model.endpoint import Endpoint
from engine.model.position import StreamPosition
from engine.model.settings import TransferSettings
from engine.sources.replica import ReplicaSource
from engine.wire.psync import FullSync
from tests.support.servers import offset_of, url_of

SECONDS = 60.0


@contextlib.asynccontextmanager
async def source_of(server: Server | Proxy, **settings: Any) -> AsyncIterator[ReplicaSource]:
    """A source that is not opened yet; closed at the end."""
    endpoint = Endpoint.parse(url_of(server))
    source = ReplicaSource(endpoint, TransferSettings(**{"retry_for": 10.0, **settings}))
    try:
        yield source
    finally:
        await source.close()


async def next_batch(source: ReplicaSource) -> CommandBatch:
    """The stream's next batch; waits for one."""
    while (batch := source.next_commands()) is None:
        await source.more()
    return batch


class Replay:
    """A target without any cleverness."""

    def __init__(self, server: Server) -> None:
        self._clients = {db: server.client(db) for db in range(16)}
        self.position: StreamPosition | None = None
        self.batches: list[CommandBatch] = []
        self.keys = 0

    async def snapshot(self, source: ReplicaSource, slowly: float = 0.0) -> None:
        """The snapshot to its end; `slowly`: seconds to rest after each item."""
        streamed: RecordBatch | None = None
        pieces: list[bytes] = []
        async for item in source.snapshot():
            if isinstance(item, RecordBatch):
                assert not item.errors
                if item.streamed:
                    streamed, pieces = item, []
                else:
                    await asyncio.to_thread(self._restore, item)
            else:
                pieces.append(item)
                assert streamed is not None
                if sum(map(len, pieces)) == streamed.value_size(0):
                    await asyncio.to_thread(self._restore, streamed, b"".join(pieces))
            await asyncio.sleep(slowly)

    async def follow_to(
        self, source: ReplicaSource, offset: int = 1 << 60, over: asyncio.Event | None = None
    ) -> None:
        """Commands until the stream has got to `offset`, or `over` is set.

        Waiting is given up now and then, as a caller with a timeout of its own does.
        """
        async with asyncio.timeout(SECONDS):
            while self.position is None or self.position.offset < offset:
                if over is not None and over.is_set():
                    return
                try:
                    async with asyncio.timeout(0.05):
                        batch = await next_batch(source)
                except TimeoutError:
                    continue
                if self.position is not None:
                    assert batch.start_offset == self.position.offset
                    assert batch.db_before == self.position.db
                await asyncio.to_thread(self._apply, batch)
                self.position = StreamPosition(
                    source.replid, batch.end_offset, batch.db_after, batch.in_multi_after
                )
                source.acknowledge(batch.end_offset)
                self.batches.append(batch)

    async def follow_all(self, source: ReplicaSource, server: Server) -> int:
        """To the end of the server's stream exactly, once nobody writes; returns its offset."""
        async with asyncio.timeout(SECONDS):
            while True:
                offset = offset_of(server)
                await self.follow_to(source, offset)
                # A PING, or the end of a key, may have come meanwhile.
                assert self.position is not None
                if self.position.offset == source.received_offset == offset_of(server):
                    return self.position.offset

    def _restore(self, batch: RecordBatch, value: bytes | None = None) -> None:
        pipe = self._clients[batch.db].pipeline(transaction=False)
        for i in range(len(batch)):
            at = batch.expire_at(i)
            payload = batch.value(i) if value is None else value
            more = ["ABSTTL"] if at is not None else []
            pipe.execute_command("RESTORE", batch.key(i), at or 0, payload, "REPLACE", *more)
        self.keys += len(batch)
        pipe.execute()

    def _apply(self, batch: CommandBatch) -> None:
        for db, run in itertools.groupby(range(len(batch)), key=batch.db):
            pipe = self._clients[db].pipeline(transaction=False)
            for i in run:
                pipe.execute_command(*batch.command(i))
            pipe.execute()


async def become_replica(
    source: ReplicaSource, replay: Replay, position: StreamPosition | None = None
) -> None:
    """Open, and take the snapshot if there is one."""
    sync = await source.open(position)
    if isinstance(sync, FullSync):
        replay.position = StreamPosition(sync.replid, sync.offset)
        await replay.snapshot(source)
        replay.position = None
