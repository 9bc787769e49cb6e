"""The target's opening: it is open only if it is what was compared, whatever dies in between."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint, OwnKeys
from engine.model.position import StreamPosition, TargetPosition
from engine.model.progress import ENDS, Phase
from engine.model.settings import TransferSettings
from engine.model.verification import AtFence
from engine.targets.applier import Applier
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import Settle
from engine.verify import LiveComparison
from tests.support.checkpoints import DiesAt
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrated, migrating
from tests.support.own_keys import OWN_PREFIX, assert_tidy
from tests.support.servers import ServerFactory, known, refuses_writes

# With lifted deadlines, and with import mode.
NAMES = ("redis-7.0", "valkey-9")
KEYS = [f"key:{n}" for n in range(500)]
OLD, NEW = ["old"] * len(KEYS), ["new"] * len(KEYS)


@pytest.fixture(params=NAMES)
def source(request: pytest.FixtureRequest, server_factory: ServerFactory) -> Server:
    server = server_factory(known(request.param), "--repl-backlog-size", "16mb")
    server.client().mset(dict(zip(KEYS, OLD, strict=True)))
    return server


def values(server: Server) -> list[str | None]:
    return [each and each.decode() for each in server.client().mget(KEYS)]


def led_back(run: Run) -> list[str]:
    """The reasons with which cut-overs that had begun led back: what the verb prints."""
    pairs = zip(run.history, run.history[1:], strict=False)
    ended = (new for old, new in pairs if old.phase is Phase.CUT_OVER is not new.phase)
    return [each.reason for each in ended if each.phase not in ENDS]


def renew(source: Server) -> None:
    source.client().mset(dict(zip(KEYS, NEW, strict=True)))


def comparison_and_then(source: Server, target: Server, act: Callable[[], None]) -> LiveComparison:
    """The product's comparison; behind the first one at a fence `act` is run, in a thread."""

    class Acting(LiveComparison):
        acted = False

        async def at_fence(self, settle: Settle) -> AtFence:
            found = await super().at_fence(settle)
            if not (self.acted or found.differ):
                self.acted = True
                await asyncio.to_thread(act)
            return found

    ends = (Endpoint.parse(each.url) for each in (source, target))
    return Acting(*ends, TransferSettings(), lambda: False)


@pytest.mark.parametrize("comes_back", ["empty", "older", "whole"])
def test_a_target_that_dies_behind_the_gate(
    source: Server, server_factory: ServerFactory, comes_back: str
) -> None:
    """It was compared, and is another process when it is to be opened: it is not opened; the
    source takes writes again, and the target is followed from what it has."""
    options = {
        "empty": ("--save", ""),
        "older": ("--save", "3600 1000000"),
        "whole": ("--appendonly", "yes", "--appendfsync", "always"),
    }
    target = server_factory(source.binary, *options[comes_back])

    def die() -> None:
        target.kill()
        target.restart()

    with migrating(source, target, comparison=comparison_and_then(source, target, die)) as run:
        run.following()
        run.in_sync()
        if comes_back == "older":
            target.client().save()
        renew(source)
        run.in_sync()
        run.refused()
        run.wait_for(lambda: run.progress.phase is Phase.FOLLOW, "following goes on")
        assert not refuses_writes(source)
        run.in_sync()
        assert values(target) == NEW
        source.client().set("later", "1")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == (2 if comes_back == "empty" else 1)
    assert (reasons := led_back(run))
    # Not what was said before the word, or behind it.
    assert not any(each in why for each in ("catching up", "equal") for why in reasons), reasons
    assert values(target) == NEW
    assert target.client().get("later") == b"1"
    assert refuses_writes(source)
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_link_that_is_lost_at_the_opening(
    source: Server, server_factory: ServerFactory, direction: str
) -> None:
    """`up`: the target is never told to open. `down`: it is, and its answer is lost: the engine
    asks it, and ends what was begun."""
    target = server_factory(source.binary)
    with Proxy(target.host, target.port) as proxy:

        def asked() -> bool:
            """Whether the cut fell on the opening."""
            told = any("did not answer" in each for each in run.events)
            return told or run.progress.phase in ENDS

        comparison = comparison_and_then(source, target, lambda: proxy.cut_after(0, direction))
        with migrating(source, proxy, comparison=comparison) as run:
            run.following()
            while not asked():
                # What is cut may be another answer, which was late: then the cut-over is refused.
                run.in_sync()
                comparison.acted = False
                before = len(run.refusals)
                run.complete()
                run.wait_for(lambda: asked() or len(run.refusals) > before, "a cut")  # noqa: B023
            if direction == "up":
                run.wait_for(lambda: run.progress.phase is Phase.FOLLOW, "following goes on")
                assert not refuses_writes(source)
                run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert ("the target was promoted" in run.history[-1].reason) is (direction == "down")
    if direction == "up":
        reason = led_back(run)[-1]
        assert "the promotion was sent to the target, which did not answer: " in reason
        assert "; the target was not promoted: it has offset " in reason
    assert refuses_writes(source)
    assert values(target) == OLD
    assert_tidy(target)


