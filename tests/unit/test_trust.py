"""The table of doubts: each row, the machine against a slow reference, and what it promises.

No server: moments and offsets are handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine._native import CMD_MEMBER_COUNT, CMD_MEMBER_TTL, CMD_UNKNOWN
from engine.model.doubt import Doubt
from engine.transfer.stream_trust import CATCHING_UP, TABLE, Again, Fenced, Servers, Trust, Until

OLD = Servers(relative_ttls=True, field_ttls=False, own_streams=False)
FIELDS = Servers(relative_ttls=False, field_ttls=True, own_streams=False)
EVERYTHING = Servers(relative_ttls=True, field_ttls=True, own_streams=True)
NOTHING = Servers(relative_ttls=False, field_ttls=False, own_streams=False)
# Doubts whose end is an offset.
PASSING = [d for d, row in TABLE.items() if row.until in (Until.PASSED, Until.CAUGHT_UP)]
TRANSIENT = [d for d, row in TABLE.items() if row.until is not Until.FOREVER]


def again_of(trust: Trust, *, beside: Trust) -> Again:
    """What `trust` has read again more than `beside`."""
    return trust.again & ~beside.again


# --- The table ---


def test_each_doubt_has_its_row() -> None:
    assert set(TABLE) == set(Doubt)


@pytest.mark.parametrize(
    ("doubt", "again", "near"),
    [
        (Doubt.BEGUN, Again.TTLS | Again.FIELD_COUNTS, True),
        (Doubt.RELINKED, Again.TTLS | Again.FIELD_COUNTS, True),
        (Doubt.READ_LATE, Again.TTLS | Again.FIELD_COUNTS, True),
        (Doubt.STALLED, Again.TTLS | Again.FIELD_COUNTS, True),
        (Doubt.OUTAGE, Again.TTLS | Again.FIELD_COUNTS, True),
        (Doubt.LAPSED, Again.EVERY_KEY, False),
        (Doubt.EXPOSED, Again.EVERY_KEY, False),
        (Doubt.BEGUN_BEFORE, Again.EVERY_KEY, False),
    ],
)
def test_what_an_offset_ends(doubt: Doubt, again: Again, near: bool) -> None:
    """It starts, holds, and ends where the target has what the source had sent by then."""
    trust, calm = Trust(EVERYTHING), Trust(EVERYTHING)
    assert doubt not in trust
    trust.note(doubt, 10.0)
    assert doubt in trust
    assert (trust.catching_up, trust.plain) == (True, False)
    assert again_of(trust, beside=calm) == again
    if doubt is Doubt.EXPOSED:
        # As long as it lasts no answer counts.
        assert trust.unanswered == []
        trust.note_source_offset(math.inf, 5)
        trust.expose(True, 11.0)
        trust.expose(False, 10.0)
    assert trust.unanswered == [10.0]
    # A question that was put before says nothing.
    trust.note_source_offset(9.9, 500)
    assert trust.reached(10_000, near=True) == frozenset()
    assert trust.unanswered == [10.0]
    # The end.
    trust.note_source_offset(10.0, 1000)
    assert trust.unanswered == []
    # A later answer does not move it.
    trust.note_source_offset(11.0, 2000)
    assert trust.reached(999, near=True) == frozenset()
    assert doubt in trust
    if near:
        assert trust.reached(1000, near=False) == frozenset()
        assert doubt in trust
    assert trust.reached(1000, near=near) == {doubt}
    assert doubt not in trust
    assert (trust.catching_up, trust.plain) == (False, True)
    assert trust.again == calm.again


@pytest.mark.parametrize(("offset", "end"), [(100, 100), (5000, 700)])
def test_no_command_behind_its_bound_is_in_doubt(offset: int, end: int) -> None:
    """An engine before this one has sent nothing behind it, nor what the source had not sent."""
    trust = Trust(OLD)
    trust.note(Doubt.BEGUN_BEFORE, 1.0, bound=700)
    trust.note_source_offset(1.0, offset)
    assert trust.reached(end - 1, near=True) == frozenset()
    assert trust.reached(end, near=False) == {Doubt.BEGUN_BEFORE}


def test_noted_again_its_end_moves() -> None:
    trust = Trust(OLD)
    trust.note(Doubt.STALLED, 1.0)
    trust.note_source_offset(1.0, 100)
    trust.note(Doubt.STALLED, 2.0)
    assert trust.reached(100, near=True) == frozenset()
    assert trust.unanswered == [2.0]
    trust.note_source_offset(2.0, 200)
    assert trust.reached(200, near=True) == {Doubt.STALLED}


def test_each_doubt_has_an_end_of_its_own() -> None:
    trust = Trust(OLD)
    trust.note(Doubt.BEGUN, 1.0)
    trust.note(Doubt.LAPSED, 2.0)
    assert trust.unanswered == [1.0, 2.0]
    trust.note_source_offset(1.0, 100)
    trust.note_source_offset(2.0, 200)
    assert trust.reached(150, near=True) == {Doubt.BEGUN}
    assert trust.every_key
    assert not trust.ttls
    assert trust.reached(200, near=False) == {Doubt.LAPSED}


def test_ttls_that_are_due_again_while_it_is_caught_up() -> None:
    """The end that was known by then is none any more."""
    trust = Trust(OLD)
    trust.expose(True, 1.0)
    trust.expose(False, 2.0)
    trust.note_source_offset(2.0, 100)
    trust.expose(True, 3.0)
    assert trust.reached(100, near=True) == frozenset()
    assert trust.every_key
    trust.expose(False, 4.0)
    trust.note_source_offset(3.9, 150)
    assert trust.reached(150, near=True) == frozenset()
    trust.note_source_offset(4.0, 200)
    assert trust.reached(200, near=True) == {Doubt.EXPOSED}


def test_an_engine_that_finds_out_what_failed_before_it() -> None:
    trust = Trust(NOTHING)
    trust.note(Doubt.UNSETTLED, 0.0)
    assert Doubt.UNSETTLED in trust
    assert Again.APPLIED in trust.again
    assert not trust.plain
    assert not trust.every_key
    assert not trust.catching_up
    assert trust.unanswered == []
    trust.note_source_offset(math.inf, 0)
    assert trust.reached(10**9, near=True) == frozenset()
    trust.settle(Doubt.UNSETTLED)
    assert Doubt.UNSETTLED not in trust
    assert trust.plain


@pytest.mark.parametrize("doubt", [Doubt.UNSEEN, Doubt.COUNTED_LATE])
def test_what_is_about_one_batch_does_not_stay(doubt: Doubt) -> None:
    trust = Trust(EVERYTHING)
    trust.note(doubt, 1.0)
    assert doubt not in trust
    assert trust.plain


def test_an_answer_that_was_not_seen() -> None:
    trust = Trust(NOTHING)
    look = trust.look()
    assert not trust.missed(look)
    assert trust.missed(look, unseen=True)


@pytest.mark.parametrize("doubt", [Doubt.LAPSED, Doubt.EXPOSED])
def test_every_key_comes_into_doubt_while_a_batch_is_under_way(doubt: Doubt) -> None:
    trust = Trust(NOTHING)
    look = trust.look()
    trust.note(doubt, 1.0)
    assert trust.missed(look)
    # One that is looked at now is known to be in doubt.
    assert trust.look().every_key
    assert not trust.missed(trust.look())


def test_import_mode_that_is_left_twice() -> None:
    """What was stored between may have expired, though every key was in doubt already."""
    trust = Trust(NOTHING)
    trust.note(Doubt.LAPSED, 1.0)
    look = trust.look()
    trust.note(Doubt.LAPSED, 2.0)
    assert trust.missed(look)


def test_other_doubts_come_too_late_for_no_batch() -> None:
    trust = Trust(EVERYTHING)
    look = trust.look()
    for doubt in (Doubt.BEGUN, Doubt.RELINKED, Doubt.STALLED, Doubt.OUTAGE, Doubt.READ_LATE):
        trust.note(doubt, 1.0)
    assert not trust.missed(look)


@pytest.mark.parametrize(("age", "late"), [(0.0, False), (0.04, False), (0.06, True), (None, True)])
def test_fields_that_are_counted_up_late(age: float | None, late: bool) -> None:
    trust = Trust(FIELDS)
    assert trust.counted_late(age, None) is late
    assert trust.counted_late(age, trust.look()) is late
    assert not Trust(OLD).counted_late(age, None)
    trust.note(Doubt.STALLED, 1.0)
    # Such hashes were read again when it was looked at.
    assert not trust.counted_late(age, trust.look())
    # It was under way by then: nobody looked.
    assert trust.counted_late(age, None) is late
    assert trust.counted_late(age, Trust(FIELDS).look()) is late


@pytest.mark.parametrize(
    ("servers", "again", "kinds"),
    [
        (NOTHING, Again.BY_KIND, CMD_UNKNOWN),
        (OLD, Again.BY_KIND, CMD_UNKNOWN),
        (FIELDS, Again.BY_KIND | Again.FIELD_TTLS, CMD_UNKNOWN | CMD_MEMBER_TTL),
        (
            EVERYTHING,
            Again.BY_KIND | Again.FIELD_TTLS | Again.OWN_STREAMS,
            CMD_UNKNOWN | CMD_MEMBER_TTL,
        ),
    ],
    ids=["nothing", "relative TTLs", "field TTLs", "everything"],
)
def test_what_holds_between_two_servers_for_ever(
    servers: Servers, again: Again, kinds: int
) -> None:
    trust = Trust(servers)
    assert trust.again == again
    assert trust.kinds == kinds
    assert trust.plain
    assert trust.own_streams is servers.own_streams
    assert not trust.catching_up
    assert trust.unanswered == []
    trust.note_source_offset(math.inf, 0)
    assert trust.reached(10**9, near=True) == frozenset()
    assert trust.again == again


def test_what_the_two_servers_rule_out() -> None:
    """A source of absolute TTLs, a target in import mode: it is caught up with, and nothing is
    read again."""
    trust = Trust(NOTHING)
    for doubt in (Doubt.BEGUN, Doubt.RELINKED, Doubt.STALLED, Doubt.OUTAGE, Doubt.READ_LATE):
        trust.note(doubt, 1.0)
    assert trust.catching_up
    assert trust.plain
    assert trust.again == Again.BY_KIND
    fields = Trust(FIELDS)
    fields.note(Doubt.RELINKED, 1.0)
    assert fields.plain
    assert fields.kinds == CMD_UNKNOWN | CMD_MEMBER_TTL | CMD_MEMBER_COUNT
    old = Trust(OLD)
    old.note(Doubt.RELINKED, 1.0)
    assert old.ttls
    assert not old.plain
    assert old.kinds == CMD_UNKNOWN


@pytest.mark.parametrize("doubt", TRANSIENT)
@pytest.mark.parametrize("readable", [True, False])
def test_behind_the_fence(doubt: Doubt, readable: bool) -> None:
    row = TABLE[doubt]
    trust = Trust(Servers(True, True, True, readable=readable))
    trust.note(doubt, 1.0, fenced=True)
    counts = row.fenced is Fenced.COUNTS or (row.fenced is Fenced.READABLE and readable)
    assert (doubt in trust) is (counts and row.until is not Until.AT_ONCE)


def test_a_doubt_of_nothing_behind_the_fence() -> None:
    """Nothing would be read again: it does not lead back either."""
    trust = Trust(NOTHING)
    trust.note(Doubt.READ_LATE, 1.0, fenced=True)
    assert not trust.catching_up


def test_the_words() -> None:
    trust = Trust(OLD)
    assert trust.words(0.0) == CATCHING_UP
    trust.note(Doubt.BEGUN, 1.0)
    assert trust.words(1.0) == CATCHING_UP
    trust.note(Doubt.STALLED, 5.0)
    assert trust.words(5.5) == "what the source sends arrives late"
    assert trust.words(6.1) == CATCHING_UP
    trust.expose(True, 7.0)
    assert trust.words(7.0) == CATCHING_UP


# --- Against a slow reference ---


@dataclass
class History:
    """Every event ever seen; what holds is found by going through all of them each time."""

    servers: Servers
    events: list[tuple[object, ...]] = field(default_factory=list)

    def holds(self, doubt: Doubt) -> bool:
        row = TABLE[doubt]
        if row.until is Until.FOREVER:
            return bool(row.again & self.servers.possible)
        held, since, until = False, 0.0, None
        for kind, *rest in self.events:
            match kind, rest:
                case "note", [Doubt() as noted, float(now), bool(fenced)]:
                    if noted is doubt and not (fenced and not self._counts(doubt)):
                        held, since, until = True, now, None
                        if doubt is Doubt.EXPOSED:
                            since = math.inf
                case "expose", [bool(exposed), float(now)] if doubt is Doubt.EXPOSED:
                    if exposed:
                        held, since, until = True, math.inf, None
                    elif held and since == math.inf:
                        since = now
                case "told", [float(moment), int(offset)]:
                    if held and until is None and since <= moment:
                        until = offset
                case "reached", [int(offset), bool(near)]:
                    wants_near = row.until is Until.CAUGHT_UP
                    if held and until is not None and offset >= until and (near or not wants_near):
                        held = False
        return held and row.until is not Until.AT_ONCE

    def _counts(self, doubt: Doubt) -> bool:
        if not TABLE[doubt].again & self.servers.possible:
            return False
        return {
            Fenced.COUNTS: True,
            Fenced.READABLE: self.servers.readable,
            Fenced.LEFT_OUT: False,
        }[TABLE[doubt].fenced]


class AgainstHistory(RuleBasedStateMachine):
    """Any sequence of events."""

    @initialize(which=st.tuples(*[st.booleans()] * 4))
    def begin(self, which: tuple[bool, bool, bool, bool]) -> None:
        servers = Servers(*which)
        self.trust, self.history, self.now, self.at = Trust(servers), History(servers), 0.0, 0

    @rule(doubt=st.sampled_from(PASSING), later=st.integers(0, 3), fenced=st.booleans())
    def note(self, doubt: Doubt, later: int, fenced: bool) -> None:
        self.now += later
        self.trust.note(doubt, self.now, fenced=fenced)
        self.history.events.append(("note", doubt, self.now, fenced))

    @rule(exposed=st.booleans(), later=st.integers(0, 3))
    def expose(self, exposed: bool, later: int) -> None:
        self.now += later
        self.trust.expose(exposed, self.now)
        self.history.events.append(("expose", exposed, self.now))

    @rule(ago=st.integers(0, 6), more=st.integers(0, 50))
    def note_source_offset(self, ago: int, more: int) -> None:
        moment, offset = self.now - ago, self.at + more
        self.trust.note_source_offset(moment, offset)
        self.history.events.append(("told", moment, offset))

    @rule(more=st.integers(0, 40), near=st.booleans())
    def reached(self, more: int, near: bool) -> None:
        self.at += more
        before = {d for d in PASSING if self.history.holds(d)}
        self.history.events.append(("reached", self.at, near))
        over = self.trust.reached(self.at, near=near)
        assert over == before - {d for d in PASSING if self.history.holds(d)}

    @invariant()
    def the_same(self) -> None:
        possible = self.history.servers.possible
        held = {doubt for doubt in Doubt if self.history.holds(doubt)}
        again = Again.NOTHING
        for doubt in held:
            again |= TABLE[doubt].again
        trust = self.trust
        assert trust.again == again & possible
        assert trust.catching_up is any(TABLE[doubt].leads_back for doubt in held)
        assert trust.every_key is (Again.EVERY_KEY in trust.again)
        assert trust.ttls is (Again.TTLS in trust.again)
        assert trust.field_ttls is (Again.FIELD_TTLS in trust.again)
        assert trust.field_counts is (Again.FIELD_COUNTS in trust.again)
        assert trust.plain is not bool(trust.again & (Again.EVERY_KEY | Again.TTLS))
        assert bool(trust.kinds & CMD_MEMBER_COUNT) is trust.field_counts
        assert bool(trust.kinds & CMD_MEMBER_TTL) is trust.field_ttls


AgainstHistory.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestAgainstHistory = AgainstHistory.TestCase


# --- What it promises ---

# A step of a world with one source and one target: how much is written, whether TTLs on the target
# may be due, whether the source is asked, which of the answers comes, how far the target gets.
STEPS = st.lists(
    st.tuples(
        st.integers(0, 5), st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 30)
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=120)
def test_no_command_in_doubt_is_trusted(
    steps: list[tuple[int, bool, bool, int, int]],
) -> None:
    """A key may have expired on the target while TTLs were due there; each command that the source
    ran before that ended may be the one that extended it. None of them is applied in good faith,
    whenever the source was asked and however late its answers come."""
    trust, now, sent, applied = Trust(NOTHING), 0.0, 0, 0
    written: list[float] = []  # by offset
    questions: list[tuple[float, int]] = []  # put at, and the offset that is the answer
    due_until = -math.inf
    for more, exposed, asks, which, room in steps:
        now += 1.0
        written += [now] * more
        sent += more
        # TTLs are due from one look to the next.
        trust.expose(exposed, now)
        if exposed:
            due_until = now + 1.0
        if asks:
            questions.append((now, sent))
        for moment in trust.unanswered:
            answers = [offset for asked, offset in questions if asked >= moment]
            if which < len(answers):
                trust.note_source_offset(moment, answers[which])
        trust.reached(applied, near=False)
        while applied < sent and room:
            if written[applied] < due_until:
                assert trust.every_key
            applied, room = applied + 1, room - 1
