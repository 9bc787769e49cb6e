"""Clusters with several databases (Valkey 9, `cluster-databases`): what is in one of them goes into
the same one at the other end, and what has no place there ends a migration in words.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import redis

from benches.support.clusters import SLOTS, Cluster, slot_of
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import ServerError
from engine.model.endpoint import Endpoint
from engine.model.lane_keys import KeysOfLane
from engine.model.settings import TransferSettings
from engine.targets.applier import Applier
from engine.targets.cluster_applier import ClusterApplier
from engine.wire import event_loop
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.raw_replica import POSITION_KEY
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Traffic
from tests.support.traffic.writer import TAGS

SEVERAL = ("--cluster-databases", "16")
DATABASES = (0, 3, 9)
# Without FLUSHALL: what is compared is to be more than a few keys.
WITHOUT = ("flushall", "flushdb", "swapdb")


def fill(end: Server | Cluster, keys: int = 300) -> None:
    """Keys in each of the databases."""
    for node in end.primaries if isinstance(end, Cluster) else [end]:
        slots = set(end.slots_of(node)) if isinstance(end, Cluster) else set(range(SLOTS))
        for db in DATABASES:
            pipe = node.client(db).pipeline(transaction=False)
            for n in range(keys):
                if slot_of(f"key:{n}") in slots:
                    pipe.set(f"key:{n}", f"{db}:{n}")
            pipe.execute()


def traffic(end: Server | Cluster, **options: Any) -> Traffic:
    how: dict[str, Any] = {"databases": DATABASES, "tags": TAGS, "without": WITHOUT, "rate": 1000.0}
    how["apart"] = 0.0 if isinstance(end, Cluster) else 0.3
    return Traffic(end, "databases", **how | options)


def keys_by_database(end: Server | Cluster) -> dict[int, int]:
    found: dict[int, int] = {}
    for node in end.primaries if isinstance(end, Cluster) else [end]:
        for name, entry in node.client().info("keyspace").items():
            db = int(name.removeprefix("db"))
            found[db] = found.get(db, 0) + entry["keys"]
    return found


def test_slots_that_come_by_the_servers_own_migration(server_factory: ServerFactory) -> None:
    """Behind them the source's stream lacks a SELECT: a write to database 0 comes as one to 9
    (findings/slot-migration-leaves-replicas-in-another-database.sh)."""
    binary = known("valkey-9.1")
    target = server_factory(binary)
    with Cluster.start(binary, *SEVERAL, primaries=2, make=server_factory) as source:
        first, second = source.primaries
        (moves,), (stays,) = source.tags_of(first, 1), source.tags_of(second, 1)
        key, other = b"{%b}key" % stays, b"{%b}other" % stays
        for db in (0, 9):
            second.client(db).mset({key: "before", other: "before"})
        first.client(9).set(b"{%b}" % moves, "moves")
        with migrating(source, target) as run:
            run.following()
            second.client().set(other, "now")
            assert source.move_atomically([slot_of(moves)], second) == ["success"]
            moved = "every key of the slots"
            run.wait_for(lambda: any(moved in each for each in run.events), moved)
            run.in_sync()
            # No name is at one end alone then, and no count differs.
            second.client().set(key, "now")
            wait_for(
                lambda: b"now" in {target.client(db).get(key) for db in (0, 9)}, "it is applied"
            )
            assert [target.client(db).get(key) for db in (0, 9)] == [b"now", b"before"]
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_settled(source, target, 5)


def test_slots_that_come_with_a_database_that_goes(server_factory: ServerFactory) -> None:
    """When we look at the source there is one database alone again, for a while."""
    binary = known("valkey-9.1")
    target = server_factory(binary)
    with Cluster.start(binary, *SEVERAL, primaries=2, make=server_factory) as source:
        first, second = source.primaries
        (moves,), (stays,) = source.tags_of(first, 1), source.tags_of(second, 1)
        key, moved = b"{%b}key" % stays, b"{%b}" % moves
        second.client().set(key, "before")
        first.client(9).set(moved, "moves")
        with migrating(source, target) as run:
            run.following()
            second.client().set(key, "following")

            def beside() -> None:
                """While nothing is read of the stream."""
                assert source.move_atomically([slot_of(moves)], second) == ["success"]
                second.client().set(key, "now")
                second.client(9).delete(moved)

            run.call(beside)
            wait_for(
                lambda: b"now" in {target.client(db).get(key) for db in (0, 9)}, "it is applied"
            )
            # No name is at one end alone then, and no count differs.
            second.client(9).set(key, "behind")
            wait_for(lambda: target.client(9).get(key) == b"behind", "it is applied")
            assert target.client().get(key) == b"now"
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_settled(source, target, 5)


@pytest.mark.parametrize(
    ("source", "target"), [(0, 3), (3, 0), (2, 3)], ids=lambda n: f"x{n}" if n else "server"
)
def test_everything_is_carried_under_traffic(
    source: int, target: int, scenario: NewScenario
) -> None:
    """Every write command, MOVE and COPY from one database into another among them."""
    s = scenario(
        "valkey-9.1",
        "valkey-9.1",
        source_shards=source,
        target_shards=target,
        source_options=SEVERAL if source else (),
        target_options=SEVERAL if target else (),
    )
    there, here = s.whole("source"), s.whole("target")
    fill(there)
    traffic(there, limit=2000, rate=None).start().join()
    with traffic(there) as writes, s.clients(clients=2) as clients, s.running() as run:
        run.following()
        before = writes.commands
        run.wait_for(
            lambda: writes.commands > before + 1500 and writes.succeeded["move"] > 2, "traffic"
        )
        clients.goes_on()
        writes.stop()
        clients.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert set(keys_by_database(here)) == set(DATABASES)
    s.assert_migrated()


def test_databases_that_are_emptied_and_swapped(scenario: NewScenario) -> None:
    """FLUSHDB empties its database, on each node; one that the cluster has not is empty anyway.
    SWAPDB, which no cluster takes, has everything copied again."""
    s = scenario(
        "redis-7.0",
        "valkey-9.1",
        target_shards=2,
        source_options=("--databases", "256"),
        target_options=SEVERAL,
    )
    fill(s.source)
    with s.running() as run:
        run.following()
        s.source.client(3).flushdb()
        s.source.client(3).set("behind", "it")
        s.source.client(200).flushdb()
        run.in_sync()
        assert_settled(s.source, s.whole("target"), 5)
        s.source.client().swapdb(0, 9)
        s.source.client().set("behind", "it")
        assert_settled(s.source, s.whole("target"), 60)
        s.source.client().flushall()
        s.source.client(9).set("behind", "it")
        run.cut_over()
    assert any("(SWAPDB)" in event for event in run.events), run.events
    assert keys_by_database(s.whole("target")) == {9: 1}
    s.assert_migrated()


def test_a_flush_of_a_database_that_the_target_has_not(scenario: NewScenario) -> None:
    """It removes nothing from another one."""
    s = scenario(
        "valkey-9.1",
        "redis-7.0",
        source_shards=2,
        source_options=SEVERAL,
        target_options=("--databases", "12"),
    )
    s.load(keys=300)
    with s.running() as run:
        run.following()
        s.source.client(15).flushdb()
        with s.clusters["source"].client() as client:
            client.set("behind", "it")
        run.cut_over()
    assert not any("differed from the source" in event for event in run.events), run.events
    s.assert_migrated()


def test_a_database_that_is_gone_when_its_keys_are_to_be_removed(
    server_factory: ServerFactory,
) -> None:
    """SELECT is refused only when it runs: what was meant for that database removes nothing from
    another one, and the connection, which may be in either, is given up."""
    target = server_factory(known("redis-7.0"))
    target.client().mset({f"key:{n}": n for n in range(50)})
    keys = KeysOfLane()

    async def refused(kind: type[Applier]) -> None:
        applier = kind(
            Endpoint.parse(target.url),
            TransferSettings(retry_for=10.0),
            POSITION_KEY,
            on_event=lambda _: None,
            name="test",
        )
        try:
            await applier.open()
            connection = await applier.link.control()
            is_node = isinstance(applier, ClusterApplier)
            empty = applier._empty_node if is_node else applier._empty
            with pytest.raises(ServerError, match="out of range"):
                await empty(connection, 99, keys)
            assert applier.closed
        finally:
            await applier.close()

    for kind in (Applier, ClusterApplier):
        event_loop.run(refused(kind))
        assert target.client().dbsize() == 50


@pytest.mark.parametrize("release", ["redis-7.0", "valkey-9.1"])
def test_a_database_that_is_used_late(release: str, scenario: NewScenario) -> None:
    """A cluster that has it not ends the migration in words: nothing is left out."""
    s = scenario("redis-7.0", release, target_shards=1)
    s.load(keys=300)
    with s.running() as run:
        run.following()
        s.source.client(1).set("late", "1")
        run.wait_for(lambda: run.ended, "an end")
    assert run.report.status == "stopped"
    (error,) = run.report.errors
    assert "the target has no database 1: " in error
    assert "cluster-databases" in error


def test_a_node_that_is_busy(scenario: NewScenario) -> None:
    """Where a SELECT is refused, what is behind it runs in no other database."""
    s = scenario("redis-7.0", "valkey-9.1", target_shards=1, target_options=SEVERAL)
    there, node = s.source, s.target
    node.client().config_set("busy-reply-threshold", 10)
    for db in (0, 9):
        there.client(db).set("n", 100)
    with s.running(retry_for=60.0) as run:
        run.following()
        for _ in range(5):
            run.in_sync()
            busy = threading.Thread(target=spin, args=(node,))
            busy.start()
            wait_for(lambda: is_busy(node), "a node that is busy")
            for _ in range(20):
                there.client(9).incr("n")
                there.client(9).append("text", "x")
            node.client().execute_command("SCRIPT KILL")
            busy.join()
        run.cut_over()
    assert (node.client().get("n"), node.client(9).get("n")) == (b"100", b"200")
    s.assert_migrated()


def spin(node: Server) -> None:
    with contextlib.suppress(redis.ResponseError):
        node.client().eval("while true do end", 0)


def is_busy(node: Server) -> bool:
    try:
        node.client().get("n")
    except redis.exceptions.BusyLoadingError:
        raise
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False
