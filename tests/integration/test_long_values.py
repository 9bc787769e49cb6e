"""Values in the stream that are longer than the target takes (`proto-max-bulk-len`)."""

from __future__ import annotations

import os

from benches.support.servers import Server
from benches.support.waiting import soon
from engine.transfer.transfer import Transfer
from tests.support.comparison import assert_settled
from tests.support.online import assert_tidy, cut_over, following, in_sync, online
from tests.support.servers import ServerFactory, known
from tests.support.transfers import Run

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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        client.set("long", os.urandom(2 * MIB))
        client.mset({"beside": "y", "with it": os.urandom(3 * MIB)})
        # Long as an argument, and short as the payload that it is read as.
        client.set("even", b"a" * (2 * MIB))
        client.set("behind", "z")
        await soon(lambda: work.progress.not_carried == 2, "two keys refused")
        await soon(lambda: target.client().get("beside") == b"y", "its neighbour")
        assert target.client().get("behind") == b"z"
        assert target.client().strlen("even") == 2 * MIB
        assert not target.client().exists("long", "with it")
        await soon(lambda: not work.progress.can_complete, "a closed gate")
        assert work.progress.reconnects == 0
        target.client().config_set("proto-max-bulk-len", 16 * MIB)
        await soon(lambda: work.progress.not_carried == 0, "the limit to be seen")
        await in_sync(work, source)
        await cut_over(work, run, source)

    run = online(source, target, steer)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 1)
    assert_tidy(target)


def test_one_that_stays_too_long_is_in_the_report(server_factory: ServerFactory) -> None:
    source, target = pair(server_factory)

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        source.client().set("long", os.urandom(2 * MIB))
        await soon(lambda: work.progress.not_carried == 1, "a key refused")
        work.complete(force=True)

    run = online(source, target, steer)
    ((named),) = run.report.not_carried
    assert (named.db, named.key) == (0, "long")
    assert "takes no more than 1,048,576 (proto-max-bulk-len)" in named.reason
