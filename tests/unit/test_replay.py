"""What is told of commands of an append-only file that were applied."""

from __future__ import annotations

import pytest

from engine.transfer.aof_replay import lacking_fields


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (0, None),
        (1, "'h0' (database 2) may lack fields"),
        (100, "'h99' (database 2) may lack fields"),
        (101, "1 further hash may lack fields"),
        (50_000, "49,900 further hashes may lack fields"),
    ],
)
def test_hashes_that_may_lack_fields_are_named_up_to_a_bound(count: int, last: str | None) -> None:
    told = list(lacking_fields([(2, b"h%d" % n) for n in range(count)]))
    assert len(told) == min(count, 101)
    assert len(set(told)) == len(told)
    if last is not None:
        assert told[-1].startswith(last)
