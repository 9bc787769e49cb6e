"""Records of positions by the slots that they cover, against commands of single slots."""

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
    covering,
    joined,
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
    slots = draw(sets.filter(bool) | st.just(frozenset(range(SLOTS))))
    return TargetPosition(
        "t",
        place(at),
        draw(st.sampled_from(["", "e"])),
        place(since) if since < at else None,
        held_before=draw(st.booleans()),
        begun=begun,
        slots=SlotSet.of(slots),
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


def test_a_record_without_slots_covers_all() -> None:
    """As every release before this one wrote it, and as this one does for a target that is no
    cluster."""
    found = TargetPosition.decode(b"v2 t e r 5 0 0 3 0 0")
    assert found.slots == ALL_SLOTS
    assert found.begun is None
    assert found.encode() == b"v2 t e r 5 0 0 3 0 0"
    assert TargetPosition.decode(b"v1 t r 5 0 0").slots == ALL_SLOTS
    value = begun_up_to(found.encode(), 9)
    assert TargetPosition.decode(value) == replace(found, begun=9)
    # Never back: something behind the lower offset may have been sent.
    assert begun_up_to(value, 8) == value
    assert TargetPosition.decode(begun_up_to(value, 10)).begun == 10
    some = TargetPosition("t", place(5), slots=SlotSet.parse("0-5,7"))
    assert some.encode() == b"v3 t - r 5 0 0 5 0 0 slots 0-5,7"


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
        b"v3 t e r 1 0 0 1 0 0 slots",
        b"v3 t e r 1 0 0 1 0 0 slots 5-3",
        b"v3 t e r 1 0 0 1 0 0 begun 0",
        b"v3 t e r 1 0 0 1 0 0 begun 01",
        b"v3 t e begun 4",
        b"v3 t e r 1 0 0 1 0 0 open begun 4",
        b"v3 t e r 1 0 0 1 0 0 begun 4 slots 1",
        b"v2 t e r 1 0 0 1 0 0 slots 1",
        b"v4 t e r 1 0 0 1 0 0",
    ],
)
def test_what_is_no_record(value: bytes) -> None:
    with pytest.raises(ProtocolFault, match="position key"):
        TargetPosition.decode(value)


# What a record says of the command at an offset: its effect is there once, it is there at most
# once, or it is not there.
APPLIED, MAYBE, NOT = "applied", "maybe", "not"


def says(record: TargetPosition, offset: int) -> str:
    assert record.position is not None
    if offset <= (record.since or record.position).offset:
        return APPLIED
    if offset <= max(record.position.offset, record.begun or 0):
        return MAYBE
    return NOT


@given(st.lists(records(), min_size=1, max_size=4))
def test_what_is_joined_is_true_of_each_slot(some: list[TargetPosition]) -> None:
    """What the joined record is sure of, each of them is sure of."""
    whole = joined(some)
    assert set(whole.slots) == set().union(*(each.slots for each in some))
    assert whole.position is not None
    for each in some:
        assert each.position is not None
        assert whole.position.offset <= each.position.offset
        for offset in range(14):
            said = says(whole, offset)
            assert said in (MAYBE, says(each, offset))
    assert TargetPosition.decode(whole.encode()) == whole


@given(records(), sets)
def test_what_is_split_covers_each_slot_once(record: TargetPosition, some: frozenset[int]) -> None:
    inside, outside = record.split(SlotSet.of(some))
    assert set(inside.slots if inside else ()) == set(record.slots) & some
    assert set(outside.slots if outside else ()) == set(record.slots) - some
    parts = [part for part in (inside, outside) if part is not None]
    assert all(replace(part, slots=record.slots) == record for part in parts)
    again = joined(parts)
    assert (again.slots, again.position, again.doubtful) == (
        record.slots,
        record.position,
        record.doubtful,
    )


@given(st.lists(records(), max_size=4), st.integers(0, 40))
def test_a_slot_s_record_is_true_of_all_that_cover_it(
    some: list[TargetPosition], slot: int
) -> None:
    found = covering(some, slot)
    those = [each for each in some if slot in each.slots]
    if found is None:
        assert those == []
        return
    assert list(found.slots) == [slot]
    for each in those:
        for offset in range(14):
            assert says(found, offset) in (MAYBE, says(each, offset))


def test_records_of_two_streams_are_not_joined() -> None:
    one = TargetPosition("t", place(5))
    for other in (
        TargetPosition("u", place(5)),
        TargetPosition("t", StreamPosition("s", 5)),
        TargetPosition("t", None),
    ):
        with pytest.raises(ValueError, match="joined"):
            joined([one, other])
    with pytest.raises(ValueError):
        joined([])
