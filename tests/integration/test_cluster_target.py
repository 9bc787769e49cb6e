"""A standalone source into a cluster's nodes, in the record form: what arrives, and how."""

from __future__ import annotations

import pytest

from benches.support.clusters import Cluster, slot_of
from benches.support.compare import assert_equal
from benches.support.servers import Server
from engine.model.route import Route
from tests.support.lanes import Lanes, Way
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
