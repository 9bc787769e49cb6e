"""A target with a record in place of transactions (`ext/position_records.pxi`), while all fails.

The traffic is what that form is for: single commands of one database, some that no second run
leaves as it was (INCR, APPEND, LPUSH, RENAME, a stored union), and now and then something that has
to be a transaction. Each run has links cut at seeded bytes, a target that refuses writes for a
while, one that restarts, workers killed: then both ends are compared key by key.

ENGINE_SEED gives other moments.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.errors import AuthError
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OwnKeys
from engine.model.position import StreamPosition, TargetPosition
from engine.transfer.target_claim import TargetClaim
from engine.wire import event_loop
from engine.wire.control_connection import admin
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic.link import Link
from tests.support.traffic.thread import WritingThread

SEED = os.environ.get("ENGINE_SEED", "31")
SOAK = bool(os.environ.get("ENGINE_SOAK"))
TROUBLES = 40 if SOAK else 8
BACKLOG = ("--repl-backlog-size", "64mb")
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "always")


class SingleCommands(WritingThread):
    """Single commands over a few hundred keys, a portion each 10 ms; `odd`: how likely a portion
    has a transaction, a script or a command of another database in it."""

    def __init__(self, server: Server, seed: str, odd: float = 0.01) -> None:
        super().__init__(server, "single commands")
        self.rng = random.Random(seed)
        self.odd = odd
        self.commands = 0

    def _run(self) -> None:
        link = Link(self._address)
        while not self._stopping.wait(0.01):
            words = [self._words() for _ in range(self.rng.randrange(1, 25))]
            if self.rng.random() < self.odd:
                words += self.rng.choice(
                    [
                        [(b"MULTI",), (b"INCR", b"in:multi"), (b"INCR", b"n:1"), (b"EXEC",)],
                        [(b"EVAL", b"return redis.call('INCR', KEYS[1])", b"1", b"n:2")],
                        [(b"SELECT", b"3"), (b"INCR", b"other"), (b"SELECT", b"0")],
                    ]
                )
            for each in words:
                link.queue(each[0].decode().lower(), each)
            link.flush()
            self.commands += len(list(link.replies(0)))
        link.close()

    def _disconnect(self) -> None:
        """The link ends with the thread."""

    def _words(self) -> tuple[bytes, ...]:
        rng = self.rng
        n = b"%d" % rng.randrange(100)
        return rng.choice(
            [
                (b"INCR", b"n:" + n),
                (b"INCRBY", b"n:" + n, b"7"),
                (b"APPEND", b"text:" + n, b"x"),
                (b"LPUSH", b"list:" + n, b"%d" % rng.randrange(1000)),
                (b"RPOP", b"list:" + n),
                (b"SADD", b"set:" + n, b"%d" % rng.randrange(50)),
                (b"SUNIONSTORE", b"union:" + n, b"set:" + n, b"set:%d" % rng.randrange(100)),
                (b"RENAME", b"text:" + n, b"text:%d" % rng.randrange(100)),
                (b"HINCRBY", b"hash:" + n, b"%d" % rng.randrange(9), b"1"),
                (b"DEL", b"list:" + n, b"text:" + n),
                (b"SET", b"value:" + n, b"v" * rng.randrange(300)),
            ]
        )


def steer(
    run: Run, source: Server, target: Server, between: Proxy, records: list[int], *, far: bool
) -> None:
    """Follow through the troubles; `records`: how many batches went with one before each."""
    rng = random.Random(f"{SEED} {far}")
    run.following()
    if far:
        between.delay(0.02)
        between.cut_now()

    def sent() -> int:
        follower = run.work._way.lanes[0]._follower  # type: ignore[union-attr]
        return follower.applier.records if follower is not None else 0

    with SingleCommands(source, f"{SEED} {far}") as traffic:
        troubles = ["cut", "up", "down", "refuses", "restart"]
        for turn in range(TROUBLES):
            run.wait_for(lambda: sent() > 3, "batches with records")
            records.append(sent())
            trouble = troubles[turn] if turn < len(troubles) else rng.choice(troubles)
            connections = between.connections
            if trouble == "cut":
                between.cut_now()
            elif trouble in ("up", "down"):
                between.cut_after(rng.randrange(rng.choice([200, 20_000])), trouble)  # type: ignore[arg-type]
            elif trouble == "refuses":
                client = target.client()
                client.config_set("maxmemory", 1)
                time.sleep(rng.random() * 0.2)
                client.config_set("maxmemory", 0)
                continue
            else:
                target.kill()
                target.restart()
            run.wait_for(lambda n=connections: between.connections > n, "a new link")  # type: ignore[misc]
            time.sleep(rng.random() * 0.1)
        traffic.stop()
    between.delay(0.0)
    run.cut_over()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_records_through_every_trouble(server_factory: ServerFactory, far: bool) -> None:
    source = server_factory(known("redis-7.0"), *BACKLOG)
    target = server_factory(known("redis-7.0"), *APPEND_ONLY)
    records: list[int] = []
    with (
        Proxy(target.host, target.port) as between,
        migrating(source, between, retry_for=60.0, position_form="record", timeout=200.0) as run,
    ):
        steer(run, source, target, between, records, far=far)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert len(records) == TROUBLES, run.events
    assert_tidy(target)
    assert_settled(source, target, 5)
    # Every one of them was mended from the position on.
    assert source.client().info("stats")["sync_full"] == 1, run.events


@pytest.mark.timeout(300)
def test_workers_killed_between_records(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """What a dead worker has begun the next one reads again; no key is doubled, none is lost."""
    source = server_factory(known("redis-7.0"), *BACKLOG)
    target = server_factory(known("redis-7.0"))
    cli = Cli(state_url, tmp_path)
    cli.environment["STARTMIGRATION_POSITION_FORM"] = "record"
    migration = Migration(cli, f"{SEED} records")
    watched = target.client()
    begun = 0
    try:
        migration.register(target)
        migration.start(source, "--source-type", "replica")
        with SingleCommands(source, f"{SEED} kills") as traffic:
            for turn in range(12 if SOAK else 3):
                migration.wait_for(lambda found: found["Phase"] == "FOLLOW")
                deadline = time.monotonic() + 60
                while b" begun " not in (watched.get("startmigration:position") or b""):
                    assert time.monotonic() < deadline, migration.story()
                    time.sleep(0.01)
                migration.kill(within=0.3)
                begun += b" begun " in (watched.get("startmigration:position") or b"")
                migration.resume(verb=turn % 2 == 0)
            traffic.stop()
        migration.wait_for(lambda found: found["LagBytes"] == 0 and found["CanComplete"])
        migration.complete()
        assert_settled(source, target, 5)
        assert begun > 1, "few were killed with something begun"
        assert source.client().info("stats")["sync_full"] == 1, migration.story()
    finally:
        migration.close()


def test_a_user_who_may_not_end_connections_has_transactions(
    server_factory: ServerFactory,
) -> None:
    """Records have no WATCH: they are written only where the next engine can end this one."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    admin_client = target.client()
    admin_client.acl_setuser(
        "mover",
        enabled=True,
        passwords=["+pw"],
        keys=["*"],
        channels=["*"],
        commands=["+@all", "-client|kill"],
    )
    seen: set[bool] = set()
    url = f"redis://mover:pw@{target.host}:{target.port}"
    with migrating(source, url, position_form="record") as run:
        run.following()
        with SingleCommands(source, "rights", odd=0.0) as traffic:
            for _ in range(40):
                value = admin_client.get("startmigration:position") or b""
                seen.add(b" begun " in value)
                time.sleep(0.02)
            traffic.stop()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert seen == {False}
    assert_settled(source, target, 5)


