"""RDB files of real servers, read and restored into every other; and files that are damaged."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

from benches.support.compare import compare
from benches.support.encoded_values import length, string
from benches.support.servers import Binary, Server
from engine._native import RecordBatch
from engine.errors import EngineError, ProtocolFault, UsageError
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.sources.base import Item
from engine.sources.rdb_file import RdbFileSource
from engine.sources.value_spill import Spill
from engine.targets.base import Acknowledged
from engine.targets.restore_writer import RestoreWriter
from engine.wire.event_loop import run
from tests.support.carried import is_carried
from tests.support.servers import ServerFactory
from tests.support.snapshots import Read, fill, records, save, snapshot
from tests.unit.test_rdb import key, whole

# So low that strings are streamed and collections spilled.
SETTINGS = TransferSettings(stream_above=9_000, batch_bytes=64 << 10)


def written(folder: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path = folder / "dump.rdb"
    path.write_bytes(data)
    return path


def items_of(path: Path, settings: TransferSettings = SETTINGS) -> list[Item]:
    """All that the file gives."""

    async def main() -> list[Item]:
        source = RdbFileSource(path, settings)
        try:
            await source.open(None)
            async with contextlib.aclosing(source.items()) as items:
                return [item async for item in items]
        finally:
            await source.close()

    return run(main())


def restore(path: Path, target: Server) -> tuple[int, list[tuple[bytes, str]]]:
    """Send the file's records to `target`; how many it took, and the keys that it refused."""
    carried = 0
    refused: list[tuple[bytes, str]] = []

    def acknowledged(done: Acknowledged) -> None:
        nonlocal carried
        carried += done.carried
        refused.extend((done.batch.key(index), reason) for index, reason in done.errors)

    async def main() -> None:
        source, writer = (
            RdbFileSource(path, SETTINGS),
            RestoreWriter(Endpoint.parse(target.url), SETTINGS),
        )
        writer.on_acknowledged = acknowledged
        try:
            await source.open(None)
            await writer.open()
            async with contextlib.aclosing(source.items()) as items:
                async for item in items:
                    await writer.send(item)
            await writer.drain()
        finally:
            await source.close()
            await writer.close()

    run(main())
    return carried, refused


def test_a_file_of_every_server(
    ring_pair: tuple[Binary, Binary], server_factory: ServerFactory, tmp_path: Path
) -> None:
    """(`test_file_real.py`: the whole way, of every server's file into every other.)"""
    source, target = server_factory(ring_pair[0]), server_factory(ring_pair[1])
    fill(source, "small")
    saved = save(source)
    there = ring_pair[1].flavour, ring_pair[1].version
    foreign = {
        name for (_, name), dumped in saved.keys.items() if not is_carried(dumped.payload, *there)
    }
    carried, refused = restore(written(tmp_path, saved.data), target)
    assert {name for name, _ in refused} == foreign, refused[:5]
    assert carried + len(refused) == len(saved.keys)
    difference = compare(source.url, target.url)
    assert not difference.different, difference.describe()
    assert not difference.extra, difference.describe()
    assert {name for _, name in difference.missing} == foreign


def test_spilled_values_follow_their_batch(few_binary: Binary, tmp_path: Path) -> None:
    path = written(tmp_path, snapshot(few_binary, "large").data)
    items = items_of(path)
    streamed = [item for item in items if isinstance(item, RecordBatch) and item.streamed]
    assert {batch.spilled for batch in streamed} == {True, False}
    left = 0
    for item in items:
        if isinstance(item, bytes):
            left -= len(item)
            assert left >= 0, "a piece that belongs to no batch before it"
        else:
            assert left == 0
            left = item.value_size(0) if item.streamed else 0
    assert left == 0
    whole_values = items_of(path, TransferSettings())
    assert [item for item in whole_values if isinstance(item, bytes)] == []
    # In the order that a target takes, a spilled batch is as any streamed one.
    ordered: list[bytes | RecordBatch] = []
    pieces: list[bytes] = []
    for item in [*reversed(items)]:
        if isinstance(item, bytes):
            pieces.insert(0, item)
            continue
        group: list[bytes | RecordBatch] = [item, *pieces]
        if item.spilled:
            group = [*pieces, item]
        ordered[:0] = group
        pieces = []

    # Strings go first in a batch, and the two have other batches.
    def by_key(items: list[bytes | RecordBatch]) -> list[Read]:
        return sorted(records(items), key=lambda read: (read.db, read.key))

    assert by_key(ordered) == by_key(whole_values)


def test_only_the_chosen_databases(binary: Binary, tmp_path: Path) -> None:
    path = written(tmp_path, snapshot(binary, "small").data)
    everything = items_of(path)
    for chosen in ((3,), (0, 9), (7,)):
        settings = TransferSettings(
            stream_above=SETTINGS.stream_above, batch_bytes=SETTINGS.batch_bytes, databases=chosen
        )
        found = items_of(path, settings)
        batches = [item for item in found if isinstance(item, RecordBatch)]
        wanted = [b for b in everything if isinstance(b, RecordBatch) and b.db in chosen]
        assert [batch.db for batch in batches] == [batch.db for batch in wanted]
        assert sum(map(len, batches)) == sum(map(len, wanted))
        streamed = sum(batch.value_size(0) for batch in batches if batch.streamed)
        assert sum(len(item) for item in found if isinstance(item, bytes)) == streamed


