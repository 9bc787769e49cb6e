"""Both ends' counts of keys: what explains a difference, and what is said of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.server import Keyspace, ServerInfo
from engine.model.verification import Verification, total
from engine.verify.key_counts import judge


def of(*databases: tuple[int, int, int] | tuple[int, int, int, int]) -> ServerInfo:
    """A server with these (database, keys, with a TTL, hashes with field TTLs)."""
    return ServerInfo("redis", (7, 4, 0), keyspace=tuple(Keyspace(*each) for each in databases))


@pytest.mark.parametrize(
    ("source", "target", "expired", "wrong", "words"),
    [
        (of(), of(), (0, 0), "", "0 keys on the source, 0 on the target"),
        (
            of((0, 9, 5)),
            of((0, 7, 3)),
            (0, 2),
            "",
            (
                "9 keys on the source, 7 on the target (2 with a TTL have expired at one end, and "
                "still count)"
            ),
        ),
        (
            of((0, 9, 5)),
            of((0, 7, 3)),
            (9, 1),
            "database 0 has 5 keys with a TTL on the source and 3 on the target",
            "9 keys on the source, 7 on the target",
        ),
        # More at one end in one database, and at the other in another one.
        (
            of((0, 9, 5), (1, 3, 3)),
            of((0, 8, 4), (1, 4, 4)),
            (1, 1),
            "",
            (
                "12 keys on the source, 12 on the target (2 with a TTL have expired at one end, "
                "and still count)"
            ),
        ),
        (
            of((0, 9, 5), (1, 3, 3)),
            of((0, 8, 4), (1, 4, 4)),
            (0, 1),
            "database 1 has 3 keys with a TTL on the source and 4 on the target",
            "12 keys on the source, 12 on the target",
        ),
        # Keys without a TTL expire nowhere.
        (
            of((3, 9, 5)),
            of((3, 8, 5)),
            (99, 99),
            "database 3 has 4 keys without a TTL on the source and 3 on the target",
            "9 keys on the source, 8 on the target",
        ),
        # Hashes of which every field has expired may be what is missing.
        (
            of((0, 9, 0, 2)),
            of((0, 8, 0, 1)),
            (0, 0),
            "",
            (
                "9 keys on the source, 8 on the target (1 hash has no field left that has not "
                "expired, and still counts)"
            ),
        ),
        (
            of((0, 9, 0, 2)),
            of((0, 6, 0, 0)),
            (0, 0),
            "database 0 has 9 keys without a TTL on the source and 6 on the target",
            "9 keys on the source, 6 on the target",
        ),
    ],
)
def test_counts(
    source: ServerInfo, target: ServerInfo, expired: tuple[int, int], wrong: str, words: str
) -> None:
    counts = judge(source, target, own=0, expired=expired)
    assert counts.wrong == wrong
    assert counts.words == words


def test_keys_of_the_engine_do_not_count() -> None:
    assert judge(of((0, 2, 0)), of((0, 5, 0)), own=3, expired=(0, 0)).wrong == ""
    assert judge(of((0, 2, 0)), of((0, 5, 0)), own=2, expired=(0, 0)).wrong


SPACES = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda n: (sum(n), n[1]))


@given(SPACES, SPACES, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(0, 2))
def test_stray_keys_are_left_out(
    source: tuple[int, int], target: tuple[int, int], stray: tuple[int, int], expired: int
) -> None:
    """How many of them have a TTL is not known: it is right if it is for one number of them at each
    end, and no key that clients reach is missing behind them."""
    if stray[0] > source[0] or stray[1] > target[0]:
        return
    spaces = [
        [
            of((0, keys - gone, timed - of_gone))
            for of_gone in range(gone + 1)
            if 0 <= timed - of_gone <= keys - gone
        ]
        for (keys, timed), gone in zip((source, target), stray, strict=True)
    ]
    right = any(
        not judge(one, other, own=0, expired=(expired, 1)).wrong
        for one in spaces[0]
        for other in spaces[1]
    )
    counts = judge(
        of((0, *source)),
        of((0, *target)),
        own=0,
        expired=(expired, 1),
        stray=({0: stray[0]}, {0: stray[1]}),
    )
    assert bool(counts.wrong) != right
    assert (counts.source, counts.target) == (source[0] - stray[0], target[0] - stray[1])
    assert counts.stray == sum(stray)


def test_stray_keys_are_told_of() -> None:
    counts = judge(of((0, 9, 5)), of((0, 8, 5)), own=0, expired=(0, 0), stray=({0: 1}, {}))
    assert counts.words == (
        "8 keys on the source, 8 on the target (without 1 key of a slot that the node that holds "
        "it does not own)"
    )
    # More than there are explain nothing.
    assert judge(of((0, 2, 0)), of(), own=0, expired=(0, 0), stray=({0: 3}, {})).wrong


def test_what_several_lanes_have_shown() -> None:
    """Lanes that share an end have the same counts, which count once; one that differs is what
    is told."""
    alone = Verification(True, "in sync.", keys_source=5, keys_target=5, compared=3)
    shared = [
        Verification(
            True,
            "in sync.",
            keys_source=100,
            keys_target=100,
            compared=40,
            counted_lanes=3,
            not_compared=(("vectorset", 2),),
        )
        for _ in range(3)
    ]
    lanes = list(zip(("a", "b", "c", "d"), [alone, *shared], strict=True))
    found = total(lanes)
    assert (found.keys_source, found.keys_target, found.compared) == (105, 105, 123)
    assert found.not_compared == (("vectorset", 6),)
    assert found.reason == (
        "in sync on all 4 lanes; 105 keys on the source, 105 on the target; 123 keys compared, "
        "0 differ. Lane a: in sync."
    )
    assert total(lanes[:1]) == alone
    wrong = Verification(False, "1 keys differ", different=1)
    assert total([*lanes, ("e", wrong)]).reason == "lane e: 1 keys differ"
    assert Verification.from_dict(found.to_dict()) == found
