"""The source's clients behind a cut-over: they come along, or are told again and again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from benches.support import engines
from benches.support.api import Serving
from benches.support.clusters import Cluster, slot_of
from benches.support.proxy import Proxy
from benches.support.servers import Server, TlsFiles
from benches.support.waiting import wait_for
from engine.fleet import run
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.front.engine import Engine
from engine.groups import schema
from engine.groups.lease import Worker
from engine.model.calls_despite_write_block import ASK_COUNTS, counts_in
from engine.model.endpoint import Endpoint
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer import hold_source
from engine.transfer.fence import PauseFence, fence_of
from engine.wire.control_connection import admin
from tests.support.applications.program import NAMES, Program
from tests.support.servers import ServerFactory, known

pytestmark = pytest.mark.usefixtures("no_configuration")
GROUP = "cache"
NAMED = ("--replication-group-id", GROUP)
SECONDS = 60.0


@pytest.fixture
def state(state_url: str) -> Iterator[str]:
    """A state; the processes that a test leaves behind it are ended."""
    yield state_url
    registry = open_registry(state_url)
    with registry.store.write() as connection:
        rows = connection.execute(schema.disconnections.select()).all()
        # Or their guards would start others.
        connection.execute(schema.disconnections.update().values(ended="the test is over"))
    registry.store.close()
    for row in rows:
        if row.process is not None and not (who := process_of(row.process)).ended():
            os.kill(who.pid, signal.SIGKILL)


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A source that tells its clients' libraries, and an empty target."""
    source, target = server_factory(known("valkey-8")), server_factory(known("redis-6.2"))
    source.client().mset({f"key:{n}": n for n in range(1000)})
    return source, target


class Application:
    """redis-py at its defaults, at a name: a loop of INCR, a blocked BLPOP, a subscriber."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.acknowledged = 0
        self.popped: list[bytes] = []
        self.heard: list[bytes] = []
        self._over = threading.Event()
        loops = (self._count, self._pop, self._listen)
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]

    def __enter__(self) -> Application:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self._port)

    def _count(self) -> None:
        client = self._client()
        while not self._over.is_set():
            # What is refused or cut off is not counted, and may not be repeated: INCR is not
            # idempotent. The library dials again by itself with the next command.
            with contextlib.suppress(redis.RedisError):
                client.incr("counter")
                self.acknowledged += 1

    def _pop(self) -> None:
        client = self._client()
        while not self._over.is_set():
            with contextlib.suppress(redis.RedisError):
                if (item := client.blpop(["queue"], timeout=1)) is not None:
                    self.popped.append(item[1])

    def _listen(self) -> None:
        messages = self._client().pubsub(ignore_subscribe_messages=True)
        messages.subscribe("channel")
        while not self._over.is_set():
            with contextlib.suppress(redis.RedisError):
                if (message := messages.get_message(timeout=1)) is not None:
                    self.heard.append(message["data"])


def assert_at(application: Application | Program, server: Server) -> None:
    """Each of the three is served by this server, and hears what is written there."""
    client = server.client()
    before = application.acknowledged
    wait_for(lambda: application.acknowledged > before, "INCR is acknowledged")
    at = int(client.get("counter") or 0)
    wait_for(lambda: int(client.get("counter") or 0) > at, "the counter moves here")
    client.rpush("queue", "item")
    wait_for(lambda: b"item" in application.popped, "BLPOP takes the item")

    def heard() -> bool:
        client.publish("channel", "news")
        return b"news" in application.heard

    wait_for(heard, "the subscriber hears")


def migrate(
    engine: Engine, source: Server, target: Server, settings: TransferSettings, **options: Any
) -> Report:
    return run(
        engine.migrate(
            Endpoint.parse(source.url),
            Endpoint.parse(target.url),
            settings=settings,
            replication_group_id=GROUP,
            **options,
        )
    )


def seen(engine: Engine) -> dict[str, Any]:
    """What the group says of the source's clients."""
    group = engine.sync.describe_replication_groups(GROUP)["ReplicationGroups"][0]
    found: dict[str, Any] = group.get("SourceClients", {})
    return found


def events(engine: Engine) -> list[str]:
    return [each["Message"] for each in engine.sync.describe_events(GROUP)["Events"]]


def process_of(worker: dict[str, Any]) -> ProcessId:
    """What the state has of a process that disconnects clients."""
    found = ProcessId.of_worker(Worker.from_dict(worker))
    assert found is not None
    return found


def disconnector(state: str) -> ProcessId:
    """The process that disconnects the clients."""
    registry = open_registry(state)

    def claimed() -> Any:
        with registry.store.read() as connection:
            return connection.execute(schema.disconnections.select()).one().process

    try:
        return process_of(wait_for(claimed, "a process has it"))
    finally:
        registry.store.close()


