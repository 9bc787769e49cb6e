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
