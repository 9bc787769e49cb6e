"""Snapshots that come through pipes, packed, or from a file that changes while it is read."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard

from benches.support.encoded_values import string
from benches.support.engines import Cli
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import InvalidParameterValueException
from engine.front.engine import Engine
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.wire.event_loop import run
from tests.reference.crc import key_slot
from tests.support.servers import ServerFactory, known
from tests.support.snapshots import snapshot
from tests.unit.test_rdb import key, whole

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
    "lz4, in Valkey's envelope": lambda data: (
        b"VCS\1\1\0\1" + lz4.frame.compress(data, content_checksum=True, block_linked=True)
    ),
    "zstd, in Valkey's envelope": lambda data: b"VCS\1\2\0\1" + zstandard.compress(data),
}


def piped(cli: Cli, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A shell's pipe into `migrate`."""
    ours = [sys.executable, "-m", "engine", "migrate", *arguments, "--state", cli.state]
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; {command} | "$@"', "-", *ours],
        capture_output=True,
        text=True,
        env=cli.environment,
        timeout=90,
    )


def keys_of(server: Server) -> int:
    return sum(server.client(db=db).dbsize() for db in (0, 3, 9))


def test_a_snapshot_through_a_pipe(server_factory: ServerFactory, cli: Cli, tmp_path: Path) -> None:
    target = server_factory()
    saved = snapshot(target.binary, "tiny")
    path = tmp_path / "dump.rdb.gz"
    path.write_bytes(gzip.compress(saved.data))
    into = ("--source", "rdb:-", "--target", target.url)
    told = piped(cli, f"zcat {path}", *into)
    assert told.returncode == 0, told.stderr
    assert keys_of(target) == len(saved.keys)
    told = piped(cli, f"head -c 300 {path}", *into)
    assert told.returncode == 1
    assert "standard input cannot be unpacked: it ends in the middle" in told.stderr


def test_a_fifo_without_a_writer(server_factory: ServerFactory, cli: Cli, tmp_path: Path) -> None:
    target = server_factory()
    saved = snapshot(target.binary, "tiny")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    arguments = ("--source", f"rdb:{fifo}", "--target", target.url)
    running = cli.start("migrate", *arguments)
    assert running.stderr is not None
    line = running.stderr.readline()
    assert "waits for a program that writes into it" in line, line
    running.send_signal(signal.SIGINT)
    told = cli.end(running)
    assert told.code == 130, told.err
    # The same again, and a writer that takes its time.
    events: list[str] = []

    def write() -> None:
        while not events:
            time.sleep(0.01)
        with fifo.open("wb", 0) as out:
            for at in range(0, len(saved.data), 2000):
                out.write(saved.data[at : at + 2000])
                time.sleep(0.001)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    _, report = migrated(cli.state, Endpoint(rdb_path=str(fifo)), target, None, events)
    writer.join(10)
    assert report.status == "done", report.errors
    assert "waits for a program" in events[0]
    assert keys_of(target) == len(saved.keys)


@pytest.mark.parametrize("how", PACKED)
def test_packed_files(server_factory: ServerFactory, cli: Cli, tmp_path: Path, how: str) -> None:
    target = server_factory()
    saved = snapshot(target.binary, "tiny")
    path = tmp_path / "a name that says nothing"
    path.write_bytes(PACKED[how](saved.data))
    told, report = migrated(cli.state, Endpoint(rdb_path=str(path)), target)
    assert report.status == "done", report.errors
    assert keys_of(target) == len(saved.keys)
    assert any(f"({how})" in check["figure"] for check in told if check["name"] == "source-file")


