"""What is read again must be what was read before: files that are written to in place."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import EngineError, SourceLost
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey
from engine.sources.aof_source import AofCommands
from engine.sources.aof_survey import survey_aof
from engine.sources.file_input import FileInput, Reading
from engine.sources.unchanged_file import PORTION_BYTES, FileChecksums
from engine.wire.event_loop import run
from tests.reference.crc import crc64
from tests.reference.stream import command


def flipped(path: Path, at: int) -> None:
    """Another bit in the byte at `at`, and the times as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_portions():
    portions = (b"one", b"", b"two")
    same = FileChecksums()
    for number, portion in enumerate(portions):
        assert same.holds(number, portion)
    assert same.checksum == crc64(b"onetwo")
    assert all(same.holds(number, portion) for number, portion in enumerate(portions))
    assert not same.holds(0, b"onE")
    assert not same.holds(2, b"twO")
    # What was read first stays what it is compared with.
    assert same.checksum == crc64(b"onetwo")
    with pytest.raises(IndexError):
        same.holds(4, b"")


def read(source: FileInput, sizes: Sequence[int]) -> bytes:
    """All of it, by reads of these sizes in turn."""

    async def main() -> bytes:
        reading, found, turn = Reading(source), b"", 0
        while portion := await reading.read(sizes[turn % len(sizes)]):
            found, turn = found + portion, turn + 1
        return found

    return run(main())


def test_a_file_is_compared_whatever_its_readers_ask_for(tmp_path: Path):
    path = tmp_path / "dump.rdb"
    for size in (0, PORTION_BYTES, 2 * PORTION_BYTES + 12_345):
        data = random.Random(size).randbytes(size)
        path.write_bytes(data)
        source = FileInput(path)
        source.open()
        for sizes in ((PORTION_BYTES,), (100_000,), (1, PORTION_BYTES), (700_000, 3)):
            assert read(source, sizes) == data
        for at in {0, size // 2, size - 1} if size else ():
            flipped(path, at)
            said = f"while it was read: bytes {at // PORTION_BYTES * PORTION_BYTES:,} to"
            with pytest.raises(EngineError, match=said):
                read(source, (300_000,))
            flipped(path, at)
        assert read(source, (300_000,)) == data
        source.close()


def test_each_file_of_several_is_compared_from_where_it_is_read(tmp_path: Path):
    texts = [command(b"SET", b"a", b"%d" % number) * 3 for number in range(3)]
    names = [f"a.{number}.incr.aof" for number in range(1, 4)]
    for name, text in zip(names, texts, strict=True):
        (tmp_path / name).write_bytes(text)
    lines = [f"file {name} seq {number} type i\n" for number, name in enumerate(names, 1)]
    (tmp_path / "a.manifest").write_text("".join(lines))

    def applied(files: AofFiles, survey: AofSurvey, offset: int) -> int:
        """How many commands come before what is wrong; all if nothing is."""
        reader = AofCommands(files, survey, offset, 0, False, extend_by=0)
        count = 0
        while (batch := reader.next()) is not None:
            count += len(batch)
        return count

    async def main() -> None:
        files = AofFiles(tmp_path)
        survey = await survey_aof(files, TransferSettings())
        assert files.checksum == crc64(b"".join(texts))
        unit = len(texts[0]) // 3
        for offset in range(0, files.size, unit):
            left = (files.size - offset) // unit
            assert applied(files, survey, offset) == left
            for number, name in enumerate(names):
                flipped(tmp_path / name, 5)
                if number * len(texts[0]) + len(texts[0]) <= offset:
                    # It was applied before, as it was then.
                    assert applied(files, survey, offset) == left
                else:
                    with pytest.raises(SourceLost, match=rf"{name} was changed while"):
                        applied(files, survey, offset)
                flipped(tmp_path / name, 5)
        (tmp_path / names[1]).write_bytes(texts[1][:-1])
        with pytest.raises(SourceLost, match=f"it had {len(texts[1])} bytes, and has"):
            applied(files, survey, 0)
        files.close()

    run(main())
