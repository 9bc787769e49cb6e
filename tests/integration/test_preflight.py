"""Every check of the preflight, on real servers with a real cause."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support.compare import compare
from benches.support.servers import Binary, Server, TlsFiles, binaries, make_tls_files, supports_tls
from engine._native import crc64
from engine.errors import UsageError
from engine.fleet.cut_over_comparisons import holds_keys
from engine.model.check_names import CHECKS
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import LEFT_KEY, POSITION_KEY, dirty_key
from engine.model.position import TargetPosition
from engine.model.server_capabilities import ServerCapabilities
from engine.model.settings import TransferSettings
from engine.transfer.checks.permission_keys import example
from engine.transfer.checks.probe_write import judge_clocks, skew
from engine.transfer.preflight import Check, Preflight, preflight
from engine.verify import verify
from tests.support.in_one_go import migrate
from tests.support.library import Run, copied
from tests.support.replicas import until_in_step
from tests.support.servers import ServerFactory, known
from tests.support.snapshots import fill

PERMISSIONS = Path(__file__).parents[2] / "docs" / "permissions.md"
SECRET = "not-to-be-seen-anywhere"
QUICK = TransferSettings(connect_timeout=5)


async def look(
    source: Server | str, target: Server | str, settings: TransferSettings = QUICK
) -> Preflight:
    ends = [end if isinstance(end, str) else end.url for end in (source, target)]
    result = await preflight(Endpoint.parse(ends[0]), Endpoint.parse(ends[1]), settings)
    text = json.dumps(result.to_dict())
    assert SECRET not in text
    assert Preflight.from_dict(json.loads(text)) == result
    for check in result.checks:
        assert check.figure
        assert bool(check.remedy) == (check.outcome != "pass"), check
    return result


def named(result: Preflight, name: str) -> Check:
    found = [check for check in result.checks if check.name == name]
    assert len(found) == 1, [check.name for check in result.checks]
    return found[0]


def fails(result: Preflight, name: str, *words: str) -> Check:
    return _finds(result, name, "fail", words)


def warns(result: Preflight, name: str, *words: str) -> Check:
    return _finds(result, name, "warn", words)


def _finds(result: Preflight, name: str, outcome: str, words: tuple[str, ...]) -> Check:
    check = named(result, name)
    assert check.outcome == outcome, check
    for word in words:
        assert word in check.figure + check.remedy, check
    assert result.ok == (not result.failures)
    return check


def version_of(binary: Binary) -> str:
    return ".".join(map(str, binary.version))


def at_least(*version: int) -> Binary:
    """A server of this version or a later one, whatever its flavour."""
    return next(binary for binary in binaries() if binary.version >= version)


def with_tls() -> Binary:
    found = [binary for binary in binaries() if supports_tls(binary)]
    if not found:
        pytest.skip("no server of this machine was built with TLS")
    return found[0]


async def test_a_plain_pair_passes(
    ring_pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    pair = ring_pair
    source = server_factory(pair[0], password=SECRET)
    target = server_factory(pair[1], password=SECRET)
    for db in (0, 9):
        client = source.client(db=db)
        client.set("string", "x")
        client.rpush("list", "a", "b")
        client.hset("hash", "f", "v")
    result = await look(source, target)
    assert result.ok, result.failures
    assert "round trip" in named(result, "source-reachable").figure
    assert version_of(pair[0]) in named(result, "source-version").figure
    assert version_of(pair[1]) in named(result, "target-version").figure
    assert "0, 9" in named(result, "databases").figure
    assert named(result, "probe").outcome == "pass"
    assert target.client().dbsize() == 0
    # Only what the two versions bring with them may be warned of.
    assert {check.name for check in result.warnings} <= {"value-types", "modules"}
    if pair[0] == pair[1]:
        assert not result.warnings


async def test_types_that_the_target_cannot_load(
    pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    source, target = (server_factory(binary) for binary in pair)
    client = source.client()
    client.rpush("list", "a")
    client.hset("hash", "f", "v")
    client.xadd("stream", {"f": "v"})
    client.sadd("set", "a")
    check = named(await look(source, target), "value-types")
    refused = []
    for kind, key in (("lists", "list"), ("small hashes", "hash"), ("streams", "stream")):
        if _refused(target, client.dump(key)):
            refused.append(kind)
    # Those are rewritten; TTLs of fields have no other form.
    for kind in refused:
        assert kind in check.figure, check
    assert ("are rewritten" in check.figure) >= bool(refused)
    there, here = (ServerCapabilities(each.flavour, each.version) for each in pair)
    assert (check.outcome == "warn") is (there.field_ttls and not here.field_ttls), check


def _refused(target: Server, payload: bytes) -> bool:
    """Whether the value is refused for what it is: its footer is made one that all servers take."""
    body = payload[:-10] + (1).to_bytes(2, "little")
    footed = body + crc64(body).to_bytes(8, "little")
    try:
        target.client().restore("copy", 0, footed, replace=True)
    except redis.ResponseError:
        return True
    target.client().delete("copy")
    return False


async def test_unreachable_ends_do_not_stop_the_others(server_factory: ServerFactory) -> None:
    target = server_factory()
    result = await look("redis://127.0.0.1:1", target)
    fails(result, "source-reachable", "127.0.0.1:1", "refused", "running")
    assert named(result, "target-version").outcome == "pass"
    assert named(result, "target-permissions").outcome == "pass"
    result = await look("redis://no-such-host.invalid:6379", "unix:///no/such/socket")
    fails(result, "source-reachable", "no-such-host.invalid", "resolve")
    fails(result, "target-reachable", "/no/such/socket")


async def test_a_server_that_does_not_answer(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.freeze()
    try:
        result = await look(source, target, TransferSettings(connect_timeout=0.3))
    finally:
        source.thaw()
    fails(result, "source-reachable", "no answer in time")


async def test_credentials(binary: Binary, server_factory: ServerFactory) -> None:
    locked = server_factory(binary, password=SECRET)
    open_one = server_factory(binary)
    at = f"{locked.host}:{locked.port}"
    fails(await look(f"redis://{at}", open_one), "source-auth", "wants a password")
    result = await look(f"redis://:{SECRET}-wrong@{at}", open_one)
    fails(result, "source-auth", "refused the password", "'default'")
    result = await look(f"redis://joe:{SECRET}@{at}", open_one)
    fails(result, "source-auth", "'joe'")
    result = await look(f"redis://:{SECRET}@{open_one.host}:{open_one.port}", locked)
    fails(result, "source-auth", "no password")
    assert named(result, "target-auth").outcome == "pass"


@pytest.mark.parametrize("dry_run", [True, False])
async def test_permissions(binary: Binary, server_factory: ServerFactory, dry_run: bool) -> None:
    """The same denials, found by ACL DRYRUN and, where the user may not ask it, by trying."""
    source, target = server_factory(binary), server_factory(binary)
    acl = "+acl|whoami +acl|dryrun" if dry_run and binary.version >= (7, 0, 0) else ""
    if binary.version < (7, 0, 0):
        acl = "+acl|whoami" if dry_run else ""
    rights = f"~* +ping +info +select +scan +pttl +time {acl}".split()
    for end in (source, target):
        end.client().execute_command("ACL SETUSER", "joe", "on", f">{SECRET}", *rights)
    ends = [f"redis://joe:{SECRET}@{end.host}:{end.port}" for end in (source, target)]
    how = "DRYRUN" if dry_run and binary.version >= (7, 0, 0) else "tried"
    result = await look(*ends)
    fails(result, "source-permissions", "DUMP", "OBJECT IDLETIME", "+dump", "ACL SETUSER joe", how)
    fails(result, "probe", "RESTORE", "'joe'")
    if how == "DRYRUN":
        fails(result, "target-permissions", "RESTORE", "+restore")
    # Without OBJECT a transfer can run: idle times are lost.
    source.client().execute_command("ACL SETUSER", "joe", "+dump")
    if binary.version >= (7, 0, 0):
        source.client().execute_command("ACL SETUSER", "joe", "+pexpiretime")
    result = await look(*ends)
    warns(result, "source-permissions", "OBJECT", "idle times", "MGET", "takes longer")
    source.client().execute_command("ACL SETUSER", "joe", "+object", "+mget")
    target.client().execute_command("ACL SETUSER", "joe", "+restore", "+get", "+del")
    result = await look(*ends)
    assert named(result, "source-permissions").outcome == "pass"
    # Nor does it need MSET.
    warns(result, "target-permissions", "MSET", "+mset", "takes longer")
    target.client().execute_command("ACL SETUSER", "joe", "+mset")
    result = await look(*ends)
    assert named(result, "target-permissions").outcome == "pass"
    assert named(result, "probe").outcome == "pass"


# --- The rights that following takes ---

SCAN = "+scan +dump +pttl +pexpiretime +time +object +mget +select +info +ping +type +exists +get"
FOLLOW = (
    "+psync +replconf +ping +info +time +multi +exec +discard +select +dump +pttl +pexpiretime "
    "+command|getkeys +client|pause +client|unpause"
)
APPLY = (
    "+restore +mset +multi +exec +discard +watch +unwatch +get +set +del +sadd +srem +smembers "
    "+persist +pexpireat +pexpire +pttl +pexpiretime +scan +eval +select +info +ping +time "
    "+flushall +config|set +client|import-source +type +exists"
)
ASKING = "+acl|whoami +acl|dryrun"


def user(server: Server, name: str, rights: str) -> str:
    """The URL of a user with these rights; those that a server does not know are left out."""
    client = server.client()
    client.execute_command("ACL SETUSER", name, "reset", "on", f">{SECRET}", "~*")
    for right in rights.split():
        with contextlib.suppress(redis.ResponseError):
            client.execute_command("ACL SETUSER", name, right)
    return f"redis://{name}:{SECRET}@{server.host}:{server.port}"


def by_dry_run(binary: Binary) -> bool:
    return binary.version >= (7, 0, 0)


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
async def test_rights_that_are_enough_to_follow(
    binary: Binary, server_factory: ServerFactory, asking: str
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    client.set("a", 1)
    result = await look(
        user(source, "follower", f"{FOLLOW} {asking}"),
        user(target, "applier", f"{APPLY} +@read +@write {asking}"),
    )
    assert result.ok, result.failures
    assert named(result, "following").outcome == "pass"
    check = named(result, "source-permissions")
    assert check.outcome == "pass", check
    # What a server never queues cannot be tried.
    assert ("not known: PSYNC" in check.figure) == (not asking and by_dry_run(binary)), check
    assert named(result, "target-permissions").outcome == "pass"
    assert named(result, "fence").outcome == "pass"
    assert named(result, "stream-commands").outcome == "pass"
    # Nor is it to close the source behind the cut-over.
    warns(result, "source-after", "CONFIG SET", "CLIENT KILL", "+config|set", "+client|kill")
    closing = f"{FOLLOW} {asking} +config|get +config|set +client|kill"
    result = await look(user(source, "closer", closing), target)
    assert all(each.name != "source-after" for each in result.checks)
    result = await look(
        user(source, "follower", f"{FOLLOW} {asking}"),
        user(target, "applier", f"{APPLY} +@read +@write {asking}"),
        replace(QUICK, source_after="resume"),
    )
    assert all(each.name != "source-after" for each in result.checks)
    # To read the comparison's values is more than to follow.
    warns(result, "source-comparison", "LRANGE", "+@read")
    # Nothing was done to either; nobody became a replica.
    assert client.info("replication")["connected_slaves"] == 0
    assert target.client().dbsize() == 0
    stats = client.info("stats")
    assert stats["sync_full"] == stats["sync_partial_err"] == 0


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
@pytest.mark.parametrize(
    "missing",
    ["+psync", "+replconf", "+multi", "+exec", "+time", "+dump"],
)
async def test_rights_that_the_source_lacks(
    few_binary: Binary, server_factory: ServerFactory, asking: str, missing: str
) -> None:
    source, target = server_factory(few_binary), server_factory(few_binary)
    rights = f"{FOLLOW} {SCAN} {asking}".replace(f"{missing} ", " ")
    url = user(source, "follower", rights)
    if missing == "+psync" and not asking and by_dry_run(few_binary):
        pytest.skip("this server never queues PSYNC: the handshake shows it")
    name = missing.removeprefix("+").upper().replace("|", " ")
    result = await look(url, target)
    if missing == "+dump":
        # Nor can it be scanned.
        fails(result, "source-permissions", "DUMP")
    check = warns(result, "following", "the source's user 'follower' may not run", name, missing)
    assert "later writes are not followed" in check.figure
    result = await look(url, target, replace(QUICK, source_type="replica"))
    fails(result, "source-permissions", name, "ACL SETUSER follower", missing)
    assert all(each.name != "following" for each in result.checks)
    # Who asked for a scan is told nothing of it.
    result = await look(url, target, replace(QUICK, source_type="scan"))
    assert all(each.name != "following" for each in result.checks)
    assert target.client().dbsize() == 0


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
@pytest.mark.parametrize(
    "missing", ["multi", "exec", "discard", "watch", "unwatch", "get", "set", "sadd", "eval"]
)
async def test_rights_that_the_target_lacks(
    few_binary: Binary, server_factory: ServerFactory, asking: str, missing: str
) -> None:
    source, target = server_factory(few_binary), server_factory(few_binary)
    rights = " ".join(each for each in APPLY.split() if each != f"+{missing}")
    url = user(target, "applier", f"{rights} {asking}")
    result = await look(source, url)
    importing = few_binary.flavour == "valkey" and few_binary.version >= (8, 1, 0)
    if missing == "eval" and importing:
        # Deadlines wait by themselves there.
        assert named(result, "following").outcome == "pass"
        url = user(target, "applier", f"{rights} {asking}".replace("+config|set", ""))
        result = await look(source, url)
    if not asking and missing == "discard":
        # Nothing can be queued: what has no harmless form stays unknown.
        assert target.client().dbsize() == 0
    check = warns(result, "following", "the target's user 'applier'", missing.upper())
    assert f"+{missing}" in check.remedy
    result = await look(source, url, replace(QUICK, source_type="replica"))
    fails(result, "target-permissions", missing.upper(), f"+{missing}")


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
async def test_rights_that_are_needed_later(
    binary: Binary, server_factory: ServerFactory, asking: str
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    rights = FOLLOW.replace("+client|pause +client|unpause", "")
    one = user(source, "follower", f"{rights} +@read {asking}")
    other = user(target, "applier", f"{APPLY} +@read {asking}")
    result = await look(one, other)
    fails(result, "fence", "CLIENT PAUSE", "+client|pause", "--fence none")
    warns(result, "stream-commands", "ZADD", "XADD", "+@write")
    assert all("comparison" not in each.name for each in result.checks)
    for settings in (
        replace(QUICK, fence="none"),
        replace(QUICK, until="in-sync"),
    ):
        result = await look(one, other, settings)
        assert result.ok, result.failures
        assert all(each.name not in ("fence", "source-after") for each in result.checks)
    result = await look(one, other, replace(QUICK, fence="none", tune_source=True))
    fails(result, "tune-source", "CONFIG SET", "+config|set", "--tune-source")


def move(source: str, target: str, **settings: Any) -> Run:
    return copied(source, target, **{"source_type": "auto", **settings})


@pytest.mark.parametrize("missing", ["psync", "replconf"])
def test_without_the_source_s_rights_it_is_scanned(
    binary: Binary, server_factory: ServerFactory, missing: str
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(100)})
    rights = f"{FOLLOW} {SCAN} ".replace(f"+{missing} ", " ")
    url = user(source, "follower", rights)
    run = move(url, target.url)
    assert run.report.status == "done", run.report.errors
    assert run.report.source_type == "scan"
    (event,) = [event for event in run.events if "scanned" in event]
    assert missing.partition("|")[0].upper() in event
    assert target.client().dbsize() == 100
    run = move(url, target.url, source_type="replica")
    assert run.report.status == "failed"
    assert f"+{missing}" in run.report.errors[0]


def test_without_the_right_to_ask_for_keys_it_is_followed(
    binary: Binary, server_factory: ServerFactory
) -> None:
    """It knows the keys of every command but a module's, or a newer server's."""
    source, target = server_factory(binary), server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(100)})
    url = user(source, "follower", f"{FOLLOW} +@read ".replace("+command|getkeys ", " "))
    run = move(url, target.url)
    assert run.report.status == "done", run.report.errors
    assert run.report.source_type == "replica"
    assert target.client().dbsize() == 100


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
async def test_the_right_to_ask_for_keys_is_missed_seldom(
    binary: Binary, server_factory: ServerFactory, asking: str
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    rights = f"{FOLLOW} {SCAN} {asking}".replace("+command|getkeys ", " ")
    url = user(source, "follower", rights)
    result = await look(url, target, replace(QUICK, source_type="replica"))
    warns(result, "source-permissions", "COMMAND GETKEYS", "every key compared", "+command|getkeys")


@pytest.mark.parametrize("missing", ["multi", "watch", "set", "sadd"])
def test_without_the_target_s_rights_the_source_is_scanned(
    binary: Binary, server_factory: ServerFactory, missing: str
) -> None:
    source, target = server_factory(binary), server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(100)})
    rights = " ".join(each for each in APPLY.split() if each != f"+{missing}")
    url = user(target, "applier", rights)
    run = move(source.url, url, source_type="replica")
    assert run.report.status == "failed"
    assert f"+{missing}" in run.report.errors[0]
    # Before a single key was copied.
    assert target.client().dbsize() == 0
    run = move(source.url, url)
    assert run.report.status == "done", run.report.errors
    assert run.report.source_type == "scan"
    (event,) = [event for event in run.events if "scanned" in event]
    assert missing.upper() in event
    assert target.client().dbsize() == 100


def test_with_the_rights_it_is_followed(binary: Binary, server_factory: ServerFactory) -> None:
    """What docs/permissions.md names is enough, and what the checks ask for."""
    source, target = server_factory(binary), server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(100)})
    source.client().set("late", 1, ex=1000)
    run = move(user(source, "follower", FOLLOW), user(target, "applier", APPLY))
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.source_type == "replica"
    assert target.client().dbsize() == 101
    assert 0 < target.client().ttl("late") <= 1000


def documented_rights(heading: str) -> dict[str, str]:
    """What docs/permissions.md lists behind `heading`, by the end whose user needs it."""
    text = PERMISSIONS.read_text().partition(f"\n{heading}")[2]
    block = text.partition("```\n")[2].partition("```")[0]
    rights = dict(line.split(": ", 1) for line in block.splitlines())
    assert set(rights) == {"source", "target"}
    return rights


@pytest.mark.parametrize("server", ["redis-6.2", "redis-7.0"])
@pytest.mark.parametrize("way", ["scan", "follow"])
def test_what_the_documentation_lists_is_enough(
    server: str, way: str, server_factory: ServerFactory, state_url: str
) -> None:
    """A user at each end with exactly these rights migrates, the comparison included."""
    source, target = server_factory(known(server)), server_factory(known(server))
    client = source.client()
    fill(source, "tiny")
    client.set("late", 1, ex=1000)
    for library in client.function_list() if client.info()["redis_version"] >= "7" else ():
        # What carries libraries is listed by itself.
        client.function_delete(library[1])
    rights = documented_rights(f"Rights to {way}")
    ends = [
        user(end, "few", rights[side]) for side, end in (("source", source), ("target", target))
    ]
    report, told = migrate(state_url, *ends, source_type="scan" if way == "scan" else "replica")
    assert report.status == "done", (report.errors, told)
    assert report.verification is not None
    assert report.verification.ok
    assert compare(source.url, target.url).equal


def test_a_source_that_denies_time(server_factory: ServerFactory) -> None:
    """Before 7.0 a TTL is relative, and hangs on TIME, or on this machine's clock."""
    source, target = server_factory(known("redis-6.2")), server_factory(known("redis-6.2"))
    client = source.client()
    client.mset({f"key:{n}": n for n in range(100)})
    client.set("late", 1, ex=1000)
    url = user(source, "timeless", SCAN.replace(" +time", ""))
    result = asyncio.run(look(url, target, replace(QUICK, source_type="scan")))
    assert result.ok, result.failures
    warns(result, "clocks", "TIME denied")
    check = warns(result, "source-permissions", "expire times follow this machine's clock", "+time")
    assert "TIME" in check.figure
    run = move(url, target.url, source_type="scan")
    assert run.report.status == "done", run.report.errors
    assert target.client().dbsize() == 101
    assert 990 < target.client().ttl("late") <= 1000


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
def test_what_cannot_be_compared_in_the_end_is_not_begun(
    server_factory: ServerFactory, asking: str, state_url: str
) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().mset({f"key:{n}": n for n in range(100)})
    url = user(source, "blind", f"{SCAN.replace(' +type', '')} {asking}")
    report, told = migrate(state_url, url, target.url, source_type="scan")
    assert report.status == "failed"
    assert (
        "both ends cannot be compared: the source's user 'blind' may not run TYPE"
        in (report.errors[0])
    )
    assert "ACL SETUSER blind +@read" in report.errors[0]
    assert target.client().dbsize() == 0
    # Lists are read by LRANGE, which the user may not run either; there are none.
    url = user(source, "seeing", f"{SCAN} +dbsize +getrange {asking}")
    report, told = migrate(state_url, url, target.url, source_type="scan")
    assert report.status == "done", (report.errors, told)
    # One that is left behind is no matter.
    source.client().rpush("list", "a")
    some: dict[str, Any]
    for some in (
        {"include": ("type:string",)},
        {"exclude": ("prefix:li",)},
        {"match": "key:*"},
        {"key_type": "string"},
    ):
        target.client().flushall()
        report, told = migrate(state_url, url, target.url, **some)
        assert report.status == "done", (some, report.errors, told)
    target.client().flushall()
    report, _ = migrate(state_url, url, target.url, exclude=("type:string",))
    assert "may not run LRANGE" in report.errors[0]


