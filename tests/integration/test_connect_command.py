"""Links through a command of the operator's: migrations over real relays, and relays that die."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from benches.support.servers import Server, TlsFiles, binaries, supports_tls
from benches.support.waiting import soon, wait_for
from engine.errors import EngineError, LinkError, UsageError
from engine.model import connect_command
from engine.model.allowed_endpoints import limited
from engine.model.endpoint import Endpoint, Tls
from engine.model.settings import TransferSettings
from engine.wire.control_connection import admin
from engine.wire.dial import dial
from tests.support import relay
from tests.support.command_line import Cli
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory


def relay_through(folder: Path) -> str:
    """The option's value: a relay that has its process id in `folder`."""
    words = [sys.executable, "-I", "-S", relay.__file__, str(folder)]
    return f"{shlex.join(words)} %h %p"


def ends(folder: Path) -> list[int]:
    """The relays that run, and none that was killed."""
    found = []
    for each in folder.iterdir():
        with contextlib.suppress(OSError):
            if str(folder).encode() in Path(f"/proc/{each.name}/cmdline").read_bytes():
                found.append(int(each.name))
    return found


def through(server: Server, command: str) -> Endpoint:
    return replace(
        Endpoint.parse(server.url), connect_command=connect_command.read([command])["source"]
    )


# --- The option ---


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([""], "names no program"),
        (["source:"], "names no program"),
        (["ssh -W %h:%q"], "'%q' stands for nothing"),
        (["ssh 100%"], "'%' stands for nothing"),
        (["ssh 'x"], "cannot be split into words: no closing quotation"),
        (["a %h", "target:b %h"], "given twice for the target"),
        (["a\0b"], "holds a NUL"),
    ],
)
def test_commands_that_cannot_be(given: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TransferSettings(connect_commands=tuple(given))


def test_which_end_a_command_is_for() -> None:
    settings = TransferSettings(connect_commands=("source:ssh -W '%h:%p' jump", "target:nc %h %p"))
    source = settings.named("source", Endpoint("fd00::1", 7000))
    assert connect_command.filled(source.connect_command, source.host, source.port) == [
        "ssh", "-W", "fd00::1:7000", "jump",
    ]  # fmt: skip
    assert settings.named("target", Endpoint("a")).connect_command == ("nc", "%h", "%p")
    assert connect_command.filled(("%%h", "%h%p"), "x", 1) == ["%h", "x1"]
    assert settings.named("source", Endpoint.parse("rdb:/x")).connect_command == ()
    with pytest.raises(UsageError, match="the source is a unix socket"):
        settings.named("source", Endpoint.parse("unix:///run/x.sock"))
    # What is reached from there is reached so, too.
    assert source.at("b", 1).connect_command == source.connect_command


# --- One connection ---


async def test_both_kinds_of_connections(server_factory: ServerFactory, tmp_path: Path) -> None:
    server = server_factory(binaries()[0])
    at = through(server, relay_through(tmp_path))
    connection = await dial(at, fault="source", timeout=30)
    assert await connection.call("ECHO", b"x" * 300_000) == b"x" * 300_000
    connection.close()
    async with admin(at, timeout=30, fault="source") as side:
        assert await side.call("ECHO", b"y" * 300_000) == b"y" * 300_000
        (pid,) = await soon(lambda: len(found := ends(tmp_path)) == 1 and found, "one relay")
        os.kill(pid, signal.SIGKILL)
        await soon(lambda: not Path(f"/proc/{pid}").exists(), "its end")
        with pytest.raises(LinkError):
            await side.call("PING")
        assert await side.call("PING") == b"PONG"
    await soon(lambda: not ends(tmp_path), "no relay")


async def test_over_tls(server_factory: ServerFactory, tmp_path: Path, tls_files: TlsFiles) -> None:
    able = next((each for each in binaries() if supports_tls(each)), None)
    if able is None:
        pytest.skip("no server of this machine speaks TLS")
    server = server_factory(able, tls=tls_files)
    at = replace(
        Endpoint.parse(
            f"{server.url}&cert_file={tls_files.client_cert}&key_file={tls_files.client_key}"
        ),
        connect_command=connect_command.read([relay_through(tmp_path)])["source"],
    )
    connection = await dial(at, fault="source", timeout=30)
    assert await connection.call("PING") == b"PONG"
    connection.close()
    async with admin(at, timeout=30, fault="source") as side:
        assert await side.call("PING") == b"PONG"
    await soon(lambda: not ends(tmp_path), "no relay")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/no/such/program %h %p", "connect command program cannot be run: No such file"),
        (
            "sh -c 'echo \"Permission denied for hunter2 (publickey).\" >&2; exit 255'",
            r"connect command sh ended with exit code 255: Permission denied for … \(publickey\)\.",
        ),
        ("sh -c 'exit 3'", "connect command sh ended with exit code 3"),
    ],
)
async def test_commands_that_lead_nowhere(command: str, words: str) -> None:
    at = Endpoint(
        "redis.internal",
        password="hunter2",
        connect_command=connect_command.read([command])["source"],
    )

    async def by_dial() -> None:
        (await dial(at, fault="source", timeout=30)).close()

    async def by_admin() -> None:
        async with admin(at, timeout=30, fault="source") as side:
            await side.call("PING")

    for way in (by_dial, by_admin):
        # (A machine that stands still may take longer to tell of a command's end than we wait.)
        for _ in range(20):
            with pytest.raises(LinkError) as caught:
                await way()
            told = f"{caught.value.message} {caught.value.remedy}"
            assert "hunter2" not in told
            if re.search(words, told):
                break
        assert re.search(words, told)


