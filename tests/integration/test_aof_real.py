"""Append-only files that real servers have written, migrated; the truth is a server that loads the
same files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from benches.support.compare import assert_equal
from benches.support.engines import Cli
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, ServerError
from benches.support.waiting import wait_for
from engine._native import crc64
from engine.cli.report_summary import as_text
from engine.errors import InvalidParameterCombinationException
from engine.fleet.cut_over_comparisons import FilesVerificationGate
from engine.front.faults_with_details import PreflightFault
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import LEFT_KEY, POSITION_KEY
from engine.model.position import TargetPosition
from engine.model.progress import Phase, Progress
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.preflight import preflight
from tests.reference import aof as reference
from tests.reference.stream import command
from tests.support.in_one_go import migrate
from tests.support.library import Run, copied, copying
from tests.support.servers import ServerFactory, known
from tests.support.snapshots import fill, snapshot

HOUR_MS = 3_600_000
OPTIONS = ("--appendonly", "yes", "--appendfsync", "no", "--save", "")


def rewritten(server: Server) -> None:
    """Have the server rewrite its file."""
    client = server.client()
    client.execute_command("BGREWRITEAOF")

    def done() -> bool:
        told = client.info("persistence")
        waits = told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"]
        return not waits and told["aof_last_bgrewrite_status"] == "ok"

    wait_for(done, "the rewritten file")


def written_by(server: Server, folder: Path) -> Path:
    """A copy of the server's file or files; what to give as the source."""
    folder.mkdir()
    single, several = server.folder / "appendonly.aof", server.folder / "appendonlydir"
    if several.is_dir():
        shutil.copytree(several, folder / "appendonlydir")
        return folder
    shutil.copy(single, folder)
    return folder / "appendonly.aof"


def loaded(factory: ServerFactory, binary: Binary, path: Path) -> Server:
    """A server that has loaded the same files (or a copy of them)."""
    server = factory(binary, "--save", "")
    folder = server.folder
    server.stop()
    if path.is_dir():
        shutil.copytree(path / "appendonlydir", folder / "appendonlydir", dirs_exist_ok=True)
    else:
        shutil.copy(path, folder / "appendonly.aof")
    again = factory(binary, *OPTIONS, "--dir", str(folder))
    wait_for(lambda: not again.client().info("persistence")["loading"], "the data is loaded")
    return again


def write(server: Server) -> None:
    """What a file may hold beside the values of `fill`: units, TTLs that were put off, scripts."""
    client = server.client()
    pipe = client.pipeline()
    pipe.incr("counter")
    pipe.rpush("list", "a", "b")
    pipe.execute()
    # In one transaction: their TTLs pass before the file is read, and not before the next command.
    pipe = client.pipeline()
    pipe.set("session", "kept", px=300)
    pipe.pexpire("session", HOUR_MS)
    pipe.set("persisted", "kept", px=300)
    pipe.persist("persisted")
    pipe.set("over", "gone", px=300)
    pipe.set("counted", 5, px=300)
    pipe.incr("counted")
    pipe.persist("counted")
    pipe.execute()
    other = server.client(db=5)
    other.set("moved", 1)
    other.move("moved", 6)
    client.eval("redis.call('SET', KEYS[1], ARGV[1]) redis.call('INCR', KEYS[2])", 2, "s", "c", "v")
    client.incr("counter")
    wait_for(lambda: not client.exists("over"), "the end of a key")


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ("redis-5.0", "redis-6.2", ("--aof-use-rdb-preamble", "no")),
        ("redis-6.2", "redis-6.2", ()),
        ("redis-7.0", "redis-8.0", ("--aof-timestamp-enabled", "yes")),
        ("valkey-9.1", "valkey-9.1", ()),
    ],
)
def test_the_target_is_what_a_server_that_loads_the_files_is(
    source: str,
    target: str,
    options: tuple[str, ...],
    server_factory: ServerFactory,
    tmp_path: Path,
) -> None:
    server = server_factory(known(source), *OPTIONS, *options)
    fill(server, "tiny")
    rewritten(server)
    write(server)
    path = written_by(server, tmp_path / "copy")
    end = server_factory(known(target))
    done = copied(f"aof:{path}", end)
    assert done.report.status == "done", done.report.errors
    assert done.report.left_out == done.report.doubts == ()
    assert done.report.source_type == "file"
    assert done.history[-1].applied_offset == done.history[-1].source_offset
    assert not end.client().keys("startmigration:*")
    assert end.client().get("counter") == b"2"
    assert HOUR_MS / 2 < end.client().pttl("session") <= HOUR_MS
    truth = loaded(server_factory, known(target), path)
    assert truth.client().get("counted") == b"6"
    assert_equal(truth.url, end.url)
    assert done.report.keys == sum(each["keys"] for each in end.client().info("keyspace").values())


