"""The replica source against every server: snapshot and stream, exactly, whatever happens."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest
import redis

from benches import datasets
from benches.support.compare import TTL_BOUND_MS, assert_equal
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, TlsFiles, binaries, few_binaries, supports_tls
from benches.support.waiting import soon
from engine._native import encode_command
from engine.errors import (
    LinkError,
    ProtocolFault,
    PsyncRefused,
    SpoolFull,
    TransferStopped,
    UsageError,
)
from engine.model.position import StreamPosition
from engine.sources import replica
from engine.sources.replica import ReplicaSource
from engine.wire.psync import FullSync, PartialSync
from tests.support.followers import Replay, become_replica, next_batch, source_of
from tests.support.handshakes import connected, shake
from tests.support.replicas import until_in_step
from tests.support.servers import ServerFactory, offset_of
from tests.support.writers import writing

MIB = 1 << 20
CUT_OFF = "overcoming of output buffer limits"


def everything(client: redis.Redis, i: int) -> None:
    """Writes of every kind, some of which come out of the source as something else."""
    chosen = random.Random(i)
    key = f"w:{chosen.randrange(300)}"
    client.execute_command("SELECT", chosen.choice([0, 0, 0, 3, 9]))
    kind = chosen.randrange(9)
    if kind == 0:
        client.delete(key)
        client.set(key, chosen.randbytes(chosen.randrange(2000)))
    elif kind == 1:
        client.incr(f"n:{chosen.randrange(20)}")
    elif kind == 2:
        client.rpush(f"l:{chosen.randrange(20)}", i, i + 1)
    elif kind == 3:
        pipe = client.pipeline(transaction=True)
        pipe.hset(f"h:{chosen.randrange(20)}", f"f{i}", i)
        pipe.sadd(f"s:{chosen.randrange(20)}", i)
        pipe.execute()
    elif kind == 4:
        client.set(key, i, px=chosen.choice([1, 60_000, 600_000]))
    elif kind == 5:
        client.eval("redis.call('SET', KEYS[1], ARGV[1]); redis.call('INCR', 'n')", 1, key, i)
    elif kind == 6:
        client.spop(f"s:{chosen.randrange(20)}")
    elif kind == 7:
        client.expire(f"h:{chosen.randrange(20)}", 1000)
    else:
        client.zadd(f"z:{chosen.randrange(20)}", {str(i): i / 7})
    client.execute_command("SELECT", 0)


# Some servers one way, and one of them both ways.
ONE_WAY_OR_BOTH = [
    *((each, "yes" if n % 2 else "no") for n, each in enumerate(few_binaries())),
    (few_binaries()[0], "yes"),
]


@pytest.mark.parametrize(("binary", "diskless"), ONE_WAY_OR_BOTH, ids=str)
async def test_snapshot_and_stream_while_clients_write(
    binary: Binary, server_factory: ServerFactory, diskless: str
) -> None:
    server, target = (
        server_factory(binary, "--repl-diskless-sync", diskless),
        server_factory(binary),
    )
    await asyncio.to_thread(datasets.demo, server.url, n=3000)
    replay = Replay(target)
    async with source_of(server, batch_bytes=64 << 10, stream_above=1 << 20) as source:
        with writing(everything, everything, server=server):
            await become_replica(source, replay)
            await asyncio.sleep(1.0)
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(1.5, over.set)
            await replay.follow_to(source, over=over)
        offset = await replay.follow_all(source, server)
        assert source.snapshot_received
        assert replay.keys >= 3000
        assert sum(len(each) for each in replay.batches) > 100
        assert source.lag(offset) == (0, 0.0)
        # What the source's operator sees.
        await seen_by(server, lambda info: info["slave0"]["offset"] >= offset)
        assert server.client().info("replication")["connected_slaves"] == 1
    # Before 7.0 TTLs in the stream are relative, and this replay counts them from when it reads.
    bound = TTL_BOUND_MS if binary.version >= (7, 0, 0) else 10 * TTL_BOUND_MS
    await asyncio.to_thread(assert_equal, server.url, target.url, ttl_bound_ms=bound)


async def test_a_partial_sync_in_another_database(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server, target = server_factory(binary), server_factory(binary)
    replay = Replay(target)
    server.client(5).set("first", 1)
    async with source_of(server) as source:
        await become_replica(source, replay)
        server.client(5).set("second", 2)
        await replay.follow_all(source, server)
    before = replay.position
    assert before is not None
    assert before.db == 5
    # The stream does not say again which database this is.
    server.client(5).set("third", 3)
    server.client(2).set("other", 4)
    async with source_of(server) as source:
        assert await source.open(before) == PartialSync(before.replid, before.offset)
        assert [item async for item in source.snapshot()] == []
        await replay.follow_all(source, server)
    assert_equal(server.url, target.url)


async def test_a_partial_sync_inside_a_transaction(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    async with connected(server) as connection:
        full = await shake(connection)
    pipe = server.client().pipeline(transaction=True)
    for i in range(5):
        pipe.set(f"key:{i}", i)
    pipe.execute()
    end = offset_of(server)
    last = encode_command("SET", "key:4", 4) + encode_command("EXEC")
    inside = StreamPosition(full.replid, end - len(last), 0, True)
    async with source_of(server) as source:
        await source.open(inside)
        async with asyncio.timeout(60):
            batch = await next_batch(source)
            while batch.end_offset < end:
                batch = await next_batch(source)
    assert [batch.command(i) for i in range(len(batch))] == [[b"SET", b"key:4", b"4"]]
    assert not batch.in_multi_after


async def test_a_replica_is_followed_in_its_primarys_database(
    binary: Binary, server_factory: ServerFactory
) -> None:
    """A replica passes on the stream as it comes: nothing selects the database anew."""
    primary, server, target = (
        server_factory(binary),
        server_factory(binary),
        server_factory(binary),
    )
    server.client().replicaof(primary.host, str(primary.port))
    await asyncio.to_thread(until_in_step, server)
    set_and_wait(primary, "before", 1, db=7)
    replay = Replay(target)
    async with source_of(server) as source:
        await become_replica(source, replay)
        assert source.aux["repl-stream-db"] == b"7"
        set_and_wait(primary, "after", 2, db=7)
        await replay.follow_all(source, server)
    assert_equal(primary.url, target.url)


async def test_a_failover_of_the_source(binary: Binary, server_factory: ServerFactory) -> None:
    old, new, target = server_factory(binary), server_factory(binary), server_factory(binary)
    new.client().replicaof(old.host, str(old.port))
    await asyncio.to_thread(until_in_step, new)
    replay = Replay(target)
    async with source_of(old) as source:
        await become_replica(source, replay)
        old.client().set("one", 1)
        await replay.follow_all(source, old)
    set_and_wait(old, "two", 2)
    old.kill()
    new.client().replicaof("no", "one")
    new.client(1).set("three", 3)
    async with source_of(new) as source:
        before = replay.position
        assert before is not None
        answer = await source.open(before)
        assert isinstance(answer, PartialSync)
        assert source.replid == new.client().info("replication")["master_replid"] != before.replid
        await replay.follow_all(source, new)
    assert_equal(new.url, target.url)


async def test_a_cut_link_costs_nothing(binary: Binary, server_factory: ServerFactory) -> None:
    server, target = server_factory(binary), server_factory(binary)
    replay = Replay(target)
    with Proxy(server.host, server.port) as proxy:
        async with source_of(proxy) as source:
            events: list[str] = []
            source.on_event = events.append
            await become_replica(source, replay)
            with writing(everything, server=server):
                for at in (1, 70, 5000, 77_777, 0):
                    proxy.cut_after(at, "down")
                    cut = source.reconnects
                    over = asyncio.Event()
                    following = asyncio.create_task(replay.follow_to(source, over=over))
                    async with asyncio.timeout(60):
                        while source.reconnects == cut:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                    over.set()
                    await following
            await replay.follow_all(source, server)
            assert source.reconnects == 5
            assert len(events) >= 5
    assert server.client().info("stats")["sync_full"] == 1
    await asyncio.to_thread(assert_equal, server.url, target.url)


async def test_a_link_that_is_lost_while_the_source_is_let_go(
    server_factory: ServerFactory,
) -> None:
    """It is not made anew behind our back: two links would feed the stream that is opened next."""
    server = server_factory(binaries()[0])
    with Proxy(server.host, server.port) as proxy:
        async with source_of(proxy) as source:
            await become_replica(source, Replay(server_factory()))

            async def slow() -> None:
                """What a task of the source's may take to end, and meanwhile the link is cut."""
                try:
                    await asyncio.sleep(60)
                finally:
                    await asyncio.to_thread(proxy.refuse)
                    await asyncio.to_thread(proxy.cut_now)
                    await asyncio.sleep(0.2)

            source._start(slow())
            await asyncio.sleep(0.1)
            await source.close()
            assert not source._tasks
            proxy.refuse(False)
            connections = proxy.connections
            # A link that is made anew is tried more often than that.
            await asyncio.sleep(1.5)
            assert proxy.connections == connections
            assert not server.client().info("replication")["connected_slaves"]


