"""Whole transfers between real servers; afterwards both ends are compared key by key."""

from __future__ import annotations

import os
import random
import time

import pytest
import redis

from benches import datasets
from benches.support.compare import assert_equal, compare
from benches.support.servers import Binary, Server, TlsFiles, binaries, few_binaries, supports_tls
from engine.fleet.cut_over_comparisons import FilesVerificationGate, verification_gate_of
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase
from engine.model.server import parse_info
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey
from engine.transfer import target_monitor
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from tests.support.carried import is_carried
from tests.support.library import Run, copied, copying
from tests.support.servers import ServerFactory, known
from tests.support.writers import writing


def refused_by_type(source: Server, target: Server) -> set[tuple[int, bytes]]:
    """Keys whose value the target has no form for: those alone may stay behind."""
    info = target.client().execute_command("INFO")
    text = info if isinstance(info, str) else "\n".join(f"{k}:{v}" for k, v in info.items())
    parsed = parse_info(text)
    refused = set()
    for db in range(16):
        client = source.client(db)
        keys = list(client.scan_iter(count=1000))
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.execute_command("DUMP", key)
        for key, payload in zip(keys, pipe.execute(), strict=True):
            if payload is not None and not is_carried(payload, parsed.flavour, parsed.version):
                refused.add((db, key))
    return refused


