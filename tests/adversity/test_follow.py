"""An engine that follows, under traffic, while everything around it fails: nothing doubled, lost.

Each test is one migration by the command line: register, start, traffic over every write command
(and counters, which know what must be there), trouble at seeded moments; then the traffic stops,
the engine catches up, both ends are compared key by key, and the migration is completed.

ENGINE_SEED gives other moments; ENGINE_SOAK=1 more pairs and longer runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import redis

from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, all_pairs, binaries, pair_id
from engine.model.settings import PositionForm
from tests.support.comparison import assert_settled
from tests.support.replicas import replicated
from tests.support.servers import ServerFactory
from tests.support.traffic import Counters, Traffic

try:
    from engine.sources import replica as _replica  # noqa: F401
except ImportError:
    HAS_REPLICA = False
else:
    HAS_REPLICA = True

pytestmark = [
    pytest.mark.skipif(not HAS_REPLICA, reason="the engine has no replica source yet"),
    pytest.mark.timeout(600),
]

SEED = os.environ.get("ENGINE_SEED", "31")
SOAK = bool(os.environ.get("ENGINE_SOAK"))
KILLS = 60 if SOAK else 17  # a pair
TROUBLES = 60 if SOAK else 8  # cuts or restarts
RATE = 3000.0  # commands a second
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")
# As much as is written while a killed engine is away, and more: a full sync is a failure then.
BACKLOG = ("--repl-backlog-size", "64mb")


def understood(source: Binary, target: Binary) -> bool:
    """Whether the target knows every command and type that the source has."""
    if source.flavour == target.flavour:
        return target.version >= source.version
    if source.flavour == "redis":
        return source.version < (7, 4, 0)
    return source.version < (9, 0, 0) and target.version >= (7, 4, 0)


def some_pairs() -> list[tuple[Binary, Binary]]:
    """Old to new over the flavours, each flavour's latest with itself; all of them in a soak."""
    pairs = [pair for pair in all_pairs() if understood(*pair)]
    if SOAK:
        return pairs
    upgrades = [(a, b) for a, b in pairs if a.flavour == "redis" and b.flavour == "valkey"]
    upgrade = min(upgrades, key=lambda pair: (pair[0].version, pair[1].version))
    latest = [
        max((b for b in binaries() if b.flavour == flavour), key=lambda each: each.version)
        for flavour in ("redis", "valkey")
    ]
    return [upgrade, *((each, each) for each in latest)]


PAIRS = some_pairs()
# It would take the counters with it: `test_flushes_are_followed` has it.
WITHOUT = ("flushall",)


@dataclass
class Run:
    """One migration under traffic; see `run`."""

    source: Server
    target: Server
    migration: Migration
    rng: random.Random
    proxies: dict[str, Proxy] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    traffic: Traffic | None = None
    counters: Counters | None = None
    failed_over: bool = False

    def begin(self, *options: str, **traffic: Any) -> None:
        """Fill the source with some keys, start the migration, and the traffic beside it."""
        traffic = {"without": WITHOUT, "rate": RATE} | traffic
        # What is there before the snapshot.
        first = Traffic(self.source, f"{SEED} before", limit=4000, **{**traffic, "rate": None})
        first.start().join()
        self.migration.register(self.proxies.get("target", self.target))
        self.traffic = Traffic(self.source, SEED, **traffic).start()
        self.counters = Counters(self.source).start()
        source = self.proxies.get("source", self.source)
        self.migration.start(source, "--source-type", "replica", *options)

    def following(self) -> None:
        """Wait until the snapshot is over and the stream is followed."""
        self.migration.wait_for(lambda found: found["Phase"] in ("CATCH_UP", "FOLLOW"))

    def served(self, what: str) -> int:
        """The source's own count: `sync_full`, `sync_partial_ok`."""
        return int(self.source.client().info("stats")[what])

    def finish(self) -> None:
        """Stop the traffic, wait until in sync, compare, complete; print what there was."""
        assert self.traffic is not None
        assert self.counters is not None
        self.traffic.stop()
        self.counters.stop()
        found = self.migration.wait_for(
            lambda found: found["LagBytes"] == 0 and found["CanComplete"]
        )
        self.found = dict(self.migration.counters)
        counted = ", ".join(f"{name} {n}" for name, n in self.found.items())
        assert found["SourceType"] == "replica"
        # Until then the target's deadlines are lifted: it is compared as its users get it.
        self.complete()
        settled = assert_settled(self.source, self.target, 2, failed_over=self.failed_over)
        assert self.counters.check(self.target) == []
        assert self.counters.check(self.source) == []
        print(
            f"{pair_id((self.source.binary, self.target.binary))}: {self.traffic.commands:,} "
            f"commands, {len(self.counters.acknowledged):,} counted, {self.migration.kills} kills "
            f"({dict(self.migration.phases)}), {counted} (the source served "
            f"{self.served('sync_partial_ok')} partial and {self.served('sync_full')} full syncs); "
            f"{len(settled.differences)} differences in {settled.keys.keys:,} keys"
        )

    def _let_go(self) -> None:
        """A source before 6.2 that runs scripts answers nobody as long as it is held."""
        if self.source.binary.version >= (6, 2, 0):
            return
        told = self.migration.cli("disconnect-clients", "--replication-group-id", "g", "--stop")
        assert told.code == 0, told.err
        for _ in range(100):
            try:
                self.source.client().ping()
                return
            except redis.RedisError:
                time.sleep(0.3)

    def complete(self) -> None:
        """Cut over; a link that was cut a moment ago may still have to be made good."""
        for tries in range(21):
            try:
                self.migration.complete()
                break
            except AssertionError as refused:
                # Before 6.2 everybody is paused, and for half a second at first.
                passes = "cannot complete" in str(refused) or "the deadline of" in str(refused)
                if tries == 20 or not passes:
                    raise
                time.sleep(0.25)
        self._let_go()

    def close(self) -> None:
        """End what writes; after a failure it is still there."""
        for writer in (self.traffic, self.counters):
            if writer is not None:
                writer._stopping.set()
                writer.__exit__(AssertionError, None, None)
        self.migration.close()


