"""A target that is older than the source: newer commands come to the same there, and are not read
again.

Each command runs at the source while it is followed, alone and in a transaction; at the end both
ends hold the same, key by key.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from tests.support.comparison import assert_settled
from tests.support.library import Run, copied, migrating
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known

FAR = int(time.time()) + 900_000

# What the keys of the first words hold, then what is done to them, a line each; {t} is an expire
# time in seconds, {k} begins each key.
SETTING_UP = """
SET {k}s old EX 900000
SET {k}i 1 EX 900000
SET {k}j 1
RPUSH {k}l a b c d e f g h
RPUSH {k}m x
RPUSH {k}o a b c
HSET {k}h f 1 g 2 h 3
XADD {k}x 1-1 f v
XADD {k}x 2-1 f v
XADD {k}x 3-1 f v
XADD {k}x 4-1 f v
XGROUP CREATE {k}x g 0
XREADGROUP GROUP g c COUNT 1 STREAMS {k}x >
"""
MADE = """
SET {k}a v EX 900000
SET {k}b v EXAT {t}
SET {k}c v NX
SET {k}s new XX GET PX 900000000
SETEX {k}d 900000 v
GETEX {k}s PERSIST
SET {k}s more IFEQ new
SET {k}s most IFNE none GET
SET {k}e x
SET {k}e late PXAT 1000
MSETEX 2 {k}f 1 {k}g 2
MSETEX 2 {k}f 3 {k}n 4 PX 900000000
MSETEX 2 {k}p 3 {k}q 4 NX EXAT {t}
MSETEX 2 {k}p 5 {k}q 6 XX
DELEX {k}q
DELEX {k}p IFEQ 5
SET {k}r v
DELIFEQ {k}r v
EXPIRE {k}g 900000 NX
EXPIRE {k}g 950000 GT
LPOP {k}l 2
RPOP {k}l 1
LMPOP 1 {k}l RIGHT COUNT 1
LMOVE {k}l {k}m RIGHT LEFT
BLMOVE {k}l {k}l RIGHT LEFT 1
RPOP {k}o 9
HSETEX {k}h FIELDS 2 f 5 i 6
HSETEX {k}h FNX FIELDS 1 n 5
HGETDEL {k}h FIELDS 2 f none
HGETEX {k}h FIELDS 1 g
HSET {k}y f v
HGETDEL {k}y FIELDS 1 f
XADD {k}x NOMKSTREAM 5-1 f v
XADD {k}x KEEPREF 6-1 f v
XADD {k}x KEEPREF MAXLEN = 5 6-2 f v
XADD {k}x MAXLEN ~ 4 LIMIT 9 6-3 limit 5
XADD {k}x MAXLEN = 9 6-4 f v limit 5
XTRIM {k}x MAXLEN 5 KEEPREF
XDELEX {k}x KEEPREF IDS 2 5-1 9-9
XDELEX {k}x IDS 1 6-1
XGROUP CREATECONSUMER {k}x g d
XREADGROUP GROUP g d COUNT 1 STREAMS {k}x >
XREADGROUP GROUP g e NOACK COUNT 1 STREAMS {k}x >
XGROUP CREATE {k}x h 4-1 ENTRIESREAD 3
XGROUP SETID {k}x h 3-1 ENTRIESREAD 2
XSETID {k}x 9-9 ENTRIESADDED 12 MAXDELETEDID 6-1
XADD {k}x 10-* f v
SPUBLISH {k}ch message
"""
# Made of others unless fields may have TTLs.
OF_HASHES = """
HSETEX {k}h FXX KEEPTTL FIELDS 1 g 5
HINCRBYFLOAT {k}h h 1.5
"""
# Made of others where they may.
OF_FIELDS = """
HSET {k}t f 1 g 2
HEXPIRE {k}t 900000 FIELDS 1 g
HSETEX {k}t EX 900000 FIELDS 2 f 5 j 6
HSETEX {k}t FNX PXAT {t}000 FIELDS 1 n 6
HSETEX {k}t FIELDS 1 g 5
"""
WITH_FIELD_TTLS = ("valkey-9.1", "redis-stack-7.4")
# In a form for which there is no older one: read again.
READ_AGAIN = """
SET {k}S v
COPY {k}S {k}C
RPUSH {k}L a b c
LMOVE {k}L {k}M LEFT RIGHT
ZADD {k}Z 1 a 2 b
ZADD {k}Z GT 5 a 1 b
ZRANGESTORE {k}R {k}Z 0 0
ZDIFFSTORE {k}D 1 {k}Z
"""


def lines(text: str, k: str) -> list[list[str]]:
    return [each.format(k=k, t=FAR).split() for each in text.strip().splitlines()]


def runs(client: redis.Redis, command: list[str]) -> bool:
    """Whether this source knows it, in this form."""
    try:
        client.execute_command(*command)
    except redis.ResponseError as error:
        if not str(error).startswith(("unknown command", "syntax", "wrong", "Invalid stream")):
            raise
        return False
    return True


def write(client: redis.Redis, text: str, k: str) -> None:
    """Each line alone, then all that the source knows once more, in one transaction."""
    client.response_callbacks.clear()
    taken = [runs(client, each) for each in lines(text, k + "1")]
    pipe = client.pipeline(transaction=True)
    pipe.response_callbacks.clear()
    for each, is_known in zip(lines(text, k + "2"), taken, strict=True):
        # What blocks is no command of a transaction's.
        if is_known and each[0] != "XREADGROUP":
            pipe.execute_command(*each)
    pipe.execute()


def set_up(client: redis.Redis, k: str) -> None:
    client.response_callbacks.clear()
    for number in ("1", "2"):
        for each in lines(SETTING_UP, k + number):
            client.execute_command(*each)


def end(run: Run) -> None:
    """Bring the migration to its end."""
    run.in_sync()
    run.cut_over()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("redis-8.6", "redis-7.0"),
        ("redis-8.6", "redis-6.2"),
        ("redis-8.2", "redis-6.0"),
        ("redis-8.6", "redis-5.0"),
        ("redis-8.6", "valkey-9.1"),
        ("redis-8.2", "redis-stack-7.4"),
        ("valkey-9.1", "valkey-8.1"),
        ("valkey-9.1", "redis-6.0"),
        ("redis-7.0", "redis-7.0"),
    ],
)
def test_newer_commands_are_made_of_older_ones(
    server_factory: ServerFactory, source: str, target: str
) -> None:
    # Of Redis Stack the server alone, without its modules.
    one, two = (server_factory(replace(known(each), options=())) for each in (source, target))
    with migrating(one, two) as run:
        run.following()
        client = one.client(2)
        set_up(client, "k")
        run.in_sync()
        before = run.progress.repaired_keys
        write(client, MADE, "k")
        write(client, OF_FIELDS if target in WITH_FIELD_TTLS else OF_HASHES, "k")
        end(run)
    assert run.report.status == "done", run.events
    repaired = run.report.repaired_keys - before
    # Hashes that have fields with TTLs are read again there now and then, whatever the commands.
    assert repaired == 0 or target == "redis-stack-7.4", run.events
    assert_settled(one, two, 2)


def test_what_has_no_older_form_is_read_again(server_factory: ServerFactory) -> None:
    """And nothing of it is lost."""
    source, target = server_factory(known("redis-8.6")), server_factory(known("redis-6.0"))
    with migrating(source, target) as run:
        run.following()
        write(source.client(), READ_AGAIN, "k")
        end(run)
    assert run.report.repaired_keys >= 10
    assert_settled(source, target, 2)


@pytest.mark.parametrize("command", ["FLUSHALL SYNC", "FLUSHDB SYNC"])
def test_a_flush_that_waits(server_factory: ServerFactory, command: str) -> None:
    """Before 6.2 a server knows ASYNC alone."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-6.0"))
    source.client().mset({f"key:{n}": n for n in range(50)})
    with migrating(source, target) as run:
        run.following()
        source.client().execute_command(*command.split())
        source.client().set("key", "value")
        end(run)
    assert target.client().keys() == [b"key"]


