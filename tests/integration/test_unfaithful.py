"""What the source's stream does not say as a server means it: read again, left out, or passed on.

Each test is one migration between real servers, to the end of its cut-over: what the source holds
then, the target holds as well.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.endpoint import Endpoint
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.key_resync import KeyResync
from engine.transfer.which_have_ttls import TargetTtls, Timed
from engine.wire.control_connection import admin
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.servers import ServerFactory, known

Endpoints = tuple[Server, Server]


def pair(server_factory: ServerFactory, source: str, target: str, *options: str) -> Endpoints:
    """Servers of these releases (the beginnings of their names), the source with `options`; skips
    where there are none."""
    return server_factory(known(source), *options), server_factory(known(target))


def test_a_database_that_cannot_be_chosen(server_factory: ServerFactory) -> None:
    """Which of its keys have a TTL is not known then, whatever another database answers."""
    target = server_factory(known("redis-7.0"))
    for db, timed in ((0, b"zero"), (1, b"one")):
        target.client(db).mset({b"zero": 1, b"one": 1})
        target.client(db).expire(timed, 1000)
    keys = [Timed(db, key, None) for db in (1, 4000, 0) for key in (b"zero", b"one")]

    async def ask() -> list[Timed]:
        async with admin(Endpoint.parse(target.url)) as end:
            return await TargetTtls(end).of(keys)

    lacking = [each for each in keys if each.db == 4000]
    assert asyncio.run(ask()) == [Timed(1, b"one", None), *lacking, Timed(0, b"zero", None)]


@pytest.mark.parametrize("publish", ["pass", "drop"])
def test_messages(server_factory: ServerFactory, publish: str) -> None:
    """Sentinels of both ends never find each other through us; others are heard, or not."""
    source, target = pair(server_factory, "redis-7.0", "valkey-9")
    client, listener = source.client(), target.client().pubsub()
    listener.psubscribe("*")
    assert listener.get_message(timeout=5)["type"] == "psubscribe"  # type: ignore[index]

    with migrating(source, target, publish=publish) as run:
        run.following()
        client.publish("__sentinel__:hello", "127.0.0.1,26379,id,0,one,127.0.0.1,6379,0")
        client.publish("news", "one")
        pipe = client.pipeline(transaction=True)
        pipe.set("key", "value").publish("__sentinel__:hello", "m").publish("news", "two")
        pipe.execute()
        run.in_sync()
        assert run.progress.lag_bytes == 0
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    target.client().publish("last", "m")
    heard = []
    while not heard or heard[-1] != b"last":
        message = listener.get_message(timeout=5)
        assert message is not None
        heard.append(message["channel"])
    assert heard == ([b"news", b"news"] if publish == "pass" else []) + [b"last"]


def migrated_by(source: Server, target: Server | Proxy, run: Run) -> None:
    """The migration has ended well, and both ends hold the same."""
    assert run.report.status == "done", (run.report.errors, run.events)
    end = target if isinstance(target, Server) else f"redis://{target.host}:{target.port}"
    assert_settled(source, end, 2)


@pytest.mark.parametrize("release", ["redis-stack-7.4", "redis-8.0", "redis-8.2"])
def test_a_field_is_counted_up_in_fractions(server_factory: ServerFactory, release: str) -> None:
    """Redis 7.4 and 8.0 send HINCRBYFLOAT as HSET, which takes the field's TTL away; 8.2 as
    HSETEX. Of Redis Stack the server alone, without its modules."""
    binary = replace(known(release), options=())
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()

    for n in range(10):
        client.hset(f"hash:{n}", mapping={"field": n, "other": "x"})
        client.execute_command("HPEXPIRE", f"hash:{n}", 900_000_000, "FIELDS", 1, "field")

    with migrating(source, target) as run:
        run.following()
        run.in_sync()
        for n in range(10):
            client.hincrbyfloat(f"hash:{n}", "field", 0.5)
        run.in_sync()
        run.cut_over()
    migrated_by(source, target, run)
    for n in range(10):
        left = target.client().execute_command("HPTTL", f"hash:{n}", "FIELDS", 1, "field")
        assert left[0] > 800_000_000, n


@pytest.mark.parametrize("release", ["redis-3.2", "redis-5.0"])
def test_a_key_is_counted_up_in_fractions(server_factory: ServerFactory, release: str) -> None:
    """Redis before 6.0 sends INCRBYFLOAT as SET, which takes the key's TTL away."""
    source, target = pair(server_factory, release, "redis-6.2")
    client = source.client()
    for n in range(10):
        client.set(f"number:{n}", n, ex=900_000)

    with migrating(source, target) as run:
        run.following()
        run.in_sync()
        for n in range(10):
            client.incrbyfloat(f"number:{n}", 0.5)
        client.set("plain", 7)
        run.in_sync()
        run.cut_over()
    migrated_by(source, target, run)
    assert all(target.client().pttl(f"number:{n}") > 800_000_000 for n in range(10))
    assert target.client().pttl("plain") == -1


