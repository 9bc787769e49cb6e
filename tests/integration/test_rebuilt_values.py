"""Values that are longer than the target takes in one argument: made there by commands, out of
sight until they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from benches.support.clusters import Cluster
from benches.support.engines import Migration
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine._native import RespReader, key_slot
from engine.errors import LinkError, ServerError
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OwnKeys
from engine.targets import rebuilt_values
from engine.targets.crashing_values import REASON
from engine.targets.rebuilt_values import GONE, give_name, stores
from engine.transfer import key_resync
from engine.transfer.follow import _without
from engine.wire.dial import dial
from engine.wire.info_command import ask_info
from tests.integration.test_verify_verb import verify
from tests.support.comparison import assert_settled
from tests.support.library import copied, copying, migrating
from tests.support.own_keys import OWN_PREFIX, assert_tidy
from tests.support.servers import ServerFactory, known, url_of

MIB = 1 << 20
HOUR_MS = 3_600_000
LIMIT = ("--proto-max-bulk-len", str(MIB))
NAMES = ("list", "set", "{tagged}zset", "}hash{", "{}timed")


def fill(client: redis.Redis, *, field_ttls: bool) -> None:
    """A long value of each kind, with a TTL each second one; and what is not long."""
    rng = random.Random(5)
    members = [rng.randbytes(rng.randrange(1, 1500)) for _ in range(2500)]
    client.rpush("list", *members, *range(500), os.urandom(MIB))
    client.sadd("set", *members)
    scores = [rng.random() * 10 ** rng.randrange(-300, 300) for _ in members]
    client.zadd("{tagged}zset", dict(zip(members, scores, strict=True)))
    client.zadd("{tagged}zset", {"most": float("inf"), "least": float("-inf"), "even": 3.0})
    client.hset("}hash{", mapping={b"%d" % n: each for n, each in enumerate(members)})
    client.hset("{}timed", mapping={b"%d" % n: each for n, each in enumerate(members)})
    later = int(time.time() * 1000) + HOUR_MS
    for n in range(0, len(members), 50) if field_ttls else ():
        client.execute_command("HPEXPIREAT", "{}timed", later + n // 200, "FIELDS", 1, n)
    client.pexpireat("set", later)
    client.pexpireat("{}timed", later + 1)
    client.mset({f"short:{n}": n for n in range(500)})


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """The target takes no more than 1 MiB at once."""
    source = server_factory(known("redis-8.0"), "--appendonly", "yes")
    fill(source.client(), field_ttls=True)
    return source, server_factory(known("valkey-9"), *LIMIT)


@pytest.mark.parametrize("way", ["scan", "replica", "file", "append-only file"])
def test_by_each_way(ends: tuple[Server, Server], way: str) -> None:
    source, target = ends
    if way == "scan":
        run = copied(source, target)
    elif way == "append-only file":
        source.client().bgrewriteaof()
        wait_for(lambda: _rewritten(source.client()), "the base")
        run = copied(f"aof:{source.folder / 'appendonlydir'}", target)
    elif way == "file":
        source.client().save()
        run = copied(f"rdb:{Path(source.folder, 'dump.rdb')}", target, source_type="auto")
    else:
        with migrating(source, target) as run:
            run.following()
            source.client().rpush("list", "behind it")
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert run.report.rebuilt_keys >= len(NAMES)
    assert sum("is made there by commands" in event for event in run.events) == 1
    assert_settled(source, target, 2)
    assert_tidy(target)


def _rewritten(client: redis.Redis) -> bool:
    found = client.info("persistence")
    return not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])


def test_that_become_long_while_they_are_followed(server_factory: ServerFactory) -> None:
    """By commands that the target does not take, so that they are read again."""
    source = server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    client = source.client(0)
    client.set("short", "x")

    with migrating(source, target) as run:
        run.following()
        other = source.client(3)
        for each in (client, other):
            fill(each, field_ttls=True)
            # The commands themselves arrive; these are read again from the source.
            each.copy("list", "list:copied")
            each.sort("list", by="nosort", store="list:sorted")
        client.set("one", os.urandom(2 * MIB))
        run.wait_for(lambda: run.progress.not_carried == 1, "one string that cannot be")
        client.delete("one")
        client.eval("redis.call('restore', KEYS[1], 0, ARGV[1])", 1, "made", client.dump("set"))
        client.sadd("made", "late")
        client.rename("made", "renamed")
        client.hdel("}hash{", 1, 2, 3)
        run.wait_for(lambda: run.progress.not_carried == 0, "nothing refused")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.rebuilt_keys >= 1
    assert_settled(source, target, 5)
    assert_tidy(target)


def seen(target: Server) -> Iterator[bytes]:
    """What clients see there of long values: half of one would be another length."""
    for name in NAMES:
        if target.client().exists(name):
            yield name.encode()


def aside(target: Server) -> list[bytes]:
    """What lies there that is not whole."""
    return list(target.client().scan_iter(OWN_PREFIX + b"rebuild:*", count=1000))


def test_a_worker_that_is_killed_in_the_middle(
    migration: Migration, ends: tuple[Server, Server]
) -> None:
    """What it leaves has an end of its own, and the next worker removes it."""
    source, target = ends
    with Proxy(target.host, target.port) as slow:
        slow.throttle(400_000)
        migration.register(slow)
        migration.start(source, "--source-type", "replica", "--skip-checks", "value-limit")
        migration.until(lambda: aside(target), "one that is not whole")
        migration.kill()
        (name,) = aside(target)
        assert 0 < target.client().pttl(name) <= HOUR_MS
        whole = list(seen(target))
        assert len(whole) < len(NAMES)
        slow.throttle(None)
        source.client().delete(*(each for each in NAMES if each.encode() not in whole))
        migration.resume(verb=False)
        migration.wait_for(lambda found: found["CanComplete"])
        assert not aside(target)
        migration.complete()
    assert_settled(source, target, 5)
    assert_tidy(target)


def test_the_target_is_restarted_and_the_link_goes_in_the_middle(
    server_factory: ServerFactory,
) -> None:
    source = server_factory(known("redis-8.0"))
    fill(source.client(), field_ttls=True)
    target = server_factory(known("redis-8.0"), *LIMIT, "--appendonly", "yes")
    with Proxy(target.host, target.port) as slow:
        slow.throttle(1_500_000)
        with migrating(source, slow, timeout=300) as run:
            run.wait_for(lambda: aside(target), "one that is not whole")
            slow.cut_now()
            run.wait_for(lambda: run.progress.rebuilt_keys >= 1, "a whole one")
            run.wait_for(lambda: aside(target), "another one")
            target.kill()
            target.restart()
            slow.throttle(None)
            run.following()
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.reconnects >= 1
    assert_settled(source, target, 5)
    assert_tidy(target)


def test_a_target_that_is_out_of_memory_for_a_while(ends: tuple[Server, Server]) -> None:
    """In the snapshot, and while it is followed: what was begun is begun again."""
    source, target = ends
    client, limits = source.client(), target.client()
    limits.config_set("maxmemory", 4 * MIB)
    with migrating(source, target, timeout=90) as run:
        run.wait_for(lambda: run.progress.retries >= 3, "refusals")
        limits.config_set("maxmemory", 0)
        run.in_sync()
        limits.config_set("maxmemory", limits.info("memory")["used_memory"] + MIB)
        client.eval("redis.call('restore', KEYS[1], 0, ARGV[1])", 1, "late", client.dump("set"))
        run.wait_for(lambda: run.progress.held_keys, "a key to be read again")
        limits.config_set("maxmemory", 0)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert_settled(source, target, 5)
    assert_tidy(target)


def test_a_target_that_is_out_of_memory_for_long(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else arrives meanwhile; the key is named, until a command names it again."""
    source, target = ends
    client, limits = source.client(), target.client()
    monkeypatch.setattr(key_resync, "_UNMADE_TRIES", 3)
    client.sadd("long", *(os.urandom(9000) for _ in range(1500)))
    payload = client.dump("long")
    client.delete("long")
    with migrating(source, target, timeout=30) as run:
        run.in_sync()
        limits.config_set("maxmemory", limits.info("memory")["used_memory"] + 4 * MIB)
        client.eval("redis.call('restore', KEYS[1], 0, ARGV[1])", 1, "late", payload)
        run.wait_for(lambda: run.progress.not_carried == 1, "it named")
        client.set("beside", "x")
        run.wait_for(lambda: limits.exists("beside"), "a key beside it")
        assert not aside(target)
        limits.config_set("maxmemory", 0)
        client.sadd("late", "one more")
        run.wait_for(lambda: run.progress.not_carried == 0, "it carried")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 5)
    assert_tidy(target)


