"""The harness that kills the engine: on the scan path, which is there already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benches import datasets
from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from tests.support.comparison import assert_settled
from tests.support.servers import ServerFactory

SCAN = ("--source-type", "scan")


def test_a_migration_that_is_killed_again_and_again(
    migration: Migration, server_factory: ServerFactory
) -> None:
    source, target = server_factory(), server_factory()
    datasets.demo(source.url, n=20_000)
    with Proxy(source.host, source.port) as proxy:
        proxy.throttle(2_000_000)
        migration.register(target)
        migration.start(proxy, *SCAN)
        killed = set()
        for _ in range(4):
            killed.update(migration.workers())
            migration.kill(within=0.7)
            assert migration.migration()["Workers"] == []
            migration.resume()
        proxy.throttle(None)
        migration.wait_for(lambda found: found["CanComplete"])
        assert migration.kills == len(killed) == 4
        migration.complete()
    assert_settled(source, target, 0)
    assert "killed" in migration.story()


def test_nothing_outlives_it(state_url: str, tmp_path: Path, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": b"x" * 1000 for n in range(20_000)})
    migration = Migration(Cli(state_url, tmp_path), seed=1)
    with Proxy(source.host, source.port) as proxy:
        proxy.throttle(500_000)
        migration.register(target)
        migration.start(proxy, *SCAN)
        (pid,) = migration.workers()
        os.kill(pid, 0)
        migration.close()
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_verb_that_is_refused_is_told_with_the_story(
    migration: Migration, server_factory: ServerFactory
) -> None:
    migration.register(server_factory())
    with pytest.raises(AssertionError, match=r"InvalidReplicationGroupState|NotUnderMigration"):
        migration.resume()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # Workers that go on with what the one before had saved.
        ([0, 1, 3, 3, 4], 4),
        # Workers that begin at nothing.
        ([0, 2, 0, 1, 0, 3], 6),
    ],
)
def test_counters_are_added_up_over_workers(
    migration: Migration, monkeypatch: pytest.MonkeyPatch, told: list[int], expected: int
) -> None:
    answers = iter(told)

    def describe(_: str) -> dict[str, Any]:
        counters = {"PartialSyncs": next(answers)}
        return {"ReplicationGroups": [{"Migration": {"Counters": counters}}]}

    face = migration._engine.sync
    monkeypatch.setattr(face, "describe_replication_groups", describe)
    monkeypatch.setattr(type(migration._engine), "sync", property(lambda _: face))
    for _ in told:
        migration.describe()
    assert migration.counters["PartialSyncs"] == expected
    monkeypatch.undo()
