"""The online path when something breaks at the moment where it hurts most."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import pytest

from engine.errors import StateError
from engine.model.checkpoint import Checkpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.library import Run, migrated, migrating
from tests.support.servers import ServerFactory, known


def test_a_key_spoilt_behind_the_last_look_is_mended(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    source = server_factory(known("redis-6.2"))
    target = server_factory(known("redis-6.0"))
    writer = source.client()
    writer.set("a", "1")

    # Between the look and the end: commands that the target does not know.
    hook = tmp_path / "hook.py"
    hook.write_text(
        "import sys, redis\n"
        f"r = redis.Redis(port={source.port})\n"
        "for n in range(120) if sys.argv[1] == 'fence' else ():\n"
        "    r.execute_command('COPY', 'a', f'h{n}')\n"
    )
    result = migrated(
        source, target, one_go=True, fence="hook", fence_hook=f"{sys.executable} {hook}"
    )
    assert result.report.status == "done", result.report.errors
    assert len(target.client().keys("h*")) == 120


def test_forced_end_gives_deadlines_back(server_factory: ServerFactory) -> None:
    plain = known("redis-7.0")
    source, target = server_factory(plain), server_factory(plain)
    source.client().set("k", "v", ex=600)

    with migrating(source, target) as result:
        result.wait_for(lambda: result.progress.can_complete, "an open gate")
        result.complete(force=True)
    assert result.report.status == "stopped"
    assert 0 < target.client().ttl("k") <= 600


def test_repaired_key_gets_its_deadline_back(server_factory: ServerFactory) -> None:
    source = server_factory(known("redis-6.2"))
    target = server_factory(known("redis-6.0"))
    writer = source.client()
    writer.set("a", "1")

    with migrating(source, target) as result:
        result.wait_for(lambda: result.progress.can_complete, "an open gate")
        writer.expire("a", 90_000)
        writer.copy("a", "h")
        result.wait_for(lambda: result.progress.repaired_keys, "a key that is read again")
        result.wait_for(lambda: result.progress.can_complete, "an open gate")
        result.complete()
    assert result.report.status == "done", result.report.errors
    assert 0 < target.client().ttl("h") <= 90_000


class Slow(MemoryCheckpoint):
    """Takes its time for the save that says that the target is open."""

    def save(self, checkpoint: Checkpoint) -> None:
        if isinstance(checkpoint.position, OnlineCheckpoint) and checkpoint.position.opened:
            time.sleep(3)
        super().save(checkpoint)


def test_deadline_that_passes_while_the_opening_is_written_down(
    server_factory: ServerFactory,
) -> None:
    plain = known("redis-7.0")
    source, target = server_factory(plain), server_factory(plain)
    source.client().set("k", "v")
    store = Slow()
    with contextlib.suppress(TimeoutError):
        result = migrated(
            source, target, checkpoints=store, cut_over_timeout=2.5, timeout=60, one_go=True
        )
        assert result.report.status == "done", result.report.errors
        assert not [each for each in result.events if "refused" in each]
        assert not target.client().keys("startmigration:*")
        return
    pytest.fail("hung")


class Lost(MemoryCheckpoint):
    """Fails when it is told, as one whose claim another engine has taken."""

    lost = False

    def save(self, checkpoint: Checkpoint) -> None:
        if self.lost:
            raise StateError("the claim is another's")
        super().save(checkpoint)


def test_engine_that_lost_its_claim_does_not_touch_the_target(
    server_factory: ServerFactory,
) -> None:
    plain = known("redis-7.0")
    source, target = server_factory(plain), server_factory(plain)
    source.client().set("k", "v")
    store = Lost()

    with migrating(source, target, checkpoints=store) as result:
        result.following()
        store.lost = True
        # As another engine that took over and has opened the target leaves it.
        client = target.client()
        client.set("users", "own")
        client.delete(*client.keys("startmigration:*"))
        source.client().set("k", "w")
    assert result.report.status == "failed"
    assert target.client().get("users") == b"own"


def press(run: Run) -> None:
    """Ask for the cut-over until it comes off."""
    while not run.ended:
        run.complete()
        time.sleep(0.3)


def test_target_older_at_the_moment_when_the_source_breaks(server_factory: ServerFactory) -> None:
    """Both ends lose power: the position that counts is the target's."""
    plain = known("redis-7.0")
    source, target = server_factory(plain), server_factory(plain, "--save", "")
    writer = source.client()
    writer.set("counter", 0)

    with migrating(source, target, timeout=90) as result:
        result.wait_for(lambda: result.progress.can_complete, "an open gate")
        client = target.client()
        client.save()
        at = result.progress.applied_offset
        for _ in range(10):
            writer.incr("counter")
        result.wait_for(
            lambda: result.progress.applied_offset > at and client.get("counter") == b"10",
            "the counts on the target",
        )
        way = result.work._way.lanes[0]
        # The target comes back with what it saved while the source's link is gone for good.
        way._source._lost = _link_error()
        target.kill()
        target.restart()
        way._source._wake()
        writer.incr("counter")
        press(result)
    assert result.report.status == "done", result.report.errors
    assert target.client().get("counter") == b"11"


def _link_error() -> Exception:
    from engine.errors import LinkError

    return LinkError("the source's link is gone", fault="source")


def test_import_mode_that_a_restart_forgot(server_factory: ServerFactory) -> None:
    plain = known("valkey-8.1")
    source = server_factory(plain)
    target = server_factory(plain, "--appendonly", "yes", "--appendfsync", "always")
    writer = source.client()

    with migrating(source, target, timeout=90) as result:
        result.wait_for(lambda: result.progress.can_complete, "an open gate")
        writer.set("k", "v", px=4000)
        over = time.monotonic() + 4
        result.in_sync()
        target.kill()
        writer.pexpire("k", 600_000)
        time.sleep(max(over - time.monotonic(), 0) + 0.5)
        target.restart()
        press(result)
    assert result.report.status == "done", result.report.errors
    assert target.client().get("k") == b"v"
