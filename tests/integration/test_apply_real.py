"""Transactions against real servers: what applies, what doesn't, and at which stage they refuse."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from benches.support.servers import Binary, Server
from benches.support.waiting import wait_for
from engine._native import TransactionResult, encode_command
from tests.support.raw_replica import POSITION_KEY, Applier, batch_of
from tests.support.servers import ServerFactory

THREE = batch_of(("SET", "a", "1"), ("INCR", "n"), ("LPUSH", "l", "x"))
WITHOUT = ("multi", "exec", "watch", "get", "incr", "select")


@pytest.fixture
def target(binary: Binary, server_factory: ServerFactory) -> Server:
    return server_factory(binary)


@pytest.fixture
def connect(target: Server) -> Iterator[Callable[..., Applier]]:
    """Appliers of the target, or of another server, closed after the test."""
    made = []

    def connect(
        *before: tuple[str | int, ...], position_db: int = 0, server: Server = target
    ) -> Applier:
        applier = Applier(server, *before, position_db=position_db)
        made.append(applier)
        return applier

    yield connect
    for applier in made:
        applier.close()


def nothing_was_applied(server: Server) -> bool:
    return server.client().exists("a", "n", "l", POSITION_KEY) == 0


def codes(pairs: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first words of errors, by slot."""
    return [(slot, text.partition(" ")[0]) for slot, text in pairs]


def refused(result: TransactionResult, code: str) -> None:
    """Every command was refused at queueing, for one reason."""
    assert result.status == "aborted"
    assert codes(result.refused) == [(slot, code) for slot in range(4)]
    assert result.error is not None
    assert result.error.startswith("EXECABORT")
    assert result.failed == []


def test_it_applies_and_moves_the_position(target, connect):
    applier = connect(position_db=2)
    batch = batch_of(
        ("SET", "a", "1"), ("SELECT", 5), ("SET", "b", "2"), ("SELECT", 0), ("DEL", "x")
    )
    for number in range(3):
        position = b"at %d" % number
        result = applier.apply(batch, position)
        assert result.status == "applied"
        assert result.position == position == target.client(2).get(POSITION_KEY)
        assert (result.refused, result.failed, result.error) == ([], [], None)
    assert target.client(0).get("a") == b"1"
    assert target.client(5).get("b") == b"2"
    assert target.client(2).keys("*") == [POSITION_KEY]


def test_an_unknown_command_aborts_and_is_named(target, connect):
    applier = connect()
    batch = batch_of(
        ("SET", "a", "1"), ("SELECT", 3), ("NOSUCH", "x"), ("SELECT", 0), ("INCR", "n")
    )
    result = applier.apply(batch)
    assert result.status == "aborted"
    assert codes(result.refused) == [(2, "ERR")]
    transaction = applier.encoder.encode(batch, b"", db=0)
    assert transaction.index_of(2) == 1
    assert nothing_was_applied(target)
    # Without it the rest goes, and a repair with it.
    extra = encode_command("SET", "repaired", "1")
    result = applier.apply(batch, skip=frozenset({1}), extras=((3, extra),))
    assert (result.status, result.failed) == ("applied", [])
    assert target.client(3).get("repaired") == b"1"
    assert target.client().get("n") == b"1"


def test_an_error_inside_exec_is_named_and_the_rest_applies(target, connect):
    target.client().set("l", "a string")
    result = connect().apply(THREE)
    assert result.status == "applied"
    assert codes(result.failed) == [(2, "WRONGTYPE")]
    assert target.client().mget("a", "n") == [b"1", b"1"]
    assert result.position == b"position"


def test_answers_of_any_depth_and_length(target, connect):
    batch = batch_of(
        ("EVAL", "return {1,{2,{3,'x'},{err='inside'}},{},{{{{}}}}}", 0),
        ("EVAL", "return {err='MINE on top'}", 0),
        ("EVAL", "return string.rep('x', 3000000)", 0),
        ("EVAL", "local t = {} for i = 1, 5000 do t[i] = {i, {i}} end return t", 0),
        ("EVAL", "return redis.status_reply(string.rep('s', 200000))", 0),
        ("EVAL", "return redis.error_reply(string.rep('E', 200000))", 0),
        ("SET", "a", "1", "GET") if target.binary.version >= (6, 2, 0) else ("GET", "a"),
        ("XADD", "x", "*", "f", "v"),
        ("XRANGE", "x", "-", "+"),
        ("GEOADD", "g", "1", "2", "m"),
        ("GEOPOS", "g", "m", "nothing"),
        ("SPOP", "none"),
        ("HGETALL", "none"),
    )
    result = connect().apply(batch)
    assert result.status == "applied"
    assert [slot for slot, _ in result.failed] == [1, 5]
    assert result.failed[0][1].startswith("MINE on top")
    assert "EEEE" in result.failed[1][1]
    assert len(result.failed[1][1]) == 1024
    assert result.position == b"position"


