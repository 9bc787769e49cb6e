"""SETs of an append-only file that follow each other go as MSET, which leaves what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benches.support.servers import Server
from tests.reference.stream import command
from tests.support.library import Run, copied
from tests.support.servers import known


@pytest.fixture(scope="module")
def target() -> Iterator[Server]:
    with Server.start(known("redis-7.0"), "--save", "") as server:
        yield server


def written(path: Path) -> dict[bytes, bytes]:
    """A file in which SETs find lists and deadlines, follow each other for one key, and run over
    the end of a batch and of a transaction; what its strings hold in the end."""
    held: dict[bytes, bytes] = {}
    data = [command(b"RPUSH", b"k:3", b"a list"), command(b"SET", b"k:5", b"1", b"EX", b"100000")]
    for at in range(5000):
        key, value = b"k:%d" % (at % 700), b"%d" % at * (at % 90)
        data.append(command(b"SET", key, value))
        held[key] = value
        if at % 11 == 0:
            data.append(command(b"APPEND", key, b"more"))
            held[key] += b"more"
        if at % 50 == 0:
            data.append(command(b"MULTI") + command(b"SET", b"in", value))
            data.append(command(b"SET", b"in", b"multi") + command(b"EXEC"))
    path.write_bytes(b"".join(data))
    return held | {b"in": b"multi"}


def assert_arrived(run: Run, target: Server, held: dict[bytes, bytes]) -> None:
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.not_carried == ()
    client = target.client()
    assert dict(zip(held, client.mget(list(held)), strict=True)) == held
    assert client.dbsize() == len(held)
    # None has kept a deadline.
    assert client.info("keyspace")["db0"]["expires"] == 0


def called(target: Server, name: str) -> int:
    return int(target.client().info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0))


def test_sets_leave_what_each_of_them_leaves(
    target: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.sources.aof_findings._BATCH_COMMANDS", 777)
    target.client().flushall()
    target.client().config_resetstat()
    held = written(tmp_path / "appendonly.aof")
    run = copied(f"aof:{tmp_path}/appendonly.aof", target)
    assert_arrived(run, target, held)
    assert run.report.commands == 5000 + 455 + 200 + 2
    assert called(target, "mset") > 400
    assert called(target, "set") < 1000


def test_a_user_who_may_not_mset(
    target: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each SET goes for itself then, and nothing is applied twice."""
    monkeypatch.setattr("engine.sources.aof_findings._BATCH_COMMANDS", 777)
    client = target.client()
    client.flushall()
    client.config_resetstat()
    client.execute_command("ACL", "SETUSER", "mover", "on", ">pw", "~*", "&*", "+@all", "-mset")
    held = written(tmp_path / "appendonly.aof")
    run = copied(f"aof:{tmp_path}/appendonly.aof", f"redis://mover:pw@{target.host}:{target.port}")
    assert_arrived(run, target, held)
    assert called(target, "mset") == 0
    assert called(target, "set") > 5000
