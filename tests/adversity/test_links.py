"""Links cut at every kind of moment, servers frozen, killed and refusing: nothing is lost.

The invariant: whatever happens to the links, a transfer either ends with both ends equal, or fails
with a reason within its bound; and what it acknowledged before is on the target.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time

import pytest
import redis

from benches import datasets
from benches.support.compare import assert_equal
from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.sources import scan_ranges
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.library import copied, copying
from tests.support.servers import ServerFactory

SEED = int(os.environ.get("ENGINE_SEED", "20"))
ROUNDS = 40 if os.environ.get("ENGINE_SOAK") else 3
SMALL = {"batch_bytes": 16 << 10, "window_bytes": 64 << 10, "stream_above": 8 << 10}


# For a part of the data, beside what the connections' buffers take at the target.
ROOM = 1_000_000


def filled(server_factory: ServerFactory, n: int = 3000) -> tuple[Server, Server]:
    source, target = server_factory(), server_factory()
    datasets.demo(source.url, n=n)
    return source, target


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize("end", ["source", "target", "both"])
def test_links_cut_at_random_bytes(server_factory: ServerFactory, end: str, turn: int) -> None:
    source, target = filled(server_factory, n=1500)
    rng = random.Random(f"{SEED} {end} {turn}")
    with Proxy(source.host, source.port) as up, Proxy(target.host, target.port) as down:
        proxies = {"source": [up], "target": [down], "both": [up, down]}[end]

        with copying(up, down, retry_for=20, **SMALL) as result:
            for _ in range(rng.randrange(2, 6)):
                proxy = rng.choice(proxies)
                proxy.cut_after(rng.randrange(1, 400_000), rng.choice(["up", "down", None]))
                time.sleep(rng.random() * 0.2)
    assert result.report.status == "done", result.report.errors
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("end", ["source", "target"])
def test_cut_in_the_middle_of_a_value_in_pieces(server_factory: ServerFactory, end: str) -> None:
    source, target = server_factory(), server_factory()
    client = source.client()
    client.mset({f"k{i}": i for i in range(100)})
    client.set("long", random.Random(1).randbytes(20 << 20))
    server = source if end == "source" else target
    with Proxy(server.host, server.port) as proxy:
        proxy.cut_after(7 << 20, "down" if end == "source" else "up")
        ends = (proxy, target) if end == "source" else (source, proxy)
        result = copied(*ends, stream_above=1 << 20)
        assert proxy.connections >= 2
    assert result.report.status == "done", result.report.errors
    assert result.report.retries >= 1
    assert_equal(source.url, target.url)


def test_a_link_that_never_comes_back(server_factory: ServerFactory) -> None:
    source, target = filled(server_factory)
    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(200_000)
        with copying(source, proxy, retry_for=1.5, **SMALL) as result:
            result.wait_for(lambda: result.progress.keys, "the first keys")
            proxy.refuse()
            proxy.cut_now()
    assert result.report.status == "stopped", result.report.errors
    assert result.report.needs_hand
    assert "did not take anything for 1.5 s" in result.report.errors[0]


def test_a_link_that_never_comes_back_in_the_middle_of_a_value(
    server_factory: ServerFactory,
) -> None:
    """Keys that arrived before are there, though no position is past them: it can be resumed."""
    source, target = server_factory(), server_factory()
    client = source.client()
    client.mset({f"k{i}": i for i in range(5)})
    client.set("long", random.Random(1).randbytes(20 << 20))
    store = MemoryCheckpoint()
    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(4_000_000)
        with copying(source, proxy, checkpoints=store, retry_for=1.0, **SMALL) as result:
            result.wait_for(lambda: result.progress.keys, "the first keys")
            proxy.refuse()
            proxy.cut_now()
    assert result.report.status == "stopped", result.report.errors
    assert result.report.needs_hand
    again = copied(source, target, checkpoints=store)
    assert again.report.status == "done", again.report.errors
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_frozen_server_is_noticed(server_factory: ServerFactory, end: str) -> None:
    source, target = filled(server_factory)
    victim = source if end == "source" else target

    with copying(source, target, io_timeout=0.5, connect_timeout=0.5, **SMALL) as result:
        result.wait_for(lambda: result.progress.phase == "SNAPSHOT", "the copy has begun")
        victim.freeze()
        time.sleep(1.5)
        victim.thaw()
    assert result.report.status == "done", result.report.errors
    assert_equal(source.url, target.url)


def test_corrupted_payloads_are_refused_and_named(server_factory: ServerFactory) -> None:
    """A bit flipped between source and engine: the target's CRC check catches it.

    In what comes by DUMP. A string by MGET has no checksum but those of TCP or TLS.
    """
    source, target = server_factory(), server_factory()
    rng = random.Random(SEED)
    source.client().hset("k", "field", rng.randbytes(3 << 20))
    with Proxy(source.host, source.port) as proxy:
        # Far enough to be inside the value: what precedes it is a few KiB of INFO.
        proxy.corrupt(1 << 20, "down")
        result = copied(proxy, target)
    assert result.report.status == "failed"
    assert result.report.not_carried_total == 1
    assert "checksum" in result.report.not_carried[0].reason
    assert target.client().dbsize() == 0


def test_a_target_out_of_memory_that_recovers(server_factory: ServerFactory) -> None:
    source, target = filled(server_factory)
    admin = target.client()
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", admin.info()["used_memory"] + ROOM)

    with copying(source, target, **SMALL) as result:
        result.wait_for(lambda: any("OOM" in event for event in result.events), "OOM in an event")
        admin.config_set("maxmemory", 0)
    assert result.report.status == "done", result.report.errors
    assert result.report.retries >= 1
    assert_equal(source.url, target.url)


def test_a_target_out_of_memory_that_stays_so(server_factory: ServerFactory) -> None:
    source, target = filled(server_factory)
    admin = target.client()
    admin.config_set("maxmemory", admin.info()["used_memory"] + ROOM)
    result = copied(source, target, retry_for=1.5, **SMALL)
    assert result.report.status == "stopped"
    assert "OOM" in result.report.errors[0]
    assert "raise its maxmemory" in result.report.errors[0]


def test_a_target_that_is_a_replica_for_a_while(server_factory: ServerFactory) -> None:
    source, target = filled(server_factory, 1000)
    target.client().replicaof("127.0.0.1", 1)

    with copying(source, target, **SMALL) as result:
        result.wait_for(
            lambda: any("READONLY" in event for event in result.events), "READONLY in an event"
        )
        target.client().replicaof("NO", "ONE")
    assert result.report.status == "done", result.report.errors
    assert_equal(source.url, target.url)


def test_a_target_busy_with_a_script(server_factory: ServerFactory) -> None:
    source, target = filled(server_factory, 1000)
    admin = target.client()
    admin.config_set("busy-reply-threshold" if _knows_threshold(target) else "lua-time-limit", 50)

    with copying(source, target, **SMALL) as result:
        blocker = threading.Thread(target=_swallow, args=(target, "EVAL", "while true do end", 0))
        blocker.start()
        try:
            result.wait_for(
                lambda: any("BUSY" in event for event in result.events), "BUSY in an event"
            )
        finally:
            target.client(client_name=None).script_kill()
            blocker.join()
    assert result.report.status == "done", result.report.errors
    assert_equal(source.url, target.url)


def _knows_threshold(server: Server) -> bool:
    return bool(server.client().config_get("busy-reply-threshold"))


def _swallow(server: Server, *command: object) -> None:
    import redis

    with contextlib.suppress(redis.RedisError):
        server.client().execute_command(*command)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_stopped_and_gone_on_from_the_checkpoint(server_factory: ServerFactory, turn: int) -> None:
    source, target = filled(server_factory)
    rng = random.Random(f"{SEED} {turn}")
    checkpoint = MemoryCheckpoint()
    stops = 0
    for _ in range(20):
        with Proxy(source.host, source.port) as slow:
            slow.throttle(2_000_000)
            with copying(slow, target, checkpoints=checkpoint, **SMALL) as result:
                time.sleep(rng.random() * 0.15)
                result.stop()
        if result.report.status == "done":
            break
        assert result.report.status == "stopped"
        stops += 1
    else:
        result = copied(source, target, checkpoints=checkpoint, **SMALL)
    assert stops
    assert result.report.status == "done"
    assert_equal(source.url, target.url)


def test_a_slow_round_trip_gets_a_deep_pipeline(server_factory: ServerFactory) -> None:
    """20 ms each way: one key a round trip would take 400 s, a depth of 512 takes 0.8 s."""
    source, target = server_factory(), server_factory()
    datasets.strings(source.url, n=10_000)
    with Proxy(source.host, source.port) as proxy:
        proxy.delay(0.02)
        result = copied(proxy, target)
    # A far source is scanned in ranges, whose last pages name some keys of the next one too.
    assert 10_000 <= result.report.keys <= 10_500
    assert result.report.seconds < 8
    assert_equal(source.url, target.url)


def test_what_was_not_carried_before_a_stop_is_reported_after_it(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One cursor: a busy machine makes the source look far, and of many ranges each sends again what
    # was under way.
    monkeypatch.setattr(scan_ranges, "_FAR_SECONDS", 60.0)
    source = server_factory()
    target = server_factory(None, "--proto-max-bulk-len", "1048576")
    datasets.strings(source.url, n=30_000)
    source.client().mset({f"long:{i}": os.urandom(2 << 20) for i in range(10)})
    checkpoint = MemoryCheckpoint()

    with Proxy(source.host, source.port) as slow:
        slow.throttle(3_000_000)
        with copying(slow, target, checkpoints=checkpoint, **SMALL) as first:
            first.wait_for(lambda: first.progress.keys > 5000, "a part of the keys")
            first.stop()
    assert first.report.status == "stopped"
    last = copied(source, target, checkpoints=checkpoint, **SMALL).report
    assert last.status == "stopped"
    assert sorted(lost.key for lost in last.not_carried) == [f"long:{i}" for i in range(10)]
    # What was under way at the stop is sent, and counted, again: all of it would be a new start.
    assert 30_000 <= last.keys < 30_000 + first.report.keys


def test_a_target_that_comes_back_empty(server_factory: ServerFactory) -> None:
    """Without persistence a restart loses what was acknowledged: all of it is copied again."""
    source, target = filled(server_factory, 6000)

    with Proxy(source.host, source.port) as slow:
        slow.throttle(3_000_000)
        with copying(slow, target, **SMALL) as result:
            result.wait_for(lambda: result.progress.keys > 500, "a part of the keys")
            target.kill()
            target.restart()
    assert result.report.status == "done", result.report.errors
    assert any("copied anew" in event for event in result.events)
    assert_equal(source.url, target.url)


def test_a_checkpoint_of_a_target_that_came_back_empty(server_factory: ServerFactory) -> None:
    source, target = filled(server_factory, 6000)
    checkpoint = MemoryCheckpoint()

    with Proxy(source.host, source.port) as slow:
        slow.throttle(3_000_000)
        with copying(slow, target, checkpoints=checkpoint, **SMALL) as result:
            result.wait_for(lambda: result.progress.keys > 500, "a part of the keys")
            result.stop()
    assert result.report.status == "stopped"
    target.kill()
    target.restart()
    result = copied(source, target, checkpoints=checkpoint, **SMALL)
    assert result.report.status == "done", result.report.errors
    assert any("checkpoint is void" in event for event in result.events)
    assert_equal(source.url, target.url)


def test_a_source_that_comes_back_with_its_data(server_factory: ServerFactory) -> None:
    """Another process has another hash seed: its cursors are not those of the one before."""
    source, target = filled(server_factory, 6000)
    source.client().save()

    with Proxy(source.host, source.port) as slow:
        slow.throttle(3_000_000)
        with copying(slow, target, **SMALL) as result:
            result.wait_for(lambda: result.progress.keys > 500, "a part of the keys")
            source.kill()
            source.restart()
    assert result.report.status == "done", result.report.errors
    assert any("source was restarted" in event for event in result.events)
    assert_equal(source.url, target.url)


def test_a_target_that_was_a_replica_for_a_moment(server_factory: ServerFactory) -> None:
    """Made a replica and a primary again it is the same process, and its keys are gone."""
    source, target, other = server_factory(), server_factory(), server_factory()
    datasets.demo(source.url, n=6000)

    with Proxy(source.host, source.port) as slow:
        slow.throttle(3_000_000)
        with copying(slow, target, **SMALL) as result:
            result.wait_for(lambda: result.progress.keys > 500, "a part of the keys")
            client = target.client()
            client.replicaof(other.host, other.port)
            result.wait_for(
                lambda: client.info("replication").get("master_link_status") == "up", "a link"
            )
            client.replicaof("NO", "ONE")
    assert result.report.status == "done", result.report.errors
    assert any("copied anew" in event for event in result.events)
    assert result.report.keys == sum(source.client(db).dbsize() for db in range(16))
    assert_equal(source.url, target.url)


def test_a_conflict_is_not_passed_before_it_is_told(server_factory: ServerFactory) -> None:
    """Stopped while keys that exist are compared, the next run meets them again."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{i}": "x" * 50 for i in range(5000)})
    target.client().mset({f"k{i}": "other" for i in range(0, 5000, 500)})
    checkpoint = MemoryCheckpoint()

    asked = threading.Event()

    async def slowly(_: int, keys: list[bytes]) -> list[bytes]:
        asked.set()
        await asyncio.sleep(1.5)
        return keys

    async def at_once(db: int, keys: list[bytes]) -> list[bytes]:
        ends = (source.client(db).mget(keys), target.client(db).mget(keys))
        return [key for key, one, other in zip(keys, *ends, strict=True) if one != other]

    options = {"if_exists": "fail", "checkpoints": checkpoint, **SMALL}
    with copying(source, target, compare=slowly, **options) as first:
        first.wait_for(asked.is_set, "keys that are there")
        first.stop()
    assert first.report.status == "stopped"
    second = copied(source, target, compare=at_once, **options).report
    assert second.status == "failed"
    assert second.not_carried_total > 0
    assert target.client().get("k0") == b"other"


