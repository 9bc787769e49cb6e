"""Clients as applications have them: one write at a time, repeated until it is acknowledged.

    with Retrying(name, clients=3) as clients:
        ...
    assert clients.check(target) == []

They know one name (a proxy that leads to whichever server takes the writes), or a cluster, dial
again when their link is lost, and repeat what was refused or left unanswered. Each client counts up
a number and adds members of its own to a list and to a set, so every acknowledged write can be
looked for. Every fourth round is a transaction of the three.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Self

import hiredis

from tests.support.traffic.link import Address, Link
from tests.support.traffic.nodes import End, Nodes
from tests.support.traffic.thread import WritingThread

AGAIN_SECONDS = 0.02
"""The pause of a client before it repeats a write."""


Words = tuple[bytes, ...]
Write = tuple[bytes, int]
"""(the key, the number of the write)."""


class _Client(WritingThread):
    """One client: `acknowledged` and `doubtful` (sent, and the link lost) writes of its three keys.

    A write may be doubtful several times before it is acknowledged.
    """

    def __init__(self, end: End, number: int, rate: float, replicas: int) -> None:
        super().__init__(end, f"client {number}")
        # In one slot, which is another for each client.
        self.keys = tuple(b"client:{%d}:%b" % (number, kind) for kind in (b"n", b"list", b"set"))
        self.acknowledged: Counter[tuple[bytes, int]] = Counter()
        self.doubtful: Counter[tuple[bytes, int]] = Counter()
        self.refused: Counter[str] = Counter()
        self.longest = 0.0
        """The longest time from one acknowledged write to the next, in seconds."""
        self._pause = 1 / rate
        self._replicas = replicas
        self._links: dict[Address, Link] = {}

    def check(self, nodes: Nodes) -> list[str]:
        """What an end lacks of this client's writes, or has too often."""
        count, items, members = self.keys
        with nodes.of(count).client() as server:
            number = int(server.execute_command("GET", count) or 0)
            listed = Counter(map(int, server.execute_command("LRANGE", items, 0, -1)))
            there = set(map(int, server.execute_command("SMEMBERS", members)))
            server.connection_pool.disconnect()
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
            writes = [
                ((name, key, *(() if name == b"INCR" else (b"%d" % number,))), (key, number))
                for key, name in zip(self.keys, (b"INCR", b"RPUSH", b"SADD"), strict=True)
            ]
            together = [writes] if number % 4 == 0 else [[each] for each in writes]
            for unit in together:
                while not self._acknowledged(unit):
                    # What was begun is finished, within a bound: a doubt at the very end is none
                    # of the migration's.
                    if self._stopping.wait(AGAIN_SECONDS):
                        return
                self.acknowledged.update(write for _, write in unit)
                now = time.monotonic()
                self.longest, last = max(self.longest, now - last), now
            if self._stopping.wait(self._pause):
                return

    def _acknowledged(self, unit: Sequence[tuple[Words, Write]]) -> bool:
        """Send one write, or several as a transaction; whether the server has acknowledged them."""
        commands = [words for words, _ in unit]
        if len(unit) > 1:
            commands = [(b"MULTI",), *commands, (b"EXEC",)]
        sent = False
        try:
            self._follow_the_server()
            address = self._nodes.of(self.keys[0])
            asked: tuple[Words, ...] = ()
            for _ in range(3):
                link = self._link(address)
                for words in (*asked, *commands):
                    link.queue(words[0].decode().lower(), words)
                sent = True
                link.flush()
                said = {reply for _, reply in link.replies(0) if _is_error(reply)}
                if not said:
                    return self._replicated(link, unit)
                # The cause, not what EXEC makes of it.
                text = min(map(str, said), key=lambda each: each.startswith("EXECABORT"))
                redirected = next((str(each) for each in said if _leads_on(each)), None)
                if redirected is None:
                    break
                # Nothing ran: EXEC fails if one of its commands was not queued.
                kind, _, place = redirected.split(" ")[:3]
                host, _, port = place.rpartition(":")
                address = Address(host or address.host, int(port), address.password)
                asked = ((b"ASKING",),) if kind == "ASK" else ()
                if kind == "MOVED":
                    self._nodes.learn()
        except OSError:
            for _, write in unit:
                self.doubtful[write] += sent
            self._disconnect()
            with contextlib.suppress(OSError):
                self._nodes.learn()
            return False
        self.refused[text.split(" ", 1)[0]] += 1
        if text.startswith(("CLUSTERDOWN", "READONLY")):
            with contextlib.suppress(OSError):
                self._nodes.learn()
        return False

    def _replicated(self, link: Link, unit: Sequence[tuple[Words, Write]]) -> bool:
        """Whether so many replicas have it as are asked for; else it is doubtful, and repeated."""
        if not self._replicas:
            return True
        link.queue("wait", (b"WAIT", b"%d" % self._replicas, b"1000"))
        link.flush()
        ((_, reply),) = link.replies(0)
        if not _is_error(reply) and int(reply) >= self._replicas:
            return True
        for _, write in unit:
            self.doubtful[write] += 1
        return False

    def _link(self, address: Address) -> Link:
        if address not in self._links:
            self._links[address] = Link(address)
        return self._links[address]

    def _disconnect(self) -> None:
        for link in self._links.values():
            link.close()
        self._links = {}


def _is_error(reply: object) -> bool:
    return isinstance(reply, hiredis.ReplyError)


def _leads_on(reply: object) -> bool:
    return str(reply).startswith(("MOVED ", "ASK "))


class Retrying:
    """`clients` clients of an end, each with so many rounds of three writes a second.

    With `replicas` a write counts as acknowledged once so many replicas of its server have it.
    """

    def __init__(
        self, end: End, *, clients: int = 3, rate: float = 100.0, replicas: int = 0
    ) -> None:
        self._clients = [_Client(end, number, rate, replicas) for number in range(clients)]

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

    def move_to(self, end: End) -> None:
        """Go on at another end: the one that took over."""
        for client in self._clients:
            client.move_to(end)

    def check(self, end: End) -> list[str]:
        """What an end lacks, or has too often, a line a key; nothing if all is well."""
        nodes = Nodes(end)
        return [line for each in self._clients for line in each.check(nodes)]

    def describe(self) -> str:
        """The counts, in a line."""
        doubtful = sum(client.doubtful.total() for client in self._clients)
        refused: Counter[str] = sum((client.refused for client in self._clients), Counter())
        longest = max(client.longest for client in self._clients)
        return (
            f"{self.acknowledged:,} writes acknowledged, {doubtful} doubtful, refused "
            f"{dict(refused) or 'none'}; the longest wait was {longest:.2f} s"
        )
