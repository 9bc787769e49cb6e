"""Which lanes are driven by which process."""

from __future__ import annotations

import random

import pytest

from engine.errors import UsageError
from engine.model.lane_plan import PlannedEnd, PlannedLane
from engine.model.settings import TransferSettings
from engine.model.slots import ALL_SLOTS
from engine.transfer.lane_groups import grouped


def lane(source: int, target: int) -> PlannedLane:
    """Between two servers; 0: the one that is no cluster."""
    ends = [
        PlannedEnd("host", number, (f"{side}{number}",)) if number else PlannedEnd()
        for side, number in (("s", source), ("t", target))
    ]
    return PlannedLane(f"{source}-{target}", ALL_SLOTS, *ends)


def test_shards_of_their_own_are_parted() -> None:
    lanes = [lane(n, n) for n in range(1, 6)]
    assert grouped(lanes, 0) == [[0, 1, 2, 3, 4]]
    assert grouped(lanes, 5) == [[0, 1, 2, 3, 4]]
    assert grouped(lanes, 2) == [[0, 1], [2, 3], [4]]
    assert grouped(lanes, 1) == [[0], [1], [2], [3], [4]]


def test_lanes_that_share_a_server_are_not() -> None:
    assert grouped([lane(0, n) for n in (1, 2, 3)], 1) == [[0, 1, 2]]
    assert grouped([lane(n, 0) for n in (1, 2, 3)], 1) == [[0, 1, 2]]
    # By another lane between them.
    assert grouped([lane(1, 1), lane(1, 2), lane(2, 2), lane(3, 3)], 1) == [[0, 1, 2], [3]]


def test_any() -> None:
    """Each lane is in one group, and each server too."""
    chance = random.Random(5)
    for _ in range(300):
        lanes = [lane(chance.randint(1, 6), chance.randint(1, 6)) for _ in range(8)]
        groups = grouped(lanes, chance.randint(1, 4))
        assert sorted(at for group in groups for at in group) == list(range(8))
        for side in ("source", "target"):
            ends = [{getattr(lanes[at], side) for at in group} for group in groups]
            assert len(set().union(*ends)) == sum(map(len, ends))


def test_fewer_than_none() -> None:
    with pytest.raises(UsageError, match="--lanes-per-worker"):
        TransferSettings(lanes_per_worker=-1)
    with pytest.raises(UsageError, match="--lanes-per-worker"):
        TransferSettings(lanes_per_worker="many")  # type: ignore[arg-type]
