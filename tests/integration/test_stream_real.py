"""The replication streams of real servers, read by the core: exact offsets, states, deadlines."""

from __future__ import annotations

import time

import pytest
import redis

from benches.support.servers import Binary, Server
from engine._native import CommandBatch, StreamReader, TransactionResult
from tests.reference import stream as reference
from tests.support.feeding import contents
from tests.support.raw_replica import POSITION_KEY, Applier, RawReplica, replica_of, source_offset

WRITES = """
for i = 1, tonumber(ARGV[1]) do
    redis.call('rpush', KEYS[1], i)
    redis.call('incrby', KEYS[2], i)
end
redis.call('setex', KEYS[3], 1000, 'v')
return redis.call('lrange', KEYS[1], 0, -1)
"""


def traffic(server: Server) -> None:
    """A bit of everything that shapes a stream."""
    for db in (0, 3, 0, 9):
        client = server.client(db)
        client.set("string", "x" * 1000)
        client.set("gone", "soon", px=20)
        with client.pipeline(transaction=True) as pipe:
            pipe.incr("n").append("string", "y").expire("string", 1000).rpush("l", *range(50))
            pipe.execute()
        client.eval(WRITES, 3, "list", "sum", "deadline", 30)
        client.publish("channel", "message")
        client.rename("l", "renamed")
        client.xadd("stream", {"f": "v"}, maxlen=3, approximate=False)
        client.spop("nothing")
        client.sadd("set", *range(20))
        client.spop("set", 5)
        client.pfadd("hll", *range(db + 10))
        with client.pipeline(transaction=True) as pipe:
            # It writes the key's cache; Redis 6.0 sends the EXEC without a MULTI.
            pipe.pfcount("hll").execute()
        client.move("n", 5)
        client.set("big", b"\r\n*1\r\n$4\r\nPING\r\n" * 20_000)
    # A transaction over two databases.
    raw = server.client(0)
    connection = raw.connection_pool.get_connection()
    for command in (["MULTI"], ["SET", "a", "1"], ["SELECT", "7"], ["SET", "b", "2"], ["EXEC"]):
        connection.send_command(*command)
        connection.read_response()
    connection.disconnect()
    server.client(9).flushdb()
    raw.swapdb(0, 3)
    time.sleep(0.05)
    assert raw.get("gone") is None
    assert server.client(3).get("gone") is None
    server.client(12).set("last", "1")


def settled(server: Server, replica: RawReplica) -> int:
    """Read until the source says no more than what came; its offset."""
    while True:
        offset = source_offset(server)
        replica.read_to(offset)
        time.sleep(0.05)
        if source_offset(server) == offset:
            assert replica.offset + len(replica.data) == offset
            return offset


def read(replica: RawReplica, chunk: int = 4096, **options: int) -> list[CommandBatch]:
    reader = StreamReader(replica.offset, **options)
    for at in range(0, len(replica.data), chunk):
        reader.feed(replica.data[at : at + chunk])
    reader.flush()
    assert reader.batched_offset == reader.received_offset == replica.offset + len(replica.data)
    return reader.take()


def everything(server: Server) -> dict[tuple[int, bytes], tuple[bytes | None, bool]]:
    """Value and whether there is a deadline, of every key."""
    found = {}
    for db in range(16):
        client = server.client(db)
        for key in client.keys("*"):
            if client.type(key) == b"set":
                value = b",".join(sorted(client.smembers(key)))
            else:
                value = client.dump(key)[:-10]
            found[db, key] = (value, client.pttl(key) > 0)
    return found


def test_a_real_stream_ends_at_the_source_s_own_offset(binary: Binary, server_factory):
    source = server_factory(binary)
    with replica_of(source) as replica:
        traffic(source)
        offset = settled(source, replica)
        stream = reference.read(replica.data, replica.offset)
        assert stream.rest == b""
        expected = [(step.end_offset, step.db, step.args) for step in stream.commands]
        assert len(expected) > 200
        for chunk, options in ((4096, {}), (7, {}), (1 << 20, {"batch_bytes": 5000})):
            batches = read(replica, chunk, **options)
            assert contents(batches) == expected
            assert batches[-1].end_offset == offset
            assert not any(batch.in_multi_after for batch in batches)
        names = {args[0].upper() for _, _, args in expected}
        assert {b"FLUSHDB", b"SWAPDB", b"PUBLISH", b"RENAME", b"APPEND"} <= names
        assert [pair for batch in batches for pair in batch.swaps] == [(0, 3)]
        # A transaction over two databases selects inside.
        at = {tuple(args): db for _, db, args in expected}
        assert at[b"SET", b"a", b"1"] == 0
        assert at[b"SET", b"b", b"2"] == 7


