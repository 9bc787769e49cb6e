"""What a record says, against what a target has run, wherever everything ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import CommandBatch, RecordForm, StreamReader
from engine.model.position import StreamPosition, TargetPosition
from tests.reference.stream import command

SET = command(b"SET", b"key", b"value")


def batches(sizes: list[int], extra: bytes = b"") -> list[CommandBatch]:
    """So many SETs in each, one behind the other in a stream."""
    reader = StreamReader(0, batch_bytes=1 << 30)
    found = []
    for size in sizes:
        reader.feed(SET * size + extra)
        reader.flush()
        found += reader.take()
    return found


@dataclass
class Target:
    """A target in one process, as far as it matters here: what ran, in order, and the record."""

    record: TargetPosition
    ran: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(1, 4) | st.integers(1, 4000), min_size=1, max_size=30),
    window=st.integers(1, 4),
    refused=st.sets(st.integers(0, 400), max_size=6),
    end=st.integers(0, 500),
    form_from=st.integers(0, 20),
    only=st.booleans(),
)
def test_a_record_is_true_wherever_it_ends(
    sizes: list[int], window: int, refused: set[int], end: int, form_from: int, only: bool
) -> None:
    """The target runs what was sent up to step `end` and refuses any steps before, commands and
    records alike; up to `window` batches are unanswered. What has run is then covered."""
    form = RecordForm(0, only=only)
    form.begin(True)
    start = TargetPosition("t", StreamPosition("r", 0, 0, False), "e")
    target = Target(start)
    step = 0
    seen = 0  # Up to here the answers are known.
    under_way: deque[tuple[CommandBatch, list[bool], bytes, int]] = deque()
    records = 0

    def runs() -> bool | None:
        """Whether the target runs the next step; None: it is not reached any more."""
        nonlocal step
        step += 1
        return None if step > end else step not in refused

    def answer() -> bool:
        """The oldest answer is read; whether all of it was well."""
        nonlocal seen
        batch, fine, _, begun = under_way.popleft()
        if not all(fine):
            return False
        form.answered(begun)
        seen = batch.end_offset
        return True

    for number, batch in enumerate(batches(sizes)):
        while len(under_way) >= window or (under_way and not form.room):
            if not answer():
                return check(target)
        while only and not form.takes(batch):
            # A record of the same place goes ahead, alone, until the target has taken it.
            while under_way:
                if not answer():
                    return check(target)
            ahead = form.ahead(target.record.encode(), batch.end_offset)
            if (ran := runs()) is None:
                return check(target)
            if ran:
                record, before = TargetPosition.decode(ahead), target.record
                assert replace(record, begun=None) == replace(before, begun=None)
                assert (record.begun or 0) > (before.begun or 0)
                target.record = record
                form.answered(form.asked)
            check(target)
        takes = form.takes(batch) and (only or number >= form_from)
        value = start.encode_span("r", (batch.end_offset, 0, False), (seen, 0, False))
        value = form.value(batch, value, sum(len(each[0]) for each in under_way))
        record = TargetPosition.decode(value)
        fine: list[bool] = []
        if takes:
            records += 1
            for index in range(len(batch)):
                # A refusal of a single command out of thousands is as good as any.
                if index > 3 and index < len(batch) - 1:
                    target.ran.add(batch.offset(index))
                    continue
                if (ran := runs()) is None:
                    return check(target)
                (target.ran if ran else target.failed).add(batch.offset(index))
                fine.append(ran)
            if (ran := runs()) is None:
                return check(target)
            if ran:
                target.record = record
            fine.append(ran)
        else:
            # A transaction, or nothing of it: it goes alone, as the main flow has it go.
            while under_way:
                if not answer():
                    return check(target)
            if (ran := runs()) is None:
                return check(target)
            if ran:
                target.ran |= {batch.offset(index) for index in range(len(batch))}
                target.record = record
            fine.append(ran)
        under_way.append((batch, fine, value, form.asked))
        check(target)
    return None


def check(target: Target) -> None:
    """Nothing has run that the record does not cover, and nothing failed that it does not."""
    record = target.record
    assert record.position is not None
    at, begun = record.position.offset, record.begun or 0
    since = (record.since or record.position).offset
    assert all(offset <= max(at, begun) for offset in target.ran)
    assert all(offset > since for offset in target.failed)


def test_sixteen_alike_go_before_one_with_a_record() -> None:
    form = RecordForm(0)
    some = batches([2] * 40)
    form.begin(False)
    assert not any(form.takes(batch) for batch in some)
    form.begin(True)
    taken = []
    for batch in some:
        taken.append(form.takes(batch))
        form.value(batch, b"v2 t e r 1 0 0 1 0 0", 0)
        form.answered(form.asked)
    assert taken == [False] * 16 + [True] * 24
    # Where the target has said nothing yet there is no record, and behind one that does not fit.
    form.begin(True)
    assert not any(form.takes(batch) for batch in some)
    form.answered(some[20].end_offset)
    assert form.takes(some[20])
    assert not form.takes(some[21])


@pytest.mark.parametrize(
    "extra",
    [
        command(b"MULTI") + SET + command(b"EXEC"),
        command(b"FLUSHALL"),
        command(b"EVAL", b"return 1", b"0"),
        command(b"PUBLISH", b"c", b"m"),
        command(b"UNHEARD.OF", b"key"),
        command(b"SELECT", b"1") + SET,
        command(b"RESTORE", b"key", b"0", b"payload"),
    ],
)
def test_what_needs_a_transaction_is_followed_by_others(extra: bytes) -> None:
    form = RecordForm(0)
    form.begin(True)
    form.answered(1 << 40)
    assert [form.takes(batch) for batch in batches([1] * 17)][-1]
    (odd,) = batches([1], extra)
    assert not form.takes(odd)
    assert [form.takes(batch) for batch in batches([1] * 17)] == [False] * 16 + [True]


def test_begun_never_goes_back() -> None:
    form = RecordForm(0)
    long, short = batches([5000, 1])
    plain = b"v2 t e r 1 0 0 1 0 0"
    values = [TargetPosition.decode(form.value(each, plain, 1 << 20)) for each in (long, short)]
    values.append(TargetPosition.decode(form.value(short, plain, 0)))
    # Nor over another connection.
    form.begin(True)
    values.append(TargetPosition.decode(form.value(short, plain, 0)))
    begun = [each.begun or 0 for each in values]
    assert begun == sorted(set(begun))


def test_a_clusters_node_has_nothing_but_records() -> None:
    """Whatever kind it is of, as soon as the target has said that it may be begun."""
    form = RecordForm(0, only=True)
    form.begin(True)
    odd = batches([1], command(b"MULTI") + SET + command(b"EXEC") + command(b"FLUSHALL"))
    plain = batches([1, 1])
    assert not any(form.takes(batch) for batch in (*odd, *plain))
    form.answered(plain[0].end_offset)
    assert form.covers(plain[0].end_offset)
    assert form.takes(plain[0])
    assert not form.takes(plain[1])
    form.answered(1 << 40)
    assert all(form.takes(batch) for batch in (*odd, *plain))
    (other,) = batches([1], command(b"SELECT", b"1") + SET)
    assert form.takes(other)
    # There is none over a connection that others cannot end.
    form.begin(False)
    form.answered(1 << 40)
    assert not form.takes(plain[0])


def test_a_record_that_goes_ahead() -> None:
    form = RecordForm(0, only=True)
    form.begin(True)
    first = form.ahead(b"v2 t e r 7 0 0 7 0 0", 100)
    again = form.ahead(first, 100)
    places = [TargetPosition.decode(each) for each in (first, again)]
    assert [each.position for each in places] == [StreamPosition("r", 7, 0, False)] * 2
    assert 100 < (places[0].begun or 0) < (places[1].begun or 0)
