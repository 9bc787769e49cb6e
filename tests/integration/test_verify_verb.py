"""`verify` between real servers: all that a saboteur does is found, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine import Engine
from engine.cli import app
from engine.errors import AuthError, LinkError, UsageError
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofProgress, ProofReport, ProofSettings
from tests.support.servers import End, ServerFactory, known, url_of

SOAK = bool(os.environ.get("ENGINE_SOAK"))
SABOTAGES = 1_000 if SOAK else 60
EQUAL = 1_000_000 if SOAK else 12_000
FAR = 2_000_000_000_000
# So that one value has many forms.
SMALL = {
    "hash-max-listpack-entries": 4,
    "set-max-intset-entries": 3,
    "zset-max-listpack-entries": 4,
    "list-max-listpack-size": 3,
    "stream-node-max-entries": 2,
}
# The same, wherever that is for each of some thousand keys.
LIMITS: dict[str, tuple[str | int, ...]] = {
    "hash-max-ziplist-entries": (0, 4, 128),
    "hash-max-ziplist-value": (1, 64),
    "set-max-intset-entries": (0, 3, 512),
    "set-max-listpack-entries": (0, 4, 128),
    "zset-max-ziplist-entries": (0, 4, 128),
    "list-max-ziplist-size": (-2, 1, 3),
    "list-compress-depth": (0, 1),
    "stream-node-max-entries": (1, 2, 100),
}
KINDS = ("string", "list", "set", "zset", "hash", "stream", "timed")


def verify(source: End, target: End, report: Path | None = None, **settings: Any) -> ProofReport:
    """By the library."""
    return Engine().sync.verify(
        Endpoint.parse(url_of(source)),
        Endpoint.parse(url_of(target)),
        settings=ProofSettings(**settings),
        report=None if report is None else str(report),
    )


def fill(client: redis.Redis, keys: int, seed: int, first: int = 0) -> None:
    """Keys of every type, from this number on; what has no order comes in the order of `seed`."""
    dice = random.Random(seed)
    pipe = client.pipeline(transaction=False)
    numbers = list(range(first, first + keys))
    dice.shuffle(numbers)
    for n in numbers:
        kind = KINDS[n % len(KINDS)]
        key, many = f"{kind}:{n}", n % 12 + 2
        elements = [f"e{i}" if n % 3 else str(i) for i in range(many)]
        mixed = dice.sample(elements, many)
        if kind == "string":
            pipe.set(key, f"{n}" if n % 2 else "text " * (n % 50))
        elif kind == "list":
            pipe.rpush(key, *elements)
        elif kind == "set":
            pipe.sadd(key, *mixed)
        elif kind == "zset":
            pipe.zadd(key, {each: elements.index(each) / 3 for each in mixed})
        elif kind == "hash":
            pipe.hset(key, mapping={each: each * 2 for each in mixed})
        elif kind == "stream":
            for i, each in enumerate(elements):
                pipe.xadd(key, {"field": each, f"other{i % 2}": "x"}, id=f"{i + 1}-0")
            pipe.xgroup_create(key, "group", id="0")
            pipe.execute_command(
                "XCLAIM", key, "group", "owner", 0, "1-0", "2-0",
                *("TIME", 1_700_000_000_000, "RETRYCOUNT", 3, "FORCE"),
            )  # fmt: skip
        else:
            pipe.set(key, "timed")
        if kind == "timed" or n % 11 == 0:
            pipe.pexpireat(key, FAR + n)
    pipe.execute()


def pair_of(server_factory: ServerFactory, source: str, target: str) -> tuple[Server, Server]:
    """Two servers that keep one value in unequal forms."""
    here, there = server_factory(known(source)), server_factory(known(target))
    for name, value in SMALL.items():
        there.client().config_set(name, value)
    return here, there


def _member(client: redis.Redis, key: str) -> Any:
    return client.execute_command("ZRANGE", key, 1, 1)[0]


def _one_bit(client: redis.Redis, key: str) -> None:
    import math

    member = _member(client, key)
    score = client.zscore(key, member)
    assert score is not None
    client.zadd(key, {member: math.nextafter(score, math.inf)})


def _swap(client: redis.Redis, key: str) -> None:
    first, second = client.lrange(key, 0, 1)
    client.lset(key, 0, second)
    client.lset(key, 1, first)


def _moved(client: redis.Redis, key: str) -> None:
    assert client.execute_command("MOVE", key, 1)


SABOTEUR: dict[str, list[tuple[str, Callable[[redis.Redis, str], Any]]]] = {
    "string": [("value", lambda c, key: c.setrange(key, 0, "~"))],
    "list": [("value", _swap)],
    "set": [("value", lambda c, key: c.spop(key))],
    "zset": [("value", _one_bit)],
    "hash": [("value", lambda c, key: c.hset(key, c.hkeys(key)[0], "~"))],
    "stream": [
        ("groups", lambda c, key: c.xack(key, "group", "2-0")),
        ("groups", lambda c, key: c.xgroup_setid(key, "group", "1-0")),
        ("value", lambda c, key: c.xdel(key, "1-0")),
    ],
    "timed": [
        ("TTL", lambda c, key: c.pexpireat(key, c.pexpiretime(key) + 3_600_000)),
        ("TTL", lambda c, key: c.persist(key)),
        ("type", lambda c, key: (c.delete(key), c.rpush(key, "timed"), c.pexpireat(key, FAR))),
    ],
}
ANY: list[tuple[str, Callable[[redis.Redis, str], Any]]] = [
    ("missing", lambda c, key: c.delete(key)),
    ("missing", _moved),
]


@pytest.mark.parametrize(
    ("source", "target"), [("redis-7.0", "valkey-9"), ("valkey-9", "redis-7.0")]
)
def test_a_saboteur(
    server_factory: ServerFactory, tmp_path: Path, source: str, target: str
) -> None:
    here, there = pair_of(server_factory, source, target)
    keys = max(1_000, 10 * SABOTAGES)
    for seed, server in enumerate((here, there)):
        fill(server.client(), keys, seed)
        fill(server.client(1), 100, seed)
    equal = verify(here, there, seed=1)
    assert (equal.outcome, equal.compared) == ("equal", keys + 100)
    assert equal.digests[0] == equal.digests[1]
    dice = random.Random(41129)
    client = there.client()
    wrong: dict[tuple[int, str], str] = {}
    for n in dice.sample(range(100, keys), SABOTAGES):
        kind = KINDS[n % len(KINDS)]
        what, act = dice.choice(SABOTEUR[kind] + ANY)
        act(client, key := f"{kind}:{n}")
        wrong[0, key] = what
        if act is _moved:
            wrong[1, key] = "extra"
    for n in range(5):
        there.client(n % 2).set(f"new:{n}", "<script>alert(1)</script>")
        wrong[n % 2, f"new:{n}"] = "extra"
    report = tmp_path / "report"
    found = verify(here, there, report, seed=1)
    told = [json.loads(line) for line in report.read_text().splitlines()]
    lines = [each["difference"] for each in told if "difference" in each]
    assert {(each["db"], each["key"]): each["kinds"][0] for each in lines} == wrong
    assert (found.outcome, found.different, found.unknown) == ("different", len(wrong), 0)
    assert found.digests[0] == equal.digests[0] != found.digests[1]
    assert told[0]["source"][0]["name"] == found.source[0].name
    assert told[-1]["result"]["different"] == len(wrong)
    page = report.with_name("report.html").read_text()
    assert found.differences[-1].key in page
    assert "<script" not in page
    # By names alone, and by TTLs.
    counted = verify(here, there, mode="count")
    both = ("missing", "extra")
    assert counted.different == sum(what in both for what in wrong.values())
    timed = verify(here, there, mode="ttl")
    assert timed.different == sum(what in (*both, "TTL", "type") for what in wrong.values())
    repaired = verify(here, there, repair=True)
    # The older one does not know all forms that the newer one has: there they are rewritten.
    assert not [each for each in repaired.left_out if each.startswith("not repaired")]
    assert repaired.repaired == len(wrong)
    assert verify(here, there).different == 0


@pytest.mark.parametrize(
    ("source", "target"), [("redis-5.0", "valkey-9.1"), ("redis-6.0", "redis-8.6")]
)
@pytest.mark.timeout(3_600 if SOAK else 180)
def test_nothing_is_invented(server_factory: ServerFactory, source: str, target: str) -> None:
    """Of keys that are equal none differs, whatever forms their values have at either end."""
    here, there = server_factory(known(source)), server_factory(known(target))
    for seed, server in enumerate((here, there)):
        client, dice = server.client(), random.Random(seed)
        for first in range(0, EQUAL, 2_000):
            for name, values in LIMITS.items():
                # (Not each release has each.)
                with contextlib.suppress(redis.ResponseError):
                    client.config_set(name, dice.choice(values))
            fill(client, 2_000, seed, first)
    found = verify(here, there)
    assert (found.differences, found.not_compared) == ((), ())
    assert (found.outcome, found.compared) == ("equal", EQUAL)
    assert found.digests[0] == found.digests[1]


def test_field_ttls(server_factory: ServerFactory) -> None:
    here, there = pair_of(server_factory, "redis-8.0", "valkey-9")
    for server in (here, there):
        for n in range(20):
            server.client().hset(f"hash:{n}", mapping={f"f{i}": "v" for i in range(3)})
            server.client().execute_command("HPEXPIREAT", f"hash:{n}", FAR, "FIELDS", 1, "f1")
    assert verify(here, there).outcome == "equal"
    there.client().execute_command("HPEXPIREAT", "hash:7", FAR + 1, "FIELDS", 1, "f1")
    (found,) = verify(here, there).differences
    assert (found.key, found.kinds) == ("hash:7", ("field TTLs",))


def test_long_values(server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.proof import long_values

    here, there = server_factory(known("redis-7.0")), server_factory(known("valkey-9"))
    for seed, server in enumerate((here, there)):
        client = server.client()
        client.set("string", random.Random(1).randbytes(3 << 20))
        members = [f"member {n} {'x' * 400}" for n in range(3_000)]
        random.Random(seed).shuffle(members)
        client.sadd("set", *members)
        client.hset("hash", mapping=dict.fromkeys(members, "v"))
        client.zadd("zset", {each: n / 7 for n, each in enumerate(sorted(members))})
        client.rpush("list", *sorted(members))
    assert verify(here, there).outcome == "equal"
    # Neither held nor decoded, but read in windows.
    monkeypatch.setattr(long_values, "WHOLE_BYTES", 1 << 20)
    assert verify(here, there).outcome == "equal"
    there.client().setrange("string", 2 << 20, "~")
    there.client().srem("set", f"member 7 {'x' * 400}")
    there.client().hset("hash", f"member 8 {'x' * 400}", "w")
    there.client().lset("list", 2_500, "other")
    there.client().zincrby("zset", 1, f"member 9 {'x' * 400}")
    for _ in range(2):
        found = verify(here, there)
        assert {each.key: each.kinds for each in found.differences} == dict.fromkeys(
            ("string", "set", "hash", "zset", "list"), ("value",)
        )
        monkeypatch.undo()


def test_hyperloglogs_in_other_bytes(server_factory: ServerFactory) -> None:
    here, there = pair_of(server_factory, "redis-7.0", "valkey-9")
    there.client().config_set("hll-sparse-max-bytes", 0)
    for server in (here, there):
        server.client().pfadd("counter", *range(50))
    assert here.client().get("counter") != there.client().get("counter")
    assert verify(here, there).outcome == "equal"


def test_while_writers_go_on(server_factory: ServerFactory) -> None:
    """What the target, a replica, has not yet is no difference; what is wrong there is."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    fill(here.client(), 3_000, 0)
    there.client().replicaof(here.host, here.port)
    there.client().config_set("replica-read-only", "no")
    wait_for(
        lambda: there.client().info("replication")["master_link_status"] == "up", "a full sync"
    )
    over = threading.Event()

    def write() -> None:
        client, n = here.client(), 0
        while not over.is_set():
            n += 1
            client.pipeline().incr("hot").set(f"string:{n % 3_000}", n).execute()
            client.set(f"short:{n}", "x", px=50)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        there.client().set("alone", "x")
        found = verify(here, there)
    finally:
        over.set()
        writer.join()
    assert [each.key for each in found.differences] == ["alone"]
    assert found.outcome == "different"
    assert set(found.reasons) <= {"it changed whenever it was looked at"}


