"""Clusters at both ends whose slots move all the time, in each way in which servers move them,
while shards fail over and engines follow one another. Clients write with everything that clusters
take, and go on at the target: nothing that the source kept is lost or doubled, and both ends are
equal.

ENGINE_SEED gives other moments; ENGINE_SOAK=1 more events.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable

import pytest
import redis

from benches.support.clusters import Cluster
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Retrying, Traffic

SEED = os.environ.get("ENGINE_SEED", "resharding")
SOAK = bool(os.environ.get("ENGINE_SOAK"))
EVENTS = 60 if SOAK else 8
BACKLOG = ("--repl-backlog-size", "64mb")


class Trouble:
    """What befalls one of two clusters. Each event leaves a cluster that is whole."""

    def __init__(self, rng: random.Random, clusters: list[Cluster]) -> None:
        self.rng = rng
        self.clusters = clusters
        self.done: list[str] = []

    def one(self) -> None:
        """One event, of a kind and at a place that the seed gives."""
        cluster = self.rng.choice(self.clusters)
        kinds: list[Callable[[Cluster], None]] = [
            self._moves,
            self._moves_and_is_cancelled,
            self._fails_over,
        ]
        if cluster.nodes[0].binary.flavour == "valkey" and self._is_atomic(cluster):
            kinds += [self._moves_at_once, self._moves_at_once_and_is_cancelled]
        kind = self.rng.choice(kinds)
        self.done.append(kind.__name__)
        kind(cluster)
        cluster.wait_until_whole()
        for primary in cluster.primaries:
            # Valkey takes no CLUSTER SETSLOT before a replica has it.
            wait_for(lambda: primary.client().wait(1, 100) > 0, "a replica")  # noqa: B023

    @staticmethod
    def _is_atomic(cluster: Cluster) -> bool:
        with contextlib.suppress(redis.ResponseError):
            cluster.nodes[0].client().execute_command("CLUSTER GETSLOTMIGRATIONS")
            return True
        return False

    def _choice(self, cluster: Cluster, most: int) -> tuple[list[int], Server]:
        """Some slots side by side, and another node."""
        here, there = self.rng.sample(cluster.primaries, 2)
        slots = cluster.slots_of(here)
        first = self.rng.randrange(max(len(slots) - most, 1))
        # Those of the end too: the engine's own keys are in the last one.
        if self.rng.random() < 0.3:
            first = max(len(slots) - most, 0)
        return slots[first : first + self.rng.randint(1, most)], there

    def _moves(self, cluster: Cluster) -> None:
        slots, there = self._choice(cluster, 60)
        cluster.move(slots, there)

    def _moves_and_is_cancelled(self, cluster: Cluster) -> None:
        slots, there = self._choice(cluster, 60)
        moving = cluster.moving(slots, there)
        time.sleep(self.rng.random() * 0.3)
        moving.cancel()

    def _moves_at_once(self, cluster: Cluster) -> None:
        slots, there = self._choice(cluster, 500)
        with contextlib.suppress(redis.ResponseError):  # slots in pieces
            cluster.move_atomically(slots, there)

    def _moves_at_once_and_is_cancelled(self, cluster: Cluster) -> None:
        slots, there = self._choice(cluster, 2000)
        with contextlib.suppress(redis.ResponseError):
            ended = cluster.moving_atomically(slots, there)
            time.sleep(self.rng.random() * 0.05)
            cluster.cancel_moves()
            ended()

    def _fails_over(self, cluster: Cluster) -> None:
        old = self.rng.choice(cluster.primaries)
        (replica, *_) = cluster.replicas_of(old)
        cluster.fail_over(replica)


@pytest.mark.timeout(1800 if SOAK else 400)
@pytest.mark.parametrize(
    "names", [("redis-7.0", "redis-7.0"), ("valkey-9.1", "valkey-9.1")], ids="->".join
)
def test_slots_move_all_the_time(server_factory: ServerFactory, names: tuple[str, str]) -> None:
    """From three shards into three. One database: behind a slot migration of Valkey 9 its replicas
    are in another one (findings/slot-migration-leaves-replicas-in-another-database.sh), and what
    they have clients have at the next failover."""
    rng = random.Random(f"{SEED} {names}")
    with contextlib.ExitStack() as stack:
        source, target = (
            stack.enter_context(
                Cluster.start(known(name), *BACKLOG, primaries=3, replicas=1, make=server_factory)
            )
            for name in names
        )
        trouble = Trouble(rng, [source, target])
        store = MemoryCheckpoint()
        without = ("flushall", "flushdb")
        traffic = Traffic(source, f"{SEED} traffic", databases=(0,), without=without, rate=500.0)
        with Retrying(source, clients=3, rate=50.0) as clients:
            with traffic:
                for turn in range(3):
                    with engine(source, target, store) as run:
                        run.following()
                        for _ in range(EVENTS // 3 or 1):
                            trouble.one()
                        if turn < 2:
                            run.stop()
                            continue
                        clients.goes_on()
                        traffic.stop()
                        run.cut_over(again="slots")
            assert run.report.status == "done", (trouble.done, run.report.errors, run.events)
            assert_settled(source, target, 5, failed_over=True)
            # What was acknowledged, and the source itself has lost as its slots moved.
            lost = clients.check(source)
            assert clients.check(target) == lost, (trouble.done, clients.describe())
            clients.move_to(target)
            clients.goes_on()
            clients.stop()
            print(f"{names}, seed {SEED}: {trouble.done}; lost by the source: {lost or 'nothing'}")
            assert clients.check(target) == [] or lost, (trouble.done, clients.describe())
        assert_tidy(target)


def engine(source: Cluster, target: Cluster, store: MemoryCheckpoint) -> Run:
    return migrating(source, target, checkpoints=store, timeout=300.0, retry_for=60.0)
