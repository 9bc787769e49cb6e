"""Passwords that change while a migration runs: their file, or their command, is read again."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from pathlib import Path

import pytest
import redis

from benches.support.sentinels import sentinels, url
from benches.support.servers import Server, binaries
from benches.support.waiting import soon
from engine.errors import AuthError, LinkError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.wire import password_command, sentinel_primary
from engine.wire.control_connection import admin, adopted
from engine.wire.dial import dial
from tests.support.library import Run
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known

USER = "mover"
_FROM = re.compile("it is from the password (file|command)")
_numbers = itertools.count(1)


def entry(kind: str, file: Path, host: str, **more: str) -> dict[str, object]:
    """Of a configuration: the password is what the file holds."""
    given: dict[str, object] = {"host": host, **more}
    if kind == "file":
        return {**given, "password_file": str(file)}
    printing = "import sys; sys.stderr.write(t := open(sys.argv[1]).read()); print(t)"
    return {**given, "password_command": [sys.executable, "-c", printing, str(file)]}


class Rotated:
    """A user of servers whose password is in a file, and changes."""

    def __init__(self, file: Path, *servers: Server) -> None:
        self.file = file
        self.all: list[str] = []
        self._servers = servers
        self.put_file(self.new())
        self.put_servers(self.all[0])

    def new(self) -> str:
        """A password that was never there before."""
        self.all.append(f"secret-{next(_numbers)}-of-the-test")
        return self.all[-1]

    def put_file(self, password: str) -> None:
        self.file.write_text(f"{password}\n")

    def put_servers(self, password: str) -> None:
        for server in self._servers:
            acl = ("ACL", "SETUSER", USER, "resetpass", f">{password}", "on", "~*", "&*", "+@all")
            if server.binary.version < (6, 2, 0):
                acl = tuple(word for word in acl if word != "&*")
            server.client().execute_command(*acl)

    def cut(self) -> None:
        """End the user's connections: it has to log in again."""
        for server in self._servers:
            server.client().execute_command("CLIENT", "KILL", "USER", USER)


