"""One server's stream of every command, routed by the core to the nodes of a real cluster: no node
ever says that keys are not in one slot of its own, and what arrives is the source, but for the keys
that are to be read again.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import hiredis
import pytest

from benches.support.clusters import Cluster, slot_of
from benches.support.compare import compare
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine._native import CommandBatch, StreamReader, encode_command
from engine.model.lane_route import Route
from engine.model.slots import SLOTS, SlotSet
from tests.integration.test_stream_real import settled
from tests.support.raw_replica import replica_of
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Traffic

COMMANDS = 12_000
SHARDS = 3
AT_ONCE = 200
NEVER_MS = 10**14
SLOT_ERRORS = ("CROSSSLOT", "MOVED", "ASK", "TRYAGAIN")


def replies_of(server: Server, commands: Sequence[bytes]) -> list[Any]:
    """What the server answers to each of these."""
    reader, found = hiredis.Reader(), []
    with socket.create_connection((server.host, server.port), timeout=30) as link:
        for at in range(0, len(commands), AT_ONCE):
            some = commands[at : at + AT_ONCE]
            link.sendall(b"".join(some))
            for _ in some:
                while (reply := reader.gets()) is False:
                    reader.feed(link.recv(1 << 16))
                found.append(reply)
    return found


def apply_lane(node: Server, batches: Sequence[CommandBatch], dirty: set[bytes]) -> list[Any]:
    """Send what is to be sent, and add the keys that are to be read again to `dirty`; the errors
    of commands that name none of these."""
    errors: list[Any] = []
    for batch in batches:
        across = set(batch.across)
        for index in across:
            dirty |= {key for _, key in batch.changes(index) or ()}
        spread(batch, dirty)
        sent = [index for index in range(len(batch)) if index not in across]
        replies = replies_of(node, [encode_command(*batch.command(index)) for index in sent])
        for index, reply in zip(sent, replies, strict=True):
            if not isinstance(reply, hiredis.ReplyError):
                continue
            assert not str(reply).startswith(SLOT_ERRORS), batch.command(index, 80)
            # (Redis sends on an XTRIM that it would refuse from a client.)
            if dirty.isdisjoint(batch.keys(index) or ()) and "LIMIT cannot" not in str(reply):
                errors.append((reply, batch.command(index, 80)))
            dirty |= {key for _, key in batch.changes(index) or ()}
            spread(batch, dirty)
    return errors


def has_ttl(cluster: Cluster, key: bytes) -> bool:
    """Whether the key, or a field of the hash that it is, has a TTL."""
    client = cluster.owner(slot_of(key)).client()
    if client.pttl(key) > 0:
        return True
    if client.type(key) != b"hash":
        return False
    fields = client.hkeys(key)
    return any(
        at > 0 for at in client.execute_command("HPTTL", key, "FIELDS", len(fields), *fields)
    )


def spread(batch: CommandBatch, dirty: set[bytes]) -> None:
    """What is derived of these is dirty too."""
    while found := {key for _, key in batch.derived((0, key) for key in dirty)[0]} - dirty:
        dirty |= found


@pytest.mark.parametrize(
    "names", [("redis-7.0", "redis-7.0"), ("redis-8.0", "redis-8.0"), ("valkey-9.1", "valkey-9.1")]
)
def test_every_command_over_three_nodes(
    server_factory: ServerFactory, names: tuple[str, str]
) -> None:
    source = server_factory(known(names[0]))
    with replica_of(source) as replica:
        traffic = Traffic(
            source,
            f"routed {names[0]}",
            databases=(0,),
            rare=0,
            without=("move", "swapdb", "function|flush", "function|delete", "script|flush"),
            tags=(b"one", b"two", b"three", b"four"),
            apart=0.3,
        )
        with traffic:
            wait_for(lambda: traffic.commands > COMMANDS, "commands", told=traffic.describe)
            traffic.stop()
        settled(source, replica)
        data, offset = replica.data, replica.offset
    dirty: set[bytes] = set()
    sent = 0
    with Cluster.start(known(names[1]), primaries=SHARDS, make=server_factory) as cluster:
        for n, node in enumerate(cluster.nodes):
            first, end = SLOTS * n // SHARDS, SLOTS * (n + 1) // SHARDS
            route = Route(slots=SlotSet(((first, end - 1),)), to_cluster=True, leads=n == 0)
            reader = StreamReader(offset, slots=route.filter, extend_fields=True)
            # What is applied later than it was written would have expired.
            reader.extend_before, reader.extend_by = NEVER_MS // 2, NEVER_MS // 2
            reader.feed(data)
            reader.flush()
            assert reader.batched_offset == offset + len(data)
            batches = reader.take()
            assert apply_lane(node, batches, dirty) == []
            sent += sum(batch.stream_commands - len(batch.across) for batch in batches)
        found = compare(source.url, cluster.url)
        # What has a TTL ends on the source meanwhile; and servers do not send on what a reader of a
        # group leaves behind that found nothing.
        timed = {each.key for each in found.different if each.what.endswith("ttl")}
        timed |= {key for _, key in found.extra if has_ttl(cluster, key)}
        silent = "stream groups", "stream consumers"
        differ = {each.key for each in found.different if each.what not in silent}
        differ |= {key for _, key in (*found.missing, *found.extra)}
        told = [each for each in found.different if each.key in differ - dirty - timed]
        assert not differ - dirty - timed, (differ - dirty - timed, told)
        assert len(dirty | timed) < found.keys * 0.9
        assert sent > COMMANDS / 2
