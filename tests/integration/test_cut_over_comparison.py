"""The comparison before a cut-over, on real servers: what the stream does not say is found and
mended, what cannot be mended is named, and writers wait for none of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.model.verification import AtFence
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import Settle
from engine.transfer.cut_over_comparison import CutOverComparison
from engine.transfer.transfer import Transfer
from engine.verify import LiveComparison, verify
from tests.support.comparison import assert_settled
from tests.support.library import Run, migrated, migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.writers import Clicks, writing

MIB = 1 << 20


def servers(factory: ServerFactory, name: str, other: str = "") -> tuple[Server, Server]:
    return factory(known(name)), factory(known(other or name))


class Meddling(LiveComparison):
    """Has something happen at the last moment, behind the fence, `times`."""

    def __init__(self, source: Server, target: Server, what: object, times: int = 1) -> None:
        ends = (Endpoint.parse(each.url) for each in (source, target))
        super().__init__(*ends, TransferSettings(), lambda: False)
        self._what = what
        self._times = times
        self.looks = 0

    def others(self, prefix: str, count: int) -> list[str]:
        """Names of keys that are not looked at behind the fence, of those called `prefix`0 …"""
        looked_at = {key.decode() for _, key, _ in self._plan}
        names = (f"{prefix}{n}" for n in range(5000))
        return [name for name in names if name not in looked_at][:count]

    async def at_fence(self, settle: Settle) -> AtFence:
        self.looks += 1
        if self.looks <= self._times:
            assert callable(self._what)
            await asyncio.to_thread(self._what)
        return await super().at_fence(settle)


class Between(Meddling):
    """Has something happen each time between the comparison and the fence."""

    async def choose(self, first: Iterable[DbKey], then: Iterable[DbKey]) -> None:
        await super().choose(first, then)
        assert callable(self._what)
        await asyncio.to_thread(self._what)

    async def at_fence(self, settle: Settle) -> AtFence:
        return await LiveComparison.at_fence(self, settle)


def moved(source: Server, target: Server, change: object, **options: object) -> Run:
    """A migration in sync, then `change`, then the word."""

    with migrating(source, target, **options) as run:
        run.following()
        run.in_sync()
        assert callable(change)
        change()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    assert run.report.verification.ok
    return run


@pytest.mark.parametrize("name", ["redis-7.0", "valkey-9"])
def test_delivery_counts_that_nobody_replicates(name: str, server_factory: ServerFactory) -> None:
    """A consumer reads its pending entries again, as at each restart: no word in the stream. Of
    more streams than a sample has."""
    source, target = servers(server_factory, name)
    client = source.client()
    pipe = client.pipeline(transaction=False)
    for n in range(600):
        pipe.xadd(f"stream:{n}", {"f": "v"}, id="1-1")
        pipe.xgroup_create(f"stream:{n}", "group", "0")
        pipe.xreadgroup("group", "reader", {f"stream:{n}": ">"})
    pipe.execute()

    def read_again() -> None:
        for n in range(0, 600, 7):
            client.xreadgroup("group", "reader", {f"stream:{n}": "0"})

    run = moved(source, target, read_again)
    assert run.report.verification.repaired == 86
    assert_settled(source, target, 2)
    found = target.client().xpending_range("stream:595", "group", "-", "+", 1)
    assert found[0]["times_delivered"] == 2
    assert_tidy(target)


def test_an_empty_key_that_nobody_replicates(server_factory: ServerFactory) -> None:
    source, target = servers(server_factory, "redis-7.0")
    client = source.client()
    pipe = client.pipeline(transaction=False)
    for n in range(3000):
        pipe.set(f"key:{n}", n)
    pipe.execute()
    overflow = ("BITFIELD", "empty", "OVERFLOW", "FAIL", "INCRBY", "u2", 0, 9)
    run = moved(source, target, lambda: client.execute_command(*overflow))
    assert run.report.verification.keys_target == 3001
    assert target.client().type("empty") == b"string"
    assert_settled(source, target, 2)


@pytest.mark.parametrize("name", ["redis-8.0", "valkey-9"])
def test_a_field_that_lost_its_deadline_on_the_way(
    name: str, server_factory: ServerFactory
) -> None:
    source, target = servers(server_factory, name)
    client = source.client()
    for n in range(500):
        client.hset(f"hash:{n}", mapping={"f": "1", "g": "2"})
        client.execute_command("HPEXPIRE", f"hash:{n}", 10_000_000, "FIELDS", 1, "f")
    run = moved(
        source,
        target,
        lambda: target.client().execute_command("HPERSIST", "hash:77", "FIELDS", 1, "f"),
    )
    assert run.report.verification.repaired == 1
    assert target.client().execute_command("HPTTL", "hash:77", "FIELDS", 1, "f")[0] > 0
    assert_settled(source, target, 2)


def test_what_differs_behind_the_fence_is_read_again(server_factory: ServerFactory) -> None:
    source, target = servers(server_factory, "redis-7.0")
    source.client().set("key", "value", px=5_000)
    source.client().rpush("list", "a", "b")

    def change() -> None:
        target.client().set("key", "other")
        target.client().rpush("list", "c")

    meddling = Meddling(source, target, change)
    run = moved(source, target, lambda: None, comparison=meddling)
    assert run.report.verification.repaired == 2
    assert not any("tried again" in each for each in run.events)
    assert target.client().get("key") == b"value"
    # Not as it is held while the source is followed.
    assert 0 < target.client().pttl("key") < 5_000
    assert_tidy(target)


@pytest.mark.parametrize("change", ["lost", "extra"])
def test_counts_that_differ_behind_the_fence(change: str, server_factory: ServerFactory) -> None:
    """Which keys they are is found once the writers have been let on; then it is tried again."""
    source, target = servers(server_factory, "valkey-8.1")
    pipe = source.client(3).pipeline(transaction=False)
    for n in range(5000):
        pipe.set(f"key:{n}", n)
    pipe.execute()

    def meddle() -> None:
        client = target.client(3)
        if change == "lost":
            client.delete(*meddling.others("key:", 1))
        else:
            client.set("another", "x")

    meddling = Meddling(source, target, meddle)
    run = moved(source, target, lambda: None, comparison=meddling)
    assert meddling.looks == 2
    assert any(
        event.startswith("the cut-over is tried again: database 3 has 5,000 keys")
        for event in run.events
    )
    # Until it is over, nothing says that it was refused: the operator waits, or asks no more.
    led_back = [
        after
        for before, after in pairwise(run.history)
        if before.phase is Phase.CUT_OVER and after.phase is Phase.FOLLOW
    ]
    assert [each.trying_again for each in led_back] == [True]
    what = "missing on the target" if change == "lost" else "key another: on the target alone"
    mended = "1 keys of the target differed from the source, and were read again: database 3, key "
    assert any(each.startswith(mended) and each.endswith(what) for each in run.events), run.events
    assert_settled(source, target, 4)


@pytest.mark.parametrize("name", ["redis-5.0", "redis-6.0"])
def test_counts_of_a_source_that_cannot_be_read_behind_its_fence(
    name: str, server_factory: ServerFactory
) -> None:
    """Before 6.2 everybody is paused, and before the fence there is no still moment to count in:
    the source tells its numbers with the fence."""
    source, target = server_factory(known(name)), server_factory(known("redis-7.0"))
    client = source.client()
    client.mset({f"key:{n}": n for n in range(20_000)})

    def meddle() -> None:
        there = target.client()
        there.delete(*(f"key:{n}" for n in range(7, 20_000, 400)))
        there.set("another", "x")

    with Clicks(source) as clicks:
        run = moved(source, target, meddle)
    assert run.report.verification is not None
    assert run.report.verification.counted, run.report.verification
    there = target.client()
    assert there.dbsize() == int(run.report.verification.keys_source) == source_keys(source)
    assert not there.exists("another")
    assert there.get("key:7") == b"7"
    assert 0 < clicks.acknowledged == int(there.get("clicks") or 0)


@pytest.mark.parametrize("name", ["redis-7.0", "valkey-9.1"])
def test_what_changes_without_a_word_up_to_the_fence(
    name: str, server_factory: ServerFactory
) -> None:
    """A reader of its own pending entries raises their delivery counts: nothing in the stream
    tells of it. What was equal, or made equal, before the fence is not any more when it stands."""
    source, target = server_factory(known(name)), server_factory(known(name))
    client = source.client()
    client.mset({f"key:{n}": n for n in range(3_000)})
    for key in ("jobs", "quiet"):
        client.xadd(key, {"f": "v"}, id="1-1")
        client.xgroup_create(key, "group", "0")
        client.xreadgroup("group", "reader", {key: ">"})

    def read(reader: redis.Redis, _: int) -> None:
        reader.xreadgroup("group", "reader", {"jobs": "0"})

    with migrating(source, target, timeout=60) as run:
        run.following()
        with writing(read, server=source, pause=0.002, until_refused=True):
            run.in_sync()
            run.complete()
            run.join()
    assert run.report.status == "done", (run.report.errors, run.events)
    counts = [
        [
            entry["times_delivered"]
            for entry in end.client().xpending_range(key, "group", "-", "+", 2)
        ]
        for key in ("jobs", "quiet")
        for end in (source, target)
    ]
    assert counts[0] == counts[1] != [1]
    assert counts[2] == counts[3] == [1]


@pytest.mark.parametrize("name", ["redis-5.0", "redis-7.0"])
@pytest.mark.parametrize("kind", ["swapped", "timed"])
def test_names_that_no_count_tells_of(name: str, kind: str, server_factory: ServerFactory) -> None:
    """Where as many keys are missing as there are too many, and where expiry would explain them;
    among more keys than a sample has. Another key is written to all the time."""
    source, target = server_factory(known(name)), server_factory(known("redis-7.0"))
    pipe = source.client().pipeline(transaction=False)
    for n in range(3_000):
        pipe.set(f"key:{n}", n, ex=100_000 if kind == "timed" and n % 2 else None)
    if kind == "timed":
        # They end while both ends are followed and compared.
        for n in range(2_000):
            pipe.set(f"short:{n}", n, px=2_000 + n)
    pipe.execute()

    def meddle() -> None:
        there = target.client()
        there.delete("key:1")
        there.set("alien", 1, ex=100_000 if kind == "timed" else None)

    with Clicks(source) as clicks:
        run = moved(source, target, meddle)
    # A source that is held shows what has expired since.
    ends = (end.client(socket_timeout=60).keys("[^s]*") for end in (source, target))
    keys = [set(each) for each in ends]
    assert keys[0] == keys[1], (keys[0] ^ keys[1], run.report.verification)
    assert len(keys[0]) == 3_001
    assert int(target.client().get("clicks")) == clicks.acknowledged
    assert run.report.verification is not None
    assert "every name looked up at the other end" in run.report.verification.reason


def test_a_missing_key_among_those_that_are_written_to(server_factory: ServerFactory) -> None:
    """A write to one key of a portion leaves it open how the others are: those are read again."""
    source, target = server_factory(known("redis-5.0")), server_factory(known("redis-7.0"))
    source.client().mset({f"key:{n}": n for n in range(150)})

    class Busy(LiveComparison):
        """Some key of the first portion is always written to."""

        tries = 0

        async def _untouched(self) -> bool:
            self.tries += 1
            return await super()._untouched() and self.tries > 3

    ends = (Endpoint.parse(each.url) for each in (source, target))
    busy = Busy(*ends, TransferSettings(), lambda: False)

    def meddle() -> None:
        target.client().delete("key:7")
        target.client().set("alien", 1)

    run = moved(source, target, meddle, comparison=busy)
    assert busy.tries > 3
    keys = [set(end.client(socket_timeout=60).keys()) for end in (source, target)]
    assert keys[0] == keys[1], run.report.verification
    assert run.report.verification is not None
    assert "not compared, as they are written to" not in run.report.verification.reason


@pytest.mark.parametrize(
    ("name", "then"),
    [("redis-7.0", ""), ("valkey-9.1", ""), ("redis-7.0", "reset"), ("redis-7.0", "relink")],
)
def test_strings_that_are_lengthened_without_a_word(
    name: str, then: str, server_factory: ServerFactory
) -> None:
    """BITFIELD … OVERFLOW FAIL that does nothing else: no key more, and few of many strings.
    Nor does a figure tell of it that was set back since."""
    source, target = server_factory(known(name)), server_factory(known(name))
    client = source.client()
    client.mset({f"key:{n}": "x" * 20 for n in range(5_000)})

    with Proxy(source.host, source.port) as proxy, migrating(proxy, target, timeout=60) as run:
        run.following()
        run.in_sync()
        for n in range(5):
            failing = ("BITFIELD", f"key:{n}", "OVERFLOW", "FAIL", "INCRBY", "u2", 800, 9)
            assert client.execute_command(*failing) == [None]
        client.append("key:0", "END")
        run.in_sync()
        if then:
            client.config_resetstat()
        if then == "relink":
            proxy.cut_now()
            run.wait_for(lambda: run.progress.partial_syncs, "the link")
            run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    assert run.report.verification.repaired == 5
    there = target.client()
    assert [there.strlen(f"key:{n}") for n in range(6)] == [104, 101, 101, 101, 101, 20]
    assert there.get("key:0") == client.get("key:0")


def test_strings_that_are_lengthened_all_the_time(server_factory: ServerFactory) -> None:
    """Not before the fence, and behind it nobody can say which: that is said."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    client = source.client()
    client.mset({f"key:{n}": "x" for n in range(5_000)})

    def lengthen() -> None:
        client.execute_command("BITFIELD", "key:9", "OVERFLOW", "FAIL", "INCRBY", "u2", 99, 9)

    with migrating(source, target, comparison=Between(source, target, lengthen), timeout=60) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    assert "BITFIELD, which was called 1 times since" in run.report.verification.reason


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_source_that_cannot_be_read_and_its_delivery_counts(
    calls: int, replica: bool, server_factory: ServerFactory
) -> None:
    """Before 6.2: what may have changed since is named, and nothing where nothing can have. A
    replica can be read, and has nothing of it."""
    head, target = server_factory(known("redis-5.0")), server_factory(known("redis-7.0"))
    source, client = head, head.client()
    if replica:
        source = server_factory(known("redis-5.0"))
        source.client().execute_command("REPLICAOF", head.host, head.port)
    client.xadd("jobs", {"f": "v"}, id="1-1")
    client.xgroup_create("jobs", "group", "0")
    client.xreadgroup("group", "reader", {"jobs": ">"})

    def read() -> None:
        for _ in range(calls):
            client.xreadgroup("group", "reader", {"jobs": "0"})

    with migrating(source, target, comparison=Between(source, target, read), timeout=60) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    named = (
        "1 keys were compared only before the fence, and may differ by now: database 0, key jobs"
    )
    assert (named in run.report.verification.reason) is bool(calls), run.report.verification