def guard_of(who: ProcessId) -> int:
    """The process that starts this one again."""

    def child() -> int | None:
        for found in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(found.read_text().rpartition(")")[2].split()[1])
                if parent == who.pid and b"engine.fleet.disconnector_restart" in (
                    found.with_name("cmdline").read_bytes()
                ):
                    return int(found.parent.name)
        return None

    return int(wait_for(child, "it has a guard"))


@pytest.mark.parametrize("library", ["redis-py", *NAMES])
def test_a_name_that_is_moved_before_the_clients_dial_again(
    library: str, ends: tuple[Server, Server], state: str
) -> None:
    """With the library's callback: nothing is lost, nothing doubled, all work at the target."""
    source, target = ends
    engine = Engine(state)
    called: list[tuple[str, str]] = []
    with Proxy(source.host, source.port) as name:
        applications = Application if library == "redis-py" else functools.partial(Program, library)
        with applications(name.port) as application:
            wait_for(lambda: application.acknowledged > 10, "the application has begun")

            async def moved(old: Endpoint, new: Endpoint) -> None:
                called.append((old.address, new.address))
                name.lead_to(target.host, target.port)

            report = migrate(engine, source, target, TransferSettings(), on_switch=moved)
            assert report.status == "done", report.errors
            assert_at(application, target)
        acknowledged = application.acknowledged
    assert called == [(f"127.0.0.1:{source.port}", f"127.0.0.1:{target.port}")]
    # Every increment that was acknowledged is there; one whose answer was cut off may be as well.
    counted = int(target.client().get("counter") or 0)
    assert acknowledged <= counted <= acknowledged + 2
    engine.close()


