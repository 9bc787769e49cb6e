"""What makes a full sync necessary again, and what must not come of it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.progress import Phase
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters

NAMES = ("redis-7.0", "valkey-9")


@pytest.fixture(params=NAMES)
def ends(request: pytest.FixtureRequest, server_factory: ServerFactory) -> tuple[Server, Server]:
    """Source (with a small backlog) and target."""
    binary = known(request.param)
    source = server_factory(binary, "--repl-backlog-size", "16kb")
    target = server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(300)})
    source.client(1).set("timed", "x", ex=3000)
    return source, target


@pytest.mark.parametrize("deleted", [100, 290])
def test_the_backlog_is_gone(ends: tuple[Server, Server], deleted: int) -> None:
    """However many keys it has deleted meanwhile: a source of the same history meant to."""
    source, target = ends

    def write() -> None:
        pipe = source.client().pipeline(transaction=False)
        for n in range(50):
            pipe.set(f"new:{n}", b"x" * 100_000)
        pipe.delete(*(f"key:{n}" for n in range(deleted)))
        pipe.execute()

    with Proxy(source.host, source.port) as proxy, migrating(proxy, target) as run:
        run.following()
        proxy.refuse()
        proxy.cut_now()
        write()
        proxy.refuse(False)
        run.wait_for(lambda: run.progress.full_syncs == 2, "another full sync")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 2
    assert any("full sync again" in event for event in run.events)
    # What is done is told, and not what is not.
    gone = [each for each in run.events if "no longer has what follows offset" in each]
    assert all(": connecting again, to ask the source for what follows offset" in e for e in gone)
    answer = "the source does not have what follows offset "
    assert any(e.startswith(answer) and e.endswith("answers with a full sync") for e in run.events)
    assert not any("going on from" in each for each in run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_expired_keys_are_emptied_as_well(server_factory: ServerFactory) -> None:
    """A target in import mode keeps what has expired until the source's DEL, which does not come
    behind another full sync: what the source makes anew of that name begins with nothing."""
    source = server_factory(known("redis-7.0"), "--repl-backlog-size", "16kb")
    client = source.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.mset({f"key:{n}": n for n in range(50)})
    with (
        Cluster.start(known("valkey-8.1"), primaries=1, make=server_factory) as target,
        Proxy(source.host, source.port) as proxy,
        migrating(proxy, target) as run,
    ):
        run.following()
        client.rpush("list", "old")
        client.pexpire("list", 300)
        client.set("seen", 1)
        node = target.nodes[0].client()
        run.wait_for(lambda: node.exists("seen"), "what was written behind it")
        proxy.refuse()
        proxy.cut_now()
        # The source ends it when it is asked for it.
        run.wait_for(lambda: not client.exists("list"), "the end of its time")
        client.mset({f"new:{n}": b"x" * 100_000 for n in range(50)})
        proxy.refuse(False)
        run.wait_for(lambda: run.progress.full_syncs == 2, "another full sync")
        run.following()
        client.rpush("list", "new")
        # Not what the comparison of the cut-over puts right.
        run.wait_for(lambda: node.lrange("list", 0, -1) == [b"new"], "the new list", 20)
        assert node.pttl("list") == -1
        run.cut_over(source)
        assert_settled(source, target, 2)
        assert_tidy(target)
    assert run.report.status == "done", (run.report.errors, run.events)


def test_the_target_loses_its_data(ends: tuple[Server, Server]) -> None:
    source, target = ends

    with Counters(source) as counters, migrating(source, target) as run:
        run.following()
        time.sleep(0.2)
        target.client().flushall()
        run.wait_for(lambda: run.progress.full_syncs == 2, "another full sync")
        counters.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    lost = (
        "the target has lost this migration's data: connecting again, to ask the "
        "source for a full sync"
    )
    assert lost in run.events
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("name", NAMES)
def test_the_source_takes_long_to_load(name: str, server_factory: ServerFactory) -> None:
    """What it has loaded by the time of the dial is not all that it has left."""
    source, target = server_factory(known(name), "--appendonly", "yes"), server_factory(known(name))
    pipe = source.client().pipeline(transaction=False)
    for n in range(5000):  # a command each: it looks at its connections behind a thousand
        pipe.set(f"key:{n}", n)
    pipe.execute()
    store = MemoryCheckpoint()
    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.stop()
    source.options = (*source.options, "--key-load-delay", "300")
    source.stop()
    with migrating(source, target, checkpoints=store, retry_for=60.0) as run:
        source.restart()
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_the_source_comes_back_empty(ends: tuple[Server, Server]) -> None:
    """Restarted without its data it must not empty the target as well."""
    source, target = ends
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        source.kill()
        source.restart()
        run.reaches(Phase.STOPPED)
    assert run.report.status == "stopped"
    assert "the source has 0 keys left, and the target has 30" in run.report.errors[0]
    assert target.client().mget("key:0", "key:299") == [b"0", b"299"]
    # What it takes to go on is still there, and as soon as the source has its data again it does.
    assert len(target.client().keys("startmigration:position*")) == 1
    source.client().mset({f"key:{n}": n for n in range(300)})
    source.client(1).set("timed", "x", ex=3000)

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_the_source_comes_back_empty_and_is_given_up(ends: tuple[Server, Server]) -> None:
    """Ended by force: the target has the last copy, with deadlines that pass."""
    source, target = ends
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        source.kill()
        source.restart()
        run.reaches(Phase.STOPPED)

    # Forced before it has begun to look, as a worker is that finds the operator's word at once.
    run = migrating(source, target, checkpoints=store)
    run.complete(force=True)
    run.start().join()
    assert run.report.errors[0].startswith("aborted by force, not cut over: ")
    assert target.client().dbsize() == 301
    assert 0 < target.client(1).ttl("timed") <= 3000
    assert_tidy(target, left=True)


def test_two_engines_with_one_token(ends: tuple[Server, Server]) -> None:
    """One was taken for dead, and wakes up beside its successor: one stops, and leaves all be."""
    source, target = ends
    source.client().config_set("repl-backlog-size", 16 << 20)
    stores = MemoryCheckpoint(), MemoryCheckpoint()

    with Counters(source) as counters, migrating(source, target, checkpoints=stores[0]) as first:
        first.following()
        checkpoint = stores[0].load()
        assert checkpoint is not None
        stores[1].save(checkpoint)
        with migrating(source, target, checkpoints=stores[1]) as second:
            runs = [first, second]
            wait_for(
                lambda: any(each.progress.phase is Phase.FAILED for each in runs), "one to stop"
            )
            # What it does on its way out would show now.
            time.sleep(0.5)
            counters.stop()
            # Whichever is left over cuts over.
            (left,) = (each for each in runs if each.progress.phase is not Phase.FAILED)
            left.cut_over()
    assert sorted(each.report.status for each in runs) == ["done", "failed"]
    (failed,) = (each for each in runs if each.report.status == "failed")
    assert "another engine moves the same migration on" in failed.report.errors[0]
    assert source.client().info("stats")["sync_full"] == 1
    assert counters.check(target) == []
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_an_engine_whose_successor_has_opened_the_target(ends: tuple[Server, Server]) -> None:
    """The position is gone, as after a FLUSHALL; but by now the target is its users'."""
    source, target = ends
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        checkpoint = store.load()
        assert checkpoint is not None
        assert isinstance(checkpoint.position, OnlineCheckpoint)
        opened = replace(checkpoint.position, opened=True)
        store.save(replace(checkpoint, position=opened))
        target.client().delete(OwnKeys(opened.token).position)
        target.client().set("key:0", "the user's")
        source.client().set("key:1", "nobody's")
        run.reaches(Phase.FAILED)
    assert "another engine has promoted the target" in run.report.errors[0]
    assert target.client().mget("key:0", "key:1") == [b"the user's", b"1"]
    assert target.client().dbsize() == 300
