"""Clients that count up while a migration goes on: each one write at a time, at the source until it
refuses them, then at the target.

    with Clicks(source, target) as clicks:
        ...                  # the migration, to its end
        clicks.move()        # the clients are told of the target
        clicks.wait(500)
    assert clicks.wrong() == []
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Self

import redis

from benches.support.clusters import Cluster, slot_of
from benches.support.servers import Server
from benches.support.waiting import wait_for

PREFIX = b"{clicks:"
"""Begins the names of their keys, which have a hash tag each."""


class _Client:
    """Counts `key` up; `acknowledged` at either end, and `doubtful` where the link was lost."""

    def __init__(self, key: bytes, ends: tuple[Server, Server], pause: float) -> None:
        self.key = key
        self.acknowledged = [0, 0]
        self.doubtful = 0
        self.longest = 0.0
        self.moved = threading.Event()
        self.over = threading.Event()
        self._ends = ends
        self._pause = pause
        self.thread = threading.Thread(target=self._run, name="clicks", daemon=True)

    def value(self) -> int:
        """What the target has."""
        found = self._ends[1].client().get(self.key)
        return int(found or 0)

    def _run(self) -> None:
        clients = [
            end.client(retry=None, socket_timeout=60, client_name=None) for end in self._ends
        ]
        last = time.monotonic()
        while not self.over.is_set():
            end = int(self.moved.is_set())
            try:
                clients[end].incr(self.key)
            except redis.ConnectionError:
                self.doubtful += 1
                self.moved.wait(0.05)
                continue
            except redis.ResponseError:
                # The source refuses writes behind the cut-over.
                self.moved.wait(0.005)
                continue
            self.acknowledged[end] += 1
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.over.wait(self._pause)


class Clicks:
    """`count` clients, whose keys are in slots all over."""

    def __init__(
        self,
        source: Server | Cluster,
        target: Server | Cluster,
        *,
        count: int = 6,
        pause: float = 0.002,
    ) -> None:
        names = (PREFIX + b"%d}" % n for n in range(count))
        self._clients = [
            _Client(key, (_owner(source, key), _owner(target, key)), pause) for key in names
        ]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client.over.set()
            client.moved.set()
        for client in self._clients:
            client.thread.join(60)

    def move(self) -> None:
        """To the target with them."""
        for client in self._clients:
            client.moved.set()

    def wait(self, writes: int) -> None:
        """Until each has been acknowledged so many writes at the target."""
        wait_for(
            lambda: min(client.acknowledged[1] for client in self._clients) >= writes,
            f"{writes} writes of each client at the target",
        )

    def wrong(self) -> list[str]:
        """Each count that the target has and that cannot be, once the clients have ended."""
        found = []
        for client in self._clients:
            low, value = sum(client.acknowledged), client.value()
            if not low <= value <= low + client.doubtful:
                found.append(
                    f"{client.key!r} is {value}, expected {low} to {low + client.doubtful}"
                )
        return found

    def __str__(self) -> str:
        there, here = (sum(each.acknowledged[end] for each in self._clients) for end in (0, 1))
        doubtful = sum(each.doubtful for each in self._clients)
        longest = max(each.longest for each in self._clients)
        return (
            f"{there:,} writes acknowledged by the source, then {here:,} by the target "
            f"({doubtful} lost their link); the longest wait of a client was {longest:.2f} s"
        )


def _owner(end: Server | Cluster, key: bytes) -> Server:
    return end.owner(slot_of(key)) if isinstance(end, Cluster) else end


def without(keys: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Those that are not the clients'."""
    return list(itertools.filterfalse(lambda each: each[1].startswith(PREFIX), keys))