def test_clients_that_come_back_are_disconnected_until_the_name_is_moved(
    ends: tuple[Server, Server], state: str
) -> None:
    source, target = ends
    engine = Engine(state)
    admin = source.client()
    admin.acl_setuser("watcher", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
    with Proxy(source.host, source.port) as name, Application(name.port) as application:
        wait_for(lambda: application.acknowledged > 10, "the application has begun")
        kept = redis.Connection(port=source.port, username="watcher", password="any")
        kept.connect()
        replica = redis.Connection(port=source.port)
        replica.connect()
        replica.send_command("PSYNC", "?", "-1")
        report = migrate(
            engine, source, target, TransferSettings(keep_users=("watcher",), disconnect_for=300)
        )
        assert report.status == "done", report.errors
        # The name still leads to the source: they are there again, and again.
        wait_for(lambda: seen(engine).get("Disconnected", 0) >= 9, "they came back three times")
        found = seen(engine)
        assert found["Disconnecting"] is True
        assert found["Kept"] == 1
        assert found["LastSeen"] is not None
        libraries = {each["Library"] for each in found["Addresses"]}
        assert any((library or "").startswith("redis-py") for library in libraries), found
        assert {each["Address"] for each in found["Addresses"]} == {"127.0.0.1"}
        name.lead_to(target.host, target.port)
        assert_at(application, target)
        wait_for(lambda: seen(engine)["Connected"] == 0, "nobody is there any more")
        # The user that is to be kept still has its connection, and so has the replica.
        kept.send_command("PING")
        assert kept.read_response() in (b"PONG", "PONG")
        flags = [each["flags"] for each in source.client().client_list()]
        assert any("S" in each for each in flags), flags
        kept.disconnect()
        replica.disconnect()
    engine.sync.unblock_source(GROUP)
    assert seen(engine)["Disconnecting"] is False
    client = redis.Connection(port=source.port)
    client.send_command("SET", "released", 1)
    assert client.read_response() in (b"OK", "OK")
    time.sleep(2.5)  # two looks of a process that went on
    client.send_command("PING")
    assert client.read_response() in (b"PONG", "PONG")
    client.disconnect()
    (last,) = (each for each in events(engine) if "no longer disconnected" in each)
    assert "no longer disconnected: the source accepts writes again (unblock-source); since" in last
    engine.close()


def test_clients_of_every_shard_are_disconnected(server_factory: ServerFactory, state: str) -> None:
    """A source that is a cluster: whoever waits at any of its primaries is sent away, once at the
    cut-over, and again when he comes back."""
    engine = Engine(state)
    target = server_factory(known("redis-7.0"))
    with Cluster.start(known("redis-7.0"), primaries=2, make=server_factory) as source:
        for n in range(100):
            owner = source.owner(slot_of(f"key:{n}"))
            owner.client().set(f"key:{n}", n)
        waiting = [
            waiting_at(node, key_of(source, node)) for node in source.primaries for _ in range(2)
        ]
        report = migrate(engine, source.nodes[0], target, TransferSettings(disconnect_for=300))
        assert report.status == "done", report.errors
        assert target.client().dbsize() == 100
        for each in waiting:
            with pytest.raises(redis.ConnectionError):
                each.read_response()
        for node in source.primaries:
            again = redis.Connection(port=node.port, socket_timeout=30)
            with pytest.raises(redis.ConnectionError):
                subscribe(again)
        wait_for(lambda: seen(engine).get("Disconnected", 0) >= 2, "both are counted")
        engine.sync.unblock_source(GROUP)
        for node in source.primaries:
            assert node.client(socket_timeout=20).set(key_of(source, node), "open")
    engine.close()


def key_of(cluster: Cluster, node: Server) -> str:
    slots = set(cluster.slots_of(node))
    return next(f"queue:{n}" for n in range(10**6) if slot_of(f"queue:{n}") in slots)


def subscribe(client: redis.Connection) -> None:
    """Raises once the server has sent it away, which may be before it has said who it is."""
    client.connect()
    client.send_command("SUBSCRIBE", "channel")
    # The answer, and then nothing that would come.
    _ = client.read_response(), client.read_response()


def waiting_at(node: Server, key: str) -> redis.Connection:
    """A client that waits for a key there."""
    connection = redis.Connection(port=node.port)
    connection.connect()
    connection.send_command("BLPOP", key, 0)
    return connection


def test_clients_that_come_back_as_the_command_line_shows_them(
    ends: tuple[Server, Server], state: str, tmp_path: Path
) -> None:
    """With address, library, its version and user, each member there; users of `--keep-user` stay
    connected."""
    source, target = ends
    source.client().acl_setuser(
        "watcher", enabled=True, nopass=True, commands=["+@all"], keys=["*"]
    )
    kept = redis.Connection(port=source.port, username="watcher", password="any")
    kept.connect()
    cli = engines.Cli(state, tmp_path)
    done = cli(
        "migrate", "--source", source.url, "--target", target.url, *NAMED,
        "--keep-user", "watcher", "--keep-user", "another", "--disconnect-for", "5m",
    )  # fmt: skip
    assert done.code == 0, done.err
    engine = Engine(state)
    library, began = f"redis-py {redis.__version__}", time.time()
    came = redis.Redis(port=source.port, retry=None)

    def twice() -> bool:
        with contextlib.suppress(redis.ConnectionError):
            came.ping()
        return any(
            each["Library"] == library and each["Disconnected"] >= 2
            for each in seen(engine).get("Addresses", [])
        )

    wait_for(twice, "the client was disconnected twice")
    told = cli("describe-replication-groups", *NAMED, "--output", "json")
    assert told.code == 0, told.err
    found = told.json["ReplicationGroups"][0]["SourceClients"]
    cli.close()
    # Beside it there may be one that was disconnected before it had told its library.
    (ours,) = (each for each in found["Addresses"] if each["Library"] == library)
    assert set(ours) == {"Address", "Library", "User", "Disconnected", "LastSeen"}
    assert (ours["Address"], ours["User"]) == ("127.0.0.1", "default")
    assert ours["Disconnected"] >= 2
    assert datetime.fromisoformat(ours["LastSeen"]).timestamp() >= began
    assert not any(each["User"] == "watcher" for each in found["Addresses"])
    assert found["Kept"] == 1
    kept.send_command("PING")
    assert kept.read_response() in (b"PONG", "PONG")
    kept.disconnect()
    engine.close()


def test_a_process_that_is_killed_is_replaced_and_a_verb_ends_it(
    ends: tuple[Server, Server], state: str, tmp_path: Path
) -> None:
    """Seen by the API's server, which also has the figures as metrics."""
    source, target = ends
    engine = Engine(state)
    with Serving(tmp_path, state) as api:
        report = migrate(engine, source, target, TransferSettings(disconnect_for=300))
        assert report.status == "done", report.errors
        first = disconnector(state)
        wait_for(lambda: seen(engine).get("LookedAt"), "a first look")
        # Its guard first, which would start another one.
        for pid in (guard_of(first), first.pid):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: disconnector(state).pid != first.pid, "another process has it")
        came = seen(engine)["Disconnected"]
        client = redis.Redis(port=source.port, retry=None)

        def dialled() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                client.get("key:1")
            return bool(seen(engine)["Disconnected"] > came + 2)

        wait_for(dialled, "a client that comes is disconnected")
        from benches.support.api import fetch

        metrics = fetch(api.url + "/metrics", api.signed("/metrics", "read")).body.decode()
        assert f'startmigration_source_clients_disconnected_total{{group="{GROUP}"}}' in metrics
        assert f'startmigration_source_clients{{group="{GROUP}"}}' in metrics
        cli = engines.Cli(state, tmp_path)
        told = cli("disconnect-clients", *NAMED, "--stop")
        assert told.code == 0, told.err
        second = disconnector(state)
        wait_for(lambda: second.ended(), "the process has ended")
        assert seen(engine)["Disconnecting"] is False
        told = cli("disconnect-clients", *NAMED, "--stop")
        assert "nothing was to be done" in told.out
        # And begun again.
        assert cli("disconnect-clients", *NAMED, "--for", "5m").code == 0
        wait_for(
            lambda: seen(engine)["Disconnecting"] and not disconnector(state).ended(), "it goes on"
        )
        cli.close()
    engine.close()


