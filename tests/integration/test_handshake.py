"""Becoming a replica of every server: what is answered, and which bytes follow the answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, TlsFiles, binaries, supports_tls
from benches.support.waiting import soon
from engine._native import NeedData, encode_command
from engine.errors import AuthError, LinkError, PsyncRefused, ServerError
from engine.model.endpoint import Endpoint
from engine.model.position import StreamPosition
from engine.sources.replica import BEAT
from engine.wire.connection import Connection
from engine.wire.info_command import ask_info
from engine.wire.line_mode import LineReader
from engine.wire.psync import FullSync, PartialSync, handshake
from tests.support.handshakes import connected, shake
from tests.support.replicas import until_in_step
from tests.support.servers import ServerFactory, known

ACK = encode_command("REPLCONF", "ACK", 0)


class Sink:
    """A reader that keeps everything."""

    def __init__(self) -> None:
        self.data = bytearray()
        # Small: whatever lies behind the answer comes through in several portions.
        self._room = bytearray(1000)

    @property
    def input(self) -> memoryview:
        return memoryview(self._room)

    def received(self, n: int, /) -> int:
        self.data += self._room[:n]
        return 0


def take(connection: Connection) -> Sink:
    sink = Sink()
    connection.take_over(sink, lambda _: None, lambda _: None)
    connection.resume_reading()
    return sink


async def until(
    sink: Sink, end: bytes, acknowledge: Connection | None = None, length: int = 0
) -> bytes:
    """Everything that came, once it ends with `end` and has `length` bytes.

    With `acknowledge` an ACK goes out now and then: a source that has not yet seen its child end
    takes no notice of it.
    """
    deadline = time.monotonic() + 60
    while len(sink.data) < length or not sink.data.endswith(end):
        assert time.monotonic() < deadline, bytes(sink.data[-200:])
        if acknowledge is not None:
            acknowledge.write(ACK)
        await asyncio.sleep(0.02)
    return bytes(sink.data)


@pytest.mark.parametrize("diskless", ["yes", "no"])
async def test_a_full_sync_and_a_partial_one_behind_it(
    binary: Binary, server_factory: ServerFactory, diskless: str
) -> None:
    server = server_factory(binary, "--repl-diskless-sync", diskless)
    client = server.client()
    client.set("before", "x" * 5000)
    async with connected(server) as connection:
        full = await shake(connection)
        assert isinstance(full, FullSync)
        assert full.replid == client.info("replication")["master_replid"]
        sink = take(connection)
        if diskless == "yes":
            assert full.length is None
            assert full.mark is not None
            snapshot = await until(sink, full.mark)
            snapshot = snapshot[: -len(full.mark)]
        else:
            assert full.length is not None
            snapshot = (await until(sink, b"", length=full.length))[: full.length]
        assert snapshot[:5] in (b"REDIS", b"VALKE")
        assert snapshot[-9] == 0xFF
        assert b"before" in snapshot
        # The stream is held back after a diskless snapshot until we acknowledge.
        sink.data.clear()
        client.set("after", "1")
        last = encode_command("SET", "after", "1")
        stream = await until(sink, last, connection)
        offset = client.info("replication")["master_repl_offset"]
    assert full.offset + len(stream) == offset or diskless == "no"
    async with connected(server) as connection:
        partial = await shake(connection, StreamPosition(full.replid, offset - len(last)))
        assert partial == PartialSync(full.replid, offset - len(last))
        assert await until(take(connection), last) == last
    async with connected(server) as connection:
        assert await shake(connection, StreamPosition(full.replid, offset)) == PartialSync(
            full.replid, offset
        )


async def test_what_follows_the_answer_at_once_is_kept(server_factory: ServerFactory) -> None:
    """The backlog comes in the same reads as +CONTINUE."""
    server = server_factory()
    client = server.client()
    async with connected(server) as connection:
        full = await shake(connection)
    pipe = client.pipeline(transaction=False)
    for i in range(2000):
        pipe.set(f"key:{i}", i)
    pipe.execute()
    offset = client.info("replication")["master_repl_offset"]
    expected = encode_command("SELECT", 0) + b"".join(
        encode_command("SET", f"key:{i}", i) for i in range(2000)
    )
    async with connected(server) as connection:
        assert isinstance(
            await shake(connection, StreamPosition(full.replid, full.offset)), PartialSync
        )
        await asyncio.sleep(0.2)
        stream = await until(take(connection), encode_command("SET", "key:1999", 1999))
    # Valkey sends a PING of its own to a new replica.
    assert stream.replace(b"*1\r\n$4\r\nping\r\n", b"").replace(b"*1\r\n$4\r\nPING\r\n", b"") == (
        expected
    )
    assert full.offset + len(stream) == offset


async def test_the_wait_for_a_fork_is_bounded_by_silence_alone(
    server_factory: ServerFactory,
) -> None:
    server = server_factory(
        binaries()[0], "--repl-diskless-sync", "no", "--rdb-key-save-delay", "10000"
    )
    client = server.client()
    for i in range(400):
        client.set(f"key:{i}", i)
    for left in range(4, -1, -1):
        # A machine that stands still is silent too.
        with contextlib.suppress(*([LinkError] if left else [])):
            async with connected(server) as connection:
                began = time.monotonic()
                full = await shake(connection, timeout=2.0)
                took = time.monotonic() - began
                break
    assert isinstance(full, FullSync)
    assert took > 3.0, "the snapshot came too quickly to tell"


async def test_silence_is_a_lost_link(server_factory: ServerFactory) -> None:
    server = server_factory()
    async with connected(server) as connection:
        info = await ask_info(connection)
        server.freeze()
        began = time.monotonic()
        with pytest.raises(LinkError, match=r"sent nothing for 0\.5 s"):
            await handshake(connection, None, info=info, timeout=0.5)
        assert time.monotonic() - began < 5
        server.thaw()


@pytest.mark.parametrize("place", ["before", "inside", "at the end"])
async def test_a_link_cut_anywhere(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """In each reply of this server, whose lengths are its own."""
    server = server_factory()
    replies: list[int] = []
    take_line = LineReader.line

    def counted(self: LineReader) -> bytes | NeedData:
        if isinstance(line := take_line(self), bytes) and line:
            replies.append(len(line + b"\r\n"))
        return line

    async with connected(server) as connection:
        with monkeypatch.context() as patch:
            patch.setattr(LineReader, "line", counted)
            assert isinstance(await shake(connection), FullSync)
    assert len(replies) >= 4, "REPLCONF, PSYNC, and where the snapshot ends"
    with Proxy(server.host, server.port) as proxy:
        for index, length in enumerate(replies):
            at = sum(replies[:index])
            at += {"before": 0, "inside": length // 2, "at the end": length - 1}[place]
            async with connected(proxy) as connection:
                info = await ask_info(connection)
                proxy.cut_after(at, "down")
                with pytest.raises(LinkError):
                    await handshake(connection, None, info=info, timeout=10)
    async with connected(server) as connection:
        assert isinstance(await shake(connection), FullSync)


@pytest.mark.parametrize("name", ["redis-2.8", "redis-3.2", "redis-6.2", "valkey-8.1"])
async def test_a_beat_and_an_acknowledgement_may_arrive_together(
    server_factory: ServerFactory, name: str
) -> None:
    """Old servers take two bytes off for a bare newline, and answer what they then see."""
    server = server_factory(known(name))
    async with connected(server) as connection:
        assert isinstance(await shake(connection), FullSync)
        sink = take(connection)
        connection.write(BEAT + ACK)
        server.client().set("behind", "it")
        stream = await until(sink, b"it\r\n", connection)
        connection.write(BEAT + ACK)
        server.client().set("behind", "that")
        stream = await until(sink, b"that\r\n")
    assert b"-ERR" not in stream


async def test_a_backlog_that_is_gone_means_a_full_sync(
    binary: Binary, server_factory: ServerFactory
) -> None:
    server = server_factory(binary, "--repl-backlog-size", "16kb")
    client = server.client()
    async with connected(server) as connection:
        full = await shake(connection)
        # Servers from 7.0 on keep what a replica has not read, and the backlog with it.
        connection.close()
    for i in range(40):
        client.set(f"key:{i}", "x" * 10_000)
    async with connected(server) as connection:
        again = await shake(connection, StreamPosition(full.replid, full.offset))
        assert isinstance(again, FullSync)
        assert again.offset > full.offset
    async with connected(server) as connection:
        assert isinstance(await shake(connection, StreamPosition("f" * 40, 1)), FullSync)


async def test_after_a_failover_the_offsets_go_on(
    binary: Binary, server_factory: ServerFactory
) -> None:
    old, new = server_factory(binary), server_factory(binary)
    new.client().replicaof(old.host, str(old.port))
    client = old.client(single_connection_client=True)  # WAIT looks at what its connection wrote
    await asyncio.to_thread(until_in_step, new)
    client.set("one", "1")
    assert client.wait(1, 20_000) == 1
    info = client.info("replication")
    position = StreamPosition(info["master_replid"], info["master_repl_offset"])
    client.set("two", "2")
    assert client.wait(1, 20_000) == 1
    old.kill()
    new.client().replicaof("no", "one")
    new.client().set("three", "3")
    async with connected(new) as connection:
        answer = await shake(connection, position)
        assert answer == PartialSync(
            new.client().info("replication")["master_replid"], position.offset
        )
        assert answer.replid != position.replid
        stream = await until(take(connection), encode_command("SET", "three", "3"))
    assert encode_command("SET", "two", "2") in stream


async def test_a_replica_as_the_source_and_one_without_its_primary(
    binary: Binary, server_factory: ServerFactory
) -> None:
    primary, replica = server_factory(binary), server_factory(binary)
    replica.client().replicaof(primary.host, str(primary.port))
    await asyncio.to_thread(until_in_step, replica)
    primary.client().set("key", "1")
    async with connected(replica) as connection:
        full = await shake(connection)
        assert isinstance(full, FullSync)
        assert full.replid == primary.client().info("replication")["master_replid"]
    primary.kill()
    deadline = time.monotonic() + 60
    while replica.client().info("replication")["master_link_status"] != "down":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    async with connected(replica) as connection:
        began = time.monotonic()
        with pytest.raises(ServerError) as caught:
            await shake(connection, timeout=1.0)
        assert caught.value.code == "NOMASTERLINK"
        assert time.monotonic() - began >= 1.0
    async with connected(replica) as connection:
        waiting = asyncio.create_task(shake(connection, timeout=20.0))
        await asyncio.sleep(0.5)
        replica.client().replicaof("no", "one")
        assert isinstance(await waiting, FullSync)


async def test_a_renamed_psync(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary, "--rename-command", "PSYNC", "")
    async with connected(server) as connection:
        with pytest.raises(PsyncRefused, match=r"PSYNC with: ERR unknown command") as caught:
            await shake(connection)
    assert caught.value.fault == "source"
    assert "with args" not in str(caught.value)
    assert "scan" in caught.value.remedy


@pytest.mark.parametrize("denied", ["psync", "replconf"])
async def test_a_user_without_the_right(
    binary: Binary, server_factory: ServerFactory, denied: str
) -> None:
    server = server_factory(binary)
    allowed = {"psync", "replconf", "ping", "info"} - {denied}
    server.client().execute_command(
        "ACL", "SETUSER", "mover", "on", ">secret", "~*", *[f"+{name}" for name in allowed]
    )
    endpoint = Endpoint.parse(f"redis://mover:secret@{server.host}:{server.port}")
    async with connected(endpoint) as connection:
        with pytest.raises(PsyncRefused, match=f"{denied.upper()} with: NOPERM"):
            await shake(connection)
    server.client().execute_command("ACL", "SETUSER", "mover", f"+{denied}")
    async with connected(endpoint) as connection:
        assert isinstance(await shake(connection), FullSync)


async def test_a_wrong_password(server_factory: ServerFactory) -> None:
    server = server_factory(password="right")
    with pytest.raises(AuthError):
        async with connected(Endpoint.parse(f"redis://:wrong@{server.host}:{server.port}")):
            pass
    with pytest.raises(AuthError):
        async with connected(Endpoint.parse(f"redis://{server.host}:{server.port}")):
            pass


async def test_a_source_that_is_loading(binary: Binary, server_factory: ServerFactory) -> None:
    server = server_factory(binary)
    client = server.client()
    # A server looks at its connections each 2 MiB while it loads.
    value = os.urandom(100_000)
    for i in range(200):
        client.set(f"key:{i}", value)
    client.execute_command("CONFIG", "SET", "key-load-delay", "10000")
    asked: list[bool] = []
    while not any(asked):
        # Two seconds, which a machine that stands still may miss.
        assert len(asked) < 5
        loading = asyncio.create_task(asyncio.to_thread(_reload, server))
        await soon(lambda: client.info("persistence")["loading"] or loading.done(), "it loads")  # noqa: B023
        async with connected(server) as connection:
            info = await ask_info(connection)
            full = await handshake(connection, None, info=info, timeout=30.0)
            assert isinstance(full, FullSync)
        asked.append(info.loading)
        await loading


def _reload(server: Server) -> None:
    server.client().execute_command("DEBUG", "RELOAD")


async def test_field_ttls_need_the_version(server_factory: ServerFactory) -> None:
    """A Valkey 9 that isn't told a version writes RDB 11, and gives up at a key with field TTLs."""
    server = server_factory(known("valkey-9"))
    client = server.client()
    client.hset("hash", "field", "value")
    client.execute_command("HPEXPIRE", "hash", 10_000_000, "FIELDS", 1, "field")
    async with connected(server) as connection:
        full = await shake(connection)
        assert isinstance(full, FullSync)
        assert full.mark is not None
        snapshot = await until(take(connection), full.mark)
    assert snapshot.startswith(b"VALKEY080")
    assert b"\x16\x04hash\x01\x05field\x05value" in snapshot
    async with connected(server) as connection:
        untold = dataclasses.replace(await ask_info(connection), flavour="redis")
        with pytest.raises(LinkError):
            await handshake(connection, None, info=untold, timeout=10.0)
    assert "in RDB version 11" in server.log_tail()


async def test_over_tls(server_factory: ServerFactory, tls_files: TlsFiles) -> None:
    able = [each for each in binaries() if supports_tls(each)]
    if not able:
        pytest.skip("no server here speaks TLS")
    server = server_factory(able[0], tls=tls_files)
    server.client().set("key", "x" * 300_000)
    async with connected(server) as connection:
        full = await shake(connection)
        assert isinstance(full, FullSync)
        assert full.mark is not None
        await asyncio.sleep(0.2)
        assert b"key" in await until(take(connection), full.mark)
