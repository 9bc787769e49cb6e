"""`verify` of strings, which are asked for by MGET or GET: what DUMP would tell is found too."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import redis

from benches.support.clusters import Cluster
from engine import Engine
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofProgress
from engine.proof import asked_server, second_looks
from tests.integration.test_verify_verb import FAR, SABOTAGES, verify
from tests.support.servers import ServerFactory, known, url_of

KEYS = 3_000
Sabotage = Callable[[Any, str], Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_looks, "PAUSES", (0.0, 0.05, 0.05))


def text(n: int) -> bytes:
    """A value in each of the forms that servers keep, and send, strings in."""
    dice = random.Random(n)
    return (
        b"",
        b"%d" % (n - KEYS // 2),
        b"%d" % (n << 40),
        b"0%d" % n,
        dice.randbytes(n % 70),
        b"word " * (n % 90),
        b"%d" % n + bytes(n % 50),
        b"$-1\r\n",
    )[n % 8]


def fill(client: Any, keys: int = KEYS) -> None:
    """Strings, each of which has one value at all ends, whatever its form."""
    pipe = client.pipeline(transaction=False)
    for n in range(keys):
        pipe.set(f"key:{n}", text(n))
    pipe.execute()


def asked(client: Any, command: str) -> int:
    """How often since CONFIG RESETSTAT."""
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def remade(client: Any, key: str, *command: Any) -> None:
    client.delete(key)
    client.execute_command(command[0], key, *command[1:])


SABOTAGE: list[tuple[str, Sabotage]] = [
    ("value", lambda c, key: c.append(key, "~")),
    ("value", lambda c, key: c.setrange(key, 0, b"\x01")),
    ("value", lambda c, key: c.set(key, f"{c.get(key)}.")),
    ("TTL", lambda c, key: c.pexpireat(key, FAR)),
    ("type", lambda c, key: remade(c, key, "RPUSH", "1")),
    ("type", lambda c, key: remade(c, key, "HSET", "f", "1")),
    ("missing", lambda c, key: c.delete(key)),
]


def sabotage(client: Any, count: int, seed: int) -> dict[str, str]:
    """Make so many keys differ: in what each does."""
    dice = random.Random(seed)
    wrong = {}
    for n in dice.sample(range(KEYS), count):
        what, act = dice.choice(SABOTAGE)
        act(client, f"key:{n}")
        wrong[f"key:{n}"] = what
    for n in range(3):
        client.set(f"new:{n}", "")
        wrong[f"new:{n}"] = "extra"
    return wrong


@pytest.mark.parametrize("expiring", [False, True])
@pytest.mark.parametrize(
    ("source", "target"), [("redis-6.2", "valkey-9"), ("valkey-9", "redis-7.0")]
)
def test_a_saboteur_of_strings(
    server_factory: ServerFactory, source: str, target: str, expiring: bool, quick: None
) -> None:
    here, there = server_factory(known(source)), server_factory(known(target))
    for server in (here, there):
        fill(server.client())
        if expiring:
            server.client().set("timed", "x", pxat=FAR)
        server.client().rpush("list", "x")
        server.client().config_resetstat()
    equal = verify(here, there, seed=1)
    assert (equal.outcome, equal.compared) == ("equal", KEYS + 1 + expiring)
    assert equal.resolved == 0
    for server, ttl in zip((here, there), ("pttl", "pexpiretime"), strict=True):
        client = server.client()
        assert asked(client, "mget") > KEYS / 100
        assert asked(client, "dump") < 20
        ttls = asked(client, "pttl") + asked(client, "pexpiretime")
        assert (ttls > KEYS) if expiring else (ttls < 20), ttl
    wrong = sabotage(there.client(), min(SABOTAGES, 990), seed=5)
    found = verify(here, there, seed=1)
    assert {each.key: each.kinds[0] for each in found.differences} == wrong
    assert (found.outcome, found.unknown) == ("different", 0)
    assert found.digests[0] == equal.digests[0] != found.digests[1]
    back = verify(there, here)
    turned = {"missing": "extra", "extra": "missing"}
    assert {each.key: each.kinds[0] for each in back.differences} == {
        key: turned.get(what, what) for key, what in wrong.items()
    }
    assert verify(here, there, repair=True).repaired == len(wrong)
    assert verify(here, there).outcome == "equal"


def test_an_expire_time_that_comes_meanwhile(
    server_factory: ServerFactory, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None had one when it began."""
    monkeypatch.setattr(asked_server, "PAGE_KEYS", 100)
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    for server in (here, there):
        fill(server.client())
    last = list(here.client().scan_iter(count=1000))[-500:]
    done = False

    def expire(progress: ProofProgress) -> None:
        nonlocal done
        # All names of the target, and some hundreds of keys that were compared.
        if progress.keys > KEYS + 300 and not done:
            done = True
            pipe = there.client().pipeline(transaction=False)
            for key in last:
                pipe.pexpireat(key, FAR)
            pipe.execute()

    ends = (Endpoint.parse(url_of(each)) for each in (here, there))
    found = Engine().sync.verify(*ends, on_progress=expire)
    assert {each.key for each in found.differences} == {each.decode() for each in last}
    assert found.kinds == {"TTL": 500}
    # Those that were compared before then were asked for without; these were looked at again.
    assert asked(there.client(), "pexpiretime") < KEYS + 3 * len(last)