def test_a_user_that_may_not_close_connections(ends: tuple[Server, Server], state: str) -> None:
    source, target = ends
    source.client().acl_setuser(
        "mover", enabled=True, nopass=True, commands=["+@all", "-client|kill"], keys=["*"],
        channels=["*"],
    )  # fmt: skip
    engine = Engine(state)
    report = run(
        engine.migrate(
            Endpoint.parse(f"redis://mover:any@127.0.0.1:{source.port}"),
            Endpoint.parse(target.url),
            replication_group_id=GROUP,
        )
    )
    assert report.status == "done", report.errors
    client = redis.Redis(port=source.port)
    assert client.get("key:1") == b"1"
    wait_for(lambda: seen(engine).get("Disconnecting") is False, "it has ended")
    assert "does not allow it" in seen(engine)["Reason"], seen(engine)
    assert any("no longer disconnected: the source does not allow it" in e for e in events(engine))
    engine.close()


def test_a_source_that_is_restarted_is_left_alone(ends: tuple[Server, Server], state: str) -> None:
    """It accepts writes again, or is another server by now."""
    source, target = ends
    engine = Engine(state)
    report = migrate(engine, source, target, TransferSettings(disconnect_for=300))
    assert report.status == "done", report.errors
    wait_for(lambda: seen(engine).get("LookedAt"), "a first look")
    source.client().config_set("min-replicas-to-write", 0)
    wait_for(lambda: seen(engine)["Disconnecting"] is False, "it has ended")
    assert "accepts writes again" in seen(engine)["Reason"]
    engine.close()


def test_once_is_once(ends: tuple[Server, Server], state: str) -> None:
    source, target = ends
    engine = Engine(state)
    report = migrate(engine, source, target, TransferSettings(disconnect_for=0))
    assert report.status == "done", report.errors
    assert seen(engine) == {}
    engine.close()