@pytest.mark.parametrize("asking", [ASKING, ""], ids=["asked", "tried"])
async def test_a_target_that_denies_restore(server_factory: ServerFactory, asking: str) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", 1)
    url = user(target, "barred", f"+mset +select +info +ping +time +del +@read {asking}")
    result = await look(source, url, replace(QUICK, source_type="scan"))
    fails(result, "probe", "may not run RESTORE", "ACL SETUSER barred +restore, or give another")


async def test_a_user_of_some_keys_only(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    client = source.client()
    client.execute_command("ACL SETUSER", "joe", "on", f">{SECRET}", "~app:*", "+@all")
    result = await look(f"redis://joe:{SECRET}@{source.host}:{source.port}", target)
    fails(result, "source-permissions", "DUMP")


SOME_KEYS = ("redis-6.0", "redis-7.0")
"""Without ACL DRYRUN, and with it."""


def of_some_keys(server: Server, *rules: str) -> str:
    """The URL of a user with these rules."""
    client = server.client()
    client.execute_command("ACL SETUSER", "few", "reset", "on", f">{SECRET}", "+@all", *rules)
    return f"redis://few:{SECRET}@{server.host}:{server.port}"


@pytest.mark.parametrize("server", SOME_KEYS)
async def test_keys_that_a_user_may_touch(server: str, server_factory: ServerFactory) -> None:
    source, target = server_factory(known(server)), server_factory(known(server))
    client = source.client()
    client.mset({f"app:{n}": n for n in range(300)})
    client.set("other:1", "not to be moved")
    ends = [of_some_keys(each, "~app:*") for each in (source, target)]
    chosen = replace(QUICK, match="app:*")
    # 1. What its rules name is moved.
    result = await look(*ends, chosen)
    assert result.ok, result.failures
    for name in ("source-permissions", "target-permissions", "probe"):
        assert named(result, name).outcome == "pass", named(result, name)
    assert target.client().dbsize() == 0
    warns(result, "other-migration", "GET on this key", "ACL SETUSER few ~startmigration:*")
    run = await asyncio.to_thread(copied, *ends, match="app:*")
    assert run.report.status == "done", run.report.errors
    found = target.client().mget([f"app:{n}" for n in range(300)])
    assert found == [str(n).encode() for n in range(300)]
    assert target.client().dbsize() == 300
    # 2. All keys are more than they name, and so is a pattern of others: no command is missing.
    for other in (replace(QUICK, source_type="scan"), replace(QUICK, match="oth*")):
        check = fails(await look(*ends, other), "source-permissions", "'other:1'", "--match")
        assert "+dump" not in check.remedy
        assert "ACL SETUSER few ~*" in check.remedy
    # 3. A pattern that no key fits yet.
    empty = await look(*ends, replace(QUICK, match="app:[x-z]?:*"))
    assert named(empty, "source-permissions").outcome == "pass"
    fails(await look(*ends, replace(QUICK, match="no:*")), "source-permissions", "'no:")
    # 4. Followed where the rules allow it.
    for each in (source, target):
        of_some_keys(each, "~app:*", "~startmigration:*")
    client.delete("other:1")
    result = await look(*ends, replace(QUICK, source_type="replica"))
    assert result.ok, result.failures


async def test_what_rules_take_of_a_targets_user(server_factory: ServerFactory) -> None:
    """Not FLUSHALL; and scripts also where there is import mode, which is the whole server's."""
    source, target = server_factory(), server_factory(known("valkey-8.1"))
    source.client().set("app:1", 1)
    whole = replace(QUICK, source_type="replica")
    by_rules = replace(whole, include=("prefix:app:",))
    url = of_some_keys(target, "~*", "-flushall")
    warns(await look(source, url, whole), "target-permissions", "FLUSHALL")
    assert named(await look(source, url, by_rules), "target-permissions").outcome == "pass"
    url = of_some_keys(target, "~*", "-eval")
    assert named(await look(source, url, whole), "target-permissions").outcome == "pass"
    fails(await look(source, url, by_rules), "target-permissions", "EVAL")


async def test_keys_that_a_user_may_read(server_factory: ServerFactory) -> None:
    """Rules of 7.0: for reading alone, and selectors."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().mset({"app:1": 1, "app:2": 2})
    ends = [of_some_keys(source, "%R~app:*"), of_some_keys(target, "%R~app:*")]
    result = await look(*ends, replace(QUICK, match="app:*"))
    assert named(result, "source-permissions").outcome == "pass"
    fails(result, "target-permissions", "RESTORE", "may not touch the key 'app:")
    for each in (source, target):
        each.client().execute_command(
            *("ACL SETUSER", "few", "reset", "on", f">{SECRET}", "+@all"), "(+@all ~app:*)"
        )
    result = await look(*ends, replace(QUICK, match="app:*"))
    assert result.ok, result.failures


async def test_a_pattern_takes_its_example_in(server_factory: ServerFactory) -> None:
    client = server_factory(known("redis-7.0")).client()
    patterns = [
        "*",
        "app:*",
        "a?c",
        "[abc]*",
        "[^a-y]x*",
        r"\*lit[\]e]*",
        "a*b*c",
        "[z-a]1",
        "[a",
        "",
    ]
    for pattern in patterns:
        name = example(pattern.encode())
        client.set(name, 1)
        assert name in client.keys(pattern), (pattern, name)
        client.delete(name)


async def test_a_user_of_a_server_without_users(server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-5.0"), password=SECRET), server_factory()
    source.client().set("a", 1)
    url = f"redis://%s:{SECRET}@{source.host}:{source.port}"
    result = await look(url % "default", target)
    assert result.ok, result.failures
    run = await asyncio.to_thread(copied, url % "default", target)
    assert run.report.status == "done", run.report.errors
    assert target.client().get("a") == b"1"
    target.client().flushall()
    fails(await look(url % "joe", target), "source-auth", "has no users", "'joe'")
    run = await asyncio.to_thread(copied, url % "joe", target, retry_for=2.0)
    assert "has no users" in run.report.errors[0]


async def test_info_denied(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().execute_command("ACL SETUSER", "joe", "on", f">{SECRET}", "~*", "+ping")
    result = await look(f"redis://joe:{SECRET}@{source.host}:{source.port}", target)
    fails(result, "source-version", "INFO", "'joe'")


@pytest.mark.parametrize("server", ["redis-2.8", "redis-5.0"])
async def test_passwords_before_there_were_users(
    server: str, server_factory: ServerFactory
) -> None:
    """Their words name no user, and no ACL."""
    locked, other = server_factory(known(server), password=SECRET), server_factory(known(server))
    at = f"{locked.host}:{locked.port}"
    check = fails(await look(f"redis://:{SECRET}-wrong@{at}", other), "source-auth")
    assert check.figure == f"source {at} refused the password."
    assert check.remedy == "Check the password; a server before Redis 6.0 has one, and no users."
    at = f"{other.host}:{other.port}"
    check = fails(await look(f"redis://:{SECRET}@{at}", locked), "source-auth")
    assert check.figure == f"source {at} has no password set, and refuses the one given."
    assert check.remedy == "Leave out the password."


@pytest.mark.parametrize("server", ["redis-2.8", "redis-3.2"])
async def test_a_target_too_old_has_one_reason(server: str, server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-6.2")), server_factory(known(server))
    result = await look(source, target)
    fails(result, "target-version", "no ABSTTL", "Redis 5.0 or later")
    assert all(each.name != "probe" for each in result.checks)
    assert [each.name for each in result.checks if each.outcome == "fail"] == ["target-version"]
    source.client().set("a", 1)
    source.client().save()
    result = await look(f"rdb:{source.folder}/dump.rdb", target)
    assert [each.name for each in result.checks if each.outcome == "fail"] == ["target-version"]


async def test_a_command_renamed_away(server_factory: ServerFactory) -> None:
    old = [binary for binary in binaries() if binary.flavour == "redis"]
    source = server_factory(old[0], "--rename-command", "DUMP", "")
    check = fails(await look(source, server_factory()), "source-permissions", "DUMP")
    assert "the source does not know DUMP (renamed, switched off" in check.figure
    assert "ACL" not in check.remedy


@pytest.mark.parametrize("server", ["redis-5.0", "redis-7.0"])
async def test_a_command_of_another_name(server: str, server_factory: ServerFactory) -> None:
    names = ("--rename-command", "CONFIG", "XYZ", "--rename-command", "PSYNC", "psy")
    source, target = server_factory(known(server), *names), server_factory(known(server))
    source.client().set("a", 1)
    result = await look(source, target)
    check = warns(result, "following", "does not know PSYNC", "--psync-command NAME")
    assert "ACL" not in check.remedy
    given = ("source:PSYNC=psy",)
    result = await look(source, target, replace(QUICK, command_names=given))
    assert named(result, "following").outcome == "pass"
    option = "--command-name source:CONFIG=NAME"
    check = warns(result, "source-after", "does not know CONFIG GET", option)
    assert "ACL" not in check.remedy
    given += ("source:CONFIG=XYZ",)
    result = await look(source, target, replace(QUICK, command_names=given))
    assert result.ok
    assert all(each.name != "source-after" for each in result.checks)


@pytest.mark.parametrize("end", ["source", "target"])
async def test_info_of_another_name(end: str, server_factory: ServerFactory) -> None:
    ends = [server_factory(known("redis-7.0"), "--rename-command", "INFO", "facts")]
    ends.insert(0 if end == "target" else 1, server_factory(known("redis-7.0")))
    check = fails(await look(*ends), f"{end}-version", "answered INFO with: ERR unknown")
    option = f"--command-name {end}:INFO=NAME"
    assert check.remedy == f"Where rename-command gave it another name: {option}."
    given = replace(QUICK, command_names=(f"{end}:INFO=facts",))
    assert (await look(*ends, given)).ok


async def test_settings_that_are_unlike(server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-6.2")), server_factory(known("redis-7.0"))
    followed = replace(QUICK, source_type="replica")
    result = await look(source, target, followed)
    assert named(result, "script-effects").outcome == "pass"
    assert named(result, "hyperloglogs").outcome == "pass"
    source.client().config_set("lua-replicate-commands", "no")
    source.client().config_set("hll-sparse-max-bytes", 100)
    result = await look(source, target, followed)
    warns(result, "script-effects", "as they are", "lua-replicate-commands yes on the source")
    warns(result, "hyperloglogs", "100 on the source", "3000 on the target", "SET hll-sparse")
    # A scan reads no stream.
    result = await look(source, target, replace(QUICK, source_type="scan"))
    assert all(each.name != "script-effects" for each in result.checks)
    result = await look(target, source, followed)
    assert all(each.name != "script-effects" for each in result.checks)


async def test_scripts_of_the_oldest(server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-3.2")), server_factory(known("redis-5.0"))
    assert named(await look(source, target), "script-effects").outcome == "pass"
    source.client().eval("return 1", 0)
    check = warns(await look(source, target), "script-effects", "scripts (EVAL) as they are")
    assert "CONFIG SET" not in check.remedy
    assert "no moment is left for it: stop those writers first (--fence hook" in check.remedy


async def test_tls(server_factory: ServerFactory, tls_files: TlsFiles, tmp_path: Path) -> None:
    binary = with_tls()
    source = server_factory(binary, "--tls-auth-clients", "yes", tls=tls_files, password=SECRET)
    target = server_factory(binary)
    at = f"rediss://:{SECRET}@{source.host}:{source.port}"
    ours = f"&cert_file={tls_files.client_cert}&key_file={tls_files.client_key}"
    result = await look(f"{at}?ca_file={tls_files.ca}{ours}", target)
    assert result.ok, result.failures
    assert "client certificate" in named(result, "source-tls").figure
    assert "off" in named(result, "target-tls").figure
    warns(await look(f"{at}?verify=no{ours}", target), "source-tls", "not verified")
    other = make_tls_files(tmp_path / "other")
    result = await look(f"{at}?ca_file={other.ca}{ours}", target)
    fails(result, "source-reachable", "not to be trusted", "ca_file")
    result = await look(f"{at}?ca_file={tls_files.ca}&server_name=other.test{ours}", target)
    fails(result, "source-reachable", "other.test", "server_name")
    result = await look(f"{at}?ca_file={tls_files.ca}", target)
    fails(result, "source-reachable", "cert_file")
    result = await look(f"{at}?ca_file={tmp_path}/none.pem{ours}", target)
    fails(result, "source-tls", "none.pem", "ca_file")
    plain = f"redis://:{SECRET}@{source.host}:{source.port}"
    fails(await look(plain, target), "source-reachable", "rediss://")


async def test_one_server_as_both_ends(binary: Binary, server_factory: ServerFactory) -> None:
    source = server_factory(binary, unix=True)
    source.client().set("key", "value")
    result = await look(source.url, source.unix_url)
    fails(result, "different-servers", "its own target")
    assert all(check.name != "probe" for check in result.checks)
    assert source.client().info("commandstats").get("cmdstat_restore") is None


async def test_ends_of_one_replication(binary: Binary, server_factory: ServerFactory) -> None:
    primary = server_factory(binary)
    replica = server_factory(binary)
    replica.client().replicaof(primary.host, primary.port)
    until_in_step(replica)
    result = await look(primary, replica)
    fails(result, "different-servers", "replica of the source")
    fails(result, "target-role", "REPLICAOF NO ONE", str(primary.port))
    assert all(check.name != "probe" for check in result.checks)
    result = await look(replica, primary)
    fails(result, "different-servers", "the source is a replica of the target")
    # A replica as the source of another server: possible, with a word.
    elsewhere = server_factory(binary)
    result = await look(replica, elsewhere)
    warns(result, "source-role", "replica of", "primary")
    assert named(result, "different-servers").outcome == "pass"
    # A replica of another primary as the target.
    result = await look(elsewhere, replica)
    fails(result, "target-role")
    fails(result, "probe", "READONLY")


async def test_a_replica_whose_link_is_down(server_factory: ServerFactory) -> None:
    """Nothing of its replication id tells from whom it will have its data; its chain does."""
    target = server_factory(password=SECRET)
    middle, source = server_factory(), server_factory()
    # Without the primary's password neither link comes up.
    middle.client().replicaof("127.0.0.1", target.port)
    result = await look(middle, target)
    fails(result, "different-servers", "the source is a replica of the target: they hold")
    source.client().replicaof("127.0.0.1", middle.port)
    assert source.client().info("replication")["master_link_status"] == "down"
    result = await look(source, target)
    primary = f"(its primary is 127.0.0.1:{middle.port})"
    fails(result, "different-servers", f"the source is a replica of the target {primary}")
    assert all(check.name != "probe" for check in result.checks)
    assert named(await look(target, source), "different-servers").outcome == "fail"
    # Two replicas of one primary; and servers that are replicas of each other end the walk.
    beside = server_factory()
    beside.client().replicaof("127.0.0.1", middle.port)
    fails(await look(source, beside), "different-servers", "both belong to one replication")
    middle.client().replicaof("127.0.0.1", source.port)
    elsewhere = server_factory()
    assert named(await look(source, elsewhere), "different-servers").outcome == "pass"


async def test_checks_that_are_skipped(server_factory: ServerFactory) -> None:
    """By name; the figure is still told, and the probe, which is a write, is left out."""
    source, target = server_factory(), server_factory(None, "--databases", "4")
    source.client(db=9).set("key", "value")
    result = await look(source, target)
    fails(result, "databases", "no database 9")
    result = await look(source, target, replace(QUICK, skip_checks=("databases", "probe")))
    assert result.ok
    warns(result, "databases", "skipped as asked: to be moved: 9", "no database 9")
    assert all(check.name != "probe" for check in result.checks)
    # A server that is its own source is never fed with itself.
    for name, words in (
        ("different-servers", "cannot be skipped"),
        ("memroy", "no check 'memroy'"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            replace(QUICK, skip_checks=(name,))
        if name == "memroy":
            assert "memory" in caught.value.remedy
            assert "different-servers" not in caught.value.remedy


def test_every_check_has_its_name_in_the_table() -> None:
    """What is not in it could not be skipped, and a name in it that is no check's is misleading."""
    folder = Path(preflight.__code__.co_filename).parent
    found: set[str] = set()
    others = [folder / name for name in ("preflight.py", "leftovers.py")]
    for path in (*others, *sorted((folder / "checks").glob("*.py"))):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            # Where a check is made, and where its name is written down before.
            named_here: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("passed", "warned", "failed"):
                    named_here = node.args[:1]
                elif node.func.id == "_guarded":
                    named_here = node.args[1:2]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
                "name",
                "NAME",
                "FOLLOWING",
            ):
                value = node.value
                named_here = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            for each in named_here:
                if isinstance(each, ast.Constant):
                    found.add(str(each.value))
                elif isinstance(each, ast.JoinedStr):
                    found |= {
                        eval(ast.unparse(each), {"side": side, "name": name})
                        for side in ("source", "target")
                        for name in ("auth", "answer")
                    }
    # "auth" and "answer" are told with the end's name before them.
    assert found - {"auth", "answer"} == CHECKS


