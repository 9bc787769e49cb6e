"""Values and data of modules, on real servers that have them: Redis Stack and FalkorDB."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches.support.engines import Cli
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.fleet.cut_over_comparisons import verification_gate_of
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.preflight import Check, preflight
from engine.verify.full_comparison import verify
from engine.wire.search_indexes import UNNAMED, UNTOLD
from tests.support.library import Run, copied, migrating
from tests.support.servers import ServerFactory, known

STACK, GRAPHS = "redis-stack-7.4", "falkordb-8.2"


@pytest.fixture
def stacks(server_factory: ServerFactory) -> tuple[Server, Server]:
    return server_factory(known(STACK)), server_factory(known(STACK))


def samples(server: Server, key: str) -> list[tuple[int, float]]:
    return [(at, value) for at, value in server.client().ts().range(key, "-", "+")]


# Time series.


def test_counters_of_a_time_series_keep_the_times_of_the_source(
    stacks: tuple[Server, Server],
) -> None:
    """TS.INCRBY and TS.DECRBY come without a time: applied as they are they take the target's."""
    source, target = stacks
    client = source.client()
    ts = client.ts()
    for key in ("up", "down", "late"):
        ts.create(key)
    ts.incrby("up", 1)

    with migrating(source, target) as run:
        run.following()
        for at in range(20):
            ts.incrby("up", at)
            ts.decrby("down", at)
            ts.incrby("late", 1, timestamp=1000 + at)
        run.in_sync()
        ts.incrby("new", 7)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    for key in ("up", "down", "late", "new"):
        assert samples(source, key), key
        assert samples(target, key) == samples(source, key), key


AGGREGATIONS = [
    "avg",
    "sum",
    "min",
    "max",
    "range",
    "count",
    "first",
    "last",
    "std.p",
    "var.s",
    "twa",
]


def with_rules(source: Server) -> list[str]:
    """A series with rules, in the middle of their buckets; gives the names of all."""
    client = source.client()
    ts = client.ts()
    ts.create("raw")
    for aggregation in AGGREGATIONS:
        ts.create(f"by:{aggregation}")
        ts.createrule("raw", f"by:{aggregation}", aggregation, 10)
    for at in range(1000, 1048):
        ts.add("raw", at, at * 7 % 13 / 10)
    return ["raw", *(f"by:{each}" for each in AGGREGATIONS)]


def assert_compacts_alike(source: Server, target: Server, names: list[str]) -> None:
    """Both have the same samples, and go on alike, through the bucket that was open."""
    last = source.client().ts().get("raw")[0]
    for end in (source, target):
        for at in range(25):
            end.client().ts().add("raw", last + 1 + at, at * 5 % 11)
    for name in names:
        assert_same(source, target, name)


def assert_same(source: Server, target: Server, name: str) -> None:
    """But for one bucket of time-weighted averages: that which was open
    (`transfer.timeseries_rules`)."""
    here, there = samples(source, name), samples(target, name)
    assert [at for at, _ in here] == [at for at, _ in there], name
    differing = [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]]
    assert len(differing) <= (1 if name == "by:twa" else 0), (name, differing)


def test_compaction_rules_go_along_by_scan(stacks: tuple[Server, Server]) -> None:
    """DUMP leaves them out, and its bytes are equal without them."""
    source, target = stacks
    names = with_rules(source)
    run = scanned(source, target)
    assert run.report.status == "done", run.report.errors
    assert_compacts_alike(source, target, names)


def test_compaction_rules_stay_where_a_series_is_read_again(
    stacks: tuple[Server, Server],
) -> None:
    source, target = stacks
    names = with_rules(source)
    client = source.client()

    with migrating(source, target) as run:
        run.following()
        for step in range(10):
            client.ts().incrby("raw", step)
        for name in names[:-1]:
            run.wait_for(lambda: samples(target, name) == samples(source, name), name)  # noqa: B023
        last = client.ts().get("raw")[0]
        for at in range(30):
            client.ts().add("raw", last + 5_000 + at, at)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    for name in names:
        assert_same(source, target, name)
    source.client().config_set("min-replicas-to-write", 0)
    assert_compacts_alike(source, target, names)


def test_a_rule_that_the_target_lacks_is_a_difference(stacks: tuple[Server, Server]) -> None:
    source, target = stacks
    with_rules(source)
    for name in ("raw", "by:sum"):
        target.client().restore(name, 0, source.client().dump(name))
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    found = asyncio.run(verify(*ends, TransferSettings(source_type="scan"), held_before=True))
    assert sorted(
        (each.key, each.what) for each in found.differences if each.key in ("raw", "by:sum")
    ) == [("by:sum", "compaction rules (TSDB-TYPE)"), ("raw", "compaction rules (TSDB-TYPE)")]


# Values that the target must not get.


