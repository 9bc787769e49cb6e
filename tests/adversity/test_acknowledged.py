"""What clients have had acknowledged is on the target after the cut-over, whatever happened before.

Clients of one name write all the while and repeat what is not acknowledged. A source that fails
over, a target that restarts from an append-only file or an old snapshot, or has no more memory,
links that break, engines that die and a second one from elsewhere strike at seeded moments; then
the migration is completed, and the name leads to the target. None of the writes that any server on
the way has acknowledged may be missing there, and none may be there too often.

ENGINE_SEED gives other moments; ENGINE_SOAK=1 more pairs and longer runs.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server
from benches.support.waiting import wait_for
from tests.support.own_keys import OWN_PREFIX
from tests.support.replicas import make_replica, replicated
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Retrying

pytestmark = pytest.mark.timeout(900)

SEED = os.environ.get("ENGINE_SEED", "31")
SOAK = bool(os.environ.get("ENGINE_SOAK"))
TROUBLES = 40 if SOAK else 5
SECONDS = 90.0
# As much as is written while an engine is away: a full sync takes longer than the rest of it.
BACKLOG = ("--repl-backlog-size", "64mb")
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")
FILLER = 2000
# The first is what is in the wheels.
PAIRS = [("redis-6.2", "valkey-8.1"), ("redis-7.0", "redis-8.0"), ("valkey-9", "valkey-9")]


@dataclass
class Scene:
    """One migration, its clients, and what may befall them."""

    primary: Server
    replica: Server
    target: Server
    name: Proxy
    links: dict[str, Proxy]
    migration: Migration
    other: Migration
    rng: random.Random
    clients: Retrying
    append_only: bool
    struck: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Some keys, the replica, the clients, the migration, until it follows."""
        pipe = self.primary.client().pipeline(transaction=False)
        for number in range(FILLER):
            pipe.set(f"filler:{number}", f"{number} " * 100, ex=100_000)
        pipe.execute()
        make_replica(self.replica, self.primary)
        self.clients.start()
        self.clients.goes_on()
        replicated(self.primary, self.replica, SECONDS)
        self.migration.register(self.links["target"])
        self.migration.start(self.links["source"], "--source-type", "replica")
        self.following()

    def following(self) -> None:
        """Wait until the stream is followed, and the clients are served."""
        self.migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
        self.clients.goes_on()

    # The troubles.

    def kill_the_engine(self) -> None:
        """It dies at any moment, and another goes on."""
        self.migration.kill(within=0.5)
        self.migration.resume(verb=False)

    def cut_a_link(self) -> None:
        """The links to one end break after some bytes."""
        proxy = self.links[self.rng.choice(sorted(self.links))]
        proxy.cut_after(self.rng.randrange(self.rng.choice([2, 2_000, 20_000])))
        time.sleep(self.rng.random() * 0.5)
        proxy.cut_now()

    def hand_over(self) -> None:
        """The replica takes over from the primary, which becomes its replica."""
        self.name.stall()
        replicated(self.primary, self.replica, SECONDS)
        self.primary, self.replica = self.replica, self.primary
        self.primary.client().execute_command("REPLICAOF", "NO", "ONE")
        make_replica(self.replica, self.primary)
        self.name.lead_to(self.primary.host, self.primary.port)
        self.name.cut_now()
        self.name.stall(False)
        replicated(self.primary, self.replica, SECONDS)

    def restart_the_target(self) -> None:
        """It comes back with what it had, or with an older snapshot of it."""
        if not self.append_only:
            self.target.client().save()
            self.clients.goes_on(writes=60)
        self.target.kill()
        time.sleep(self.rng.random() * 0.3)
        self.target.restart()

    def fill_the_target(self) -> None:
        """It has no more memory for a while, and keeps what it has."""
        client = self.target.client()
        client.config_set("maxmemory", "1mb")
        time.sleep(self.rng.random())
        client.config_set("maxmemory", "0")

    def start_another_engine(self) -> None:
        """From another state, into the same target: it is refused."""
        link = self.links["source"]
        told = self.other.cli(
            "start-migration",
            *("--replication-group-id", self.other.group),
            *("--customer-node-endpoint-list", f"Address={link.host},Port={link.port}"),
        )
        assert told.code == 1, told.out
        assert "another" in told.err, told.err

    def let_another_win(self) -> None:
        """An engine from another state takes the target over, and the first one may stand still in
        that moment: what it has on its way when it is let on must not arrive."""
        workers = self.migration.workers()
        stopped = self.rng.random() < 0.7
        try:
            if stopped:
                for pid in workers:
                    os.kill(pid, signal.SIGSTOP)
            self.other.start(self.links["source"], "--source-type", "replica", "--take-over")
            self.other.wait_for(lambda found: found["Phase"] == "FOLLOW")
            self.clients.goes_on()
        finally:
            if stopped:
                for pid in workers:
                    os.kill(pid, signal.SIGCONT)
        beaten = self.migration
        beaten.until(lambda: beaten.describe()["Status"] == "available", "its end")
        assert "has taken the target over" in beaten.migration()["Reason"], beaten.story()
        self.migration, self.other = self.other, beaten

    # The end.

    def complete(self) -> None:
        """Cut over, then lead the name to the target: what an operator does.

        A refusal is what may come of a trouble that has just passed, and is tried again.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            told = self.migration.cli(
                "complete-migration", "--wait", "--replication-group-id", self.migration.group
            )
            if told.code == 0:
                break
            assert "cannot complete" in told.err, (told.err, self.migration.story())
            assert time.monotonic() < deadline, (told.err, self.migration.story())
            self.clients.goes_on()
        self.name.lead_to(self.target.host, self.target.port)
        self.name.cut_now()
        self.clients.goes_on()
        self.clients.stop()

    def check(self) -> None:
        """Nothing that was acknowledged is lost, and nothing of the engine is left."""
        print(f"{', '.join(self.struck)}: {self.clients.describe()}")
        assert self.clients.check(self.target) == [], (self.struck, self.migration.story())
        client = self.target.client()
        keys = set(client.scan_iter(count=1000))
        assert {b"filler:%d" % number for number in range(FILLER)} <= keys
        assert not [key for key in keys if key.startswith(OWN_PREFIX)]

    def close(self) -> None:
        """End what runs; after a failure it is still there."""
        self.clients.__exit__(AssertionError, None, None)
        self.migration.close()
        self.other.close()


Make = Callable[..., Scene]


@pytest.fixture
def make(
    server_factory: ServerFactory, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Make]:
    """A primary with a replica, a target, the clients' name, and proxies for the engine's links."""
    with ExitStack() as stack:

        def scene(source: Binary, target: Binary, *, append_only: bool) -> Scene:
            seed = f"{SEED} {request.node.name}"
            primary, replica = (server_factory(source, *BACKLOG) for _ in range(2))
            target_server = server_factory(target, *(APPEND_ONLY if append_only else ()))
            name, source_link, target_link = (
                stack.enter_context(Proxy(server.host, server.port))
                for server in (primary, primary, target_server)
            )
            migrations = []
            for group in ("g", "other"):
                folder = tmp_path / group
                folder.mkdir()
                cli = Cli(f"sqlite:///{folder / 'state.sqlite'}", folder)
                migrations.append(Migration(cli, seed, group))
            migrations[1].register(target_link)
            made = Scene(
                primary,
                replica,
                target_server,
                name,
                {"source": source_link, "target": target_link},
                *migrations,
                random.Random(seed),
                Retrying(name),
                append_only,
            )
            stack.callback(made.close)
            return made

        yield scene


@pytest.mark.parametrize("append_only", [True, False], ids=["append-only", "snapshots"])
@pytest.mark.parametrize("pair", PAIRS if SOAK else PAIRS[:1], ids="->".join)
def test_no_acknowledged_write_is_lost(
    make: Make, pair: tuple[str, str], append_only: bool
) -> None:
    """Every trouble once, then any of them, in a seeded order."""
    scene = make(*map(known, pair), append_only=append_only)
    scene.begin()
    each = [
        scene.kill_the_engine,
        scene.cut_a_link,
        scene.hand_over,
        scene.restart_the_target,
        scene.fill_the_target,
        scene.start_another_engine,
        scene.let_another_win,
    ]
    scene.rng.shuffle(each)
    troubles = each + scene.rng.choices(each, k=max(0, TROUBLES - len(each)))
    for trouble in troubles:
        scene.struck.append(trouble.__name__)
        trouble()
        scene.following()
    scene.complete()
    scene.check()


def test_a_target_that_has_evicted_is_refused(make: Make) -> None:
    """What is gone there cannot be known by its name: only another full sync brings it back."""
    binary = known(PAIRS[0][0])
    scene = make(binary, binary, append_only=False)
    scene.begin()
    client = scene.target.client()
    client.config_set("maxmemory-policy", "volatile-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] - 300_000)
    wait_for(
        lambda: client.info("stats")["evicted_keys"],
        "an eviction",
        told=lambda: client.info("memory"),
    )
    client.config_set("maxmemory", "0")
    scene.following()
    group = ("--replication-group-id", scene.migration.group)
    told = scene.migration.cli("complete-migration", "--wait", *group)
    assert told.code == 1, told.out
    assert "evicted" in told.err, told.err
    # The source was let go of: its clients have never stopped.
    scene.clients.goes_on()
    assert scene.migration.cli("complete-migration", "--force", *group).code == 0
    scene.clients.goes_on()
    scene.migration.until(lambda: scene.migration.describe()["Status"] == "available", "its end")
    client.flushall()
    scene.migration.start(scene.links["source"], "--source-type", "replica")
    scene.following()
    scene.complete()
    scene.check()
