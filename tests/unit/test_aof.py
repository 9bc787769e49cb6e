"""Append-only files: the core's reader against slow Python, manifests, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import CommandBatch, ProtocolError, StreamReader, early_field_ttls
from engine.cli import timestamps, transfer_options
from engine.errors import EngineError, ProtocolFault, SpoolFull, UsageError
from engine.model.endpoint import Endpoint
from engine.model.setting_conflicts import objection_to
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles, read_manifest
from engine.sources.aof_findings import AofSurvey, size_in, stream_of
from engine.sources.aof_source import AofCommands
from engine.sources.aof_survey import survey_aof
from engine.transfer.aof_replay import Counts
from engine.wire.event_loop import run
from tests.reference import aof as reference
from tests.reference.aof import annotation
from tests.reference.stream import Broken, command
from tests.support.feeding import contents, push

PARTS = (
    command(b"SELECT", b"3"),
    command(b"SET", b"a", b"1"),
    command(b"INCR", b"a"),
    command(b"MULTI"),
    command(b"EXEC"),
    command(b"RPUSH", b"l", b"\r\n#TS:1\r\n", b"*1\r\n"),
    annotation(100),
    annotation(200),
    b"#anything else\r\n",
    b"#TS:x\r\n",
    b"#\n",
)
WRONG = (b"\n", b"\r\n", b"\0", b"#" * 1030, b"*0\r\n", b"$1\r\n", b"PING\r\n")


def read_all(data: bytes, sizes: Sequence[int], until: int | None = None) -> StreamReader:
    """The core's reader, behind these bytes."""
    reader = StreamReader(0, append_only=True, until=until, publish=False)
    push(reader, data, list(sizes))
    return reader


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from((*PARTS, *WRONG)), max_size=12),
    st.integers(0, 40),
    st.lists(st.integers(1, 30), min_size=1, max_size=3),
    st.sampled_from((None, 0, 100, 150, 200)),
)
def test_the_reader_agrees_with_slow_python(
    parts: list[bytes], cut_off: int, sizes: list[int], until: int | None
) -> None:
    data = b"".join(parts)
    data = data[: max(len(data) - cut_off, 0)]
    try:
        expected = reference.read(data, until)
    except Broken:
        with pytest.raises(ProtocolError):
            read_all(data, sizes, until)
        return
    reader = read_all(data, sizes, until)
    assert reader.parsed_offset == expected.parsed
    assert (reader.multi_offset if reader.in_multi else reader.parsed_offset) == expected.end
    assert reader.cut_offset == expected.cut
    assert reader.timestamps == len(expected.times)
    if expected.times:
        assert (reader.first_timestamp, reader.last_timestamp) == (
            expected.times[0],
            expected.times[-1],
        )
    reader.flush()
    assert contents(reader.take()) == expected.commands()


def test_every_byte_flipped_or_cut_is_agreed_upon():
    data = b"".join(PARTS)
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            expected = reference.read(flipped)
        except Broken:
            with pytest.raises(ProtocolError) as caught:
                read_all(flipped, [7])
            assert 0 <= caught.value.offset <= len(data)
            continue
        reader = read_all(flipped, [7])
        assert reader.parsed_offset == expected.parsed
        reader.flush()
        assert contents(reader.take()) == expected.commands()


def test_a_stream_of_a_server_takes_no_annotation():
    reader = StreamReader(0)
    with pytest.raises(ProtocolError, match="expected a command"):
        reader.feed(annotation(1))


