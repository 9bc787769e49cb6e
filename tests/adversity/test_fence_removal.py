"""What a cut-over has left at the source is not forgotten: it is tried again, and shown, until it
is taken away, by this engine or by the next one."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benches.support.servers import Server
from engine.fleet.cut_over_comparisons import comparison_of
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.fence import PauseFence
from engine.transfer.lane_cut_over import LaneCutOver
from engine.transfer.unblock_source import unblock
from tests.support.comparison import assert_settled
from tests.support.library import migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known, refuses_writes

LEFT = "may still refuse writes, for its fence could not be removed"


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source with a user of ours that has all rights, and a target that keeps its data."""
    source = server_factory(known("redis-7.0"))
    source.client().acl_setuser(
        "mover", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all"]
    )
    source.client().mset({f"key:{n}": n for n in range(100)})
    target = server_factory(known("redis-7.0"), "--appendonly", "yes", "--appendfsync", "always")
    return source, target


def by_mover(source: Server) -> str:
    return f"redis://mover:pw@{source.host}:{source.port}"


def right(source: Server, rule: str) -> None:
    source.client().execute_command("ACL", "SETUSER", "mover", rule)


def rejected(source: Server, command: str) -> int:
    """How often the server refused it for want of a right."""
    found = source.client().info("commandstats").get(f"cmdstat_{command}", {})
    return int(found.get("rejected_calls", 0))


def mark_of(store: MemoryCheckpoint) -> OnlineCheckpoint:
    found = store.load()
    assert isinstance(found, Checkpoint)
    assert isinstance(found.position, OnlineCheckpoint)
    return found.position


