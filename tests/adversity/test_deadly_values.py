"""A value at which the target's process ends, each time that it comes: harmless here, and the
process is ended by the test when the value passes the proxy before it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
from pathlib import Path

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine._native import key_slot
from engine.targets.crashing_values import REASON
from tests.reference.stream import command
from tests.support.counted_processes import Counted
from tests.support.library import copied, migrating
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known

# Bytes that no server compresses.
DEADLY = hashlib.sha512(b"deadly").digest()


KEEPS = "--appendonly", "yes", "--appendfsync", "always"


class CrashingCommands:
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
    target = CrashingCommands(server_factory(known("redis-7.0")))
    client = source.client()
    client.mset({f"key:{n}": f"value {n}" for n in range(3000)})
    more = random.Random(1).randbytes(3_000_000 if size == "in pieces" else 10)
    client.rpush("deadly", DEADLY, more)

    with target.proxy:
        if path == "scan":
            run = copied(source, target.proxy, stream_above=1 << 20)
        else:
            with migrating(source, target.proxy, stream_above=1 << 20) as run:
                run.following()
                # It names the key: whose value must not be read again and sent.
                client.rpush("deadly", "more")
                client.set("key:0", "newer")
                run.wait_for(lambda: run.progress.not_carried == 1, "a key that is left out")
                client.delete("deadly")
                run.cut_over()
    report = run.report
    assert report.status == ("stopped" if path == "scan" else "done"), (report.errors, run.events)
    if path == "scan":
        assert [(each.key, each.reason) for each in report.not_carried] == [("deadly", REASON)]
    assert target.ends <= (4 if size == "short" else 3)
    there = target.server.client()
    assert there.dbsize() == 3000
    assert there.get("key:0") == (b"value 0" if path == "scan" else b"newer")


@pytest.mark.parametrize("kind", ["rdb", "aof"])
def test_a_value_of_a_snapshot_in_a_file_is_isolated_and_named(
    kind: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """What an append-only file does with such a key behind its snapshot would leave a fragment."""
    source = server_factory(known("redis-7.0"), "--save", "")
    client = source.client()
    client.mset({f"key:{n}": f"value {n}" for n in range(500)})
    client.rpush("deadly", DEADLY)
    client.save()
    path = tmp_path / "file"
    written = (source.folder / "dump.rdb").read_bytes()
    if kind == "aof":
        written += command(b"RPUSH", b"deadly", b"more") + command(b"INCR", b"counter")
    path.write_bytes(written)
    target = CrashingCommands(server_factory(known("redis-7.0"), "--save", ""))
    with target.proxy:
        run = copied(f"{kind}:{path}", target.proxy, source_type="auto", retry_for=60.0)
    report = run.report
    assert report.status == "stopped", (report.errors, run.events)
    assert [(each.key, each.reason) for each in report.not_carried] == [("deadly", REASON)]
    assert target.ends <= 3
    there = target.server.client()
    assert not there.exists("deadly")
    assert there.mget("key:0", "key:499") == [b"value 0", b"value 499"]
    assert there.get("counter") == (b"1" if kind == "aof" else None)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_command_of_a_file_that_ends_the_target_is_left_out(
    keeps: bool, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """Whether the target comes back with what it had or with nothing: no other command is lost,
    or applied twice."""
    several = [word for n in range(9) for word in (b"deadly:%d" % n, DEADLY)]
    counters = b"".join(command(b"INCR", b"counter:%d" % (n % 50)) for n in range(2500))
    path = tmp_path / "appendonly.aof"
    path.write_bytes(
        counters
        + command(b"MSET", *several)
        + counters
        + command(b"APPEND", b"deadly:3", b"more")
        + command(b"DEL", b"deadly:4")
        + command(b"SET", b"deadly:4", b"harmless")
    )
    options = ("--appendonly", "yes", "--appendfsync", "always") if keeps else ("--save", "")
    target = CrashingCommands(server_factory(known("redis-7.0"), *options))
    with target.proxy:
        run = copied(f"aof:{path}", target.proxy, source_type="auto", retry_for=60.0)
    report = run.report
    assert report.status == "stopped", (report.errors, run.events)
    lost = {each.key: each.reason for each in report.not_carried}
    assert lost == {f"deadly:{n}": REASON for n in range(9) if n != 4}
    assert target.ends <= 4
    there = target.server.client()
    assert all(there.get(f"counter:{n}") == b"100" for n in range(50))
    assert there.keys("deadly:*") == [b"deadly:4"]
    assert there.get("deadly:4") == b"harmless"


def test_a_value_that_comes_with_another_full_sync_is_isolated(
    server_factory: ServerFactory,
) -> None:
    """The stream is lost in the follow phase; the value is in the snapshot that comes instead."""
    source = server_factory(known("redis-7.0"), "--repl-backlog-size", "16kb")
    target = CrashingCommands(server_factory(known("redis-7.0")))
    client = source.client()
    client.mset({f"key:{n}": f"value {n}" for n in range(500)})
    link = Proxy(source.host, source.port)

    with link, target.proxy, migrating(link, target.proxy, retry_for=60.0) as run:
        run.following()
        link.refuse()
        link.cut_now()
        client.rpush("deadly", DEADLY)
        client.set("long", bytes(100_000))
        link.refuse(False)
        run.wait_for(lambda: run.progress.not_carried == 1, "a key that is left out")
        run.following()
        client.delete("deadly")
        run.cut_over(source)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert f"the key 'deadly' of database 0 is left out: {REASON}" in run.events
    assert target.ends <= 3
    there = target.server.client()
    assert there.dbsize() == 501
    assert there.get("key:499") == b"value 499"


@pytest.mark.parametrize("way", ["a command", "a value read again"])
def test_a_command_that_ends_the_target_is_left_out(
    way: str, server_factory: ServerFactory
) -> None:
    """A target that keeps what it has comes back with the position before the transaction."""
    source = server_factory(known("redis-7.0"))
    target = CrashingCommands(server_factory(known("redis-7.0"), *KEEPS))
    client = source.client()
    client.set("first", 1)

    if way != "a command":
        client.set("moves", DEADLY)
        # It passes once, in the snapshot.
        target.proxy.watch(b"nothing that comes", target.end)
    with target.proxy, migrating(source, target.proxy) as run:
        run.following()
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
        run.wait_for(lambda: run.progress.not_carried == 1, "a key that is left out")
        # Another process would not know of it, and send it again.
        assert not run.call(lambda: run.work._way.lanes[0].may_move)  # type: ignore[union-attr]
        client.incr("counter:0")
        client.append("deadly", "more")
        run.wait_for(lambda: "deadly" in run.progress.reason, "a gate that it keeps closed")
        client.delete("deadly")
        run.cut_over()
    report = run.report
    assert report.status == "done", (report.errors, run.events)
    assert f"the key 'deadly' of database 0 is left out: {REASON}" in run.events
    assert target.ends <= 3
    there = target.server.client()
    assert there.get("counter:0") == b"3"
    assert all(there.get(f"counter:{n}") == b"2" for n in range(1, 50))
    assert not there.exists("deadly")


def test_what_was_left_out_is_not_sent_by_another_lane(scenario: NewScenario) -> None:
    """Neither by the process that takes the lane up behind a killed one, nor by the lane to which
    the key's slot moves."""
    s = scenario("redis-7.0", "redis-7.0", source_shards=2, target_shards=2, target_options=KEEPS)
    s.load()
    here, slot = s.clusters["target"], key_slot(b"deadly")
    nodes = [CrashingCommands(node) for node in here.nodes]
    processes = Counted()
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.enter_context(node.proxy)
        run = stack.enter_context(
            s.running(
                lanes_per_worker=1,
                processes=processes,
                timeout=120.0,
                retry_for=60.0,
                address_map=tuple(f"{_at(node.server)}={_at(node.proxy)}" for node in nodes),
            )
        )
        run.following()
        with s.clusters["source"].client() as client:
            client.rpush("deadly", DEADLY)
            run.wait_for(lambda: run.progress.not_carried == 1, "a key that is left out")
            ends = sum(node.ends for node in nodes)
            assert 0 < ends <= 3
            for process in list(processes.started):
                os.kill(process.pid, signal.SIGKILL)
            run.wait_for(lambda: len(processes.started) == 4, "other processes")
            client.rpush("deadly", "more")
            client.set("{deadly}", "behind it")
            run.wait_for(
                lambda: here.owner(slot).client().get("{deadly}") == b"behind it", "it goes on"
            )
            other = next(node for node in here.primaries if node is not here.owner(slot))
            here.move([slot], other)
            run.wait_for(
                lambda: any("slots have moved: " in each for each in run.events), "other lanes"
            )
            client.set("{deadly}", "behind the move")
            run.wait_for(lambda: other.client().get("{deadly}") == b"behind the move", "it goes on")
            run.wait_for(lambda: "deadly" in run.progress.reason, "a gate that it keeps closed")
            assert sum(node.ends for node in nodes) == ends, run.events
            client.delete("deadly")
        run.cut_over(again="slots")
    assert run.report.status == "done", (run.report.errors, run.events)


def _at(end: Server | Proxy) -> str:
    return f"{end.host}:{end.port}"