def test_values_of_any_length(server_factory: ServerFactory, quick: None) -> None:
    """At the bounds of what is held, and of what is asked for so."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("valkey-9"))
    sizes = [0, 1, 63, 64, 16383, 16384, *((1 << 20) + n for n in (-17, -16, -1, 0, 1)), 3 << 20]
    for server in (here, there):
        fill(server.client(), 300)
        for size in sizes:
            server.client().set(f"long:{size}", random.Random(size).randbytes(size))
            server.client().set(f"zeros:{size}", bytes(size))
    found = verify(here, there)
    assert (found.outcome, found.compared) == ("equal", 300 + 2 * len(sizes))
    for size in sizes:
        there.client().setrange(f"long:{size}", max(size - 1, 0), "~")
        there.client().setrange(f"zeros:{size}", size // 2, "~")
    found = verify(here, there)
    assert {each.key for each in found.differences} == {
        f"{what}:{size}" for size in sizes for what in ("long", "zeros")
    }
    # Long ones alone: these go by DUMP.
    for server in (here, there):
        server.client().flushall()
        pipe = server.client().pipeline(transaction=False)
        for n in range(300):
            pipe.set(f"key:{n}", b"%d" % n * 20_000)
        pipe.execute()
        server.client().config_resetstat()
    assert verify(here, there).outcome == "equal"
    assert asked(here.client(), "mget") < 10
    assert asked(here.client(), "dump") > 200


def test_mixed_keys_go_by_payloads(server_factory: ServerFactory) -> None:
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    for server in (here, there):
        client = server.client().pipeline(transaction=False)
        for n in range(KEYS):
            client.rpush(f"list:{n}", n)
        client.set("string", "x").execute()
        server.client().config_resetstat()
    assert verify(here, there).outcome == "equal"
    assert asked(here.client(), "mget") < 5
    assert asked(here.client(), "dump") == KEYS + 1


@pytest.mark.parametrize("side", [0, 1])
def test_a_user_who_may_not_ask_for_strings(
    server_factory: ServerFactory, quick: None, side: int
) -> None:
    ends = [server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))]
    for server in ends:
        fill(server.client())
    client = ends[side].client()
    client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-mget")
    urls = [url_of(each) for each in ends]
    urls[side] = f"redis://reader:secret@{ends[side].host}:{ends[side].port}"
    found = verify(*urls)
    assert (found.outcome, found.compared) == ("equal", KEYS)
    assert len(client.execute_command("ACL", "LOG")) <= 1
    ends[1].client().append("key:77", "~")
    (different,) = verify(*urls).differences
    assert (different.key, different.kinds) == ("key:77", ("value",))
    # Nor some of the keys.
    client.execute_command("ACL", "SETUSER", "reader", "+mget", "resetkeys", "~key:[^7]*")
    found = verify(*urls)
    names = {f"key:{n}" for n in range(KEYS) if str(n).startswith("7")}
    assert {each.key for each in found.not_compared} == names
    assert (found.outcome, found.different) == ("unknown", 0)


def test_strings_of_clusters(server_factory: ServerFactory, quick: None) -> None:
    alone = server_factory(known("valkey-9"))
    fill(alone.client())
    with Cluster.start(known("redis-7.0"), primaries=2) as cluster:
        whole = redis.RedisCluster.from_url(cluster.url)
        fill(whole)
        for ends in ((cluster, alone), (alone, cluster), (cluster, cluster)):
            found = verify(*ends)
            assert found.different == 0
            assert found.compared == KEYS
        nodes = [each.client() for each in cluster.nodes]
        assert all(asked(each, "get") > KEYS / 3 for each in nodes)
        assert all(asked(each, "dump") < 50 for each in nodes)
        wrong = sabotage(alone.client(), 40, seed=6)
        found = verify(cluster, alone)
        assert {each.key: each.kinds[0] for each in found.differences} == wrong
        found = verify(alone, cluster)
        assert len(found.differences) == len(wrong)
