"""INFO read, and what a version means for payloads: held against the table and real servers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from benches.support.servers import Binary, Server, binaries, extra_binaries
from engine._native import crc64
from engine.errors import ProtocolFault
from engine.model.server import Keyspace, ServerInfo, parse_info, parse_version
from engine.model.server_capabilities import (
    EVERY,
    Capability,
    ServerCapabilities,
    known_types,
    rdb_version,
)
from tests.support.servers import ServerFactory
from tests.unit.test_value_decoder import seeds

INFO = """# Server\r
redis_version:7.2.4\r
server_name:valkey\r
valkey_version:8.1.8\r
server_mode:standalone\r
run_id:0123456789abcdef\r
tcp_port:6380\r
# Memory\r
used_memory:1048576\r
used_memory_dataset:4096\r
maxmemory:2097152\r
maxmemory_policy:allkeys-lru\r
total_system_memory:8589934592\r
# Persistence\r
loading:1\r
async_loading:0\r
# Replication\r
role:slave\r
master_host:10.0.0.1\r
master_port:6379\r
master_link_status:down\r
master_replid:fedcba\r
# Modules\r
module:name=bf,ver=20612,api=1,filters=0,usedby=[],using=[],options=[]\r
module:name=ReJSON,ver=20606,api=1,filters=0,usedby=[],using=[],options=[]\r
# Keyspace\r
db9:keys=3,expires=0,avg_ttl=0,keys_with_volatile_items=0\r
db0:keys=12,expires=2,avg_ttl=100,subexpiry=0\r
db0_distrib_strings_sizes:1=2\r
"""


def server(flavour: str, version: str, fork: str = "") -> ServerInfo:
    return ServerInfo(flavour, parse_version(version), fork=fork)  # type: ignore[arg-type]


def test_every_field_is_read() -> None:
    info = parse_info(INFO)
    assert info == ServerInfo(
        flavour="valkey",
        version=(8, 1, 8),
        run_id="0123456789abcdef",
        role="slave",
        mode="standalone",
        tcp_port=6380,
        used_memory=1 << 20,
        used_memory_dataset=4096,
        maxmemory=2 << 20,
        maxmemory_policy="allkeys-lru",
        total_system_memory=8 << 30,
        keyspace=(Keyspace(0, 12, 2), Keyspace(9, 3, 0)),
        modules=("ReJSON", "bf"),
        module_versions=(20606, 20612),
        loading=True,
        replid="fedcba",
        primary="10.0.0.1:6379",
        primary_link_up=False,
    )
    assert (info.name, info.keys, info.is_replica) == ("Valkey 8.1.8", 15, True)
    assert ServerInfo.from_dict(info.to_dict()) == info


def test_a_hidden_section_leaves_defaults() -> None:
    info = parse_info("redis_version:6.2.14\r\n")
    assert info == ServerInfo("redis", (6, 2, 14))
    with pytest.raises(ProtocolFault, match="names no version"):
        parse_info("# Memory\r\nused_memory:1\r\n")


_TIMES = {"server_time_usec": "1700000009999999", "uptime_in_seconds": "9"}


@pytest.mark.parametrize(
    ("told", "process"),
    [
        ({"run_id": "ab", "role": "slave"}, "ab"),
        ({"run_id": "ab", "role": "slave", "master_replid": "cd", "master_replid2": "ef"}, "ab cd"),
        ({"run_id": "ab", "role": "master", "master_replid": "cd"}, "ab"),
        ({"run_id": "ab", "role": "master", "master_replid2": "ef"}, "ab ef"),
        # What a service answers that hides it.
        ({"run_id": "0", **_TIMES}, "started 1700000000"),
        ({"run_id": "0", **_TIMES, "uptime_in_seconds": "0"}, "started 1700000009"),
        ({**_TIMES, "role": "master", "master_replid": "cd"}, "started 1700000000 cd"),
        ({**_TIMES, "role": "slave", "master_replid": "cd"}, "started 1700000000 cd"),
        ({"server_time_usec": "1700000009999999"}, ""),
        ({"uptime_in_seconds": "9", "role": "master", "master_replid": "cd"}, "cd"),
        ({"role": "slave", "master_replid": "cd"}, ""),
        ({"role": "master", "master_replid": "0" * 40}, ""),
    ],
)
def test_what_tells_a_process(told: dict[str, str], process: str) -> None:
    lines = "".join(f"{name}:{value}\r\n" for name, value in told.items())
    assert parse_info(f"redis_version:7.0.0\r\n{lines}").process == process


@pytest.mark.parametrize(
    ("line", "fork", "mode"),
    [
        ("keydb_version:6.3.4", "keydb", "standalone"),
        ("dragonfly_version:df-v1.2", "dragonfly", "standalone"),
        ("redis_mode:cluster", "", "cluster"),
        ("cluster_enabled:1", "", "cluster"),
        ("redis_mode:sentinel", "", "sentinel"),
    ],
)
def test_forks_and_modes(line: str, fork: str, mode: str) -> None:
    info = parse_info(f"redis_version:6.2.14\r\n{line}\r\n")
    assert (info.fork, info.mode) == (fork, mode)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("7.2.4", (7, 2, 4)),
        ("8.0", (8, 0, 0)),
        ("7.4.0-rc1", (7, 4, 0)),
        ("255.255.255", (255, 255, 255)),
        ("6.2.14.1", (6, 2, 14)),
        ("", (0, 0, 0)),
    ],
)
def test_versions(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("flavour", "version", "rdb", "newest_types"),
    [
        ("redis", "4.0.14", 8, {5, 7}),
        ("redis", "5.0.0", 9, {15}),
        ("redis", "6.2.14", 9, {15}),
        ("redis", "7.0.0", 10, {16, 19}),
        ("redis", "7.2.0", 11, {20, 21}),
        ("redis", "7.4.0", 12, {24, 25}),
        ("redis", "8.4.0", 12, {24, 25}),
        ("redis", "8.6.0", 13, {26}),
        ("redis", "8.8.0", 14, {27, 28}),
        ("redis", "8.10.0", 15, {33}),
        ("valkey", "7.2.5", 11, {20, 21}),
        ("valkey", "8.1.8", 11, {20, 21}),
        ("valkey", "9.0.0", 80, {22}),
        ("valkey", "9.1.2", 80, {22}),
        ("valkey", "9.2.0", 81, {23}),
    ],
)
def test_the_table(flavour: str, version: str, rdb: int, newest_types: set[int]) -> None:
    info = server(flavour, version)
    assert rdb_version(info.flavour, info.version) == rdb
    types = known_types(info.flavour, info.version)
    assert newest_types <= types
    assert max(types) == max(newest_types | ({14} if info.version < (5, 0, 0) else set()))
    # What one flavour calls 22 the other cannot read.
    assert (22 in types) == (flavour == "valkey" and rdb >= 80)


@pytest.mark.parametrize(
    ("source", "target", "as_it_is"),
    [
        (("redis", "6.2.14"), ("valkey", "8.1.8"), True),
        (("valkey", "8.1.8"), ("redis", "6.2.14"), False),
        (("valkey", "8.1.8"), ("redis", "7.2.0"), True),
        (("redis", "7.4.0"), ("valkey", "8.1.8"), False),
        (("redis", "7.4.0"), ("valkey", "9.0.0"), False),
        (("redis", "7.4.0"), ("redis", "8.0.2"), True),
        (("valkey", "8.1.8"), ("valkey", "9.0.0"), True),
        (("valkey", "9.0.0"), ("valkey", "8.1.8"), False),
        (("valkey", "9.0.0"), ("valkey", "9.2.0"), True),
        (("valkey", "9.0.0"), ("redis", "8.10.0"), False),
        (("redis", "6.2.14", "keydb"), ("redis", "7.0.0"), False),
    ],
)
def test_footers(source: tuple[str, ...], target: tuple[str, ...], as_it_is: bool) -> None:
    able, ours = server(*target).capabilities, server(*source).capabilities
    assert able.accepts_footer_of(ours) is as_it_is


def test_bounds_say_the_same_as_the_predicate() -> None:
    assert server("valkey", "9.1.2").capabilities.footer_bounds == (80, 12, 79)
    assert server("redis", "7.0.15").capabilities.footer_bounds == (10, 1, 0)
    assert server("redis", "7.4.0", "dragonfly").capabilities.footer_bounds[0] == 9


def test_a_real_server_agrees(binary: Binary, server_factory: ServerFactory) -> None:
    """Every footer version from 1 to 99: what RESTORE says is what the table says."""
    client = server_factory(binary).client()
    client.set("key", "value")
    payload = client.dump("key")
    written = int.from_bytes(payload[-10:-8], "little")
    info = server(binary.flavour, ".".join(map(str, binary.version)))
    assert written == rdb_version(info.flavour, info.version)
    for number in range(1, 100):
        body = payload[:-10] + struct.pack("<H", number)
        footed = body + struct.pack("<Q", crc64(body))
        if info.capabilities.accepts_rdb_version(number):
            assert client.restore("copy", 0, footed, replace=True) == b"OK", number
        else:
            with pytest.raises(redis.ResponseError, match="version or checksum are wrong"):
                client.restore("copy", 0, footed, replace=True)


def test_a_real_server_loads_the_types_of_the_table(
    binary: Binary, server_factory: ServerFactory
) -> None:
    """One value of each type, with a footer that it takes."""
    client = server_factory(binary).client()
    info = server(binary.flavour, ".".join(map(str, binary.version)))
    able = info.capabilities
    tried = set()
    for value in seeds():
        number, own = value[0], "valkey" if value[-10] >= 80 else "redis"
        # Of modules it hangs on the module. Redis' own 22 and 23 are of release candidates.
        candidate = number in (22, 23) and "redis" in (own, info.flavour)
        if number in tried or number == 7 or candidate:
            continue
        body = value[:-10] + struct.pack("<H", able.footer_bounds[0])
        footed = body + struct.pack("<Q", crc64(body))
        tried.add(number)
        if number in able.known_types and (number < 22 or own == info.flavour):
            assert client.restore("copy", 0, footed, replace=True) == b"OK", number
        else:
            with pytest.raises(redis.ResponseError, match="Bad data format"):
                client.restore("copy", 0, footed, replace=True)
    assert tried >= {*range(6), *range(9, 22), 24, 25, 26}
    assert client.ping()


ROWS = {name: row for name, row in vars(ServerCapabilities).items() if isinstance(row, Capability)}


@pytest.mark.parametrize("name", ROWS)
def test_a_capability_begins_with_its_release(name: str) -> None:
    row = ROWS[name]
    for flavour, since in (("redis", row.redis), ("valkey", row.valkey)):
        for version in ((2, 8, 17), (6, 2, 0), (8, 1, 8), (9, 1, 2), since or (255, 0, 0)):
            able = ServerCapabilities(flavour, version)  # type: ignore[arg-type]
            assert getattr(able, name) is (since is not None and version >= since)
            fork = ServerCapabilities(flavour, version, "keydb")  # type: ignore[arg-type]
            assert getattr(fork, name) is (row.forks and getattr(able, name))
        if since not in (None, EVERY):
            major, minor, patch = since
            before = (major, minor, patch - 1) if patch else (major, minor - 1, 255)
            if not minor and not patch:
                before = (major - 1, 255, 255)
            assert not getattr(ServerCapabilities(flavour, before), name)  # type: ignore[arg-type]
    assert row.what
    assert row.source


@pytest.mark.parametrize(
    ("flavour", "version", "announced"),
    [
        ("redis", (8, 6, 0), None),
        ("valkey", (7, 2, 9), None),
        ("valkey", (8, 0, 1), (8, 0, 1)),
        ("valkey", (9, 1, 2), (9, 1, 2)),
        ("valkey", (9, 2, 0), (9, 1, 0)),
    ],
)
def test_what_a_replica_says_it_is(flavour: str, version: Any, announced: Any) -> None:
    assert ServerCapabilities(flavour, version).announced_version == announced  # type: ignore[arg-type]


def shown(server: Server) -> Iterator[tuple[str, bool]]:
    """(capability, whether this server shows it). Its keys are not as they were afterwards."""
    client, raw = server.client(), server.client()
    raw.response_callbacks.clear()

    def takes(*command: str | int) -> bool:
        try:
            raw.execute_command(*command)
        except redis.ResponseError:
            return False
        return True

    client.set("key", "value")
    yield "command_getkeys", takes("COMMAND", "GETKEYS", "GET", "key")
    yield "exists_of_many", takes("EXISTS", "key", "other")
    yield "replication_ids", "master_replid" in client.info("replication")
    streams = takes("XADD", "stream", "1-1", "field", "value")
    yield "streams", streams
    yield "xinfo_full", streams and takes("XINFO", "STREAM", "stream", "FULL")
    yield "acl_users", takes("ACL", "WHOAMI")
    yield "scan_type", takes("SCAN", 0, "TYPE", "string")
    yield "pexpiretime", takes("PEXPIRETIME", "key")
    client.hset("hash", "field", "value")
    yield "hpexpiretime", takes("HPEXPIRETIME", "hash", "FIELDS", 1, "field")
    yield "field_ttls", takes("HPEXPIRE", "hash", 100_000, "FIELDS", 1, "field")
    yield "hsetex", takes("HSETEX", "hash", "FIELDS", 1, "field", "value")
    yield "hgetdel", takes("HGETDEL", "hash", "FIELDS", 1, "field")
    yield "msetex", takes("MSETEX", 1, "other", "value")
    yield "set_conditions", takes("SET", "other", "new", "IFNE", "that")
    yield "stream_references", takes("XDELEX", "stream", "KEEPREF", "IDS", 1, "1-1")
    yield "commands_of_6_2", takes("SET", "other", "value", "PXAT", 9_999_999_999_999)
    yield "commands_of_7_0", takes("SPUBLISH", "channel", "message")
    yield "import_mode", takes("CLIENT", "IMPORT-SOURCE", "OFF")
    yield "replica_version", takes("REPLCONF", "version", "8.0.0")
    before = client.info("stats")["expired_keys"]
    client.execute_command("PEXPIREAT", "key", 1)
    yield "counts_past_ttls", client.info("stats")["expired_keys"] > before
    if client.info("server")["redis_version"] >= "3.2":  # the first with BITFIELD
        before = client.info("persistence")["rdb_changes_since_last_save"]
        client.execute_command("BITFIELD", "bits", "OVERFLOW", "FAIL", "SET", "u8", 0, 300)
        same = client.info("persistence")["rdb_changes_since_last_save"] == before
        yield "silent_bitfield", same


@pytest.mark.parametrize("binary", [*binaries(), *extra_binaries()], ids=str)
def test_a_real_server_has_what_the_table_says(
    binary: Binary, server_factory: ServerFactory
) -> None:
    info = server(binary.flavour, ".".join(map(str, binary.version)))
    found = dict(shown(server_factory(binary)))
    assert found == {name: getattr(info.capabilities, name) for name in found}