HOOK = """\
import os, sys, time
names = sorted(name for name in os.environ if name.startswith("STARTMIGRATION_"))
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(f"{name}={os.environ[name]}" for name in names))
if sys.argv[2] == "sleep":
    time.sleep(60)
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("manner", "code", "told"),
    [
        ("end", 0, "the switch hook has run"),
        ("end", 3, "the switch hook ended with 3"),
        ("sleep", 0, "the switch hook did not end within 1 s"),
    ],
)
def test_the_switch_hook(
    ends: tuple[Server, Server], state: str, tmp_path: Path, manner: str, code: int, told: str
) -> None:
    """Run with both ends in its environment; whatever becomes of it, the target is promoted."""
    source, target = ends
    script, said = tmp_path / "hook.py", tmp_path / "said"
    script.write_text(HOOK)
    cli = engines.Cli(state, tmp_path)
    done = cli(
        "migrate", "--source", source.url, "--target", target.url, *NAMED,
        "--switch-hook", f"{sys.executable} {script} {said} {manner} {code}",
        "--switch-timeout", "1s", "--disconnect-for", "0",
    )  # fmt: skip
    cli.close()
    assert done.code == 0, done.err
    assert told in done.err + done.out, done
    assert dict(line.split("=", 1) for line in said.read_text().splitlines()) == {
        "STARTMIGRATION_SOURCE": f"127.0.0.1:{source.port}",
        "STARTMIGRATION_SOURCE_HOST": "127.0.0.1",
        "STARTMIGRATION_SOURCE_PORT": str(source.port),
        "STARTMIGRATION_TARGET": f"127.0.0.1:{target.port}",
        "STARTMIGRATION_TARGET_HOST": "127.0.0.1",
        "STARTMIGRATION_TARGET_PORT": str(target.port),
    }
    assert target.client().set("open", 1)


def test_a_callback_that_raises_is_no_way_back(ends: tuple[Server, Server], state: str) -> None:
    source, target = ends
    engine = Engine(state)

    async def fails(_old: Endpoint, _new: Endpoint) -> None:
        await asyncio.sleep(0)
        raise ValueError("a secret")

    report = migrate(engine, source, target, TransferSettings(disconnect_for=0), on_switch=fails)
    assert report.status == "done", report.errors
    told = [each for each in events(engine) if "on_switch" in each]
    assert len(told) == 1
    assert "ValueError" in told[0]
    assert "secret" not in told[0]
    engine.close()


COUNT = "return redis.call('INCR', KEYS[1])"


class Counting:
    """A client that counts by scripts, at a name or at the source itself."""

    def __init__(self, port: int, key: str, **options: Any) -> None:
        self._port, self.key, self._options = port, key, options
        self.acknowledged = self.cut_off = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Counting:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(SECONDS)

    def _count(self) -> None:
        client = redis.Redis(
            port=self._port, retry=None, socket_timeout=SECONDS, protocol=2, **self._options
        )
        while not self._over.is_set():
            try:
                client.eval(COUNT, 1, self.key)
                self.acknowledged += 1
            except redis.RedisError:
                self.cut_off += 1
                time.sleep(0.002)


@pytest.mark.parametrize("version", ["redis-5.0", "redis-6.0"])
def test_scripts_are_held_where_they_would_not_be_refused(
    version: str, server_factory: ServerFactory, state: str
) -> None:
    """Before 6.2. The name is moved before the clients are disconnected; some do not go by it, and
    dial the source again and again. What was acknowledged to either is on the target."""
    source, target = server_factory(known(version)), server_factory(known("redis-6.2"))
    engine = Engine(state)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(Proxy(source.host, source.port))
        going = [stack.enter_context(Counting(name.port, f"going:{n}")) for n in range(3)]
        staying = [stack.enter_context(Counting(source.port, f"staying:{n}")) for n in range(3)]
        everybody = [*going, *staying]
        wait_for(lambda: all(each.acknowledged > 10 for each in everybody), "all have begun")

        async def moved(_old: Endpoint, _new: Endpoint) -> None:
            # The first pause has run out by then.
            await asyncio.sleep(1.5)
            name.lead_to(target.host, target.port)

        settings = TransferSettings(disconnect_for=300)
        report = migrate(engine, source, target, settings, on_switch=moved)
        assert report.status == "done", report.errors
        at = [each.acknowledged for each in going]
        wait_for(
            lambda: all(each.acknowledged > n for each, n in zip(going, at, strict=True)),
            "they count at the target",
        )
        # Two looks at the least, each of which disconnects those who stay.
        cut_off = [each.cut_off for each in staying]
        wait_for(
            lambda: all(each.cut_off > n + 2 for each, n in zip(staying, cut_off, strict=True)),
            "those who stay were disconnected again",
        )
        told = events(engine)
        assert any("it answers no client as long as" in each for each in told), told
        assert not any("only on the source" in each for each in told), told
        assert report.scripts_run == seen(engine)["Scripts"] == 0
        # Those who stay wait for an answer until the source is released.
        counted = {each.key: int(target.client().get(each.key) or 0) for each in staying}
        for each in staying:
            assert 0 <= counted[each.key] - each.acknowledged <= 1, (each.key, counted)
        if version == "redis-6.0":
            engine.sync.unblock_source(GROUP)
            at = [each.acknowledged for each in staying]
            wait_for(
                lambda: all(each.acknowledged > n for each, n in zip(staying, at, strict=True)),
                "they count at the source",
            )
        else:
            said = engine.sync.disconnect_clients(GROUP, seconds=0)["Message"]
            source.stop()  # or those who stay would wait until the pause is over
            assert "runs scripts (EVAL)" in said, said
            assert "runs scripts (EVAL)" in seen(engine)["Reason"]
            (last,) = (each for each in events(engine) if "no longer disconnected" in each)
            assert "an operator has stopped it; the source refuses writes" in last
            assert "keep its clients away; since the cut-over" in last
    for each in going:
        on_target = int(target.client().get(each.key) or 0)
        # One whose answer was cut off may be there.
        assert 0 <= on_target - each.acknowledged <= each.cut_off, (each.key, on_target)
    engine.close()


def test_scripts_at_a_source_that_does_not_refuse_them(
    server_factory: ServerFactory, state: str
) -> None:
    """Before 6.2, where it cannot be held: the check warns of them, and those behind the cut-over
    are counted to the end."""
    source, target = server_factory(known("redis-6.0")), server_factory(known("redis-6.2"))
    client = source.client()
    client.eval("return redis.call('SET', KEYS[1], 0)", 1, "scripts")
    watching = source.client(client_name="sentinel-0a1b2c3d-cmd")
    watching.ping()
    engine = Engine(state)
    report = migrate(engine, source, target, TransferSettings(disconnect_for=300))
    assert report.status == "done", report.errors
    (warned,) = (each for each in events(engine) if "source-scripts" in each)
    assert "it has run 1 script since its start" in warned
    assert "--fence hook" in warned
    wait_for(lambda: seen(engine).get("Scripts") == 0, "none is counted yet")

    def run_one() -> bool:
        # Each dials anew: a client that is disconnected under its script has no answer.
        with contextlib.suppress(redis.ConnectionError):
            redis.Redis(port=source.port, retry=None).eval(
                "return redis.call('INCR', KEYS[1])", 1, "scripts"
            )
            return True
        return False

    def count() -> int:
        """The scripts that were run since the cut-over, as they counted themselves."""
        return int(redis.Redis(port=source.port).get("scripts") or 0)

    wait_for(run_one, "a script is run")
    wait_for(lambda: seen(engine)["Scripts"] == count() > 0, "it is counted")
    wait_for(run_one, "another script is run")
    wait_for(lambda: seen(engine)["Scripts"] == count() > 1, "it is counted")
    told = [each for each in events(engine) if "since the cut-over" in each]
    assert len(told) == 1, told
    assert "what they wrote is only on the source" in told[0]
    client.config_set("min-replicas-to-write", 0)
    (last,) = wait_for(
        lambda: [each for each in events(engine) if "accepts writes again" in each],
        "the end is told",
    )
    assert f"the source has run {count()} scripts since the cut-over" in last
    engine.close()


def test_who_holds_scripts_is_killed(server_factory: ServerFactory, state: str) -> None:
    """Its guard goes on without a gap, and is itself replaced. Where both are killed every face
    says so, and the next process tells what was run meanwhile."""
    source, target = server_factory(known("redis-6.0")), server_factory(known("redis-6.2"))
    engine = Engine(state)
    with Counting(source.port, "staying") as staying:
        wait_for(lambda: staying.acknowledged > 10, "it has begun")
        report = migrate(engine, source, target, TransferSettings(disconnect_for=300))
        assert report.status == "done", report.errors
        first = disconnector(state)
        wait_for(lambda: seen(engine).get("LookedAt"), "a first look")
        # 1. The one that does it: nothing is run meanwhile.
        guard, looked_at = guard_of(first), seen(engine)["LookedAt"]
        killed = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: disconnector(state).pid != first.pid, "another process has it")
        wait_for(lambda: seen(engine)["LookedAt"] > looked_at, "it has looked")
        # The guard has made the pause longer, by so much.
        in_time = time.monotonic() - killed < hold_source.SECONDS
        second = disconnector(state)
        wait_for(lambda: ProcessId.of(guard).ended(), "the guard has ended")
        # 2. Its guard: there is another one.
        guard = guard_of(second)
        os.kill(guard, signal.SIGKILL)
        wait_for(lambda: guard_of(second) != guard, "another guard is there")
        found = seen(engine)
        assert found["Disconnecting"] is True
        assert found["UnattendedSince"] is None
        if in_time:
            assert found["Scripts"] == found["Writes"] == 0, found
            on_target = int(target.client().get("staying") or 0)
            assert 0 <= on_target - staying.acknowledged <= 1
            assert not any("only on the source" in each for each in events(engine))
        before = found["Scripts"]
        # 3. Both: the pause runs out, and scripts are run.
        for pid in (guard_of(second), second.pid):
            os.kill(pid, signal.SIGKILL)
        at = staying.acknowledged
        found = wait_for(lambda: (now := seen(engine))["UnattendedSince"] and now, "that is seen")
        assert found["Disconnecting"] is False
        assert found["Connected"] is found["Scripts"] is None
        assert f"disconnect-clients --replication-group-id {GROUP} goes on" in found["Reason"]
        (told,) = (each for each in events(engine) if "no process disconnects" in each)
        assert told == found["Reason"]
        assert "how much that is is not known" in told
        wait_for(lambda: staying.acknowledged > at, "a script is run")
        since = found["UnattendedSince"].timestamp()
        wait_for(lambda: time.time() > since + 7, "the pause was over for long enough")
        engine.sync.disconnect_clients(GROUP, seconds=300)
        # A guard that was slow to go on may have told that nothing was run until it did.
        told = wait_for(
            lambda: [
                each
                for each in events(engine)
                if "were not disconnected" in each and "no script" not in each
            ],
            "what was run is told",
        )
        wait_for(lambda: seen(engine)["Scripts"], "its clients wait")
        assert seen(engine)["UnattendedSince"] is None
        counted = int(staying.acknowledged) - at
        run = seen(engine)["Scripts"] - before
        assert counted <= run <= counted + 2, (counted, told)
        assert f"the source has run {run:,} script" in told[-1]
        source.stop()  # or it would wait until the pause is over
    engine.close()


def test_scripts_that_are_run_until_who_holds_them_is_let_in(
    server_factory: ServerFactory,
    state: str,
    tls_files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With TLS no connection is handed over: the pause runs out. What is run then is counted."""
    source = server_factory(known("redis-6.0"), tls=tls_files)
    target = server_factory(known("redis-6.2"))
    monkeypatch.setattr(hold_source, "SECONDS", 1.0)
    engine = Engine(state)
    trusted = {"ssl": True, "ssl_ca_certs": str(tls_files.ca)}
    with Counting(source.port, "staying", **trusted) as staying:
        wait_for(lambda: staying.acknowledged > 10, "it has begun")
        report = migrate(engine, source, target, TransferSettings(disconnect_for=300))
        assert report.status == "done", report.errors
        assert not report.lost_writes
        before = int(target.client().get("staying") or 0)
        (told,) = wait_for(
            lambda: [each for each in events(engine) if "none of its clients from now" in each],
            "the source is held again",
        )

        def counted() -> bool:
            # An answer may have been lost with its connection, once at the cut-over and once since.
            run = seen(engine).get("Scripts")
            return run is not None and 0 <= run - (staying.acknowledged - before) <= 2

        wait_for(counted, "what was run is counted")
        found = seen(engine)
        assert found["Writes"] == found["Scripts"]
        told = events(engine)
        assert any("with TLS but for the moment in which the process" in each for each in told)
        assert any("what scripts write there is counted, until this" in each for each in told), told
        words = [each for each in told if "since the cut-over, with" in each]
        # None where the pause had not run out yet.
        assert len(words) == (1 if found["Scripts"] else 0), told
        assert all(
            each.startswith(f"the source has run {found['Scripts']:,} script") for each in words
        )
        source.stop()  # or it would wait until the pause is over
    engine.close()


