"""Migrations by rules while engines are killed and links are cut: within the rules both ends become
the same, and what is beside them on the target is as it was."""

from __future__ import annotations

import os
import random

from benches.support.engines import Migration
from benches.support.movers import NAMES, RATE, Mover, fill
from benches.support.proxy import Proxy
from benches.support.waiting import wait_for
from engine.model.rules import rules_of
from tests.support.neighbours import Neighbours, assert_image
from tests.support.servers import ServerFactory, known

SEED = int(os.environ.get("ENGINE_SEED", "20"))
ROUNDS = 15 if os.environ.get("ENGINE_SOAK") else 2
INCLUDE, EXCLUDE = ("glob:*[02468]", "prefix:zset:"), ("regex:^set:[0-9]?1",)


def test_killed_and_cut(migration: Migration, server_factory: ServerFactory) -> None:
    source = server_factory(known("redis-7.0"), "--repl-backlog-size", "64mb")
    target = server_factory(known("redis-7.0"))
    rules, rng = rules_of(INCLUDE, EXCLUDE), random.Random(SEED)
    names = [b"%s:%d" % (kind, n) for kind in (b"set", b"list") for n in range(0, NAMES, 30)]
    neighbours = Neighbours(target, rules, names)
    fill(source)
    options = [word for rule in INCLUDE for word in ("--include", rule)]
    with Proxy(source.host, source.port) as near, Proxy(target.host, target.port) as far:
        migration.register(far)
        migration.start(near, "--source-type", "replica", *options, "--exclude", *EXCLUDE)
        migration.wait_for(lambda found: found["CanComplete"])
        with Mover(source, seed=SEED) as mover:
            for turn in range(ROUNDS):
                written = mover.sent
                wait_for(lambda: mover.sent > written + RATE // 2, "commands")  # noqa: B023
                for proxy in (near, far):
                    proxy.cut_after(rng.randrange(1, 50_000), rng.choice(["up", "down", None]))
                if turn % 2:
                    source.client().flushall()
                    fill(source)
                migration.kill(within=0.05)
                neighbours.assert_untouched()
                migration.resume()
            mover.stop()
        migration.wait_for(lambda found: found["CanComplete"])
        neighbours.assert_untouched()
        migration.complete()
    assert_image(source, target, rules)
    neighbours.assert_alone()