@pytest.mark.parametrize("way", ["scan", "replica"])
def test_what_no_commands_make_is_named(server_factory: ServerFactory, way: str) -> None:
    source = server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    client = source.client()
    client.xadd("stream", {"short": "v", "long": os.urandom(MIB + 1)})
    client.hset("hash", mapping={"short": "v", "long": os.urandom(MIB + 1)})
    client.set("string", os.urandom(2 * MIB))
    if way == "scan":
        run = copied(source, target)
    else:
        with migrating(source, target) as run:
            run.following()
            run.wait_for(lambda: run.progress.not_carried == 3, "all three named")
            run.complete(force=True)
    reasons = {each.key: each.reason for each in run.report.not_carried}
    assert reasons.keys() == {"stream", "hash", "string"}
    assert all("proto-max-bulk-len" in each for each in reasons.values())
    assert "1,048,577 bytes in one piece" in reasons["hash"]
    assert not target.client().exists("stream", "hash", "string")
    assert not aside(target)


def test_into_a_cluster(server_factory: ServerFactory) -> None:
    """The name is in the slot of the key, whatever braces the key has."""
    source = server_factory(known("redis-8.0"))
    client = source.client()
    fill(client, field_ttls=True)
    own = OwnKeys("token", "lane", "tag")
    for name in (*NAMES, "", "{", "}{", "{a}", "{}{a}"):
        assert key_slot(own.aside(name.encode())) == key_slot(name.encode())
    with Cluster.start(known("redis-8.0"), primaries=2, make=server_factory) as target:
        for node in target.nodes:
            node.client().config_set("proto-max-bulk-len", MIB)
        with migrating(source, target, timeout=90) as run:
            run.following()
            client.rename("set", "renamed")
            client.sunionstore("made", "renamed", "none")
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert run.report.rebuilt_keys >= len(NAMES)
        assert_settled(source, target, 5)
        assert_tidy(target)