def test_clients_that_are_disconnected_once_where_scripts_go_on(
    server_factory: ServerFactory, state: str, tmp_path: Path
) -> None:
    """Said before it, and behind it, and the exit code is that of a failure."""
    source, target = server_factory(known("redis-6.0")), server_factory(known("redis-6.2"))
    source.client().eval("return redis.call('SET', KEYS[1], 0)", 1, "scripts")
    cli = engines.Cli(state, tmp_path)
    done = cli(
        "migrate", "--source", source.url, "--target", target.url, *NAMED,
        "--disconnect-for", "0", "--output", "json",
    )  # fmt: skip
    assert done.code == 1
    assert "a longer pause is not possible: clients are disconnected only once" in done.err
    assert "they go on at" not in done.err
    report = Report.from_dict({k: v for k, v in done.last.items() if k != "Error"})
    assert report.status == "done"
    assert "--disconnect-for 0" in report.lost_writes
    assert report.lost_writes in done.last["Error"]["Message"]
    cli.close()
    engine = Engine(state)
    assert report.lost_writes in events(engine)
    found = seen(engine)
    assert found["Disconnecting"] is False
    assert "disconnected once (--disconnect-for 0); the source refuses writes" in found["Reason"]
    group = engine.sync.describe_replication_groups(GROUP)["ReplicationGroups"][0]
    assert group["Migration"]["Report"]["LostWrites"] == report.lost_writes
    # It can be begun all the same, and what was run until then is told.
    assert source.client().eval("return redis.call('INCR', KEYS[1])", 1, "scripts") == 1
    engine.sync.disconnect_clients(GROUP, seconds=300)
    wait_for(lambda: seen(engine)["Scripts"] == 1, "it is counted")
    wait_for(lambda: any("has run 1 script since" in each for each in events(engine)), "it is told")
    # Its time is short: then it says what goes on.
    engine.sync.disconnect_clients(GROUP, seconds=0.5)
    found = wait_for(lambda: (now := seen(engine))["Reason"] and now, "the time set for it is over")
    assert found["Disconnecting"] is False
    assert (
        "the time set for it is over; the source refuses writes (NOREPLICAS), but runs"
        in found["Reason"]
    )
    (told,) = (each for each in events(engine) if "no longer disconnected: the time" in each)
    assert "the source has run 1 script since" in told
    source.stop()
    engine.close()