def source_keys(server: Server) -> int:
    """As a new client is told, which a source that was held answers at last."""
    return int(server.client(socket_timeout=60).dbsize())


def test_keys_with_a_deadline_that_are_gone_are_no_expiry(server_factory: ServerFactory) -> None:
    """An eviction, say: the counts of keys without a TTL are equal."""
    source, target = servers(server_factory, "redis-7.0")
    pipe = source.client().pipeline(transaction=False)
    for n in range(5000):
        pipe.set(f"key:{n}", n, ex=100_000)
    pipe.execute()
    meddling = Meddling(source, target, lambda: target.client().delete(*meddling.others("key:", 2)))
    run = moved(source, target, lambda: None, comparison=meddling)
    assert any("5,000 keys with a TTL on the source and 4,998" in each for each in run.events)
    assert run.report.verification.repaired == 2
    assert_settled(source, target, 2)


def of_many_with_ttls(factory: ServerFactory) -> tuple[Server, Server]:
    source, target = servers(factory, "redis-7.0")
    pipe = source.client().pipeline(transaction=False)
    for n in range(5000):
        pipe.set(f"key:{n}", n, ex=100_000)
    pipe.execute()
    return source, target


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("name", ["redis-7.0", "valkey-8.1"])
def test_deadlines_that_pass_while_they_are_held_back(
    name: str, lost: bool, server_factory: ServerFactory
) -> None:
    """They are over when they are set back behind the fence: the target then deletes those keys at
    once, and the source still counts them, as it lets none expire. Nothing is wrong with that, and
    no other key that the target has lost hides behind it, whether it counts them as expired
    (Valkey) or not."""
    binary = known(name)
    source, target = server_factory(binary, *binary.debug_options), server_factory(binary)
    if name.startswith("valkey"):
        # Deadlines are held back by lifting them.
        target.client().execute_command("ACL", "SETUSER", "default", "-config|set")
    client = source.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    pipe = client.pipeline(transaction=False)
    for n in range(5000):
        pipe.set(f"key:{n}", n, ex=100_000)
    for n in range(500):
        pipe.set(f"short:{n}", n, ex=1000)
    pipe.execute()

    def pass_by() -> None:
        due = int(time.time() * 1000) + 500
        pipe = client.pipeline(transaction=False)
        for n in range(500):
            pipe.pexpireat(f"short:{n}", due)
        pipe.execute()
        while time.time() * 1000 <= due:
            time.sleep(0.05)

    class Late(Meddling):
        """Between the last look at all the source's names and the fence they become due."""

        async def choose(self, first: Iterable[DbKey], then: Iterable[DbKey]) -> None:
            await super().choose(first, then)
            await asyncio.to_thread(pass_by)

    def lose() -> None:
        if lost:
            target.client().delete(*late.others("key:", 1))

    late = Late(source, target, lose)
    run = moved(source, target, lambda: None, comparison=late)
    again = [each for each in run.events if "tried again" in each]
    assert bool(again) is lost, run.events
    assert run.report.verification.repaired == lost
    if not lost:
        told = "5,500 keys on the source, 5,000 on the target (500 with a TTL have expired at one"
        assert told in run.report.verification.reason
    assert_settled(source, target, 2)