async def test_what_was_received_is_given_when_the_source_is_gone(
    server_factory: ServerFactory,
) -> None:
    server, target = server_factory(), server_factory()
    replay = Replay(target)
    async with source_of(server, retry_for=0.5) as source:
        await become_replica(source, replay)
        for i in range(1000):
            server.client().set(f"key:{i}", i)
        offset = offset_of(server)
        async with asyncio.timeout(60):
            while source.received_offset < offset:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.kill()
        await asyncio.sleep(1.0)
        await replay.follow_to(source, offset)
        with pytest.raises(TransferStopped, match="cannot be reached"):
            await next_batch(source)
    assert target.client().dbsize() == 1000


async def test_a_backlog_that_does_not_reach_is_told(server_factory: ServerFactory) -> None:
    server = server_factory(binaries()[0], "--repl-backlog-size", "16kb")
    with Proxy(server.host, server.port) as proxy:
        async with source_of(proxy) as source:
            await become_replica(source, Replay(server_factory()))
            proxy.refuse()
            proxy.cut_now()
            for i in range(30):
                server.client().set(f"key:{i}", "x" * 10_000)
            proxy.refuse(False)

            async def to_the_end() -> None:
                async with asyncio.timeout(60):
                    while True:
                        await next_batch(source)

            with pytest.raises(LinkError, match="no longer has what follows") as caught:
                await to_the_end()
            assert "repl-backlog-size" in caught.value.remedy


