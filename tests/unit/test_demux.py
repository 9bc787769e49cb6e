"""What lies between a snapshot's last byte and the stream's first one."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine._native import SnapshotReader, StreamReader
from engine.errors import ProtocolFault, SpoolFull
from engine.sources.reader_or_spool import Demux
from engine.sources.spool import Spool
from engine.wire.psync import FullSync, PartialSync

# No keys; a checksum of zeros is none.
SNAPSHOT = b"REDIS0009\xff" + bytes(8)
MARK = b"m" * 40
PING = b"*1\r\n$4\r\nPING\r\n"
SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"


def demux_of(sync: FullSync, folder: Path) -> Demux:
    return Demux(
        sync,
        Spool(str(folder), 1 << 30, lambda: None),
        SnapshotReader(length=sync.length, mark=sync.mark),
        lambda db: StreamReader(sync.offset, db, False),
        None,
    )


def give(demux: Demux, data: bytes) -> None:
    while data:
        room = memoryview(demux.input)
        n = min(len(room), len(data))
        room[:n] = data[:n]
        del room
        demux.received(n)
        data = data[n:]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "pieces",
    [
        (b"", b"\n", PING + SET),
        (b"", b"\n\n", b"\n" + PING, SET),
        (b"", b"\n" + PING[:1], PING[1:] + SET),
        (b"\n", PING + SET),
        (b"\n", b"\n", PING + SET),
        (b"", PING, b"\n" + SET),
    ],
)
async def test_newlines_behind_a_snapshot_have_no_offset(
    marked: bool, pieces: tuple[bytes, ...], tmp_path: Path
) -> None:
    """The last row's stands in the stream, and has one: what is counted is what the source sent."""
    sync = FullSync("r" * 40, 100, None if marked else len(SNAPSHOT), MARK if marked else None)
    demux = demux_of(sync, tmp_path)
    first, *rest = pieces
    give(demux, SNAPSHOT + (MARK if marked else b"") + first)
    assert demux.received_offset == 100
    for piece in rest:
        give(demux, piece)
    inside = pieces[-1].startswith(b"\n")
    end = 100 + len(PING + SET) + inside
    assert demux.received_offset == end
    assert demux.stream is not None
    assert demux.stream.parsed_offset == end
    assert demux.position_of(end) == demux.total


async def test_a_snapshot_that_holds_what_came_later_names_it(tmp_path: Path) -> None:
    """And says what works: such a key can be read by itself."""
    demux = demux_of(FullSync("a" * 40, 0, None, b"m" * 40), tmp_path)
    snapshot = b"VALKEY081" + b"\xf2" + bytes(30)
    with pytest.raises(ProtocolFault) as caught:
        give(demux, snapshot)
    assert "at byte 9: it holds commands that stand inside a snapshot (opcode 242)" in str(
        caught.value
    )
    assert "--source-type scan" in str(caught.value)


@pytest.mark.parametrize("relative", [False, True])
async def test_a_long_command_that_cannot_be_kept_names_the_folder(
    relative: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(str(folder), 1 << 30, lambda: None)
    demux = Demux(
        PartialSync("r" * 40, 0),
        spool,
        None,
        lambda db: StreamReader(0, db, file=spool.new_file, memory_bytes=1000),
        (lambda at: int(at * 1000)) if relative else None,
    )
    long = SET.replace(b"$1\r\nv", b"$2000\r\n" + b"v" * 2000)
    give(demux, SET + long)
    batch = demux.next_commands()
    assert batch is not None
    assert batch.in_file
    folder.rmdir()
    with pytest.raises(SpoolFull, match=str(folder)):
        give(demux, long)
