"""A file of SAVE as the source of a migration: every server's file into every other, and files that
are no source."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benches.support.compare import assert_equal, compare
from benches.support.engines import Cli
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server
from benches.support.waiting import wait_for
from engine.errors import (
    InvalidParameterCombinationException,
    InvalidParameterValueException,
    UsageError,
)
from engine.front.engine import Engine
from engine.front.faults_with_details import PreflightFault
from engine.front.one_command_migration import default_id
from engine.model.checkpoint import Checkpoint, FileIdentity
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.position import ScanPosition
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.verify import Verification, verify_file
from engine.wire.event_loop import run
from tests.support.carried import is_carried
from tests.support.completing import complete
from tests.support.in_one_go import migrate
from tests.support.library import copied
from tests.support.servers import ServerFactory, known, url_of
from tests.support.snapshots import Saved, fill, save, snapshot
from tests.unit.test_rdb_field import fill_edges

HOUR_MS = 3_600_000


def written(folder: Path, data: bytes, name: str = "dump.rdb") -> str:
    """The URL of a file of these bytes."""
    path = folder / name
    path.write_bytes(data)
    return f"rdb:{path}"


def saved_with_deadlines(server: Server) -> Saved:
    """Everything of `fill`, and keys whose time is over soon; saved, and their time passed."""
    fill(server, "small")
    client = server.client()
    client.set("later", "kept", px=HOUR_MS)
    soon = ((0, b"soon:1"), (0, b"soon:2"))
    for milliseconds in (400, 2000, 10_000):
        client.delete("soon:2")
        client.rpush("soon:2", *range(2000))
        client.pexpire("soon:2", milliseconds)
        client.set("soon:1", "gone", px=milliseconds)
        saved = save(server)
        # (A busy machine saves it when the time is over already.)
        if all(key in saved.keys for key in soon):
            break
    for key in soon:
        del saved.keys[key]
        while client.exists(key[1]):
            time.sleep(0.05)
    return saved


def test_every_server_s_file_into_every_other(
    pair: tuple[Binary, Binary], server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    source, target = server_factory(pair[0]), server_factory(pair[1])
    saved = saved_with_deadlines(source)
    there = pair[1].flavour, pair[1].version
    foreign = {key for key, dumped in saved.keys.items() if not is_carried(dumped.payload, *there)}
    # A key whose time is over in the file has nothing to say of the target's of that name.
    target.client(db=3).set("own", "stays")
    target.client().set("soon:1", "the target's own")
    report, told = migrate(state_url, written(tmp_path, saved.data), target.url)
    assert report.source_type == "file"
    assert report.expired == 2
    assert report.keys == len(saved.keys) - len(foreign)
    assert {(each.db, each.key.encode()) for each in report.not_carried} == foreign
    # Functions as well, where the target knows none.
    lost = len(saved.functions) if pair[1].version < (7, 0, 0) else 0
    assert report.status == ("stopped" if foreign or lost else "done"), report.errors
    if not foreign and lost:
        assert "library " in report.errors[0]
    if not foreign and not lost:
        assert any(f"{len(saved.keys):,} keys looked up, 0 differ" in line for line in told), told
    assert target.client().get("soon:1") == b"the target's own"
    target.client(db=3).delete("own")
    target.client().delete("soon:1")
    difference = compare(source.url, target.url)
    assert not difference.different, difference.describe()
    assert not difference.extra, difference.describe()
    assert set(difference.missing) == foreign
    # Functions go along, where the target knows any.
    if pair[0].version >= (7, 0, 0) and pair[1].version >= (7, 0, 0):
        assert not report.left_out
        libraries = target.client().execute_command("FUNCTION", "LIST")
        assert len(libraries) == len(saved.functions) == 2
    else:
        assert len(report.left_out) == len(saved.functions)


@pytest.mark.parametrize(
    "names",
    [("redis-2.8", "redis-6.2"), ("redis-3.2", "redis-6.2"), ("redis-8.6", "redis-8.6")],
    ids="->".join,
)
def test_every_encoding_s_edge_in_files_of_further_servers(
    names: tuple[str, str], server_factory: ServerFactory
) -> None:
    """Very old ones, whose files a server of today still reads, and a very new one."""
    source, target = (server_factory(known(name)) for name in names)
    fill_edges(source)
    source.client().save()
    run = copied(f"rdb:{source.folder}/dump.rdb", target, source_type="auto")
    assert run.report.status == "done", run.report.errors
    assert_equal(source.url, target.url)


def test_the_target_is_counted(
    binary: Binary, server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    target = server_factory(binary)
    saved = snapshot(binary, "tiny")
    report, told = migrate(state_url, written(tmp_path, saved.data), target.url)
    assert report.status == "done", report.errors
    lasting = sum(dumped.expire_at is None for dumped in saved.keys.values())
    counts = f"{lasting:,} keys without a TTL in the file, {lasting:,} on the target; "
    assert any(counts in line for line in told), told


def verification(path: Path, target: Server, held_before: bool = False) -> Verification:
    settings = TransferSettings(if_exists="skip" if held_before else "replace")
    return run(
        verify_file(
            str(path), Endpoint.parse(target.url), settings, held_before=held_before, seed=1
        )
    )


def test_hashes_that_have_ended_with_their_last_field(server_factory: ServerFactory) -> None:
    """Between the file and the comparison: no key is lost by that."""
    binary = known("redis-8.0")
    source = server_factory(binary, "--enable-debug-command", "yes")
    client = source.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.mset({f"key:{n}": n for n in range(5)})
    for n in range(10):
        client.hset(f"hash:{n}", mapping={"f": 1, "g": 2})
        client.execute_command("HPEXPIRE", f"hash:{n}", 1, "FIELDS", 2, "f", "g")
    client.save()
    target = server_factory(binary)
    other = target.client()
    other.mset({f"key:{n}": n for n in range(5)})
    path = Path(source.folder, "dump.rdb")
    found = verification(path, target)
    assert found.ok, found.reason
    assert (found.keys_source, found.keys_target, found.different) == (15, 5, 0)
    assert "10 hashes of the file have, or had, TTLs of fields" in found.reason
    assert {each.key for each in found.unknown} == {f"hash:{n}" for n in range(10)}
    other.delete("key:1")
    found = verification(path, target)
    assert not found.ok
    assert found.differences[0].key == "key:1"


def test_what_the_comparison_sees(
    binary: Binary, server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    client.mset({f"key:{n}": n for n in range(3000)})
    at = int(time.time() * 1000) + HOUR_MS
    client.set("late", 1)
    client.pexpireat("late", at)
    source.client(db=5).rpush("list", "a", "b")
    client.save()
    path = Path(source.folder, "dump.rdb")
    other = target.client()
    other.mset({f"key:{n}": n for n in range(3000)})
    found = verification(path, target)
    assert not found.ok
    assert "(database 5: 1 and 0)" in found.reason
    assert (5, "list", "missing on the target") in {
        (each.db, each.key, each.what) for each in found.differences
    }
    target.client(db=5).rpush("list", "a", "b")
    other.set("late", 1)
    other.pexpireat("late", at)
    found = verification(path, target)
    assert found.compared == 1001  # a thousand of a database
    assert (found.keys_source, found.keys_target) == (3001, 3001)
    # One key in two thousand that nobody looked at: the counts tell.
    other.delete("key:17", "key:18", "key:19")
    other.mset({"other:1": 1, "other:2": 1})
    found = verification(path, target)
    assert "3,001 keys without a TTL in the file, 3,000 on the target" in found.reason
    assert not found.ok


def test_each_difference_has_its_name(
    binary: Binary, server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    changes: dict[str, tuple[Callable[[Any], Any], str]] = {
        "gone": (lambda c: c.delete("gone"), "missing on the target"),
        "typed": (
            lambda c: (c.delete("typed"), c.set("typed", 1)),
            "type: list in the file, string on the target",
        ),
        "late": (lambda c: c.pexpire("late", 2 * HOUR_MS), "longer on the target"),
        "bare": (lambda c: c.persist("bare"), "TTL: none on the target"),
        "timed": (lambda c: c.pexpire("timed", HOUR_MS), "TTL: none in the file"),
    }
    for end in (source, target):
        client = end.client()
        for name in ("gone", "timed", "same"):
            client.set(name, "x")
        client.rpush("typed", "a")
        at = int(time.time() * 1000) + HOUR_MS
        for name in ("late", "bare"):
            client.set(name, "x")
            client.pexpireat(name, at)
    source.client().save()
    path = Path(source.folder, "dump.rdb")
    found = verification(path, target)
    assert found.ok, found.reason
    assert found.compared == 6
    assert "6 of their values are the file's byte for byte" in found.reason
    for name, (change, words) in changes.items():
        change(target.client())
        found = verification(path, target)
        assert not found.ok
        assert words in next(each.what for each in found.differences if each.key == name)
    assert len(found.differences) == len(changes)
    # Values alone: no proof, and no difference either.
    target.client().set("same", "another value")
    found = verification(path, target)
    assert [(each.key, each.what) for each in found.unknown] == [
        ("same", "stored in another encoding")
    ]
    # Keys that were spared on a target of its own may be anything; only what is missing counts.
    found = verification(path, target, held_before=True)
    assert [each.key for each in found.differences] == ["gone"]
    assert not found.counted


def test_databases_and_keys_that_are_there(
    server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    source, target = server_factory(), server_factory()
    for db in (0, 4, 7):
        source.client(db=db).mset({f"key:{n}": f"file {db}" for n in range(10)})
    source.client().save()
    url = f"rdb:{source.folder}/dump.rdb"
    target.client(db=4).set("key:3", "own")
    report, _ = migrate(state_url, url, target.url, databases=(4, 7), if_exists="skip")
    assert report.status == "done", report.errors
    assert (report.keys, report.skipped) == (19, 1)
    assert target.client(db=4).get("key:3") == b"own"
    assert [target.client(db=db).dbsize() for db in (0, 4, 7)] == [0, 10, 10]
    report, _ = migrate(state_url, url, target.url)
    assert report.status == "done", report.errors
    assert target.client(db=4).get("key:3") == b"file 4"
    assert compare(source.url, target.url).equal


@pytest.mark.parametrize("chosen", [None, (0, 7)])
def test_all_its_keys_are_told_from_the_start(
    server_factory: ServerFactory, state_url: str, chosen: tuple[int, ...] | None
) -> None:
    """A file announces its keys database by database; the test before has counted all of them."""
    source, target = server_factory(), server_factory()
    for db, keys in ((0, 5), (3, 300), (7, 40)):
        source.client(db=db).mset({f"key:{n}": n for n in range(keys)})
    source.client().save()
    totals: list[int] = []

    async def main() -> Report:
        engine = Engine(state_url, credentials=Credentials(()))
        try:
            return await engine.migrate(
                Endpoint.parse(f"rdb:{source.folder}/dump.rdb"),
                Endpoint.parse(target.url),
                settings=TransferSettings(databases=chosen),
                on_progress=lambda progress: totals.append(progress.total_keys),
            )
        finally:
            engine.close()

    assert run(main()).status == "done"
    assert set(totals[1:]) == {345 if chosen is None else 45}, totals


def test_links_that_break_and_runs_that_are_cut_off(
    server_factory: ServerFactory, tmp_path: Path, cli: Cli
) -> None:
    source, target = server_factory(), server_factory()
    # Nothing that LZF could make short.
    source.client().mset({f"key:{n}": os.urandom(1000) for n in range(20_000)})
    source.client().rpush("long", *(os.urandom(900) for _ in range(8_000)))
    source.client().save()
    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(4 << 20)
        arguments = ("--source", f"rdb:{source.folder}/dump.rdb", "--target", url_of(proxy))
        running = cli.start("migrate", *arguments)
        wait_for(lambda: target.client().dbsize(), "the first keys")
        running.kill()
        running.communicate()
        proxy.throttle(None)
        proxy.cut_after(10 << 20)
        told = cli("migrate", *arguments)
    assert "reconnects" in told.out, told.out
    assert told.code == 0, told.err
    # A run that is cut off while it tests the target leaves a key that goes by itself.
    for key in target.client().scan_iter("startmigration:probe:*"):
        assert target.client().ttl(key) >= 0
        target.client().delete(key)
    assert compare(source.url, target.url).equal


@pytest.mark.parametrize("own", [True, False])
def test_another_file_behind_a_run_that_was_killed(
    server_factory: ServerFactory, tmp_path: Path, cli: Cli, own: bool
) -> None:
    """What the first file alone has would stay on the target: nothing is written, and it is said
    what happened and what to do."""
    source, target = server_factory(), server_factory()
    client = source.client()
    client.mset({f"old:{n}": os.urandom(1000) for n in range(3000)})
    client.save()
    path = Path(source.folder, "dump.rdb")
    before = path.read_bytes()
    if own:
        target.client().set("own", "stays")
    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(1 << 20)
        url, to = written(tmp_path, before), url_of(proxy)
        running = cli.start("migrate", "--source", url, "--target", to)
        deadline = time.monotonic() + 60
        while target.client().dbsize() < 100:
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.kill()
        running.communicate()
        proxy.throttle(None)
        client.flushall()
        client.mset({f"new:{n}": n for n in range(300)})
        client.save()
        written(tmp_path, path.read_bytes())
        there = settled(target)
        # 1. Refused, as often as it is tried.
        for _ in range(2):
            report, _ = migrate(cli.state, url, to)
            assert report.status == "stopped"
            (told,) = report.errors
            assert "is not the file of which this migration has loaded a part before" in told
            assert "put the earlier file back" in told.lower()
            assert ("some of them its own" in told) == own
            assert target.client().dbsize() == there
        if own:
            # 2. The earlier file is gone on with.
            written(tmp_path, before)
            report, told_all = migrate(cli.state, url, to)
            assert report.status == "done", report.errors
            assert any("not counted (the target had keys" in each for each in told_all)
            assert target.client().dbsize() == 3001
            return
        # 3. Ended, and begun anew by the operator's word.
        engine = Engine(cli.state, credentials=Credentials(()))
        engine.sync.complete_migration(default_id(Endpoint.parse(to)), force=True)
        engine.close()
        with pytest.raises(PreflightFault, match=f"has left {there:,} keys on the target, which"):
            migrate(cli.state, url, to)
        assert target.client().dbsize() == there + 1  # the mark that says so
        report, told_all = migrate(cli.state, url, to, take_over=True)
        assert report.status == "done", report.errors
        counted = "300 keys without a TTL in the file, 300 on the target"
        assert any(counted in each for each in told_all)
        assert compare(source.url, target.url).equal


def settled(target: Server) -> int:
    """How many keys it has when what was under way to it has arrived, and no probe is left."""
    client = target.client()
    client.delete(*client.scan_iter("startmigration:probe:*"), "startmigration:probe:none")
    before, now = -1, client.dbsize()
    while before != now:
        time.sleep(0.1)
        before, now = now, client.dbsize()
    return now


def test_another_file_for_a_target_that_was_emptied_meanwhile(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(500)})
    source.client().save()
    store = MemoryCheckpoint()
    there = target.client()
    for held_before in (True, False):
        mark = FileIdentity("rdb-0000000000000001-77", held_before)
        earlier = Checkpoint(ScanPosition("", 0, 0), "", file=mark)
        store.save(Checkpoint.from_dict(json.loads(json.dumps(earlier.to_dict()))))
        there.set("old:1", 1)
        done = copied(
            f"rdb:{source.folder}/dump.rdb", target, checkpoints=store, source_type="auto"
        )
        assert done.report.status == "stopped"
        assert "which holds 1 keys" in done.report.errors[0]
        assert store.load() == earlier
        assert there.dbsize() == 1
        there.flushall()
        done = copied(
            f"rdb:{source.folder}/dump.rdb", target, checkpoints=store, source_type="auto"
        )
        assert done.report.status == "done", done.report.errors
        assert done.events.count("the file is another one than before; the target is empty") == 1
        assert there.dbsize() == 500
        # The file of this run is what the next one is compared with; nothing of its own is there.
        kept = store.load()
        assert kept is not None
        assert kept.file is not None
        assert not kept.file.held_before
        assert kept.file.identity.endswith(f"-{Path(source.folder, 'dump.rdb').stat().st_size}")
        done = copied(
            f"rdb:{source.folder}/dump.rdb", target, checkpoints=store, source_type="auto"
        )
        assert done.report.status == "done", done.report.errors
        there.flushall()


def test_on_the_command_line(
    binary: Binary, server_factory: ServerFactory, tmp_path: Path, cli: Cli
) -> None:
    target = server_factory(binary)
    url = written(tmp_path, snapshot(binary, "tiny").data)
    told = cli("migrate", "--source", url, "--target", target.url, "--output", "json")
    assert told.code == 0, told.err
    assert told.last["source_type"] == "file"
    assert told.last["keys"] == len(snapshot(binary, "tiny").keys)
    told = cli("migrate", "--source", url, "--target", target.url)
    assert told.code == 0, told.err
    assert "Done: " in told.out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "ends at byte 0 in the middle of its snapshot"),
        (lambda data: data[:700], "ends at byte 700 in the middle of its snapshot"),
        (
            lambda data: data[:900] + bytes([data[900] ^ 0xFF]) + data[901:],
            "not a valid snapshot: ",
        ),
        (
            lambda data: b"<?xml version='1.0'?>" + data,
            "is not an RDB file: it begins with b'<?xml",
        ),
        (lambda data: data + b"*1\r\n", "goes on after its snapshot, from byte "),
        (lambda data: b"REDIS9999" + data[9:], "not a valid snapshot"),
    ],
)
def test_files_that_are_no_source(
    server_factory: ServerFactory,
    tmp_path: Path,
    cli: Cli,
    damage: Callable[[bytes], bytes],
    words: str,
) -> None:
    target = server_factory()
    data = snapshot(target.binary, "tiny").data
    url = written(tmp_path, damage(data))
    told = cli("migrate", "--source", url, "--target", target.url, "--output", "json")
    assert told.code == 1
    assert words in told.err
    assert "at byte" in told.err or "begins with" in told.err or "from byte" in told.err
    assert told.last["Error"]["Type"] == "Sender"
    # Nothing of it is on the target.
    assert target.client().dbsize() == 0


def test_paths_and_options_that_make_no_sense(
    server_factory: ServerFactory, tmp_path: Path, cli: Cli
) -> None:
    target = server_factory()
    into = ("--target", target.url)
    for source, words in (
        (f"rdb:{tmp_path}/none.rdb", "No such file or directory"),
        (f"rdb:{tmp_path}", "Is a directory"),
    ):
        told = cli("migrate", "--source", source, *into)
        assert told.code == 1
        assert words in told.err
    url = written(tmp_path, snapshot(target.binary, "tiny").data)
    for options, words in (
        (("--match", "a*"), "read whole"),
        (("--type", "hash"), "read whole"),
        (("--source-type", "scan"), "asks a server"),
        (("--if-exists", "fail"), "replace or skip"),
    ):
        told = cli("migrate", "--source", url, *into, *options)
        assert told.code == 2
        assert words in " ".join(told.err.split())
    told = cli("migrate", "--source", target.url, "--target", url)
    assert told.code == 2
    assert "a target is a server" in told.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(
    server_factory: ServerFactory, tmp_path: Path, cli: Cli
) -> None:
    url = written(tmp_path, b"REDIS0009")
    os.chmod(tmp_path / "dump.rdb", 0)
    told = cli("migrate", "--source", url, "--target", server_factory().url)
    assert told.code == 1
    assert "Permission denied" in told.err


async def test_the_library_s_operations(
    server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(500)})
    await asyncio.to_thread(source.client().save)
    file = Endpoint.parse(f"rdb:{source.folder}/dump.rdb")
    engine = Engine(state_url, credentials=Credentials(()))
    with pytest.raises(InvalidParameterValueException, match="a target is a server"):
        await engine.register_replication_group("g", file.url)
    with pytest.raises(InvalidParameterValueException, match="a target is a server"):
        await engine.migrate(Endpoint.parse(source.url), file)
    await engine.register_replication_group("g", target.url)
    with pytest.raises(InvalidParameterCombinationException, match="read whole"):
        await engine.start_migration("g", [file], settings=TransferSettings(match="a"))
    with pytest.raises(PreflightFault, match="No such file"):
        await engine.test_migration("g", [Endpoint(rdb_path="/nothing/dump.rdb")])
    tested = await engine.test_migration("g", [file])
    checks = {check["name"]: check for check in tested["Checks"]}
    assert "500 in databases 0" in checks["source-keys"]["figure"]
    assert "checksum right" in checks["source-file"]["figure"]
    # The steps of the API, with a worker process.
    await engine.start_migration("g", [file])
    progress = await engine.wait("g", until="in-sync", timeout=60)
    assert not isinstance(progress, Report)
    assert progress.source_type == "file"
    assert progress.keys == progress.total_keys == 500
    await complete(engine, "g")
    report = await engine.wait("g", until="available", timeout=60)
    assert isinstance(report, Report)
    assert report.status == "done"
    engine.close()
    assert compare(source.url, target.url).equal


def test_the_source_itself_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    from engine.sources.rdb_file import RdbFileSource

    with pytest.raises(UsageError, match="--if-exists fail"):
        RdbFileSource(tmp_path / "dump.rdb", TransferSettings(if_exists="fail"))