def test_what_the_target_has_stays_if_it_is_to(ends: tuple[Server, Server]) -> None:
    source, target = ends
    target.client().rpush("list", "own")
    run = copied(source, target, if_exists="skip")
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().lrange("list", 0, -1) == [b"own"]
    assert run.report.skipped == 1
    assert run.report.rebuilt_keys == len(NAMES) - 1
    assert not aside(target)


@pytest.mark.parametrize("denied", ["persist", "pexpireat", "pexpire", "rename", "multi", "exec"])
def test_what_the_user_may_not_run_leaves_the_key_out(
    server_factory: ServerFactory, denied: str
) -> None:
    """Its name is not given to a value that still has the expire time of one that is not whole."""
    source = server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    client = source.client()
    client.rpush("list", *(os.urandom(9000) for _ in range(150)))
    client.copy("list", "timed")
    client.pexpire("timed", HOUR_MS)
    target.client().execute_command("ACL", "SETUSER", "default", f"-{denied}")
    run = copied(source, target)
    left = {"persist": {"list"}, "pexpireat": {"timed"}}.get(denied, {"list", "timed"})
    assert {each.key for each in run.report.not_carried} == left
    assert all(denied in each.reason.lower() for each in run.report.not_carried)
    names = {key.encode() for key in {"list", "timed"} - left}
    assert set(target.client().scan_iter()) == names
    assert all((target.client().pttl(key) > 0) == (key == b"timed") for key in names)


@pytest.mark.parametrize("server", ["redis-6.0", "redis-7.0", "valkey-9"])
def test_an_exec_that_is_refused(server_factory: ServerFactory, server: str) -> None:
    """The connection is in no transaction behind it: what follows is stored."""
    source = server_factory(known("redis-6.0"))
    target = server_factory(known(server), *LIMIT)
    client = source.client()
    client.rpush("list", *(os.urandom(9000) for _ in range(150)))
    client.mset({f"short:{n}": n for n in range(2000)})
    target.client().execute_command("ACL", "SETUSER", "default", "-exec")
    run = copied(source, target)
    assert {each.key for each in run.report.not_carried} == {"list"}, run.report.errors
    assert target.client().dbsize() == 2000


