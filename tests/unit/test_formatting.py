"""What is said of a migration is what is known: the sentences, and the figures beside them."""

from __future__ import annotations

import pytest

from engine.front import response_shapes
from engine.model.position import StreamPosition, TargetPosition
from engine.model.progress import Phase, Progress
from engine.model.settings import TransferSettings
from engine.model.verification import Difference, Verification
from engine.transfer.drain_estimate import DrainEstimate
from engine.transfer.formatting import above_words, seconds_words, size_words, stream_words
from engine.transfer.stats import TransferStats
from engine.transfer.target_claim import beaten


def test_keys_that_were_not_carried_are_named_with_their_reasons() -> None:
    stats = TransferStats()
    assert stats.lost_words() == ""
    stats.refuse(0, b"long", "longer than the target's proto-max-bulk-len (1 MB).")
    assert stats.lost_words() == (
        "1 key was not migrated: 'long' (database 0): longer than the target's proto-max-bulk-len "
        "(1 MB)"
    )
    stats.refuse(2, b"new", "a type that it does not know")
    stats.refuse(0, b"longer", "longer than the target's proto-max-bulk-len (1 MB).")
    stats.refuse(0, b"fourth", "x" * 1000)
    assert stats.lost_words() == (
        "4 keys were not migrated, such as 'long' (database 0), 'longer' (database 0): longer than "
        "the target's proto-max-bulk-len (1 MB); 'new' (database 2): a type that it does not know"
    )


def test_what_the_source_is_asked_for() -> None:
    assert stream_words(None) == "a full sync"
    assert stream_words(StreamPosition("a" * 40, 9494)) == "what follows offset 9,494"


def test_one_that_lost_its_target_is_not_told_to_end() -> None:
    """It has failed, and its group is available: there is nothing to end."""
    told = str(beaten(TargetPosition("another", None)))
    assert "start it anew with --take-over" in told
    assert "end it" not in told


def test_a_total_that_is_not_known_is_no_zero() -> None:
    unknown = Progress(keys=3)
    assert unknown.total_keys is None
    assert unknown.keys_words == "3 keys"
    assert Progress.from_dict(unknown.to_dict()) == unknown
    known = Progress(phase=Phase.SNAPSHOT, keys=3, total_keys=9000)
    assert known.keys_words == "3 of about 9,000 keys"
    assert response_shapes.how_far(unknown) == "3 keys"


def test_keys_that_were_not_compared_at_the_end_are_no_differences() -> None:
    large = Difference(0, "large", "12,000,000 bytes (set)")
    found = Verification(True, "in sync", over_budget=(large,))
    shape = response_shapes.verification(found)
    assert shape is not None
    assert (shape["Different"], shape["Differences"]) == (0, [])
    assert shape["OverBudget"] == [
        {"Db": 0, "Key": "large", "Reason": "12,000,000 bytes (set)"},
    ]
    wrong = Verification(False, "1 key differs", different=1, differences=(large,))
    shape = response_shapes.verification(wrong)
    assert shape is not None
    assert (len(shape["Differences"]), shape["OverBudget"]) == (1, [])


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (931_400, "931 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_048_576, "1.05 MB"),
        (18_200_000, "18.2 MB"),
        (2_500_000_000, "2.5 GB"),
        (7_000_000_000_000, "7.0 TB"),
    ],
)
def test_sizes(nbytes: int, words: str) -> None:
    assert size_words(nbytes) == words


def test_what_is_above_its_bound_is_seen_to_be() -> None:
    assert above_words(18_200_000, 1_048_576) == "18.2 MB > 1.05 MB"
    assert above_words(1_048_577, 1_048_576) == "1,048,577 > 1,048,576 bytes"
    assert (seconds_words(14.23), seconds_words(1234.5)) == ("14.2 s", "1,234 s")


def test_how_long_what_waits_takes() -> None:
    queue = DrainEstimate()
    assert [queue.seconds] == [None]
    for tenth in range(10):
        queue.look(tenth / 10, 100 * tenth, 5000)
    assert [queue.seconds] == [None]  # too short a while
    queue.look(1.0, 1000, 5000)
    assert queue.seconds == pytest.approx(5.0)
    # It has become slower since.
    for second in range(2, 20):
        queue.look(float(second), 1000 + 10 * second, 5000)
    assert queue.seconds == pytest.approx(500.0)
    for second in range(20, 30):
        queue.look(float(second), 2000, 5000)
    # Nothing was done for nine seconds: it takes that long at least.
    assert queue.seconds == pytest.approx(9.0)
    # What is done as soon as it comes says nothing of how much could be.
    queue.look(30.0, 2000, 0)
    assert [queue.seconds] == [None]
    queue.look(31.0, 2014, 14)
    assert [queue.seconds] == [None]


def test_how_far_behind_in_time_a_cut_over_may_begin() -> None:
    """Half of the time that the fence may stand, where that says anything."""
    for timeout, longest in {10.0: 5.0, 60.0: 30.0, 1.5: 1.0, 0.7: 0.7}.items():
        assert TransferSettings(cut_over_timeout=timeout).max_lag_seconds == longest
