"""The verifier on real servers: equal data passes, every kind of difference is found."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import redis

from benches.support.servers import Binary, Server, all_pairs, binaries, few_binaries, pair_id
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.verify import Difference, Verification, differing, verify
from tests.support.servers import ServerFactory

ALL = TransferSettings()
SECRET = "not-to-be-seen-anywhere"
DEADLINE = round((time.time() + 3600) * 1000)
READS = {
    "auth", "client", "dbsize", "dump", "exists", "get", "getrange", "hello", "hgetall",
    "hpexpiretime", "hscan", "info", "lrange", "memory", "pexpiretime", "pttl", "scan", "select",
    "smembers", "sscan", "time", "type", "xinfo", "xpending", "xrange", "zrange", "command", "acl",
    "ping", "function",
}  # fmt: skip


def fill(client: redis.Redis, *, backwards: bool = False) -> None:
    """Every type, small and large, in an order of its own: what servers hold is the same."""

    def ordered(count: int) -> list[int]:
        return list(range(count))[:: -1 if backwards else 1]

    client.set("string", b"\x00\xff value")
    client.set("string:empty:" + "n" * 5000, "")
    client.set("string:number", 1234567890)
    client.set("string:large", bytes(range(256)) * 12_000)
    client.set(b"name with\x00 \xffbytes", "x")
    client.setbit("bits", 100_000, 1)
    client.pfadd("log", *map(str, range(1000)))
    client.rpush("list", "a", "", b"\xff", 7)
    client.rpush("list:large", *(f"{index}:" + "x" * 300 for index in range(3000)))
    client.sadd("set", *(f"m{index}" for index in ordered(5)))
    client.sadd("set:numbers", *ordered(100))
    client.sadd("set:large", *(f"{index}:" + "x" * 100 for index in ordered(5000)))
    scores = {f"m{index}": index * 0.1 for index in ordered(5)}
    client.zadd("zset", scores | {"inf": "inf", "-inf": "-inf", "tiny": 1e-300, "zero": -0.0})
    client.zadd("zset:large", {f"{index}:" + "x" * 100: index / 7 for index in ordered(5000)})
    client.hset("hash", mapping={f"f{index}": f"v{index}" for index in ordered(5)})
    large = {f"{index}:" + "x" * 100: f"v{index}" for index in ordered(5000)}
    client.hset("hash:large", mapping=large)
    for index in range(3000):
        client.xadd("stream:large", {"f": "x" * 200}, id=f"{index + 1}-1") if index % 10 == 0 else 0
    for index in range(1, 6):
        client.xadd("stream", {"f": f"v{index}", "g": ""}, id=f"{index}-0")
    client.xdel("stream", "2-0")
    client.xgroup_create("stream", "group", "0")
    client.xgroup_create("stream", "idle", "$")
    client.xreadgroup("group", "first", {"stream": ">"}, count=2)
    client.xreadgroup("group", "second", {"stream": ">"}, count=1)
    client.xgroup_create("stream:empty", "group", mkstream=True)
    for key in ("string", "list", "set", "zset", "hash", "stream"):
        client.set(f"ttl:{key}", "x")
        client.execute_command("PEXPIREAT", f"ttl:{key}", DEADLINE)


def has_field_ttls(binary: Binary) -> bool:
    since = (9, 0, 0) if binary.flavour == "valkey" else (7, 4, 0)
    return binary.version >= since


async def check(source: Server, target: Server, *rest: object, **kw: object) -> Verification:
    settings = rest[0] if rest else ALL
    assert isinstance(settings, TransferSettings)
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    result = await verify(*ends, settings, **kw)  # type: ignore[arg-type]
    text = json.dumps(result.to_dict())
    assert SECRET not in text
    assert Verification.from_dict(json.loads(text)) == result
    assert result.reason
    assert result.ok == (result.different == 0)
    return result


async def test_equal_data_of_every_type(
    ring_pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    source, target = (server_factory(binary, password=SECRET) for binary in ring_pair)
    # The target may use other encodings than the source.
    target.client().config_set("hash-max-ziplist-entries", 2)
    target.client().config_set("zset-max-ziplist-entries", 2)
    for db in (0, 3):
        fill(source.client(db=db))
        fill(target.client(db=db), backwards=True)
    for end in (source, target):
        end.client().config_resetstat()
    result = await check(source, target, sample=None)
    assert result.ok, result.reason
    keys = source.client().dbsize() + source.client(db=3).dbsize()
    assert (result.keys_source, result.keys_target) == (keys, keys)
    assert result.compared == keys
    assert not result.unknown
    for end in (source, target):
        asked = {name.removeprefix("cmdstat_") for name in end.client().info("commandstats")}
        assert {name.partition("|")[0] for name in asked} - {"config"} <= READS


Mutation = Callable[[redis.Redis], object]
MUTATIONS: dict[str, tuple[str, Mutation, str]] = {
    "string": ("string", lambda c: c.set("string", "other"), "value (string)"),
    "one byte of a large string": (
        "string:large",
        lambda c: c.setrange("string:large", 2_000_000, "!"),
        "value (string)",
    ),
    "appended": ("string:large", lambda c: c.append("string:large", "!"), "value (string)"),
    "empty string": ("string:number", lambda c: c.set("string:number", ""), "value (string)"),
    "list order": ("list", lambda c: c.rpoplpush("list", "list"), "value (list)"),
    "list element": ("list:large", lambda c: c.lset("list:large", 2500, "!"), "value (list)"),
    "list shorter": ("list:large", lambda c: c.rpop("list:large"), "value (list)"),
    "set member": ("set", lambda c: c.sadd("set", "more"), "value (set)"),
    "set of numbers": ("set:numbers", lambda c: c.srem("set:numbers", 5), "value (set)"),
    "large set": ("set:large", lambda c: c.spop("set:large"), "value (set)"),
    "score": ("zset", lambda c: c.zincrby("zset", 1e-9, "m1"), "value (zset)"),
    "large zset": (
        "zset:large",
        lambda c: c.zincrby("zset:large", 1, "7:" + "x" * 100),
        "value (zset)",
    ),
    "field": ("hash", lambda c: c.hset("hash", "f1", "other"), "value (hash)"),
    "swapped": (
        "hash",
        lambda c: c.hset("hash", mapping={"f1": "v2", "f2": "v1"}),
        "value (hash)",
    ),
    "large hash": (
        "hash:large",
        lambda c: c.hset("hash:large", "4000:" + "x" * 100, "!"),
        "value (hash)",
    ),
    "stream entry": ("stream", lambda c: c.xadd("stream", {"f": "more"}, id="9-0"), "value"),
    "stream entry gone": ("stream:large", lambda c: c.xdel("stream:large", "11-1"), "value"),
    "last id": ("stream", lambda c: c.execute_command("XSETID", "stream", "99-0"), "last id"),
    "group": ("stream", lambda c: c.xgroup_create("stream", "more", "0"), "groups (stream)"),
    "group gone": ("stream", lambda c: c.xgroup_destroy("stream", "idle"), "groups (stream)"),
    "group's place": (
        "stream",
        lambda c: c.xgroup_setid("stream", "idle", "1-0"),
        "groups (stream)",
    ),
    "acknowledged": ("stream", lambda c: c.xack("stream", "group", "1-0"), "groups (stream)"),
    "claimed": (
        "stream",
        lambda c: c.xclaim("stream", "group", "second", 0, ["1-0"]),
        "groups (stream)",
    ),
    "consumer": (
        "stream",
        lambda c: (
            c.xreadgroup("group", "third", {"stream": "0"}) and c.xack("stream", "group", "1-0")
        ),
        "groups (stream)",
    ),
    "type": ("set", lambda c: (c.delete("set"), c.set("set", "x")), "type: set on the source"),
    "TTL longer": (
        "ttl:set",
        lambda c: c.execute_command("PEXPIREAT", "ttl:set", DEADLINE + 60_000),
        "ms longer on the target",
    ),
    "TTL shorter": (
        "ttl:set",
        lambda c: c.execute_command("PEXPIREAT", "ttl:set", DEADLINE - 60_000),
        "ms shorter on the target",
    ),
    "TTL lost": ("ttl:zset", lambda c: c.persist("ttl:zset"), "TTL: none on the target"),
    "TTL won": (
        "hash",
        lambda c: c.execute_command("PEXPIREAT", "hash", DEADLINE),
        "TTL: none on the source",
    ),
    "missing": ("string", lambda c: c.delete("string"), "missing on the target"),
    "extra": ("extra", lambda c: c.set("extra", 1), "on the target alone"),
}


@pytest.fixture(scope="module", params=few_binaries(), ids=str)
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """A source, and a target whose data each test breaks and mends."""
    with Server.start(request.param) as source, Server.start(request.param) as target:
        fill(source.client(db=1))
        yield source, target


@pytest.mark.parametrize("name", MUTATIONS)
async def test_each_difference_is_found(filled: tuple[Server, Server], name: str) -> None:
    source, target = filled
    key, mutate, what = MUTATIONS[name]
    client = target.client(db=1)
    client.flushdb()
    original = source.client(db=1).dump(key)
    deadline = source.client(db=1).pttl(key)
    if original is not None:
        client.restore(key, max(deadline, 0), original)
        if deadline > 0:
            client.execute_command("PEXPIREAT", key, DEADLINE)
    settings = TransferSettings(databases=(1,), match=key.replace("[", "\\["))
    clean = await check(source, target, settings, sample=None)
    assert clean.ok, clean.reason
    mutate(client)
    if name == "extra":  # no key of the source leads to it: the counts do
        settings = TransferSettings(databases=(1,))
        client.restore("string", 0, source.client(db=1).dump("string"))
    result = await check(source, target, settings, sample=None)
    assert not result.ok
    found = {each.key: each for each in result.differences}
    assert what in found[key].what, found[key]
    assert found[key].db == 1
    assert key in result.reason or name == "extra"


@pytest.mark.parametrize("sample", [1, 5])
async def test_counts_show_what_a_sample_misses(server_factory: ServerFactory, sample: int) -> None:
    source, target = server_factory(), server_factory()
    for end in (source, target):
        with end.client().pipeline(transaction=False) as pipe:
            for index in range(2000):
                pipe.set(f"key:{index}", index)
            pipe.execute()
    assert (await check(source, target, sample=sample)).ok
    target.client().delete("key:7", "key:1999")
    result = await check(source, target, sample=sample)
    assert {each.key for each in result.differences} == {"key:7", "key:1999"}
    target.client().set("extra", 1)
    target.client(db=5).set("elsewhere", 1)
    result = await check(source, target, sample=sample)
    assert Difference(5, "elsewhere", "on the target alone") in result.differences
    assert Difference(0, "extra", "on the target alone") in result.differences
    assert (result.keys_source, result.keys_target) == (2000, 2000)


async def test_a_key_too_many_hides_no_missing_one(server_factory: ServerFactory) -> None:
    """Counts agree, and a sample has one key of thirty."""
    source, target = server_factory(), server_factory()
    for end, other in ((source, "missing"), (target, "alien")):
        end.client().mset({f"key:{n}": n for n in range(3_000)} | {other: "x"})
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    found = await verify(*ends, ALL, sample=100)
    assert not found.ok
    assert sorted((each.key, each.what) for each in found.differences) == [
        ("alien", "on the target alone"),
        ("missing", "missing on the target"),
    ]


async def test_counts_are_not_compared_where_they_say_nothing(
    server_factory: ServerFactory,
) -> None:
    source, target = server_factory(), server_factory()
    for end in (source, target):
        end.client().set("user:1", 1)
    target.client().set("of the target", 1)
    assert not (await check(source, target)).ok
    for settings, held_before in (
        (TransferSettings(match="user:*"), False),
        (TransferSettings(key_type="string"), False),
        (ALL, True),
    ):
        result = await check(source, target, settings, held_before=held_before)
        assert result.ok, result.reason
        assert not result.counted
        assert "not comparable" in result.reason
    target.client().set("user:1", 2)
    skip = TransferSettings(if_exists="skip")
    assert (await check(source, target, skip, held_before=True)).ok
    assert not (await check(source, target, ALL, held_before=True)).ok
    target.client().delete("user:1")
    assert not (await check(source, target, skip, held_before=True)).ok


async def test_a_sample_is_spread_and_repeatable(
    binary: Binary, server_factory: ServerFactory
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    for end, value in ((source, "a"), (target, "b")):
        with end.client().pipeline(transaction=False) as pipe:
            for index in range(20_000):
                pipe.set(f"key:{index}", value)
            pipe.execute()
    first = await check(source, target, sample=300, seed=1)
    again = await check(source, target, sample=300, seed=1)
    other = await check(source, target, sample=300, seed=2)
    assert first.compared == first.different == 300
    assert first == again
    # Random: one in 67 keys; the two samples have next to nothing in common.
    common = {each.key for each in first.differences} & {each.key for each in other.differences}
    assert len(common) < 100
    filtered = await check(source, target, TransferSettings(match="key:123*"), sample=300)
    assert filtered.compared == 111  # 123, 1230 to 1239, 12300 to 12399


async def test_many_differences_are_counted_and_some_named(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{index}": 1 for index in range(1500)})
    result = await check(source, target, sample=None)
    assert result.different == 1500
    assert len(result.differences) == 1000


async def test_it_stops_where_nothing_is_alike(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    with source.client().pipeline(transaction=False) as pipe:
        for index in range(15_000):
            pipe.set(f"key:{index}", 1)
        pipe.execute()
    result = await check(source, target, sample=None)
    assert 10_000 <= result.different < 11_000
    assert "stopped" in result.reason


async def test_keys_that_expire_are_no_difference(
    binary: Binary, server_factory: ServerFactory
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    for end in (source, target):
        end.client().set("stays", 1)
        # So that DBSIZE goes on counting what is gone.
        end.client().execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    for index in range(50):
        source.client().set(f"gone:{index}", 1, px=1)
    source.client().set("soon", 1, px=1500)
    target.client().set("soon on the target", 1, px=1500)
    await asyncio.sleep(0.05)
    assert source.client().dbsize() == 52
    result = await check(source, target, sample=None)
    assert result.ok, result.reason


async def test_a_key_that_is_on_its_way_is_read_again(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().set("key", "new")
    target.client().set("key", "old")

    async def arrive() -> None:
        await asyncio.sleep(0.05)
        target.client().set("key", "new")

    arriving = asyncio.create_task(arrive())
    assert (await check(source, target)).ok
    await arriving


@pytest.mark.parametrize(
    "pair", [pair for pair in all_pairs() if has_field_ttls(pair[0])], ids=pair_id
)
async def test_field_ttls(pair: tuple[Binary, Binary], server_factory: ServerFactory) -> None:
    source, target = (server_factory(binary) for binary in pair)
    for end in (source, target):
        end.client().hset("hash", mapping={"a": 1, "b": 2})
    expire = ("HPEXPIREAT", "hash", DEADLINE, "FIELDS", 1, "a")
    source.client().execute_command(*expire)
    result = await check(source, target)
    assert [each.what for each in result.differences] == ["field TTLs (hash)"]
    if has_field_ttls(pair[1]):
        target.client().execute_command(*expire)
        assert (await check(source, target)).ok


async def test_types_of_modules(server_factory: ServerFactory) -> None:
    found = [each for each in binaries() if each.flavour == "redis" and each.version >= (8, 0, 0)]
    if not found:
        pytest.skip("no server of this machine has vector sets")
    source, target = server_factory(found[0]), server_factory(found[0])
    vector = ("VADD", "vectors", "VALUES", 3)
    source.client().execute_command(*vector, "1", "0", "0", "one")
    target.client().restore("vectors", 0, source.client().dump("vectors"))
    result = await check(source, target)
    assert result.ok
    target.client().execute_command(*vector, "0", "1", "0", "two")
    result = await check(source, target)
    # Two dumps of one value may differ, so a difference of dumps proves nothing.
    assert result.ok
    assert [each.what for each in result.unknown] == ["cannot compare: type vectorset"]
    assert "cannot be compared" in result.reason
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    assert await differing(*ends, 0, [b"vectors"]) == [b"vectors"]


async def test_differing(ring_pair: tuple[Binary, Binary], server_factory: ServerFactory) -> None:
    source, target = (server_factory(binary) for binary in ring_pair)
    keys = [b"key:%d" % index for index in range(1000)]
    for end in (source, target):
        with end.client(db=2).pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.set(key, key)
            pipe.execute()
    target.client(db=2).delete(keys[3])
    target.client(db=2).set(keys[500], "other")
    target.client(db=2).delete(keys[999])
    target.client(db=2).rpush(keys[999], "other")
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    found = await differing(*ends, 2, [*keys, keys[3], b"on neither"])
    assert sorted(found) == sorted([keys[3], keys[500], keys[999]])
    assert await differing(*ends, 2, []) == []


async def test_huge_values_are_read_in_windows(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    for end in (source, target):
        client = end.client()
        client.set("string", bytes(1 << 20) * 64)
        client.rpush("list", *[b"x" * (4 << 20)] * 16)
        for begin in range(0, 100_000, 10_000):
            fields = {f"field:{index}": "x" * 500 for index in range(begin, begin + 10_000)}
            client.hset("hash", mapping=fields)
    tracemalloc.start()
    try:
        result = await check(source, target, sample=None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.ok, result.reason
    # Both ends at once, a reply and its parser's buffer each; a value has some 60 MB.
    assert peak < 32 << 20, f"{peak:,}"
    target.client().setrange("string", 63 << 20, "!")
    target.client().hset("hash", "field:99999", "!")
    target.client().lset("list", -1, "!")
    result = await check(source, target, sample=None)
    assert {each.key for each in result.differences} == {"string", "hash", "list"}


async def test_a_user_with_few_rights(server_factory: ServerFactory) -> None:
    """MEMORY and TIME may be denied: sizes are then unknown, and everything comes in windows."""
    source, target = server_factory(), server_factory()
    for end in (source, target):
        fill(end.client())
        end.client().execute_command(
            "ACL SETUSER", "joe", "on", f">{SECRET}", "~*", "+@read", "+info", "+select",
            "+xinfo", "-memory", "-time",
        )  # fmt: skip
    ends = [
        Endpoint.parse(f"redis://joe:{SECRET}@{end.host}:{end.port}") for end in (source, target)
    ]
    result = await verify(ends[0], ends[1], ALL, sample=None)
    assert result.ok, result.reason
    target.client().set("string:large", "x")
    assert not (await verify(ends[0], ends[1], ALL, sample=None)).ok