async def test_what_waits_is_not_gone_through_when_a_full_sync_replaces_it(
    server_factory: ServerFactory,
) -> None:
    """The target may need hours for it. But if the source has another history, it may be the last
    copy of what was written."""
    server = server_factory(binaries()[0], "--repl-backlog-size", "16kb")
    client = server.client()
    with Proxy(server.host, server.port) as proxy:
        for restarted in (False, True):
            async with source_of(proxy) as source:
                await become_replica(source, Replay(server_factory()))
                parts = 40
                for i in range(parts):
                    client.set(f"key:{i}", os.urandom(MIB))
                offset = client.info("replication")["master_repl_offset"]
                async with asyncio.timeout(60):
                    while source.received_offset < offset:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                assert source.spooled > parts // 2 * MIB
                proxy.refuse()
                proxy.cut_now()
                if restarted:
                    await asyncio.to_thread(server.restart)
                client.set("key", "x" * 100_000)
                proxy.refuse(False)
                gone_at = source.received_offset
                async with asyncio.timeout(60):
                    # The source tells nobody before it is asked for more.
                    while source._lost is None:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                reached: list[int] = []

                async def to_the_end(source: ReplicaSource, reached: list[int]) -> None:
                    async with asyncio.timeout(60):
                        while True:
                            reached.append((await next_batch(source)).end_offset)

                with pytest.raises(LinkError, match="no longer has what follows"):
                    await to_the_end(source, reached)
                assert (reached[-1:] == [gone_at]) == restarted


async def test_a_link_cut_within_the_snapshot(server_factory: ServerFactory) -> None:
    server = server_factory()
    await asyncio.to_thread(datasets.strings, server.url, n=50_000, size=100)
    with Proxy(server.host, server.port) as proxy:
        async with source_of(proxy) as source:
            proxy.cut_after(2 * MIB, "down")
            with pytest.raises(LinkError):
                await become_replica(source, Replay(server_factory()))
            await source.close()
            # The same source, opened again.
            replay = Replay(server_factory())
            await become_replica(source, replay)
            assert replay.keys == 50_000


async def test_damaged_bytes_are_found(server_factory: ServerFactory) -> None:
    server = server_factory()
    await asyncio.to_thread(datasets.strings, server.url, n=50_000, size=100)
    with Proxy(server.host, server.port) as proxy:
        async with source_of(proxy) as source:
            # In the middle of the snapshot; the proxy has a thread of its own, and does not wait.
            proxy.corrupt(3 * MIB, "down")
            await source.open(None)
            with pytest.raises(
                ProtocolFault, match="snapshot that this engine cannot decode"
            ) as caught:
                await Replay(server_factory()).snapshot(source)
            assert caught.value.fault == "source"


