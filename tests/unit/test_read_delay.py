"""When what a read brings may have lain in the kernel for long."""

from __future__ import annotations

from engine.sources.unread_age import LATE_SECONDS, ReadDelay

ROOM = 100
LONG = LATE_SECONDS + 0.01


def test_a_read_long_behind_another_is_late_and_the_next_is_not() -> None:
    found = ReadDelay(0.0)
    found.reads(ROOM, 0.1)
    assert not found.was_late(10, 0.11)
    found.reads(ROOM, 0.11 + LONG)
    assert found.was_late(10, 0.12 + LONG)
    found.reads(ROOM, 0.13 + LONG)
    assert not found.was_late(10, 0.14 + LONG)


def test_it_counts_from_the_beginning_of_the_read() -> None:
    """Stopped between the read and our looking at the clock: the bytes are as old as that."""
    found = ReadDelay(0.0)
    found.reads(ROOM, 0.01)
    assert found.was_late(10, 0.01 + LONG)
    found.reads(ROOM, 0.02 + LONG)
    # What had come meanwhile is what this one brings.
    assert found.was_late(10, 0.03 + LONG)


def test_a_read_that_filled_its_room_left_something_behind() -> None:
    found = ReadDelay(0.0)
    at = 0.0
    while at < LATE_SECONDS:
        found.turn(at)
        found.reads(ROOM, at)
        assert not found.was_late(ROOM, at)
        at += 0.05
    found.reads(ROOM, LONG)
    assert found.was_late(ROOM, LONG)


def test_quiet_turns_say_that_nothing_lay_there() -> None:
    found = ReadDelay(0.0)
    for n in range(100):
        found.turn(n * 0.05)
    found.reads(ROOM, 5.0)
    assert not found.was_late(10, 5.0)
    # One turn says nothing yet: what is polled behind it may have come before it.
    found.turn(5.0 + LONG)
    found.reads(ROOM, 5.0 + LONG)
    assert found.was_late(10, 5.01 + LONG)


def test_turns_in_which_nobody_listens_say_nothing() -> None:
    found = ReadDelay(0.0)
    for n in range(100):
        found.turn(n * 0.05 if n % 2 else None)
    found.reads(ROOM, 5.0)
    assert found.was_late(10, 5.0)