@pytest.fixture
def behind_the_write_block(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something happen once, right behind the first seal."""
    block_writes = PauseFence.block_writes

    def arrange(act: Callable[[], None]) -> None:
        acted: list[bool] = []

        async def sealed(self: PauseFence) -> None:
            await block_writes(self)
            if not acted:
                acted.append(True)
                await asyncio.to_thread(act)

        monkeypatch.setattr(PauseFence, "block_writes", sealed)

    return arrange


Arrange = Callable[[Callable[[], None]], None]


@pytest.fixture
def loses_a_right(
    ends: tuple[Server, Server], behind_the_write_block: Arrange
) -> tuple[Server, Server]:
    """Behind the seal the target dies, and our user may not set the source's setting any more."""
    source, target = ends

    def act() -> None:
        right(source, "-config|set")
        target.kill()
        target.restart()

    behind_the_write_block(act)
    return ends


def test_a_fence_is_taken_away_once_that_is_allowed(loses_a_right: tuple[Server, Server]) -> None:
    """The cut-over is refused, and the source cannot be told: it is shown, told once, tried again,
    and the gate is closed meanwhile. The next engine goes on with it."""
    source, target = loses_a_right
    store = MemoryCheckpoint()

    with migrating(by_mover(source), target, checkpoints=store) as run:
        run.following()
        run.in_sync(source)
        run.refused()
        run.wait_for(lambda: LEFT in run.progress.reason, "the reason")
        run.wait_for(lambda: rejected(source, "config|set") >= 3, "further tries")
        run.wait_for(lambda: run.progress.phase is Phase.FOLLOW, "following")
        assert not run.progress.can_complete
        assert "CONFIG SET min-replicas-to-write 0" in run.progress.reason
        assert sum(LEFT in each for each in run.events) == 1
        assert refuses_writes(source)
        run.stop()
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert run.report.sealed == "0 10"
    assert (mark_of(store).fenced, mark_of(store).sealed) == (True, "0 10")
    assert refuses_writes(source)

    with migrating(by_mover(source), target, checkpoints=store) as run:
        run.wait_for(lambda: any(LEFT in each for each in run.events), "a try")
        run.following()
        assert refuses_writes(source)
        right(source, "+config|set")
        run.wait_for(lambda: any("the fence was removed" in each for each in run.events), "its end")
        assert not refuses_writes(source)
        source.client().set("probe", "1")
        run.cut_over(source)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert refuses_writes(source)
    assert target.client().get("probe") == b"1"
    assert_tidy(target)


def test_a_fence_that_is_still_there_at_the_end(loses_a_right: tuple[Server, Server]) -> None:
    """The migration is aborted: its report says what `unblock-source` has to put back."""
    source, target = loses_a_right

    with migrating(by_mover(source), target, cut_over_timeout=5.0) as run:
        run.following()
        run.in_sync(source)
        run.refused()
        run.wait_for(lambda: LEFT in run.progress.reason, "the reason")
        run.complete(force=True)
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert refuses_writes(source)
    at = Endpoint.parse(source.url)
    ours = run.report.sealed_at, run.report.sealed
    told = asyncio.run(unblock(at, *ours, TransferSettings(), Credentials()))
    assert "accepts writes again" in told
    assert not refuses_writes(source)


def test_a_fence_behind_a_script_that_runs(
    ends: tuple[Server, Server], behind_the_write_block: Arrange
) -> None:
    """The source answers BUSY for longer than two questions wait: that for its role, and that which
    takes the fence away. Then it is taken away."""
    source, target = ends
    # (It goes on when it has read: no write holds it up, and SCRIPT KILL could end it.)
    loop = "local t = redis.call('TIME')[1]; while redis.call('TIME')[1] - t < 12 do end; return 1"
    client = source.client()
    client.config_set("busy-reply-threshold", 50)

    def act() -> None:
        sender = source.client(retry=None, socket_timeout=30).connection_pool.get_connection()
        sender.send_command("EVAL_RO", loop, 0)
        target.kill()
        target.restart()

    behind_the_write_block(act)

    with migrating(source, target) as run:
        run.following()
        run.in_sync()
        run.refused()
        run.wait_for(lambda: any(LEFT in each and "BUSY" in each for each in run.events), "a try")
        run.wait_for(lambda: any("the fence was removed" in each for each in run.events), "its end")
        assert not refuses_writes(source)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert refuses_writes(source)
    assert_tidy(target)


def test_a_hook_that_does_not_take_its_fence_away(
    ends: tuple[Server, Server], tmp_path: Path
) -> None:
    """It is run again until it succeeds, and no cut-over begins before."""
    source, target = ends
    noted, allowed, hook = tmp_path / "noted", tmp_path / "allowed", tmp_path / "hook.py"
    hook.write_text(
        "import json, os, sys\n"
        f"open({str(noted)!r}, 'a').write(json.dumps(sys.argv[1]) + '\\n')\n"
        f"sys.exit(sys.argv[1] == 'unfence' and not os.path.exists({str(allowed)!r}))\n"
    )

    def words() -> list[str]:
        return [json.loads(line) for line in noted.read_text().splitlines()]

    looks = iter((CutOverCheckResult(False, "not yet"), CutOverCheckResult(True, "now")))

    async def gate(own_key: bytes) -> CutOverCheckResult:
        return next(looks)

    command = f"{sys.executable} -I {hook}"
    with migrating(source, target, fence="hook", fence_hook=command, gate_in_sync=gate) as run:
        run.following()
        run.in_sync()
        assert "not yet" in run.refused()
        run.wait_for(lambda: words().count("unfence") >= 3, "further tries")
        assert not run.progress.can_complete
        assert "may still be blocked" in run.progress.reason
        assert "ended with 1 for 'unfence'" in run.progress.reason
        allowed.touch()
        run.wait_for(lambda: any("the fence was removed" in each for each in run.events), "its end")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    said = words()
    assert said[0] == "fence"
    assert set(said[1:-2]) == {"unfence"}
    assert said[-2:] == ["fence", "done"]
    assert sum("its fence could not be removed" in each for each in run.events) == 1
    assert_tidy(target)


@pytest.mark.parametrize("fence", ["hook", "pause"])
def test_a_target_with_keys_of_its_own_that_comes_back_older_behind_it(
    fence: str, server_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on it says that it was ours. It is, in another process: the source is not left as for
    a cut-over of another migration."""
    source = server_factory(known("redis-7.0"))
    target = server_factory(known("redis-7.0"), "--save", "3600 1000000")
    source.client().mset({f"key:{n}": n for n in range(100)})
    target.client().set("own", "1")
    target.client().save()
    noted, hook = tmp_path / "noted", tmp_path / "hook.py"
    hook.write_text(f"import sys\nopen({str(noted)!r}, 'a').write(sys.argv[1] + '\\n')\n")
    drain, came_back = LaneCutOver.drain, threading.Event()

    async def draining(self: LaneCutOver) -> None:
        if not came_back.is_set():
            came_back.set()
            await asyncio.to_thread(target.kill)
            await asyncio.to_thread(target.restart)
        await drain(self)

    monkeypatch.setattr(LaneCutOver, "drain", draining)
    command = f"{sys.executable} -I -S {hook}"
    options: dict[str, Any] = {"fence": "hook", "fence_hook": command} if fence == "hook" else {}
    settings = TransferSettings(**options)
    both = comparison_of(
        Endpoint.parse(source.url), Endpoint.parse(target.url), settings, lambda: True
    )
    with migrating(source, target, timeout=90, comparison=both, **options) as run:
        run.following()
        run.in_sync()
        run.complete()
        run.wait_for(lambda: run.refusals, "a refusal")
        source.client(socket_timeout=30).set("later", 1)
        run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    if fence == "hook":
        assert noted.read_text().split() == ["fence", "unfence", "fence", "done"]
    assert target.client().get("own") == b"1"
    target.client().delete("own")
    assert_settled(source, target, 2)


# --- Behind the opening ---


@pytest.mark.parametrize("again", ["by itself", "resumed"])
def test_clients_of_an_open_target_that_cannot_be_let_go(
    ends: tuple[Server, Server], behind_the_write_block: Arrange, again: str
) -> None:
    """The target is open, and the source refuses UNPAUSE: it is tried again for a while; then the
    migration is stopped, and whoever resumes it has it done."""
    source, target = ends
    behind_the_write_block(lambda: right(source, "-client|unpause"))
    store = MemoryCheckpoint()

    limit = 30.0 if again == "by itself" else 0.5
    with migrating(by_mover(source), target, checkpoints=store, retry_for=limit) as run:
        run.following()
        run.in_sync(source)
        run.complete()
        run.wait_for(
            lambda: any("could not be set to refuse writes" in each for each in run.events),
            "a failure",
        )
        assert "the engine tries again in" in run.progress.reason
        if again == "by itself":
            right(source, "+client|unpause")
    if again == "resumed":
        assert (run.report.status, run.report.needs_hand) == ("stopped", True), run.report
        assert (
            "the target is promoted, but the source could not be set to refuse writes"
            in run.report.errors[0]
        )
        assert (mark_of(store).opened, mark_of(store).fenced) == (True, True)
        assert run.report.sealed == "0 10"
        target.client().set("key:0", "the user's")
        right(source, "+client|unpause")
        run = migrated(by_mover(source), target, checkpoints=store)
        assert target.client().get("key:0") == b"the user's"
    assert run.report.status == "done", (run.report.errors, run.events)
    assert any("the source refuses writes from now on" in each for each in run.events)
    assert not mark_of(store).fenced
    assert refuses_writes(source)
    assert_tidy(target)