async def test_a_command_that_never_connects_is_ended() -> None:
    """Within the time for a connection; its end is made sure of."""
    script = "import time; time.sleep(999)"
    words = (sys.executable, "-I", "-S", "-c", script)
    at = Endpoint("redis.internal", connect_command=words)
    with pytest.raises(LinkError, match=r"no answer within 0\.3 s"):
        await dial(at, fault="source", timeout=0.3)
    await soon(lambda: not _children_with(b"time.sleep(999)"), "an end of the command")


def _children_with(text: bytes) -> list[int]:
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                status = (each / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == os.getpid() and text in (each / "cmdline").read_bytes():
                    found.append(int(each.name))
    return found


async def test_what_may_not_be_dialled_is_not_dialled_by_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    at = Endpoint("redis.internal", connect_command=("touch", str(mark)))
    with limited(["10.0.0.0/8", "*.internal"]):
        for host in ("redis.internal", "192.168.0.1"):
            with pytest.raises(EngineError, match="not among the servers"):
                await dial(replace(at, host=host), fault="source", timeout=10)
    assert not mark.exists()


async def test_no_command_runs_where_a_certificate_is_being_renewed(
    tmp_path: Path, tls_files: TlsFiles
) -> None:
    """Its files were of use before: the link counts as lost, and is tried again and again."""
    ca = tmp_path / "ca.pem"
    shutil.copy(tls_files.ca, ca)
    script = "import time; time.sleep(998)"
    words = (sys.executable, "-I", "-S", "-c", script)
    at = Endpoint("redis.internal", tls=Tls(ca_file=str(ca)), connect_command=words)
    with pytest.raises(LinkError, match="no answer within"):
        await dial(at, fault="source", timeout=0.3)
    ca.write_text("half of it")
    await soon(lambda: not _children_with(b"time.sleep(998)"), "an end of the first command")
    with pytest.raises(LinkError, match="it was of use before"):
        await dial(at, fault="source", timeout=30)
    assert not _children_with(b"time.sleep(998)")


# --- Migrations ---


def test_a_migration_through_relays_that_are_killed(
    scenario: NewScenario, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of both ends, at moments that a seed chooses, from the first connection on."""
    s = scenario()
    s.load(keys=3_000)
    folder = tmp_path / "relays"
    folder.mkdir()
    over = threading.Event()
    killed: list[int] = []
    moments = random.Random(s.seed)

    def kill() -> None:
        while not over.wait(moments.uniform(0.05, 0.6)):
            running = sorted(ends(folder))
            if running and len(killed) < 12:
                pid = moments.choice(running)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    settings = {"connect_commands": (relay_through(folder),), "retry_for": 60.0}
    with s.running(**settings) as run, s.counters():
        killer.start()
        try:
            run.wait_for(lambda: len(killed) >= 12, "relays that are killed")
        finally:
            over.set()
            killer.join()
        run.following()
        run.cut_over()
    s.assert_migrated()
    wait_for(lambda: not ends(folder), "no relay is left")


def test_by_the_command_line(cli: Cli, scenario: NewScenario, tmp_path: Path) -> None:
    """What is wrong is named before anything is touched; else it arrives, with a worker too."""
    s = scenario()
    s.load(keys=200)
    both = "--source", s.source.url, "--target", s.target.url
    told = cli("migrate", *both, "--connect-command", "target:sh -c 'echo no way >&2; exit 9'")
    assert told.code != 0
    assert "target-reachable" in told.err + told.out
    assert not s.target.client().dbsize()
    folder = tmp_path / "relays"
    folder.mkdir()
    done = cli("migrate", *both, "--connect-command", relay_through(folder))
    assert done.code == 0, done.err
    s.assert_migrated()
    wait_for(lambda: not ends(folder), "no relay is left")
