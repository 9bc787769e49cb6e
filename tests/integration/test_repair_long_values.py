"""A repair of values that are longer than the target takes, while more goes on than the repair."""

from __future__ import annotations

import contextlib
import os

import pytest

from benches.support.proxy import Proxy
from engine.proof import repair
from tests.integration.test_verify_verb import verify
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

LIMIT = ("--proto-max-bulk-len", str(1 << 20))
LAST = b"its last element"


def test_a_migration_that_begins_while_one_is_made(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is written to the target: neither that value, nor those behind it."""
    monkeypatch.setattr(repair, "_ASKED_SECONDS", 0.0)
    source, other = server_factory(known("redis-8.0")), server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    for n in range(3):
        source.client().rpush(f"list:{n}", *(os.urandom(9000) for _ in range(150)), LAST)
    other.client().set("some", "value")
    begun: list[Run] = []
    with Proxy(target.host, target.port) as proxy, contextlib.ExitStack() as stack:

        def begin() -> None:
            if not begun:
                begun.append(stack.enter_context(migrating(other, target, timeout=60)))
                begun[0].following()

        proxy.watch(LAST, begin)
        found = verify(source, proxy, repair=True)
        assert (found.outcome, found.different, found.repaired) == ("different", 3, 0), found
        assert "nothing more is repaired: a migration has the target by now" in found.left_out
        begun[0].cut_over()
    assert_settled(other, target, 1)
    assert_tidy(target)


def test_the_link_goes_while_one_is_made(server_factory: ServerFactory) -> None:
    """It is begun again under the same name: nothing stays of what was made before."""
    source = server_factory(known("redis-8.0"))
    target = server_factory(known("redis-8.0"), *LIMIT)
    source.client().rpush("list", *(os.urandom(9000) for _ in range(150)), LAST)
    cut: list[None] = []
    with Proxy(target.host, target.port) as proxy:

        def once() -> None:
            if not cut:
                cut.append(proxy.cut_now())

        proxy.watch(LAST, once)
        found = verify(source, proxy, repair=True)
    assert cut
    assert (found.outcome, found.repaired) == ("equal", 1), found
    assert_settled(source, target, 1)
    assert_tidy(target)
