"""MGET is used where it pays; TTLs are left out where a proof may hold, and asked for where not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from engine.sources.mget_or_dump import FetchPolicy


@dataclass
class Totals:
    """What a pipeline would have counted."""

    answered: int = 0
    bytes_received: int = 0
    strings: int = 0
    string_bytes: int = 0
    others: int = 0
    proven: int = 0
    unproven: int = 0
    mget_refused: bool = False

    def read(self, strings: int, others: int, each: int) -> None:
        self.answered += strings + others
        self.bytes_received += (strings + others) * each
        self.strings += strings
        self.string_bytes += strings * each
        self.others += others


def asking(*, mget: bool = True, strings: bool = False, unexpiring: bool = True) -> FetchPolicy:
    return FetchPolicy(mget=mget, strings=strings, unexpiring=unexpiring, batch_bytes=1 << 20)


@pytest.mark.parametrize(
    ("strings", "others", "each", "mget"),
    [
        (1000, 0, 100, True),
        (700, 300, 100, True),
        (400, 600, 100, False),
        (400, 600, 1000, True),  # a long string is spared more
        (50, 950, 1000, False),
        (0, 1000, 100, False),
    ],
)
def test_mget_is_used_while_it_pays(strings: int, others: int, each: int, mget: bool) -> None:
    how, seen = asking(), Totals()
    assert how.mget == 16, "nothing is known yet"
    for _ in range(10):
        seen.read(strings, others, each)
        how.look(seen)
    assert (how.mget > 0) == mget


def test_the_newest_keys_decide() -> None:
    how, seen = asking(), Totals()
    for strings, mget in ((4000, True), (0, False), (4000, True)):
        for _ in range(20):
            seen.read(strings, 4000 - strings, 100)
            how.look(seen)
        assert (how.mget > 0) == mget


def test_long_strings_make_short_mgets() -> None:
    how, seen = asking(), Totals()
    seen.read(100, 0, 64 << 10)
    how.look(seen)
    assert how.mget == 4
    how, seen = asking(), Totals()
    seen.read(3, 0, 100 << 20)
    how.look(seen)
    assert how.mget == 1


def test_mget_is_not_used_where_it_may_not_be() -> None:
    assert asking(mget=False).mget == 0
    how, seen = asking(strings=True), Totals()
    seen.read(1000, 0, 100)
    seen.mget_refused = True
    how.look(seen)
    assert how.mget == 0


def test_a_small_run_tries_and_a_proof_that_holds_opens_the_way() -> None:
    how, seen = asking(), Totals()
    assert how.without_ttl() == 0, "how long the replies are is not known"
    seen.read(512, 0, 100)
    how.look(seen)
    assert how.without_ttl() == 256
    assert how.without_ttl() == 0, "one at a time"
    seen.proven += 1
    how.look(seen)
    # Not half of what the pipeline can hold unproven.
    assert how.without_ttl() == (1 << 20) // 2 // 100
    assert how.without_ttl() > 0


def test_failed_proofs_pause_for_longer_and_longer() -> None:
    how, seen = asking(), Totals()
    seen.read(512, 0, 100)
    how.look(seen)
    pauses = []
    for _ in range(10):
        before = seen.answered
        while not how.without_ttl():
            seen.read(1024, 0, 100)
            how.look(seen)
        pauses.append(seen.answered - before)
        seen.unproven += 1
        how.look(seen)
    assert pauses[:4] == [0, 16 << 10, 32 << 10, 64 << 10]
    assert pauses[-1] <= 1 << 20
    # One that holds makes the next pause short again.
    while not how.without_ttl():
        seen.read(1024, 0, 100)
        how.look(seen)
    seen.proven += 1
    how.look(seen)
    assert how.without_ttl()
    # Several under way fail for one reason.
    for _ in range(5):
        seen.unproven += 1
        how.look(seen)
    before = seen.answered
    while not how.without_ttl():
        seen.read(1024, 0, 100)
        how.look(seen)
    assert seen.answered - before == 16 << 10


def test_ttls_are_asked_for_where_keys_have_them_or_values_are_long() -> None:
    how, seen = asking(unexpiring=False), Totals()
    seen.read(5000, 0, 100)
    how.look(seen)
    assert how.without_ttl() == 0
    how, seen = asking(), Totals()
    seen.read(5000, 0, 5000)
    how.look(seen)
    assert how.without_ttl() == 0