def test_writes_that_come_late(server_factory: ServerFactory) -> None:
    """What is on its way for two seconds is no difference."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    over = threading.Event()

    def write() -> None:
        client, n = here.client(), 0
        while not over.is_set():
            client.set(f"late:{(n := n + 1)}", n)

    with Proxy(here.host, here.port) as line:
        there.client().replicaof(line.host, line.port)
        wait_for(
            lambda: there.client().info("replication")["master_link_status"] == "up", "a full sync"
        )
        line.delay(2.0)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait_for(lambda: there.client().exists("late:1"), "the first write")
            found = verify(here, there)
        finally:
            over.set()
            writer.join()
    assert found.differences == ()
    assert found.resolved > 0


def test_a_sample_a_match_and_a_rate(server_factory: ServerFactory) -> None:
    here, there = server_factory(), server_factory()
    for server in (here, there):
        fill(server.client(), 3_000, 0)
    found = verify(here, there, sample=0.1, seed=7)
    assert 200 < found.compared < 400
    assert verify(here, there, sample=0.1, seed=7).digests == found.digests
    assert verify(here, there, match="list:*").compared == 429
    there.client().delete("list:1")
    assert verify(here, there, match="hash:*").outcome == "equal"
    slow = verify(here, there, match="s*", rate=300_000)
    assert slow.ended - slow.began > 0.2


def test_a_rate_holds_for_names(server_factory: ServerFactory) -> None:
    here, there = server_factory(), server_factory()
    for server in (here, there):
        fill(server.client(), 3_000, 0)
    # What is read is some 15 bytes a name at the source, and as many at the target.
    slow = verify(here, there, mode="count", sample=0.001, rate=60_000)
    assert 0.5 < slow.ended - slow.began < 10


def test_a_table_that_shrinks_meanwhile(server_factory: ServerFactory) -> None:
    """Names come that are gone, or come twice: the report says how many."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    for server in (here, there):
        server.client().mset({f"key:{n}": n for n in range(20_000)})
    gone = [f"key:{n}" for n in range(19_900)]
    over = threading.Event()

    def remove(progress: ProofProgress) -> None:
        if progress.keys > 28_000 and not over.is_set():
            over.set()
            for server in (here, there):
                server.client().unlink(*gone)

    ends = (Endpoint.parse(url_of(each)) for each in (here, there))
    found = Engine().sync.verify(*ends, on_progress=remove)
    assert over.is_set()
    assert (found.outcome, here.client().dbsize()) == ("equal", 100)
    (told,) = (each for each in found.left_out if "names that SCAN gave" in each)
    assert 7_000 < int(told.split()[0].replace(",", "")) < 20_000


