"""What is said while something is waited for, and when the wait is over."""

from __future__ import annotations

import time

import pytest

from engine.errors import TransferStopped
from engine.model.backoff import Patience, span


def patience(limit: float) -> tuple[Patience, list[str], list[str]]:
    """With what it tells, and its events."""
    told: list[str] = []
    events: list[str] = []
    made = Patience(
        limit,
        ended="nothing came",
        next_step="it is connected to again",
        fault="target",
        report=told.append,
        event=events.append,
    )
    return made, told, events


def test_it_tells_what_it_waits_for() -> None:
    waits, told, events = patience(3600.0)
    waits.progress()
    assert (told, events) == ([], [])
    assert waits.failed("it is away", remedy="Look there.") > 0
    waits.failed("it is away still", remedy="Look there.")
    assert told[0].startswith("it is away. 1 try failed in ")
    assert told[1].startswith("it is away still. 2 tries failed in ")
    assert "it is connected to again in " in told[1]
    assert told[1].endswith("for up to 1 h without progress. Look there.")
    assert events == ["it is away: trying again for 1 h"]
    waits.well()
    assert told[-1] == ""
    waits.failed("away again")
    assert told[-1].startswith("away again. 3 tries failed")
    waits.progress()
    assert told[-1] == ""
    assert events[1].startswith("it goes on, after 3 tries in ")
    assert waits.tries == 0


def test_it_ends() -> None:
    waits, _, _ = patience(0.05)
    waits.failed("it is away")
    time.sleep(0.06)
    with pytest.raises(TransferStopped) as caught:
        waits.failed("it is away", remedy="Look there.")
    assert str(caught.value) == "nothing came for 0.1 s: it is away. Look there."
    assert caught.value.fault == "target"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0 s"), (1.5, "1.5 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2 h"), (21600, "6 h")],
)
def test_spans(seconds: float, words: str) -> None:
    assert span(seconds) == words
