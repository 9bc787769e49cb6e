"""The bound of what is sent and not acknowledged, where lanes share it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from engine._native import RecordBatch
from engine.targets.window import LEAST_BYTES, Window

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit", "lanes", "most"),
    [
        (8 * MIB, 1, 8 * MIB),
        (8 * MIB, 2, 4 * MIB),
        (8 * MIB, 3, 8 * MIB // 3),
        (8 * MIB, 100, LEAST_BYTES),
        (1000, 3, 1000),
    ],
)
def test_lanes_have_one_bound_together(limit: int, lanes: int, most: int) -> None:
    window = Window(limit)
    window.share(lanes)
    # One is taken however long it is.
    assert window.has_room(2 * limit)
    window.add(cast(RecordBatch, SimpleNamespace(nbytes=1)))
    assert window.has_room(most - 1)
    assert not window.has_room(most)


def test_it_tells_how_long_the_target_has_work_besides_the_oldest() -> None:
    window = Window(8 * MIB)

    def add(nbytes: int) -> None:
        window.add(cast(RecordBatch, SimpleNamespace(nbytes=nbytes)))

    def retire(now: float) -> None:
        window.answer((1, 0, []))
        window.retire()
        window.measure(now)

    for _ in range(4):
        add(MIB)
    assert window.busy_seconds == 0  # nothing was answered yet
    retire(10.0)
    assert window.busy_seconds == 0  # since when it had worked is not known
    retire(10.5)
    assert window.busy_seconds == pytest.approx(0.5)  # half a second for 1 MiB
    retire(10.6)
    assert window.busy_seconds == 0  # there is only the oldest
    add(MIB)
    assert window.busy_seconds == pytest.approx(0.3)
    retire(11.0)
    retire(11.0)
    add(MIB)
    add(MIB)
    # It was without work: that time says nothing.
    retire(20.0)
    assert window.busy_seconds == 0
    add(MIB)
    assert 0 < window.busy_seconds < 0.5
    window.clear()
    add(MIB)
    add(MIB)
    assert window.busy_seconds == 0
