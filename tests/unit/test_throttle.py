"""What bounds the speed: rates, pauses, the window, and what an end may suffer."""

from __future__ import annotations

import asyncio
import math
import time
import zoneinfo
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.model.daily_window import DailyWindow
from engine.model.protection import SOURCE_BOUNDS, TARGET_BOUNDS, Protection
from engine.model.settings import TransferSettings
from engine.model.throttle import Steering, Throttle
from engine.transfer.server_protection import LatencyWatch

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: tzinfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


# --- Rates ---


async def test_a_rate_lets_through_what_it_says() -> None:
    throttle = Throttle(Steering(max_key_rate=1_000))
    flow, moved, began = throttle.copying, 0, time.monotonic()
    while (took := time.monotonic() - began) < 0.3:
        if some := flow.keys_now(500, 0.0):
            assert some <= 20
            flow.passed(some, 0)
            moved += some
        # (A burst, and what was saved.)
        assert moved <= 1_000 * (time.monotonic() - began) + 120
        await asyncio.sleep(min(flow.due, 0.01))
    assert took > 0
    assert moved > 0


async def test_what_was_moved_beyond_a_rate_is_waited_for() -> None:
    throttle = Throttle(Steering(max_rate=1_000))
    throttle.following.passed(0, 1_000_000)
    assert throttle.following.due > 900
    # Another bound has another view, and a higher rate pays it back sooner.
    throttle.steer(Steering(max_rate=1_000_000_000))
    assert throttle.following.due < 1
    throttle.steer(Steering())
    assert throttle.following.due == 0
    assert throttle.following.free


async def test_each_flow_has_the_bounds_that_concern_it() -> None:
    throttle = Throttle(Steering())
    throttle.hold("source", 100.0, 10.0, "throttled: source latency")
    assert (throttle.copying.free, throttle.comparing.free) == (False, False)
    assert throttle.following.free
    throttle.hold("target", 100.0, 10.0, "throttled: target latency")
    assert not throttle.following.free
    assert throttle.throttled == "throttled: source latency; throttled: target latency"
    # Writers wait for a cut-over: nothing holds then.
    throttle.lift()
    assert throttle.copying.free
    assert throttle.following.free
    assert throttle.throttled == ""
    throttle.restore()
    assert not throttle.following.free
    throttle.let_go("source")
    throttle.let_go("target")
    assert throttle.copying.free


async def test_a_pause_is_woken_from_and_not_lifted() -> None:
    throttle = Throttle(Steering(paused="paused"))
    assert throttle.copying.due == math.inf
    throttle.lift()
    assert throttle.paused == "paused"
    throttle.restore()
    waits = [asyncio.create_task(each.wait()) for each in (throttle.copying, throttle.comparing)]
    await asyncio.sleep(0)
    throttle.steer(Steering())
    await asyncio.wait_for(asyncio.gather(*waits), 10)
    # One that comes while a cut-over goes on begins behind it.
    throttle.lift()
    throttle.steer(Steering(paused="paused"))
    assert throttle.paused == ""
    throttle.restore()
    assert throttle.paused == "paused"


def test_a_lane_has_the_share_of_its_slots() -> None:
    throttle = Throttle(Steering(max_rate=1_600))
    throttle.of_slots(4_096, 16_384)
    assert throttle.copying.portion() == (math.inf, 40.0)


# --- The window ---


@pytest.mark.parametrize(
    ("text", "now", "opens"),
    [
        ("22:00-05:00 Europe/Berlin", "2026-03-10 23:30", None),
        ("22:00-05:00 Europe/Berlin", "2026-03-10 04:59", None),
        ("22:00-05:00 Europe/Berlin", "2026-03-10 05:00", "2026-03-10 22:00"),
        ("09:00-17:00 Europe/Berlin", "2026-03-10 17:00", "2026-03-11 09:00"),
        ("09:00-17:00 Europe/Berlin", "2026-03-10 08:00", "2026-03-10 09:00"),
        ("00:00-24:00 Europe/Berlin", "2026-03-10 08:00", None),
        ("20:00-24:00 Europe/Berlin", "2026-03-10 23:59", None),
        # Clocks are put on from 02:00 to 03:00: it does not open that day but a day later.
        ("02:10-02:50 Europe/Berlin", "2026-03-29 03:20", "2026-03-30 02:10"),
    ],
)
def test_a_window_opens_by_the_clocks_of_its_zone(text: str, now: str, opens: str | None) -> None:
    window = DailyWindow.read(text)
    assert window is not None
    expected = None if opens is None else at(opens)
    assert window.closed_until(at(now)) == expected
    words = window.words(at(now))
    assert words == (
        ""
        if opens is None
        else f"paused outside of its window {text}: it goes on at {opens} Europe/Berlin"
    )


