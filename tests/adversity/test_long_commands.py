"""Commands of many MiB while a source is followed: each once, through whatever fails in the middle,
and in little memory."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

import pytest

from benches import procstat
from benches.support.engines import Migration
from benches.support.proxy import Direction, Proxy
from benches.support.servers import Server
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known, offset_of

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
LIMIT = 150 * MIB
"""Bytes of memory that the worker may have."""


def pair(server_factory: ServerFactory, name: str) -> tuple[Server, Server]:
    """A source that cuts no replica off over a long command, and has what one missed of it."""
    source, target = server_factory(known(name)), server_factory(known("redis-7.0"))
    source.client().config_set("client-output-buffer-limit", "replica 0 0 0")
    source.client().config_set("repl-backlog-size", 256 * MIB)
    return source, target


def follow(migration: Migration, source: Server | Proxy, target: Server | Proxy) -> None:
    migration.register(target)
    migration.start(source, "--source-type", "replica")
    migration.wait_for(lambda found: found["Phase"] == "FOLLOW")


def applied(migration: Migration, source: Server) -> None:
    """Wait until all that was written by now is on the target."""
    offset = offset_of(source)
    migration.wait_for(lambda found: int(found.get("AppliedOffset") or 0) >= offset)


def set_long(server: Server, key: bytes, size: int) -> None:
    """SET of a value of `size` bytes, without having all of them."""
    portion = os.urandom(MIB)
    with contextlib.closing(socket.create_connection((server.host, server.port))) as sock:
        sock.settimeout(60)
        sock.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size))
        for _ in range(size // MIB):
            sock.sendall(portion)
        sock.sendall(b"\r\n")
        assert sock.recv(16) == b"+OK\r\n"


def test_the_longest_one_takes_little_memory(
    server_factory: ServerFactory, migration: Migration
) -> None:
    """One argument of 512 MiB, which is the most that a server takes."""
    source, target = pair(server_factory, "redis-7.0")
    follow(migration, source, target)
    client = source.client()
    client.incr("before")
    set_long(source, b"long", 512 * MIB)
    client.incr("behind")
    applied(migration, source)
    (pid,) = migration.workers()
    assert procstat.peak_rss_bytes(pid) <= LIMIT
    there = target.client()
    assert there.mget("before", "behind") == [b"1", b"1"]
    assert there.strlen("long") == 512 * MIB
    for at in (0, 77 * MIB + 5, 511 * MIB):
        found = there.getrange("long", at, at + MIB - 1)
        assert found == client.getrange("long", at, at + MIB - 1)
    assert client.info("stats")["sync_full"] == 1


def test_each_is_applied_once_whatever_is_cut(
    server_factory: ServerFactory, migration: Migration
) -> None:
    """Its bytes are on their way from the source, or to the target, when the link is cut or the
    worker is killed. What is appended twice, or not at all, shows in the lengths."""
    source, target = pair(server_factory, "redis-7.0")
    with Proxy(source.host, source.port) as to_source, Proxy(target.host, target.port) as to_target:
        client = source.client()
        follow(migration, to_source, to_target)

        def write(turn: int) -> None:
            pipe = client.pipeline(transaction=turn % 2 == 0)
            pipe.rpush("list", turn)
            pipe.append("long", bytes([turn]) + os.urandom(9 * MIB))
            pipe.rpush("list", -turn)
            pipe.execute()

        # The link, which of its directions has the bytes, and how many of them have passed.
        ends: list[tuple[Proxy, Direction, Callable[[], int]]] = [
            (to_source, "down", lambda: to_source.bytes_down),
            (to_target, "up", lambda: to_target.bytes_up),
        ]
        turn = 0
        for proxy, direction, passed in ends:
            turn += 1
            proxy.cut_after(4 * MIB, direction)
            write(turn)
            applied(migration, source)
            turn += 1
            proxy.throttle(4 * MIB)
            begin = passed()
            write(turn)
            migration.until(lambda: passed() - begin > MIB, "its middle")  # noqa: B023
            migration.kill()
            proxy.throttle(None)
            migration.resume()
            applied(migration, source)
        there = target.client()
        assert there.strlen("long") == turn * (9 * MIB + 1)
        assert there.lrange("list", 0, -1) == client.lrange("list", 0, -1)
        assert_settled(source, target, 1)
        migration.wait_for(lambda found: found["CanComplete"])
        migration.complete()
        assert client.info("stats")["sync_full"] == 1
    assert_tidy(target)


def test_every_kind_is_carried(server_factory: ServerFactory) -> None:
    """From a source whose TTLs are relative, so that commands are rewritten; several long
    arguments, units, scripts; and the link to the target is cut in the middle."""
    source, target = pair(server_factory, "redis-6.2")
    client = source.client()
    long = os.urandom(9 * MIB)

    def write() -> None:
        client.set("ex", long, ex=1000)
        client.execute_command("SETEX", "setex", 1000, long)
        client.mset({"one": long, "two": long})
        client.hset("hash", mapping={"a": long, "b": "short"})
        client.rpush("list", "a", long, "b")
        client.setrange("range", 5, long)
        client.xadd("stream", {"f": long})
        client.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, "by script", long)
        client.restore("restored", 1_000_000, client.dump("one"))
        client.publish("news", long)
        pipe = client.pipeline(transaction=True)
        for turn in range(3):
            pipe.append("appended", long[: 5 * MIB])
            pipe.rpush("turns", turn)
        pipe.execute()
        client.set("last", 1)

    with Proxy(target.host, target.port) as to_target, migrating(source, to_target) as run:
        run.following()
        to_target.cut_after(to_target.bytes_up + 40 * MIB, "up")
        write()
        run.wait_for(lambda: target.client().exists("last"), "the last command")
        assert run.progress.reconnects >= 1
        run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert target.client().strlen("appended") == 15 * MIB
    for key in ("ex", "setex", "restored"):
        assert 900_000 < target.client().pttl(key) <= 1_000_000, key
    assert_settled(source, target, 1)
    assert_tidy(target)