async def test_cluster_mode(binary: Binary, server_factory: ServerFactory) -> None:
    node, alone = server_factory(binary, cluster=True), server_factory(binary)
    fails(await look(node, alone), "source-mode", "cluster mode")
    fails(await look(alone, node), "target-mode", "cluster mode")


async def test_memory_and_eviction(binary: Binary, server_factory: ServerFactory) -> None:
    source = server_factory(binary)
    for index in range(8):
        source.client().set(f"key:{index}", b"x" * (1 << 20))
    small = server_factory(binary, "--maxmemory", "6mb", "--maxmemory-policy", "allkeys-lru")
    result = await look(source, small)
    fails(result, "memory", "MiB needed", "maxmemory")
    warns(result, "eviction", "allkeys-lru", "noeviction")
    # A part of the data may fit.
    some = TransferSettings(match="key:1")
    warns(await look(source, small, some), "memory", "at most")
    ample = server_factory(binary, "--maxmemory", "64mb", "--maxmemory-policy", "noeviction")
    result = await look(source, ample)
    assert named(result, "memory").outcome == named(result, "eviction").outcome == "pass"


async def test_a_target_that_is_full(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    target.client().config_set("maxmemory", 1)
    fails(await look(source, target), "probe", "OOM", "maxmemory")


async def test_databases(binary: Binary, server_factory: ServerFactory) -> None:
    source, target = server_factory(binary), server_factory(binary, databases=4)
    source.client().set("a", 1)
    source.client(db=9).set("a", 1)
    fails(await look(source, target), "databases", "0, 9", "no database 9, only those from 0 to 3")
    result = await look(source, target, TransferSettings(databases=(0,)))
    assert named(result, "databases").outcome == "pass"
    assert "database 0: 1 keys" in named(result, "chosen-databases").figure
    # The figure is lost, the finding is not, where CONFIG is denied.
    target.client().execute_command(
        "ACL SETUSER", "joe", "on", f">{SECRET}", "~*", "+@all", "-config"
    )
    result = await look(source, f"redis://joe:{SECRET}@{target.host}:{target.port}")
    fails(result, "databases", "no database 9")
    assert "denied" in named(result, "value-limit").figure


async def test_chosen_databases(server_factory: ServerFactory) -> None:
    source, target = server_factory(databases=16), server_factory()
    source.client(db=3).set("a", 1)
    result = await look(source, target, TransferSettings(databases=(20,)))
    fails(result, "chosen-databases", "no database 20", "3")
    result = await look(source, target, TransferSettings(databases=(3, 5)))
    warns(result, "chosen-databases", "no keys in database 5")


async def test_existing_keys(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client(db=2).set("a", 1)
    target.client().set("elsewhere", 1)
    result = await look(source, target)
    assert "1 in other databases" in named(result, "existing-keys").figure
    target.client(db=2).set("b", 1)
    for policy, word in (("replace", "overwritten"), ("skip", "stay"), ("fail", "fail")):
        result = await look(source, target, TransferSettings(if_exists=policy))
        warns(result, "existing-keys", "1 in database 2", word)
    assert target.client(db=2).get("b") == b"1"


async def test_the_engines_own_keys_are_no_keys_of_the_target(
    server_factory: ServerFactory,
) -> None:
    source, target = server_factory(), server_factory()
    source.client().set("a", 1)
    position = TargetPosition("0123456789abcdef", None)
    client = target.client()
    client.set(POSITION_KEY, position.encode())
    client.sadd(dirty_key("0123456789abcdef"), "name")
    client.set(LEFT_KEY, position.encode())
    assert not await holds_keys(Endpoint.parse(target.url), QUICK)
    found = named(await look(source, target), "existing-keys")
    assert (found.outcome, found.figure) == ("pass", "none in the databases that are moved")
    client.set("a", 1)
    warns(await look(source, target), "existing-keys", "on the target: 1 in database 0")
    # Where they are going to be removed, none is said to stay.
    taken = TransferSettings(take_over=True)
    client.set(POSITION_KEY, replace(position, held_before=True).encode())
    warns(
        await look(source, target, taken), "existing-keys", "they are overwritten, else they stay"
    )
    client.delete(POSITION_KEY, dirty_key("0123456789abcdef"))
    warns(await look(source, target, taken), "existing-keys", "1 in database 0; they are removed")
    assert await holds_keys(Endpoint.parse(target.url), QUICK)
    # Nor are they of the comparison's counts.
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    found_equal = await verify(*ends, QUICK)
    assert (found_equal.ok, found_equal.keys_source, found_equal.keys_target) == (True, 1, 1)


async def test_a_spool_that_cannot_be_used(
    server_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = server_factory(), server_factory()
    assert "free in" in named(await look(source, target), "spool").figure
    absent = replace(QUICK, spool_directory=str(tmp_path / "absent"))
    fails(await look(source, target, absent), "spool", "absent", "--spool-directory")
    # A source that is scanned needs none.
    scanned = replace(absent, source_type="scan")
    assert all(each.name != "spool" for each in (await look(source, target, scanned)).checks)
    monkeypatch.setattr("engine.sources.spool._free_bytes", lambda _: 7 << 20)
    fails(await look(source, target), "spool", "has 7 MiB free", "--spool-bytes")


async def test_what_2_8_has_not(server_factory: ServerFactory) -> None:
    source, target = server_factory(known("redis-2.8")), server_factory(known("redis-6.2"))
    result = await look(source, target)
    assert named(result, "source-permissions").outcome == "pass"
    fence = named(result, "fence")
    assert (fence.outcome, "before 3.0 none can be paused" in fence.figure) == ("pass", True)


async def test_type_filter_and_old_servers(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    result = await look(source, target, TransferSettings(key_type="hash"))
    assert named(result, "source-permissions").outcome == "pass"


async def test_modules(server_factory: ServerFactory) -> None:
    with_module = [binary for binary in binaries() if _modules_of(binary)]
    if not with_module:
        pytest.skip("no server of this machine brings a module")
    without = next(binary for binary in binaries() if not _modules_of(binary))
    source = server_factory(with_module[0])
    warns(await look(source, server_factory(without)), "modules", *_modules_of(with_module[0]))
    result = await look(source, server_factory(with_module[0]))
    assert named(result, "modules").outcome == "pass"


def _modules_of(binary: Binary) -> set[str]:
    """Redis 8 has vector sets built in as a module."""
    return {"vectorset"} if binary.flavour == "redis" and binary.version >= (8, 0, 0) else set()


async def test_scripts_that_the_source_would_not_refuse(server_factory: ServerFactory) -> None:
    old, target = known("redis-6.0"), server_factory(known("redis-6.2"))
    source, replica = server_factory(old), server_factory(old)
    name = "source-scripts"
    assert "no script since its start" in named(await look(source, target), name).figure
    client = source.client()
    client.evalsha(client.script_load("return redis.call('SET', KEYS[1], 1)"), 1, "a")
    client.pipeline(transaction=True).eval("return redis.call('INCR', KEYS[1])", 1, "a").execute()
    words = ("6.0", "run 2 scripts since its start", "answers no client", "--fence hook")
    warns(await look(source, target), name, *words, "--fence none")
    # Where it cannot be held they are lost.
    lost = (*words[:2], "acknowledged, and lost", "a longer pause is not possible", "--fence hook")
    once = replace(QUICK, disconnect_for=0)
    warns(await look(source, target, once), name, *lost, "--disconnect-for 0")
    with source.client(client_name="sentinel-0a1b2c3d-cmd") as watching:
        watching.ping()
        warns(await look(source, target), name, *lost, "Sentinel")
    # What does not end with a source that is to refuse writes is not concerned; nor is 6.2.
    for settings in (
        replace(QUICK, fence="none"),
        replace(QUICK, source_after="resume"),
        replace(QUICK, until="in-sync"),
        replace(QUICK, source_type="scan"),
    ):
        result = await look(source, target, settings)
        assert all(each.name != name for each in result.checks), settings
    target.client().eval("return 1", 0)
    result = await look(target, server_factory(known("redis-6.2")))
    assert all(each.name != name for each in result.checks)
    # A replica's scripts are run at its primary.
    replica.client().replicaof(source.host, source.port)
    until_in_step(replica)
    warns(await look(replica, target), name, *words)
    source.stop()
    warns(await look(replica, target), name, "how many it has run is not known", "--fence hook")


async def test_a_source_that_refuses_writes(server_factory: ServerFactory) -> None:
    """By the write block that an earlier cut-over has left, or because it has too few replicas; of
    a source that is a replica its primary is asked."""
    source, replica, target = (server_factory(known("redis-7.0")) for _ in range(3))
    name, client = "source-writes", source.client()
    replica.client().replicaof(source.host, source.port)
    until_in_step(replica)

    async def finds_nothing() -> None:
        assert all(each.name != name for each in (await look(source, target)).checks)

    await finds_nothing()
    client.config_set("min-replicas-to-write", 65535)
    words = f"127.0.0.1:{source.port} refuses writes: min-replicas-to-write is 65535", "unblock-"
    for end in (source, replica):
        warns(await look(end, target), name, *words, "CONFIG SET min-replicas-to-write 0")
    client.config_set("min-replicas-max-lag", 0)
    await finds_nothing()
    client.config_set("min-replicas-max-lag", 10)
    client.config_set("min-replicas-to-write", 2)
    warns(await look(source, target), name, "is 2, and it has 1 replicas", "CONFIG SET")
    client.config_set("min-replicas-to-write", 1)
    await finds_nothing()


async def test_replicas_that_durability_asks_for(server_factory: ServerFactory) -> None:
    """They count at the cut-over, and may be attached until then; the right to ask for them too."""
    source, target, replica = (server_factory(known("redis-7.0")) for _ in range(3))
    name, wanted = "durability", replace(QUICK, durability="replicas=1")
    warns(await look(source, target, wanted), name, "has 0 replicas in step, 1 are asked for")
    assert all(each.name != name for each in (await look(source, target)).checks)
    replica.client().replicaof(target.host, target.port)
    until_in_step(replica)
    assert named(await look(source, target, wanted), name).outcome == "pass"
    target.client().execute_command("ACL", "SETUSER", "default", "-wait")
    fails(await look(source, target, wanted), name, "refuses WAIT", "+wait")


async def test_a_target_that_refuses_writes(server_factory: ServerFactory) -> None:
    source = server_factory()
    lonely = server_factory(None, "--min-replicas-to-write", "1")
    fails(await look(source, lonely), "probe", "NOREPLICAS", "min-replicas-to-write")
    assert lonely.client().dbsize() == 0


async def test_value_limit(server_factory: ServerFactory) -> None:
    source = server_factory()
    target = server_factory(None, "--proto-max-bulk-len", "1048576")
    warns(await look(source, target), "value-limit", "1.0 MiB", "512.0 MiB", "proto-max-bulk-len")


async def test_what_long_values_take(server_factory: ServerFactory) -> None:
    """The rights to the commands that make them are asked for where there may be one."""
    for binary in (known("redis-6.0"), known("redis-7.0")):
        source = server_factory(binary)
        target = server_factory(binary, "--proto-max-bulk-len", "4194304")
        url = user(target, "few", f"{APPLY} +@read +@write +config|get -xclaim -rename {ASKING}")
        result = await look(source, url)
        assert "takes arguments up to 4.0 MiB" in named(result, "value-limit").figure
        source.client().set("long", "x" * 5_000_000)
        check = warns(await look(source, url), "value-limit", "XCLAIM, RENAME", "+xclaim +rename")
        assert "more than 4.0 MiB" in check.figure
        result = await look(source, url, replace(QUICK, if_exists="skip"))
        assert "RENAME" not in warns(result, "value-limit", "XCLAIM").figure
        url = user(target, "blind", f"{APPLY} +@read +@write +config|get -xlen -hlen {ASKING}")
        warns(await look(source, url), "value-limit", "HLEN, XLEN", "+hlen +xlen")


async def test_a_source_that_loads(server_factory: ServerFactory) -> None:
    # The delay for each key makes loading last; INFO is answered during it.
    source = server_factory(at_least(7, 0, 0))
    with source.client().pipeline(transaction=False) as pipe:
        for index in range(20_000):
            pipe.set(f"key:{index}", "x" * 100)
        pipe.execute()
    source.client().save()
    loading = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    source.options += loading
    source.restart(loaded=False)
    try:
        fails(await look(source, server_factory()), "source-loading", "loading")
    finally:
        source.kill()


def test_clocks() -> None:
    assert skew(100.5, 99.0, 101.0) == 0.5
    assert judge_clocks(-0.4).outcome == "pass"
    ahead = judge_clocks(3.0)
    assert ahead.outcome == "warn"
    assert "expire early" in ahead.figure
    assert "live longer" in judge_clocks(-3.0).figure


def test_the_probe_leaves_what_is_not_its_own(server_factory: ServerFactory) -> None:
    """Where a user may touch one name alone the probe has that name, which a key may have."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    with source.client().pipeline(transaction=False) as pipe:
        for n in range(20_000):
            pipe.set(f"k:{n}", n)
        pipe.set("config", "the source's").execute()
    client = target.client()
    client.set("config", "the target's")
    client.execute_command("ACL", "SETUSER", "mover", "on", ">pw", "~config", "&*", "+@all")
    at = target.url.replace("redis://", "redis://mover:pw@")
    settings = TransferSettings(source_type="scan", match="config")
    for _ in range(2):
        asyncio.run(look(source, at, settings))
        assert client.get("config") == b"the target's"
