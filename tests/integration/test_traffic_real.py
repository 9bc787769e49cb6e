"""The traffic on real servers: what it reaches, and that it and the comparing can be trusted.

The harness is tried on the servers' own replication: what a replica holds must compare equal, and a
change by hand must be found.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import islice

import pytest
import redis

from benches import datasets
from benches.support.servers import Binary, Server, all_pairs, binaries, pair_id, ring_pairs
from benches.support.waiting import wait_for
from tests.support.comparison import assert_settled, settle
from tests.support.replicas import make_replica, replicated, until_in_step
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters, Sequence, Traffic, prepare
from tests.support.traffic.link import Link, address_of

NOW = 1_700_000_000.0
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")


def replica_can_read(source: Binary, target: Binary) -> bool:
    """Whether `target` can become a replica of `source`: knows its snapshot's version."""
    if source.flavour == target.flavour:
        return target.version >= source.version
    if source.flavour == "redis":
        return source.version < (7, 4, 0)  # from then on its snapshots are Redis's own
    return source.version < (9, 0, 0) and target.version >= (7, 4, 0)


PAIRS = [pair for pair in all_pairs() if replica_can_read(*pair)]


def not_alike(source: Binary, target: Binary) -> tuple[str, ...]:
    """Commands that the target's version runs otherwise than the source's: no matter of ours.

    From 7.0 on XCLAIM drops a pending entry whose entry was deleted; before, it keeps it.
    """
    if source.version < (7, 0, 0) <= target.version:
        return ("xclaim", "xautoclaim")
    if source.flavour == "redis" and (7, 4, 0) <= source.version < (8, 2, 3):
        # It comes as HSET, which ends the TTL that the field has.
        return ("hincrbyfloat",)
    return ()


def attach(replica: Server, primary: Server) -> None:
    make_replica(replica, primary)
    until_in_step(replica)


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    return server_factory(), server_factory()


# What it reaches.

# What a script does is told, not that it was loaded; and a message changes no key.
WITHOUT_EFFECT = {"publish", "spublish", "script|load", "script|flush"}


def test_every_write_command_succeeds_and_nearly_every_one_has_an_effect(binary: Binary) -> None:
    tried, succeeded, effective = Counter[str](), Counter[str](), Counter[str]()
    with Server.start(binary) as server:
        specs, payloads = prepare(address_of(server))
        sequence = Sequence(specs, 5, payloads=payloads, rare=0.0007)
        link = Link(address_of(server))
        last = 0
        for unit in islice(sequence, 14_000):
            for name, words in unit.commands:
                link.queue(name, words)
            # The server's own count of changes, those by expiry included.
            link.queue("info", (b"INFO", b"persistence"))
            link.flush()
            replies = list(link.replies(0))
            told: bytes = replies.pop()[1]
            changes = int(told.split(b"rdb_changes_since_last_save:")[1].split(b"\r")[0])
            for name, reply in replies:
                tried[name] += 1
                succeeded[name] += not isinstance(reply, Exception)
            name = unit.commands[-1][0]
            effective[name] += changes > last
            last = changes
        link.close()
    names = sequence.names
    assert {name for name in specs.write if not tried[name]} == set()
    reached = [name for name in specs.write if succeeded[name]]
    assert len(reached) >= 0.95 * (len(specs.write) + len(specs.left_out))
    idle = {name for name in names - WITHOUT_EFFECT if not effective[name]}
    assert len(idle) <= 0.05 * len(names), {name: succeeded[name] for name in idle}


def test_the_same_seed_and_version_give_the_same_bytes(binary: Binary) -> None:
    made = []
    for _ in range(2):
        with Server.start(binary) as server:
            specs, payloads = prepare(address_of(server))
        sequence = Sequence(specs, 9, payloads=payloads, clock=lambda: NOW)
        made.append(list(islice(sequence, 3000)))
    assert made[0] == made[1]


def test_five_thousand_commands_a_second(ends: tuple[Server, Server]) -> None:
    """Of the writer's own time: what else the machine does is none of its business."""
    with Traffic(ends[0], seed=1) as traffic:
        commands, began = traffic.commands, time.process_time()
        wait_for(lambda: traffic.commands >= commands + 5000, "5,000 commands")
        rate = (traffic.commands - commands) / (time.process_time() - began)
    assert rate >= 5000


# Its life.


def test_rate_pause_and_limit(ends: tuple[Server, Server]) -> None:
    server, _ = ends
    with Traffic(server, seed=1, rate=1000) as traffic:
        began = time.monotonic()
        time.sleep(1.5)
        wait_for(lambda: traffic.commands > 500, "500 commands")
        traffic.pause()
        # The first units set the large keys up, and one may be a transaction.
        assert traffic.commands < (time.monotonic() - began) * 1000 + 700
        offset = server.client().info("persistence")["rdb_changes_since_last_save"]
        issued = traffic.commands
        time.sleep(0.2)
        assert traffic.commands == issued
        assert server.client().info("persistence")["rdb_changes_since_last_save"] <= offset + 20
        traffic.resume()
        wait_for(lambda: traffic.commands > issued, "more commands")
    limited = Traffic(server, seed=1, limit=2000).start()
    limited.join()
    assert 2000 <= limited.commands < 2400
    assert limited.succeeded.total() + limited.failed.total() >= 0.9 * limited.commands
    assert "2," in limited.describe()