def test_deadlines_of_fields_that_have_passed():
    commands = [
        (True, [b"HPEXPIREAT", b"h", b"999", b"FIELDS", b"1", b"f"]),
        (False, [b"hpexpireat", b"h", b"1001", b"FIELDS", b"1", b"f"]),
        (True, [b"HEXPIREAT", b"h", b"1", b"FIELDS", b"1", b"f"]),
        (False, [b"HEXPIREAT", b"h", b"2", b"FIELDS", b"1", b"f"]),
        (True, [b"HPEXPIRE", b"h", b"999999", b"FIELDS", b"1", b"f"]),
        (True, [b"HSETEX", b"h", b"PXAT", b"999", b"FIELDS", b"1", b"f", b"v"]),
        (False, [b"HSETEX", b"h", b"FXX", b"PXAT", b"1001", b"FIELDS", b"1", b"f", b"v"]),
        (True, [b"HSETEX", b"h", b"EX", b"999", b"FIELDS", b"1", b"f", b"v"]),
        (False, [b"HSETEX", b"h", b"KEEPTTL", b"FIELDS", b"1", b"PXAT", b"1"]),
        (False, [b"HSET", b"h", b"f", b"1"]),
        (False, [b"HPEXPIREAT", b"h"]),
    ]
    reader = stream_of(0)
    reader.feed(b"".join(command(*args) for _, args in commands))
    reader.flush()
    (batch,) = reader.take()
    early = [index for index, (passes, _) in enumerate(commands) if passes]
    assert early_field_ttls(batch, 1000) == early


# --- Files ---


def surveyed(path: Path, **given: object) -> tuple[AofSurvey, list[CommandBatch]]:
    """What is found in the first pass, and the batches of the second."""

    async def main() -> tuple[AofSurvey, list[CommandBatch]]:
        files = AofFiles(path)
        try:
            found = await survey_aof(files, TransferSettings(**given))  # type: ignore[arg-type]
            begin = found.begins[0].offset
            reader = AofCommands(files, found, begin, 0, False, extend_by=0)
            batches = []
            while (batch := reader.next()) is not None:
                batches.append(batch)
            return found, batches
        finally:
            files.close()

    return run(main())


def folder_of(folder: Path, *files: tuple[str, bytes]) -> Path:
    """A folder with a manifest that names these files, (type, content) each, in order."""
    lines = []
    for number, (kind, data) in enumerate(files, 1):
        name = f"a.{number}.{kind}.aof"
        (folder / name).write_bytes(data)
        lines.append(f"file {name} seq {number} type {kind[0]}\n")
    (folder / "a.manifest").write_text("".join(lines))
    return folder


def test_several_files_are_one_and_each_begins_in_database_0(tmp_path: Path):
    one = command(b"SELECT", b"5") + command(b"SET", b"a", b"1")
    two = command(b"SET", b"b", b"2")
    folder = folder_of(tmp_path, ("base", one), ("incr", b""), ("incr", two))
    found, batches = surveyed(folder)
    assert contents(batches) == [
        (len(one), 5, [b"SET", b"a", b"1"]),
        (len(one) + len(two), 0, [b"SET", b"b", b"2"]),
    ]
    assert (found.commands, found.databases, found.files) == (2, (0, 5), 3)
    assert found.end == found.size == size_in(found.identity) == len(one) + len(two)
    # Its parent, and the manifest itself, mean the same.
    for path in (tmp_path.parent, tmp_path / "a.manifest"):
        if path.is_dir() and len(list(path.glob("*/*.manifest"))) != 1:
            continue
        assert surveyed(path)[0].identity == found.identity


def test_a_resume_reads_on_where_the_target_is(tmp_path: Path):
    one = command(b"SELECT", b"5") + command(b"SET", b"a", b"1")
    two = command(b"SET", b"b", b"2") + command(b"SELECT", b"7") + command(b"SET", b"c", b"3")
    path = folder_of(tmp_path, ("base", one), ("incr", two))
    whole = contents(surveyed(path)[1])

    async def main() -> None:
        files = AofFiles(path)
        found = await survey_aof(files, TransferSettings())
        states = [(0, 0, False), *((end, db, False) for end, db, _ in whole)]
        for at, (offset, db, in_multi) in enumerate(states):
            reader = AofCommands(files, found, offset, db, in_multi, extend_by=0)
            rest = []
            while (batch := reader.next()) is not None:
                rest.append(batch)
            assert contents(rest) == whole[at:]
        files.close()

    run(main())


