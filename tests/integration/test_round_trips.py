"""What a migration costs where both ends are far away: a bounded count of round trips."""

from __future__ import annotations

import time

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.progress import ENDS, Phase, Progress
from tests.support.library import migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing

ROUND_TRIP = 0.3
# Behind the fence: the fence, two transactions (one is under way when the fence goes up), one in
# which keys that were read again are stored, the comparison, the seal, the opening; one to spare.
MOST = 8
TRIES = 3
# All of a migration of a few keys, from the first connection to the last: some 24 on a quiet
# machine, and 160 when each question was asked by itself.
MOST_IN_ALL = 40
SHORT = 0.1


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A target without import mode, so that deadlines are set back behind the fence."""
    return server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))


def round_trips(source: Server, target: Server, databases: int) -> float:
    """How many fit into the time from the fence to the open target, under writes."""
    clients = [source.client(db) for db in range(databases)]
    for client in clients:
        client.mset({f"key:{n}": n for n in range(50)})

    def write(writer: redis.Redis, turn: int) -> None:
        """A transaction is under way when the fence goes up, and in every database is a key that is
        due soon behind the cut-over, so that it is lifted until then."""
        clients[turn % databases].psetex("soon", 12_000, turn)
        writer.incr("clicks")

    with Proxy(source.host, source.port) as one, Proxy(target.host, target.port) as other:

        def move_away(progress: Progress) -> None:
            """Both ends, when the fence is about to go up: what comes before takes its time."""
            if progress.phase is Phase.CUT_OVER:
                for proxy in (one, other):
                    proxy.delay(ROUND_TRIP / 2)

        with (
            writing(write, server=source, pause=0.002, until_refused=True),
            migrating(one, other, timeout=90, on_progress=move_away) as run,
        ):
            run.following()
            run.in_sync()
            run.complete()
            run.wait_for(lambda: run.progress.phase in ENDS, "the end", 60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.fence_seconds is not None
    # Set back, in every database.
    assert_tidy(target)
    assert target.client().get("clicks") == source.client().get("clicks")
    return run.report.fence_seconds / ROUND_TRIP


def test_the_write_stop_of_ends_far_away(ends: tuple[Server, Server]) -> None:
    """So many round trips at the most, whatever the number of databases."""
    source, target = ends
    databases = 16
    counted: list[float] = []
    while len(counted) < TRIES and min(counted, default=MOST) >= MOST:
        for server in ends:
            # The cut-over before this one has left a write block.
            server.client().config_set("min-replicas-to-write", 0)
            server.client().flushall()
        counted.append(round_trips(source, target, databases))
    print(f"{databases} databases: {counted} round trips behind the fence")
    assert min(counted) < MOST


def seconds_of(source: Server | Proxy, target: Server | Proxy) -> float:
    """How long a migration takes from its start to its end."""
    began = time.monotonic()
    run = migrated(source, target, one_go=True, timeout=90)
    assert run.report.status == "done", (run.report.errors, run.events)
    return time.monotonic() - began


def test_a_migration_of_ends_far_away(ends: tuple[Server, Server]) -> None:
    """Set-up, a snapshot of a few keys, the comparison, the cut-over, and the end."""
    source, target = ends
    counted: list[float] = []
    while len(counted) < TRIES and min(counted, default=MOST_IN_ALL) >= MOST_IN_ALL:
        taken: list[float] = []
        for far in (0.0, SHORT):
            for server in ends:
                server.client().config_set("min-replicas-to-write", 0)
                server.client().flushall()
            source.client().mset({f"key:{n}": n for n in range(100)})
            with Proxy(source.host, source.port) as one, Proxy(target.host, target.port) as other:
                for proxy in (one, other):
                    proxy.delay(far / 2)
                taken.append(seconds_of(one, other))
            assert target.client().dbsize() == 100
        counted.append((taken[1] - taken[0]) / SHORT)
    print(f"{counted} round trips in all")
    assert min(counted) < MOST_IN_ALL
