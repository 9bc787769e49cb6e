"""A second writer that knows what the server must hold: was anything doubled, or lost?

Three keys: a number that is counted up, a string that is appended to, a list that is pushed to.
Each write has a number, which is appended and pushed. So of each number it can be told how often
it arrived, in both places: once if it was acknowledged; at most once if the link was lost before.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter

import hiredis
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from tests.support.traffic.link import Address, Link, address_of, wait_until_ready
from tests.support.traffic.thread import WritingThread

BATCH = 20

NUMBER, TEXT, LIST = b"counter:number", b"counter:text", b"counter:list"


class Counters(WritingThread):
    """Counts on `server` in a thread of its own, `rate` writes a second, in database `db`.

    `acknowledged` are the numbers whose writes were answered; `doubtful` those whose link was lost
    before. The database must not be one that other traffic flushes or swaps.
    """

    def __init__(self, server: Server | Proxy | str, *, db: int = 9, rate: float = 300.0) -> None:
        super().__init__(server, "counters")
        self.db = db
        self.rate = rate
        self.acknowledged: set[int] = set()
        self.doubtful: set[int] = set()
        self._link: Link | None = None

    def check(self, server: Server | str) -> list[str]:
        """What is doubled or lost on `server`, a line each; nothing if all is well."""
        number, text, items = self.read(address_of(server))
        wrong: list[str] = []
        for place, found in (("appended", text), ("pushed", items)):
            doubled = sorted(each for each, times in found.items() if times > 1)
            lost = sorted(self.acknowledged - found.keys())
            strange = sorted(found.keys() - self.acknowledged - self.doubtful)
            for what, numbers in (("doubled", doubled), ("lost", lost), ("unknown", strange)):
                if numbers:
                    wrong.append(f"{place}: {len(numbers)} {what}: {numbers[:10]}")
        low, high = len(self.acknowledged), len(self.acknowledged) + len(self.doubtful)
        if not low <= number <= high:
            wrong.append(f"counted: {number}, expected {low} to {high}")
        return wrong

    def read(self, address: Address) -> tuple[int, Counter[int], Counter[int]]:
        """The three keys: the count, and how often each number was appended and pushed.

        A source that was cut over is read too, whose clients are disconnected each second.
        """
        for _ in range(20):
            with contextlib.suppress(redis.ConnectionError):
                return self._read(address)
            time.sleep(0.05)
        return self._read(address)

    def _read(self, address: Address) -> tuple[int, Counter[int], Counter[int]]:
        with address.client() as client:
            client.execute_command("SELECT", self.db)
            pipe = client.pipeline(transaction=True)
            for command in (("GET", NUMBER), ("GET", TEXT), ("LRANGE", LIST, 0, -1)):
                pipe.execute_command(*command)
            number, text, items = pipe.execute()
            client.connection_pool.disconnect()
        appended = Counter(int(each) for each in (text or b"").split(b";") if each)
        return int(number or 0), appended, Counter(map(int, items))

    def _run(self) -> None:
        next_number = 1
        while not self._stopping.wait(BATCH / self.rate):
            numbers = range(next_number, next_number + BATCH)
            sent = False
            try:
                link = self._connected()
                for number in numbers:
                    # One transaction a number, so that the three agree whatever happens.
                    for words in (
                        (b"MULTI",),
                        (b"INCR", NUMBER),
                        (b"APPEND", TEXT, b"%d;" % number),
                        (b"LPUSH" if number % 2 else b"RPUSH", LIST, b"%d" % number),
                        (b"EXEC",),
                    ):
                        link.queue(words[0].decode().lower(), words)
                sent = True
                next_number = numbers.stop
                link.flush()
                done = (reply for name, reply in link.replies(0) if name == "exec")
                for number, reply in zip(numbers, done, strict=True):
                    if not isinstance(reply, hiredis.ReplyError):
                        self.acknowledged.add(number)
            except OSError:
                if sent:
                    self.doubtful.update(set(numbers) - self.acknowledged)
                self._disconnect()

    def _connected(self) -> Link:
        self._follow_the_server()
        if self._link is None:
            wait_until_ready(self._address)
            self._link = Link(self._address)
            self._link.queue("select", (b"SELECT", b"%d" % self.db))
            self._link.flush()
            list(self._link.replies(0))
        return self._link

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None