def counting(path: Path, commands: int) -> bytes:
    """A file that counts up: applied twice, or not at all, each command shows."""
    names = [b"n:%d" % number for number in range(100)]
    unit = command(b"MULTI") + command(b"INCR", b"u") + command(b"INCR", b"v") + command(b"EXEC")
    data = b"".join(command(b"INCR", names[at % 100]) for at in range(commands)) + unit
    path.write_bytes(data)
    return data


def counted(server: Server) -> dict[bytes, int]:
    """What the keys of `counting` hold."""
    client = server.client()
    names = [b"n:%d" % number for number in range(100)] + [b"u", b"v"]
    return dict(zip(names, (int(each or 0) for each in client.mget(names)), strict=True))


def expected(commands: int) -> dict[bytes, int]:
    """What they are to hold."""
    return {b"n:%d" % at: commands // 100 for at in range(100)} | {b"u": 1, b"v": 1}


def position(target: Server) -> int:
    """Up to which byte the target has the commands."""
    found = target.client().get(POSITION_KEY)
    held = TargetPosition.decode(found) if found is not None else None
    return held.position.offset if held is not None and held.position is not None else 0


def test_an_engine_that_is_killed_has_nothing_doubled(
    cli: Cli, server_factory: ServerFactory, tmp_path: Path
) -> None:
    # At this rate all of it takes many seconds.
    commands = 300_000
    path = tmp_path / "appendonly.aof"
    data = counting(path, commands)
    target = server_factory(known("redis-7.0"))
    client = target.client()

    with Proxy(target.host, target.port) as far:
        far.throttle(2e6)
        url = f"redis://{far.host}:{far.port}"
        process = cli.start("migrate", "--source", f"aof:{path}", "--target", url)
        wait_for(lambda: position(target), "a position on the target")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert 0 < position(target) < len(data)
        far.throttle(None)
        # The file has grown meanwhile: what was not there at the start is not read.
        with path.open("ab") as file:
            file.write(command(b"INCR", b"u"))
        done = cli("migrate", "--source", f"aof:{path}", "--target", url)
    assert done.code == 0, done.err
    # Also those that the first engine has applied; and none of the keys is one that was verified.
    told = f"{commands + 2:,} commands"
    for phase in ("COPIED", "CUT_OVER", "DONE"):
        assert re.search(rf"^{phase} +102 keys, .*, {told} \(", done.err, re.MULTILINE), done.err
    assert f"the target holds 102 keys by {told}, up to byte {len(data):,}" in done.err
    assert re.search(r"^snapshot +[0-9.]+ m?s +102 *$", done.out, re.MULTILINE), done.out
    assert re.search(r"^verify +[0-9.]+ m?s *$", done.out, re.MULTILINE), done.out
    assert "the engine that sent them was killed before it read the answer" in done.out
    assert counted(target) == expected(commands)
    assert not client.keys("startmigration:*")


def test_a_link_that_is_cut_has_nothing_doubled(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    commands = 120_000
    path = tmp_path / "appendonly.aof"
    counting(path, commands)
    target = server_factory(known("valkey-9.1"))
    cuts = 0
    with Proxy(target.host, target.port) as far:
        far.throttle(4e6)

        def told(progress: object) -> None:
            nonlocal cuts
            if getattr(progress, "applied_offset", None) and cuts < 3:
                cuts += 1
                far.cut_now()

        done = copied(f"aof:{path}", far, on_progress=told)
    assert done.report.status == "done", done.report.errors
    assert cuts
    assert counted(target) == expected(commands)
    assert done.report.commands == commands + 2


def test_a_target_that_lost_everything_is_filled_anew(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    commands = 120_000
    path = tmp_path / "appendonly.aof"
    counting(path, commands)
    target = server_factory(known("redis-7.0"), "--save", "")
    restarts = 0

    def told(progress: object) -> None:
        nonlocal restarts
        if getattr(progress, "applied_offset", None) and not restarts:
            restarts += 1
            target.kill()
            target.restart()

    with Proxy(target.host, target.port) as far:
        far.throttle(4e6)
        done = copied(f"aof:{path}", far, on_progress=told, retry_for=60.0)
    assert restarts
    assert done.report.status == "done", done.report.errors
    assert counted(target) == expected(commands)
    assert done.report.commands == commands + 2


def test_keys_that_are_not_ours_are_left_alone(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """A target that was replaced by one with data of its own while the migration had stopped."""
    path = tmp_path / "appendonly.aof"
    counting(path, 100_000)
    target = server_factory(known("redis-7.0"))
    checkpoints = MemoryCheckpoint()

    with Proxy(target.host, target.port) as far:
        far.throttle(1e6)
        with copying(f"aof:{path}", far, checkpoints=checkpoints) as run:
            run.wait_for(lambda: run.progress.applied_offset, "the first commands")
            run.stop()
        client = target.client()
        assert client.exists(POSITION_KEY)
        client.flushall()
        client.set("own", 1)
        done = copied(f"aof:{path}", far, checkpoints=checkpoints)
    assert "the target holds 1 keys" in done.report.errors[0]
    assert client.get("own") == b"1"


def test_other_files_begin_again(server_factory: ServerFactory, tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    counting(path, 100_000)
    target = server_factory(known("redis-7.0"))
    checkpoints = MemoryCheckpoint()

    with Proxy(target.host, target.port) as far:
        far.throttle(1e6)
        with copying(f"aof:{path}", far, checkpoints=checkpoints) as done:
            done.wait_for(lambda: done.progress.applied_offset, "the first commands")
            done.stop()
        assert done.report.status == "stopped"
        assert target.client().dbsize() > 2
        # It was stopped in order: nothing is in doubt.
        assert done.report.doubts == ()
        path.write_bytes(command(b"INCR", b"u") + command(b"INCR", b"v"))
        done = copied(f"aof:{path}", far, checkpoints=checkpoints)
    assert done.report.status == "done", done.report.errors
    assert any("these are other files than before" in line for line in done.events)
    assert set(target.client().keys("*")) == {b"u", b"v"}
    assert counted(target)[b"u"] == 1


@pytest.mark.parametrize("grown", [True, False])
def test_longer_files_than_before(
    server_factory: ServerFactory, tmp_path: Path, grown: bool
) -> None:
    """What was appended since is named, with its bytes; of other files all is read."""
    path = tmp_path / "appendonly.aof"
    before = counting(path, 50_000)
    target = server_factory(known("redis-7.0"))
    checkpoints = MemoryCheckpoint()

    with Proxy(target.host, target.port) as far:
        far.throttle(1e6)
        with copying(f"aof:{path}", far, checkpoints=checkpoints) as done:
            done.wait_for(lambda: done.progress.applied_offset, "the first commands")
            done.stop()
    assert done.report.status == "stopped"
    more = command(b"INCR", b"other")
    path.write_bytes(before + 7 * more if grown else more * (len(before) // len(more) + 9))
    done = copied(f"aof:{path}", target, checkpoints=checkpoints)
    assert done.report.status == "done", done.report.errors
    reasons = {progress.reason for progress in done.history}
    if grown:
        left = f"left out: {7 * len(more):,} bytes written since the migration began"
        assert [each for each in done.report.left_out if each.startswith(left)]
        assert [each for each in done.events if each.startswith(left)]
        assert any(f"without {7 * len(more):,} bytes written since" in each for each in reasons)
        assert counted(target) == expected(50_000)
        assert not target.client().exists("other")
        # The keys are all that the target holds, and no rate is made of them.
        assert done.report.keys == 102
        assert done.report.keys_per_second == 0
        assert "keys/s" not in as_text(done.report)
    else:
        assert any("these are other files than before" in line for line in done.events)
        assert done.report.left_out == ()
        assert "applied: all that the files hold" in reasons
        assert target.client().keys("*") == [b"other"]
        assert int(target.client().get("other") or 0) == len(before) // len(more) + 9


def test_a_file_that_is_written_to_in_place_stops_it(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """Nothing of what was not there when the file was surveyed is applied; another run goes on."""
    commands = 120_000
    path = tmp_path / "appendonly.aof"
    before = counting(path, commands)
    ours = before[len(before) // 2 :]
    target = server_factory(known("redis-7.0"))
    checkpoints = MemoryCheckpoint()

    def told(progress: Progress) -> None:
        if progress.phase is Phase.SNAPSHOT and path.read_bytes() == before:
            with path.open("r+b") as file:
                file.seek(len(before) - len(ours))
                file.write(ours.replace(b"n:", b"m:"))

    done = copied(f"aof:{path}", target, checkpoints=checkpoints, on_progress=told)
    assert done.report.status == "stopped"
    (error,) = done.report.errors
    assert f"{path} was changed while it was read: bytes 1,048,576 to 2,097,152" in error
    assert "Put a copy in its place that no program changes" in error
    assert 0 < position(target) < len(before) - len(ours)
    assert not target.client().keys("m:*")
    path.write_bytes(before)
    done = copied(f"aof:{path}", target, checkpoints=checkpoints)
    assert done.report.status == "done", done.report.errors
    assert counted(target) == expected(commands)


class LateGate(FilesVerificationGate):
    """Reads the files when it is asked, and not while they are applied."""

    async def read(self, files: AofFiles, survey: AofSurvey) -> None:
        """Nothing yet."""

    async def __call__(self, files: AofFiles, survey: AofSurvey) -> CutOverCheckResult:
        """Read them, and ask the target."""
        await super().read(files, survey)
        return await super().__call__(files, survey)


def test_a_file_that_is_written_to_before_the_gate_keeps_it_shut(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """What was applied is right; what it would be compared with is not what was applied."""
    path = tmp_path / "appendonly.aof"
    before = command(b"SET", b"a", b"1") * 10
    path.write_bytes(before)
    target = server_factory(known("redis-7.0"))
    checkpoints = MemoryCheckpoint()
    gate = LateGate(Endpoint.parse(target.url), TransferSettings())

    def told(progress: Progress) -> None:
        if progress.phase is Phase.COPIED:
            path.write_bytes(before.replace(b"1\r\n*", b"2\r\n*"))

    options = {"checkpoints": checkpoints, "gate_of_files": gate}
    done = copied(f"aof:{path}", target, on_progress=told, **options)
    assert done.report.status == "stopped"
    assert (
        f"{path} was changed while it was read: bytes 0 to {len(before)}" in done.report.errors[0]
    )
    path.write_bytes(before)
    done = copied(f"aof:{path}", target, **options)
    assert done.report.status == "done", done.report.errors
    assert target.client().get("a") == b"1"


@pytest.mark.parametrize("how", ["another of its layout", "shorter", "longer", "put in its place"])
def test_a_file_that_was_another_for_the_second_reading(
    how: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    path = tmp_path / "appendonly.aof"
    saved = snapshot(known("redis-7.0"), "tiny").data
    before = saved + command(b"SET", b"own", b"a")
    path.write_bytes(before)
    target = server_factory(known("redis-7.0"))
    others = {
        "another of its layout": before[:-3] + b"b\r\n",
        "shorter": before[:-40],
        "longer": before + command(b"SET", b"own", b"b"),
        "put in its place": before[:-3] + b"b\r\n",
    }

    def told(progress: Progress) -> None:
        if progress.phase is Phase.SNAPSHOT and path.read_bytes() == before:
            if how == "put in its place":
                path.rename(tmp_path / "before")
            path.write_bytes(others[how])

    done = copied(f"aof:{path}", target, on_progress=told)
    if how in ("longer", "put in its place"):
        # What was appended belongs to the next run; the file that was opened is still there.
        assert done.report.status == "done", done.report.errors
        assert target.client().get("own") == b"a"
    else:
        assert done.report.status == "stopped"
        assert f"{path} was changed while it was read" in done.report.errors[0]
        # Not even the snapshot: its bytes are of the same portion.
        assert target.client().keys("*") == [POSITION_KEY]


def test_nothing_is_written_where_something_is_wrong(
    server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    target = server_factory(known("redis-7.0"))
    good = command(b"SET", b"a", b"1")
    path = tmp_path / "appendonly.aof"

    def refused(**settings: object) -> str:
        with pytest.raises((PreflightFault, InvalidParameterCombinationException)) as caught:
            migrate(state_url, f"aof:{path}", target.url, **settings)
        assert target.client().dbsize() == 0
        return str(caught.value)

    path.write_bytes(good * 3 + b"*x\r\n" + good)
    assert f"at byte {3 * len(good)}" in refused()
    path.write_bytes(good + good[:-1])
    assert "is not a complete append-only file" in refused(aof_load_truncated=False)
    assert "has no timestamps" in refused(until_time=100)
    assert "--db" in refused(databases=(0,))
    target.client().set("own", 1)
    with pytest.raises(PreflightFault, match="the target holds 1 keys"):
        migrate(state_url, f"aof:{path}", target.url)
    # The operator's word does not make it possible: INCR would count on from the target's own.
    report, _ = migrate(state_url, f"aof:{path}", target.url, skip_checks=("existing-keys",))
    assert report.status == "failed"
    assert target.client().keys("*") == [b"own"]
    target.client().flushall()
    report, told = migrate(state_url, f"aof:{path}", target.url)
    assert report.status == "done", report.errors
    cut = f"the last {len(good) - 1} bytes of appendonly.aof"
    assert any(cut in line for line in told)
    assert cut in report.left_out[0]
    assert target.client().keys("*") == [b"a"]


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (command(b"EXDC"), "a command EXDC, which neither the engine nor the target knows"),
        (command(b"INCR", b"b"), ""),
        (b"*1\r\n$4\r\nEX", ""),
        # The engine does not know it, for it writes nothing; servers do, and queue it.
        (command(b"PING"), ""),
    ],
)
def test_a_damaged_exec_is_no_end_that_was_cut_off(
    last: bytes, why: str, server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    kept = command(b"SET", b"a", b"1")
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    path = folder / "appendonly.aof.1.incr.aof"
    path.write_bytes(kept + command(b"MULTI") + command(b"SET", b"b", b"1") + last)
    (folder / "appendonly.aof.manifest").write_text(f"file {path.name} seq 1 type i\n")
    # What a server makes of it.
    loading = server_factory(known("redis-7.0"), *OPTIONS)
    loading.stop()
    shutil.rmtree(loading.folder / "appendonlydir")
    shutil.copytree(folder, loading.folder / "appendonlydir")
    if why:
        with pytest.raises(ServerError, match="Unknown command"):
            loading.restart()
    else:
        loading.restart()
        assert loading.client().keys("*") == [b"a"]
    # What the engine makes of it: at its first look, and where that is left out.
    target = server_factory(known("redis-7.0"))
    if why:
        with pytest.raises(PreflightFault, match=re.escape(why)):
            migrate(state_url, f"aof:{folder}", target.url)
        done = copied(f"aof:{folder}", target)
        assert done.report.status == "failed"
        assert f"{path} is not a valid append-only file" in done.report.errors[0]
        assert f"begins at byte {len(kept)} does not end" in done.report.errors[0]
        assert why in done.report.errors[0]
        assert target.client().dbsize() == 0
    else:
        report, _ = migrate(state_url, f"aof:{folder}", target.url)
        assert report.status == "done", report.errors
        assert "it ends inside a transaction" in report.left_out[0]
        assert target.client().keys("*") == [b"a"]


def test_the_base_alone_is_refused(
    server_factory: ServerFactory, tmp_path: Path, state_url: str
) -> None:
    server = server_factory(known("redis-7.0"), *OPTIONS)
    server.client().set("in", "the base")
    rewritten(server)
    server.client().set("in", "the increment")
    path = written_by(server, tmp_path / "copy")
    target = server_factory(known("redis-7.0"))
    (base,) = path.glob("*/*.base.rdb")
    with pytest.raises(PreflightFault, match=rf"aof:{base.parent}"):
        migrate(state_url, f"rdb:{base}", target.url)
    assert target.client().dbsize() == 0
    report, _ = migrate(state_url, f"aof:{base.parent}", target.url)
    assert report.status == "done", report.errors
    assert target.client().get("in") == b"the increment"


def test_what_only_a_server_that_loads_takes(server_factory: ServerFactory, tmp_path: Path) -> None:
    """A server writes `MAXLEN ~ 9 LIMIT 5` as `= n LIMIT 5`, which is a client's syntax error."""
    server = server_factory(known("redis-7.0"), *OPTIONS)
    client = server.client()
    client.config_set("stream-node-max-entries", 10)
    for number in range(100):
        client.execute_command(
            "XADD", "s", "MAXLEN", "~", 20, "LIMIT", 10, f"{number + 1}-1", "f", "v"
        )
        client.execute_command("XADD", "t", f"{number + 1}-1", "f", "v")
    client.execute_command("XTRIM", "t", "MAXLEN", "~", 20, "LIMIT", 30)
    client.execute_command("XTRIM", "t", "MINID", "~", "60-0", "LIMIT", 10)
    path = written_by(server, tmp_path / "copy")
    assert b"LIMIT" in b"".join(each.read_bytes() for each in path.glob("*/*.incr.aof"))
    target = server_factory(known("redis-7.0"))
    done = copied(f"aof:{path}", target)
    assert done.report.status == "done", done.report.errors
    truth = loaded(server_factory, known("redis-7.0"), path)
    assert_equal(truth.url, target.url)


def with_fields(path: Path) -> None:
    """A file in which one field's TTL is put off in time, and another's is not."""
    passed, later = b"1700000000000", b"%d" % ((time.time() + 3600) * 1000)
    path.write_bytes(
        command(b"HSET", b"h", b"f", b"1", b"g", b"1", b"over", b"1")
        + command(b"HPEXPIREAT", b"h", passed, b"FIELDS", b"2", b"f", b"over")
        + command(b"HPEXPIREAT", b"h", later, b"FIELDS", b"1", b"f")
    )


def test_a_target_with_import_mode_keeps_fields_to_the_end(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    path = tmp_path / "appendonly.aof"
    with_fields(path)
    target = server_factory(known("valkey-9"))
    done = copied(f"aof:{path}", target)
    assert done.report.status == "done", done.report.errors
    assert done.report.doubts == ()
    client = target.client()
    assert client.config_get("import-mode") == {"import-mode": "no"}
    wait_for(lambda: set(client.hgetall("h")) == {b"f", b"g"}, "the end of a field")


def expired_fields(server: Server, folder: Path) -> Path:
    """Files whose hashes have fields with TTLs that have passed, in the base, in commands and in
    RESTOREs; some are put off behind that. Small and large hashes, as a server keeps them."""
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    names = [f"f{n}" for n in range(600)]
    for key, fields in (("small", names[:5]), ("large", names), ("over", names[:3])):
        client.hset(key, mapping=dict.fromkeys(fields, "v" * 30))
    payloads = {}
    for key in ("small", "large", "over"):
        fields = names if key == "large" else names[:3]
        client.execute_command("HPEXPIRE", key, 1, "FIELDS", len(fields), *fields)
        payloads[key] = client.dump(key)
    client.execute_command("HPEXPIRE", "small", HOUR_MS, "FIELDS", 1, "f4")
    rewritten(server)
    path = written_by(server, folder)
    passed, later = b"1700000000000", b"%d" % ((time.time() + 3600) * 1000)
    (incr,) = path.glob("*/*.incr.aof")
    put_off = [b"FIELDS", b"2", b"f0", b"f1"]
    with incr.open("ab") as file:
        file.write(command(b"SELECT", b"0"))
        for key in (b"small", b"large"):
            file.write(command(b"HPEXPIREAT", key, later, *put_off))
        for key, payload in payloads.items():
            name = b"restored:" + key.encode()
            file.write(command(b"RESTORE", name, b"0", payload))
            if key != "over":
                file.write(command(b"HPEXPIREAT", name, later, *put_off))
        file.write(
            command(b"HSET", b"h", b"f", b"1", b"g", b"1", b"over", b"1", b"kept", b"1")
            + command(b"HPEXPIREAT", b"h", passed, b"FIELDS", b"3", b"f", b"over", b"kept")
            + command(b"HPEXPIREAT", b"h", later, b"GT", b"FIELDS", b"1", b"f")
            + command(b"HPERSIST", b"h", b"FIELDS", b"1", b"kept")
            + command(b"RENAME", b"h", b"renamed")
            + command(b"HEXPIREAT", b"renamed", later[:-3], b"FIELDS", b"1", b"g")
            + command(b"HSETEX", b"ex", b"PXAT", passed, b"FIELDS", b"1", b"a", b"1")
            + command(b"HSETEX", b"ex", b"KEEPTTL", b"FIELDS", b"2", b"a", b"2", b"b", b"2")
            + command(b"HGETEX", b"ex", b"PXAT", later, b"FIELDS", b"1", b"a")
        )
    return path


def test_fields_whose_ttl_has_passed_go_on_where_the_file_puts_them_off(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    binary = known("redis-8.0")
    server = server_factory(binary, *OPTIONS, "--enable-debug-command", "yes")
    path = expired_fields(server, tmp_path / "copy")
    truth = loaded(server_factory, binary, path).client()
    wait_for(lambda: not truth.exists("over", "restored:over"), "the end of keys")
    target = server_factory(binary)
    done = copied(f"aof:{path}", target)
    assert done.report.status == "done", done.report.errors
    assert done.report.doubts == ()
    client = target.client()
    wait_for(lambda: client.hlen("large") == truth.hlen("large") == 2, "the end of fields")
    assert set(client.keys("*")) == set(truth.keys("*"))
    for key in (b"small", b"large", b"restored:small", b"restored:large"):
        found = truth.hgetall(key)
        assert client.hgetall(key) == found
        ttls = ("HPEXPIRETIME", key, "FIELDS", len(found), *found)
        assert client.execute_command(*ttls) == truth.execute_command(*ttls), key
    assert b"f4" in client.hgetall("small")
    # Redis 8.0 that loads the file passes HPERSIST and HGETEX of such fields over; the server that
    # wrote it has not.
    assert client.hgetall("renamed") == {b"f": b"1", b"g": b"1", b"kept": b"1"}
    assert client.hgetall("ex") == {b"a": b"2", b"b": b"2"}
    ttls = client.execute_command("HPTTL", "renamed", "FIELDS", 3, "f", "g", "kept")
    assert all(0 < ttl <= HOUR_MS for ttl in ttls[:2])
    assert ttls[2] == -1
    (ttl,) = client.execute_command("HPTTL", "ex", "FIELDS", 1, "a")
    assert 0 < ttl <= HOUR_MS


def test_an_engine_that_goes_on_sets_fields_of_the_one_before_it_back(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    path = tmp_path / "appendonly.aof"
    later = b"%d" % ((time.time() + 3600) * 1000)
    path.write_bytes(
        b"".join(
            command(b"HSET", b"h:%d" % n, b"f", b"1", b"g", b"v" * 100)
            + command(b"HPEXPIREAT", b"h:%d" % n, later, b"FIELDS", b"1", b"f")
            for n in range(20_000)
        )
    )
    target = server_factory(known("redis-8.0"))
    checkpoints = MemoryCheckpoint()

    with Proxy(target.host, target.port) as far:
        far.throttle(2e6)
        with copying(f"aof:{path}", far, checkpoints=checkpoints) as done:
            done.wait_for(lambda: done.progress.applied_offset, "the first commands")
            done.stop()
        assert done.report.status == "stopped", done.report.errors
        far.throttle(None)
        done = copied(f"aof:{path}", far, checkpoints=checkpoints)
    assert done.report.status == "done", done.report.errors
    client = target.client()
    assert client.dbsize() == 20_000
    pipe = client.pipeline(transaction=False)
    for n in range(20_000):
        pipe.execute_command("HPEXPIRETIME", f"h:{n}", "FIELDS", 1, "f")
    assert pipe.execute() == [[int(later)]] * 20_000


def test_a_field_whose_ttl_is_not_held_back_closes_the_gate(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """A TTL of January 1970 is a shorter number than all others, and cannot be lifted in place."""
    entries = b"\x81f\x02" + b"\x81v\x02" + b"\xf2\x40\x42\x0f\x04"
    pack = (7 + len(entries)).to_bytes(4, "little") + b"\x03\x00" + entries + b"\xff"
    body = b"\x19" + (1_000_000).to_bytes(8, "little") + bytes([len(pack)]) + pack
    body += (12).to_bytes(2, "little")
    payload = body + crc64(body).to_bytes(8, "little")
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"SET", b"a", b"1") + command(b"RESTORE", b"h", b"0", payload))
    target = server_factory(known("redis-8.0"))

    with copying(f"aof:{path}", target, one_go=False) as done:
        done.wait_for(lambda: done.progress.can_complete, "an open gate")
        done.refused()
        done.wait_for(lambda: done.progress.can_complete, "an open gate again")
        done.complete(skip_verification=True)
    assert done.report.status == "done", done.report.errors
    (refused,) = [line for line in done.events if "cut-over refused" in line]
    assert "'h' (database 0)" in refused
    assert "--skip-verification" in refused
    assert "'h' (database 0) may lack fields" in done.report.doubts[0]


async def test_the_preflight_of_one_tells_what_the_target_is(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    """Also where the files are none: the target was asked by then."""
    target = server_factory(known("redis-7.0"))
    path = tmp_path / "appendonly.aof"
    settings = TransferSettings(retry_for=5)
    for text, ok in ((command(b"SET", b"a", b"1"), True), (b"no commands", False)):
        path.write_bytes(text)
        ends = Endpoint.parse(f"aof:{path}"), Endpoint.parse(target.url)
        found = await preflight(*ends, settings)
        assert (found.ok, found.engine) == (ok, "redis"), found.failures


def test_commands_by_other_names(server_factory: ServerFactory, tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"SET", b"a", b"1") + command(b"wipe") + command(b"SET", b"b", b"1"))
    target = server_factory(known("redis-7.0"))
    done = copied(f"aof:{path}", target, command_names=("source:FLUSHALL=wipe",))
    assert done.report.status == "done", done.report.errors
    assert target.client().keys("*") == [b"b"]


def test_what_the_file_says_is_compared(server_factory: ServerFactory, tmp_path: Path) -> None:
    """Keys of the snapshot that no command names, values that were set last, and deleted keys."""
    binary = known("redis-7.0")
    server = server_factory(binary, *OPTIONS)
    fill(server, "tiny")
    client = server.client()
    client.mset({f"deleted:{n}": n for n in range(20)})
    rewritten(server)
    for n in range(100):
        client.set(f"set:{n}", n, px=HOUR_MS)
        client.rpush("pushed", n)
    client.delete(*(f"deleted:{n}" for n in range(20)))
    path = written_by(server, tmp_path / "copy")
    target = server_factory(binary)

    def refusals(run: Run) -> list[str]:
        return [line for line in run.events if "cut-over refused" in line]

    gate = FilesVerificationGate(Endpoint.parse(target.url), TransferSettings(retry_for=10))
    with copying(f"aof:{path}", target, one_go=False, gate_of_files=gate) as done:
        end = target.client()
        for key, wrong in (("set:7", "WRONG"), ("deleted:3", "WRONG"), ("set:8", None)):
            done.wait_for(lambda: done.progress.can_complete, "an open gate")
            before, ttl, count = end.get(key), end.pttl(key), len(done.refusals)
            end.set(key, wrong) if wrong is not None else end.delete(key)
            done.complete()
            done.wait_for(lambda count=count: len(done.refusals) > count, "a refusal")
            end.set(key, before, px=ttl) if before is not None else end.delete(key)
            done.wait_for(lambda: done.progress.can_complete, "an open gate")
        done.complete()
    assert done.report.status == "done", done.report.errors
    for line, words in zip(
        done.refusals,
        ("key set:7: TTL: none", "key deleted:3: on the target alone", "key set:8: missing"),
        strict=True,
    ):
        assert words in line, line
        assert "--skip-verification" in line
    found = done.report.verification
    assert found is not None
    assert found.ok
    assert not found.counted
    assert found.compared > 150
    assert "20 that it deletes are gone" in found.reason
    assert "pushed" in {each.key for each in found.unknown}
    assert target.client().get("set:7") == b"7"


def test_until_time(server_factory: ServerFactory, tmp_path: Path, state_url: str) -> None:
    path = tmp_path / "appendonly.aof"
    path.write_bytes(
        b"".join(
            reference.annotation(1_700_000_000 + at) + command(b"RPUSH", b"l", b"%d" % at)
            for at in range(10)
        )
    )
    target = server_factory(known("redis-7.0"))
    report, _ = migrate(state_url, f"aof:{path}", target.url, until_time=1_700_000_005)
    assert report.status == "done", report.errors
    assert target.client().lrange("l", 0, -1) == [b"%d" % at for at in range(6)]


def test_what_the_target_refuses_is_named_and_leaves_no_fragment(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    path, until = tmp_path / "appendonly.aof", (b"PXAT", b"9999999999999")
    path.write_bytes(
        command(b"SET", b"fine", b"1")
        + command(b"HSETEX", b"h", *until, b"FIELDS", b"1", b"f", b"v")
        + command(b"HSET", b"h", b"g", b"v")
        + command(b"LPUSH", b"fine", b"wrong type")
        + command(b"COPY", b"h", b"copy")
        + command(b"SET", b"last", b"1")
        + command(b"HSETEX", b"back", *until, b"FIELDS", b"1", b"f", b"v")
        + command(b"DEL", b"back")
        + command(b"SET", b"back", b"1")
    )
    target = server_factory(known("redis-7.0"))
    done = copied(f"aof:{path}", target)
    assert done.report.status == "stopped"
    lost = {each.key: each.reason for each in done.report.not_carried}
    assert set(lost) == {"h", "copy", "fine"}
    assert "unknown command" in lost["h"]
    assert "WRONGTYPE" in lost["fine"]
    # Beside them: up to where the commands are applied, and what was left out.
    (notes,) = target.client().keys("startmigration:dirty:*")
    assert set(target.client().keys("*")) == {b"back", b"fine", b"last", POSITION_KEY, notes}
    assert set(target.client().hkeys(notes)) == {b"0 h", b"0 copy", b"0 fine"}
    assert target.client().mget("back", "fine", "last") == [b"1", b"1", b"1"]


def test_an_abort_leaves_a_mark_and_take_over_begins_anew(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"INCR", b"a"))
    target = server_factory(known("redis-7.0"))

    with copying(f"aof:{path}", target, one_go=False) as done:
        done.wait_for(lambda: done.progress.can_complete, "an open gate")
        done.complete(force=True)
    assert done.report.status == "stopped"
    assert target.client().exists(LEFT_KEY)
    again = copied(f"aof:{path}", target)
    assert again.report.status == "failed"
    assert "the target holds 1 keys" in again.report.errors[0]
    last = copied(f"aof:{path}", target, take_over=True)
    assert last.report.status == "done", last.report.errors
    assert target.client().get("a") == b"1"
    assert not target.client().keys("startmigration:*")


def test_what_leads_elsewhere_is_named(server_factory: ServerFactory, tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    ms = b"%d" % (time.time() * 1000)
    path.write_bytes(
        command(b"EVAL", b"redis.call('SET', KEYS[1], 1)", b"1", b"drawn")
        + command(b"XADD", b"s", b"1-1", b"f", b"v")
        + command(b"XGROUP", b"CREATE", b"s", b"g", b"0")
        + command(b"XDEL", b"s", b"1-1")
        + command(b"XCLAIM", b"s", b"g", b"c", b"0", b"1-1", b"TIME", ms, b"FORCE", b"JUSTID")
    )
    target = server_factory(known("redis-7.0"))
    done = copied(f"aof:{path}", target)
    assert done.report.status == "done", done.report.errors
    told = " ".join(done.report.doubts)
    assert "'drawn' (database 0)" in told
    assert "'s' (database 0)" in told


@pytest.mark.parametrize(
    ("source", "target"), [("redis-8.6", "redis-6.2"), ("redis-8.0", "valkey-9.1")]
)
def test_restores_of_forms_that_the_target_does_not_know(
    server_factory: ServerFactory, tmp_path: Path, source: str, target: str
) -> None:
    """Among other commands of their keys, in a transaction too, and with a footer that is newer."""
    server, there = server_factory(known(source)), server_factory(known(target))
    client = server.client()
    client.rpush("list", *range(200))
    client.sadd("set", "a", "b")
    client.execute_command("XADD", "stream", "1-1", "f", "v")
    client.xgroup_create("stream", "g", "0")
    client.set("string", "x" * 100)
    dumped = {key: client.dump(key) for key in (b"list", b"set", b"stream", b"string")}
    later = b"%d" % ((time.time() + 3600) * 1000)
    client.flushall()
    path = tmp_path / "appendonly.aof"
    path.write_bytes(
        command(b"SELECT", b"2")
        + command(b"RPUSH", b"list", b"before")
        + command(b"RESTORE", b"list", b"0", dumped[b"list"], b"REPLACE")
        + command(b"RPUSH", b"list", b"behind")
        + command(b"RENAME", b"list", b"renamed")
        + command(b"MULTI")
        + command(b"SET", b"one", b"1")
        + command(b"RESTORE", b"set", later, dumped[b"set"], b"ABSTTL")
        + command(b"SADD", b"set", b"c")
        + command(b"EXEC")
        + command(b"RESTORE", b"stream", b"0", dumped[b"stream"], b"IDLETIME", b"7")
        + command(b"XADD", b"stream", b"2-1", b"f", b"v")
        + command(b"RESTORE", b"k" * 200, later, dumped[b"string"], b"ABSTTL")
        + command(b"RESTORE", b"damaged", b"0", dumped[b"string"][:-1] + b"?")
        + command(b"SET", b"last", b"1")
    )
    done = copied(f"aof:{path}", there)
    ((lost),) = done.report.not_carried
    assert lost.key == "damaged"
    here = there.client(2)
    assert here.lrange("renamed", 0, -1) == [*(b"%d" % n for n in range(200)), b"behind"]
    assert here.smembers("set") == {b"a", b"b", b"c"}
    assert here.xlen("stream") == 2
    assert [each["name"] for each in here.xinfo_groups("stream")] == [b"g"]
    assert here.get("k" * 200) == b"x" * 100
    assert 0 < here.pttl("set") <= HOUR_MS
    assert here.mget("one", "last") == [b"1", b"1"]
    assert here.dbsize() == 6
    lossy = there.binary.version < (7, 0, 0)
    assert any("stream" in each.kind for each in done.report.losses) is lossy