def test_a_server_that_cannot_save(server_factory: ServerFactory) -> None:
    """PING answers MISCONF then; a full disk is a common reason to move away."""
    source, target = filled(server_factory, 1000)
    for server in (source, target):
        client = server.client()
        client.config_set("save", "3600 1")
        # A folder in its way: the option for the file's name is protected on newer servers.
        (server.folder / "dump.rdb").mkdir()
        with contextlib.suppress(redis.RedisError):
            client.bgsave()
        for _ in range(200):
            if client.info("persistence")["rdb_last_bgsave_status"] != "ok":
                break
            time.sleep(0.05)

    with copying(source, target, **SMALL) as result:
        result.wait_for(
            lambda: any("MISCONF" in event for event in result.events), "MISCONF in an event"
        )
        target.client().config_set("stop-writes-on-bgsave-error", "no")
    assert any("MISCONF" in event for event in result.events)
    assert result.report.status == "done", result.report.errors
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_long_value_over_a_slow_link(server_factory: ServerFactory, end: str) -> None:
    """As long as its bytes flow, a value may take longer than a reply."""
    source, target = server_factory(), server_factory()
    source.client().set("long", random.Random(1).randbytes(32 << 20))
    server = source if end == "source" else target
    with Proxy(server.host, server.port) as proxy:
        proxy.throttle(3_500_000)
        ends = (proxy, target) if end == "source" else (source, proxy)
        result = copied(*ends, stream_above=1 << 20, io_timeout=6.0)
    assert result.report.status == "done", result.report.errors
    assert result.report.retries == 0
    assert_equal(source.url, target.url)


def test_few_matches_are_handed_on_and_the_position_moves(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    datasets.strings(source.url, n=60_000)
    source.client().mset({f"wanted:{i}": i for i in range(400)})
    checkpoint = MemoryCheckpoint()

    with Proxy(source.host, source.port) as far:
        far.delay(0.3)
        with copying(far, target, checkpoints=checkpoint, match="wanted:*") as result:
            result.wait_for(lambda: result.progress.keys, "the first keys")
            result.stop()
    assert result.report.status == "stopped"
    assert result.report.keys
    assert checkpoint.load() is not None
