"""The writer: sends a sequence to a real server from a thread of its own, and counts."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Any, Self

import hiredis

from tests.support.traffic.link import Address, Link, wait_until_ready
from tests.support.traffic.nodes import End
from tests.support.traffic.sequence import Sequence, Unit
from tests.support.traffic.setup import prepare
from tests.support.traffic.specs import Specs
from tests.support.traffic.thread import WritingThread

BATCH = 60
"""Units that are sent before their replies are read."""

WAITING = 4
"""Commands of the second lane that may be unanswered before the writer waits for them."""


TAGS = tuple(b"t%d" % n for n in range(12))
"""The hash tags of traffic on a cluster: they fall into slots of every shard of two, three or five.
"""

NOT_ON_CLUSTERS = (
    "swapdb",  # refused there, as is MOVE where there is one database
    # Of several shards each would hold what its own clients loaded last.
    *("function|load", "function|delete", "function|flush", "function|restore"),
)


class Traffic(WritingThread):
    """Random traffic on a server, a proxy before one, a cluster, or what a URL leads to.

        with Traffic(server, seed=7) as traffic:
            ...
        print(traffic.describe())

    The same seed and server version give the same sequence of commands, moments aside. `rate` is
    in commands a second (None: as fast as it goes). `rare` is the probability of each FLUSHALL,
    FLUSHDB and SWAPDB; `without` names commands to leave out ("flushall").

    On a cluster the keys of what goes together have one of the hash tags `tags`; a slot's new owner
    is found, and what was answered MOVED, ASK or TRYAGAIN is an error like any other. For a source
    that goes into a cluster `tags` and `apart` (how often each key has a hash tag of its own) may
    be given as well.

    A server that goes away is waited for, and the sequence goes on; what was unanswered then is
    counted as `lost`. `issued`, `succeeded` (by command, those inside EXEC too), `errors` (by the
    error's first word) and `lost` may be read at any time.
    """

    def __init__(
        self,
        server: End,
        seed: int | str,
        *,
        databases: Seq[int] | None = None,
        rate: float | None = None,
        rare: float = 0.0001,
        without: Collection[str] = (),
        limit: int | None = None,
        tags: Seq[bytes] | None = None,
        apart: float = 0.0,
    ) -> None:
        super().__init__(server, "traffic")
        if self._nodes.clustered:
            without = (*without, *NOT_ON_CLUSTERS)
            if len(databases or ()) < 2:
                without = (*without, "move")
        if tags is None:
            tags = TAGS if self._nodes.clustered else ()
        if databases is None:
            databases = (0,) if self._nodes.clustered else (0, 1, 2)
        self.seed = seed
        self.rate = rate
        self.issued: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.lost = 0
        self.connections = 0
        self._options: dict[str, Any] = {
            "databases": databases,
            "rare": rare,
            "without": without,
            "tags": tags,
            "apart": apart,
        }
        # Which database each node's connection is in the sequence does not know.
        self._selects = self._nodes.clustered and len(databases) > 1
        self._limit = limit
        self._links: dict[tuple[Address, int], Link] = {}
        self._stale = False
        self._running = threading.Event()
        self._running.set()
        self._idle = threading.Event()

    # Its life.

    def start(self) -> Self:
        """Set the server up (functions, payloads; some 0.1 s) and begin to write."""
        specs, payloads = self._prepared()
        self.sequence = Sequence(specs, self.seed, payloads=payloads, **self._options)
        return super().start()

    def pause(self) -> None:
        """Send no more; returns when everything sent has been answered or lost."""
        self._idle.clear()
        self._running.clear()
        while self._thread.is_alive() and not self._idle.wait(0.05):
            pass

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running.set()

    def stop(self) -> None:
        """As every writer; a paused one too."""
        self._stopping.set()
        self._running.set()
        self.join()

    # What it tells.

    @property
    def scripts(self) -> list[str]:
        """The SHA1s of the scripts that it loads and calls."""
        return self.sequence.shas

    @property
    def commands(self) -> int:
        """Commands sent so far."""
        return self.issued.total()

    def never(self) -> list[str]:
        """Commands of the sequence that never succeeded so far."""
        return sorted(self.sequence.names - {name for name, n in self.succeeded.items() if n})

    def coverage(self) -> float:
        """The share of the sequence's commands that succeeded at least once."""
        return 1 - len(self.never()) / len(self.sequence.names)

    def describe(self) -> str:
        """The counts, in a few lines."""
        errors = ", ".join(f"{n:,} {code}" for code, n in self.errors.most_common())
        return (
            f"seed {self.seed}: {self.commands:,} commands, {self.succeeded.total():,} succeeded, "
            f"{self.lost:,} lost, {self.connections} connections; "
            f"{self.coverage():.0%} of {len(self.sequence.names)} kinds"
            f"\n  errors: {errors or 'none'}\n  never: {', '.join(self.never()) or 'none'}"
        )

    # The thread.

    def _prepared(self) -> tuple[Specs, dict[str, bytes]]:
        if not self._nodes.clustered:
            return prepare(self._address)
        for address in self._nodes.all:
            own = (b"%d" % n for n in itertools.count())
            tag = next(each for each in own if self._nodes.of(each) == address)
            found = prepare(address, tag)
        return found

    def _run(self) -> None:
        units = iter(self.sequence)
        started, sent_before = time.monotonic(), 0
        while not self._stopping.is_set():
            if not self._running.is_set():
                self._drain()
                self._idle.set()
                self._running.wait()
                started, sent_before = time.monotonic(), self.commands
                continue
            if self._limit is not None and self.commands >= self._limit:
                break
            batch = BATCH if self.rate is None else max(1, min(BATCH, int(self.rate / 50)))
            self._send([next(units) for _ in range(batch)])
            if self.rate is not None:
                ahead = (self.commands - sent_before) / self.rate - (time.monotonic() - started)
                if ahead > 0:
                    self._stopping.wait(ahead)
        self._drain()

    def _send(self, units: list[Unit]) -> None:
        """Send these units, and read the replies of all but the second lane's."""
        try:
            self._follow_the_server()
            if not self._links:
                self._connect()
            if self._stale:
                self._stale = False
                self._nodes.learn()
            for unit in units:
                link = self._link(self._nodes.of(b"{%b}" % unit.tag), unit.lane)
                if link.fresh or self._selects:
                    link.fresh = False
                    link.queue("select", (b"SELECT", b"%d" % unit.db))
                for name, words in unit.commands:
                    link.queue(name, words)
                    self.issued[name] += 1
            for link in self._links.values():
                link.flush()
            for (_, lane), link in self._links.items():
                self._take(link, WAITING if lane else 0)
        except OSError:
            self._disconnect()

    def _link(self, address: Address, lane: int) -> Link:
        if (address, lane) not in self._links:
            link = self._links[address, lane] = Link(address)
            link.fresh = not self._nodes.clustered
        return self._links[address, lane]

    def _take(self, link: Link, leave: int) -> None:
        for name, reply in link.replies(leave):
            if isinstance(reply, hiredis.ReplyError):
                self.failed[name] += 1
                code = str(reply).split(" ", 1)[0]
                self.errors[code] += 1
                self._stale |= code in ("MOVED", "READONLY", "CLUSTERDOWN")
            else:
                self.succeeded[name] += 1

    def _drain(self) -> None:
        try:
            for link in self._links.values():
                self._take(link, 0)
        except OSError:
            self._disconnect()

    def _connect(self) -> None:
        """Wait for the server for as long as it takes."""
        while not self._stopping.is_set():
            try:
                self._nodes.learn()
                for address in self._nodes.all:
                    wait_until_ready(address)
                    for lane in (0, 1):
                        self._link(address, lane)
            except OSError:
                self._stopping.wait(0.02)
            else:
                self.connections += 1
                return
        raise ConnectionAbortedError("stopped while the server was away")

    def _disconnect(self) -> None:
        for link in self._links.values():
            self.lost += link.unanswered
            link.close()
        self._links = {}
