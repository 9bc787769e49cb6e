"""The target's link goes in the middle of a value in pieces: no reason to begin anew."""

from __future__ import annotations

import os

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.sources import replica
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

MB = 1_000_000


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """Strings, whose length the snapshot says first, and hashes, whose it says last."""
    binary = known("valkey-9")
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    for n in range(3):
        client.set(f"string:{n}", os.urandom(3 * MB))
        client.hset(f"hash:{n}", mapping={f"{i}": os.urandom(1000) for i in range(3000)})
        client.mset({f"small:{n}:{i}": i for i in range(1000)})
    return source, target


# (Each connection begins with 64 KiB that have the target read more at a time.)
@pytest.mark.parametrize("at", [100_000, 2 * MB, 4 * MB, 7 * MB, 10 * MB, 13 * MB, 17 * MB])
def test_the_link_goes_once(ends: tuple[Server, Server], at: int) -> None:
    source, target = ends

    with Proxy(target.host, target.port) as proxy:
        proxy.cut_after(at, "up")

        with migrating(source, proxy, stream_above=100_000, batch_bytes=50_000) as run:
            run.following()
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert run.report.reconnects >= 1
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_the_link_goes_again_and_again(ends: tuple[Server, Server]) -> None:
    """Also while a value is sent again."""
    source, target = ends

    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(8 * MB)
        proxy.cut_after(1_500_000, "up")

        with migrating(source, proxy, stream_above=100_000, batch_bytes=50_000) as run:
            for n, more in enumerate((700_000, 2 * MB, 2_900_000, 4 * MB), 1):
                run.wait_for(lambda: run.progress.reconnects >= n, "a new link")  # noqa: B023
                proxy.cut_after(more, "up")
            run.wait_for(lambda: run.progress.full_syncs, "a snapshot")
            run.following()
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert run.report.reconnects >= 4
    assert_settled(source, target, 2)


def test_a_target_that_is_out_of_memory_for_a_while(ends: tuple[Server, Server]) -> None:
    """A refusal, with the link whole."""
    source, target = ends
    limits = target.client()
    limits.config_set("maxmemory", 5 * MB)

    with migrating(source, target, stream_above=100_000, batch_bytes=50_000) as run:
        run.wait_for(lambda: run.progress.retries >= 3, "refusals")
        limits.config_set("maxmemory", 0)
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 1
    assert_settled(source, target, 2)


def test_a_value_that_is_too_long_to_be_kept(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the snapshot begins anew, as ever."""
    source, target = ends
    monkeypatch.setattr(replica, "_KEPT_BYTES", 1000)

    with Proxy(target.host, target.port) as proxy:
        proxy.cut_after(10 * MB, "up")

        with migrating(source, proxy, stream_above=100_000, batch_bytes=50_000) as run:
            run.following()
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.full_syncs == 2
    assert_settled(source, target, 2)