def test_an_hour_that_comes_twice() -> None:
    window = DailyWindow.read("02:30-03:00 Europe/Berlin")
    assert window is not None
    # In the second 02:10 of that night it opens once more.
    again = window.closed_until(at("2026-10-25 02:10", fold=1))
    assert again == at("2026-10-25 02:30", fold=1)


@given(
    begin=st.integers(0, 1439),
    length=st.integers(1, 1439),
    now=st.integers(1_700_000_000, 1_900_000_000),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
)
def test_a_window_that_is_closed_opens_when_it_says(
    begin: int, length: int, now: int, zone: str
) -> None:
    end = (begin + length) % 1440
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02} {zone}"
    window = DailyWindow.read(text)
    assert window is not None
    for _ in range(4):
        opens = window.closed_until(now)
        if opens is None:
            break
        assert now < opens <= now + 3 * 86400
        now = math.ceil(opens)
    else:
        raise AssertionError(f"{text} does not open")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("22:00-22:00", "never opens"),
        ("22:00-22:00 Europe/Berlin", "never opens"),
        ("00:00-00:00", "never opens"),
        ("22-05", "is not a time of the day"),
        ("24:00-05:00", "is not a time of the day"),
        ("22:60-05:00", "is not a time of the day"),
        ("22:00-05:00 Nowhere/City", "time zone 'Nowhere/City' is not known"),
        ("22:00-05:00 ../../etc/passwd", "is not a time of the day"),
        ("22:00-05:00 /etc/localtime", "is not known"),
    ],
)
def test_a_window_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        TransferSettings(window=text)


def test_a_machine_without_time_zones_knows_utc() -> None:
    ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath([])
    try:
        for text in ("22:00-05:00", "22:00-05:00 UTC"):
            window = DailyWindow.read(text)
            assert window is not None
            assert window.words(at("2026-03-10 21:00", UTC)) == (
                "paused outside of its window 22:00-05:00 UTC: it goes on at 2026-03-10 22:00 UTC"
            )
    finally:
        zoneinfo.reset_tzpath()


def test_no_window_is_always() -> None:
    assert TransferSettings(window="always").opening is None
    assert TransferSettings().opening is None


# --- What an end may suffer ---


def test_bounds_are_read() -> None:
    found = Protection.read("--x", "latency=5ms, cow=1.5gb,output-buffer=4mb", SOURCE_BOUNDS)
    assert found == Protection(0.005, 3 << 29, 4 << 20)
    assert Protection.read("--x", "latency=1s", TARGET_BOUNDS) == Protection(1.0)
    assert Protection.read("--x", "off", SOURCE_BOUNDS) == Protection()


@pytest.mark.parametrize(
    "text",
    [
        "latency",
        "latency=5",
        "latency=0ms",
        "latency=-5ms",
        "latency=٥ms",
        "latency=5ms,,",
        "latency=5ms,latency=6ms",
        "cow=5ms",
        "cow=1kb",
        "speed=5ms",
    ],
)
def test_bounds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--protect-source"):
        TransferSettings(protect_source=text)
    with pytest.raises(UsageError, match="--protect-target"):
        TransferSettings(protect_target="cow=512mb")


def test_an_end_is_late_from_two_answers_on_and_well_behind_a_while() -> None:
    watch, now = LatencyWatch(0.005), 0.0

    def answers(seconds: float, times: int) -> list[bool]:
        """Whether it was late, and in the end whether it is well."""
        nonlocal now
        found = []
        for _ in range(times):
            now += 0.1
            watch.note(seconds, now)
            found.append(watch.is_late)
        return found

    assert not any(answers(0.001, 30))
    assert watch.is_well(now)
    # One late answer is none, but not well either.
    assert not any(answers(0.050, 1) + answers(0.001, 15))
    assert not watch.is_well(now)
    answers(0.001, 10)
    assert watch.is_well(now)
    assert answers(0.009, 1) + answers(0.008, 1) == [False, True]
    assert watch.seconds == 0.008
    # Between what is well and the bound it is neither.
    assert answers(0.004, 100)[-1] is False
    assert not watch.is_well(now)
    answers(0.001, 19)
    assert not watch.is_well(now)
    answers(0.001, 3)
    assert watch.is_well(now)
