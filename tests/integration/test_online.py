"""The online path between real servers: snapshot, follow, cut over, while writes go on."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, all_pairs, binaries, pair_id
from engine.model.progress import Phase
from engine.model.report import printable_key
from engine.model.server_capabilities import ServerCapabilities
from engine.transfer.checkpoint_store import MemoryCheckpoint
from tests.support.comparison import assert_settled, settle
from tests.support.library import copied, migrated, migrating
from tests.support.own_keys import assert_tidy, importing
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters, Traffic

RATE = 2500.0


# It would take the counters with it.
WITHOUT: tuple[str, ...] = ("flushall",)


def knows_values(source: Binary, target: Binary) -> bool:
    """Whether the target has a form for every value that the source writes."""
    there, here = (ServerCapabilities(each.flavour, each.version) for each in (source, target))
    return here.field_ttls or not there.field_ttls


def some(pairs: list[tuple[Binary, Binary]]) -> list[tuple[Binary, Binary]]:
    """Each source and each target of them once, as far as that goes; in a soak all of them."""
    if os.environ.get("ENGINE_SOAK"):
        return pairs
    found: list[tuple[Binary, Binary]] = []
    for source in binaries():
        taken = Counter(target for _, target in found)
        targets = [target for each, target in pairs if each == source]
        # Rather into another one, and rather into one of the other kind.
        targets.sort(key=lambda each: (taken[each], each == source, each.flavour == source.flavour))
        found += [(source, target) for target in targets[:1]]
    return found


CARRIED = some([pair for pair in all_pairs() if knows_values(*pair)])
REFUSED = some([pair for pair in all_pairs() if not knows_values(*pair)])


@pytest.mark.parametrize("pair", CARRIED, ids=pair_id)
def test_everything_is_carried_under_traffic(
    pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    """A target that knows every type; not every command, if it is the older one."""
    source, target = server_factory(pair[0]), server_factory(pair[1])
    without = WITHOUT
    if target.binary.version < (6, 2, 0) <= source.binary.version:
        # There an empty source leaves the destination as it was.
        without += ("georadius", "georadiusbymember")
    if target.binary.version < (7, 0, 0) <= source.binary.version:
        # It knows no functions, which keeps the cut-over from coming.
        without += ("function|load", "function|restore")
    options: dict[str, Any] = {"without": without, "rate": RATE}
    Traffic(source, "before", **{**options, "rate": None}, limit=2000).start().join()
    traffic = Traffic(source, "meanwhile", **options)

    with traffic, migrating(source, target) as run:
        run.following()
        time.sleep(0.8)
        run.wait_for(lambda: traffic.commands > 500, "traffic")
        traffic.stop()
        run.cut_over()
    report = run.report
    assert report.status == "done", (report.errors, run.events)
    assert (report.full_syncs, report.partial_syncs) == (1, 0)
    assert report.commands > 300
    assert report.applied_offset == report.source_offset
    assert_settled(source, target, 2)
    assert_tidy(target)


@pytest.mark.parametrize("pair", REFUSED, ids=pair_id)
def test_what_the_target_does_not_know_is_named(
    pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    """Values of newer types stay behind, each with its reason, and the cut-over does not come."""
    source, target = server_factory(pair[0]), server_factory(pair[1])
    Traffic(source, "before", without=WITHOUT, limit=2000).start().join()
    counters = Counters(source)

    with migrating(source, target) as run:
        run.following()
        # Not before: their list's value would be of a type that some targets do not know.
        counters.start()
        time.sleep(0.2)
        counters.stop()
        assert "keys were not migrated" in run.refused()
        assert run.progress.phase is Phase.FOLLOW
        run.complete(force=True)
    report = run.report
    assert report.status == "stopped"
    assert report.errors[0].startswith("aborted by force, not cut over: ")
    found = settle(source, target, 0).keys
    differ = {(each.db, each.key) for each in found.different} | {*found.missing, *found.extra}
    named = {(each.db, each.key) for each in report.not_carried}
    differ_names = {(db, printable_key(key)) for db, key in differ}
    assert differ_names <= named
    # Whatever else is named has expired by now, or is about to.
    for db, key in named - differ_names:
        assert -2 <= source.client(db).pttl(key) < 5000, (db, key)
        assert source.client(db).pttl(key) != -1, (db, key)
    strange = [each for each in report.not_carried if "does not know values" not in each.reason]
    assert not strange
    assert counters.check(target) == []
    assert_tidy(target, left=True)


# --- Commands that the target does not know ---


def server_of(server_factory: ServerFactory, name: str, *options: str) -> Server:
    """The first server whose name begins so ("redis-7.0")."""
    return server_factory(known(name), *options)


COPIES = (
    ("ZADD", "zset", 1, "m", 2, "n", 3, "o"),
    ("SADD", "set", "a", "b"),
    ("SADD", "stale", "old"),
    ("COPY", "set", "stale", "REPLACE"),
    # What reads the key that was not copied, in the same breath.
    ("SUNIONSTORE", "union", "stale", "other"),
    ("RENAME", "union", "union2"),
    ("MOVE", "union2", 1),
    ("ZRANGESTORE", "best", "zset", 0, 1),
    ("COPY", "zset", "zset", "DB", 1),
    ("EXPIRE", "best", 1000),
)
FIELDS = (
    # Too long for a listpack, whose type tells of field TTLs that were there once.
    ("HSET", "hash", "f", "v", "g", "w" * 200),
    ("HEXPIRE", "hash", 1000, "FIELDS", 1, "f"),
    ("HPERSIST", "hash", "FIELDS", 1, "f"),
)
DEADLINES = (("SET", "text", "value", "EX", 1000), ("SET", "text", "again", "EX", 100, "GET"))


@pytest.mark.parametrize(
    ("names", "commands", "repaired"),
    [
        (("redis-6.2", "redis-6.0"), COPIES, 2),
        (("redis-8.0", "redis-7.0"), FIELDS, 1),
        (("valkey-9", "valkey-8.1"), FIELDS, 1),
        # These are told to an older target in words that it knows.
        (("redis-7.0", "redis-6.0"), DEADLINES, 0),
    ],
    ids=["COPY", "HEXPIRE on Redis", "HEXPIRE on Valkey", "SET PXAT"],
)
def test_commands_that_the_target_does_not_know(
    server_factory: ServerFactory,
    names: tuple[str, str],
    commands: tuple[tuple[Any, ...], ...],
    repaired: int,
) -> None:
    """What they change is read from the source, and what others made of it as well."""
    source, target = (server_of(server_factory, name) for name in names)
    client = source.client()

    def write() -> None:
        # In one packet, so that they come in one batch.
        pipe = client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        pipe.execute()

    with migrating(source, target) as run:
        run.following()
        for _ in range(5):
            write()
            time.sleep(0.05)
        run.cut_over()
    assert run.report.status == "done", run.report.errors
    assert run.report.repaired_keys >= repaired
    assert run.report.not_carried == ()
    assert run.report.left_out == ()
    assert_settled(source, target, 2)
    assert_tidy(target)


# --- Deadlines ---


@pytest.mark.parametrize("name", ["redis-7.0", "valkey-8.1", "valkey-9"])
@pytest.mark.parametrize("naive", [False, True], ids=["ours", "naive"])
def test_a_deadline_that_is_extended_while_the_target_is_away(
    server_factory: ServerFactory, name: str, naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key with seconds to live, extended three times a second: alive at the source all along."""
    source, target = server_of(server_factory, "redis-7.0"), server_of(server_factory, name)
    if naive:
        # Deadlines as they come, and a target that obeys them: what a plain replayer does.
        monkeypatch.setattr("engine.transfer.ttl_guard.EXTEND_MS", 0)
        monkeypatch.setattr(ServerCapabilities, "import_mode", False)
    client = source.client()
    client.set("session", "is alive", ex=3)
    client.set("lasting", "x", ex=5000)
    client.set("renamed", "x", px=700_000)
    seen: list[Any] = []
    over = threading.Event()

    def extend() -> None:
        while not over.wait(0.3):
            client.expire("session", 3)
        client.expire("session", 1000)
        client.rename("renamed", "found")

    with (
        Proxy(target.host, target.port) as proxy,
        migrating(source, proxy, **({"gate_in_sync": None} if naive else {})) as run,
    ):
        extending = threading.Thread(target=extend)
        extending.start()
        run.following()
        proxy.stall()
        time.sleep(4)
        assert client.exists("session")
        seen.append(importing(target))
        proxy.stall(False)
        time.sleep(0.5)
        over.set()
        extending.join()
        run.cut_over()
    assert run.report.status == "done", run.report.errors
    there = target.client().exists("session")
    if naive:
        assert not there
        return
    assert seen[0] == (None if name.startswith("redis") else "yes")
    assert there
    assert_settled(source, target, 2, ttl_bound_ms=50)
    assert_tidy(target)


