"""What passes by itself is waited for; what needs a hand stops a migration that can go on.

Small pairs: what is waited for is the engine's business, not one server's.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase
from engine.targets.applier import UNDER_WAY_BYTES
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled
from tests.support.library import Run, copied, migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

AOF = ("--appendonly", "yes", "--appendfsync", "always")
NAME = "redis-7.0"


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source, and a target that keeps what it has acknowledged through a restart."""
    source = server_factory(known(NAME))
    target = server_factory(known(NAME), *AOF)
    source.client().mset({f"key:{n}": n for n in range(300)})
    return source, target


def finish(run: Run, source: Server) -> None:
    run.following()
    run.cut_over(source)


def resumed(source: Server, target: Server, store: MemoryCheckpoint, **options: Any) -> Run:
    """The migration that stopped goes on, without a full sync, to its end."""

    with migrating(source, target, checkpoints=store, **options) as run:
        finish(run, source)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)
    assert_tidy(target)
    return run


def test_a_target_that_comes_back_older_is_waited_for_no_longer(
    server_factory: ServerFactory,
) -> None:
    """Its position shows that it answers: what was waited for before is no reason any more."""
    source, target = server_factory(known(NAME)), server_factory(known(NAME))

    with migrating(source, target) as run:
        run.in_sync()
        target.client().save()
        source.client().mset({f"key:{n}": n for n in range(300)})
        run.in_sync()
        target.kill()
        source.client().set("behind", 1)
        run.wait_for(lambda: "failed in" in run.progress.reason, "tries")
        target.restart()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert any("another position" in event for event in run.events), run.events
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_target_that_is_away_is_waited_for(ends: tuple[Server, Server]) -> None:
    """As in a reboot: refused, then loading, then there. Meanwhile the reason says so."""
    source, target = ends

    with migrating(source, target, retry_for=3600.0) as run:
        run.following()
        run.in_sync()
        target.kill()
        source.client().set("meanwhile", "1")
        # The first tries may still meet the connection that was closed.
        wanted = ("cannot be reached", "tries failed in")
        run.wait_for(lambda: all(each in run.progress.reason for each in wanted), "a second try")
        told = run.progress
        assert "for up to 1 h without progress" in told.reason
        assert not told.can_complete
        assert told.retries > 0
        target.restart()
        run.in_sync()
        assert "tries failed" not in run.progress.reason
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("meanwhile") == b"1"
    assert any(event.startswith("it goes on, after ") for event in run.events)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_target_that_stays_away_stops_it(ends: tuple[Server, Server]) -> None:
    source, target = ends
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store, retry_for=1.0) as run:
        run.following()
        run.in_sync()
        target.kill()
        source.client().set("meanwhile", "1")
        run.reaches(Phase.STOPPED)
    assert run.report.status == "stopped"
    assert run.report.needs_hand
    assert "for 1 s: target" in run.report.errors[0]
    target.restart()
    assert target.client().keys("startmigration:position*")
    resumed(source, target, store)
    assert target.client().get("meanwhile") == b"1"


def test_a_source_that_is_away_is_waited_for(ends: tuple[Server, Server]) -> None:
    """Away, then loading, then the same data: where its history is another one, a full sync."""
    source, target = ends

    with migrating(source, target, retry_for=3600.0) as run:
        run.following()
        run.in_sync()
        source.client().save()
        source.kill()
        time.sleep(1.5)
        assert run.progress.phase not in (Phase.STOPPED, Phase.FAILED)
        source.restart()
        source.client().set("afterwards", "1")
        run.wait_for(lambda: run.progress.partial_syncs + run.progress.full_syncs == 2, "a link")
        run.following()
        run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("afterwards") == b"1"
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_source_that_stays_away_stops_it(ends: tuple[Server, Server]) -> None:
    source, target = ends
    store = MemoryCheckpoint()
    with (
        Proxy(source.host, source.port) as proxy,
        migrating(proxy, target, checkpoints=store, retry_for=1.0) as run,
    ):
        run.following()
        run.in_sync()
        proxy.refuse()
        proxy.cut_now()
        run.reaches(Phase.STOPPED)
    assert run.report.status == "stopped"
    assert run.report.needs_hand
    source.client().set("meanwhile", "1")
    resumed(source, target, store)