def test_a_long_command_lies_in_a_file(tmp_path: Path) -> None:
    """Where that cannot be, the folder is named."""
    value = b"v" * (9 << 20)
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"SET", b"a", value, b"PXAT", b"1999999999999") + PARTS[2])
    nowhere = str(tmp_path / "nowhere")

    async def main() -> None:
        files = AofFiles(path)
        with pytest.raises(SpoolFull, match=nowhere):
            await survey_aof(files, TransferSettings(spool_directory=nowhere))
        found = await survey_aof(files, TransferSettings())
        directory = str(tmp_path)
        reader = AofCommands(files, found, 0, 0, False, extend_by=1000, directory=directory)
        batch = reader.next()
        assert batch is not None
        assert batch.in_file
        assert batch.command(0) == [b"SET", b"a", value]
        assert batch.command(1) == [b"PEXPIREAT", b"a", b"2000000000999"]
        reader = AofCommands(files, found, 0, 0, False, extend_by=0, directory=nowhere)
        with pytest.raises(SpoolFull, match=nowhere):
            reader.next()
        files.close()

    run(main())


@pytest.mark.parametrize("end", range(1, 30))
def test_a_cut_tail_is_left_out_or_refused(tmp_path: Path, end: int):
    kept = command(b"SET", b"a", b"1")
    tail = command(b"MULTI") + command(b"INCR", b"a")
    path = tmp_path / "appendonly.aof"
    path.write_bytes(kept + tail[:end])
    found, batches = surveyed(path)
    assert contents(batches) == [(len(kept), 0, [b"SET", b"a", b"1"])]
    assert found.end == len(kept)
    assert found.commands == 1
    assert f"the last {end} bytes of appendonly.aof" in found.cut
    with pytest.raises(ProtocolFault, match="is not a complete append-only file") as caught:
        surveyed(path, aof_load_truncated=False)
    assert caught.value.fault == "source"


def test_a_command_that_lacks_its_key_is_damage(tmp_path: Path):
    kept = command(b"SET", b"a", b"1")
    path = tmp_path / "appendonly.aof"
    path.write_bytes(kept + command(b"EXPIRE") + kept)
    with pytest.raises(
        ProtocolFault, match=rf"arguments, behind .* at byte {len(kept)}\b"
    ) as caught:
        surveyed(path)
    assert caught.value.fault == "source"


def test_unknown_names_in_a_transaction_that_does_not_end(tmp_path: Path):
    """They tell a damaged EXEC from one that is missing; the target is asked for them."""
    kept = command(b"SET", b"a", b"1") + command(b"before", b"a")
    path = tmp_path / "appendonly.aof"
    for tail, names in (
        (command(b"INCR", b"a") + command(b"EXDC") + command(b"INCR", b"b"), (b"EXDC",)),
        (command(b"JSON.OURS", b"a") + command(b"exdc") + command(b"EXDC") + b"*1", None),
        (command(b"INCR", b"a") + b"*1\r\n$4\r\nEX", ()),
        (command(b"SET", b"b", bytes(3 << 20)) + command(b"EXDC") + b"*1\r\n", (b"EXDC",)),
        (command(b"n" * 5000), (b"N" * 64,)),
        (b"".join(command(b"n%d" % n) for n in range(1000)), tuple(b"N%d" % n for n in range(100))),
    ):
        path.write_bytes(kept + command(b"MULTI") + tail)
        found, _ = surveyed(path)
        assert found.end == len(kept)
        expected = (b"JSON.OURS", b"EXDC") if names is None else names
        assert (found.tail.names if found.tail else ()) == expected
    assert found.tail is not None
    (fault,) = (found.tail.unknown(name) for name in (b"EX\xffC",))
    assert f"{path} is not a valid append-only file" in fault.message
    assert f"begins at byte {len(kept)} does not end" in fault.message
    assert "a command EX\\xffC" in fault.message
    # By another name of the source's it is known; a whole transaction is none that is asked for.
    path.write_bytes(kept + command(b"MULTI") + command(b"wipe"))
    assert surveyed(path, command_names=("source:FLUSHALL=wipe",))[0].tail is None
    path.write_bytes(kept + command(b"MULTI") + command(b"EXDC") + command(b"EXEC"))
    assert surveyed(path)[0].tail is None