def test_every_type_between_every_pair(
    pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    _every_type(pair, server_factory, "replace")


def test_every_type_where_keys_stay(
    ring_pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    """By RESTORE alone, strings too."""
    _every_type(ring_pair, server_factory, "skip")


def _every_type(pair: tuple[Binary, Binary], server_factory: ServerFactory, if_exists: str) -> None:
    source, target = server_factory(pair[0]), server_factory(pair[1])
    datasets.demo(source.url, n=600)
    result = copied(source, target, if_exists=if_exists, batch_bytes=64 << 10)
    expected = refused_by_type(source, target)
    difference = compare(source.url, target.url)
    assert not difference.different, difference.describe()
    assert not difference.extra, difference.describe()
    assert set(difference.missing) <= expected
    assert result.report.not_carried_total == len(difference.missing)
    if not expected:
        assert result.report.status == "done", result.report.errors
    else:
        # Named, each with the target's reason, and the run does not call itself done.
        assert result.report.status == "stopped"
        assert all(
            "does not know values of type" in lost.reason for lost in result.report.not_carried
        )


def test_sixteen_databases_and_empty_ones(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    for db in range(0, 16, 3):
        pipe = source.client(db).pipeline(transaction=False)
        for i in range(db * 20 + 1):
            pipe.set(f"key:{db}:{i}", i)
        pipe.execute()
    report = copied(source, target).report
    assert report.status == "done"
    assert report.keys == sum(db * 20 + 1 for db in range(0, 16, 3))
    assert_equal(source.url, target.url)


def test_an_empty_source(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    report = copied(source, target).report
    assert (report.status, report.keys, report.not_carried_total) == ("done", 0, 0)


def test_chosen_databases_match_and_type(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    for db in (0, 2, 5):
        client = source.client(db)
        client.mset({"user:1": "a", "other:1": "b"})
        client.rpush("user:list", 1, 2)
    report = copied(source, target, databases=(2, 5), match="user:*", key_type="string").report
    assert report.status == "done"
    assert report.keys == 2
    assert target.client(0).dbsize() == 0
    assert target.client(2).keys() == target.client(5).keys() == [b"user:1"]


def test_odd_names(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    names = [b"", b" ", b"a b", b"\0\r\n\xff", b"$5\r\nx", b"n" * (1 << 20), "ключ".encode()]
    for i, name in enumerate(names):
        source.client().set(name, b"value %d" % i, px=10**9 if i % 2 else None)
    assert copied(source, target, batch_bytes=100).report.keys == len(names)
    assert_equal(source.url, target.url)


def test_long_values_go_through_in_pieces(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    client = source.client()
    rng = random.Random(5)
    sizes = [1, 1000, 90_000, 6 << 20, 70 << 20]
    for size in sizes:
        client.set(f"string:{size}", rng.randbytes(size), px=10**9)
    client.hset("hash", mapping={f"f{i}": rng.randbytes(100) for i in range(50_000)})
    assert copied(source, target, stream_above=64 << 10).report.keys == len(sizes) + 1
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lfu", "noeviction"])
def test_idle_time_and_frequency_are_kept(server_factory: ServerFactory, policy: str) -> None:
    options = ("--maxmemory", "1gb", "--maxmemory-policy", policy)
    source, target = server_factory(None, *options), server_factory(None, *options)
    client = source.client()
    client.set("seldom", "x")
    client.set("often", "x", px=10**9)
    if policy == "volatile-lfu":
        payload = client.dump("often")
        client.restore("often", 10**9, payload, replace=True, frequency=200)
        client.restore("seldom", 0, client.dump("seldom"), replace=True, frequency=9)
    else:
        client.restore("seldom", 0, client.dump("seldom"), replace=True, idletime=5000)
    copied(source, target)
    there = target.client()
    if policy == "volatile-lfu":
        assert 190 <= there.object("freq", "often") <= 201
        assert there.object("freq", "seldom") <= 10
    elif policy == "allkeys-lru":
        assert there.object("idletime", "seldom") >= 4990
        assert there.object("idletime", "often") < 100
    else:
        assert there.object("idletime", "seldom") < 100
    assert_equal(source.url, target.url)


def test_the_source_is_only_read(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    datasets.demo(source.url, n=300)
    client = source.client()
    before = client.info("commandstats")
    copied(source, target)
    after = client.info("commandstats")
    used = {
        name.removeprefix("cmdstat_")
        for name, stats in after.items()
        if stats["calls"] > before.get(name, {}).get("calls", 0)
    }
    names = {name.partition("|")[0] for name in used}
    # FUNCTION DUMP or LIST, ACL WHOAMI and the like, whatever else these are for.
    asking = {"function", "acl", "client", "command", "hello"}
    flags = {name: client.execute_command("COMMAND", "INFO", name) for name in names - asking}
    assert {name for name, found in flags.items() if "write" in str(found)} == set()
    assert used & {"scan", "dump"}


def test_keys_that_expire_while_they_travel(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    pipe = source.client().pipeline(transaction=False)
    rng = random.Random(3)
    for i in range(20_000):
        pipe.set(f"k{i}", "x" * 50, px=rng.randrange(1, 800))
    pipe.execute()
    report = copied(source, target).report
    assert report.status == "done"
    assert not report.not_carried_total
    time.sleep(1)
    # DBSIZE would count keys that are past their time and not yet looked at.
    assert source.client().keys() == target.client().keys() == []


def test_existing_keys_replace_skip_fail(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{i}": f"new{i}" for i in range(500)})
    target.client().mset({"k3": "old", "k7": "new7", "mine": "kept"})

    async def differing(db: int, keys: list[bytes]) -> list[bytes]:
        a, b = source.client(db), target.client(db)
        return [key for key in keys if a.get(key) != b.get(key)]

    failed = copied(source, target, if_exists="fail", compare=differing).report
    assert failed.status == "failed"
    assert "exist on the target" in failed.errors[0]
    assert [(lost.db, lost.key) for lost in failed.not_carried] == [(0, "k3")]
    assert target.client().get("k3") == b"old"

    skipped = copied(source, target, if_exists="skip").report
    assert skipped.status == "done"
    assert skipped.skipped > 0
    assert target.client().get("k3") == b"old"

    replaced = copied(source, target, if_exists="replace").report
    assert replaced.status == "done"
    assert replaced.keys == 500
    assert target.client().get("mine") == b"kept"
    assert_equal(source.url, target.url, allow_extra=True)


def test_a_value_longer_than_the_target_takes(server_factory: ServerFactory) -> None:
    source = server_factory()
    target = server_factory(None, "--proto-max-bulk-len", "1048576")
    source.client().set("long", os.urandom(2 << 20))
    source.client().set("short", "x")
    report = copied(source, target).report
    assert report.status == "stopped"
    assert report.keys == 1
    ((lost),) = report.not_carried
    assert lost.key == "long"
    assert "longer than the target takes" in lost.reason


@pytest.mark.parametrize("way", ["scan", "rdb", "aof"])
def test_types_that_cannot_be_compared_are_counted(way: str, server_factory: ServerFactory) -> None:
    """A vector set that differs is no difference, and no "0 differ" hides it: its type is named
    with a count. (`test_check.py`: of a source that is followed.)"""
    options = ("--appendonly", "yes") if way == "aof" else ()
    source, target = (
        server_factory(known("redis-8.0"), *options),
        server_factory(known("redis-8.0")),
    )
    vector = ("VADD", "vectors", "VALUES", 3)
    source.client().execute_command(*vector, "1", "0", "0", "one")
    source.client().set("key", "value")
    paths = {
        "scan": source.url,
        "rdb": f"rdb:{source.folder / 'dump.rdb'}",
        "aof": f"aof:{source.folder / 'appendonlydir'}",
    }
    if way == "rdb":
        source.client().save()
    if way == "aof":
        source.stop()
    ends = Endpoint.parse(paths[way]), Endpoint.parse(target.url)
    settings = TransferSettings()

    def other_vector() -> None:
        target.client().execute_command(*vector, "0", "1", "0", "two")

    async def gate() -> CutOverCheckResult:
        other_vector()
        return await verification_gate_of(*ends, settings, lambda: False)()

    class Late(FilesVerificationGate):
        async def __call__(self, files: AofFiles, survey: AofSurvey) -> CutOverCheckResult:
            other_vector()
            return await super().__call__(files, survey)

    run = copied(
        paths[way],
        target,
        source_type="scan" if way == "scan" else "auto",
        gate=gate,
        gate_of_files=Late(ends[1], settings),
    )
    assert run.report.status == "done", (run.report.errors, run.events)
    found = run.report.verification
    assert found is not None
    assert (found.different, found.not_compared) == (0, (("vectorset", 1),))
    assert "1 vectorset" in found.reason


def test_a_user_without_rights_is_told_so(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().set("k", "v")
    source.client().execute_command(
        "ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-dump", "-mget"
    )
    target.client().execute_command(
        "ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-restore", "-mset"
    )
    report = copied(source.url.replace("//", "//weak:pw@"), target).report
    assert report.status == "failed"
    assert "NOPERM" in report.errors[0]
    assert "pw" not in report.errors[0].replace("startmigration", "")
    report = copied(source, target.url.replace("//", "//weak:pw@")).report
    assert report.status == "failed"
    assert "NOPERM" in report.errors[0]
    report = copied(source.url.replace("//", "//weak:wrong@"), target).report
    assert report.status == "failed"
    assert "WRONGPASS" in report.errors[0]


# What a string may look like, and what becomes of it where a number is stored as one.
STRINGS = [
    *(
        b"",
        b"0",
        b"-0",
        b"00123",
        b"+1",
        b" 1",
        b"1 ",
        b"-1",
        b"1.5",
        b"1e3",
        b"nan",
        b"\0",
        b"\r\n",
    ),
    *(
        b"%d" % (sign * 2**bits + off)
        for bits in (7, 8, 15, 16, 31, 32, 63, 64)
        for sign in (-1, 1)
        for off in (-1, 0, 1)
    ),
    *(b"x" * n for n in (43, 44, 45, 63, 64, 65, 16_383, 16_384, 65_535, 65_536, 200_000)),
    bytes(range(256)) * 3,
    b"compressible " * 1000,
]


def test_strings_of_every_shape(
    ring_pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    source, target = server_factory(ring_pair[0]), server_factory(ring_pair[1])
    pipe = source.client().pipeline(transaction=False)
    for i, value in enumerate(STRINGS):
        pipe.set(f"plain:{i}", value)
        pipe.set(f"mortal:{i}", value, px=10**9)
        # Digits that came together by APPEND are not stored as a number.
        pipe.set(f"raw:{i}", b"1")
        pipe.append(f"raw:{i}", value)
    pipe.setbit("bits", 5_000_000, 1)
    pipe.pfadd("hll", *range(1000))
    pipe.set("long", random.Random(9).randbytes(9 << 20))
    pipe.set("zeros", bytes(5 << 20))
    pipe.execute()
    there = target.client()
    there.rpush("plain:0", "of another type")
    there.set("plain:1", "old", px=10**9)
    there.set("mortal:1", "old")
    report = copied(source, target).report
    assert report.status == "done", report.errors
    assert report.keys == 3 * len(STRINGS) + 4
    assert_equal(source.url, target.url)
    here = source.client()
    for i, value in enumerate(STRINGS):
        for name in ("plain", "mortal"):
            assert there.get(f"{name}:{i}") == value
            encodings = [end.object("encoding", f"{name}:{i}") for end in (here, there)]
            assert encodings[0] == encodings[1] or value not in (b"0", b"-1"), (value, encodings)
        assert there.ttl(f"plain:{i}") == -1
        assert there.pttl(f"mortal:{i}") > 0


@pytest.mark.parametrize("released", [True, False])
def test_no_deadline_is_lost_to_another_client(
    binary: Binary, server_factory: ServerFactory, released: bool
) -> None:
    """TTLs are left out while nobody writes; then somebody does, and locks come and go, or stay."""
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    count = 120_000
    for first in range(0, count, 10_000):
        client.mset({f"k{i}": f"value {i}" for i in range(first, first + 10_000)})
    rng = random.Random(4)

    def write(writer: redis.Redis, _: int) -> None:
        # Without a proof that nobody wrote, a lock that INFO never saw would be there for good.
        name = f"lock{rng.randrange(200)}"
        writer.set(name, "held", px=10**8)
        if released:
            writer.delete(name)

    with copying(source, target, batch_bytes=64 << 10) as result:
        result.wait_for(lambda: result.progress.keys > count // 4, "a part of the keys")
        with writing(write, server=source, pause=0.001):
            result.join()
    assert result.report.status == "done", result.report.errors
    there = target.client()
    assert not [name for name in there.keys("lock*") if there.pttl(name) == -1]
    assert there.dbsize() >= count
    ttls = "cmdstat_pexpiretime" if binary.version >= (7, 0, 0) else "cmdstat_pttl"
    asked = client.info("commandstats")[ttls]["calls"]
    assert 0 < asked < count, "some values went without their TTLs, some did not"


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("mortal", [0, 1])
# One that is asked for PTTL, and one for PEXPIRETIME.
@pytest.mark.parametrize("few_binary", few_binaries()[-2:], ids=str)
def test_deadlines_that_are_there_all_the_time(
    few_binary: Binary, server_factory: ServerFactory, share: float, mortal: int
) -> None:
    """One key in a thousand has one, or none has; strings, others, and both."""
    source, target = server_factory(few_binary), server_factory(few_binary)
    rng = random.Random(8)
    pipe = source.client().pipeline(transaction=False)
    for i in range(20_000):
        if rng.random() < share:
            pipe.set(f"k{i}", f"v{i}")
        else:
            pipe.rpush(f"k{i}", f"v{i}") if i % 2 else pipe.sadd(f"k{i}", i)
    for i in range(0, 20_000, 1000):
        if mortal:
            pipe.pexpire(f"k{i}", 10**8)
    pipe.execute()
    name = "cmdstat_pexpiretime" if few_binary.version >= (7, 0, 0) else "cmdstat_pttl"
    asked = []
    # A proof may fail for whatever the server does by itself; thrice in a row is no chance.
    for _ in range(3):
        source.client().config_resetstat()
        assert copied(source, target, batch_bytes=32 << 10).report.status == "done"
        stats = source.client().info("commandstats")
        asked.append(stats.get(name, {"calls": 0})["calls"])
        if mortal or asked[-1] < 20_000:
            break
    assert_equal(source.url, target.url)
    assert "cmdstat_mget" in stats
    assert mortal or min(asked) < 20_000


def test_a_source_s_user_without_mget(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{i}": f"v{i}" for i in range(5000)})
    source.client().execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-mget")
    report = copied(source.url.replace("//", "//weak:pw@"), target).report
    assert report.status == "done", report.errors
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("rights", ["-mset", "-restore"])
def test_a_target_s_user_with_one_of_the_two_rights(
    server_factory: ServerFactory, rights: str
) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{i}": f"v{i}" for i in range(500)})
    target.client().execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", rights)
    before = target.client().info("commandstats")
    report = copied(source, target.url.replace("//", "//weak:pw@")).report
    assert report.status == "done", report.errors
    assert_equal(source.url, target.url)
    after = target.client().info("commandstats")
    stored_by = "cmdstat_restore" if rights == "-mset" else "cmdstat_mset"
    assert after[stored_by]["calls"] > before.get(stored_by, {"calls": 0})["calls"]


def test_the_right_to_mset_goes_meanwhile(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{i}": f"v{i}" * 50 for i in range(30_000)})
    target.client().execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all")

    weak = target.url.replace("//", "//weak:pw@")
    with copying(source, weak, batch_bytes=16 << 10, window_bytes=64 << 10) as result:
        result.wait_for(lambda: target.client().dbsize() > 0, "the first keys")
        target.client().execute_command("ACL", "SETUSER", "weak", "-mset")
    assert result.report.status == "done", result.report.errors
    assert_equal(source.url, target.url)
    assert target.client().info("commandstats")["cmdstat_restore"]["calls"] > 0


def test_unix_sockets(server_factory: ServerFactory) -> None:
    source, target = server_factory(None, unix=True), server_factory(None, unix=True)
    datasets.demo(source.url, n=300)
    report = copied(f"unix://{source.unix_path}", f"unix://{target.unix_path}").report
    assert report.status == "done"
    assert_equal(source.url, target.url)


def test_a_checkpoint_of_another_process_is_void(server_factory: ServerFactory) -> None:
    from engine.model.checkpoint import Checkpoint
    from engine.model.position import ScanPosition
    from engine.transfer.checkpoint_store import MemoryCheckpoint

    source, target = server_factory(), server_factory()
    source.client().mset({f"k{i}": i for i in range(200)})
    checkpoint = MemoryCheckpoint()
    checkpoint.save(Checkpoint(ScanPosition("0" * 40, 0, 12345, (1, 2)), "t", keys=999))
    result = copied(source, target, checkpoints=checkpoint)
    assert result.report.keys == 200
    assert any("checkpoint is void" in event for event in result.events)
    assert_equal(source.url, target.url)


@pytest.mark.parametrize("seen", ["while it waits", "at the word"])
def test_a_target_that_comes_back_older_behind_the_copy(
    seen: str, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks what was acknowledged, and nobody completes that: everything is copied again."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    source.client().mset({f"k{i}": i for i in range(200)})
    store = MemoryCheckpoint()
    if seen == "at the word":
        monkeypatch.setattr(target_monitor, "LOOK_SECONDS", 3600.0)
    with Run(source, target, source_type="scan", checkpoints=store) as run:
        run.reaches(Phase.COPIED)
        target.kill()
        target.restart()
        assert target.client().dbsize() == 0
        if seen == "at the word":
            run.complete()
    assert run.report.status == "stopped", (run.report.errors, run.events)
    assert "restarted or replaced since everything was copied" in run.report.errors[0]
    monkeypatch.undo()
    with Run(source, target, source_type="scan", checkpoints=store) as run:
        run.reaches(Phase.COPIED)
        run.complete()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_equal(source.url, target.url)


def test_redis_client_is_what_the_oracle_uses() -> None:
    """The oracle must not share the reader that it judges."""
    import benches.support.compare as oracle

    assert not any(name.startswith("engine") for name in vars(oracle))
    assert redis.__version__


@pytest.fixture
def tls_pair(server_factory: ServerFactory, tls_files: TlsFiles) -> tuple[Server, Server, str]:
    """Source and target that speak TLS alone, and the options that make a client accepted."""
    able = next((each for each in binaries() if supports_tls(each)), None)
    if able is None:
        pytest.skip("no server of this machine was built with TLS")
    options = f"cert_file={tls_files.client_cert}&key_file={tls_files.client_key}"
    source, target = (server_factory(able, tls=tls_files, password="s3cret") for _ in range(2))
    return source, target, options


def tls_url(server: Server, options: str) -> str:
    return f"rediss://:s3cret@{server.host}:{server.port}?server_name=localhost&{options}"


def test_tls_with_client_certificates(
    tls_pair: tuple[Server, Server, str], tls_files: TlsFiles
) -> None:
    source, target, options = tls_pair
    options += f"&ca_file={tls_files.ca}"
    client = source.client()
    client.mset({f"k{i}": os.urandom(500) for i in range(5000)})
    client.set("long", os.urandom(9 << 20))
    result = copied(tls_url(source, options), tls_url(target, options), stream_above=1 << 20)
    assert result.report.status == "done", result.report.errors
    assert source.client().dbsize() == target.client().dbsize() == 5001
    for key in ("k1", "k4999", "long"):
        assert source.client().get(key) == target.client().get(key)


def test_tls_is_verified_by_default(
    tls_pair: tuple[Server, Server, str], tls_files: TlsFiles
) -> None:
    source, target, options = tls_pair
    good = tls_url(target, f"{options}&ca_file={tls_files.ca}")
    report = copied(tls_url(source, options), good).report
    assert report.status == "failed"
    assert "certificate is not to be trusted" in report.errors[0]
    assert "could not be reached for" not in report.errors[0]
    wrong_name = tls_url(source, f"{options}&ca_file={tls_files.ca}")
    report = copied(wrong_name.replace("localhost", "elsewhere.example"), good).report
    assert report.status == "failed"
    assert "certificate is not to be trusted" in report.errors[0]
    assert copied(tls_url(source, f"{options}&verify=no"), good).report.status == "done"
