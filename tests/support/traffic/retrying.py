"""Clients as applications have them: one write at a time, repeated until it is acknowledged.

    with Retrying(name, clients=3) as clients:
        ...
    assert clients.check(target) == []

They know one name (a proxy that leads to whichever server takes the writes), dial it again when
their link is lost, and repeat what was refused or left unanswered. Each client counts up a number
and adds members of its own to a list and to a set, so every acknowledged write can be looked for.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from typing import Self

import hiredis
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from tests.support.traffic.link import Link, address_of
from tests.support.traffic.thread import WritingThread

AGAIN_SECONDS = 0.02
"""The pause of a client before it repeats a write."""


class _Client(WritingThread):
    """One client: `acknowledged` and `doubtful` (sent, and the link lost) writes of its three keys.

    A write may be doubtful several times before it is acknowledged.
    """

    def __init__(self, server: Server | Proxy | str, number: int, rate: float) -> None:
        super().__init__(server, f"client {number}")
        self.keys = tuple(b"client:%d:%b" % (number, kind) for kind in (b"n", b"list", b"set"))
        self.acknowledged: Counter[tuple[bytes, int]] = Counter()
        self.doubtful: Counter[tuple[bytes, int]] = Counter()
        self.refused: Counter[str] = Counter()
        self.longest = 0.0
        """The longest time from one acknowledged write to the next, in seconds."""
        self._pause = 1 / rate
        self._link: Link | None = None

    def check(self, server: redis.Redis) -> list[str]:
        """What `server` lacks of this client's writes, or has too often."""
        count, items, members = self.keys
        number = int(server.execute_command("GET", count) or 0)
        listed = Counter(map(int, server.execute_command("LRANGE", items, 0, -1)))
        there = set(map(int, server.execute_command("SMEMBERS", members)))
        wrong = []
        low = sum(n for (key, _), n in self.acknowledged.items() if key == count)
        high = low + sum(n for (key, _), n in self.doubtful.items() if key == count)
        if not low <= number <= high:
            wrong.append(f"{count!r} is {number}, expected {low} to {high}")
        for key, found in ((items, listed), (members, Counter(there))):
            sure = {each for where, each in self.acknowledged if where == key}
            most = Counter[int]()
            for writes in (self.acknowledged, self.doubtful):
                for (where, each), n in writes.items():
                    most[each] += n if where == key else 0
            lost = sorted(sure - found.keys())
            doubled = sorted(each for each, n in found.items() if n > most[each])
            for what, which in (("lost", lost), ("too often", doubled)):
                if which:
                    wrong.append(f"{key!r}: {len(which)} {what}: {which[:10]}")
        return wrong

    def _run(self) -> None:
        last = time.monotonic()
        for number in itertools.count(1):
            for key, name in zip(self.keys, ("INCR", "RPUSH", "SADD"), strict=True):
                value = () if name == "INCR" else (b"%d" % number,)
                while not self._acknowledged(name, (name.encode(), key, *value), (key, number)):
                    # What was begun is finished, within a bound: a doubt at the very end is none
                    # of the migration's.
                    if self._stopping.wait(AGAIN_SECONDS):
                        return
                self.acknowledged[key, number] += 1
                now = time.monotonic()
                self.longest, last = max(self.longest, now - last), now
            if self._stopping.wait(self._pause):
                return

    def _acknowledged(self, name: str, words: tuple[bytes, ...], write: tuple[bytes, int]) -> bool:
        """Send one write; whether the server has acknowledged it."""
        sent = False
        try:
            if self._link is None:
                self._link = Link(self._address)
            self._link.queue(name.lower(), words)
            sent = True
            self._link.flush()
            ((_, reply),) = self._link.replies(0)
        except OSError:
            self.doubtful[write] += sent
            self._disconnect()
            return False
        if isinstance(reply, hiredis.ReplyError):
            self.refused[str(reply).split(" ", 1)[0]] += 1
            return False
        return True

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None


class Retrying:
    """`clients` clients of `name`, each with so many rounds of three writes a second."""

    def __init__(
        self, name: Server | Proxy | str, *, clients: int = 3, rate: float = 100.0
    ) -> None:
        self._clients = [_Client(name, number, rate) for number in range(clients)]

    def start(self) -> Self:
        """Begin to write."""
        for client in self._clients:
            client.start()
        return self

    def stop(self) -> None:
        """Write no more. Raises what ended a client."""
        for client in self._clients:
            client._stopping.set()
        for client in self._clients:
            client.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client._stopping.set()
        for client in self._clients:
            client.__exit__(*exc)

    @property
    def acknowledged(self) -> int:
        """Writes that were acknowledged so far."""
        return sum(client.acknowledged.total() for client in self._clients)

    def goes_on(self, seconds: float = 30.0, writes: int = 30) -> None:
        """Wait until so many more writes are acknowledged. Raises `AssertionError`."""
        wanted, deadline = self.acknowledged + writes, time.monotonic() + seconds
        while self.acknowledged < wanted:
            failed = [client.failure for client in self._clients if client.failure is not None]
            assert not failed, failed
            assert time.monotonic() < deadline, f"no writes for {seconds:g} s: {self.describe()}"
            threading.Event().wait(AGAIN_SECONDS)

    def check(self, server: Server | str) -> list[str]:
        """What `server` lacks, or has too often, a line a key; nothing if all is well."""
        with address_of(server).client() as client:
            wrong = [line for each in self._clients for line in each.check(client)]
            client.connection_pool.disconnect()
        return wrong

    def describe(self) -> str:
        """The counts, in a line."""
        doubtful = sum(client.doubtful.total() for client in self._clients)
        refused: Counter[str] = sum((client.refused for client in self._clients), Counter())
        longest = max(client.longest for client in self._clients)
        return (
            f"{self.acknowledged:,} writes acknowledged, {doubtful} doubtful, refused "
            f"{dict(refused) or 'none'}; the longest wait was {longest:.2f} s"
        )
