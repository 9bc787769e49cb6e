"""A standalone source into a cluster's nodes, in the record form: what arrives, and how."""

from __future__ import annotations

import pytest

from benches.support.clusters import Cluster, slot_of
from benches.support.compare import assert_equal
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import AuthError
from engine.model.lane_route import Route
from engine.model.slots import SlotSet, slot_tag
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.lanes import Lanes, Way, ways_from, ways_into
from tests.support.own_keys import OWN_PREFIX
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing

KEYS = 2000


def filled(server: Server) -> None:
    """Keys of all types, some with a TTL."""
    with server.client().pipeline(transaction=False) as pipe:
        for n in range(KEYS):
            pipe.set(f"s:{n}", n, ex=3600 if n % 3 else None)
            pipe.rpush(f"l:{n % 50}", n)
            pipe.hset(f"h:{n % 40}", f"f{n}", n)
            pipe.zadd(f"z:{n % 30}", {str(n): n})
            pipe.sadd(f"set:{n % 20}", n)
        pipe.execute()


@pytest.mark.parametrize("names", [("redis-7.0", "redis-7.0"), ("valkey-8", "valkey-9")])
def test_one_node_with_all_slots(server_factory: ServerFactory, names: tuple[str, str]) -> None:
    """Everything arrives under live traffic, transactions and stored unions too, and nothing of
    ours is left."""
    source = server_factory(known(names[0]))
    filled(source)
    with Cluster.start(known(names[1]), primaries=1, make=server_factory) as cluster:
        (node,) = cluster.nodes
        route = Route(to_cluster=True, tag="own")
        with Lanes([Way(source, node, route, source)]) as run:

            def several(client: object, n: int) -> None:
                with source.client().pipeline(transaction=True) as pipe:
                    pipe.incr("{m}a").rpush("{m}b", n).execute()

            with writing(
                lambda client, n: client.incr(f"n:{n % 7}"),
                lambda client, n: client.rpush(f"r:{n % 5}", n),
                lambda client, n: client.sunionstore("{u}x", [f"{{u}}{n % 3}", "{u}s"]),
                lambda client, n: client.sadd(f"{{u}}{n % 3}", n % 10),
                several,
                server=source,
                pause=0.002,
            ):
                run.following()
                for n in range(200):
                    source.client().set("big", b"x" * (n * 100))
                source.client().publish("channel", "word")
                run.in_sync()
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, node.url)
        assert not [key for key in node.client().scan_iter() if key.startswith(OWN_PREFIX)]


def test_a_flush_of_the_source(server_factory: ServerFactory) -> None:
    """FLUSHALL removes the lane's keys, and what is written behind it is there."""
    source = server_factory(known("redis-7.0"))
    filled(source)
    with Cluster.start(known("redis-7.0"), primaries=1, make=server_factory) as cluster:
        (node,) = cluster.nodes
        with Lanes([Way(source, node, Route(to_cluster=True, tag="own"), source)]) as run:
            run.in_sync()
            with source.client().pipeline(transaction=False) as pipe:
                pipe.set("before", 1).flushall().incr("behind").incr("behind").execute()
            run.in_sync()
            assert node.client().get("before") is None
            assert node.client().get("behind") == b"2"
            run.cut_over()
        assert_equal(source.url, node.url)
        assert slot_of("{own}") == slot_of("own")


def test_a_slot_that_is_away_for_a_while(server_factory: ServerFactory) -> None:
    """The keys of a slot that the target's node does not have are stored when it has it again; the
    others are written meanwhile, and the gate is closed with the reason."""
    source = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2, make=server_factory) as cluster:
        node, other = cluster.nodes
        here = [f"{{{n}}}" for n in range(400) if slot_of(f"{{{n}}}") < 8192]
        moved, *rest = here
        for tag in here:
            source.client().rpush(f"{tag}list", 1, 2)
        slots = SlotSet(((0, 8191),))
        tag = next(each for each in rest if slot_of(each) != slot_of(moved)).strip("{}")
        way = Way(source, node, Route(slots=slots, to_cluster=True, tag=tag), source)
        with Lanes([way]) as run:
            run.in_sync()
            cluster.move([slot_of(moved)], other)
            source.client().rpush(f"{moved}list", 3)
            source.client().sadd(f"{moved}set", 1)
            source.client().rpush(f"{rest[0]}list", 3)
            wait_for(lambda: node.client().llen(f"{rest[0]}list") == 3, "others are written")
            run.wait_for(
                lambda: "another node's by now" in run.overview.progress.reason, "the reason"
            )
            assert not run.migration.lanes[0].context.can_complete
            cluster.move([slot_of(moved)], node)
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, node.url)


