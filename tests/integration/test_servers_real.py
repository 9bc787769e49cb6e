"""Every server of this machine starts, answers and serves in each way that the tests need."""

from __future__ import annotations

import pytest
import redis

from benches.support.servers import Binary, Server, TlsFiles, supports_tls
from tests.support.servers import ServerFactory


@pytest.fixture
def tls_server(binary: Binary, server_factory: ServerFactory, tls_files: TlsFiles) -> Server:
    if not supports_tls(binary):
        pytest.skip(f"{binary} was built without TLS")
    return server_factory(binary, tls=tls_files)


def test_it_is_what_it_says(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary)
    client = server.client()
    assert client.ping() is True
    info = client.info("server")
    reported = info["valkey_version"] if binary.flavour == "valkey" else info["redis_version"]
    assert reported == ".".join(map(str, binary.version))
    assert info["process_id"] == server.pid
    assert info["tcp_port"] == server.port


def test_databases(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary, databases=3)
    server.client(db=2).set("k", "v")
    assert server.client().exists("k") == 0
    with pytest.raises(redis.ResponseError, match="out of range"):
        server.client(db=3).ping()


def test_debug_is_allowed(binary: Binary, server_factory: ServerFactory) -> None:
    client = server_factory(binary).client()
    client.execute_command("DEBUG", "POPULATE", 100)
    assert client.dbsize() == 100


def test_password_and_unix_socket(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary, password="p@ss: word/%", unix=True)
    with pytest.raises(redis.AuthenticationError):
        server.client(password=None, retry=None).ping()
    for url in (server.url, server.unix_url):
        with redis.Redis.from_url(url) as client:
            assert client.ping() is True


def test_options_win(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary, "--maxmemory", "64mb", "--appendonly", "yes")
    client = server.client()
    assert client.config_get("maxmemory") == {"maxmemory": str(64 << 20)}
    assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_tls(tls_server: Server) -> None:
    assert tls_server.client().ping() is True
    assert tls_server.url.startswith("rediss://")
    with pytest.raises(redis.ConnectionError):
        tls_server.client(ssl=False, retry=None).ping()
    # Its authority is not one that this machine trusts.
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        tls_server.client(ssl_ca_certs=None, retry=None).ping()


def test_cluster_mode(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary, cluster=True)
    with pytest.raises(redis.RedisError):
        server.client(retry=None).set("k", "v")
    server.add_slots()
    assert server.client().set("k", "v") is True


def rdb_version(payload: bytes) -> int:
    """The RDB version in the footer of what DUMP gave: two bytes before the CRC64."""
    return int.from_bytes(payload[-10:-8], "little")


def takes(theirs: int, ours: int) -> bool:
    """Whether a server of RDB version `theirs` restores a payload of version `ours`.

    A server takes its own version and older ones; but the two flavours parted after 11, and
    Valkey, which went on at 80, refuses what Redis numbered in between.
    """
    return ours <= theirs and not (theirs >= 80 and 11 < ours < 80)


def test_a_pair_runs_side_by_side(
    ring_pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    source, target = (server_factory(binary).client() for binary in ring_pair)
    source.set("k", "v")
    target.set("k", "w")
    assert (source.get("k"), target.get("k")) == (b"v", b"w")
    ours, theirs = (rdb_version(end.dump("k")) for end in (source, target))
    if takes(theirs, ours):
        target.restore("k", 0, source.dump("k"), replace=True)
        assert target.get("k") == b"v"
    else:
        # This is what the engine is there to mend.
        with pytest.raises(redis.ResponseError, match="DUMP payload version or checksum"):
            target.restore("k", 0, source.dump("k"), replace=True)
