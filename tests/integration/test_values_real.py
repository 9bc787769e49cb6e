"""What the decoder makes of a DUMP is what the server's commands show, at every server and at the
limits of every encoding; and `inspect` shows it, from a file and from a server."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.servers import Binary, Server, binaries, extra_binaries
from engine._native import ValueDecoder, value_encoding
from engine.cli import app
from tests.integration.test_aof_real import OPTIONS, rewritten, written_by
from tests.support.servers import ServerFactory, known
from tests.support.snapshots import save

NUMBERS = [0, 12, 13, 127, 128, 255, 256, 4095, 4096, 2**15 - 1, 2**15, 2**16, 2**23 - 1, 2**23,
           2**31 - 1, 2**31, 2**32, 2**63 - 1]  # fmt: skip
LENGTHS = (0, 1, 20, 21, 63, 64, 65, 252, 253, 254, 255, 4095, 4096, 16_383, 16_384)
# The limits of the compact encodings by default, and one beside each.
SIZES = (1, 2, 127, 128, 129, 511, 512, 513)


def fill(server: Server) -> None:
    """Values at the limits of their encodings, of every type that the server has."""
    rng = random.Random(8)
    client = server.client()
    pipe = client.pipeline(transaction=False)
    signed = sorted({sign * number for number in NUMBERS for sign in (1, -1)} | {-(2**63)})
    for number in signed:
        pipe.set(f"number:{number}", number)
        pipe.sadd(f"intset:{number}", 1, number)
    pipe.sadd("intset:all", *signed)
    pipe.rpush("list:numbers", *signed)
    pipe.zadd("zset:numbers", {f"{number}": number for number in signed})
    pipe.execute_command(
        "HMSET", "hash:numbers", *(each for number in signed for each in (number,) * 2)
    )
    for size in LENGTHS:
        for kind, body in (("random", rng.randbytes(size)), ("runs", b"ab" * (size // 2))):
            pipe.set(f"{kind}:{size}", body)
            pipe.rpush(f"list:{kind}:{size}", body, b"between", body)
            pipe.execute_command("HMSET", f"hash:{kind}:{size}", b"f" + body, body, "other", "o")
            pipe.sadd(f"set:{kind}:{size}", body, b"other")
            pipe.zadd(f"zset:{kind}:{size}", {body: 1.5, b"other": -2})
    for size in SIZES:
        pipe.rpush(f"list:{size}", *(f"item {n}" for n in range(size)))
        pipe.sadd(f"set:{size}", *(f"member {n}" for n in range(size)))
        pipe.sadd(f"set:integers:{size}", *range(size))
        fields = (each for n in range(size) for each in (f"field {n}", n * n))
        pipe.execute_command("HMSET", f"hash:{size}", *fields)
        pipe.zadd(f"zset:{size}", {f"member {n}": n / 7 for n in range(size)})
    pipe.zadd("zset:extremes", {"least": float("-inf"), "most": float("inf"), "tiny": 5e-324,
                                "huge": 1e308, "zero": -0.0})  # fmt: skip
    pipe.rpush("list:plain", b"x", rng.randbytes(70_000), b"y" * 70_000, b"z")
    pipe.setbit("bits", 10_001, 1)
    pipe.execute()
    if server.binary.version >= (5, 0, 0):
        _streams(client, rng)
    if _has_field_ttls(server.binary):
        for size in (1, 2, 513):
            name = f"hash:ttl:{size}"
            client.hset(name, mapping={f"field {n}": n for n in range(size)})
            client.execute_command("HPEXPIREAT", name, 4_000_000_000_000, "FIELDS", 1, "field 0")


def _has_field_ttls(binary: Binary) -> bool:
    return binary.version >= ((9, 0, 0) if binary.flavour == "valkey" else (7, 4, 0))


def _streams(client: redis.Redis, rng: random.Random) -> None:
    for size in (1, 99, 100, 101, 250):
        name = f"stream:{size}"
        pipe = client.pipeline(transaction=False)
        for n in range(size):
            fields = {"same": n, "names": rng.randbytes(n % 70)} if n % 9 else {f"own {n}": -n}
            pipe.xadd(name, fields, id=f"{n // 3 + 1}-{n % 3 + 1}")
        pipe.xgroup_create(name, "group", "0")
        pipe.xgroup_create(name, "idle", "$")
        pipe.xreadgroup("group", "anna", {name: ">"}, count=size // 2 + 1)
        pipe.xreadgroup("group", "bert", {name: ">"}, count=3)
        pipe.xack(name, "group", "1-1")
        pipe.xdel(name, "1-2", "2-1")
        pipe.execute()
    client.xadd("stream:emptied", {"a": 1}, id="7-0")
    client.xtrim("stream:emptied", maxlen=0, approximate=False)


def by_commands(client: redis.Redis, key: bytes, kind: str) -> Any:
    """A value as commands show it; what has no order sorted."""
    if kind == "string":
        return [client.get(key)]
    if kind == "list":
        return client.lrange(key, 0, -1)
    if kind == "set":
        return sorted(client.smembers(key))
    if kind == "zset":
        return sorted(
            [member, score] for member, score in client.zrange(key, 0, -1, withscores=True)
        )
    if kind == "hash":
        return sorted(
            [name, value, _ttl(client, key, name)] for name, value in client.hgetall(key).items()
        )
    groups = []
    for group in client.xinfo_groups(key):
        pending = client.xpending_range(key, group["name"], "-", "+", 1000)
        groups.append([
            group["name"], group["last-delivered-id"],
            [[each["message_id"], each["consumer"], each["times_delivered"]] for each in pending],
        ])  # fmt: skip
    return [
        [[number, list(fields.items())] for number, fields in client.xrange(key)],
        client.xinfo_stream(key)["last-generated-id"],
        sorted(groups),
    ]


def _ttl(client: redis.Redis, key: bytes, name: bytes) -> int:
    if not key.startswith(b"hash:ttl"):
        return -1
    (found,) = client.execute_command("HPEXPIRETIME", key, "FIELDS", 1, name)
    return int(found)


def decoded(kind: str, elements: list[Any]) -> Any:
    """What the decoder says, in the form of `by_commands`."""
    if kind in ("set", "zset", "hash"):
        return sorted(elements)
    if kind != "stream":
        return elements
    entries, last_id, _, _, groups, *_ = elements
    found = []
    for name, group_last, _, pending, consumers, *_ in groups:
        owners = {number: owner for owner, _, _, ids in consumers for number in ids}
        found.append(
            [name, group_last, [[number, owners[number], times] for number, _, times in pending]]
        )
    pairs = [
        [number, [(rest[i], rest[i + 1]) for i in range(0, len(rest), 2)]]
        for number, *rest in entries
    ]
    return [pairs, last_id, sorted(found)]


@pytest.mark.parametrize("binary", [*binaries(), *extra_binaries()], ids=str)
def test_what_is_decoded_is_what_commands_show(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    fill(server)
    client = server.client()
    decoder = ValueDecoder()
    encodings = set()
    names = sorted(client.keys())
    assert len(names) > 200
    for key in names:
        payload = client.dump(key)
        kind, elements = decoder.value(payload)
        assert kind == client.type(key).decode()
        assert decoded(kind, elements) == by_commands(client, key, kind), key
        assert decoder.look(payload)[0] == kind
        encodings.add((kind, value_encoding(payload)))
    assert {kind for kind, _ in encodings} >= {"string", "list", "set", "zset", "hash"}
    assert {("set", "intset"), ("set", "hash table"), ("zset", "skiplist")} <= encodings
    assert len({each for each in encodings if each[0] == "hash"}) >= 2


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9"])
def test_digests_of_two_servers_are_equal(name: str, server_factory: ServerFactory) -> None:
    """The same commands at servers of other encodings."""
    one, other = server_factory(known("redis-7.0")), server_factory(known(name))
    for config, value in (("hash", 3), ("zset", 3)):
        other.client().config_set(f"{config}-max-ziplist-entries", value)
    fill(one)
    fill(other)
    decoder = ValueDecoder()
    # (Pending entries say when they were delivered: they differ. Random bytes have one seed.)
    for key in one.client().scan_iter(count=10_000):
        if not key.startswith(b"hash:ttl"):
            digests = [decoder.digest(each.client().dump(key)) for each in (one, other)]
            assert digests[0][:2] == digests[1][:2], key


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of `inspect`, and what it prints."""
    code = app.run(["inspect", *arguments])
    return code, capsys.readouterr().out


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The objects that `inspect` prints."""
    code, out = inspected(capsys, *arguments, "--output", "json")
    assert code == 0, out
    return [json.loads(line) for line in out.splitlines()]


def test_inspect_shows_a_file_and_a_server(
    server_factory: ServerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = server_factory(known("redis-7.0"))
    client = server.client()
    fill(server)
    client.pexpireat("hash:2", 4_000_000_000_000)
    server.client(3).set("elsewhere", 1)
    client.set(b"not \xff UTF-8", b"\x00\xff")
    file = tmp_path / "dump.rdb"
    file.write_bytes(save(server).data)
    shown = []
    for source in (f"rdb:{file}", server.url):
        (found,) = lines(capsys, source, "--key", "hash:2", "--db", "0")
        assert found["value"] == [["field 0", "0"], ["field 1", "1"]]
        assert found["expire_at"] == 4_000_000_000_000
        assert (found["type"], found["elements"]) == ("hash", 2)
        (found,) = lines(capsys, source, "--match", "not*")
        assert (found["key"], found["value"]) == ("not \\xff UTF-8", "\x00\\xff")
        (found,) = lines(capsys, source, "--match", os.fsdecode(b"not \xff*"))
        assert found["key"] == "not \\xff UTF-8"
        assert lines(capsys, source, "--match", "stream:[^1e]*0[^0]") == []
        matched = lines(capsys, source, "--match", "stream:1*")
        assert sorted(line["key"] for line in matched) == ["stream:1", "stream:100", "stream:101"]
        assert inspected(capsys, source, "--key", "none", "--db", "3")[0] == 1
        code, out = inspected(capsys, source, "--key", "elsewhere", "--db", "3")
        assert (code, out.splitlines()[1:]) == (0, ["  1"])
        every = lines(capsys, source, "--match", "*", "--db", "0")
        shown.append({line["key"]: (line["digest"], line["value"]) for line in every})
        # The report, against what the server says itself.
        *biggest, last = lines(capsys, source, "--big", "30")
        assert last["totals"]["all"]["keys"] == client.dbsize() + 1
        assert last["totals"]["not_decoded"] == 0
        assert {"list:plain", "hash:513"} <= {line["key"] for line in biggest}
        for line in biggest:
            memory = client.memory_usage(line["key"], samples=0)
            assert line["memory"] == pytest.approx(memory, rel=0.34), line
        assert "biggest keys" in inspected(capsys, source)[1]
    assert shown[0] == shown[1]
    assert len(shown[0]) == client.dbsize()


def test_inspect_asks_a_server_of_old_for_a_key(
    server_factory: ServerFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without PEXPIRETIME; and in database 0, which is said."""
    server = server_factory(known("redis-6.2"))
    server.client().set("key", 1)
    server.client().pexpireat("key", 4_000_000_000_000)
    (found,) = lines(capsys, server.url, "--key", "key")
    assert found["expire_at"] == pytest.approx(4_000_000_000_000, abs=50)
    assert app.run(["inspect", server.url, "--key", "none"]) == 1
    said = capsys.readouterr().err
    assert "there is no key none in database 0. --db N looks in another database." in said


