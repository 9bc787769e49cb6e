"""Migrations of keys that rules choose: by SCAN and from files, beside other keys on the target."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import redis

from benches.support.engines import Cli
from benches.support.servers import Binary, Server
from engine._native import RecordBatch
from engine.cli import app
from engine.errors import UsageError
from engine.model.endpoint import Endpoint
from engine.model.setting_conflicts import objection_to
from engine.model.settings import TransferSettings
from engine.verify import Verification, verify, verify_file
from engine.wire.event_loop import run
from tests.integration.test_rdb_file import items_of
from tests.support.in_one_go import migrate
from tests.support.library import copied
from tests.support.servers import ServerFactory, known
from tests.support.snapshots import save

INCLUDE = ("prefix:user:", "db:3,glob:*:[0-4]", "type:hash")
EXCLUDE = ("regex:^user:tmp[0-9]+$", "db:5", "type:list,prefix:user:")
LONG = random.Random(3).randbytes(40_000)
"""Longer than what is held of a value in these tests, and not to be compressed."""
PARTS = [LONG[at : at + 60] for at in range(0, len(LONG), 60)]


def fill(server: Server) -> None:
    """Keys of every type on both sides of each rule, short ones and long ones."""
    for db in (0, 3, 5):
        client = server.client(db)
        for number in range(10):
            client.set(f"user:{number}", number)
            client.set(f"user:tmp{number}", number)
            client.set(f"other:{number}", number)
            client.hset(f"hash:{number}", "field", number)
            client.sadd(f"set:{number}", number)
            client.rpush(f"user:list:{number}", number)
        client.set("user:long", LONG, px=10**8)
        client.set("long", LONG)
        client.hset("long:hash", mapping=dict.fromkeys(PARTS, "y"))
        client.rpush("user:long:list", *PARTS)
        client.rpush("long:list", *PARTS)


def wanted(db: int, key: bytes, kind: bytes) -> bool:
    """What the rules above say, by hand."""
    if db == 5 or (kind == b"list" and key.startswith(b"user:")):
        return False
    if key.startswith(b"user:tmp") and key[8:].isdigit():
        return False
    in_three = db == 3 and key[-2:-1] == b":" and key[-1:] in b"01234"
    return key.startswith(b"user:") or in_three or kind == b"hash"


def contents(server: Server, dbs: tuple[int, ...] = (0, 3, 5)) -> dict[tuple[int, bytes], bytes]:
    """The types of all keys."""
    found: dict[tuple[int, bytes], bytes] = {}
    for db in dbs:
        client: redis.Redis = server.client(db)
        for key in client.scan_iter():
            found[db, key] = client.type(key)
    return found


def chosen(server: Server) -> dict[tuple[int, bytes], bytes]:
    """Those of the source's keys that go over."""
    return {at: kind for at, kind in contents(server).items() if wanted(*at, kind)}


def verified(source: Server, target: Server, settings: TransferSettings) -> Verification:
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    return run(verify(*ends, settings, sample=None))


def test_what_a_scan_brings(few_binary: Binary, server_factory: ServerFactory) -> None:
    """Also with values in pieces, and with keys that are others' on the target: those are as they
    were, and no difference."""
    source, target = server_factory(few_binary), server_factory(few_binary)
    fill(source)
    for db in (0, 3, 5):
        target.client(db).set("other:1", "a neighbour's")
        target.client(db).rpush("user:list:2", "a neighbour's")
    options = {"include": INCLUDE, "exclude": EXCLUDE}
    done = copied(source, target, stream_above=8_000, batch_bytes=2_000, **options)
    assert done.report.status == "done"
    expected = chosen(source)
    assert done.report.keys == done.progress.total_keys == len(expected)
    neighbours = {(db, b"other:1") for db in (0, 3, 5)} | {(db, b"user:list:2") for db in (0, 3, 5)}
    there = contents(target)
    assert {at: kind for at, kind in there.items() if at not in neighbours - {(3, b"other:1")}} == {
        **expected
    }
    for db in (0, 5):
        assert target.client(db).get("other:1") == b"a neighbour's"
        assert target.client(db).lrange("user:list:2", 0, -1) == [b"a neighbour's"]
    assert target.client().get("user:long") == LONG
    assert 0 < target.client().pttl("user:long") <= 10**8
    settings = TransferSettings(**options)
    assert verified(source, target, settings).ok
    # A key too few, another value, and one that the source does not have: each is found, and what
    # the rules leave is not looked at.
    for break_it, what in (
        (lambda each: each.delete("user:3"), "user:3: missing on the target"),
        (lambda each: each.set("user:4", "another"), "user:4: value"),
        (lambda each: each.set("user:new", "x"), "user:new: on the target alone"),
        (lambda each: each.hset("new", "a", "b"), "new: on the target alone"),
    ):
        break_it(target.client())
        found = verified(source, target, settings)
        assert not found.ok
        assert any(what in f"{each.key}: {each.what}" for each in found.differences), found
    target.client().set("other:new", "a neighbour's")
    target.client().rpush("user:new:list", "a neighbour's")
    assert verified(source, target, settings).different == 4


