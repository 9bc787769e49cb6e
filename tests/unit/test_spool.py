"""The spool: every byte comes out once, in order, whatever went through files."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import ReceiveTimes
from engine.errors import SpoolFull, UsageError
from engine.model.spool_directory import spool_directory
from engine.sources.spool import CHUNK_BYTES, SEGMENT_BYTES, Spool

MIB = 1 << 20


class Pattern:
    """An endless run of bytes that says at each place where it is."""

    def __init__(self) -> None:
        self._block = random.Random(1).randbytes(MIB + 17)
        self.at = 0

    def next(self, n: int) -> bytes:
        start = self.at % len(self._block)
        self.at += n
        found = self._block[start : start + n]
        while len(found) < n:
            found += self._block[: n - len(found)]
        return found


def put(spool: Spool, data: bytes) -> int:
    """What a socket does: as much as there is room for."""
    with spool.input as room:
        assert len(room) >= 64 << 10
        n = min(len(room), len(data))
        room[:n] = data[:n]
    spool.commit(n)
    return n


async def drain(spool: Spool, expected: Pattern, most: int | None = None) -> int:
    taken = 0
    while spool.size and (most is None or taken < most):
        portion = await spool.read()
        assert portion == expected.next(len(portion))
        taken += len(portion)
    return taken


async def test_a_spool_that_stays_small_touches_no_disk(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), 1 << 30, lambda: None)
    sent, expected = Pattern(), Pattern()
    for _ in range(300):
        put(spool, sent.next(50_000))
        assert await drain(spool, expected) == 50_000
    put(spool, sent.next(60_000))
    spool.append(sent.next(5 * MIB))
    assert await drain(spool, expected) == 60_000 + 5 * MIB
    assert spool.written == 0
    assert not os.listdir(tmp_path)
    assert len(await spool.read()) == 0
    await spool.close()


async def test_through_files_and_back(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), 1 << 30, lambda: None, memory=4 * MIB)
    sent, expected = Pattern(), Pattern()
    total = 3 * SEGMENT_BYTES + 12345
    while sent.at < total:
        if spool.behind:
            await asyncio.sleep(0)
            continue
        spool.append(sent.next(min(200_000, total - sent.at)))
    assert spool.size == total
    assert spool.written > total - 8 * MIB
    assert not os.listdir(tmp_path), "a file has a name"
    assert await drain(spool, expected) == total
    assert spool.size == 0
    await spool.close()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * CHUNK_BYTES)), max_size=60))
def test_any_order_of_writes_and_reads(steps: list[tuple[bool, int]]) -> None:
    async def main() -> None:
        spool = Spool("/var/tmp", 1 << 30, lambda: None, memory=4 * MIB)
        sent, expected = Pattern(), Pattern()
        taken = 0
        for write, n in steps:
            if write:
                spool.append(sent.next(n))
            else:
                taken += await drain(spool, expected, n)
            if n % 3 == 0:
                await asyncio.sleep(0.001)
            assert spool.size == sent.at - taken
        taken += await drain(spool, expected)
        assert taken == sent.at
        await spool.close()

    asyncio.run(main())


async def test_a_read_that_is_given_up_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), 1 << 30, lambda: None, memory=4 * MIB)
    sent, expected = Pattern(), Pattern()
    while sent.at < 40 * MIB:
        if spool.behind:
            await asyncio.sleep(0.001)
        spool.append(sent.next(300_000))
    given_up = 0
    while spool.size:
        reading = asyncio.ensure_future(spool.read())
        await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
            given_up += 1
        try:
            portion = await reading
        except asyncio.CancelledError:
            portion = await spool.read()
        assert portion == expected.next(len(portion))
    assert expected.at == sent.at
    assert given_up > 10
    await spool.close()


@pytest.mark.parametrize("more", [0, 1000])
async def test_what_a_given_up_read_has_brought_comes_first(tmp_path: Path, more: int) -> None:
    """It was the last on the disk; what is in memory, or has come since, is newer."""
    spool = Spool(str(tmp_path), 1 << 30, lambda: None, memory=4 * CHUNK_BYTES)
    sent, expected = Pattern(), Pattern()
    for _ in range(40):
        spool.append(sent.next(CHUNK_BYTES))
        await asyncio.sleep(0.001)
    given_up = 0
    while spool.size:
        reading = asyncio.ensure_future(spool.read())
        await asyncio.sleep(0)
        if reading.done():
            portion = await reading
        else:
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            given_up += 1
            if spool._reading is not None:
                await asyncio.wait({spool._reading})
            if given_up < 60:
                spool.append(sent.next(more))
            portion = await spool.read()
        assert portion == expected.next(len(portion))
    assert expected.at == sent.at
    assert given_up > 10
    await spool.close()


async def test_the_limit_is_a_clear_failure(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), 20 * MIB, lambda: None)
    sent = Pattern()

    async def fill() -> None:
        while True:
            spool.append(sent.next(MIB))
            await asyncio.sleep(0.001)

    with pytest.raises(SpoolFull, match="21 MiB wait for the target") as caught:
        await fill()
    assert "--spool-bytes" in caught.value.remedy
    assert caught.value.fault == "engine"
    await spool.close()


async def test_a_disk_that_ends(tmp_path: Path) -> None:
    changed = asyncio.Event()
    spool = Spool(str(tmp_path), 1 << 30, changed.set, memory=4 * MIB)
    sent = Pattern()

    async def fill() -> None:
        while True:
            if spool.behind:
                changed.clear()
                await changed.wait()
            spool.append(sent.next(MIB))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this: write() fails there, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, hard))
    try:
        with pytest.raises(SpoolFull, match="is full, with") as caught:
            await fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "--spool-directory" in caught.value.remedy
    await spool.close()


async def test_room_is_looked_for_beforehand(tmp_path: Path) -> None:
    Spool(str(tmp_path), 1 << 40, lambda: None).check()
    with pytest.raises(UsageError, match="No such file"):
        Spool(str(tmp_path / "none"), 1 << 30, lambda: None).check()
    with pytest.raises(SpoolFull, match=r"has 0 MiB free; 1,024 MiB are wanted"):
        Spool("/proc", 1 << 40, lambda: None).check()


async def test_it_keeps_to_its_memory(tmp_path: Path) -> None:
    """ENGINE_SPOOL_TEST_GIB: how much to put through (a soak takes 10)."""
    total = int(float(os.environ.get("ENGINE_SPOOL_TEST_GIB", "1")) * (1 << 30))
    spool = Spool(str(tmp_path), total + MIB, lambda: None)
    block = random.Random(2).randbytes(200 << 10)
    before, most, put_in = _rss(), 0, 0
    while put_in < total:
        if spool.behind:
            await asyncio.sleep(0.0005)
            continue
        n = put(spool, block)
        put_in += n
        most = max(most, _rss()) if put_in % (8 * MIB) < n else most
    assert spool.most == put_in
    assert not os.listdir(tmp_path)
    taken = 0
    while spool.size:
        taken += len(await spool.read())
        most = max(most, _rss()) if taken % (8 * MIB) < MIB else most
    assert taken == put_in
    # Of the 150 MiB that the engine may have; other tests of this process may have left theirs.
    assert most - before < 40 * MIB
    await spool.close()
    assert _deleted_files(tmp_path) == 0


async def test_a_disk_that_is_read_while_it_is_written(tmp_path: Path) -> None:
    """Files go as they are read: what a slow reader leaves behind takes no more than it."""
    spool = Spool(str(tmp_path), 1 << 30, lambda: None, memory=4 * MIB)
    sent, expected = Pattern(), Pattern()
    began = time.monotonic()
    while sent.at < 400 * MIB and time.monotonic() - began < 60:
        if not spool.behind:
            spool.append(sent.next(700_000))
        if spool.size > 100 * MIB:
            await drain(spool, expected, 2 * MIB)
        await asyncio.sleep(0)
        assert _deleted_files(tmp_path) <= 100 // 64 + 3
    await drain(spool, expected)
    await spool.close()
    assert _deleted_files(tmp_path) == 0


def test_the_directory_is_the_one_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/somewhere")
    assert spool_directory("/chosen") == "/chosen"
    assert spool_directory(None) == "/somewhere"
    monkeypatch.delenv("TMPDIR")
    assert spool_directory(None) == "/var/tmp"


# --- Receipts ---


def test_receipts_say_when_a_byte_came() -> None:
    receive_times = ReceiveTimes()
    assert receive_times.at(1) is None
    receive_times.add(100, 1.0)
    receive_times.add(150, 1.0005)
    receive_times.add(200, 2.0)
    assert [receive_times.at(p) for p in (1, 100, 150, 151, 200)] == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert receive_times.at(201) is None
    assert receive_times.together(1, 0.5) == 150
    assert receive_times.together(1, 1.5) == 200
    assert receive_times.together(160, 0.0) == 200


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 0.01)), min_size=1, max_size=300),
    st.integers(1, 40),
)
def test_receipts_are_never_late(steps: list[tuple[int, float]], repeat: int) -> None:
    receive_times = ReceiveTimes()
    truth: list[tuple[int, float]] = []
    end, at = 0, 0.0
    for n, gap in steps * repeat:
        end, at = end + n, at + gap
        truth.append((end, at))
        receive_times.add(end, at)
    assert len(receive_times) <= 8192
    for end, at in truth[:: max(len(truth) // 50, 1)]:
        found = receive_times.at(end)
        assert found is not None
        assert found <= at
    receive_times.forget(truth[-1][0])
    assert receive_times.at(truth[-1][0]) is not None


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0.0, 0.0004, 0.002])), max_size=60),
    st.lists(st.tuples(st.integers(-5, 1500), st.sampled_from([0.0, 0.001, 0.01])), max_size=8),
    st.integers(-5, 700),
)
def test_receipts_agree_with_slow_python(
    steps: list[tuple[int, float]], questions: list[tuple[int, float]], forgotten: int
) -> None:
    receive_times = ReceiveTimes()
    kept: list[tuple[int, float]] = []
    end, at = 0, 1.0
    for n, gap in steps:
        end, at = end + n, at + gap
        receive_times.add(end, at)
        if kept and at - kept[-1][1] < 0.001:
            kept[-1] = (end, kept[-1][1])
        else:
            kept.append((end, at))
    for turn in range(2):
        assert len(receive_times) == len(kept)
        for position, seconds in questions:
            rest = [each for each in kept if each[0] >= position]
            assert receive_times.at(position) == (rest[0][1] if rest else None)
            if position < 0:
                continue
            run = [each[0] for each in rest if each[1] < rest[0][1] + seconds]
            last = max([rest[0][0], *run]) if rest else position
            assert receive_times.together(position, seconds) == last
        if not turn:
            receive_times.forget(forgotten)
            kept = [each for each in kept if each[0] >= forgotten]


def _rss() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _deleted_files(folder: Path) -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found += target.startswith(str(folder)) and target.endswith("(deleted)")
    return found