@pytest.mark.parametrize("server", ["redis-5.0", "redis-7.0", "valkey-9"])
def test_a_script_gives_it_its_name(server_factory: ServerFactory, server: str) -> None:
    """And its end, or does nothing."""
    client = server_factory(known(server)).client()

    def named(expire_at: int) -> bytes:
        client.set("aside", "value", ex=100)
        (command,) = stores(b"aside", b"key", expire_at, by_script=True)
        reader = RespReader()
        reader.feed(command)
        return bytes(client.execute_command(*reader.gets()))

    later = int(time.time() * 1000) + HOUR_MS
    for expire_at in (-1, later):
        assert named(expire_at) == b"OK"
        assert client.pttl("key") == -1 if expire_at < 0 else client.pttl("key") > HOUR_MS - 60_000
        assert not client.exists("aside")
    client.delete("aside")
    with pytest.raises(redis.ResponseError, match=GONE):
        client.execute_command("EVAL", rebuilt_values._NAMED_AT_ONCE, 2, "aside", "key", "PERSIST")
    if server != "redis-5.0":
        client.delete("key")
        client.execute_command("ACL", "SETUSER", "default", "-persist")
        with pytest.raises(redis.ResponseError):
            named(-1)
        assert not client.exists("key")
        assert 0 < client.ttl("aside") <= 100


@pytest.mark.parametrize("server", ["redis-6.0", "valkey-9"])
async def test_one_whose_key_has_come_meanwhile(server_factory: ServerFactory, server: str) -> None:
    """What is not to replace it keeps its end."""
    target = server_factory(known(server))
    client = target.client()
    client.set("key", "own")
    connection = await dial(Endpoint.parse(target.url), fault="target", timeout=5)
    with contextlib.closing(connection):
        client.set("aside", "value", ex=100)
        assert not await give_name(connection, b"aside", b"key", -1, replace=False)
        assert client.get("key") == b"own"
        assert HOUR_MS - 60_000 < client.pttl("aside") <= HOUR_MS
        assert await give_name(connection, b"aside", b"key", -1, replace=True)
        assert (client.get("key"), client.pttl("key")) == (b"value", -1)
        with pytest.raises(ServerError, match=GONE):
            await give_name(connection, b"aside", b"key", -1, replace=True)
        assert client.get("key") == b"value"


def test_a_repair_of_a_comparison(ends: tuple[Server, Server]) -> None:
    """Of those that differ, and of one whose time has come meanwhile nothing stays."""
    source, target = ends
    client, there = source.client(), target.client()
    assert copied(source, target).report.status == "done"
    for n in range(300):
        client.xadd("stream", {"f": os.urandom(5000)}, id=f"{n + 1}-1")
    client.xgroup_create("stream", "group", "0")
    client.xreadgroup("group", "anna", {"stream": ">"}, count=20)
    client.set("one", os.urandom(MIB + 100))
    client.hdel("}hash{", 5)
    there.lset("list", 7, "~")
    there.zadd("{tagged}zset", {"more": 1})
    there.hset("{}timed", "7", "~")
    there.persist("set")
    found = verify(source, target, repair=True)
    assert (found.outcome, found.different, found.repaired) == ("different", 7, 6), found
    (left,) = (each for each in found.differences if not each.repaired)
    assert left.key == "one"
    assert any("one: the value" in each and "proto-max" in each for each in found.left_out)
    assert any("made by commands" in each for each in found.left_out)
    client.delete("one")
    assert_settled(source, target, 1)
    assert_tidy(target)


def test_a_repair_of_a_cluster(server_factory: ServerFactory) -> None:
    source = server_factory(known("redis-8.0"))
    fill(source.client(), field_ttls=True)
    with Cluster.start(known("redis-8.0"), primaries=2, make=server_factory) as target:
        for node in target.nodes:
            node.client().config_set("proto-max-bulk-len", MIB)
        found = verify(source, target, repair=True)
        assert (found.outcome, found.repaired) == ("equal", len(NAMES) + 500), found
        assert_settled(source, target, 1)
        assert_tidy(target)


def test_of_what_ends_one_all_is_stored_or_nothing() -> None:
    ends = [(0, b"long", raw, None) for raw in stores(b"aside", b"long", -1, by_script=False)]
    beside = [(0, b"a", b"RESTORE", 1), (0, b"b", b"DEL", None), (0, b"b", b"RESTORE", 1)]
    assert _without([*ends, *beside], {0}) == _without([*ends, *beside], {1}) == beside
    assert _without([*ends, *beside], {3}) == [*ends, *beside[:1], *beside[2:]]