def test_a_restarted_server_is_written_to_again(server_factory: ServerFactory) -> None:
    server = server_factory(None, *APPEND_ONLY)
    with Traffic(server, seed=3, without=("flushall",)) as traffic, Counters(server) as counters:
        for _ in range(3):
            time.sleep(0.3)
            server.kill()
            time.sleep(0.1)
            server.restart()
            before = traffic.commands
            wait_for(
                lambda before=before: traffic.commands >= before + 500,
                "500 more commands",
                told=lambda: traffic.describe(),
            )
        wait_for(lambda: len(counters.acknowledged) > 100, "100 counts")
    assert traffic.connections >= 4
    assert traffic.lost > 0
    assert counters.check(server) == []


def test_traffic_goes_on_at_another_server(ends: tuple[Server, Server]) -> None:
    first, second = ends
    with Traffic(first, seed=3) as traffic, Counters(first) as counters:
        time.sleep(0.3)
        traffic.move_to(second)
        counters.move_to(second)
        sizes = [second.client(db=db).dbsize for db in (0, 1)]
        wait_for(
            lambda: (
                sum(size() for size in sizes) > 20 and second.client(db=9).exists("counter:number")
            ),
            "both streams at the second server",
            told=lambda: (traffic.describe(), [size() for size in sizes]),
        )


def test_what_ended_the_writer_is_raised() -> None:
    traffic = Traffic("redis://127.0.0.1:1", seed=1)
    with pytest.raises(redis.ConnectionError):
        traffic.start()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("LPUSH", "counter:list", 7), "pushed: 1 doubled: [7]"),
        (("LREM", "counter:list", 0, 7), "pushed: 1 lost: [7]"),
        (("APPEND", "counter:text", "7;"), "appended: 1 doubled: [7]"),
        (("APPEND", "counter:text", "99999;"), "appended: 1 unknown: [99999]"),
        (("INCR", "counter:number"), "counted: "),
        (("DECR", "counter:number"), "counted: "),
    ],
)
def test_counters_find_what_is_doubled_or_lost(
    server_factory: ServerFactory, command: tuple[str, ...], told: str
) -> None:
    server = server_factory()
    with Counters(server, rate=2000) as counters:
        # Each is pushed and appended, up to the seventh at least.
        wait_for(lambda: len(counters.acknowledged) > 100, "100 counts")
    assert counters.check(server) == []
    server.client(db=9).execute_command(*command)
    assert any(line.startswith(told) for line in counters.check(server)), counters.check(server)


# The harness, on the servers' own replication.


@pytest.mark.parametrize(
    "pair",
    # (`test_online.py` has the same traffic, and the same comparison, between all.)
    [pair for pair in PAIRS if pair[0] is pair[1] or pair in ring_pairs()],
    ids=pair_id,
)
def test_native_replication_compares_equal(pair: tuple[Binary, Binary]) -> None:
    source_binary, target_binary = pair
    same = source_binary is target_binary
    with Server.start(source_binary) as source, Server.start(target_binary) as target:
        attach(target, source)
        options = {"seed": f"native {pair_id(pair)}", "without": not_alike(*pair)}
        with Traffic(source, **options) as traffic, Counters(source) as counters:  # type: ignore[arg-type]
            time.sleep(3 if same else 1.5)
            wait_for(lambda: traffic.commands > 3000, "3,000 commands")
        # FLUSHALL may have come last.
        source.client().set("last", 1)
        replicated(source, target)
        found = assert_settled(source, target, 3)
        assert found.keys.keys > 0
        # FLUSHALL is among the traffic: what the counters knew may be gone from both.
        address = address_of(source), address_of(target)
        assert counters.read(address[0]) == counters.read(address[1])


def test_changes_by_hand_are_found(ends: tuple[Server, Server]) -> None:
    source, target = ends
    attach(target, source)
    with Traffic(source, seed=11, rare=0):
        time.sleep(1)
    source.client(db=1).set("seen:string", "one")
    source.client(db=2).rpush("seen:list", 1, 2, 3)
    replicated(source, target)
    assert_settled(source, target, 3)
    target.client().execute_command("REPLICAOF", "NO", "ONE")
    target.client(db=1).set("seen:string", "another")
    target.client(db=2).lpop("seen:list")
    target.client().set("seen:extra", 1)
    # The engine's own key is no difference.
    target.client().set("startmigration:position", "v1")
    source.client().set("seen:missing", 1)
    found = settle(source, target, 0.3)
    assert not found.equal
    assert {each.key for each in found.keys.different} == {b"seen:string", b"seen:list"}
    assert found.keys.extra == [(0, b"seen:extra")]
    assert found.keys.missing == [(0, b"seen:missing")]
    assert len(found.differences) == 4
    assert "seen:list" in found.describe()
    with pytest.raises(AssertionError, match="seen:extra"):
        assert_settled(source, target, 0)


