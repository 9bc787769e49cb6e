"""A scan over a long line: how many round trips it takes, and that it misses nothing."""

from __future__ import annotations

import functools
import random
import threading

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.checkpoint import Checkpoint
from engine.model.position import ScanPosition
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.transfer import Transfer
from tests.support.servers import ServerFactory, known
from tests.support.transfers import Run, transfer, until

KEYS = 60_000
ROUND_TRIP = 0.3
# One page of SCAN a round trip takes sixteen for so many keys; six more go to what SCAN does not
# name. Side by side it is twelve in all.
MOST = 17.0


def fill(server: Server, keys: int) -> None:
    client = server.client()
    for at in range(0, keys, 10_000):
        client.mset({f"key:{n}": f"value {n}" for n in range(at, at + 10_000)})


def test_pages_come_beside_each_other(server_factory: ServerFactory) -> None:
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    fill(source, KEYS)
    with Proxy(source.host, source.port) as far:
        far.delay(ROUND_TRIP / 2)
        report = transfer(far, target, skip_checks=("clocks",)).report
    assert report.status == "done", report.errors
    assert target.client().dbsize() == KEYS
    # At the end of a range some keys come twice.
    assert KEYS <= report.keys <= KEYS * 1.1
    taken = next(step.seconds for step in report.steps if step.name == "snapshot") / ROUND_TRIP
    print(f"{KEYS:,} keys in {taken:.1f} round trips")
    assert taken < MOST


class Resizer:
    """Adds and deletes keys of its own, so that the table grows and shrinks again and again."""

    def __init__(self, server: Server) -> None:
        self._client = server.client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Resizer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        n = 0
        while not self._over.is_set():
            names = [f"moving:{n + i}" for i in range(20_000)]
            pipe = self._client.pipeline(transaction=False)
            for at in range(0, len(names), 1000):
                pipe.mset(dict.fromkeys(names[at : at + 1000], "x"))
            for at in range(0, len(names), 1000):
                pipe.delete(*names[at : at + 1000])
            pipe.execute()
            n += 20_000


@pytest.mark.parametrize("name", ["redis-3.2", "redis-8.2", "valkey-9"])
def test_nothing_is_missed_while_the_table_is_resized(
    server_factory: ServerFactory, name: str
) -> None:
    """And the link is lost twice, behind a position of ranges."""
    source, target = server_factory(known(name)), server_factory(known(name))
    fill(source, 20_000)
    rng = random.Random(name)
    positions: list[ScanPosition] = []

    class Noted(MemoryCheckpoint):
        def save(self, checkpoint: Checkpoint) -> None:
            if isinstance(checkpoint.position, ScanPosition):
                positions.append(ScanPosition.from_dict(checkpoint.position.to_dict()))
            super().save(checkpoint)

    checkpoints = Noted()
    with Proxy(source.host, source.port) as far, Resizer(source):
        far.delay(0.005)
        far.throttle(1_500_000)

        async def cut(work: Transfer, run: Run) -> None:
            for least in (300_000, 500_000):
                least += rng.randrange(100_000)
                await until(functools.partial(lambda least: far.bytes_down >= least, least))
                far.cut_now()

        report = transfer(
            far, target, meanwhile=cut, checkpoints=checkpoints, batch_bytes=16 << 10
        ).report
    assert report.status == "done", report.errors
    client: redis.Redis = target.client()
    pipe = client.pipeline(transaction=False)
    for n in range(20_000):
        pipe.get(f"key:{n}")
    missing = [n for n, value in enumerate(pipe.execute()) if value != f"value {n}".encode()]
    assert not missing
    assert report.retries >= 1
    assert any(len(each.ranges) > 1 for each in positions)
