"""The phases of a transfer: which ways lead through them, and which moves would be bugs."""

from __future__ import annotations

import itertools

import pytest

from engine.errors import EngineError
from engine.model.progress import ENDS, Phase
from engine.transfer.phases import MOVES, least_advanced, move

P = Phase
# As the module's text tells them.
WAYS = {
    "scanned": (P.CONNECT, P.SNAPSHOT, P.COPIED, P.CUT_OVER, P.DONE),
    "scanned, the gate refuses once": (
        *(P.CONNECT, P.SNAPSHOT, P.COPIED, P.CUT_OVER, P.COPIED, P.CUT_OVER, P.DONE),
    ),
    "the snapshot alone": (P.CONNECT, P.SNAPSHOT, P.DONE),
    "followed": (P.CONNECT, P.SNAPSHOT, P.CATCH_UP, P.FOLLOW, P.CUT_OVER, P.DONE),
    "followed, refused once": (
        *(P.CONNECT, P.SNAPSHOT, P.CATCH_UP, P.FOLLOW, P.CUT_OVER, P.FOLLOW, P.CUT_OVER, P.DONE),
    ),
    "followed until in sync": (P.CONNECT, P.SNAPSHOT, P.CATCH_UP, P.FOLLOW, P.DONE),
    "taken up on the target's position": (P.CONNECT, P.CATCH_UP, P.FOLLOW, P.CUT_OVER, P.DONE),
    "taken up when the target was open": (P.CONNECT, P.DONE),
    "the link broke while it followed": (P.FOLLOW, P.CATCH_UP, P.FOLLOW),
    "the link broke while it caught up": (P.CATCH_UP, P.CATCH_UP, P.FOLLOW),
    "the link broke in the snapshot": (P.SNAPSHOT, P.SNAPSHOT, P.CATCH_UP),
    "the backlog was gone": (P.FOLLOW, P.SNAPSHOT, P.CATCH_UP, P.FOLLOW),
    "the backlog was gone in the cut-over": (P.CUT_OVER, P.SNAPSHOT),
}
BUGS = {
    "opened before anything was compared": (P.CATCH_UP, P.DONE),
    "in sync before the rest of the snapshot's writes": (P.SNAPSHOT, P.FOLLOW),
    "cut over in the middle of the snapshot": (P.SNAPSHOT, P.CUT_OVER),
    "cut over before a byte was read": (P.CONNECT, P.CUT_OVER),
    "a scan that follows": (P.COPIED, P.FOLLOW),
    "a scan that begins anew behind the operator's back": (P.COPIED, P.SNAPSHOT),
    "a follower that forgets its stream": (P.FOLLOW, P.COPIED),
    "back to the start": (P.SNAPSHOT, P.CONNECT),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_ways_that_lead_to_their_end(way: tuple[Phase, ...]) -> None:
    for old, new in itertools.pairwise(way):
        assert move(old, new) is new


@pytest.mark.parametrize("pair", BUGS.values(), ids=BUGS.keys())
def test_moves_that_would_be_bugs(pair: tuple[Phase, Phase]) -> None:
    with pytest.raises(EngineError, match=f"cannot go from {pair[0]} to {pair[1]}"):
        move(*pair)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_can_fail_or_be_stopped_until_its_end(phase: Phase) -> None:
    if phase in ENDS:
        assert MOVES[phase] == frozenset()
        for other in Phase:
            with pytest.raises(EngineError):
                move(phase, other)
    else:
        assert MOVES[phase] >= {P.FAILED, P.STOPPED}


def test_every_phase_is_reached_from_the_first_and_leads_to_an_end() -> None:
    assert set(MOVES) == set(Phase)
    reached, new = {P.CONNECT}, {P.CONNECT}
    while new:
        new = set().union(*(MOVES[phase] for phase in new)) - reached
        reached |= new
    assert reached == set(Phase)
    # Nothing leads back to the first.
    assert all(P.CONNECT not in following for following in MOVES.values())


@pytest.mark.parametrize("phase", P)
def test_a_migration_is_where_its_only_lane_is(phase: Phase) -> None:
    assert least_advanced([phase]) is least_advanced([phase, P.DONE]) is phase


def test_a_migration_is_where_its_least_advanced_lane_is() -> None:
    assert least_advanced([P.FOLLOW, P.SNAPSHOT, P.CUT_OVER]) is P.SNAPSHOT
    assert least_advanced([P.FOLLOW, P.CATCH_UP]) is P.CATCH_UP
    assert least_advanced([P.CUT_OVER, P.FOLLOW]) is P.FOLLOW
    # One that has ended otherwise than by a cut-over ends the whole.
    assert least_advanced([P.FOLLOW, P.STOPPED]) is P.STOPPED
    assert least_advanced([P.STOPPED, P.DONE, P.FAILED]) is P.FAILED
