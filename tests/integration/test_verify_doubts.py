"""`verify` says "equal" only of what it has looked at, "different" only of what has outlived all
that is on its way, and repairs nothing that is another's."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benches.support.clusters import Cluster, node_id, slot_of
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.errors import UsageError
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.position import StreamPosition, TargetPosition
from engine.proof import migration_positions, repair, run, saved_proof, second_looks
from engine.proof.key_walks import KeyWalks
from engine.proof.track import COMPARED, LOOKED_FOR
from tests.integration.test_verify_verb import verify
from tests.support.servers import ServerFactory, known, url_of

POSITION = TargetPosition("token", None, "engine").encode()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once."""
    monkeypatch.setattr(second_looks, "PAUSES", (0.02,) * 6)


def test_slots_that_are_being_moved(server_factory: ServerFactory) -> None:
    """A key that moves from a node before its page to one behind its own is in neither walk."""
    alone = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2) as cluster:
        slot = slot_of("key")
        here = cluster.owner(slot)
        there = next(each for each in cluster.primaries if each is not here)
        there.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(here))
        for ends in ((cluster, alone), (alone, cluster)):
            found = verify(*ends)
            assert found.outcome == "unknown"
            assert any(f"are being moved ({slot})" in each for each in found.reasons)
        there.client().execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        assert verify(cluster, alone).outcome == "equal"