def test_what_expires_meanwhile_hides_no_lost_key(server_factory: ServerFactory) -> None:
    """As many keys have expired on the target as it has lost others: the names tell."""
    source, target = of_many_with_ttls(server_factory)

    class Expiring(Meddling):
        """Of a target that lets many keys expire all the time."""

        def _expired(self, source: ServerInfo, target: ServerInfo) -> tuple[int, int]:
            return 0, 100

    comparison = Expiring(source, target, lambda: None)
    run = moved(source, target, lambda: target.client().delete("key:4"), comparison=comparison)
    assert run.report.verification.repaired == 1
    assert comparison.looks == 1
    assert_settled(source, target, 2)


def test_a_count_that_nothing_explains_is_never_in_sync(server_factory: ServerFactory) -> None:
    """The target loses a key behind each fence, and has it again before each walk."""
    source, target = of_many_with_ttls(server_factory)
    meddling = Meddling(source, target, lambda: None, times=3)
    lost: dict[str, list[str]] = {"keys": []}

    def lose() -> None:
        lost["keys"] = meddling.others("key:", 1)
        target.client().delete(*lost["keys"])

    meddling._what = lose

    with migrating(source, target, comparison=meddling) as run:
        run.following()
        run.in_sync()
        reason = run.refused()
        assert "5,000 keys with a TTL on the source and 4,999 on the target" in reason
        assert "no name is at one end alone" in reason
        assert "--skip-verification" in reason
        assert meddling.looks == 3
        assert target.client().dbsize() < source.client().dbsize() + 3
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification is not None
    assert run.report.verification.ok
    assert_settled(source, target, 2)


