"""Commands at which a target's process ends are found, whatever it comes back with."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import CommandBatch, StreamReader
from engine.targets.crashing_values import LEFT_OUT_MOST, CrashSuspects
from engine.transfer.crashing_commands import CrashingCommands
from tests.reference.stream import command
from tests.support.feeding import push


def batch_of(count: int) -> CommandBatch:
    """So many commands, each with its number."""
    reader = StreamReader(0, batch_bytes=1 << 22, batch_commands=1 << 16)
    push(reader, b"".join(command(b"SET", b"%d" % n, b"") for n in range(count)), [1 << 16])
    reader.flush()
    (batch,) = reader.take()
    return batch


def numbers(batch: CommandBatch) -> list[int]:
    return [int(batch.command(index)[1]) for index in range(len(batch))]


class Ended(Exception):
    """The target came back with nothing."""


@dataclass
class Target:
    """Ends at each of `crashing`. `keeps`: it comes back with what it had."""

    crashing: set[int]
    keeps: bool
    suspects: CrashSuspects = field(default_factory=lambda: CrashSuspects(lambda _: None))
    search: CrashingCommands = field(init=False)
    applied: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    ends: int = 0

    def __post_init__(self) -> None:
        self.search = CrashingCommands(self.suspects)

    def transact(self, batch: CommandBatch) -> None:
        """As the ways do: whole, unless it is suspect."""
        if self.search.suspect(batch, ()) or not self.whole(batch):
            self.in_pieces(batch)

    def in_pieces(self, batch: CommandBatch) -> None:
        for piece, _ in self.search.pieces(batch, ()):
            if not self.whole(piece):
                self.in_pieces(piece)

    def whole(self, batch: CommandBatch) -> bool:
        while True:
            if len(batch) == 1 and self.search.crashing(batch):
                self.search.leave_out((0, batch.command(0)[1]))
                self.left_out += numbers(batch)
                return True
            if not self.crashing.intersection(numbers(batch)):
                self.applied += numbers(batch)
                return True
            self.ends += 1
            found = self.search.ended(batch, ())
            if not self.keeps:
                raise Ended
            if not found and self.search.parted(batch, ()):
                return False

    def move(self, batches: list[CommandBatch]) -> None:
        """All of them, again from the first where the target has nothing left."""
        while True:
            self.applied, self.left_out = [], []
            try:
                for batch in batches:
                    self.transact(batch)
            except Ended:
                continue
            return


@settings(max_examples=30)
@given(
    st.one_of(st.integers(1, 40), st.integers(900, 4000)),
    st.lists(st.integers(0, 4000), max_size=3),
    st.booleans(),
    st.data(),
)
def test_each_is_found_and_all_others_are_applied_once(
    count: int, crashing: list[int], keeps: bool, data: st.DataObject
) -> None:
    wanted = {each % count for each in crashing}
    batch = batch_of(count)
    batches = []
    for at in sorted(set(data.draw(st.lists(st.integers(0, count - 1), max_size=3)))):
        if batch.start_offset < (end := batch_of(count).offset(at)) < batch.end_offset:
            head, batch = batch.split(end)
            batches.append(head)
    batches.append(batch)
    target = Target(wanted, keeps)
    target.move(batches)
    assert target.left_out == sorted(wanted)
    assert target.applied == [n for n in range(count) if n not in wanted]
    # Whole twice, a portion, one alone.
    assert target.ends <= 4 * len(wanted)
    assert target.suspects.learned <= 4 * len(wanted)


@pytest.mark.parametrize("count", [1, 1000, 30_000])
def test_how_often_the_process_ends(count: int) -> None:
    target = Target({count // 2}, keeps=True)
    target.move([batch_of(count)])
    assert target.ends == {1: 2, 1000: 3, 30_000: 4}[count]


def test_a_command_counts_once_however_many_keys_it_has() -> None:
    suspects = CrashSuspects(lambda _: None)
    suspects.leave_out(*((0, b"%d" % n) for n in range(5 * LEFT_OUT_MOST)))
    for n in range(LEFT_OUT_MOST - 1):
        suspects.leave_out((1, b"%d" % n))
    assert len(suspects.left_out) == 6 * LEFT_OUT_MOST - 1
