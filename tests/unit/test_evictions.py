"""What the target has evicted, counted over restarts and counters that are set back."""

from __future__ import annotations

from dataclasses import replace

from engine.model.checkpoint import Checkpoint
from engine.model.evictions import Evictions
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.server import ServerInfo, parse_info

TARGET = ServerInfo("redis", (7, 0, 0), run_id="a", maxmemory_policy="allkeys-lru")


def told(count: int | None, run_id: str = "a") -> ServerInfo:
    return replace(TARGET, evicted_keys=count, run_id=run_id)


def test_what_was_evicted_before_the_start_does_not_count() -> None:
    found = Evictions().after(told(7))
    assert (found.known, found.words) == (0, "")
    assert found.after(told(7)) == found
    found = found.after(told(10))
    assert found.count == 3
    assert (
        "has evicted 3 keys since the start (maxmemory-policy allkeys-lru): set noevi"
        in found.words
    )
    # Another engine goes on from the checkpoint.
    kept = Checkpoint(OnlineCheckpoint("t"), "a", evictions=found)
    assert Checkpoint.from_dict(kept.to_dict()) == kept
    # One that was written before there were any.
    data = kept.to_dict()
    del data["evictions"]
    assert Checkpoint.from_dict(data).evictions == Evictions()


def test_counters_that_begin_anew() -> None:
    found = Evictions().after(told(5)).after(told(8))
    # The process is another one: all that it evicted it has evicted since the start.
    assert found.after(told(0, "b")).count == 3
    found = found.after(told(2, "b"))
    assert found.count == 5
    assert found.after(told(4, "b")).count == 7
    # CONFIG RESETSTAT, with more than the base counted since, or less.
    assert Evictions().after(told(5)).after(told(8)).after(told(1)).count == 4
    assert Evictions().after(told(5)).after(told(8)).after(told(6)).count == 9


def test_what_is_not_told_is_not_known() -> None:
    found = Evictions().after(told(None))
    assert (found.known, found.words) == (None, "")
    text = "redis_version:7.0.0\r\n"
    assert parse_info(text).evicted_keys is None
    assert parse_info(text + "evicted_keys:12\r\n").evicted_keys == 12