@pytest.mark.parametrize("names", [("redis-7.0", "valkey-8"), ("redis-6.2", "valkey-9")])
def test_three_nodes(server_factory: ServerFactory, names: tuple[str, str]) -> None:
    """A lane for each: every node gets its slots' part of what names keys of several, and nothing
    of ours is left on any."""
    source = server_factory(known(names[0]))
    filled(source)
    with Cluster.start(known(names[1]), primaries=3, make=server_factory) as cluster:
        with Lanes(ways_into(source, cluster)) as run:
            with writing(
                lambda client, n: client.incr(f"n:{n % 70}"),
                lambda client, n: client.mset({f"m:{n % 9}": n, f"m:{n % 5}x": n}),
                lambda client, n: client.delete(f"s:{n}", f"l:{n % 50}", f"n:{n % 70}"),
                lambda client, n: client.sunionstore(f"u:{n % 3}", [f"set:{n % 20}", "set:1"]),
                lambda client, n: client.rename(f"h:{n}", f"h:new:{n}") if n < 40 else None,
                server=source,
                pause=0.002,
            ):
                run.following()
                source.client().publish("channel", "word")
                run.in_sync()
            run.in_sync()
            source.client().flushall()
            filled(source)
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, cluster.url)
        for node in cluster.nodes:
            assert not [key for key in node.client().scan_iter() if key.startswith(OWN_PREFIX)]


def test_a_user_who_may_not_end_connections(server_factory: ServerFactory) -> None:
    """There is no other form than the one in which that is needed: refused, with the remedy."""
    source = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=1, make=server_factory) as cluster:
        (node,) = cluster.nodes
        node.client().acl_setuser(
            "mover",
            enabled=True,
            passwords=["+pw"],
            keys=["*"],
            channels=["*"],
            commands=["+@all", "-client|kill"],
        )
        url = f"redis://mover:pw@{node.host}:{node.port}"
        with Lanes([Way(source, url, Route(to_cluster=True, tag="own"), source)]) as run:
            pass
        assert isinstance(run.error, AuthError), run.events
        assert "+client|kill" in run.error.remedy
        assert not node.client().dbsize()


def test_a_second_full_sync_empties_the_lanes_slots_alone(server_factory: ServerFactory) -> None:
    """What the source deleted meanwhile is gone from the lane's slots; the others' keys stay."""
    source = server_factory(known("redis-7.0"))
    filled(source)
    with Cluster.start(known("redis-7.0"), primaries=1, make=server_factory) as cluster:
        (node,) = cluster.nodes
        others = [f"o:{n}" for n in range(300) if slot_of(f"o:{n}") >= 8192]
        for key in others:
            node.client().set(key, "kept")
        route = Route(slots=SlotSet(((0, 8191),)), to_cluster=True, tag=slot_tag(5))
        ways, stores = [Way(source, node, route, source)], [MemoryCheckpoint()]
        with Lanes(ways, stores) as run:
            run.in_sync()
            run.stop()
        gone = [f"s:{n}" for n in range(KEYS) if slot_of(f"s:{n}") < 8192][:50]
        source.client().delete(*gone)
        # Its backlog is gone, and with it the way back.
        source.client().execute_command("DEBUG", "CHANGE-REPL-ID")
        with Lanes(ways, stores) as run:
            run.cut_over()
        assert run.error is None, run.events
        assert any("is emptied" in event for event in run.events), run.events
        client = node.client()
        assert not any(client.exists(key) for key in gone)
        assert all(client.get(key) == b"kept" for key in others)
        mine = [key for key in source.client().scan_iter(count=1000) if slot_of(key) < 8192]
        assert all(client.exists(key) for key in mine)


