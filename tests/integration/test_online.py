"""The online path between real servers: snapshot, follow, cut over, while writes go on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis

from engine.model.progress import Phase
from tests.servers import Binary, Server
from tests.transfers import Run, transfer, until

ServerFactory = Callable[..., Server]


class Writer:
    """Writes to a server from a thread until it is stopped; counts what was acknowledged."""

    def __init__(self, server: Server, work: Callable[[redis.Redis, int], None]) -> None:
        self._server, self._work = server, work
        self._stop = threading.Event()
        self.turns = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client = self._server.client()
        while not self._stop.is_set():
            with contextlib.suppress(redis.RedisError):
                self._work(client, self.turns)
                self.turns += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


@contextlib.contextmanager
def writing(server: Server, work: Callable[[redis.Redis, int], None]) -> Iterator[Writer]:
    writer = Writer(server, work)
    try:
        yield writer
    finally:
        writer.stop()


def mixed(client: redis.Redis, turn: int) -> None:
    """A few commands that must be applied exactly once, over three databases."""
    pipe = client.pipeline(transaction=turn % 3 == 0)
    pipe.execute_command("SELECT", turn % 3)
    pipe.incr("counter")
    pipe.append(f"text:{turn % 50}", "x")
    pipe.lpush(f"list:{turn % 50}", str(turn))
    pipe.xadd("stream", {"turn": str(turn)}, maxlen=500)
    pipe.hincrby("hash", f"f{turn % 100}", 1)
    pipe.setrange("range", turn % 100, "abc")
    pipe.sunionstore("union", [f"set:{turn % 5}", "set:0"])
    pipe.sadd(f"set:{turn % 5}", str(turn % 1000))
    if turn % 10 == 0:
        pipe.eval(
            "redis.call('INCR', KEYS[1]) return redis.call('LPUSH', KEYS[2], ARGV[1])",
            2,
            "counter",
            "list:0",
            str(turn),
        )
    pipe.execute()


def fill(server: Server, keys: int = 3000) -> None:
    for db in (0, 1, 3):
        client = server.client(db)
        pipe = client.pipeline(transaction=False)
        for n in range(keys):
            pipe.set(f"key:{n}", f"value {n}", ex=3600 if n % 3 == 0 else None)
        pipe.hset("big", mapping={f"f{n}": "v" * 50 for n in range(500)})
        pipe.execute()


def online(source: Any, target: Any, **options: Any) -> Run:
    return transfer(source, target, source_type="replica", **options)


def test_moves_a_server_under_writes(
    pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    source, target = server_factory(pair[0]), server_factory(pair[1])
    fill(source)

    async def meanwhile(work: Any, result: Run) -> None:
        await until(lambda: work.progress.phase in (Phase.FOLLOW, Phase.CUT_OVER, Phase.DONE))

    with writing(source, mixed) as writer:
        time.sleep(0.1)
        result = online(source, target, until="in-sync", meanwhile=meanwhile, timeout=90)
        assert result.report.status == "done", result.report.errors
        assert result.report.full_syncs == 1
        assert writer.turns > 10
    assert target.client().exists("counter")
