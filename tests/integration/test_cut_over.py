"""The cut-over between real servers: it comes off, or everything is as it was before."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import LinkError
from engine.model.endpoint import Endpoint
from engine.model.progress import ENDS, Phase
from engine.model.settings import TransferSettings
from engine.model.verification import AtFence, Compared
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult, Reach, Settle
from engine.transfer.fence import Fence
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.promotion import Promotion
from engine.verify import LiveComparison
from tests.support.checkpoints import DiesAt, promoting
from tests.support.comparison import assert_settled
from tests.support.library import migrated, migrating
from tests.support.own_keys import OWN_PREFIX, assert_tidy
from tests.support.servers import ServerFactory, known, offset_of, write_block_of
from tests.support.standstill import Standstill
from tests.support.traffic import Counters
from tests.support.writers import Clicks

NAMES = ("redis-7.0", "valkey-8.1")


@pytest.fixture(params=NAMES)
def ends(request: pytest.FixtureRequest, server_factory: ServerFactory) -> tuple[Server, Server]:
    """Source and target: with lifted deadlines, and with import mode."""
    binary = known(request.param)
    source = server_factory(binary, "--repl-backlog-size", "16mb")
    target = server_factory(binary)
    pipe = source.client(1).pipeline(transaction=False)
    for n in range(300):
        pipe.set(f"key:{n}", n, ex=3000 if n % 3 else None)
    pipe.set("soon", "x", px=4_000)
    pipe.execute()
    return source, target


def test_a_target_that_is_few_bytes_and_many_seconds_behind(server_factory: ServerFactory) -> None:
    """The rest could not be applied before the deadline of the cut-over: it does not begin."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    with (
        Proxy(target.host, target.port) as proxy,
        migrating(source, proxy, cut_over_timeout=4.0) as run,
    ):
        run.following()
        run.in_sync()
        assert re.fullmatch(r"in sync: lag \d+ bytes(, [\d.]+ s)?", run.progress.reason)
        proxy.throttle(20_000)
        source.client().set("slow", os.urandom(300_000))
        late = r"lag 300 kB, [\d.]+ s > 2 s"
        run.wait_for(lambda: re.fullmatch(late, run.progress.reason), "a closed gate")
        seen = run.progress
        assert (seen.can_complete, seen.phase) == (False, Phase.FOLLOW)
        assert (seen.lag_bytes or 0) >= 300_000
        assert (seen.lag_seconds or 0) > 2
        proxy.throttle(None)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.refusals == []
    assert_settled(source, target, 1)


