"""Keys of a target that are others': rules leave them, and nothing of them may change.

neighbours = Neighbours(target, rules)      # plants them, of each kind
...
neighbours.assert_untouched()
assert_image(source, target, rules)         # and within the rules both ends are the same
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import redis

from benches.support.compare import Comparison, compare
from benches.support.servers import Server
from engine.model.rules import Rules
from tests.support.comparison import counted
from tests.support.own_keys import OWN_PREFIX
from tests.support.traffic.words import POOL

DATABASES = (0, 1, 2, 3)
LIBRARY = "#!lua name=neighbour\nredis.register_function('neighbour', function() return 1 end)"
_SECONDS = 3000
# The clock is read a moment before expire times; a migration extends them by a hundred years.
_SAME_SECONDS = 60

Place = tuple[int, bytes]


class Neighbours:
    """The keys that were planted: names that the source writes too, and the likes of them, in each
    database, of each type, with expire times near and far and without."""

    def __init__(self, target: Server, rules: Rules, others: Iterable[bytes] = ()) -> None:
        """`others`: names beside those of the traffic."""
        self._target = target
        self._takes = rules.compiled().takes
        names = [b"%s:%d" % (each.encode(), n) for each in POOL for n in range(5)]
        names += others
        names += [name[:-1] for name in names] + [b"", b"user", b"user:", b"usr:1", b"\xff:1"]
        for db in DATABASES:
            pipe = target.client(db).pipeline(transaction=False)
            for at, name in enumerate(dict.fromkeys(names)):
                if self._takes(db, name) is False:
                    self._plant(pipe, name, at)
            pipe.execute()
        if self._has_functions:
            target.client().function_load(LIBRARY)
        self.planted = self._found()
        """Of each its value, as DUMP gives it, and its expire time."""
        assert self.planted

    def _plant(self, client: redis.client.Pipeline, name: bytes, at: int) -> None:
        make = (
            lambda: client.set(name, b"neighbour %d" % at),
            lambda: client.rpush(name, *range(at % 7 + 1)),
            lambda: client.sadd(name, b"one", b"two"),
            lambda: client.hset(name, mapping={"a": "1", "b": "2"}),
            lambda: client.zadd(name, {"m": at}),
            lambda: client.xadd(name, {"f": "v"}, id="1-1"),
        )
        make[at % len(make)]()
        if at % 3 == 1:
            client.pexpireat(name, int((time.time() + _SECONDS) * 1000))
        elif at % 3 == 2:
            # As far as an expire time that a migration has extended.
            client.pexpireat(name, int((time.time() + 80 * 365 * 86_400) * 1000))

    @property
    def _has_functions(self) -> bool:
        return int(str(self._target.client().info("server")["redis_version"]).split(".")[0]) >= 7

    def _found(self) -> dict[Place, tuple[bytes, int]]:
        found: dict[Place, tuple[bytes, int]] = {}
        for db in DATABASES:
            client = self._target.client(db)
            keys = [
                key
                for key in dict.fromkeys(client.scan_iter(count=1000))
                if not key.startswith(OWN_PREFIX) and self._takes(db, key) is False
            ]
            pipe = client.pipeline(transaction=False)
            pipe.time()
            for key in keys:
                pipe.dump(key).pttl(key)
            (now, _), *replies = pipe.execute()
            for key, value, left in zip(keys, replies[::2], replies[1::2], strict=True):
                found[db, key] = value, -1 if left < 0 else int(now) + left // 1000
        return found

    def assert_untouched(self) -> None:
        """Each is as it was, there is no other one, and so are the libraries of functions."""
        now = self._found()
        gone = self.planted.keys() - now.keys()
        more = now.keys() - self.planted.keys()
        changed = [
            place
            for place in self.planted.keys() & now.keys()
            if self.planted[place][0] != now[place][0]
            or abs(self.planted[place][1] - now[place][1]) > _SAME_SECONDS
        ]
        wrong = [f"gone {gone}"] * bool(gone) + [f"more {more}"] * bool(more)
        wrong += [f"changed {changed}"] * bool(changed)
        assert not wrong, wrong
        if self._has_functions:
            names = [each[b"library_name"] for each in _libraries(self._target)]
            assert names == [b"neighbour"]

    def assert_alone(self) -> None:
        """The same, and nothing of the engine is left, behind its end."""
        self.assert_untouched()
        for db in DATABASES:
            assert not list(self._target.client(db).scan_iter(match=OWN_PREFIX + b"*"))


def _libraries(server: Server) -> list[dict[bytes, object]]:
    client = server.client(protocol=2)
    client.response_callbacks.clear()
    rows = client.execute_command("FUNCTION", "LIST")
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]


def within(rules: Rules, found: Comparison, *, followed: bool = False) -> Comparison:
    """What of it is about keys that the rules take. While it is `followed` expire times at the
    target may be later."""
    takes = rules.compiled().takes
    return Comparison(
        found.keys,
        [
            each
            for each in found.different
            if takes(each.db, each.key) and not (followed and each.what == "ttl")
        ],
        [place for place in found.missing if takes(*place)],
        [place for place in found.extra if takes(*place) and not place[1].startswith(OWN_PREFIX)],
    )


def assert_image(
    source: Server, target: Server, rules: Rules, timeout: float = 90.0, *, followed: bool = False
) -> None:
    """Within the rules both ends come to hold the same. The source is at rest. `followed`: as in
    `within`."""
    until = time.monotonic() + timeout
    while True:
        client = source.client(protocol=2)
        client.response_callbacks.clear()
        found = compare(source.url, target.url, dbs=DATABASES)
        found = counted(within(rules, found, followed=followed), client, either=False)
        if found.equal:
            return
        assert time.monotonic() < until, found.describe()
        time.sleep(0.1)
