"""What is said of a migration is what is known: the sentences, and the figures beside them."""

from __future__ import annotations

from engine.front import shapes
from engine.model.position import StreamPosition, TargetPosition
from engine.model.progress import Phase, Progress
from engine.model.verification import Difference, Verification
from engine.transfer.claim import beaten
from engine.transfer.tally import Tally
from engine.transfer.words import stream_words


def test_keys_that_were_not_carried_are_named_with_their_reasons() -> None:
    tally = Tally()
    assert tally.lost_words() == ""
    tally.refuse(0, b"long", "longer than the target's proto-max-bulk-len (1 MB).")
    assert tally.lost_words() == (
        "1 key was not carried: 'long' (database 0): longer than the target's proto-max-bulk-len "
        "(1 MB)"
    )
    tally.refuse(2, b"new", "a type that it does not know")
    tally.refuse(0, b"longer", "longer than the target's proto-max-bulk-len (1 MB).")
    tally.refuse(0, b"fourth", "x" * 1000)
    assert tally.lost_words() == (
        "4 keys were not carried, such as 'long' (database 0), 'longer' (database 0): longer than "
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
    assert shapes.standing(unknown) == "3 keys"


def test_keys_that_were_not_compared_at_the_end_are_no_differences() -> None:
    large = Difference(0, "large", "12,000,000 bytes (set)")
    found = Verification(True, "in sync", over_budget=(large,))
    shape = shapes.verification(found)
    assert shape is not None
    assert (shape["Different"], shape["Differences"]) == (0, [])
    assert shape["OverBudget"] == [
        {"Db": 0, "Key": "large", "Reason": "12,000,000 bytes (set)"},
    ]
    wrong = Verification(False, "1 key differs", different=1, differences=(large,))
    shape = shapes.verification(wrong)
    assert shape is not None
    assert (len(shape["Differences"]), shape["OverBudget"]) == (1, [])
