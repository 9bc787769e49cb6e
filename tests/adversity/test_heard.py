"""A source that is not heard: the gate is closed, the lag unknown, and both come back."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.progress import Phase, Progress
from engine.transfer.target_position_monitor import PositionMonitor
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.servers import ServerFactory, known

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
    with (
        Proxy(source.host, source.port) as proxy,
        migrating(proxy, target, connect_timeout=5.0, timeout=60, retry_for=1800.0) as run,
    ):
        run.following()
        run.in_sync()
        seen = run.progress
        assert (seen.link, seen.lag_bytes) == ("up", 0)
        assert seen.source_heard_seconds is not None
        assert seen.source_heard_seconds < 10
        began = time.monotonic()
        begin(source, proxy)
        run.wait_for(lambda: run.progress.link != "up", "a link that is told of")
        run.wait_for(lambda: not run.progress.can_complete, "a closed gate")
        seen = run.progress
        assert (seen.lag_bytes, seen.lag_seconds) == (None, None)
        assert seen.phase in (Phase.CATCH_UP, Phase.FOLLOW)
        if trouble == "cut off":
            words = "the link to the source has been down for"
            run.wait_for(lambda: words in run.progress.reason, "the reason")
            # What is tried next, when, and for how long; each try counts.
            nexts = r" tr(y|ies) failed; it is connected to again in [\d.]+ s, for up to 30 min"
            run.wait_for(lambda: re.search(nexts, run.progress.reason), "the next try")
            assert run.progress.link == "down"
            run.wait_for(lambda: run.progress.retries >= 3, "the tries")
        else:
            assert seen.link == "silent"
            assert "the source has not answered for" in seen.reason
            run.wait_for(lambda: any("is behind is unknown" in e for e in run.events), "a word")
        assert "not answered" in (why := run.refused()) or "has been down" in why
        # It is not forgotten after a while.
        assert seen.source_heard_seconds is not None
        run.wait_for(lambda: time.monotonic() - began > 4, "some seconds")
        seen = run.progress
        assert (seen.can_complete, seen.lag_bytes) == (False, None)
        assert seen.source_heard_seconds is not None
        assert seen.source_heard_seconds >= 2
        # What is written meanwhile, behind our back, is carried afterwards.
        if trouble != "stopped":
            source.client().set("meanwhile", "1")
        end(source, proxy)
        source.client().set("later", "1")
        run.in_sync()
        run.wait_for(lambda: run.progress.link == "up", "the link")
        assert run.progress.lag_bytes is not None
        words = "stands again" if trouble == "cut off" else "answers again"
        assert any(words in e for e in run.events)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)
    assert target.client().get("later") == b"1"


def test_a_link_that_is_down_is_told_of_within_two_seconds(server_factory: ServerFactory) -> None:
    """The connection ends, so it is known at once. The quickest of three: a machine that rests for
    a moment makes one of them late."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().set("key", "1")
    took: list[float] = []
    with (
        Proxy(source.host, source.port) as proxy,
        migrating(proxy, target, timeout=300, retry_for=1800.0) as run,
    ):
        run.following()
        while not took or (took[-1] > 2 and len(took) < 3):
            run.in_sync()
            began = time.monotonic()
            _cut(source, proxy)
            run.wait_for(lambda: tells_of_a_link_that_is_down(run.progress), "the link")
            took.append(time.monotonic() - began)
            proxy.refuse(False)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert min(took) <= 2, took


def tells_of_a_link_that_is_down(seen: Progress) -> bool:
    """Whether one state that is published has all of it: the gate, the lag, the link and why."""
    told = (seen.link, seen.can_complete, seen.lag_bytes) == ("down", False, None)
    return told and "the link to the source has been down for" in seen.reason and seen.retries > 0


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_target_that_is_not_heard(trouble: str, server_factory: ServerFactory) -> None:
    """Nothing is written to it meanwhile: no command of the stream would notice."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().mset({f"key:{n}": n for n in range(100)})
    begin, end = TROUBLES[trouble]
    with Proxy(target.host, target.port) as proxy, migrating(source, proxy, timeout=60) as run:
        run.following()
        run.in_sync()
        # It is asked for the first time within the first seconds.
        run.wait_for(lambda: run.progress.target_heard_seconds is not None, "an answer")
        assert (run.progress.target_heard_seconds or 0) < 10
        begin(target, proxy)
        run.wait_for(lambda: not run.progress.can_complete, "a closed gate")
        assert "target" in run.progress.reason, run.progress
        if trouble != "cut off":
            run.wait_for(lambda: "has not answered for" in run.progress.reason, "the reason")
            run.wait_for(lambda: any("has not answered" in e for e in run.events), "a word")
            assert (run.progress.target_heard_seconds or 0) >= 2
            # A longer silence is longer in the reason, and no further event.
            longer = r"answered for ([4-9]|\d\d) s"
            run.wait_for(lambda: re.search(longer, run.progress.reason), "the seconds")
            assert sum("the target has not answered" in e for e in run.events) == 1
        end(target, proxy)
        run.in_sync()
        run.wait_for(lambda: run.progress.can_complete, "an open gate")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)


def test_a_target_that_stops_between_two_questions_of_one_look(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has answered what both ask at once, and owes what is asked behind that."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().mset({f"key:{n}": n for n in range(100)})
    look, armed, stopped = PositionMonitor.look, threading.Event(), list[float]()

    async def looking(self: PositionMonitor, *asked: Any) -> None:
        if armed.is_set() and not stopped:
            target.freeze()
            stopped.append(time.monotonic())
        await look(self, *asked)

    monkeypatch.setattr(PositionMonitor, "look", looking)
    with migrating(source, target, timeout=60) as run:
        run.following()
        run.in_sync()
        armed.set()
        run.wait_for(lambda: not run.progress.can_complete, "a closed gate", 30)
        assert stopped
        assert "the target has not answered for" in run.progress.reason
        target.thaw()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)


def test_a_stream_that_is_held_up_while_answers_come(server_factory: ServerFactory) -> None:
    """The link that the stream comes over stands still; over others the source answers."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().set("large", b"x" * 300_000)
    with Proxy(source.host, source.port) as proxy, migrating(proxy, target, timeout=60) as run:
        run.following()
        run.in_sync()
        proxy.stall_busiest()
        source.client().set("large", b"y" * 200_000)
        run.wait_for(lambda: run.progress.link == "silent", "silence")
        assert not run.progress.can_complete
        assert "does not arrive" in run.progress.reason
        proxy.stall_busiest(False)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 1)
