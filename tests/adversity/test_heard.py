"""A source that is not heard: the gate is closed, the lag unknown, and both come back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import soon
from engine.model.progress import Phase, Progress
from engine.transfer.transfer import Transfer
from tests.support.comparison import assert_settled
from tests.support.online import cut_over, following, in_sync, online, refused
from tests.support.servers import ServerFactory, known
from tests.support.transfers import Run

# What happens to the source, and how it ends.
Trouble = tuple[Callable[[Server, Proxy], None], Callable[[Server, Proxy], None]]


def _cut(_: Server, proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut_now()


TROUBLES: dict[str, Trouble] = {
    "stopped": (lambda server, _: server.freeze(), lambda server, _: server.thaw()),
    "held up": (lambda _, proxy: proxy.stall(), lambda _, proxy: proxy.stall(False)),
    "cut off": (_cut, lambda _, proxy: proxy.refuse(False)),
}


# A source that is asked for its lateness, and one that is not.
@pytest.mark.parametrize("name", ["redis-6.2", "redis-7.0"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_source_that_is_not_heard(name: str, trouble: str, server_factory: ServerFactory) -> None:
    source, target = server_factory(known(name)), server_factory(known("redis-7.0"))
    source.client().mset({f"key:{n}": n for n in range(100)})
    begin, end = TROUBLES[trouble]
    with Proxy(source.host, source.port) as proxy:

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            await in_sync(work, source)
            seen = work.progress
            assert (seen.link, seen.lag_bytes) == ("up", 0)
            assert seen.source_heard_seconds is not None
            assert seen.source_heard_seconds < 10
            began = time.monotonic()
            begin(source, proxy)
            await soon(lambda: work.progress.link != "up", "a link that is told of")
            await soon(lambda: not work.progress.can_complete, "a closed gate")
            seen = work.progress
            assert (seen.lag_bytes, seen.lag_seconds) == (None, None)
            assert seen.phase in (Phase.CATCH_UP, Phase.FOLLOW)
            if trouble == "cut off":
                words = "the link to the source is down for"
                await soon(lambda: words in work.progress.reason, "the reason")
                # What is tried next, when, and for how long; each try counts.
                nexts = r" tr(y|ies) failed; it is connected to again in [\d.]+ s, for up to 30 min"
                await soon(lambda: re.search(nexts, work.progress.reason), "the next try")
                assert work.progress.link == "down"
                await soon(lambda: work.progress.retries >= 3, "the tries")
            else:
                assert seen.link == "silent"
                assert "the source has not answered for" in seen.reason
                await soon(lambda: any("is behind is unknown" in e for e in run.events), "a word")
            assert "not answered" in (why := await refused(work, run)) or "is down" in why
            # It is not forgotten after a while.
            assert seen.source_heard_seconds is not None
            await soon(lambda: time.monotonic() - began > 4, "some seconds")
            seen = work.progress
            assert (seen.can_complete, seen.lag_bytes) == (False, None)
            assert seen.source_heard_seconds is not None
            assert seen.source_heard_seconds >= 2
            # What is written meanwhile, behind our back, is carried afterwards.
            if trouble != "stopped":
                source.client().set("meanwhile", "1")
            end(source, proxy)
            source.client().set("later", "1")
            await in_sync(work, source)
            await soon(lambda: work.progress.link == "up", "the link")
            assert work.progress.lag_bytes is not None
            words = "stands again" if trouble == "cut off" else "answers again"
            assert any(words in e for e in run.events)
            await cut_over(work, run, source)

        run = online(proxy, target, steer, connect_timeout=5.0, timeout=60, retry_for=1800.0)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)
    assert target.client().get("later") == b"1"


def test_a_link_that_is_down_is_told_of_within_two_seconds(server_factory: ServerFactory) -> None:
    """The connection ends, so it is known at once. The quickest of three: a machine that rests for
    a moment makes one of them late."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().set("key", "1")
    took: list[float] = []
    with Proxy(source.host, source.port) as proxy:

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            while not took or (took[-1] > 2 and len(took) < 3):
                await in_sync(work, source)
                began = time.monotonic()
                _cut(source, proxy)
                await soon(lambda: tells_of_a_link_that_is_down(work.progress), "the link")
                took.append(time.monotonic() - began)
                proxy.refuse(False)
            await cut_over(work, run, source)

        run = online(proxy, target, steer, timeout=300, retry_for=1800.0)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert min(took) <= 2, took


def tells_of_a_link_that_is_down(seen: Progress) -> bool:
    """Whether one state that is published has all of it: the gate, the lag, the link and why."""
    told = (seen.link, seen.can_complete, seen.lag_bytes) == ("down", False, None)
    return told and "the link to the source is down for" in seen.reason and seen.retries > 0


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_target_that_is_not_heard(trouble: str, server_factory: ServerFactory) -> None:
    """Nothing is written to it meanwhile: no command of the stream would notice."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().mset({f"key:{n}": n for n in range(100)})
    begin, end = TROUBLES[trouble]
    with Proxy(target.host, target.port) as proxy:

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            await in_sync(work, source)
            # It is asked for the first time within the first seconds.
            await soon(lambda: work.progress.target_heard_seconds is not None, "an answer")
            assert (work.progress.target_heard_seconds or 0) < 10
            begin(target, proxy)
            await soon(lambda: not work.progress.can_complete, "a closed gate")
            assert "target" in work.progress.reason, work.progress
            if trouble != "cut off":
                await soon(lambda: "has not answered for" in work.progress.reason, "the reason")
                await soon(lambda: any("has not answered" in e for e in run.events), "a word")
                assert (work.progress.target_heard_seconds or 0) >= 2
                # A longer silence is longer in the reason, and no further event.
                await soon(lambda: "answered for 4 s" in work.progress.reason, "the seconds")
                assert sum("the target has not answered" in e for e in run.events) == 1
            end(target, proxy)
            await in_sync(work, source)
            await soon(lambda: work.progress.can_complete, "an open gate")
            await cut_over(work, run, source)

        run = online(source, proxy, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)


def test_a_stream_that_is_held_up_while_answers_come(server_factory: ServerFactory) -> None:
    """The link that the stream comes over stands still; over others the source answers."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().set("large", b"x" * 300_000)
    with Proxy(source.host, source.port) as proxy:

        async def steer(work: Transfer, run: Run) -> None:
            await following(work)
            await in_sync(work, source)
            proxy.stall_busiest()
            source.client().set("large", b"y" * 200_000)
            await soon(lambda: work.progress.link == "silent", "silence")
            assert not work.progress.can_complete
            assert "does not arrive" in work.progress.reason
            proxy.stall_busiest(False)
            await cut_over(work, run, source)

        run = online(proxy, target, steer, timeout=60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)