def test_a_sample_that_differs_has_every_key_compared(server_factory: ServerFactory) -> None:
    source, target = servers(server_factory, "redis-7.0")
    pipe = source.client().pipeline(transaction=False)
    for n in range(4000):
        pipe.set(f"key:{n}", n)
    pipe.execute()

    def change() -> None:
        pipe = target.client().pipeline(transaction=False)
        for n in range(0, 4000, 5):
            pipe.append(f"key:{n}", "!")
        pipe.execute()

    run = moved(source, target, change)
    assert run.report.verification.repaired == 800
    assert any(
        each.startswith("every key is compared before the cut-over: ") for each in run.events
    )
    assert_settled(source, target, 2)


def test_keys_that_are_written_to_all_the_time(server_factory: ServerFactory) -> None:
    """They are no difference before the fence, and equal behind it."""
    source, target = servers(server_factory, "redis-7.0")
    client = source.client()
    client.xadd("stream", {"f": "v"}, id="1-1")
    client.xgroup_create("stream", "group", "0")

    def write(writer: redis.Redis, turn: int) -> None:
        pipe = writer.pipeline(transaction=False)
        pipe.set("n", turn + 1)
        pipe.xadd("stream", {"n": turn + 1})
        pipe.xreadgroup("group", "reader", {"stream": ">"})
        pipe.execute()

    with migrating(source, target) as run:
        run.following()
        with writing(write, server=source, until_refused=True):
            run.wait_for(lambda: client.get("n"), "writes")
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification.repaired == 0
    assert not any("tried again" in each for each in run.events)
    assert_settled(source, target, 2)


