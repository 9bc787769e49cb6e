"""Migrations by rules of sources that are followed, beside keys of others on the target.

Invariant: at each acknowledged position the target is within the rules what the source is; what
they leave is on the target as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Binary
from engine.model.endpoint import Endpoint
from engine.model.rules import rules_of
from engine.model.setting_conflicts import cluster_objection, followed_by_rules_objection
from engine.model.settings import CHANGEABLE, TransferSettings
from engine.verify.full_comparison import verify
from tests.support.library import migrating
from tests.support.neighbours import Neighbours, assert_image
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Traffic

SEEDS = range(30) if os.environ.get("ENGINE_SOAK") else (1,)
SOME = (
    "glob:?:*[02468]",
    "glob:?:*[13579]",
    "prefix:h:",
    "prefix:l:",
    "prefix:s:",
    "prefix:z:",
    "db:1,prefix:e:",
    "db:2",
    "db:0,regex:^[sxe]:[0-9]$",
    "regex:[1-4]$",
)


def some_rules(seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rng = random.Random(seed)
    include = tuple(rng.sample(SOME, rng.randint(1, 4)))
    return include, tuple(rng.sample(SOME, rng.randint(0, 1)))


@pytest.mark.parametrize("seed", SEEDS)
def test_all_commands_by_rules(
    few_binary: Binary, server_factory: ServerFactory, seed: int
) -> None:
    """Traffic of every command that writes, FLUSHALL and SWAPDB among them."""
    source, target = server_factory(few_binary), server_factory(few_binary)
    include, exclude = some_rules(seed)
    rules = rules_of(include, exclude)
    neighbours = Neighbours(target, rules)
    traffic = Traffic(source, seed=seed, rate=2000, rare=0.0005)
    with migrating(source, target, include=include, exclude=exclude) as run:
        with traffic:
            run.following()
            sent = traffic.commands
            run.wait_for(lambda: traffic.commands > sent + 1500, "traffic")
        run.wait_for(lambda: run.progress.can_complete, "in sync", 60)
        assert_image(source, target, rules, followed=True)
        neighbours.assert_untouched()
        run.cut_over()
    assert_image(source, target, rules)
    neighbours.assert_alone()
    assert run.report.verification is not None
    assert run.report.verification.ok


def test_what_passes_the_rules_on_both_sides(
    few_binary: Binary, server_factory: ServerFactory
) -> None:
    """One after another of what names keys on both sides, or none; with near expire times, and a
    target that has fewer databases than the source uses."""
    source = server_factory(few_binary)
    target = server_factory(few_binary, "--databases", "4")
    include, exclude = ("prefix:user:", "db:3,prefix:cart:"), ("regex:^user:tmp",)
    rules = rules_of(include, exclude)
    neighbours = Neighbours(target, rules, [b"user:tmp1", b"cart:1", b"other", b"gone:1"])
    for db in (0, 2, 3, 9):
        client = source.client(db)
        for n in range(20):
            client.set(f"user:{n}", f"{db} {n}", px=40_000 if n % 2 else None)
            client.sadd(f"user:set:{n}", n, "x")
            client.set(f"user:tmp{n}", n)
            client.set(f"other:{n}", n)
            client.rpush(f"cart:{n}", n)
            client.sadd(f"set:{n}", n, "x", "y")
    source.client(9).flushdb()
    with migrating(source, target, include=include, exclude=exclude, verify="full") as run:
        run.following()
        zero, two, three = source.client(), source.client(2), source.client(3)
        source.client(9).set("other", "in a database that the target has not")
        for act in (
            lambda: zero.rename("user:1", "user:tmp50"),
            lambda: zero.rename("other:1", "user:50"),
            lambda: zero.rename("user:2", "user:51"),
            lambda: zero.sinterstore("user:both", ["user:set:1", "set:1"]),
            lambda: zero.sinterstore("both", ["user:set:1", "set:1"]),
            lambda: zero.smove("user:set:3", "set:3", "3"),
            lambda: zero.delete("user:4", "user:tmp4", "other:4"),
            lambda: zero.mset({"user:5": "new", "user:tmp5": "new", "other:5": "new"}),
            lambda: zero.msetnx({"user:60": "new", "other:60": "new"}),
            lambda: zero.move("user:6", 1),
            lambda: zero.move("user:tmp6", 5),
            lambda: three.move("cart:6", 2),
            lambda: two.move("cart:7", 5),
            lambda: zero.eval("return redis.call('SET', KEYS[1], 'script')", 1, "user:7"),
            lambda: zero.eval(
                "redis.call('SET', KEYS[2], 'b') return redis.call('SET', KEYS[1], 'a')",
                2, "user:8", "other:8",
            ),
            lambda: zero.publish("user:channel", "message"),
            lambda: zero.lmove("cart:1", "user:list", "LEFT", "LEFT"),
            lambda: zero.pexpire("user:9", 30_000),
            lambda: two.flushdb(),
            lambda: two.set("user:behind", "it"),
            lambda: source.client(9).flushdb(),
        ):  # fmt: skip
            # (What the server does not know.)
            with contextlib.suppress(redis.ResponseError):
                act()
        transaction = zero.pipeline(transaction=True)
        transaction.set("user:70", "1").set("other:70", "1").rename("user:70", "user:71")
        transaction.execute()
        assert_image(source, target, rules, followed=True)
        neighbours.assert_untouched()
        zero.flushall()
        zero.set("user:last", "one")
        zero.set("other:last", "one")
        run.wait_for(lambda: target.client().exists("user:last"), "what came behind FLUSHALL")
        assert_image(source, target, rules, followed=True)
        neighbours.assert_untouched()
        three.set("user:1", "in 3")
        zero.swapdb(0, 3)
        zero.set("user:behind", "the swap")
        assert_image(source, target, rules, followed=True)
        neighbours.assert_untouched()
        run.cut_over()
    assert_image(source, target, rules)
    neighbours.assert_alone()
    assert any("swapped databases" in each for each in run.events)
    found = run.report.verification
    assert found is not None
    assert found.ok
    assert found.full
    assert "rules choose keys" in found.reason


def test_what_there_is_to_move_is_what_the_rules_take(server_factory: ServerFactory) -> None:
    """Also behind a link that was lost, after which nothing is copied."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"user:{n}": n for n in range(3)})
    source.client().mset({f"other:{n}": n for n in range(100)})
    with (
        Proxy(source.host, source.port) as near,
        migrating(near, target, include=("prefix:user:",), verify="full") as run,
    ):
        run.following()
        near.cut_now()
        run.wait_for(lambda: run.progress.partial_syncs, "a partial sync")
        run.wait_for(lambda: run.progress.keys_to_prove == 3, "the proof")
        assert run.progress.total_keys == 3
        run.cut_over(source)


