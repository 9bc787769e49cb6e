"""From every shape into every other, while all that can befall them does: primaries that die or
hand over, slots that move in each way in which servers move them, links that are cut, workers that
are killed. Clients write with everything that both ends take, and go on at the target: nothing that
the source kept is lost or doubled, and both ends are equal.

    ENGINE_SOAK=1 ENGINE_SEED=7 pytest tests/adversity/test_every_shape.py -s    # fifty events each
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benches.support.clusters import Cluster
from benches.support.engines import Cli, Migration
from benches.support.servers import Server
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled, settle
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory
from tests.support.traffic import Retrying, Traffic
from tests.support.traffic.writer import TAGS
from tests.support.trouble import Deployment, Trouble, deployment

SEED = os.environ.get("ENGINE_SEED", "every shape")
SOAK = bool(os.environ.get("ENGINE_SOAK"))
ENGINES = 5
EVENTS = 10
"""For each engine, of which the last cuts over."""

PAIRS = [
    ("redis-7.0x3", "redis-8.6x2"),
    ("redis-8.6x3", "redis-8.6x3"),
    ("valkey-9.1x3", "valkey-9.1x3"),
    ("redis-6.2x3", "redis-7.0x3"),
    ("valkey-8.1x2", "valkey-9.1x5"),
    ("redis-6.2", "valkey-8.1x3"),
    ("redis-8.0x3", "redis-8.0"),
    ("redis-7.0s", "redis-8.0"),
    ("redis-8.2", "redis-8.2s"),
]


class InThread:
    """Engines in this process, one after another."""

    def __init__(self, source: Deployment, target: Deployment) -> None:
        self._ends = source, target
        self._store = MemoryCheckpoint()
        self._run: Run | None = None

    @contextlib.contextmanager
    def goes_on(self, *, last: bool) -> Iterator[None]:
        """One engine: it follows, is there for the block, and ends."""
        source, target = self._ends
        options: dict[str, Any] = {"timeout": 600.0, "retry_for": 120.0}
        with migrating(source.end, target.end, checkpoints=self._store, **options) as self._run:
            self._run.following()
            yield
            if not last:
                self._run.stop()
        assert not last or self._run.report.status == "done", self.story()

    def cut_over(self, source: Server | None) -> None:
        """Again, where something else came in between."""
        assert self._run is not None
        self._run.cut_over(source, again="")

    def story(self) -> object:
        """For a failure."""
        return self._run and (self._run.report.errors, self._run.events)


class Killed:
    """Workers, each but the last killed."""

    def __init__(
        self, source: Deployment, target: Deployment, seed: str, state: str, folder: Path
    ) -> None:
        self._migration = Migration(Cli(state, folder), seed)
        self._ends = source, target
        self._begun = False

    @contextlib.contextmanager
    def goes_on(self, *, last: bool) -> Iterator[None]:
        """One worker: it follows, is there for the block, and is killed."""
        migration = self._migration
        try:
            if not self._begun:
                migration.register(_node(self._ends[1]))
                migration.start(
                    _node(self._ends[0]), "--source-type", "replica", "--retry-for", "120s"
                )
                self._begun = True
            else:
                migration.resume(verb=False)
            migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
            yield
            if not last:
                migration.kill(within=0.3)
        except BaseException:
            migration.close()
            raise
        if last:
            migration.close()

    def cut_over(self, _: Server | None) -> None:
        """Again, where something else came in between."""
        for _ in range(5):
            self._migration.wait_for(lambda found: found["CanComplete"], 180.0)
            done = self._migration.cli.here(
                "complete-migration", "--replication-group-id", self._migration.group, "--wait"
            )
            if not done.code:
                return
        found = settle(self._ends[0].whole, self._ends[1].whole, 1)
        raise AssertionError(f"{done.err}\n{self._migration.story()}\n{found.describe()}")

    def story(self) -> object:
        """For a failure."""
        return self._migration.story()


def _node(end: Deployment) -> Server:
    return end.end.nodes[0] if isinstance(end.end, Cluster) else end.end  # type: ignore[return-value]


@pytest.mark.skipif(not SOAK, reason="takes minutes: ENGINE_SOAK=1 runs it")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", PAIRS, ids="->".join)
def test_from_every_shape_into_every_other(
    server_factory: ServerFactory, names: tuple[str, str], state_url: str, tmp_path: Path
) -> None:
    """Workers are killed; where Sentinels are named, engines follow one another."""
    seed = f"{SEED} {names}"
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(deployment(name, server_factory)) for name in names]
        source, target = ends
        trouble = Trouble(random.Random(seed), {"source": source, "target": target})
        engines = (
            InThread(*ends)
            if any(isinstance(each.end, str) for each in ends)
            else Killed(*ends, seed, state_url, tmp_path)
        )
        clustered, watched = isinstance(source.end, Cluster), isinstance(source.end, str)
        options: dict[str, Any] = {
            "databases": (0,),
            "tags": TAGS,
            "apart": 0.0 if clustered else 0.3,
            "without": ("flushall", "flushdb", *(() if clustered else ("move", "swapdb"))),
        }
        traffic = Traffic(source.end, f"{seed} traffic", **options, rate=500.0)
        with Retrying(source.end, clients=3, rate=50.0) as clients:
            with traffic:
                for number in range(ENGINES):
                    last = number == ENGINES - 1
                    with engines.goes_on(last=last):
                        for _ in range(EVENTS):
                            trouble.one()
                        clients.goes_on(60.0)
                        if last:
                            traffic.stop()
                            single = isinstance(source.whole, Server)
                            engines.cut_over(source.whole if single else None)  # type: ignore[arg-type]
            assert_settled(source.whole, target.whole, 10, failed_over=clustered or watched)
            # What a primary that died had acknowledged alone its own side has lost.
            lost = clients.check(source.end)
            assert clients.check(target.end) == lost, (trouble.told, engines.story())
            clients.move_to(target.end)
            clients.goes_on()
            clients.stop()
            print(f"{names}, seed {SEED}: {trouble.told}; lost by the source: {lost or 'nothing'}")
            print(clients.describe())
            assert clients.check(target.end) == [] or lost, (trouble.told, clients.describe())
        assert_tidy(target.whole)