def test_a_large_value_holds_nobody_up(server_factory: ServerFactory) -> None:
    """It is compared before the fence, and not behind it; a difference in it is found all the
    same."""
    source, target = servers(server_factory, "redis-7.0")
    for begin in range(0, 40_000, 10_000):
        source.client().sadd("large", *range(begin, begin + 10_000))
    run = moved(source, target, lambda: target.client().srem("large", 77))
    verification = run.report.verification
    assert verification.repaired == 1
    assert [each.key for each in verification.over_budget] == ["large"]
    assert "1 keys were compared only before the fence, over the limit of" in verification.reason
    assert target.client().scard("large") == 40_000
    # By values that were read; not by a time that a busy machine may take.
    asked = source.client().info("commandstats")["cmdstat_sscan"]["calls"]
    assert asked > 2


def test_types_that_cannot_be_compared_are_counted(server_factory: ServerFactory) -> None:
    source, target = servers(server_factory, "redis-8.0")
    vector = ("VADD", "vectors", "VALUES", 3)
    source.client().execute_command(*vector, "1", "0", "0", "one")
    source.client().set("key", "value")
    more = (*vector, "0", "1", "0", "two")
    run = moved(source, target, lambda: target.client().execute_command(*more))
    assert run.report.verification.not_compared == (("vectorset", 1),)
    assert "1 keys compared, 0 differ; 1 keys of the type vectorset not compared" in (
        run.report.verification.reason
    )