def test_commands_are_counted_as_the_file_has_them(tmp_path: Path):
    """One that is sent as two is one; those that an earlier engine has applied are told apart."""
    later = b"%d" % (time.time() * 1000 + 1e6)
    each = (
        command(b"SETEX", b"a", b"1000", b"1") + command(b"SET", b"b", b"1", b"PXAT", later),
        command(b"INCR", b"n") + command(b"PEXPIREAT", b"n", later) + command(b"SELECT", b"1"),
    )
    path = tmp_path / "appendonly.aof"
    path.write_bytes(b"".join(each))

    async def main(applied_to: int) -> tuple[int, int, list[int], int]:
        files = AofFiles(path)
        found = await survey_aof(files, TransferSettings(), applied_to=applied_to)
        reader = AofCommands(files, found, 0, 0, False, extend_by=1 << 40)
        counts, sent = [], 0
        while (batch := reader.next()) is not None:
            counts.append(batch.stream_commands)
            sent += len(batch)
            assert [part.stream_commands for part in batch.split(len(each[0]))] == [2, 2]
        files.close()
        return found.commands, found.applied, counts, sent

    assert run(main(0)) == (4, 0, [4], 6)
    assert run(main(len(each[0]))) == (4, 2, [4], 6)
    assert run(main(len(each[0]) + len(each[1]))) == (4, 4, [4], 6)


def test_a_target_that_comes_back_older_has_fewer_commands():
    reader = stream_of(0)
    data = command(b"INCR", b"a")
    reader.feed(data * 3)
    reader.flush()
    (batch,) = reader.take()
    first, batch = batch.split(len(data))
    counts = Counts(1000, 7)
    for offset, commands in ((1000, 7), (1000, 7), (500, 7)):
        counts.go_back(offset)
        assert counts.commands == commands
    counts = Counts(0, 0)
    counts.passed(first)
    counts.passed(batch)
    assert counts.commands == 3
    counts.go_back(batch.end_offset)
    assert counts.commands == 3
    counts.go_back(first.end_offset)
    assert counts.commands == 1
    counts.passed(batch)
    assert counts.commands == 3


def test_only_the_last_file_may_be_cut(tmp_path: Path):
    whole = command(b"SET", b"a", b"1")
    folder = folder_of(tmp_path, ("base", whole), ("incr", whole[:-1]), ("incr", whole))
    with pytest.raises(ProtocolFault, match=r"a\.2\.incr\.aof is .* it is not the last file"):
        surveyed(folder)


def test_a_wrong_byte_is_named_by_file_and_place(tmp_path: Path):
    whole = command(b"SET", b"a", b"1")
    folder = folder_of(tmp_path, ("base", whole), ("incr", whole + b"x" + whole))
    with pytest.raises(ProtocolFault, match=rf"a\.2\.incr\.aof .* at byte {len(whole)}"):
        surveyed(folder)


def test_until_time_stops_before_the_first_unit_behind_it(tmp_path: Path):
    first = annotation(100) + command(b"SET", b"a", b"1")
    unit = command(b"MULTI") + command(b"INCR", b"a") + annotation(101) + command(b"INCR", b"a")
    data = first + unit + command(b"EXEC") + annotation(102) + command(b"SET", b"b", b"1")
    path = tmp_path / "appendonly.aof"
    path.write_bytes(data)
    for until, end in ((100, len(first)), (101, data.index(annotation(102))), (102, len(data))):
        found, batches = surveyed(path, until_time=until)
        assert found.end == end
        assert bool(found.cut) == (end < len(data))
        assert [step[0] for step in contents(batches)] == [
            step[0] for step in reference.read(data).commands(end)
        ]
        assert found.commands == len(contents(batches))
    with pytest.raises(EngineError, match="after the time that --until-time says"):
        surveyed(path, until_time=99)
    path.write_bytes(command(b"SET", b"a", b"1"))
    with pytest.raises(EngineError, match="has no timestamps"):
        surveyed(path, until_time=100)