@pytest.fixture(params=["file", "command"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where the password is read."""
    return str(request.param)


def test_rotated_while_a_source_is_followed(
    kind: str, scenario: NewScenario, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is ahead of the servers, then the servers of the file; both while links are cut."""
    caplog.set_level("DEBUG")
    s = scenario()
    s.load(keys=2_000)
    user = Rotated(tmp_path / "password", s.source, s.target)
    given = [
        entry(kind, user.file, f"{end.host}:{end.port}", username=USER)
        for end in (s.source, s.target)
    ]
    credentials = Credentials.read(given, "test")
    with s.running(credentials=credentials, retry_for=60.0) as run, s.counters():
        run.following()
        first, second = user.all[0], user.new()
        user.put_file(second)
        user.cut()
        run.in_sync()  # with `first`
        assert first != second
        user.put_servers(second)
        user.cut()
        run.in_sync()
        _refused_for_a_while(run, user)
        run.in_sync()
        run.cut_over()
    s.assert_migrated()
    told = "\n".join([*run.events, caplog.text, repr(run.work), repr(credentials)])
    for password in user.all:
        assert password not in told


def _refused_for_a_while(run: Run, user: Rotated) -> None:
    third = user.new()
    user.put_servers(third)
    before = len(run.events)
    user.cut()
    run.wait_for(
        lambda: "it is from the password" in f"{run.events[before:]} {run.progress.reason}",
        "a refusal that is told",
    )
    user.put_file(third)


async def test_a_command_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the server, whose time is up before the command's."""
    monkeypatch.setattr(password_command, "_SECONDS", 0.5)
    given = {
        "host": "127.0.0.1",
        "password_command": [sys.executable, "-c", "import time; time.sleep(99)"],
    }
    filled = Credentials.read([given], "test").apply(Endpoint())
    with pytest.raises(AuthError, match=r"did not end within 0\.5 s"):
        await dial(filled, fault="source", timeout=0.1)
    password_command._runs.clear()
    with pytest.raises(AuthError, match=r"did not end within 0\.5 s"):
        async with admin(filled, timeout=0.1):
            raise AssertionError


async def test_what_is_refused_at_the_start_is_an_error_of_the_credentials(
    kind: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    server = server_factory(binaries()[0])
    user = Rotated(tmp_path / "password", server)
    user.put_file("not-the-password")
    at = Endpoint.parse(server.url)
    # (A path of its own, so that nothing was accepted from there.)
    filled = Credentials.read(
        [entry(kind, user.file, f"{at.host}:{at.port}", username=USER)], "test"
    ).apply(at)
    with pytest.raises(AuthError, match=_FROM) as caught:
        await dial(filled, fault="source", timeout=20)
    assert "not-the-password" not in f"{caught.value.message} {caught.value.remedy}"
    with pytest.raises(AuthError, match=_FROM):
        async with admin(filled, timeout=20):
            raise AssertionError
    # Put right, and refused again: from now on that may pass.
    user.put_file(user.all[0])
    (await dial(filled, fault="source", timeout=20)).close()
    async with admin(filled, timeout=20) as side:
        assert await side.call("PING") == b"PONG"
        user.put_servers(user.new())
        with pytest.raises(LinkError, match=_FROM):
            await dial(filled, fault="source", timeout=20)
        user.cut()
        with pytest.raises(LinkError):
            await side.call("PING")
        with pytest.raises(LinkError, match=_FROM):
            await side.call("PING")
        user.put_file(user.all[-1])
        assert await side.call("PING") == b"PONG"


async def test_a_file_that_is_not_there_for_a_moment(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    server = server_factory(binaries()[0])
    user = Rotated(tmp_path / "password", server)
    at = Endpoint.parse(server.url)
    given = entry("file", user.file, f"{at.host}:{at.port}", username=USER)
    filled = Credentials.read([given], "test").apply(at)
    user.file.unlink()
    (await dial(filled, fault="source", timeout=20)).close()
    user.put_servers(user.new())
    with pytest.raises(LinkError, match="password cannot be read: No such file"):
        await dial(filled, fault="source", timeout=20)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.stderr.write('hunter2'); sys.exit(3)", "ended with exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with signal 9"),
        ("pass", "printed no password"),
        ("print('x' * (1 << 18))", "printed more than 64 KiB"),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "printed what is not UTF-8 text"),
    ],
)
async def test_commands_that_give_no_password(
    script: str, words: str, server_factory: ServerFactory
) -> None:
    server = server_factory(binaries()[0])
    at = Endpoint.parse(server.url)
    given = {"host": f"{at.host}:{at.port}", "password_command": [sys.executable, "-c", script]}
    filled = Credentials.read([given], "test").apply(at)
    with pytest.raises(AuthError, match=words) as caught:
        await dial(filled, fault="source", timeout=30)
    assert "hunter2" not in f"{caught.value.message} {caught.value.remedy}"
    assert "Run it by hand" in caught.value.remedy


async def test_a_command_is_run_once_for_dials_of_one_moment(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    server = server_factory(binaries()[0])
    runs = tmp_path / "runs"
    script = f"import time; open({str(runs)!r}, 'a').write('x'); time.sleep(0.2); print('p')"
    server.client().execute_command("ACL", "SETUSER", USER, "on", ">p", "~*", "+@all")
    at = Endpoint.parse(server.url)
    given = {
        "host": f"{at.host}:{at.port}",
        "username": USER,
        "password_command": [sys.executable, "-c", script],
    }
    filled = Credentials.read([given], "test").apply(at)
    made = await asyncio.gather(*(dial(filled, fault="source", timeout=30) for _ in range(8)))
    for each in made:
        each.close()
    assert runs.read_text() == "x"
    # One that is given up ends with its caller's loop, and with nobody waiting.
    waiting = asyncio.ensure_future(dial(filled, fault="source", timeout=30))
    await soon(lambda: True, "a turn")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_connection_that_is_handed_over_needs_no_password(
    server_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has logged in: whoever goes on with it reads no password, and runs no command for one."""
    monkeypatch.setattr(password_command, "_HOLDS_SECONDS", 0.0)
    server = server_factory(binaries()[0])
    server.client().execute_command("ACL", "SETUSER", USER, "on", ">p", "~*", "+@all")
    at = Endpoint.parse(server.url)
    runs = tmp_path / "runs"
    script = f"open({str(runs)!r}, 'a').write('x'); print('p')"
    given = {
        "host": f"{at.host}:{at.port}",
        "username": USER,
        "password_command": [sys.executable, "-c", script],
    }
    filled = Credentials.read([given], "test").apply(at)
    async with admin(filled, fault="source", timeout=20) as side:
        number = await side.call("CLIENT", "ID")
        handed = side.duplicate()
    assert handed is not None
    async with adopted(handed, filled, fault="source", timeout=20) as other:
        assert await other.call("CLIENT", "ID") == number
    assert runs.read_text() == "x"


async def test_a_login_that_ends_within_a_pipeline_is_an_error_of_the_link(
    kind: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """Whichever of its replies says so: it is dialled anew with the password of that moment."""
    server = server_factory(known("redis-7.0"))
    user = Rotated(tmp_path / "password", server)
    operator = server.client()
    operator.execute_command("ACL", "SETUSER", "default", "resetpass", ">other")
    at = Endpoint.parse(server.url)
    given = entry(kind, user.file, f"{at.host}:{at.port}", username=USER)
    async with admin(Credentials.read([given], "test").apply(at), timeout=20) as side:
        assert await side.call("PING") == b"PONG"
        with pytest.raises(LinkError, match="password"):
            await side.pipeline([("RESET",), ("PING",)])
        assert await side.call("PING") == b"PONG"
    operator.execute_command("ACL", "SETUSER", "default", "nopass")


def test_the_password_of_a_cluster_s_nodes(tmp_path: Path, scenario: NewScenario) -> None:
    """All of its nodes are dialled anew with the one that holds now."""
    s = scenario("redis-7.0", source_shards=2)
    s.load(keys=500)
    nodes = s.clusters["source"].nodes
    user = Rotated(tmp_path / "password", *nodes)
    given = [entry("file", user.file, f"{node.host}:{node.port}", username=USER) for node in nodes]
    with s.running(credentials=Credentials.read(given, "test"), retry_for=60.0) as run:
        run.following()
        user.put_servers(user.new())
        user.cut()
        user.put_file(user.all[-1])
        with s.clusters["source"].client() as client:
            client.mset_nonatomic({f"late:{n}": n for n in range(100)})
        run.wait_for(
            lambda: s.target.client().dbsize() >= 600, "what was written behind the rotation"
        )
        run.cut_over()
    s.assert_migrated()


async def test_the_sentinels_own_password(server_factory: ServerFactory, tmp_path: Path) -> None:
    primary = server_factory(known("redis-7.0"))
    with sentinels(primary.binary, primary, password="first-of-sentinels") as group:
        file = tmp_path / "password"
        file.write_text("first-of-sentinels")
        given = [entry("file", file, f"{each.host}:{each.port}") for each in group]
        filled = Credentials.read(given, "test").apply(Endpoint.parse(url(group).partition("?")[0]))
        (await dial(filled, fault="source", timeout=20)).close()
        for each in group:
            client = redis.Redis(each.host, each.port, password="first-of-sentinels")
            with client:
                own = ("resetpass", ">second-of-sentinels")
                client.execute_command("ACL", "SETUSER", "default", *own)
        file.write_text("second-of-sentinels")
        sentinel_primary.forget(filled)
        (await dial(filled, fault="source", timeout=20)).close()
