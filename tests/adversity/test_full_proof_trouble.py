"""`--verify full` while links are cut, servers restart and fail over: what was compared before
counts for nothing then, and is compared again before the gate opens.

`ENGINE_SOAK=1`: many times over, at chance moments.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from tests.integration.test_sentinel import watched
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing

SEED = int(os.environ.get("ENGINE_SEED", "4711"))
SOAK = "ENGINE_SOAK" in os.environ
KEYS = 3_000
KEEPS = ("--appendonly", "yes", "--appendfsync", "always")


def begun(run: Run) -> int:
    """How often every key was to be compared from the beginning."""
    return sum("from the beginning" in each for each in run.events)


def troubled(run: Run, spoil: Callable[[], object], trouble: Callable[[], object]) -> None:
    """Something is changed on the target that nothing names, and then something breaks."""
    before = begun(run)
    spoil()
    trouble()
    run.wait_for(lambda: begun(run) > before, "it begins anew", 60)
    run.wait_for(lambda: run.progress.can_complete, "every key was compared", 60)


def assert_all_compared(run: Run, source: Server, target: Server) -> None:
    assert run.report.status == "done", (run.report.errors, run.events)
    found = run.report.verification
    assert found is not None
    assert found.full
    assert found.compared == int(target.client().dbsize())
    keys = [f"key:{n}" for n in range(KEYS)]
    assert source.client().mget(keys) == target.client().mget(keys)
    assert_tidy(target)


def test_the_target_restarts_and_its_link_is_cut(server_factory: ServerFactory) -> None:
    """Whatever it was doing in that moment: comparing all keys, or at rest. Behind a link that is
    made anew to the same process what was proven is so, and what is named meanwhile is not."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"), *KEEPS)
    source.client().mset({f"key:{n}": n for n in range(KEYS)})
    chance = random.Random(SEED)

    def same(key: str) -> bool:
        return bool(target.client().get(key) == source.client().get(key))

    with (
        Proxy(target.host, target.port) as link,
        migrating(source, link, verify="full", timeout=1200.0, retry_for=60.0) as run,
        writing(
            lambda client, n: client.incr(f"count:{n % 50}"), server=source, until_refused=True
        ),
    ):
        run.following()
        for n in range(60 if SOAK else 2):
            key = f"key:{chance.randrange(KEYS)}"
            if chance.random() < 0.7:
                run.wait_for(lambda: run.progress.can_complete, "every key was compared", 60)
            if n % 2 == 0:
                target.client().set(key, "changed")
                link.cut_now()
                source.client().append(key, "x")
                run.wait_for(lambda key=key: same(key), "it was read again", 60)  # type: ignore[misc]
                continue
            troubled(
                run,
                lambda key=key: target.client().set(key, "changed"),  # type: ignore[misc]
                target.restart,
            )
            # (The gate may open while a few keys that are written to are left to the fence.)
            run.wait_for(lambda key=key: same(key), "it was compared again", 60)  # type: ignore[misc]
        run.cut_over()
    assert_all_compared(run, source, target)


@pytest.mark.parametrize("side", ["source", "target"])
def test_sentinels_fail_over(side: str, server_factory: ServerFactory) -> None:
    """The server that is compared then has not been compared before."""
    single = server_factory(known("redis-7.0"))
    with watched("redis-7.0", server_factory) as deployment:
        is_source = side == "source"
        source, target = deployment.primary, single
        if not is_source:
            source, target = target, source
        source.client().mset({f"key:{n}": n for n in range(KEYS)})
        ends = (deployment.url, single) if is_source else (single, deployment.url)

        def spoil() -> None:
            target.client().set("key:1", "changed")
            if not is_source:
                run.wait_for(
                    lambda: deployment.replica.client().get("key:1") == b"changed", "the replica"
                )

        def fail_over() -> None:
            deployment.primary.kill()
            deployment.failed_over()

        with migrating(*ends, verify="full", timeout=240.0, retry_for=120.0) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "every key was compared")
            troubled(run, spoil, fail_over)
            source, target = (
                (deployment.replica, single) if is_source else (single, deployment.replica)
            )
            assert target.client().get("key:1") == b"1", run.events
            run.cut_over(source)
        assert_all_compared(run, source, target)