async def test_over_tls(server_factory: ServerFactory, tls_files: TlsFiles) -> None:
    able = [each for each in binaries() if supports_tls(each)]
    if not able:
        pytest.skip("no server here speaks TLS")
    server, target = server_factory(able[0], tls=tls_files), server_factory(able[0])
    client = server.client()  # one: each has a handshake of its own
    for i in range(300):
        client.set(f"key:{i}", os.urandom(20_000))
    replay = Replay(target)
    async with source_of(server, batch_bytes=64 << 10) as source:
        with writing(heavy, server=server, pause=0.03):
            await source.open(None)
            await replay.snapshot(source, slowly=0.01)
            await asyncio.sleep(1.0)
        await replay.follow_all(source, server)
    await asyncio.to_thread(assert_equal, server.url, target.url)


async def test_a_refusal_is_its_own_error(server_factory: ServerFactory) -> None:
    server = server_factory(binaries()[0], "--rename-command", "PSYNC", "")
    async with source_of(server) as source:
        with pytest.raises(PsyncRefused):
            await source.open(None)


# --- Slow targets ---


def heavy(client: redis.Redis, i: int) -> None:
    pipe = client.pipeline(transaction=False)
    for j in range(5):
        pipe.set(f"heavy:{(i * 5 + j) % 1000}", _NOISE[j * 100 : j * 100 + 20_000])
    pipe.execute()


_NOISE = random.Random(3).randbytes(30_000)


def limit_buffer(server: Server) -> None:
    """So that the source cuts off a replica that is 16 MiB behind, or 8 MiB for 5 s."""
    server.client().config_set("client-output-buffer-limit", "replica 16mb 8mb 5")


@pytest.mark.parametrize(
    ("binary", "diskless"),
    ONE_WAY_OR_BOTH,
    ids=str,
)
async def test_a_slow_target_is_never_cut_off(
    binary: Binary, server_factory: ServerFactory, diskless: str
) -> None:
    server = server_factory(binary, "--repl-diskless-sync", diskless)
    limit_buffer(server)
    target = server_factory(binary)
    await asyncio.to_thread(datasets.strings, server.url, n=25_000, size=800)
    replay = Replay(target)
    async with source_of(server) as source:
        with writing(heavy, server=server, pause=0.02):
            await source.open(None)
            # Nobody takes anything for a while; then slowly.
            await asyncio.sleep(3.0)
            await replay.snapshot(source, slowly=0.1)
            await soon(lambda: source.spooled > 16 * MIB, "more than the source keeps")
            offset, written = source.received_offset, offset_of(server)
            assert written - offset < 16 * MIB
        await replay.follow_all(source, server)
        assert server.client().info("replication")["connected_slaves"] == 1
        assert server.client().info("stats")["sync_full"] == 1
        assert CUT_OFF not in server.log.read_text()
    await asyncio.to_thread(assert_equal, server.url, target.url)


async def test_without_a_spool_it_would_be(binary: Binary, server_factory: ServerFactory) -> None:
    """What the test before this is about: the same source, and a socket that nobody reads."""
    server = server_factory(binary)
    limit_buffer(server)
    async with connected(server) as connection:
        assert isinstance(await shake(connection), FullSync)
        deadline = time.monotonic() + 40
        with writing(heavy, server=server):
            while CUT_OFF not in server.log.read_text():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)


async def test_a_slow_target_holds_a_quiet_source_back(server_factory: ServerFactory) -> None:
    """Nobody writes: the source may keep its snapshot, and does not mind for how long."""
    server = server_factory(binaries()[0], "--repl-timeout", "5")
    await asyncio.to_thread(datasets.strings, server.url, n=50_000, size=800)
    replay = Replay(server_factory())
    async with source_of(server, batch_bytes=64 << 10) as source:
        await source.open(None)
        async for _ in source.snapshot():
            break
        await asyncio.sleep(10.0)
        assert not source.snapshot_received
        assert source.spooled < 16 * MIB
        assert server.client().info("replication")["connected_slaves"] == 1
        await replay.snapshot(source)
        server.client().set("later", 1)
        await replay.follow_all(source, server)
    assert "timedout" not in server.log.read_text()