def test_the_file_says_who_wrote_it(binary: Binary, tmp_path: Path) -> None:
    async def main() -> RdbFileSource:
        source = RdbFileSource(written(tmp_path, snapshot(binary, "tiny").data), SETTINGS)
        await source.open(None)
        await source.close()
        return source

    source = run(main())
    assert (source.info.flavour, source.info.version) == (binary.flavour, binary.version)
    assert source.total_keys == len(snapshot(binary, "tiny").keys)


def test_opened_again_it_begins_anew(tmp_path: Path) -> None:
    body = b"".join(key(0, b"%d" % i, string(b"v" * 20_000)) for i in range(200))
    path = written(tmp_path, whole(body, crc=False))

    async def main() -> tuple[list[Item], list[Item]]:
        source = RdbFileSource(path, SETTINGS)
        found: tuple[list[Item], list[Item]] = [], []
        await source.open(None)
        async for item in source.items():
            found[0].append(item)
            if len(found[0]) == 101:  # in the middle of a value
                break
        await source.open(None)
        found[1].extend([item async for item in source.items()])
        await source.close()
        return found

    first, second = run(main())
    assert len(second) > len(first)
    assert [each for each in second[:101] if isinstance(each, bytes)] == [
        each for each in first if isinstance(each, bytes)
    ]
    assert len(records(second)) == 200


def test_a_value_that_is_given_up_leaves_no_file(tmp_path: Path) -> None:
    long = length(60_000) + b"".join(string(b"%d" % i * 4) for i in range(60_000))
    path = written(
        tmp_path,
        whole(key(1, b"long", long) + key(1, b"short", length(1) + string(b"a")), crc=False),
    )

    async def main() -> list[Item]:
        source = RdbFileSource(path, TransferSettings(stream_above=2_000, spool_bytes=700_000))
        source.bulk_limit = 700_000
        await source.open(None)
        found = [item async for item in source.items()]
        await source.close()
        return found

    given_up, last = run(main())
    assert isinstance(given_up, RecordBatch)
    assert isinstance(last, RecordBatch)
    assert given_up.spilled
    assert len(given_up) == 0
    assert [name for name, _ in given_up.errors] == [b"long"]
    assert last.key(0) == b"short"


@pytest.mark.parametrize("cut", [0, 5, 100, -1, -9])
def test_a_file_that_ends_too_early(binary: Binary, tmp_path: Path, cut: int) -> None:
    data = snapshot(binary, "tiny").data[:cut]
    path = written(tmp_path, data)
    with pytest.raises(ProtocolFault, match=f"dump.rdb ends at byte {len(data)} in the middle"):
        items_of(path)


def test_a_file_that_is_damaged_or_goes_on(binary: Binary, tmp_path: Path) -> None:
    data = snapshot(binary, "tiny").data
    path = written(tmp_path, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        ProtocolFault, match=r"not a valid snapshot: expected the checksum .* at byte"
    ):
        items_of(path)
    path = written(tmp_path, data + b"*1\r\n")
    with pytest.raises(ProtocolFault, match=f"goes on after its snapshot, from byte {len(data)}"):
        items_of(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot read .*nothing.rdb: No such file"):
        items_of(tmp_path / "nothing.rdb")
    with pytest.raises(EngineError, match=r"cannot read .*: Is a directory"):
        items_of(tmp_path)
    with pytest.raises(UsageError, match="read whole"):
        RdbFileSource(tmp_path, TransferSettings(match="a*"))


def test_values_are_kept_in_the_spools_directory(
    few_binary: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, snapshot(few_binary, "large").data)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))

    async def give(settings: TransferSettings) -> int:
        source = RdbFileSource(path, settings)
        try:
            await source.open(None)
            return sum([1 async for _ in source.items()])
        finally:
            await source.close()

    with pytest.raises(EngineError, match="gone: No such file") as told:
        run(give(SETTINGS))
    assert "--spool-directory" in told.value.remedy
    assert run(give(dataclasses.replace(SETTINGS, spool_directory=str(tmp_path))))


def test_where_values_are_kept_is_bounded_and_said(tmp_path: Path) -> None:
    async def keep(spill: Spill, *pieces: bytes) -> None:
        async for _ in spill.arrange(pieces):
            raise AssertionError("nothing is known of these pieces yet")

    spill = Spill(limit=10, folder=str(tmp_path))
    asyncio.run(keep(spill, b"12345", b"67890"))
    assert os.listdir(tmp_path) == []  # it has no name
    with pytest.raises(EngineError, match="more than 10 bytes, the most that is kept"):
        asyncio.run(keep(spill, b"1"))
    spill.close()
    asyncio.run(keep(spill, b"1"))
    spill.close()
    nowhere = Spill(limit=10, folder=str(tmp_path / "gone"))
    with pytest.raises(EngineError, match=r"could not write a long value in .*gone: No such file"):
        asyncio.run(keep(nowhere, b"1"))