def test_a_repair_of_a_part(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Where so much differs that the rest was not looked at, what is repaired is not all."""
    here, there = server_factory(), server_factory()
    here.client().mset({f"key:{n}": n for n in range(5_000)})
    monkeypatch.setattr(run, "STOP_AT", 50)
    monkeypatch.setattr(second_looks, "_KEYS_MOST", 60)
    found = verify(here, there, repair=True)
    assert (found.outcome, found.stopped) == ("unknown", True)
    assert found.repaired == there.client().dbsize() < 5_000


def test_a_database_that_one_end_has_not(server_factory: ServerFactory, quick: None) -> None:
    here, there = server_factory(None, "--databases", "32"), server_factory()
    for server in (here, there):
        server.client().set("both", "x")
    here.client(20).mset({"one": 1, "two": 2})
    there.client(3).set("more", "x")
    found = verify(here, there)
    assert (found.outcome, found.kinds) == ("different", {"missing": 2, "extra": 1})
    assert {(each.db, each.key) for each in found.differences} == {
        (20, "one"),
        (20, "two"),
        (3, "more"),
    }
    assert verify(there, here).kinds == {"extra": 2, "missing": 1}
    # Keys that its user may not ask for are there as well.
    here.client().execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~both", "+@all")
    denied = f"redis://reader:secret@{here.host}:{here.port}"
    found = verify(denied, there)
    assert (found.kinds, found.unknown) == ({"missing": 2}, 1)
    repaired = verify(here, there, repair=True)
    assert (repaired.outcome, repaired.repaired) == ("different", 1)
    assert "not repaired: database 20, which the target has not" in repaired.left_out


@pytest.mark.parametrize("lacks", [True, False])
def test_a_target_that_is_restarted_between_two_databases(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, quick: None, lacks: bool
) -> None:
    """What was compared with the process before says nothing of the one that is there now."""
    here, there = server_factory(), server_factory()
    values = {f"key:{n}": n for n in range(100)}

    def fill(server: Server, *dbs: int) -> None:
        for db in dbs:
            server.client(db).mset(values)

    fill(here, 0, 1)
    fill(there, 0, 1)
    over, left = KeyWalks.over, [1]

    async def restarts(walks: KeyWalks, db: int) -> None:
        await over(walks, db)
        if left and db == 0:
            left.pop()
            there.restart()
            fill(there, *([1] if lacks else [0, 1]))

    monkeypatch.setattr(KeyWalks, "over", restarts)
    found = verify(here, there)
    assert (found.outcome, found.different) == (("different", 100) if lacks else ("equal", 0))
    assert found.compared == 200
    assert found.digests[0] == verify(here, there, seed=found.settings["seed"]).digests[0]


def test_a_target_that_is_restarted_all_the_while(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Where what was compared is of no process that is there, the end says so."""
    here, there = server_factory(), server_factory()
    over = KeyWalks.over

    async def restarts(walks: KeyWalks, db: int) -> None:
        await over(walks, db)
        there.restart()

    monkeypatch.setattr(KeyWalks, "over", restarts)
    found = verify(here, there)
    assert (found.outcome, list(found.reasons)) == ("unknown", [run._REPLACED])


def test_links_that_servers_close_when_they_are_idle(server_factory: ServerFactory) -> None:
    here, there = (server_factory(None, "--timeout", "1") for _ in range(2))
    values = {f"key:{n}": os.urandom(1_000) for n in range(2_000)}
    for server in (here, there):
        server.client().mset(values)
    there.client().set("key:7", "~")
    found = verify(here, there, rate=1_300_000, repair=True)
    assert found.ended - found.began > 2.5
    assert (found.outcome, found.repaired) == ("equal", 1)


def test_a_repaired_key_that_cannot_be_told(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path
) -> None:
    here, there = server_factory(), server_factory()
    for name in ("restless", "still"):
        here.client().set(name, "x")
        there.client().set(name, "~")
    written, over = threading.Event(), threading.Event()

    def write() -> None:
        client, n = here.client(), 0
        while not over.is_set():
            client.set("restless", n := n + 1)
            written.set()

    writer = threading.Thread(target=write)
    stored = repair.repair

    async def repaired(*args: Any) -> Any:
        done = await stored(*args)
        # (It differs in the first look, however late the thread comes to write.)
        here.client().set("restless", 0)
        writer.start()
        assert await asyncio.to_thread(written.wait, 60)
        return done

    monkeypatch.setattr(repair, "repair", repaired)
    report = tmp_path / "report"
    try:
        found = verify(here, there, report, repair=True)
    finally:
        over.set()
        writer.join()
    assert (found.outcome, found.different, found.repaired) == ("different", 2, 1)
    assert {each.key: each.repaired for each in found.differences} == {
        "restless": False,
        "still": True,
    }
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [each["repaired"] for each in lines if "repaired" in each] == [{"db": 0, "key": "still"}]
    assert [each["not_compared"]["key"] for each in lines if "not_compared" in each] == ["restless"]
    assert report.stat().st_mode & 0o077 == 0


def test_a_repaired_key_ends_when_the_source_s_does(
    server_factory: ServerFactory, quick: None
) -> None:
    here, there = (server_factory(known("redis-7.0")) for _ in range(2))
    at = int(time.time() * 1_000) + 3_600_000
    for n in range(40):
        here.client().set(f"key:{n}", "x", pxat=at + n)
        there.client().set(f"key:{n}", "~")
    found = verify(here, there, repair=True)
    assert (found.outcome, found.repaired) == ("equal", 40)
    pipe = there.client().pipeline()
    for n in range(40):
        pipe.execute_command("PEXPIRETIME", f"key:{n}")
    assert pipe.execute() == [at + n for n in range(40)]


@pytest.mark.parametrize("name", ["position", "position:shard-1", "{tag}:position:shard-1"])
def test_a_target_that_a_migration_has(
    server_factory: ServerFactory, name: str, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Whatever its lane is called, and where it has begun meanwhile."""
    here, there = server_factory(), server_factory()
    here.client().set("key", "x")
    there.client().set("extra", "x")
    there.client().set(f"startmigration:{name}", POSITION)
    with pytest.raises(UsageError, match="a migration has the target"):
        verify(here, there, repair=True)
    there.client().delete(f"startmigration:{name}")
    over = run._Proof._beside

    async def begins(*args: Any) -> None:
        there.client().set(f"startmigration:{name}", POSITION)
        await over(*args)

    monkeypatch.setattr(run._Proof, "_beside", begins)
    found = verify(here, there, repair=True)
    assert (found.outcome, found.repaired) == ("different", 0)
    assert "nothing more is repaired: a migration has the target by now" in found.left_out
    assert there.client().exists("extra")


def test_a_migration_that_is_far_behind(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    here, there, replica = (server_factory() for _ in range(3))
    replica.client().replicaof(here.host, here.port)
    wait_for(
        lambda: replica.client().info("replication")["master_link_status"] == "up", "a full sync"
    )
    here.client().set("key", "new")
    there.client().set("key", "old")
    told = here.client().info("replication")
    monkeypatch.setattr(migration_positions, "_PASSED_SECONDS", 0.1)
    for offset, outcome in ((1, "unknown"), (told["master_repl_offset"] + 10**6, "different")):
        at = TargetPosition("token", StreamPosition(told["master_replid"], offset), "engine")
        there.client().set("startmigration:position", at.encode())
        found = verify(here, there)
        assert found.outcome == outcome
        if outcome == "unknown":
            assert list(found.reasons) == [second_looks.BEHIND]
    # How far it would have to be is not told.
    with Proxy(here.host, here.port) as line:
        line.veil(b"master_repl_offset:")
        assert verify(f"redis://{line.host}:{line.port}", there).outcome == "unknown"


def test_each_lane_of_a_migration_is_awaited(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """One that is behind is enough, and so is a shard of the source that no lane follows."""
    monkeypatch.setattr(migration_positions, "_PASSED_SECONDS", 0.1)
    with Cluster.start(known("redis-7.0"), primaries=2, replicas=1) as cluster:
        there = server_factory(known("redis-7.0"))
        cluster.owner(slot_of("key")).client().set("key", "new")
        there.client().set("key", "old")
        ids = [each.client().info("replication")["master_replid"] for each in cluster.primaries]
        far = 10**9
        for offsets, outcome in (
            ((far, far), "different"),
            ((far, 1), "unknown"),
            ((far, None), "unknown"),
        ):
            for lane, (replid, offset) in enumerate(zip(ids, offsets, strict=True)):
                name = f"startmigration:position:{lane}"
                there.client().delete(name)
                if offset is not None:
                    at = TargetPosition("token", StreamPosition(replid, offset), "engine")
                    there.client().set(name, at.encode())
            found = verify(cluster, there)
            assert found.outcome == outcome
            if outcome == "unknown":
                assert list(found.reasons) == [second_looks.BEHIND]


def test_fields_whose_ttls_a_migration_has_extended(
    server_factory: ServerFactory, quick: None
) -> None:
    here, there = (server_factory(known("redis-8.0")) for _ in range(2))
    near = int(time.time() * 1_000) + 3_600_000
    for server, more in ((here, 0), (there, EXTEND_MS)):
        server.client().hset("hash", mapping={"near": "x", "far": "x", "wrong": "x"})
        for name, at in (("near", near + more), ("far", near + EXTEND_MS * 6 // 10)):
            server.client().execute_command("HPEXPIREAT", "hash", at, "FIELDS", 1, name)
    there.client().set("startmigration:position", POSITION)
    assert verify(here, there).outcome == "equal"
    at = near + 1 + EXTEND_MS
    there.client().execute_command("HPEXPIREAT", "hash", at, "FIELDS", 1, "near")
    assert verify(here, there).kinds == {"field TTLs": 1}
    there.client().execute_command("HPEXPIREAT", "hash", at - 1, "FIELDS", 1, "near")
    there.client().delete("startmigration:position")
    assert verify(here, there).kinds == {"field TTLs": 1}


def test_one_server_by_two_names(server_factory: ServerFactory) -> None:
    here = server_factory()
    here.client().set("key", "x")
    found = verify(here, f"redis://localhost:{here.port}")
    assert (found.outcome, found.different) == ("unknown", 0)
    assert list(found.reasons) == ["both ends are the same server, or have a server in common"]


def test_what_is_known_of_a_key_outweighs_what_is_not() -> None:
    proof = run._Proof(None, None, run.ProofSettings(seed=1), None, None, lambda _: None)  # type: ignore[arg-type]
    side = second_looks.Side(True, 10, 1)
    proof._found(second_looks.Found(0, b"key", ("TTL",), side, side, second_looks.UNDECODED))
    assert (len(proof._different), len(proof._untold)) == (1, 0)
    assert proof._reasons == {second_looks.UNDECODED: 1}


def test_a_key_that_two_walks_come_by(tmp_path: Path) -> None:
    """Each keeps it: where one begins anew and does not come by it again the other one has it."""
    settings = run.ProofSettings(seed=1)
    saved = saved_proof.SavedProof(tmp_path / "state", {"seed": 1}, resume=False)
    proof = run._Proof(None, None, settings, None, saved, lambda _: None)  # type: ignore[arg-type]
    servers = second_looks.Servers([], [], (), bytes(16), settings)  # type: ignore[arg-type]
    again = second_looks.SecondLooks(servers, *(None,) * 3, proof._found, None)  # type: ignore[arg-type]
    tracks = proof._tracks
    one, other = (tracks.track(what, 0, 0) for what in (COMPARED, LOOKED_FOR))
    for track in (one, other):
        tracks.begin(track, "servers", again)
        again.add(0, b"key", track)
        tracks.mark(track, 1, again)
    tracks.begin(one, "others", again)
    assert [[key for key, _ in again.doubts_of(each)] for each in (one, other)] == [[], [b"key"]]
    again.drop(other)
    assert len(again) == 0
    side = second_looks.Side(True, 10, 1)
    found = second_looks.Found(0, b"key", ("extra",), side, side)
    for track in (one, other):
        proof._found(found, track)
        assert [each.key for each in track.found] == [b"key"]
        tracks.mark(track, 2, again)
    tracks.save()
    saved.close()
    for forgotten in ((), (one,)):
        saved = saved_proof.SavedProof(tmp_path / "state", {}, resume=True)
        proof = run._Proof(None, None, settings, None, saved, lambda _: None)  # type: ignore[arg-type]
        for track in (one, other):
            now = proof._tracks.track(track.what, 0, 0)
            proof._tracks.begin(now, "anew" if track in forgotten else track._servers, again)
        assert (len(proof._different), proof._kinds["extra"]) == (1, 1)
        saved.close()


def test_long_values_are_asked_for_one_by_one(server_factory: ServerFactory, quick: None) -> None:
    """A server holds what it has answered: all values that differ in their bytes at once are more
    than it has memory for."""
    here, there = server_factory(known("redis-6.2")), server_factory(known("redis-7.0"))
    items = [os.urandom(250).hex() for _ in range(5_000)]
    for server in (here, there):
        for n in range(12):
            server.client().rpush(f"list:{n}", *items)
    before = here.client().info("memory")["used_memory"]
    found = verify(here, there)
    assert (found.outcome, found.resolved) == ("equal", 12)
    assert here.client().info("memory")["used_memory_peak"] - before < 16 << 20


def test_output_that_cannot_be_written(server_factory: ServerFactory, tmp_path: Path) -> None:
    """1 would say that they differ."""
    here, there = server_factory(), server_factory()
    verb = [sys.executable, "-m", "engine", "verify"]
    verb += ["--source", url_of(here), "--target", url_of(there)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(verb, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert b"standard output cannot be written" in ended.stderr
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(verb, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert ended.returncode == 2
    # It complains of nothing. (A slow machine is told how far it is.)
    steps = (b"connecting", b"comparing", b"looking again", b"done")
    assert all(line.startswith(steps) for line in ended.stderr.splitlines()), ended.stderr
    report = tmp_path / "report"
    ended = subprocess.run(
        [*verb, "--report", str(report)],
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert ended.returncode == 2
    assert b"cannot be written: File too large" in ended.stderr
    report.symlink_to("/dev/full")
    with pytest.raises(UsageError, match="cannot be written: it is not a file"):
        verify(here, there, report)
