"""Ends that Sentinels watch: found, followed through failovers, and named when they are not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from benches.support.sentinels import Sentinel, sentinels, url
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import AuthError, LinkError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import ENDS
from engine.wire import sentinel_primary
from engine.wire.control_connection import admin
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

BACKLOG = ("--repl-backlog-size", "16mb", "--repl-ping-replica-period", "1")


@dataclass
class Watched:
    """A primary with a replica, and the Sentinels that watch them."""

    primary: Server
    replica: Server
    group: list[Sentinel]

    @property
    def url(self) -> str:
        password = self.primary.password
        return url(self.group, f":{password}@" if password else "")

    def failed_over(self) -> None:
        """Until each Sentinel names the replica."""
        there = (self.replica.host, self.replica.port)
        wait_for(lambda: all(each.primary() == there for each in self.group), "a failover")


@contextlib.contextmanager
def watched(
    name: str, make: ServerFactory, *, password: str | None = None, own: str | None = None
) -> Iterator[Watched]:
    """`password` is the servers', `own` the Sentinels'."""
    binary = known(name)
    primary, replica = (make(binary, *BACKLOG, password=password) for _ in range(2))
    replica.client().execute_command("REPLICAOF", primary.host, primary.port)
    with sentinels(binary, primary, password=own) as group:
        wait_for(lambda: all(map(_whole, group)), "Sentinels that know each other")
        yield Watched(primary, replica, group)


def _whole(one: Sentinel) -> bool:
    told = one.told()
    return told["num-other-sentinels"] == 2 and told["num-slaves"] == 1


class Writer:
    """Writes `n` to `key:n` at the primary that a Sentinel names, as a client does that waits for
    the replica's word: what is acknowledged so outlives a failover. (The engine is a replica too,
    and WAIT counts it: two it must be.)"""

    def __init__(self, deployment: Watched) -> None:
        self._deployment = deployment
        self.acknowledged = 0
        self.refused = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        client: redis.Redis | None = None
        while not self._over.is_set():
            try:
                if client is None:
                    host, port = self._deployment.group[0].primary()
                    client = redis.Redis(
                        host, port, password=self._deployment.primary.password, socket_timeout=2
                    )
                with client.pipeline(transaction=False) as pipe:
                    n = self.acknowledged + 1
                    pipe.set(f"key:{n}", n).incr("sum", n)
                    # Behind the failover what stands at the new primary counts.
                    last = port == self._deployment.replica.port
                    replies = (pipe if last else pipe.wait(2, 500)).execute()
                if last or replies[2] == 2:
                    self.acknowledged = n
            except redis.ResponseError:
                self.refused += 1
                client = None
                self._over.wait(0.05)
            except redis.RedisError:
                client = None
                self._over.wait(0.05)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def ended(run: Run) -> None:
    """Give the word until the cut-over comes off."""
    while run.progress.phase not in ENDS:
        run.wait_for(lambda: run.progress.can_complete or run.progress.phase in ENDS, "a gate")
        before = len(run.events)
        run.complete()
        run.wait_for(
            lambda: run.progress.phase in ENDS or len(run.events) > before,  # noqa: B023
            "what becomes of it",
        )


def _tells_of(run: Run, server: Server) -> bool:
    return any(f"Sentinel names {server.host}:{server.port} " in event for event in run.events)


def assert_all_there(target: Server, writer: Writer) -> None:
    client = target.client()
    wanted = [f"key:{n}" for n in range(1, writer.acknowledged + 1)]
    found: Sequence[bytes | None] = client.mget(wanted) if wanted else []
    assert [n for n, value in enumerate(found, 1) if value != str(n).encode()] == []


@pytest.mark.parametrize(
    ("name", "how"),
    [("redis-7.0", "killed"), ("redis-7.0", "frozen"), ("redis-7.0", "ordered"),
     ("valkey-9", "killed")],
)  # fmt: skip
def test_the_sources_primary_fails_over(name: str, how: str, server_factory: ServerFactory) -> None:
    """It is followed to the server that the Sentinels name, and what clients that wait for the
    replica were promised is on the target; the fence stands at the new primary."""
    target = server_factory(known("redis-7.0" if name.startswith("redis") else name))
    with watched(name, server_factory, password="data", own="sentinels") as source:
        source.primary.client().mset({f"before:{n}": n for n in range(500)})

        with Writer(source) as writer:
            with migrating(source.url, target) as run:
                run.following()
                run.wait_for(lambda: writer.acknowledged > 200, "writes")
                if how == "ordered":
                    order = "SENTINEL", "FAILOVER", "main"
                    source.group[1].client().execute_command(*order)
                else:
                    (source.primary.kill if how == "killed" else source.primary.freeze)()
                source.failed_over()
                if how == "frozen":
                    # It does not know yet that it is the primary no more.
                    run.wait_for(lambda: _tells_of(run, source.replica), "an event")
                    source.primary.thaw()
                before = writer.acknowledged
                run.wait_for(
                    lambda: writer.acknowledged > before + 200, "writes at the new primary"
                )
                ended(run)
            assert run.report.status == "done", (run.report.errors, run.events)
            wait_for(lambda: writer.refused, "a write that is refused")
        assert _tells_of(run, source.replica), run.events
        assert run.report.sealed_at.endswith(f":{source.replica.port}"), run.report.sealed_at
        assert_all_there(target, writer)
        assert_settled(source.replica, target)
    assert_tidy(target)


def test_a_former_primary_that_goes_on_by_itself(server_factory: ServerFactory) -> None:
    """It answers us as before, and the Sentinels name another one: nothing is read from it any
    more, neither the stream nor the keys that are read again."""
    target = server_factory(known("redis-7.0"))
    with watched("redis-7.0", server_factory) as source:
        former, new, there = source.primary.client(), source.replica.client(), target.client()
        former.rpush("k", "a")
        with migrating(source.url, target) as run:
            run.in_sync(source.primary)
            new.execute_command("REPLICAOF", "NO", "ONE")
            for each in source.group:
                client = each.client()
                client.execute_command("SENTINEL", "REMOVE", "main")
                place = source.replica.host, source.replica.port
                client.execute_command("SENTINEL", "MONITOR", "main", *place, 2)
            run.wait_for(lambda: _tells_of(run, source.replica), "an event")
            new.set("marker", 1)
            run.wait_for(lambda: there.get("marker") == b"1", "the new primary's writes")
            # The target refuses the next command, so that its key is read again.
            there.delete("k")
            there.set("k", "no list")
            new.rpush("k", "b", "c")
            former.set("later", "lost")
            run.wait_for(lambda: there.type("k") == b"list", "a reading")
            assert there.lrange("k", 0, -1) == [b"a", b"b", b"c"]
            run.cut_over(source.replica)
        assert run.report.status == "done", (run.report.errors, run.events)
        assert not there.exists("later")
        assert_settled(source.replica, target)


@pytest.mark.parametrize("how", ["killed", "ordered"])
def test_the_targets_primary_fails_over(how: str, server_factory: ServerFactory) -> None:
    """What the promoted replica lacks is brought there; nothing is applied twice."""
    source = server_factory(known("redis-7.0"), *BACKLOG)
    source.client().mset({f"before:{n}": n for n in range(500)})
    over = threading.Event()

    def write() -> None:
        client, n = source.client(socket_timeout=30), 0
        while not over.is_set():
            n += 1
            with contextlib.suppress(redis.ResponseError):
                client.pipeline().incr("sum", n).rpush("list", n).execute()

    with watched("redis-7.0", server_factory) as target:
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        try:
            with migrating(source, target.url) as run:
                run.following()
                run.wait_for(lambda: source.client().llen("list") > 200, "writes")
                if how == "ordered":
                    order = "SENTINEL", "FAILOVER", "main"
                    target.group[1].client().execute_command(*order)
                else:
                    target.primary.kill()
                target.failed_over()
                before = source.client().llen("list")
                run.wait_for(lambda: source.client().llen("list") > before + 200, "more writes")
                ended(run)
        finally:
            over.set()
            thread.join(60)
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_settled(source, target.replica)
        numbers = [int(each) for each in target.replica.client().lrange("list", 0, -1)]
        assert numbers == sorted(set(numbers))
        assert_tidy(target.replica)


def test_what_sentinels_refuse(server_factory: ServerFactory, tmp_path: Path) -> None:
    """Each is said by name, with what to do; and nothing is dialled that was not named."""
    with watched("redis-7.0", server_factory, password="data", own="sentinels") as source:
        nodes = ",".join(f"{each.host}:{each.port}" for each in source.group)

        def asked(text: str, credentials: Credentials = Credentials()) -> str:  # noqa: B008
            async def ask() -> str:
                endpoint = credentials.apply(Endpoint.parse(text))
                sentinel_primary.forget(endpoint)
                async with admin(endpoint, timeout=5, fault="source") as end:
                    await end.call("PING")
                    return end.endpoint.address

            return asyncio.run(ask())

        here = f"{source.primary.host}:{source.primary.port}"
        assert asked(source.url) == here
        # 1. Their own password, and the data's.
        with pytest.raises(AuthError, match="no Sentinel says where main is"):
            asked(f"redis+sentinel://:data@{nodes}/main")
        with pytest.raises(AuthError, match=here):
            asked(f"redis+sentinel://{nodes}/main?sentinel_password=sentinels")
        # 2. A name that they do not watch.
        with pytest.raises(LinkError, match="No such master") as unknown:
            asked(f"redis+sentinel://:data@{nodes}/other?sentinel_password=sentinels")
        assert "SENTINEL MASTERS" in unknown.value.remedy
        # 3. Both by entries of the configuration: by the name, and by a Sentinel's address.
        entries = Credentials.read(
            [
                {"host": "main", "password": "of a server of that name"},
                {"host": "127.0.0.1:*", "sentinel": "other", "password": "other"},
                {"host": "127.0.0.1:*", "sentinel": "main", "password": "data"},
                {"host": "127.0.0.1:*", "password": "sentinels"},
            ],
            "a test",
        )
        assert asked(f"redis+sentinel://{nodes}/main", entries) == here
        # 4. Some of them are gone, then all.
        for each in source.group[:2]:
            each.kill()
        assert asked(source.url) == here
        source.group[2].kill()
        with pytest.raises(LinkError, match="no Sentinel says where main is") as none:
            asked(source.url)
        assert "sentinels" not in str(none.value).replace("Sentinels", "")