@pytest.fixture
def run(
    server_factory: ServerFactory, state_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Run]]:
    """Servers, a group, and proxies before the ends named, all for one migration."""
    with ExitStack() as stack:

        def make(
            pair: tuple[Binary, Binary],
            *,
            proxies: tuple[str, ...] = (),
            target_options: tuple[str, ...] = (),
            form: str = "transaction",
        ) -> Run:
            seed = f"{SEED} {request.node.name}"
            cli = Cli(state_url, tmp_path)
            cli.environment["STARTMIGRATION_POSITION_FORM"] = form
            source = server_factory(pair[0], *BACKLOG)
            target = server_factory(pair[1], *target_options)
            made = Run(source, target, Migration(cli, seed), random.Random(seed))
            stack.callback(made.close)
            for end in proxies:
                server = source if end == "source" else target
                made.proxies[end] = stack.enter_context(Proxy(server.host, server.port))
            return made

        yield make


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_workers_killed_at_any_moment(run: Callable[..., Run], pair: tuple[Binary, Binary]) -> None:
    """Early kills strike the snapshot, later ones the stream, wherever they happen to."""
    work = run(pair)
    work.begin()
    kills = KILLS if SOAK or pair is PAIRS[0] else KILLS // 2
    for turn in range(kills):
        if turn == kills // 4:
            work.following()  # from here on there is a position on the target
            before = work.served("sync_full")
        if turn % 2 and turn > kills // 4:
            work.following()  # the other half dies on the way back there, or anywhere
        work.migration.kill(within=0.8)
        work.migration.resume(verb=turn % 6 == 0)
    work.following()
    work.finish()
    assert work.migration.kills == kills
    assert work.migration.phases["FOLLOW"] + work.migration.phases["CATCH_UP"] > kills // 3
    # The backlog held all that a dead engine missed: not one snapshot more.
    assert work.served("sync_full") == before
    assert work.served("sync_partial_ok") > kills // 3
    assert work.found["PartialSyncs"] > kills // 4


def differs(count: Callable[[], int], before: int) -> bool:
    return count() != before


@pytest.mark.parametrize("end", ["source", "target", "both"])
@pytest.mark.parametrize("pair", PAIRS[: None if SOAK else 1], ids=pair_id)
def test_links_cut_at_seeded_bytes(
    run: Callable[..., Run], pair: tuple[Binary, Binary], end: str
) -> None:
    ends = ("source", "target") if end == "both" else (end,)
    work = run(pair, proxies=ends)
    work.begin()
    work.following()
    for _ in range(TROUBLES):
        end = work.rng.choice(ends)
        proxy, connections = work.proxies[end], work.proxies[end].connections
        syncs = work.served("sync_partial_ok")
        # The stream goes down from the source, and up to the target.
        direction = {"source": "down", "target": "up"}[end]
        proxy.cut_after(work.rng.randrange(work.rng.choice([2, 2_000, 200_000])), direction)
        # A new link to the source may be one of the engine's others: the source knows.
        if end == "source":
            count, before = partial(work.served, "sync_partial_ok"), syncs
        else:
            count, before = partial(getattr, proxy, "connections"), connections
        # A new connection alone may be one that was made anyhow, while the cut is still to come.
        work.migration.until(lambda: not proxy.armed and differs(count, before), "a new link")  # noqa: B023
        time.sleep(work.rng.random() * 0.3)
    work.finish()
    assert work.migration.kills == 0
    assert work.served("sync_full") == work.migration.counters["FullSyncs"] == 1
    if ends == ("source",):
        # What it tells of itself is what the source saw, but for answers that were cut short.
        assert work.migration.counters["PartialSyncs"] >= TROUBLES * 3 // 4
        assert work.migration.counters["PartialSyncs"] <= work.served("sync_partial_ok")


