"""A scan over a long line: how many round trips it takes, and that it misses nothing."""

from __future__ import annotations

import random

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.checkpoint import Checkpoint
from engine.model.position import ScanPosition
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.library import copied, copying
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing

KEYS = 60_000
ROUND_TRIP = 0.3
# One page of SCAN a round trip takes sixteen for so many keys; six more go to what SCAN does not
# name. Side by side it is eight in all.
MOST = 14.0


def fill(server: Server, keys: int) -> None:
    client = server.client()
    for at in range(0, keys, 10_000):
        client.mset({f"key:{n}": f"value {n}" for n in range(at, at + 10_000)})


def test_pages_come_beside_each_other(server_factory: ServerFactory) -> None:
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    fill(source, KEYS)
    with Proxy(source.host, source.port) as far:
        far.delay(ROUND_TRIP / 2)
        report = copied(far, target, skip_checks=("clocks",)).report
    assert report.status == "done", report.errors
    assert target.client().dbsize() == KEYS
    # (Of a table whose size changes meanwhile some would come twice.)
    assert KEYS <= report.keys <= KEYS * 1.005
    taken = next(step.seconds for step in report.steps if step.name == "snapshot") / ROUND_TRIP
    print(f"{KEYS:,} keys in {taken:.1f} round trips")
    assert taken < MOST


def resize(client: redis.Redis, turn: int) -> None:
    """Add and delete keys of its own, so that the table grows and shrinks again and again."""
    names = [f"moving:{20_000 * turn + i}" for i in range(20_000)]
    pipe = client.pipeline(transaction=False)
    for at in range(0, len(names), 1000):
        pipe.mset(dict.fromkeys(names[at : at + 1000], "x"))
    for at in range(0, len(names), 1000):
        pipe.delete(*names[at : at + 1000])
    pipe.execute()


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
    with Proxy(source.host, source.port) as far, writing(resize, server=source):
        far.delay(0.005)
        far.throttle(1_500_000)
        with copying(far, target, checkpoints=checkpoints, batch_bytes=16 << 10) as run:
            for least in (300_000, 500_000):
                least += rng.randrange(100_000)
                run.wait_for(lambda least=least: far.bytes_down >= least, "bytes")  # type: ignore[misc]
                far.cut_now()
    report = run.report
    assert report.status == "done", report.errors
    client: redis.Redis = target.client()
    pipe = client.pipeline(transaction=False)
    for n in range(20_000):
        pipe.get(f"key:{n}")
    missing = [n for n, value in enumerate(pipe.execute()) if value != f"value {n}".encode()]
    assert not missing
    assert report.retries >= 1
    assert any(len(each.ranges) > 1 for each in positions)
