"""Streams that are longer than the target takes in one argument: made there by commands, with their
groups and what is pending in them."""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import Any

import pytest
import redis

from benches.support.proxy import Proxy
from engine.model.carried_with_loss import WORDS
from tests.reference import values as reference
from tests.support.comparison import assert_settled
from tests.support.library import copied, copying, migrating
from tests.support.own_keys import OWN_PREFIX, assert_tidy
from tests.support.servers import ServerFactory, known

SOAK = bool(os.environ.get("ENGINE_SOAK"))
MIB = 1 << 20
LIMIT = ("--proto-max-bulk-len", str(MIB))
STREAMS = ("entries", "emptied", "never", "set back")
PAIRS = (
    ("redis-5.0", "redis-5.0"),
    ("redis-6.0", "redis-7.0"),
    ("redis-6.2", "redis-6.2"),
    ("redis-7.0", "redis-7.0"),
    ("redis-8.0", "redis-8.0"),
    ("valkey-9", "valkey-9"),
    ("redis-8.6", "redis-6.2"),
    *((("redis-8.6", "redis-8.6"), ("redis-8.0", "valkey-8")) if SOAK else ()),
)
MANY = """for n = 1, 28000 do redis.call('XADD', KEYS[1], n .. '-5', 'f', n) end"""
IDLE = """for n = 1, 20000 do
    redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], 'some', string.format('one of many %040d', n))
end"""


def add_many(client: redis.Redis, key: str) -> None:
    client.eval(MANY, 1, key)
    client.xgroup_create(key, "all", "0")
    client.xreadgroup("all", "reader", {key: ">"}, count=28_000)


def fill(client: redis.Redis, version: tuple[int, ...]) -> None:
    """Streams with entries that are there, were deleted and trimmed, pending or not."""
    rng = random.Random(12)
    for n in range(400):
        fields = {b"f": rng.randbytes(5000), b"n": n} if n % 3 else {b"other": b"", 17: n}
        client.xadd("entries", fields, id=f"{1000 + n // 3}-{n}")
    for group, start in (("first", "0"), ("second", "1040-0"), ("", "$")):
        client.xgroup_create("entries", group, start)
    for _ in range(3):
        for consumer in ("anna", "bob", "12"):
            client.xreadgroup("first", consumer, {"entries": ">"}, count=40)
    client.xreadgroup("second", "anna", {"entries": ">"}, count=100)
    # One of which nothing is pending.
    client.xreadgroup("second", "idle", {"entries": "0-5"})
    ids = [each for each, _ in client.xrange("entries")]
    client.xack("entries", "first", *ids[5:60:2])
    claims = ("XCLAIM", "entries", "second", "carl", 0, *ids[150:170])
    client.execute_command(*claims, "TIME", 1_700_000_000_123, "RETRYCOUNT", 70_000)
    client.xdel("entries", *ids[8:90:3], *ids[200:260:7], ids[-1])
    client.xtrim("entries", maxlen=client.xlen("entries") - 25, approximate=False)
    add_many(client, "emptied")
    client.xtrim("emptied", maxlen=0, approximate=False)
    client.xgroup_create("emptied", "late", "$")
    # Its last id is below what is pending.
    add_many(client, "set back")
    client.xtrim("set back", maxlen=0, approximate=False)
    client.execute_command("XSETID", "set back", "77-7")
    client.xgroup_create("never", "some", "$", mkstream=True)
    if version >= (6, 2):
        client.eval(IDLE, 1, "never")
    client.pexpireat("emptied", int(time.time() * 1000) + 3_600_000)


def of_groups(found: list[Any], *, active: bool) -> list[Any]:
    """What commands bring of a stream: all, but when consumers were seen."""
    entries, last, deleted, added, groups = found[:5]
    shown = []
    for name, group_last, read, pending, consumers, *_ in groups:
        held = [[who, ids] for who, _, _, ids in consumers]
        shown.append([name, group_last, read if active else 0, pending, held])
    return [entries, last, *((deleted, added) if active else ()), shown]