def test_keys_of_the_rules_that_the_target_had(server_factory: ServerFactory) -> None:
    """They count as its own: of the same name they are overwritten, else they stay."""
    source, target = server_factory(), server_factory()
    source.client().mset({"user:1": "new", "other:1": "x"})
    target.client().mset({"user:1": "old", "user:2": "its own", "other:1": "a neighbour's"})
    with migrating(source, target, include=("prefix:user:",)) as run:
        run.following()
        run.cut_over()
    names = ("user:1", "user:2", "other:1")
    assert target.client().mget(names) == [b"new", b"its own", b"a neighbour's"]


@pytest.mark.parametrize(("include", "name"), [(("prefix:user:",), "other:1"), ((), "user:1")])
def test_a_database_that_only_the_target_has(
    server_factory: ServerFactory, include: tuple[str, ...], name: str
) -> None:
    """What is in it cannot have come from the source, and is not asked for there."""
    source, target = server_factory(None, "--databases", "4"), server_factory()
    source.client().mset({"user:1": "new", "other:1": "x"})
    target.client(9).set(name, "a neighbour's")
    with migrating(source, target, include=include) as run:
        run.following()
        run.cut_over()
    assert target.client().get("user:1") == b"new"
    assert target.client(9).get(name) == b"a neighbour's"
    if include:
        ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
        found = asyncio.run(verify(*ends, TransferSettings(include=include)))
        assert found.ok, found.reason


def test_a_difference_within_the_rules_is_found(server_factory: ServerFactory) -> None:
    """Another value, a key too few and one too many are found and mended before the cut-over; what
    the rules leave is not looked at."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"user:{n}": n for n in range(100)})
    source.client().mset({f"other:{n}": n for n in range(100)})
    with migrating(source, target, include=("prefix:user:",)) as run:
        run.following()
        run.in_sync()
        target.client().set("user:1", "another")
        target.client().delete("user:2")
        target.client().mset({"user:more": "x", "other:1": "a neighbour's"})
        run.cut_over()
    assert target.client().get("user:1") == b"1"
    assert target.client().dbsize() == 101
    assert target.client().get("other:1") == b"a neighbour's"


def test_functions_stay_where_rules_are_followed(server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-8")), server_factory(known("redis-8"))
    code = "#!lua name=%s\nredis.register_function('%s', function() end)"
    source.client().set("user:1", "x")
    source.client().function_load(code % ("before", "before"))
    target.client().function_load(code % ("neighbour", "neighbour"))
    with migrating(source, target, include=("prefix:user:",)) as run:
        run.following()
        source.client().function_load(code % ("late", "late"))
        source.client().function_flush()
        source.client().set("user:2", "y")
        run.cut_over()
    libraries = str(target.client().function_list())
    assert "neighbour" in libraries
    assert "before" not in libraries
    assert any("as keys are chosen" in each for each in run.report.left_out)
    assert sorted(target.client().keys()) == [b"user:1", b"user:2"]


def test_what_is_not_followed_by_rules() -> None:
    """Named before anything is touched."""
    by_rules = TransferSettings(include=("prefix:a",))
    words = followed_by_rules_objection(by_rules, {"timeseries"})
    assert words is not None
    assert "time series" in words
    assert followed_by_rules_objection(by_rules, {"bf"}) is None
    assert followed_by_rules_objection(TransferSettings(), {"timeseries"}) is None
    words = cluster_objection(by_rules)
    assert words is not None
    assert "--include is for servers with cluster mode disabled" in words
    words = cluster_objection(TransferSettings(exclude=("prefix:a",)))
    assert words is not None
    assert "--exclude" in words
    assert cluster_objection(TransferSettings()) is None


def test_a_migration_keeps_its_rules() -> None:
    """A resume with others is refused, as with other settings that it cannot change."""
    assert not {"include", "exclude"} & set(CHANGEABLE)