async def test_a_source_that_tells_nothing_is_drained(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.client().execute_command(
        "ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all", "-info", "-time", "-config"
    )
    server.client().execute_command("ACL", "SETUSER", "default", "+info")
    await asyncio.to_thread(datasets.strings, server.url, n=50_000, size=800)
    async with source_of(server, batch_bytes=64 << 10) as source:
        events: list[str] = []
        source.on_event = events.append
        await source.open(None)
        server.client().execute_command("ACL", "SETUSER", "default", "-info")
        async with asyncio.timeout(60):
            while not source.snapshot_received:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert source.spooled > 20 * MIB
        assert any("does not say" in each for each in events)


async def test_a_full_spool_fails_and_leaves_the_source_alone(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    async with source_of(server, spool_bytes=20 * MIB) as source:
        await become_replica(source, Replay(server_factory()))
        with writing(heavy, server=server):
            async with asyncio.timeout(60):
                while source.spooled <= 20 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        with pytest.raises(SpoolFull, match="MiB wait for the target"):
            await next_batch(source)
        await seen_by(server, lambda info: info["connected_slaves"] == 0)
        assert server.client().ping()


async def test_the_spools_directory_is_looked_at_first(server_factory: ServerFactory) -> None:
    server = server_factory()
    async with source_of(server, spool_directory="/no/such/place") as source:
        with pytest.raises(UsageError, match="No such file"):
            await source.open(None)
    assert server.client().info("stats")["sync_full"] == 0


# --- Acknowledgements, clocks, times ---


async def test_wait_counts_what_the_target_has(
    binary: Binary, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer does not wait for the next beat, which does not come here."""
    monkeypatch.setattr(replica, "_TICK_SECONDS", 3600.0)
    monkeypatch.setattr(replica, "_FIRST_ACKS", (0.0, 0.1, 0.1))
    server = server_factory(binary)
    replay = Replay(server_factory(binary))
    async with source_of(server) as source:
        await become_replica(source, replay)
        client = server.client()
        client.set("key", 1)
        waiting = asyncio.create_task(asyncio.to_thread(client.wait, 1, 10_000))
        await asyncio.sleep(0.5)
        assert not waiting.done(), "WAIT was answered before the target had it"
        batch = await next_batch(source)
        while batch.end_offset < offset_of(server):
            batch = await next_batch(source)
        source.acknowledge(batch.end_offset)
        assert await waiting == 1


async def test_relative_ttls_hang_on_the_time_of_receipt(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server, target = server_factory(binary), server_factory(binary)
    replay = Replay(target)
    async with source_of(server) as source:
        await become_replica(source, replay)
        client = server.client()
        client.set("a", 1)
        client.pexpire("a", 100_000)
        client.execute_command("SETEX", "b", 200, 2)
        client.set("c", 3, px=300_000)
        ends = ends_of(server, "a", "b", "c")
        # The target comes late.
        await asyncio.sleep(3.0)
        await replay.follow_all(source, server)
    for here, there in zip(ends, ends_of(target, "a", "b", "c"), strict=True):
        assert abs(here - there) < 300, (ends, here, there)


def ends_of(server: Server, *keys: str) -> list[int]:
    """When these keys end, in ms of the server's clock."""
    with server.client().pipeline() as pipe:
        pipe.time()
        for key in keys:
            pipe.pttl(key)
        (seconds, micros), *left = pipe.execute()
    return [seconds * 1000 + micros // 1000 + each for each in left]


async def test_the_lag_is_known_in_seconds(server_factory: ServerFactory) -> None:
    server = server_factory()
    async with source_of(server) as source:
        await become_replica(source, Replay(server_factory()))
        start = source.received_offset
        sent = time.monotonic()
        server.client().set("key", 1)
        await soon(lambda: source.received_offset > start, "it has come")
        came = time.monotonic()
        await asyncio.sleep(0.5)
        earliest = time.monotonic() - came
        behind, seconds = source.lag(start)
        assert behind == source.received_offset - start > 0
        assert earliest <= seconds <= time.monotonic() - sent


async def test_a_long_collection_comes_in_order(server_factory: ServerFactory) -> None:
    """Its length is known at its end only: it goes through a file, and comes behind its batch."""
    server, target = server_factory(), server_factory()
    client = server.client()
    pipe = client.pipeline(transaction=False)
    for i in range(30):
        pipe.rpush("long", *[os.urandom(100) for _ in range(1000)])
        pipe.set(f"short:{i}", i)
    pipe.set("string", os.urandom(3 * MIB))
    pipe.execute()
    replay = Replay(target)
    async with source_of(server, stream_above=256 << 10) as source:
        await become_replica(source, replay)
    assert replay.keys == 32
    await asyncio.to_thread(assert_equal, server.url, target.url)


def set_and_wait(server: Server, key: str, value: int, db: int = 0) -> None:
    """Write, and wait until a replica has it. WAIT looks at what its own connection wrote."""
    with server.client(db, single_connection_client=True) as client:
        client.set(key, value)
        assert client.wait(1, 20_000) >= 1


async def seen_by(server: Server, condition: object) -> None:
    """Wait until the source's INFO replication says so."""
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition(server.client().info("replication")):
        assert time.monotonic() < deadline, server.client().info("replication")
        await asyncio.sleep(0.05)