@pytest.mark.parametrize("name", ["redis-6.2", "valkey-9"])
def test_inspect_shows_the_base_of_an_append_only_file(
    name: str, server_factory: ServerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the server has written it; and how many commands behind it name a key."""
    server = server_factory(known(name), *OPTIONS)
    client = server.client()
    client.set("left alone", "value")
    client.set("counter", 1)
    client.rpush("gone", "a", "b")
    rewritten(server)
    client.incr("counter")
    client.incr("counter")
    client.delete("gone")
    client.set("later", 1)
    source = f"aof:{written_by(server, tmp_path / 'copy')}"
    for key, value, commands in (
        ("left alone", "value", 0), ("counter", "1", 2), ("gone", ["a", "b"], 1)
    ):  # fmt: skip
        (found,) = lines(capsys, source, "--key", key)
        assert (found["value"], found["commands_behind"]) == (value, commands)
    code, out = inspected(capsys, source)
    assert code == 0
    assert out.startswith("Not shown: what the commands after the base change, ")
    assert inspected(capsys, source, "--key", "later")[0] == 1


def test_inspect_takes_the_credentials_of_the_configuration(
    server_factory: ServerFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = server_factory(password="secret")
    server.client().set("key", "value")
    source = f"{server.host}:{server.port}"
    assert inspected(capsys, source, "--key", "key")[0] == 1
    config = tmp_path / "config.toml"
    config.write_text(f'[[credentials]]\nhost = "{source}"\npassword = "secret"\n')
    config.chmod(0o600)
    monkeypatch.setenv("STARTMIGRATION_CONFIG", str(config))
    (found,) = lines(capsys, source, "--key", "key")
    assert found["value"] == "value"


def test_what_inspect_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["rdb:a", "--key", "a", "--big", "3"], ["http://host"]):
        assert inspected(capsys, *arguments)[0] == 2
    file = tmp_path / "no.rdb"
    file.write_bytes(b"REDIS0009\xffshort")
    assert inspected(capsys, f"rdb:{file}")[0] == 1
