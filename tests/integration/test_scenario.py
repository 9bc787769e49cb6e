"""A scenario of the tests, by each face that runs a migration: the same story everywhere."""

from __future__ import annotations

import pytest

from tests.support.faces import Face
from tests.support.scenario import NewScenario


@pytest.mark.parametrize("face", ["library", "cli", "verbs", "http"])
def test_each_face_runs_a_migration(scenario: NewScenario, face: Face) -> None:
    """Keys before it and writes beside it are on the target behind a cut-over."""
    s = scenario("redis-7.0", "redis-7.0", proxies="both")
    s.load(keys=500)
    with s.migration(face) as run:
        with s.counters() as counters:
            run.following()
            s.link("source").cut_now()
            s.link("target").cut_now()
            run.in_sync()
        s.source.client().set("late", "1")
        run.cut_over()
        assert any("cut over at offset" in event for event in run.events), run.events
    assert counters.acknowledged
    assert s.target.client().get("late") == b"1"
    s.assert_migrated()


def test_an_engine_that_is_killed(scenario: NewScenario) -> None:
    """Another goes on with what it has left."""
    s = scenario("redis-7.0", "redis-7.0")
    s.load()
    with s.counters(), s.worker() as run:
        run.in_sync()
        run.kill(within=0.2)
        run.resume()
        run.cut_over()
    s.assert_migrated()