def test_shards_into_one_server(server_factory: ServerFactory) -> None:
    """A cluster's shards into one server: a shard that is flushed, or copied anew, takes its own
    slots' keys away, and those of no other."""
    target = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=3, make=server_factory) as cluster:
        client = cluster.client()
        for n in range(KEYS):
            client.set(f"s:{n}", n)
        stores = [MemoryCheckpoint() for _ in cluster.nodes]
        ways = ways_from(cluster, target)
        with Lanes(ways, stores) as run:
            run.in_sync()
            cluster.nodes[1].client().flushall()
            client.set("s:1", "again")
            run.in_sync()
            run.stop()
        there = target.client()
        assert sorted(key for key in there.scan_iter(count=1000) if key.startswith(b"s:")) == (
            sorted(key for node in cluster.nodes for key in node.client().scan_iter(count=1000))
        )
        gone = list(cluster.nodes[2].client().scan_iter(count=1000))[:50]
        for key in gone:
            client.delete(key)
        cluster.nodes[2].client().execute_command("DEBUG", "CHANGE-REPL-ID")
        with Lanes(ways, stores) as run:
            run.cut_over()
        assert run.error is None, run.events
        assert sum("is emptied" in event for event in run.events) == 1, run.events
        assert_equal(cluster.url, target.url)
        client.close()


def test_libraries_of_every_shard(server_factory: ServerFactory) -> None:
    """Each shard of a source has them, and says so: the target has them once, and the gate opens
    with the same on both ends."""
    code = "#!lua name={}\nredis.register_function('{}', function() return 1 end)"
    target = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2, make=server_factory) as cluster:
        for node in cluster.nodes:
            node.client().function_load(code.format("first", "f"))
        with Lanes(ways_from(cluster, target)) as run:
            run.in_sync()
            for node in cluster.nodes:
                node.client().function_load(code.format("second", "g"))
                node.client().function_delete("first")
            run.cut_over()
        assert run.error is None, run.events
        (library,) = target.client().function_list()
        assert b"second" in library


def test_a_slot_that_is_away_at_the_start(server_factory: ServerFactory) -> None:
    """The snapshot's values of that slot wait until the node has it."""
    source = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2, make=server_factory) as cluster:
        node, other = cluster.nodes
        here = [f"{{{n}}}" for n in range(400) if slot_of(f"{{{n}}}") < 8192]
        for tag in here:
            source.client().rpush(f"{tag}list", 1, 2)
        moved, rest = slot_of(here[0]), slot_of(here[1])
        cluster.move([moved], other)
        route = Route(slots=SlotSet(((0, 8191),)), to_cluster=True, tag=slot_tag(rest))
        with Lanes([Way(source, node, route, source)]) as run:
            run.wait_for(
                lambda: "MOVED" in run.overview.progress.reason or "MOVED" in str(run.events),
                "what the target said",
            )
            cluster.move([moved], node)
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, node.url)


def test_what_an_abandoned_migration_left(server_factory: ServerFactory) -> None:
    """Its mark is in the lane's own slot, and the next one finds it."""
    source = server_factory(known("redis-7.0"))
    filled(source)
    with Cluster.start(known("redis-7.0"), primaries=3, make=server_factory) as cluster:
        ways = ways_into(source, cluster)
        with Lanes(ways, resumable=False) as run:
            run.in_sync()
            run.stop()
        marks = [key for node in cluster.nodes for key in node.client().scan_iter("startmigr*")]
        assert len(marks) == 3
        assert all(key.endswith(b"}:left") for key in marks)
        source.client().delete("s:1")
        with Lanes(ways) as run:
            pass
        assert "was not completed" in str(run.error), run.events
        for node in cluster.nodes:
            node.client().flushall()
        with Lanes(ways) as run:
            run.cut_over()
        assert run.error is None, run.events
        assert_equal(source.url, cluster.url)


@pytest.mark.parametrize("end", ["source", "target"])
def test_one_shard_is_not_taken_for_the_whole(server_factory: ServerFactory, end: str) -> None:
    """A node that did not answer when the lanes were planned, and was taken for a server alone."""
    alone = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2, make=server_factory) as cluster:
        node = cluster.nodes[0]
        ends = (node, alone) if end == "source" else (alone, node)
        with Lanes([Way(*ends, Route(), ends[0])]) as run:
            wait_for(lambda: run.error is not None, "a refusal")
    assert f"the {end} {node.host}:{node.port} is a node of a cluster" in str(run.error)
    assert not list(alone.client().scan_iter())
