"""Real clusters on loopback: nodes that have met, with slots and replicas, and no redis-cli."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import redis

from benches.support.servers import Binary, Server
from benches.support.waiting import wait_for
from engine._native import key_slot

SLOTS = 16384
_CLIENTS: weakref.WeakKeyDictionary[Server, dict[int, redis.Redis]] = weakref.WeakKeyDictionary()
Failover = Literal["", "FORCE", "TAKEOVER"]
_WHOLE_SECONDS = 60.0
_FAILOVER_SECONDS = 8.0
_KEYS_A_MOVE = 100
_OVER = {"success", "failed", "canceled", "cancelled", "completed"}


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
    def url(self) -> str:
        """The address of a node that lives, as the engine's command line takes it."""
        return next(node for node in self.nodes if node.alive).url

    @property
    def primaries(self) -> list[Server]:
        """The nodes that say they are primaries and have slots now."""
        return [node for node in self.nodes if node.alive and _slots_of(node)]

    def replicas_of(self, primary: Server) -> list[Server]:
        """Its replicas that live, by the primary's word."""
        name = node_id(primary)
        lines = [line.split() for line in node_lines(primary)]
        ids = {each[0] for each in lines if each[3] == name}
        return [node for node in self.nodes if node.alive and node_id(node) in ids]

    def owner(self, slot: int) -> Server:
        """The primary that has the slot, by its own word."""
        return next(node for node in self.primaries if slot in _slots_of(node))

    def tags_of(self, node: Server, count: int) -> list[bytes]:
        """So many hash tags whose slots the primary has, the same each time."""
        slots = _slots_of(node)
        tags = (b"%d" % n for n in itertools.count())
        return list(itertools.islice((tag for tag in tags if slot_of(tag) in slots), count))

    def slots_of(self, node: Server) -> list[int]:
        """The slots of a primary, by its own word."""
        return sorted(_slots_of(node))

    def client(self, **options: Any) -> redis.RedisCluster:
        """A client of the whole; the caller closes it."""
        node = next(node for node in self.nodes if node.alive)
        return redis.RedisCluster(node.host, node.port, password=node.password, **options)

    # --- Slots that move ---

    def move(self, slots: Sequence[int], there: Server) -> None:
        """Move slots with their keys to the node `there` by MIGRATE, as redis-cli does."""
        self.moving(slots, there).join()

    def moving(
        self, slots: Sequence[int], there: Server, *, rate: float | None = None
    ) -> Resharding:
        """Begin to move slots by MIGRATE, beside the caller, `rate` slots a second."""
        return Resharding(self, slots, there, rate)

    def move_atomically(self, slots: Sequence[int], there: Server) -> list[str]:
        """Move slots as a whole: by CLUSTER MIGRATESLOTS (Valkey 9), or CLUSTER MIGRATION (Redis
        8.4). All slots must be one node's. Returns how it ended, a word for each job."""
        return self.moving_atomically(slots, there)()

    def moving_atomically(self, slots: Sequence[int], there: Server) -> Callable[[], list[str]]:
        """Begin to; what is returned waits for the end, and tells it (`move_atomically`)."""
        owner = self.owner(slots[0])
        ranges = [end for each in _ranges(slots) for end in each]
        if there.binary.flavour == "redis":
            name = there.client().execute_command("CLUSTER MIGRATION", "IMPORT", *ranges)
            return lambda: [self._ended(there, name)]
        before = _jobs(owner).keys()
        way = ("SLOTSRANGE", *ranges, "NODE", node_id(there))
        owner.client().execute_command("CLUSTER MIGRATESLOTS", *way)
        started = _jobs(owner).keys() - before
        return lambda: [self._ended(owner, each) for each in started]

    def cancel_moves(self) -> None:
        """Cancel what `moving_atomically` began on any node."""
        for node in self.nodes:
            if not node.alive:
                continue
            if node.binary.flavour == "redis":
                node.client().execute_command("CLUSTER MIGRATION", "CANCEL", "ALL")
            else:
                try:
                    node.client().execute_command("CLUSTER CANCELSLOTMIGRATIONS")
                except redis.ResponseError as error:
                    if "No migrations ongoing" not in str(error):
                        raise

    def _ended(self, node: Server, job: bytes | str) -> str:
        name = job if isinstance(job, bytes) else job.encode()
        self._wait(lambda: _jobs(node)[name] in _OVER, "slots have moved, or not")
        if _jobs(node)[name] in ("success", "completed"):
            self.wait_until_whole()
        return _jobs(node)[name]

    # --- Nodes that come and go ---

    def fail_over(self, replica: Server, how: Failover = "") -> None:
        """Make the replica its shard's primary."""
        asked = float("-inf")

        def taken_over() -> bool:
            nonlocal asked
            slots = _slots_of(replica)
            # What the servers have not come to an end with in five seconds they give up.
            if not slots and time.monotonic() - asked > _FAILOVER_SECONDS:
                replica.client().execute_command("CLUSTER FAILOVER", *([how] if how else []))
                asked = time.monotonic()
            # The primary before it says for a moment yet that it has the slots.
            others = [node for node in self.primaries if node is not replica]
            return bool(slots) and all(slots.isdisjoint(_slots_of(node)) for node in others)

        self._wait(taken_over, "failed over")

    def add_shard(self, replicas: int = 0) -> Server:
        """Start a primary without slots, with so many replicas; returns it."""
        like = self.nodes[0]
        fresh = []
        for _ in range(1 + replicas):
            # The list is the cluster's own at once: whatever happens, `close` ends them.
            node = Server.start(
                like.binary, *like.options, password=like.password, tls=like.tls, cluster=True
            )
            self.nodes.append(node)
            fresh.append(node)
        known = next(node for node in self.nodes if node.alive)
        for node in fresh:
            node.client().execute_command("CLUSTER MEET", known.host, known.port)
        alive = [node for node in self.nodes if node.alive]
        self._wait(lambda: all(self._knows_all(node) for node in alive), "nodes have met")
        for node in fresh[1:]:
            node.client().execute_command("CLUSTER REPLICATE", node_id(fresh[0]))
        self.wait_until_whole()
        return fresh[0]

    def empty_shard(self, node: Server) -> None:
        """Move all slots of a primary to the others, in equal shares, by MIGRATE. From 7.0 on it
        and its replicas become replicas of the last one (`cluster-allow-replica-migration`)."""
        others = [each for each in self.primaries if each is not node]
        slots = self.slots_of(node)
        for at, other in enumerate(others):
            self.move(slots[at :: len(others)], other)

    def remove(self, node: Server) -> None:
        """End a node that has no slots, and make the others forget it."""
        name = node_id(node)
        node.close()
        self.nodes.remove(node)
        for other in self.nodes:
            if other.alive:
                with contextlib.suppress(redis.ResponseError):  # what forgot it by itself
                    other.client().execute_command("CLUSTER FORGET", name)

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Resharding:
    """Slots that are moved by MIGRATE, in a thread, as redis-cli does it: `moved` are there.

    Raises in `join` what went wrong.
    """

    def __init__(
        self, cluster: Cluster, slots: Sequence[int], there: Server, rate: float | None
    ) -> None:
        """Not for callers: `Cluster.moving` is."""
        self.moved: list[int] = []
        self._cluster = cluster
        self._slots = list(slots)
        self._there = there
        self._rate = rate
        self._cancelled = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="resharding", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return not self._thread.is_alive()

    def join(self) -> list[int]:
        """Wait until all are moved, or it was cancelled; returns `moved`."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.moved

    def cancel(self) -> list[int]:
        """Stop behind the slot that is on its way: no slot goes back while clients write to it
        without a key that they miss meanwhile. Returns `moved`."""
        self._cancelled.set()
        return self.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.join()
        else:
            self._cancelled.set()
            self._thread.join()

    def _run(self) -> None:
        try:
            owners = {
                slot: node
                for node in self._cluster.primaries
                if node is not self._there
                for slot in _slots_of(node)
            }
            for slot in self._slots:
                if self._cancelled.is_set():
                    break
                if slot in owners:
                    self._move(slot, owners[slot])
        except BaseException as error:  # for whoever joins
            self._failure = error

    def _move(self, slot: int, owner: Server) -> None:
        there = self._there
        new, old = node_id(there), node_id(owner)
        _set_slot(there, slot, "IMPORTING", old)
        _set_slot(owner, slot, "MIGRATING", new)
        for _ in _migrate(slot, owner, there):
            # The pace is kept in the middle of a slot, when part of its keys is at either side.
            if self._rate is not None:
                self._cancelled.wait(1 / self._rate)
        for node in (there, owner, *self._cluster.primaries):
            try:
                _set_slot(node, slot, "NODE", new)
            except redis.ResponseError as error:
                # A primary that gave its last slot away is a replica of the new owner by now.
                if "only with" not in str(error):
                    raise
        self.moved.append(slot)


def _client(node: Server, db: int = 0) -> redis.Redis:
    """One client for all questions about a node: thousands are asked while slots move."""
    found = _CLIENTS.setdefault(node, {})
    if db not in found:
        found[db] = node.client(db)
    return found[db]


def _set_slot(node: Server, slot: int, *what: str) -> None:
    def done() -> bool:
        try:
            _client(node).execute_command("CLUSTER SETSLOT", slot, *what)
        except redis.ResponseError as error:
            # Valkey has its replicas take it too: one may have its role for a moment only.
            if str(error).startswith("NOREPLICAS"):
                return False
            raise
        return True

    wait_for(done, f"CLUSTER SETSLOT {slot} {what[0]}")


def _migrate(slot: int, here: Server, there: Server) -> Iterator[int]:
    """Move the slot's keys, some at a time; yields how many, and 0 behind the last."""
    secret = () if there.password is None else ("AUTH", there.password)
    for db in [0, *_other_databases(here)]:
        client = _client(here, db)
        while keys := client.execute_command("CLUSTER GETKEYSINSLOT", slot, _KEYS_A_MOVE):
            client.execute_command(
                "MIGRATE", there.host, there.port, "", db, 5000, *secret, "KEYS", *keys
            )
            yield len(keys)
    yield 0