def test_a_cut_over_in_one_go_is_given_up_after_three_refusals(
    server_factory: ServerFactory,
) -> None:
    """It cannot be asked for again by hand: so it is repeated automatically, and not for ever."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", 1)
    asked: list[bytes] = []

    async def gate(own_key: bytes) -> CutOverCheckResult:
        asked.append(own_key)
        return CutOverCheckResult(False, "not yet")

    run = migrated(source, target, one_go=True, gate_in_sync=gate)
    assert run.report.status == "stopped"
    assert run.report.errors[0].startswith("not yet")
    assert len(asked) == 3
    assert run.refusals == [
        "cut-over refused: not yet; the engine tries it again by itself",
        "cut-over refused: not yet; the engine tries it again by itself",
        "cut-over refused: not yet; the engine does not try it again",
    ]
    assert source.client().set("key", 2)


def test_every_acknowledged_write_is_on_the_target(ends: tuple[Server, Server]) -> None:
    source, target = ends

    with Counters(source) as counters, Clicks(source) as clicks:
        with migrating(source, target) as run:
            run.following()
            time.sleep(0.3)
            with Standstill() as stood:
                run.cut_over()
        assert run.report.status == "done", run.report.errors
    # Whoever waited at the source was refused.
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    assert counters.acknowledged
    assert counters.check(target) == []
    assert run.report.fence_seconds is not None
    assert 0 < run.report.fence_seconds < 2 + stood.seconds
    assert_tidy(target)


def test_a_cut_over_that_takes_too_long_is_undone(ends: tuple[Server, Server]) -> None:
    source, target = ends

    gates: list[bytes] = []

    with Standstill() as stood, Proxy(target.host, target.port) as proxy, Clicks(source) as clicks:

        async def gate(own_key: bytes) -> CutOverCheckResult:
            gates.append(own_key)
            if len(gates) == 1:
                proxy.stall()
                await asyncio.sleep(30)
            return CutOverCheckResult(True, "nothing was asked")

        with migrating(source, proxy, cut_over_timeout=2.0, gate_in_sync=gate) as run:
            run.following()
            run.in_sync()
            reason = run.refused()
            assert "the deadline of 2 s passed" in reason
            assert "while both ends were compared" in reason
            assert "--skip-verification cuts over without the comparison" in reason
            assert run.progress.phase is Phase.FOLLOW
            # Writers go on, and are followed again as soon as that is possible.
            before = clicks.acknowledged
            run.wait_for(lambda: clicks.acknowledged > before + 10, "writers that go on")
            proxy.stall(False)
            offset = offset_of(source)
            run.wait_for(lambda: (run.progress.applied_offset or 0) >= offset, "following goes on")
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
    assert len(gates) == 2
    assert clicks.longest < 2.0 + 1.3 + stood.seconds
    assert_tidy(target)


def test_ends_that_differ_keep_the_gate_shut(ends: tuple[Server, Server]) -> None:
    """A key that the target loses again however often it is read again from the source."""
    source, target = ends

    class Losing(LiveComparison):
        async def at_fence(self, settle: Settle) -> AtFence:
            if losing:
                await asyncio.to_thread(target.client(1).delete, "key:0")
            return await super().at_fence(settle)

        async def compare(self, db: int, keys: Sequence[bytes], reach: Reach) -> Compared:
            if losing:
                await asyncio.to_thread(target.client(1).delete, "key:0")
            return await super().compare(db, keys, reach)

    losing = True

    urls = (Endpoint.parse(each.url) for each in (source, target))
    comparison = Losing(*urls, TransferSettings(), lambda: False)
    with migrating(source, target, comparison=comparison) as run:
        run.following()
        run.in_sync()
        reason = run.refused()
        assert "1 keys differ, though they were read again: database 1, key key:0: miss" in reason
        assert "complete-migration --skip-verification" in reason
        assert run.progress.phase is Phase.FOLLOW
        # The source was let on.
        source.client(1, socket_timeout=2).set("key:0", "0")
        losing = False
        run.cut_over()
    assert run.report.status == "done", run.report.errors
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_cut_over_without_the_comparison(ends: tuple[Server, Server]) -> None:
    """What a refusal by the comparison offers: fence, drain and write block stay as they are."""
    source, target = ends
    asked: list[bytes] = []

    async def gate(own_key: bytes) -> CutOverCheckResult:
        asked.append(own_key)
        return CutOverCheckResult(False, "1 of 9 keys differs.")

    with Clicks(source) as clicks:
        with migrating(source, target, gate_in_sync=gate) as run:
            run.following()
            run.in_sync()
            reason = run.refused()
            assert "refused: 1 of 9 keys differs; complete-migration --skip-verification" in reason
            # A word that leaves it out holds for one cut-over: the next one is compared again.
            run.in_sync()

            def twice() -> None:
                run.work.complete(skip_verification=True)
                run.work.complete()

            # In one go: a cut-over could have begun between the two.
            run.call(twice)
            run.wait_for(lambda: len(run.refusals) == 2, "a second refusal")
            run.in_sync()
            run.complete(skip_verification=True)
            run.wait_for(lambda: run.progress.phase in ENDS, "an end")
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    assert len(asked) == 2
    assert run.history[-1].reason == "cut over without the comparison, as asked"
    assert_tidy(target)


def test_a_comparison_that_takes_too_long_can_be_left_out(ends: tuple[Server, Server]) -> None:
    """The cut-over was refused for ever, with an abort as the only way out."""
    source, target = ends

    with Clicks(source) as clicks:
        with migrating(source, target, check_seconds=1e-6) as run:
            run.following()
            run.in_sync()
            reason = run.refused()
            assert "the comparison during the fence was not finished" in reason
            assert "complete-migration --skip-verification cuts over" in reason
            run.in_sync()
            run.complete(skip_verification=True)
            run.wait_for(lambda: run.progress.phase in ENDS, "an end")
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    # What the refused one has found is not told of this one.
    assert run.report.verification is None
    assert_tidy(target)


def test_no_fence(ends: tuple[Server, Server]) -> None:
    source, target = ends

    with migrating(source, target, fence="none") as run:
        run.following()
        source.client().set("late", "1")
        run.cut_over()
        source.client(socket_timeout=1).set("too late", "1")
    assert run.report.status == "done", run.report.errors
    assert target.client().mget("late", "too late") == [b"1", None]
    assert_tidy(target)


def test_the_fence_of_a_hook(ends: tuple[Server, Server], tmp_path: Path) -> None:
    source, target = ends
    noted = tmp_path / "noted"
    hook = tmp_path / "hook.py"
    hook.write_text(
        f"import json, sys\nopen({str(noted)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )

    looks = iter((CutOverCheckResult(False, "not yet"), CutOverCheckResult(True, "now")))

    async def gate(own_key: bytes) -> CutOverCheckResult:
        return next(looks)

    command = f"{sys.executable} -I {hook} --of me"
    with migrating(source, target, fence="hook", fence_hook=command, gate_in_sync=gate) as run:
        run.following()
        run.in_sync()
        run.refused()
        source.client(1).set("key:0", "0")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    words = [json.loads(line) for line in noted.read_text().splitlines()]
    assert words == [["--of", "me", each] for each in ("fence", "unfence", "fence", "done")]
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_hook_that_fails_is_a_refusal(ends: tuple[Server, Server]) -> None:
    source, target = ends

    hook = f"{sys.executable} -c raise(SystemExit(1))"
    with migrating(source, target, fence="hook", fence_hook=hook) as run:
        run.following()
        run.in_sync()
        assert "ended with 1" in run.refused()
        assert run.progress.phase is Phase.FOLLOW
        run.stop()
    assert run.report.status == "stopped"


@pytest.mark.parametrize("until", ["snapshot", "in-sync"])
def test_ends_before_the_cut_over(ends: tuple[Server, Server], until: str) -> None:
    source, target = ends
    run = migrated(source, target, one_go=True, until=until)
    assert run.report.status == "done", run.report.errors
    assert run.report.fence_seconds is None
    source.client(socket_timeout=1).set("later", "1")
    assert target.client(1).dbsize() == source.client(1).dbsize()
    assert target.client().get("later") is None
    assert_tidy(target)


@pytest.mark.parametrize("when", [Phase.SNAPSHOT, Phase.FOLLOW])
def test_an_end_by_force(ends: tuple[Server, Server], when: Phase) -> None:
    source, target = ends
    with Proxy(source.host, source.port) as proxy:
        if when is Phase.SNAPSHOT:
            source.client().set("large", os.urandom(2_000_000))
            proxy.throttle(400_000)
        with migrating(proxy, target) as run:
            if when is Phase.SNAPSHOT:
                run.wait_for(lambda: proxy.bytes_down > 100_000, "some of the snapshot")
            else:
                run.following()
                time.sleep(0.2)
            run.complete(force=True)
    assert run.report.status == "stopped"
    words = "of the snapshot" if when is Phase.SNAPSHOT else "0 bytes behind the source"
    assert words in run.report.errors[0]
    if when is Phase.FOLLOW:
        assert_settled(source, target, 2)
    # A part of the snapshot may not have come to the target at all.
    came = any(target.client(db).dbsize() for db in range(2))
    assert_tidy(target, left=when is Phase.FOLLOW or came)


def test_an_abort_leaves_the_source_open(ends: tuple[Server, Server]) -> None:
    """No fence, no drain, no write block: whoever aborts goes on at the source."""
    source, target = ends

    with Clicks(source) as clicks:
        with migrating(source, target) as run:
            run.following()
            run.wait_for(lambda: clicks.acknowledged > 10, "writers")
            run.complete(force=True)
        assert run.report.status == "stopped"
        assert run.report.errors[0].startswith("aborted by force, not cut over: ")
        assert run.report.errors[0].endswith("; the source accepts writes")
        before = clicks.acknowledged
        wait_for(lambda: clicks.acknowledged > before + 10, "writers that go on")
    assert clicks.refusal == ""
    client = source.client()
    assert int(client.get("clicks")) == clicks.acknowledged
    assert client.config_get("min-replicas-to-write") == {"min-replicas-to-write": "0"}
    assert_tidy(target, left=True)


def test_an_abort_of_a_source_that_refuses_writes(server_factory: ServerFactory) -> None:
    """By what a migration before has left: it stays, and is not called open."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().config_set("min-replicas-to-write", 65535)
    with migrating(source, target) as run:
        run.following()
        run.complete(force=True)
    why = f"127.0.0.1:{source.port}: min-replicas-to-write is 65535, as behind a cut-over"
    refused = f"; the source refuses writes, though not because of this migration: {why}"
    assert run.report.errors[0].endswith(refused)
    assert write_block_of(source) == 65535