def test_a_hyperloglog_in_other_bytes_is_no_difference(server_factory: ServerFactory) -> None:
    source, target = servers(server_factory, "redis-7.0", "valkey-8.1")
    client = source.client()
    client.config_set("hll-sparse-max-bytes", 0)
    target.client().config_set("hll-sparse-max-bytes", 3000)

    with migrating(source, target) as run:
        run.following()
        client.pfadd("log", *range(100))
        client.pfcount("log")
        client.pfadd("other", *range(100))
        run.in_sync()
        assert client.get("log") != target.client().get("log")
        assert client.pfcount("log") == target.client().pfcount("log")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.verification.repaired == 0
    # And one that counts something else is one.
    target.client().config_set("min-replicas-to-write", 0)
    target.client().pfadd("log", "more", "of", "it")
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    found = asyncio.run(verify(*ends, TransferSettings()))
    assert [(each.key, each.what) for each in found.differences] == [("log", "value (string)")]


def test_until_in_sync_compares_as_well(server_factory: ServerFactory) -> None:
    source, target = servers(server_factory, "redis-7.0")
    client = source.client()
    client.xadd("stream", {"f": "v"}, id="1-1")
    client.xgroup_create("stream", "group", "0")
    client.xreadgroup("group", "reader", {"stream": ">"})
    client.set("key", "value")

    class Late(LiveComparison):
        """What nobody replicates comes behind the snapshot."""

        async def open(
            self,
            own_keys: Sequence[bytes] = (),
            *,
            extend_ms: int = 0,
            primary: Endpoint | None = None,
        ) -> None:
            await asyncio.to_thread(client.xreadgroup, "group", "reader", {"stream": "0"})
            await super().open(own_keys, extend_ms=extend_ms, primary=primary)

    ends = (Endpoint.parse(each.url) for each in (source, target))
    comparison = Late(*ends, TransferSettings(), lambda: False)
    run = migrated(source, target, one_go=True, until="in-sync", comparison=comparison)
    assert run.report.status == "done", (run.report.errors, run.events)
    verification = run.report.verification
    assert verification is not None
    assert (verification.repaired, verification.keys_source, verification.keys_target) == (1, 2, 2)
    assert_settled(source, target, 2)
    assert_tidy(target)


