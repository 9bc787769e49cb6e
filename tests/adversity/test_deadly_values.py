"""A value at which the target's process ends, each time that it comes: harmless here, and the
process is ended by the test when the value passes the proxy before it."""

from __future__ import annotations

import hashlib
import random

import pytest

from engine.targets.suspects import REASON
from engine.transfer.transfer import Transfer
from tests.conftest import ServerFactory, known
from tests.online import cut_over, following, online, soon
from tests.proxy import Proxy
from tests.servers import Server
from tests.transfers import Run, transfer

# Bytes that no server compresses.
DEADLY = hashlib.sha512(b"deadly").digest()


class Deadly:
    """A target behind a proxy: its process ends when `DEADLY` is on its way to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ends = 0
        self.proxy = Proxy(server.host, server.port).start()
        self.proxy.watch(DEADLY, self.end)

    def end(self) -> None:
        self.ends += 1
        self.server.kill()
        self.server.restart()


@pytest.mark.parametrize(("path", "size"), [("scan", "short"), ("replica", "in pieces")])
def test_a_value_that_ends_the_target_is_isolated_and_named(
    path: str, size: str, server_factory: ServerFactory
) -> None:
    """After two ends with the same batch it is not sent again as it was: at the third, or the
    fourth where it was one of thousands, the value is known. All others arrive."""
    source = server_factory(known("redis-7.0"))
    target = Deadly(server_factory(known("redis-7.0")))
    client = source.client()
    client.mset({f"key:{n}": f"value {n}" for n in range(3000)})
    more = random.Random(1).randbytes(3_000_000 if size == "in pieces" else 10)
    client.rpush("deadly", DEADLY, more)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        # It names the key: whose value must not be read again and sent.
        client.rpush("deadly", "more")
        client.set("key:0", "newer")
        await soon(lambda: work.progress.not_carried == 1, "a key that is left out")
        client.delete("deadly")
        await cut_over(work, run, source)

    with target.proxy:
        if path == "scan":
            run = transfer(source, target.proxy, stream_above=1 << 20)
        else:
            run = online(source, target.proxy, steer, stream_above=1 << 20)
    report = run.report
    assert report.status == ("stopped" if path == "scan" else "done"), (report.errors, run.events)
    if path == "scan":
        assert [(each.key, each.reason) for each in report.not_carried] == [("deadly", REASON)]
    assert target.ends <= (4 if size == "short" else 3)
    there = target.server.client()
    assert there.dbsize() == 3000
    assert there.get("key:0") == (b"value 0" if path == "scan" else b"newer")


@pytest.mark.parametrize("way", ["a command", "a value read again"])
def test_a_command_that_ends_the_target_is_left_out(
    way: str, server_factory: ServerFactory
) -> None:
    """A target that keeps what it has comes back with the position before the transaction."""
    source = server_factory(known("redis-7.0"))
    options = "--appendonly", "yes", "--appendfsync", "always"
    target = Deadly(server_factory(known("redis-7.0"), *options))
    client = source.client()
    client.set("first", 1)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        pipe = client.pipeline(transaction=True)
        for n in range(50):
            pipe.incr(f"counter:{n}")
        if way == "a command":
            pipe.set("deadly", DEADLY)
        else:
            # The target has no such key to move: that fails there, and is mended by a reading.
            target.proxy.watch(DEADLY, target.end)
            target.server.client().delete("moves")
            pipe.rename("moves", "deadly")
        for n in range(50):
            pipe.incr(f"counter:{n}")
        pipe.execute()
        await soon(lambda: work.progress.not_carried == 1, "a key that is left out")
        client.incr("counter:0")
        client.append("deadly", "more")
        await soon(lambda: "deadly" in work.progress.reason, "a gate that it keeps closed")
        client.delete("deadly")
        await cut_over(work, run, source)

    if way != "a command":
        client.set("moves", DEADLY)
        # It passes once, in the snapshot.
        target.proxy.watch(b"nothing that comes", target.end)
    with target.proxy:
        run = online(source, target.proxy, steer)
    report = run.report
    assert report.status == "done", (report.errors, run.events)
    assert f"the key 'deadly' of database 0 is left out: {REASON}" in run.events
    assert target.ends <= 3
    there = target.server.client()
    assert there.get("counter:0") == b"3"
    assert all(there.get(f"counter:{n}") == b"2" for n in range(1, 50))
    assert not there.exists("deadly")
