"""The log of a migration, as an operator reads it: the story of its faults, without a secret."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from benches.support.servers import Binary, binaries
from engine import Endpoint, Engine
from engine.errors import AuthError
from engine.wire.dial import dial
from engine.wire.event_loop import run
from tests.support.completing import word_given
from tests.support.servers import ServerFactory

SECRET = "hunter2-and-more"
Line = dict[str, Any]


def lines_of(path: Path) -> list[Line]:
    """The log; every line of it is one JSON object."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Story:
    """Finds lines of a log in their order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read = 0

    def next(self, what: str, where: Callable[[Line], bool]) -> Line:
        """The next line that is so, behind the one found last; waits for it."""
        deadline = time.monotonic() + 60
        while True:
            lines = lines_of(self._path)
            for index in range(self.read, len(lines)):
                if where(lines[index]):
                    self.read = index + 1
                    return lines[index]
            told = "\n".join(f"{each['level']} {each['message']}" for each in lines[self.read :])
            assert time.monotonic() < deadline, f"not in the log: {what}; there is\n{told}"
            time.sleep(0.05)

    def says(self, text: str, end: str = "") -> Line:
        """The next line whose message has this text, about that end."""
        return self.next(
            f"{text} ({end})",
            lambda line: text in line["message"] and (not end or line.get("end") == end),
        )


def test_three_faults(
    server_factory: ServerFactory, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that is cut, a target that is killed, a worker that is killed: the log has each with
    its reason, what was tried, and how it went on, with migration and endpoint."""
    source = server_factory(binaries()[0], password=SECRET)
    target = server_factory(binaries()[0], "--appendonly", "yes", password=SECRET)
    writer = source.client()
    writer.mset({f"key {n}": n for n in range(2000)})
    path = tmp_path / "worker-g.log"
    with Proxy(source.host, source.port) as proxy:
        given = [{"host": f"{source.host}:*", "password": SECRET}]
        monkeypatch.setenv("STARTMIGRATION_CREDENTIALS", json.dumps(given))
        cli.environment["STARTMIGRATION_CREDENTIALS"] = json.dumps(given)
        migration = Migration(cli, seed=1)
        address = f"{target.host}:{target.port}"
        face = Engine(cli.state)
        face.sync.register_replication_group("g", address)
        migration.start(
            proxy, "--source-type", "replica", "--log-format", "json", "--log-level", "debug"
        )
        migration.wait_for(lambda found: found["CanComplete"])
        story = Story(path)
        # A start.
        assert story.says("claimed the migration")["attempt"] == 1
        full = story.says("Full sync: no position was asked for", "source")
        assert full["server"].endswith(".".join(map(str, source.binary.version)))
        snapshot = story.says("Step snapshot ends")
        assert snapshot["keys"] == 2000
        assert story.says("Phase CATCH_UP begins, SNAPSHOT is over")["phase_keys"] == 2000
        story.says("Phase FOLLOW begins, CATCH_UP is over")
        # 1. The source's link.
        proxy.refuse()
        proxy.cut_now()
        assert "connection" in story.says("connecting again", "source")["message"]
        story.says("Could not connect to the source", "source")
        writer.set("written", "meanwhile")
        proxy.refuse(False)
        partial = story.says("Partial sync", "source")
        assert partial["replid"] == full["replid"]
        story.says("the link to the source stands again", "source")
        migration.wait_for(lambda found: found["CanComplete"])
        # 2. The target's process.
        target.kill()
        writer.set("written", "while the target is away")
        assert "connection" in story.says("The link to the target is lost", "target")["message"]
        story.says("trying again for", "target")
        assert story.says("A try failed", "target")["next_in_seconds"] > 0
        before = story.read
        target.restart()
        connected = story.next(
            "the target again",
            lambda line: line["message"].startswith("Connected to the target, for the stream"),
        )
        assert connected["run_id"] == target.client().info("server")["run_id"]
        migration.wait_for(lambda found: found["CanComplete"])
        story.read = before
        story.says("goes on", "target")
        # 3. The worker.
        migration.kill()
        # Named in the environment, and at the usual level.
        monkeypatch.setenv("STARTMIGRATION_LOG_FORMAT", "json")
        migration.resume(verb=False)
        assert story.says("claimed the migration")["attempt"] == 2
        story.says("Claim the target: done", "target")
        story.says("The target has a position of this migration", "target")
        story.says("Partial sync", "source")
        story.says("Phase CATCH_UP begins")
        # The cut-over.
        migration.wait_for(lambda found: found["CanComplete"])
        word_given(
            lambda: face.sync.complete_migration("g"), lambda: migration.migration()["CanComplete"]
        )
        for text in (
            "The operator asks: complete",
            "Compare both ends before the fence: done",
            "Cut-over: pause writers: done",
            "Cut-over: apply the rest of the stream: done",
            "Cut-over: compare both ends: done",
            "Cut-over: block writes: done",
            "Cut-over: promote the target: done",
        ):
            assert story.says(text).get("seconds", 0.0) >= 0.0
        # These two go on beside each other.
        before = story.read
        for text in (
            "release the clients, and disconnect them",
            "remove the position from the target",
        ):
            story.read = before
            assert story.says(f"Cut-over: {text}: done").get("seconds", 0.0) >= 0.0
        story.read = before
        story.says("Phase DONE begins")
        story.says("migration completed")
    lines = lines_of(path)
    assert SECRET not in path.read_text()
    assert {line["migration"] for line in lines} == {"g"}
    assert {line["shard"] for line in lines} == {"0001"}
    assert {line.get("endpoint") for line in lines if line.get("end") == "source"} == {
        f"{proxy.host}:{proxy.port}"
    }
    assert {line.get("endpoint") for line in lines if line.get("end") == "target"} == {address}
    assert all(line["logger"].startswith("engine.") for line in lines)
    # The events of the group, in the same words.
    told = {line["message"] for line in lines if line.get("event")}
    events = face.sync.describe_events("g")["Events"]
    started = {"registered", "migration from", "migration resumed", "completion requested"}
    missing = [
        each["Message"]
        for each in events
        if each["Message"] not in told and not any(word in each["Message"] for word in started)
    ]
    assert not missing
    # Nothing of it is for each key, or for each batch.
    assert len([line for line in lines if line["level"] != "DEBUG"]) < 200


def test_migrate_logs_to_stderr(server_factory: ServerFactory, cli: Cli) -> None:
    """`-v` shows the log in the place of the progress, and a library call logs nowhere."""
    source, target = (server_factory(binaries()[0], password=SECRET) for _ in range(2))
    source.client().mset({f"key {n}": n for n in range(100)})
    done = cli("migrate", "--source", source.url, "--target", target.url, "-v")
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    assert all(" INFO engine." in line for line in lines), done.err
    of = f"endpoint={source.host}:{source.port}] Full sync"
    assert any(of in line for line in lines), done.err
    assert SECRET not in done.err
    assert done.err.count("Phase SNAPSHOT begins") == 1


@pytest.mark.parametrize("binary", binaries()[:2], ids=str)
def test_a_password_that_a_server_repeats(server_factory: ServerFactory, binary: Binary) -> None:
    """A server that calls AUTH otherwise repeats the password in its error, which goes into events
    and logs."""
    server = server_factory(binary, "--rename-command", "AUTH", "OTHERWISE")
    endpoint = Endpoint.parse(f"redis://:{SECRET}@{server.host}:{server.port}")
    with pytest.raises(AuthError, match="unknown command") as refused:
        run(dial(endpoint, fault="source", timeout=10))
    assert SECRET not in str(refused.value)