def migrated(
    state: str,
    source: Endpoint,
    target: Server,
    on_checks: Callable[[Any], None] | None = None,
    events: list[str] | None = None,
) -> tuple[list[dict[str, Any]], Any]:
    """Migrate in this process; the checks and the report."""
    checks: list[dict[str, Any]] = []

    def checked(found: Any) -> None:
        checks.extend(found)
        if on_checks is not None:
            on_checks(found)

    async def main() -> Any:
        engine = Engine(state, credentials=Credentials(()))
        try:
            return await engine.migrate(
                source,
                Endpoint.parse(target.url),
                on_checks=checked,
                on_event=(events if events is not None else []).append,
            )
        finally:
            engine.close()

    return checks, run(main())


def test_a_save_of_the_server_in_between(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    source, target = server_factory(), server_factory()
    client = source.client()
    client.mset({f"key:{n}": n for n in range(100)})
    client.save()

    def save_again(_: Any) -> None:
        client.mset({f"more:{n}": n for n in range(50)})
        client.delete("key:1")
        client.save()

    events: list[str] = []
    path = Endpoint.parse(f"rdb:{source.folder}/dump.rdb")
    _, report = migrated(state_url, path, target, save_again, events)
    assert report.status == "done", report.errors
    assert report.keys == 100
    assert target.client().dbsize() == 100
    assert any("has taken the place of" in event for event in events), events


def test_a_file_that_is_written_to_in_place(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    target = server_factory()
    saved = snapshot(target.binary, "tiny")
    path = tmp_path / "dump.rdb"
    path.write_bytes(saved.data)

    def append(_: Any) -> None:
        with path.open("ab") as out:
            out.write(b"x")

    _, report = migrated(state_url, Endpoint(rdb_path=str(path)), target, append)
    assert report.status == "failed"
    assert "was written to while it was read: it had" in report.errors[0]
    assert keys_of(target) == 0


def test_a_file_whose_time_was_put_back(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """Another one of its size was written over it, with the times that it had (rsync --inplace)."""
    target = server_factory()
    path = tmp_path / "dump.rdb"
    one, other = (
        whole(key(0, b"a", string(value)), b"REDIS0009", crc=False) for value in (b"1st", b"2nd")
    )
    path.write_bytes(one)

    def write_over(_: Any) -> None:
        before = path.stat()
        with path.open("r+b") as out:
            out.write(other)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    _, report = migrated(state_url, Endpoint(rdb_path=str(path)), target, write_over)
    assert report.status == "failed"
    assert "was written to while it was read: bytes 0 to" in report.errors[0]
    assert keys_of(target) == 0


def test_bytes_behind_the_snapshot(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    target = server_factory()
    saved = snapshot(target.binary, "tiny")
    for name, data, count in (
        ("plain", saved.data + bytes(1000), 1000),
        ("packed", gzip.compress(saved.data) + b"garbage", 7),
        ("within", gzip.compress(saved.data + b"\n"), 1),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        events: list[str] = []
        checks, report = migrated(state_url, Endpoint(rdb_path=str(path)), target, None, events)
        assert report.status == "done", report.errors
        assert any(f"{count:,} bytes after the snapshot in" in event for event in events)
        (check,) = (check for check in checks if check["name"] == "source-file")
        assert check["outcome"] == "warn"
        assert f"{count:,} bytes after its end" in check["figure"]


def test_a_key_that_is_there_twice_and_one_that_is_too_long(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    target = server_factory()
    target.client().config_set("proto-max-bulk-len", 1 << 20)
    long = os.urandom(2 << 20)
    body = (
        key(0, b"a", string(b"first"))
        + key(0, b"long", string(long))
        + key(0, b"a", string(b"last"))
    )
    body += key(1, b"b", b"\1" + string(b"first")) + key(0, b"b", string(b"last"))
    path = tmp_path / "dump.rdb"
    path.write_bytes(whole(body + key(4, b"empty", b"\0"), b"REDIS0009", crc=False))
    events: list[str] = []
    checks, report = migrated(state_url, Endpoint(rdb_path=str(path)), target, None, events)
    assert report.status == "stopped"
    reasons = {each.key: each.reason for each in report.not_carried}
    assert "the file names it twice" in reasons["a"]
    assert "the last of its values stays" in reasons["a"]
    assert "takes in one bulk, its proto-max-bulk-len (1,048,576 bytes)" in reasons["long"]
    (values,) = (check for check in checks if check["name"] == "values")
    assert values["figure"].startswith("3 cannot be migrated")
    assert "CONFIG SET proto-max-bulk-len" in values["remedy"]
    assert any("1 collections without members left out" in event for event in events)
    assert target.client().get("a") == target.client().get("b") == b"last"
    assert target.client().exists("long", "empty") == 0


def test_keys_of_a_file_stay_as_idle_as_they_were(
    server_factory: ServerFactory, state_url: str
) -> None:
    """The comparison reads every one of them behind the copy."""
    source, target = server_factory(known("valkey-8.1")), server_factory(known("valkey-8.1"))
    for server in (source, target):
        server.client().config_set("maxmemory-policy", "allkeys-lru")
    client, there = source.client(), target.client()
    client.set("key", "value")
    client.rpush("list", *range(300))
    for name in ("key", "list"):
        client.restore(name, 0, client.dump(name), replace=True, idletime=5000)
    client.save()
    _, report = migrated(state_url, Endpoint.parse(f"rdb:{source.folder}/dump.rdb"), target)
    assert report.status == "done", report.errors
    assert report.verification.compared == 2
    assert all(5000 <= there.object("idletime", name) < 6000 for name in ("key", "list"))


def test_standard_input_is_not_a_worker_s(state_url: str, server_factory: ServerFactory) -> None:
    async def main() -> None:
        engine = Engine(state_url, credentials=Credentials(()))
        await engine.register_replication_group("g", server_factory().url)
        with pytest.raises(InvalidParameterValueException, match="Use migrate"):
            await engine.start_migration("g", [Endpoint.parse("rdb:-")])
        engine.close()

    asyncio.run(main())


def test_a_file_saved_while_slots_were_on_their_way_in(
    server_factory: ServerFactory, state_url: str
) -> None:
    """The node hides their keys, and its file has them: they are the other node's."""
    binary = known("valkey-9")
    one, other = server_factory(binary, cluster=True), server_factory(binary, cluster=True)
    giver, taker = one.client(), other.client()
    giver.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 9_999)
    taker.execute_command("CLUSTER", "ADDSLOTSRANGE", 10_000, 16_383)
    taker.execute_command("CLUSTER", "MEET", one.host, one.port)
    wait_for(
        lambda: all(
            b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
            for client in (giver, taker)
        ),
        "a cluster of both",
    )
    names = [b"key:%d" % n for n in range(3000)]
    for client, ours in ((giver, range(10_000)), (taker, range(10_000, 16_384))):
        pipe = client.pipeline(transaction=False)
        for name in names:
            if key_slot(name) in ours:
                pipe.set(name, bytes(1000))
        pipe.execute()
    kept = taker.dbsize()
    # A key takes five milliseconds: the file is saved long before the last of them.
    giver.config_set("rdb-key-save-delay", 5_000)
    node = taker.execute_command("CLUSTER", "MYID")
    giver.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", 0, 9_999, "NODE", node)
    # It hides them from all but this.
    first = [slot for slot in map(key_slot, names) if slot < 10_000][:50]
    wait_for(
        lambda: any(taker.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in first),
        "the first of the keys that move",
    )
    taker.save()
    assert taker.dbsize() == kept
    target = server_factory(binary)
    source = Endpoint.parse(f"rdb:{other.folder}/dump.rdb")
    _, report = migrated(state_url, source, target)
    assert report.status == "done", report.errors
    assert report.keys == target.client().dbsize() == kept
    (line,) = report.left_out
    assert "keys of slots that were on their way in" in line
    assert int(line.split()[0].replace(",", "")) > 0