def test_functions_and_scripts_are_compared(binary: Binary) -> None:
    with Server.start(binary) as source, Server.start(binary) as target:
        sha = source.client().script_load("return 1")
        target.client().script_load("return 1")
        assert settle(source, target, 0, scripts=[sha]).equal
        target.client().script_flush()
        found = settle(source, target, 0, scripts=[sha])
        assert found.differences == [f"script {sha}: not cached on the target"]
        if binary.version < (7, 0, 0):
            return
        code = "#!lua name=l\nredis.register_function('f', function() return %d end)"
        source.client().function_load(code % 1)
        assert "function library b'l'" in settle(source, target, 0).differences[0]
        target.client().function_load(code % 2)
        assert len(settle(source, target, 0).functions) == 1
        target.client().function_load(code % 1, replace=True)
        assert settle(source, target, 0).equal


def test_consumers_that_never_had_an_entry_are_no_difference(server_factory: ServerFactory) -> None:
    """No replica is told of them; one with entries counts as before."""
    binary = next(each for each in binaries() if each.version >= (7, 2, 0))
    source, target = server_factory(binary), server_factory(binary)
    for server in (source, target):
        client = server.client()
        client.xadd("x", {"f": 1}, id="1-1")
        client.xgroup_create("x", "g", id="0")
        client.xreadgroup("g", "alice", {"x": ">"})
    assert source.client().xreadgroup("g", "bob", {"x": ">"}) in ([], {})
    assert settle(source, target, 0).equal
    # The target alone has it: only where the source took over from the one that told us.
    found = settle(target, source, 0)
    assert {"stream consumers", "stream groups"} <= {each.what for each in found.keys.different}
    assert settle(target, source, 0, failed_over=True).equal
    target.client().xack("x", "g", "1-1")
    found = settle(source, target, 0)
    assert {"stream consumers", "stream groups"} <= {each.what for each in found.keys.different}


def test_no_group_has_read_more_than_was_added() -> None:
    """A replica of Redis 8.2 has another count than its primary then
    (findings/replica-counts-entries-read-anew.sh)."""
    binary = known("redis-8.2")
    with Server.start(binary) as source, Server.start(binary) as target:
        attach(target, source)
        specs, payloads = prepare(address_of(source))
        others = [name for name in specs.all() if not name.startswith("x")]
        sequence = Sequence(specs, 3, databases=(0,), payloads=payloads, without=others)
        link = Link(address_of(source))
        for number, unit in enumerate(islice(sequence, 20_000)):
            for name, words in unit.commands:
                # What waits holds the others up.
                if unit.lane == 0:
                    link.queue(name, words)
            if number % 50 == 0:
                link.flush()
                list(link.replies(0))
        link.flush()
        list(link.replies(0))
        link.close()
        replicated(source, target)
        assert_settled(source, target, 3)
        groups = [
            each["entries-read"]
            for key in source.client().scan_iter(_type="STREAM")
            for each in source.client().xinfo_groups(key)
        ]
        assert len([each for each in groups if each]) > 5


def test_settle_waits_for_what_is_under_way(ends: tuple[Server, Server]) -> None:
    source, target = ends
    source.client().set("late", 1)

    looks, client = target.client(), target.client()

    def looked() -> int:
        return int(looks.info("commandstats").get("cmdstat_scan", {}).get("calls", 0))

    before = looked()

    def arrive() -> None:
        wait_for(lambda: looked() > before, "a first look")
        client.set("late", 1)

    late = threading.Thread(target=arrive)
    late.start()
    found = assert_settled(source, target, 60)
    late.join()
    assert found.rounds > 1


def test_settle_waits_for_a_server_that_is_away(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory(None, *APPEND_ONLY)
    for server in (source, target):
        server.client().set("k", 1)
    target.stop()
    back = threading.Timer(0.5, target.restart)
    back.start()
    try:
        assert_settled(source, target, 20)
    finally:
        back.join()


@pytest.fixture
def ten_thousand(ends: tuple[Server, Server]) -> tuple[Server, Server]:
    datasets.demo(ends[0].url, n=10_000)
    attach(ends[1], ends[0])
    replicated(*ends)
    return ends


def test_ten_thousand_keys_are_compared_quickly(ten_thousand: tuple[Server, Server]) -> None:
    """In our own CPU time: how busy the machine is has nothing to do with it."""
    before = time.process_time()
    found = assert_settled(*ten_thousand, 0)
    assert found.rounds == 1
    assert found.keys.keys == 10_000
    assert time.process_time() - before < 2.0


def test_there_are_pairs_of_one_version_and_of_two() -> None:
    assert sum(source is target for source, target in PAIRS) == len(binaries())
    assert any(source is not target for source, target in PAIRS)
