"""Real clusters on loopback: nodes that have met, with slots and replicas, and no redis-cli."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import redis

from benches.support.servers import Binary, Server
from benches.support.waiting import wait_for
from engine._native import key_slot

SLOTS = 16384
_WHOLE_SECONDS = 60.0
_KEYS_A_MOVE = 100


class Cluster:
    """Primaries with equal shares of the slots, each with so many replicas.

    `nodes` are all servers, the primaries of the beginning first. Closed as a whole.
    """

    def __init__(self, nodes: Sequence[Server], primaries: int) -> None:
        """Not for callers: `start` is."""
        self.nodes = list(nodes)
        self._first = primaries

    @classmethod
    def start(
        cls,
        binary: Binary,
        *options: str,
        primaries: int = 3,
        replicas: int = 0,
        make: Callable[..., Server] = Server.start,
        **settings: Any,
    ) -> Cluster:
        """Start it, and wait until all nodes say that it is whole. `make` starts one server;
        `settings` are its keywords. Raises `ServerError`, and `AssertionError`."""
        known = ("--cluster-node-timeout", "2000", *options)
        nodes: list[Server] = []
        try:
            nodes.extend(
                make(binary, *known, cluster=True, **settings)
                for _ in range(primaries * (1 + replicas))
            )
            found = cls(nodes, primaries)
            found._assemble()
        except BaseException:
            for node in nodes:
                node.close()
            raise
        return found

    def _assemble(self) -> None:
        first = self.nodes[0]
        for epoch, node in enumerate(self.nodes, 1):
            node.client().execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            first.client().execute_command("CLUSTER MEET", node.host, node.port)
        for n, node in enumerate(self.nodes[: self._first]):
            share = range(SLOTS * n // self._first, SLOTS * (n + 1) // self._first)
            node.client().execute_command("CLUSTER ADDSLOTS", *share)
        self._wait(lambda: all(self._knows_all(node) for node in self.nodes), "nodes have met")
        for n, node in enumerate(self.nodes[self._first :]):
            primary = node_id(self.nodes[n % self._first])
            node.client().execute_command("CLUSTER REPLICATE", primary)
        self.wait_until_whole()

    def _knows_all(self, node: Server) -> bool:
        lines = node_lines(node)
        met = all("handshake" not in line and " connected" in line for line in lines)
        return len(lines) == len(self.nodes) and met

    def wait_until_whole(self) -> None:
        """Until the nodes that live serve all slots, have their replicas in step, and tell the same
        of each other."""

        def whole() -> bool:
            nodes = [node for node in self.nodes if node.alive]
            return all(map(_is_whole, nodes)) and len({_roles(node) for node in nodes}) == 1

        self._wait(whole, "whole")

    @staticmethod
    def _wait(condition: Callable[[], bool], what: str) -> None:
        def met() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return condition()
            return False

        wait_for(met, f"the cluster: {what}", _WHOLE_SECONDS)

    @property
    def primaries(self) -> list[Server]:
        """The nodes that say they are primaries and have slots now."""
        return [node for node in self.nodes if node.alive and _slots_of(node)]

    def owner(self, slot: int) -> Server:
        """The primary that has the slot, by its own word."""
        return next(node for node in self.primaries if slot in _slots_of(node))

    def client(self) -> redis.RedisCluster:
        """A client of the whole; the caller closes it."""
        node = next(node for node in self.nodes if node.alive)
        return redis.RedisCluster(node.host, node.port, password=node.password)

    def move(self, slots: Sequence[int], there: Server) -> None:
        """Move slots with their keys to the node `there` by MIGRATE, as redis-cli does."""
        new = node_id(there)
        for slot in slots:
            owner = self.owner(slot)
            old = node_id(owner)
            here, other = owner.client(), there.client()
            other.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old)
            here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new)
            while keys := here.execute_command("CLUSTER GETKEYSINSLOT", slot, _KEYS_A_MOVE):
                secret = () if there.password is None else ("AUTH", there.password)
                here.execute_command(
                    "MIGRATE", there.host, there.port, "", 0, 5000, *secret, "KEYS", *keys
                )
            for node in (there, owner, *self.primaries):
                node.client().execute_command("CLUSTER SETSLOT", slot, "NODE", new)

    def fail_over(self, replica: Server, *, force: bool = False) -> None:
        """Make the replica its shard's primary."""
        replica.client().execute_command("CLUSTER FAILOVER", *(["FORCE"] if force else []))
        self._wait(lambda: bool(_slots_of(replica)), "failed over")

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def slot_of(key: bytes | str) -> int:
    """The slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def node_id(node: Server) -> str:
    """The node's name in its cluster."""
    found = node.client().execute_command("CLUSTER MYID")
    return found.decode() if isinstance(found, bytes) else str(found)


def node_lines(node: Server) -> list[str]:
    """What CLUSTER NODES says there, a line each."""
    client = node.client()
    client.set_response_callback("CLUSTER NODES", lambda reply, **_: reply)
    text = client.execute_command("CLUSTER NODES")
    return (text.decode() if isinstance(text, bytes) else str(text)).splitlines()


def _slots_of(node: Server) -> set[int]:
    found: set[int] = set()
    for line in node_lines(node):
        fields = line.split()
        if "myself" not in fields[2] or "master" not in fields[2]:
            continue
        for part in fields[8:]:
            if not part.startswith("["):
                first, _, last = part.partition("-")
                found.update(range(int(first), int(last or first) + 1))
    return found


def _roles(node: Server) -> frozenset[tuple[str, str, str]]:
    """Of each node that this one knows: its id, its primary's, and its slots."""
    lines = [line.split() for line in node_lines(node)]
    return frozenset(
        (each[0], each[3], " ".join(each[8:])) for each in lines if "fail" not in each[2]
    )


def _is_whole(node: Server) -> bool:
    client = node.client()
    info = client.execute_command("CLUSTER INFO")
    if isinstance(info, bytes):
        info = dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line)
    if info["cluster_state"] != "ok" or int(info["cluster_slots_ok"]) != SLOTS:
        return False
    role = client.info("replication")
    return role["role"] == "master" or role["master_link_status"] == "up"
