"""Commands of many keys at a steady rate: each key that is dirty makes others dirty."""

from __future__ import annotations

import random
import threading
import time

import redis

from benches.support.engines import Migration
from benches.support.servers import Server
from engine.model.online_checkpoint import OWN_PREFIX

NAMES = 3000  # of each of three types
RATE = 1500.0  # commands a second
SECONDS = 60.0  # until an engine that was killed is in sync again


def fill(server: Server) -> None:
    """The keys that a `Mover` works on; a third of them with a TTL."""
    pipe = server.client().pipeline()
    for n in range(NAMES):
        pipe.sadd(f"set:{n}", *(f"m{member}" for member in range(4)))
        pipe.rpush(f"list:{n}", "a", "b")
        pipe.zadd(f"zset:{n}", {"a": 1, "b": n})
    # Deadlines are dirty apart from values, and go along with RENAME and COPY.
    for n in range(0, NAMES, 3):
        pipe.pexpire(f"list:{n}", 3_000_000).pexpire(f"set:{n}", 4_000_000)
    pipe.execute()


class Mover:
    """Commands that derive keys from others, at `RATE`, in a thread of its own."""

    def __init__(self, server: Server, seed: int) -> None:
        self._client = server.client()
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mover")
        self.sent = 0

    def __enter__(self) -> Mover:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Write no more. A second call does nothing."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(0.005):
            due = int((time.monotonic() - began) * RATE) - self.sent
            pipe = self._client.pipeline(transaction=False)
            for _ in range(min(due, 100)):
                pipe.execute_command(*self._command())
            # RENAME of a key that is not there is an error, as for any client.
            self.sent += len(pipe.execute(raise_on_error=False))

    def _command(self) -> tuple[str | int, ...]:
        rng = self._rng
        sets, lists, zsets = (
            [f"{kind}:{rng.randrange(NAMES)}" for _ in range(3)] for kind in ("set", "list", "zset")
        )
        commands: tuple[tuple[str | int, ...], ...] = (
            ("RENAME", sets[0], sets[1]),
            ("SUNIONSTORE", *sets),
            ("SDIFFSTORE", *sets),
            ("SMOVE", sets[0], sets[1], f"m{rng.randrange(9)}"),
            ("SADD", sets[0], f"m{rng.randrange(9)}"),
            ("COPY", lists[0], lists[1], "REPLACE"),
            ("LMOVE", lists[0], lists[1], "LEFT", "RIGHT"),
            ("ZUNIONSTORE", zsets[0], 2, *zsets[1:]),
        )
        return rng.choice(commands)


def killed(mover: Mover, migration: Migration, target: redis.Redis) -> tuple[float, list[int]]:
    """Kill the engine under `mover`'s commands and resume it: the seconds until the gate is open
    again, and how many keys were dirty meanwhile. Raises `AssertionError` after `SECONDS`."""
    written = mover.sent
    while mover.sent < written + RATE:
        time.sleep(0.05)
    migration.kill(within=0.05)
    migration.resume()
    resumed, counts = time.monotonic(), [0]
    # What the last transaction may lack is named as soon as it follows.
    while not (any(counts) and not counts[-1] and migration.migration()["CanComplete"]):
        counts.append(dirty(target))
        assert time.monotonic() < resumed + SECONDS, (counts, migration.story())
        time.sleep(0.05)
    return time.monotonic() - resumed, counts


def dirty(target: redis.Redis) -> int:
    """How many dirty keys are named on the target."""
    names = target.scan_iter(match=OWN_PREFIX.decode() + "dirty:*", count=1000)
    return sum(int(target.scard(name)) for name in names)