def test_links_that_are_lost(server_factory: ServerFactory) -> None:
    """What was compared before is compared again, and counts once."""
    here, there = server_factory(), server_factory()
    for server in (here, there):
        fill(server.client(), 3_000, 0)
    there.client().set("new", "x")
    with Proxy(here.host, here.port) as source, Proxy(there.host, there.port) as target:
        source.cut_after(150_000)
        target.cut_after(80_000)
        ends = (f"redis://{line.host}:{line.port}" for line in (source, target))
        found = verify(*ends)
        assert not source.armed
        assert not target.armed
    assert [each.key for each in found.differences] == ["new"]
    assert found.compared == 3_001


def test_functions(server_factory: ServerFactory) -> None:
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    code = "#!lua name={}\nredis.register_function('{}', function() return 1 end)"
    here.client().function_load(code.format("one", "f"))
    (found,) = verify(here, there).differences
    assert (found.key, found.kinds) == ("library one", ("library or index",))


def test_its_exit_codes(
    server_factory: ServerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = server_factory(), server_factory()
    for server in (here, there):
        server.client().set("key\x1b[2J", "a")
    ends = ["--source", url_of(here), "--target", url_of(there)]
    assert app.run(["verify", *ends]) == 0
    assert "Equal: 1 keys compared" in capsys.readouterr().out
    there.client().set("key\x1b[2J", "b")
    assert app.run(["verify", *ends, "--report", str(tmp_path / "r")]) == 1
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "1 bytes, a" in shown
    assert app.run(["verify", *ends, "--output", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["kinds"] == {"value": 1}
    assert app.run(["verify", *ends[:3], "127.0.0.1:1"]) == 2
    assert app.run(["verify", *ends, "--report", "/nowhere/r"]) == 2
    assert app.run(["verify", *ends, "--sample", "2"]) == 2
    there.client().config_set("requirepass", "secret")
    assert app.run(["verify", *ends]) == 2


def test_what_a_user_may_not_read(server_factory: ServerFactory) -> None:
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    for server in (here, there):
        fill(server.client(), 100, 0)
    there.client().execute_command(
        "ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-dump"
    )
    url = f"redis://reader:secret@{there.host}:{there.port}"
    with pytest.raises(AuthError, match="dump"):
        verify(here, url)
    assert verify(here, url, mode="ttl").outcome == "equal"
    there.client().execute_command("ACL", "SETUSER", "reader", "+dump", "resetkeys", "~[^l]*")
    found = verify(here, url)
    assert (found.outcome, found.unknown, found.different) == ("unknown", 15, 0)
    assert all(each.key.startswith("list:") for each in found.not_compared)


def test_what_cannot_be_compared(server_factory: ServerFactory) -> None:
    here, there = server_factory(), server_factory()
    with pytest.raises(LinkError):
        verify(here, "redis://127.0.0.1:1")
    with pytest.raises(UsageError, match="not a file"):
        verify("rdb:/tmp/none", there)