def test_a_transaction_that_is_run_behind_a_fence_without_a_pause(
    server_factory: ServerFactory, state: str, tmp_path: Path
) -> None:
    """2.8 has no CLIENT PAUSE: EXEC is run until its client is disconnected, and is counted."""
    source, target = server_factory(known("redis-2.8")), server_factory(known("redis-6.2"))
    client = redis.Redis(port=source.port, single_connection_client=True, protocol=2)
    client.set("counter", 5)
    client.execute_command("MULTI")
    client.execute_command("INCR", "counter")
    script, began, goes_on = tmp_path / "hook.sh", tmp_path / "began", tmp_path / "goes on"
    script.write_text(f"touch '{began}'; while [ ! -e '{goes_on}' ]; do sleep 0.02; done")
    cli = engines.Cli(state, tmp_path)
    process = cli.start(
        "migrate", "--source", source.url, "--target", target.url, *NAMED,
        "--switch-hook", f"sh {script}", "--disconnect-for", "0",
    )  # fmt: skip
    wait_for(began.exists, "the target is open")
    assert client.execute_command("EXEC") == [6]
    # What is refused counts as nothing.
    other = redis.Redis(port=source.port, protocol=2)
    with pytest.raises(redis.RedisError, match="NOREPLICAS"):
        other.incr("counter")
    goes_on.touch()
    done = cli.end(process)
    cli.close()
    assert done.code == 1, done.err
    lost = "the source has run 1 command that writes since the cut-over, of transactions (MULTI)"
    assert f"the target is promoted, and {lost}" in done.err
    assert f"Not on the target: {lost}" in done.out
    assert "still runs transactions (MULTI) that were begun before it is cut over" in done.err
    engine = Engine(state)
    assert any(each.startswith(lost) for each in events(engine))
    assert target.client().get("counter") == b"5"
    engine.close()