def filled(source: Server) -> set[str]:
    """Values of modules, short and in pieces, among others; gives the names of the modules'."""
    client = source.client()
    for index in range(50):
        client.set(f"plain:{index}", index)
        client.json().set(f"json:{index}", "$", {"index": index})
    client.json().set("json:long", "$", {"text": "x" * (5 << 20)})
    client.set("plain:long", "y" * (5 << 20))
    client.bf().add("bloom", "x")
    client.ts().add("series", 1, 1)
    return {*(f"json:{index}" for index in range(50)), "json:long", "bloom", "series"}


def restores(target: Server) -> int:
    """How many RESTOREs reached the target. Each is counted, also what is refused."""
    stats = target.client().info("commandstats").get("cmdstat_restore", {})
    return int(stats.get("calls", 0)) + int(stats.get("rejected_calls", 0))


LACKS = "a value of module {}, which the target does not have"


@pytest.mark.parametrize("name", ["redis-7.0", "redis-6.0"])
def test_no_value_of_a_module_is_sent_to_a_target_without_it(
    name: str, server_factory: ServerFactory
) -> None:
    """What left the engine is counted by the target: the two strings that are no plain ones for
    MSET (their length) and the probe of the preflight are no part of it."""
    source, target = server_factory(known(STACK)), server_factory(known(name))
    names = filled(source)
    run = copied(source, target, if_exists="replace")
    assert {each.key for each in run.report.not_carried} == names
    reasons = {each.key: each.reason for each in run.report.not_carried}
    if name == "redis-7.0":
        assert reasons["series"] == LACKS.format("TSDB-TYPE")
        assert reasons["json:long"] == reasons["json:1"] == LACKS.format("ReJSON-RL")
    else:
        assert "module TSDB-TYPE, and Redis 6.0.16 is not sent it" in reasons["series"]
    assert target.client().dbsize() == 51
    assert restores(target) == 1  # plain:long, in pieces


def test_nor_is_one_that_comes_by_the_stream_or_is_read_again(
    server_factory: ServerFactory,
) -> None:
    source, target = server_factory(known(STACK)), server_factory(known("redis-7.0"))
    client = source.client()
    names = filled(source) | {"json:new", "json:copy"}

    with migrating(source, target) as run:
        run.following()
        client.json().set("json:1", "$", {"changed": True})
        client.json().set("json:new", "$", {"changed": True})
        client.restore("json:copy", 0, client.dump("json:1"))
        client.set("plain:new", 1)
        run.wait_for(lambda: target.client().exists("plain:new"), "the last write")
        run.wait_for(lambda: "55 keys were not migrated" in run.progress.reason, "all of them")
        run.stop()
    assert {each.key for each in run.report.not_carried} == names
    assert {each.reason for each in run.report.not_carried} == {
        LACKS.format(kind) for kind in ("ReJSON-RL", "MBbloom--", "TSDB-TYPE")
    }
    assert restores(target) == 1  # plain:long


def test_a_file_with_values_of_modules(server_factory: ServerFactory) -> None:
    source, target = server_factory(known(STACK)), server_factory(known("redis-7.0"))
    names = filled(source)
    source.client().save()
    path = str(source.folder / "dump.rdb")
    run = copied(f"rdb:{path}", target, source_type="auto")
    assert {each.key for each in run.report.not_carried} == names
    assert restores(target) == 1
    checks = asyncio.run(
        preflight(Endpoint.parse(f"rdb:{path}"), Endpoint.parse(target.url), TransferSettings())
    ).checks
    (found,) = [each for each in checks if each.name == "modules"]
    assert found.outcome == "warn"
    assert f"1 x {LACKS.format('TSDB-TYPE')}" in found.figure
    assert f"51 x {LACKS.format('ReJSON-RL')}" in found.figure


def test_nor_is_one_of_an_append_only_file(server_factory: ServerFactory) -> None:
    """Of its snapshot, or of a RESTORE behind it. A module's command is named by the module too."""
    source = server_factory(known(STACK), "--appendonly", "yes")
    target = server_factory(known("redis-7.0"))
    client = source.client()
    client.json().set("json:old", "$", {"a": 1})
    rewritten(source)
    client.json().set("json:old", "$.a", 2)
    client.json().set("json:new", "$", {"a": 1})
    client.restore("json:copy", 0, client.dump("json:new"))
    client.ts().add("series", 1, 1)
    client.set("plain", 1)
    source.stop()
    run = copied(f"aof:{source.folder / 'appendonlydir'}", target)
    assert run.report.status == "stopped", run.report
    command = "{} is a command of a module, which the target does not have"
    assert {each.key: each.reason for each in run.report.not_carried} == {
        "json:old": LACKS.format("ReJSON-RL"),
        "json:copy": LACKS.format("ReJSON-RL"),
        "json:new": command.format("JSON.SET"),
        "series": command.format("TS.ADD"),
    }
    assert target.client().get("plain") == b"1"
    assert not target.client().exists("json:old", "json:new", "json:copy", "series")
    assert restores(target) == 0


