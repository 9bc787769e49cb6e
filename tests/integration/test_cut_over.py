"""The cut-over between real servers: it comes off, or everything is as it was before."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import soon, wait_for
from engine.errors import LinkError, StateError
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import ENDS, Phase
from engine.model.settings import TransferSettings
from engine.model.verification import AtFence, Compared
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult, Reach, Settle
from engine.transfer.fence import Fence
from engine.transfer.fence_in_checkpoint import FenceUpkeep
from engine.transfer.promotion import Promotion
from engine.transfer.transfer import Transfer
from engine.verify import LiveComparison
from tests.support.comparison import OWN_PREFIX, assert_settled
from tests.support.online import (
    assert_tidy,
    cut_over,
    following,
    in_sync,
    online,
    phase,
    refusals,
    refused,
)
from tests.support.servers import ServerFactory, known, offset_of
from tests.support.traffic import Counters
from tests.support.transfers import Run

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
    with Proxy(target.host, target.port) as proxy:

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            await in_sync(work, source)
            assert re.fullmatch(r"in sync: lag \d+ bytes(, [\d.]+ s)?", work.progress.reason)
            proxy.throttle(20_000)
            await asyncio.to_thread(source.client().set, "slow", os.urandom(300_000))
            late = r"lag 300 kB, [\d.]+ s > 2 s"
            await soon(lambda: re.fullmatch(late, work.progress.reason), "a closed gate", 12)
            seen = work.progress
            assert (seen.can_complete, seen.phase) == (False, Phase.FOLLOW)
            assert (seen.lag_bytes or 0) >= 300_000
            assert (seen.lag_seconds or 0) > 2
            proxy.throttle(None)
            await cut_over(work, run, source)

        run = online(source, proxy, steer, cut_over_timeout=4.0)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert refusals(run) == []
    assert_settled(source, target, 1)


class Clicks:
    """Counts up with INCR: `acknowledged` is the last OK's number, `longest` the longest wait.

    Ends when it is told `refusal`, which is empty before.
    """

    def __init__(self, server: Server) -> None:
        self.acknowledged = 0
        self.last = 0.0
        self.longest = 0.0
        self.refusal = ""
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        client = self._server.client(socket_timeout=20)
        while not self._over.is_set():
            try:
                self.acknowledged = client.incr("clicks")
            except redis.ResponseError as error:
                self.refusal = str(error)
                return
            now = time.monotonic()
            self.longest = max(self.longest, now - self.last if self.last else 0.0)
            self.last = now

    def __enter__(self) -> Clicks:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


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

    run = online(source, target, one_go=True, gate_in_sync=gate)
    assert run.report.status == "stopped"
    assert run.report.errors[0].startswith("not yet")
    assert len(asked) == 3
    assert refusals(run) == [
        "cut-over refused: not yet; it is repeated automatically",
        "cut-over refused: not yet; it is repeated automatically",
        "cut-over refused: not yet; it is not tried again",
    ]
    assert source.client().set("key", 2)


def test_every_acknowledged_write_is_on_the_target(ends: tuple[Server, Server]) -> None:
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await asyncio.sleep(0.3)
        await cut_over(work, run, source)

    with Counters(source) as counters, Clicks(source) as clicks:
        run = online(source, target, steer)
        assert run.report.status == "done", run.report.errors
    # Whoever waited at the source was refused.
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    assert counters.acknowledged
    assert counters.check(target) == []
    assert run.report.fence_seconds is not None
    assert 0 < run.report.fence_seconds < 2
    assert_tidy(target)


def test_a_cut_over_that_takes_too_long_is_undone(ends: tuple[Server, Server]) -> None:
    source, target = ends

    gates: list[bytes] = []

    with Proxy(target.host, target.port) as proxy, Clicks(source) as clicks:

        async def gate(own_key: bytes) -> CutOverCheckResult:
            gates.append(own_key)
            if len(gates) == 1:
                proxy.stall()
                await asyncio.sleep(3)
            return CutOverCheckResult(True, "nothing was asked")

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            await in_sync(work, source)
            reason = await refused(work, run)
            assert "the deadline of 0.7 s passed" in reason
            assert "while both ends were compared" in reason
            assert "--skip-verification cuts over without the comparison" in reason
            assert work.progress.phase is Phase.FOLLOW
            # Writers go on, and are followed again as soon as that is possible.
            before = clicks.acknowledged
            await soon(lambda: clicks.acknowledged > before + 10, "writers that go on", 1)
            proxy.stall(False)
            offset = await asyncio.to_thread(offset_of, source)
            await soon(lambda: (work.progress.applied_offset or 0) >= offset, "following goes on")
            await cut_over(work, run, source)

        run = online(source, proxy, steer, cut_over_timeout=0.7, gate_in_sync=gate)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert len(gates) == 2
    assert clicks.longest < 2
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

    async def steer(work: Transfer, run: Run) -> None:
        nonlocal losing
        await following(work)
        await in_sync(work, source)
        reason = await refused(work, run)
        assert "1 keys differ, though they were read again: database 1, key key:0: miss" in reason
        assert "complete-migration --skip-verification" in reason
        assert work.progress.phase is Phase.FOLLOW
        # The source was let on.
        source.client(1, socket_timeout=2).set("key:0", "0")
        losing = False
        await cut_over(work, run, source)

    urls = (Endpoint.parse(each.url) for each in (source, target))
    comparison = Losing(*urls, TransferSettings(), lambda: False)
    run = online(source, target, steer, comparison=comparison)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        reason = await refused(work, run)
        assert "refused: 1 of 9 keys differs; complete-migration --skip-verification" in reason
        # A word that leaves it out holds for one cut-over: the next one is compared again.
        await in_sync(work, source)
        work.complete(skip_verification=True)
        work.complete()
        await soon(lambda: len(refusals(run)) == 2, "a second refusal")
        await in_sync(work, source)
        work.complete(skip_verification=True)
        await soon(lambda: work.progress.phase in ENDS, "an end")

    with Clicks(source) as clicks:
        run = online(source, target, steer, gate_in_sync=gate)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    assert len(asked) == 2
    assert run.progress[-1].reason == "cut over without the comparison, as asked"
    assert_tidy(target)


def test_a_comparison_that_takes_too_long_can_be_left_out(ends: tuple[Server, Server]) -> None:
    """The cut-over was refused for ever, with an abort as the only way out."""
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        reason = await refused(work, run)
        assert "the comparison behind the fence was not finished" in reason
        assert "complete-migration --skip-verification cuts over" in reason
        await in_sync(work, source)
        work.complete(skip_verification=True)
        await soon(lambda: work.progress.phase in ENDS, "an end")

    with Clicks(source) as clicks:
        run = online(source, target, steer, check_seconds=1e-6)
        assert run.report.status == "done", (run.report.errors, run.events)
    assert "NOREPLICAS" in clicks.refusal
    assert int(target.client().get("clicks")) == clicks.acknowledged > 0
    # What the refused one has found is not told of this one.
    assert run.report.verification is None
    assert_tidy(target)


def test_no_fence(ends: tuple[Server, Server]) -> None:
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        source.client().set("late", "1")
        await cut_over(work, run, source)
        source.client(socket_timeout=1).set("too late", "1")

    run = online(source, target, steer, fence="none")
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        await refused(work, run)
        source.client(1).set("key:0", "0")
        await cut_over(work, run, source)

    looks = iter((CutOverCheckResult(False, "not yet"), CutOverCheckResult(True, "now")))

    async def gate(own_key: bytes) -> CutOverCheckResult:
        return next(looks)

    command = f"{sys.executable} -I {hook} --of me"
    run = online(source, target, steer, fence="hook", fence_hook=command, gate_in_sync=gate)
    assert run.report.status == "done", (run.report.errors, run.events)
    words = [json.loads(line) for line in noted.read_text().splitlines()]
    assert words == [["--of", "me", each] for each in ("fence", "unfence", "fence", "done")]
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_hook_that_fails_is_a_refusal(ends: tuple[Server, Server]) -> None:
    source, target = ends

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        assert "ended with 1" in await refused(work, run)
        assert work.progress.phase is Phase.FOLLOW
        work.stop()

    hook = f"{sys.executable} -c raise(SystemExit(1))"
    run = online(source, target, steer, fence="hook", fence_hook=hook)
    assert run.report.status == "stopped"


@pytest.mark.parametrize("until", ["snapshot", "in-sync"])
def test_ends_before_the_cut_over(ends: tuple[Server, Server], until: str) -> None:
    source, target = ends
    run = online(source, target, one_go=True, until=until)
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

        async def steer(work: Transfer, run: Run) -> None:
            if when is Phase.SNAPSHOT:
                await soon(lambda: proxy.bytes_down > 100_000, "some of the snapshot")
            else:
                await following(work)
                await asyncio.sleep(0.2)
            work.complete(force=True)

        if when is Phase.SNAPSHOT:
            source.client().set("large", os.urandom(2_000_000))
            proxy.throttle(400_000)
        run = online(proxy, target, steer)
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

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await soon(lambda: clicks.acknowledged > 10, "writers")
        work.complete(force=True)

    with Clicks(source) as clicks:
        run = online(source, target, steer)
        assert run.report.status == "stopped"
        assert run.report.errors[0].startswith("aborted by force, not cut over: ")
        before = clicks.acknowledged
        wait_for(lambda: clicks.acknowledged > before + 10, "writers that go on")
    assert clicks.refusal == ""
    client = source.client()
    assert int(client.get("clicks")) == clicks.acknowledged
    assert client.config_get("min-replicas-to-write") == {"min-replicas-to-write": "0"}
    assert_tidy(target, left=True)


class _DiedHere(LinkError):
    pass


def test_an_engine_that_dies_after_it_opened_the_target(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = ends
    store = MemoryCheckpoint()

    async def die(self: FenceUpkeep | Promotion, fence: Fence | None = None) -> None:
        raise _DiedHere("died here")

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        work.complete()
        await phase(work, Phase.FAILED)

    with monkeypatch.context() as patched:
        # It does neither of what is done beside each other.
        patched.setattr(FenceUpkeep, "let_clients_go", die)
        patched.setattr(Promotion, "tidy_up", die)
        run = online(source, target, steer, checkpoints=store, retry_for=1.0, cut_over_timeout=2.0)
    assert run.report.status == "failed"
    assert [key for key in target.client().scan_iter() if key.startswith(OWN_PREFIX)]
    target.client(1).set("key:0", "the user's")
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        # Waits until the pause is over, behind the seal.
        source.client(1).set("key:1", "nobody's")
    source.client().config_set("min-replicas-to-write", 0)
    source.client(1).set("key:1", "nobody's")
    again = online(source, target, checkpoints=store)
    assert again.report.status == "done", again.report.errors
    assert target.client(1).mget("key:0", "key:1") == [b"the user's", b"1"]
    assert source.client().info("stats")["sync_full"] == 1
    # The seal is put on again: there was nobody to say that it was not to be.
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client(1).set("key:1", "nobody's")
    assert_tidy(target)


class _DiesBeforeTheOpening(MemoryCheckpoint):
    """An engine that ends just when it would write down that it opens the target."""

    def save(self, checkpoint: Checkpoint) -> None:
        if isinstance(checkpoint.position, OnlineCheckpoint) and checkpoint.position.promoting:
            raise StateError("died here")
        super().save(checkpoint)


def test_an_engine_that_dies_behind_the_fence(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source was told to refuse writes, and the target is not open: the next engine takes that
    back, whether it goes on or is ended by force."""
    source, target = ends
    store = _DiesBeforeTheOpening()

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await in_sync(work, source)
        work.complete()
        await phase(work, Phase.FAILED)

    async def nothing(self: FenceUpkeep, *of: object, **more: object) -> None:
        pass

    with monkeypatch.context() as patched:
        # It tidies nothing up.
        for name in ("take_away", "remove"):
            patched.setattr(FenceUpkeep, name, nothing)
        run = online(source, target, steer, checkpoints=store)
    assert run.report.status == "failed"
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("key", "1")
    again = MemoryCheckpoint()
    checkpoint = store.load()
    assert checkpoint is not None
    again.save(checkpoint)

    async def go_on(work: Transfer, run: Run) -> None:
        await following(work)
        assert await asyncio.to_thread(source.client(socket_timeout=2).set, "key", "2")
        await cut_over(work, run, source)

    run = online(source, target, go_on, checkpoints=again)
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

    async def steer(work: Transfer, run: Run) -> None:
        nonlocal over
        await following(work)
        with client.pipeline(transaction=False) as pipe:
            for key, fields in (("lone", 1), ("wide", 700)):
                names = [f"f{n}" for n in range(fields)]
                pipe.hset(key, mapping=dict.fromkeys(names, "x"))
                pipe.execute_command("HPEXPIRE", key, 1500, "FIELDS", fields, *names)
            pipe.hset("mixed", mapping={"f": "x", "lasts": "y"})
            pipe.execute_command("HPEXPIRE", "mixed", 1500, "FIELDS", 1, "f")
            pipe.execute()
        over = time.monotonic() + 1.5
        await cut_over(work, run, source)

    over = 0.0
    run = online(source, target, steer, comparison=late)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().hgetall("mixed") == {b"lasts": b"y"}
    # Without its import mode the target comes round to them soon.
    deadline = time.monotonic() + 60
    while target.client().exists("lone", "wide") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert target.client().exists("lone", "wide") == 0
    assert_tidy(target)