def test_resp3_answers(target, connect):
    batch = batch_of(
        ("HSET", "h", "f", "v"),
        ("HGETALL", "h"),
        ("SADD", "s", "1"),
        ("SMEMBERS", "s"),
        ("ZADD", "z", "1.5", "m"),
        ("ZSCORE", "z", "m"),
        ("ZRANGE", "z", "0", "-1", "WITHSCORES"),
        ("GET", "none"),
        ("EVAL", "redis.setresp(3); return redis.call('hgetall', KEYS[1])", 1, "h"),
        ("LPUSH", "h", "x"),
    )
    applier = connect(("HELLO", 3))
    result = applier.apply(batch)
    assert result.status == "applied"
    assert codes(result.failed) == [(9, "WRONGTYPE")]
    target.client().set(POSITION_KEY, "another's")
    result = applier.apply(batch)
    assert (result.status, result.position) == ("raced", b"another's")


def test_a_second_engine_is_noticed(target, connect):
    first, second = connect(), connect()
    assert first.apply(THREE, b"1").status == "applied"
    assert second.apply(THREE, b"2").status == "applied"
    result = first.apply(THREE, b"3")
    assert result.status == "raced"
    assert result.position == b"2"
    assert target.client().mget("n", POSITION_KEY) == [b"2", b"2"]
    # Its GET has set a new watch; a deleted position is a moved one too.
    target.client().delete(POSITION_KEY)
    result = first.apply(THREE, b"3")
    assert (result.status, result.position) == ("raced", None)
    assert first.apply(THREE, b"4").status == "applied"


@pytest.mark.parametrize("command", [("FLUSHALL",), ("FLUSHDB",), ("FLUSHALL", "ASYNC")])
def test_the_position_survives_a_flush(target, connect, command):
    target.client().set("old", "1")
    applier = connect()
    for number in range(2):
        position = b"%d" % number
        batch = batch_of(("SET", "a", "1"), command, ("SET", "b", "1"))
        assert applier.apply(batch, position).status == "applied"
        assert sorted(target.client().keys("*")) == [b"b", POSITION_KEY]
        assert target.client().get(POSITION_KEY) == position


@pytest.mark.parametrize("position_db", [0, 1, 2, 3])
def test_the_position_stays_where_it_is_when_databases_swap(target, connect, position_db):
    batch = batch_of(
        ("SET", "zero", "1"),
        ("SWAPDB", 0, 2),
        ("SELECT", 1),
        ("SET", "one", "1"),
        ("SWAPDB", 1, 2),
        ("SWAPDB", 2, 2),
        ("SET", "behind", "1"),
    )
    applier = connect(position_db=position_db)
    for position in (b"1", b"2"):
        for db in range(4):
            if db != position_db:
                assert target.client(db).exists(POSITION_KEY) == 0
        result = applier.apply(batch, position)
        assert (result.status, result.failed, result.position) == ("applied", [], position)
    found = {db: set(target.client(db).keys("*")) - {POSITION_KEY} for db in range(4)}
    for db in range(4):
        assert target.client(db).exists(POSITION_KEY) == (db == position_db)
    # As a server without a position has it.
    bare = {db: set() for db in range(4)}
    for _ in range(2):
        bare[0].add(b"zero")
        bare[0], bare[2] = bare[2], bare[0]
        bare[1].add(b"one")
        bare[1], bare[2] = bare[2], bare[1]
        bare[1].add(b"behind")
    assert found == bare


# --- States in which a target refuses ---


def test_out_of_memory_is_refused_at_queueing(target, connect):
    client = target.client()
    applier = connect()
    client.set("filler", "x")
    client.config_set("maxmemory", "1")
    refused(applier.apply(THREE), "OOM")
    # Even what would free memory is: the position, at the least, needs some.
    result = applier.apply(batch_of(("DEL", "filler")))
    assert result.status == "aborted"
    assert codes(result.refused)[-1] == (1, "OOM")
    assert client.exists("filler")
    client.config_set("maxmemory", "0")
    assert nothing_was_applied(target)
    assert applier.apply(THREE).status == "applied"


def test_too_few_replicas(target, connect):
    target.client().config_set("min-replicas-to-write", "1")
    refused(connect().apply(THREE), "NOREPLICAS")


def test_a_read_only_target(target, connect):
    applier = connect()
    target.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    result = applier.apply(THREE)
    refused(result, "READONLY")
    assert result.guard_error is None
    target.client().config_set("replica-read-only", "no")
    target.client().config_set("replica-serve-stale-data", "no")
    result = applier.apply(THREE)
    refused(result, "MASTERDOWN")
    assert result.guard_error.startswith("MASTERDOWN")
    target.client().execute_command("REPLICAOF", "NO", "ONE")
    assert nothing_was_applied(target)