def test_what_is_behind_until_time_may_be_cut(tmp_path: Path):
    kept = annotation(100) + command(b"SET", b"a", b"1")
    path = tmp_path / "appendonly.aof"
    path.write_bytes(kept + annotation(200) + command(b"INCR", b"a")[:-3])
    found, _ = surveyed(path, until_time=100, aof_load_truncated=False)
    assert found.end == len(kept)


def test_more_than_was_there_at_the_start_is_not_read(tmp_path: Path):
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"INCR", b"a"))
    before = surveyed(path)[0]
    with path.open("ab") as file:
        file.write(command(b"INCR", b"a"))

    async def main() -> AofSurvey:
        files = AofFiles(path, limit=size_in(before.identity))
        try:
            return await survey_aof(files, TransferSettings())
        finally:
            files.close()

    assert run(main()).identity == before.identity
    assert surveyed(path)[0].identity != before.identity


def test_a_file_that_is_new_since_the_start_is_not_read(tmp_path: Path):
    cut = command(b"INCR", b"a")[:-3]
    folder = folder_of(tmp_path, ("base", command(b"INCR", b"a")), ("incr", cut))
    before = surveyed(folder)[0]
    (tmp_path / "a.2.incr.aof").write_bytes(command(b"INCR", b"a") * 2)
    with (tmp_path / "a.manifest").open("a") as manifest:
        manifest.write("file a.3.incr.aof seq 3 type i\n")
    (tmp_path / "a.3.incr.aof").write_bytes(command(b"INCR", b"a"))

    async def main() -> AofSurvey:
        files = AofFiles(folder, limit=size_in(before.identity))
        try:
            return await survey_aof(files, TransferSettings())
        finally:
            files.close()

    found = run(main())
    assert (found.identity, found.end) == (before.identity, before.end)


def test_commands_by_other_names(tmp_path: Path):
    path = tmp_path / "appendonly.aof"
    path.write_bytes(command(b"SET", b"a", b"1") + command(b"wipe"))
    found, _ = surveyed(path, command_names=("source:FLUSHALL=wipe",))
    assert (found.unknown, found.flushes) == ((), True)
    found, _ = surveyed(path)
    assert (found.unknown, found.flushes) == (("WIPE",), False)


# --- Manifests, and what is refused ---


def test_a_manifest():
    text = (
        b"# a comment\n"
        b"file appendonly.aof.1.base.rdb seq 1 type b\n"
        b"file appendonly.aof.1.incr.aof seq 1 type h\n"
        b'file "a name \\"\\x41\\n.aof" seq 2 type i startoffset 17 endoffset 20\n'
        b"\n"
        b"file last.aof seq 3 type i\r\n"
    )
    named = read_manifest(text, "m")
    assert [(each.name, each.kind, each.seq) for each in named] == [
        ("appendonly.aof.1.base.rdb", "base", 1),
        ('a name "A\n.aof', "incr", 2),
        ("last.aof", "incr", 3),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"file a seq 1\n",
        b"file a seq 1 type x\n",
        b"file a seq x type b\n",
        b"file ../a seq 1 type b\n",
        b"file .. seq 1 type b\n",
        b'file "a seq 1 type b\n',
        b"file a seq 1 type b\nfile b seq 2 type b\n",
        b"file a seq 2 type i\nfile b seq 1 type i\n",
        b"file a seq 1 type h\n",
        b"file " + b"a" * 1100 + b" seq 1 type b\n",
        b"\x00\xff",
    ],
)
def test_what_is_no_manifest(text: bytes):
    with pytest.raises(ProtocolFault, match="is not the manifest of an append-only file"):
        read_manifest(text, "m")