@pytest.fixture
def opened(source: Server, server_factory: ServerFactory) -> tuple[Server, MemoryCheckpoint]:
    """A target that was opened, and the checkpoint of an engine that died before it knew."""
    target = server_factory(source.binary, "--save", "")
    store = DiesAt(lambda mark: mark.opened)

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.in_sync()
        # What the target comes back with, where it is restarted.
        target.client().save()
        renew(source)
        run.in_sync()
        run.complete()
    assert run.report.errors, run.events
    assert "died here" in run.report.errors[0]
    left = store.left()
    checkpoint = left.load()
    assert checkpoint is not None
    assert isinstance(checkpoint.position, OnlineCheckpoint)
    assert checkpoint.position.promoting
    assert refuses_writes(source)
    return target, left


def test_an_engine_that_dies_before_it_knows_that_the_target_is_open(
    source: Server, opened: tuple[Server, MemoryCheckpoint]
) -> None:
    """The next one learns it from the target: nothing is written there any more."""
    target, store = opened
    target.client().set(KEYS[0], "the user's")
    run = migrated(source, target, checkpoints=store)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert "the target was promoted" in run.history[-1].reason
    assert values(target) == ["the user's", *NEW[1:]]
    assert source.client().info("stats")["sync_full"] == 1
    assert refuses_writes(source)
    assert_tidy(target)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("comes_back", ["older", "empty"])
def test_a_target_that_was_opened_and_came_back_from_before_that(
    source: Server, opened: tuple[Server, MemoryCheckpoint], comes_back: str, known: bool
) -> None:
    """The engine that had opened it is dead; the next one does not call that complete, but brings
    the target up to date again. `known`: the first one had written down that it was open."""
    target, store = opened
    checkpoint = store.load()
    assert checkpoint is not None
    if known:
        assert isinstance(checkpoint.position, OnlineCheckpoint)
        mark = {**checkpoint.position.to_dict(), "opened": True}
        data = checkpoint.to_dict()
        data["position"] = {**data["position"], **mark}
        store.save(Checkpoint.from_dict(data))
    target.kill()
    if comes_back == "empty":
        (target.folder / "dump.rdb").unlink()
    target.restart()
    assert values(target) == (OLD if comes_back == "older" else [None] * len(KEYS))

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        assert not refuses_writes(source)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert values(target) == NEW
    assert refuses_writes(source)
    assert_tidy(target)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_target_that_was_opened_and_has_no_mark(
    source: Server,
    server_factory: ServerFactory,
    opened: tuple[Server, MemoryCheckpoint],
    restarted: bool,
) -> None:
    """The mark was removed, and the engine died before it wrote that down. In the process that was
    opened nothing is left to do, whatever follows it by now; in another one nobody knows what it
    came back with, and that is not called complete."""
    target, store = opened
    checkpoint = store.load()
    assert checkpoint is not None
    assert isinstance(checkpoint.position, OnlineCheckpoint)
    store.save(replace(checkpoint, position=replace(checkpoint.position, opened=True)))
    target.client().delete(OwnKeys(checkpoint.position.token).position)
    if restarted:
        target.client().save()
        target.restart()
    else:
        replica = server_factory(source.binary)
        before = target.client().info("replication")["master_replid"]
        replica.client().replicaof(target.host, target.port)
        wait_for(
            lambda: target.client().info("replication")["master_replid"] != before,
            "another replication id",
        )
    run = migrated(source, target, checkpoints=store)
    assert run.report.status == ("failed" if restarted else "done"), run.report
    if restarted:
        assert "may have come back older" in run.report.errors[0]
    assert values(target) == NEW
    assert refuses_writes(source)


def test_a_target_that_cannot_tell(source: Server, opened: tuple[Server, MemoryCheckpoint]) -> None:
    """While it is away it is not known whether it is open: the source is not let on, and the
    migration can be resumed."""
    target, store = opened
    target.stop()
    run = migrated(source, target, checkpoints=store, retry_for=0.5)
    assert run.report.status == "stopped", (run.report, run.events)
    assert refuses_writes(source)
    # By force it is over: the source is as it was.
    checkpoint = store.load()
    assert checkpoint is not None
    with migrating(source, target, checkpoints=store, retry_for=5.0) as run:
        time.sleep(0.3)
        run.complete(force=True)
    assert run.report.status == "stopped"
    assert any("it is not known whether the target was promoted" in each for each in run.events)
    assert not refuses_writes(source)