@pytest.mark.parametrize("pair", PAIRS[: None if SOAK else 1], ids=pair_id)
def test_a_far_target_with_much_under_way(
    run: Callable[..., Run], pair: tuple[Binary, Binary]
) -> None:
    """Links are cut, and workers killed, while several transactions are under way at once."""
    work = run(pair, proxies=("target",))
    far = work.proxies["target"]
    work.begin(rate=1000.0)
    work.following()
    far.delay(0.02)
    far.cut_now()
    for turn in range(TROUBLES):
        connections = far.connections
        time.sleep(0.3 + work.rng.random() * 0.5)
        if turn % 2:
            work.migration.kill(within=0.3)
            work.migration.resume(verb=False)
        elif work.rng.random() < 0.5:
            far.cut_after(work.rng.randrange(100_000), work.rng.choice(["up", "down"]))
        else:
            far.cut_now()
        count = partial(getattr, far, "connections")
        work.migration.until(partial(differs, count, connections), "a new link")
    work.following()
    work.finish()
    assert work.served("sync_full") == 1


@pytest.mark.parametrize("pair", PAIRS[: None if SOAK else 1], ids=pair_id)
def test_links_cut_during_the_snapshot(
    run: Callable[..., Run], pair: tuple[Binary, Binary]
) -> None:
    work = run(pair, proxies=("source", "target"))
    pipe = work.source.client(db=1).pipeline(transaction=False)
    for number in range(30_000):
        pipe.set(f"filler:{number}", f"{number} " * 20)
    pipe.execute()
    for proxy in work.proxies.values():
        proxy.throttle(4_000_000)
    work.begin(rate=500.0, rare=0)
    for _ in range(3):
        proxy = work.rng.choice(list(work.proxies.values()))
        proxy.cut_after(work.rng.randrange(1000, 1_500_000))
        time.sleep(0.5)
    for proxy in work.proxies.values():
        proxy.throttle(None)
    work.following()
    work.finish()


@pytest.mark.parametrize(
    ("pair", "form"),
    [
        pytest.param(pair, form, id=f"{pair_id(pair)}-{form}")
        for n, pair in enumerate(PAIRS[: None if SOAK else 2])
        for form in get_args(PositionForm)
        if SOAK or n == 0 or form == "transaction"
    ],
)
def test_a_target_that_crashes_and_comes_back(
    run: Callable[..., Run], pair: tuple[Binary, Binary], form: str
) -> None:
    """With appendfsync always it has, after its restart, what it acknowledged."""
    work = run(pair, target_options=APPEND_ONLY, form=form)
    work.begin(rate=1500.0)
    work.following()
    for turn in range(TROUBLES // 2):
        time.sleep(work.rng.random() * 0.7)
        work.target.kill()
        time.sleep(work.rng.random() * 0.3)
        work.target.restart()
        if turn % 2:
            # The engine dies while it waits for the target, or a moment after.
            work.migration.kill(within=0.2)
            work.migration.resume(verb=False)
    work.finish()


@pytest.mark.parametrize("crash", [False, True], ids=["handed over", "crashed"])
@pytest.mark.parametrize("pair", PAIRS[: None if SOAK else 1], ids=pair_id)
def test_a_source_that_fails_over(
    run: Callable[..., Run], server_factory: ServerFactory, pair: tuple[Binary, Binary], crash: bool
) -> None:
    """The source's address leads to its replica, which was made the primary.

    Handed over, the replica has everything, and the engine goes on by a partial sync (the replica
    knows the old primary's replid as its second one). After a crash the replica may lack what the
    engine has already: only a full sync puts that right.
    """
    work = run(pair, proxies=("source",))
    old, new = work.source, server_factory(pair[0], *BACKLOG)
    new.client().execute_command("REPLICAOF", old.host, old.port)
    work.begin()
    work.following()
    assert work.traffic is not None
    assert work.counters is not None
    time.sleep(1)
    full_syncs = work.migration.migration()["Counters"]["FullSyncs"]
    if crash:
        old.kill()
    else:
        work.traffic.pause()
        work.counters.stop()
        replicated(old, new)
    new.client().execute_command("REPLICAOF", "NO", "ONE")
    work.proxies["source"].lead_to(new.host, new.port)
    work.proxies["source"].cut_now()
    work.source, work.failed_over = new, True
    work.traffic.move_to(new)
    work.traffic.resume()
    time.sleep(1.5)
    if crash:
        # What the replica lacked is lost at the source itself; both ends must lack it.
        work.counters.stop()
        work.traffic.stop()
        work.migration.wait_for(lambda found: found["LagBytes"] == 0 and found["CanComplete"])
        work.complete()
        assert_settled(new, work.target, 2, failed_over=True)
        return
    work.finish()
    assert work.found["FullSyncs"] == full_syncs


def test_flushes_are_followed(run: Callable[..., Run]) -> None:
    """FLUSHALL, FLUSHDB and SWAPDB often: the engine's own position must outlive them."""
    work = run(PAIRS[-1])
    work.begin(without=("hincrbyfloat",), rare=0.003)
    assert work.counters is not None
    work.counters.stop()
    for _ in range(4):
        work.migration.kill(within=0.8)
        work.migration.resume(verb=False)
    work.following()
    assert work.traffic is not None
    work.traffic.stop()
    work.migration.wait_for(lambda found: found["LagBytes"] == 0 and found["CanComplete"])
    work.complete()
    assert_settled(work.source, work.target, 2)