def _other_databases(node: Server) -> list[int]:
    """Those beside 0 in which a node has keys (Valkey 9)."""
    if node.binary.flavour == "redis":
        return []
    return [int(name[2:]) for name in _client(node).info("keyspace") if name != "db0"]


def _jobs(node: Server) -> dict[bytes, str]:
    """Each slot migration that the node knows of, by its name, and its state in lower case."""
    client = node.client(protocol=2)
    if node.binary.flavour == "redis":
        rows, name = client.execute_command("CLUSTER MIGRATION", "STATUS", "ALL"), b"id"
    else:
        rows, name = client.execute_command("CLUSTER GETSLOTMIGRATIONS"), b"name"
    found = {}
    for row in rows:
        facts = dict(zip(row[::2], row[1::2], strict=True))
        found[facts[name]] = facts[b"state"].decode().lower()
    return found


def _ranges(slots: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return found


def slot_of(key: bytes | str) -> int:
    """The slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def node_id(node: Server) -> str:
    """The node's name in its cluster."""
    found = _client(node).execute_command("CLUSTER MYID")
    return found.decode() if isinstance(found, bytes) else str(found)


def node_lines(node: Server) -> list[str]:
    """What CLUSTER NODES says there, a line each."""
    client = _client(node)
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
    client = _client(node)
    info = client.execute_command("CLUSTER INFO")
    if isinstance(info, bytes):
        info = dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line)
    if info["cluster_state"] != "ok" or int(info["cluster_slots_ok"]) != SLOTS:
        return False
    role = client.info("replication")
    return role["role"] == "master" or role["master_link_status"] == "up"
