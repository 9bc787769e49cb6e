"""Values into servers that do not know their type: rewritten, stored by a real server, and read
there by its own commands. In a soak (ENGINE_SOAK=1) between all releases, by every way."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from benches.support.clusters import Cluster
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine._native import ValueTranscoder, crc64
from engine.model.carried_with_loss import WORDS
from engine.model.report import Report
from engine.model.server_capabilities import ServerCapabilities
from tests.integration.test_values_real import by_commands, fill
from tests.support.carried import is_carried
from tests.support.comparison import assert_settled
from tests.support.library import copied, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.value_table import LETTERS, RELEASES, TARGETS, becomes, table

SOAK = bool(os.environ.get("ENGINE_SOAK"))
EVERY_PAIR = list(itertools.product(RELEASES, TARGETS))
PAIRS = (
    EVERY_PAIR
    if SOAK
    else [
        ("redis-8.6", "redis-5.0"),
        ("redis-8.6", "redis-7.0"),
        ("redis-8.0", "valkey-9.1"),
        ("valkey-9.1", "redis-8.0"),
    ]
)
WAYS = (
    list(itertools.product(EVERY_PAIR, ("scan", "replica", "file", "append-only file")))
    if SOAK
    else [
        (("redis-7.0", "redis-5.0"), "scan"),
        (("redis-8.0", "redis-6.0"), "replica"),
        (("redis-8.6", "redis-6.2"), "file"),
        (("redis-8.6", "redis-8.0"), "scan"),
        (("redis-8.0", "valkey-9.1"), "append-only file"),
        (("valkey-9.1", "redis-8.0"), "replica"),
    ]
)
ACTIVE, COUNTERS, PRODUCERS = (WORDS[bit] for bit in (1, 2, 4))
IDMP = (8, 6, 0)


def filled(server: Server) -> redis.Redis:
    """Values at the limits of their encodings, and what this release alone has."""
    fill(server)
    client = server.client()
    if server.binary.flavour == "redis" and server.binary.version >= IDMP:
        client.execute_command("XADD", "stream:sent", "IDMP", "producer", "one", "*", "f", "v")
    able = ServerCapabilities(server.binary.flavour, server.binary.version)
    if able.field_ttls:
        for size in (3, 600):
            name = f"hash:freed:{size}"
            client.hset(name, mapping={f"f{n}": n for n in range(size)})
            client.execute_command("HPEXPIRE", name, 10_000_000, "FIELDS", 1, "f0")
            client.execute_command("HPERSIST", name, "FIELDS", 1, "f0")
    return client


def values_of(client: redis.Redis) -> Iterator[tuple[bytes, str, bytes]]:
    """Each key, its type and its DUMP."""
    for key in sorted(client.scan_iter(count=1000)):
        yield key, client.type(key).decode(), client.dump(key)


@pytest.mark.parametrize("names", PAIRS, ids="->".join)
def test_every_value(names: tuple[str, str], server_factory: ServerFactory) -> None:
    """It comes to what the table in the documents says of this pair."""
    source, target = (server_factory(known(name)) for name in names)
    there, here = filled(source), target.client()
    able = ServerCapabilities(target.binary.flavour, target.binary.version)
    transcoder = ValueTranscoder(able.flavour, able.known_types)
    letters = set()
    for key, kind, payload in values_of(there):
        found, lost = transcoder.payload(payload)
        assert found is not None
        version = int.from_bytes(found[-10:-8], "little")
        stamped = found if able.accepts_rdb_version(version) else _stamped(found)
        if not is_carried(payload, able.flavour, able.version):
            assert found is payload
            assert key.startswith(b"hash:ttl:")
            with pytest.raises(redis.ResponseError, match=r"Bad data format|version or checksum"):
                here.restore(key, 0, stamped)
            letters.add("f")
            continue
        assert here.restore(key, 0, stamped) == b"OK", key
        assert by_commands(here, key, kind) == by_commands(there, key, kind), key
        assert kind == "stream" or not lost
        letters.update(letter for bit, letter in LETTERS.items() if lost & bit)
    assert here.ping()
    assert "".join(sorted(letters)) == becomes(*names)


def test_the_table_of_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    assert table() in text.replace("\n  |", "\n|")


def _stamped(payload: bytes) -> bytes:
    """With a version that every server takes."""
    body = payload[:-10] + (9).to_bytes(2, "little")
    return body + crc64(body).to_bytes(8, "little")


def losses(found: Report) -> dict[str, int]:
    """How many values had each loss."""
    return {each.kind: each.count for each in found.losses}


def test_streams_of_the_newest_release_are_followed_into_an_older_one(
    server_factory: ServerFactory,
) -> None:
    source, target = server_factory(known("redis-8.6")), server_factory(known("redis-7.0"))
    client = filled(source)
    for name in client.scan_iter("hash:ttl:*"):
        client.delete(name)
    there = target.client()

    # Every key is compared: what is named as lost is no difference.
    with migrating(source, target, verify="full") as run:
        run.following()
        for n in range(200):
            client.xadd("stream:250", {"late": n})
            ((_, read),) = client.xreadgroup("group", "anna", {"stream:250": ">"}, count=1)
            client.xack("stream:250", "group", read[0][0])
        client.xadd("stream:new", {"f": "v"})
        client.xgroup_create("stream:new", "late", "0")
        client.rpush("list:new", *range(100))
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert_settled(source, target, 2)
    assert_tidy(target)
    assert there.xlen("stream:250") == client.xlen("stream:250")
    told = losses(run.report)
    assert told[ACTIVE] >= 5
    assert told[PRODUCERS] == 1
    assert sum("migrated with a loss" in event for event in run.events) == len(told)


@pytest.mark.parametrize(("names", "way"), WAYS, ids=str)
def test_by_each_way(names: tuple[str, str], way: str, server_factory: ServerFactory) -> None:
    source, target = (server_factory(known(name)) for name in names)
    client = filled(source)
    lost = becomes(*names)
    for name in client.scan_iter("hash:ttl:*") if "f" in lost else ():
        client.delete(name)
    # In pieces, as they are too long to be held.
    item = os.urandom(500)
    client.rpush("list:long", *(item + b"%d" % n for n in range(9_000)))
    streams = source.binary.version >= (5, 0, 0)
    for _ in range(4_000 if streams else 0):
        client.execute_command("XADD", "stream:long", "*", "f", item * 3)
    if way == "scan":
        run = copied(source, target)
    elif way == "append-only file":
        # Its base is a snapshot from 4.0 on, and commands follow.
        client.config_set("appendonly", "yes")
        wait_for(lambda: _rewritten(client), "the base")
        client.rpush("list:long", "behind it")
        client.config_set("appendfsync", "always")
        client.rpush("list:long", "on the disk")
        folder, single = source.folder / "appendonlydir", source.folder / "appendonly.aof"
        run = copied(f"aof:{source.folder if folder.is_dir() else single}", target)
    elif way == "file":
        client.save()
        run = copied(f"rdb:{Path(source.folder, 'dump.rdb')}", target, source_type="auto")
    else:
        with migrating(source, target) as run:
            run.following()
            client.rpush("list:long", "behind it")
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert_settled(source, target, 2)
    count = sum(client.type(key) == b"stream" for key in client.scan_iter(count=1000))
    assert losses(run.report).get(COUNTERS, 0) == (count if "c" in lost else 0)


def _rewritten(client: redis.Redis) -> bool:
    """Whether the server has written its append-only file anew."""
    found = client.info("persistence")
    going_on = found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"]
    return bool(found["aof_enabled"] and not going_on)


def test_field_ttls_go_along_between_the_two_flavours(server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-8.0")), server_factory(known("valkey-9.1"))
    client, there = source.client(), target.client()
    client.hset("fields", mapping={b"f%d" % n: n for n in range(700)})
    client.hset("few", mapping={"f": 1, "g": 2})
    soon = int(time.time() * 1000) + 2_000
    client.execute_command("HPEXPIREAT", "fields", soon, "FIELDS", 1, "f1")
    client.execute_command("HPEXPIREAT", "few", soon + 10**7, "FIELDS", 1, "g")

    with migrating(source, target) as run:
        run.following()
        client.execute_command("HPEXPIREAT", "few", soon + 10**8, "FIELDS", 1, "f")
        client.execute_command("HPERSIST", "few", "FIELDS", 1, "g")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    wait_for(lambda: not there.hexists("fields", "f1"), "its end")
    assert len(there.hgetall("fields")) == 699
    found = there.execute_command("HPEXPIRETIME", "few", "FIELDS", 2, "f", "g")
    assert found == [soon + 10**8, -1]


def test_a_value_that_would_be_too_long_is_made_by_commands(
    server_factory: ServerFactory,
) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-6.2"))
    target.client().config_set("proto-max-bulk-len", 1 << 20)
    client = source.client()
    # Shorter than that as it is, for it is compressed.
    client.rpush("list", *[b"x" * 8000] * 300)
    assert len(client.dump("list")) < 1 << 20

    with migrating(source, target) as run:
        run.following()
        client.rpush("list", "behind it")
        client.rename("list", "named anew")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert target.client().llen("named anew") == 301
    assert any("is made there by commands" in event for event in run.events)


def test_a_cluster_of_an_older_release(server_factory: ServerFactory) -> None:
    """Keys that are read again there too: SUNIONSTORE and RENAME over slots are."""
    source = server_factory(known("redis-8.6"))
    client = filled(source)
    for name in client.scan_iter("hash:ttl:*"):
        client.delete(name)
    with (
        Cluster.start(known("redis-7.0"), primaries=2, make=server_factory) as target,
        migrating(source, target) as run,
    ):
        run.following()
        client.rename("stream:101", "stream:renamed")
        client.sunionstore("set:made", "set:127", "set:1")
        client.xadd("stream:renamed", {"late": 1})
        client.xgroup_create("stream:250", "late", "0")
        run.cut_over()
        assert_settled(source, target, 5)
        assert_tidy(target)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert losses(run.report)[PRODUCERS] >= 1