def test_nor_is_one_that_comes_with_another_full_sync(server_factory: ServerFactory) -> None:
    source = server_factory(known(STACK), "--repl-backlog-size", "16kb")
    target = server_factory(known("redis-7.0"))
    client = source.client()
    client.set("first", 1)
    names: set[str] = set()

    with Proxy(source.host, source.port) as link, migrating(link, target, retry_for=60.0) as run:
        run.following()
        link.refuse()
        link.cut_now()
        names.update(filled(source))
        # Longer than the backlog.
        client.set("plain:last", bytes(100_000))
        link.refuse(False)
        run.wait_for(lambda: target.client().exists("plain:last"), "the other snapshot")
        run.wait_for(lambda: run.progress.not_carried == len(names), "all of them")
        run.stop()
    assert run.report.full_syncs == 2, run.events
    assert {each.key for each in run.report.not_carried} == names
    assert restores(target) == 2  # plain:long and plain:last


def test_the_preflight_names_the_types(server_factory: ServerFactory) -> None:
    source, target = server_factory(known(STACK)), server_factory(known("redis-7.0"))
    source.client().ts().add("series", 1, 1)
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    checks = asyncio.run(preflight(*ends, TransferSettings())).checks
    (found,) = [each for each in checks if each.name == "modules"]
    assert found.outcome == "warn"
    assert found.figure.endswith(f"among 1 keys looked at: 1 x {LACKS.format('TSDB-TYPE')}")


def test_a_module_that_is_loaded_meanwhile_has_its_values_carried(
    server_factory: ServerFactory,
) -> None:
    stack = known(STACK)
    source = server_factory(stack)
    bare = replace(stack, name="redis-7.4.1", options=())
    target = server_factory(bare, "--enable-module-command", "local")
    source.client().json().set("json", "$", {"a": 1})
    source.client().set("plain", 1)
    (path,) = [each for each in stack.options if each.endswith("rejson.so")]

    with migrating(source, target) as run:
        run.following()
        run.wait_for(lambda: "1 key was not migrated" in run.progress.reason, "its name")
        target.client().execute_command("MODULE", "LOAD", path)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    assert target.client().json().get("json") == {"a": 1}


# Graphs.


def query(server: Server, graph: str, text: str) -> list[list[int]]:
    """The rows of the result; a query that only writes has none."""
    reply = server.client().execute_command("GRAPH.QUERY", graph, text)
    rows: list[list[int]] = reply[1] if len(reply) > 1 else []
    return rows


COUNT = "MATCH (n) RETURN count(n)"


def test_a_graph_that_is_there_is_replaced(server_factory: ServerFactory) -> None:
    """RESTORE … REPLACE adds the nodes of the value to those of the graph."""
    source, target = server_factory(known(GRAPHS)), server_factory(known(GRAPHS))
    query(source, "graph", "UNWIND range(1, 500) AS i CREATE (:N {i: i})")
    for _ in range(2):
        run = copied(source, target, if_exists="replace")
        assert run.report.status == "done", run.report.errors
        assert query(target, "graph", COUNT) == [[500]]
    kept = copied(source, target, if_exists="skip")
    assert kept.report.status == "done", kept.report.errors
    assert query(target, "graph", COUNT) == [[500]]


def checked(source: Server, target: Server, name: str, **options: Any) -> Check:
    """The preflight's check of this name."""
    ends = Endpoint.parse(source.url), Endpoint.parse(target.url)
    checks = asyncio.run(preflight(*ends, TransferSettings(**options))).checks
    (found,) = [each for each in checks if each.name == name]
    return found