@pytest.mark.parametrize("why", ["no right", "hook"])
def test_a_target_that_stands_still_when_it_is_to_be_opened(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str
) -> None:
    """The source has no write block, so that it takes writes when the fence's time is over: what
    the target does with the promotion later does not count, and no acknowledged write is lost."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    client = source.client()
    client.acl_setuser(
        "mover",
        enabled=True,
        passwords=["+pw"],
        keys=["*"],
        channels=["*"],
        commands=["+@all", "-config|set"],
    )
    settings: dict[str, Any] = {}
    if why == "hook":
        hook = tmp_path / "hook.py"
        hook.write_text(
            f"import socket, sys\nend = socket.create_connection(('127.0.0.1', {source.port}))\n"
            "word = b'PAUSE 4000 WRITE' if sys.argv[1] == 'fence' else b'UNPAUSE'\n"
            "end.sendall(b'CLIENT ' + word + b'\\r\\n')\nassert end.recv(100) == b'+OK\\r\\n'\n"
        )
        settings = {"fence": "hook", "fence_hook": f"{sys.executable} -I -S {hook}"}
    client.set("clicks", 0)
    promote = Applier.promote
    stood_still: list[bool] = []

    async def behind_a_freeze(self: Applier, *of: Any, **more: Any) -> None:
        if not stood_still:
            stood_still.append(True)
            target.freeze()
        await promote(self, *of, **more)

    monkeypatch.setattr(Applier, "promote", behind_a_freeze)

    url = f"redis://mover:pw@{source.host}:{source.port}"
    with migrating(url, target, cut_over_timeout=4.0, timeout=90, **settings) as run:
        run.following()
        _word(run, source, lambda: stood_still)
        # Waits until the pause is over.
        source.client(socket_timeout=20, retry=None).incr("clicks")
        target.thaw()
        try:
            run.wait_for(lambda: run.progress.phase is Phase.FOLLOW, "following goes on", 40)
        except AssertionError:
            raise AssertionError(f"no following: {run.progress} {run.events}") from None
        assert not refuses_writes(source)
        client.incr("clicks")
        _word(run, source, lambda: run.progress.phase in ENDS)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("clicks") == b"2"
    assert run.report.full_syncs == 1
    undone = "the promotion was revoked", "the target was not promoted: it has offset "
    assert any(each in reason for each in undone for reason in led_back(run)), led_back(run)
    assert_tidy(target)


def _word(run: Run, source: Server, ended: Callable[[], object]) -> None:
    """Give the word, and again where a busy machine needed all the fence's time, until `ended`."""
    while not ended():
        run.in_sync(source)
        before = len(run.refusals)
        run.complete()
        run.wait_for(lambda: ended() or len(run.refusals) > before, "an end", 40)  # noqa: B023


@pytest.mark.parametrize("source_after", ["resume", "refuse"])
def test_an_engine_that_dies_with_the_answer_of_the_target(
    source: Server, server_factory: ServerFactory, source_after: str
) -> None:
    """Whether the source's writes were held off then is told to the next one by a write block."""
    target, store = server_factory(source.binary), DiesAt(lambda mark: mark.opened)

    settings = {"source_after": source_after, "cut_over_timeout": 5.0}
    with migrating(source, target, checkpoints=store, **settings) as run:
        run.following()
        run.in_sync()
        run.complete()
    assert "died here" in run.report.errors[0]
    assert refuses_writes(source) is (source_after == "refuse")
    renewed = source_after == "resume"
    if renewed:
        renew(source)

    with migrating(source, target, checkpoints=store.left(), **settings) as run:
        if renewed:
            run.following()
            assert any("the promotion was revoked" in each for each in run.events)
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert values(target) == (NEW if renewed else OLD)
    assert_tidy(target)


def test_the_mark_of_an_opening() -> None:
    """It is read back, is no position to go on from, and an older release does not take it."""
    at = StreamPosition("replid", 7, 1, False)
    held = TargetPosition("token", at, "engine", StreamPosition("replid", 5, 0, True))
    opened = held.promoted()
    assert opened.encode() == held.encode() + b" open"
    assert TargetPosition.decode(opened.encode()) == opened
    assert not held.same_place(opened)
    assert OwnKeys("token").position.startswith(OWN_PREFIX)