def followed(server_factory: ServerFactory) -> Server:
    """A source with a replication stream, which runs transactions that were begun before."""
    source, replica = (server_factory(known("redis-5.0")) for _ in range(2))
    replica.client().execute_command("REPLICAOF", source.host, source.port)
    wait_for(
        lambda: replica.client().info("replication")["master_link_status"] == "up", "a replica"
    )
    return source


@pytest.mark.parametrize("rested", [False, True])
def test_a_pause_that_is_made_longer_at_the_opening(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch, rested: bool
) -> None:
    """At once, and not with the next turn: until then a link that is lost leaves the source to the
    short one. `rested`: the connection was used for something else meanwhile."""
    source = followed(server_factory)
    endpoint = Endpoint.parse(source.url)
    monkeypatch.setattr(hold_source, "_EVERY_SECONDS", 600.0)

    async def go() -> None:
        async with admin(endpoint) as end, admin(endpoint) as asked:
            await hold_source.attach(asked)

            async def pauses() -> int:
                counts = counts_in(await asked.call(*ASK_COUNTS))
                return 0 if counts is None else counts.get("client", 0)

            found = await hold_source.attached(end)
            assert isinstance(found, hold_source.ScriptPause)
            await found.begin()
            before = await pauses()
            if rested:
                await found.rest()
                found.go_on()
            found.lasting(hold_source.SECONDS)
            for _ in range(int(SECONDS / 0.01)):
                if await pauses() > before:
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("no longer pause")
            await found.rest()
            assert not found.lost

    asyncio.run(go())
    source.stop()  # or its clients would wait until the pause is over


def test_a_fence_that_is_held_anew_behind_the_opening(server_factory: ServerFactory) -> None:
    """The engine before it, or its link, was gone for longer than the pause: a transaction that was
    begun before was run, and it is not said that the source answered no client."""
    source = followed(server_factory)
    endpoint, settings = Endpoint.parse(source.url), TransferSettings()
    begun = source.client(retry=None, socket_timeout=SECONDS)
    pipe = begun.connection_pool.get_connection()
    for command in (("MULTI",), ("INCR", "key")):
        pipe.send_command(*command)
        pipe.read_response()

    async def fenced(first: PauseFence | None) -> tuple[PauseFence, list[str]]:
        async with admin(endpoint) as asked:
            info = await asked.info()
        fence = fence_of(
            endpoint,
            info,
            settings,
            before="" if first is None else first.before,
            calls_before=None if first is None else first.calls,
            script_pause=first is not None,
        )
        assert isinstance(fence, PauseFence)
        if first is None:
            await fence.prepare()
            await fence.approach()
            await fence.close()
        else:
            await fence.approach()
            fence.on_promotion()
        await fence.block_writes()
        assert fence._hold is not None
        if first is None:
            fence.on_promotion()
            await fence.remove()
            return fence, []
        told = await fence.finish()
        await fence.remove()
        return fence, told

    async def go() -> list[str]:
        first, _ = await fenced(None)
        pipe.send_command("EXEC")
        assert await asyncio.to_thread(pipe.read_response) == [1]
        return (await fenced(first))[1]

    told = asyncio.run(go())
    assert any("has run 1 command that writes since the cut-over" in each for each in told), told
    assert "refuses writes from now on" in told[0]
    assert "before it answered any" not in told[0]
    source.stop()
