"""Sets of slots, and what a position on the target says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ProtocolFault
from engine.model.position import (
    StreamPosition,
    TargetPosition,
    begun_up_to,
)
from engine.model.slots import ALL_SLOTS, SLOTS, SlotSet

sets = st.frozensets(st.integers(0, 40) | st.integers(SLOTS - 3, SLOTS - 1))


@given(sets, sets)
def test_sets_of_slots_are_sets(one: frozenset[int], other: frozenset[int]) -> None:
    a, b = SlotSet.of(one), SlotSet.of(other)
    assert set(a | b) == one | other
    assert set(a & b) == one & other
    assert set(a - b) == one - other
    assert bool(a) == bool(one)
    assert all((slot in a) == (slot in one) for slot in range(45))
    if one:
        assert SlotSet.parse(str(a)) == a
    assert set(ALL_SLOTS - a) == set(range(SLOTS)) - one


@pytest.mark.parametrize(
    "text", ["5-3", "0-16384", "1,1", "1-2,3", "7,3", "-1", "1-", "a", "1-2-3", "1,,2"]
)
def test_what_is_no_set_of_slots(text: str) -> None:
    with pytest.raises(ValueError, match=r"slots"):
        SlotSet.parse(text)


def place(offset: int) -> StreamPosition:
    return StreamPosition("r", offset, 0, False)


@st.composite
def records(draw: st.DrawFn) -> TargetPosition:
    since, at = sorted((draw(st.integers(0, 9)), draw(st.integers(0, 9))))
    begun = draw(st.none() | st.integers(at, 12))
    return TargetPosition(
        "t",
        place(at),
        draw(st.sampled_from(["", "e"])),
        place(since) if since < at else None,
        held_before=draw(st.booleans()),
        begun=begun,
        serial=draw(st.integers(0, 3)),
    )


@given(records())
def test_a_record_survives_the_target(record: TargetPosition) -> None:
    assert TargetPosition.decode(record.encode()) == record
    assert record.position is not None
    at, since = record.position, record.since or record.position
    span = record.encode_span("r", (at.offset, 0, False), (since.offset, 0, False))
    passed = record.begun is not None and record.begun <= at.offset
    assert TargetPosition.decode(span) == (replace(record, begun=None) if passed else record)


def test_a_plain_record() -> None:
    """As every release before this one wrote it, and as this one does for a target that is no
    cluster."""
    found = TargetPosition.decode(b"v2 t e r 5 0 0 3 0 0")
    assert found.begun is None
    assert found.encode() == b"v2 t e r 5 0 0 3 0 0"
    assert TargetPosition.decode(b"v1 t r 5 0 0") == TargetPosition("t", place(5))
    value = begun_up_to(found.encode(), 9)
    assert TargetPosition.decode(value) == replace(found, begun=9)
    # Never back: something behind the lower offset may have been sent.
    assert begun_up_to(value, 8) == value
    assert TargetPosition.decode(begun_up_to(value, 10)).begun == 10


@given(records())
def test_no_two_writes_of_one_place_are_alike(record: TargetPosition) -> None:
    once, again = record.anew(), record.anew()
    assert len({each.encode() for each in (record, once, again)}) == 3
    assert TargetPosition.decode(again.encode()) == again
    assert not once.same_place(again)
    # Nor are what is behind them in the stream.
    assert once.frame() != again.frame()
    bare = TargetPosition("t", None)
    assert bare.anew() == bare


@pytest.mark.parametrize(
    "value",
    [
        b"v3 t e r 1 0 0 1 0 0",
        b"v3 t e serial 4",
        b"v3 t e r 1 0 0 1 0 0 serial 0",
        b"v3 t e r 1 0 0 1 0 0 begun 4 serial 1",
        b"v3 t e r 1 0 0 1 0 0 slots 5",
        b"v3 t e r 1 0 0 1 0 0 begun 0",
        b"v3 t e r 1 0 0 1 0 0 begun 01",
        b"v3 t e begun 4",
        b"v3 t e r 1 0 0 1 0 0 open begun 4",
        b"v2 t e r 1 0 0 1 0 0 slots 1",
        b"v4 t e r 1 0 0 1 0 0",
    ],
)
def test_what_is_no_record(value: bytes) -> None:
    with pytest.raises(ProtocolFault, match="position key"):
        TargetPosition.decode(value)