def test_what_a_file_brings(
    few_binary: Binary, server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(few_binary), server_factory(few_binary)
    fill(source)
    path = tmp_path / "dump.rdb"
    path.write_bytes(save(source).data)
    options = {"include": INCLUDE, "exclude": EXCLUDE}
    settings = TransferSettings(stream_above=8_000, batch_bytes=2_000, **options)
    found = items_of(path, settings)
    assert any(isinstance(each, RecordBatch) and each.streamed for each in found)
    done = copied(f"rdb:{path}", target, source_type="auto", **options)
    expected = chosen(source)
    assert contents(target) == expected
    assert done.report.keys == done.progress.total_keys == len(expected)
    left = sum(source.client(db).dbsize() for db in (0, 3, 5)) - len(expected)
    assert f"{left:,} keys left out, as the rules say" in " ".join(done.events)
    end = Endpoint.parse(target.url)
    assert run(verify_file(str(path), end, TransferSettings(**options))).ok
    target.client(3).delete("user:1")
    assert not run(verify_file(str(path), end, TransferSettings(**options))).ok


def test_a_migration_by_rules_of_a_file(
    server_factory: ServerFactory, cli: Cli, tmp_path: Path
) -> None:
    """From the checks to the cut-over, and rules of the command line beside those of the file."""
    source, target = server_factory(), server_factory()
    fill(source)
    (tmp_path / "rules.toml").write_text(
        '[[include]]\nprefix = "user:"\n\n[[include]]\nglob = "*:[0-4]"\ndb = 3\n\n'
        "[[exclude]]\nregex = '^user:tmp[0-9]+$'\n"
    )
    (tmp_path / "more.toml").write_text("[[include]]\ntype = 'hash'\n")
    told = cli(
        "migrate", "--source", source.url, "--target", target.url,
        "--rules", str(tmp_path / "rules.toml"), "--rules", str(tmp_path / "more.toml"),
        "--exclude", "db:5", "--exclude", "type:list,prefix:user:", "--output", "json",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert told.last["keys"] == len(chosen(source))
    assert contents(target) == chosen(source)
    assert told.last["verification"]["ok"]


def test_functions_stay_where_keys_are_chosen(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    source, target = server_factory(known("redis-8")), server_factory(known("redis-8"))
    source.client().set("user:1", "x")
    source.client().function_load("#!lua name=lib\nredis.register_function('f', function() end)")
    path = tmp_path / "dump.rdb"
    path.write_bytes(save(source).data)
    for at, kind in ((source, "scan"), (f"rdb:{path}", "auto")):
        done = copied(at, target, source_type=kind, include=("prefix:user:",))
        assert any("as keys are chosen" in each for each in done.report.left_out)
        assert target.client().function_list() == []
        assert target.client().dbsize() == 1


def test_a_server_is_asked_for_a_single_prefix_alone(server_factory: ServerFactory) -> None:
    """Names that the rules leave do not come at all then."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"other:{number}": number for number in range(20_000)})
    source.client().mset({"us[er:1": "x", "us[er:2": "y", "us": "z"})
    before = source.client().info("stats")["total_net_output_bytes"]
    assert copied(source, target, include=("prefix:us[er:",)).report.keys == 2
    assert source.client().info("stats")["total_net_output_bytes"] - before < 100_000
    assert sorted(target.client().keys()) == [b"us[er:1", b"us[er:2"]


def test_names_match_as_with_the_server_s_own_globs(
    few_binary: Binary, server_factory: ServerFactory
) -> None:
    source, target = server_factory(few_binary), server_factory(few_binary)
    names = [
        b"",
        b"a",
        b"ab",
        b"abc",
        b"a]b",
        b"a-b",
        b"a\\b",
        b"^a",
        b"a*b",
        b"[a",
        b"a\nb",
        b"\xff",
    ]
    source.client().mset(dict.fromkeys(names, "x"))
    for glob in (b"*", b"a?", b"a*b", b"[a-c]*", b"[^a]*", b"a[]b", b"a\\*b", b"[a-]*", b"*[c-a]",
                 b"a\\", b"[\\^a]*", b"[a", b"**b", b"?", b"a\\\\*", b"[^]", b"\xff"):  # fmt: skip
        target.client().flushall()
        rule = "glob:" + glob.decode("utf-8", "surrogateescape")
        copied(source, target, include=(rule,))
        assert sorted(target.client().keys()) == sorted(source.client().keys(glob)), glob


def test_what_takes_no_rules(server_factory: ServerFactory, state_url: str, tmp_path: Path) -> None:
    """Types while a source is followed, and an append-only file: named, before anything is
    touched."""
    source, target = server_factory(), server_factory()
    with pytest.raises(UsageError, match="the rule type:hash,prefix:a asks for types"):
        TransferSettings(source_type="replica", include=("prefix:b", "type:hash,prefix:a"))
    with pytest.raises(UsageError, match="the rule type:set asks for types"):
        TransferSettings(verify="full", exclude=("type:set",))
    TransferSettings(source_type="replica", verify="full", exclude=("prefix:a",))
    with pytest.raises(UsageError, match=r"--exclude 'regex:a\*\*': the regular expression: at"):
        TransferSettings(exclude=("regex:a**",))
    aof = Endpoint.parse(f"aof:{tmp_path}")
    words = objection_to(TransferSettings(exclude=("prefix:a",)), aof)
    assert words is not None
    assert "--exclude chooses keys, and commands" in words
    source.client().mset({"user:1": "x", "other": "y"})
    report, told = migrate(state_url, source.url, target.url, include=("type:string,prefix:user:",))
    assert report.status == "done", told
    assert any("asks for types" in each and "is scanned" in each for each in told)
    assert target.client().keys() == [b"user:1"]


def test_rules_are_tried_before(
    few_binary: Binary,
    server_factory: ServerFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a server, and of its file: the same that goes over."""

    def tried(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        found = app.run(["test-rules", *arguments])
        said = capsys.readouterr()
        assert found == code, said.err
        return said.err if code else said.out

    source = server_factory(few_binary)
    fill(source)
    path = tmp_path / "dump.rdb"
    path.write_bytes(save(source).data)
    expected = chosen(source)
    rules = [
        *(part for rule in INCLUDE for part in ("--include", rule)),
        *(part for rule in EXCLUDE for part in ("--exclude", rule)),
    ]
    keys = sum(source.client(db).dbsize() for db in (0, 3, 5))
    reads = source.client().info("commandstats")
    for at in (source.url, f"rdb:{path}"):
        told = json.loads(tried(at, *rules, "--output", "json"))
        assert told["keys"] == told["sample"] == keys
        assert told["going"] == len(expected) == keys - told["staying"]
        there = contents(source)
        for each in told["looked_at"]:
            place = each["db"], each["key"].encode()
            assert there[place].decode() == each["type"]
            assert each["goes"] is (place in expected), each
            assert each["by"] is not None or not wanted(*place, there[place])
        matched = {each["rule"]: each["matches"] for each in told["rules"]}
        assert matched["--include prefix:user:"] == 3 * 32
        assert matched["--exclude type:list,prefix:user:"] == 3 * 11
        some = tried(at, *rules, "--sample", "30", "--seed", "7", "--output", "json")
        assert json.loads(some)["sample"] == 30
        text = tried(at, *rules, "--sample", "150", "--seed", "7")
        assert "go over" in text
        assert "--exclude db:5" in text
        assert "no rule includes it" in text
    after = source.client().info("commandstats")
    assert {name for name in after if "get" in name or "dump" in name} == {
        name for name in reads if "get" in name or "dump" in name
    }
    assert "no rules are given" in tried(source.url, code=2)
    assert "at character 1" in tried(source.url, "--include", "regex:(", code=2)
    assert "append-only file" in tried(f"aof:{tmp_path}", "--include", "db:1", code=2)
