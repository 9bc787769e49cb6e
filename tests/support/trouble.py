"""What befalls the ends of a migration, of whichever shape: a server, a primary with a replica that
Sentinels watch, a cluster. Seeded; each event leaves an end that is whole.

    end = stack.enter_context(deployment("valkey-9.1x3", server_factory))
    trouble = Trouble(random.Random(seed), [end, other])
    trouble.one()
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

import redis

from benches.support.clusters import Cluster
from benches.support.sentinels import Sentinel, sentinels, url
from benches.support.servers import Server
from benches.support.waiting import wait_for
from tests.support.servers import ServerFactory, known

BACKLOG = ("--repl-backlog-size", "64mb")
# What one server has acknowledged it has when it is back from its death.
KEPT = ("--appendonly", "yes", "--appendfsync", "always")
SLOTS = 60
"""So many slots move one by one, at most."""

Event = Callable[[], None]


class Deployment:
    """An end of a migration. `name`: "redis-7.0" is one server, "redis-7.0s" behind Sentinels,
    "redis-7.0x3" a cluster of three primaries, a replica each.

    `end` is what the engine and clients are given, `whole` what is compared.
    """

    def __init__(self, name: str) -> None:
        """Not for callers: `deployment` is."""
        self.name = name

    @property
    def end(self) -> Server | Cluster | str:
        """As clients take it."""
        raise NotImplementedError

    @property
    def whole(self) -> Server | Cluster:
        """The servers that have the data now."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """As the engine takes it."""
        return self.end if isinstance(self.end, str) else self.end.url

    def events(self, rng: random.Random) -> list[Event]:
        """What may befall it."""
        raise NotImplementedError

    def _primaries(self) -> list[Server]:
        return self.whole.primaries if isinstance(self.whole, Cluster) else [self.whole]

    def links_are_cut(self) -> None:
        """Those of replicas, the engine among them, and of clients."""
        for node in self._primaries():
            for kind in ("replica", "normal"):
                node.client().execute_command("CLIENT", "KILL", "TYPE", kind)


class _Server(Deployment):
    def __init__(self, name: str, make: ServerFactory) -> None:
        super().__init__(name)
        self._server = make(known(name), *BACKLOG, *KEPT)

    @property
    def end(self) -> Server:
        return self._server

    whole = end

    def events(self, rng: random.Random) -> list[Event]:
        return [self.dies_and_comes_back, self.links_are_cut]

    def dies_and_comes_back(self) -> None:
        """By SIGKILL, with what it had acknowledged."""
        self._server.kill()
        self._server.restart()


class _Watched(Deployment):
    def __init__(self, name: str, make: ServerFactory, stack: contextlib.ExitStack) -> None:
        super().__init__(name)
        binary = known(name.removesuffix("s"))
        self._servers = [make(binary, *BACKLOG, *KEPT) for _ in range(2)]
        # They are asked again and again, and what `client` gives stays open until the end.
        self._clients = {each.port: each.client() for each in self._servers}
        primary, replica = self._servers
        self._clients[replica.port].execute_command("REPLICAOF", primary.host, primary.port)
        self._group = stack.enter_context(sentinels(binary, primary))
        self._asked = self._group[0].client()
        self._until_whole()

    @property
    def end(self) -> str:
        return url(self._group)

    @property
    def whole(self) -> Server:
        return self._named(self._group[0])

    def _named(self, sentinel: Sentinel) -> Server:
        there = sentinel.primary()
        return next(each for each in self._servers if (each.host, each.port) == there)

    def _until_whole(self) -> None:
        def whole() -> bool:
            with contextlib.suppress(redis.RedisError):
                told = [each.told() for each in self._group]
                if not all(
                    each["num-other-sentinels"] == 2 and each["num-slaves"] for each in told
                ):
                    return False
                named = {self._named(each).port for each in self._group}
                if len(named) > 1:
                    return False
                (primary,) = named
                replica = next(each for each in self._servers if each.port != primary)
                role = self._clients[replica.port].info("replication")
                return (
                    role["role"] == "slave"
                    and int(role["master_port"]) == primary
                    and role["master_link_status"] == "up"
                )
            return False

        def told() -> object:
            servers = [
                self._clients[each.port].info("replication") for each in self._servers if each.alive
            ]
            return [each.told() for each in self._group], servers

        wait_for(lambda: len({self._named(each).port for each in self._group}) == 1, "one name")
        wait_for(whole, "a primary with its replica", told=told)

    def events(self, rng: random.Random) -> list[Event]:
        return [self.fails_over, self.dies, self.links_are_cut]

    def fails_over(self) -> None:
        """As an operator asks for it."""
        before = self.whole

        def over() -> bool:
            # Refused while another one is not over; one that comes to nothing is asked for again.
            if self.whole is before:
                with contextlib.suppress(redis.ResponseError):
                    self._asked.execute_command("SENTINEL", "FAILOVER", "main")
            return self.whole is not before

        wait_for(over, "a failover", every=0.2)
        self._until_whole()

    def dies(self) -> None:
        """The primary, by SIGKILL."""
        before = self.whole
        before.kill()
        wait_for(lambda: self.whole is not before, "a failover")
        before.restart()
        self._until_whole()


class _Cluster(Deployment):
    def __init__(
        self, name: str, make: ServerFactory, stack: contextlib.ExitStack, options: tuple[str, ...]
    ) -> None:
        super().__init__(name)
        release, _, primaries = name.partition("x")
        self._cluster = stack.enter_context(
            Cluster.start(
                known(release), *BACKLOG, *options, primaries=int(primaries), replicas=1, make=make
            )
        )
        self._atomic = self._moves_as_a_whole()

    @property
    def end(self) -> Cluster:
        return self._cluster

    whole = end

    def _moves_as_a_whole(self) -> bool:
        node = self._cluster.nodes[0]
        way = {"redis": "CLUSTER MIGRATION STATUS ALL", "valkey": "CLUSTER GETSLOTMIGRATIONS"}
        with contextlib.suppress(redis.ResponseError):
            node.client().execute_command(way[node.binary.flavour])
            return True
        return False

    def events(self, rng: random.Random) -> list[Event]:
        def cut(event: Callable[[random.Random], None]) -> Event:
            def one() -> None:
                event(rng)
                self._until_whole()

            one.__name__ = event.__name__
            return one

        found = [self.moves, self.moves_and_is_cancelled, self.fails_over, self.dies]
        if self._atomic:
            found += [self.moves_at_once, self.moves_at_once_and_is_cancelled]
        return [*map(cut, found), self.links_are_cut]

    def _until_whole(self) -> None:
        self._cluster.wait_until_whole()
        for primary in self._cluster.primaries:
            # Valkey takes no CLUSTER SETSLOT before a replica has it.
            wait_for(lambda: primary.client().wait(1, 100) > 0, "a replica")  # noqa: B023

    def _choice(self, rng: random.Random, most: int) -> tuple[list[int], Server]:
        """Some slots side by side, and another node."""
        here, there = rng.sample(self._cluster.primaries, 2)
        slots = self._cluster.slots_of(here)
        first = rng.randrange(max(len(slots) - most, 1))
        # Those of the end too: the engine's own keys are in the last one.
        if rng.random() < 0.3:
            first = max(len(slots) - most, 0)
        # The node keeps some: one that gives all away is a replica afterwards.
        most = min(most, len(slots) // 2)
        return slots[first : first + rng.randint(1, most)], there

    def moves(self, rng: random.Random) -> None:
        """By MIGRATE."""
        self._cluster.move(*self._choice(rng, SLOTS))

    def moves_and_is_cancelled(self, rng: random.Random) -> None:
        """By MIGRATE, a part of what was to move."""
        moving = self._cluster.moving(*self._choice(rng, SLOTS))
        time.sleep(rng.random() * 0.3)
        moving.cancel()

    def moves_at_once(self, rng: random.Random) -> None:
        """By the servers themselves: Valkey 9, Redis 8.4."""
        with contextlib.suppress(redis.ResponseError):  # slots in pieces
            self._cluster.move_atomically(*self._choice(rng, 500))

    def moves_at_once_and_is_cancelled(self, rng: random.Random) -> None:
        """Or not any more, where it has succeeded by then."""
        with contextlib.suppress(redis.ResponseError):
            ended = self._cluster.moving_atomically(*self._choice(rng, 2000))
            time.sleep(rng.random() * 0.05)
            self._cluster.cancel_moves()
            ended()

    def fails_over(self, rng: random.Random) -> None:
        """As an operator asks for it."""
        old = rng.choice(self._cluster.primaries)
        (replica, *_) = self._cluster.replicas_of(old)
        self._cluster.fail_over(replica)

    def dies(self, rng: random.Random) -> None:
        """A primary, by SIGKILL; what its replica did not have by then is lost with it."""
        old = rng.choice(self._cluster.primaries)
        (replica, *_) = self._cluster.replicas_of(old)
        old.kill()
        self._cluster.fail_over(replica, "TAKEOVER")
        old.restart()


@contextlib.contextmanager
def deployment(name: str, make: ServerFactory, *options: str) -> Iterator[Deployment]:
    """An end by its name (`Deployment`); `options` are those of a cluster's nodes."""
    with contextlib.ExitStack() as stack:
        if re.search(r"x\d+$", name):
            yield _Cluster(name, make, stack, options)
        elif name.endswith("s"):
            yield _Watched(name, make, stack)
        else:
            yield _Server(name, make)


class Trouble:
    """Events at some ends; `told` counts them, by kind and end."""

    def __init__(self, rng: random.Random, ends: dict[str, Deployment]) -> None:
        self._rng = rng
        self._ends = ends
        self.done: list[str] = []

    def one(self) -> None:
        """One event, of a kind and at a place that the seed gives."""
        side, end = self._rng.choice(list(self._ends.items()))
        event = self._rng.choice(end.events(self._rng))
        self.done.append(f"{side} {event.__name__}")
        event()

    @property
    def told(self) -> str:
        """How many of each kind there were."""
        counts = Counter(self.done)
        return f"{len(self.done)} events: " + ", ".join(
            f"{name} {count}" for name, count in sorted(counts.items())
        )