def test_entries_that_were_deleted_are_claimed(server_factory: ServerFactory) -> None:
    """Redis 6 keeps them pending, and 7 drops them: the target has what the source has."""
    source, target = pair(server_factory, "redis-6.2", "redis-7.0")
    client = source.client()

    with migrating(source, target) as run:
        run.following()
        for name in ("one", "two"):
            client.xgroup_create(name, "g", "0", mkstream=True)
            for n in range(1, 6):
                client.xadd(name, {"n": n}, id=f"{n}-1")
            client.xreadgroup("g", "reader", {name: ">"})
            client.xdel(name, "2-1", "5-1")
        client.xclaim("one", "g", "claimer", 0, ["1-1", "2-1", "5-1"])
        client.xautoclaim("two", "g", "claimer", 0)
        run.in_sync()
        run.cut_over()
    migrated_by(source, target, run)
    for name in ("one", "two"):
        there = target.client().xpending_range(name, "g", "-", "+", 10)
        here = client.xpending_range(name, "g", "-", "+", 10)
        whose = [(each["message_id"], each["consumer"], each["times_delivered"]) for each in here]
        assert whose == [
            (each["message_id"], each["consumer"], each["times_delivered"]) for each in there
        ]


def test_what_is_sorted_by_keys_that_the_target_has_not(server_factory: ServerFactory) -> None:
    """SORT … BY … GET … STORE names neither: the list is of what the source has."""
    source, target = pair(server_factory, "redis-7.0", "redis-7.0")
    target.client().config_set("proto-max-bulk-len", 1 << 20)
    client = source.client()
    for n in range(5):
        client.hset(f"weight:{n}", mapping={"is": 9 - n, "name": f"name {n}"})
    # Too long for the target.
    client.hset("weight:3", "long", os.urandom(1_500_000))
    client.rpush("numbers", *range(5))

    with migrating(source, target, timeout=60) as run:
        run.following()
        run.wait_for(lambda: run.progress.not_carried == 1, "one refused")
        client.sort("numbers", by="weight:*->is", get="weight:*->name", store="sorted")
        client.rpush("sorted", "more")
        client.hdel("weight:3", "long")
        run.cut_over()
    migrated_by(source, target, run)
    assert target.client().lrange("sorted", 0, -1) == [
        *(b"name %d" % n for n in (4, 3, 2, 1, 0)),
        b"more",
    ]


MEMBERS = "redis.call('rpush', KEYS[2], unpack(redis.call('smembers', KEYS[1])))"
POP = "return redis.call('spop', KEYS[1])"
POP_UNNAMED = "return redis.call('spop', 'unnamed:' .. ARGV[1])"


def of_verbatim_scripts(server_factory: ServerFactory, source: str = "redis-6.2") -> Endpoints:
    """The source sends scripts as they are (EVAL): before 5.0 always, later if it is told to."""
    ends = pair(server_factory, source, "redis-7.0")
    if ends[0].binary.version >= (5, 0, 0):
        ends[0].client().config_set("lua-replicate-commands", "no")
    return ends


@pytest.mark.parametrize("release", ["redis-3.2", "redis-6.2"])
def test_scripts_that_are_sent_as_they_are(server_factory: ServerFactory, release: str) -> None:
    source, target = of_verbatim_scripts(server_factory, release)
    client = source.client()

    with migrating(source, target) as run:
        run.following()
        for n in range(20):
            client.sadd(f"set:{n}", *(f"member {n} {m}" for m in range(300)))
            client.eval(POP, 1, f"set:{n}")
            client.eval(MEMBERS, 2, f"set:{n}", f"list:{n}")
            client.sadd(f"unnamed:{n}", *range(300))
            client.eval(POP_UNNAMED, 0, n)
            client.sadd(f"set:{n}", "one more")
        run.in_sync()
        run.cut_over()
    migrated_by(source, target, run)
    told = [event for event in run.events if event.startswith("the source sends scripts as they")]
    assert len(told) == 1
    assert "every key is compared before the cut-over" in told[0]


NEAR = "redis.call('set', KEYS[2], redis.call('ttl', KEYS[1]) < 1000 and 'near' or 'far')"
NEAR_UNNAMED = (
    "local ttl = redis.call('ttl', 'key:' .. ARGV[1])\n"
    "redis.call('set', 'to:' .. ARGV[1], ttl < 1000 and 'near' or 'far')"
)


@pytest.mark.parametrize("release", ["redis-2.8", "redis-3.2"])
def test_scripts_that_read_a_ttl_that_is_extended(
    server_factory: ServerFactory, release: str
) -> None:
    """On the target the TTL of such a key is a hundred years until the cut-over: what a script that
    runs there makes of it is another thing. (Later versions refuse a write behind TTL, or send what
    the script did.)"""
    source, target = of_verbatim_scripts(server_factory, release)
    client = source.client()
    for n in range(20):
        client.set(f"key:{n}", n, ex=600)

    with migrating(source, target) as run:
        run.following()
        for n in range(20):
            client.eval(NEAR, 2, f"key:{n}", f"named:{n}")
            client.eval(NEAR_UNNAMED, 0, n)
        run.in_sync()
        assert target.client().ttl("key:0") > 1000
        run.cut_over()
    migrated_by(source, target, run)
    there = target.client()
    assert [there.get(f"{name}:{n}") for name in ("named", "to") for n in (0, 19)] == [b"near"] * 4