def test_a_failing_disk(target, connect):
    client = target.client()
    applier = connect()
    (target.folder / "dump.rdb").mkdir()  # nothing can be renamed to that
    client.config_set("save", "3600 1")
    client.bgsave()
    wait_for(
        lambda: client.info("persistence")["rdb_last_bgsave_status"] != "ok", "a save that failed"
    )
    refused(applier.apply(THREE), "MISCONF")
    assert nothing_was_applied(target)


def test_a_busy_script(target, connect):
    client = target.client()
    client.config_set("lua-time-limit", "50")
    applier, rescue = connect(), target.client(retry=None, client_name=None)

    def spin() -> None:
        with pytest.raises(redis.ResponseError):
            target.client(retry=None).eval("while true do end", 0)

    thread = threading.Thread(target=spin)
    thread.start()
    time.sleep(0.4)
    result = applier.apply(THREE)
    rescue.script_kill()
    thread.join()
    refused(result, "BUSY")
    assert nothing_was_applied(target)
    assert connect().apply(THREE).status == "applied"


def test_a_target_that_loads(binary, server_factory, connect):
    # Each key is slept over, and is long enough for the server to look at its sockets.
    server = server_factory(binary, "--rdbcompression", "no", "--key-load-delay", "200000")
    for number in range(10):
        server.client().set(f"k{number}", os.urandom(3 << 20))
    server.client().save()
    server.restart(loaded=False)
    applier = connect(server=server)
    result = applier.apply(THREE)
    refused(result, "LOADING")
    assert result.guard_error.startswith("LOADING")
    wait_for(lambda: not server.client().info("persistence")["loading"], "the data is loaded")
    assert nothing_was_applied(server)
    assert applier.apply(THREE).status == "applied"


@pytest.mark.parametrize("missing", WITHOUT)
def test_a_user_without_a_right(target, connect, missing):
    client = target.client()
    client.execute_command("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", f"-{missing}")
    batch = batch_of(("SET", "a", "1"), ("INCR", "n"), ("LPUSH", "l", "x"))
    result = connect(("AUTH", "u", "p")).apply(batch)
    if missing == "multi":
        # The one dangerous answer: the commands ran, and the position moved, one by one.
        assert result.status == "not_begun"
        assert result.error.startswith("NOPERM")
        assert (result.failed, result.position) == ([], b"position")
        assert client.get("n") == b"1"
        return
    if missing == "exec":
        assert (result.status, result.refused) == ("aborted", [])
        assert result.error.startswith("EXECABORT")
        assert "NOPERM" in result.error
    elif missing == "incr":
        assert (result.status, codes(result.refused)) == ("aborted", [(1, "NOPERM")])
    elif missing == "select":
        assert result.status == "applied"
        result = connect(("AUTH", "u", "p")).apply(
            batch_of(("SET", "a", "2"), ("SELECT", 3), ("SET", "a", "2"))
        )
        assert result.status == "aborted"
        assert codes(result.refused) == [(1, "NOPERM"), (3, "NOPERM")]
        assert client.get("a") == b"1"
        return
    else:
        assert result.status == "applied"
        assert result.guard_error.startswith("NOPERM")
        assert client.get("n") == b"1"
        return
    assert result.guard_error is None
    assert nothing_was_applied(target)


def test_a_user_who_has_to_log_in(target, connect):
    client = target.client()
    applier = connect()
    client.config_set("requirepass", "secret")
    result = connect().apply(THREE)
    assert result.status == "not_begun"
    assert codes(result.failed) == [(slot, "NOAUTH") for slot in range(4)]
    assert result.error.startswith("NOAUTH")
    assert result.guard_error.startswith("NOAUTH")
    # Who was in stays in.
    assert applier.apply(THREE).status == "applied"


def test_a_connection_left_inside_multi(target, connect):
    result = connect(("MULTI",)).apply(THREE)
    assert result.status == "not_begun"
    assert result.error.startswith("ERR")


def test_a_cluster_takes_one_slot(binary, server_factory, connect):
    server = server_factory(binary, cluster=True)
    applier = connect(server=server)
    result = applier.apply(THREE)
    assert result.status == "aborted"
    assert {code for _, code in codes(result.refused)} == {"CLUSTERDOWN"}
    server.add_slots()
    result = applier.apply(THREE)
    assert (result.status, result.refused) == ("aborted", [])
    assert result.error.startswith("CROSSSLOT")
    assert server.client().exists("a") == 0
    tag = "{startmigration:position}"
    result = applier.apply(batch_of(("SET", tag + "a", "1"), ("INCR", tag + "n")))
    assert (result.status, result.position) == ("applied", b"position")