# --- The choice of the way ---


@pytest.mark.parametrize("how", ["renamed", "denied", "match"])
def test_auto_scans_where_it_cannot_follow(server_factory: ServerFactory, how: str) -> None:
    renamed = ("--rename-command", "PSYNC", "hidden") if how == "renamed" else ()
    source = server_of(server_factory, "redis-7.0", *renamed)
    # Its import mode is entered before the source refuses.
    target = server_of(server_factory, "valkey-8.1")
    client, url = source.client(), source.url
    client.mset({f"key:{n}": "v" for n in range(50)} | {f"other:{n}": "v" for n in range(50)})
    options: dict[str, Any] = {}
    if how == "denied":
        client.acl_setuser(
            "mover", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-psync"]
        )
        url = f"redis://mover:pw@{source.host}:{source.port}"
    if how == "match":
        options["match"] = "key:*"
    run = copied(url, target, source_type="auto", **options)
    assert run.report.status == "done", run.report.errors
    assert run.report.source_type == "scan"
    assert target.client().dbsize() == (50 if how == "match" else 100)
    told = [event for event in run.events if "the source is scanned" in event]
    assert len(told) == 1
    assert ("--match" if how == "match" else "PSYNC") in told[0]
    assert_tidy(target)


# --- The source's own settings ---