def with_a_large_graph(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source with a graph of as many nodes as a snapshot has in parts, and a target."""
    source, target = server_factory(known(GRAPHS)), server_factory(known(GRAPHS))
    query(source, "graph", "UNWIND range(1, 101) AS i CREATE (:N {i: i})")
    source.client().execute_command("GRAPH.CONFIG", "SET", "VKEY_MAX_ENTITY_COUNT", 100)
    return source, target


def test_a_graph_that_a_snapshot_has_in_parts(
    server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """By replica it is refused before anything is written, by the preflight and without it."""
    source, target = with_a_large_graph(server_factory)
    found = checked(source, target, "large-graphs", source_type="replica")
    assert found.outcome == "fail"
    assert "graph (database 0, 101 nodes and edges)" in found.figure
    assert "--source-type scan" in found.remedy
    target.client().config_resetstat()
    cli = Cli(state_url, tmp_path)
    try:
        ends = "--source", source.url, "--target", target.url, "--output", "json"
        skipped = "--skip-checks", "probe", "--skip-checks", "large-graphs"
        said = cli("migrate", *ends, "--source-type", "replica", *skipped)
        assert said.code == 1, said
        assert "in parts" in str(said.json["errors"])
        assert "graph (database 0, 101 nodes and edges)" in str(said.json["errors"])
        assert "--source-type scan" in said.err + said.out
        stats = target.client().info("commandstats")
        assert not {"cmdstat_restore", "cmdstat_set", "cmdstat_flushall"} & stats.keys()
        assert target.client().dbsize() == 0
    finally:
        cli.close()


def test_parts_of_a_graph_are_refused_though_it_could_not_be_counted(
    server_factory: ServerFactory,
) -> None:
    """By a user who may not ask graphs, say, or as it became large behind the look."""
    source, target = with_a_large_graph(server_factory)
    rules = "on", "nopass", "~*", "&*", "+@all", "-graph.ro_query"
    source.client().execute_command("ACL", "SETUSER", "mover", *rules)
    url = source.url.replace("redis://", "redis://mover:any@")
    run = copied(url, target, source_type="replica")
    assert run.report.status == "failed"
    (error,) = run.report.errors
    assert "the snapshot has large graphs in parts: {graph}graph_" in error, error
    assert target.client().get("startmigration:position") is None


def test_a_graph_that_a_snapshot_has_in_parts_is_scanned(server_factory: ServerFactory) -> None:
    """Where the way is the engine's to choose: it says why, and reads each graph whole."""
    source, target = with_a_large_graph(server_factory)
    found = checked(source, target, "following")
    assert found.outcome == "warn"
    assert "graph (database 0, 101 nodes and edges)" in found.figure
    run = copied(source, target, source_type="auto")
    assert run.report.status == "done", run.report.errors
    assert run.report.source_type == "scan"
    (event,) = [each for each in run.events if "in parts" in each]
    assert "graph (database 0, 101 nodes and edges)" in event
    assert "the source is scanned" in event
    assert query(target, "graph", COUNT) == [[101]]


@pytest.mark.parametrize("kind", ["rdb", "aof"])
def test_a_file_that_has_a_graph_in_parts_is_refused(
    kind: str, server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    """Before anything is written: the target answers no query of a graph that lacks its parts."""
    source, target = with_a_large_graph(server_factory)
    client = source.client()
    client.set("plain", 1)
    client.save()
    path = tmp_path / "file"
    shutil.copy(source.folder / "dump.rdb", path)
    cli = Cli(state_url, tmp_path)
    ends = "--source", f"{kind}:{path}", "--target", target.url, "--output", "json"
    try:
        said = cli("migrate", *ends)
        assert said.code == 1, said
        assert "large graphs in parts" in said.err
        assert "--source-type scan" in said.err
        assert target.client().dbsize() == 0
        if kind == "aof":
            # Without the preflight, too: these files are read whole before the first write.
            said = cli("migrate", *ends, "--skip-checks", "large-graphs")
            assert said.code == 1, said
            assert "large graphs in parts" in str(said.json["errors"])
            assert target.client().dbsize() == 0
    finally:
        cli.close()
    if kind == "aof":
        return
    # A target without the module gets neither the graph nor its parts, which are named.
    bare = server_factory(known("redis-8.2"))
    run = copied(f"{kind}:{path}", bare, source_type="auto")
    lacking = {each.reason for each in run.report.not_carried}
    assert lacking == {LACKS.format("graphdata"), LACKS.format("graphmeta")}
    assert bare.client().get("plain") == b"1"
    assert bare.client().exists("graph") == 0


# What FalkorDB notes for itself.


def with_notes(server: Server, *graphs: str) -> None:
    """Graphs, and the streams in which the module notes their queries about once a second; beside
    them keys of such names that are a user's."""
    client = server.client()
    for graph in graphs:
        query(server, graph, "CREATE (:N)")
    wait_for(
        lambda: all(client.exists(f"telemetry{{{graph}}}") for graph in graphs),
        "the telemetry of all graphs",
        20,
    )
    client.xadd("telemetry{mine}", {"Received": "at"})
    client.set("telemetry{text}", "Received at")


OTHERS = {b"plain", b"telemetry{mine}", b"telemetry{text}"}


def assert_left_out(run: Run, *graphs: str) -> None:
    """Said, and no fault."""
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    (line,) = [each for each in run.report.left_out if "telemetry" in each]
    for graph in graphs:
        assert f"telemetry{{{graph}}} (database 0)" in line
    assert "mine" not in line
    assert [each for each in run.events if "telemetry{" in each]
    proof = run.report.verification
    assert proof is not None
    assert proof.counted
    assert proof.keys_source == proof.keys_target, proof


def test_notes_of_queries_are_each_servers_own_by_scan(server_factory: ServerFactory) -> None:
    source, target = server_factory(known(GRAPHS)), server_factory(known(GRAPHS))
    source.client().set("plain", 1)
    with_notes(source, "g", "h")
    found = checked(source, target, "modules")
    assert "not migrated and not compared" in found.figure
    # The target has noted a query already, of a graph that is gone.
    query(target, "old", "CREATE (:N)")
    with_notes(target, "old")
    target.client().delete("telemetry{mine}", "telemetry{text}", "plain")
    target.client(db=1).flushdb()
    target.client().execute_command("GRAPH.DELETE", "old")
    run = scanned(source, target)
    assert_left_out(run, "g", "h")
    assert set(target.client().keys("*")) == {*OTHERS, b"g", b"h", b"telemetry{old}"}


def test_notes_of_queries_are_each_servers_own_by_replica(server_factory: ServerFactory) -> None:
    """Both ends note the stream's queries. What a command makes of a note is as at the source."""
    source, target = server_factory(known(GRAPHS)), server_factory(known(GRAPHS))
    client = source.client()
    client.set("plain", 1)
    with_notes(source, "g")

    with migrating(source, target) as run:
        run.following()
        query(source, "g", "CREATE (:N)")
        query(source, "later", "CREATE (:N)")
        run.wait_for(lambda: target.client().exists("telemetry{later}"), "the target's own")
        run.wait_for(lambda: client.exists("telemetry{later}"), "the source's own")
        client.copy("telemetry{g}", "archive")
        client.xgroup_create("telemetry{g}", "readers", 0)
        client.xgroup_create("telemetry{later}", "readers", 0)
        run.in_sync()
        run.cut_over()
    assert_left_out(run, "g")
    assert target.client().dump("archive") == client.dump("archive")
    theirs = target.client().xrange("telemetry{later}")
    assert theirs
    assert theirs != client.xrange("telemetry{later}")
    names = {*OTHERS, b"g", b"later", b"archive"}
    own = {b"telemetry{g}", b"telemetry{later}"}
    assert set(target.client().keys("*")) - own == names


@pytest.mark.parametrize("archived", [False, True])
def test_notes_of_queries_are_each_servers_own_in_an_append_only_file(
    archived: bool, server_factory: ServerFactory
) -> None:
    """Those of its snapshot, and what its commands do to them. What is made of one is named."""
    source = server_factory(known(GRAPHS), "--appendonly", "yes")
    target = server_factory(known(GRAPHS))
    client = source.client()
    client.set("plain", 1)
    with_notes(source, "g")
    rewritten(source)
    client.xgroup_create("telemetry{g}", "readers", 0)
    client.xadd("telemetry{mine}", {"Received": "again"})
    client.xgroup_create("telemetry{mine}", "readers", 0)
    if archived:
        client.copy("telemetry{g}", "archive")
    client.incr("plain")
    source.stop()
    run = copied(f"aof:{source.folder / 'appendonlydir'}", target)
    there = target.client()
    (line,) = [each for each in run.report.left_out if "telemetry{g} (database 0)" in each]
    assert "mine" not in line
    assert there.get("plain") == b"2"
    assert there.xlen("telemetry{mine}") == 2
    assert len(there.xinfo_groups("telemetry{mine}")) == 1
    assert not there.exists("telemetry{g}")
    assert query(target, "g", "MATCH (n) RETURN count(n)") == [[1]]
    assert run.report.status == ("stopped" if archived else "done"), run.report.errors
    lost = {each.key: each.reason for each in run.report.not_carried}
    assert set(lost) == ({"archive"} if archived else set())
    assert all("notes of queries" in why for why in lost.values())


def busy(server: Server) -> bool:
    """Whether it writes its file anew."""
    return bool(server.client().info("persistence")["aof_rewrite_in_progress"])


def rewritten(server: Server) -> None:
    """It has written its append-only file anew: what it holds by now is in the snapshot."""
    server.client().bgrewriteaof()
    wait_for(
        lambda: server.client().info("persistence")["aof_rewrites"] and not busy(server),
        "a rewritten file",
        20,
    )


def test_notes_of_queries_are_each_servers_own_in_a_file(server_factory: ServerFactory) -> None:
    source, target = server_factory(known(GRAPHS)), server_factory(known(GRAPHS))
    source.client().set("plain", 1)
    with_notes(source, "g")
    # Notes that are longer than what is held of a value (`stream_above`) come in pieces.
    for _ in range(30):
        query(source, "g", f"RETURN '{'x' * 2000}'")
    at_least = 31
    wait_for(lambda: source.client().xlen("telemetry{g}") >= at_least, "samples", 20)
    source.client().config_set("rdbcompression", "no")
    source.client().save()
    ends = Endpoint.parse(f"rdb:{source.folder / 'dump.rdb'}"), Endpoint.parse(target.url)
    checks = asyncio.run(preflight(*ends, TransferSettings())).checks
    (found,) = [each for each in checks if each.name == "modules"]
    assert "not migrated and not compared" in found.figure
    gate = verification_gate_of(*ends, TransferSettings(), lambda: False)
    run = copied(
        f"rdb:{source.folder / 'dump.rdb'}",
        target,
        source_type="auto",
        gate=gate,
        stream_above=16 << 10,
    )
    assert_left_out(run, "g")
    assert set(target.client().keys("*")) == {*OTHERS, b"g"}


def test_notes_of_queries_are_keys_as_any_other_without_the_module(
    server_factory: ServerFactory,
) -> None:
    source, target = server_factory(known("redis-8.2")), server_factory(known(GRAPHS))
    for n in range(3):
        source.client().xadd("telemetry{g}", {"Received at": n, "Query": "RETURN 1"})
    run = scanned(source, target)
    assert run.report.status == "done", run.report.errors
    assert target.client().xrange("telemetry{g}") == source.client().xrange("telemetry{g}")


# Search indexes.

INDEX = (
    "FT.CREATE people ON HASH PREFIX 2 person: p: FILTER @age>1 LANGUAGE german SCORE 0.5 "
    "STOPWORDS 2 und oder SCHEMA name AS called TEXT WEIGHT 2 NOSTEM SORTABLE UNF "
    "age NUMERIC SORTABLE tags TAG SEPARATOR ; CASESENSITIVE WITHSUFFIXTRIE place GEO "
    "about TEXT INDEXEMPTY INDEXMISSING shape GEOSHAPE FLAT seen TEXT NOINDEX "
    "vector VECTOR HNSW 10 TYPE FLOAT32 DIM 4 DISTANCE_METRIC COSINE M 8 EF_CONSTRUCTION 100"
)
PLAIN_INDEX = (
    "FT.CREATE docs ON JSON NOOFFSETS NOFREQS MAXTEXTFIELDS SCHEMA $.a AS a TEXT "
    "$.v AS v VECTOR FLAT 6 TYPE FLOAT64 DIM 4 DISTANCE_METRIC L2"
)


WORDS = ["two", "zwei", "a term of more than twenty characters, " * 3]
NAMES = ("humans", "papers", "words", "others")


def with_indexes(source: Server) -> None:
    client = source.client()
    client.execute_command(*INDEX.split())
    client.execute_command(*PLAIN_INDEX.split())
    client.execute_command("FT.SYNUPDATE", "people", "group", "hello", "hi")
    client.execute_command("FT.ALIASADD", "humans", "people")
    client.execute_command("FT.ALIASADD", "papers", "docs")
    client.execute_command("FT.DICTADD", "words", *WORDS)
    client.execute_command("FT.DICTADD", "others", "one")
    for index in range(20):
        client.hset(f"person:{index}", mapping={"name": f"name{index}", "age": index})


def told(server: Server, index: str) -> list[object]:
    """What FT.INFO tells of an index's definition."""
    client = server.client(protocol=2)
    client.response_callbacks.clear()
    found = client.execute_command("FT.INFO", index)
    members = dict(zip(found[::2], found[1::2], strict=True))
    names = b"index_definition", b"index_options", b"attributes", b"stopwords_list"
    return [members.get(name) for name in names]


def named(server: Server, *dictionaries: str) -> tuple[list[object], list[set[bytes]]]:
    """Of which indexes the aliases are, and the dictionaries' terms."""
    client = server.client(protocol=2)
    client.response_callbacks.clear()
    aliases = [client.execute_command("FT.INFO", alias)[1] for alias in ("humans", "papers")]
    terms = [set(client.execute_command("FT.DICTDUMP", name)) for name in dictionaries]
    return aliases, terms


def found_by_search(server: Server) -> int:
    client = server.client(protocol=2)
    client.response_callbacks.clear()
    count: int = client.execute_command("FT.SEARCH", "people", "@age:[5 +inf]", "LIMIT", 0, 0)[0]
    return count


def assert_indexed(source: Server, target: Server) -> None:
    for index in ("people", "docs"):
        assert told(target, index) == told(source, index)
    dumps = [end.client().execute_command("FT.SYNDUMP", "people") for end in (source, target)]
    assert dumps[0] == dumps[1]
    # The target fills its index in the background.
    wait_for(
        lambda: found_by_search(target) == found_by_search(source),
        "the same found by search on both ends",
        20,
    )
    assert found_by_search(source) == 15


def scanned(source: Server, target: Server, **options: Any) -> Run:
    names = options.get("search_names", ())
    settings = TransferSettings(source_type="scan", search_names=names)
    gate = verification_gate_of(
        Endpoint.parse(source.url), Endpoint.parse(target.url), settings, lambda: False
    )
    return copied(source, target, gate=gate, **options)


def test_search_indexes_are_carried_by_scan(stacks: tuple[Server, Server]) -> None:
    source, target = stacks
    with_indexes(source)
    run = scanned(source, target, search_names=(*NAMES[:3], "nothing", "people"))
    assert run.report.status == "done", run.report.errors
    assert_indexed(source, target)
    assert named(target, "words") == named(source, "words")
    # What no command tells of is said, once.
    assert run.report.left_out[:2] == (UNTOLD, UNNAMED)
    # Names of neither are asked for in vain, which is said.
    assert [each.split(":")[0] for each in run.report.left_out[2:]] == ["nothing", "people"]
    assert run.report.verification is not None
    assert run.report.verification.libraries == 5


def test_search_indexes_are_carried_and_followed(stacks: tuple[Server, Server]) -> None:
    source, target = stacks
    with_indexes(source)

    with migrating(source, target) as run:
        run.following()
        client = source.client()
        client.execute_command("FT.CREATE", "later", "PREFIX", 1, "x:", "SCHEMA", "f", "TEXT")
        client.execute_command("FT.ALTER", "people", "SCHEMA", "ADD", "more", "TEXT")
        client.execute_command("FT.DICTADD", "words", "more")
        client.execute_command("FT.DICTDEL", "words", "two")
        client.execute_command("FT.DICTADD", "new", "term")
        client.execute_command("FT.ALIASUPDATE", "papers", "people")
        run.in_sync()
        # Somebody takes some away: they are made again before the cut-over.
        there = target.client()
        there.execute_command("FT.DROPINDEX", "docs")
        there.execute_command("FT.ALIASDEL", "humans")
        there.execute_command("FT.DICTDEL", "others", "one")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_indexed(source, target)
    assert told(target, "later") == told(source, "later")
    lists = "words", "others", "new"
    assert named(source, *lists)[0] == [b"people", b"people"]
    assert named(target, *lists) == named(source, *lists)
    assert list(run.report.left_out) == [UNTOLD]
    proof = run.report.verification
    assert proof is not None
    assert proof.libraries == 3 + len(NAMES)


@pytest.mark.parametrize(("way", "until"), [("scan", "snapshot"), ("replica", "cut-over")])
def test_search_indexes_are_named_where_the_target_has_no_module(
    way: str, until: str, server_factory: ServerFactory, state_url: str, tmp_path: Path
) -> None:
    source, target = server_factory(known(STACK)), server_factory(known("redis-7.0"))
    with_indexes(source)
    given = [word for name in NAMES for word in ("--search-name", name)] if way == "scan" else []
    cli = Cli(state_url, tmp_path)
    try:
        said = cli(
            "migrate", "--source", source.url, "--target", target.url, "--source-type", way,
            "--until", until, "--output", "json", *given,
        )  # fmt: skip
    finally:
        cli.close()
    assert said.code == 1, said
    for what in ("index docs", "index people", "alias humans", "alias papers"):
        assert f"search {what}: the target has no search module" in str(said.json["errors"])
    for name in ("words", "others"):
        what = f"search dictionary {name}: the target has no search module"
        assert what in str(said.json["errors"])


def test_a_dictionary_that_comes_with_the_stream_is_named(server_factory: ServerFactory) -> None:
    source, target = server_factory(known(STACK)), server_factory(known("redis-7.0"))
    source.client().set("key", "value")

    with migrating(source, target) as run:
        run.following()
        source.client().execute_command("FT.DICTADD", "words", "term")
        run.wait_for(lambda: "search dictionary words" in run.progress.reason, "its name")
        assert not run.progress.can_complete
        run.stop()


def test_dictionaries_of_a_file_are_carried_and_its_indexes_named(
    stacks: tuple[Server, Server],
) -> None:
    """A file has their definitions in a form of the module's own. Once they are made by hand, it
    can be completed."""
    source, target = stacks
    with_indexes(source)
    source.client().save()
    path = f"rdb:{source.folder / 'dump.rdb'}"
    checks = asyncio.run(
        preflight(Endpoint.parse(path), Endpoint.parse(target.url), TransferSettings())
    ).checks
    (found,) = [each for each in checks if each.name == "beside-the-keys"]
    assert "search indexes: 2 in the file" in found.figure
    assert "migrate from that one, or create them on the target" in found.figure
    assert "without the indexes the cut-over is refused" in found.remedy
    run = copied(path, target, source_type="auto")
    assert run.report.status == "stopped", run.report
    assert "search indexes: 2 in the file" in run.report.errors[0]
    dictionaries = [set(source.client().execute_command("FT.DICTDUMP", each)) for each in NAMES[2:]]
    assert [
        set(target.client().execute_command("FT.DICTDUMP", each)) for each in NAMES[2:]
    ] == dictionaries
    for index in (INDEX, PLAIN_INDEX):
        target.client().execute_command(*index.split())
    run = copied(path, target, source_type="auto", if_exists="replace")
    assert run.report.status == "done", run.report.errors


LIBRARY = "#!lua name=lib\nredis.register_function('f', function() return 1 end)"


def test_an_append_only_file_that_is_taken_up_again_still_lacks_them(
    server_factory: ServerFactory,
) -> None:
    source = server_factory(known(STACK), "--appendonly", "yes")
    target = server_factory(known(STACK))
    with_indexes(source)
    source.client().function_load(LIBRARY)
    source.client().bgrewriteaof()
    wait_for(
        lambda: list(source.folder.glob("appendonlydir/*.2.base.rdb")), "the second base file", 20
    )
    # The manifest names it a moment later.
    wait_for(lambda: not source.client().info("persistence")["aof_rewrite_in_progress"], "its end")
    rules = "on", "nopass", "~*", "&*", "+@all", "-function|load"
    target.client().execute_command("ACL", "SETUSER", "mover", *rules)
    url = target.url.replace("redis://", "redis://mover:any@")
    checkpoints = MemoryCheckpoint()

    def run() -> Run:
        path = f"aof:{source.folder / 'appendonlydir'}"
        return copied(path, url, source_type="auto", checkpoints=checkpoints)

    for _ in range(2):
        found = run()
        assert found.report.status == "stopped", found.report
        assert "search indexes: 2 in the file" in found.report.errors[0]
        assert "library lib: " in found.report.errors[0]
    for index in (INDEX, PLAIN_INDEX):
        target.client().execute_command(*index.split())
    target.client().function_load(LIBRARY)
    found = run()
    assert found.report.status == "done", found.report.errors
    assert found.report.left_out == ()


def test_an_index_with_another_definition_is_named(stacks: tuple[Server, Server]) -> None:
    source, target = stacks
    with_indexes(source)
    target.client().execute_command("FT.CREATE", "docs", "SCHEMA", "other", "TEXT")
    run = scanned(source, target)
    assert run.report.status == "stopped"
    assert "search index docs: another definition on the target" in run.report.errors[0]


def test_the_preflight_names_search_indexes(
    stacks: tuple[Server, Server], server_factory: ServerFactory
) -> None:
    source, target = stacks
    with_indexes(source)

    def figure(target: Server, way: str = "auto") -> str:
        found = checked(source, target, "beside-keys", source_type=way)
        assert found.outcome == "warn"
        return found.figure

    assert "has no search module, and the source has indexes: docs, people" in figure(
        server_factory(known("redis-7.0"))
    )
    assert figure(target) == f"not migrated: {UNTOLD}"
    assert figure(target, "scan") == f"not migrated: {UNTOLD}; {UNNAMED}"


# Values at the gate.

# Of each type one key, and what is done to it at the source, then on the target alone.
CHANGES = {
    "json": (("JSON.SET", "json", "$.a", "2"), ("JSON.SET", "json", "$.a", "3")),
    "bloom": (("BF.ADD", "bloom", "more"), ("BF.ADD", "bloom", "stray")),
    "cuckoo": (("CF.ADD", "cuckoo", "more"), ("CF.ADD", "cuckoo", "stray")),
    "sketch": (("CMS.INCRBY", "sketch", "word", 1), ("CMS.INCRBY", "sketch", "word", 1)),
    "digest": (("TDIGEST.ADD", "digest", 1), ("TDIGEST.ADD", "digest", 2)),
    "words": (("FT.SUGADD", "words", "more", 1), ("FT.SUGADD", "words", "stray", 1)),
}


def test_values_of_modules_are_compared_by_their_dump(stacks: tuple[Server, Server]) -> None:
    """Where one value has one DUMP: other bytes are a difference, which is read again. Else they
    say nothing, and equal ones are equal."""
    source, target = stacks
    client = source.client()
    for made in (
        ("JSON.SET", "json", "$", '{"a": 1, "b": [1, 2, {"c": "d"}]}'),
        ("BF.RESERVE", "bloom", 0.01, 100),
        ("CF.RESERVE", "cuckoo", 100),
        ("CMS.INITBYDIM", "sketch", 100, 5),
        ("TDIGEST.CREATE", "digest"),
        ("FT.SUGADD", "words", "word", 1),
        ("TOPK.RESERVE", "top", 3),
    ):
        client.execute_command(*made)
    for n in range(50):
        client.execute_command("BF.ADD", "bloom", n)
        client.execute_command("CF.ADD", "cuckoo", n)
        client.execute_command("CMS.INCRBY", "sketch", n, 1)
        client.execute_command("TDIGEST.ADD", "digest", n / 7)
        client.execute_command("TOPK.ADD", "top", n % 9)

    with migrating(source, target) as run:
        run.following()
        for command, _ in CHANGES.values():
            client.execute_command(*command)
        run.in_sync()
        for _, command in CHANGES.values():
            target.client().execute_command(*command)
        run.cut_over()
    proof = run.report.verification
    assert run.report.status == "done", (run.report.errors, run.events)
    assert proof is not None
    assert proof.repaired == len(CHANGES), (proof, run.events)
    assert set(dict(proof.not_compared)) <= {"TopK-TYPE"}
    for key in CHANGES:
        assert client.dump(key)[:-10] == target.client().dump(key)[:-10], key


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_search_indexes_that_the_user_may_not_list(
    way: str, stacks: tuple[Server, Server], state_url: str, tmp_path: Path
) -> None:
    """INFO tells how many there are."""
    source, target = stacks
    client = source.client()
    client.hset("doc:1", mapping={"text": "hello"})
    client.execute_command("FT.CREATE", "idx", "PREFIX", 1, "doc:", "SCHEMA", "text", "TEXT")
    client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+@all", "-ft._list")
    cli = Cli(state_url, tmp_path)
    try:
        told = cli(
            "migrate", "--source", f"redis://few:pw@{source.host}:{source.port}",
            "--target", target.url, "--source-type", way, "--output", "json",
        )  # fmt: skip
    finally:
        cli.close()
    assert told.code == 1, told
    assert "search indexes: 1 on the source" in str(told.json["errors"])
