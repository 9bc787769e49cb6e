"""The depth of the pipeline settles where the source has work and its queue stays short."""

from __future__ import annotations

import pytest

from engine.sources.fetch_depth import Pace


def settle(pace: Pace, round_trip: float, per_key: float, key_bytes: int = 150) -> Pace:
    """Let `pace` see a source that takes `per_key` seconds a key, `round_trip` away."""
    for _ in range(50):
        depth = pace.depth
        pace.answered(depth, round_trip + depth * per_key, depth, depth * key_bytes)
    return pace


@pytest.mark.parametrize("round_trip", [0.0001, 0.001, 0.02, 0.1])
def test_the_pipe_is_kept_full(round_trip: float) -> None:
    pace = settle(Pace(round_trip), round_trip, 5e-6)
    # Enough for a round trip at full speed, up to the bound.
    assert pace.depth >= min(round_trip / 5e-6, 16_384)
    assert pace.depth <= 32_768


def test_near_sources_are_not_flooded() -> None:
    assert settle(Pace(0.0001), 0.0001, 5e-6).depth <= 4096


@pytest.mark.parametrize("key_bytes", [10_000, 1 << 20, 64 << 20])
def test_replies_are_bounded_by_bytes(key_bytes: int) -> None:
    pace = settle(Pace(0.05), 0.05, 1e-3, key_bytes)
    assert pace.depth * key_bytes <= (8 << 20) or pace.depth == 4


def test_count_starts_small_and_a_dry_pipeline_asks_for_more() -> None:
    pace = Pace(0.0001)
    counts = [pace.count(dry=False) for _ in range(8)]
    assert counts[0] <= 256
    assert counts[-1] == 1024
    dry = [pace.count(dry=True) for _ in range(8)]
    assert dry[-1] == 10_240
    assert pace.count(dry=False) == 1024


def test_long_names_make_short_pages() -> None:
    pace = Pace(0.0001)
    pace.page(10, 10 << 20)
    assert pace.count(dry=False) == 4


@pytest.mark.parametrize("name_bytes", [16, 256, 1024, 4096])
def test_pages_of_all_ranges_are_bounded_together(name_bytes: int) -> None:
    pace = Pace(0.05, ranged=True)
    pace.page(100, 100 * name_bytes)
    counts = [pace.count(dry=False) for _ in range(10)]
    assert counts[-1] == min(1024, (256 << 10) // name_bytes)
    assert 128 * counts[-1] * name_bytes <= 32 << 20