def test_a_refusal_while_more_is_under_way(server_factory: ServerFactory) -> None:
    """The connection goes on behind it, once what else is owed was answered."""
    source = server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    source.client().rpush("list", *(os.urandom(9000) for _ in range(300)))
    limits = target.client()
    limits.config_set("maxmemory", 1)
    with Proxy(target.host, target.port) as slow:
        slow.throttle(1_500_000)
        with copying(source, slow, timeout=20) as run:
            run.wait_for(lambda: run.progress.retries >= 2, "refusals")
            limits.config_set("maxmemory", 0)
            slow.throttle(None)
            run.join()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)


async def test_a_link_that_goes_while_the_first_element_is_sent(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """Wherever it is cut: what is there of the value has an end."""
    target = server_factory(known("redis-8.0"))
    client = target.client()
    client.rpush("list", "first", *range(2000))
    payload = client.dump("list")
    assert isinstance(payload, bytes)
    client.delete("list")
    begun = 0
    with Proxy(target.host, target.port) as proxy:
        end = Endpoint.parse(url_of(proxy))
        for count in range(20, 240, 4):
            connection = await dial(end, fault="target", timeout=5)
            able = (await ask_info(connection)).capabilities
            made = rebuilt_values.make(
                payload, b"aside", limit=1000, most=MIB, able=able, folder=str(tmp_path)
            )
            proxy.cut_after(count, "up")
            with contextlib.closing(connection), contextlib.closing(made), pytest.raises(LinkError):
                await rebuilt_values.build(connection, made, b"aside", 5)
            wait_for(lambda: not proxy.armed and proxied(target) == 0, "what came before the cut")
            begun += client.exists("aside")
            assert client.pttl("aside") != -1, count
            client.delete("aside")
    assert 0 < begun < 55


def proxied(target: Server) -> int:
    """Connections of the engine there."""
    return sum(
        not each["lib-name"].startswith("redis-py") for each in target.client().client_list()
    )


def test_a_hash_whose_fields_expire_while_it_is_made(server_factory: ServerFactory) -> None:
    """Nothing is left of it, as where the target had loaded it."""
    source = server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    client = source.client()
    # The engine's word for it is the target's: whose clock is ahead, or which came late.
    client.hset("hash", mapping={n: os.urandom(9000) for n in range(300)})
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.execute_command("HPEXPIRE", "hash", 1500, "FIELDS", 300, *range(300))
    target.client().hset("hash", "old", "x")
    with Proxy(target.host, target.port) as slow:
        slow.throttle(1_000_000)
        run = copied(source, slow, timeout=30)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert not target.client().dbsize()


@pytest.mark.parametrize("way", ["scan", "file"])
def test_no_room_for_it_on_disk(
    ends: tuple[Server, Server], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys are named, and all others carried."""
    source, target = ends

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rebuilt_values, "temporary_file", full)
    if way == "scan":
        run = copied(source, target)
    else:
        source.client().save()
        run = copied(f"rdb:{Path(source.folder, 'dump.rdb')}", target, source_type="auto")
    assert {each.key for each in run.report.not_carried} == set(NAMES), run.report.errors
    assert all("No space left" in each.reason for each in run.report.not_carried)
    assert target.client().dbsize() == 500


def test_the_target_ends_at_it_each_time(server_factory: ServerFactory) -> None:
    """It is left out, as one that a RESTORE carries."""
    source = server_factory(known("redis-8.0"))
    source.client().rpush("list", *(os.urandom(9000) for _ in range(400)))
    source.client().set("short", "x")
    target = server_factory(known("redis-8.0"), *LIMIT)
    with Proxy(target.host, target.port) as slow:
        slow.throttle(1_500_000)
        with migrating(source, slow) as run:
            for _ in range(2):
                run.wait_for(lambda: aside(target), "one that is not whole")
                target.kill()
                target.restart()
            slow.throttle(None)
            run.wait_for(lambda: run.progress.not_carried == 1, "it named")
            run.wait_for(lambda: target.client().exists("short"), "the other key")
            run.complete(force=True)
    assert [each.key for each in run.report.not_carried] == ["list"]
    assert run.report.not_carried[0].reason == REASON
    assert not target.client().exists("list")
