"""The oracle itself: it finds every kind of seeded difference, and finds none where there is none.

Both ends are filled by hand, with commands; nothing of the engine is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from benches.support.clusters import Cluster, slot_of
from benches.support.compare import Comparison, assert_equal, compare
from benches.support.servers import Binary, Server, binaries, supports_tls
from tests.support.servers import known

EXPIRY_MS = 4_000_000_000_000  # the year 2096


def knows(client: redis.Redis, command: str) -> bool:
    """Whether the server has this command."""
    return command.lower() in client.command()


def fill(client: redis.Redis) -> None:
    """One key of every type, some with an expiry; whole, so that both ends can be made equal."""
    client.set("string", b"\x00\xffvalue")
    client.set("string:ttl", "v")
    client.pexpireat("string:ttl", EXPIRY_MS)
    client.set("", "the empty key")
    client.hset("hash", mapping={"a": "1", "b": "2"})
    client.rpush("list", "a", "b", "a")
    client.sadd("set", "a", "b", "c")
    client.zadd("zset", {"a": 0.1, "b": float("inf"), "c": -3})
    for i in range(1, 6):
        client.xadd("stream", {"f": i}, id=f"5-{i}")
    client.xgroup_create("stream", "group", id="0")
    client.xreadgroup("group", "alice", {"stream": ">"}, count=3)
    client.xack("stream", "group", "5-1")


@pytest.fixture(scope="module", params=binaries(), ids=str)
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """Two servers of one kind, for all tests of this file."""
    binary: Binary = request.param
    with Server.start(binary) as source, Server.start(binary) as target:
        yield source, target


@pytest.fixture
def ends(servers: tuple[Server, Server]) -> Iterator[tuple[redis.Redis, redis.Redis]]:
    """Clients of both, which hold the same."""
    source, target = (server.client() for server in servers)
    for client in (source, target):
        client.flushall()
        fill(client)
    yield source, target
    source.close()
    target.close()


def whats(result: Comparison) -> set[tuple[bytes, str]]:
    return {(each.key, each.what) for each in result.different}


def test_equal_ends_are_equal(ends: tuple[redis.Redis, redis.Redis]) -> None:
    source, target = ends
    result = assert_equal(source, target)
    assert result.equal
    assert result.keys == source.dbsize()


def test_a_seeded_difference_of_a_value_or_an_expiry_is_found(
    ends: tuple[redis.Redis, redis.Redis],
) -> None:
    source, target = ends
    changes: list[tuple[tuple[object, ...], str]] = [
        (("SET", "string", b"\x00\xffvaluE"), "value"),
        (("SET", "", ""), "value"),
        (("HSET", "hash", "a", "2"), "value"),
        (("HDEL", "hash", "b"), "value"),
        (("HSET", "hash", "c", "3"), "value"),
        (("LSET", "list", 1, "B"), "value"),
        (("RPUSH", "list", "a"), "value"),
        (("SREM", "set", "c"), "value"),
        (("SADD", "set", "d"), "value"),
        (("ZADD", "zset", 0.2, "a"), "value"),
        (("ZADD", "zset", 7, "d"), "value"),
        (("PERSIST", "string:ttl"), "ttl"),
        (("PEXPIREAT", "string:ttl", EXPIRY_MS + 10_000), "ttl"),
        (("PEXPIREAT", "list", EXPIRY_MS), "ttl"),
        (("SETBIT", "string", 3, 1), "value"),
    ]
    for command, what in changes:
        target.execute_command(*command)
        key = command[1].encode()  # type: ignore[attr-defined]
        result = compare(source, target)
        assert whats(result) == {(key, what)}, command
        assert not result.missing
        assert not result.extra
        with pytest.raises(AssertionError, match=what):
            assert_equal(source, target)
        # Back to what it was.
        target.restore(key, EXPIRY_MS if source.pttl(key) > 0 else 0, source.dump(key), True, True)
        assert_equal(source, target)


def test_expiries_within_the_bound_are_equal(ends: tuple[redis.Redis, redis.Redis]) -> None:
    source, target = ends
    target.pexpireat("string:ttl", EXPIRY_MS + 1_500)
    assert_equal(source, target)
    assert whats(compare(source, target, ttl_bound_ms=200)) == {(b"string:ttl", "ttl")}


def test_a_different_type_is_found(ends: tuple[redis.Redis, redis.Redis]) -> None:
    source, target = ends
    target.delete("list")
    target.sadd("list", "a", "b")
    result = compare(source, target)
    assert [(d.key, d.what, d.source, d.target) for d in result.different] == [
        (b"list", "type", "list", "set")
    ]


def test_missing_and_extra_keys_are_found_in_every_database(
    servers: tuple[Server, Server], ends: tuple[redis.Redis, redis.Redis]
) -> None:
    source, target = ends
    target.delete("", "zset")
    target.set("extra", 1)
    servers[0].client(3).set("only here", 1)
    servers[1].client(5).set("only there", 1)
    result = compare(source, target)
    assert set(result.missing) == {(0, b""), (0, b"zset"), (3, b"only here")}
    assert set(result.extra) == {(0, b"extra"), (5, b"only there")}
    assert not result.different
    assert compare(source, target, dbs=[5]).missing == []

    with pytest.raises(AssertionError, match="3 missing, 2 extra"):
        assert_equal(source, target)
    assert_equal(source, target, dbs=[5], allow_extra=True)
    with pytest.raises(AssertionError, match="missing"):
        assert_equal(source, target, allow_extra=True)


def test_the_state_of_a_stream_is_compared(ends: tuple[redis.Redis, redis.Redis]) -> None:
    source, target = ends

    def same_again() -> None:
        target.delete("stream")
        target.restore("stream", 0, source.dump("stream"))
        assert_equal(source, target)

    same_again()
    target.xdel("stream", "5-2")
    assert (b"stream", "value") in whats(compare(source, target))

    same_again()  # the entries stay, the last id moves
    target.execute_command("XSETID", "stream", "9-9")
    assert whats(compare(source, target)) == {(b"stream", "stream")}

    same_again()
    target.xgroup_setid("stream", "group", "5-5")
    assert whats(compare(source, target)) == {(b"stream", "stream groups")}

    same_again()
    target.xgroup_create("stream", "another", id="0")
    assert whats(compare(source, target)) == {(b"stream", "stream groups")}

    same_again()
    target.xack("stream", "group", "5-2")
    assert whats(compare(source, target)) == {
        (b"stream", "stream groups"),
        (b"stream", "stream consumers"),
        (b"stream", "stream pending"),
    }

    same_again()  # another owner and one delivery more, counts as before
    target.xclaim("stream", "group", "bob", 0, ["5-2"])
    target.xgroup_delconsumer("stream", "group", "nobody")
    found = whats(compare(source, target))
    assert (b"stream", "stream consumers") in found
    assert (b"stream", "stream pending") in found

    same_again()  # delivered at another time
    target.xclaim("stream", "group", "alice", 0, ["5-2"], idle=60_000, retrycount=1, force=True)
    assert whats(compare(source, target)) == {(b"stream", "stream pending")}


def test_expiries_of_hash_fields_are_compared(ends: tuple[redis.Redis, redis.Redis]) -> None:
    source, target = ends
    if not knows(source, "HPEXPIREAT"):
        pytest.skip("this server has no expiry of hash fields")
    source.execute_command("HPEXPIREAT", "hash", EXPIRY_MS, "FIELDS", 1, "a")
    result = compare(source, target)
    assert [(d.key, d.what, d.source, d.target) for d in result.different] == [
        (b"hash", "hash field ttl", {b"a": EXPIRY_MS}, {b"a": None})
    ]
    target.execute_command("HPEXPIREAT", "hash", EXPIRY_MS + 100, "FIELDS", 1, "a")
    assert_equal(source, target)
    target.execute_command("HPEXPIREAT", "hash", EXPIRY_MS + 100, "FIELDS", 1, "b")
    assert whats(compare(source, target)) == {(b"hash", "hash field ttl")}


def test_what_expires_while_it_is_compared_is_no_difference(
    ends: tuple[redis.Redis, redis.Redis],
) -> None:
    source, target = ends
    source.set("soon", 1, px=1_500)
    assert_equal(source, target)  # the target's is gone already
    source.set("later", 1, px=60_000)
    assert compare(source, target).missing == [(0, b"later")]


def test_more_keys_than_one_chunk_and_values_of_every_size(
    ends: tuple[redis.Redis, redis.Redis],
) -> None:
    source, target = ends
    for client in (source, target):
        with client.pipeline(transaction=False) as pipe:
            for i in range(3_500):
                pipe.set(f"many:{i}", i)
            pipe.set("big", bytes(5_000_000))
            pipe.set(bytes(1_000_000), "a long name")
            pipe.execute()
    assert assert_equal(source, target).keys == source.dbsize()
    target.set("many:3333", "other")
    target.setrange("big", 4_999_999, b"x")
    result = compare(source, target)
    assert whats(result) == {(b"many:3333", "value"), (b"big", "value")}
    assert len(result.describe()) < 2_000  # a report is read by people


def test_urls_with_a_password_a_unix_socket_or_tls(tls_files: object, tmp_path: Path) -> None:
    binary = binaries()[0]
    tls = tls_files if supports_tls(binary) else None
    with (
        Server.start(binary, password="p@ss:w/rd", tls=tls) as source,  # type: ignore[arg-type]
        Server.start(binary, unix=True) as target,
    ):
        source.client(2).set("key", 1)
        target.client(2).set("key", 1)
        assert assert_equal(source.url, target.unix_url).keys == 1
        assert assert_equal(source.client(), target.url).keys == 1


def test_a_server_that_is_not_there_is_an_error_not_a_result() -> None:
    with Server.start(binaries()[0]) as server:
        url = re.sub(r"\d+$", "1", server.url)
        with pytest.raises(redis.ConnectionError):
            compare(server.url, url)


def test_a_cluster_against_a_server_and_against_another() -> None:
    """Of a cluster any node is given; each key is asked of its owner, also when that is another
    one by now."""
    with (
        Cluster.start(known("valkey-9"), primaries=3) as cluster,
        Cluster.start(known("redis-7.0"), primaries=2) as other,
        Server.start(known("redis-7.0")) as single,
    ):
        ends = [cluster.client(), other.client(), single.client()]
        for client in ends:
            for n in range(1_200):
                client.set(f"key:{n}", n)
            client.hset("{a}hash", mapping={str(n): n for n in range(50)})
            client.xadd("{a}stream", {"n": 1}, id="1-1")
            client.xgroup_create("{a}stream", "group", 0)
            client.zadd("sorted", {"one": 1.5})
        urls = [cluster.url, other.nodes[1].url, single.url]
        for source, target in ((0, 1), (0, 2), (2, 0)):
            found = assert_equal(urls[source], urls[target])
            assert found.keys == 1_203
        ends[0].set("key:7", "another")
        ends[0].delete("key:8", "{a}hash")
        ends[0].set("alone", 1)
        there = cluster.owner(slot_of("key:7"))
        cluster.move([slot_of("key:7")], next(n for n in cluster.nodes if n is not there))
        found = compare(urls[0], urls[2])
        assert [each.key for each in found.different] == [b"key:7"]
        assert found.missing == [(0, b"alone")]
        assert sorted(found.extra) == [(0, b"key:8"), (0, b"{a}hash")]
        for client in ends[:2]:
            client.close()