LIBRARY = "#!lua name={0}\nredis.register_function('{0}', function() return '{0}' end)"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("valkey-9.1", "redis-8.0"),
        ("redis-8.0", "valkey-9.1"),
        ("redis-8.6", "redis-7.0"),
        ("valkey-9.1", "redis-7.0"),
    ],
)
def test_libraries_that_another_version_has_dumped(
    server_factory: ServerFactory, source: str, target: str
) -> None:
    """In the stream, where they come as FUNCTION RESTORE."""
    one, two = server_factory(known(source)), server_factory(known(target))
    client = one.client()

    def load(name: str) -> bytes:
        client.execute_command("FUNCTION", "FLUSH")
        client.execute_command("FUNCTION", "LOAD", LIBRARY.format(name))
        payload: bytes = client.execute_command("FUNCTION", "DUMP")
        return payload

    first, second = load("first"), load("second")
    client.execute_command("FUNCTION", "FLUSH")
    with migrating(one, two) as run:
        run.following()
        client.execute_command("FUNCTION", "RESTORE", first)
        client.execute_command("FUNCTION", "RESTORE", second, "FLUSH")
        client.execute_command("FUNCTION", "RESTORE", first, "APPEND")
        pipe = client.pipeline(transaction=True)
        pipe.execute_command("FUNCTION", "DELETE", "first")
        pipe.execute_command("FUNCTION", "RESTORE", first, "replace")
        pipe.execute()
        end(run)
    assert run.report.status == "done", run.events
    assert run.report.left_out == ()
    for name in ("first", "second"):
        assert two.client().execute_command("FCALL", name, 0) == name.encode()
    assert_settled(one, two, 2)


def test_on_the_nodes_of_an_older_cluster(scenario: NewScenario) -> None:
    """A command is in one slot, and so is all that it is made into."""
    s = scenario("redis-8.6", "redis-6.2", target_shards=2)
    with s.running() as run:
        run.following()
        client = s.source.client()
        for k in ("{a}", "{b}", "{c}"):
            set_up(client, k)
            write(client, MADE, k)
            write(client, OF_HASHES, k)
        client.execute_command("MSETEX", 3, "x", 1, "y", 2, "z", 3, "PX", 900_000_000)
        client.execute_command("SPUBLISH", "channel", "message")
        end(run)
    assert run.report.repaired_keys == 0
    s.assert_migrated()


def test_of_an_append_only_file(server_factory: ServerFactory, tmp_path: Path) -> None:
    """Of which nothing could be read again."""
    options = ("--appendonly", "yes", "--appendfsync", "no", "--save", "")
    source = server_factory(known("valkey-9.1"), *options)
    target = server_factory(known("redis-6.0"))
    client = source.client()
    set_up(client, "k")
    write(client, MADE, "k")
    write(client, OF_HASHES, "k")
    shutil.copytree(source.folder / "appendonlydir", tmp_path / "appendonlydir")
    done = copied(f"aof:{tmp_path}", target)
    assert done.report.status == "done", done.report.errors
    assert_settled(source, target, 2)