def test_the_source_goes_on_from_any_position(binary: Binary, server_factory):
    """A partial sync behind any unit, a batch or a keep-alive gives just what is missing."""
    source = server_factory(binary, "--repl-backlog-size", "16mb")
    with replica_of(source) as replica:
        traffic(source)
        offset = settled(source, replica)
        batches = read(replica, 100, batch_bytes=500)
        assert len(batches) > 20
        for batch in batches[:: len(batches) // 7]:
            at = batch.end_offset
            with replica_of(source, replica.replid, at) as again:
                again.read_to(offset)
                assert again.data == replica.data[at - replica.offset :]
                reader = StreamReader(at, batch.db_after, batch.in_multi_after)
                reader.feed(again.data)
            reader.flush()
            rest = [row for row in contents(batches) if row[0] > at]
            assert contents(reader.take()) == rest


def apply_all(
    target: Server, batches: list[CommandBatch], position_db: int = 0
) -> list[TransactionResult]:
    """Each batch as a transaction, one at a time."""
    applier = Applier(target, position_db=position_db)
    results = []
    for batch in batches:
        position = b"%d" % batch.end_offset
        result = applier.apply(batch, position)
        assert result.guard_error is None
        assert result.position == position
        results.append(result)
    applier.close()
    return results


@pytest.mark.parametrize("position_db", [0, 2, 3])
def test_a_stream_applied_in_transactions_gives_the_same_data(
    binary: Binary, server_factory, position_db
):
    source, target = server_factory(binary), server_factory(binary)
    with replica_of(source) as replica:
        traffic(source)
        offset = settled(source, replica)
        reader = StreamReader(
            replica.offset, anchor=binary.flavour == "redis" and binary.version < (7, 0, 0)
        )
        reader.now_ms = int(time.time() * 1000)
        reader.feed(replica.data)
        reader.flush()
        results = apply_all(target, reader.take(), position_db)
    assert {result.status for result in results} == {"applied"}
    assert [result.failed for result in results if result.failed] == []
    found = everything(target)
    assert target.client(position_db).get(POSITION_KEY) == b"%d" % offset
    del found[position_db, POSITION_KEY]
    # In no other database a position was left by SWAPDB.
    assert found == everything(source)


RELATIVE = [
    ("EXPIRE", "a", "100"),
    ("PEXPIRE", "a", "100000"),
    ("SETEX", "b", "100", "v"),
    ("PSETEX", "b", "100000", "v"),
    ("SET", "c", "v", "EX", "100", "NX"),
    ("SET", "c", "v", "PX", "100000", "XX"),
    ("SET", "c", "v", "PX", "100000", "GET"),
    ("GETEX", "c", "EX", "100"),
    ("GETEX", "c", "PX", "100000"),
    ("RESTORE", "d", "100000", None),
    ("RESTORE", "d", "100000", None, "REPLACE", "IDLETIME", "5"),
    ("RESTORE-ASKING", "e", "100000", None),
    ("EVAL", "redis.call('setex', 'x', 100, 'y') redis.call('Expire', 'x', 100)", "0"),
    ("EVAL", "redis.call('set', 'x', 'y', 'Px', 100000)", "0"),
]


def test_no_relative_ttl_gets_through(binary: Binary, server_factory):
    """Applied minutes later, every deadline is that of the source all the same."""
    source, target = server_factory(binary), server_factory(binary)
    old = binary.flavour == "redis" and binary.version < (7, 0, 0)
    client = source.client()
    delay = 60_000
    with replica_of(source) as replica:
        client.set("a", "1")
        payload = client.dump("a")
        reader = StreamReader(replica.offset, anchor=old)
        relative = 0
        for row in RELATIVE:
            command = [payload if part is None else part for part in row]
            try:
                client.execute_command(*command)
            except redis.ResponseError as error:
                # GETEX and GET beside PX came with 6.2 and 7.0.
                assert "unknown command" in str(error) or "syntax error" in str(error)  # noqa: PT017
                continue
            settled(source, replica)
            # As if all this had been received a minute ago.
            reader.now_ms = int(time.time() * 1000) - delay
            before = reader.received_offset - replica.offset
            reader.feed(replica.data[before:])
            key = command[1] if command[0] != "EVAL" else "x"
            reader.flush()
            batches = reader.take()
            sent = contents(batches)
            apply_all(target, batches)
            there = source.client().pttl(key)
            here = target.client().pttl(key)
            if old:
                relative += 1
                assert abs(there - delay - here) < 3000, (row, sent)
                text = {part for _, _, args in sent for part in args[1:]}
                assert not text & {b"100", b"100000"}, sent
            else:
                assert abs(there - here) < 1000, (row, sent)
        assert not old or relative >= 9
