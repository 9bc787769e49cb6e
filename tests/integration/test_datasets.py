"""The data sets: complete, the same on every machine, and as varied as they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import redis

from benches import datasets
from benches.support.compare import assert_equal
from benches.support.servers import Binary, Server, binaries

ServerFactory = Callable[..., Server]


def loaded(server: Server, name: str, scale: float, **more: int) -> datasets.Summary:
    """Fill the server, and check the summary's counts against what the server says it holds."""
    summary = datasets.load(name, server.url, scale=scale, **more)
    client = server.client()
    space = client.info("keyspace")
    assert {f"db{db}": keys for db, keys in summary.by_db.items()} == {
        db: facts["keys"] for db, facts in space.items()
    }
    assert summary.with_ttl == sum(facts["expires"] for facts in space.values())
    assert summary.keys == sum(summary.by_type.values()) == sum(summary.by_db.values())
    return summary


def encodings(client: redis.Redis) -> Counter[str]:
    """How many keys of the database have each internal encoding."""
    keys = list(client.scan_iter(count=1000))
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.object("ENCODING", key)
        return Counter(name.decode() for name in pipe.execute())


def test_strings_are_as_many_and_as_long_as_said(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    summary = loaded(server, "strings", 0.005)
    assert summary.keys == 10_000
    assert summary.bytes == 10_000 * 114
    client = server.client()
    assert client.strlen("key:0000000000") == client.strlen("key:0000009999") == 100
    assert client.get("key:0000000001") != client.get("key:0000000002")


def test_mixed_has_every_type_in_small_and_large_encodings(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    summary = loaded(server, "mixed", 0.02)
    assert summary.keys == 10_000
    assert set(summary.by_type) == {"string", "hash", "list", "set", "zset", "stream"}
    assert summary.with_ttl == pytest.approx(summary.keys / 3, rel=0.01)
    assert 750 < summary.bytes / summary.keys < 950
    found = encodings(server.client())
    for name in ("int", "embstr", "raw", "intset", "hashtable", "skiplist", "quicklist", "stream"):
        assert found[name] > 10, (name, found)
    assert found["listpack"] + found["ziplist"] > 1_000


def test_large_keeps_its_sizes_at_any_scale(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary)
    summary = loaded(server, "large", 0.001)
    assert summary.by_type == {"string": 20, "hash": 1}
    client = server.client()
    assert client.strlen("blob:000000") == 65_536
    assert client.hlen("table:0000") == 50_000


def test_values_do_not_compress(server_factory: ServerFactory) -> None:
    server = server_factory()
    datasets.load("large", server.url, scale=0.0005)
    assert len(server.client().dump("blob:000000")) >= 65_536


def test_demo_fills_three_databases_with_everything(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    summary = loaded(server, "demo", 0.02)
    assert summary.keys == 4_000
    assert tuple(summary.by_db) == (0, 1, 5)
    assert summary.with_ttl == pytest.approx(summary.keys / 3, rel=0.02)
    for db in summary.by_db:
        client = server.client(db)
        assert client.exists(b"", b"nul\x00inside\x00", bytes(range(256)), "value:empty") == 4
        assert client.execute_command("PFCOUNT", "hll:dense") > 10_000
        (group,) = (
            each for each in client.xinfo_groups("stream:work") if each["name"] == b"group-0"
        )
        assert group["pending"] == 4
        assert group["consumers"] == 2
    names = list(server.client(0).scan_iter(match="long:*"))
    assert [len(name) for name in names] == [1_000_005]


def test_hash_fields_have_expiries_where_the_server_knows_them(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary)
    known = "hpexpireat" in server.client().command()
    summary = loaded(server, "demo", 0.02)
    assert (summary.field_ttls > 0) == known


def test_a_seed_gives_the_same_data_on_every_server(server_factory: ServerFactory) -> None:
    urls = []
    by_url = {}
    for binary in (binaries()[0], binaries()[-1]):
        server = server_factory(binary)
        summary = loaded(server, "demo", 0.01, seed=7)
        by_url[server.url] = summary
        urls.append(server.url)
    one, other = by_url.values()
    assert (one.bytes, one.by_type) == (other.bytes, other.by_type)
    if one.field_ttls == other.field_ttls:
        # Expiry times are rounded to the minute of filling, which may be one further on.
        assert_equal(*urls, ttl_bound_ms=120_000)

    third = server_factory(binaries()[0])
    assert loaded(third, "demo", 0.01, seed=8).bytes != one.bytes


def test_a_database_that_holds_keys_is_left_alone(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.client(5).set("mine", 1)
    with pytest.raises(datasets.DatasetError, match="database 5 already holds 1 key"):
        datasets.load("demo", server.url, scale=0.01)
    assert server.client().dbsize() == 0
    datasets.load("strings", server.url, scale=0.0001)  # its database is free


def test_a_refused_command_is_an_error(server_factory: ServerFactory) -> None:
    server = server_factory(None, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    with pytest.raises(datasets.DatasetError, match="OOM"):
        datasets.load("strings", server.url, scale=0.1)


def test_the_command_line(
    server_factory: ServerFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    server = server_factory(None, unix=True, password="secret")
    assert datasets.main(["strings", "--url", server.url, "--scale", "0.001"]) == 0
    assert "2,000 keys" in capsys.readouterr().out
    assert datasets.main(["strings", "--url", server.unix_url, "--scale", "0.001"]) == 1
    assert "empty it first" in capsys.readouterr().err
    assert datasets.main(["mixed", "--url", server.unix_url, "--scale", "0.001", "--flush"]) == 0
    assert server.client().dbsize() == 500

    with pytest.raises(datasets.DatasetError, match="no data set"):
        datasets.load("other", server.url)
    with pytest.raises(datasets.DatasetError, match="expected redis"):
        datasets.load("demo", "http://localhost")
