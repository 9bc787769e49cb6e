"""Values in the stream that are longer than the target takes (`proto-max-bulk-len`)."""

from __future__ import annotations

import os

from benches.support.servers import Server
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

MIB = 1 << 20


def pair(server_factory: ServerFactory) -> tuple[Server, Server]:
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), "--proto-max-bulk-len", str(MIB))
    source.client().set("plain", "x")
    return source, target


def test_one_is_named_and_carried_once_it_can_be(server_factory: ServerFactory) -> None:
    """The link stays, all else goes on, and the key is off the list when the limit is raised."""
    source, target = pair(server_factory)
    client = source.client()

    with migrating(source, target) as run:
        run.following()
        client.set("long", os.urandom(2 * MIB))
        client.mset({"beside": "y", "with it": os.urandom(3 * MIB)})
        # Long as an argument, and short as the payload that it is read as.
        client.set("even", b"a" * (2 * MIB))
        client.set("behind", "z")
        run.wait_for(lambda: run.progress.not_carried == 2, "two keys refused")
        run.wait_for(lambda: target.client().get("beside") == b"y", "its neighbour")
        assert target.client().get("behind") == b"z"
        assert target.client().strlen("even") == 2 * MIB
        assert not target.client().exists("long", "with it")
        run.wait_for(lambda: not run.progress.can_complete, "a closed gate")
        assert run.progress.reconnects == 0
        target.client().config_set("proto-max-bulk-len", 16 * MIB)
        run.wait_for(lambda: run.progress.not_carried == 0, "the limit to be seen")
        run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 1)
    assert_tidy(target)


def test_one_that_stays_too_long_is_in_the_report(server_factory: ServerFactory) -> None:
    source, target = pair(server_factory)

    with migrating(source, target) as run:
        run.following()
        source.client().set("long", os.urandom(2 * MIB))
        run.wait_for(lambda: run.progress.not_carried == 1, "a key refused")
        run.complete(force=True)
    ((named),) = run.report.not_carried
    assert (named.db, named.key) == (0, "long")
    assert "takes no more than 1,048,576 (proto-max-bulk-len)" in named.reason