def test_a_full_spool_stops_it(ends: tuple[Server, Server]) -> None:
    """The same migration goes on with a larger one."""
    source, target = ends
    store = MemoryCheckpoint()

    # (A target that answers late, as on a busy machine, is far: so much is under way to it.)
    def write() -> None:
        pipe = source.client().pipeline(transaction=False)
        for n in range(UNDER_WAY_BYTES // 500_000 + 50):
            pipe.set(f"long:{n}", b"x" * 500_000)
        pipe.execute()

    source.client().config_set("repl-backlog-size", 128 << 20)
    with migrating(source, target, checkpoints=store, spool_bytes=4 << 20) as run:
        run.following()
        run.in_sync()
        target.freeze()
        write()
    target.thaw()
    assert run.report.status == "stopped"
    assert run.report.needs_hand
    assert "raise --spool-bytes" in run.report.errors[0]
    resumed(source, target, store, spool_bytes=256 << 20)


@pytest.mark.parametrize("when", ["snapshot", "stream"])
def test_a_database_that_the_target_lacks_stops_it(
    server_factory: ServerFactory, when: str
) -> None:
    source = server_factory(known(NAME))
    # The last option of a name counts, in a restart as well.
    target = server_factory(known(NAME), *AOF, "--databases", "4")
    source.client().mset({f"key:{n}": n for n in range(300)})
    if when == "snapshot":
        source.client(9).set("far", "1")
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        if when == "stream":
            run.following()
            source.client(9).set("far", "1")
        run.reaches(Phase.STOPPED)
    assert run.report.status == "stopped", run.report.errors
    assert "the target has no database 9" in run.report.errors[0]
    assert "Raise `databases`" in run.report.errors[0]
    target.options = (*AOF, "--databases", "16")
    target.restart()

    with migrating(source, target, checkpoints=store) as again:
        finish(again, source)
    assert again.report.status == "done", (again.report.errors, again.events)
    assert again.report.full_syncs == (2 if when == "snapshot" else 1)
    assert target.client(9).get("far") == b"1"
    assert_settled(source, target, 16)
    assert_tidy(target)


def test_a_password_that_was_changed_stops_it(server_factory: ServerFactory) -> None:
    source = server_factory(known(NAME))
    target = server_factory(known(NAME), *AOF, password="hunter2")
    source.client().mset({f"key:{n}": n for n in range(300)})
    store = MemoryCheckpoint()
    admin = target.client()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        admin.config_set("requirepass", "swordfish")
        admin.client_kill_filter(_type="normal", skipme=True)
        source.client().set("meanwhile", "1")
        run.reaches(Phase.STOPPED)
    assert run.report.status == "stopped", run.report.errors
    assert "WRONGPASS" in run.report.errors[0]
    assert "hunter2" not in str(run.report)
    admin.config_set("requirepass", "hunter2")
    resumed(source, target, store)


def test_a_wrong_password_from_the_start_fails(server_factory: ServerFactory) -> None:
    """Nothing was begun that could go on."""
    source = server_factory(known(NAME))
    target = server_factory(known(NAME), password="right")
    source.client().set("k", "v")
    wrong = target.url.replace("right", "wrong")
    run = copied(source, wrong, one_go=False, source_type="replica")
    assert run.report.status == "failed"
    assert not run.report.needs_hand
    assert run.report.retries == 0


@pytest.mark.parametrize("end", ["source", "target"])
def test_an_end_that_is_not_there_yet(server_factory: ServerFactory, end: str) -> None:
    """At the start as well: the reason, the tries and what comes next, in the phase CONNECT."""
    source, target = server_factory(known(NAME)), server_factory(known(NAME))
    source.client().set("k", "v")
    victim = source if end == "source" else target
    with Proxy(victim.host, victim.port) as proxy:
        proxy.refuse()
        words = (
            rf"^{end} 127\.0\.0\.1:{proxy.port}: "
            r"(connection refused|the server closed the connection)"
            r"\. \d+ tries failed in [\d.]+ s; "
            rf"the {end} is connected to again in [\d.]+ s, for up to 1 h without progress"
        )

        one, other = (proxy, target) if end == "source" else (source, proxy)
        with migrating(one, other, retry_for=3600.0) as run:
            # One published state has it all: which end, what failed, how often, and what is next.
            run.wait_for(lambda: "tries failed in" in run.progress.reason, "a second try")
            told = run.progress
            assert told.phase is Phase.CONNECT
            assert re.search(words, told.reason), told
            assert told.retries >= 2
            assert (told.can_complete, told.lag_bytes) == (False, None)
            run.wait_for(lambda: run.progress.retries > told.retries, "a further try")
            assert run.progress.phase is Phase.CONNECT
            proxy.refuse(False)
            finish(run, source)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("k") == b"v"


def test_a_source_that_lost_its_data_can_be_accepted(ends: tuple[Server, Server]) -> None:
    """For the next full sync alone: the word is used up by it."""
    source, target = ends
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        source.kill()
        source.restart()
        run.reaches(Phase.STOPPED)
    assert run.report.needs_hand
    assert "--accept-source-loss" in run.report.errors[0]
    source.client().set("only", "1")
    again = migrated(source, target, checkpoints=store, timeout=60)
    assert again.report.status == "stopped"
    assert target.client().get("key:0") == b"0"
    accept(store)

    with migrating(source, target, checkpoints=store) as last:
        finish(last, source)
    assert last.report.status == "done", (last.report.errors, last.events)
    assert any("the loss was accepted" in event for event in last.events)
    assert target.client().keys() == [b"only"]
    found = store.load()
    assert found is not None
    assert isinstance(found.position, OnlineCheckpoint)
    assert not found.position.loss_accepted


def accept(store: MemoryCheckpoint) -> None:
    """What `Registry.resume_migration(accept_source_loss=True)` writes."""
    found = store.load()
    assert found is not None
    assert isinstance(found.position, OnlineCheckpoint)
    store.save(replace(found, position=replace(found.position, loss_accepted=True)))
