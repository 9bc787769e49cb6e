"""What writes to a server while a test goes on: each in a thread of its own, until its block ends.

    with Clicks(source) as clicks, writing(lambda client, n: client.set("n", n), server=source):
        ...
    assert int(target.client().get(clicks.key)) == clicks.acknowledged

Random traffic and clients that repeat what is not acknowledged are in `tests.support.traffic`;
clients in processes of their own, with times, in `tests.support.timed_clients`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import redis

from benches.support.servers import Server

SILENCE_SECONDS = 60.0
"""A server that is paused is waited for, so long."""

Write = Callable[[redis.Redis, int], object]


class Clicks:
    """Counts a key up with INCR until it is refused: then it ends.

    `acknowledged` is the last reply's number, `at` when it came and `longest` the longest time
    between two replies (monotonic, in seconds); `refusal` is the error, empty before.
    Replicas refuse writes too: there it goes on at the next of `servers`, as a client that was told
    of the failover. `pause`: seconds between two writes.
    """

    def __init__(self, *servers: Server, key: str = "clicks", pause: float = 0.0) -> None:
        self.key = key
        self.acknowledged = 0
        self.at = time.monotonic()
        self.longest = 0.0
        self.refusal = ""
        self._servers = list(servers)
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clicks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(SILENCE_SECONDS)
        assert not self._thread.is_alive()

    def _next(self) -> redis.Redis:
        return self._servers.pop(0).client(socket_timeout=SILENCE_SECONDS, retry=None)

    def _run(self) -> None:
        client = self._next()
        while not self._over.is_set():
            try:
                self.acknowledged = int(client.incr(self.key))
            except redis.RedisError as error:
                if isinstance(error, redis.ReadOnlyError) and self._servers:
                    client = self._next()
                    continue
                self.refusal = str(error)
                return
            now = time.monotonic()
            if self.acknowledged > 1:
                self.longest = max(self.longest, now - self.at)
            self.at = now
            if self._pause:
                time.sleep(self._pause)


@contextlib.contextmanager
def writing(
    *writers: Write,
    server: Server,
    pause: float = 0.0,
    until_refused: bool = False,
) -> Iterator[None]:
    """Run each writer again and again with 0, 1, 2 …, to the end of the block.

    Args:
        pause: seconds between two turns of a writer.
        until_refused: an error of the server ends the writer; without this it fails the block.
    """
    over = threading.Event()
    failed: list[BaseException] = []
    ends: tuple[type[Exception], ...] = (redis.RedisError,) if until_refused else ()

    def run(write: Write) -> None:
        client = server.client(socket_timeout=SILENCE_SECONDS)
        try:
            for turn in itertools.count():
                if over.is_set():
                    return
                write(client, turn)
                if pause:
                    time.sleep(pause)
        except ends:
            return
        except BaseException as error:  # for the block's end
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in writers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(SILENCE_SECONDS)
    assert not failed, failed
    assert not any(thread.is_alive() for thread in threads)