def test_the_next_engine_compares_what_such_scripts_may_have_changed(
    server_factory: ServerFactory,
) -> None:
    """The script ran before it: the state says so."""
    source, target = of_verbatim_scripts(server_factory)
    client, store = source.client(), MemoryCheckpoint()
    # More keys than a sample of them has.
    client.mset({f"beside:{n}": n for n in range(3000)})

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        client.sadd("unnamed:0", *range(300))
        client.eval(POP_UNNAMED, 0, 0)
        run.in_sync()
        run.stop()
    with migrating(source, target, checkpoints=store) as run:
        run.cut_over()
    migrated_by(source, target, run)
    assert run.report.full_syncs == 1
    assert any("every key is compared before the cut-over" in event for event in run.events)


def test_the_target_has_lost_a_script(server_factory: ServerFactory) -> None:
    """The source takes it for known, and sends its name alone: its keys are read."""
    source, target = of_verbatim_scripts(server_factory)
    target.client().config_set("appendonly", "yes")
    target.client().config_set("appendfsync", "always")
    client = source.client()
    name = client.script_load("return redis.call('incrby', KEYS[1], ARGV[1])")
    unnamed = client.script_load("return redis.call('incrby', 'a key that it does not name', 1)")

    with migrating(source, target) as run:
        run.following()
        for n in range(3):
            client.evalsha(name, 1, f"before:{n}", n + 1)
            client.evalsha(unnamed, 0)
        run.in_sync()
        target.client().script_flush()
        for n in range(3):
            client.evalsha(name, 1, f"before:{n}", 10)
            client.evalsha(name, 1, f"behind:{n}", 5)
            client.evalsha(unnamed, 0)
        run.in_sync()
        run.cut_over()
    migrated_by(source, target, run)
    assert target.client().mget("before:2", "behind:2") == [b"13", b"5"]
    assert target.client().get("a key that it does not name") == b"6"


@pytest.mark.parametrize("release", ["redis-8.6", "valkey-9.1"])
def test_leases_of_several_keys_on_a_target_that_stalls(
    server_factory: ServerFactory, release: str
) -> None:
    """MSETEX … PXAT, on a target whose import mode we may not use: near deadlines are lifted."""
    source, target = pair(server_factory, release, release)
    client = source.client()
    if release.startswith("valkey"):
        rules = "-config|set", "-client|import-source"
        target.client().execute_command("ACL", "SETUSER", "default", *rules)
    names = [f"lease:{n}" for n in range(10)]
    with Proxy(target.host, target.port) as proxy, migrating(source, proxy) as run:
        run.following()
        run.in_sync()
        proxy.stall()
        pairs = [word for name in names for word in (name, "held")]
        with client.pipeline(transaction=False) as pipe:
            # At once: no machine is so slow that the source sees an end.
            pipe.execute_command("MSETEX", 10, *pairs, "PX", 1500)
            for name in names:
                pipe.pexpire(name, 3_600_000)
            pipe.execute()
        until = time.monotonic() + 2
        # Until the first deadline has passed.
        time.sleep(max(until - time.monotonic(), 0))
        proxy.stall(False)
        run.in_sync()
        run.cut_over()
    migrated_by(source, target, run)
    assert target.client().mget(names) == [b"held"] * 10
    assert all(0 < target.client().pttl(name) <= 3_600_000 for name in names)


@pytest.mark.parametrize("both", [True, False])
def test_a_command_of_an_unknown_name(server_factory: ServerFactory, both: bool) -> None:
    """As a module's, or a newer server's: its keys are read again, and an event names it once."""
    renamed = ("--rename-command", "INCRBY", "BUMP")
    source, target = pair(server_factory, "redis-7.0", "redis-7.0", *renamed)
    if both:
        target = server_factory(target.binary, *renamed)
    client = source.client()

    with migrating(source, target) as run:
        run.in_sync()
        for n in range(20):
            client.execute_command("BUMP", f"counter:{n % 5}", n)
            client.copy("counter:0", f"copy:{n}", replace=True)
        run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert target.client().get("counter:4") == b"%d" % sum(range(4, 20, 5))
    told = [event for event in run.events if "BUMP" in event]
    assert len(told) == 1, run.events
    assert "is not known here: each key that it names is read again" in told[0]


def test_keys_that_are_read_again_all_the_time(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source that cannot be read behind its fence: the refusal says what leads on."""
    source, target = server_factory(known("redis-3.2")), server_factory(known("redis-5.0"))

    with migrating(source, target, cut_over_timeout=0.5) as run:
        run.following()
        run.in_sync()
        monkeypatch.setattr(KeyResync, "waiting", 1)
        why = run.refused()
        assert "1 key is being read again from the source; this source cannot be read" in why
        assert "stop those writers first (--fence hook" in why
        # Of a moment it says no more than what it is.
        short = "1 key is being read again from the source"
        run.wait_for(lambda: run.progress.reason == short, "the gate's reason")
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)