def test_compression_is_off_for_the_snapshot_alone(server_factory: ServerFactory) -> None:
    source = server_of(server_factory, "valkey-8.1")
    target = server_of(server_factory, "valkey-8.1")
    client, store = source.client(), MemoryCheckpoint()
    pipe = client.pipeline(transaction=False)
    for n in range(3000):
        pipe.set(f"key:{n}", str(n) * 100)
    pipe.execute()

    def compression() -> str:
        return client.config_get("rdbcompression")["rdbcompression"]

    with Proxy(target.host, target.port) as proxy:
        proxy.throttle(200_000)

        with migrating(source, proxy, checkpoints=store, tune_source=True) as run:
            run.reaches(Phase.SNAPSHOT)
            assert compression() == "no"
            run.stop()
        assert run.report.status == "stopped"
        assert compression() == "yes"

        with migrating(source, proxy, checkpoints=store, tune_source=True) as run:
            run.reaches(Phase.SNAPSHOT)
            assert compression() == "no"
            # As an engine leaves it that was killed: it tidies nothing up.
            run.work._way.lanes[0]._tuning.untune = _nothing  # type: ignore[union-attr, method-assign]
            run.stop()
        assert compression() == "no"

    with migrating(source, target, checkpoints=store, tune_source=True) as run:
        run.following()
        assert compression() == "yes"
        run.cut_over()
    assert run.report.status == "done", run.report.errors
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_a_lone_write_need_not_wait_for_the_next_one(
    binary: Binary, server_factory: ServerFactory
) -> None:
    """Whatever is to be looked at from then on: nothing else comes that would wake us up."""
    options = ("--repl-ping-replica-period", "3600")
    source, target = server_factory(binary, *options), server_factory(binary)
    source.client().set("first", 1)

    with migrating(source, target) as run:
        run.following()
        follower = run.work._way.lanes[0]._follower  # type: ignore[union-attr]
        assert follower is not None
        trust = follower.trust
        members = ("every_key", "ttls", "field_ttls", "field_counts", "none")
        for turn, member in enumerate(members):
            if member != "none":
                setattr(trust, member, True)
                trust.plain = False
            source.client().set(f"lone:{turn}", turn)
            run.wait_for(
                lambda turn=turn: target.client().get(f"lone:{turn}") == str(turn).encode(),
                member,
                5.0,
            )
            trust._keep_up()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)


