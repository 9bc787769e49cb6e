"""Clusters of releases before 6.2 as a source: a cut-over pauses all clients of a primary there, so
nothing can be asked of it behind the fence."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import redis

from tests.support.comparison import assert_settled
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario
from tests.support.writers import writing


@pytest.mark.parametrize(("name", "replicas"), [("redis-5.0", 0), ("redis-6.0", 1)])
def test_shards_whose_clients_are_all_paused(
    name: str, replicas: int, scenario: NewScenario
) -> None:
    """The comparison, and the look at the slots, take what each primary told as it was paused."""
    s = scenario(name, "valkey-9.1", source_shards=2, target_shards=2, replicas=replicas)
    source, target = s.clusters["source"], s.clusters["target"]
    # (redis-py's clients of clusters know none before 6.0.)
    tags = {node: source.tags_of(node, 1)[0] for node in source.primaries}
    written = dict.fromkeys(tags.values(), 0)

    def write(tag: bytes, client: redis.Redis, turn: int) -> None:
        written[tag] = int(client.incr(b"{%s}counter" % tag))
        client.set(b"{%s}%d" % (tag, turn % 500), turn)

    with s.running(timeout=120.0) as run, contextlib.ExitStack() as writers:
        for node, tag in tags.items():
            write_here = writing(partial(write, tag), server=node, pause=0.001, until_refused=True)
            writers.enter_context(write_here)
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    assert run.report.verification.counted, run.report.verification
    assert_settled(source, target, 5)
    for tag, count in written.items():
        there = target.client()
        with there:
            assert 0 < count == int(there.get(b"{%s}counter" % tag) or 0)
    assert_tidy(target)