def test_what_is_not_there_is_said(tmp_path: Path):
    def refused(path: Path) -> EngineError:
        with pytest.raises(EngineError) as caught:
            AofFiles(path)
        return caught.value

    assert "holds no manifest" in refused(tmp_path).message
    (tmp_path / "appendonly.aof").write_bytes(b"")
    assert f"aof:{tmp_path / 'appendonly.aof'}" in refused(tmp_path).remedy
    assert "No such file" in refused(tmp_path / "absent").message
    folder = tmp_path / "dir"
    folder.mkdir()
    folder_of(folder, ("base", b""), ("incr", b""))
    one = refused(folder / "a.2.incr.aof")
    assert "is one of the 2 files" in one.message
    assert f"aof:{folder}" in one.remedy
    (folder / "a.2.incr.aof").unlink()
    assert "names a.2.incr.aof, and there is no such file" in refused(folder).message
    (folder / "b.manifest").write_bytes(b"")
    assert "holds 2 manifests" in refused(folder).message


def test_a_snapshot_in_an_increment_is_refused(tmp_path: Path):
    folder = folder_of(tmp_path, ("base", b""), ("incr", b"REDIS0011\xff" + bytes(8)))
    with pytest.raises(ProtocolFault, match="is not an increment: it begins with a snapshot"):
        surveyed(folder)


# --- What is asked for ---


def test_the_endpoint():
    end = Endpoint.parse("aof:/data/appendonlydir")
    assert (end.aof_path, end.rdb_path, end.file_path) == (
        "/data/appendonlydir",
        None,
        "/data/appendonlydir",
    )
    assert end.address == end.url == "aof:/data/appendonlydir"
    assert Endpoint.parse(end.url) == end
    with pytest.raises(UsageError, match="aof: names no file"):
        Endpoint.parse("aof:")


def test_what_a_file_of_commands_cannot_do():
    source = Endpoint.parse("aof:/a")
    assert objection_to(TransferSettings(), source) is None
    assert objection_to(TransferSettings(until_time=1, aof_load_truncated=False), source) is None
    for asked, word in (
        ({"databases": (0,)}, "--db"),
        ({"if_exists": "skip"}, "--if-exists"),
        ({"match": "a*"}, "--match"),
    ):
        assert word in (objection_to(TransferSettings(**asked), source) or "")  # type: ignore[arg-type]
    for other in (Endpoint.parse("rdb:/a"), Endpoint.parse("localhost")):
        assert "--until-time" in (objection_to(TransferSettings(until_time=1), other) or "")
        kept = TransferSettings(aof_load_truncated=False)
        assert "--aof-load-truncated" in (objection_to(kept, other) or "")


def test_moments():
    assert timestamps.parse("1764361200") == 1764361200
    assert timestamps.parse("2025-11-28T20:20:00Z") == 1764361200
    assert timestamps.parse("2025-11-28T21:20:00+01:00") == 1764361200
    assert timestamps.parse("2025-11-28 20:20") == 1764361200
    assert timestamps.parse(timestamps.write(1764361200)) == 1764361200
    for wrong in ("", "yesterday", "-1", "1.5", "9" * 13):
        with pytest.raises(UsageError):
            timestamps.parse(wrong)


def test_the_options_of_the_command_line():
    wanted = transfer_options.settings(until_time="2025-11-28T20:20:00Z", aof_load_truncated="no")
    assert (wanted.until_time, wanted.aof_load_truncated) == (1764361200, False)
    spelled = dict(transfer_options.spelled(wanted))
    assert spelled["--until-time"] == "2025-11-28T20:20:00Z"
    assert spelled["--aof-load-truncated"] == "no"
    assert TransferSettings.from_dict(wanted.to_dict()) == wanted