async def _nothing() -> None:
    pass


def test_the_report_has_the_most_that_waited(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().set("before", 1)

    def write() -> None:
        with source.client().pipeline(transaction=False) as pipe:
            for n in range(300):
                pipe.set(f"key:{n}", "x" * 100_000)
            pipe.execute()

    with Proxy(target.host, target.port) as proxy, migrating(source, proxy) as run:
        run.following()
        proxy.stall()
        write()
        run.wait_for(lambda: run.progress.spool_bytes > 8 << 20, "bytes that wait")
        proxy.stall(False)
        run.cut_over()
        assert run.progress.spool_bytes == 0
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.spool_bytes > 8 << 20


def test_a_field_that_passed_before_the_command_that_kept_its_deadline(
    server_factory: ServerFactory,
) -> None:
    """HINCRBY keeps a field's deadline; on a target that is behind the field has gone by then, and
    would come back without one."""
    source, target = (server_of(server_factory, "redis-8.0") for _ in range(2))
    client = source.client()
    client.hset("hash", mapping={"f": 1, "lasts": 1})

    with Proxy(target.host, target.port) as proxy, migrating(source, proxy) as run:
        run.following()
        client.execute_command("HPEXPIRE", "hash", 5000, "FIELDS", 1, "f")
        over = time.monotonic() + 5
        run.in_sync()
        proxy.stall()
        time.sleep(max(over - time.monotonic() - 2, 0))
        client.hincrby("hash", "f", 5)
        # The source is busy, and tells of no field's end: as behind a pause.
        client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        time.sleep(max(over - time.monotonic(), 0) + 0.5)
        proxy.stall(False)
        run.in_sync()
        time.sleep(1)
        there = target.client().hgetall("hash")
        assert there == client.hgetall("hash") == {b"lasts": b"1"}
        client.execute_command("CLIENT", "UNPAUSE")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_tidy(target)


@pytest.mark.parametrize("newer", ["redis-6.2", "valkey-9.1"])
def test_a_search_for_places_that_finds_others_on_the_target(
    newer: str, server_factory: ServerFactory
) -> None:
    """Redis 6.0 finds others in wide circles than those after it do, and tells its replicas of the
    search, not of what it has found."""
    source, target = server_factory(known("redis-6.0")), server_factory(known(newer))
    client, rng = source.client(), random.Random(1)
    places = [(rng.uniform(-180, 180), rng.uniform(-85, 85), f"m{n}") for n in range(300)]
    client.execute_command("GEOADD", "places", *(word for place in places for word in place))
    circles = [
        (rng.uniform(-180, 180), rng.uniform(-85, 85), rng.randrange(1000, 9000), "km")
        for _ in range(200)
    ]

    def search(server: Server, name: str, *store: str) -> list[Any]:
        with server.client().pipeline(transaction=False) as pipe:
            for n, circle in enumerate(circles):
                pipe.execute_command(name, "places", *circle, *(word.format(n) for word in store))
            return pipe.execute()

    with migrating(source, target) as run:
        run.following()
        search(source, "GEORADIUS", "STORE", "found:{}")
        client.execute_command("GEORADIUSBYMEMBER", "places", "m1", 9000, "km", "STOREDIST", "near")
        client.zunionstore("all", [f"found:{n}" for n in range(len(circles))])
        run.wait_for(
            lambda: run.progress.repaired_keys >= len(circles) and not run.progress.held_keys,
            "what was stored is read from the source",
        )
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target)
    # Else this has shown nothing.
    ends = (search(server, "GEORADIUS_RO") for server in (source, target))
    assert len({tuple(map(frozenset, found)) for found in ends}) == 2