@pytest.mark.parametrize("replicas", ["0", "1"])
def test_an_abort_of_a_source_without_config(server_factory: ServerFactory, replicas: str) -> None:
    """As managed services have it: what INFO tells is enough, where it does."""
    options = ("--min-replicas-to-write", replicas, "--rename-command", "CONFIG", "")
    source = server_factory(known("redis-7.0"), *options)
    with migrating(source, server_factory(known("redis-7.0"))) as run:
        run.following()
        run.complete(force=True)
    said = run.report.errors[0]
    assert said.endswith("; the source accepts writes") == (replicas == "0"), said
    assert ("it is not known whether the source accepts writes: 127" in said) == (replicas == "1")


class _DiedHere(LinkError):
    pass


def test_an_engine_that_dies_after_it_opened_the_target(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = ends
    store = MemoryCheckpoint()

    async def die(self: FenceUpkeep | Promotion, fence: Fence | None = None) -> None:
        raise _DiedHere("died here")

    with monkeypatch.context() as patched:
        # It does neither of what is done beside each other.
        patched.setattr(FenceUpkeep, "let_clients_go", die)
        patched.setattr(Promotion, "tidy_up", die)
        with migrating(
            source, target, checkpoints=store, retry_for=1.0, cut_over_timeout=2.0
        ) as run:
            run.following()
            run.in_sync()
            run.complete()
            run.reaches(Phase.FAILED)
    assert run.report.status == "failed"
    assert [key for key in target.client().scan_iter() if key.startswith(OWN_PREFIX)]
    target.client(1).set("key:0", "the user's")
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        # Waits until the pause is over, behind the seal.
        source.client(1).set("key:1", "nobody's")
    source.client().config_set("min-replicas-to-write", 0)
    source.client(1).set("key:1", "nobody's")
    again = migrated(source, target, checkpoints=store)
    assert again.report.status == "done", again.report.errors
    assert target.client(1).mget("key:0", "key:1") == [b"the user's", b"1"]
    assert source.client().info("stats")["sync_full"] == 1
    # The seal is put on again: there was nobody to say that it was not to be.
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client(1).set("key:1", "nobody's")
    assert_tidy(target)


def test_an_engine_that_dies_behind_the_fence(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source was told to refuse writes, and the target is not open: the next engine takes that
    back, whether it goes on or is ended by force."""
    source, target = ends
    store = DiesAt(promoting)

    async def nothing(self: FenceUpkeep, *of: object, **more: object) -> None:
        pass

    with monkeypatch.context() as patched:
        # It tidies nothing up.
        for name in ("take_away", "remove"):
            patched.setattr(FenceUpkeep, name, nothing)
        with migrating(source, target, checkpoints=store) as run:
            run.following()
            run.in_sync()
            run.complete()
            run.reaches(Phase.FAILED)
    assert run.report.status == "failed"
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("key", "1")
    with migrating(source, target, checkpoints=store.left()) as run:
        run.following()
        assert source.client(socket_timeout=2).set("key", "2")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"
    assert source.client().info("stats")["sync_full"] == 1
    assert_tidy(target)


@pytest.mark.parametrize("name", ["redis-8.0", "valkey-9"])
def test_fields_whose_time_passes_behind_the_fence(
    name: str, server_factory: ServerFactory
) -> None:
    """A paused source keeps a hash of which nothing is left, and the target removes it."""
    source, target = server_factory(known(name)), server_factory(known(name))
    client = source.client()
    client.set("key", "1")

    class Late(LiveComparison):
        async def at_fence(self, settle: Settle) -> AtFence:
            await asyncio.sleep(max(over - time.monotonic(), 0) + 0.3)
            return await super().at_fence(settle)

    ends = (Endpoint.parse(each.url) for each in (source, target))
    late = Late(*ends, TransferSettings(), lambda: False)

    over = 0.0
    with migrating(source, target, comparison=late) as run:
        run.following()
        with client.pipeline(transaction=False) as pipe:
            for key, fields in (("lone", 1), ("wide", 700)):
                names = [f"f{n}" for n in range(fields)]
                pipe.hset(key, mapping=dict.fromkeys(names, "x"))
                pipe.execute_command("HPEXPIRE", key, 1500, "FIELDS", fields, *names)
            pipe.hset("mixed", mapping={"f": "x", "lasts": "y"})
            pipe.execute_command("HPEXPIRE", "mixed", 1500, "FIELDS", 1, "f")
            pipe.execute()
        over = time.monotonic() + 1.5
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().hgetall("mixed") == {b"lasts": b"y"}
    # Without its import mode the target comes round to them soon.
    wait_for(lambda: target.client().exists("lone", "wide") == 0, "no key without fields")
    assert_tidy(target)