def in_full(client: redis.Redis, key: str) -> Any:
    """XINFO STREAM … FULL, but for how nodes lie in memory, and when consumers were seen."""

    def without(found: Any) -> Any:
        if isinstance(found, list):
            return [without(each) for each in found]
        if isinstance(found, dict):
            return {
                name: without(value)
                for name, value in found.items()
                if name.partition(b"-")[0] not in (b"radix", b"seen", b"active", b"idmp")
            }
        return found

    reply = client.execute_command("XINFO", "STREAM", key, "FULL", "COUNT", 0)
    return without(_dicts(reply))


def _dicts(reply: Any) -> Any:
    """Maps are lists in the older protocol."""
    if isinstance(reply, list):
        names = reply[::2]
        if len(reply) > 3 and all(isinstance(each, bytes) and each.islower() for each in names):
            return dict(zip(names, map(_dicts, reply[1::2]), strict=True))
        return [_dicts(each) for each in reply]
    return reply


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=map("-".join, PAIRS))
def test_all_of_a_stream(server_factory: ServerFactory, source: str, target: str) -> None:
    here = server_factory(known(source))
    there = server_factory(known(target), *LIMIT)
    one, two = here.client(), there.client()
    fill(one, known(source).version)
    names = [name for name in STREAMS if len(one.dump(name) or b"") > MIB]
    assert {"entries", "emptied", "set back"} <= set(names)
    run = copied(here, there)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert run.report.rebuilt_keys == len(names)
    assert WORDS[8] in {each.kind for each in run.report.losses}
    counters = known(source).version >= (7, 0) and known(target).version >= (7, 0)
    for name in names:
        made = reference.decode(two.dump(name))[1]
        assert of_groups(made, active=counters) == of_groups(
            reference.decode(one.dump(name))[1], active=counters
        )
        if source == target >= "redis-6" and name in ("entries", "never"):
            assert in_full(one, name) == in_full(two, name)
    assert 0 < two.pttl("emptied") <= 3_600_000
    assert_tidy(there)


def test_while_it_is_followed(server_factory: ServerFactory) -> None:
    """The commands behind it find what they name."""
    here = server_factory(known("redis-8.0"))
    there = server_factory(known("redis-7.0"), *LIMIT)
    client = here.client()
    fill(client, (8, 0))
    with migrating(here, there, timeout=60) as run:
        run.following()
        client.copy("entries", "copied")
        client.xreadgroup("second", "dora", {"copied": ">"}, count=20)
        client.xautoclaim("copied", "first", "anna", 0, count=1000)
        client.xadd("copied", {"behind": "it"})
        client.xgroup_delconsumer("entries", "first", "bob")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert run.report.rebuilt_keys >= 4
    assert_settled(here, there, 5)
    assert_tidy(there)


def test_one_that_goes_while_its_groups_are_made(server_factory: ServerFactory) -> None:
    """As a target without memory may evict it: it is begun again."""
    here = server_factory(known("redis-8.0"))
    there = server_factory(known("redis-8.0"), *LIMIT)
    add_many(here.client(), "key")
    two = there.client()

    names: list[bytes] = []

    def claimed() -> list[bytes]:
        # (It may have its own name by now.)
        with contextlib.suppress(redis.ResponseError):
            for each in two.scan_iter(OWN_PREFIX + b"rebuild:*", count=1000):
                names.extend([each] if two.xinfo_groups(each) else [])
        return names

    with Proxy(there.host, there.port) as slow:
        slow.throttle(600_000)
        with copying(here, slow, timeout=60) as run:
            run.wait_for(claimed, "a group")
            two.delete(*names)
            slow.throttle(None)
            run.join()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert run.report.rebuilt_keys == 1
    assert_settled(here, there, 1)
    assert_tidy(there)