def test_every_key_where_something_asks_for_it(server_factory: ServerFactory) -> None:
    """It outlives the engine that was asked."""
    source, target = servers(server_factory, "redis-7.0")
    pipe = source.client().pipeline(transaction=False)
    for n in range(2000):
        pipe.set(f"key:{n}", n)
    pipe.execute()
    store = MemoryCheckpoint()

    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.in_sync()
        check_of(run.work).require("all", "a script names no keys")
        # As a value of which no stream says a word would be.
        target.client().set("key:77", "other")
        run.wait_for(lambda: store.load().position.compare_all, "the state")
        run.stop()
    with migrating(source, target, checkpoints=store) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert "every key is compared before the cut-over: a script names no keys" in run.events
    assert run.report.verification.compared >= 2000
    assert run.report.verification.repaired == 1
    assert target.client().get("key:77") == b"77"


def check_of(work: Transfer) -> CutOverComparison:
    return work._way.lanes[0]._check  # type: ignore[union-attr]


def test_a_target_that_stalls_meanwhile(server_factory: ServerFactory) -> None:
    """It is told no later than behind the fence, and nobody waits."""
    source, target = servers(server_factory, "redis-7.0")
    source.client().set("key", "1")
    with Proxy(target.host, target.port) as proxy:
        ends = Endpoint.parse(source.url), Endpoint.parse(f"redis://{proxy.host}:{proxy.port}")
        settings = TransferSettings(cut_over_timeout=1.5)
        comparison = LiveComparison(*ends, settings, lambda: False)
        with migrating(source, proxy, comparison=comparison) as run:
            run.following()
            run.in_sync()
            proxy.stall()
            reason = run.refused()
            assert "both ends could not be compared: target" in reason
            assert source.client(socket_timeout=1).set("key", "2")
            proxy.stall(False)
            run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"2"