def test_a_target_that_is_emptied_gets_no_record(server_factory: ServerFactory) -> None:
    """XX sets none where there is none: the engine sees that, and says what it finds."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    client = target.client()
    with migrating(source, target, position_form="record") as run:
        run.following()
        with SingleCommands(source, "emptied", odd=0.0) as traffic:
            run.wait_for(
                lambda: b" begun " in (client.get("startmigration:position") or b""), "a record"
            )
            client.flushall()
            run.wait_for(lambda: "lost this migration" in str(run.events), "the loss")
            traffic.stop()
        run.stop()
    assert run.report.status != "done"
    # What is there is a claim, or the position of another full sync.
    assert b" begun " not in (client.get("startmigration:position") or b"")


@pytest.mark.parametrize("denied", ["client|list", "client|kill"])
def test_a_claim_behind_records_needs_the_right_to_end_connections(
    server_factory: ServerFactory, denied: str
) -> None:
    """What the engine before has under way is held back by nothing else."""
    target = server_factory(known("redis-7.0"))
    server = target.client()
    server.acl_setuser(
        "mover", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", f"-{denied}"]
    )
    # A connection that would have to be ended.
    other = target.client(client_name="startmigration:t:old:1")
    other.ping()
    plain = TargetPosition("t", StreamPosition("r", 5, 0, False), "old")

    async def still_ours() -> None:
        """Nobody else has it."""

    async def claim() -> TargetPosition:
        url = f"redis://mover:pw@{target.host}:{target.port}"
        async with admin(Endpoint.parse(url), timeout=5) as side:
            return await TargetClaim(OwnKeys("t"), "new", still_ours).take(side)

    server.set("startmigration:position", plain.encode())
    claimed = event_loop.run(claim())
    assert claimed == replace(plain, engine="new", serial=claimed.serial)
    assert claimed.serial
    server.set("startmigration:position", replace(plain, begun=9).encode())
    with pytest.raises(AuthError, match="end the connections"):
        event_loop.run(claim())
    server.execute_command("ACL", "SETUSER", "mover", "+client")
    assert event_loop.run(claim()).begun == 9
    names = {each["name"] for each in cast("list[dict[str, str]]", server.client_list())}
    assert "startmigration:t:old:1" not in names
