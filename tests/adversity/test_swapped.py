"""Databases that are swapped while keys are dirty: the engine's own names stay where it looks."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from benches.support.engines import Cli, Migration
from benches.support.servers import Server
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import OWN_PREFIX, assert_tidy
from tests.support.servers import ServerFactory, known

SEED = os.environ.get("ENGINE_SEED", "32")
DATABASES = 4
ROUNDS = 5


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A target that does not know INCRBY: each key that is counted up is dirty, and read again."""
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), "--rename-command", "INCRBY", "")
    for db in range(DATABASES):
        source.client(db).mset({f"key:{db}:{n}": n for n in range(50)})
    return source, target


def churn(source: Server, rng: random.Random, rounds: int) -> None:
    """Make keys dirty, and swap databases, that of the position among them, in between; now and
    then in one transaction."""
    for _ in range(rounds):
        pipe = source.client().pipeline(transaction=rng.random() < 0.3)
        for _ in range(rng.randrange(1, 6)):
            pipe.execute_command("SELECT", rng.randrange(DATABASES))
            for _ in range(rng.randrange(1, 8)):
                pipe.incrby(f"count:{rng.randrange(20)}", 1)
            one, other = rng.sample(range(DATABASES), 2)
            pipe.execute_command("SWAPDB", *((0, other) if rng.random() < 0.6 else (one, other)))
        pipe.execute_command("SELECT", 0)
        pipe.execute()


def own_keys(target: Server) -> list[tuple[int, bytes]]:
    return [
        (db, key)
        for db in range(DATABASES)
        for key in target.client(db).scan_iter(count=1000)
        if key.startswith(OWN_PREFIX)
    ]


def test_swapped_while_keys_are_dirty(ends: tuple[Server, Server]) -> None:
    source, target = ends
    rng = random.Random(f"swapped {SEED}")

    with migrating(source, target, timeout=90) as run:
        run.following()
        churn(source, rng, 60)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert run.report.repaired_keys > 0
    assert_settled(source, target, DATABASES)
    assert_tidy(target)


def test_killed_between_the_swaps(
    ends: tuple[Server, Server], state_url: str, tmp_path: Path
) -> None:
    """The next engine finds the names of what is dirty, and in the right databases."""
    source, target = ends
    rng = random.Random(f"killed {SEED}")
    migration = Migration(Cli(state_url, tmp_path), SEED)
    try:
        migration.register(target)
        migration.start(source, "--source-type", "replica")
        migration.wait_for(lambda found: found["CanComplete"])
        for turn in range(ROUNDS):
            churn(source, rng, 20)
            migration.kill(within=0.3)
            churn(source, rng, 3)
            migration.resume(verb=turn == 0)
        churn(source, rng, 5)
        migration.wait_for(lambda found: found["CanComplete"])
        assert len(own_keys(target)) <= 2
        migration.complete()
        assert migration.kills == ROUNDS
    finally:
        migration.close()
    assert own_keys(target) == []
    assert_settled(source, target, DATABASES)