RENAMED = (
    *("source:REPLCONF=conf", "source:CONFIG=cfgs", "source:FLUSHALL=wipe", "source:LPUSH=push"),
    *("source:KEYS=all", "target:FLUSHALL=boom", "target:CONFIG=cfgt", "target:RENAME=ren"),
    *("target:EVAL=run", "target:MEMORY=mem"),
)


@pytest.mark.parametrize("names", ["redis-5.0", "redis-7.0"])
def test_commands_that_have_other_names(names: str, server_factory: ServerFactory) -> None:
    """Where the engine sends them, and where they stand in the stream."""

    def renamed(side: str) -> list[str]:
        given = [each.removeprefix(f"{side}:") for each in RENAMED if each.startswith(side)]
        return [word for each in given for word in ("--rename-command", *each.split("="))]

    binary = known(names)
    source = server_factory(binary, *renamed("source"))
    target = server_factory(binary, *renamed("target"))
    client = source.client()
    client.mset({f"key:{n}": n for n in range(500)})

    with migrating(source, target, command_names=RENAMED) as run:
        run.following()
        client.execute_command("wipe")
        client.execute_command("push", "list", "a", "b")
        client.execute_command("PuSh", "list", "c")
        pipe = client.pipeline(transaction=True)
        pipe.set("old", 1, px=3_600_000)
        pipe.rename("old", "new")
        pipe.execute_command("push", "list", "d")
        pipe.execute()
        run.cut_over()
    assert run.report.status == "done", run.report.errors
    assert not run.report.not_carried
    there = target.client()
    assert sorted(there.keys("*")) == [b"list", b"new"]
    assert there.lrange("list", 0, -1) == [b"d", b"c", b"b", b"a"]
    assert 3_000_000 < there.pttl("new") <= 3_600_000
    # It was sealed by CONFIG, under its name there.
    setting = "min-slaves-to-write" if binary.version < (5, 0, 0) else "min-replicas-to-write"
    found = client.execute_command("cfgs", "GET", setting)
    assert b"0" not in (found.values() if isinstance(found, dict) else found)
    for word in ("repaired", "compared again", "does not know"):
        assert not any(word in event for event in run.events), run.events


class Renaming(Proxy):
    """Before a server whose provider has given PSYNC another name, by which it is PSYNC still."""

    async def _read(self, link: Any, direction: Any, queue: Any) -> None:
        class Renamed:
            async def put(self, item: tuple[float, bytes]) -> None:
                due, chunk = item
                await queue.put((due, chunk.replace(b"$3\r\npsy\r\n", b"$5\r\nPSYNC\r\n")))

        await super()._read(link, direction, Renamed() if direction == "up" else queue)  # type: ignore[arg-type]


def test_psync_under_another_name(server_factory: ServerFactory) -> None:
    binary = known("redis-7.0")
    source, target = server_factory(binary), server_factory(binary)
    source.client().set("a", 1)

    with (
        Renaming(source.host, source.port) as link,
        migrating(link, target, command_names=("source:PSYNC=psy",)) as run,
    ):
        run.following()
        source.client().incr("a")
        link.cut_now()
        source.client().incr("a")
        run.cut_over(source)
    assert run.report.status == "done", run.report.errors
    assert run.report.partial_syncs
    assert target.client().get("a") == b"3"


def test_a_server_that_takes_another_name_for_sync(server_factory: ServerFactory) -> None:
    """Redis and Valkey do: what they answer has no position, so nothing is followed by it."""
    source = server_factory(known("redis-7.0"), "--rename-command", "PSYNC", "psy")
    target = server_factory(known("redis-7.0"))
    source.client().set("a", 1)
    run = migrated(source, target, command_names=("source:PSYNC=psy",))
    assert "treats PSYNC under another name as SYNC" in run.report.errors[0]
    run = copied(source, target, source_type="auto", command_names=("source:PSYNC=psy",))
    assert run.report.status == "done", run.report.errors
    assert run.report.source_type == "scan"
    assert target.client().get("a") == b"1"
